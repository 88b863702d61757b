/*
 * api_json.h: the JSON of replies.  Every function returns a new reference, or NULL without memory.
 */
#ifndef FT_API_JSON_H
#define FT_API_JSON_H

#include "scheduler.h"

#include <jansson.h>

/* The HTTP status for a failure. */
int ft_api_http_code(ft_status status);

/* {"error": {"message", "type", "code", "hint"}}; the hint may be "". */
json_t *ft_api_error(ft_status status, const char *message, const char *hint);

/* "usage" */
typedef struct ft_api_usage
{
	size_t prompt;
	size_t cached; /* of the prompt */
	size_t completion;
} ft_api_usage;

json_t *ft_api_completion(bool chat, const char *model, int64_t created, const ft_text *text,
						  const char *finish_reason, const ft_api_usage *usage);
json_t *ft_api_tokens(const ft_ids *ids, int max_model_len);
/* {name: text}, where invalid UTF-8 is replaced. */
json_t *ft_api_text(const char *name, const ft_text *text);
json_t *ft_api_models(ft_registry *registry);
json_t *ft_api_stats(ft_registry *registry, const ft_scheduler_stats *stats);

#endif
