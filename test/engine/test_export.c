/*
 * test_export.c: what is exported is read back by our own readers, bit for bit,
 * and serves as base and adapter do.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "export.h"
#include "gguf_build.h"
#include "random.h"
#include "serving.h"
#include "tiny_model.h"

#define V TINY_VOCABULARY

static char *directory;
static char base_path[512];
static char adapter_path[512];

static void
must(ft_status status)
{
	if (status != FT_OK)
		fail_msg("%s: %s", ft_status_name(status), ft_error_message());
}

static int
set_up(void **state)
{
	(void) state;
	directory = tiny_directory();
	snprintf(base_path, sizeof base_path, "%s/base.gguf", directory);
	snprintf(adapter_path, sizeof adapter_path, "%s/adapter", directory);
	return 0;
}

static int
tear_down(void **state)
{
	(void) state;
	tiny_remove(directory);
	free(directory);
	return 0;
}

/* A directory to export to, empty. */
static const char *
fresh(const char *name)
{
	static char path[512];

	snprintf(path, sizeof path, "%s/%s", directory, name);
	must(ft_remove_tree(path));
	assert_int_equal(mkdir(path, 0700), 0);
	return path;
}

static const char *
in_directory(const char *folder, const char *name)
{
	static char path[1024];

	snprintf(path, sizeof path, "%s/%s/%s", directory, folder, name);
	return path;
}

/* Sizes that blocks of 32 divide. */
static tiny_model
even_model(void)
{
	tiny_model tiny = tiny_default;

	tiny.hidden = 64;
	tiny.ffn = 96;
	tiny.head_dim = 16;
	return tiny;
}

typedef struct source
{
	ft_model_file *file;
	ft_merge *merge;
} source;

static source
open_source(const char *path, const char *adapter)
{
	source s;

	must(ft_model_file_open(path, &s.file));
	must(ft_merge_open(s.file, adapter, 2, &s.merge));
	return s;
}

static void
close_source(source *s)
{
	ft_merge_close(s->merge);
	ft_model_file_close(s->file);
}

static void
export_gguf(const char *path, const char *adapter, ft_dtype to, const char *name)
{
	source s = open_source(path, adapter);

	must(ft_export_gguf(s.merge, to, fresh(name)));
	close_source(&s);
}

static void *
read_tensor(const ft_model_file *file, const ft_model_tensor *t)
{
	void *bytes = malloc(t->bytes);

	must(ft_model_file_read(file, t, bytes));
	return bytes;
}

/* Both files hold the same tensors, bit for bit, in Hugging Face's order. */
static void
check_same_tensors(const char *a, const char *b)
{
	ft_model_file *x;
	ft_model_file *y;

	must(ft_model_file_open(a, &x));
	must(ft_model_file_open(b, &y));
	assert_int_equal(ft_model_file_tensors(x), ft_model_file_tensors(y));
	for (int i = 0; i < ft_model_file_tensors(x); i++)
	{
		const ft_model_tensor *t = ft_model_file_tensor(x, i);
		const ft_model_tensor *u = ft_model_file_find(y, t->name);
		void *first = read_tensor(x, t);
		void *second;

		assert_non_null(u);
		second = read_tensor(y, u);
		assert_int_equal(t->dtype, u->dtype);
		assert_int_equal(t->bytes, u->bytes);
		assert_memory_equal(first, second, t->bytes);
		free(first);
		free(second);
	}
	ft_model_file_close(x);
	ft_model_file_close(y);
}

static void
check_same_strings(const ft_string *a, const ft_string *b, size_t n)
{
	for (size_t i = 0; i < n; i++)
	{
		assert_int_equal(a[i].length, b[i].length);
		assert_memory_equal(a[i].data, b[i].data, a[i].length);
	}
}

static void
check_same_meaning(const char *a, const char *b)
{
	ft_model_file *x;
	ft_model_file *y;
	const ft_vocabulary *v;
	const ft_vocabulary *w;

	must(ft_model_file_open(a, &x));
	must(ft_model_file_open(b, &y));
	assert_memory_equal(ft_model_file_config(x), ft_model_file_config(y), sizeof(ft_config));
	v = ft_model_file_vocabulary(x);
	w = ft_model_file_vocabulary(y);
	assert_string_equal(v->model, w->model);
	assert_string_equal(v->pre, w->pre);
	assert_int_equal(v->n_tokens, w->n_tokens);
	assert_int_equal(v->n_merges, w->n_merges);
	check_same_strings(v->tokens, w->tokens, v->n_tokens);
	check_same_strings(v->merges, w->merges, v->n_merges);
	assert_memory_equal(v->types, w->types, v->n_tokens * sizeof *v->types);
	assert_int_equal(v->bos, w->bos);
	assert_int_equal(v->eos, w->eos);
	assert_int_equal(v->add_bos, w->add_bos);
	assert_string_equal(ft_model_file_template(x), ft_model_file_template(y));
	ft_model_file_close(x);
	ft_model_file_close(y);
}

/* --- GGUF --- */

static void
test_same_model(void **state)
{
	tiny_model tiny = tiny_default;

	(void) state;
	for (int i = 0; i < 4; i++)
	{
		tiny.tied = i % 2 == 0;
		tiny.rope_freqs = i / 2 == 1;
		tiny_model_write(base_path, &tiny);
		export_gguf(base_path, NULL, FT_F32, "same");
		check_same_tensors(base_path, in_directory("same", "model.gguf"));
		check_same_meaning(base_path, in_directory("same", "model.gguf"));
	}
}

/* What is stored in the type wanted is copied; so a second export changes nothing. */
static void
test_types(void **state)
{
	static const ft_dtype types[] = {FT_F16, FT_BF16, FT_Q8_0};
	tiny_model tiny = even_model();

	(void) state;
	tiny.q4_1 = true;
	tiny_model_write(base_path, &tiny);
	for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
	{
		char first[1024];
		ft_model_file *file;

		export_gguf(base_path, NULL, types[i], "first");
		snprintf(first, sizeof first, "%s", in_directory("first", "model.gguf"));
		must(ft_model_file_open(first, &file));
		for (int t = 0; t < ft_model_file_tensors(file); t++)
		{
			const ft_model_tensor *tensor = ft_model_file_tensor(file, t);

			assert_int_equal(tensor->dtype, tensor->rows == 1 ? FT_F32 : types[i]);
		}
		ft_model_file_close(file);
		export_gguf(first, NULL, types[i], "second");
		check_same_tensors(first, in_directory("second", "model.gguf"));
	}
	/* 48 columns are no whole blocks */
	tiny_model_write(base_path, &tiny_default);
	export_gguf(base_path, NULL, FT_Q8_0, "odd");
	{
		ft_model_file *file;

		must(ft_model_file_open(in_directory("odd", "model.gguf"), &file));
		assert_int_equal(ft_model_file_find(file, "model.layers.0.self_attn.q_proj.weight")->dtype,
						 FT_F16);
		ft_model_file_close(file);
	}
}

/* Behind 20 tokens; of a smaller vocabulary zeros follow. */
static void
logits_of(const char *path, const char *adapter, float *logits)
{
	int32_t tokens[20];
	ft_adapter *loaded = NULL;
	serving s;

	memset(logits, 0, V * sizeof *logits);
	serving_open(&s, path, FT_NUMERICS_REFERENCE, 2, 64);
	assert_true(s.model->config.vocab <= V);
	for (int i = 0; i < 20; i++)
		tokens[i] = (int32_t) ft_random_below(5, 0, (uint64_t) i, (uint64_t) s.model->config.vocab);
	if (adapter != NULL)
		must(ft_peft_load(s.model, adapter, &loaded));
	serving_feed(&s, loaded, tokens, 20, 20, logits);
	ft_adapter_free(loaded);
	serving_close(&s);
}

static double
difference(const float *a, const float *b)
{
	double largest = 0;
	double error = 0;

	for (int i = 0; i < V; i++)
	{
		largest = fmax(largest, fabs((double) b[i]));
		error = fmax(error, fabs((double) a[i] - b[i]));
	}
	return error / largest;
}

static void
test_merged(void **state)
{
	float unmerged[V], merged[V], base[V];

	(void) state;
	for (int q4_1 = 0; q4_1 < 2; q4_1++)
	{
		tiny_model tiny = even_model();

		tiny.q4_1 = q4_1;
		tiny_model_write(base_path, &tiny);
		tiny_adapter_write(adapter_path, &tiny, 5);
		export_gguf(base_path, adapter_path, FT_F32, "merged");
		logits_of(base_path, adapter_path, unmerged);
		logits_of(base_path, NULL, base);
		logits_of(in_directory("merged", "model.gguf"), NULL, merged);
		assert_true(difference(merged, unmerged) < 1e-5);
		assert_true(difference(base, unmerged) > 1e-2);
		export_gguf(base_path, adapter_path, FT_Q8_0, "merged");
		logits_of(in_directory("merged", "model.gguf"), NULL, merged);
		assert_true(difference(merged, unmerged) < 0.1);
	}
}

/* --- experts --- */

#define MIXTRAL "test/golden/tiny_mixtral/"
#define MIXTRAL_DIRECTORY "test/golden/directories/mixtral"
#define EXPERTS 5

/* Experts lie behind each other in one tensor of the file, and the router is f32 whatever the type.
 */
static void
check_stacks(const char *path, uint32_t type)
{
	static const char *const names[] = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"};
	int fd = open(path, O_RDONLY);
	struct stat st;
	ft_gguf *g;
	char name[64];

	assert_int_equal(fstat(fd, &st), 0);
	must(ft_gguf_open(fd, (uint64_t) st.st_size, &g));
	for (int layer = 0; layer < 2; layer++)
	{
		const ft_gguf_tensor *t;

		for (int i = 0; i < 3; i++)
		{
			snprintf(name, sizeof name, "blk.%d.%s.weight", layer, names[i]);
			t = ft_gguf_find_tensor(g, name);
			assert_non_null(t);
			assert_int_equal(t->n_dims, 3);
			assert_int_equal(t->dims[0], i == 2 ? 18 : 28);
			assert_int_equal(t->dims[1], i == 2 ? 28 : 18);
			assert_int_equal(t->dims[2], EXPERTS);
			assert_int_equal(t->type, type);
		}
		snprintf(name, sizeof name, "blk.%d.ffn_gate_inp.weight", layer);
		t = ft_gguf_find_tensor(g, name);
		assert_non_null(t);
		assert_int_equal(t->type, 0);
		assert_int_equal(t->dims[1], EXPERTS);
	}
	ft_gguf_close(g);
	close(fd);
}

/* Bases with experts stacked and with a tensor for each. */
static void
test_experts(void **state)
{
	static const char *const variants[] = {"plain", "window"};
	float unmerged[V], merged[V], base[V];

	(void) state;
	for (size_t i = 0; i < 2; i++)
	{
		char path[512];
		char adapter[512];

		snprintf(path, sizeof path, MIXTRAL "%s/base.gguf", variants[i]);
		snprintf(adapter, sizeof adapter, MIXTRAL "%s/adapter", variants[i]);
		export_gguf(path, NULL, FT_F32, "same");
		check_same_tensors(path, in_directory("same", "model.gguf"));
		check_same_meaning(path, in_directory("same", "model.gguf"));
		check_stacks(in_directory("same", "model.gguf"), 0);

		export_gguf(path, adapter, FT_F32, "merged");
		logits_of(path, adapter, unmerged);
		logits_of(path, NULL, base);
		logits_of(in_directory("merged", "model.gguf"), NULL, merged);
		assert_true(difference(merged, unmerged) < 1e-5);
		assert_true(difference(base, unmerged) > 1e-2);
		export_gguf(path, adapter, FT_F16, "merged");
		check_stacks(in_directory("merged", "model.gguf"), 1);
		logits_of(in_directory("merged", "model.gguf"), NULL, merged);
		assert_true(difference(merged, unmerged) < 1e-2);
	}
}

/* From a directory, and back to one. */
static void
test_experts_directory(void **state)
{
	float first[V], second[V];
	ft_model_file *file;
	const ft_config *c;
	char gguf[1024];
	source s;

	(void) state;
	export_gguf(MIXTRAL_DIRECTORY, NULL, FT_F32, "same");
	snprintf(gguf, sizeof gguf, "%s", in_directory("same", "model.gguf"));
	must(ft_model_file_open(gguf, &file));
	c = ft_model_file_config(file);
	assert_string_equal(c->architecture, "llama");
	assert_true(c->experts > 0);
	assert_int_equal(c->experts_per_token, 2);
	ft_model_file_close(file);
	logits_of(MIXTRAL_DIRECTORY, NULL, first);
	logits_of(gguf, NULL, second);
	assert_true(difference(first, second) < 1e-5);
	s = open_source(gguf, NULL);
	must(ft_export_safetensors(s.merge, FT_F32, 1 << 30, fresh("again")));
	close_source(&s);
	check_same_tensors(gguf, in_directory("again", ""));
}

/* --- adapters --- */

static void
read_f32(int fd, const ft_gguf_tensor *t, float *to)
{
	assert_int_equal(pread(fd, to, t->bytes, (off_t) t->offset), t->bytes);
}

static void
check_adapter(bool rslora)
{
	const tiny_model *tiny = &tiny_default;
	int rows = tiny->heads * tiny->head_dim;
	const char *path;
	source s;
	int fd;
	struct stat st;
	ft_gguf *g;
	ft_string text = {0};
	double alpha = 0;
	float *b = malloc((size_t) rows * 4 * sizeof *b);
	float *stored = malloc((size_t) rows * 4 * sizeof *stored);
	float *turned = malloc((size_t) rows * 4 * sizeof *turned);
	const ft_gguf_tensor *t;

	tiny_model_write(base_path, tiny);
	tiny_adapter_write(adapter_path, tiny, 9);
	s = open_source(base_path, adapter_path);
	s.merge->config.use_rslora = rslora;
	must(ft_export_gguf_adapter(s.merge, fresh("out")));
	path = in_directory("out", "adapter.gguf");
	fd = open(path, O_RDONLY);
	assert_int_equal(fstat(fd, &st), 0);
	must(ft_gguf_open(fd, (uint64_t) st.st_size, &g));
	assert_int_equal(g->n_tensors, 2 * 7 * tiny->layers);
	must(ft_gguf_string(g, "general.type", true, &text));
	assert_memory_equal(text.data, "adapter", text.length);
	must(ft_gguf_string(g, "adapter.type", true, &text));
	assert_memory_equal(text.data, "lora", text.length);
	must(ft_gguf_float(g, "adapter.lora.alpha", true, &alpha));
	assert_true(fabs(alpha - (rslora ? 16 : 8)) < 1e-6);

	/* A as it is, B of v as it is, B of q with its rows interleaved */
	t = ft_gguf_find_tensor(g, "blk.1.attn_q.weight.lora_a");
	assert_int_equal(t->dims[0], tiny->hidden);
	assert_int_equal(t->dims[1], 4);
	t = ft_gguf_find_tensor(g, "blk.1.attn_q.weight.lora_b");
	assert_int_equal(t->dims[0], 4);
	assert_int_equal(t->dims[1], rows);
	read_f32(fd, t, stored);
	must(ft_safetensors_read_f32(
		s.merge->adapter,
		ft_safetensors_find(s.merge->adapter,
							"base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"),
		b, rows * 4));
	for (int row = 0; row < rows; row++)
	{
		int head = row / tiny->head_dim;
		int i = row % tiny->head_dim;
		int source_row = head * tiny->head_dim + i % 2 * (tiny->head_dim / 2) + i / 2;

		assert_memory_equal(stored + row * 4, b + source_row * 4, 4 * sizeof *b);
	}
	ft_interleave_rows(turned, b, rows, 4 * sizeof *b, tiny->heads);
	assert_memory_equal(turned, stored, (size_t) rows * 4 * sizeof *b);
	free(b);
	free(stored);
	free(turned);
	ft_gguf_close(g);
	close(fd);
	close_source(&s);
}

static void
test_adapter(void **state)
{
	(void) state;
	check_adapter(false);
	check_adapter(true);
}

/* An adapter with a module that ours never have, as another program may write it. */
static void
adapt_module(const char *module, int64_t in, int64_t out)
{
	static const char config[] =
		"{\"peft_type\": \"LORA\", \"r\": 1, \"lora_alpha\": 1, \"target_modules\": [\"q_proj\"]}";
	static const float values[64];
	char names[2][128];
	char path[FT_PATH_SIZE];
	ft_safetensor_out tensors[2] = {{.name = names[0], .rows = 1, .cols = in, .values = values},
									{.name = names[1], .rows = out, .cols = 1, .values = values}};

	for (int i = 0; i < 2; i++)
		snprintf(names[i], sizeof names[i], "base_model.model.model.layers.1.%s.lora_%c.weight",
				 module, 'A' + i);
	must(ft_path_join(path, fresh("odd"), "adapter_model.safetensors"));
	must(ft_safetensors_write(path, tensors, 2));
	must(ft_path_join(path, in_directory("odd", ""), "adapter_config.json"));
	must(ft_replace_file(path, config, sizeof config - 1));
}

static void
test_adapter_of_experts(void **state)
{
	static const struct
	{
		const char *module;
		int64_t out;
	} modules[] = {{"block_sparse_moe.experts.3.w1", 18}, {"block_sparse_moe.gate", EXPERTS}};

	(void) state;
	for (size_t i = 0; i < 2; i++)
	{
		source s;

		adapt_module(modules[i].module, 28, modules[i].out);
		s = open_source(MIXTRAL "plain/base.gguf", in_directory("odd", ""));
		assert_int_equal(ft_export_gguf_adapter(s.merge, fresh("out")), FT_UNSUPPORTED);
		assert_non_null(strstr(ft_error_message(), modules[i].module));
		assert_non_null(strstr(ft_error_message(), "of a mixture of experts is not adapted"));
		close_source(&s);
	}
}

/* --- safetensors --- */

static json_t *
read_json(const char *folder, const char *name)
{
	json_t *json = json_load_file(in_directory(folder, name), JSON_REJECT_DUPLICATES, NULL);

	assert_non_null(json);
	return json;
}

/* Every tensor of the base is in the file that the index names for it. */
static void
check_shards(const ft_model_file *file, const json_t *map)
{
	int found = 0;

	for (int i = 0; i < ft_model_file_tensors(file); i++)
	{
		const ft_model_tensor *t = ft_model_file_tensor(file, i);
		int64_t n = t->rows * t->cols;
		const json_t *name = json_object_get(map, t->name);
		const ft_safetensor *tensor;
		ft_safetensors *shard;
		float *values = malloc((size_t) n * sizeof *values);
		void *stored = read_tensor(file, t);

		must(ft_safetensors_open(
			in_directory("out", map ? json_string_value(name) : "model.safetensors"), &shard));
		tensor = ft_safetensors_find(shard, t->name);
		assert_non_null(tensor);
		assert_int_equal(tensor->n_dims, t->rows == 1 ? 1 : 2);
		must(ft_safetensors_read_f32(shard, tensor, values, n));
		assert_memory_equal(values, stored, (size_t) n * sizeof *values);
		found++;
		ft_safetensors_close(shard);
		free(values);
		free(stored);
	}
	if (map != NULL)
		assert_int_equal(json_object_size(map), found);
}

static void
test_safetensors(void **state)
{
	tiny_model tiny = tiny_default;

	(void) state;
	for (int tied = 0; tied < 2; tied++)
		for (int sharded = 0; sharded < 2; sharded++)
		{
			source s;
			json_t *config;
			json_t *index = NULL;

			tiny.tied = tied;
			tiny_model_write(base_path, &tiny);
			s = open_source(base_path, NULL);
			must(ft_export_safetensors(s.merge, FT_F32, sharded ? 40000 : 1 << 30, fresh("out")));
			config = read_json("out", "config.json");
			assert_int_equal(json_is_true(json_object_get(config, "tie_word_embeddings")), tied);
			assert_int_equal(json_integer_value(json_object_get(config, "head_dim")), 8);
			assert_string_equal(json_string_value(json_object_get(config, "torch_dtype")),
								"float32");
			json_decref(config);
			if (sharded)
			{
				index = read_json("out", "model.safetensors.index.json");
				assert_false(ft_file_exists(in_directory("out", "model.safetensors")));
			}
			check_shards(s.file, json_object_get(index, "weight_map"));
			json_decref(index);
			close_source(&s);
		}
}

static void
test_tokenizer(void **state)
{
	source s;
	json_t *json;
	json_t *model;
	const ft_vocabulary *v;

	(void) state;
	tiny_model_write(base_path, &tiny_default);
	s = open_source(base_path, NULL);
	must(ft_export_safetensors(s.merge, FT_BF16, 1 << 30, fresh("out")));
	v = ft_model_file_vocabulary(s.file);
	json = read_json("out", "tokenizer.json");
	model = json_object_get(json, "model");
	assert_int_equal(json_object_size(json_object_get(model, "vocab")), v->n_tokens);
	assert_int_equal(json_array_size(json_object_get(model, "merges")), v->n_merges);
	assert_int_equal(
		json_integer_value(json_object_get(json_object_get(model, "vocab"), "<|im_end|>")),
		TINY_END);
	assert_int_equal(json_array_size(json_object_get(json, "added_tokens")), 3);
	json_decref(json);
	json = read_json("out", "tokenizer_config.json");
	assert_string_equal(json_string_value(json_object_get(json, "eos_token")), "<|im_end|>");
	assert_string_equal(json_string_value(json_object_get(json, "chat_template")),
						ft_model_file_template(s.file));
	json_decref(json);
	json = read_json("out", "generation_config.json");
	assert_true(json_array_size(json_object_get(json, "eos_token_id")) >= 2);
	json_decref(json);
	close_source(&s);
}

/* From a file to a directory, and back again. */
static void
test_directory(void **state)
{
	char folder[512];

	(void) state;
	for (int tied = 0; tied < 2; tied++)
	{
		tiny_model tiny = tiny_default;
		source s;

		tiny.tied = tied;
		tiny_model_write(base_path, &tiny);
		s = open_source(base_path, NULL);
		snprintf(folder, sizeof folder, "%s", fresh("out"));
		must(ft_export_safetensors(s.merge, FT_F32, 40000, folder));
		close_source(&s);
		check_same_tensors(base_path, folder);
		check_same_meaning(base_path, folder);

		/* out of it, as of the file */
		export_gguf(folder, NULL, FT_F32, "back");
		check_same_tensors(base_path, in_directory("back", "model.gguf"));
		check_same_meaning(base_path, in_directory("back", "model.gguf"));
		s = open_source(folder, NULL);
		must(ft_export_safetensors(s.merge, FT_F32, 1 << 30, fresh("again")));
		close_source(&s);
		check_same_tensors(base_path, in_directory("again", ""));
		check_same_meaning(base_path, in_directory("again", ""));
	}
}

/* --- numbers --- */

static void
test_rope_factors(void **state)
{
	ft_config c = {.head_dim = 128,
				   .rope_theta = 500000,
				   .rope_factor = 8,
				   .rope_low_freq = 1,
				   .rope_high_freq = 4,
				   .rope_original_positions = 8192};
	ft_config found = {.head_dim = 128, .rope_theta = 500000};
	float factors[64];

	(void) state;
	ft_rope_factors(&c, factors);
	assert_true(factors[0] == 1 && factors[63] == 8);
	assert_true(factors[32] > 1 && factors[32] < 8);
	must(ft_rope_from_factors(&found, factors));
	assert_int_equal(found.rope_scaling, FT_ROPE_LLAMA3);
	assert_true(found.rope_factor == 8 && found.rope_original_positions == 8192);
	factors[20] = 3;
	assert_int_equal(ft_rope_from_factors(&found, factors), FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "number 20 is 3"));
}

static void
test_q8_0(void **state)
{
	float values[64] = {0};
	uint8_t blocks[68];

	(void) state;
	/* d = 2: exact; halves go away from zero; a block of zeros */
	values[0] = 254;
	values[1] = -254;
	values[2] = 3;
	values[3] = -3;
	values[4] = 0.9f;
	ft_q8_0_blocks(blocks, values, 64);
	assert_int_equal(blocks[0] | blocks[1] << 8, 0x4000);
	assert_int_equal((int8_t) blocks[2], 127);
	assert_int_equal((int8_t) blocks[3], -127);
	assert_int_equal((int8_t) blocks[4], 2);
	assert_int_equal((int8_t) blocks[5], -2);
	assert_int_equal((int8_t) blocks[6], 0);
	for (int i = 34; i < 68; i++)
		assert_int_equal(blocks[i], 0);
}

/* --- refusals --- */

/* A model of zeros with this value in one place. */
static ft_status
export_value(float value, ft_dtype to)
{
	gguf_build b = {0};
	ft_text text = {0};
	uint64_t dims[2] = {32, 16};
	float matrix[32 * 16] = {value};
	char path[64];
	source s;
	ft_status status;
	int fd;

	gguf_build_tensor(&b, "token_embd.weight", 0, dims, 2, matrix, sizeof matrix);
	gguf_build_llama(&b);
	gguf_build_finish(&b, &text);
	fd = gguf_build_open(text.data, text.length, path);
	s = open_source(path, NULL);
	status = ft_export_gguf(s.merge, to, fresh("out"));
	close_source(&s);
	close(fd);
	ft_text_free(&text);
	return status;
}

static void
test_refusals(void **state)
{
	tiny_model other = tiny_default;
	ft_model_file *file;
	ft_merge *merge;
	source s;

	(void) state;
	assert_int_equal(export_value(65519, FT_F16), FT_OK);
	assert_int_equal(export_value(65520, FT_F16), FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "has the value 65520, too large for f16"));
	assert_int_equal(export_value(65520, FT_BF16), FT_OK);
	assert_int_equal(export_value(NAN, FT_F16), FT_NON_FINITE);
	assert_non_null(strstr(ft_error_message(), "model.embed_tokens.weight"));

	/* no tokenizer */
	assert_int_equal(export_value(1, FT_F32), FT_OK);
	s = open_source(in_directory("out", "model.gguf"), NULL);
	assert_int_equal(ft_export_safetensors(s.merge, FT_F32, 1 << 30, fresh("again")),
					 FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "cannot be written as tokenizer.json"));
	close_source(&s);

	/* factors of RoPE that no configuration has */
	other.rope_freqs = true;
	tiny_model_write(base_path, &other);
	s = open_source(base_path, NULL);
	assert_int_equal(ft_export_safetensors(s.merge, FT_F32, 1 << 30, fresh("again")),
					 FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "not those of Llama 3.1"));
	close_source(&s);

	/* an adapter of another base */
	other = tiny_default;
	other.layers = 1;
	tiny_adapter_write(adapter_path, &tiny_default, 1);
	tiny_model_write(base_path, &other);
	must(ft_model_file_open(base_path, &file));
	assert_int_equal(ft_merge_open(file, adapter_path, 1, &merge), FT_MISMATCH);
	assert_non_null(strstr(ft_error_message(), "14 of the adapter's 28 tensors"));
	ft_model_file_close(file);
	other.hidden = 64;
	other.layers = 2;
	tiny_model_write(base_path, &other);
	must(ft_model_file_open(base_path, &file));
	assert_int_equal(ft_merge_open(file, adapter_path, 1, &merge), FT_MISMATCH);
	assert_non_null(strstr(ft_error_message(), "has shape [4, 48], expected [4, 64]"));
	ft_model_file_close(file);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same_model),
		cmocka_unit_test(test_types),
		cmocka_unit_test(test_merged),
		cmocka_unit_test(test_adapter),
		cmocka_unit_test(test_experts),
		cmocka_unit_test(test_experts_directory),
		cmocka_unit_test(test_adapter_of_experts),
		cmocka_unit_test(test_safetensors),
		cmocka_unit_test(test_tokenizer),
		cmocka_unit_test(test_directory),
		cmocka_unit_test(test_rope_factors),
		cmocka_unit_test(test_q8_0),
		cmocka_unit_test(test_refusals),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
