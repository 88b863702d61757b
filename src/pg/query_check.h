/*
 * query_check.h: what a training or validation query may be, and what it
 * yields.
 */
#ifndef PGFT_QUERY_CHECK_H
#define PGFT_QUERY_CHECK_H

#include "postgres.h"

#include "access/tupdesc.h"
#include "nodes/parsenodes.h"

/* How a row says what is to be learned: the column sets of a training query. */
typedef enum PgftColumnSet
{
	PGFT_PROMPT_COMPLETION, /* prompt text, completion text */
	PGFT_MESSAGES,          /* messages jsonb */
	PGFT_TEXT               /* text text */
} PgftColumnSet;

#define PGFT_MAX_COLUMNS 2

typedef struct PgftColumns
{
	PgftColumnSet set;
	int count;                          /* columns of the set */
	const char *name[PGFT_MAX_COLUMNS]; /* static */
	int attno[PGFT_MAX_COLUMNS];        /* from 1, in the query's result */
	Oid type[PGFT_MAX_COLUMNS];         /* as the query yields it */
} PgftColumns;

/*
 * Check a query without running it: it parses, is a single read-only SELECT,
 * VALUES or TABLE without parameters, may be read by the current user, and
 * yields one of the column sets.  what ("training query") names it in errors.
 *
 * Errors: 22023 when it is something else than a query that reads; whatever
 * PostgreSQL says about its text, names and privileges (42601, 42P01, 42501
 * ...); 42703, 42804 and 42701 about its columns.
 */
extern void pgft_query_check(const char *query, const char *what, PgftColumns *columns);

/* The same for a query that this session runs at once: it may read temporary tables. */
extern void pgft_query_check_now(const char *query, const char *what, PgftColumns *columns);

/* Find the column set in a row type; the errors are those of pgft_query_check. */
extern void pgft_columns_find(TupleDesc desc, const char *what, PgftColumns *columns);

#endif
