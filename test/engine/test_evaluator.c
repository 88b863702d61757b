/*
 * test_evaluator.c: what a model makes of documents, whatever the batches are.
 */
#include "evaluator.h"

#include "files.h"
#include "tiny_model.h"
#include "training.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ROWS 24

typedef struct fixture
{
	tiny_run run;
	char *directory;
	ft_dataset *dataset;
	ft_options options;
	ft_trainer *trainer;
} fixture;

/* A model that knows some of its rows. */
static int
setup(void **state)
{
	ft_dataset_options options = {.max_length = 64, .seed = 1};
	ft_text text = {0};
	ft_adapter *adapter;
	ft_step_report report;
	fixture *f;

	must(ft_alloc((void **) &f, 1, sizeof *f));
	tiny_open(&f->run, "tied", 2);
	f->directory = tiny_directory();
	for (int i = 0; i < ROWS; i++)
		must(ft_text_printf(&text, "{\"prompt\": \"row %d\", \"completion\": \"%s\"}\n", i,
							i % 3 ? "yes" : "no"));
	f->dataset = dataset_of(&f->run, f->directory, text.data, NULL, &options);
	ft_text_free(&text);
	must(ft_options_read(NULL, &f->options));
	f->options.lora_r = 4;
	f->options.lora_alpha = 8;
	f->options.learning_rate = 1e-2;
	f->options.batch_size = 256;
	f->options.max_epochs = 50;
	f->options.max_seq_length = 64;
	must(ft_adapter_create(f->run.model, 4, 8.0f, false, f->options.lora_target_modules, &adapter));
	must(ft_adapter_init(adapter, &f->run.model->config, 7));
	must(ft_trainer_create(f->run.model, f->dataset, &f->options, adapter, 1024, &f->trainer));
	for (int i = 0; i < 60; i++)
		must(ft_trainer_step(f->trainer, &report));
	*state = f;
	return 0;
}

static int
teardown(void **state)
{
	fixture *f = *state;

	ft_trainer_free(f->trainer);
	ft_dataset_close(f->dataset);
	tiny_remove(f->directory);
	tiny_close(&f->run);
	free(f->directory);
	free(f);
	return 0;
}

static ft_evaluation
evaluate(fixture *f, uint32_t first, uint32_t n, int64_t capacity)
{
	ft_trainer *t = f->trainer;
	ft_evaluation result = {0};

	must(ft_evaluate(t->transformer, f->dataset, f->dataset->train + first, n, capacity, &t->batch,
					 &result));
	return result;
}

/* One document at a time there is nothing to confuse: all its trained tokens are right, or not. */
static void
test_exact_is_every_token(void **state)
{
	fixture *f = *state;
	const int64_t capacities[] = {64, 100, 1024};
	ft_evaluation sum = {0};

	for (uint32_t i = 0; i < f->dataset->n_train; i++)
	{
		ft_evaluation one = evaluate(f, i, 1, 64);

		assert_int_equal(one.exact, one.sums.correct == one.sums.weight);
		sum.exact += one.exact;
		sum.sums.loss += one.sums.loss;
		sum.sums.correct += one.sums.correct;
		sum.sums.weight += one.sums.weight;
	}
	/* else nothing would be shown */
	assert_in_range(sum.exact, 1, ROWS - 1);
	for (size_t i = 0; i < sizeof capacities / sizeof capacities[0]; i++)
	{
		ft_evaluation all = evaluate(f, 0, f->dataset->n_train, capacities[i]);

		assert_int_equal(all.exact, sum.exact);
		assert_true(all.sums.correct == sum.sums.correct);
		assert_true(all.sums.weight == sum.sums.weight);
		assert_true(fabs(ft_evaluation_loss(&all) - ft_evaluation_loss(&sum)) < 1e-5);
	}
}

static void
test_nothing_is_nan(void **state)
{
	fixture *f = *state;
	ft_evaluation none = evaluate(f, 0, 0, 64);

	assert_int_equal(none.exact, 0);
	assert_true(isnan(ft_evaluation_loss(&none)));
	assert_true(isnan(ft_evaluation_accuracy(&none)));
}

static void
test_capacity_fits_the_data(void **state)
{
	fixture *f = *state;
	int64_t capacity;

	must(ft_evaluation_choose_capacity(f->run.model, f->trainer->adapter, f->dataset, &capacity));
	assert_in_range(capacity, f->dataset->max_length, f->dataset->tokens);
}

/* Who only evaluates keeps nothing of a layer, and finds the same to the bit. */
static void
test_nothing_is_kept(void **state)
{
	fixture *f = *state;
	ft_trainer *t = f->trainer;
	ft_evaluation kept = evaluate(f, 0, f->dataset->n_train, 256);
	ft_evaluation result = {0};
	ft_loss_sums sums = {0};
	ft_transformer *bare;

	must(ft_transformer_create_kept(f->run.model, t->adapter, 256, 0, &bare));
	must(ft_evaluate(bare, f->dataset, f->dataset->train, f->dataset->n_train, 256, &t->batch,
					 &result));
	assert_true(result.sums.loss == kept.sums.loss);
	assert_true(result.sums.correct == kept.sums.correct);
	assert_int_equal(result.exact, kept.exact);
	assert_int_equal(ft_transformer_train(bare, &t->batch, 1.0, &sums), FT_INTERNAL);
	ft_transformer_free(bare);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_exact_is_every_token, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_is_kept, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_is_nan, setup, teardown),
		cmocka_unit_test_setup_teardown(test_capacity_fits_the_data, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
