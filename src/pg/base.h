/*
 * base.h: what a base model must be for somebody to tune it.
 */
#ifndef PGFT_BASE_H
#define PGFT_BASE_H

#include "model.h"

/* USAGE on the wrapper, which is the right to tune models at all (42501). */
extern void pgft_base_check_wrapper(void);

/*
 * The base model, or full model, of this name, which the current user may use:
 * errors as of pgft_model_lookup, 42809 when the model is an adapter, and 55000
 * when it is a full model that is not trained.
 */
extern PgftModel *pgft_base_lookup(const char *name);

/* Is its file sound, and one that can be trained?  Raises what is wrong with it. */
extern void pgft_base_check_file(PgftModel *base);

/* Where there is no engine to ask: does its file, whose path is set, begin as a model does? */
extern void pgft_base_check_header(const PgftModel *base);

#endif
