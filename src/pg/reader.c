/*
 * reader.c: runs the queries of a job as the job's owner, and writes what they
 * yield as JSON lines.
 *
 * A process of its own, never used for two jobs, because what runs here is the
 * user's: functions of his that a query calls could leave something behind.
 * As with REFRESH MATERIALIZED VIEW, it becomes the owner in a way that cannot
 * be undone from SQL, and that works for a role that may not log in.  The
 * transaction is READ ONLY, both queries see one snapshot, and it is aborted
 * at the end, so that nothing which the queries have put off can run later
 * with other rights.
 *
 * For the same reason it writes nothing into the catalog: how it went is said
 * in a file, which the job worker reads.  An error of a query is told there
 * and nowhere else, as it may quote the owner's data.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xact.h"
#include "executor/spi.h"
#include "job.h"
#include "json.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "options.h"
#include "paths.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "query_check.h"
#include "reader.h"
#include "row_file.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* See job_state.c: the lock of a job's reader is another than its worker's */
#define READER_LOCK_CLASS 0x4655

/* An earlier reader of this job that has not noticed its worker's end must be gone first. */
static void
lock_directory(const pg_uuid_t *job)
{
	LOCKTAG tag;
	uint32 key[2];

	memcpy(key, job->data, sizeof(key));
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, key[0], key[1], READER_LOCK_CLASS);
	StartTransactionCommand();
	(void) LockAcquire(&tag, ExclusiveLock, true, false);
	CommitTransactionCommand();
}

/* Tables may have changed since CREATE. */
static int64
write_query(PgftJob *job, const char *query, const char *what, const char *directory,
			const char *name)
{
	PgftColumns columns;

	pgft_query_check(query, what, &columns);
	pgft_columns_check_pairs(&columns, pgft_options_pairs(job->options), what);
	return pgft_rows_write(query, what, directory, name, &columns);
}

/* A query with the search_path of the job; what it sets is gone after it. */
static int64
run_query(PgftJob *job, const char *query, const char *what, const char *directory,
		  const char *name)
{
	int nest_level = NewGUCNestLevel();
	int64 rows;

	(void) set_config_option("search_path", job->search_path, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	rows = write_query(job, query, what, directory, name);
	AtEOXact_GUC(false, nest_level);
	return rows;
}

/*
 * The owner logs in, as it were: for session_user, which functions of others may
 * ask who they are dealing with, and for the workers of a parallel query.  The
 * end of the transaction undoes it.
 */
static void
become(Oid owner)
{
	Oid user;
	int context;

	SetConfigOption("session_authorization", GetUserNameFromId(owner, false), PGC_USERSET,
					PGC_S_SESSION);
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(owner,
						   context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
}

/* Both queries as the owner, in one snapshot that nothing can be written in. */
static void
read_data(PgftJob *job, const char *directory, int64 *rows, int64 *validation_rows)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactReadOnly = true;
	XactIsoLevel = XACT_REPEATABLE_READ;
	become(job->owner);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	*rows = run_query(job, job->training_query, "training query", directory, PGFT_TRAINING_FILE);
	*validation_rows = job->validation_query
						   ? run_query(job, job->validation_query, "validation query", directory,
									   PGFT_VALIDATION_FILE)
						   : 0;
	AbortOutOfAnyTransaction();
}

/* Text of an error in UTF-8, also where the server's encoding says nothing of the bytes. */
static void
add_message(StringInfo report, const char *name, const char *text)
{
	char *copy = pstrdup(text);

	if (GetDatabaseEncoding() == PG_SQL_ASCII)
	{
		for (char *c = copy; *c; c++)
		{
			if (IS_HIGHBIT_SET(*c))
				*c = '?';
		}
	}
	pgft_json_add_string(report, name, copy);
}

static void
write_report(const char *directory, StringInfo report)
{
	char *path = psprintf("%s/%s", directory, PGFT_READER_REPORT);
	char *temporary = psprintf("%s.tmp", path);
	char *converted;

	appendStringInfoChar(report, '}');

	/* a conversion is looked up in the catalog */
	StartTransactionCommand();
	converted = pg_server_to_any(report->data, report->len, PG_UTF8);
	pgft_write_file(temporary, converted, strlen(converted));
	(void) durable_rename(temporary, path, ERROR);
	CommitTransactionCommand();
}

/* Room may be what is missing: leave nothing half-written behind. */
static void
remove_data(const char *directory)
{
	static const char *const files[] = {PGFT_TRAINING_FILE, PGFT_TRAINING_FILE ".tmp",
										PGFT_VALIDATION_FILE, PGFT_VALIDATION_FILE ".tmp"};

	for (int i = 0; i < lengthof(files); i++)
		(void) unlink(psprintf("%s/%s", directory, files[i]));
}

static void
run(PgftJob *job, StringInfo report)
{
	char *directory = pgft_job_directory(&job->id);
	MemoryContext context = CurrentMemoryContext;
	int64 rows;
	int64 validation_rows;

	PG_TRY();
	{
		read_data(job, directory, &rows, &validation_rows);
		MemoryContextSwitchTo(context);
		pgft_json_add_int64(report, "rows", rows);
		pgft_json_add_int64(report, "validation_rows", validation_rows);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		MemoryContextSwitchTo(context);
		HOLD_INTERRUPTS();
		edata = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(context);
		remove_data(directory);
		appendStringInfoString(report, "\"error\": {");
		pgft_json_add_string(report, "code", unpack_sql_state(edata->sqlerrcode));
		add_message(report, "message", edata->message ? edata->message : "");
		if (edata->hint)
			add_message(report, "hint", edata->hint);
		appendStringInfoChar(report, '}');
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	write_report(directory, report);
}

void
pgft_reader_main(Datum arg)
{
	PgftReaderTask task;
	PgftJob *job;
	StringInfoData report;
	MemoryContext context;

	memcpy(&task, MyBgworkerEntry->bgw_extra, sizeof(task));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(task.database, InvalidOid, 0);

	context = AllocSetContextCreate(TopMemoryContext, "reader", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	lock_directory(&task.job);
	job = pgft_job_read(&task.job, context);
	if (job == NULL)
		proc_exit(0);
	MemoryContextSwitchTo(context);
	pgstat_report_activity(STATE_RUNNING, psprintf("reading the data of job %s", job->name));

	initStringInfo(&report);
	appendStringInfoChar(&report, '{');
	run(job, &report);
	proc_exit(0);
}
