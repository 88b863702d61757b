/*
 * test_directory.c: Hugging Face directories as models: what transformers
 * computes with the same files, and directories that are broken in every way.
 */
#include "decode.h"
#include "device.h"
#include "digest.h"
#include "files.h"
#include "hf_config.h"
#include "memory_plan.h"
#include "packing.h"
#include "safetensors.h"
#include "tiny_model.h"
#include "training.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define GOLDEN "test/golden/directories"

static char *directory; /* a scratch copy of a model */

/* --- golden --- */

static json_t *
read_expected(void)
{
	json_t *json = json_load_file(GOLDEN "/expected.json", 0, NULL);

	assert_non_null(json);
	return json;
}

static int
read_ids(const json_t *list, int32_t *ids)
{
	for (size_t i = 0; i < json_array_size(list); i++)
		ids[i] = (int32_t) json_integer_value(json_array_get(list, i));
	return (int) json_array_size(list);
}

static ft_model *
load(const char *path, ft_model_file **file)
{
	const ft_ops *ops;
	ft_device *device;
	ft_model *model;

	must(ft_model_file_open(path, file));
	must(ft_device_open_named("cpu", 1, FT_NUMERICS_REFERENCE, &ops, &device));
	must(ft_model_load(*file, ops, device, FT_USE_TRAIN | FT_USE_SERVE, 0, &model));
	return model;
}

static void
unload(ft_model *model, ft_model_file *file)
{
	const ft_ops *ops = model->ops;
	ft_device *device = model->device;

	ft_model_free(model);
	ops->device_close(device);
	ft_model_file_close(file);
}

/* Logits behind the last of some tokens, by the serving path. */
static void
serve(const ft_model *model, const int32_t *ids, int n, float *logits)
{
	int n_blocks = ft_kv_blocks_for(n);
	int32_t blocks[8];
	ft_kv_cache *cache;
	ft_decoder *decoder;

	must(ft_kv_cache_create(model, n_blocks, &cache));
	must(ft_decoder_create(model, n, 1, &decoder));
	assert_true(ft_kv_take(cache, n_blocks, blocks));
	must(ft_decoder_run(
		decoder, cache,
		&(ft_decode_item){.tokens = ids, .rows = n, .blocks = blocks, .wants_logits = true}, 1));
	must(ft_decoder_logits(decoder, 0, logits));
	ft_decoder_free(decoder);
	ft_kv_cache_free(cache);
}

/* The same by the training pass. */
static void
train(const ft_model *model, const int32_t *ids, int n, float *logits)
{
	ft_adapter *adapter;
	ft_microbatch batch;
	ft_loss_sums sums = {0};
	ft_transformer *t;

	must(ft_adapter_create(model, 1, 1.0f, false, 1, &adapter));
	must(ft_adapter_init(adapter, &model->config, 1));
	must(ft_microbatch_create(n + 1, &batch));
	memcpy(batch.all_ids, ids, (size_t) n * sizeof *ids);
	batch.all_weights[n] = 1.0f;
	batch.all = batch.max_length = batch.starts[1] = n + 1;
	batch.n_documents = 1;
	ft_microbatch_arrange(&batch, 1);
	must(ft_transformer_create(model, adapter, n + 1, &t));
	must(ft_transformer_evaluate(t, &batch, &sums));
	memcpy(logits, t->logits, (size_t) model->config.vocab * sizeof *logits);
	ft_transformer_free(t);
	ft_microbatch_free(&batch);
	ft_adapter_free(adapter);
}

static void
compare(const char *name, const char *path, int row, const float *got, const float *expected, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (!(fabsf(got[i] - expected[i]) <= 1e-5f * fmaxf(1.0f, fabsf(expected[i]))))
			fail_msg("%s, %s, row %d: logit %d is %.8g, expected %.8g", name, path, row, i,
					 (double) got[i], (double) expected[i]);
	}
}

static void
check_golden(const char *name, bool tied, ft_dtype stored, const json_t *json,
			 const ft_safetensors *tensors)
{
	const ft_safetensor *expected = ft_safetensors_find(tensors, name);
	int rows = (int) expected->dims[0];
	char path[FT_PATH_SIZE];
	ft_model_file *file;
	ft_model *model;
	int32_t ids[64];
	int n = read_ids(json_object_get(json, "ids"), ids);
	int vocab = (int) expected->dims[1];
	float *logits = calloc((size_t) vocab, sizeof *logits);
	float *values = calloc((size_t) (rows * vocab), sizeof *values);

	must(ft_safetensors_read_f32(tensors, expected, values, (int64_t) rows * vocab));
	snprintf(path, sizeof path, GOLDEN "/%s", name);
	model = load(path, &file);
	assert_int_equal(model->config.vocab, vocab);
	assert_int_equal(model->config.tied_embeddings, tied);
	assert_int_equal(ft_model_file_find(file, "model.embed_tokens.weight")->dtype, stored);
	for (int row = 0; row < rows; row++)
	{
		serve(model, ids, n - rows + 1 + row, logits);
		compare(name, "served", row, logits, values + row * vocab, vocab);
		train(model, ids, n - rows + 1 + row, logits);
		compare(name, "trained", row, logits, values + row * vocab, vocab);
	}
	free(values);
	free(logits);
	unload(model, file);
}

static void
test_golden(void **state)
{
	json_t *json = read_expected();
	ft_safetensors *tensors;

	(void) state;
	must(ft_safetensors_open(GOLDEN "/expected.safetensors", &tensors));
	check_golden("plain", true, FT_F32, json, tensors);
	check_golden("old", false, FT_BF16, json, tensors);
	check_golden("new", true, FT_BF16, json, tensors);
	check_golden("half", false, FT_F16, json, tensors);
	check_golden("untied", false, FT_F32, json, tensors);
	check_golden("qwen2", true, FT_BF16, json, tensors);
	check_golden("qwen3", true, FT_BF16, json, tensors);
	check_golden("mixtral", false, FT_BF16, json, tensors);
	ft_safetensors_close(tensors);
	json_decref(json);
}

/* What stands beside the weights: ends, template, vocabulary. */
static void
test_beside(void **state)
{
	ft_model_file *file;
	const ft_config *c;

	(void) state;
	must(ft_model_file_open(GOLDEN "/old", &file));
	c = ft_model_file_config(file);
	assert_string_equal(c->architecture, "llama");
	assert_int_equal(c->rope_scaling, FT_ROPE_LLAMA3);
	assert_true(c->rope_theta == 5000 && c->rope_factor == 4 && c->rope_high_freq == 4);
	assert_int_equal(c->rope_original_positions, 16);
	assert_int_equal(c->n_eos, 2); /* generation_config.json has another beside config.json's */
	assert_int_equal(c->eos[0], 2);
	assert_int_equal(c->eos[1], 0);
	assert_int_equal(c->bos, 1);
	assert_int_equal(ft_model_file_vocabulary(file)->eos, 2);
	assert_true(strncmp(ft_model_file_template(file), "{% for message", 14) == 0);
	assert_int_equal(ft_model_file_parameters(file), 16780);
	ft_model_file_close(file);
}

/* --- the memory plan --- */

/* What is planned from a configuration alone is what training takes. */
static void
test_plan(void **state)
{
	tiny_run run;
	ft_adapter *adapter;
	ft_memory_plan plan;
	ft_arena arena = {0};
	ft_optimizer optimizer;
	int64_t bytes;

	(void) state;
	tiny_open_bf16(&run, "untied", 1);
	must(ft_memory_plan_make(&run.model->config, FT_METHOD_LORA, 5, 64, &plan));
	must(ft_adapter_create(run.model, 5, 1.0f, false, (1u << FT_TARGET_COUNT) - 1, &adapter));
	must(ft_optimizer_plan(&optimizer, adapter, 0, 0, &arena));
	must(ft_transformer_bytes(run.model, adapter, 64, &bytes));
	assert_int_equal(plan.adapter, adapter->n * 4);
	assert_int_equal(plan.optimizer, arena.bytes);
	assert_int_equal(plan.activations, bytes);
	assert_int_equal(ft_config_parameters(&run.model->config), ft_model_file_parameters(run.file));
	/* the embedding of an untied model stays as it is stored, here in f32 */
	bytes = (int64_t) run.model->config.vocab * run.model->config.hidden * 2;
	assert_in_range(run.model->bytes - plan.weights, bytes, bytes + 12 * 1024);
	ft_arena_free(&arena);
	ft_adapter_free(adapter);
	tiny_close(&run);
}

/* The same of training all weights. */
static void
test_plan_full(void **state)
{
	ft_options options;
	tiny_run run;
	ft_transformer *t;
	ft_full *full;
	ft_memory_plan plan;

	(void) state;
	must(ft_options_read(NULL, &options));
	tiny_open_bf16(&run, "untied", 1);
	ft_model_free(run.model);
	must(ft_model_load_trainable(run.file, run.ops, run.device, 64, &run.model));
	must(ft_transformer_create(run.model, NULL, 64, &t));
	must(ft_full_create(run.model, &options, &full));
	must(ft_memory_plan_make(&run.model->config, FT_METHOD_FULL, 5, 64, &plan));
	assert_int_equal(plan.weights, run.model->bytes);
	assert_int_equal(plan.adapter, 0);
	assert_int_equal(plan.optimizer, full->arena.bytes + full->gradients->arena.bytes);
	assert_int_equal(plan.activations, t->arena.bytes);
	ft_full_free(full);
	ft_transformer_free(t);
	tiny_close(&run);
}

/* Sizes that are each within bounds, and together beyond any memory. */
static void
test_plan_overflow(void **state)
{
	const ft_config c = {.hidden = 1 << 20,
						 .ffn = 1 << 22,
						 .layers = 4096,
						 .heads = 8192,
						 .kv_heads = 8192,
						 .head_dim = 4096,
						 .experts = 256,
						 .experts_per_token = 2,
						 .vocab = 1 << 24,
						 .max_positions = 1 << 28};
	ft_memory_plan plan;

	(void) state;
	assert_true(ft_config_parameters(&c) == INT64_MAX);
	assert_int_equal(ft_memory_plan_make(&c, FT_METHOD_FULL, 16, 2048, &plan), FT_NO_MEMORY);
}

static void
test_plan_fits(void **state)
{
	ft_model_file *file;
	const ft_config *c;

	(void) state;
	must(ft_model_file_open(GOLDEN "/old", &file));
	c = ft_model_file_config(file);
	for (int m = 0; m < FT_METHOD_COUNT; m++)
	{
		ft_memory_plan plan;
		int64_t tokens;

		must(ft_memory_plan_make(c, (ft_method) m, 16, 100, &plan));
		must(ft_memory_plan_tokens(c, (ft_method) m, 16, plan.total * 2, &tokens));
		assert_true(tokens >= 100);
		must(ft_memory_plan_make(c, (ft_method) m, 16, tokens, &plan));
		assert_true(
			ft_memory_plan_fits(&plan, plan.weights + (plan.total - plan.weights) * 8 / 7 + 8));
		assert_false(ft_memory_plan_fits(&plan, plan.total));
		must(ft_memory_plan_tokens(c, (ft_method) m, 16, plan.weights, &tokens));
		assert_int_equal(tokens, 0);
	}
	ft_model_file_close(file);
}

/* --- scratch copies --- */

static int
setup(void **state)
{
	(void) state;
	directory = tiny_directory();
	return 0;
}

static int
teardown(void **state)
{
	(void) state;
	tiny_remove(directory);
	free(directory);
	return 0;
}

static const char *const shards[] = {"model-00001-of-00003.safetensors",
									 "model-00002-of-00003.safetensors",
									 "model-00003-of-00003.safetensors"};

static char *
at(const char *name)
{
	static char path[FT_PATH_SIZE];

	must(ft_path_join(path, directory, name));
	return path;
}

static ft_text
read_golden(const char *model, const char *name)
{
	char path[FT_PATH_SIZE];
	ft_text text = {0};

	snprintf(path, sizeof path, GOLDEN "/%s/%s", model, name);
	must(ft_read_file(path, 1 << 24, &text));
	return text;
}

static void
put(const char *name, const char *bytes, size_t n)
{
	must(ft_replace_file(at(name), bytes, n));
}

static void
copy_file(const char *model, const char *name)
{
	ft_text text = read_golden(model, name);

	put(name, text.data, text.length);
	ft_text_free(&text);
}

/* All of "plain", sharded. */
static void
copy_model(void)
{
	static const char *const names[] = {"config.json",         "generation_config.json",
										"tokenizer.json",      "tokenizer_config.json",
										"chat_template.jinja", "model.safetensors.index.json"};

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
		copy_file("plain", names[i]);
	for (size_t i = 0; i < 3; i++)
		copy_file("plain", shards[i]);
}

static void
refused(ft_status expected, const char *words)
{
	ft_model_file *file;
	ft_status status = ft_model_file_open(directory, &file);

	if (status == FT_OK)
		fail_msg("opened, expected \"%s\"", words);
	if (status != expected || strstr(ft_error_message(), words) == NULL)
		fail_msg("%s: \"%s\", expected %s: \"%s\"", ft_status_name(status), ft_error_message(),
				 ft_status_name(expected), words);
}

static void
accepted(void)
{
	ft_model_file *file;

	must(ft_model_file_open(directory, &file));
	ft_model_file_close(file);
}

/* A file of the model with one text in it replaced by another. */
static void
edit(const char *name, const char *from, const char *to)
{
	ft_text text = read_golden("plain", name);
	const char *where = strstr(text.data, from);
	ft_text edited = {0};

	assert_non_null(where);
	must(ft_text_append(&edited, text.data, (size_t) (where - text.data)));
	must(ft_text_append(&edited, to, strlen(to)));
	must(ft_text_append(&edited, where + strlen(from), strlen(where + strlen(from))));
	put(name, edited.data, edited.length);
	ft_text_free(&edited);
	ft_text_free(&text);
}

/* --- hostile directories --- */

static void
test_missing(void **state)
{
	(void) state;
	refused(FT_CORRUPT, "is a directory without a config.json");
	copy_file("plain", "config.json");
	refused(FT_NOT_FOUND, "has no weights");
	copy_model();
	accepted();
	unlink(at("tokenizer.json"));
	refused(FT_NOT_FOUND, "tokenizer.model\": no such file");
	copy_model();
	for (size_t i = 0; i < 3; i++)
	{
		unlink(at(shards[i]));
		refused(FT_NOT_FOUND, "model.safetensors.index.json: shard \"model-0000");
		copy_model();
	}
	unlink(at("generation_config.json"));
	unlink(at("chat_template.jinja"));
	unlink(at("tokenizer_config.json"));
	accepted();
}

static void
test_not_regular(void **state)
{
	(void) state;
	copy_model();
	unlink(at("generation_config.json"));
	must(mkfifo(at("generation_config.json"), 0600) == 0 ? FT_OK : FT_IO);
	refused(FT_UNSUPPORTED, "\"generation_config.json\" is not a regular file");
	unlink(at("generation_config.json"));
	assert_int_equal(symlink("/nonexistent", at("generation_config.json")), 0);
	refused(FT_NOT_FOUND, "could not open \"generation_config.json\"");
}

static void
test_index(void **state)
{
	const char *index = "model.safetensors.index.json";
	const char *norm = "\"model.norm.weight\": \"model-00003-of-00003.safetensors\"";

	(void) state;
	copy_model();
	edit(index, norm, "\"model.norm.weight\": \"model-00002-of-00003.safetensors\"");
	refused(FT_CORRUPT,
			"stands in \"model-00002-of-00003.safetensors\" by model.safetensors.index");
	edit(index, norm, "\"model.nrom.weight\": \"model-00003-of-00003.safetensors\"");
	refused(FT_CORRUPT, "tensor \"model.norm.weight\" is not in model.safetensors.index.json");
	edit(index, norm,
		 "\"model.norm.weight\": \"model-00003-of-00003.safetensors\", "
		 "\"model.more.weight\": \"model-00003-of-00003.safetensors\"");
	refused(FT_CORRUPT, "tensor \"model.more.weight\" is not in its shard \"model-00003");
	edit(index, norm, "\"model.norm.weight\": \"model-00004-of-00003.safetensors\"");
	refused(FT_NOT_FOUND, "shard \"model-00004-of-00003.safetensors\" is missing");
	edit(index, norm, "\"model.norm.weight\": \"../model-00003-of-00003.safetensors\"");
	refused(FT_CORRUPT, "is no name of a shard");
	edit(index, norm, "\"model.norm.weight\": \"model/../x.safetensors\"");
	refused(FT_CORRUPT, "is no name of a shard");
	edit(index, norm, "\"model.norm.weight\": \"/etc/model.safetensors\"");
	refused(FT_CORRUPT, "is no name of a shard");
	edit(index, norm, "\"model.norm.weight\": \"model.safetensors.index.json\"");
	refused(FT_CORRUPT, "is no name of a shard");
	edit(index, norm, "\"model.norm.weight\": 3");
	refused(FT_CORRUPT, "the shard of tensor \"model.norm.weight\" is no string");
	edit(index, norm, "\"model.embed_tokens.weight\": \"model-00001-of-00003.safetensors\"");
	refused(FT_CORRUPT, "a key stands twice in one object");
	edit(index, "\"weight_map\"", "\"weight_mop\"");
	refused(FT_CORRUPT, "\"weight_map\" is no object");
	put(index, "[]", 2);
	refused(FT_CORRUPT, "model.safetensors.index.json: not a JSON object");
	/* one file takes the place of index and shards */
	copy_model();
	put("model.safetensors", "x", 1);
	refused(FT_CORRUPT, "model.safetensors: ");
}

/* Shapes, types and names that the configuration does not allow. */
static void
test_contradictions(void **state)
{
	(void) state;
	copy_model();
	edit("config.json", "\"hidden_size\": 20", "\"hidden_size\": 24");
	refused(FT_CORRUPT, "tensor \"model.embed_tokens.weight\" has shape [261, 20]");
	edit("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
	refused(FT_CORRUPT, "tensor \"model.layers.2.");
	edit("config.json", "\"vocab_size\": 261", "\"vocab_size\": 260");
	refused(FT_CORRUPT, "has shape [261, 20], expected [260, 20]");
	edit("config.json", "\"eos_token_id\": 2", "\"eos_token_id\": 261");
	refused(FT_CORRUPT, "\"eos_token_id\" is 261, but the vocabulary has 261 tokens");
	edit("config.json", "{", "{\"hidden_size\": 20, ");
	refused(FT_CORRUPT, "config.json: a key stands twice in one object");
	copy_model();
	edit("generation_config.json", "    0", "    -1");
	refused(FT_CORRUPT, "generation_config.json: \"eos_token_id\" is -1");
	copy_model();
	put("chat_template.jinja", "a\0b", 3);
	refused(FT_CORRUPT, "chat_template.jinja: the chat template has a NUL byte");
	put("tokenizer_config.json", "{\"chat_template\": 1}", 20);
	unlink(at("chat_template.jinja"));
	refused(FT_CORRUPT, "tokenizer_config.json: \"chat_template\" is neither");
}

/* --- config.json --- */

#define LLAMA                                                                         \
	"\"architectures\":[\"LlamaForCausalLM\"],\"vocab_size\":100,\"hidden_size\":64," \
	"\"intermediate_size\":128,\"num_hidden_layers\":4,\"num_attention_heads\":8"
#define OTHER(class)                                                                         \
	"\"architectures\":[\"" class "ForCausalLM\"],\"vocab_size\":100,\"hidden_size\":64,"    \
								  "\"intermediate_size\":128,\"num_hidden_layers\":4,\"num_" \
								  "attention_heads\":8"

static ft_config
config_of(const char *members)
{
	char *text;
	ft_config config;

	assert_true(asprintf(&text, "{%s}", members) > 0);
	must(ft_hf_config_read(text, strlen(text), &config));
	free(text);
	return config;
}

static void
config_refused(const char *members, ft_status expected, const char *words)
{
	char *text;
	ft_config config;
	ft_status status;

	assert_true(asprintf(&text, "{%s}", members) > 0);
	status = ft_hf_config_read(text, strlen(text), &config);
	free(text);
	if (status != expected || strstr(ft_error_message(), words) == NULL)
		fail_msg("%s: %s \"%s\", expected \"%s\"", members, ft_status_name(status),
				 status == FT_OK ? "" : ft_error_message(), words);
}

static void
test_defaults(void **state)
{
	ft_config c = config_of(LLAMA);

	(void) state;
	assert_int_equal(c.kv_heads, 8);
	assert_int_equal(c.head_dim, 8);
	assert_int_equal(c.max_positions, 2048);
	assert_int_equal(c.window, 0);
	assert_true(c.rms_eps == 1e-6f && c.rope_theta == 1e4);
	assert_int_equal(c.bos, -1);
	assert_int_equal(c.n_eos, 0);
	c = config_of(LLAMA ",\"sliding_window\":16"); /* which this class has not */
	assert_int_equal(c.window, 0);

	c = config_of(OTHER("Mistral"));
	assert_int_equal(c.kv_heads, 8);
	assert_int_equal(c.window, 4096);
	c = config_of(OTHER("Mistral") ",\"sliding_window\":null,\"num_key_value_heads\":null");
	assert_int_equal(c.window, 0);
	assert_int_equal(c.kv_heads, 8);
	c = config_of(OTHER("Mistral") ",\"sliding_window\":16,\"head_dim\":4");
	assert_int_equal(c.window, 16);
	assert_int_equal(c.head_dim, 4);
	c = config_of(OTHER("Mistral") ",\"sliding_window\":16,\"max_position_embeddings\":16");
	assert_int_equal(c.window, 0);

	c = config_of(OTHER("Mixtral"));
	assert_int_equal(c.window, 0);
	assert_int_equal(c.experts, 8);
	assert_int_equal(c.experts_per_token, 2);
	assert_true(c.rope_theta == 1e6);

	c = config_of(OTHER("Qwen2") ",\"num_key_value_heads\":4,\"sliding_window\":16");
	assert_int_equal(c.window, 0);
	assert_true(c.qkv_bias && !c.qk_norm);
	c = config_of(OTHER("Qwen2") ",\"num_key_value_heads\":4,\"sliding_window\":16,"
								 "\"use_sliding_window\":true,\"max_window_layers\":1");
	assert_int_equal(c.window, 16);
	assert_int_equal(c.window_from, 1);
	c = config_of(OTHER("Qwen2") ",\"num_key_value_heads\":4,\"use_sliding_window\":true,"
								 "\"max_window_layers\":4");
	assert_int_equal(c.window, 0);
	c = config_of(OTHER("Qwen3") ",\"num_key_value_heads\":4,\"sliding_window\":16,"
								 "\"use_sliding_window\":true,\"layer_types\":[\"full_attention\","
								 "\"full_attention\",\"sliding_attention\",\"sliding_attention\"]");
	assert_int_equal(c.head_dim, 128);
	assert_int_equal(c.window_from, 2);
	assert_true(c.qk_norm && !c.qkv_bias);
}

static void
test_rope(void **state)
{
	ft_config c = config_of(LLAMA ",\"rope_theta\":500000.0,\"rope_scaling\":{\"type\":\"linear\","
								  "\"factor\":2.5}");

	(void) state;
	assert_int_equal(c.rope_scaling, FT_ROPE_LINEAR);
	assert_true(c.rope_theta == 5e5 && c.rope_factor == 2.5);
	c = config_of(LLAMA ",\"rope_theta\":3,\"rope_parameters\":{\"rope_type\":\"default\","
						"\"rope_theta\":7}");
	assert_int_equal(c.rope_scaling, FT_ROPE_PLAIN);
	assert_true(c.rope_theta == 7);
	c = config_of(LLAMA ",\"rope_theta\":7,\"rope_parameters\":{\"rope_type\":\"linear\","
						"\"factor\":2},\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2}");
	assert_true(c.rope_theta == 7 && c.rope_factor == 2);
	config_refused(LLAMA ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2},"
						 "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":3}",
				   FT_CORRUPT, "contradict each other");
	config_refused(LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}", FT_UNSUPPORTED,
				   "RoPE scaling \"yarn\" is not supported");
	config_refused(LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}", FT_CORRUPT,
				   "\"factor\" of the RoPE scaling is missing");
	config_refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
						 "\"low_freq_factor\":4,\"high_freq_factor\":1}",
				   FT_CORRUPT, "\"high_freq_factor\" is 1");
	config_refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":-8}", FT_CORRUPT,
				   "\"factor\" of the RoPE scaling is -8");
	config_refused(LLAMA ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1}}",
				   FT_UNSUPPORTED, "that differ by layer");
	config_refused(LLAMA ",\"rope_parameters\":[]", FT_CORRUPT, "\"rope_parameters\" is no object");
}

static void
test_refused_configs(void **state)
{
	static const struct
	{
		const char *members;
		ft_status status;
		const char *words;
	} cases[] = {
		{"", FT_CORRUPT, "neither \"architectures\" nor \"model_type\""},
		{"\"architectures\":[]", FT_CORRUPT, "no list of one name"},
		{"\"architectures\":[\"GemmaForCausalLM\"]", FT_UNSUPPORTED,
		 "architecture \"GemmaForCausalLM\" is not supported"},
		{"\"model_type\":\"gemma\"", FT_UNSUPPORTED, "architecture \"gemma\""},
		{"\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"phi3\"", FT_UNSUPPORTED,
		 "architecture \"phi3\""},
		{"\"model_type\":\"llama\"", FT_CORRUPT, "\"vocab_size\" is missing"},
		{LLAMA ",\"hidden_size\":64", FT_CORRUPT, "a key stands twice"},
		{LLAMA ",\"num_key_value_heads\":0", FT_CORRUPT, "\"num_key_value_heads\" is 0"},
		{LLAMA ",\"num_key_value_heads\":2.5", FT_CORRUPT, "\"num_key_value_heads\" is no integer"},
		{LLAMA ",\"head_dim\":99999999999", FT_CORRUPT, "\"head_dim\" is 99999999999"},
		{LLAMA ",\"head_dim\":99999999999999999999", FT_CORRUPT, "not valid JSON"},
		{LLAMA ",\"rms_norm_eps\":\"x\"", FT_CORRUPT, "\"rms_norm_eps\" is no number"},
		{LLAMA ",\"tie_word_embeddings\":1", FT_CORRUPT, "neither true nor false"},
		{LLAMA ",\"attention_bias\":true", FT_UNSUPPORTED, "\"attention_bias\" is not supported"},
		{LLAMA ",\"mlp_bias\":true", FT_UNSUPPORTED, "\"mlp_bias\" is not supported"},
		{LLAMA ",\"rope_interleaved\":true", FT_UNSUPPORTED, "\"rope_interleaved\""},
		{LLAMA ",\"hidden_act\":\"gelu\"", FT_UNSUPPORTED, "\"hidden_act\" \"gelu\""},
		{LLAMA ",\"partial_rotary_factor\":0.5", FT_UNSUPPORTED, "\"partial_rotary_factor\" 0.5"},
		{LLAMA ",\"auto_map\":{\"AutoModelForCausalLM\":\"m.M\"}", FT_UNSUPPORTED, "auto_map"},
		{LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\"}", FT_UNSUPPORTED,
		 "\"quantization_config\" (\"gptq\")"},
		{LLAMA ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]", FT_UNSUPPORTED, "more than 8 tokens"},
		{LLAMA ",\"eos_token_id\":\"</s>\"", FT_CORRUPT, "\"eos_token_id\" is no token id"},
		{LLAMA ",\"bos_token_id\":100", FT_CORRUPT, "\"bos_token_id\" is 100"},
		{LLAMA ",\"layer_types\":[\"full_attention\"]", FT_CORRUPT, "no list of 4 types"},
		{OTHER("Mistral") ",\"sliding_window\":0", FT_CORRUPT, "\"sliding_window\" is 0"},
		{OTHER("Mistral") ",\"layer_types\":[\"full_attention\",\"full_attention\","
						  "\"sliding_attention\",\"sliding_attention\"]",
		 FT_UNSUPPORTED, "\"layer_types\" that differ"},
		{OTHER("Qwen3") ",\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\","
						"\"full_attention\",\"sliding_attention\",\"full_attention\"]",
		 FT_UNSUPPORTED, "\"layer_types\" is not supported from layer 1 on"},
		{OTHER("Mixtral") ",\"num_local_experts\":1000000", FT_UNSUPPORTED, "1000000 experts"},
		{OTHER("Mixtral") ",\"num_experts_per_tok\":9", FT_CORRUPT, "9 of 8 experts"},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
		config_refused(cases[i].members, cases[i].status, cases[i].words);
}

/* --- every cut, and bytes that are turned --- */

/* No cut of the file may be taken for the whole, nor crash. */
static void
cut(const char *name, size_t step)
{
	ft_text text = read_golden("plain", name);

	for (size_t n = 0; n + 1 < text.length; n += step)
	{
		ft_model_file *file;

		put(name, text.data, n);
		if (ft_model_file_open(directory, &file) == FT_OK)
			fail_msg("%s of %zu bytes was taken, the whole has %zu", name, n, text.length);
	}
	put(name, text.data, text.length);
	ft_text_free(&text);
}

static void
test_cuts(void **state)
{
	(void) state;
	copy_model();
	cut("config.json", 64);
	cut("generation_config.json", 64);
	cut("tokenizer.json", 64);
	cut("tokenizer_config.json", 64);
	cut("model.safetensors.index.json", 64);
	for (size_t i = 0; i < 3; i++)
		cut(shards[i], 64);
	accepted();
}

static void
test_turned_headers(void **state)
{
	ft_text text = read_golden("plain", shards[1]);

	(void) state;
	copy_model();
	for (size_t i = 0; i < 1500; i++)
	{
		ft_model_file *file;

		text.data[i] ^= (char) (1 << i % 8);
		put(shards[1], text.data, text.length);
		if (ft_model_file_open(directory, &file) == FT_OK)
			ft_model_file_close(file);
		text.data[i] ^= (char) (1 << i % 8);
	}
	ft_text_free(&text);
}

/* A file that shrinks once it is open gives an error; one that is replaced was read all the same.
 */
static void
test_shrinks(void **state)
{
	const ft_model_tensor *t;
	char before[FT_DIGEST_HEX];
	char after[FT_DIGEST_HEX];
	ft_model_file *file;
	void *memory;

	(void) state;
	copy_model();
	must(ft_model_file_open(directory, &file));
	must(ft_model_file_digest(file, before));
	t = ft_model_file_find(file, "model.embed_tokens.weight");
	must(ft_alloc(&memory, t->bytes, 1));
	copy_file("plain", shards[0]); /* by a rename */
	put("config.json", "{}", 2);
	must(ft_model_file_read(file, t, memory));
	must(ft_model_file_digest(file, after));
	assert_string_equal(before, after);
	ft_model_file_close(file);

	copy_model();
	must(ft_model_file_open(directory, &file));
	t = ft_model_file_find(file, "model.embed_tokens.weight");
	assert_int_equal(truncate(at(shards[0]), 4096), 0);
	assert_int_equal(ft_model_file_read(file, t, memory), FT_CORRUPT);
	assert_non_null(strstr(ft_error_message(), shards[0]));
	assert_non_null(strstr(ft_error_message(), "truncated"));
	assert_int_equal(ft_model_file_digest(file, after), FT_CORRUPT);
	ft_model_file_close(file);
	free(memory);
}

/* What is no file of the model does not count; everything else does. */
static void
test_digest(void **state)
{
	static const char *const names[] = {"config.json", "tokenizer.json", "tokenizer.model",
										"model-more.safetensors"};
	char first[FT_DIGEST_HEX];
	char next[FT_DIGEST_HEX];
	ft_model_file *file;

	(void) state;
	copy_model();
	must(ft_model_file_open(directory, &file));
	must(ft_model_file_digest(file, first));
	ft_model_file_close(file);
	put("README.md", "x", 1);
	put("consolidated.safetensors", "x", 1);
	must(ft_model_file_open(directory, &file));
	must(ft_model_file_digest(file, next));
	ft_model_file_close(file);
	assert_string_equal(first, next);
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
	{
		ft_text text = {0};

		copy_model();
		if (access(at(names[i]), F_OK) == 0)
			must(ft_read_file(at(names[i]), 1 << 20, &text));
		must(ft_text_append(&text, "\n", 1));
		put(names[i], text.data, text.length);
		ft_text_free(&text);
		must(ft_model_file_open(directory, &file));
		must(ft_model_file_digest(file, next));
		ft_model_file_close(file);
		assert_string_not_equal(first, next);
		memcpy(first, next, sizeof first);
	}
}

int
main(void)
{
#define SCRATCH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden),
		cmocka_unit_test(test_beside),
		cmocka_unit_test(test_plan),
		cmocka_unit_test(test_plan_full),
		cmocka_unit_test(test_plan_fits),
		cmocka_unit_test(test_plan_overflow),
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_rope),
		cmocka_unit_test(test_refused_configs),
		SCRATCH(test_missing),
		SCRATCH(test_not_regular),
		SCRATCH(test_index),
		SCRATCH(test_contradictions),
		SCRATCH(test_cuts),
		SCRATCH(test_turned_headers),
		SCRATCH(test_shrinks),
		SCRATCH(test_digest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
