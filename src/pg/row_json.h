/*
 * row_json.h: a row of training data as a line of JSON.
 */
#ifndef PGFT_ROW_JSON_H
#define PGFT_ROW_JSON_H

#include "columns.h"
#include "fmgr.h"
#include "lib/stringinfo.h"

typedef struct PgftRowWriter
{
	const char *what; /* names the query in errors */
	PgftColumns columns;
	FmgrInfo output[PGFT_MAX_COLUMNS];
	int64 rows; /* written so far */
} PgftRowWriter;

/* Find the columns in a query's row type; the errors are those of pgft_columns_find. */
extern void pgft_row_writer_init(PgftRowWriter *writer, TupleDesc desc, const char *what);

/*
 * Append a row, as an object and a line feed, in the server's encoding.  What
 * it allocates stays in the current memory context.
 *
 * Errors name the row (from 1) and the column, and quote no value: 2202E an array
 * of more than one dimension, or of another length than input_ids, or an empty
 * one; 22004 an element that is NULL; 22003 a weight that is negative, NaN or
 * infinite.
 */
extern void pgft_row_write(PgftRowWriter *writer, StringInfo line, HeapTuple row, TupleDesc desc);

#endif
