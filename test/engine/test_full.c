/*
 * test_full.c: training all weights of a base: ten steps as PyTorch's, in f32
 * and with 16-bit weights and small moments; resuming, the best weights, and the
 * directory that comes out of it.
 */
#include "training.h"

#include "decode.h"
#include "device.h"
#include "files.h"
#include "tiny_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TINY_FULL "test/golden/tiny_full"
#define STEPS 10
#define LEARNING_RATE 3e-3
#define TOLERANCE 1e-5

static const char *const variants[] = {"tied", "untied"};

/* The small model, for training all of its weights. */
static void
open_trainable(tiny_run *run, const char *which, bool bf16)
{
	if (bf16)
		tiny_open_bf16(run, which, 2);
	else
		tiny_open(run, which, 2);
	ft_model_free(run->model);
	must(ft_model_load_trainable(run->file, run->ops, run->device, 0, &run->model));
	assert_int_equal(run->model->parameters->dtype, bf16 ? FT_BF16 : FT_F32);
}

static ft_options
full_options(void)
{
	ft_options o;

	must(ft_options_read(NULL, &o));
	o.full = true;
	o.learning_rate = LEARNING_RATE;
	o.weight_decay = 0.1;
	o.batch_size = 128;
	o.max_epochs = 2;
	o.max_seq_length = 64;
	o.seed = 7;
	return o;
}

/* All weights as one array, floats; free. */
static float *
weights_of(const ft_model *model)
{
	const ft_parameters *p = model->parameters;
	int64_t matrices = p->layout->matrices;
	int64_t vectors = p->layout->n - matrices;
	ft_stream *stream;
	uint16_t *halves;
	float *values;

	must(ft_alloc((void **) &values, (size_t) p->layout->n, sizeof *values));
	must(ft_alloc((void **) &halves, (size_t) matrices, sizeof *halves));
	must(model->ops->stream_create(model->device, &stream));
	if (p->dtype == FT_F32)
		must(model->ops->copy_to_host(stream, values, p->matrices,
									  (size_t) matrices * sizeof(float)));
	else
	{
		must(model->ops->copy_to_host(stream, halves, p->matrices,
									  (size_t) matrices * sizeof *halves));
		for (int64_t i = 0; i < matrices; i++)
			values[i] = ft_bf16_to_f32(halves[i]);
	}
	must(model->ops->copy_to_host(stream, values + matrices, p->vectors,
								  (size_t) vectors * sizeof(float)));
	model->ops->stream_destroy(stream);
	free(halves);
	return values;
}

/* --- as PyTorch does it --- */

/* Largest relative error of a tensor of the model against the fixture. */
static double
worst_error(const ft_model *model, const char *path)
{
	const ft_weight_layout *layout = model->parameters->layout;
	float *values = weights_of(model);
	ft_safetensors *file;
	double worst = 0;
	size_t compared = 0;

	must(ft_safetensors_open(path, &file));
	for (size_t i = 0; i < ft_safetensors_count(file); i++)
	{
		const char *name = ft_safetensors_at(file, i)->name;
		int64_t n;
		int64_t expected_n;
		int64_t at = ft_weight_layout_find(layout, name, &n);
		float *expected;

		if (at < 0)
			continue;
		expected = read_tensor(path, name, &expected_n);
		assert_int_equal(n, expected_n);
		worst = fmax(worst, relative_error(values + at, expected, n));
		free(expected);
		compared++;
	}
	/* all but losses and norms */
	assert_int_equal(compared, ft_safetensors_count(file) - 2);
	ft_safetensors_close(file);
	free(values);
	return worst;
}

/* Ten steps; the largest relative errors of loss, norm and weights. */
static void
compare_steps(const char *which, bool bf16, double worst[3])
{
	ft_options options = full_options();
	char path[256];
	tiny_run run;
	int64_t size;
	float *losses;
	float *norms;
	ft_microbatch batch;
	ft_transformer *t;
	ft_full *full;
	int n;
	hand_document *documents = golden_documents(&n);
	double weight = weight_by_hand(documents, n);

	snprintf(path, sizeof path, TINY_FULL "/%s.safetensors", which);
	losses = read_tensor(path, "losses", &size);
	norms = read_tensor(path, "norms", &size);
	assert_int_equal(size, STEPS);
	open_trainable(&run, which, bf16);
	pack_by_hand(&batch, documents, n, NEVER_SHARED);
	must(ft_transformer_create(run.model, NULL, batch.tokens, &t));
	must(ft_full_create(run.model, &options, &full));
	assert_int_equal(full->small, bf16);
	t->weight_gradients = full->gradients;
	worst[0] = worst[1] = 0;
	for (int step = 0; step < STEPS; step++)
	{
		ft_loss_sums sums = {0};
		double norm;

		must(ft_weight_gradients_zero(full->gradients, t->stream));
		must(ft_transformer_train(t, &batch, 1.0 / weight, &sums));
		must(ft_full_step(full, t->stream, step + 1, LEARNING_RATE, &norm));
		worst[0] = fmax(worst[0], fabs(sums.loss / weight / losses[step] - 1));
		worst[1] = fmax(worst[1], fabs(norm / norms[step] - 1));
	}
	worst[2] = worst_error(run.model, path);
	ft_full_free(full);
	ft_transformer_free(t);
	ft_microbatch_free(&batch);
	tiny_close(&run);
	free(losses);
	free(norms);
	free(documents);
}

static void
test_ten_steps_equal_pytorch(void **state)
{
	double worst[3];

	(void) state;
	for (int v = 0; v < 2; v++)
	{
		compare_steps(variants[v], false, worst);
		for (int i = 0; i < 3; i++)
			if (!(worst[i] < TOLERANCE))
				fail_msg("%s: errors of loss %g, norm %g, weights %g", variants[v], worst[0],
						 worst[1], worst[2]);
	}
}

/* 16-bit weights and products, and moments of 8 bits, stay beside that. */
static void
test_ten_steps_of_small_numbers(void **state)
{
	double worst[3];

	(void) state;
	for (int v = 0; v < 2; v++)
	{
		compare_steps(variants[v], true, worst);
		if (!(worst[0] < 0.01 && worst[1] < 0.2 && worst[2] < 0.02))
			fail_msg("%s: errors of loss %g, norm %g, weights %g", variants[v], worst[0], worst[1],
					 worst[2]);
	}
}

/* --- whole runs --- */

typedef struct fixture
{
	tiny_run run;
	char *directory;
	ft_dataset *dataset;
	bool bf16;
} fixture;

static void
open_fixture(fixture *f, const char *which, bool bf16)
{
	ft_dataset_options options = {.max_length = 64, .validation_fraction = 0.2, .seed = 1};
	ft_text text = {0};

	f->bf16 = bf16;
	open_trainable(&f->run, which, bf16);
	f->directory = tiny_directory();
	for (int i = 0; i < 20; i++)
		must(ft_text_printf(&text,
							"{\"prompt\": \"%d and %.*s\", \"completion\": \"%.*s the %d\"}\n", i,
							i % 7, "abcdefgh", i % 5, "uvwxyz", i * i));
	f->dataset = dataset_of(&f->run, f->directory, text.data, NULL, &options);
	ft_text_free(&text);
}

static void
close_fixture(fixture *f)
{
	ft_dataset_close(f->dataset);
	tiny_remove(f->directory);
	tiny_close(&f->run);
	free(f->directory);
}

/* The base as it was. */
static void
reload(fixture *f)
{
	ft_model_free(f->run.model);
	must(ft_model_load_trainable(f->run.file, f->run.ops, f->run.device, 0, &f->run.model));
}

static ft_trainer *
trainer_of(fixture *f, const ft_options *o)
{
	ft_trainer *t;

	reload(f);
	must(ft_trainer_create(f->run.model, f->dataset, o, NULL, 256, &t));
	return t;
}

static void
steps(ft_trainer *t, int64_t n)
{
	ft_step_report report;

	for (int64_t i = 0; i < n; i++)
		must(ft_trainer_step(t, &report));
}

static void
save(const fixture *f, ft_trainer *t)
{
	must(ft_full_save(f->directory, "this run", &t->state, t->full, t->transformer->stream));
}

static bool
load(const fixture *f, ft_trainer *t)
{
	ft_run_state restored;
	bool found;

	must(
		ft_full_load(f->directory, "this run", &restored, t->full, t->transformer->stream, &found));
	if (found)
		must(ft_trainer_resume(t, &restored));
	return found;
}

/* Save after each step, go on in a new trainer from there: the end is the same to the bit. */
static void
check_resume(bool bf16)
{
	ft_options o = full_options();
	fixture f;
	ft_trainer *t;
	float *expected;
	int64_t total;
	size_t bytes;

	open_fixture(&f, "tied", bf16);
	t = trainer_of(&f, &o);
	assert_false(load(&f, t));
	total = t->total_steps;
	bytes = (size_t) t->full->layout->n * sizeof(float);
	steps(t, total);
	expected = weights_of(f.run.model);
	ft_trainer_free(t);
	for (int64_t at = 1; at < total; at++)
	{
		float *values;

		t = trainer_of(&f, &o);
		steps(t, at);
		save(&f, t);
		ft_trainer_free(t);
		t = trainer_of(&f, &o);
		assert_true(load(&f, t));
		assert_int_equal(t->state.step, at);
		steps(t, total - at);
		values = weights_of(f.run.model);
		assert_memory_equal(values, expected, bytes);
		free(values);
		ft_trainer_free(t);
	}
	o.seed++;
	t = trainer_of(&f, &o);
	steps(t, total);
	{
		float *values = weights_of(f.run.model);

		assert_memory_not_equal(values, expected, bytes);
		free(values);
	}
	ft_trainer_free(t);
	free(expected);
	close_fixture(&f);
}

static void
test_resume_at_every_step(void **state)
{
	(void) state;
	check_resume(false);
	check_resume(true);
}

/* The best weights come back from memory, and, being others than the newest, from a checkpoint. */
static void
test_best_weights(void **state)
{
	ft_options o = full_options();
	fixture f;
	ft_trainer *t;
	float *best;
	float *newest;
	float *values;
	size_t bytes;

	(void) state;
	o.early_stopping_patience = 3;
	for (int bf16 = 0; bf16 < 2; bf16++)
	{
		open_fixture(&f, "untied", bf16);
		t = trainer_of(&f, &o);
		bytes = (size_t) t->full->layout->n * sizeof(float);
		steps(t, 2);
		best = weights_of(f.run.model);
		must(ft_full_keep_best(t->full, t->transformer->stream));
		t->state.best.step = 2;
		steps(t, 2);
		newest = weights_of(f.run.model);
		assert_memory_not_equal(best, newest, bytes);
		save(&f, t);
		ft_trainer_free(t);
		t = trainer_of(&f, &o);
		assert_true(load(&f, t));
		values = weights_of(f.run.model);
		assert_memory_equal(values, newest, bytes);
		free(values);
		must(ft_full_take_best(t->full, t->transformer->stream));
		values = weights_of(f.run.model);
		assert_memory_equal(values, best, bytes);
		free(values);
		ft_trainer_free(t);
		close_fixture(&f);
		free(best);
		free(newest);
	}
}

/* Weights of 16 bits are none of 32. */
static void
test_other_numerics(void **state)
{
	ft_options o = full_options();
	fixture f;
	fixture other;
	ft_trainer *t;
	ft_run_state restored;
	bool found;

	(void) state;
	open_fixture(&f, "tied", true);
	t = trainer_of(&f, &o);
	steps(t, 1);
	save(&f, t);
	ft_trainer_free(t);
	open_fixture(&other, "tied", false);
	t = trainer_of(&other, &o);
	assert_int_equal(
		ft_full_load(f.directory, "this run", &restored, t->full, t->transformer->stream, &found),
		FT_MISMATCH);
	assert_non_null(strstr(ft_error_message(), "weights.safetensors"));
	assert_non_null(strstr(ft_error_hint(), "numerics"));
	ft_trainer_free(t);
	close_fixture(&other);
	close_fixture(&f);
}

static void
test_non_finite_fails(void **state)
{
	ft_options o = full_options();
	float bad = INFINITY;
	fixture f;
	ft_trainer *t;
	ft_step_report report;
	float *before;
	float *after;

	(void) state;
	open_fixture(&f, "tied", false);
	t = trainer_of(&f, &o);
	must(f.run.ops->copy_to_device(t->transformer->stream, f.run.model->final_norm, &bad,
								   sizeof bad));
	before = weights_of(f.run.model);
	assert_int_equal(ft_trainer_step(t, &report), FT_NON_FINITE);
	assert_non_null(strstr(ft_error_message(), "step 1"));
	after = weights_of(f.run.model);
	assert_memory_equal(before, after, (size_t) t->full->layout->n * sizeof(float));
	assert_int_equal(t->state.step, 0);
	free(before);
	free(after);
	ft_trainer_free(t);
	close_fixture(&f);
}

/* A model that is loaded as any other is not trained by mistake. */
static void
test_frozen_model(void **state)
{
	ft_options o = full_options();
	ft_full *full;
	tiny_run run;

	(void) state;
	tiny_open(&run, "tied", 1);
	assert_int_equal(ft_full_create(run.model, &o, &full), FT_INTERNAL);
	tiny_close(&run);
}

/* --- the result --- */

/* The training pass's logits behind the last token of a document. */
static float *
training_logits(const ft_model *model, const hand_document *document)
{
	hand_document probe = *document;
	ft_loss_sums sums = {0};
	ft_microbatch batch;
	ft_transformer *t;
	float *logits;

	for (int i = 0; i < probe.length; i++)
		probe.weights[i] = 0.0f;
	probe.ids[probe.length] = 0;
	probe.weights[probe.length++] = 1.0f;
	pack_by_hand(&batch, &probe, 1, NEVER_SHARED);
	must(ft_transformer_create(model, NULL, batch.tokens, &t));
	must(ft_transformer_evaluate(t, &batch, &sums));
	must(ft_alloc((void **) &logits, (size_t) model->config.vocab, sizeof(float)));
	must(model->ops->copy_to_host(t->stream, logits, t->logits,
								  (size_t) model->config.vocab * sizeof(float)));
	ft_transformer_free(t);
	ft_microbatch_free(&batch);
	return logits;
}

static float *
serving_logits(const ft_model *model, const hand_document *document)
{
	const int32_t blocks[4] = {3, 1, 0, 2};
	ft_kv_cache *cache;
	ft_decoder *decoder;
	ft_decode_item item = {
		.tokens = document->ids, .rows = document->length, .blocks = blocks, .wants_logits = true};
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

/* The directory holds the weights to the bit, and is served as the trainer sees it. */
static void
check_result(const char *which, bool bf16)
{
	ft_options o = full_options();
	char path[FT_PATH_SIZE];
	fixture f;
	ft_trainer *t;
	ft_model_file *file;
	ft_model *model;
	float *trained;
	float *loaded;
	int n;
	hand_document *documents = golden_documents(&n);

	open_fixture(&f, which, bf16);
	t = trainer_of(&f, &o);
	steps(t, 3);
	trained = weights_of(f.run.model);
	must(ft_full_check(f.run.file, f.directory));
	for (int i = 0; i < 2; i++) /* the second takes the place of the first */
		must(ft_full_write(t->full, t->transformer->stream, f.run.file, f.directory, NULL, NULL));
	must(ft_path_join(path, f.directory, "model.tmp"));
	assert_false(ft_file_exists(path));
	must(ft_path_join(path, f.directory, "model"));
	must(ft_model_file_open(path, &file));
	must(ft_model_load_trainable(file, f.run.ops, f.run.device, 0, &model));
	loaded = weights_of(model);
	assert_memory_equal(trained, loaded, (size_t) t->full->layout->n * sizeof(float));
	ft_model_free(model);
	must(ft_model_load(file, f.run.ops, f.run.device, FT_USE_SERVE, 0, &model));
	for (int i = 0; i < n; i++)
	{
		float *ours = training_logits(f.run.model, &documents[i]);
		float *served = serving_logits(model, &documents[i]);

		assert_true(relative_error(served, ours, model->config.vocab) < (bf16 ? 0.02 : 2e-6));
		free(ours);
		free(served);
	}
	ft_model_free(model);
	ft_model_file_close(file);
	ft_trainer_free(t);
	close_fixture(&f);
	free(trained);
	free(loaded);
	free(documents);
}

static void
test_result_is_what_was_trained(void **state)
{
	(void) state;
	for (int v = 0; v < 2; v++)
	{
		check_result(variants[v], false);
		check_result(variants[v], true);
	}
}

/* Every family, with biases, normed heads, windows and experts. */
typedef struct family
{
	const char *folder;
	const char *documents;
	bool vocabulary; /* else no directory can be made */
} family;

/* The loss of a batch by the model as any other loads it. */
static double
frozen_loss(const ft_model_file *file, const ft_ops *ops, ft_device *device,
			const ft_microbatch *batch)
{
	ft_loss_sums sums = {0};
	ft_transformer *t;
	ft_model *model;

	must(ft_model_load(file, ops, device, FT_USE_TRAIN, 0, &model));
	must(ft_transformer_create(model, NULL, batch->all, &t));
	must(ft_transformer_evaluate(t, batch, &sums));
	ft_transformer_free(t);
	ft_model_free(model);
	return sums.loss;
}

/* What is written holds the model's weights. */
static void
check_written(const ft_full *full, ft_stream *stream, const ft_model_file *base)
{
	const ft_model *from = full->model;
	char *directory = tiny_directory();
	char path[FT_PATH_SIZE];
	ft_model_file *file;
	ft_model *model;
	float *trained = weights_of(from);
	float *loaded;

	must(ft_full_write(full, stream, base, directory, NULL, NULL));
	must(ft_path_join(path, directory, "model"));
	must(ft_model_file_open(path, &file));
	must(ft_model_load_trainable(file, from->ops, from->device, 0, &model));
	loaded = weights_of(model);
	assert_memory_equal(trained, loaded, (size_t) full->layout->n * sizeof(float));
	free(trained);
	free(loaded);
	ft_model_free(model);
	ft_model_file_close(file);
	tiny_remove(directory);
	free(directory);
}

/* The weights that are trained give the frozen model's loss, and learn. */
static void
check_family(const family *f, bool bf16)
{
	const char *backend = getenv("PG_FINETUNE_TEST_BACKEND");
	ft_options o = full_options();
	char path[FT_PATH_SIZE];
	ft_model_file *file;
	const ft_ops *ops;
	ft_device *device;
	ft_model *model;
	ft_microbatch batch;
	ft_transformer *t;
	ft_full *full;
	ft_loss_sums sums[5] = {{0}};
	double norm;
	int n;
	hand_document *documents = read_documents(f->documents, &n);
	double weight = weight_by_hand(documents, n);

	snprintf(path, sizeof path, "test/golden/%s/base.gguf", f->folder);
	must(ft_model_file_open(path, &file));
	if (bf16)
		setenv("PG_FINETUNE_CPU", "bf16", 1);
	must(ft_device_open_named(backend ? backend : "cpu", 2,
							  bf16 ? FT_NUMERICS_FAST : FT_NUMERICS_REFERENCE, &ops, &device));
	unsetenv("PG_FINETUNE_CPU");
	pack_by_hand(&batch, documents, n, NEVER_SHARED);
	must(ft_model_load_trainable(file, ops, device, 0, &model));
	must(ft_transformer_create(model, NULL, batch.tokens, &t));
	must(ft_full_create(model, &o, &full));
	t->weight_gradients = full->gradients;
	for (int step = 0; step < 5; step++)
	{
		must(ft_weight_gradients_zero(full->gradients, t->stream));
		must(ft_transformer_train(t, &batch, 1.0 / weight, &sums[step]));
		must(ft_full_step(full, t->stream, step + 1, LEARNING_RATE, &norm));
	}
	assert_true(fabs(sums[0].loss / frozen_loss(file, ops, device, &batch) - 1) <
				(bf16 ? 5e-3 : 1e-6));
	assert_true(sums[4].loss < sums[0].loss * 0.95);
	if (f->vocabulary)
		check_written(full, t->stream, file);
	ft_full_free(full);
	ft_transformer_free(t);
	ft_microbatch_free(&batch);
	ft_model_free(model);
	ops->device_close(device);
	ft_model_file_close(file);
	free(documents);
}

static void
test_families(void **state)
{
	static const char own[] = "test/golden/families/documents.json";
	static const family families[] = {
		{"families/mistral", own, false},
		{"families/qwen2", own, false},
		{"families/qwen2_tied", own, false},
		{"families/qwen3", own, false},
		{"families/qwen3_tied", own, false},
		{"tiny_mixtral/plain", TINY_LLAMA "/documents.json", true},
		{"tiny_mixtral/window", TINY_LLAMA "/documents.json", true},
	};

	(void) state;
	for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
	{
		check_family(&families[i], false);
		check_family(&families[i], true);
	}
}

/* Frequencies that no configuration can say are found before the training. */
static void
test_check_refuses(void **state)
{
	tiny_model odd = tiny_default;
	char *directory = tiny_directory();
	char path[FT_PATH_SIZE];
	ft_model_file *file;

	(void) state;
	odd.rope_freqs = true;
	must(ft_path_join(path, directory, "base.gguf"));
	tiny_model_write(path, &odd);
	must(ft_model_file_open(path, &file));
	assert_int_equal(ft_full_check(file, directory), FT_UNSUPPORTED);
	must(ft_path_join(path, directory, "model.tmp"));
	assert_false(ft_file_exists(path));
	ft_model_file_close(file);
	tiny_remove(directory);
	free(directory);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ten_steps_equal_pytorch),
		cmocka_unit_test(test_ten_steps_of_small_numbers),
		cmocka_unit_test(test_resume_at_every_step),
		cmocka_unit_test(test_best_weights),
		cmocka_unit_test(test_other_numerics),
		cmocka_unit_test(test_non_finite_fails),
		cmocka_unit_test(test_frozen_model),
		cmocka_unit_test(test_result_is_what_was_trained),
		cmocka_unit_test(test_families),
		cmocka_unit_test(test_check_refuses),
	};

	/* the kernels that steps are made of are judged on every backend, files on one */
	if (getenv("PG_FINETUNE_TEST_BACKEND") != NULL)
		cmocka_set_test_filter("test_ten_steps*");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
