/*
 * launcher.c: finds databases with jobs to run and starts workers there.
 *
 * The launcher itself is connected to no database, so it stands in nobody's
 * way.  It knows only which databases might have a job: all of them after a
 * start, then those in which a CREATE was committed.  A worker that it starts
 * in such a database takes a job, or reports that there is none.  Now and then
 * it asks again where jobs have been seen, which covers COMMIT PREPARED.
 *
 * Nothing is started while the server is in recovery.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "launcher.h"
#include "miscadmin.h"
#include "pg_finetune.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "settings.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* How often databases that are known to have the extension are looked at unasked */
#define POLL_MS 60000

/* How soon recovery's end is noticed */
#define RECOVERY_POLL_MS 5000

/* Delays before a worker that failed is started again */
#define FIRST_RETRY_MS 5000
#define MAX_RETRY_MS 300000

/* A database that has, or may have, jobs */
typedef struct Database
{
	Oid oid;     /* hash key */
	bool known;  /* has the extension */
	bool wanted; /* a worker should look there */
	bool looked; /* a worker has found the extension there, and done what is due after a start */

	/* Requests seen, and how many of them the worker that looks now covers */
	uint64 asked;
	uint64 asked_at_start;

	int64 retry_at; /* not before */
	int retry_delay;
} Database;

/* A worker that was started and has not been seen yet */
typedef struct Starting
{
	bool used;
	Datum main_arg;
	BackgroundWorkerHandle *handle;
} Starting;

static HTAB *databases;
static Starting starting[PGFT_MAX_JOBS]; /* by slot */
static int64 poll_at;
static bool warned_no_worker = false;

/* ---- Registration ---- */

static void
register_worker(const char *name, const char *function, int flags)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | flags;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = 5;
	strlcpy(worker.bgw_library_name, PGFT_LIBRARY, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, function, BGW_MAXLEN);
	strlcpy(worker.bgw_name, name, BGW_MAXLEN);
	strlcpy(worker.bgw_type, name, BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

void
pgft_launcher_register(void)
{
	register_worker(PGFT_LAUNCHER_NAME, "pgft_launcher_main", BGWORKER_BACKEND_DATABASE_CONNECTION);
	register_worker(PGFT_SERVER_WORKER_NAME, "pgft_server_worker_main", 0);
}

/* ---- Databases ---- */

static void
want(Oid oid)
{
	bool found;
	Database *database = hash_search(databases, &oid, HASH_ENTER, &found);

	if (!found)
	{
		memset(database, 0, sizeof(*database));
		database->oid = oid;
	}
	database->wanted = true;
	database->asked++;
}

/* Every database that accepts connections, but for templates */
static void
want_all(void)
{
	Relation relation;
	TableScanDesc scan;
	HeapTuple tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (form->datallowconn && !form->datistemplate)
			want(form->oid);
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
}

static bool
accepts_connections(Oid oid)
{
	HeapTuple tuple;
	bool result = false;

	StartTransactionCommand();
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(oid));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_database) GETSTRUCT(tuple))->datallowconn;
		ReleaseSysCache(tuple);
	}
	CommitTransactionCommand();
	return result;
}

static void
take_requests(void)
{
	Oid requests[PGFT_MAX_REQUESTS];
	int count = pgft_take_requests(requests);

	if (count < 0)
		want_all();
	for (int i = 0; i < count; i++)
		want(requests[i]);

	if (pgft_monotonic_ms() >= poll_at)
	{
		HASH_SEQ_STATUS status;
		Database *database;

		hash_seq_init(&status, databases);
		while ((database = hash_seq_search(&status)) != NULL)
			if (database->known)
				database->wanted = true;
		poll_at = pgft_monotonic_ms() + POLL_MS;
	}
}

/* A worker has ended: what did it find? */
static void
worker_ended(Oid oid, PgftLookResult result)
{
	Database *database = hash_search(databases, &oid, HASH_FIND, NULL);

	if (database == NULL)
		return;
	/*
	 * What it held may be there to be taken.  One that looked meanwhile found
	 * nothing, and may be heard of after this.
	 */
	if (result == PGFT_LOOK_FAILED || result == PGFT_LOOK_RAN)
	{
		database->wanted = true;
		database->asked++;
	}
	if (result == PGFT_LOOK_FAILED)
	{
		database->retry_delay = database->retry_delay == 0
									? FIRST_RETRY_MS
									: Min(database->retry_delay * 2, MAX_RETRY_MS);
		database->retry_at = pgft_monotonic_ms() + database->retry_delay;
		return;
	}
	database->retry_delay = 0;
	database->retry_at = 0;
	database->known = result != PGFT_LOOK_NO_EXTENSION;
	database->looked = database->known;

	/* A request that came while it looked is still open */
	if (result != PGFT_LOOK_RAN && database->asked == database->asked_at_start)
		database->wanted = false;
}

/* ---- Workers ---- */

/* Slots whose worker was never started, or ended before it took them */
static void
check_starting(void)
{
	for (int slot = 0; slot < PGFT_MAX_JOBS; slot++)
	{
		pid_t pid;
		BgwHandleStatus status;

		if (!starting[slot].used)
			continue;
		status = GetBackgroundWorkerPid(starting[slot].handle, &pid);
		if (status == BGWH_NOT_YET_STARTED)
			continue;
		if (status == BGWH_STOPPED)
			pgft_slot_unreserve(slot, starting[slot].main_arg);
		else
			continue;
		pfree(starting[slot].handle);
		starting[slot].used = false;
	}
}

/* Start a worker in a database; false when there is no slot or no worker to be had. */
static bool
start_worker(Database *database)
{
	BackgroundWorker worker = {0};
	MemoryContext old_context;
	bool registered;
	Datum main_arg;
	int slot =
		pgft_slot_reserve(database->oid, pgft_max_running_jobs, !database->looked, &main_arg);

	if (slot < 0)
		return false;
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, PGFT_LIBRARY, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "pgft_job_worker_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, PGFT_JOB_WORKER_NAME, BGW_MAXLEN);
	strlcpy(worker.bgw_type, PGFT_JOB_WORKER_NAME, BGW_MAXLEN);
	worker.bgw_main_arg = main_arg;
	worker.bgw_notify_pid = MyProcPid;

	old_context = MemoryContextSwitchTo(TopMemoryContext);
	if (starting[slot].used)
		pfree(starting[slot].handle);
	registered = RegisterDynamicBackgroundWorker(&worker, &starting[slot].handle);
	MemoryContextSwitchTo(old_context);

	starting[slot].used = registered;
	starting[slot].main_arg = main_arg;
	if (!registered)
	{
		pgft_slot_unreserve(slot, main_arg);
		if (!warned_no_worker)
			ereport(WARNING, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
							  errmsg("could not start a worker for a fine-tuning job"),
							  errhint("Increase max_worker_processes.")));
		warned_no_worker = true;
		return false;
	}
	warned_no_worker = false;
	database->asked_at_start = database->asked;
	return true;
}

/* Start what can be started; returns when to look again, in milliseconds. */
static long
start_workers(void)
{
	HASH_SEQ_STATUS status;
	Database *database;
	List *due = NIL;
	ListCell *cell;
	int64 now = pgft_monotonic_ms();
	long sleep = Max(poll_at - now, 1);

	hash_seq_init(&status, databases);
	while ((database = hash_seq_search(&status)) != NULL)
	{
		if (!database->wanted)
			continue;
		if (database->retry_at > now)
			sleep = Min(sleep, database->retry_at - now);
		else
			due = lappend(due, database);
	}

	/* After the scan, which would not survive the end of a transaction */
	foreach (cell, due)
	{
		database = lfirst(cell);
		if (!accepts_connections(database->oid))
			hash_search(databases, &database->oid, HASH_REMOVE, NULL);
		else
			start_worker(database);
	}

	/* A place among the workers may become free without anybody telling us */
	return warned_no_worker ? Min(sleep, FIRST_RETRY_MS) : sleep;
}

void
pgft_launcher_main(Datum arg)
{
	HASHCTL control = {.keysize = sizeof(Oid), .entrysize = sizeof(Database)};
	MemoryContext loop_context;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	databases = hash_create("pg_finetune databases", 16, &control, HASH_ELEM | HASH_BLOBS);
	poll_at = pgft_monotonic_ms() + POLL_MS;
	loop_context =
		AllocSetContextCreate(TopMemoryContext, "pg_finetune launcher loop", ALLOCSET_SMALL_SIZES);
	pgft_launcher_attach();

	while (!ShutdownRequestPending)
	{
		long sleep = RECOVERY_POLL_MS;

		MemoryContextSwitchTo(loop_context);
		MemoryContextReset(loop_context);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (!RecoveryInProgress())
		{
			take_requests();
			check_starting();
			pgft_slots_ended(worker_ended);
			sleep = start_workers();
		}
		WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, sleep,
				  PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}

	/* Anything but 1 would keep the postmaster from starting it again */
	proc_exit(1);
}
