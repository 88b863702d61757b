/*
 * options.h: the options of a fine-tuning job.
 */
#ifndef PGFT_OPTIONS_H
#define PGFT_OPTIONS_H

#include "postgres.h"

#include "utils/jsonb.h"

/*
 * Check the options that a user gave to finetune('CREATE', ...) and return
 * them with every documented default filled in (palloc'd).  An option whose
 * default depends on the model or the data stays away until the engine says
 * what it chose.
 *
 * Errors: 22023 for an unknown key and for a value of the wrong type or out of
 * range, naming it and saying what is allowed; 0A000 for a documented value
 * that this version cannot do.
 */
extern Jsonb *pgft_options_resolve(Jsonb *given);

/*
 * The part of resolved options that is the engine's, for job.json.  What only
 * the queue needs (priority) is left out.
 */
extern Jsonb *pgft_options_for_engine(Jsonb *resolved);

/* The job's place in the queue; 0 unless the options say otherwise. */
extern int pgft_options_priority(Jsonb *resolved);

#endif
