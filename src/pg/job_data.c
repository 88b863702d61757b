/*
 * job_data.c: has a reader run a job's queries, and looks at what it reports.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xact.h"
#include "job_worker.h"
#include "json.h"
#include "miscadmin.h"
#include "paths.h"
#include "pg_finetune.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "reader.h"
#include "shmem.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

static BackgroundWorkerHandle *reader = NULL;

void
pgft_data_end_reader(void)
{
	if (reader)
		TerminateBackgroundWorker(reader);
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
read_report(PgftJobWorker *worker)
{
	char *text = read_file(pgft_worker_path(worker, PGFT_READER_REPORT));
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

bool
pgft_data_is_read(PgftJobWorker *worker)
{
	Jsonb *report = read_report(worker);
	int64 rows;

	return report && pgft_json_int64(&report->root, "rows", &rows);
}

static bool
start_reader(PgftJobWorker *worker)
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
static PgftOutcome
wait_for_reader(PgftJobWorker *worker)
{
	PgftOutcome outcome = PGFT_OUTCOME_GO_ON;
	pid_t pid;

	while (GetBackgroundWorkerPid(reader, &pid) != BGWH_STOPPED)
	{
		if (outcome == PGFT_OUTCOME_GO_ON)
		{
			outcome = pgft_worker_look_up(worker);
			if (outcome != PGFT_OUTCOME_GO_ON)
				TerminateBackgroundWorker(reader);
		}
		/* the reader's end wakes; the time is for a look at the disk that it fills */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, PGFT_DISK_MS,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	pfree(reader);
	reader = NULL;
	return outcome;
}

/* The job fails with the query's own error. */
static PgftOutcome
fail_job(PgftJobWorker *worker, JsonbContainer *error)
{
	char *code = pgft_json_string(error, "code");
	char *message = pgft_json_string(error, "message");

	if (code == NULL || strlen(code) != 5)
		code = "XX000";
	return pgft_worker_stop(worker, MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4]),
							message ? message : "reading the data failed",
							pgft_json_string(error, "hint"));
}

PgftOutcome
pgft_data_read(PgftJobWorker *worker)
{
	Jsonb *report;
	JsonbContainer *error;
	int64 rows = 0;
	PgftOutcome outcome;

	if (strcmp(worker->job->phase, "pending") != 0 &&
		!pgft_job_set_phase(worker->job, "pending", "reading the data again"))
		return pgft_worker_lost(worker);
	pgft_slot_set_phase(PGFT_PHASE_PENDING);
	pgft_make_directory(worker->directory);
	(void) unlink(pgft_worker_path(worker, PGFT_READER_REPORT));

	while (!start_reader(worker))
	{
		outcome = pgft_worker_wait(worker, "no background worker is free to read its data",
								   "Increase max_worker_processes.");
		if (outcome != PGFT_OUTCOME_GO_ON)
			return outcome;
	}
	worker->warned_scarce = false;
	outcome = wait_for_reader(worker);
	if (outcome != PGFT_OUTCOME_GO_ON)
		return outcome;

	report = read_report(worker);
	if (report == NULL)
	{
		/* had it no room for its last words?  Then we have none either, and that is the error. */
		char *path = pgft_worker_path(worker, PGFT_READER_REPORT ".tmp");

		pgft_write_file(path, "{}\n", 3);
		(void) unlink(path);
		pgft_worker_remember(worker, ERRCODE_SYSTEM_ERROR, "the process that read the data died");
		return PGFT_OUTCOME_RETRY;
	}
	error = pgft_json_object(&report->root, "error");
	if (error)
		return fail_job(worker, error);
	pgft_json_int64(&report->root, "rows", &rows);
	return pgft_job_set_phase(worker->job, "queued", psprintf(INT64_FORMAT " rows read", rows))
			   ? PGFT_OUTCOME_GO_ON
			   : pgft_worker_lost(worker);
}
