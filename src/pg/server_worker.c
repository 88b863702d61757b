/*
 * server_worker.c: starts the serving engine and keeps it running.
 *
 * It needs no database, so it has no connection to one, and nobody waits for
 * it to leave.  An engine that ends is started again, at once the first time,
 * then after a delay that doubles up to half a minute; a minute of quiet
 * service forgives, or twenty times the delay.
 */
#include "postgres.h"

#include <unistd.h>

#include "child.h"
#include "health.h"
#include "launcher.h"
#include "miscadmin.h"
#include "paths.h"
#include "pg_finetune.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "settings.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "usage.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "weights.h"

#define FIRST_DELAY_MS 100
#define MAX_DELAY_MS 30000
#define FORGIVEN_AFTER_MS 60000

/* Or this many times the last delay: one that is killed now and then is soon there again */
#define FORGIVEN_AFTER_DELAYS 20

/* How often an engine that is starting is looked at: its socket cannot tell. */
#define READY_POLL_MS 20
#define READY_POLL_SLOW_MS 250

/* How often the counters of finetune.usage are saved, at least so long apart */
#define SAVE_USAGE_MS 60000

/* How long an engine that is asked to end may take */
#define END_WITHIN_MS 1000

typedef struct Server
{
	PgftChild *child; /* NULL when none runs */
	uint64 generation;
	bool ready;
	int64 started_at;
	int64 start_at; /* when the next may be started */
	int delay;
	PgftHealth health;
	char *settings; /* the running engine's, as text to compare */
} Server;

/* The settings that an engine is started with; a change of any means a new engine. */
static char *
server_settings(void)
{
	return psprintf("%s %d %s %d %d %d", pgft_device, pgft_threads, pgft_numerics_name(),
					pgft_max_concurrent_requests, pgft_engine_memory, pgft_keep_alive);
}

static void
start_engine(Server *server)
{
	const char *argv[] = {pgft_engine_program(),
						  "serve",
						  "--socket",
						  pgft_socket_path(),
						  "--threads",
						  psprintf("%d", pgft_threads),
						  "--device",
						  pgft_device,
						  "--numerics",
						  pgft_numerics_name(),
						  "--max-requests",
						  psprintf("%d", pgft_max_concurrent_requests),
						  "--engine-memory",
						  psprintf("%d", pgft_engine_memory),
						  "--keep-alive",
						  psprintf("%d", pgft_keep_alive),
						  NULL};

	pgft_make_work_directory();
	pgft_weights_prune_cache();
	server->generation = pgft_server_next_generation();
	server->ready = false;
	server->started_at = pgft_monotonic_ms();
	if (server->settings != NULL)
		pfree(server->settings);
	server->settings = MemoryContextStrdup(TopMemoryContext, server_settings());
	server->child = pgft_child_start("engine", argv, 0);
	pgft_server_set(server->generation, pgft_child_pid(server->child), false);
	ereport(LOG, (errmsg("pg_finetune engine started with process ID %d",
						 (int) pgft_child_pid(server->child))));
}

/* Does somebody listen on the socket? */
static bool
engine_listens(void)
{
	int fd = pgft_engine_connect();

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static void
engine_is_gone(Server *server)
{
	pgft_child_end(server->child);
	pgft_health_stop(&server->health);
	server->child = NULL;
	server->ready = false;
	pgft_server_set(server->generation, 0, false);
}

/* The engine has ended by itself: when is the next one to start? */
static void
engine_ended(Server *server, int status)
{
	int64 now = pgft_monotonic_ms();
	pid_t pid = pgft_child_pid(server->child);

	engine_is_gone(server);
	if (ShutdownRequestPending)
		return;
	if (now - server->started_at >= Min(FORGIVEN_AFTER_MS, FORGIVEN_AFTER_DELAYS * server->delay))
		server->delay = 0;
	server->start_at = now + server->delay;
	server->delay = server->delay == 0 ? FIRST_DELAY_MS : Min(server->delay * 2, MAX_DELAY_MS);
	ereport(LOG,
			(errmsg("pg_finetune engine (PID %d) %s", (int) pid, pgft_child_status_text(status))));
}

/* Ask the engine to end, and see to it. */
static void
stop_engine(Server *server)
{
	int64 deadline = pgft_monotonic_ms() + END_WITHIN_MS;

	if (server->child == NULL)
		return;
	pgft_child_terminate(server->child);
	while (!pgft_child_exited(server->child, NULL) && pgft_monotonic_ms() < deadline)
	{
		pgft_child_wait(server->child, deadline - pgft_monotonic_ms());
		while (pgft_child_next_line(server->child) != NULL)
			;
	}
	engine_is_gone(server);
}

/* Milliseconds until there is something to do by the clock, -1 for never. */
static long
time_to_sleep(const Server *server)
{
	int64 now = pgft_monotonic_ms();

	if (server->child == NULL)
		return pgft_serve ? Max(server->start_at - now, 0) : -1;
	if (server->ready)
		return Max(server->health.ask_at - now, 0);
	return now - server->started_at < 5000 ? READY_POLL_MS : READY_POLL_SLOW_MS;
}

static void
server_sleep(Server *server)
{
	long timeout = time_to_sleep(server);
	int status;

	if (server->child == NULL)
	{
		WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout >= 0 ? WL_TIMEOUT : 0),
				  timeout, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		return;
	}

	pgft_child_wait(server->child, timeout);
	while (pgft_child_next_line(server->child) != NULL)
		;
	if (pgft_child_exited(server->child, &status))
		engine_ended(server, status);
	else if (!server->ready && engine_listens())
	{
		server->ready = true;
		pgft_health_start(&server->health);
		pgft_server_set(server->generation, pgft_child_pid(server->child), true);
	}
	else if (server->ready && !pgft_health_check(&server->health))
	{
		ereport(LOG, (errmsg("pg_finetune engine (PID %d) does not answer any more",
							 (int) pgft_child_pid(server->child))));
		pgft_child_kill(server->child);
		server->ready = false;
	}
}

/* While an engine answers this worker wakes every few seconds anyway, to ask how it is. */
static void
save_usage(int64 *save_at)
{
	if (pgft_monotonic_ms() < *save_at)
		return;
	pgft_usage_save();
	*save_at = pgft_monotonic_ms() + SAVE_USAGE_MS;
}

static void
follow_settings(Server *server)
{
	ProcessConfigFile(PGC_SIGHUP);
	if (server->child == NULL)
	{
		server->start_at = 0;
		server->delay = 0;
		return;
	}
	if (!pgft_serve || strcmp(server->settings, server_settings()) != 0)
	{
		stop_engine(server);
		server->start_at = 0;
	}
}

void
pgft_server_worker_main(Datum arg)
{
	Server server = {.health = {.fd = -1}};
	MemoryContext loop_context;
	int64 save_at = pgft_monotonic_ms() + SAVE_USAGE_MS;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();

	loop_context =
		AllocSetContextCreate(TopMemoryContext, "pg_finetune server loop", ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(loop_context);

	/* What a predecessor, killed with its engine, left behind */
	pgft_server_set(0, 0, false);

	while (!ShutdownRequestPending)
	{
		MemoryContextReset(loop_context);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			follow_settings(&server);
		}
		if (server.child == NULL && pgft_serve && pgft_monotonic_ms() >= server.start_at)
			start_engine(&server);
		server_sleep(&server);
		save_usage(&save_at);
		CHECK_FOR_INTERRUPTS();
	}
	stop_engine(&server);

	/* Anything but 1 would keep the postmaster from starting it again */
	proc_exit(1);
}
