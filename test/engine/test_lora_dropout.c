/*
 * test_lora_dropout.c: training with dropout on what LoRA reads: its gradient
 * by finite differences, and that its masks depend on seed, step and token
 * alone, not on how a step is computed.
 */
#include "training.h"

#include "files.h"
#include "random.h"
#include "tiny_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DROPOUT 0.3

typedef struct fixture
{
	tiny_run run;
	ft_adapter *adapter;
	ft_transformer *t;
	hand_document *documents;
	int n;
	ft_microbatch batch;
} fixture;

static void
open_fixture(fixture *f, double dropout, bool bf16)
{
	*f = (fixture){0};
	if (bf16)
		tiny_open_bf16(&f->run, "untied", 2);
	else
		tiny_open(&f->run, "untied", 2);
	f->adapter = tiny_adapter(&f->run, "untied");
	f->adapter->dropout = dropout;
	must(ft_transformer_create(f->run.model, f->adapter, 256, &f->t));
	ft_lora_set_dropout(f->t->lora, 42, 1);
	f->documents = golden_documents(&f->n);
	pack_by_hand(&f->batch, f->documents, f->n, NEVER_SHARED);
}

static void
close_fixture(fixture *f)
{
	ft_microbatch_free(&f->batch);
	free(f->documents);
	ft_transformer_free(f->t);
	ft_adapter_free(f->adapter);
	tiny_close(&f->run);
}

static float *
floats(const fixture *f, const float *from)
{
	float *values;

	must(ft_alloc((void **) &values, (size_t) f->adapter->n, sizeof(float)));
	must(f->t->ops->copy_to_host(f->t->stream, values, from,
								 (size_t) f->adapter->n * sizeof(float)));
	return values;
}

/* Loss and gradient of the batch with the adapter's values at `values` (NULL: as they are). */
static double
loss_at(fixture *f, const float *values)
{
	ft_loss_sums sums = {0};

	if (values != NULL)
		must(f->t->ops->copy_to_device(f->t->stream, f->adapter->values, values,
									   (size_t) f->adapter->n * sizeof(float)));
	must(ft_transformer_adapter_changed(f->t));
	must(ft_lora_zero_gradient(f->t->lora, f->t->stream));
	must(ft_transformer_train(f->t, &f->batch, 1.0, &sums));
	return sums.loss;
}

static double
evaluation_of(fixture *f)
{
	ft_loss_sums sums = {0};

	must(ft_transformer_evaluate(f->t, &f->batch, &sums));
	return sums.loss;
}

/* The loss along the gradient of one matrix rises by the gradient's square. */
static void
check_matrix(fixture *f, const float *values, const float *gradient, int64_t at, int64_t n,
			 const char *name)
{
	float *moved;
	double square = 0;
	double step;
	double up;
	double down;
	double error;

	for (int64_t i = at; i < at + n; i++)
		square += (double) gradient[i] * (double) gradient[i];
	assert_true(square > 0);
	step = 0.005 / sqrt(square);
	must(ft_alloc((void **) &moved, (size_t) f->adapter->n, sizeof(float)));
	memcpy(moved, values, (size_t) f->adapter->n * sizeof(float));
	for (int64_t i = at; i < at + n; i++)
		moved[i] = values[i] + (float) step * gradient[i];
	up = loss_at(f, moved);
	for (int64_t i = at; i < at + n; i++)
		moved[i] = values[i] - (float) step * gradient[i];
	down = loss_at(f, moved);
	free(moved);
	error = (up - down) / (2 * step * square) - 1;
	if (!(fabs(error) < 5e-3))
		fail_msg("%s: gradient off by %g", name, error);
}

static void
test_gradient_by_differences(void **state)
{
	fixture f;
	float *values;
	float *gradient;

	(void) state;
	open_fixture(&f, DROPOUT, false);
	values = floats(&f, f.adapter->values);
	loss_at(&f, NULL);
	gradient = floats(&f, f.t->lora->gradient);
	for (int slot = 0; slot < f.adapter->layers * FT_TARGET_COUNT; slot++)
	{
		int in;
		int out;

		if (f.adapter->a_at[slot] < 0)
			continue;
		ft_target_shape(&f.run.model->config, (ft_target) (slot % FT_TARGET_COUNT), &in, &out);
		check_matrix(&f, values, gradient, f.adapter->a_at[slot], (int64_t) in * f.adapter->rank,
					 ft_target_module((ft_target) (slot % FT_TARGET_COUNT)));
		check_matrix(&f, values, gradient, f.adapter->b_at[slot], (int64_t) out * f.adapter->rank,
					 ft_target_module((ft_target) (slot % FT_TARGET_COUNT)));
	}
	free(values);
	free(gradient);
	close_fixture(&f);
}

/* What a module of the first layer reads, from the residual stream: normed, and without what
 * ops.h's formula drops. */
static double
dropped_input(const fixture *f, const float *input, const float *norm, int64_t row, int column,
			  double rstd, int target)
{
	const ft_dropout *d = &f->t->lora->dropout;
	uint64_t stream = (uint64_t) target << 32 | (uint32_t) f->batch.document_of[row];
	uint64_t counter =
		(uint64_t) f->batch.positions[row] << 32 | (uint64_t) (column / 64 * 16 + column % 16);
	uint32_t words[4];

	ft_philox(d->seed, stream, counter, words);
	if (words[column / 16 % 4] < DROPOUT * 4294967296.0)
		return 0;
	return (double) input[row * f->run.model->config.hidden + column] * rstd *
		   (double) norm[column] / (1 - DROPOUT);
}

/* x·Aᵀ of q, k and v, which read the same x: a mask of its own for each. */
static void
test_what_is_dropped(void **state)
{
	fixture f;
	const ft_config *c;
	int hidden;
	int rank;
	int64_t rows;
	float *input;
	float *norm;
	float *u;
	float *values;
	double error = 0;
	double size = 0;

	(void) state;
	open_fixture(&f, DROPOUT, false);
	c = &f.run.model->config;
	hidden = c->hidden;
	rank = f.adapter->rank;
	rows = f.batch.tokens;
	must(ft_transformer_load(f.t, &f.batch));
	ft_lora_begin_dropout(f.t->lora, f.t->positions, f.t->document_of);
	must(ft_transformer_forward(f.t, &f.batch));
	ft_lora_end_dropout(f.t->lora);
	input = malloc((size_t) (rows * hidden) * sizeof(float));
	norm = malloc((size_t) hidden * sizeof(float));
	u = malloc((size_t) (rows * 3 * rank) * sizeof(float));
	values = floats(&f, f.adapter->values);
	must(f.t->ops->copy_to_host(f.t->stream, input, f.t->saved[0].input,
								(size_t) (rows * hidden) * sizeof(float)));
	must(f.t->ops->copy_to_host(f.t->stream, norm, f.run.model->layers[0].attention_norm,
								(size_t) hidden * sizeof(float)));
	must(f.t->ops->copy_to_host(f.t->stream, u, f.t->saved[0].u[FT_GROUP_QKV],
								(size_t) (rows * 3 * rank) * sizeof(float)));
	for (int64_t i = 0; i < rows; i++)
	{
		double squares = 0;
		double rstd;

		for (int j = 0; j < hidden; j++)
			squares += (double) input[i * hidden + j] * (double) input[i * hidden + j];
		rstd = 1 / sqrt(squares / hidden + (double) c->rms_eps);
		for (int k = 0; k < 3 * rank; k++)
		{
			const float *a = values + f.adapter->a_at[k / rank] + k % rank * hidden;
			double sum = 0;

			for (int j = 0; j < hidden; j++)
				sum += dropped_input(&f, input, norm, i, j, rstd, k / rank) * (double) a[j];
			error += pow(sum - (double) u[i * 3 * rank + k], 2);
			size += sum * sum;
		}
	}
	assert_true(size > 0);
	assert_true(sqrt(error / size) < 1e-5);
	free(input);
	free(norm);
	free(u);
	free(values);
	close_fixture(&f);
}

/* Not in evaluation; another seed or step drops something else; the same is the same to the bit. */
static void
test_when_it_drops(void **state)
{
	fixture none;
	fixture some;
	float *first;
	float *second;
	double loss;

	(void) state;
	open_fixture(&none, 0, false);
	open_fixture(&some, DROPOUT, false);
	assert_true(evaluation_of(&none) == evaluation_of(&some));
	assert_null(none.t->document_of);
	assert_null(none.t->lora->dropped);
	loss = loss_at(&some, NULL);
	first = floats(&some, some.t->lora->gradient);
	assert_true(fabs(loss / loss_at(&none, NULL) - 1) > 1e-6);
	assert_true(evaluation_of(&none) == evaluation_of(&some));
	assert_true(loss_at(&some, NULL) == loss);
	second = floats(&some, some.t->lora->gradient);
	assert_memory_equal(first, second, (size_t) some.adapter->n * sizeof(float));
	free(second);
	ft_lora_set_dropout(some.t->lora, 42, 2);
	assert_true(loss_at(&some, NULL) != loss);
	ft_lora_set_dropout(some.t->lora, 43, 1);
	assert_true(loss_at(&some, NULL) != loss);
	ft_lora_set_dropout(some.t->lora, 42, 1);
	assert_true(loss_at(&some, NULL) == loss);
	free(first);
	close_fixture(&none);
	close_fixture(&some);
}

/* Hardly any dropout is no dropout: what is kept is computed as without. */
static void
test_little_is_none(void **state)
{
	fixture none;
	fixture little;
	float *expected;
	float *gradient;

	(void) state;
	open_fixture(&none, 0, false);
	open_fixture(&little, 1e-11, false);
	assert_true(fabs(loss_at(&little, NULL) / loss_at(&none, NULL) - 1) < 1e-6);
	expected = floats(&none, none.t->lora->gradient);
	gradient = floats(&little, little.t->lora->gradient);
	assert_true(relative_error(gradient, expected, none.adapter->n) < 1e-6);
	free(expected);
	free(gradient);
	close_fixture(&none);
	close_fixture(&little);
}

/* Products in 16 bits drop the same. */
static void
test_bf16_drops_the_same(void **state)
{
	fixture wide;
	fixture narrow;
	float *expected;
	float *gradient;

	(void) state;
	open_fixture(&narrow, DROPOUT, true);
	if (narrow.run.model->compute != FT_BF16)
	{
		close_fixture(&narrow);
		print_message("skip: this processor has neither 16-bit products nor AVX-512\n");
		skip();
	}
	open_fixture(&wide, DROPOUT, false);
	assert_true(fabs(loss_at(&narrow, NULL) / loss_at(&wide, NULL) - 1) < 5e-3);
	expected = floats(&wide, wide.t->lora->gradient);
	gradient = floats(&narrow, narrow.t->lora->gradient);
	/* with other masks it is above 0.3 */
	assert_true(relative_error(gradient, expected, wide.adapter->n) < 6e-2);
	ft_lora_set_dropout(wide.t->lora, 43, 1);
	loss_at(&wide, NULL);
	free(expected);
	expected = floats(&wide, wide.t->lora->gradient);
	assert_true(relative_error(gradient, expected, wide.adapter->n) > 0.12);
	free(expected);
	free(gradient);
	close_fixture(&wide);
	close_fixture(&narrow);
}

/* --- whole steps --- */

typedef struct table
{
	tiny_run run;
	char *directory;
	ft_dataset *dataset;
} table;

/* Rows that begin alike, so that a beginning would be shared without dropout. */
static void
open_table(table *f, int threads)
{
	ft_dataset_options options = {.max_length = 64, .validation_fraction = 0.2, .seed = 1};
	ft_text text = {0};

	tiny_open(&f->run, "tied", threads);
	f->directory = tiny_directory();
	for (int i = 0; i < 20; i++)
		must(ft_text_printf(&text,
							"{\"prompt\": \"the same beginning and %d\", \"completion\": "
							"\"%.*s the %d\"}\n",
							i, i % 5, "uvwxyz", i * i));
	f->dataset = dataset_of(&f->run, f->directory, text.data, NULL, &options);
	ft_text_free(&text);
}

static void
close_table(table *f)
{
	ft_dataset_close(f->dataset);
	tiny_remove(f->directory);
	tiny_close(&f->run);
	free(f->directory);
}

static ft_trainer *
trainer_of(table *f, ft_options *o, int64_t capacity)
{
	ft_adapter *adapter;
	ft_trainer *t;

	o->lora_r = 4;
	o->lora_alpha = 8;
	o->learning_rate = 1e-2;
	o->batch_size = 128;
	o->max_epochs = 2;
	must(ft_adapter_create(f->run.model, o->lora_r, (float) o->lora_alpha, false, 127, &adapter));
	must(ft_adapter_init(adapter, &f->run.model->config, 7));
	adapter->dropout = o->lora_dropout;
	must(ft_trainer_create(f->run.model, f->dataset, o, adapter, capacity, &t));
	return t;
}

#define STEPS 4

/* Accumulation, packing, small batches and threads leave loss and gradient norm as they are. */
static void
test_nothing_else_changes_the_masks(void **state)
{
	static const struct
	{
		int accumulation;
		bool packing;
		int64_t capacity;
		int threads;
	} ways[] = {{0, true, 256, 2},  {1, true, 256, 2}, {2, true, 256, 2}, {4, true, 256, 2},
				{0, false, 256, 2}, {0, true, 64, 2},  {0, true, 256, 1}, {0, true, 256, 3}};
	double loss[STEPS];
	double norm[STEPS];

	(void) state;
	for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
	{
		ft_options o;
		table f;
		ft_trainer *t;

		must(ft_options_read(NULL, &o));
		o.lora_dropout = DROPOUT;
		o.gradient_accumulation_steps = ways[i].accumulation;
		o.packing = ways[i].packing;
		open_table(&f, ways[i].threads);
		t = trainer_of(&f, &o, ways[i].capacity);
		for (int s = 0; s < STEPS; s++)
		{
			ft_step_report report;

			must(ft_trainer_step(t, &report));
			if (i == 0)
			{
				loss[s] = report.loss;
				norm[s] = report.grad_norm;
			}
			assert_true(fabs(report.loss / loss[s] - 1) < 1e-5);
			assert_true(fabs(report.grad_norm / norm[s] - 1) < 3e-5);
		}
		ft_trainer_free(t);
		close_table(&f);
	}
}

/* A trainer that goes on behind step 2 takes step 3 as one that was there all the time. */
static void
test_resume(void **state)
{
	ft_options o;
	table f;
	ft_trainer *whole;
	ft_trainer *second;
	ft_step_report report;
	ft_step_report again;

	(void) state;
	must(ft_options_read(NULL, &o));
	o.lora_dropout = DROPOUT;
	open_table(&f, 2);
	whole = trainer_of(&f, &o, 256);
	second = trainer_of(&f, &o, 256);
	must(ft_trainer_step(whole, &report));
	must(ft_trainer_step(whole, &report));
	must(f.run.ops->copy(second->transformer->stream, second->adapter->values,
						 whole->adapter->values, (size_t) whole->adapter->n * sizeof(float)));
	must(ft_trainer_read_moments(whole));
	memcpy(second->moments.m, whole->moments.m, (size_t) whole->moments.n * sizeof(float));
	memcpy(second->moments.v, whole->moments.v, (size_t) whole->moments.n * sizeof(float));
	must(ft_trainer_resume(second, &whole->state));
	must(ft_transformer_adapter_changed(second->transformer));
	must(ft_trainer_step(whole, &report));
	must(ft_trainer_step(second, &again));
	assert_true(report.loss == again.loss && report.grad_norm == again.grad_norm);
	/* an evaluation in between neither drops nor changes what follows */
	must(ft_trainer_evaluate(second));
	assert_false(second->batch.apart);
	must(ft_trainer_step(whole, &report));
	must(ft_trainer_step(second, &again));
	assert_true(report.loss == again.loss && report.grad_norm == again.grad_norm);
	ft_trainer_free(whole);
	ft_trainer_free(second);
	close_table(&f);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_gradient_by_differences),
		cmocka_unit_test(test_what_is_dropped),
		cmocka_unit_test(test_when_it_drops),
		cmocka_unit_test(test_little_is_none),
		cmocka_unit_test(test_bf16_drops_the_same),
		cmocka_unit_test(test_nothing_else_changes_the_masks),
		cmocka_unit_test(test_resume),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
