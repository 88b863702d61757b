/*
 * api_json.c: the JSON of replies.
 */
#include "api_json.h"

#include <inttypes.h>
#include <stdio.h>

int
ft_api_http_code(ft_status status)
{
	switch (status)
	{
		case FT_OK:
			return 200;
		case FT_INVALID:
		case FT_UNSUPPORTED:
			return 400;
		case FT_NOT_FOUND:
			return 404;
		case FT_MISMATCH:
			return 409;
		case FT_CORRUPT:
			return 422;
		case FT_BUSY:
			return 429;
		case FT_NO_MEMORY:
		case FT_DEVICE:
		case FT_CANCELLED:
			return 503;
		case FT_UNREACHABLE:
		case FT_DENIED:
		case FT_PROTOCOL:
		case FT_REMOTE:
			return 502;
		case FT_TIMEOUT:
			return 504;
		case FT_NO_SPACE:
			return 507;
		default:
			return 500;
	}
}

json_t *
ft_api_error(ft_status status, const char *message, const char *hint)
{
	int code = ft_api_http_code(status);
	json_t *error = json_pack("{s:s, s:s, s:s}", "message", message, "type",
							  code < 500 ? "invalid_request_error" : "server_error", "code",
							  ft_status_name(status));

	if (!error) /* a file's name that is not UTF-8, say */
		error = json_pack("{s:s, s:s, s:s}", "message", "the message is not valid UTF-8", "type",
						  code < 500 ? "invalid_request_error" : "server_error", "code",
						  ft_status_name(status));
	if (error && *hint)
		json_object_set_new(error, "hint", json_string(hint));
	return json_pack("{s:o}", "error", error);
}

json_t *
ft_api_tokens(const ft_ids *ids, int max_model_len)
{
	json_t *tokens = json_array();

	for (size_t i = 0; i < ids->length; i++)
		if (json_array_append_new(tokens, json_integer(ids->data[i])) != 0)
		{
			json_decref(tokens);
			return NULL;
		}
	return json_pack("{s:I, s:i, s:o}", "count", (json_int_t) ids->length, "max_model_len",
					 max_model_len, "tokens", tokens);
}

json_t *
ft_api_text(const char *name, const ft_text *text)
{
	ft_text valid = {0};
	json_t *json = NULL;

	if (ft_text_make_valid(text->data, text->length, &valid) == FT_OK)
		json = json_pack("{s:o}", name, json_stringn(valid.data, valid.length));
	ft_text_free(&valid);
	return json;
}

static ft_status
add_model(void *context, const ft_base *base, const ft_lora_entry *lora)
{
	json_t *list = context;
	json_t *model =
		json_pack("{s:s, s:s, s:I, s:s, s:i}", "id", lora ? lora->id : base->id, "object", "model",
				  "created", (json_int_t) (lora ? lora->created : base->created), "owned_by",
				  "pg_finetune", "max_model_len", base->context);

	json_object_set_new(model, "parent", lora ? json_string(base->id) : json_null());
	json_object_set_new(model, "digest", lora ? json_null() : json_string(base->digest));
	if (json_array_append_new(list, model) != 0)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	return FT_OK;
}

json_t *
ft_api_models(ft_registry *registry)
{
	json_t *list = json_array();

	if (ft_registry_visit(registry, add_model, list) != FT_OK)
	{
		json_decref(list);
		return NULL;
	}
	return json_pack("{s:s, s:o}", "object", "list", "data", list);
}

static ft_status
add_cache(void *context, const ft_base *base, const ft_lora_entry *lora)
{
	json_t *caches = context;
	int n_free = base->cache->n_free;

	if (!lora)
		json_object_set_new(caches, base->id,
							json_pack("{s:i, s:i, s:i, s:i}", "blocks", base->cache->n_blocks,
									  "free", n_free, "used", base->cache->n_blocks - n_free,
									  "kept", base->cache->n_kept));
	return FT_OK;
}

json_t *
ft_api_stats(ft_registry *registry, const ft_scheduler_stats *stats)
{
	int64_t held;
	int64_t limit;
	json_t *caches = json_object();

	ft_registry_visit(registry, add_cache, caches);
	ft_registry_memory(registry, &held, &limit);
	return json_pack("{s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:{s:I, s:I}}", "running",
					 stats->running, "waiting", stats->waiting, "steps", (json_int_t) stats->steps,
					 "rows", (json_int_t) stats->rows, "tokens", (json_int_t) stats->tokens,
					 "preemptions", (json_int_t) stats->preemptions, "prompt_tokens",
					 (json_int_t) stats->prompt_tokens, "cached_tokens",
					 (json_int_t) stats->cached_tokens, "cache", caches, "memory", "held",
					 (json_int_t) held, "limit", (json_int_t) limit);
}

json_t *
ft_api_endpoint_stats(const ft_endpoint_stats *stats)
{
	return json_pack("{s:i, s:I, s:I, s:I}", "running", stats->running, "answers",
					 (json_int_t) stats->answers, "failures", (json_int_t) stats->failures,
					 "retries", (json_int_t) stats->retries);
}
