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

/*
 * The same without waiting.  A call lives in the memory context that is current
 * at its start, and keeps `model`, `path` and `body`, which have to stay as long.
 * Its request goes when that context does.
 */
typedef struct PgftServingCall PgftServingCall;

extern PgftServingCall *pgft_serving_start(PgftModel *model, const char *path, const char *body);

/*
 * Go on as far as can be: the reply's body once it is there, NULL before.
 * Teaches the engine the model, which waits, and sends the request again when
 * the engine does not know it.  Raises an error for any other reply.
 */
extern Jsonb *pgft_serving_poll(PgftServingCall *call);

/* The request to wait for, NULL when there is none under way. */
extern PgftRequest *pgft_serving_request(const PgftServingCall *call);

/*
 * The same for a request whose reply is a stream of events: the data of the next
 * one, as it came; NULL when none has come yet, or, with *ended, none will come.
 */
extern PgftServingCall *
pgft_serving_start_stream(PgftModel *model, const char *path, const char *body);
extern char *pgft_serving_event(PgftServingCall *call, bool *ended);

/* How many requests the call has sent. */
extern int pgft_serving_requests(const PgftServingCall *call);

/* After pgft_serving_poll has raised its error: had the engine no room for the request? */
extern bool pgft_serving_was_busy(const PgftServingCall *call);

#endif
