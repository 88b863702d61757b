/*
 * metrics.c: the text format of Prometheus.
 */
#include "metrics.h"

#include <inttypes.h>
#include <string.h>

static ft_status
write_head(ft_text *text, const char *name, const char *type, const char *help)
{
	return ft_text_printf(text, "# HELP pg_finetune_%s %s\n# TYPE pg_finetune_%s %s\n", name, help,
						  name, type);
}

static ft_status
write_value(ft_text *text, const char *name, const char *type, const char *help, uint64_t value)
{
	FT_TRY(write_head(text, name, type, help));
	return ft_text_printf(text, "pg_finetune_%s %" PRIu64 "\n", name, value);
}

/* A label's value: a model's id may have any characters. */
static ft_status
write_label(ft_text *text, const char *value)
{
	for (; *value; value++)
		if (*value == '\n')
			FT_TRY(ft_text_append(text, "\\n", 2));
		else
		{
			if (*value == '"' || *value == '\\')
				FT_TRY(ft_text_append(text, "\\", 1));
			FT_TRY(ft_text_append(text, value, 1));
		}
	return FT_OK;
}

static const struct
{
	const char *name;
	const char *help;
} block_gauges[] = {
	{"cache_blocks", "Blocks of the key/value cache."},
	{"cache_blocks_used", "Blocks that requests use."},
	{"cache_blocks_kept", "Free blocks whose contents can be found again."},
};

typedef struct gauge
{
	ft_text *text;
	int which; /* of block_gauges */
} gauge;

static ft_status
write_blocks(void *context, const ft_base *base, const ft_lora_entry *lora)
{
	gauge *g = context;
	int n_free = base->cache->n_free;
	int values[] = {base->cache->n_blocks, base->cache->n_blocks - n_free, base->cache->n_kept};

	if (lora)
		return FT_OK;
	FT_TRY(ft_text_printf(g->text, "pg_finetune_%s{model=\"", block_gauges[g->which].name));
	FT_TRY(write_label(g->text, base->id));
	return ft_text_printf(g->text, "\"} %d\n", values[g->which]);
}

ft_status
ft_metrics_write(ft_registry *registry, const ft_scheduler_stats *s, ft_text *text)
{
	FT_TRY(write_value(text, "requests_running", "gauge", "Requests that are answered.",
					   (uint64_t) s->running));
	FT_TRY(write_value(text, "requests_waiting", "gauge", "Requests that wait.",
					   (uint64_t) s->waiting));
	FT_TRY(write_value(text, "steps_total", "counter", "Steps over a base.", s->steps));
	FT_TRY(write_value(text, "rows_total", "counter", "Tokens computed, of prompts and answers.",
					   s->rows));
	FT_TRY(write_value(text, "tokens_total", "counter", "Tokens drawn.", s->tokens));
	FT_TRY(write_value(text, "preemptions_total", "counter",
					   "Requests that gave their blocks back and were computed again.",
					   s->preemptions));
	FT_TRY(write_value(text, "prompt_tokens_total", "counter", "Tokens of prompts.",
					   s->prompt_tokens));
	FT_TRY(write_value(text, "cached_tokens_total", "counter",
					   "Tokens of prompts that were found in the cache.", s->cached_tokens));
	for (int i = 0; i < (int) (sizeof block_gauges / sizeof block_gauges[0]); i++)
	{
		gauge g = {text, i};

		FT_TRY(write_head(text, block_gauges[i].name, "gauge", block_gauges[i].help));
		FT_TRY(ft_registry_visit(registry, write_blocks, &g));
	}
	return FT_OK;
}

ft_status
ft_metrics_write_endpoints(const ft_endpoint_stats *s, ft_text *text)
{
	FT_TRY(write_value(text, "endpoint_requests_running", "gauge",
					   "Requests that endpoints are to answer.", (uint64_t) s->running));
	FT_TRY(write_value(text, "endpoint_answers_total", "counter", "Answers of endpoints.",
					   s->answers));
	FT_TRY(write_value(text, "endpoint_failures_total", "counter",
					   "Requests that endpoints did not answer.", s->failures));
	return write_value(text, "endpoint_retries_total", "counter",
					   "Requests that were sent again, for endpoints had no room for them.",
					   s->retries);
}
