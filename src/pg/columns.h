/*
 * columns.h: the columns of a query that are training data.
 */
#ifndef PGFT_COLUMNS_H
#define PGFT_COLUMNS_H

#include "postgres.h"

#include "access/tupdesc.h"

/* How a row says what is to be learned: the column sets of a training query. */
typedef enum PgftColumnSet
{
	PGFT_PROMPT_COMPLETION, /* prompt text, completion text */
	PGFT_MESSAGES,          /* messages jsonb */
	PGFT_TEXT,              /* text text */
	PGFT_TOKENS,            /* input_ids int[] [, labels int[]] [, attention_mask int[]] */
	PGFT_PREFERENCE         /* prompt text, chosen text, rejected text */
} PgftColumnSet;

typedef enum PgftColumnKind
{
	PGFT_COLUMN_STRING,   /* text and what is like it */
	PGFT_COLUMN_JSON,     /* jsonb or json */
	PGFT_COLUMN_INTEGERS, /* an array of smallint, integer or bigint */
	PGFT_COLUMN_NUMBER    /* real, double precision, numeric or an integer */
} PgftColumnKind;

/* Of a set, and the weight beside it */
#define PGFT_MAX_COLUMNS 4

typedef struct PgftColumns
{
	PgftColumnSet set;
	int count;                          /* columns that are there */
	const char *name[PGFT_MAX_COLUMNS]; /* static */
	PgftColumnKind kind[PGFT_MAX_COLUMNS];
	int attno[PGFT_MAX_COLUMNS]; /* from 1, in the query's result */
	Oid type[PGFT_MAX_COLUMNS];  /* as the query yields it */
} PgftColumns;

/*
 * Find the one column set in a row type, and weight where it is.  Other columns
 * are ignored.  what ("training query") names the query in errors:
 *
 * 42703 a column, or all of them, is missing; 42702 columns of two sets; 42701 a
 * column is there twice; 42804 its type is another.
 */
extern void pgft_columns_find(TupleDesc desc, const char *what, PgftColumns *columns);

/*
 * Method dpo wants preference pairs, the others want none: 42703 where they are
 * missing, 22023 where they are not wanted.
 */
extern void pgft_columns_check_pairs(const PgftColumns *columns, bool wanted, const char *what);

#endif
