/*
 * hf_config.c: the configuration of a Hugging Face model directory.
 *
 * What a missing key means is the default of the class that config.json names
 * (transformers, models/<name>/configuration_<name>.py); null means "none",
 * which is not the same for Mistral's sliding window.
 */
#include "hf_config.h"

#include "json_text.h"
#include "model_file_internal.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

typedef struct family
{
	const char *class_name; /* of "architectures" */
	const char *model_type; /* also what we call it */
	int kv_heads;           /* 0: as many as heads */
	int head_dim;           /* 0: hidden size / heads */
	int positions;
	double rms_eps;
	double rope_theta;
	int window;          /* of a missing key, where it has such a key at all */
	bool has_window;     /* "sliding_window" counts */
	bool window_by_flag; /* only with "use_sliding_window", and from some layer on */
	bool experts;
	bool qkv_bias;
	bool qk_norm;
} family;

static const family families[] = {
	{.class_name = "LlamaForCausalLM",
	 .model_type = "llama",
	 .positions = 2048,
	 .rms_eps = 1e-6,
	 .rope_theta = 1e4},
	{.class_name = "MistralForCausalLM",
	 .model_type = "mistral",
	 .kv_heads = 8,
	 .positions = 131072,
	 .rms_eps = 1e-6,
	 .rope_theta = 1e4,
	 .window = 4096,
	 .has_window = true},
	{.class_name = "MixtralForCausalLM",
	 .model_type = "mixtral",
	 .kv_heads = 8,
	 .positions = 131072,
	 .rms_eps = 1e-5,
	 .rope_theta = 1e6,
	 .has_window = true,
	 .experts = true},
	{.class_name = "Qwen2ForCausalLM",
	 .model_type = "qwen2",
	 .kv_heads = 32,
	 .positions = 32768,
	 .rms_eps = 1e-6,
	 .rope_theta = 1e4,
	 .window = 4096,
	 .has_window = true,
	 .window_by_flag = true,
	 .qkv_bias = true},
	{.class_name = "Qwen3ForCausalLM",
	 .model_type = "qwen3",
	 .kv_heads = 32,
	 .head_dim = 128,
	 .positions = 32768,
	 .rms_eps = 1e-6,
	 .rope_theta = 1e4,
	 .window = 4096,
	 .has_window = true,
	 .window_by_flag = true,
	 .qk_norm = true},
};

#define N_FAMILIES (sizeof families / sizeof families[0])

/* --- architecture --- */

static const family *
find_family(const char *class_name, const char *model_type)
{
	for (size_t i = 0; i < N_FAMILIES; i++)
	{
		if ((class_name != NULL && strcmp(class_name, families[i].class_name) == 0) ||
			(model_type != NULL && strcmp(model_type, families[i].model_type) == 0))
			return &families[i];
	}
	return NULL;
}

static ft_status
unknown_architecture(const char *name)
{
	char text[FT_PRINTABLE_SIZE];

	return ft_hint(ft_fail(FT_UNSUPPORTED, "architecture \"%s\" is not supported",
						   ft_json_printable(name, text)),
				   "Supported architectures: " FT_HF_ARCHITECTURES ".");
}

/* By the class that is named, or by the type of the model where none is. */
static ft_status
read_family(const json_t *json, const family **found)
{
	const json_t *classes = ft_json_get(json, "architectures");
	const char *class_name = NULL;
	const char *model_type = NULL;

	FT_TRY(ft_json_get_string(json, "model_type", &model_type));
	if (classes != NULL && (!json_is_array(classes) || json_array_size(classes) != 1 ||
							!json_is_string(json_array_get(classes, 0))))
		return ft_fail(FT_CORRUPT, "\"architectures\" is no list of one name");
	if (classes != NULL)
		class_name = json_string_value(json_array_get(classes, 0));
	if (class_name == NULL && model_type == NULL)
		return ft_fail(FT_CORRUPT, "has neither \"architectures\" nor \"model_type\"");
	*found = find_family(class_name, class_name == NULL ? model_type : NULL);
	if (*found == NULL)
		return unknown_architecture(class_name != NULL ? class_name : model_type);
	if (model_type != NULL && strcmp(model_type, (*found)->model_type) != 0)
		return unknown_architecture(model_type);
	return FT_OK;
}

/* --- what is not supported --- */

static ft_status
refuse_flag(const json_t *json, const char *key)
{
	bool set = false;

	FT_TRY(ft_json_get_flag(json, key, &set));
	return set ? ft_fail(FT_UNSUPPORTED, "\"%s\" is not supported", key) : FT_OK;
}

static ft_status
refuse_features(const json_t *json)
{
	const json_t *custom = ft_json_get(json, "auto_map");
	const json_t *quantised = ft_json_get(json, "quantization_config");
	const char *activation = "silu";
	const char *method = "";
	double rotary = 1;
	char text[FT_PRINTABLE_SIZE];

	FT_TRY(refuse_flag(json, "attention_bias"));
	FT_TRY(refuse_flag(json, "mlp_bias"));
	FT_TRY(refuse_flag(json, "rope_interleaved"));
	FT_TRY(refuse_flag(json, "is_encoder_decoder"));
	FT_TRY(ft_json_get_string(json, "hidden_act", &activation));
	if (strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0)
		return ft_fail(FT_UNSUPPORTED, "\"hidden_act\" \"%s\" is not supported, only \"silu\"",
					   ft_json_printable(activation, text));
	FT_TRY(ft_json_get_number(json, "partial_rotary_factor", &rotary));
	if (rotary != 1)
		return ft_fail(FT_UNSUPPORTED, "\"partial_rotary_factor\" %g is not supported, only 1",
					   rotary);
	if (custom != NULL && json_object_get(custom, "AutoModelForCausalLM") != NULL)
		return ft_fail(FT_UNSUPPORTED, "\"auto_map\" names code of the model's own");
	if (quantised == NULL)
		return FT_OK;
	FT_TRY(ft_json_get_string(quantised, "quant_method", &method));
	return ft_hint(ft_fail(FT_UNSUPPORTED, "\"quantization_config\" (\"%s\") is not supported",
						   ft_json_printable(method, text)),
				   "Bring the model's weights in F32, F16 or BF16, or a quantised GGUF file.");
}

/* --- sizes --- */

static ft_status
read_int(const json_t *json, const char *key, bool required, int *to)
{
	int64_t value = *to;

	if (required && ft_json_get(json, key) == NULL)
		return ft_fail(FT_CORRUPT, "\"%s\" is missing", key);
	FT_TRY(ft_json_get_int(json, key, 1, INT_MAX, &value));
	*to = (int) value;
	return FT_OK;
}

/* A key that is there, as null, says "as many as heads" or "hidden size / heads" whatever the
 * class's default is. */
static int
default_of(const json_t *json, const char *key, int by_class, int by_null)
{
	return by_class == 0 || json_is_null(json_object_get(json, key)) ? by_null : by_class;
}

static ft_status
read_experts(const json_t *json, ft_config *c)
{
	c->experts = 8;
	c->experts_per_token = 2;
	FT_TRY(read_int(json, "num_local_experts", false, &c->experts));
	FT_TRY(read_int(json, "num_experts_per_tok", false, &c->experts_per_token));
	return ft_model_experts_check(c);
}

static ft_status
read_sizes(const json_t *json, const family *f, ft_config *c)
{
	double eps = f->rms_eps;

	FT_TRY(read_int(json, "vocab_size", true, &c->vocab));
	FT_TRY(read_int(json, "hidden_size", true, &c->hidden));
	FT_TRY(read_int(json, "intermediate_size", true, &c->ffn));
	FT_TRY(read_int(json, "num_hidden_layers", true, &c->layers));
	FT_TRY(read_int(json, "num_attention_heads", true, &c->heads));
	c->kv_heads = default_of(json, "num_key_value_heads", f->kv_heads, c->heads);
	FT_TRY(read_int(json, "num_key_value_heads", false, &c->kv_heads));
	c->head_dim = default_of(json, "head_dim", f->head_dim, c->hidden / c->heads);
	FT_TRY(read_int(json, "head_dim", false, &c->head_dim));
	c->max_positions = f->positions;
	FT_TRY(read_int(json, "max_position_embeddings", false, &c->max_positions));
	FT_TRY(ft_json_get_number(json, "rms_norm_eps", &eps));
	c->rms_eps = (float) eps;
	FT_TRY(ft_json_get_flag(json, "tie_word_embeddings", &c->tied_embeddings));
	if (!f->experts)
		return FT_OK;
	return read_experts(json, c);
}

/* --- rotary positions --- */

typedef struct rope
{
	ft_rope_scaling scaling;
	double theta;
	double factor;
	double low;
	double high;
	int original;
} rope;

static ft_status
need_number(const json_t *json, const char *key, double *to)
{
	if (ft_json_get(json, key) == NULL)
		return ft_fail(FT_CORRUPT, "\"%s\" of the RoPE scaling is missing", key);
	FT_TRY(ft_json_get_number(json, key, to));
	if (*to > 0)
		return FT_OK;
	return ft_fail(FT_CORRUPT, "\"%s\" of the RoPE scaling is %g, expected a positive number", key,
				   *to);
}

static ft_status
read_rope_type(const json_t *json, const ft_config *c, const char *type, rope *r)
{
	char text[FT_PRINTABLE_SIZE];

	if (strcmp(type, "default") == 0)
		return FT_OK;
	if (strcmp(type, "linear") == 0)
	{
		r->scaling = FT_ROPE_LINEAR;
		return need_number(json, "factor", &r->factor);
	}
	if (strcmp(type, "llama3") != 0)
		return ft_hint(ft_fail(FT_UNSUPPORTED, "RoPE scaling \"%s\" is not supported",
							   ft_json_printable(type, text)),
					   "Supported: default, linear and llama3.");
	r->scaling = FT_ROPE_LLAMA3;
	r->original = c->max_positions;
	FT_TRY(need_number(json, "factor", &r->factor));
	FT_TRY(need_number(json, "low_freq_factor", &r->low));
	FT_TRY(need_number(json, "high_freq_factor", &r->high));
	FT_TRY(read_int(json, "original_max_position_embeddings", false, &r->original));
	if (r->high > r->low)
		return FT_OK;
	return ft_fail(FT_CORRUPT, "\"high_freq_factor\" is %g, expected more than the lower one, %g",
				   r->high, r->low);
}

/* "rope_scaling" and "rope_parameters" have the same members; the latter also theta. */
static ft_status
read_rope_object(const json_t *json, const char *key, const ft_config *c, rope *r)
{
	const json_t *object = ft_json_get(json, key);
	const char *type = NULL;
	const char *member;
	json_t *value;
	double rotary = 1;

	if (object == NULL)
		return FT_OK;
	if (!json_is_object(object))
		return ft_fail(FT_CORRUPT, "\"%s\" is no object", key);
	json_object_foreach ((json_t *) object, member, value)
	{
		if (json_is_object(value))
			return ft_fail(FT_UNSUPPORTED, "\"%s\" that differ by layer are not supported", key);
	}
	FT_TRY(ft_json_get_string(object, "type", &type));
	FT_TRY(ft_json_get_string(object, "rope_type", &type));
	FT_TRY(ft_json_get_number(object, "rope_theta", &r->theta));
	FT_TRY(ft_json_get_number(object, "partial_rotary_factor", &rotary));
	if (rotary != 1)
		return ft_fail(FT_UNSUPPORTED, "\"partial_rotary_factor\" %g is not supported, only 1",
					   rotary);
	return read_rope_type(object, c, type != NULL ? type : "default", r);
}

static bool
same_rope(const rope *a, const rope *b)
{
	return a->scaling == b->scaling && a->theta == b->theta && a->factor == b->factor &&
		   a->low == b->low && a->high == b->high && a->original == b->original;
}

static ft_status
read_rope(const json_t *json, const family *f, ft_config *c)
{
	rope old = {.theta = f->rope_theta, .factor = 1};
	rope new;

	FT_TRY(ft_json_get_number(json, "rope_theta", &old.theta));
	new = old;
	FT_TRY(read_rope_object(json, "rope_scaling", c, &old));
	FT_TRY(read_rope_object(json, "rope_parameters", c, &new));
	if (ft_json_get(json, "rope_parameters") == NULL)
		new = old;
	else if (ft_json_get(json, "rope_scaling") != NULL && !same_rope(&old, &new))
		return ft_fail(FT_CORRUPT,
					   "\"rope_scaling\" and \"rope_parameters\" contradict each other");
	c->rope_theta = new.theta;
	c->rope_scaling = new.scaling;
	c->rope_factor = new.factor;
	c->rope_low_freq = new.low;
	c->rope_high_freq = new.high;
	c->rope_original_positions = new.original;
	return FT_OK;
}

/* --- sliding window --- */

/* "layer_types", where it is given: everything before `window_from` is full attention, everything
 * after it has the window. */
static ft_status
read_layer_types(const json_t *json, bool may_differ, ft_config *c)
{
	const json_t *types = ft_json_get(json, "layer_types");
	int from = c->layers;

	if (types == NULL)
		return FT_OK;
	if (!json_is_array(types) || json_array_size(types) != (size_t) c->layers)
		return ft_fail(FT_CORRUPT, "\"layer_types\" is no list of %d types", c->layers);
	for (int i = 0; i < c->layers; i++)
	{
		const char *type = json_string_value(json_array_get(types, (size_t) i));
		bool sliding = type != NULL && strcmp(type, "sliding_attention") == 0;

		if (sliding && from == c->layers)
			from = i;
		if (!sliding && (type == NULL || strcmp(type, "full_attention") != 0 || from < i))
			return ft_fail(FT_UNSUPPORTED, "\"layer_types\" is not supported from layer %d on", i);
	}
	if (!may_differ && from != (c->window > 0 ? 0 : c->layers))
		return ft_fail(FT_UNSUPPORTED, "\"layer_types\" that differ are not supported");
	if (from < c->layers && c->window == 0)
		return ft_fail(FT_CORRUPT, "\"layer_types\" has a sliding window of no length");
	c->window_from = from;
	return FT_OK;
}

static ft_status
read_window(const json_t *json, const family *f, ft_config *c)
{
	int64_t from = 28; /* the default of both families that have the key */
	bool used = false;

	if (f->has_window && !json_is_null(json_object_get(json, "sliding_window")))
	{
		c->window = f->window;
		FT_TRY(read_int(json, "sliding_window", false, &c->window));
	}
	if (f->window_by_flag)
	{
		FT_TRY(ft_json_get_flag(json, "use_sliding_window", &used));
		FT_TRY(ft_json_get_int(json, "max_window_layers", 0, INT_MAX, &from));
		if (!used)
			c->window = 0;
		c->window_from = (int) from;
	}
	FT_TRY(read_layer_types(json, f->window_by_flag, c));
	/* what hides nothing is none */
	if (c->window >= c->max_positions || c->window_from >= c->layers)
		c->window = 0;
	if (c->window == 0)
		c->window_from = 0;
	return FT_OK;
}

/* --- tokens --- */

static ft_status
add_end(const json_t *value, ft_config *c)
{
	int64_t id = json_integer_value(value);

	if (!json_is_integer(value))
		return ft_fail(FT_CORRUPT, "\"eos_token_id\" is no token id");
	if (id < 0 || id >= c->vocab)
		return ft_fail(FT_CORRUPT, "\"eos_token_id\" is %lld, but the vocabulary has %d tokens",
					   (long long) id, c->vocab);
	for (int i = 0; i < c->n_eos; i++)
	{
		if (c->eos[i] == id)
			return FT_OK;
	}
	if (c->n_eos == FT_MAX_EOS)
		return ft_fail(FT_UNSUPPORTED, "\"eos_token_id\" has more than %d tokens", FT_MAX_EOS);
	c->eos[c->n_eos++] = (int) id;
	return FT_OK;
}

/* One id, a list of them, or none. */
static ft_status
read_ends(const json_t *json, ft_config *c)
{
	const json_t *ends = ft_json_get(json, "eos_token_id");

	if (ends == NULL)
		return FT_OK;
	if (!json_is_array(ends))
		return add_end(ends, c);
	for (size_t i = 0; i < json_array_size(ends); i++)
		FT_TRY(add_end(json_array_get(ends, i), c));
	return FT_OK;
}

static ft_status
read_tokens(const json_t *json, ft_config *c)
{
	int64_t bos = -1;

	c->bos = c->pad = -1;
	FT_TRY(ft_json_get_int(json, "bos_token_id", -1, INT_MAX, &bos));
	if (bos >= c->vocab)
		return ft_fail(FT_CORRUPT, "\"bos_token_id\" is %lld, but the vocabulary has %d tokens",
					   (long long) bos, c->vocab);
	c->bos = (int) bos;
	return read_ends(json, c);
}

/* --- all of it --- */

static ft_status
read_config(const json_t *json, ft_config *c)
{
	const family *f;

	FT_TRY(read_family(json, &f));
	FT_TRY(refuse_features(json));
	snprintf(c->architecture, sizeof c->architecture, "%s", f->model_type);
	c->qkv_bias = f->qkv_bias;
	c->qk_norm = f->qk_norm;
	FT_TRY(read_sizes(json, f, c));
	FT_TRY(read_rope(json, f, c));
	FT_TRY(read_window(json, f, c));
	return read_tokens(json, c);
}

ft_status
ft_hf_config_read(const char *text, size_t n, ft_config *config)
{
	json_t *json;
	ft_status status;

	memset(config, 0, sizeof *config);
	FT_TRY(ft_json_parse(text, n, &json));
	status = read_config(json, config);
	json_decref(json);
	return status;
}

ft_status
ft_hf_generation_read(const char *text, size_t n, ft_config *config)
{
	json_t *json;
	ft_status status;

	FT_TRY(ft_json_parse(text, n, &json));
	status = read_ends(json, config);
	json_decref(json);
	return status;
}

int64_t
ft_config_parameters(const ft_config *c)
{
	int64_t hidden = c->hidden;
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;
	int64_t layer = hidden * (2 * q + 2 * kv) + 2 * hidden;
	int64_t rest = hidden + c->vocab * hidden * (c->tied_embeddings ? 1 : 2);
	int64_t all;

	if (c->experts > 0)
		layer += c->experts * (3 * hidden * c->ffn + hidden);
	else
		layer += 3 * hidden * c->ffn;
	if (c->qkv_bias)
		layer += q + 2 * kv;
	if (c->qk_norm)
		layer += 2 * c->head_dim;
	if (__builtin_mul_overflow((int64_t) c->layers, layer, &all) ||
		__builtin_add_overflow(all, rest, &all))
		return INT64_MAX;
	return all;
}
