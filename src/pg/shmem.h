/*
 * shmem.h: what the processes of this extension tell each other.
 *
 * Shared memory holds numbers only, all of them guarded by one lock: the
 * launcher's place, the databases that it is asked to look at, the state of
 * the serving engine, and a slot for each running job.  Another process is
 * woken by its place in the process array, so that a stale number can do no
 * more than wake somebody for nothing.
 */
#ifndef PGFT_SHMEM_H
#define PGFT_SHMEM_H

#include "datatype/timestamp.h"
#include "storage/condition_variable.h"
#include "utils/uuid.h"

/* Upper limit of pg_finetune.max_running_jobs */
#define PGFT_MAX_JOBS 64

typedef enum PgftSlotState
{
	PGFT_SLOT_FREE,
	PGFT_SLOT_STARTING, /* reserved by the launcher, worker not there yet */
	PGFT_SLOT_ACTIVE,   /* a worker has it; job_set once it has claimed a job */
	PGFT_SLOT_ENDED     /* the worker has gone, the launcher has not seen it yet */
} PgftSlotState;

/* What a job worker found, for the launcher to act on */
typedef enum PgftLookResult
{
	PGFT_LOOK_FAILED,       /* it ended by an error (the initial value): look again, later */
	PGFT_LOOK_NO_EXTENSION, /* nothing of ours in that database */
	PGFT_LOOK_NO_JOB,       /* no job to run there */
	PGFT_LOOK_RAN           /* it ran a job; there may be another */
} PgftLookResult;

/* What a job is doing, as finetune.progress shows it */
typedef enum PgftPhase
{
	PGFT_PHASE_PENDING, /* reading the data */
	PGFT_PHASE_QUEUED,  /* waiting for a device */
	PGFT_PHASE_RUNNING,
	PGFT_PHASE_UPLOADING /* storing the weights */
} PgftPhase;

typedef struct PgftJobSlot
{
	PgftSlotState state;
	uint32 generation; /* counts the reservations of this slot */
	Oid database;
	pid_t worker_pid; /* 0 until the worker is there */
	int worker_procno;
	bool cancel; /* somebody wants the job to end */
	bool leave;  /* the database is wanted: end, the job goes on later */
	bool first;  /* nobody has looked at the database since the launcher's start */
	PgftLookResult result;

	/* The job, once claimed */
	bool job_set;
	pg_uuid_t job;
	PgftPhase phase;
	int64 step;
	int64 total_steps; /* 0 while unknown */
	double tokens_per_second;
	double eta_seconds;   /* below 0 while unknown */
	double training_loss; /* NaN while unknown */
} PgftJobSlot;

extern const char *pgft_phase_name(PgftPhase phase);

/* In the postmaster: ask for the memory, and set it up. */
extern void pgft_shmem_init(void);

/* ---- Any backend ---- */

/* This cluster's identity (instance.h); NULL without the library preloaded. */
extern const pg_uuid_t *pgft_instance(void);

/* Was this server a standby when it was started? */
extern bool pgft_was_standby(void);

/*
 * When this transaction commits (or is prepared: then when the launcher next
 * looks around) have the launcher look for jobs in this database.
 */
extern void pgft_look_for_jobs_at_commit(void);

/* The same at once, from a worker. */
extern void pgft_look_for_jobs(Oid database);

/*
 * When this transaction commits, tell the worker that runs this job, if any,
 * to end it.  pgft_cancel_job does so at once, and says whether there is one.
 */
extern void pgft_cancel_job_at_commit(const pg_uuid_t *job);
extern bool pgft_cancel_job(const pg_uuid_t *job);

/*
 * Copies of the slots in which a job runs, at most PGFT_MAX_JOBS; returns
 * their number.
 */
extern int pgft_running_jobs(PgftJobSlot *slots);

/* Ask the workers in a database to leave it; true when there is none (left). */
extern bool pgft_leave_database(Oid database);

/*
 * Let no worker start in a database, or let them again; counted, so that two
 * sessions may do so at a time.  More than a few databases at a time are not
 * remembered.
 */
extern void pgft_bar_database(Oid database, bool bar);

/* ---- A job worker ---- */

/*
 * The first thing that a job worker does, before it connects to a database:
 * take the slot that the launcher reserved, from the worker's main argument.
 * Returns the database to connect to.  The process ends (quietly) when the
 * reservation is no longer valid.  The slot is released when the process ends.
 */
extern Oid pgft_slot_attach(Datum main_arg);

/* Is this worker the first in its database since the launcher's start? */
extern bool pgft_slot_is_first(void);

/* What the launcher is told when this worker ends. */
extern void pgft_slot_set_result(PgftLookResult result);

/* The job that this worker runs, from the claim on. */
extern void pgft_slot_set_job(const pg_uuid_t *job, PgftPhase phase);
extern void pgft_slot_set_phase(PgftPhase phase);
extern void pgft_slot_set_progress(int64 step, int64 total_steps, double training_loss,
								   double tokens_per_second, double eta_seconds);

/* How many workers there are, this one and those that look for a job with them. */
extern int pgft_slots_taken(void);

/* Has the job been cancelled, or the worker been asked to leave? The worker's latch is set. */
extern bool pgft_slot_cancelled(void);
extern bool pgft_slot_must_leave(void);

/* ---- The launcher ---- */

extern void pgft_launcher_attach(void);

/* Take the requests to look; returns their number, or -1 for "everywhere". */
#define PGFT_MAX_REQUESTS 128
extern int pgft_take_requests(Oid *databases);

/*
 * Reserve a free slot for a worker in this database.  Returns the slot's
 * number, or -1 when `limit` are taken or when a worker there has not claimed a
 * job yet; sets *main_arg to the worker's argument.  `first` is for the worker
 * to ask (pgft_slot_is_first).
 */
extern int pgft_slot_reserve(Oid database, int limit, bool first, Datum *main_arg);

/* Give a reservation back whose worker never came. */
extern void pgft_slot_unreserve(int slot, Datum main_arg);

/* Calls `done` for each slot whose worker has ended, and frees the slot. */
typedef void (*PgftSlotDone)(Oid database, PgftLookResult result);
extern void pgft_slots_ended(PgftSlotDone done);

/* ---- The serving engine ---- */

typedef struct PgftServerState
{
	uint64 generation; /* counts the engines started; 0: none yet */
	pid_t engine_pid;  /* 0 while there is none */
	bool ready;        /* it answers on its socket */
} PgftServerState;

extern void pgft_server_state(PgftServerState *state);

/* By the server worker; wakes those who wait. */
extern void pgft_server_set(uint64 generation, pid_t engine_pid, bool ready);

/* The generation for the next engine. */
extern uint64 pgft_server_next_generation(void);

/* Condition variable that is broadcast at each change of the server's state. */
extern ConditionVariable *pgft_server_state_changed(void);

/* ---- Requests for rows ahead ---- */

/*
 * All sessions together may have half as many requests under way beside those
 * that they wait for as the engine takes (pg_finetune.max_concurrent_requests),
 * so that many sessions are not refused because of the rows of a few.
 */

/* Take so many places, all or none; what is left at the end of the process is given back. */
extern bool pgft_ahead_take(int count);
extern void pgft_ahead_give(int count);

#endif
