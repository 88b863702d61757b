/*
 * test_families.c: each dense family against PyTorch, transformers and PEFT
 * (test/golden/make_families.py): logits in training and in serving, with an
 * adapter and without, and the gradients of the adapter and of every weight.
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

#define FAMILIES "test/golden/families"
#define TOLERANCE 1e-5

static const char *const names[] = {"llama",      "mistral", "qwen2",
									"qwen2_tied", "qwen3",   "qwen3_tied"};
#define N_NAMES (sizeof names / sizeof names[0])

typedef struct fixture
{
	const char *name;
	ft_model_file *file;
	const ft_ops *ops;
	ft_device *device;
	ft_model *model;
	ft_adapter *adapter;
	hand_document *documents;
	int n;
	double weight;
} fixture;

static float *
expected(const char *family, const char *tensor, int64_t *n)
{
	char path[256];

	snprintf(path, sizeof path, FAMILIES "/%s/expected.safetensors", family);
	return read_tensor(path, tensor, n);
}

/* What a reader of another format could say of the file; GGUF cannot. */
static void
set_window(fixture *f, int window, int from)
{
	ft_config *c = (ft_config *) ft_model_file_config(f->file);

	c->window = window;
	c->window_from = from;
}

static void
open_file(fixture *f, const char *name)
{
	char path[256];

	memset(f, 0, sizeof *f);
	f->name = name;
	snprintf(path, sizeof path, FAMILIES "/%s/base.gguf", name);
	must(ft_model_file_open(path, &f->file));
	f->documents = read_documents(FAMILIES "/documents.json", &f->n);
	f->weight = weight_by_hand(f->documents, f->n);
}

static void
load(fixture *f, ft_numerics numerics)
{
	const char *backend = getenv("PG_FINETUNE_TEST_BACKEND");
	char path[256];

	must(ft_device_open_named(backend ? backend : "cpu", 2, numerics, &f->ops, &f->device));
	must(ft_model_load(f->file, f->ops, f->device, FT_USE_TRAIN, 0, &f->model));
	snprintf(path, sizeof path, FAMILIES "/%s/adapter", f->name);
	must(ft_peft_load(f->model, path, &f->adapter));
}

static void
open_fixture(fixture *f, const char *name)
{
	open_file(f, name);
	load(f, FT_NUMERICS_REFERENCE);
}

static void
close_fixture(fixture *f)
{
	free(f->documents);
	ft_adapter_free(f->adapter);
	ft_model_free(f->model);
	if (f->device != NULL)
		f->ops->device_close(f->device);
	ft_model_file_close(f->file);
}

static void
close_to(const fixture *f, const char *what, const float *values, const float *reference, int64_t n)
{
	double error = relative_error(values, reference, n);

	if (!(error < TOLERANCE))
		fail_msg("%s: %s differs by %g", f->name, what, error);
}

static float *
on_host(const fixture *f, ft_transformer *t, const float *values, int64_t n)
{
	float *host;

	must(ft_alloc((void **) &host, (size_t) n, sizeof *host));
	must(f->ops->copy_to_host(t->stream, host, values, (size_t) n * sizeof *host));
	return host;
}

/* The rows of logits at every position that stand at loss rows; in place. */
static int64_t
loss_rows(const fixture *f, float *logits)
{
	int64_t vocab = f->model->config.vocab;
	int64_t at = 0;
	int64_t n = 0;

	for (int d = 0; d < f->n; d++)
	{
		for (int j = 1; j < f->documents[d].length; j++)
			if (f->documents[d].weights[j] > 0)
				memmove(logits + n++ * vocab, logits + (at + j - 1) * vocab,
						(size_t) vocab * sizeof *logits);
		at += f->documents[d].length;
	}
	return n;
}

/* Forward, and logits and mean loss compared. */
static void
check_forward(const fixture *f, ft_transformer *t, const ft_microbatch *batch, float *logits,
			  const float *loss)
{
	ft_loss_sums sums = {0};
	int64_t vocab = f->model->config.vocab;
	float *values;

	must(ft_transformer_evaluate(t, batch, &sums));
	values = on_host(f, t, t->logits, batch->trained * vocab);
	assert_int_equal(loss_rows(f, logits), batch->trained);
	close_to(f, "training's logits", values, logits, batch->trained * vocab);
	assert_true(fabs(sums.loss / f->weight / loss[0] - 1) < TOLERANCE);
	free(values);
}

static void
check_adapter_gradient(const fixture *f, const float *gradient)
{
	for (int slot = 0; slot < f->adapter->layers * FT_TARGET_COUNT; slot++)
		for (int b = 0; b < 2; b++)
		{
			char name[256];
			int64_t n;
			float *reference;

			snprintf(name, sizeof name,
					 "gradient.base_model.model.model.layers.%d.%s.lora_%c.weight",
					 slot / FT_TARGET_COUNT, ft_target_module((ft_target) (slot % FT_TARGET_COUNT)),
					 b ? 'B' : 'A');
			reference = expected(f->name, name, &n);
			close_to(f, name, gradient + (b ? f->adapter->b_at : f->adapter->a_at)[slot], reference,
					 n);
			free(reference);
		}
}

static void
test_adapter_training(void **state)
{
	(void) state;
	for (size_t i = 0; i < N_NAMES; i++)
	{
		fixture f;
		ft_transformer *t;
		ft_microbatch batch;
		ft_loss_sums sums = {0};
		int64_t n;
		float *logits = expected(names[i], "logits", &n);
		float *loss = expected(names[i], "loss", &n);
		float *gradient;

		open_fixture(&f, names[i]);
		pack_by_hand(&batch, f.documents, f.n, NEVER_SHARED);
		must(ft_transformer_create(f.model, f.adapter, batch.tokens, &t));
		check_forward(&f, t, &batch, logits, loss);
		must(ft_lora_zero_gradient(t->lora, t->stream));
		must(ft_transformer_train(t, &batch, 1.0 / f.weight, &sums));
		gradient = on_host(&f, t, t->lora->gradient, f.adapter->n);
		check_adapter_gradient(&f, gradient);
		free(gradient);
		free(logits);
		free(loss);
		ft_transformer_free(t);
		ft_microbatch_free(&batch);
		close_fixture(&f);
	}
}

/* Every tensor of the file has its gradient, and there are no others. */
static void
check_weight_gradients(const fixture *f, ft_transformer *t, const char *path)
{
	int64_t compared = 0;

	for (int i = 0; i < ft_model_file_tensors(f->file); i++)
	{
		const ft_model_tensor *tensor = ft_model_file_tensor(f->file, i);
		char name[256];
		int64_t n;
		int64_t size;
		float *reference;
		const float *device = ft_weight_gradients_find(t->weight_gradients, tensor->name, &size);
		float *values;

		if (strcmp(tensor->name, "rope_freqs.weight") == 0)
		{
			assert_null(device);
			continue;
		}
		if (device == NULL)
			fail_msg("%s: no gradient of %s", f->name, tensor->name);
		snprintf(name, sizeof name, "weight_gradient.%s", tensor->name);
		reference = read_tensor(path, name, &n);
		assert_int_equal(n, size);
		assert_int_equal(n, tensor->rows * tensor->cols);
		values = on_host(f, t, device, n);
		close_to(f, name, values, reference, n);
		compared += n;
		free(values);
		free(reference);
	}
	assert_int_equal(compared, ft_model_file_parameters(f->file));
}

static void
test_weight_gradients(void **state)
{
	(void) state;
	for (size_t i = 0; i < N_NAMES; i++)
	{
		fixture f;
		ft_transformer *t;
		ft_weight_gradients *gradients;
		ft_microbatch batch;
		ft_loss_sums sums = {0};
		char path[256];
		int64_t n;
		float *logits = expected(names[i], "base_logits", &n);
		float *loss = expected(names[i], "base_loss", &n);

		open_fixture(&f, names[i]);
		pack_by_hand(&batch, f.documents, f.n, NEVER_SHARED);
		must(ft_transformer_create(f.model, NULL, batch.tokens, &t));
		must(ft_weight_gradients_create(f.model, &gradients));
		check_forward(&f, t, &batch, logits, loss);
		t->weight_gradients = gradients;
		snprintf(path, sizeof path, FAMILIES "/%s/expected.safetensors", names[i]);
		must(ft_transformer_train(t, &batch, 1.0 / f.weight, &sums));
		check_weight_gradients(&f, t, path);
		/* gradients are added to */
		must(ft_weight_gradients_zero(gradients, t->stream));
		must(ft_transformer_train(t, &batch, 0.5 / f.weight, &sums));
		must(ft_transformer_train(t, &batch, 0.5 / f.weight, &sums));
		check_weight_gradients(&f, t, path);
		assert_null(ft_weight_gradients_find(gradients, "model.layers.2.mlp.up_proj.weight", &n));
		assert_null(ft_weight_gradients_find(gradients, "model.layers.0.mlp.up_proj.bias", &n));
		free(logits);
		free(loss);
		ft_weight_gradients_free(gradients);
		ft_transformer_free(t);
		ft_microbatch_free(&batch);
		close_fixture(&f);
	}
}

/* Gradients of weights beside those of an adapter change nothing in them; and a beginning that
 * documents share changes neither. */
static void
test_sharing_and_both_gradients(void **state)
{
	(void) state;
	for (size_t i = 0; i < N_NAMES; i++)
	{
		fixture f;
		ft_transformer *t;
		ft_weight_gradients *gradients;
		float *lora[3];
		float *weights[3];
		int64_t n = 0;

		open_fixture(&f, names[i]);
		begin_alike(f.documents, f.n);
		must(ft_weight_gradients_create(f.model, &gradients));
		for (int run = 0; run < 3; run++)
		{
			ft_loss_sums sums = {0};
			ft_microbatch batch;

			pack_by_hand(&batch, f.documents, f.n, run == 2 ? 4 : NEVER_SHARED);
			assert_int_equal(batch.shared, run == 2 ? BEGINNING : 0);
			must(ft_transformer_create(f.model, f.adapter, batch.all, &t));
			t->weight_gradients = run == 0 ? NULL : gradients;
			must(ft_weight_gradients_zero(gradients, t->stream));
			must(ft_lora_zero_gradient(t->lora, t->stream));
			must(ft_transformer_train(t, &batch, 1.0 / f.weight, &sums));
			lora[run] = on_host(&f, t, t->lora->gradient, f.adapter->n);
			weights[run] = on_host(&f, t, gradients->values, gradients->n);
			ft_transformer_free(t);
			ft_microbatch_free(&batch);
		}
		n = gradients->n;
		assert_memory_equal(lora[0], lora[1], (size_t) f.adapter->n * sizeof(float));
		assert_true(relative_error(lora[2], lora[0], f.adapter->n) < 3e-6);
		assert_true(relative_error(weights[2], weights[1], n) < 3e-6);
		for (int run = 0; run < 3; run++)
		{
			free(lora[run]);
			free(weights[run]);
		}
		ft_weight_gradients_free(gradients);
		close_fixture(&f);
	}
}

/* Products in 16 bits: the same gradients but for rounding. */
static void
test_bf16_is_close(void **state)
{
	(void) state;
	for (size_t i = 0; i < N_NAMES; i++)
	{
		float *weights[2];
		int64_t n = 0;
		double error;

		for (int run = 0; run < 2; run++)
		{
			fixture f;
			ft_transformer *t;
			ft_weight_gradients *gradients;
			ft_microbatch batch;
			ft_loss_sums sums = {0};

			open_file(&f, names[i]);
			if (run == 1)
				setenv("PG_FINETUNE_CPU", "bf16", 1);
			load(&f, run == 1 ? FT_NUMERICS_FAST : FT_NUMERICS_REFERENCE);
			unsetenv("PG_FINETUNE_CPU");
			if (run == 1 && f.model->compute != FT_BF16)
			{
				print_message("skip: this processor has neither 16-bit products nor AVX-512\n");
				skip();
			}
			pack_by_hand(&batch, f.documents, f.n, NEVER_SHARED);
			must(ft_transformer_create(f.model, NULL, batch.tokens, &t));
			must(ft_weight_gradients_create(f.model, &gradients));
			t->weight_gradients = gradients;
			must(ft_transformer_train(t, &batch, 1.0 / f.weight, &sums));
			n = gradients->n;
			weights[run] = on_host(&f, t, gradients->values, n);
			ft_weight_gradients_free(gradients);
			ft_transformer_free(t);
			ft_microbatch_free(&batch);
			close_fixture(&f);
		}
		error = relative_error(weights[1], weights[0], n);
		if (!(error < 5e-2 && error > 1e-4))
			fail_msg("%s: gradients in 16 bits differ by %g", names[i], error);
		free(weights[0]);
		free(weights[1]);
	}
}

/* Each document through the cache, in pieces of several sizes. */
static void
check_serving(const fixture *f, serving *s, const ft_adapter *adapter, const float *reference,
			  double tolerance)
{
	static const int chunks[] = {1, 3, 4, 64};
	int vocab = s->model->config.vocab;
	int64_t at = 0;
	float *singly;
	float *logits;

	must(ft_alloc((void **) &singly, (size_t) (64 * vocab), sizeof *singly));
	must(ft_alloc((void **) &logits, (size_t) (64 * vocab), sizeof *logits));
	for (int d = 0; d < f->n; d++)
	{
		int length = f->documents[d].length;

		double error;

		serving_feed(s, adapter, f->documents[d].ids, length, 1, singly);
		error = relative_error(singly, reference + at * vocab, (int64_t) length * vocab);
		if (!(error < tolerance))
			fail_msg("%s: serving's logits of document %d differ by %g", f->name, d, error);
		for (size_t c = 1; c < sizeof chunks / sizeof chunks[0]; c++)
		{
			int pieces = (length + chunks[c] - 1) / chunks[c];

			serving_feed(s, adapter, f->documents[d].ids, length, chunks[c], logits);
			assert_memory_equal(logits + (pieces - 1) * vocab, singly + (length - 1) * vocab,
								(size_t) vocab * sizeof *logits);
		}
		at += length;
	}
	free(singly);
	free(logits);
}

/* With the adapter and without. */
static void
check_family(const char *name, ft_numerics numerics, double tolerance)
{
	fixture f;
	serving s;
	char path[256];
	int64_t n;
	float *base = expected(name, "base_logits", &n);
	float *adapted = expected(name, "logits", &n);
	ft_adapter *adapter;

	open_file(&f, name);
	snprintf(path, sizeof path, FAMILIES "/%s/base.gguf", name);
	serving_open(&s, path, numerics, 2, 64);
	snprintf(path, sizeof path, FAMILIES "/%s/adapter", name);
	must(ft_peft_load(s.model, path, &adapter));
	check_serving(&f, &s, NULL, base, tolerance);
	check_serving(&f, &s, adapter, adapted, tolerance);
	/* the adapter does something */
	assert_true(relative_error(base, adapted, n) > 0.05);
	ft_adapter_free(adapter);
	serving_close(&s);
	close_fixture(&f);
	free(base);
	free(adapted);
}

static void
test_serving(void **state)
{
	(void) state;
	for (size_t i = 0; i < N_NAMES; i++)
		check_family(names[i], FT_NUMERICS_REFERENCE, TOLERANCE);
}

/* In 16 bits, where the machine has them, pieces of a text give the same bits still. */
static void
test_fast_serving(void **state)
{
	(void) state;
	setenv("PG_FINETUNE_CPU", "bf16", 1);
	for (size_t i = 0; i < N_NAMES; i++)
		check_family(names[i], FT_NUMERICS_FAST, 5e-2);
	unsetenv("PG_FINETUNE_CPU");
}

/* What stands in the file is what the fixture was made for. */
static void
test_configurations(void **state)
{
	static const struct
	{
		const char *architecture;
		int window;
		bool bias;
		bool norm;
		bool tied;
	} cases[N_NAMES] = {
		{"llama", 0, false, false, true}, {"llama", 5, false, false, false},
		{"qwen2", 0, true, false, false}, {"qwen2", 0, true, false, true},
		{"qwen3", 0, false, true, false}, {"qwen3", 0, false, true, true},
	};

	(void) state;
	for (size_t i = 0; i < N_NAMES; i++)
	{
		fixture f;
		const ft_config *c;

		open_file(&f, names[i]);
		c = ft_model_file_config(f.file);
		assert_string_equal(c->architecture, cases[i].architecture);
		assert_int_equal(c->window, cases[i].window);
		assert_int_equal(c->qkv_bias, cases[i].bias);
		assert_int_equal(c->qk_norm, cases[i].norm);
		assert_int_equal(c->tied_embeddings, cases[i].tied);
		close_fixture(&f);
	}
}

/* A window that only later layers have (Qwen2's max_window_layers), in training and in serving. */
static void
test_window_of_later_layers(void **state)
{
	static const char path[] = FAMILIES "/qwen2/window.safetensors";
	fixture f;
	serving s;
	ft_transformer *t;
	ft_weight_gradients *gradients;
	ft_microbatch batch;
	ft_loss_sums sums = {0};
	int64_t n;
	float *logits = read_tensor(path, "base_logits", &n);
	float *loss = read_tensor(path, "base_loss", &n);

	(void) state;
	open_file(&f, "qwen2");
	set_window(&f, 5, 1);
	load(&f, FT_NUMERICS_REFERENCE);
	serving_open(&s, FAMILIES "/qwen2/base.gguf", FT_NUMERICS_REFERENCE, 2, 64);
	s.model->config.window = 5;
	s.model->config.window_from = 1;
	check_serving(&f, &s, NULL, logits, TOLERANCE);
	serving_close(&s);
	pack_by_hand(&batch, f.documents, f.n, NEVER_SHARED);
	must(ft_transformer_create(f.model, NULL, batch.tokens, &t));
	must(ft_weight_gradients_create(f.model, &gradients));
	t->weight_gradients = gradients;
	check_forward(&f, t, &batch, logits, loss);
	must(ft_transformer_train(t, &batch, 1.0 / f.weight, &sums));
	for (int layer = 0; layer < 2; layer++)
	{
		char name[256];
		float *reference;
		float *values;

		snprintf(name, sizeof name, "weight_gradient.model.layers.%d.self_attn.q_proj.weight",
				 layer);
		reference = read_tensor(path, name, &n);
		values = on_host(&f, t, ft_weight_gradients_find(gradients, strchr(name, '.') + 1, &n), n);
		close_to(&f, name, values, reference, n);
		free(values);
		free(reference);
	}
	ft_weight_gradients_free(gradients);
	ft_transformer_free(t);
	ft_microbatch_free(&batch);
	close_fixture(&f);
	free(logits);
	free(loss);
}

/* A window as long as the context is none. */
static void
test_window_that_hides_nothing(void **state)
{
	fixture f;

	(void) state;
	open_file(&f, "mistral");
	set_window(&f, 64, 0);
	load(&f, FT_NUMERICS_REFERENCE);
	assert_int_equal(f.model->config.window, 0);
	close_fixture(&f);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_configurations),
		cmocka_unit_test(test_adapter_training),
		cmocka_unit_test(test_weight_gradients),
		cmocka_unit_test(test_sharing_and_both_gradients),
		cmocka_unit_test(test_bf16_is_close),
		cmocka_unit_test(test_serving),
		cmocka_unit_test(test_fast_serving),
		cmocka_unit_test(test_window_of_later_layers),
		cmocka_unit_test(test_window_that_hides_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
