/*
 * test_train_serve.c: training and serving compute the same model: logits of
 * the training pass with an adapter, and of the serving path with the same one.
 */
#include "training.h"

#include "decode.h"
#include "device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define TOLERANCE 2e-6

/* The training pass's logits behind the last token of a document. */
static float *
training_logits(const ft_model *model, const ft_adapter *adapter, const hand_document *document)
{
	hand_document probe = *document;
	ft_loss_sums sums = {0};
	ft_microbatch batch;
	ft_transformer *t;
	float *logits;

	/* one token more, of which only the prediction counts */
	for (int i = 0; i < probe.length; i++)
		probe.weights[i] = 0.0f;
	probe.ids[probe.length] = 0;
	probe.weights[probe.length++] = 1.0f;
	pack_by_hand(&batch, &probe, 1, NEVER_SHARED);
	must(ft_transformer_create(model, adapter, batch.tokens, &t));
	must(ft_transformer_evaluate(t, &batch, &sums));
	must(ft_alloc((void **) &logits, (size_t) model->config.vocab, sizeof(float)));
	must(model->ops->copy_to_host(t->stream, logits, t->logits,
								  (size_t) model->config.vocab * sizeof(float)));
	ft_transformer_free(t);
	ft_microbatch_free(&batch);
	return logits;
}

static float *
serving_logits(const ft_model *model, const ft_adapter *adapter, const hand_document *document)
{
	const int32_t blocks[4] = {3, 1, 0, 2};
	ft_kv_cache *cache;
	ft_decoder *decoder;
	ft_decode_item item = {.tokens = document->ids,
						   .rows = document->length,
						   .blocks = blocks,
						   .adapter = adapter,
						   .wants_logits = true};
	float *logits;

	must(ft_kv_cache_create(model, 4, &cache));
	must(ft_decoder_create(model, 64, 1, &decoder));
	must(ft_alloc((void **) &logits, (size_t) model->config.vocab, sizeof(float)));
	must(ft_decoder_run(decoder, cache, &item, 1));
	must(ft_decoder_logits(decoder, 0, logits));
	ft_decoder_free(decoder);
	ft_kv_cache_free(cache);
	return logits;
}

static void
test_same_logits(void **state)
{
	static const char *const variants[] = {"tied", "untied"};
	int n;
	hand_document *documents = golden_documents(&n);

	(void) state;
	for (int v = 0; v < 2; v++)
	{
		char path[256];
		ft_model_file *file;
		const ft_ops *ops;
		ft_device *device;
		ft_model *model;
		ft_adapter *adapter;

		snprintf(path, sizeof path, TINY_LLAMA "/%s/base.gguf", variants[v]);
		must(ft_model_file_open(path, &file));
		must(ft_device_open_named("cpu", 2, FT_NUMERICS_REFERENCE, &ops, &device));
		must(ft_model_load(file, ops, device, FT_USE_TRAIN | FT_USE_SERVE, 0, &model));
		snprintf(path, sizeof path, TINY_LLAMA "/%s/adapter", variants[v]);
		must(ft_peft_load(model, path, &adapter));
		for (int i = 0; i < n; i++)
		{
			float *training = training_logits(model, adapter, &documents[i]);
			float *serving = serving_logits(model, adapter, &documents[i]);
			float *base = serving_logits(model, NULL, &documents[i]);

			assert_true(relative_error(serving, training, model->config.vocab) < TOLERANCE);
			/* and the adapter does something */
			assert_true(relative_error(base, training, model->config.vocab) > 0.01);
			free(training);
			free(serving);
			free(base);
		}
		ft_adapter_free(adapter);
		ft_model_free(model);
		ops->device_close(device);
		ft_model_file_close(file);
	}
	free(documents);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same_logits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
