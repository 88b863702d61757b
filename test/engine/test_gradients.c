/*
 * test_gradients.c: forward, loss, every LoRA gradient and ten optimizer steps
 * against PyTorch (test/golden/make_tiny_llama.py), and what packing, masking
 * and empty batches must not change.
 */
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

static const char *const variants[] = {"tied", "untied"};

/* A tensor of the fixtures, as floats; free. */
static float *
expected(const char *which, const char *name, int64_t *n)
{
	char path[512];

	snprintf(path, sizeof path, "%s/%s/expected.safetensors", TINY_LLAMA, which);
	return read_tensor(path, name, n);
}

static float *
gradient_of(ft_transformer *t)
{
	float *gradient;

	must(ft_alloc((void **) &gradient, (size_t) t->lora->adapter->n, sizeof(float)));
	must(t->ops->copy_to_host(t->stream, gradient, t->lora->gradient,
							  (size_t) t->lora->adapter->n * sizeof(float)));
	return gradient;
}

/* One batch's gradient of the mean loss, on its own. */
static float *
gradient_of_batch(ft_transformer *t, const ft_microbatch *batch, double scale, ft_loss_sums *sums)
{
	*sums = (ft_loss_sums){0};
	must(ft_lora_zero_gradient(t->lora, t->stream));
	must(ft_transformer_train(t, batch, scale, sums));
	return gradient_of(t);
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
test_gradients_equal_pytorch(void **state)
{
	(void) state;
	for (int v = 0; v < 2; v++)
	{
		tiny_run run;
		ft_adapter *adapter;
		ft_transformer *t;
		ft_microbatch batch;
		ft_loss_sums sums;
		int n;
		int64_t size;
		hand_document *documents = golden_documents(&n);
		double weight = weight_by_hand(documents, n);
		float *gradient;
		float *logits;
		float *reference;

		tiny_open(&run, variants[v], 2);
		adapter = tiny_adapter(&run, variants[v]);
		pack_by_hand(&batch, documents, n, NEVER_SHARED);
		must(ft_transformer_create(run.model, adapter, batch.tokens, &t));

		sums = (ft_loss_sums){0};
		must(ft_transformer_evaluate(t, &batch, &sums));
		reference = expected(variants[v], "logits", &size);
		assert_int_equal(size, batch.trained * run.model->config.vocab);
		must(ft_alloc((void **) &logits, (size_t) size, sizeof *logits));
		must(t->ops->copy_to_host(t->stream, logits, t->logits, (size_t) size * sizeof *logits));
		assert_true(relative_error(logits, reference, size) < TOLERANCE);
		free(logits);
		free(reference);

		gradient = gradient_of_batch(t, &batch, 1.0 / weight, &sums);
		reference = expected(variants[v], "loss", &size);
		assert_true(fabs(sums.loss / weight / reference[0] - 1) < TOLERANCE);
		free(reference);
		for (int slot = 0; slot < adapter->layers * FT_TARGET_COUNT; slot++)
		{
			check_matrix(variants[v], adapter, gradient, slot, 'A', adapter->a_at[slot]);
			check_matrix(variants[v], adapter, gradient, slot, 'B', adapter->b_at[slot]);
		}
		free(gradient);
		free(documents);
		ft_microbatch_free(&batch);
		ft_transformer_free(t);
		ft_adapter_free(adapter);
		tiny_close(&run);
	}
}

static void
test_ten_steps_equal_pytorch(void **state)
{
	(void) state;
	for (int v = 0; v < 2; v++)
	{
		tiny_run run;
		ft_adapter *adapter;
		ft_transformer *t;
		ft_microbatch batch;
		ft_arena arena = {0};
		ft_optimizer optimizer;
		int n;
		int64_t size;
		hand_document *documents = golden_documents(&n);
		double weight = weight_by_hand(documents, n);
		float *losses = expected(variants[v], "losses", &size);
		float *norms = expected(variants[v], "norms", &size);

		assert_int_equal(size, N_STEPS);
		tiny_open(&run, variants[v], 1);
		adapter = tiny_adapter(&run, variants[v]);
		pack_by_hand(&batch, documents, n, NEVER_SHARED);
		must(ft_optimizer_plan(&optimizer, adapter, 0.01, 1.0, &arena));
		must(ft_arena_allocate(&arena, run.ops, run.device));
		must(ft_transformer_create(run.model, adapter, batch.tokens, &t));
		for (int step = 0; step < N_STEPS; step++)
		{
			ft_loss_sums sums = {0};
			double norm;

			must(ft_lora_zero_gradient(t->lora, t->stream));
			must(ft_transformer_train(t, &batch, 1.0 / weight, &sums));
			must(ft_optimizer_step(&optimizer, t->stream, adapter, t->lora->gradient, step + 1,
								   1e-2, &norm));
			must(ft_transformer_adapter_changed(t));
			if (!(fabs(sums.loss / weight / losses[step] - 1) < TOLERANCE))
				fail_msg("%s: loss %.8g at step %d, expected %.8g", variants[v], sums.loss / weight,
						 step, losses[step]);
			if (!(fabs(norm / norms[step] - 1) < 3 * TOLERANCE))
				fail_msg("%s: norm %.8g at step %d, expected %.8g", variants[v], norm, step,
						 norms[step]);
		}
		free(losses);
		free(norms);
		free(documents);
		ft_microbatch_free(&batch);
		ft_transformer_free(t);
		ft_arena_free(&arena);
		ft_adapter_free(adapter);
		tiny_close(&run);
	}
}

/* Products in 16 bits: the same gradient but for rounding, shared beginning or not. */
static void
test_bf16_is_close(void **state)
{
	tiny_run run;
	ft_adapter *adapter;
	ft_transformer *t;
	ft_microbatch batch;
	ft_loss_sums sums;
	int n;
	hand_document *documents = golden_documents(&n);
	double scale;
	float *gradients[3];
	double losses[3];
	int64_t size = 0;
	double bound = 0;

	(void) state;
	begin_alike(documents, n);
	scale = 1.0 / weight_by_hand(documents, n);
	for (int i = 0; i < 3; i++)
	{
		if (i == 0)
			tiny_open(&run, "tied", 2);
		else
			tiny_open_bf16(&run, "tied", 2);
		if (i > 0 && run.model->compute != FT_BF16)
		{
			print_message("skip: this processor has neither 16-bit products nor AVX-512\n");
			skip();
		}
		adapter = tiny_adapter(&run, "tied");
		pack_by_hand(&batch, documents, n, i == 2 ? 1 : NEVER_SHARED);
		assert_int_equal(batch.shared > 0, i == 2);
		must(ft_transformer_create(run.model, adapter, batch.all, &t));
		gradients[i] = gradient_of_batch(t, &batch, scale, &sums);
		losses[i] = sums.loss;
		size = adapter->n;
		/* seen: 0.025 on the CPU, 0.035 by the emulated kernels of the GPU */
		bound = strcmp(run.ops->name, "cpu") == 0 ? 3e-2 : 5e-2;
		ft_microbatch_free(&batch);
		ft_transformer_free(t);
		ft_adapter_free(adapter);
		tiny_close(&run);
	}
	assert_true(fabs(losses[1] / losses[0] - 1) < 5e-3);
	assert_true(fabs(losses[2] / losses[0] - 1) < 5e-3);
	assert_true(relative_error(gradients[1], gradients[0], size) < bound);
	assert_true(relative_error(gradients[2], gradients[0], size) < bound);
	/* and it was indeed another arithmetic */
	assert_true(relative_error(gradients[1], gradients[0], size) > 1e-4);
	for (int i = 0; i < 3; i++)
		free(gradients[i]);
	free(documents);
}

/* The fixtures' untied model with a transformer, for what follows. */
typedef struct fixture
{
	tiny_run run;
	ft_adapter *adapter;
	ft_transformer *t;
	hand_document *documents;
	int n;
} fixture;

static int
setup(void **state)
{
	fixture *f;

	must(ft_alloc((void **) &f, 1, sizeof *f));
	tiny_open(&f->run, "untied", 2);
	f->adapter = tiny_adapter(&f->run, "untied");
	must(ft_transformer_create(f->run.model, f->adapter, 256, &f->t));
	f->documents = golden_documents(&f->n);
	*state = f;
	return 0;
}

static int
teardown(void **state)
{
	fixture *f = *state;

	free(f->documents);
	ft_transformer_free(f->t);
	ft_adapter_free(f->adapter);
	tiny_close(&f->run);
	free(f);
	return 0;
}

static void
test_packed_equals_unpacked(void **state)
{
	fixture *f = *state;
	double scale = 1.0 / weight_by_hand(f->documents, f->n);
	ft_microbatch batch;
	ft_loss_sums packed;
	ft_loss_sums alone = {0};
	float *expected_gradient;
	float *gradient;

	pack_by_hand(&batch, f->documents, f->n, NEVER_SHARED);
	expected_gradient = gradient_of_batch(f->t, &batch, scale, &packed);
	ft_microbatch_free(&batch);
	must(ft_lora_zero_gradient(f->t->lora, f->t->stream));
	for (int i = 0; i < f->n; i++)
	{
		pack_by_hand(&batch, &f->documents[i], 1, NEVER_SHARED);
		must(ft_transformer_train(f->t, &batch, scale, &alone));
		ft_microbatch_free(&batch);
	}
	gradient = gradient_of(f->t);
	assert_true(fabs(alone.loss / packed.loss - 1) < 1e-6);
	assert_true(alone.weight == packed.weight && alone.correct == packed.correct);
	assert_true(relative_error(gradient, expected_gradient, f->adapter->n) < 1e-6);
	free(gradient);
	free(expected_gradient);
}

/* What documents begin with in common is computed once, and nothing else changes. */
static void
test_shared_beginning_changes_nothing(void **state)
{
	fixture *f = *state;
	int n_documents;
	hand_document *documents = golden_documents(&n_documents);
	double weight;

	begin_alike(documents, n_documents);
	weight = weight_by_hand(documents, n_documents);
	for (int n = 1; n <= n_documents; n++)
	{
		ft_microbatch apart;
		ft_microbatch together;
		ft_loss_sums sums;
		ft_loss_sums shared_sums;
		float *expected_gradient;
		float *gradient;

		pack_by_hand(&apart, documents, n, NEVER_SHARED);
		pack_by_hand(&together, documents, n, 4);
		assert_int_equal(apart.tokens - together.tokens, (n - 1) * BEGINNING);
		assert_int_equal(apart.all, together.all);
		assert_int_equal(together.shared, n > 1 ? BEGINNING : 0);
		expected_gradient = gradient_of_batch(f->t, &apart, 1 / weight, &sums);
		gradient = gradient_of_batch(f->t, &together, 1 / weight, &shared_sums);
		assert_true(fabs(shared_sums.loss / sums.loss - 1) < 1e-6);
		assert_true(shared_sums.trained == sums.trained && shared_sums.correct == sums.correct);
		assert_true(relative_error(gradient, expected_gradient, f->adapter->n) < 2e-6);
		free(gradient);
		free(expected_gradient);
		ft_microbatch_free(&apart);
		ft_microbatch_free(&together);
	}
	free(documents);
}

/* A loss row is never shared, however much documents have in common. */
static void
test_trained_tokens_are_not_shared(void **state)
{
	fixture *f = *state;
	hand_document documents[3] = {f->documents[0], f->documents[0], f->documents[0]};
	ft_microbatch batch;

	pack_by_hand(&batch, documents, 3, 1);
	/* its first weight is that of token 4, which row 3 predicts */
	assert_int_equal(batch.shared, 3);
	assert_int_equal(batch.trained, 3 * 5);
	for (int64_t i = 0; i < batch.trained; i++)
		assert_true(batch.rows[i] >= 3);
	ft_microbatch_free(&batch);
}

static void
test_untrained_tokens_change_nothing(void **state)
{
	fixture *f = *state;
	double scale = 1.0 / weight_by_hand(f->documents, f->n);
	hand_document more[16];
	ft_microbatch batch;
	ft_loss_sums sums;
	ft_loss_sums more_sums;
	float *gradient;
	float *more_gradient;

	pack_by_hand(&batch, f->documents, f->n, NEVER_SHARED);
	gradient = gradient_of_batch(f->t, &batch, scale, &sums);
	ft_microbatch_free(&batch);

	/* a document without a trained token between the others, and an untrained token behind one */
	more[0] = f->documents[0];
	more[0].ids[more[0].length] = 77;
	more[0].weights[more[0].length++] = 0.0f;
	more[1] = f->documents[2];
	memset(more[1].weights, 0, sizeof more[1].weights);
	for (int i = 1; i < f->n; i++)
		more[i + 1] = f->documents[i];
	pack_by_hand(&batch, more, f->n + 1, NEVER_SHARED);
	more_gradient = gradient_of_batch(f->t, &batch, scale, &more_sums);
	assert_true(fabs(more_sums.loss / sums.loss - 1) < 1e-6);
	assert_int_equal(more_sums.trained, sums.trained);
	assert_true(relative_error(more_gradient, gradient, f->adapter->n) < 1e-6);
	free(gradient);
	free(more_gradient);
	ft_microbatch_free(&batch);
}

static void
test_batch_without_trained_token(void **state)
{
	fixture *f = *state;
	hand_document document = f->documents[0];
	ft_microbatch batch;
	ft_loss_sums sums;
	float *gradient;

	memset(document.weights, 0, sizeof document.weights);
	pack_by_hand(&batch, &document, 1, NEVER_SHARED);
	gradient = gradient_of_batch(f->t, &batch, 0.0, &sums);
	assert_true(sums.loss == 0 && sums.weight == 0);
	for (int64_t i = 0; i < f->adapter->n; i++)
		assert_true(gradient[i] == 0.0f);
	free(gradient);
	ft_microbatch_free(&batch);
}

static void
test_same_bits_again(void **state)
{
	fixture *f = *state;
	double scale = 1.0 / weight_by_hand(f->documents, f->n);
	ft_microbatch batch;
	ft_loss_sums sums;
	float *first;
	float *second;

	pack_by_hand(&batch, f->documents, f->n, NEVER_SHARED);
	first = gradient_of_batch(f->t, &batch, scale, &sums);
	second = gradient_of_batch(f->t, &batch, scale, &sums);
	assert_memory_equal(first, second, (size_t) f->adapter->n * sizeof(float));
	free(first);
	free(second);
	ft_microbatch_free(&batch);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_gradients_equal_pytorch),
		cmocka_unit_test(test_ten_steps_equal_pytorch),
		cmocka_unit_test(test_bf16_is_close),
		cmocka_unit_test_setup_teardown(test_packed_equals_unpacked, setup, teardown),
		cmocka_unit_test_setup_teardown(test_shared_beginning_changes_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_trained_tokens_are_not_shared, setup, teardown),
		cmocka_unit_test_setup_teardown(test_untrained_tokens_change_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_batch_without_trained_token, setup, teardown),
		cmocka_unit_test_setup_teardown(test_same_bits_again, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
