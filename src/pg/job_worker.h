/*
 * job_worker.h: the parts of the job worker: the process, reading the data,
 * training.
 */
#ifndef PGFT_JOB_WORKER_H
#define PGFT_JOB_WORKER_H

#include "job.h"

/* How a step of an attempt, or the whole of it, has ended. */
typedef enum PgftOutcome
{
	PGFT_OUTCOME_ENDED, /* completed or failed, and the row says so */
	PGFT_OUTCOME_LOST,  /* cancelled, dropped, or another's */
	PGFT_OUTCOME_LEAVE, /* this process must end; the job goes on later (or is paused) */
	PGFT_OUTCOME_RETRY, /* the attempt came to nothing */
	PGFT_OUTCOME_SPARE, /* so it did, but not by its own fault: no attempt burned */
	PGFT_OUTCOME_GO_ON  /* a step of the attempt is done */
} PgftOutcome;

typedef struct PgftJobWorker
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
	int64 look_at_disk_at;
} PgftJobWorker;

/* How often the room on the disk is looked at */
#define PGFT_DISK_MS 1000

/* ---- job_worker.c ---- */

/* A file in the job's directory (palloc'd). */
extern char *pgft_worker_path(PgftJobWorker *worker, const char *name);

/* One look at the world between sleeps; PGFT_OUTCOME_GO_ON when there is nothing to end for. */
extern PgftOutcome pgft_worker_look_up(PgftJobWorker *worker);

/* A write was refused: the job is this attempt's no more.  What that asks of this worker. */
extern PgftOutcome pgft_worker_lost(PgftJobWorker *worker);

/* End the job by an error, or pause it where somebody can put it right. */
extern PgftOutcome
pgft_worker_stop(PgftJobWorker *worker, int sqlstate, const char *message, const char *hint);

/*
 * Something outside is missing: say so once, and wait a while; no attempt is
 * taken for it.  Returns what pgft_worker_look_up does.
 */
extern PgftOutcome pgft_worker_wait(PgftJobWorker *worker, const char *message, const char *hint);

/* Why the attempt comes to nothing; to be followed by PGFT_OUTCOME_RETRY. */
extern void pgft_worker_remember(PgftJobWorker *worker, int sqlstate, const char *message);

/* ---- job_data.c ---- */

/* Has an earlier attempt read the data? */
extern bool pgft_data_is_read(PgftJobWorker *worker);

/* Have a reader do so; the job is "queued" then. */
extern PgftOutcome pgft_data_read(PgftJobWorker *worker);

/* Have a running reader end; at this process's end. */
extern void pgft_data_end_reader(void);

/* ---- job_training.c ---- */

/*
 * Have the engine train.  *result is where it left its result, relative to
 * the job's directory, when PGFT_OUTCOME_GO_ON is returned.
 */
extern PgftOutcome pgft_training_run(PgftJobWorker *worker, char **result);

/* End a running engine, after an error. */
extern void pgft_training_end_engine(void);

#endif
