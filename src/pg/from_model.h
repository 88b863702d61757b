/*
 * from_model.h: jobs that continue from a tuned model, with option "from_model".
 */
#ifndef PGFT_FROM_MODEL_H
#define PGFT_FROM_MODEL_H

#include "model.h"

/*
 * Check the model that the options continue from, for the current user, and
 * return it; NULL when they name none.  The digest of its weights becomes part
 * of the options, as "from_weights": whatever is renamed later, these weights
 * are meant.
 *
 * Errors: 42704, 42501 as of pgft_model_lookup; 42809 for a model that is not
 * an adapter, or, with method full, a full model; 55000 for one without
 * weights; 22023 for one over another base, and for other weights than
 * "from_weights" says.
 */
extern PgftModel *pgft_from_model(const PgftModel *base, Jsonb **options);

/* What a job's engine reads first: `base`, or the full model that it continues `from`. */
extern PgftModel *pgft_from_model_root(PgftModel *base, PgftModel *from);

/*
 * The adapter that has the weights which a job's options name; NULL when they
 * name none, or when there is none any more.
 */
extern PgftModel *pgft_from_model_of(Jsonb *options);

#endif
