/*
 * row_file.h: the rows of a query as JSON lines in a file.
 */
#ifndef PGFT_ROW_FILE_H
#define PGFT_ROW_FILE_H

#include "columns.h"

/*
 * Run a query that pgft_query_check has found good, through SPI, which the
 * caller is connected to, as the current user, read-only and under the active
 * snapshot, and write what the engine needs of its rows to directory/name, in
 * UTF-8.  A cursor and a file: no result is too large.  The file is there when
 * it is whole, under a temporary name until then.  *columns says what was
 * found in the result.  Returns the number of rows.
 *
 * Errors: the query's own; those of pgft_row_write; 53100 and other errors of files; 22P05 where
 * text cannot be had in UTF-8.
 */
extern int64 pgft_rows_write(const char *query, const char *what, const char *directory,
							 const char *name, PgftColumns *columns);

#endif
