/*
 * endpoint.h: base models that another server answers for.
 *
 * Such a base is a server with the option `endpoint`, the URL of any server of
 * OpenAI's chat completions.  The serving engine asks it; a session only says
 * where it is, and shows the key of its user.
 */
#ifndef PGFT_ENDPOINT_H
#define PGFT_ENDPOINT_H

#include "engine_client.h"
#include "model.h"
#include "nodes/pg_list.h"

/*
 * Check the options of a server, all of them, as far as they are about
 * endpoints: which go together, who may set them, what the URL may be.
 */
extern void pgft_endpoint_check_options(List *options);

/* Check the value of an option of a user mapping; no message shows it. */
extern void pgft_endpoint_check_key(const char *key);

/* The route of the engine for them. */
#define PGFT_ENDPOINT_ROUTE "/v1/endpoint/chat/completions"

/*
 * The engine's request for a chat's, whose "model" is the base's remote_model:
 * with the URL and the current user's key.
 */
extern char *pgft_endpoint_request(const PgftModel *base, const char *chat);

/* Raise 0A000: it has no weights here. */
extern void pgft_endpoint_only_answers(const PgftModel *base) pg_attribute_noreturn();

/* Raise the error that the engine's reply carries. */
extern void
pgft_endpoint_error(const PgftModel *base, const PgftReply *reply) pg_attribute_noreturn();

#endif
