/*
 * job_worker.c: runs one job, then ends.
 *
 * The launcher starts it in a database where there may be a job.  It claims
 * one, has its data read, has the engine train, and stores what comes of it.
 * It runs no code of users and holds no transaction while anybody computes.
 *
 *     claim ── data there? ──no──► reader ──► queued ──► engine train ──► uploading ──► completed
 *               └──────────────yes──────────────┘    ◄─ attempt + 1 ─┘
 *
 * An attempt that ends otherwise than by a result, an error that another try
 * would meet again, or a cancel, is followed by another one, which goes on
 * from the last checkpoint.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/xact.h"
#include "catalog.h"
#include "commands/extension.h"
#include "full_model.h"
#include "job_worker.h"
#include "launcher.h"
#include "miscadmin.h"
#include "options.h"
#include "paths.h"
#include "pg_finetune.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "settings.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* After the first attempt that came to nothing, longer after the next; and while something outside
 * is missing */
#define RETRY_MS 1000
#define SCARCE_MS 10000

/*
 * Outside of a transaction, the flag is enough: the main loop ends the engine
 * and gives the attempt back.  Within one the worker might wait for a lock.
 */
static void
handle_sigterm(SIGNAL_ARGS)
{
	int save_errno = errno;

	ShutdownRequestPending = true;
	if (IsTransactionState())
		die(postgres_signal_arg);
	SetLatch(MyLatch);
	errno = save_errno;
}

static void
end_reader(int code, Datum arg)
{
	pgft_data_end_reader();
}

/* What a database or role may have set for sessions is not for this one. */
static void
override_settings(void)
{
	static const char *const settings[][2] = {
		{"default_transaction_read_only", "off"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_deferrable", "off"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		/* the first job is wanted from a cursor on the queue, however many there are */
		{"cursor_tuple_fraction", "0"},
	};

	for (int i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

static bool
must_leave(void)
{
	return ShutdownRequestPending || pgft_slot_must_leave();
}

static void
reload_settings(void)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/*
 * May this worker take a job?  There may be fewer places than when it was
 * started.  Asked when a job has been found, so that one that is created after
 * pg_finetune.max_running_jobs was changed meets the new number.
 */
static bool
has_place(void)
{
	reload_settings();
	return pgft_slots_taken() <= pgft_max_running_jobs;
}

static bool
extension_is_here(void)
{
	bool here;

	StartTransactionCommand();
	here =
		OidIsValid(get_extension_oid(PGFT_LIBRARY, true)) && OidIsValid(pgft_relation_oid("job"));
	CommitTransactionCommand();
	return here;
}

/*
 * False when the extension is not here; a restore may be dropping it now, to
 * create it anew.  What pg_upgrade leaves out is put right once after a start,
 * as that looks at every model.
 */
static bool
look_at_models(void)
{
	Oid table;
	bool here;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	table = pgft_relation_oid("job");
	if (OidIsValid(table))
		LockRelationOid(table, AccessShareLock);
	here = OidIsValid(get_extension_oid(PGFT_LIBRARY, true)) && OidIsValid(table) &&
		   pgft_relation_oid("job") == table;
	if (here && pgft_slot_is_first())
		pgft_model_depend_all();
	PopActiveSnapshot();
	CommitTransactionCommand();
	return here;
}

/* What the job's row wants of this worker. */
static PgftOutcome
ask(PgftJobWorker *worker)
{
	switch (pgft_job_hold(worker->job))
	{
		case PGFT_JOB_MINE:
			return PGFT_OUTCOME_GO_ON;
		case PGFT_JOB_PAUSED:
			return PGFT_OUTCOME_LEAVE;
		default:
			return PGFT_OUTCOME_LOST;
	}
}

PgftOutcome
pgft_worker_lost(PgftJobWorker *worker)
{
	PgftOutcome outcome = ask(worker);

	/* paused, and resumed since: what was refused meanwhile would be missing */
	return outcome == PGFT_OUTCOME_GO_ON ? PGFT_OUTCOME_LEAVE : outcome;
}

void
pgft_worker_remember(PgftJobWorker *worker, int sqlstate, const char *message)
{
	worker->sqlstate = sqlstate;
	strlcpy(worker->last_words, message, sizeof(worker->last_words));
}

/* Not with the tables of version 1.0. */
static bool
can_pause(void)
{
	bool can;

	StartTransactionCommand();
	can = pgft_has_column("job", "home");
	CommitTransactionCommand();
	return can;
}

/* Is a full model trained, which has taken long, and only to be stored? */
static bool
is_storing_full(PgftJobWorker *worker)
{
	return strcmp(worker->job->phase, "uploading") == 0 && pgft_options_full(worker->job->options);
}

/*
 * With more room the job can go on, so a full disk does not end it; nor does
 * anything else that keeps a full model from being stored.
 */
PgftOutcome
pgft_worker_stop(PgftJobWorker *worker, int sqlstate, const char *message, const char *hint)
{
	bool full_disk = sqlstate == ERRCODE_DISK_FULL;

	if ((full_disk || is_storing_full(worker)) && can_pause())
	{
		hint = psprintf("%s, then call finetune('RESUME', '%s').",
						full_disk ? "Make room" : "Put that right", worker->job->name);
		return pgft_job_pause_by_error(worker->job, sqlstate, message, hint)
				   ? PGFT_OUTCOME_LEAVE
				   : pgft_worker_lost(worker);
	}
	return pgft_job_fail(worker->job, sqlstate, message, hint) ? PGFT_OUTCOME_ENDED
															   : pgft_worker_lost(worker);
}

/* A job stops before it takes the room that the server needs; now and then is often enough. */
static PgftOutcome
look_at_disk(PgftJobWorker *worker)
{
	int64 now = pgft_monotonic_ms();
	char *message;

	if (now < worker->look_at_disk_at)
		return PGFT_OUTCOME_GO_ON;
	worker->look_at_disk_at = now + PGFT_DISK_MS;
	message = pgft_disk_is_low();
	if (message == NULL)
		return PGFT_OUTCOME_GO_ON;
	ereport(WARNING,
			(errcode(ERRCODE_DISK_FULL), errmsg("job %s: %s", worker->job->name, message)));
	return pgft_worker_stop(worker, ERRCODE_DISK_FULL, message, NULL);
}

PgftOutcome
pgft_worker_look_up(PgftJobWorker *worker)
{
	CHECK_FOR_INTERRUPTS();
	reload_settings();
	if (must_leave())
		return PGFT_OUTCOME_LEAVE;
	/* shared memory says when to ask, the row says what is true */
	if (pgft_slot_cancelled())
	{
		PgftOutcome outcome = ask(worker);

		if (outcome != PGFT_OUTCOME_GO_ON)
			return outcome;
	}
	return look_at_disk(worker);
}

/* Sleep, unless there is something to end for. */
static PgftOutcome
pause_for(PgftJobWorker *worker, long ms)
{
	int64 until = pgft_monotonic_ms() + ms;

	for (;;)
	{
		PgftOutcome outcome = pgft_worker_look_up(worker);
		int64 left = until - pgft_monotonic_ms();

		if (outcome != PGFT_OUTCOME_GO_ON || left <= 0)
			return outcome;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

PgftOutcome
pgft_worker_wait(PgftJobWorker *worker, const char *message, const char *hint)
{
	if (!worker->warned_scarce)
	{
		ereport(WARNING, (errcode(ERRCODE_INSUFFICIENT_RESOURCES),
						  errmsg("job %s waits: %s", worker->job->name, message),
						  hint ? errhint("%s", hint) : 0));
		pgft_job_note(worker->job, "warning", "waiting", message);
		worker->warned_scarce = true;
	}
	return pause_for(worker, SCARCE_MS);
}

char *
pgft_worker_path(PgftJobWorker *worker, const char *name)
{
	return psprintf("%s/%s", worker->directory, name);
}

/* ---- An attempt ---- */

static bool
file_exists(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0;
}

/* Storing a large model goes on until somebody wants the place or the job. */
static bool
may_store(void)
{
	return !must_leave() && !pgft_slot_cancelled();
}

/* The result is named by the engine, which is not to lead us out of the job's directory. */
static PgftOutcome
upload(PgftJobWorker *worker, const char *result)
{
	if (result == NULL || pgft_check_model_file(result) != NULL)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("training engine named no usable directory of weights")));
	pgft_slot_set_phase(PGFT_PHASE_UPLOADING);
	if (!pgft_job_complete(worker->job, pgft_worker_path(worker, result), may_store))
		return pgft_worker_lost(worker);
	return PGFT_OUTCOME_ENDED;
}

static PgftOutcome
run_attempt(PgftJobWorker *worker)
{
	bool full = pgft_options_full(worker->job->options);
	PgftOutcome outcome = PGFT_OUTCOME_GO_ON;
	char *result = full ? "model" : "adapter";
	char *config = full ? "model/config.json" : "adapter/adapter_config.json";

	pgft_make_work_directory();
	outcome = pgft_worker_look_up(worker);
	if (outcome != PGFT_OUTCOME_GO_ON)
		return outcome;

	/* what was trained before a restart need only be stored */
	if (strcmp(worker->job->phase, "uploading") != 0 ||
		!file_exists(pgft_worker_path(worker, config)))
	{
		if (!pgft_data_is_read(worker))
			outcome = pgft_data_read(worker);
		if (outcome == PGFT_OUTCOME_GO_ON)
			outcome = pgft_training_run(worker, &result);
	}
	return outcome == PGFT_OUTCOME_GO_ON ? upload(worker, result) : outcome;
}

/* Would another attempt meet the same error? */
static bool
is_transient(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_TO_CATEGORY(ERRCODE_CONNECTION_EXCEPTION):
		case ERRCODE_TO_CATEGORY(ERRCODE_TRANSACTION_ROLLBACK):
		case ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES):
		case ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION):
			return true;
		default:
			return sqlstate == ERRCODE_IO_ERROR || sqlstate == ERRCODE_LOCK_NOT_AVAILABLE ||
				   sqlstate == ERRCODE_INTERNAL_ERROR;
	}
}

static void
reset_attempt(PgftJobWorker *worker)
{
	worker->base_path = worker->base_file = NULL;
	MemoryContextReset(worker->attempt);
	MemoryContextSwitchTo(worker->attempt);
}

/* After an error: clean up, and tell what it means for the job. */
static PgftOutcome
attempt_failed(PgftJobWorker *worker)
{
	ErrorData *edata;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(worker->attempt);
	edata = CopyErrorData();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(worker->attempt);
	pgft_training_end_engine();
	RESUME_INTERRUPTS();

	/* dropped with all its jobs */
	if (!extension_is_here())
		return PGFT_OUTCOME_LOST;

	ereport(LOG,
			(errcode(edata->sqlerrcode), errmsg("job %s: %s", worker->job->name, edata->message)));
	/* by may_store: what was asked of this worker counts */
	if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED)
	{
		PgftOutcome outcome = pgft_worker_look_up(worker);

		if (outcome != PGFT_OUTCOME_GO_ON)
			return outcome;
	}
	if (is_storing_full(worker))
		edata->message = pgft_full_words(edata->message);
	if (is_transient(edata->sqlerrcode))
	{
		pgft_worker_remember(worker, edata->sqlerrcode, edata->message);
		return PGFT_OUTCOME_RETRY;
	}
	return pgft_worker_stop(worker, edata->sqlerrcode, edata->message, edata->hint);
}

static PgftOutcome
guarded_attempt(PgftJobWorker *worker)
{
	PgftOutcome outcome;

	reset_attempt(worker);
	PG_TRY();
	{
		outcome = run_attempt(worker);
	}
	PG_CATCH();
	{
		outcome = attempt_failed(worker);
	}
	PG_END_TRY();
	return outcome;
}

static PgftOutcome
give_up(PgftJobWorker *worker)
{
	return pgft_worker_stop(
		worker, worker->sqlstate ? worker->sqlstate : ERRCODE_SYSTEM_ERROR,
		worker->last_words[0] ? worker->last_words : "the worker died in every attempt", NULL);
}

/* Attempts until the job has ended, or this process must. */
static PgftOutcome
run_job(PgftJobWorker *worker)
{
	/* attempts that ended with their worker have been counted, too */
	if (worker->job->fruitless > PGFT_JOB_MAX_ATTEMPTS)
		return give_up(worker);
	for (;;)
	{
		PgftOutcome outcome = guarded_attempt(worker);

		if (outcome == PGFT_OUTCOME_SPARE)
			continue;
		if (outcome != PGFT_OUTCOME_RETRY)
			return outcome;

		reset_attempt(worker);
		ereport(LOG, (errmsg("job %s: attempt %d came to nothing: %s", worker->job->name,
							 worker->job->attempt, worker->last_words)));
		pgft_job_note(worker->job, "warning", "attempt_failed", worker->last_words);
		if (worker->job->fruitless >= PGFT_JOB_MAX_ATTEMPTS)
			return give_up(worker);
		outcome = pause_for(worker, (long) RETRY_MS * worker->job->fruitless);
		if (outcome != PGFT_OUTCOME_GO_ON)
			return outcome;
		if (!pgft_job_next_attempt(worker->job))
			return pgft_worker_lost(worker);
	}
}

/* ---- The process ---- */

/*
 * The attempt ends because the server does, or because the database is wanted
 * by others: it is not held against the job.  Nothing is worth waiting for.
 */
static void
give_back(PgftJobWorker *worker)
{
	SetConfigOption("lock_timeout", "500ms", PGC_SUSET, PGC_S_OVERRIDE);
	PG_TRY();
	{
		pgft_job_release_attempt(worker->job, "interrupted, goes on later");
	}
	PG_CATCH();
	{
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
}

void
pgft_job_worker_main(Datum arg)
{
	PgftJobWorker worker = {0};
	bool refused;

	worker.database = pgft_slot_attach(arg);
	pqsignal(SIGTERM, handle_sigterm);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(worker.database, InvalidOid, 0);
	before_shmem_exit(end_reader, (Datum) 0);
	override_settings();

	if (!look_at_models())
	{
		pgft_slot_set_result(PGFT_LOOK_NO_EXTENSION);
		proc_exit(0);
	}
	pgft_job_settle_foreign();
	pgft_job_clean_all();
	worker.job = pgft_job_claim(TopMemoryContext, has_place, &refused);
	if (worker.job == NULL)
	{
		/* what was found is still there to be taken, once there is a place */
		pgft_slot_set_result(refused ? PGFT_LOOK_RAN : PGFT_LOOK_NO_JOB);
		proc_exit(0);
	}

	worker.attempt =
		AllocSetContextCreate(TopMemoryContext, "attempt of a job", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(TopMemoryContext);
	worker.directory = pgft_job_directory(&worker.job->id);
	pgft_slot_set_job(&worker.job->id, PGFT_PHASE_PENDING);
	pgstat_report_activity(STATE_RUNNING, psprintf("job %s", worker.job->name));

	if (run_job(&worker) == PGFT_OUTCOME_LEAVE)
	{
		give_back(&worker);
		/* a job that was paused leaves its place to another */
		if (!must_leave())
			pgft_slot_set_result(PGFT_LOOK_RAN);
	}
	else
	{
		MemoryContextSwitchTo(worker.attempt);
		if (extension_is_here())
			pgft_job_clean(&worker.job->id);
		else
			pgft_remove_tree(worker.directory);
		pgft_slot_set_result(PGFT_LOOK_RAN);
	}
	proc_exit(0);
}
