/*
 * session_engine.c: an engine program that works for a session while it waits.
 *
 * The queries run before the engine does, so that one which calls such a
 * function itself needs no second engine at the same time, and only the
 * arithmetic waits for its turn.  What a query does is its caller's own: it has
 * his rights and no others, in his transaction, which is read-only meanwhile.
 *
 * An error is caught here, the end of a session in a callback.  The latter stays
 * registered, as a query may register others over it, which
 * PG_ENSURE_ERROR_CLEANUP does not allow for.
 */
#include "postgres.h"

#include <signal.h>
#include <sys/wait.h>

#include "access/xact.h"
#include "child.h"
#include "engine_client.h"
#include "executor/spi.h"
#include "json.h"
#include "miscadmin.h"
#include "paths.h"
#include "pg_finetune.h"
#include "reader.h"
#include "row_file.h"
#include "session_engine.h"
#include "settings.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "utils/snapmgr.h"

/* How long a sleep may be, for the client to be looked after */
#define SLEEP_MS 1000

/* See job_state.c: another class of lock than the jobs' */
#define SESSION_LOCK_CLASS 0x4656

/* What there is to clean up */
typedef struct SessionRun
{
	PgftSessionTask *task;
	char *directory;
	PgftChild *child;
	int64 heard_at;
	struct SessionRun *outer; /* whose query has called for this one */
} SessionRun;

static SessionRun *innermost = NULL;

/* Only the innermost can have an engine: the others are still reading their rows. */
static void
end_run(SessionRun *run)
{
	pgft_child_end_current();
	pgft_remove_tree(run->directory);
	if (run->task->temporary)
		pgft_remove_tree(run->task->temporary);
	innermost = run->outer;
}

static void
end_runs_at_exit(int code, Datum arg)
{
	while (innermost != NULL)
		end_run(innermost);
}

/* ---- The rows ---- */

static void
write_rows(SessionRun *run)
{
	PgftSessionTask *task = run->task;
	bool read_only = XactReadOnly;
	PgftColumns columns;

	if (task->query == NULL)
		return;
	/* after an error the end of the (sub)transaction sets it back */
	XactReadOnly = true;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	pgft_rows_write(task->query, task->query_name, run->directory, PGFT_TRAINING_FILE,
					&task->columns);
	if (task->validation_query)
		pgft_rows_write(task->validation_query, task->validation_name, run->directory,
						PGFT_VALIDATION_FILE, &columns);
	SPI_finish();
	XactReadOnly = read_only;
}

/* ---- The engine ---- */

/*
 * A place among the engines: a base in memory each, so there must not be as
 * many as there are sessions.  Held to the end of the engine, or until an
 * error.
 */
static void
take_place(LOCKTAG *tag)
{
	int places = Max(pgft_max_running_jobs, 1);

	for (int i = 0; i < places; i++)
	{
		SET_LOCKTAG_ADVISORY(*tag, InvalidOid, i, 0, SESSION_LOCK_CLASS);
		if (LockAcquire(tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL)
			return;
	}
	SET_LOCKTAG_ADVISORY(*tag, InvalidOid, MyProcPid % places, 0, SESSION_LOCK_CLASS);
	(void) LockAcquire(tag, ExclusiveLock, false, false);
}

/* The engine's words, with the names that the caller knows. */
static char *
in_callers_words(SessionRun *run, const char *text)
{
	PgftSessionTask *task = run->task;
	const PgftModel *base = task->file.base;
	char *directory = psprintf("%s/", pgft_absolute_path(run->directory));

	text = pgft_replace_text(text, base->path, base->file);
	text = pgft_replace_text(text, directory, "");
	if (task->temporary)
		text = pgft_replace_text(text, task->temporary, task->temporary_name);
	if (task->query)
		text = pgft_replace_text(text, PGFT_TRAINING_FILE, psprintf("the %s", task->query_name));
	if (task->validation_query)
		text = pgft_replace_text(text, PGFT_VALIDATION_FILE,
								 psprintf("the %s", task->validation_name));
	return (char *) text;
}

static void
raise_failed(SessionRun *run, Jsonb *event)
{
	char *code = pgft_json_string(&event->root, "code");
	char *message = pgft_json_string(&event->root, "message");
	char *hint = pgft_json_string(&event->root, "hint");

	ereport(ERROR,
			(errcode(pgft_engine_sqlstate(code ? code : "")),
			 errmsg_internal("%s", message ? in_callers_words(run, message) : "the engine failed"),
			 hint ? errhint("%s", in_callers_words(run, hint)) : 0));
}

static void
take_event(SessionRun *run, const char *line)
{
	PgftSessionTask *task = run->task;
	Jsonb *event = pgft_json_parse(line, strlen(line), "event of the engine");
	char *name = pgft_json_string(&event->root, "event");

	run->heard_at = pgft_monotonic_ms();
	if (name != NULL && strcmp(name, "failed") == 0)
		raise_failed(run, event);
	if (name == NULL || strcmp(name, "heartbeat") == 0)
		pfree(event);
	else if (task->event_count < lengthof(task->events))
		task->events[task->event_count++] = event;
}

static void
engine_ended(SessionRun *run, int status)
{
	const char *last_words = pgft_child_last_words(run->child);

	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return;
	/* one that is killed has had no time for last words */
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		last_words = "";
	ereport(ERROR, (errcode(ERRCODE_SYSTEM_ERROR),
					errmsg("%s died: %s%s%s", run->task->name, pgft_child_status_text(status),
						   last_words[0] ? ": " : "", in_callers_words(run, last_words))));
}

/* Attend the engine to its end. */
static void
attend(SessionRun *run)
{
	int64 checked_at = pgft_monotonic_ms();
	int status;

	run->heard_at = checked_at;
	for (;;)
	{
		char *line;

		CHECK_FOR_INTERRUPTS();
		while ((line = pgft_child_next_line(run->child)) != NULL)
			take_event(run, line);
		if (pgft_child_exited(run->child, &status))
			break;
		if (pgft_monotonic_ms() - run->heard_at >= pgft_engine_silence)
			ereport(ERROR, (errcode(ERRCODE_CANNOT_CONNECT_NOW),
							errmsg("%s has said nothing for %d s", run->task->name,
								   pgft_engine_silence / 1000)));
		(void) pgft_child_wait(run->child, SLEEP_MS);
		pgft_check_client(&checked_at);
	}
	engine_ended(run, status);
}

static void
run_engine(SessionRun *run)
{
	const char *argv[] = {pgft_engine_program(), run->task->program,
						  pgft_absolute_path(run->directory), NULL};
	LOCKTAG tag;

	pgft_job_file_write(&run->task->file, run->directory);
	take_place(&tag);
	run->child = pgft_child_start(run->task->name, argv, PGFT_BACKGROUND_NICENESS);
	attend(run);
	pgft_child_end_current();
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* ---- All of it ---- */

void
pgft_session_engine_run(PgftSessionTask *task)
{
	static int last_number = 0;
	SessionRun run = {.task = task, .outer = innermost};

	if (last_number == 0)
		before_shmem_exit(end_runs_at_exit, (Datum) 0);
	pgft_make_directory(pgft_work_directory);
	pgft_make_directory(pgft_work_path(PGFT_SESSIONS));
	run.directory = pgft_work_path(PGFT_SESSIONS "/%d-%d", MyProcPid, ++last_number);
	task->event_count = 0;
	innermost = &run;
	PG_TRY();
	{
		pgft_make_directory(run.directory);
		write_rows(&run);
		run_engine(&run);
		if (task->finish)
			task->finish(task);
	}
	PG_FINALLY();
	{
		end_run(&run);
	}
	PG_END_TRY();
}

JsonbContainer *
pgft_session_event(const PgftSessionTask *task, const char *name)
{
	for (int i = 0; i < task->event_count; i++)
	{
		char *found = pgft_json_string(&task->events[i]->root, "event");

		if (strcmp(found, name) == 0)
			return &task->events[i]->root;
	}
	ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
					errmsg("%s did not tell its \"%s\"", task->name, name)));
}

void
pgft_session_copy(StringInfo buf, JsonbContainer *event, const char *const *names)
{
	for (; *names != NULL; names++)
	{
		Jsonb *value = pgft_json_any(event, *names);

		pgft_json_add_raw(buf, *names, value ? JsonbToCString(NULL, &value->root, 0) : "null");
	}
}
