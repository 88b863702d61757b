/*
 * test_qlora.c: LoRA over a base that is held in few bits: loss, gradients, ten
 * optimizer steps and the adapter at their end against PyTorch over the NF4 that
 * bitsandbytes makes (test/golden/make_nf4.py); a quantised file trains as with
 * method lora; memory is what is planned; a checkpoint goes on exactly.
 */
#include "training.h"

#include "device.h"
#include "files.h"
#include "memory_plan.h"
#include "tiny_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GOLDEN "test/golden/nf4"
#define TOLERANCE 1e-5
#define N_STEPS 10
#define LEARNING_RATE 2e-3
#define QLORA (FT_USE_TRAIN | FT_USE_DEQUANTISE)

/* A base on a device; its tokenizer stays NULL. */
static void
open_base(tiny_run *run, const char *path, ft_numerics numerics, unsigned use)
{
	const char *backend = getenv("PG_FINETUNE_TEST_BACKEND");

	memset(run, 0, sizeof *run);
	must(ft_model_file_open(path, &run->file));
	if (numerics == FT_NUMERICS_FAST)
		setenv("PG_FINETUNE_CPU", "bf16", 1);
	must(ft_device_open_named(backend ? backend : "cpu", 2, numerics, &run->ops, &run->device));
	unsetenv("PG_FINETUNE_CPU");
	must(ft_model_load(run->file, run->ops, run->device, use, 0, &run->model));
}

/* Says so where the processor cannot multiply in 16 bits. */
static bool
has_bf16(const tiny_run *run)
{
	if (run->model->compute == FT_BF16)
		return true;
	print_message("skip: this processor has neither 16-bit products nor AVX-512\n");
	return false;
}

static float *
expected(const char *name, int64_t *n)
{
	return read_tensor(GOLDEN "/expected.safetensors", name, n);
}

static float *
on_host(const ft_transformer *t, const float *values, int64_t n)
{
	float *host;

	must(ft_alloc((void **) &host, (size_t) n, sizeof *host));
	must(t->ops->copy_to_host(t->stream, host, values, (size_t) n * sizeof *host));
	return host;
}

static void
close_to(const char *what, const float *values, const float *reference, int64_t n, double tolerance)
{
	double error = relative_error(values, reference, n);

	if (!(error < tolerance))
		fail_msg("%s differs by %g", what, error);
}

/* Every A and B, of values that lie as the adapter's do, against the fixture's <kind>.<name>. */
static void
check_matrices(const char *kind, const ft_adapter *adapter, const float *values, double tolerance)
{
	for (int i = 0; i < 2 * adapter->layers * FT_TARGET_COUNT; i++)
	{
		int slot = i / 2;
		char name[256];
		int64_t n;
		float *reference;

		snprintf(name, sizeof name, "%s.base_model.model.model.layers.%d.%s.lora_%c.weight", kind,
				 slot / FT_TARGET_COUNT, ft_target_module((ft_target) (slot % FT_TARGET_COUNT)),
				 i % 2 == 0 ? 'A' : 'B');
		reference = expected(name, &n);
		close_to(name, values + (i % 2 == 0 ? adapter->a_at : adapter->b_at)[slot], reference, n,
				 tolerance);
		free(reference);
	}
}

/* A base under an adapter, a batch, and what an optimizer step needs. */
typedef struct training
{
	tiny_run run;
	ft_adapter *adapter;
	ft_microbatch batch;
	double weight;
	ft_transformer *t;
	ft_arena arena;
	ft_optimizer optimizer;
} training;

static void
begin_with(training *r, const char *base, const char *adapter, ft_numerics numerics, unsigned use,
		   const char *rows)
{
	int n;
	hand_document *documents = read_documents(rows, &n);

	memset(r, 0, sizeof *r);
	open_base(&r->run, base, numerics, use);
	must(ft_peft_load(r->run.model, adapter, &r->adapter));
	pack_by_hand(&r->batch, documents, n, NEVER_SHARED);
	r->weight = weight_by_hand(documents, n);
	must(ft_optimizer_plan(&r->optimizer, r->adapter, 0.01, 1.0, &r->arena));
	must(ft_arena_allocate(&r->arena, r->run.ops, r->run.device));
	must(ft_transformer_create(r->run.model, r->adapter, r->batch.tokens, &r->t));
	free(documents);
}

static void
begin(training *r, const char *base, const char *adapter, ft_numerics numerics, unsigned use)
{
	begin_with(r, base, adapter, numerics, use, GOLDEN "/documents.json");
}

static void
end(training *r)
{
	ft_microbatch_free(&r->batch);
	ft_transformer_free(r->t);
	ft_arena_free(&r->arena);
	ft_adapter_free(r->adapter);
	ft_model_free(r->run.model);
	r->run.ops->device_close(r->run.device);
	ft_model_file_close(r->run.file);
}

/* The mean loss, and its gradient in the transformer. */
static double
gradient(training *r)
{
	ft_loss_sums sums = {0};

	must(ft_lora_zero_gradient(r->t->lora, r->t->stream));
	must(ft_transformer_train(r->t, &r->batch, 1.0 / r->weight, &sums));
	return sums.loss / r->weight;
}

static double
step(training *r, int i, double *norm)
{
	double loss = gradient(r);

	must(ft_optimizer_step(&r->optimizer, r->t->stream, r->adapter, r->t->lora->gradient, i + 1,
						   LEARNING_RATE, norm));
	must(ft_transformer_adapter_changed(r->t));
	return loss;
}

static void
test_equals_pytorch_over_nf4(void **state)
{
	training r;
	ft_loss_sums sums = {0};
	int64_t n;
	float *reference;
	float *values;
	double loss;

	(void) state;
	begin(&r, GOLDEN "/base.gguf", GOLDEN "/adapter", FT_NUMERICS_REFERENCE, QLORA);
	must(ft_transformer_evaluate(r.t, &r.batch, &sums));
	reference = expected("logits", &n);
	assert_int_equal(n, r.batch.trained * r.run.model->config.vocab);
	values = on_host(r.t, r.t->logits, n);
	close_to("logits", values, reference, n, TOLERANCE);
	free(values);
	free(reference);

	loss = gradient(&r);
	reference = expected("loss", &n);
	assert_true(fabs(loss / reference[0] - 1) < TOLERANCE);
	values = on_host(r.t, r.t->lora->gradient, r.adapter->n);
	check_matrices("gradient", r.adapter, values, TOLERANCE);
	free(values);
	free(reference);
	end(&r);
}

static void
test_ten_steps_equal_pytorch(void **state)
{
	training r;
	int64_t n;
	float *losses = expected("losses", &n);
	float *norms = expected("norms", &n);
	float *values;

	(void) state;
	assert_int_equal(n, N_STEPS);
	begin(&r, GOLDEN "/base.gguf", GOLDEN "/adapter", FT_NUMERICS_REFERENCE, QLORA);
	for (int i = 0; i < N_STEPS; i++)
	{
		double norm;
		double loss = step(&r, i, &norm);

		if (!(fabs(loss / losses[i] - 1) < TOLERANCE && fabs(norm / norms[i] - 1) < 3 * TOLERANCE))
			fail_msg("step %d: loss %.8g, norm %.8g, expected %.8g, %.8g", i, loss, norm, losses[i],
					 norms[i]);
	}
	values = on_host(r.t, r.adapter->values, r.adapter->n);
	check_matrices("after", r.adapter, values, 3 * TOLERANCE);
	free(values);
	free(losses);
	free(norms);
	end(&r);
}

/* With method lora the same base, which is not quantised, gives another loss; with products in 16
 * bits, qlora's is about the same. */
static void
test_other_arithmetic(void **state)
{
	double loss[3];

	(void) state;
	for (int i = 0; i < 3; i++)
	{
		training r;

		begin(&r, GOLDEN "/base.gguf", GOLDEN "/adapter",
			  i == 2 ? FT_NUMERICS_FAST : FT_NUMERICS_REFERENCE, i == 1 ? FT_USE_TRAIN : QLORA);
		if (i == 2 && !has_bf16(&r.run))
		{
			end(&r);
			skip();
		}
		loss[i] = gradient(&r);
		end(&r);
	}
	assert_true(fabs(loss[1] / loss[0] - 1) > 1e-3);
	assert_true(fabs(loss[2] / loss[0] - 1) < 5e-3 && loss[2] != loss[0]);
}

/* A quantised file's own blocks are trained over: as with method lora, in f32 and in 16 bits. */
static void
test_quantised_base_as_lora(void **state)
{
	const tiny_model shape = {.hidden = 64,
							  .ffn = 96,
							  .layers = 2,
							  .heads = 4,
							  .kv_heads = 2,
							  .head_dim = 16,
							  .context = 64,
							  .q4_1 = true,
							  .seed = 3};
	char *directory = tiny_directory();
	char base[FT_PATH_SIZE];
	char adapter[FT_PATH_SIZE];

	(void) state;
	must(ft_path_join(base, directory, "base.gguf"));
	must(ft_path_join(adapter, directory, "adapter"));
	tiny_model_write(base, &shape);
	tiny_adapter_write(adapter, &shape, 5);
	for (int fast = 0; fast < 2; fast++)
	{
		ft_numerics numerics = fast ? FT_NUMERICS_FAST : FT_NUMERICS_REFERENCE;
		training lora;
		training qlora;
		float *values[2];

		begin(&lora, base, adapter, numerics, FT_USE_TRAIN);
		begin(&qlora, base, adapter, numerics, QLORA);
		/* in f32 the CPU's packed blocks are read by the products themselves */
		assert_int_equal(qlora.run.model->quantised, strcmp(qlora.run.ops->name, "cpu") != 0 ||
														 qlora.run.model->compute == FT_BF16);
		for (int i = 0; i < 4 && (!fast || lora.run.model->compute == FT_BF16); i++)
		{
			double norms[2];
			double losses[2] = {step(&lora, i, &norms[0]), step(&qlora, i, &norms[1])};

			if (!(fabs(losses[1] / losses[0] - 1) < 1e-6 && fabs(norms[1] / norms[0] - 1) < 1e-5))
				fail_msg("step %d: loss %.9g, norm %.9g, with lora %.9g, %.9g", i, losses[1],
						 norms[1], losses[0], norms[0]);
		}
		values[0] = on_host(lora.t, lora.adapter->values, lora.adapter->n);
		values[1] = on_host(qlora.t, qlora.adapter->values, lora.adapter->n);
		close_to("adapter", values[1], values[0], lora.adapter->n, 1e-4);
		free(values[0]);
		free(values[1]);
		end(&lora);
		end(&qlora);
	}
	tiny_remove(directory);
	free(directory);
}

/* Put the values of a weight that is held in few bits in the place of another. */
static void
replace(const training *to, ft_weight **weight, const training *from, const ft_weight *quantised,
		int64_t rows, int64_t cols)
{
	const ft_ops *ops = from->run.ops;
	size_t bytes = (size_t) (rows * cols) * sizeof(float);
	ft_mat values;
	void *y;

	must(ops->mem_alloc(from->run.device, FT_MEM_DEVICE, bytes, &y));
	must(ops->dequantise(from->t->stream, ft_mat_make(y, FT_F32, rows, cols), quantised));
	values = ft_mat_make(on_host(from->t, y, rows * cols), FT_F32, rows, cols);
	ops->mem_free(from->run.device, FT_MEM_DEVICE, y);
	ops->weight_free(*weight);
	must(ops->weight_create(to->run.device, &values, 1, FT_USE_TRAIN, weight));
	free(values.data);
}

/* A mixture of experts, each of which is dequantised for its rows: as method lora over the same
 * values. */
static void
test_experts(void **state)
{
	const char *base = "test/golden/tiny_mixtral/plain/base.gguf";
	const char *adapter = "test/golden/tiny_mixtral/plain/adapter";
	training lora;
	training qlora;
	const ft_config *c;
	float *gradients[2];
	double losses[2];
	double before;

	(void) state;
	begin_with(&lora, base, adapter, FT_NUMERICS_REFERENCE, FT_USE_TRAIN,
			   TINY_LLAMA "/documents.json");
	begin_with(&qlora, base, adapter, FT_NUMERICS_REFERENCE, QLORA, TINY_LLAMA "/documents.json");
	c = &lora.run.model->config;
	assert_true(c->experts > 0);
	before = gradient(&lora);
	for (int i = 0; i < c->layers; i++)
	{
		ft_layer *to = &lora.run.model->layers[i];
		const ft_layer *from = &qlora.run.model->layers[i];
		int64_t q = (int64_t) c->heads * c->head_dim;

		replace(&lora, &to->qkv, &qlora, from->qkv, q + 2 * (int64_t) c->kv_heads * c->head_dim,
				c->hidden);
		replace(&lora, &to->out, &qlora, from->out, c->hidden, q);
		for (int e = 0; e < c->experts; e++)
		{
			replace(&lora, &to->experts_gate_up[e], &qlora, from->experts_gate_up[e],
					2 * (int64_t) c->ffn, c->hidden);
			replace(&lora, &to->experts_down[e], &qlora, from->experts_down[e], c->hidden, c->ffn);
		}
	}
	losses[0] = gradient(&lora);
	losses[1] = gradient(&qlora);
	gradients[0] = on_host(lora.t, lora.t->lora->gradient, lora.adapter->n);
	gradients[1] = on_host(qlora.t, qlora.t->lora->gradient, lora.adapter->n);
	assert_true(fabs(before / losses[0] - 1) > 1e-4);
	assert_true(fabs(losses[1] / losses[0] - 1) < 1e-6);
	close_to("gradient", gradients[1], gradients[0], lora.adapter->n, 1e-5);
	free(gradients[0]);
	free(gradients[1]);
	end(&lora);
	end(&qlora);
}

/* Bytes of the blocks' matrices on the device. */
static int64_t
matrix_bytes(const ft_model *m)
{
	int64_t bytes = 0;

	for (int i = 0; i < m->config.layers; i++)
	{
		const ft_layer *l = &m->layers[i];

		bytes += m->ops->weight_bytes(l->qkv) + m->ops->weight_bytes(l->out) +
				 m->ops->weight_bytes(l->gate_up) + m->ops->weight_bytes(l->down);
	}
	return bytes;
}

static void
test_memory_as_planned(void **state)
{
	training r;
	ft_memory_plan qlora;
	ft_memory_plan lora;
	const ft_config *c;
	int64_t tokens;
	int64_t linear;
	int64_t nf4;

	(void) state;
	begin(&r, GOLDEN "/base.gguf", GOLDEN "/adapter", FT_NUMERICS_FAST, QLORA);
	if (!has_bf16(&r.run))
	{
		end(&r);
		skip();
	}
	c = &r.run.model->config;
	tokens = r.t->capacity;
	must(ft_memory_plan_make(c, FT_METHOD_QLORA, r.adapter->rank, tokens, &qlora));
	must(ft_memory_plan_make(c, FT_METHOD_LORA, r.adapter->rank, tokens, &lora));
	assert_int_equal(r.t->arena.bytes, qlora.activations);
	assert_int_equal(r.arena.bytes, qlora.optimizer);
	/* one matrix of the largest shape, gate and up, is dequantised at a time */
	assert_int_equal(qlora.activations - lora.activations, 2 * 64 * 64 * 2);
	/* a layer has q and o, k and v, and the three of the feed-forward network */
	linear = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 64);
	nf4 = 2 * (5 * ft_nf4_bytes(64 * 64) + 2 * ft_nf4_bytes(32 * 64));
	/* seven matrices of two layers, which a GPU may begin at multiples of 256 bytes */
	assert_in_range(matrix_bytes(r.run.model), nf4,
					strcmp(r.run.ops->name, "cpu") == 0 ? nf4 : nf4 + 14 * 255);
	assert_int_equal(lora.weights - qlora.weights, 2 * linear - nf4);
	end(&r);

	/* of a large matrix 4.13 bits a value */
	assert_int_equal(ft_nf4_bytes((int64_t) 4096 * 4096),
					 4096 * 4096 / 2 + 4096 * 64 + 4 * (257 + 1024));
}

static ft_trainer *
trainer_of(const tiny_run *run, ft_dataset *dataset, const ft_options *o)
{
	ft_adapter *adapter;
	ft_trainer *t;

	must(ft_adapter_create(run->model, o->lora_r, (float) o->lora_alpha, false,
						   o->lora_target_modules, &adapter));
	must(ft_adapter_init(adapter, &run->model->config, o->seed));
	must(ft_trainer_create(run->model, dataset, o, adapter, 256, &t));
	return t;
}

static void
take_steps(ft_trainer *t, int64_t n)
{
	ft_step_report report;

	for (int64_t i = 0; i < n; i++)
		must(ft_trainer_step(t, &report));
}

/* Saved in the middle, and gone on with by a new process's model: the same bytes as without. */
static void
test_resume(void **state)
{
	const ft_dataset_options data = {.max_length = 64, .seed = 1};
	char *directory = tiny_directory();
	tiny_run runs[2];
	ft_options o;
	ft_text text = {0};
	ft_dataset *dataset;
	ft_trainer *t[2];
	ft_run_state restored;
	ft_adapter *saved;
	ft_adapter *best;
	float *values[2];
	int64_t half;

	(void) state;
	for (int i = 0; i < 2; i++)
	{
		open_base(&runs[i], TINY_LLAMA "/tied/base.gguf", FT_NUMERICS_REFERENCE, QLORA);
		must(ft_tokenizer_create(ft_model_file_vocabulary(runs[i].file), &runs[i].tokenizer));
		must(ft_chat_template_find(NULL, ft_model_file_template(runs[i].file),
								   &runs[i].chat_template));
	}
	for (int i = 0; i < 12; i++)
		must(ft_text_printf(&text, "{\"prompt\": \"%d and\", \"completion\": \"the %d\"}\n", i,
							i * i));
	dataset = dataset_of(&runs[0], directory, text.data, NULL, &data);
	must(ft_options_read(NULL, &o));
	o.lora_r = 4;
	o.lora_alpha = 8;
	o.learning_rate = 1e-2;
	o.batch_size = 64;
	o.max_epochs = 2;
	o.max_seq_length = 64;

	for (int i = 0; i < 2; i++)
		t[i] = trainer_of(&runs[i], dataset, &o);
	half = t[0]->total_steps / 2;
	assert_true(half > 0);
	take_steps(t[0], half);
	must(ft_trainer_read_moments(t[0]));
	must(ft_checkpoint_save(directory, "this run", &t[0]->state, t[0]->adapter, NULL,
							&runs[0].model->config, "tiny", &t[0]->moments));
	take_steps(t[0], t[0]->total_steps - half);
	must(ft_checkpoint_load(directory, "this run", runs[1].model, &restored, &saved, &best,
							&t[1]->moments));
	must(runs[1].ops->copy(t[1]->transformer->stream, t[1]->adapter->values, saved->values,
						   (size_t) saved->n * sizeof(float)));
	must(ft_trainer_resume(t[1], &restored));
	must(ft_transformer_adapter_changed(t[1]->transformer));
	take_steps(t[1], t[1]->total_steps - half);
	for (int i = 0; i < 2; i++)
		values[i] = on_host(t[i]->transformer, t[i]->adapter->values, t[i]->adapter->n);
	assert_memory_equal(values[0], values[1], (size_t) t[0]->adapter->n * sizeof(float));

	ft_adapter_free(saved);
	ft_text_free(&text);
	ft_dataset_close(dataset);
	for (int i = 0; i < 2; i++)
	{
		free(values[i]);
		ft_trainer_free(t[i]);
		tiny_close(&runs[i]);
	}
	tiny_remove(directory);
	free(directory);
}

/* A matrix with a value that is no number is named. */
static void
test_not_finite(void **state)
{
	tiny_run run = {0};
	char *directory = tiny_directory();
	char path[FT_PATH_SIZE];
	ft_text file = {0};
	const ft_model_tensor *tensor;

	(void) state;
	must(ft_path_join(path, directory, "base.gguf"));
	must(ft_model_file_open(TINY_LLAMA "/tied/base.gguf", &run.file));
	tensor = ft_model_file_find(run.file, "model.layers.1.mlp.up_proj.weight");
	assert_non_null(tensor);
	must(ft_read_file(TINY_LLAMA "/tied/base.gguf", 1 << 20, &file));
	memcpy(file.data + tensor->offset + 4 * (3 * tensor->cols), "\0\0\x80\x7f", 4);
	must(ft_replace_file(path, file.data, file.length));
	ft_model_file_close(run.file);
	must(ft_model_file_open(path, &run.file));
	must(ft_device_open_named("cpu", 1, FT_NUMERICS_REFERENCE, &run.ops, &run.device));
	assert_int_equal(ft_model_load(run.file, run.ops, run.device, QLORA, 0, &run.model),
					 FT_CORRUPT);
	assert_non_null(strstr(ft_error_message(),
						   "tensor \"model.layers.1.mlp.up_proj.weight\": a value "
						   "near column"));
	run.ops->device_close(run.device);
	ft_model_file_close(run.file);
	ft_text_free(&file);
	tiny_remove(directory);
	free(directory);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_equals_pytorch_over_nf4),
		cmocka_unit_test(test_ten_steps_equal_pytorch),
		cmocka_unit_test(test_other_arithmetic),
		cmocka_unit_test(test_quantised_base_as_lora),
		cmocka_unit_test(test_experts),
		cmocka_unit_test(test_memory_as_planned),
		cmocka_unit_test(test_resume),
		cmocka_unit_test(test_not_finite),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
