/*
 * reader.h: the process that runs a job's queries.
 */
#ifndef PGFT_READER_H
#define PGFT_READER_H

#include "utils/uuid.h"

/* What a reader is told, in its bgw_extra. */
typedef struct PgftReaderTask
{
	Oid database;
	pg_uuid_t job;
} PgftReaderTask;

/*
 * What it leaves in the job directory: the data, and, last of all, a report:
 *
 *     {"rows": n, "validation_rows": n}                        all is there
 *     {"error": {"code": SQLSTATE, "message": …, "hint": …}}   a query failed
 *
 * Without a report the reader died.  validation.jsonl is there only with a
 * validation query.
 */
#define PGFT_TRAINING_FILE "train.jsonl"
#define PGFT_VALIDATION_FILE "validation.jsonl"
#define PGFT_READER_REPORT "reader.json"

extern PGDLLEXPORT void pgft_reader_main(Datum arg);

#endif
