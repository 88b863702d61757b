/*
 * shmem.c: what the processes of this extension tell each other.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "instance.h"
#include "miscadmin.h"
#include "paths.h"
#include "pg_finetune.h"
#include "port/atomics.h"
#include "postmaster/interrupt.h"
#include "settings.h"
#include "shmem.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "usage.h"
#include "utils/memutils.h"

#define NO_PROC (-1)

/* Databases that can be kept free of workers at a time */
#define MAX_BARRED 16

typedef struct PgftShared
{
	LWLock *lock; /* guards everything here but server_changed and ahead */

	/* Set at the start */
	pg_uuid_t instance;
	bool was_standby;

	int launcher_procno;

	/* Databases in which to look for jobs */
	bool look_everywhere;
	int request_count;
	Oid requests[PGFT_MAX_REQUESTS];

	/* Databases in which no worker may start, and by how many sessions' wish */
	struct
	{
		Oid database;
		int count;
	} barred[MAX_BARRED];

	PgftServerState server;
	uint64 last_generation;
	ConditionVariable server_changed;

	PgftJobSlot slots[PGFT_MAX_JOBS];

	pg_atomic_uint32 ahead; /* places taken for rows ahead */
} PgftShared;

static PgftShared *shared = NULL;
static PgftJobSlot *my_slot = NULL;
static uint32 my_ahead = 0;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/* What the running transaction wants done at its commit */
typedef struct PendingCancel
{
	SubTransactionId subid;
	pg_uuid_t job;
	struct PendingCancel *next;
} PendingCancel;

static bool look_at_commit = false;
static PendingCancel *pending_cancels = NULL; /* in TopTransactionContext */
static bool callbacks_registered = false;

const char *
pgft_phase_name(PgftPhase phase)
{
	static const char *const names[] = {"pending", "queued", "running", "uploading"};

	return names[phase];
}

/* ---- Set-up ---- */

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(PgftShared)));
	RequestNamedLWLockTranche(PGFT_LIBRARY, 1);
	pgft_usage_shmem_request();
}

static void
shmem_startup(void)
{
	bool found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	/* of sessions that had no time to clean up: there is none yet */
	if (!IsUnderPostmaster)
		pgft_remove_tree(pgft_work_path(PGFT_SESSIONS));

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct(PGFT_LIBRARY, sizeof(PgftShared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(PgftShared));
		shared->lock = &GetNamedLWLockTranche(PGFT_LIBRARY)->lock;
		shared->launcher_procno = NO_PROC;
		shared->look_everywhere = true;
		pgft_instance_load(&shared->instance);
		shared->was_standby = pgft_instance_is_standby();
		ConditionVariableInit(&shared->server_changed);
		pg_atomic_init_u32(&shared->ahead, 0);
	}
	pgft_usage_shmem_startup();
	LWLockRelease(AddinShmemInitLock);
}

void
pgft_shmem_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

static void
wake(int procno)
{
	if (procno != NO_PROC)
		SetLatch(&ProcGlobal->allProcs[procno].procLatch);
}

const pg_uuid_t *
pgft_instance(void)
{
	return shared ? &shared->instance : NULL;
}

bool
pgft_was_standby(void)
{
	return shared->was_standby;
}

/* ---- What is to happen at commit ---- */

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (look_at_commit)
				pgft_look_for_jobs(MyDatabaseId);
			for (PendingCancel *cancel = pending_cancels; cancel != NULL; cancel = cancel->next)
				pgft_cancel_job(&cancel->job);
			break;
		case XACT_EVENT_PREPARE:

			/* So that the launcher knows to look here now and then */
			if (look_at_commit)
				pgft_look_for_jobs(MyDatabaseId);
			break;
		case XACT_EVENT_ABORT:
			break;
		default:
			return;
	}
	look_at_commit = false;
	pending_cancels = NULL;
}

/* A request belongs to the innermost subtransaction that may still undo it. */
static void
subxact_callback(SubXactEvent event, SubTransactionId my_subid, SubTransactionId parent_subid,
				 void *arg)
{
	PendingCancel **link = &pending_cancels;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	while (*link != NULL)
	{
		if ((*link)->subid == my_subid)
		{
			if (event == SUBXACT_EVENT_ABORT_SUB)
			{
				*link = (*link)->next;
				continue;
			}
			(*link)->subid = parent_subid;
		}
		link = &(*link)->next;
	}
}

static void
register_callbacks(void)
{
	if (callbacks_registered)
		return;
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	callbacks_registered = true;
}

void
pgft_look_for_jobs_at_commit(void)
{
	register_callbacks();
	look_at_commit = true;
}

void
pgft_cancel_job_at_commit(const pg_uuid_t *job)
{
	PendingCancel *cancel = MemoryContextAlloc(TopTransactionContext, sizeof(PendingCancel));

	register_callbacks();
	cancel->subid = GetCurrentSubTransactionId();
	cancel->job = *job;
	cancel->next = pending_cancels;
	pending_cancels = cancel;
}

/* ---- Any backend ---- */

void
pgft_look_for_jobs(Oid database)
{
	bool known = false;

	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->request_count && !known; i++)
		known = shared->requests[i] == database;
	if (!known && shared->request_count < PGFT_MAX_REQUESTS)
		shared->requests[shared->request_count++] = database;
	else if (!known)
		shared->look_everywhere = true;
	wake(shared->launcher_procno);
	LWLockRelease(shared->lock);
}

bool
pgft_cancel_job(const pg_uuid_t *job)
{
	bool found = false;

	if (shared == NULL)
		return false;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < PGFT_MAX_JOBS; i++)
	{
		PgftJobSlot *slot = &shared->slots[i];

		if (slot->state != PGFT_SLOT_ACTIVE || !slot->job_set ||
			memcmp(&slot->job, job, sizeof(pg_uuid_t)) != 0)
			continue;
		slot->cancel = true;
		wake(slot->worker_procno);
		found = true;
	}
	LWLockRelease(shared->lock);
	return found;
}

int
pgft_running_jobs(PgftJobSlot *slots)
{
	int count = 0;

	if (shared == NULL)
		return 0;
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < PGFT_MAX_JOBS; i++)
		if (shared->slots[i].state == PGFT_SLOT_ACTIVE && shared->slots[i].job_set)
			slots[count++] = shared->slots[i];
	LWLockRelease(shared->lock);
	return count;
}

bool
pgft_leave_database(Oid database)
{
	bool found = false;

	if (shared == NULL)
		return true;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < PGFT_MAX_JOBS; i++)
	{
		PgftJobSlot *slot = &shared->slots[i];

		if (slot->database != database ||
			(slot->state != PGFT_SLOT_ACTIVE && slot->state != PGFT_SLOT_STARTING))
			continue;
		slot->leave = true;
		if (slot->state == PGFT_SLOT_ACTIVE)
			wake(slot->worker_procno);
		found = true;
	}
	LWLockRelease(shared->lock);
	return !found;
}

void
pgft_bar_database(Oid database, bool bar)
{
	int place = -1;

	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_BARRED; i++)
	{
		if (shared->barred[i].count > 0 && shared->barred[i].database == database)
		{
			place = i;
			break;
		}
		if (shared->barred[i].count == 0 && place < 0)
			place = i;
	}
	if (place >= 0 && bar)
	{
		shared->barred[place].database = database;
		shared->barred[place].count++;
	}
	else if (place >= 0 && shared->barred[place].count > 0)
		shared->barred[place].count--;
	LWLockRelease(shared->lock);
}

static bool
is_barred(Oid database)
{
	for (int i = 0; i < MAX_BARRED; i++)
		if (shared->barred[i].count > 0 && shared->barred[i].database == database)
			return true;
	return false;
}

/* ---- A job worker ---- */

/* A worker's argument: the slot's number, and which reservation it is. */
#define SLOT_BITS 8
#define ARG_OF(slot, generation) UInt32GetDatum(((generation) << SLOT_BITS) | (uint32) (slot))
#define SLOT_OF(arg) ((int) (DatumGetUInt32(arg) & ((1 << SLOT_BITS) - 1)))
#define GENERATION_OF(arg) (DatumGetUInt32(arg) >> SLOT_BITS)
#define NEXT_GENERATION(generation) (((generation) + 1) & (PG_UINT32_MAX >> SLOT_BITS))

static void
slot_release(int code, Datum arg)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	/* One that was terminated has not failed: another may look for its job at once */
	if (ShutdownRequestPending && !my_slot->leave)
		my_slot->result = PGFT_LOOK_RAN;
	my_slot->state = PGFT_SLOT_ENDED;
	my_slot->job_set = false;
	my_slot->worker_pid = 0;
	my_slot->worker_procno = NO_PROC;
	wake(shared->launcher_procno);
	LWLockRelease(shared->lock);
	my_slot = NULL;
}

Oid
pgft_slot_attach(Datum main_arg)
{
	PgftJobSlot *slot = &shared->slots[SLOT_OF(main_arg)];
	bool valid;
	Oid database;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	valid = slot->state == PGFT_SLOT_STARTING && slot->generation == GENERATION_OF(main_arg);
	if (valid && slot->leave)
	{
		slot->state = PGFT_SLOT_ENDED;
		wake(shared->launcher_procno);
		valid = false;
	}
	else if (valid)
	{
		slot->state = PGFT_SLOT_ACTIVE;
		slot->worker_pid = MyProcPid;
		slot->worker_procno = MyProc->pgprocno;
	}
	database = slot->database;
	LWLockRelease(shared->lock);

	/* The launcher that reserved it has restarted since, or the database is wanted */
	if (!valid)
		proc_exit(0);

	my_slot = slot;
	before_shmem_exit(slot_release, (Datum) 0);
	return database;
}

bool
pgft_slot_is_first(void)
{
	bool first;

	LWLockAcquire(shared->lock, LW_SHARED);
	first = my_slot->first;
	LWLockRelease(shared->lock);
	return first;
}

void
pgft_slot_set_result(PgftLookResult result)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->result = result;
	LWLockRelease(shared->lock);
}

void
pgft_slot_set_job(const pg_uuid_t *job, PgftPhase phase)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->job = *job;
	my_slot->phase = phase;
	my_slot->step = 0;
	my_slot->total_steps = 0;
	my_slot->tokens_per_second = 0;
	my_slot->eta_seconds = -1;
	my_slot->training_loss = NAN;
	my_slot->job_set = true;

	/* There may be a place, and a job, for another worker here */
	wake(shared->launcher_procno);
	LWLockRelease(shared->lock);
}

void
pgft_slot_set_phase(PgftPhase phase)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->phase = phase;
	LWLockRelease(shared->lock);
}

void
pgft_slot_set_progress(int64 step, int64 total_steps, double training_loss,
					   double tokens_per_second, double eta_seconds)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->step = step;
	my_slot->total_steps = total_steps;
	my_slot->training_loss = training_loss;
	my_slot->tokens_per_second = tokens_per_second;
	my_slot->eta_seconds = eta_seconds;
	LWLockRelease(shared->lock);
}

bool
pgft_slot_cancelled(void)
{
	bool cancelled;

	LWLockAcquire(shared->lock, LW_SHARED);
	cancelled = my_slot->cancel;
	LWLockRelease(shared->lock);
	return cancelled;
}

int
pgft_slots_taken(void)
{
	int count = 0;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < PGFT_MAX_JOBS; i++)
		if (shared->slots[i].state == PGFT_SLOT_STARTING ||
			shared->slots[i].state == PGFT_SLOT_ACTIVE)
			count++;
	LWLockRelease(shared->lock);
	return count;
}

bool
pgft_slot_must_leave(void)
{
	bool leave;

	LWLockAcquire(shared->lock, LW_SHARED);
	leave = my_slot->leave;
	LWLockRelease(shared->lock);
	return leave;
}

/* ---- The launcher ---- */

static void
launcher_detach(int code, Datum arg)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher_procno = NO_PROC;
	LWLockRelease(shared->lock);
}

void
pgft_launcher_attach(void)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher_procno = MyProc->pgprocno;
	shared->look_everywhere = true;

	/* Reservations of a launcher before this one: a worker that still comes is told to go */
	for (int i = 0; i < PGFT_MAX_JOBS; i++)
		if (shared->slots[i].state == PGFT_SLOT_STARTING)
			shared->slots[i].state = PGFT_SLOT_FREE;
	LWLockRelease(shared->lock);
	before_shmem_exit(launcher_detach, (Datum) 0);
}

int
pgft_take_requests(Oid *databases)
{
	int count;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	count = shared->look_everywhere ? -1 : shared->request_count;
	if (count > 0)
		memcpy(databases, shared->requests, count * sizeof(Oid));
	shared->request_count = 0;
	shared->look_everywhere = false;
	LWLockRelease(shared->lock);
	return count;
}

int
pgft_slot_reserve(Oid database, int limit, bool first, Datum *main_arg)
{
	int found = -1;
	int taken = 0;
	bool looking = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < PGFT_MAX_JOBS; i++)
	{
		PgftJobSlot *slot = &shared->slots[i];

		if (slot->state != PGFT_SLOT_FREE)
			taken++;
		else if (found < 0)
			found = i;
		if (slot->database == database && (slot->state == PGFT_SLOT_STARTING ||
										   (slot->state == PGFT_SLOT_ACTIVE && !slot->job_set)))
			looking = true;
	}
	if (taken >= limit || looking || is_barred(database))
		found = -1;
	if (found >= 0)
	{
		PgftJobSlot *slot = &shared->slots[found];
		uint32 generation = NEXT_GENERATION(slot->generation);

		memset(slot, 0, sizeof(*slot));
		slot->generation = generation;
		slot->state = PGFT_SLOT_STARTING;
		slot->database = database;
		slot->first = first;
		slot->worker_procno = NO_PROC;
		slot->result = PGFT_LOOK_FAILED;
		*main_arg = ARG_OF(found, generation);
	}
	LWLockRelease(shared->lock);
	return found;
}

void
pgft_slot_unreserve(int number, Datum main_arg)
{
	PgftJobSlot *slot = &shared->slots[number];

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot->state == PGFT_SLOT_STARTING && slot->generation == GENERATION_OF(main_arg))
		slot->state = PGFT_SLOT_FREE;
	LWLockRelease(shared->lock);
}

void
pgft_slots_ended(PgftSlotDone done)
{
	for (int i = 0; i < PGFT_MAX_JOBS; i++)
	{
		PgftJobSlot ended;

		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		ended = shared->slots[i];
		if (ended.state == PGFT_SLOT_ENDED)
			shared->slots[i].state = PGFT_SLOT_FREE;
		LWLockRelease(shared->lock);
		if (ended.state == PGFT_SLOT_ENDED)
			done(ended.database, ended.result);
	}
}

/* ---- The serving engine ---- */

void
pgft_server_state(PgftServerState *state)
{
	LWLockAcquire(shared->lock, LW_SHARED);
	*state = shared->server;
	LWLockRelease(shared->lock);
}

void
pgft_server_set(uint64 generation, pid_t engine_pid, bool ready)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->server.generation = generation;
	shared->server.engine_pid = engine_pid;
	shared->server.ready = ready;
	LWLockRelease(shared->lock);
	ConditionVariableBroadcast(&shared->server_changed);
}

uint64
pgft_server_next_generation(void)
{
	uint64 generation;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	generation = ++shared->last_generation;
	LWLockRelease(shared->lock);
	return generation;
}

ConditionVariable *
pgft_server_state_changed(void)
{
	return &shared->server_changed;
}

/* ---- Requests for rows ahead ---- */

static void
give_ahead_at_exit(int code, Datum arg)
{
	pgft_ahead_give(my_ahead);
}

bool
pgft_ahead_take(int count)
{
	static bool registered = false;
	uint32 taken = pg_atomic_read_u32(&shared->ahead);

	if (!registered)
	{
		on_shmem_exit(give_ahead_at_exit, (Datum) 0);
		registered = true;
	}
	do
	{
		if (taken + count > pgft_max_concurrent_requests / 2)
			return false;
	} while (!pg_atomic_compare_exchange_u32(&shared->ahead, &taken, taken + count));
	my_ahead += count;
	return true;
}

void
pgft_ahead_give(int count)
{
	pg_atomic_sub_fetch_u32(&shared->ahead, count);
	my_ahead -= count;
}
