/*
 * bench_decode.c: how fast the real model answers, without HTTP around it.
 *
 * Runs batches of the serving path straight through the decoder, in fast
 * numerics, on all cores: 1, 8, 16 and 32 sequences, and a prompt of 512
 * tokens.  What one sequence reaches is bounded by memory, as every token reads
 * all weights once; what many reach by arithmetic: both rates are printed, to be
 * compared with what the machine delivers.
 *
 * A table of operations that times each call stands between the decoder and the
 * device, so that it can also be said where the time of a step goes.
 *
 * Prints "metric<TAB>value<TAB>unit[<TAB>reference]".
 */
#include "bench.h"
#include "decode.h"
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL "cache/SmolLM2-135M-Instruct.Q4_1.gguf"
#define ROUNDS 5 /* the median counts */
#define PROMPT 512
#define CONTEXT 128 /* tokens that a decoding sequence has behind it at the start of a round */
#define STEPS 32    /* of a round */
#define MAX_SEQUENCES 32
/* Cache blocks of the first sequence, which has the prompt, and of the others. */
#define FIRST_BLOCKS (PROMPT / FT_KV_BLOCK)
#define OTHER_BLOCKS ((CONTEXT + STEPS) / FT_KV_BLOCK)

typedef struct bench
{
	ft_model *model;
	ft_kv_cache *cache;
	ft_decoder *decoder;
	int32_t tokens[PROMPT];
	int32_t blocks[MAX_SEQUENCES][FIRST_BLOCKS];
	double read;       /* bytes of weights that a step reads */
	double layer_work; /* multiply-adds of a row in all layers, */
	double head_work;  /* in the head */
} bench;

/* --- where the time goes --- */

typedef enum part
{
	LAYERS,
	HEAD,
	ATTENTION,
	STORE,
	ROPE,
	NORMS,
	SWIGLU,
	EMBED,
	SAMPLE,
	PARTS
} part;

static const char *const part_names[PARTS] = {"layers", "head",   "attention", "store", "rope",
											  "norms",  "swiglu", "embed",     "sample"};

static const ft_ops *device_ops;
static const ft_weight *head;
static double spent[PARTS]; /* seconds */

#define TIMED(part, call)                          \
	double begin = ft_monotonic_seconds();         \
	ft_status status = call;                       \
                                                   \
	spent[part] += ft_monotonic_seconds() - begin; \
	return status;

static ft_status
timed_linear(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta, bool row_fixed)
{
	TIMED(w == head ? HEAD : LAYERS, device_ops->linear(s, y, x, w, beta, row_fixed))
}

static ft_status
timed_attention(ft_stream *s, ft_mat out, ft_mat q, const ft_kv_layer *cache,
				const ft_paged_batch *batch, int heads, int window, float scale)
{
	TIMED(ATTENTION, device_ops->attention_paged(s, out, q, cache, batch, heads, window, scale))
}

static ft_status
timed_store(ft_stream *s, const ft_kv_layer *cache, const ft_paged_batch *batch, ft_mat k, ft_mat v)
{
	TIMED(STORE, device_ops->kv_store(s, cache, batch, k, v))
}

static ft_status
timed_rope(ft_stream *s, ft_mat x, int head_dim, const int32_t *positions, const float *cos_table,
		   const float *sin_table, bool inverse)
{
	TIMED(ROPE, device_ops->rope(s, x, head_dim, positions, cos_table, sin_table, inverse))
}

static ft_status
timed_rmsnorm(ft_stream *s, ft_mat y, ft_mat h, float *rstd, ft_mat x, ft_mat branch,
			  const float *weight, float eps)
{
	TIMED(NORMS, device_ops->rmsnorm(s, y, h, rstd, x, branch, weight, eps))
}

static ft_status
timed_swiglu(ft_stream *s, ft_mat y, ft_mat gate_up)
{
	TIMED(SWIGLU, device_ops->swiglu(s, y, gate_up))
}

static ft_status
timed_embed(ft_stream *s, ft_mat y, const ft_weight *w, const int32_t *ids)
{
	TIMED(EMBED, device_ops->embed(s, y, w, ids))
}

static ft_status
timed_sample(ft_stream *s, ft_mat logits, const ft_sample *params, int32_t *ids, float *logprobs)
{
	TIMED(SAMPLE, device_ops->sample(s, logits, params, ids, logprobs))
}

/* The device's operations, those of a decode step timed. */
static const ft_ops *
timed_ops(const ft_ops *ops)
{
	static ft_ops timed;

	device_ops = ops;
	timed = *ops;
	timed.linear = timed_linear;
	timed.attention_paged = timed_attention;
	timed.kv_store = timed_store;
	timed.rope = timed_rope;
	timed.rmsnorm = timed_rmsnorm;
	timed.swiglu = timed_swiglu;
	timed.embed = timed_embed;
	timed.sample = timed_sample;
	return &timed;
}

/* --- batches --- */

/* One batch of n sequences with `rows` rows each; the next tokens, drawn greedily, end up in drawn.
 */
static void
run(bench *b, int n, int rows, int context, const int32_t *last, int32_t *drawn)
{
	static const ft_sample greedy = {.top_p = 1};
	ft_sample samples[MAX_SEQUENCES];
	ft_decode_item items[MAX_SEQUENCES];

	for (int i = 0; i < n; i++)
	{
		samples[i] = greedy;
		items[i] = (ft_decode_item){
			.tokens = last ? &last[i] : b->tokens,
			.rows = rows,
			.context = context,
			.blocks = b->blocks[i],
			.wants_logits = true,
		};
	}
	must(ft_decoder_run(b->decoder, b->cache, items, n));
	must(ft_decoder_sample(b->decoder, samples, drawn));
}

/* Seconds of STEPS steps of n sequences, and where they went. */
static double
decode_round(bench *b, int n, double *parts)
{
	int32_t last[MAX_SEQUENCES];
	double begin;

	for (int i = 0; i < n; i++)
		last[i] = b->tokens[i];
	memset(spent, 0, sizeof spent);
	begin = ft_monotonic_seconds();
	for (int step = 0; step < STEPS; step++)
		run(b, n, 1, CONTEXT + step, last, last);
	memcpy(parts, spent, sizeof spent);
	return ft_monotonic_seconds() - begin;
}

/* Tokens a second of n sequences that decode together, and the table of a step. */
static void
decode(bench *b, int n)
{
	double times[ROUNDS];
	double parts[PARTS];
	double least[PARTS];
	double total = 0;
	double took, best;

	for (int round = 0; round < ROUNDS; round++)
	{
		times[round] = decode_round(b, n, parts);
		for (int i = 0; i < PARTS; i++)
			least[i] = round == 0 || parts[i] < least[i] ? parts[i] : least[i];
	}
	qsort(times, ROUNDS, sizeof times[0], ascending);
	took = times[ROUNDS / 2] / STEPS;
	best = times[0] / STEPS;
	printf("decode_%d\t%.1f\ttokens/s%s\n", n, n / took, n > 1 ? "\tdecode_1" : "");
	printf("decode_%d_read\t%.2f\tGB/s\tpeak_memory_read\n", n, b->read / took * 1e-9);
	printf("decode_%d/step\t%.0f\tus\n", n, best * 1e6);
	for (int i = 0; i < PARTS; i++)
	{
		total += least[i] / STEPS;
		printf("decode_%d/%s\t%.0f\tus\tdecode_%d/step\n", n, part_names[i], least[i] / STEPS * 1e6,
			   n);
	}
	printf("decode_%d/rest\t%.0f\tus\tdecode_%d/step\n", n, (best - total) * 1e6, n);
	printf("decode_%d/layers/rate\t%.0f\tGOP/s\tops/peak/int8\n", n,
		   2 * n * b->layer_work * STEPS / least[LAYERS] * 1e-9);
	printf("decode_%d/head/rate\t%.0f\tGOP/s\tops/peak/int8\n", n,
		   2 * n * b->head_work * STEPS / least[HEAD] * 1e-9);
}

static void
prefill(bench *b)
{
	double times[ROUNDS];
	double least = 0;
	int32_t drawn;

	for (int round = 0; round < ROUNDS; round++)
	{
		double begin = ft_monotonic_seconds();

		memset(spent, 0, sizeof spent);
		run(b, 1, PROMPT, 0, NULL, &drawn);
		times[round] = ft_monotonic_seconds() - begin;
		if (round == 0 || spent[LAYERS] < least)
			least = spent[LAYERS];
	}
	qsort(times, ROUNDS, sizeof times[0], ascending);
	printf("prefill_512\t%.1f\ttokens/s\n", PROMPT / times[ROUNDS / 2]);
	printf("prefill_512/step\t%.0f\tus\n", times[0] * 1e6);
	printf("prefill_512/layers\t%.0f\tus\tprefill_512/step\n", least * 1e6);
	printf("prefill_512/layers/rate\t%.0f\tGOP/s\tops/peak/int8\n",
		   2 * PROMPT * b->layer_work / least * 1e-9);
}

/* What a step reads and computes. */
static void
count_work(bench *b)
{
	const ft_ops *ops = b->model->ops;
	const ft_config *c = &b->model->config;
	double hidden = c->hidden;
	double q = (double) c->heads * c->head_dim;
	double kv = (double) c->kv_heads * c->head_dim;

	b->read = (double) ops->weight_bytes(b->model->head);
	for (int i = 0; i < c->layers; i++)
	{
		const ft_layer *layer = &b->model->layers[i];

		b->read += (double) (ops->weight_bytes(layer->qkv) + ops->weight_bytes(layer->out) +
							 ops->weight_bytes(layer->gate_up) + ops->weight_bytes(layer->down));
	}
	b->layer_work = c->layers * hidden * (2 * q + 2 * kv + 3.0 * c->ffn);
	b->head_work = hidden * c->vocab;
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
	double begin;

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
	b.model->ops = timed_ops(ops);
	head = b.model->head;
	count_work(&b);
	must(ft_kv_cache_create(b.model, FIRST_BLOCKS + (MAX_SEQUENCES - 1) * OTHER_BLOCKS, &b.cache));
	must(ft_decoder_create(b.model, PROMPT, MAX_SEQUENCES, &b.decoder));
	for (int i = 0; i < MAX_SEQUENCES; i++)
		if (!ft_kv_take(b.cache, i == 0 ? FIRST_BLOCKS : OTHER_BLOCKS, b.blocks[i]))
			return 1;
	/* any text does, as long as it is not one token over and over */
	for (int i = 0; i < PROMPT; i++)
		b.tokens[i] = 1000 + i * 37 % 40000;
	prefill(&b);
	for (int n = 1; n <= MAX_SEQUENCES; n = n == 1 ? 8 : 2 * n)
		decode(&b, n);
	ft_decoder_free(b.decoder);
	ft_kv_cache_free(b.cache);
	b.model->ops = ops;
	ft_model_free(b.model);
	ft_model_file_close(file);
	ops->device_close(device);
	return 0;
}
