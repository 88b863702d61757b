/*
 * bench_decode.c: how fast the real model answers, without HTTP around it.
 *
 * Runs batches of the serving path straight through the decoder, in fast
 * numerics, on all cores: one sequence, eight, and a prompt of 512 tokens.
 * What one sequence reaches is bounded by memory, as every token reads all
 * weights once: that rate is printed too, to be compared with what memory
 * delivers.
 *
 * Prints "metric<TAB>value<TAB>unit[<TAB>reference]".
 */
#include "bench.h"
#include "decode.h"
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MODEL "cache/SmolLM2-135M-Instruct.Q4_1.gguf"
#define ROUNDS 5 /* the median counts */
#define PROMPT 512
#define CONTEXT 128 /* tokens that a decoding sequence has behind it at the start of a round */
#define STEPS 32    /* of a round */
#define SEQUENCES 8

typedef struct bench
{
	ft_model *model;
	ft_kv_cache *cache;
	ft_decoder *decoder;
	int32_t tokens[PROMPT];
	int32_t blocks[SEQUENCES][PROMPT / FT_KV_BLOCK];
} bench;

/* One batch of n sequences with `rows` rows each; the next tokens, drawn greedily, end up in drawn.
 */
static void
run(bench *b, int n, int rows, int context, const int32_t *last, int32_t *drawn)
{
	const ft_sample greedy[SEQUENCES] = {{.top_p = 1}};
	ft_decode_item items[SEQUENCES];

	for (int i = 0; i < n; i++)
		items[i] = (ft_decode_item){
			.tokens = last ? &last[i] : b->tokens,
			.rows = rows,
			.context = context,
			.blocks = b->blocks[i],
			.wants_logits = true,
		};
	must(ft_decoder_run(b->decoder, b->cache, items, n));
	must(ft_decoder_sample(b->decoder, greedy, drawn));
}

/* Tokens a second of n sequences that decode together. */
static double
decode(bench *b, int n)
{
	double rates[ROUNDS];

	for (int round = 0; round < ROUNDS; round++)
	{
		int32_t last[SEQUENCES];
		double begin;

		for (int i = 0; i < n; i++)
			last[i] = b->tokens[i];
		begin = ft_monotonic_seconds();
		for (int step = 0; step < STEPS; step++)
			run(b, n, 1, CONTEXT + step, last, last);
		rates[round] = n * STEPS / (ft_monotonic_seconds() - begin);
	}
	qsort(rates, ROUNDS, sizeof rates[0], ascending);
	return rates[ROUNDS / 2];
}

static double
prefill(bench *b)
{
	double rates[ROUNDS];
	int32_t drawn;

	for (int round = 0; round < ROUNDS; round++)
	{
		double begin = ft_monotonic_seconds();

		run(b, 1, PROMPT, 0, NULL, &drawn);
		rates[round] = PROMPT / (ft_monotonic_seconds() - begin);
	}
	qsort(rates, ROUNDS, sizeof rates[0], ascending);
	return rates[ROUNDS / 2];
}

int
main(void)
{
	int threads = (int) sysconf(_SC_NPROCESSORS_ONLN);
	const char *name = getenv("PG_FINETUNE_BENCH_DEVICE");
	const char *path = getenv("PG_FINETUNE_BENCH_MODEL");
	const ft_ops *ops;
	ft_device *device;
	ft_model_file *file;
	bench b = {0};
	double begin, one;
	int64_t read;

	path = path ? path : MODEL;
	if (access(path, R_OK) != 0)
	{
		fprintf(stderr, "bench_decode: skip: %s is not there\n", path);
		return 0;
	}
	must(ft_device_open_named(name ? name : "cpu", threads, FT_NUMERICS_FAST, &ops, &device));
	begin = ft_monotonic_seconds();
	must(ft_model_file_open(path, &file));
	must(ft_model_load(file, ops, device, FT_USE_SERVE, 0, &b.model));
	printf("load_time\t%.3f\ts\n", ft_monotonic_seconds() - begin);
	must(ft_kv_cache_create(b.model, SEQUENCES * PROMPT / FT_KV_BLOCK, &b.cache));
	must(ft_decoder_create(b.model, PROMPT, SEQUENCES, &b.decoder));
	for (int i = 0; i < SEQUENCES; i++)
		if (!ft_kv_take(b.cache, PROMPT / FT_KV_BLOCK, b.blocks[i]))
			return 1;
	/* any text does, as long as it is not one token over and over */
	for (int i = 0; i < PROMPT; i++)
		b.tokens[i] = 1000 + i * 37 % 40000;
	read = ops->weight_bytes(b.model->head);
	for (int i = 0; i < b.model->config.layers; i++)
	{
		const ft_layer *layer = &b.model->layers[i];

		read += ops->weight_bytes(layer->qkv) + ops->weight_bytes(layer->out) +
				ops->weight_bytes(layer->gate_up) + ops->weight_bytes(layer->down);
	}
	printf("prefill_512\t%.1f\ttokens/s\n", prefill(&b));
	one = decode(&b, 1);
	printf("decode_1\t%.1f\ttokens/s\n", one);
	printf("decode_8\t%.1f\ttokens/s\tdecode_1\n", decode(&b, SEQUENCES));
	printf("decode_1_read\t%.2f\tGB/s\tpeak_memory_read\n", one * (double) read * 1e-9);
	ft_decoder_free(b.decoder);
	ft_kv_cache_free(b.cache);
	ft_model_free(b.model);
	ft_model_file_close(file);
	ops->device_close(device);
	return 0;
}
