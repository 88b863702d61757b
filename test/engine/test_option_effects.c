/*
 * test_option_effects.c: each option of training does what it says, to the
 * number: seen in steps, rates, gradients, moments and values, against what a
 * formula makes of them.
 */
#include "training.h"

#include "files.h"
#include "tiny_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct fixture
{
	tiny_run run;
	char *directory;
	ft_dataset *dataset;
} fixture;

static int
setup(void **state)
{
	ft_dataset_options options = {.max_length = 64, .validation_fraction = 0, .seed = 1};
	ft_text text = {0};
	fixture *f;

	must(ft_alloc((void **) &f, 1, sizeof *f));
	tiny_open(&f->run, "tied", 1);
	f->directory = tiny_directory();
	for (int i = 0; i < 16; i++)
		must(ft_text_printf(&text, "{\"prompt\": \"%d and %.*s\", \"completion\": \"the %d\"}\n", i,
							i % 7, "abcdefgh", i * i));
	f->dataset = dataset_of(&f->run, f->directory, text.data, NULL, &options);
	ft_text_free(&text);
	*state = f;
	return 0;
}

static int
teardown(void **state)
{
	fixture *f = *state;

	ft_dataset_close(f->dataset);
	tiny_remove(f->directory);
	tiny_close(&f->run);
	free(f->directory);
	free(f);
	return 0;
}

static ft_options
default_options(void)
{
	ft_options o;

	must(ft_options_read(NULL, &o));
	o.lora_r = 4;
	o.lora_alpha = 8;
	o.learning_rate = 1e-2;
	o.batch_size = 100;
	o.max_epochs = 2;
	o.max_grad_norm = 1e6;
	return o;
}

static ft_trainer *
trainer_of(fixture *f, const ft_options *o)
{
	ft_adapter *adapter;
	ft_trainer *t;

	must(ft_adapter_create(f->run.model, o->lora_r, (float) o->lora_alpha, o->use_rslora,
						   o->lora_target_modules, &adapter));
	must(ft_adapter_init(adapter, &f->run.model->config, o->seed));
	must(ft_trainer_create(f->run.model, f->dataset, o, adapter, 512, &t));
	return t;
}

/* What one step makes. */
typedef struct outcome
{
	ft_step_report report;
	double moment;  /* norm of the first moments after it */
	double changed; /* largest change of a value in a B */
	double a_ratio; /* of the values of an A after it to those before, if it is one for all */
	bool a_same;    /* is it? */
	int64_t values;
	unsigned targets;
	int64_t total_steps;
} outcome;

static void
read_values(ft_trainer *t, float *values)
{
	must(t->model->ops->copy_to_host(t->transformer->stream, values, t->adapter->values,
									 (size_t) t->adapter->n * sizeof(float)));
}

static void
compare_values(const ft_trainer *t, const float *before, const float *after, outcome *o)
{
	const ft_config *c = &t->model->config;

	o->a_same = true;
	for (int slot = 0; slot < t->adapter->layers * FT_TARGET_COUNT; slot++)
	{
		int in;
		int out;

		if (t->adapter->a_at[slot] < 0)
			continue;
		ft_target_shape(c, (ft_target) (slot % FT_TARGET_COUNT), &in, &out);
		for (int64_t i = 0; i < (int64_t) in * t->adapter->rank; i++)
		{
			double ratio = (double) after[t->adapter->a_at[slot] + i] /
						   (double) before[t->adapter->a_at[slot] + i];

			if (o->a_ratio == 0)
				o->a_ratio = ratio;
			o->a_same &= fabs(ratio / o->a_ratio - 1) < 1e-6;
		}
		for (int64_t i = 0; i < (int64_t) out * t->adapter->rank; i++)
			o->changed = fmax(o->changed, fabs((double) after[t->adapter->b_at[slot] + i] -
											   (double) before[t->adapter->b_at[slot] + i]));
	}
}

static outcome
first_step(fixture *f, const ft_options *options)
{
	ft_trainer *t = trainer_of(f, options);
	outcome o = {
		.values = t->adapter->n, .targets = t->adapter->targets, .total_steps = t->total_steps};
	float *before;
	float *after;

	must(ft_alloc((void **) &before, (size_t) t->adapter->n, sizeof(float)));
	must(ft_alloc((void **) &after, (size_t) t->adapter->n, sizeof(float)));
	read_values(t, before);
	must(ft_trainer_step(t, &o.report));
	read_values(t, after);
	compare_values(t, before, after, &o);
	must(ft_trainer_read_moments(t));
	for (int64_t i = 0; i < t->moments.n; i++)
		o.moment += (double) t->moments.m[i] * (double) t->moments.m[i];
	o.moment = sqrt(o.moment);
	free(before);
	free(after);
	ft_trainer_free(t);
	return o;
}

static bool
near(double a, double b)
{
	return fabs(a / b - 1) < 1e-4;
}

/* B is zero at first, so that its gradient is the scale's multiple, and A has none. */
static void
test_scale(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	outcome base = first_step(f, &o);
	outcome other;

	o.lora_alpha = 24;
	other = first_step(f, &o);
	assert_true(near(other.report.grad_norm, 3 * base.report.grad_norm));
	assert_true(near(other.report.loss, base.report.loss));
	o = default_options();
	o.use_rslora = true;
	other = first_step(f, &o);
	/* 8 / √4 for 8 / 4 */
	assert_true(near(other.report.grad_norm, 2 * base.report.grad_norm));
}

static void
test_shape(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	outcome base = first_step(f, &o);
	outcome other;

	o.lora_r = 16;
	other = first_step(f, &o);
	/* matrices begin on whole lines */
	assert_in_range(other.values, 4 * base.values - 4096, 4 * base.values);
	o = default_options();
	o.lora_target_modules = 1u << FT_Q_PROJ | 1u << FT_V_PROJ;
	other = first_step(f, &o);
	assert_int_equal(other.targets, 5);
	assert_true(other.values < base.values / 2);
	assert_true(other.report.grad_norm < base.report.grad_norm);
}

/* Adam's first update has the size of the learning rate wherever there is a gradient, and that of
 * A, which has none, is weight decay alone. */
static void
test_rate_and_decay(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	outcome other;

	o.lr_scheduler = FT_CONSTANT;
	o.warmup_ratio = 0;
	other = first_step(f, &o);
	assert_true(near(other.changed, 1e-2));
	assert_true(other.a_same && other.a_ratio == 1);
	o.learning_rate = 3e-3;
	other = first_step(f, &o);
	assert_true(near(other.changed, 3e-3));
	o.weight_decay = 0.5;
	other = first_step(f, &o);
	assert_true(other.a_same && fabs(other.a_ratio - (1 - 3e-3 * 0.5)) < 1e-6);
}

/* The norm that is told is the one before clipping; the first moments are a tenth of what is left.
 */
static void
test_clipping(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	outcome base = first_step(f, &o);
	outcome other;

	assert_true(near(base.moment, 0.1 * base.report.grad_norm));
	o.max_grad_norm = base.report.grad_norm / 3;
	other = first_step(f, &o);
	assert_true(near(other.report.grad_norm, base.report.grad_norm));
	assert_true(near(other.moment, 0.1 * o.max_grad_norm));
	o.max_grad_norm = base.report.grad_norm * 3;
	other = first_step(f, &o);
	assert_true(near(other.moment, base.moment));
}

/* The rates of all steps, by each scheduler's formula. */
static void
test_schedule(void **state)
{
	fixture *f = *state;

	for (int scheduler = FT_COSINE; scheduler <= FT_CONSTANT; scheduler++)
	{
		ft_options o = default_options();
		ft_trainer *t;
		int64_t warmup;

		o.lr_scheduler = (ft_scheduler) scheduler;
		o.warmup_ratio = 0.25;
		o.min_lr_ratio = 0.1;
		o.max_epochs = 3;
		t = trainer_of(f, &o);
		warmup = (int64_t) ceil(0.25 * (double) t->total_steps);
		assert_true(warmup >= 2 && t->total_steps >= 2 * warmup);
		for (int64_t step = 1; step <= t->total_steps; step++)
		{
			double x = (double) (step - 1 - warmup) / (double) (t->total_steps - warmup);
			double share = scheduler == FT_CONSTANT ? 1
						   : scheduler == FT_LINEAR ? 1 - 0.9 * x
													: 0.1 + 0.9 * (1 + cos(M_PI * x)) / 2;
			ft_step_report report;

			if (step <= warmup)
				share = (double) step / (double) warmup;
			must(ft_trainer_step(t, &report));
			assert_true(near(report.learning_rate, share * o.learning_rate));
		}
		ft_trainer_free(t);
	}
}

/* Every row once an epoch, in steps of about the batch's size. */
static void
test_steps(void **state)
{
	fixture *f = *state;
	int64_t longest = f->dataset->max_length;

	for (int64_t batch = 40; batch <= 640; batch *= 2)
	{
		ft_options o = default_options();
		ft_trainer *t;
		int64_t tokens = 0;
		int64_t trained = 0;

		o.batch_size = batch;
		o.max_epochs = 3;
		t = trainer_of(f, &o);
		assert_int_equal(t->steps_per_epoch,
						 ft_epoch_steps(f->dataset->train, f->dataset->n_train, batch));
		assert_int_equal(t->total_steps, 3 * t->steps_per_epoch);
		for (int64_t step = 1; step <= t->total_steps; step++)
		{
			ft_step_report report;

			must(ft_trainer_step(t, &report));
			assert_true(report.tokens <= f->dataset->tokens / t->steps_per_epoch + longest);
			tokens += report.tokens;
			trained += report.trained;
			if (step % t->steps_per_epoch == 0)
				assert_int_equal(tokens, f->dataset->tokens * (step / t->steps_per_epoch));
		}
		assert_int_equal(trained, 3 * f->dataset->trained);
		assert_int_equal(t->state.tokens, tokens);
		assert_int_equal(t->state.trained, trained);
		ft_trainer_free(t);
	}
	{
		ft_options o = default_options();
		outcome few;

		o.max_steps = 3;
		few = first_step(f, &o);
		assert_int_equal(few.total_steps, 3);
		o.max_steps = 1000;
		o.max_epochs = 1;
		few = first_step(f, &o);
		assert_true(few.total_steps < 1000);
	}
}

/* How a step is cut: documents in a batch. */
static void
test_batches(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	ft_step_report report;
	ft_trainer *t = trainer_of(f, &o);
	int packed;

	must(ft_trainer_step(t, &report));
	packed = t->batch.n_documents;
	assert_true(packed >= 3);
	ft_trainer_free(t);
	o.packing = false;
	t = trainer_of(f, &o);
	must(ft_trainer_step(t, &report));
	assert_int_equal(t->batch.n_documents, 1);
	ft_trainer_free(t);
	o.packing = true;
	o.gradient_accumulation_steps = 2;
	t = trainer_of(f, &o);
	must(ft_trainer_step(t, &report));
	assert_in_range(t->batch.n_documents, 1, packed - 1);
	ft_trainer_free(t);
}

/* A row of only masked tokens is read and not trained on: the steps are the same to the bit. */
static void
test_masked_row_changes_nothing(void **state)
{
	static const char *const texts[2] = {
		"{\"input_ids\": [70, 71, 72, 73]}\n{\"input_ids\": [80, 71, 90]}\n",
		"{\"input_ids\": [70, 71, 72, 73]}\n{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, "
		"-100]}\n{\"input_ids\": [80, 71, 90]}\n"};
	ft_dataset_options data = {.max_length = 64};
	fixture *f = *state;
	ft_options o = default_options();
	ft_step_report reports[2][4];

	o.batch_size = 100000;
	o.max_epochs = 4;
	for (int i = 0; i < 2; i++)
	{
		fixture own = {.run = f->run, .directory = tiny_directory()};
		ft_trainer *t;

		own.dataset = dataset_of(&own.run, own.directory, texts[i], NULL, &data);
		assert_int_equal(own.dataset->rows_read, 2 + i);
		assert_int_equal(own.dataset->rows_used, 2);
		t = trainer_of(&own, &o);
		for (int s = 0; s < 4; s++)
			must(ft_trainer_step(t, &reports[i][s]));
		ft_trainer_free(t);
		ft_dataset_close(own.dataset);
		tiny_remove(own.directory);
		free(own.directory);
	}
	for (int s = 0; s < 4; s++)
	{
		assert_true(reports[0][s].loss == reports[1][s].loss);
		assert_true(reports[0][s].grad_norm == reports[1][s].grad_norm);
		assert_int_equal(reports[0][s].tokens, reports[1][s].tokens);
	}
}

/* Another number of threads: the same loss but for rounding, the same steps. */
static void
test_threads(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	double loss[3];

	for (int threads = 1; threads <= 3; threads++)
	{
		fixture own = {.dataset = f->dataset};
		ft_step_report report;
		ft_trainer *t;

		tiny_open(&own.run, "tied", threads);
		t = trainer_of(&own, &o);
		for (int64_t step = 0; step < t->total_steps; step++)
			must(ft_trainer_step(t, &report));
		loss[threads - 1] = report.loss;
		ft_trainer_free(t);
		tiny_close(&own.run);
	}
	assert_true(fabs(loss[1] / loss[0] - 1) < 1e-3);
	assert_true(fabs(loss[2] / loss[0] - 1) < 1e-3);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_scale),          cmocka_unit_test(test_shape),
		cmocka_unit_test(test_rate_and_decay), cmocka_unit_test(test_clipping),
		cmocka_unit_test(test_schedule),       cmocka_unit_test(test_steps),
		cmocka_unit_test(test_batches),        cmocka_unit_test(test_masked_row_changes_nothing),
		cmocka_unit_test(test_threads),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
