/*
 * test_dpo.c: training on preference pairs: ten steps against TRL
 * (test/golden/make_dpo.py), what batches and weights must not change, and the
 * reference's file.
 */
#include "reference.h"
#include "training.h"

#include "files.h"
#include "row.h"
#include "tiny_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define GOLDEN "test/golden/dpo"
#define TOLERANCE 1e-5
#define N_STEPS 10
#define IDENTITY "this run"

typedef struct fixture
{
	tiny_run run;
	char *directory;
	ft_options options;
	ft_dataset *dataset;
	ft_trainer *trainer;
} fixture;

/* A trainer over the rows of a JSONL text, all of them in each step, with the fixtures' adapter. */
static fixture
open_fixture(const char *lines, double validation_fraction, bool bf16)
{
	ft_dataset_options data = {
		.max_length = 64, .pairs = true, .validation_fraction = validation_fraction, .seed = 1};
	fixture f = {.directory = tiny_directory()};

	if (bf16)
		tiny_open_bf16(&f.run, "tied", 2);
	else
		tiny_open(&f.run, "tied", 2);
	f.dataset = dataset_of(&f.run, f.directory, lines, NULL, &data);
	must(ft_options_read(NULL, &f.options));
	f.options.dpo = true;
	f.options.dpo_beta = 0.3;
	f.options.learning_rate = 1e-2;
	f.options.lr_scheduler = FT_CONSTANT;
	f.options.warmup_ratio = 0;
	f.options.weight_decay = 0.01;
	f.options.batch_size = 1 << 20;
	f.options.max_epochs = 50;
	f.options.max_seq_length = 64;
	return f;
}

static void
open_trainer(fixture *f, int64_t capacity)
{
	must(ft_trainer_create(f->run.model, f->dataset, &f->options, tiny_adapter(&f->run, "tied"),
						   capacity, &f->trainer));
	must(ft_reference_prepare(f->directory, IDENTITY, f->trainer));
}

static void
close_fixture(fixture *f)
{
	ft_trainer_free(f->trainer);
	ft_dataset_close(f->dataset);
	tiny_remove(f->directory);
	tiny_close(&f->run);
	free(f->directory);
}

/* Pairs of several lengths; free. */
static char *
some_pairs(int n)
{
	ft_text text = {0};

	for (int i = 0; i < n; i++)
		must(ft_text_printf(&text,
							"{\"prompt\": \"%.*s %d\", \"chosen\": \"a %.*s\", \"rejected\": "
							"\"%.*s no\"}\n",
							i % 5, "abcde", i, i % 7, "uvwxyzu", i % 4, "klmn"));
	return text.data;
}

static char *
golden_pairs(void)
{
	ft_text text = {0};

	must(ft_read_file(GOLDEN "/pairs.jsonl", 1 << 20, &text));
	must(ft_text_append(&text, "", 1));
	return text.data;
}

static float *
expected(const char *name, int64_t *n)
{
	return read_tensor(GOLDEN "/expected.safetensors", name, n);
}

/* --- against TRL --- */

/* All matrices of a host array that is laid out as the adapter's values. */
static void
check_matrices(const ft_adapter *adapter, const float *values, const char *prefix)
{
	for (int slot = 0; slot < adapter->layers * FT_TARGET_COUNT; slot++)
		for (int side = 0; side < 2; side++)
		{
			int64_t at = side == 0 ? adapter->a_at[slot] : adapter->b_at[slot];
			char name[256];
			int64_t n;
			float *reference;
			double error;

			snprintf(name, sizeof name, "%s.base_model.model.model.layers.%d.%s.lora_%c.weight",
					 prefix, slot / FT_TARGET_COUNT,
					 ft_target_module((ft_target) (slot % FT_TARGET_COUNT)), "AB"[side]);
			reference = expected(name, &n);
			error = relative_error(values + at, reference, n);
			if (!(error < TOLERANCE))
				fail_msg("%s differs by %g", name, error);
			free(reference);
		}
}

static float *
on_host(ft_trainer *t, const float *device)
{
	float *values;

	must(ft_alloc((void **) &values, (size_t) t->adapter->n, sizeof *values));
	must(t->model->ops->copy_to_host(t->transformer->stream, values, device,
									 (size_t) t->adapter->n * sizeof *values));
	return values;
}

static void
check_near(const char *what, int step, double value, double reference, double scale)
{
	if (!(fabs(value - reference) < TOLERANCE * scale))
		fail_msg("%s is %.9g at step %d, expected %.9g", what, value, step + 1, reference);
}

static void
test_ten_steps_equal_trl(void **state)
{
	char *lines = golden_pairs();
	fixture f = open_fixture(lines, 0, false);
	int64_t n;
	float *reference = expected("reference", &n);
	float *losses = expected("losses", &n);
	float *margins = expected("margins", &n);
	float *norms = expected("norms", &n);
	float *values;
	ft_trainer *t;

	(void) state;
	assert_int_equal(n, N_STEPS);
	f.options.learning_rate = 3e-3;
	open_trainer(&f, 512);
	t = f.trainer;
	for (uint32_t i = 0; i < 2 * f.dataset->n_train; i++)
		assert_true(fabs(f.dataset->reference[i] / reference[i] - 1) < TOLERANCE);
	for (int step = 0; step < N_STEPS; step++)
	{
		ft_step_report report;

		must(ft_trainer_step(t, &report));
		check_near("loss", step, report.loss, losses[step], 1);
		check_near("margin", step, report.margin, margins[step], 1 + fabs(margins[step]));
		check_near("norm", step, report.grad_norm, norms[step], norms[step]);
		if (step != 0 && step != N_STEPS - 1)
			continue;
		values = on_host(t, t->transformer->lora->gradient);
		check_matrices(t->adapter, values, step == 0 ? "first" : "last");
		free(values);
	}
	values = on_host(t, t->adapter->values);
	check_matrices(t->adapter, values, "adapter");
	free(values);
	free(reference);
	free(losses);
	free(margins);
	free(norms);
	close_fixture(&f);
	free(lines);
}

/* --- what changes nothing, and what does --- */

#define CURVE_STEPS 4

typedef struct curve
{
	double loss[CURVE_STEPS];
	double norm[CURVE_STEPS];
	double margin[CURVE_STEPS];
} curve;

static curve
curve_of(const char *lines, int accumulation, bool packing, int64_t capacity)
{
	fixture f = open_fixture(lines, 0, false);
	curve c;

	f.options.gradient_accumulation_steps = accumulation;
	f.options.packing = packing;
	open_trainer(&f, capacity > 0 ? capacity : f.dataset->max_length);
	for (int i = 0; i < CURVE_STEPS; i++)
	{
		ft_step_report report;

		must(ft_trainer_step(f.trainer, &report));
		c.loss[i] = report.loss;
		c.norm[i] = report.grad_norm;
		c.margin[i] = report.margin;
	}
	close_fixture(&f);
	return c;
}

static bool
same_curve(const curve *a, const curve *b, double tolerance)
{
	for (int i = 0; i < CURVE_STEPS; i++)
	{
		if (!(fabs(a->loss[i] / b->loss[i] - 1) <= tolerance) ||
			!(fabs(a->norm[i] / b->norm[i] - 1) <= tolerance) ||
			!(fabs(a->margin[i] - b->margin[i]) <= tolerance * (1 + fabs(b->margin[i]))))
			return false;
	}
	return true;
}

/* Accumulation, packing and memory decide only what is computed together. */
static void
test_batches_change_nothing(void **state)
{
	char *lines = some_pairs(12);
	curve whole = curve_of(lines, 0, true, 4096);
	curve others[] = {curve_of(lines, 1, true, 4096), curve_of(lines, 2, true, 4096),
					  curve_of(lines, 4, true, 4096), curve_of(lines, 0, false, 4096),
					  curve_of(lines, 0, true, 0)};

	(void) state;
	for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
		assert_true(same_curve(&others[i], &whole, TOLERANCE));
	/* and there was something to see */
	assert_true(whole.loss[3] < whole.loss[0] && whole.margin[3] > 0.01);
	free(lines);
}

#define PAIR(prompt, chosen, rejected, rest)                                                       \
	"{\"prompt\": \"" prompt "\", \"chosen\": \"" chosen "\", \"rejected\": \"" rejected "\"" rest \
	"}\n"

/* The loss of a step is Σ weight · loss / Σ weight over its pairs, however long they are. */
static void
test_weights_of_pairs(void **state)
{
	curve once = curve_of(PAIR("a", "the 1", "no", "") PAIR("b", "x", "y", ""), 0, true, 512);
	curve twice =
		curve_of(PAIR("a", "the 1", "no", "") PAIR("a", "the 1", "no", "") PAIR("b", "x", "y", ""),
				 0, true, 512);
	curve weighed =
		curve_of(PAIR("a", "the 1", "no", ", \"weight\": 2") PAIR("b", "x", "y", ""), 0, true, 512);
	curve none = curve_of(PAIR("a", "the 1", "no", "") PAIR("c", "p", "q", ", \"weight\": 0")
							  PAIR("b", "x", "y", ""),
						  0, true, 512);
	curve swapped = curve_of(PAIR("a", "no", "the 1", "") PAIR("b", "y", "x", ""), 0, true, 512);

	(void) state;
	assert_true(same_curve(&weighed, &twice, TOLERANCE));
	assert_false(same_curve(&weighed, &once, 1e-3));
	assert_true(same_curve(&none, &once, 0));
	/* at first the other way round is the same way, but then it is not */
	assert_true(fabs(swapped.norm[0] / once.norm[0] - 1) < TOLERANCE);
	assert_false(same_curve(&swapped, &once, 1e-3));
}

/* Before the first step policy and reference are one model, to the bit. */
static void
test_nothing_is_preferred_at_first(void **state)
{
	char *lines = some_pairs(40);

	(void) state;
	for (int bf16 = 0; bf16 < 2; bf16++)
	{
		fixture f = open_fixture(lines, 0.5, bf16);

		open_trainer(&f, 512);
		assert_int_equal(f.dataset->n_validation, 20);
		must(ft_trainer_evaluate(f.trainer));
		assert_true(f.trainer->state.validation_loss == log(2));
		assert_true(f.trainer->state.validation_accuracy == 0);
		assert_true(f.trainer->validation_margin == 0);
		close_fixture(&f);
	}
	free(lines);
}

static void
test_pairs_are_learnt(void **state)
{
	char *lines = some_pairs(40);
	fixture f = open_fixture(lines, 0.2, false);
	ft_step_report report;

	(void) state;
	open_trainer(&f, 512);
	for (int i = 0; i < 20; i++)
		must(ft_trainer_step(f.trainer, &report));
	assert_true(report.loss < 0.1);
	must(ft_trainer_evaluate(f.trainer));
	assert_true(f.trainer->state.validation_loss < 0.3);
	assert_true(f.trainer->state.validation_accuracy == 1);
	assert_true(f.trainer->validation_margin > 1);
	assert_true(f.trainer->state.training_loss < log(2));
	close_fixture(&f);
	free(lines);
}

/* --- rows --- */

static ft_row_encoder
encoder_of(const tiny_run *run)
{
	return (ft_row_encoder){.config = ft_model_file_config(run->file),
							.vocabulary = ft_model_file_vocabulary(run->file),
							.tokenizer = run->tokenizer,
							.chat_template = run->chat_template,
							.max_length = 64,
							.pairs = true};
}

/* Tokens of a side as text, the trained ones between brackets; free. */
static char *
side_text(const ft_row_encoder *e, bool rejected)
{
	size_t end = rejected ? e->ids.length : e->chosen;
	bool inside = false;
	ft_text text = {0};

	for (size_t i = rejected ? e->chosen : 0; i < end; i++)
	{
		if ((e->weights.data[i] > 0) != inside)
			must(ft_text_append(&text, inside ? "]" : "[", 1));
		inside = e->weights.data[i] > 0;
		must(ft_tokenizer_decode(e->tokenizer, &e->ids.data[i], 1, false, &text));
	}
	must(ft_text_append(&text, inside ? "]" : "", inside ? 2 : 1));
	return text.data;
}

static void
check_side(const ft_row_encoder *e, bool rejected, const char *expected_text)
{
	char *text = side_text(e, rejected);

	assert_string_equal(text, expected_text);
	free(text);
}

static ft_row_kind
encode(ft_row_encoder *e, const char *line, bool truncated)
{
	ft_row_kind kind;
	bool cut;

	must(ft_row_encode(e, line, strlen(line), &kind, &cut));
	assert_int_equal(cut, truncated);
	assert_int_equal(e->ids.length, e->weights.length);
	assert_int_equal(e->ids.length, e->targets.length);
	return kind;
}

#define ASKED(prompt) "<|im_start|>user\n" prompt "<|im_end|>\n<|im_start|>assistant\n"

static void
test_rows_of_pairs(void **state)
{
	tiny_run run;
	ft_row_encoder e;

	(void) state;
	tiny_open(&run, "tied", 1);
	e = encoder_of(&run);
	assert_int_equal(encode(&e, PAIR("hi", "the", "no", ", \"weight\": 0.5"), false), FT_ROW_USED);
	check_side(&e, false, ASKED("hi") "[the<|im_end|>]");
	check_side(&e, true, ASKED("hi") "[no<|im_end|>]");
	/* the weight is the pair's, not its tokens' */
	assert_true(e.weight == 0.5f && e.weights.data[e.chosen - 1] == 1.0f);
	assert_int_equal(encode(&e, PAIR("", "", "x", ""), false), FT_ROW_USED);
	check_side(&e, false, ASKED("") "[<|im_end|>]");
	assert_int_equal(encode(&e, PAIR("a", "b", "c", ", \"weight\": 0"), false), FT_ROW_UNTRAINED);
	assert_int_equal(
		encode(&e, "{\"prompt\": \"a\", \"chosen\": null, \"rejected\": \"c\"}", false),
		FT_ROW_NULL);
	ft_row_encoder_clear(&e);
	tiny_close(&run);
}

/* Both sides keep the same prompt, its end, and their end tokens. */
static void
test_long_pairs_are_cut(void **state)
{
	tiny_run run;
	ft_row_encoder e;

	(void) state;
	tiny_open(&run, "tied", 1);
	e = encoder_of(&run);
	e.max_length = 40;
	/* 20 tokens are the template's, and as many are left */
	encode(&e, PAIR("0123456789ABC", "abcdefghijkl", "xy", ""), true);
	check_side(&e, false, ASKED("3456789ABC") "[abcdefghij<|im_end|>]");
	check_side(&e, true, ASKED("3456789ABC") "[xy<|im_end|>]");
	encode(&e, PAIR("0123456789ABC", "xy", "abcdefghijkl", ""), true);
	check_side(&e, false, ASKED("3456789ABC") "[xy<|im_end|>]");
	check_side(&e, true, ASKED("3456789ABC") "[abcdefghij<|im_end|>]");
	encode(&e, PAIR("a", "bcdefghijklmnopqrstuvwxyz", "BCDEFGHIJKLMNOPQRSTUVWXYZ", ""), true);
	check_side(&e, false, ASKED("a") "[bcdefghijklmnopqrst<|im_end|>]");
	check_side(&e, true, ASKED("a") "[BCDEFGHIJKLMNOPQRST<|im_end|>]");
	encode(&e, PAIR("0123456789abcdefghijklmnopqrstuvwxyz", "1", "2", ""), true);
	check_side(&e, true, ASKED("hijklmnopqrstuvwxyz") "[2<|im_end|>]");
	ft_row_encoder_clear(&e);
	tiny_close(&run);
}

/* --- options --- */

static void
test_options(void **state)
{
	ft_config config = {.hidden = 576, .max_positions = 2048};
	ft_data_size data = {.documents = 50, .tokens = 5000, .max_length = 200};
	ft_options lora;
	ft_options dpo;
	ft_options again;
	json_t *json = json_pack("{s:s}", "method", "dpo");

	(void) state;
	must(ft_options_read(NULL, &lora));
	must(ft_options_read(json, &dpo));
	json_decref(json);
	ft_options_resolve(&lora, &config, 0, &data);
	ft_options_resolve(&dpo, &config, 0, &data);
	assert_true(!lora.dpo && lora.dpo_beta == 0);
	assert_true(dpo.dpo && dpo.dpo_beta == 0.1);
	assert_true(dpo.learning_rate < lora.learning_rate);
	assert_true(dpo.max_epochs == 3 && lora.max_epochs == 8);
	json = ft_options_json(&dpo);
	must(ft_options_read(json, &again));
	json_decref(json);
	assert_true(again.dpo && again.dpo_beta == dpo.dpo_beta);
	json = ft_options_json(&lora);
	assert_null(json_object_get(json, "dpo_beta"));
	json_decref(json);
}

/* --- the reference's file --- */

static void
path_of(const fixture *f, char path[FT_PATH_SIZE])
{
	must(ft_path_join(path, f->directory, "reference.bin"));
}

/* The values again, from the file as it now is; free. */
static double *
references_again(fixture *f, const char *identity)
{
	size_t n = 2 * ((size_t) f->dataset->n_train + f->dataset->n_validation);
	double *values;

	memset(f->dataset->reference, 0, n * sizeof(double));
	must(ft_reference_prepare(f->directory, identity, f->trainer));
	must(ft_alloc((void **) &values, n, sizeof *values));
	memcpy(values, f->dataset->reference, n * sizeof *values);
	return values;
}

/* Cut short or damaged anywhere, the file is made good again, to the byte. */
static void
test_damaged_references(void **state)
{
	char *lines = some_pairs(1500); /* two windows, and one of validation pairs */
	fixture f = open_fixture(lines, 0.1, false);
	char path[FT_PATH_SIZE];
	ft_text whole = {0};
	ft_text again = {0};
	size_t cuts[7];

	(void) state;
	open_trainer(&f, 2048);
	path_of(&f, path);
	must(ft_read_file(path, 1 << 20, &whole));
	cuts[0] = 0;
	cuts[1] = 5;
	cuts[2] = 100;
	cuts[3] = 16500; /* within the first window's digest, or just behind it */
	cuts[4] = 17000;
	cuts[5] = whole.length - 1;
	cuts[6] = whole.length;
	for (int i = 0; i < 7; i++)
	{
		must(ft_replace_file(path, whole.data, cuts[i]));
		free(references_again(&f, IDENTITY));
		ft_text_clear(&again);
		must(ft_read_file(path, 1 << 20, &again));
		assert_int_equal(again.length, whole.length);
		assert_memory_equal(again.data, whole.data, whole.length);
	}
	for (size_t at = 3; at < whole.length; at += whole.length / 5)
	{
		char kept = whole.data[at];

		whole.data[at] ^= 1;
		must(ft_replace_file(path, whole.data, whole.length));
		whole.data[at] = kept;
		free(references_again(&f, IDENTITY));
		ft_text_clear(&again);
		must(ft_read_file(path, 1 << 20, &again));
		assert_memory_equal(again.data, whole.data, whole.length);
	}
	ft_text_free(&whole);
	ft_text_free(&again);
	close_fixture(&f);
	free(lines);
}

static ft_status
cancel(void *context)
{
	int *calls = context;

	return --*calls < 0 ? ft_fail(FT_CANCELLED, "enough") : FT_OK;
}

/* What is whole is not made again; another run's file is. */
static void
test_references_are_made_once(void **state)
{
	char *lines = some_pairs(20);
	fixture f = open_fixture(lines, 0.2, false);
	int calls = 0;

	(void) state;
	open_trainer(&f, 512);
	ft_trainer_set_tick(f.trainer, cancel, &calls);
	free(references_again(&f, IDENTITY));
	assert_int_equal(ft_reference_prepare(f.directory, "another run", f.trainer), FT_CANCELLED);
	close_fixture(&f);
	free(lines);
}

static void
test_non_finite_reference_fails(void **state)
{
	char *lines = some_pairs(4);
	fixture f = open_fixture(lines, 0, false);
	float bad = INFINITY;

	(void) state;
	open_trainer(&f, 512);
	must(f.run.ops->copy_to_device(
		f.trainer->transformer->stream,
		f.trainer->adapter->values + f.trainer->adapter->b_at[FT_DOWN_PROJ], &bad, sizeof bad));
	must(ft_transformer_adapter_changed(f.trainer->transformer));
	assert_int_equal(ft_reference_prepare(f.directory, "another run", f.trainer), FT_NON_FINITE);
	assert_non_null(strstr(ft_error_message(), "log-probability of the reference model"));
	close_fixture(&f);
	free(lines);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_rows_of_pairs),
		cmocka_unit_test(test_long_pairs_are_cut),
		cmocka_unit_test(test_ten_steps_equal_trl),
		cmocka_unit_test(test_batches_change_nothing),
		cmocka_unit_test(test_weights_of_pairs),
		cmocka_unit_test(test_nothing_is_preferred_at_first),
		cmocka_unit_test(test_pairs_are_learnt),
		cmocka_unit_test(test_damaged_references),
		cmocka_unit_test(test_references_are_made_once),
		cmocka_unit_test(test_non_finite_reference_fails),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
