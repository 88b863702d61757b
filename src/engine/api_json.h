/*
 * api_json.h: the JSON of replies.  Every function returns a new reference, or NULL without memory.
 */
#ifndef FT_API_JSON_H
#define FT_API_JSON_H

#include "endpoint.h"
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

/* What all replies to a request begin with, and their pieces. */
typedef struct ft_api_head
{
	char id[64];
	bool chat;
	const char *model;
	int64_t created;
} ft_api_head;

/* An id that no other request of this process has. */
void ft_api_head_make(ft_api_head *head, bool chat, const char *model, int64_t created);

/* An element of "choices": finish and logprobs NULL: none. */
json_t *
ft_api_choice(bool chat, int index, const ft_text *text, const char *finish, json_t *logprobs);
/* The same of a piece: text NULL: none, begins: with the role. */
json_t *ft_api_piece(bool chat, int index, const ft_text *text, bool begins, const char *finish);
/* The whole; takes over choices. */
json_t *ft_api_completion(const ft_api_head *head, json_t *choices, const ft_api_usage *usage);
/* One piece; usage NULL: none is asked for.  Takes over choices. */
json_t *
ft_api_chunk(const ft_api_head *head, json_t *choices, bool with_usage, const ft_api_usage *usage);
/* "logprobs" of an answer: of its tokens that begin before byte `end` of its text. */
json_t *
ft_api_logprobs(bool chat, const ft_tokenizer *tokenizer, const ft_logprobs *logprobs, size_t end);
json_t *ft_api_tokens(const ft_ids *ids, int max_model_len);
/* {name: text}, where invalid UTF-8 is replaced. */
json_t *ft_api_text(const char *name, const ft_text *text);
json_t *ft_api_models(ft_registry *registry);
json_t *ft_api_stats(ft_registry *registry, const ft_scheduler_stats *stats);
/* Its "endpoints". */
json_t *ft_api_endpoint_stats(const ft_endpoint_stats *stats);

#endif
