/*
 * export_safetensors.c: a merged model as transformers loads it.
 *
 * Of a base that is such a directory the configuration and the tokenizer are
 * its own; of another they are made from what its file says.
 */
#include "export.h"

#include "model_file_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_SMALL_FILE ((size_t) 256 << 20)
#define HEADER_ALIGNMENT 8

static const char *
torch_name(ft_dtype to)
{
	return to == FT_F32 ? "float32" : to == FT_F16 ? "float16" : "bfloat16";
}

static const char *
stored_name(ft_dtype to)
{
	return to == FT_F32 ? "F32" : to == FT_F16 ? "F16" : "BF16";
}

static ft_status
write_json(const char *directory, const char *name, json_t *json)
{
	char *text = json != NULL ? json_dumps(json, JSON_INDENT(2)) : NULL;
	ft_status status;

	json_decref(json);
	if (text == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory for \"%s\"", name);
	status = ft_out_file(directory, name, text, strlen(text));
	free(text);
	return status;
}

/* --- configuration --- */

/* A model type of transformers for an architecture of ours. */
static const struct
{
	const char *architecture;
	bool experts;
	bool window; /* with a sliding window, where that makes another type */
	const char *type;
	const char *class;
} types[] = {
	{"llama", false, false, "llama", "LlamaForCausalLM"},
	{"llama", false, true, "mistral", "MistralForCausalLM"},
	{"llama", true, false, "mixtral", "MixtralForCausalLM"},
	{"llama", true, true, "mixtral", "MixtralForCausalLM"},
	{"qwen2", false, false, "qwen2", "Qwen2ForCausalLM"},
	{"qwen3", false, false, "qwen3", "Qwen3ForCausalLM"},
};

static ft_status
set_type(json_t *json, const ft_config *c)
{
	bool window = c->window > 0 && strcmp(c->architecture, "llama") == 0;

	for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
	{
		if (strcmp(types[i].architecture, c->architecture) != 0 ||
			types[i].experts != (c->experts > 0) || types[i].window != window)
			continue;
		json_object_set_new(json, "architectures", json_pack("[s]", types[i].class));
		json_object_set_new(json, "model_type", json_string(types[i].type));
		return FT_OK;
	}
	return ft_hint(ft_fail(FT_UNSUPPORTED,
						   "architecture \"%s\" cannot be written as a directory of safetensors",
						   c->architecture),
				   "A GGUF file can hold it.");
}

static json_t *
id_or_null(int id)
{
	return id < 0 ? json_null() : json_integer(id);
}

/* One, a list, or null. */
static json_t *
end_ids(const ft_config *c)
{
	json_t *list = json_array();

	if (c->n_eos < 2)
	{
		json_decref(list);
		return id_or_null(c->n_eos == 1 ? c->eos[0] : -1);
	}
	for (int i = 0; i < c->n_eos; i++)
		json_array_append_new(list, json_integer(c->eos[i]));
	return list;
}

static json_t *
rope_scaling(const ft_config *c)
{
	if (c->rope_scaling == FT_ROPE_LINEAR)
		return json_pack("{s:s, s:f}", "rope_type", "linear", "factor", c->rope_factor);
	if (c->rope_scaling == FT_ROPE_LLAMA3)
		return json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor",
						 c->rope_factor, "low_freq_factor", c->rope_low_freq, "high_freq_factor",
						 c->rope_high_freq, "original_max_position_embeddings",
						 c->rope_original_positions);
	return json_null();
}

/* The configuration; a file that brings factors of the frequencies has them as numbers in it. */
static ft_status
read_rope(const ft_merge *merge, ft_config *c)
{
	const ft_model_tensor *t = ft_model_file_find(merge->file, "rope_freqs.weight");
	float *factors = NULL;
	ft_status status;

	*c = merge->file->config;
	if (t == NULL)
		return FT_OK;
	FT_TRY(ft_alloc((void **) &factors, (size_t) t->cols, sizeof *factors));
	status = ft_model_file_read(merge->file, t, factors);
	if (status == FT_OK)
		status = ft_rope_from_factors(c, factors);
	free(factors);
	return status;
}

static ft_status
make_config(const ft_merge *merge, ft_dtype to, json_t **result)
{
	ft_config c;
	json_t *json;
	ft_status status;

	FT_TRY(read_rope(merge, &c));
	json = json_pack(
		"{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:b, s:b, s:b, s:s}", "hidden_act",
		"silu", "hidden_size", c.hidden, "intermediate_size", c.ffn, "num_hidden_layers", c.layers,
		"num_attention_heads", c.heads, "num_key_value_heads", c.kv_heads, "head_dim", c.head_dim,
		"vocab_size", c.vocab, "max_position_embeddings", c.max_positions, "rms_norm_eps",
		(double) c.rms_eps, "rope_theta", c.rope_theta, "attention_bias", 0, "tie_word_embeddings",
		(int) c.tied_embeddings, "use_cache", 1, "torch_dtype", torch_name(to));
	if (json == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	json_object_set_new(json, "rope_scaling", rope_scaling(&c));
	json_object_set_new(json, "bos_token_id", id_or_null(c.bos));
	json_object_set_new(json, "eos_token_id", end_ids(&c));
	json_object_set_new(json, "pad_token_id", id_or_null(c.pad));
	if (c.experts > 0)
	{
		json_object_set_new(json, "num_local_experts", json_integer(c.experts));
		json_object_set_new(json, "num_experts_per_tok", json_integer(c.experts_per_token));
	}
	if (c.window > 0)
	{
		/* the second and the third are Qwen's */
		json_object_set_new(json, "sliding_window", json_integer(c.window));
		json_object_set_new(json, "use_sliding_window", json_true());
		json_object_set_new(json, "max_window_layers", json_integer(c.window_from));
	}
	status = set_type(json, &c);
	if (status != FT_OK)
		json_decref(json);
	else
		*result = json;
	return status;
}

static ft_status
write_generation_config(const ft_config *c, const char *directory)
{
	json_t *json = json_pack("{s:o, s:o, s:o}", "bos_token_id", id_or_null(c->bos), "eos_token_id",
							 end_ids(c), "pad_token_id", id_or_null(c->pad));

	return write_json(directory, "generation_config.json", json);
}

/* --- of a base that is a directory --- */

static bool
is_directory(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Its configuration, but for what is said of the weights. */
static ft_status
patch_config(const ft_merge *merge, ft_dtype to, json_t **result)
{
	char path[FT_PATH_SIZE];
	ft_text text = {0};
	json_error_t error;
	ft_status status;

	FT_TRY(ft_path_join(path, ft_model_file_path(merge->file), "config.json"));
	status = ft_read_file(path, MAX_SMALL_FILE, &text);
	if (status == FT_OK)
	{
		*result = json_loadb(text.data, text.length, JSON_REJECT_DUPLICATES, &error);
		if (!json_is_object(*result))
			status = ft_fail(FT_CORRUPT, "\"%s\" is no JSON object", path);
	}
	ft_text_free(&text);
	if (status != FT_OK)
		return status;
	json_object_del(*result, "dtype");
	json_object_del(*result, "quantization_config");
	json_object_set_new(*result, "torch_dtype", json_string(torch_name(to)));
	json_object_set_new(*result, "tie_word_embeddings",
						json_boolean(merge->file->config.tied_embeddings));
	return FT_OK;
}

static ft_status
copy_small_files(const char *from, const char *to)
{
	static const char *const names[] = {
		"generation_config.json",
		"tokenizer.json",
		"tokenizer_config.json",
		"special_tokens_map.json",
		"tokenizer.model",
		"added_tokens.json",
		"vocab.json",
		"merges.txt",
		"chat_template.jinja",
		"chat_template.json",
	};

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
	{
		char path[FT_PATH_SIZE];
		ft_text text = {0};
		ft_status status;

		FT_TRY(ft_path_join(path, from, names[i]));
		if (!ft_file_exists(path))
			continue;
		status = ft_read_file(path, MAX_SMALL_FILE, &text);
		if (status == FT_OK)
			status = ft_out_file(to, names[i], text.data, text.length);
		ft_text_free(&text);
		FT_TRY(status);
	}
	return FT_OK;
}

ft_status
ft_export_small_files(const ft_merge *merge, ft_dtype to, const char *directory)
{
	const ft_model_file *file = merge->file;
	json_t *config = NULL;

	if (is_directory(ft_model_file_path(file)))
	{
		FT_TRY(patch_config(merge, to, &config));
		FT_TRY(write_json(directory, "config.json", config));
		return copy_small_files(ft_model_file_path(file), directory);
	}
	FT_TRY(make_config(merge, to, &config));
	FT_TRY(write_json(directory, "config.json", config));
	FT_TRY(write_generation_config(&file->config, directory));
	return ft_export_tokenizer(&file->vocabulary, &file->config, file->chat_template, directory);
}

/* --- weights --- */

/* A tensor of the model, and the file that it goes to. */
typedef struct place
{
	const ft_model_tensor *tensor;
	ft_dtype to;
	uint64_t bytes;
	int shard;
} place;

typedef struct layout
{
	place *places;
	int n;
	int shards;
	uint64_t bytes;
} layout;

static ft_status
plan(const ft_merge *merge, ft_dtype to, uint64_t shard_bytes, layout *l)
{
	const ft_model_file *file = merge->file;
	uint64_t in_shard = 0;

	l->shards = 1;
	FT_TRY(ft_alloc((void **) &l->places, (size_t) file->n_tensors, sizeof *l->places));
	for (int i = 0; i < file->n_tensors; i++)
	{
		const ft_model_tensor *t = &file->tensors[i];
		place *p = &l->places[l->n];

		/* the first is told by the configuration, the second is the embedding again */
		if (strcmp(t->name, "rope_freqs.weight") == 0 ||
			(file->config.tied_embeddings && strcmp(t->name, "lm_head.weight") == 0))
			continue;
		p->tensor = t;
		p->to = ft_merge_type(merge, t, to);
		p->bytes = (uint64_t) t->rows * (uint64_t) ft_row_bytes(p->to, t->cols);
		if (in_shard > 0 && in_shard + p->bytes > shard_bytes)
		{
			l->shards++;
			in_shard = 0;
		}
		in_shard += p->bytes;
		p->shard = l->shards - 1;
		l->bytes += p->bytes;
		l->n++;
	}
	return FT_OK;
}

static void
shard_name(const layout *l, int shard, char name[64])
{
	if (l->shards == 1)
		snprintf(name, 64, "model.safetensors");
	else
		snprintf(name, 64, "model-%05d-of-%05d.safetensors", shard + 1, l->shards);
}

static ft_status
make_header(const layout *l, int shard, ft_text *header)
{
	json_t *json = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
	uint64_t at = 0;
	char *dump;
	ft_status status;

	for (int i = 0; i < l->n; i++)
	{
		const ft_model_tensor *t = l->places[i].tensor;
		uint64_t end = at + l->places[i].bytes;

		if (l->places[i].shard != shard)
			continue;
		json_object_set_new(
			json, t->name,
			json_pack("{s:s, s:o, s:[I, I]}", "dtype", stored_name(l->places[i].to), "shape",
					  t->rows == 1
						  ? json_pack("[I]", (json_int_t) t->cols)
						  : json_pack("[I, I]", (json_int_t) t->rows, (json_int_t) t->cols),
					  "data_offsets", (json_int_t) at, (json_int_t) end));
		at = end;
	}
	dump = json != NULL ? json_dumps(json, JSON_COMPACT) : NULL;
	json_decref(json);
	if (dump == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	status = ft_text_append(header, dump, strlen(dump));
	free(dump);
	while (status == FT_OK && header->length % HEADER_ALIGNMENT != 0)
		status = ft_text_append(header, " ", 1);
	return status;
}

static ft_status
write_shard_into(ft_merge *merge, const layout *l, int shard, const ft_text *header, ft_out *out)
{
	unsigned char length[8];

	for (int i = 0; i < 8; i++)
		length[i] = (unsigned char) ((uint64_t) header->length >> (8 * i));
	FT_TRY(ft_out_write(out, length, sizeof length));
	FT_TRY(ft_out_write(out, header->data, header->length));
	for (int i = 0; i < l->n; i++)
	{
		if (l->places[i].shard == shard)
			FT_TRY(
				ft_merge_tensor(merge, l->places[i].tensor, l->places[i].to, 0, ft_out_write, out));
	}
	return FT_OK;
}

static ft_status
write_shard(ft_merge *merge, const layout *l, int shard, const char *directory)
{
	ft_text header = {0};
	char name[64];
	ft_out out;
	ft_status status = make_header(l, shard, &header);

	shard_name(l, shard, name);
	if (status == FT_OK)
		status = ft_out_create(directory, name, &out);
	if (status == FT_OK)
		status = ft_out_finish(&out, write_shard_into(merge, l, shard, &header, &out));
	ft_text_free(&header);
	return status;
}

static ft_status
write_index(const layout *l, const char *directory)
{
	json_t *map = json_object();

	for (int i = 0; i < l->n; i++)
	{
		char name[64];

		shard_name(l, l->places[i].shard, name);
		json_object_set_new(map, l->places[i].tensor->name, json_string(name));
	}
	return write_json(directory, "model.safetensors.index.json",
					  json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t) l->bytes,
								"weight_map", map));
}

ft_status
ft_export_safetensors(ft_merge *merge, ft_dtype to, uint64_t shard_bytes, const char *directory)
{
	layout l = {0};
	ft_status status = ft_export_small_files(merge, to, directory);

	if (status == FT_OK)
		status = plan(merge, to, shard_bytes, &l);
	for (int shard = 0; status == FT_OK && shard < l.shards; shard++)
		status = write_shard(merge, &l, shard, directory);
	if (status == FT_OK && l.shards > 1)
		status = write_index(&l, directory);
	free(l.places);
	return status;
}
