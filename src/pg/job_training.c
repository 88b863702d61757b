/*
 * job_training.c: runs the training engine on a job's directory, writes down
 * what it says, and decides what its end means.
 */
#include "postgres.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "child.h"
#include "engine_client.h"
#include "from_model.h"
#include "job_events.h"
#include "job_file.h"
#include "job_worker.h"
#include "options.h"
#include "paths.h"
#include "pg_finetune.h"
#include "settings.h"
#include "shmem.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "weights.h"

/* Lines that may wait are written together */
#define FLUSH_MS 500

/* An engine that was asked to end is killed after this */
#define STOP_MS 3000

static PgftChild *engine = NULL;

void
pgft_training_end_engine(void)
{
	if (engine)
		pgft_child_end(engine);
	engine = NULL;
}

/* ---- job.json ---- */

/* The base and its file; an error when it is not to be had. */
static PgftModel *
find_base(PgftJobWorker *worker)
{
	PgftModel *base = pgft_model_by_id(&worker->job->base_id);

	if (base == NULL || !OidIsValid(base->server))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("the base model does not exist")));
	pgft_model_resolve(base);
	if (base->in_database)
		(void) pgft_weights_base_to_cache(&base->id, base->weights_digest, true, NULL);
	worker->base_path = MemoryContextStrdup(worker->attempt, base->path);
	worker->base_file = MemoryContextStrdup(worker->attempt, base->file);
	return base;
}

/* The last step with metrics that lasted; 0: none. */
static int64
last_metric(PgftJobWorker *worker)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(&worker->job->id)};
	PgftCatalog catalog;
	bool isnull;
	int64 step;

	pgft_job_begin(&catalog);
	pgft_select("SELECT coalesce(max(step), 0) FROM finetune.metric WHERE job_id = $1", 1, types,
				values);
	step = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	pgft_job_finish(&catalog);
	return step;
}

/* The adapter that the job continues from, if there is one and the job has no copy of it yet. */
static void
find_adapter(PgftJobWorker *worker, PgftJobFile *file)
{
	char *copy = psprintf("%s/initial_adapter", worker->directory);
	PgftModel *from;
	struct stat st;

	/* a full model that is continued from is the job's base */
	if (pgft_options_full(worker->job->options) ||
		pgft_options_string(worker->job->options, "from_weights") == NULL || stat(copy, &st) == 0)
		return;
	from = pgft_from_model_of(worker->job->options);
	if (from == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("the model to continue from does not exist any more")));
	if (file->base_digest == NULL)
		file->base_digest = from->base_digest;
	file->adapter = pgft_weights_to_cache(&from->id, from->weights_digest);
}

static void
write_job_file(PgftJobWorker *worker)
{
	MemoryContext context = CurrentMemoryContext;
	PgftJobFile file = {.replay_from = last_metric(worker),
						.base_digest = worker->job->base_digest,
						.options = pgft_options_for_engine(worker->job->options)};

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
	file.base = find_base(worker);
	find_adapter(worker, &file);
	pgft_job_file_write(&file, worker->directory);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/* ---- The engine ---- */

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
	PgftOutcome ending;
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
	int64 until = training->heard_at + pgft_engine_silence;

	if (training->lines != NIL)
		until = Min(until, training->flush_at);
	if (training->kill_at > 0)
		until = Min(until, training->kill_at);
	return Max(until - now, 0);
}

/* End the engine where there is a reason to: gently where its work goes on later. */
static void
supervise(PgftJobWorker *worker, Training *training)
{
	int64 now = pgft_monotonic_ms();

	if (training->ending == PGFT_OUTCOME_GO_ON)
	{
		training->ending =
			training->events.lost ? pgft_worker_lost(worker) : pgft_worker_look_up(worker);
		if (training->ending == PGFT_OUTCOME_LOST)
			pgft_child_kill(training->child);
		else if (training->ending == PGFT_OUTCOME_LEAVE)
		{
			pgft_child_terminate(training->child);
			training->kill_at = now + STOP_MS;
		}
		else if (now >= training->heard_at + pgft_engine_silence)
		{
			ereport(LOG, (errmsg("training engine of job %s has said nothing for %d s, ending it",
								 worker->job->name, pgft_engine_silence / 1000)));
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
attend_engine(PgftJobWorker *worker, Training *training)
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
without_path(PgftJobWorker *worker, const char *text)
{
	if (text == NULL || worker->base_path == NULL)
		return (char *) text;
	return pgft_replace_text(text, worker->base_path, worker->base_file);
}

/* What an engine's "failed" means for the job. */
static PgftOutcome
engine_failed(PgftJobWorker *worker, PgftJobEvents *events)
{
	const char *code = events->code ? events->code : "internal";
	const char *message =
		events->message ? without_path(worker, events->message) : "training failed";
	const char *hint = without_path(worker, events->hint);

	if (strcmp(code, "device") == 0)
	{
		PgftOutcome outcome = pgft_worker_wait(worker, message, hint);

		return outcome == PGFT_OUTCOME_GO_ON ? PGFT_OUTCOME_SPARE : outcome;
	}
	/* an engine of an attempt before this one is not quite gone, or asked to end by others */
	if (strcmp(code, "busy") == 0 || strcmp(code, "cancelled") == 0)
	{
		pgft_worker_remember(worker, pgft_engine_sqlstate(code), message);
		return PGFT_OUTCOME_RETRY;
	}
	return pgft_worker_stop(worker, pgft_engine_sqlstate(code), message, hint);
}

static PgftOutcome
engine_ended(PgftJobWorker *worker, Training *training, int status, const char *last_words)
{
	if (training->ending != PGFT_OUTCOME_GO_ON)
		return training->ending;
	if (training->events.lost)
		return pgft_worker_lost(worker);
	if (training->events.completed)
		return PGFT_OUTCOME_GO_ON;
	if (training->events.failed)
		return engine_failed(worker, &training->events);

	/* one that is killed has had no time for last words */
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		last_words = "";
	pgft_worker_remember(worker, ERRCODE_SYSTEM_ERROR,
						 psprintf("training engine died: %s%s%s", pgft_child_status_text(status),
								  last_words[0] ? ": " : "", without_path(worker, last_words)));
	return PGFT_OUTCOME_RETRY;
}

PgftOutcome
pgft_training_run(PgftJobWorker *worker, char **result)
{
	const char *argv[] = {pgft_engine_program(), "train", pgft_absolute_path(worker->directory),
						  NULL};
	Training training = {.ending = PGFT_OUTCOME_GO_ON};
	PgftOutcome outcome;
	int status;

	training.events.job = worker->job;
	training.events.context = worker->attempt;
	training.lines_context =
		AllocSetContextCreate(worker->attempt, "engine events", ALLOCSET_DEFAULT_SIZES);
	training.heard_at = pgft_monotonic_ms();
	write_job_file(worker);
	pgft_slot_set_phase(PGFT_PHASE_QUEUED);
	training.child = engine = pgft_child_start("training engine", argv, PGFT_BACKGROUND_NICENESS);
	status = attend_engine(worker, &training);
	outcome = engine_ended(worker, &training, status, pgft_child_last_words(training.child));
	pgft_training_end_engine();
	*result = training.events.result;
	return outcome;
}
