/*
 * session_engine.h: an engine program that works for a session while it waits.
 */
#ifndef PGFT_SESSION_ENGINE_H
#define PGFT_SESSION_ENGINE_H

#include "columns.h"
#include "job_file.h"

typedef struct PgftSessionTask
{
	const char *program; /* of the engine: "estimate", "evaluate", "export" */
	const char *name;    /* of that engine in messages */
	PgftJobFile file;

	/* Queries that have been checked, and what they are called in messages; NULL: none */
	const char *query;
	const char *query_name;
	const char *validation_query;
	const char *validation_name;

	/* Called after the engine's good end, before anything is removed; NULL: nothing to do */
	void (*finish)(struct PgftSessionTask *task);

	/* A directory of the caller's that goes as the task's own does, what is called so in messages;
	 * NULL: none */
	const char *temporary;
	const char *temporary_name;

	/* Results: the columns of the query, and the engine's events */
	PgftColumns columns;
	int event_count;
	Jsonb *events[8];
} PgftSessionTask;

/*
 * Run the queries in this session, as the current user and read-only, give
 * their rows to the engine, and wait for its end.  Whatever happens, an error
 * or the session's end included, the engine is gone afterwards, and so are the
 * directory that it worked in and task->temporary.  At most pg_finetune.max_running_jobs such
 * engines (but at least one) run at a time; others wait their turn.
 *
 * Errors: those of the queries; 25006 when one writes; what the engine says,
 * as of pgft_engine_sqlstate, without paths and without text of any row; 58000
 * when it dies, 57P03 when it hangs.
 */
extern void pgft_session_engine_run(PgftSessionTask *task);

/* The event of this name, an error when the engine has not told it. */
extern JsonbContainer *pgft_session_event(const PgftSessionTask *task, const char *name);

/*
 * Append the members of an event that are named in the list, which ends with
 * NULL, to an object being written.
 */
extern void pgft_session_copy(StringInfo buf, JsonbContainer *event, const char *const *names);

#endif
