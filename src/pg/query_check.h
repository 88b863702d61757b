/*
 * query_check.h: what a training or validation query may be, and what it
 * yields.
 */
#ifndef PGFT_QUERY_CHECK_H
#define PGFT_QUERY_CHECK_H

#include "columns.h"
#include "nodes/parsenodes.h"

/*
 * Check a query without running it: it parses, is a single read-only SELECT,
 * VALUES or TABLE without parameters, may be read by the current user, calls
 * only functions that he may call, and yields one of the column sets.  what
 * ("training query") names it in errors.
 *
 * Errors: 22023 when it is something else than a query that reads; whatever
 * PostgreSQL says about its text, names and privileges (42601, 42P01, 42501
 * ...); those of pgft_columns_find about its columns.
 */
extern void pgft_query_check(const char *query, const char *what, PgftColumns *columns);

/* The same for a query that this session runs at once: it may read temporary tables. */
extern void pgft_query_check_now(const char *query, const char *what, PgftColumns *columns);

#endif
