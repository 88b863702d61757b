/*
 * print_logits.c: the engine's logits behind a sequence of tokens, for
 * check_peft.py and check_exports.py: print_logits BASE ADAPTER ID…, f32 on
 * standard output, first those of the training pass, then those of the serving
 * path; with "-" for the adapter only the latter.
 */
#include "decode.h"
#include "device.h"
#include "packing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void
must(ft_status status)
{
	if (status == FT_OK)
		return;
	fprintf(stderr, "print_logits: %s\n", ft_error_message());
	exit(1);
}

static void
put(const float *logits, int n)
{
	if (fwrite(logits, sizeof(float), (size_t) n, stdout) != (size_t) n)
		exit(1);
}

static void
train_pass(const ft_model *model, const ft_adapter *adapter, char **ids, int n)
{
	ft_microbatch batch;
	ft_loss_sums sums = {0};
	ft_transformer *t;

	must(ft_microbatch_create(n + 1, &batch));
	for (int i = 0; i < n; i++)
		batch.all_ids[i] = atoi(ids[i]);
	batch.all_weights[n] = 1.0f;
	batch.all = batch.max_length = batch.starts[1] = n + 1;
	batch.n_documents = 1;
	ft_microbatch_arrange(&batch, 1);
	must(ft_transformer_create(model, adapter, n + 1, &t));
	must(ft_transformer_evaluate(t, &batch, &sums));
	put(t->logits, model->config.vocab);
}

static void
serve_pass(const ft_model *model, const ft_adapter *adapter, char **ids, int n)
{
	int n_blocks = ft_kv_blocks_for(n);
	int32_t *tokens = calloc((size_t) n, sizeof *tokens);
	int32_t *blocks = calloc((size_t) n_blocks, sizeof *blocks);
	float *logits = calloc((size_t) model->config.vocab, sizeof *logits);
	ft_kv_cache *cache;
	ft_decoder *decoder;

	for (int i = 0; i < n; i++)
		tokens[i] = atoi(ids[i]);
	must(ft_kv_cache_create(model, n_blocks, &cache));
	must(ft_decoder_create(model, n, 1, &decoder));
	if (!ft_kv_take(cache, n_blocks, blocks))
		exit(1);
	must(ft_decoder_run(decoder, cache,
						&(ft_decode_item){.tokens = tokens,
										  .rows = n,
										  .blocks = blocks,
										  .adapter = adapter,
										  .wants_logits = true},
						1));
	must(ft_decoder_logits(decoder, 0, logits));
	put(logits, model->config.vocab);
}

int
main(int argc, char **argv)
{
	ft_model_file *file;
	const ft_ops *ops;
	ft_device *device;
	ft_model *model;
	ft_adapter *adapter = NULL;

	if (argc < 4)
		return 2;
	must(ft_model_file_open(argv[1], &file));
	must(ft_device_open_named("cpu", 2, FT_NUMERICS_REFERENCE, &ops, &device));
	must(ft_model_load(file, ops, device, FT_USE_TRAIN | FT_USE_SERVE, argc, &model));
	if (strcmp(argv[2], "-") != 0)
	{
		must(ft_peft_load(model, argv[2], &adapter));
		train_pass(model, adapter, argv + 3, argc - 3);
	}
	serve_pass(model, adapter, argv + 3, argc - 3);
	return 0;
}
