/*
 * serving.h: requests about a model to the serving engine, which is taught the
 * model when it does not know it.
 */
#ifndef PGFT_SERVING_H
#define PGFT_SERVING_H

#include "engine_client.h"
#include "model.h"

/*
 * What the engine knows a model by, once pgft_serving_prepare has found its
 * files.
 */
extern const char *pgft_serving_prepare(PgftModel *model);

/*
 * Have the engine load a base that pgft_model_resolve has found, unless it has
 * it already; returns what the engine says of it: digest, architecture …
 * 55000 when the file's digest is not the one that is recorded.
 */
extern Jsonb *pgft_serving_load_base(const PgftModel *base);

/*
 * POST a request, whose body names the model by that id, and return the
 * reply's body.  Any other outcome raises an error.
 */
extern Jsonb *pgft_serving_call(PgftModel *model, const char *path, const char *body);

#endif
