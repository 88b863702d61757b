/*
 * bench_train.c: how fast the real model is trained: optimizer steps of LoRA on
 * every linear layer, without files and evaluation around them.
 *
 * A batch is documents of 64 tokens of which the last 10 are trained, about
 * what a table of prompts and short completions gives.  The arithmetic of a
 * token is counted from the shapes: the base forward and for the gradient of
 * its inputs, the adapter forward and twice backward, the head at trained
 * tokens, causal attention; element-wise work is left out.  With a quarter of
 * the tokens trained it is compared with the machine's peak, and the speed with
 * PyTorch's, where train_pytorch.py has measured that.
 *
 * Prints "metric<TAB>value<TAB>unit[<TAB>reference]".
 */
#include "bench.h"
#include "device.h"
#include "trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL "cache/SmolLM2-135M-Instruct.Q4_1.gguf"
#define ROUNDS 3 /* the median counts */
#define DOCUMENT 64
#define TRAINED 10
#define QUARTER (DOCUMENT / 4)
#define RANK 16

/* Documents without anything in common. */
static void
fill(ft_microbatch *batch, int64_t tokens, int trained)
{
	must(ft_microbatch_create(tokens, batch));
	batch->all = tokens;
	batch->max_length = DOCUMENT;
	for (int64_t i = 0; i < tokens; i++)
	{
		batch->all_ids[i] = (int32_t) (1000 + i * 7919 % 40000);
		batch->all_targets[i] = batch->all_ids[i];
		batch->all_weights[i] = i % DOCUMENT >= DOCUMENT - trained ? 1.0f : 0.0f;
		if (i % DOCUMENT == 0)
			batch->starts[batch->n_documents++] = (int32_t) i;
	}
	batch->starts[batch->n_documents] = (int32_t) tokens;
	ft_microbatch_arrange(batch, DOCUMENT);
}

/* Multiply-adds times two of a whole step. */
static double
operations(const ft_config *c, const ft_microbatch *batch)
{
	double base = 0;
	double adapter = 0;
	double tokens = (double) batch->tokens;
	/* two products over the positions up to a token's own, and four backward */
	double attention = 6.0 * c->heads * c->head_dim * c->layers * (DOCUMENT + 1) / 2;

	for (int t = 0; t < FT_TARGET_COUNT; t++)
	{
		int in;
		int out;

		ft_target_shape(c, (ft_target) t, &in, &out);
		base += (double) in * out * c->layers;
		adapter += (double) RANK * (in + out) * c->layers;
	}
	return 2.0 * (tokens * (2 * base + 3 * adapter + attention) +
				  2.0 * (double) batch->trained * c->hidden * c->vocab);
}

/* Optimizer steps of that many tokens, and their forward pass alone. */
static void
measure(const ft_model *model, int64_t tokens, int trained)
{
	double steps[ROUNDS];
	double forwards[ROUNDS];
	double rate, arithmetic;
	ft_adapter *adapter;
	ft_transformer *t;
	ft_optimizer optimizer;
	ft_arena arena = {0};
	ft_microbatch batch;
	ft_loss_sums sums = {0};

	fill(&batch, tokens, trained);
	must(ft_adapter_create(model, RANK, 2 * RANK, false, (1u << FT_TARGET_COUNT) - 1, &adapter));
	must(ft_adapter_init(adapter, &model->config, 1));
	must(ft_optimizer_plan(&optimizer, adapter, 0.0, 1.0, &arena));
	must(ft_arena_allocate(&arena, model->ops, model->device));
	must(ft_transformer_create(model, adapter, tokens, &t));
	must(ft_transformer_evaluate(t, &batch, &sums)); /* a warm-up */
	for (int i = 0; i < ROUNDS; i++)
	{
		double begin = ft_monotonic_seconds();
		double middle;
		double norm;

		must(ft_transformer_evaluate(t, &batch, &sums));
		middle = ft_monotonic_seconds();
		must(ft_lora_zero_gradient(t->lora, t->stream));
		must(ft_transformer_train(t, &batch, 1.0 / (double) batch.trained, &sums));
		must(ft_optimizer_step(&optimizer, t->stream, adapter, t->lora->gradient, i + 1, 1e-4,
							   &norm));
		must(ft_transformer_adapter_changed(t));
		must(model->ops->stream_synchronize(t->stream));
		forwards[i] = middle - begin;
		steps[i] = ft_monotonic_seconds() - middle;
	}
	qsort(steps, ROUNDS, sizeof(double), ascending);
	qsort(forwards, ROUNDS, sizeof(double), ascending);
	rate = (double) tokens / steps[ROUNDS / 2];
	arithmetic = 1e-9 * operations(&model->config, &batch) / steps[ROUNDS / 2];
	if (trained == QUARTER)
	{
		printf("train_lora_vs_pytorch\t%.1f\ttokens/s\tpytorch/train_lora\n", rate);
		printf("train_lora_share_of_peak\t%.1f\tGFLOP/s\tops/peak/%s\n", arithmetic,
			   ft_dtype_get(model->compute)->name);
	}
	else
	{
		printf("train_%lld\t%.1f\ttokens/s\n", (long long) tokens, rate);
		printf("train_%lld_forward\t%.1f\ttokens/s\n", (long long) tokens,
			   (double) tokens / forwards[ROUNDS / 2]);
		printf("train_%lld_arithmetic\t%.1f\tGFLOP/s\tpeak_f32\n", (long long) tokens, arithmetic);
	}
	fflush(stdout);
	ft_transformer_free(t);
	ft_arena_free(&arena);
	ft_adapter_free(adapter);
	ft_microbatch_free(&batch);
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
	ft_model *model;

	name = name ? name : "cpu";
	path = path ? path : MODEL;
	if (access(path, R_OK) != 0)
	{
		fprintf(stderr, "bench_train: skip: %s is not there\n", path);
		return 0;
	}
	must(ft_model_file_open(path, &file));
	must(ft_device_open_named(name, threads, FT_NUMERICS_FAST, &ops, &device));
	must(ft_model_load(file, ops, device, FT_USE_TRAIN, DOCUMENT, &model));
	measure(model, 512, TRAINED);
	measure(model, 2048, TRAINED);
	if (strcmp(name, "cpu") != 0)
		measure(model, 16384, TRAINED);
	else
		measure(model, 2048, QUARTER);
	ft_model_free(model);
	ops->device_close(device);
	ft_model_file_close(file);
	return 0;
}
