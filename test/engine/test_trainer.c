/*
 * test_trainer.c: optimizer steps over a dataset: accumulation, weights and
 * labels of rows, repeatability, resuming, evaluation, failures, and the schedule.
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
	ft_dataset_options options = {.max_length = 64, .validation_fraction = 0.2, .seed = 1};
	ft_text text = {0};
	fixture *f;

	must(ft_alloc((void **) &f, 1, sizeof *f));
	tiny_open(&f->run, "tied", 2);
	f->directory = tiny_directory();
	for (int i = 0; i < 20; i++)
		must(ft_text_printf(&text,
							"{\"prompt\": \"%d and %.*s\", \"completion\": \"%.*s the %d\"}\n", i,
							i % 7, "abcdefgh", i % 5, "uvwxyz", i * i));
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
	o.batch_size = 128;
	o.max_epochs = 2;
	o.max_seq_length = 64;
	o.seed = 7;
	return o;
}

static ft_trainer *
trainer_of(fixture *f, const ft_options *o, int64_t capacity)
{
	ft_adapter *adapter;
	ft_trainer *t;

	must(ft_adapter_create(f->run.model, o->lora_r, (float) o->lora_alpha, o->use_rslora,
						   o->lora_target_modules, &adapter));
	must(ft_adapter_init(adapter, &f->run.model->config, o->seed));
	must(ft_trainer_create(f->run.model, f->dataset, o, adapter, capacity, &t));
	return t;
}

static float *
values_of(ft_trainer *t)
{
	float *values;

	must(ft_alloc((void **) &values, (size_t) t->adapter->n, sizeof(float)));
	must(t->model->ops->copy_to_host(t->transformer->stream, values, t->adapter->values,
									 (size_t) t->adapter->n * sizeof(float)));
	return values;
}

static void
steps(ft_trainer *t, int n, ft_step_report *last)
{
	for (int i = 0; i < n; i++)
		must(ft_trainer_step(t, last));
}

/* Loss and gradient norm of the first three steps, whatever the batches of a step are. */
static void
test_accumulation_changes_nothing(void **state)
{
	fixture *f = *state;
	const int accumulation[] = {0, 1, 2, 4, 0};
	double loss[5][3];
	double norm[5][3];

	for (int i = 0; i < 5; i++)
	{
		ft_options o = default_options();
		ft_trainer *t;

		o.gradient_accumulation_steps = accumulation[i];
		o.packing = i != 4;
		t = trainer_of(f, &o, 256);
		for (int s = 0; s < 3; s++)
		{
			ft_step_report report;

			must(ft_trainer_step(t, &report));
			loss[i][s] = report.loss;
			norm[i][s] = report.grad_norm;
			assert_true(fabs(loss[i][s] / loss[0][s] - 1) < 1e-5);
			assert_true(fabs(norm[i][s] / norm[0][s] - 1) < 1e-5);
		}
		ft_trainer_free(t);
	}
}

static void
test_small_memory_changes_nothing(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	ft_trainer *wide = trainer_of(f, &o, 512);
	ft_trainer *narrow = trainer_of(f, &o, f->dataset->max_length);
	ft_step_report a;
	ft_step_report b;

	for (int i = 0; i < 3; i++)
	{
		must(ft_trainer_step(wide, &a));
		must(ft_trainer_step(narrow, &b));
		assert_int_equal(a.tokens, b.tokens);
		assert_int_equal(a.trained, b.trained);
		assert_true(fabs(a.grad_norm / b.grad_norm - 1) < 1e-5);
	}
	must(ft_trainer_evaluate(wide));
	must(ft_trainer_evaluate(narrow));
	assert_true(fabs(wide->state.validation_loss / narrow->state.validation_loss - 1) < 1e-5);
	ft_trainer_free(wide);
	ft_trainer_free(narrow);
}

static void
test_same_seed_same_bytes(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	ft_options other = default_options();
	float *values[3];
	int64_t n = 0;

	other.seed = 8;
	for (int i = 0; i < 3; i++)
	{
		ft_trainer *t = trainer_of(f, i < 2 ? &o : &other, 256);
		ft_step_report report;

		steps(t, (int) t->total_steps, &report);
		values[i] = values_of(t);
		n = t->adapter->n;
		ft_trainer_free(t);
	}
	assert_memory_equal(values[0], values[1], (size_t) n * sizeof(float));
	assert_memory_not_equal(values[0], values[2], (size_t) n * sizeof(float));
	for (int i = 0; i < 3; i++)
		free(values[i]);
}

/* Save after each step, go on in a new trainer from there: the end is the same to the bit. */
static void
test_resume_at_every_step(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	ft_trainer *unbroken = trainer_of(f, &o, 256);
	ft_step_report report;
	float *expected;

	steps(unbroken, (int) unbroken->total_steps, &report);
	expected = values_of(unbroken);
	for (int64_t at = 1; at < unbroken->total_steps; at++)
	{
		ft_trainer *first = trainer_of(f, &o, 256);
		ft_trainer *second = trainer_of(f, &o, 256);
		ft_adapter *saved;
		ft_adapter *best;
		ft_run_state restored;
		float *values;

		steps(first, (int) at, &report);
		must(ft_trainer_read_moments(first));
		must(ft_checkpoint_save(f->directory, "this run", &first->state, first->adapter, NULL,
								&f->run.model->config, "tiny", &first->moments));
		ft_trainer_free(first);
		must(ft_checkpoint_load(f->directory, "this run", f->run.model, &restored, &saved, &best,
								&second->moments));
		assert_null(best);
		assert_int_equal(restored.step, at);
		must(f->run.ops->copy(second->transformer->stream, second->adapter->values, saved->values,
							  (size_t) saved->n * sizeof(float)));
		must(ft_trainer_resume(second, &restored));
		must(ft_transformer_adapter_changed(second->transformer));
		ft_adapter_free(saved);
		steps(second, (int) (second->total_steps - at), &report);
		values = values_of(second);
		assert_memory_equal(values, expected, (size_t) second->adapter->n * sizeof(float));
		assert_int_equal(second->state.tokens, unbroken->state.tokens);
		assert_int_equal(second->state.trained, unbroken->state.trained);
		free(values);
		ft_trainer_free(second);
	}
	free(expected);
	ft_trainer_free(unbroken);
}

#define CURVE_STEPS 6

/* Loss and gradient norm of some steps, each over all the lines of a JSONL text. */
typedef struct curve
{
	double loss[CURVE_STEPS];
	double norm[CURVE_STEPS];
} curve;

static curve
curve_of(fixture *f, const char *lines)
{
	ft_dataset_options data = {.max_length = 64};
	ft_options o = default_options();
	fixture own = {.run = f->run, .directory = tiny_directory()};
	ft_trainer *t;
	curve c;

	o.batch_size = 100000;
	o.max_epochs = CURVE_STEPS;
	own.dataset = dataset_of(&own.run, own.directory, lines, NULL, &data);
	t = trainer_of(&own, &o, 512);
	assert_int_equal(t->total_steps, CURVE_STEPS);
	for (int i = 0; i < CURVE_STEPS; i++)
	{
		ft_step_report report;

		must(ft_trainer_step(t, &report));
		c.loss[i] = report.loss;
		c.norm[i] = report.grad_norm;
	}
	ft_trainer_free(t);
	ft_dataset_close(own.dataset);
	tiny_remove(own.directory);
	free(own.directory);
	return c;
}

static bool
same_curve(const curve *a, const curve *b, double tolerance)
{
	for (int i = 0; i < CURVE_STEPS; i++)
	{
		if (!(fabs(a->loss[i] / b->loss[i] - 1) <= tolerance) ||
			!(fabs(a->norm[i] / b->norm[i] - 1) <= tolerance))
			return false;
	}
	return true;
}

#define ROW(prompt, completion, rest) \
	"{\"prompt\": \"" prompt "\", \"completion\": \"" completion "\"" rest "}\n"

/* The loss is Σ weight · loss / Σ weight: a weight of 2 is the row twice, one for all is none. */
static void
test_row_weights(void **state)
{
	fixture *f = *state;
	curve once = curve_of(f, ROW("a", "the 1", "") ROW("b", "xyz", ""));
	curve twice = curve_of(f, ROW("a", "the 1", "") ROW("a", "the 1", "") ROW("b", "xyz", ""));
	curve weighed = curve_of(f, ROW("a", "the 1", ", \"weight\": 2") ROW("b", "xyz", ""));
	curve all = curve_of(f, ROW("a", "the 1", ", \"weight\": 1e12")
								ROW("b", "xyz", ", \"weight\": 1000000000000"));
	curve small = curve_of(f, ROW("a", "the 1", ", \"weight\": 2e-12")
								  ROW("b", "xyz", ", \"weight\": 1e-12"));
	curve none = curve_of(f, ROW("a", "the 1", "") ROW("c", "another", ", \"weight\": 0")
								 ROW("b", "xyz", ""));

	assert_true(same_curve(&weighed, &twice, 1e-5));
	assert_false(same_curve(&weighed, &once, 1e-3));
	assert_true(same_curve(&all, &once, 1e-5));
	assert_true(same_curve(&small, &weighed, 1e-5));
	assert_true(same_curve(&none, &once, 0));
}

/* The weight of a turn is that of its tokens among the others'. */
static void
test_turn_weights(void **state)
{
	fixture *f = *state;
	const char *both = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": "
					   "\"assistant\", \"content\": \"one\", \"weight\": 0}, {\"role\": \"user\", "
					   "\"content\": \"b\"}, {\"role\": \"assistant\", \"content\": \"two\"}]}\n";
	const char *off = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": "
					  "\"assistant\", \"content\": \"one\", \"weight\": 0}, {\"role\": \"user\", "
					  "\"content\": \"b\"}, {\"role\": \"assistant\", \"content\": \"two\", "
					  "\"weight\": 0.5}]}\n";
	const char *on = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": "
					 "\"assistant\", \"content\": \"one\"}, {\"role\": \"user\", "
					 "\"content\": \"b\"}, {\"role\": \"assistant\", \"content\": \"two\"}]}\n";
	curve c[3] = {curve_of(f, both), curve_of(f, off), curve_of(f, on)};

	assert_true(same_curve(&c[0], &c[1], 1e-5));
	assert_false(same_curve(&c[0], &c[2], 1e-3));
}

/* What stands in a hidden place, and in place of a label's token, is never read. */
static void
test_tokenised_rows(void **state)
{
	fixture *f = *state;
	curve bare =
		curve_of(f, "{\"input_ids\": [70, 71, 72, 73], \"labels\": [-100, 71, -100, 73]}\n");
	curve padded =
		curve_of(f, "{\"input_ids\": [9, 9, 70, 71, 72, 73, 8], \"labels\": [9, 9, 70, 71, "
					"-100, 73, 8], \"attention_mask\": [0, 0, 1, 1, 1, 1, 0]}\n");
	curve relabelled =
		curve_of(f, "{\"input_ids\": [70, 71, 72, 99], \"labels\": [-100, 71, -100, 73]}\n");
	curve other =
		curve_of(f, "{\"input_ids\": [70, 71, 72, 99], \"labels\": [-100, 71, -100, 99]}\n");
	curve whole = curve_of(f, "{\"input_ids\": [70, 71, 72, 73]}\n");

	assert_true(same_curve(&bare, &padded, 0));
	assert_true(same_curve(&bare, &relabelled, 0));
	assert_false(same_curve(&bare, &other, 1e-3));
	assert_false(same_curve(&bare, &whole, 1e-3));
}

static void
test_training_learns(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	ft_trainer *t;
	ft_step_report report;
	double first;

	o.max_epochs = 20;
	t = trainer_of(f, &o, 256);
	must(ft_trainer_step(t, &report));
	first = report.loss;
	steps(t, (int) t->total_steps - 1, &report);
	assert_true(report.loss < first / 2);
	must(ft_trainer_evaluate(t));
	assert_true(isfinite(t->state.validation_loss));
	assert_true(t->state.validation_accuracy >= 0 && t->state.validation_accuracy <= 1);
	assert_true(t->state.training_loss < first);
	ft_trainer_free(t);
}

static void
test_non_finite_fails(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	ft_trainer *t = trainer_of(f, &o, 256);
	ft_step_report report;
	float *before;
	float *after;
	float bad = INFINITY;

	must(f->run.ops->copy_to_device(t->transformer->stream,
									t->adapter->values + t->adapter->b_at[FT_DOWN_PROJ], &bad,
									sizeof bad));
	must(ft_transformer_adapter_changed(t->transformer));
	before = values_of(t);
	assert_int_equal(ft_trainer_step(t, &report), FT_NON_FINITE);
	assert_non_null(strstr(ft_error_message(), "step 1"));
	assert_non_null(strstr(ft_error_message(), "learning rate"));
	after = values_of(t);
	assert_memory_equal(before, after, (size_t) t->adapter->n * sizeof(float));
	assert_int_equal(t->state.step, 0);
	free(before);
	free(after);
	ft_trainer_free(t);
}

static ft_status
cancel(void *context)
{
	int *calls = context;

	return --*calls < 0 ? ft_fail(FT_CANCELLED, "enough") : FT_OK;
}

static void
test_tick_ends_a_step(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	ft_trainer *t = trainer_of(f, &o, 256);
	ft_step_report report;
	int calls = 3;

	ft_trainer_set_tick(t, cancel, &calls);
	assert_int_equal(ft_trainer_step(t, &report), FT_CANCELLED);
	assert_int_equal(t->state.step, 0);
	ft_trainer_free(t);
}

static void
test_capacity(void **state)
{
	fixture *f = *state;
	ft_options o = default_options();
	ft_adapter *adapter;
	int64_t capacity;
	int64_t accumulated;

	must(ft_adapter_create(f->run.model, 4, 8, false, 127, &adapter));
	must(ft_trainer_choose_capacity(f->run.model, adapter, f->dataset, &o, &capacity));
	assert_true(capacity >= o.batch_size && capacity >= f->dataset->max_length);
	o.gradient_accumulation_steps = 4;
	must(ft_trainer_choose_capacity(f->run.model, adapter, f->dataset, &o, &accumulated));
	assert_true(accumulated < capacity && accumulated >= f->dataset->max_length);
	ft_adapter_free(adapter);
}

static void
test_learning_rate(void **state)
{
	ft_options o = default_options();

	(void) state;
	o.learning_rate = 1;
	o.warmup_ratio = 0.1;
	o.min_lr_ratio = 0.2;
	assert_true(fabs(ft_learning_rate(&o, 1, 100) - 0.1) < 1e-12);
	assert_true(fabs(ft_learning_rate(&o, 10, 100) - 1) < 1e-12);
	assert_true(fabs(ft_learning_rate(&o, 11, 100) - 1) < 1e-12);
	assert_true(fabs(ft_learning_rate(&o, 56, 100) - 0.6) < 1e-12);
	assert_true(ft_learning_rate(&o, 100, 100) > 0.2);
	o.lr_scheduler = FT_LINEAR;
	assert_true(fabs(ft_learning_rate(&o, 56, 100) - 0.6) < 1e-12);
	o.lr_scheduler = FT_CONSTANT;
	assert_true(ft_learning_rate(&o, 100, 100) == 1);
	o.warmup_ratio = 1;
	assert_true(ft_learning_rate(&o, 100, 100) == 1);
	o.warmup_ratio = 0;
	assert_true(ft_learning_rate(&o, 1, 1) == 1);
}

static int
count_evaluations(const ft_options *o, int64_t total, int64_t *least_distance)
{
	int64_t last = 0;
	int n = 0;

	*least_distance = total;
	for (int64_t step = 1; step <= total; step++)
	{
		if (!ft_evaluation_due(o, step, total))
			continue;
		if (step - last < *least_distance)
			*least_distance = step - last;
		last = step;
		n++;
	}
	assert_true(last == total);
	return n;
}

static void
test_evaluations(void **state)
{
	ft_options o = default_options();
	int64_t distance;

	(void) state;
	assert_true(ft_evaluation_due(&o, 0, 5));
	for (int64_t total = 1; total < 400; total++)
	{
		int n = count_evaluations(&o, total, &distance);

		assert_true(n <= 10);
		assert_true(distance >= 10 || total < 10);
	}
	assert_int_equal(count_evaluations(&o, 200, &distance), 10);
	o.n_evals = 3;
	assert_int_equal(count_evaluations(&o, 100, &distance), 3);
	o.n_evals = 50;
	assert_int_equal(count_evaluations(&o, 20, &distance), 20);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_accumulation_changes_nothing),
		cmocka_unit_test(test_small_memory_changes_nothing),
		cmocka_unit_test(test_same_seed_same_bytes),
		cmocka_unit_test(test_resume_at_every_step),
		cmocka_unit_test(test_row_weights),
		cmocka_unit_test(test_turn_weights),
		cmocka_unit_test(test_tokenised_rows),
		cmocka_unit_test(test_training_learns),
		cmocka_unit_test(test_non_finite_fails),
		cmocka_unit_test(test_tick_ends_a_step),
		cmocka_unit_test(test_capacity),
		cmocka_unit_test(test_learning_rate),
		cmocka_unit_test(test_evaluations),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
