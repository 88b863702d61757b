/*
 * serving.c: a model opened for tests of loading and decoding.
 */
#include "serving.h"

#include "buffer.h"
#include "device.h"

#include <stdio.h>
#include <stdlib.h>

#define MAX_ROWS 512
#define MAX_SEQUENCES 16

static void
must(ft_status status)
{
	if (status == FT_OK)
		return;
	fprintf(stderr, "serving: %s\n", ft_error_message());
	abort();
}

void
serving_open(serving *s, const char *path, ft_numerics numerics, int threads, int tokens)
{
	const char *backend = getenv("PG_FINETUNE_TEST_BACKEND");

	must(ft_device_open_named(backend ? backend : "cpu", threads, numerics, &s->ops, &s->device));
	must(ft_model_file_open(path, &s->file));
	must(ft_model_load(s->file, s->ops, s->device, FT_USE_SERVE, 0, &s->model));
	must(ft_kv_cache_create(s->model, ft_kv_blocks_for(tokens), &s->cache));
	must(ft_decoder_create(s->model, MAX_ROWS, MAX_SEQUENCES, &s->decoder));
}

void
serving_close(serving *s)
{
	ft_decoder_free(s->decoder);
	ft_kv_cache_free(s->cache);
	ft_model_free(s->model);
	ft_model_file_close(s->file);
	s->ops->device_close(s->device);
}

static int32_t *
take_blocks(serving *s, int tokens, int *n)
{
	int32_t *blocks;

	*n = ft_kv_blocks_for(tokens);
	must(ft_alloc((void **) &blocks, (size_t) *n, sizeof *blocks));
	if (!ft_kv_take(s->cache, *n, blocks))
		abort();
	return blocks;
}

void
serving_feed(serving *s, const ft_adapter *adapter, const int32_t *tokens, int n, int chunk,
			 float *logits)
{
	int n_blocks;
	int32_t *blocks = take_blocks(s, n, &n_blocks);
	int vocab = s->model->config.vocab;

	for (int at = 0, piece = 0; at < n; at += chunk, piece++)
	{
		ft_decode_item item = {
			.tokens = tokens + at,
			.rows = n - at < chunk ? n - at : chunk,
			.context = at,
			.blocks = blocks,
			.adapter = adapter,
			.wants_logits = true,
		};

		must(ft_decoder_run(s->decoder, s->cache, &item, 1));
		must(ft_decoder_logits(s->decoder, 0, logits + (size_t) piece * (size_t) vocab));
	}
	ft_kv_give_back(s->cache, blocks, n_blocks);
	free(blocks);
}

void
serving_greedy(serving *s, const ft_adapter *adapter, const int32_t *prompt, int prompt_length,
			   int n, int32_t *tokens)
{
	const ft_sample greedy = {.top_p = 1};
	int n_blocks;
	int32_t *blocks = take_blocks(s, prompt_length + n, &n_blocks);

	for (int i = 0; i < n; i++)
	{
		ft_decode_item item = {
			.tokens = i == 0 ? prompt : &tokens[i - 1],
			.rows = i == 0 ? prompt_length : 1,
			.context = i == 0 ? 0 : prompt_length + i - 1,
			.blocks = blocks,
			.adapter = adapter,
			.wants_logits = true,
		};

		must(ft_decoder_run(s->decoder, s->cache, &item, 1));
		must(ft_decoder_sample(s->decoder, &greedy, &tokens[i]));
	}
	ft_kv_give_back(s->cache, blocks, n_blocks);
	free(blocks);
}
