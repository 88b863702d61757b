/*
 * gguf_model.c: what the keys and tensors of a GGUF file mean for a decoder.
 *
 * Whatever would change the arithmetic and is not known here is refused by name: a model computed
 * almost right is worse than none.
 */
#include "model_file_internal.h"

#include "buffer.h"
#include "tokenizer_pre.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- configuration --- */

/* What the architectures differ in, beyond their keys' values. */
typedef struct family
{
	const char *name;
	bool interleaved; /* rows of q and k are, for RoPE over neighbours */
	bool window;      /* the sliding window that a file gives is every layer's */
	bool qkv_bias;
	bool qk_norm;
} family;

static const family families[] = {
	{.name = "llama", .interleaved = true, .window = true},
	{.name = "qwen2", .qkv_bias = true},
	{.name = "qwen3", .qk_norm = true},
};

/* NULL when it is none of these. */
static const family *
find_family(const char *architecture, size_t n)
{
	for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
	{
		if (strlen(families[i].name) == n && memcmp(architecture, families[i].name, n) == 0)
			return &families[i];
	}
	return NULL;
}

/* Once the architecture has been read. */
static const family *
family_of(const ft_config *c)
{
	return find_family(c->architecture, strlen(c->architecture));
}

bool
ft_gguf_architecture_known(const char *architecture, size_t n)
{
	return find_family(architecture, n) != NULL;
}

static bool
string_is(ft_string s, const char *text)
{
	return s.length == strlen(text) && memcmp(s.data, text, s.length) == 0;
}

/* For messages: a string of the file with everything unprintable replaced. */
static const char *
printable(ft_string s, char to[64])
{
	size_t n = s.length < 63 ? s.length : 63;

	for (size_t i = 0; i < n; i++)
		to[i] = s.data[i] >= 0x20 && s.data[i] < 0x7f ? s.data[i] : '?';
	to[n] = '\0';
	return to;
}

/* An integer "<architecture>.<key>" with ft_config's width. */
static ft_status
config_int(const ft_model_file *file, const char *key, bool required, int *to)
{
	char full[128];
	int64_t value = *to;

	snprintf(full, sizeof full, "%s.%s", file->config.architecture, key);
	FT_TRY(ft_gguf_int(file->gguf, full, required, 0, INT_MAX, &value));
	*to = (int) value;
	return FT_OK;
}

static ft_status
config_float(const ft_model_file *file, const char *key, bool required, double *to)
{
	char full[128];

	snprintf(full, sizeof full, "%s.%s", file->config.architecture, key);
	return ft_gguf_float(file->gguf, full, required, to);
}

static ft_status
read_architecture(ft_model_file *file)
{
	ft_string architecture = {0};
	ft_string type = {0};
	char text[64];
	int64_t parts = 0;

	FT_TRY(ft_gguf_string(file->gguf, "general.type", false, &type));
	if (type.data != NULL && !string_is(type, "model"))
		return ft_fail(FT_UNSUPPORTED, "holds a \"%s\", expected a \"model\"",
					   printable(type, text));
	FT_TRY(ft_gguf_int(file->gguf, "split.count", false, 0, 65535, &parts));
	if (parts > 1)
		return ft_hint(ft_fail(FT_UNSUPPORTED, "is one of %d parts of a split model", (int) parts),
					   "Merge the parts into one file first, with llama.cpp's gguf-split.");
	FT_TRY(ft_gguf_string(file->gguf, "general.architecture", true, &architecture));
	if (!ft_gguf_architecture_known(architecture.data, architecture.length))
		return ft_hint(ft_fail(FT_UNSUPPORTED, "architecture \"%s\" is not supported",
							   printable(architecture, text)),
					   "Supported architectures: " FT_ARCHITECTURES ".");
	memcpy(file->config.architecture, architecture.data, architecture.length);
	return FT_OK;
}

/* Features of relatives of the architecture that share its name and its tensors. */
static ft_status
refuse_features(const ft_model_file *file)
{
	static const char *const keys[] = {
		"logit_scale",
		"residual_scale",
		"embedding_scale",
		"attention.scale",
		"attention.clamp_kqv",
		"attn_logit_softcapping",
		"attention.max_alibi_bias",
		"attention.causal",
		"expert_shared_count",
		"expert_group_count",
		"leading_dense_block_count",
		"interleave_moe_layer_step",
		"attention.output_scale",
		"attention.temperature_scale",
		"attention.temperature_length",
		"attention.sliding_window_pattern",
		"attention.shared_kv_layers",
		"final_logit_softcapping",
		"use_parallel_residual",
		"swin_norm",
		"nextn_predict_layers",
		"n_deepstack_layers",
		"rope.dimension_sections",
		"rope.scaling.alpha",
	};

	for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
	{
		char full[128];
		const ft_gguf_value *v;
		bool harmless = false;

		snprintf(full, sizeof full, "%s.%s", file->config.architecture, keys[i]);
		v = ft_gguf_find(file->gguf, full);
		if (v == NULL)
			continue;
		if (v->type == FT_GGUF_BOOL && !v->array)
			FT_TRY(ft_gguf_bool(file->gguf, full, &harmless));
		else if (!v->array && ft_gguf_is_int(v))
			harmless = ft_gguf_int_at(file->gguf, v, 0) == 0;
		else if (!v->array && ft_gguf_is_float(v))
			harmless = ft_gguf_float_at(file->gguf, v, 0) == 0;
		if (!harmless)
			return ft_fail(FT_UNSUPPORTED, "key \"%s\" asks for what is not supported", full);
	}
	return FT_OK;
}

static ft_status
read_rope(ft_model_file *file)
{
	ft_config *c = &file->config;
	ft_string scaling = {0};
	int dimensions = c->head_dim;
	double old_factor = 1;
	char key[128];
	char text[64];

	c->rope_theta = 10000;
	c->rope_factor = 1;
	FT_TRY(config_float(file, "rope.freq_base", false, &c->rope_theta));
	FT_TRY(config_int(file, "rope.dimension_count", false, &dimensions));
	if (dimensions != c->head_dim)
		return ft_fail(FT_UNSUPPORTED, "RoPE turns %d of %d dimensions of a head, expected all",
					   dimensions, c->head_dim);

	FT_TRY(config_float(file, "rope.scale_linear", false, &old_factor));
	if (old_factor != 1)
	{
		c->rope_scaling = FT_ROPE_LINEAR;
		c->rope_factor = old_factor;
	}
	snprintf(key, sizeof key, "%s.rope.scaling.type", c->architecture);
	FT_TRY(ft_gguf_string(file->gguf, key, false, &scaling));
	if (scaling.data == NULL || string_is(scaling, "none"))
		return FT_OK;
	if (!string_is(scaling, "linear"))
		return ft_hint(ft_fail(FT_UNSUPPORTED, "RoPE scaling \"%s\" is not supported",
							   printable(scaling, text)),
					   "Supported: none, linear, and Llama 3's by the tensor rope_freqs.weight.");
	c->rope_scaling = FT_ROPE_LINEAR;
	return config_float(file, "rope.scaling.factor", true, &c->rope_factor);
}

static ft_status
read_window(ft_model_file *file)
{
	ft_config *c = &file->config;

	FT_TRY(config_int(file, "attention.sliding_window", false, &c->window));
	/* what is as long as the context hides nothing */
	if (c->window >= c->max_positions)
		c->window = 0;
	if (c->window > 0 && !family_of(c)->window)
		return ft_hint(
			ft_fail(FT_UNSUPPORTED, "has a sliding window of %d tokens in a context of %d",
					c->window, c->max_positions),
			"Which layers of architecture \"%s\" have it is not in the file.", c->architecture);
	return FT_OK;
}

static ft_status
read_sizes(ft_model_file *file)
{
	ft_config *c = &file->config;
	const ft_gguf_tensor *embedding = ft_gguf_find_tensor(file->gguf, "token_embd.weight");
	double eps = 0;
	int value_length;

	FT_TRY(config_int(file, "block_count", true, &c->layers));
	FT_TRY(config_int(file, "embedding_length", true, &c->hidden));
	FT_TRY(config_int(file, "feed_forward_length", true, &c->ffn));
	FT_TRY(config_int(file, "context_length", true, &c->max_positions));
	FT_TRY(read_window(file));
	FT_TRY(config_int(file, "attention.head_count", true, &c->heads));
	c->kv_heads = c->heads;
	FT_TRY(config_int(file, "attention.head_count_kv", false, &c->kv_heads));
	if (c->heads > 0)
		c->head_dim = c->hidden / c->heads;
	FT_TRY(config_int(file, "attention.key_length", false, &c->head_dim));
	value_length = c->head_dim;
	FT_TRY(config_int(file, "attention.value_length", false, &value_length));
	if (value_length != c->head_dim)
		return ft_fail(FT_UNSUPPORTED, "keys have %d dimensions and values %d, expected the same",
					   c->head_dim, value_length);
	FT_TRY(config_float(file, "attention.layer_norm_rms_epsilon", true, &eps));
	c->rms_eps = (float) eps;
	if (embedding == NULL)
		return ft_fail(FT_CORRUPT, "tensor \"token_embd.weight\" is missing");
	c->vocab = embedding->dims[1] <= INT_MAX ? (int) embedding->dims[1] : INT_MAX;
	c->tied_embeddings = ft_gguf_find_tensor(file->gguf, "output.weight") == NULL;
	c->qkv_bias = family_of(c)->qkv_bias;
	c->qk_norm = family_of(c)->qk_norm;
	return FT_OK;
}

ft_status
ft_gguf_read_config(ft_model_file *file)
{
	FT_TRY(read_architecture(file));
	FT_TRY(refuse_features(file));
	FT_TRY(read_sizes(file));
	FT_TRY(ft_gguf_read_experts(file));
	return read_rope(file);
}

/* --- tensors --- */

typedef enum permutation
{
	AS_IT_IS,
	BY_HEADS,
	BY_KV_HEADS
} permutation;

static const struct
{
	const char *gguf;
	const char *ours;
	permutation permuted;
} layer_names[] = {
	{"attn_norm.weight", "input_layernorm.weight", AS_IT_IS},
	{"attn_q.weight", "self_attn.q_proj.weight", BY_HEADS},
	{"attn_k.weight", "self_attn.k_proj.weight", BY_KV_HEADS},
	{"attn_v.weight", "self_attn.v_proj.weight", AS_IT_IS},
	{"attn_output.weight", "self_attn.o_proj.weight", AS_IT_IS},
	{"ffn_norm.weight", "post_attention_layernorm.weight", AS_IT_IS},
	{"ffn_gate.weight", "mlp.gate_proj.weight", AS_IT_IS},
	{"ffn_up.weight", "mlp.up_proj.weight", AS_IT_IS},
	{"ffn_down.weight", "mlp.down_proj.weight", AS_IT_IS},
};

/* Those of a family that has biases, or norms of q and k. */
static const struct
{
	const char *gguf;
	const char *ours;
	bool bias; /* else a norm */
} family_names[] = {
	{"attn_q.bias", "self_attn.q_proj.bias", true},
	{"attn_k.bias", "self_attn.k_proj.bias", true},
	{"attn_v.bias", "self_attn.v_proj.bias", true},
	{"attn_q_norm.weight", "self_attn.q_norm.weight", false},
	{"attn_k_norm.weight", "self_attn.k_norm.weight", false},
};

static const struct
{
	const char *gguf;
	const char *ours;
} model_names[] = {
	{"token_embd.weight", "model.embed_tokens.weight"},
	{"output_norm.weight", "model.norm.weight"},
	{"output.weight", "lm_head.weight"},
	{"rope_freqs.weight", "rope_freqs.weight"},
};

/* Hugging Face's name and the permutation; an empty name for a tensor that nothing needs. */
static ft_status
translate(const ft_config *c, const char *gguf, ft_model_tensor *t)
{
	int layer;
	int end = 0;

	for (size_t i = 0; i < sizeof model_names / sizeof model_names[0]; i++)
	{
		if (strcmp(gguf, model_names[i].gguf) == 0)
		{
			snprintf(t->name, sizeof t->name, "%s", model_names[i].ours);
			return FT_OK;
		}
	}
	/* at most seven digits, so that no number overflows */
	if (sscanf(gguf, "blk.%7d.%n", &layer, &end) == 1 && end > 0 && layer >= 0 && layer < c->layers)
	{
		/* frequencies that old converters stored; they follow from the configuration */
		if (strcmp(gguf + end, "attn_rot_embd") == 0)
			return FT_OK;
		if (ft_gguf_expert_tensor(c, gguf + end, layer, t))
			return FT_OK;
		for (size_t i = 0; i < sizeof layer_names / sizeof layer_names[0]; i++)
		{
			permutation p = layer_names[i].permuted;

			if (strcmp(gguf + end, layer_names[i].gguf) != 0)
				continue;
			snprintf(t->name, sizeof t->name, "model.layers.%d.%s", layer, layer_names[i].ours);
			if (family_of(c)->interleaved)
				t->permuted_heads = p == BY_HEADS ? c->heads : p == BY_KV_HEADS ? c->kv_heads : 0;
			return FT_OK;
		}
		for (size_t i = 0; i < sizeof family_names / sizeof family_names[0]; i++)
		{
			if (strcmp(gguf + end, family_names[i].gguf) != 0 ||
				!(family_names[i].bias ? c->qkv_bias : c->qk_norm))
				continue;
			snprintf(t->name, sizeof t->name, "model.layers.%d.%s", layer, family_names[i].ours);
			return FT_OK;
		}
	}
	return ft_fail(FT_UNSUPPORTED, "tensor \"%s\" is not one of architecture \"%s\"", gguf,
				   c->architecture);
}

const char *
ft_gguf_architecture_of(const ft_config *c)
{
	return strcmp(c->architecture, "mistral") == 0 || strcmp(c->architecture, "mixtral") == 0
			   ? "llama"
			   : c->architecture;
}

/* The name that a tensor of a layer has there; false when it has none. */
static bool
name_in_layer(const ft_config *c, const char *ours, const char **name, ft_gguf_place *place)
{
	const char *architecture = ft_gguf_architecture_of(c);
	const family *f = find_family(architecture, strlen(architecture));

	for (size_t i = 0; i < sizeof layer_names / sizeof layer_names[0]; i++)
	{
		permutation p = layer_names[i].permuted;

		if (strcmp(ours, layer_names[i].ours) != 0)
			continue;
		*name = layer_names[i].gguf;
		if (f != NULL && f->interleaved)
			place->permuted_heads = p == BY_HEADS ? c->heads : p == BY_KV_HEADS ? c->kv_heads : 0;
		return f != NULL;
	}
	for (size_t i = 0; i < sizeof family_names / sizeof family_names[0]; i++)
	{
		*name = family_names[i].gguf;
		if (strcmp(ours, family_names[i].ours) == 0)
			return family_names[i].bias ? c->qkv_bias : c->qk_norm;
	}
	return ft_gguf_expert_place(c, ours, name, place);
}

ft_status
ft_gguf_known_type(const ft_gguf_tensor *from, ft_dtype *dtype)
{
	*dtype = ft_gguf_tensor_dtype(from->type);
	if (*dtype == FT_DTYPE_COUNT)
		return ft_fail(FT_UNSUPPORTED, "tensor \"%s\" is of type %s (%u), which is not supported",
					   from->name, ft_gguf_tensor_type_name(from->type), from->type);
	return FT_OK;
}

ft_status
ft_gguf_place_of(const ft_config *c, const char *ours, ft_gguf_place *place)
{
	const char *in_layer;
	int layer;
	int end = 0;

	*place = (ft_gguf_place){.expert = -1};
	for (size_t i = 0; i < sizeof model_names / sizeof model_names[0]; i++)
	{
		if (strcmp(ours, model_names[i].ours) == 0)
		{
			snprintf(place->name, sizeof place->name, "%s", model_names[i].gguf);
			return FT_OK;
		}
	}
	if (sscanf(ours, "model.layers.%7d.%n", &layer, &end) == 1 && end > 0 &&
		name_in_layer(c, ours + end, &in_layer, place))
	{
		snprintf(place->name, sizeof place->name, "blk.%d.%s", layer, in_layer);
		return FT_OK;
	}
	return ft_fail(FT_UNSUPPORTED,
				   "tensor \"%s\" has no name in a GGUF file of architecture \"%s\"", ours,
				   c->architecture);
}

static ft_status
read_tensors(ft_model_file *file)
{
	const ft_gguf *g = file->gguf;
	size_t n = 0;
	void *memory;

	for (size_t i = 0; i < g->n_tensors; i++)
		n += (size_t) ft_gguf_tensor_slices(&file->config, &g->tensors[i]);
	FT_TRY(ft_alloc(&memory, n, sizeof(ft_model_tensor)));
	file->tensors = memory;
	for (size_t i = 0; i < g->n_tensors; i++)
	{
		const ft_gguf_tensor *from = &g->tensors[i];
		ft_model_tensor *t = &file->tensors[file->n_tensors];
		bool stacked;

		FT_TRY(ft_gguf_expert_slices(&file->config, from, t, &stacked));
		if (stacked)
		{
			file->n_tensors += file->config.experts;
			continue;
		}
		FT_TRY(translate(&file->config, from->name, t));
		if (t->name[0] == '\0')
			continue;
		FT_TRY(ft_gguf_known_type(from, &t->dtype));
		if (from->dims[2] != 1 || from->dims[3] != 1)
			return ft_fail(FT_UNSUPPORTED, "tensor \"%s\" has %d dimensions, expected 1 or 2",
						   from->name, from->n_dims);
		t->rows = (int64_t) from->dims[1];
		t->cols = (int64_t) from->dims[0];
		t->offset = from->offset;
		t->bytes = from->bytes;
		file->n_tensors++;
	}
	return FT_OK;
}

/* --- vocabulary --- */

static ft_status
copy_name(const ft_gguf *g, const char *key, bool required, char *to, size_t size)
{
	ft_string s = {0};
	char text[64];

	FT_TRY(ft_gguf_string(g, key, required, &s));
	if (s.length >= size)
		return ft_fail(FT_UNSUPPORTED, "key \"%s\" is \"%s\", which is not supported", key,
					   printable(s, text));
	if (s.length > 0)
		snprintf(to, size, "%s", printable(s, text));
	return FT_OK;
}

static ft_status
token_id(const ft_model_file *file, const char *key, int *to)
{
	int64_t id = -1;

	FT_TRY(ft_gguf_int(file->gguf, key, false, INT_MIN, UINT32_MAX, &id));
	/* absent is written as -1, also in an unsigned field */
	if (id < 0 || id == UINT32_MAX)
		id = -1;
	else if ((uint64_t) id >= file->vocabulary.n_tokens)
		return ft_fail(FT_CORRUPT, "key \"%s\" is %lld, but the vocabulary has %zu tokens", key,
					   (long long) id, file->vocabulary.n_tokens);
	*to = (int) id;
	return FT_OK;
}

/* An array of one entry a token; *v NULL when it is missing. */
static ft_status
find_per_token(const ft_model_file *file, const char *key, const ft_gguf_value **v)
{
	*v = ft_gguf_find(file->gguf, key);
	if (*v != NULL && (!(*v)->array || (*v)->count != file->vocabulary.n_tokens))
		return ft_fail(FT_CORRUPT, "key \"%s\" has %llu values, but the vocabulary has %zu tokens",
					   key, (unsigned long long) (*v)->count, file->vocabulary.n_tokens);
	return FT_OK;
}

static ft_status
read_token_types(ft_model_file *file)
{
	ft_vocabulary *v = &file->vocabulary;
	const ft_gguf_value *value;
	bool exact = false;
	void *memory;

	FT_TRY(ft_alloc(&memory, v->n_tokens, sizeof(int32_t)));
	v->types = memory;
	FT_TRY(find_per_token(file, "tokenizer.ggml.token_type", &value));
	if (value != NULL && !ft_gguf_is_int(value))
		return ft_fail(FT_CORRUPT, "key \"tokenizer.ggml.token_type\" is no array of integers");
	for (size_t i = 0; i < v->n_tokens; i++)
		v->types[i] =
			value != NULL ? (int32_t) ft_gguf_int_at(file->gguf, value, i) : FT_TOKEN_NORMAL;
	FT_TRY(ft_gguf_bool(file->gguf, FT_GGUF_EXACT_TYPES, &exact));
	if (exact)
	{
		FT_TRY(ft_alloc(&memory, v->n_tokens, sizeof(uint8_t)));
		v->added = memory;
	}
	return FT_OK;
}

static ft_status
read_scores(ft_model_file *file)
{
	ft_vocabulary *v = &file->vocabulary;
	const ft_gguf_value *value;
	void *memory;

	FT_TRY(find_per_token(file, "tokenizer.ggml.scores", &value));
	if (value == NULL && strcmp(v->model, "llama") == 0)
		return ft_fail(FT_CORRUPT, "key \"tokenizer.ggml.scores\" is missing");
	if (value == NULL)
		return FT_OK;
	if (!ft_gguf_is_float(value))
		return ft_fail(FT_CORRUPT, "key \"tokenizer.ggml.scores\" is no array of numbers");
	FT_TRY(ft_alloc(&memory, v->n_tokens, sizeof(float)));
	v->scores = memory;
	for (size_t i = 0; i < v->n_tokens; i++)
		v->scores[i] = (float) ft_gguf_float_at(file->gguf, value, i);
	return FT_OK;
}

static ft_status
read_string_array(const ft_gguf *g, const char *key, ft_string **strings, size_t *n)
{
	const ft_gguf_value *value = ft_gguf_find(g, key);

	if (value == NULL)
		return FT_OK;
	if (!value->array || value->type != FT_GGUF_STRING || value->count > INT_MAX)
		return ft_fail(FT_CORRUPT, "key \"%s\" is no array of strings", key);
	FT_TRY(ft_gguf_strings(g, value, strings));
	*n = value->count;
	return FT_OK;
}

static const struct
{
	const char *name;
	ft_space_prefix prefix;
	bool once;
} space_prefixes[] = {
	{"first", FT_SPACE_FIRST, true},
	{"each", FT_SPACE_ALWAYS, true},
	{"texts", FT_SPACE_TEXTS, false},
};

#define N_SPACE_PREFIXES (sizeof space_prefixes / sizeof space_prefixes[0])

const char *
ft_gguf_space_prefix_name(ft_space_prefix prefix, bool once)
{
	for (size_t i = 0; i < N_SPACE_PREFIXES; i++)
	{
		if (space_prefixes[i].prefix == prefix && space_prefixes[i].once == once)
			return space_prefixes[i].name;
	}
	return NULL;
}

static ft_status
read_space_prefix(ft_model_file *file)
{
	ft_vocabulary *v = &file->vocabulary;
	ft_string name = {0};
	char text[64];

	FT_TRY(ft_gguf_string(file->gguf, FT_GGUF_SPACE_PREFIX, false, &name));
	if (name.data == NULL)
		return FT_OK;
	for (size_t i = 0; i < N_SPACE_PREFIXES; i++)
	{
		if (!string_is(name, space_prefixes[i].name))
			continue;
		v->space_prefix = space_prefixes[i].prefix;
		v->space_prefix_once = space_prefixes[i].once;
		return FT_OK;
	}
	return ft_fail(FT_UNSUPPORTED,
				   "key \"" FT_GGUF_SPACE_PREFIX "\" is \"%s\", which is not supported",
				   printable(name, text));
}

/* What the keys leave open is as the models of these kinds were trained. */
static ft_status
read_vocabulary_options(ft_model_file *file)
{
	const ft_gguf *g = file->gguf;
	ft_vocabulary *v = &file->vocabulary;
	bool sentencepiece = strcmp(v->model, "llama") == 0;
	bool add_space_prefix = sentencepiece;
	bool remove_spaces = false;

	v->add_bos = sentencepiece || ft_pre_adds_bos(v->pre);
	FT_TRY(ft_gguf_bool(g, "tokenizer.ggml.add_bos_token", &v->add_bos));
	FT_TRY(ft_gguf_bool(g, "tokenizer.ggml.add_space_prefix", &add_space_prefix));
	FT_TRY(ft_gguf_bool(g, "tokenizer.ggml.remove_extra_whitespaces", &remove_spaces));
	if (sentencepiece && remove_spaces)
		return ft_fail(FT_UNSUPPORTED, "key \"tokenizer.ggml.remove_extra_whitespaces\" is true, "
									   "which is not supported");
	v->space_prefix = sentencepiece && add_space_prefix ? FT_SPACE_ALWAYS : FT_SPACE_NONE;
	v->byte_fallback = sentencepiece;
	v->nfc = !sentencepiece && ft_pre_normalises(v->pre);
	return v->space_prefix != FT_SPACE_NONE ? read_space_prefix(file) : FT_OK;
}

static ft_status
read_vocabulary(ft_model_file *file)
{
	const ft_gguf *g = file->gguf;
	ft_vocabulary *v = &file->vocabulary;

	v->bos = v->eos = v->unknown = v->pad = -1;
	FT_TRY(copy_name(g, "tokenizer.ggml.model", false, v->model, sizeof v->model));
	FT_TRY(copy_name(g, "tokenizer.ggml.pre", false, v->pre, sizeof v->pre));
	FT_TRY(read_string_array(g, "tokenizer.ggml.tokens", &v->tokens, &v->n_tokens));
	FT_TRY(read_token_types(file));
	FT_TRY(read_scores(file));
	FT_TRY(read_string_array(g, "tokenizer.ggml.merges", &v->merges, &v->n_merges));
	FT_TRY(token_id(file, "tokenizer.ggml.bos_token_id", &v->bos));
	FT_TRY(token_id(file, "tokenizer.ggml.eos_token_id", &v->eos));
	FT_TRY(token_id(file, "tokenizer.ggml.unknown_token_id", &v->unknown));
	FT_TRY(token_id(file, "tokenizer.ggml.padding_token_id", &v->pad));

	return read_vocabulary_options(file);
}

/* Ends of turns and of messages that the file names beside its end of text. */
static ft_status
read_ends(ft_model_file *file)
{
	static const char *const keys[] = {"tokenizer.ggml.eot_token_id",
									   "tokenizer.ggml.eom_token_id"};
	ft_config *c = &file->config;

	if (file->vocabulary.eos >= 0)
		c->eos[c->n_eos++] = file->vocabulary.eos;
	for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
	{
		int id = -1;

		FT_TRY(token_id(file, keys[i], &id));
		if (id >= 0 && id != file->vocabulary.eos)
			c->eos[c->n_eos++] = id;
	}
	return FT_OK;
}

static ft_status
read_template(ft_model_file *file)
{
	ft_string text = {0};
	void *memory;

	FT_TRY(ft_gguf_string(file->gguf, "tokenizer.chat_template", false, &text));
	if (text.data == NULL)
		return FT_OK;
	if (memchr(text.data, '\0', text.length) != NULL)
		return ft_fail(FT_CORRUPT, "key \"tokenizer.chat_template\" has a NUL byte");
	FT_TRY(ft_alloc(&memory, text.length + 1, 1));
	memcpy(memory, text.data, text.length);
	file->chat_template = memory;
	return FT_OK;
}

ft_status
ft_gguf_read_contents(ft_model_file *file)
{
	FT_TRY(read_tensors(file));
	FT_TRY(read_vocabulary(file));
	FT_TRY(read_ends(file));
	return read_template(file);
}
