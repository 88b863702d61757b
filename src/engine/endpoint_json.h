/*
 * endpoint_json.h: what is sent to an endpoint, and what its answers mean.
 *
 * An endpoint is any server of OpenAI's chat completions.  Nothing of its text
 * goes into a message: it may quote the prompt or the key.
 */
#ifndef FT_ENDPOINT_JSON_H
#define FT_ENDPOINT_JSON_H

#include "buffer.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* What a request asks for that its answer must show. */
typedef struct ft_endpoint_asked
{
	int n;         /* answers */
	bool logprobs; /* of each */
	bool json;     /* each is JSON */
	bool stream;   /* as events, */
	bool usage;    /* with one for the usage */
} ft_endpoint_asked;

/*
 * A chat's request as the database half writes it for serve, for others: what
 * only serve knows is left out (cache_salt, required_first), a schema gets the
 * name that OpenAI wants.  FT_UNSUPPORTED for what cannot be asked of others,
 * FT_INVALID for what is no such request.  A new reference.
 */
ft_status ft_endpoint_request(const json_t *request, json_t **others, ft_endpoint_asked *asked);

/*
 * The reply to a chat out of the body of an answer with status 200: choices in
 * order, usage, created.  FT_PROTOCOL for a body that is no such answer,
 * FT_UNSUPPORTED naming the option that the endpoint has ignored.
 */
ft_status ft_endpoint_answer(const char *body, size_t n, const ft_endpoint_asked *asked,
							 const char *model, json_t **reply);

/* The same reply as events of a stream, where a piece is a whole answer.  Changes the reply. */
ft_status ft_endpoint_events(json_t *reply, bool with_usage, ft_text *events);

/* An answer with any other status. */
typedef struct ft_endpoint_refusal
{
	long code;
	const char *body;
	size_t length;
	int64_t retry_after_ms; /* 0: not said */
} ft_endpoint_refusal;

/* Is it worth to ask again? */
bool ft_endpoint_passes(const ft_endpoint_refusal *refusal);

/*
 * What it means, as this thread's failure; never FT_OK: FT_DENIED for 401 and
 * 403, FT_BUSY for 402, 429, 503 and 529, FT_TIMEOUT for 408 and 504, FT_REMOTE
 * for other 5xx, FT_INVALID for other 4xx, naming the option of `request` that
 * the endpoint names, FT_PROTOCOL for the rest.
 */
ft_status
ft_endpoint_refused(const ft_endpoint_refusal *refusal, const json_t *request, bool has_key);

#endif
