/*
 * completion.h: completions and chats, from a request's body to its reply.
 */
#ifndef FT_COMPLETION_H
#define FT_COMPLETION_H

#include "api.h"

#include <jansson.h>

/* Answer the exchange, now or later.  Takes over body and the model's reference. */
void ft_completion_start(ft_api *api, ft_http_exchange *exchange, json_t *body, ft_model_ref *model,
						 bool chat);

/* NULL: the base's chat template it is. */
const char *ft_prompt_template_of(const ft_model_ref *model);

/* Answer with JSON, which is taken over, and with the failure that this thread recorded last. */
void ft_api_reply(ft_http_exchange *exchange, int code, json_t *json);
void ft_api_reply_failure(ft_http_exchange *exchange, ft_status status);

#endif
