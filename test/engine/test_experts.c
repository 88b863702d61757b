/*
 * test_experts.c: a mixture of experts as a model: forward, loss, LoRA gradients
 * and ten optimizer steps against PyTorch (test/golden/make_tiny_mixtral.py),
 * routing with ties; serving against training, in chunks and batches; and what
 * packing and sharing must not change.
 */
#include "decode.h"
#include "serving.h"
#include "training.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TOLERANCE 1e-5
#define N_STEPS 10
#define N_VARIANTS 2

/* As tiny_open() takes them: beside the folder of the Llamas. */
static const char *const variants[N_VARIANTS] = {"../tiny_mixtral/plain", "../tiny_mixtral/window"};

static void
path_of(char path[512], const char *which, const char *name)
{
	snprintf(path, 512, "%s/%s/%s", TINY_LLAMA, which, name);
}

/* A tensor of the fixtures, as floats; free. */
static float *
expected(const char *which, const char *name, int64_t *n)
{
	char path[512];

	path_of(path, which, "expected.safetensors");
	return read_tensor(path, name, n);
}

/* A model with the fixtures' adapter and documents, ready to train. */
typedef struct fixture
{
	tiny_run run;
	ft_adapter *adapter;
	ft_transformer *t;
	hand_document *documents;
	int n;
	double weight;
} fixture;

static void
open_fixture(fixture *f, const char *which, bool bf16)
{
	memset(f, 0, sizeof *f);
	if (bf16)
		tiny_open_bf16(&f->run, which, 2);
	else
		tiny_open(&f->run, which, 2);
	f->adapter = tiny_adapter(&f->run, which);
	must(ft_transformer_create(f->run.model, f->adapter, 320, &f->t));
	f->documents = golden_documents(&f->n);
	f->weight = weight_by_hand(f->documents, f->n);
}

static void
close_fixture(fixture *f)
{
	free(f->documents);
	ft_transformer_free(f->t);
	ft_adapter_free(f->adapter);
	tiny_close(&f->run);
}

/* One batch's gradient of the mean loss, on its own; free. */
static float *
gradient_of(fixture *f, const ft_microbatch *batch, ft_loss_sums *sums)
{
	float *gradient;
	size_t n = (size_t) f->adapter->n;

	*sums = (ft_loss_sums){0};
	must(ft_lora_zero_gradient(f->t->lora, f->t->stream));
	must(ft_transformer_train(f->t, batch, 1.0 / f->weight, sums));
	must(ft_alloc((void **) &gradient, n, sizeof(float)));
	must(f->t->ops->copy_to_host(f->t->stream, gradient, f->t->lora->gradient, n * sizeof(float)));
	return gradient;
}

static void
check_matrix(const char *which, const ft_adapter *adapter, const float *gradient, int slot,
			 char letter, int64_t at)
{
	char name[256];
	int64_t n;
	float *reference;
	double error;

	snprintf(name, sizeof name, "gradient.base_model.model.model.layers.%d.%s.lora_%c.weight",
			 slot / FT_TARGET_COUNT, ft_target_module((ft_target) (slot % FT_TARGET_COUNT)),
			 letter);
	reference = expected(which, name, &n);
	assert_true(at + n <= adapter->n);
	error = relative_error(gradient + at, reference, n);
	if (!(error < TOLERANCE))
		fail_msg("%s %s differs by %g", which, name, error);
	free(reference);
}

static void
check_logits(fixture *f, const char *which, const ft_microbatch *batch)
{
	ft_loss_sums sums = {0};
	int64_t size;
	float *reference = expected(which, "logits", &size);
	float *logits;
	double error;

	must(ft_transformer_evaluate(f->t, batch, &sums));
	assert_int_equal(size, batch->trained * f->run.model->config.vocab);
	must(ft_alloc((void **) &logits, (size_t) size, sizeof *logits));
	must(f->t->ops->copy_to_host(f->t->stream, logits, f->t->logits,
								 (size_t) size * sizeof *logits));
	error = relative_error(logits, reference, size);
	if (!(error < TOLERANCE))
		fail_msg("%s: logits differ by %g", which, error);
	free(logits);
	free(reference);
}

static void
test_equals_pytorch(void **state)
{
	(void) state;
	for (int v = 0; v < N_VARIANTS; v++)
	{
		fixture f;
		ft_microbatch batch;
		ft_loss_sums sums;
		int64_t size;
		float *gradient;
		float *reference = expected(variants[v], "loss", &size);

		open_fixture(&f, variants[v], false);
		assert_int_equal(f.run.model->config.experts, 5);
		assert_int_equal(f.run.model->config.experts_per_token, 2);
		assert_int_equal(f.run.model->config.window, v == 0 ? 0 : 6);
		pack_by_hand(&batch, f.documents, f.n, NEVER_SHARED);
		check_logits(&f, variants[v], &batch);
		gradient = gradient_of(&f, &batch, &sums);
		assert_true(fabs(sums.loss / f.weight / reference[0] - 1) < TOLERANCE);
		for (int slot = 0; slot < f.adapter->layers * FT_TARGET_COUNT; slot++)
		{
			if (slot % FT_TARGET_COUNT > FT_O_PROJ)
			{
				assert_int_equal(f.adapter->a_at[slot], -1);
				continue;
			}
			check_matrix(variants[v], f.adapter, gradient, slot, 'A', f.adapter->a_at[slot]);
			check_matrix(variants[v], f.adapter, gradient, slot, 'B', f.adapter->b_at[slot]);
		}
		free(gradient);
		free(reference);
		ft_microbatch_free(&batch);
		close_fixture(&f);
	}
}

/* A tensor's gradient against `reference`. */
static void
check_weight(fixture *f, int layer, const char *name, const float *reference)
{
	char full[128];
	int64_t n;
	float *at;
	float *gradient;
	double error;

	snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
	at = ft_weight_gradients_find(f->t->weight_gradients, full, &n);
	assert_non_null(at);
	must(ft_alloc((void **) &gradient, (size_t) n, sizeof *gradient));
	must(f->t->ops->copy_to_host(f->t->stream, gradient, at, (size_t) n * sizeof *gradient));
	error = relative_error(gradient, reference, n);
	if (!(error < TOLERANCE))
		fail_msg("gradient of %s differs by %g", full, error);
	free(gradient);
}

/* The named gradient of the fixtures' layer; free. */
static float *
expected_weight(const char *which, int layer, const char *name)
{
	char full[128];
	int64_t n;

	snprintf(full, sizeof full, "gradient.model.layers.%d.%s", layer, name);
	return expected(which, full, &n);
}

/* transformers stacks experts, gate before up. */
static void
check_layer(fixture *f, const char *which, int layer)
{
	const ft_config *c = &f->run.model->config;
	int64_t matrix = (int64_t) c->ffn * c->hidden;
	float *router = expected_weight(which, layer, "mlp.gate.weight");
	float *gate_up = expected_weight(which, layer, "mlp.experts.gate_up_proj");
	float *down = expected_weight(which, layer, "mlp.experts.down_proj");
	float *norm = expected_weight(which, layer, "post_attention_layernorm.weight");
	char name[64];

	check_weight(f, layer, "block_sparse_moe.gate.weight", router);
	check_weight(f, layer, "post_attention_layernorm.weight", norm);
	for (int e = 0; e < c->experts; e++)
	{
		snprintf(name, sizeof name, "block_sparse_moe.experts.%d.w1.weight", e);
		check_weight(f, layer, name, gate_up + 2 * e * matrix);
		snprintf(name, sizeof name, "block_sparse_moe.experts.%d.w3.weight", e);
		check_weight(f, layer, name, gate_up + (2 * e + 1) * matrix);
		snprintf(name, sizeof name, "block_sparse_moe.experts.%d.w2.weight", e);
		check_weight(f, layer, name, down + e * matrix);
	}
	free(router);
	free(gate_up);
	free(down);
	free(norm);
}

/* Router, experts and the norm before them, where somebody wants their gradients; the adapter's is
 * the same then. */
static void
test_weight_gradients_equal_pytorch(void **state)
{
	fixture f;
	ft_microbatch batch;
	ft_loss_sums sums;
	ft_weight_gradients *gradients;
	float *frozen;
	float *gradient;
	int64_t n;

	(void) state;
	open_fixture(&f, variants[0], false);
	pack_by_hand(&batch, f.documents, f.n, NEVER_SHARED);
	frozen = gradient_of(&f, &batch, &sums);
	must(ft_weight_gradients_create(f.run.model, &gradients));
	f.t->weight_gradients = gradients;
	gradient = gradient_of(&f, &batch, &sums);
	assert_memory_equal(gradient, frozen, (size_t) f.adapter->n * sizeof(float));
	for (int i = 0; i < f.run.model->config.layers; i++)
		check_layer(&f, variants[0], i);
	assert_null(ft_weight_gradients_find(gradients, "model.layers.0.mlp.up_proj.weight", &n));
	assert_null(ft_weight_gradients_find(
		gradients, "model.layers.0.block_sparse_moe.experts.5.w1.weight", &n));
	assert_null(ft_weight_gradients_find(
		gradients, "model.layers.0.block_sparse_moe.experts.0.w4.weight", &n));
	ft_weight_gradients_free(gradients);
	free(frozen);
	free(gradient);
	ft_microbatch_free(&batch);
	close_fixture(&f);
}

static void
test_ten_steps_equal_pytorch(void **state)
{
	(void) state;
	for (int v = 0; v < N_VARIANTS; v++)
	{
		fixture f;
		ft_microbatch batch;
		ft_arena arena = {0};
		ft_optimizer optimizer;
		int64_t size;
		float *losses = expected(variants[v], "losses", &size);
		float *norms = expected(variants[v], "norms", &size);

		assert_int_equal(size, N_STEPS);
		open_fixture(&f, variants[v], false);
		pack_by_hand(&batch, f.documents, f.n, NEVER_SHARED);
		must(ft_optimizer_plan(&optimizer, f.adapter, 0.01, 1.0, &arena));
		must(ft_arena_allocate(&arena, f.run.ops, f.run.device));
		for (int step = 0; step < N_STEPS; step++)
		{
			ft_loss_sums sums;
			double norm;

			free(gradient_of(&f, &batch, &sums));
			must(ft_optimizer_step(&optimizer, f.t->stream, f.adapter, f.t->lora->gradient,
								   step + 1, 1e-2, &norm));
			must(ft_transformer_adapter_changed(f.t));
			if (!(fabs(sums.loss / f.weight / losses[step] - 1) < TOLERANCE))
				fail_msg("%s: loss %.8g at step %d, expected %.8g", variants[v],
						 sums.loss / f.weight, step, losses[step]);
			if (!(fabs(norm / norms[step] - 1) < 3 * TOLERANCE))
				fail_msg("%s: norm %.8g at step %d, expected %.8g", variants[v], norm, step,
						 norms[step]);
		}
		free(losses);
		free(norms);
		ft_microbatch_free(&batch);
		ft_arena_free(&arena);
		close_fixture(&f);
	}
}

/* Products in 16 bits: a token whose experts are a near thing may be sent elsewhere, so only about
 * the same. */
static void
test_bf16_is_close(void **state)
{
	double losses[2];

	(void) state;
	for (int i = 0; i < 2; i++)
	{
		fixture f;
		ft_microbatch batch;
		ft_loss_sums sums;

		open_fixture(&f, variants[0], i == 1);
		if (i == 1 && f.run.model->compute != FT_BF16)
		{
			close_fixture(&f);
			print_message("skip: this processor has neither 16-bit products nor AVX-512\n");
			skip();
		}
		pack_by_hand(&batch, f.documents, f.n, NEVER_SHARED);
		free(gradient_of(&f, &batch, &sums));
		losses[i] = sums.loss;
		ft_microbatch_free(&batch);
		close_fixture(&f);
	}
	assert_true(fabs(losses[1] / losses[0] - 1) < 2e-2);
	assert_true(losses[1] != losses[0]);
}

#define COPIES 6 /* enough for an expert to have more rows than are computed one by one */

static void
test_packing_changes_nothing(void **state)
{
	fixture f;
	hand_document *many;
	ft_microbatch batch;
	ft_loss_sums packed;
	ft_loss_sums sums;
	ft_loss_sums again;
	float *whole;
	float *repeated;
	float *sum;

	(void) state;
	open_fixture(&f, variants[1], false);
	must(ft_alloc((void **) &many, (size_t) (f.n * COPIES), sizeof *many));
	for (int i = 0; i < f.n * COPIES; i++)
	{
		many[i] = f.documents[i % f.n];
		many[i].ids[0] = 3 + i;
	}
	pack_by_hand(&batch, many, f.n * COPIES, NEVER_SHARED);
	whole = gradient_of(&f, &batch, &packed);
	repeated = gradient_of(&f, &batch, &again);
	assert_memory_equal(whole, repeated, (size_t) f.adapter->n * sizeof(float));
	ft_microbatch_free(&batch);
	must(ft_alloc((void **) &sum, (size_t) f.adapter->n, sizeof(float)));
	for (int i = 0; i < f.n * COPIES; i++)
	{
		float *part;

		pack_by_hand(&batch, &many[i], 1, NEVER_SHARED);
		part = gradient_of(&f, &batch, &sums);
		for (int64_t j = 0; j < f.adapter->n; j++)
			sum[j] += part[j];
		free(part);
		ft_microbatch_free(&batch);
	}
	assert_true(relative_error(sum, whole, f.adapter->n) < 1e-6);
	free(sum);
	free(many);
	free(whole);
	free(repeated);
	close_fixture(&f);
}

/* What documents begin with in common is computed once. */
static void
test_shared_beginning_changes_nothing(void **state)
{
	fixture f;
	ft_microbatch apart;
	ft_microbatch together;
	ft_loss_sums sums;
	ft_loss_sums shared_sums;
	float *gradient;
	float *shared_gradient;
	hand_document three[3];

	(void) state;
	open_fixture(&f, variants[0], false);
	for (int i = 0; i < 3; i++)
	{
		three[i] = f.documents[2];
		three[i].ids[11] = i;
	}
	pack_by_hand(&apart, three, 3, NEVER_SHARED);
	pack_by_hand(&together, three, 3, 1);
	assert_true(together.shared > 5);
	gradient = gradient_of(&f, &apart, &sums);
	shared_gradient = gradient_of(&f, &together, &shared_sums);
	assert_true(fabs(shared_sums.loss / sums.loss - 1) < 1e-6);
	assert_true(relative_error(shared_gradient, gradient, f.adapter->n) < 2e-6);
	free(gradient);
	free(shared_gradient);
	ft_microbatch_free(&apart);
	ft_microbatch_free(&together);
	close_fixture(&f);
}

/* The training pass's logits behind the last token of a document; free. */
static float *
training_logits(const ft_model *model, const ft_adapter *adapter, const hand_document *document)
{
	hand_document probe = *document;
	ft_loss_sums sums = {0};
	ft_microbatch batch;
	ft_transformer *t;
	float *logits;

	/* one token more, of which only the prediction counts */
	memset(probe.weights, 0, sizeof probe.weights);
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

static void
open_serving(serving *s, const char *which, ft_numerics numerics, ft_adapter **adapter)
{
	char path[512];

	path_of(path, which, "base.gguf");
	serving_open(s, path, numerics, 2, 512);
	path_of(path, which, "adapter");
	must(ft_peft_load(s->model, path, adapter));
}

static void
test_serving_equals_training(void **state)
{
	(void) state;
	for (int v = 0; v < N_VARIANTS; v++)
	{
		fixture f;
		serving s;
		ft_adapter *adapter;

		open_fixture(&f, variants[v], false);
		open_serving(&s, variants[v], FT_NUMERICS_REFERENCE, &adapter);
		for (int i = 0; i < f.n; i++)
		{
			const hand_document *d = &f.documents[i];
			int vocab = s.model->config.vocab;
			float *training = training_logits(f.run.model, f.adapter, d);
			float *logits = calloc((size_t) (vocab * d->length), sizeof *logits);

			serving_feed(&s, adapter, d->ids, d->length, d->length, logits);
			assert_true(relative_error(logits, training, vocab) < 2e-6);
			/* and the adapter does something */
			serving_feed(&s, NULL, d->ids, d->length, d->length, logits);
			assert_true(relative_error(logits, training, vocab) > 0.01);
			free(logits);
			free(training);
		}
		ft_adapter_free(adapter);
		serving_close(&s);
		close_fixture(&f);
	}
}

/* The same bits however the prompt is cut. */
static void
check_chunks(const char *which, ft_numerics numerics)
{
	static const int chunks[] = {60, 1, 7, 16};
	enum
	{
		N = 60
	};
	serving s;
	ft_adapter *adapter;
	int32_t tokens[N];
	float *first;
	float *logits;
	size_t vocab;

	open_serving(&s, which, numerics, &adapter);
	vocab = (size_t) s.model->config.vocab;
	first = calloc(vocab, sizeof *first);
	logits = calloc(vocab * N, sizeof *logits);
	for (int i = 0; i < N; i++)
		tokens[i] = (int32_t) ((i * 97 + 13) % (int) vocab);
	for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++)
	{
		int pieces = (N + chunks[c] - 1) / chunks[c];
		const float *last = logits + (size_t) (pieces - 1) * vocab;

		serving_feed(&s, adapter, tokens, N, chunks[c], logits);
		for (size_t i = 0; i < vocab; i++)
			assert_true(isfinite(last[i]));
		if (c == 0)
			memcpy(first, last, vocab * sizeof *first);
		else
			assert_memory_equal(first, last, vocab * sizeof *first);
	}
	free(first);
	free(logits);
	ft_adapter_free(adapter);
	serving_close(&s);
}

static void
test_chunks(void **state)
{
	(void) state;
	check_chunks(variants[0], FT_NUMERICS_FAST);
	check_chunks(variants[1], FT_NUMERICS_REFERENCE);
}

/* Sequences of many lengths, with the adapter and without, give the bits that each gives alone. */
static void
check_batch(const char *which, ft_numerics numerics)
{
	enum
	{
		SEQUENCES = 6,
		MOST = 40
	};
	serving s;
	ft_adapter *adapter;
	ft_decode_item items[SEQUENCES];
	int32_t tokens[SEQUENCES][MOST];
	int32_t blocks[SEQUENCES][4];
	size_t vocab;
	float *alone;
	float *together;

	open_serving(&s, which, numerics, &adapter);
	vocab = (size_t) s.model->config.vocab;
	alone = calloc(vocab, sizeof *alone);
	together = calloc(vocab, sizeof *together);
	for (int i = 0; i < SEQUENCES; i++)
	{
		for (int j = 0; j < MOST; j++)
			tokens[i][j] = (int32_t) ((i * 31 + j * (5 + i)) % (int) vocab);
		assert_true(ft_kv_take(s.cache, 4, blocks[i]));
		items[i] = (ft_decode_item){.tokens = tokens[i],
									.rows = i % 2 ? 1 : 4 + 9 * i,
									.blocks = blocks[i],
									.adapter = i < 3 ? adapter : NULL,
									.wants_logits = true};
	}
	must(ft_decoder_run(s.decoder, s.cache, items, SEQUENCES));
	for (int i = 0; i < SEQUENCES; i++)
	{
		ft_decode_item item = items[i];
		int32_t other[4];
		ft_decoder *decoder;

		must(ft_decoder_create(s.model, 64, 1, &decoder));
		assert_true(ft_kv_take(s.cache, 4, other));
		item.blocks = other;
		must(ft_decoder_run(decoder, s.cache, &item, 1));
		must(ft_decoder_logits(decoder, 0, alone));
		must(ft_decoder_logits(s.decoder, i, together));
		assert_memory_equal(alone, together, vocab * sizeof *alone);
		ft_kv_give_back(s.cache, other, 4);
		ft_decoder_free(decoder);
	}
	free(alone);
	free(together);
	ft_adapter_free(adapter);
	serving_close(&s);
}

static void
test_batch(void **state)
{
	(void) state;
	check_batch(variants[0], FT_NUMERICS_FAST);
	check_batch(variants[1], FT_NUMERICS_REFERENCE);
}

/* Experts are not adapted, whoever asks. */
static void
test_targets(void **state)
{
	tiny_run run;
	ft_adapter *adapter;
	unsigned attention = (1u << (FT_O_PROJ + 1)) - 1;

	(void) state;
	tiny_open(&run, variants[0], 1);
	assert_int_equal(ft_target_all(&run.model->config), attention);
	must(ft_target_check(&run.model->config, attention));
	for (int t = FT_GATE_PROJ; t < FT_TARGET_COUNT; t++)
	{
		assert_int_equal(ft_adapter_create(run.model, 2, 4, false, 1u << t | 1, &adapter),
						 FT_UNSUPPORTED);
		assert_non_null(strstr(ft_error_message(), ft_target_name((ft_target) t)));
		assert_non_null(strstr(ft_error_message(), "5 experts"));
		assert_non_null(strstr(ft_error_hint(), "q_proj, k_proj, v_proj and o_proj"));
	}
	tiny_close(&run);
}

/* The plan counts what experts take: a row for each of a token's experts. */
static void
test_memory_plan(void **state)
{
	tiny_run run;
	ft_adapter *adapter;
	const ft_config *c;
	int64_t small;
	int64_t large;
	int64_t least;

	(void) state;
	tiny_open(&run, variants[0], 1);
	c = &run.model->config;
	adapter = tiny_adapter(&run, variants[0]);
	must(ft_transformer_bytes(run.model, adapter, 100, &small));
	must(ft_transformer_bytes(run.model, adapter, 1100, &large));
	/* per token: gate and up of two experts in each layer, the product and its gradient, and the
	 * experts' input and output */
	least = 2 * (c->layers * 2 * c->ffn + 2 * c->ffn + 2 * c->hidden) * 4;
	assert_true((large - small) / 1000 > least);
	/* all of the file is on the device, and nothing twice */
	assert_true(run.model->bytes >= ft_model_file_parameters(run.file) * 4);
	assert_true(run.model->bytes < ft_model_file_parameters(run.file) * 4 * 3);
	ft_adapter_free(adapter);
	tiny_close(&run);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_equals_pytorch),
		cmocka_unit_test(test_weight_gradients_equal_pytorch),
		cmocka_unit_test(test_ten_steps_equal_pytorch),
		cmocka_unit_test(test_bf16_is_close),
		cmocka_unit_test(test_packing_changes_nothing),
		cmocka_unit_test(test_shared_beginning_changes_nothing),
		cmocka_unit_test(test_serving_equals_training),
		cmocka_unit_test(test_chunks),
		cmocka_unit_test(test_batch),
		cmocka_unit_test(test_targets),
		cmocka_unit_test(test_memory_plan),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
