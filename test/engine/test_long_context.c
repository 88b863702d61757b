/*
 * test_long_context.c: a Llama 3.1 far beyond its original 8,192 positions, in
 * training and in serving, against transformers (test/golden/make_families.py).
 */
#include "training.h"

#include "device.h"
#include "serving.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LONG "test/golden/families/long"
#define TEXT 8400
#define TRAINED 40
#define VOCABULARY 32
#define TOLERANCE 1e-5

/* make_families.py's long_text. */
static void
long_text(int32_t *ids)
{
	uint32_t x = 1;

	for (int i = 0; i < TEXT; i++)
	{
		x = (x * 1103515245u + 12345u) & 0x7FFFFFFF;
		ids[i] = (int32_t) ((x >> 16) % VOCABULARY);
	}
}

/* Logits behind the tokens before the trained ones, and behind these but the last. */
static float *
expected_logits(void)
{
	int64_t n;
	float *logits = read_tensor(LONG "/expected.safetensors", "base_logits", &n);

	assert_int_equal(n, (TRAINED + 1) * VOCABULARY);
	return logits;
}

/* Tell the file of plain frequencies what config.json says of the scaling. */
static void
scale(ft_config *c)
{
	c->rope_scaling = FT_ROPE_LLAMA3;
	c->rope_factor = 8;
	c->rope_low_freq = 1;
	c->rope_high_freq = 4;
	c->rope_original_positions = 8192;
}

static void
pack(ft_microbatch *batch)
{
	must(ft_microbatch_create(TEXT, batch));
	long_text(batch->all_ids);
	memcpy(batch->all_targets, batch->all_ids, TEXT * sizeof(int32_t));
	for (int i = 0; i < TEXT; i++)
		batch->all_weights[i] = i < TEXT - TRAINED ? 0.0f : 1.0f;
	batch->all = batch->max_length = TEXT;
	batch->starts[++batch->n_documents] = TEXT;
	ft_microbatch_arrange(batch, NEVER_SHARED);
}

static void
check_gradient(ft_transformer *t, const char *module)
{
	for (int layer = 0; layer < 2; layer++)
	{
		char name[256];
		int64_t n;
		float *reference;
		float *values;
		const float *device;
		double error;

		snprintf(name, sizeof name, "weight_gradient.model.layers.%d.self_attn.%s.weight", layer,
				 module);
		reference = read_tensor(LONG "/expected.safetensors", name, &n);
		device = ft_weight_gradients_find(t->weight_gradients, strchr(name, '.') + 1, &n);
		must(ft_alloc((void **) &values, (size_t) n, sizeof *values));
		must(t->ops->copy_to_host(t->stream, values, device, (size_t) n * sizeof *values));
		error = relative_error(values, reference, n);
		if (!(error < TOLERANCE))
			fail_msg("%s differs by %g", name, error);
		free(values);
		free(reference);
	}
}

static void
check_training(const char *path, bool scaled)
{
	ft_model_file *file;
	const ft_ops *ops;
	ft_device *device;
	ft_model *model;
	ft_transformer *t;
	ft_weight_gradients *gradients;
	ft_microbatch batch;
	ft_loss_sums sums = {0};
	int64_t n;
	float *loss = read_tensor(LONG "/expected.safetensors", "base_loss", &n);
	float *reference = expected_logits();
	float *logits;

	must(ft_model_file_open(path, &file));
	if (scaled)
		scale((ft_config *) ft_model_file_config(file));
	must(ft_device_open_named("cpu", 2, FT_NUMERICS_REFERENCE, &ops, &device));
	must(ft_model_load(file, ops, device, FT_USE_TRAIN, 0, &model));
	pack(&batch);
	must(ft_transformer_create_kept(model, NULL, TEXT, scaled ? TEXT : 1, &t));
	must(ft_transformer_evaluate(t, &batch, &sums));
	must(ft_alloc((void **) &logits, TRAINED * VOCABULARY, sizeof *logits));
	must(ops->copy_to_host(t->stream, logits, t->logits, TRAINED * VOCABULARY * sizeof *logits));
	assert_true(relative_error(logits, reference, TRAINED * VOCABULARY) < TOLERANCE);
	assert_true(fabs(sums.loss / TRAINED / loss[0] - 1) < TOLERANCE);
	must(ft_weight_gradients_create(model, &gradients));
	t->weight_gradients = gradients;
	must(ft_transformer_train(t, &batch, 1.0 / TRAINED, &sums));
	check_gradient(t, "q_proj");
	check_gradient(t, "k_proj");
	free(loss);
	free(reference);
	free(logits);
	ft_weight_gradients_free(gradients);
	ft_transformer_free(t);
	ft_microbatch_free(&batch);
	ft_model_free(model);
	ops->device_close(device);
	ft_model_file_close(file);
}

static void
test_training(void **state)
{
	(void) state;
	check_training(LONG "/base.gguf", false);
	check_training(LONG "/plain.gguf", true);
}

/* The prompt in pieces, then the last tokens one by one. */
static void
test_serving(void **state)
{
	enum
	{
		CHUNK = 512
	};
	int32_t *ids;
	int32_t *blocks;
	float *reference = expected_logits();
	float logits[VOCABULARY];
	int n = ft_kv_blocks_for(TEXT);
	serving s;

	(void) state;
	must(ft_alloc((void **) &ids, TEXT, sizeof *ids));
	must(ft_alloc((void **) &blocks, (size_t) n, sizeof *blocks));
	long_text(ids);
	serving_open(&s, LONG "/base.gguf", FT_NUMERICS_REFERENCE, 2, TEXT);
	assert_true(ft_kv_take(s.cache, n, blocks));
	for (int at = 0; at < TEXT;)
	{
		int prompt = TEXT - TRAINED;
		int left = at < prompt ? prompt - at : 1;
		ft_decode_item item = {
			.tokens = ids + at,
			.rows = left < CHUNK ? left : CHUNK,
			.context = at,
			.blocks = blocks,
			.wants_logits = true,
		};

		must(ft_decoder_run(s.decoder, s.cache, &item, 1));
		at += item.rows;
		if (at < prompt)
			continue;
		must(ft_decoder_logits(s.decoder, 0, logits));
		assert_true(relative_error(logits, reference + (at - prompt) * VOCABULARY, VOCABULARY) <
					TOLERANCE);
	}
	serving_close(&s);
	free(ids);
	free(blocks);
	free(reference);
}

/* Without the scaling it is another model. */
static void
test_scaling_matters(void **state)
{
	float *reference = expected_logits();
	ft_model_file *file;
	const ft_ops *ops;
	ft_device *device;
	ft_model *models[3];
	int half;
	size_t bytes;

	(void) state;
	must(ft_device_open_named("cpu", 1, FT_NUMERICS_REFERENCE, &ops, &device));
	for (int i = 0; i < 3; i++)
	{
		must(ft_model_file_open(i == 0 ? LONG "/base.gguf" : LONG "/plain.gguf", &file));
		if (i == 1)
			scale((ft_config *) ft_model_file_config(file));
		must(ft_model_load(file, ops, device, FT_USE_TRAIN, 0, &models[i]));
		ft_model_file_close(file);
	}
	half = models[0]->config.head_dim / 2;
	bytes = (size_t) half * sizeof(float);
	for (int position = 0; position < 131072; position += 8191)
	{
		const float *cosines[3];

		for (int i = 0; i < 3; i++)
			cosines[i] = models[i]->rope_cos + (size_t) position * (size_t) half;
		/* factors in a file and parameters of the scaling differ by rounding */
		for (int j = 0; j < half; j++)
			assert_true(fabsf(cosines[0][j] - cosines[1][j]) < 1e-4f);
		if (position > 0)
			assert_memory_not_equal(cosines[0], cosines[2], bytes);
	}
	for (int i = 0; i < 3; i++)
		ft_model_free(models[i]);
	ops->device_close(device);
	free(reference);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_training),
		cmocka_unit_test(test_serving),
		cmocka_unit_test(test_scaling_matters),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
