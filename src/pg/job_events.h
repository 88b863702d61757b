/*
 * job_events.h: what the training engine says, as rows.
 */
#ifndef PGFT_JOB_EVENTS_H
#define PGFT_JOB_EVENTS_H

#include "job.h"
#include "nodes/pg_list.h"

/* What the worker has heard from one engine, for it to act on. */
typedef struct PgftJobEvents
{
	PgftJob *job;
	MemoryContext context; /* of the strings below */

	bool lost;      /* the job has ended, or is another's: stop */
	bool completed; /* the weights are on disk, and the job "uploading" */
	char *result;   /* their directory, relative to the job's */
	bool failed;
	char *code; /* a name of ft_status_name */
	char *message;
	char *hint; /* NULL: none */

	/* private: what the progress is computed from */
	int64 resumed_from;
	int64 step;
	int64 total_steps;
} PgftJobEvents;

/*
 * Turn lines of the engine's standard output (char *) into metrics, events and
 * progress, all in one transaction.  Raises XX000 for a line that is no event.
 */
extern void pgft_job_events_apply(PgftJobEvents *events, List *lines);

/* May this line wait for others? False for what users or the worker wait for. */
extern bool pgft_job_event_can_wait(const char *line);

#endif
