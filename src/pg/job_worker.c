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
#include <sys/wait.h>
#include <unistd.h>

#include "access/xact.h"
#include "catalog.h"
#include "child.h"
#include "commands/extension.h"
#include "engine_client.h"
#include "job.h"
#include "job_events.h"
#include "json.h"
#include "launcher.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "options.h"
#include "paths.h"
#include "pg_finetune.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "reader.h"
#include "settings.h"
#include "shmem.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Training gives way to queries */
#define ENGINE_NICENESS 10

/* An engine says something at least every 5 s; one that is silent this long hangs */
#define HEARTBEAT_MS 60000

/* Lines that may wait are written together */
#define FLUSH_MS 500

/* An engine that was asked to end is killed after this */
#define STOP_MS 3000

/* Between attempts, and while something outside is missing */
#define RETRY_MS 1000
#define SCARCE_MS 10000

typedef enum Outcome
{
	OUTCOME_ENDED, /* completed or failed, and the row says so */
	OUTCOME_LOST,  /* cancelled, dropped, or another's */
	OUTCOME_LEAVE, /* this process must end; the job goes on later */
	OUTCOME_RETRY, /* the attempt came to nothing */
	OUTCOME_SPARE, /* so it did, but not by its own fault: no attempt burned */
	OUTCOME_GO_ON  /* a step of the attempt is done */
} Outcome;

typedef struct Worker
{
	Oid database;
	PgftJob *job;
	char *directory;
	const char *base_path; /* the base's file, as the engine is told, and as users know it */
	const char *base_file;
	MemoryContext attempt; /* reset at each attempt */
	char last_words[1024]; /* of the last attempt that came to nothing */
	int sqlstate;          /* of the same */
	bool warned_scarce;
} Worker;

static BackgroundWorkerHandle *reader = NULL;
static PgftChild *engine = NULL;

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
	if (reader)
		TerminateBackgroundWorker(reader);
}

static void
end_engine(void)
{
	if (engine)
		pgft_child_end(engine);
	engine = NULL;
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

/* Has somebody cancelled the job? Shared memory says when to ask, the row says what is true. */
static bool
is_lost(Worker *worker)
{
	PgftCatalog catalog;
	bool mine;

	if (!pgft_slot_cancelled())
		return false;
	pgft_job_begin(&catalog);
	mine = pgft_job_is_mine(worker->job);
	pgft_job_finish(&catalog);
	return !mine;
}

static void
remember_failure(Worker *worker, int sqlstate, const char *message)
{
	worker->sqlstate = sqlstate;
	strlcpy(worker->last_words, message, sizeof(worker->last_words));
}

/* One look at the world between sleeps; OUTCOME_GO_ON when there is nothing to do. */
static Outcome
look_up(Worker *worker)
{
	CHECK_FOR_INTERRUPTS();
	reload_settings();
	if (must_leave())
		return OUTCOME_LEAVE;
	if (is_lost(worker))
		return OUTCOME_LOST;
	return OUTCOME_GO_ON;
}

/* Sleep, unless there is something to end for. */
static Outcome
pause_for(Worker *worker, long ms)
{
	int64 until = pgft_monotonic_ms() + ms;

	for (;;)
	{
		Outcome outcome = look_up(worker);
		int64 left = until - pgft_monotonic_ms();

		if (outcome != OUTCOME_GO_ON || left <= 0)
			return outcome;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* Something outside is missing: say so once, wait, and take no attempt for it. */
static Outcome
wait_for_better_times(Worker *worker, const char *message, const char *hint)
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

/* ---- Reading the data ---- */

static char *
in_directory(Worker *worker, const char *name)
{
	return psprintf("%s/%s", worker->directory, name);
}

static bool
file_exists(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0;
}

/* A whole small file (palloc'd), NULL when there is none. */
static char *
read_file(const char *path)
{
	FILE *file = AllocateFile(path, "r");
	StringInfoData buf;
	char chunk[4096];
	size_t got;

	if (file == NULL && errno == ENOENT)
		return NULL;
	if (file == NULL)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not open file \"%s\": %m", path)));
	initStringInfo(&buf);
	while ((got = fread(chunk, 1, sizeof(chunk), file)) > 0)
		appendBinaryStringInfo(&buf, chunk, got);
	if (ferror(file))
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not read file \"%s\": %m", path)));
	FreeFile(file);
	return buf.data;
}

/* What the reader said; NULL when it said nothing. */
static Jsonb *
read_report(Worker *worker)
{
	char *text = read_file(in_directory(worker, PGFT_READER_REPORT));
	MemoryContext old = CurrentMemoryContext;
	Jsonb *report;

	if (text == NULL)
		return NULL;

	/* a conversion is looked up in the catalog */
	StartTransactionCommand();
	MemoryContextSwitchTo(old);
	report = pgft_json_parse(text, strlen(text), "report of the reader");
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	return report;
}

static bool
data_is_read(Worker *worker)
{
	Jsonb *report = read_report(worker);
	int64 rows;

	return report && pgft_json_int64(&report->root, "rows", &rows);
}

static bool
start_reader(Worker *worker)
{
	BackgroundWorker spec = {0};
	PgftReaderTask task = {.database = worker->database, .job = worker->job->id};
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	bool registered;

	StaticAssertStmt(sizeof(task) <= BGW_EXTRALEN, "task fits");
	spec.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	spec.bgw_start_time = BgWorkerStart_RecoveryFinished;
	spec.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(spec.bgw_library_name, PGFT_LIBRARY, BGW_MAXLEN);
	strlcpy(spec.bgw_function_name, "pgft_reader_main", BGW_MAXLEN);
	strlcpy(spec.bgw_name, PGFT_READER_NAME, BGW_MAXLEN);
	strlcpy(spec.bgw_type, PGFT_READER_NAME, BGW_MAXLEN);
	memcpy(spec.bgw_extra, &task, sizeof(task));
	spec.bgw_notify_pid = MyProcPid;
	registered = RegisterDynamicBackgroundWorker(&spec, &reader);
	if (!registered)
		reader = NULL;
	MemoryContextSwitchTo(old);
	return registered;
}

/* Wait for the reader's end; when this worker has to end, so has the reader. */
static Outcome
wait_for_reader(Worker *worker)
{
	Outcome outcome = OUTCOME_GO_ON;
	pid_t pid;

	while (GetBackgroundWorkerPid(reader, &pid) != BGWH_STOPPED)
	{
		if (outcome == OUTCOME_GO_ON)
		{
			outcome = look_up(worker);
			if (outcome != OUTCOME_GO_ON)
				TerminateBackgroundWorker(reader);
		}
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, -1, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	pfree(reader);
	reader = NULL;
	return outcome;
}

static Outcome
read_data(Worker *worker)
{
	Jsonb *report;
	JsonbContainer *error;
	char *code;
	int64 rows = 0;
	Outcome outcome;

	if (strcmp(worker->job->phase, "pending") != 0 &&
		!pgft_job_set_phase(worker->job, "pending", "reading the data again"))
		return OUTCOME_LOST;
	pgft_slot_set_phase(PGFT_PHASE_PENDING);
	pgft_make_directory(worker->directory);
	(void) unlink(in_directory(worker, PGFT_READER_REPORT));

	while (!start_reader(worker))
	{
		outcome = wait_for_better_times(worker, "no background worker is free to read its data",
										"Increase max_worker_processes.");
		if (outcome != OUTCOME_GO_ON)
			return outcome;
	}
	worker->warned_scarce = false;
	outcome = wait_for_reader(worker);
	if (outcome != OUTCOME_GO_ON)
		return outcome;

	report = read_report(worker);
	if (report == NULL)
	{
		remember_failure(worker, ERRCODE_SYSTEM_ERROR, "the process that read the data died");
		return OUTCOME_RETRY;
	}
	error = pgft_json_object(&report->root, "error");
	if (error)
	{
		code = pgft_json_string(error, "code");
		pgft_job_fail(worker->job, MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4]),
					  pgft_json_string(error, "message"), pgft_json_string(error, "hint"));
		return OUTCOME_ENDED;
	}
	pgft_json_int64(&report->root, "rows", &rows);
	return pgft_job_set_phase(worker->job, "queued", psprintf(INT64_FORMAT " rows read", rows))
			   ? OUTCOME_GO_ON
			   : OUTCOME_LOST;
}

/* ---- job.json ---- */

/* The base, in the form that job.json has it; an error when it is not to be had. */
static char *
describe_base(Worker *worker)
{
	PgftModel *base = pgft_model_by_id(&worker->job->base_id);
	StringInfoData buf;

	if (base == NULL || !OidIsValid(base->server))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("the base model does not exist")));
	pgft_model_resolve(base);
	worker->base_path = MemoryContextStrdup(worker->attempt, base->path);
	worker->base_file = MemoryContextStrdup(worker->attempt, base->file);
	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	pgft_json_add_string(&buf, "path", base->path);
	pgft_json_add_string(&buf, "name", base->name);
	if (base->chat_template)
		pgft_json_add_string(&buf, "template", base->chat_template);
	if (base->context_length > 0)
		pgft_json_add_int64(&buf, "context_length", base->context_length);
	if (worker->job->base_digest)
		pgft_json_add_string(&buf, "digest", worker->job->base_digest);
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

static void
write_job_file(Worker *worker)
{
	char *path = in_directory(worker, "job.json");
	char *temporary = in_directory(worker, "job.json.tmp");
	MemoryContext context = CurrentMemoryContext;
	StringInfoData buf;
	char *text;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	pgft_json_add_int64(&buf, "version", 1);
	pgft_json_add_raw(&buf, "base", describe_base(worker));
	pgft_json_add_string(&buf, "device", pgft_device);
	pgft_json_add_int64(&buf, "threads", pgft_threads);
	pgft_json_add_string(&buf, "numerics", pgft_numerics_name());
	pgft_json_add_raw(
		&buf, "options",
		JsonbToCString(NULL, &pgft_options_for_engine(worker->job->options)->root, 0));
	appendStringInfoString(&buf, "}\n");
	text = pg_server_to_any(buf.data, buf.len, PG_UTF8);
	pgft_write_file(temporary, text, strlen(text));
	(void) durable_rename(temporary, path, ERROR);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/* ---- Training ---- */

/* A running engine, and what it has said but nobody has written down. */
typedef struct Training
{
	PgftChild *child;
	PgftJobEvents events;
	MemoryContext lines_context;
	List *lines;
	int64 flush_at; /* when lines that may wait are written */
	bool urgent;    /* one of them may not */
	int64 heard_at;
	int64 kill_at; /* 0: nobody asked it to end */
	Outcome ending;
} Training;

static void
take_lines(Training *training)
{
	MemoryContext old = MemoryContextSwitchTo(training->lines_context);
	char *line;

	while ((line = pgft_child_next_line(training->child)) != NULL)
	{
		if (training->lines == NIL)
			training->flush_at = pgft_monotonic_ms() + FLUSH_MS;
		training->lines = lappend(training->lines, pstrdup(line));
		training->urgent |= !pgft_job_event_can_wait(line);
		training->heard_at = pgft_monotonic_ms();
	}
	MemoryContextSwitchTo(old);
}

static void
flush_lines(Training *training)
{
	if (training->lines == NIL)
		return;
	pgft_job_events_apply(&training->events, training->lines);
	training->lines = NIL;
	training->urgent = false;
	MemoryContextReset(training->lines_context);
}

static long
time_to_sleep(Training *training)
{
	int64 now = pgft_monotonic_ms();
	int64 until = training->heard_at + HEARTBEAT_MS;

	if (training->lines != NIL)
		until = Min(until, training->flush_at);
	if (training->kill_at > 0)
		until = Min(until, training->kill_at);
	return Max(until - now, 0);
}

/* End the engine where there is a reason to: gently where its work goes on later. */
static void
supervise(Worker *worker, Training *training)
{
	int64 now = pgft_monotonic_ms();

	if (training->ending == OUTCOME_GO_ON)
	{
		training->ending = training->events.lost ? OUTCOME_LOST : look_up(worker);
		if (training->ending == OUTCOME_LOST)
			pgft_child_kill(training->child);
		else if (training->ending == OUTCOME_LEAVE)
		{
			pgft_child_terminate(training->child);
			training->kill_at = now + STOP_MS;
		}
		else if (now >= training->heard_at + HEARTBEAT_MS)
		{
			ereport(LOG, (errmsg("training engine of job %s has said nothing for %d s, ending it",
								 worker->job->name, HEARTBEAT_MS / 1000)));
			pgft_child_kill(training->child);
			training->heard_at = now;
		}
	}
	else if (training->kill_at > 0 && now >= training->kill_at)
	{
		pgft_child_kill(training->child);
		training->kill_at = 0;
	}
}

/* Run the engine to its end; returns its wait status. */
static int
attend_engine(Worker *worker, Training *training)
{
	int status;

	for (;;)
	{
		bool exited;

		take_lines(training);
		exited = pgft_child_exited(training->child, &status);
		if (training->urgent || exited || pgft_monotonic_ms() >= training->flush_at)
			flush_lines(training);
		if (exited)
			break;
		supervise(worker, training);
		(void) pgft_child_wait(training->child, time_to_sleep(training));
	}
	return status;
}

/* The engine names the base's file by its path, which is no business of the job's owner. */
static char *
without_path(Worker *worker, const char *text)
{
	StringInfoData buf;
	const char *found;

	if (text == NULL)
		return NULL;
	initStringInfo(&buf);
	while (worker->base_path && (found = strstr(text, worker->base_path)) != NULL)
	{
		appendBinaryStringInfo(&buf, text, found - text);
		appendStringInfoString(&buf, worker->base_file);
		text = found + strlen(worker->base_path);
	}
	appendStringInfoString(&buf, text);
	return buf.data;
}

/* What an engine's "failed" means for the job. */
static Outcome
engine_failed(Worker *worker, PgftJobEvents *events)
{
	const char *code = events->code ? events->code : "internal";
	const char *message =
		events->message ? without_path(worker, events->message) : "training failed";
	const char *hint = without_path(worker, events->hint);

	if (strcmp(code, "device") == 0)
	{
		Outcome outcome = wait_for_better_times(worker, message, hint);

		return outcome == OUTCOME_GO_ON ? OUTCOME_SPARE : outcome;
	}
	/* an engine of an attempt before this one is not quite gone, or asked to end by others */
	if (strcmp(code, "busy") == 0 || strcmp(code, "cancelled") == 0)
	{
		remember_failure(worker, pgft_engine_sqlstate(code), message);
		return OUTCOME_RETRY;
	}
	pgft_job_fail(worker->job, pgft_engine_sqlstate(code), message, hint);
	return OUTCOME_ENDED;
}

static Outcome
engine_ended(Worker *worker, Training *training, int status, const char *last_words)
{
	if (training->ending != OUTCOME_GO_ON)
		return training->ending;
	if (training->events.lost)
		return OUTCOME_LOST;
	if (training->events.completed)
		return OUTCOME_GO_ON;
	if (training->events.failed)
		return engine_failed(worker, &training->events);

	/* one that is killed has had no time for last words */
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		last_words = "";
	remember_failure(worker, ERRCODE_SYSTEM_ERROR,
					 psprintf("training engine died: %s%s%s", pgft_child_status_text(status),
							  last_words[0] ? ": " : "", without_path(worker, last_words)));
	return OUTCOME_RETRY;
}

static Outcome
train(Worker *worker, char **adapter)
{
	const char *argv[] = {pgft_engine_program(), "train", pgft_absolute_path(worker->directory),
						  NULL};
	Training training = {.ending = OUTCOME_GO_ON};
	Outcome outcome;
	int status;

	training.events.job = worker->job;
	training.events.context = worker->attempt;
	training.lines_context =
		AllocSetContextCreate(worker->attempt, "engine events", ALLOCSET_DEFAULT_SIZES);
	training.heard_at = pgft_monotonic_ms();
	pgft_slot_set_phase(PGFT_PHASE_QUEUED);
	training.child = engine = pgft_child_start("training engine", argv, ENGINE_NICENESS);
	status = attend_engine(worker, &training);
	outcome = engine_ended(worker, &training, status, pgft_child_last_words(training.child));
	end_engine();
	*adapter = training.events.adapter;
	return outcome;
}

/* ---- An attempt ---- */

/* The adapter is named by the engine, which is not to lead us out of the job's directory. */
static Outcome
upload(Worker *worker, const char *adapter)
{
	if (adapter == NULL || pgft_check_model_file(adapter) != NULL)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("training engine named no usable adapter directory")));
	pgft_slot_set_phase(PGFT_PHASE_UPLOADING);
	return pgft_job_complete(worker->job, in_directory(worker, adapter)) ? OUTCOME_ENDED
																		 : OUTCOME_LOST;
}

static Outcome
run_attempt(Worker *worker)
{
	Outcome outcome = OUTCOME_GO_ON;
	char *adapter = "adapter";

	pgft_make_work_directory();

	/* what was trained before a restart need only be stored */
	if (strcmp(worker->job->phase, "uploading") != 0 ||
		!file_exists(in_directory(worker, "adapter/adapter_config.json")))
	{
		if (!data_is_read(worker))
			outcome = read_data(worker);
		if (outcome == OUTCOME_GO_ON)
		{
			write_job_file(worker);
			outcome = train(worker, &adapter);
		}
	}
	return outcome == OUTCOME_GO_ON ? upload(worker, adapter) : outcome;
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
reset_attempt(Worker *worker)
{
	worker->base_path = worker->base_file = NULL;
	MemoryContextReset(worker->attempt);
	MemoryContextSwitchTo(worker->attempt);
}

/* After an error: clean up, and tell what it means for the job. */
static Outcome
attempt_failed(Worker *worker)
{
	ErrorData *edata;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(worker->attempt);
	edata = CopyErrorData();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(worker->attempt);
	end_engine();
	RESUME_INTERRUPTS();

	/* dropped with all its jobs */
	if (!extension_is_here())
		return OUTCOME_LOST;

	ereport(LOG,
			(errcode(edata->sqlerrcode), errmsg("job %s: %s", worker->job->name, edata->message)));
	if (is_transient(edata->sqlerrcode))
	{
		remember_failure(worker, edata->sqlerrcode, edata->message);
		return OUTCOME_RETRY;
	}
	return pgft_job_fail(worker->job, edata->sqlerrcode, edata->message, edata->hint)
			   ? OUTCOME_ENDED
			   : OUTCOME_LOST;
}

static Outcome
guarded_attempt(Worker *worker)
{
	Outcome outcome;

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

static Outcome
give_up(Worker *worker)
{
	bool failed = pgft_job_fail(
		worker->job, worker->sqlstate ? worker->sqlstate : ERRCODE_SYSTEM_ERROR,
		worker->last_words[0] ? worker->last_words : "the worker died in every attempt", NULL);

	return failed ? OUTCOME_ENDED : OUTCOME_LOST;
}

/* Attempts until the job has ended, or this process must. */
static Outcome
run_job(Worker *worker)
{
	/* attempts that ended with their worker have been counted, too */
	if (worker->job->fruitless > PGFT_JOB_MAX_ATTEMPTS)
		return give_up(worker);
	for (;;)
	{
		Outcome outcome = guarded_attempt(worker);

		if (outcome == OUTCOME_SPARE)
			continue;
		if (outcome != OUTCOME_RETRY)
			return outcome;

		reset_attempt(worker);
		ereport(LOG, (errmsg("job %s: attempt %d came to nothing: %s", worker->job->name,
							 worker->job->attempt, worker->last_words)));
		pgft_job_note(worker->job, "warning", "attempt_failed", worker->last_words);
		if (worker->job->fruitless >= PGFT_JOB_MAX_ATTEMPTS)
			return give_up(worker);
		outcome = pause_for(worker, RETRY_MS);
		if (outcome != OUTCOME_GO_ON)
			return outcome;
		if (!pgft_job_next_attempt(worker->job))
			return OUTCOME_LOST;
	}
}

/* ---- The process ---- */

/*
 * The attempt ends because the server does, or because the database is wanted
 * by others: it is not held against the job.  Nothing is worth waiting for.
 */
static void
give_back(Worker *worker)
{
	SetConfigOption("lock_timeout", "500ms", PGC_USERSET, PGC_S_SESSION);
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
	Worker worker = {0};

	worker.database = pgft_slot_attach(arg);
	pqsignal(SIGTERM, handle_sigterm);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(worker.database, InvalidOid, 0);
	before_shmem_exit(end_reader, (Datum) 0);

	if (!extension_is_here())
	{
		pgft_slot_set_result(PGFT_LOOK_NO_EXTENSION);
		proc_exit(0);
	}
	pgft_job_clean_all();
	worker.job = pgft_job_claim(TopMemoryContext);
	if (worker.job == NULL)
	{
		pgft_slot_set_result(PGFT_LOOK_NO_JOB);
		proc_exit(0);
	}

	worker.attempt =
		AllocSetContextCreate(TopMemoryContext, "attempt of a job", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(TopMemoryContext);
	worker.directory = pgft_job_directory(&worker.job->id);
	pgft_slot_set_job(&worker.job->id, worker.job->owner, PGFT_PHASE_PENDING);
	pgstat_report_activity(STATE_RUNNING, psprintf("job %s", worker.job->name));

	if (run_job(&worker) == OUTCOME_LEAVE)
		give_back(&worker);
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
