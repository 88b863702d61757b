/*
 * options.h: the options of a fine-tuning job.
 */
#ifndef PGFT_OPTIONS_H
#define PGFT_OPTIONS_H

#include "postgres.h"

#include "columns.h"
#include "fmgr.h"
#include "utils/jsonb.h"

/*
 * Check the options that a user gave to finetune('CREATE', ...) and its
 * relatives, as a function's argument after the validation query (null: none
 * given), and return them with every documented default filled in (palloc'd).
 * An option whose default depends on the model or the data stays away until
 * the engine says what it chose.
 *
 * Errors: 22023 for an unknown key and for a value of the wrong type, out of
 * range, or contradicting another, naming it and saying what is allowed; 0A000
 * for a documented value that this version cannot do.
 */
extern Jsonb *pgft_options_argument(FunctionCallInfo fcinfo, int argno);

/*
 * 22023 when the options do not go with what a query yields; what ("training
 * query") names it.
 */
extern void
pgft_options_check_columns(Jsonb *options, const PgftColumns *columns, const char *what);

/*
 * The part of resolved options that is the engine's, for job.json.  What only
 * the queue needs (priority) is left out.
 */
extern Jsonb *pgft_options_for_engine(Jsonb *resolved);

/* An option that is a string; NULL when it is not there. */
extern char *pgft_options_string(Jsonb *options, const char *name);

/* Do resolved options ask for a full model?  For its weights to be kept as files? */
extern bool pgft_options_full(Jsonb *resolved);
extern bool pgft_options_as_files(Jsonb *resolved);

/* Does the job train on preference pairs (method dpo)? */
extern bool pgft_options_pairs(Jsonb *options);

/* The job's place in the queue; 0 unless the options say otherwise. */
extern int pgft_options_priority(Jsonb *resolved);

#endif
