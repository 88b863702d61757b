/*
 * model.c: loading a base model's weights onto a device.
 *
 * Tensors are read one group at a time (a layer's q, k and v, say), given to
 * the backend, which lays them out as it likes, and forgotten: beside the
 * device's copy never more than one group is held in host memory.
 */
#include "model.h"

#include "buffer.h"
#include "nf4.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Longest RoPE table that is made without being asked for: 2^20 positions are 512 MiB at D = 128.
 */
#define MAX_POSITIONS (1 << 20)

/* Widest head: published models have up to 256. */
#define MAX_HEAD_DIM 1024

#define MAX_PARTS 3

typedef struct loader
{
	const ft_model_file *file;
	ft_model *model;
	ft_stream *stream;
	unsigned use;
	unsigned matrix_use; /* of the blocks' matrices */
	bool *used;          /* per tensor of the file */
} loader;

static const struct
{
	const char *name;
	const char *module;
} targets[FT_TARGET_COUNT] = {
	[FT_Q_PROJ] = {"q_proj", "self_attn.q_proj"},    [FT_K_PROJ] = {"k_proj", "self_attn.k_proj"},
	[FT_V_PROJ] = {"v_proj", "self_attn.v_proj"},    [FT_O_PROJ] = {"o_proj", "self_attn.o_proj"},
	[FT_GATE_PROJ] = {"gate_proj", "mlp.gate_proj"}, [FT_UP_PROJ] = {"up_proj", "mlp.up_proj"},
	[FT_DOWN_PROJ] = {"down_proj", "mlp.down_proj"},
};

const char *
ft_target_name(ft_target target)
{
	return targets[target].name;
}

const char *
ft_target_module(ft_target target)
{
	return targets[target].module;
}

unsigned
ft_target_all(const ft_config *config)
{
	unsigned ffn = 1u << FT_GATE_PROJ | 1u << FT_UP_PROJ | 1u << FT_DOWN_PROJ;
	unsigned all = (1u << FT_TARGET_COUNT) - 1;

	return config->experts > 0 ? all & ~ffn : all;
}

ft_status
ft_target_check(const ft_config *config, unsigned wanted)
{
	unsigned missing = wanted & ~ft_target_all(config);

	for (int t = 0; t < FT_TARGET_COUNT; t++)
	{
		if (missing & (1u << t))
			return ft_hint(ft_fail(FT_UNSUPPORTED,
								   "LoRA on \"%s\" is not supported on a base of %d experts",
								   ft_target_name((ft_target) t), config->experts),
						   "The modules of a mixture of experts are q_proj, k_proj, v_proj and "
						   "o_proj.");
	}
	return FT_OK;
}

void
ft_target_shape(const ft_config *config, ft_target target, int *in, int *out)
{
	int q = config->heads * config->head_dim;
	int kv = config->kv_heads * config->head_dim;

	switch (target)
	{
		case FT_Q_PROJ:
			*in = config->hidden;
			*out = q;
			break;
		case FT_K_PROJ:
		case FT_V_PROJ:
			*in = config->hidden;
			*out = kv;
			break;
		case FT_O_PROJ:
			*in = q;
			*out = config->hidden;
			break;
		case FT_GATE_PROJ:
		case FT_UP_PROJ:
			*in = config->hidden;
			*out = config->ffn;
			break;
		case FT_DOWN_PROJ:
		default:
			*in = config->ffn;
			*out = config->hidden;
			break;
	}
}

/* The tensor of that name, which must be there and have that shape; it counts as used. */
static ft_status
find_tensor(loader *l, const char *name, int64_t rows, int64_t cols, const ft_model_tensor **tensor)
{
	const ft_model_tensor *t = ft_model_file_find(l->file, name);

	if (!t)
		return ft_fail(FT_CORRUPT, "%s: tensor \"%s\" is missing", ft_model_file_path(l->file),
					   name);
	if (t->rows != rows || t->cols != cols)
		return ft_fail(FT_CORRUPT,
					   "%s: tensor \"%s\" has shape [%lld, %lld], expected [%lld, %lld]",
					   ft_model_file_path(l->file), name, (long long) t->rows, (long long) t->cols,
					   (long long) rows, (long long) cols);
	for (int i = 0; i < ft_model_file_tensors(l->file); i++)
		if (ft_model_file_tensor(l->file, i) == t)
			l->used[i] = true;
	*tensor = t;
	return FT_OK;
}

/* A stored tensor into a matrix or vector on the device, of f32 or bf16. */
static ft_status
load_values(loader *l, const ft_model_tensor *t, ft_mat to)
{
	const ft_ops *ops = l->model->ops;
	void *host = NULL;
	void *stored = NULL;
	ft_status status;

	FT_TRY(ft_alloc(&host, t->bytes, 1));
	status = ft_model_file_read(l->file, t, host);
	if (status == FT_OK && t->dtype == to.dtype)
		status = ops->copy_to_device(l->stream, to.data, host, t->bytes);
	else if (status == FT_OK)
	{
		status = ops->mem_alloc(l->model->device, FT_MEM_DEVICE, t->bytes, &stored);
		if (status == FT_OK)
			status = ops->copy_to_device(l->stream, stored, host, t->bytes);
		if (status == FT_OK)
			status = ops->convert(l->stream, to, ft_mat_make(stored, t->dtype, to.rows, to.cols));
	}
	if (status == FT_OK)
		status = ops->stream_synchronize(l->stream);
	if (stored)
		ops->mem_free(l->model->device, FT_MEM_DEVICE, stored);
	free(host);
	return status;
}

/* Where the parameters have a tensor. */
static int64_t
place_of(const loader *l, const char *name)
{
	int64_t n;

	return ft_weight_layout_find(l->model->parameters->layout, name, &n);
}

/* The named tensors, which stand one after the other in the parameters, as one weight. */
static ft_status
load_parameters(loader *l, int n, const char *const *names, const int64_t *rows, int64_t cols,
				ft_weight **weight)
{
	const ft_parameters *p = l->model->parameters;
	int64_t all = 0;

	for (int i = 0; i < n; i++)
	{
		const ft_model_tensor *t;

		FT_TRY(find_tensor(l, names[i], rows[i], cols, &t));
		FT_TRY(load_values(l, t, ft_parameters_at(p, place_of(l, names[i]), rows[i], cols)));
		all += rows[i];
	}
	return l->model->ops->weight_view(
		l->model->device, ft_parameters_at(p, place_of(l, names[0]), all, cols), weight);
}

/* Replace a host matrix of a plain type by its NF4. */
static ft_status
quantise_part(const loader *l, const char *name, ft_mat *part)
{
	void *nf4;
	ft_status status;

	FT_TRY(ft_alloc(&nf4, (size_t) ft_nf4_bytes(part->rows * part->cols), 1));
	status = ft_nf4_quantise(*part, nf4);
	if (status != FT_OK)
	{
		char reason[256];

		snprintf(reason, sizeof reason, "%s", ft_error_message());
		free(nf4);
		return ft_fail(status, "%s: tensor \"%s\": %s", ft_model_file_path(l->file), name, reason);
	}
	free(part->data);
	*part = ft_mat_make(nf4, FT_NF4, part->rows, part->cols);
	return FT_OK;
}

/* Stack the named tensors [rows_i, cols] into one weight. */
static ft_status
load_weight(loader *l, int n, const char *const *names, const int64_t *rows, int64_t cols,
			unsigned use, ft_weight **weight)
{
	ft_mat parts[MAX_PARTS];
	ft_status status = FT_OK;

	if (l->model->parameters != NULL)
		return load_parameters(l, n, names, rows, cols, weight);
	memset(parts, 0, sizeof parts);
	for (int i = 0; i < n && status == FT_OK; i++)
	{
		const ft_model_tensor *t;

		status = find_tensor(l, names[i], rows[i], cols, &t);
		if (status != FT_OK)
			break;
		parts[i] = ft_mat_make(NULL, t->dtype, t->rows, t->cols);
		status = ft_alloc(&parts[i].data, t->bytes, 1);
		if (status == FT_OK)
			status = ft_model_file_read(l->file, t, parts[i].data);
		if (status == FT_OK && use == FT_USE_DEQUANTISE &&
			ft_dtype_get(t->dtype)->block_values == 1)
			status = quantise_part(l, names[i], &parts[i]);
	}
	if (status == FT_OK)
		status = l->model->ops->weight_create(l->model->device, parts, n, use, weight);
	for (int i = 0; i < n; i++)
		free(parts[i].data);
	if (status == FT_OK)
		l->model->bytes += l->model->ops->weight_bytes(*weight);
	return status;
}

/* Device memory of n f32 values that the model owns: of its own, or of its parameters the vector at
 * that place (-1: it is none of them). */
static ft_status
device_floats(ft_model *model, int64_t place, int64_t n, float **values)
{
	if (model->parameters != NULL && place >= 0)
	{
		*values = ft_parameters_at(model->parameters, place, 1, n).data;
		return FT_OK;
	}
	FT_TRY(model->ops->mem_alloc(model->device, FT_MEM_DEVICE, (size_t) n * sizeof(float),
								 (void **) values));
	model->bytes += n * (int64_t) sizeof(float);
	return FT_OK;
}

/* A vector of a plain stored type, as f32 into device memory. */
static ft_status
load_vector_to(loader *l, const char *name, int64_t n, float *vector)
{
	const ft_model_tensor *t;

	FT_TRY(find_tensor(l, name, 1, n, &t));
	return load_values(l, t, ft_mat_make(vector, FT_F32, 1, n));
}

/* The router, which is small and chooses, is used row-fixed in training, too: so that training and
 * serving choose alike. */
static ft_status
load_experts(loader *l, int index)
{
	const ft_config *c = &l->model->config;
	ft_layer *layer = &l->model->layers[index];
	size_t n = (size_t) c->experts;
	char names[3][128];
	const char *gate_up[] = {names[0], names[1]};
	const char *down = names[2];
	const char *router = names[0];

	FT_TRY(ft_alloc((void **) &layer->experts_gate_up, n, sizeof(ft_weight *)));
	FT_TRY(ft_alloc((void **) &layer->experts_down, n, sizeof(ft_weight *)));
	snprintf(names[0], sizeof names[0], "model.layers.%d.block_sparse_moe.gate.weight", index);
	FT_TRY(load_weight(l, 1, &router, (int64_t[]){c->experts}, c->hidden, l->use | FT_USE_SERVE,
					   &layer->router));
	for (int e = 0; e < c->experts; e++)
	{
		static const char *const matrices[] = {"w1", "w3", "w2"};

		for (int i = 0; i < 3; i++)
			snprintf(names[i], sizeof names[i],
					 "model.layers.%d.block_sparse_moe.experts.%d.%s.weight", index, e,
					 matrices[i]);
		FT_TRY(load_weight(l, 2, gate_up, (int64_t[]){c->ffn, c->ffn}, c->hidden, l->matrix_use,
						   &layer->experts_gate_up[e]));
		FT_TRY(load_weight(l, 1, &down, (int64_t[]){c->hidden}, c->ffn, l->matrix_use,
						   &layer->experts_down[e]));
	}
	return FT_OK;
}

static ft_status
load_vector(loader *l, const char *name, int64_t n, float **vector)
{
	int64_t place = l->model->parameters != NULL ? place_of(l, name) : -1;

	FT_TRY(device_floats(l->model, place, n, vector));
	return load_vector_to(l, name, n, *vector);
}

/* What only some families have between the projections and RoPE. */
static ft_status
load_attention_extras(loader *l, int index)
{
	const ft_config *c = &l->model->config;
	ft_layer *layer = &l->model->layers[index];
	const int64_t out[] = {(int64_t) c->heads * c->head_dim, (int64_t) c->kv_heads * c->head_dim,
						   (int64_t) c->kv_heads * c->head_dim};
	char name[128];
	int64_t at = 0;

	if (c->qkv_bias && l->model->parameters != NULL)
		at = l->model->parameters->layout->layers[index].qkv_bias;
	if (c->qkv_bias)
		FT_TRY(device_floats(l->model, at, out[0] + out[1] + out[2], &layer->qkv_bias));
	at = 0;
	for (int t = FT_Q_PROJ; c->qkv_bias && t <= FT_V_PROJ; t++)
	{
		snprintf(name, sizeof name, "model.layers.%d.%s.bias", index, targets[t].module);
		FT_TRY(load_vector_to(l, name, out[t], layer->qkv_bias + at));
		at += out[t];
	}
	if (!c->qk_norm)
		return FT_OK;
	snprintf(name, sizeof name, "model.layers.%d.self_attn.q_norm.weight", index);
	FT_TRY(load_vector(l, name, c->head_dim, &layer->q_norm));
	snprintf(name, sizeof name, "model.layers.%d.self_attn.k_norm.weight", index);
	return load_vector(l, name, c->head_dim, &layer->k_norm);
}

static ft_status
load_layer(loader *l, int index)
{
	const ft_config *c = &l->model->config;
	ft_layer *layer = &l->model->layers[index];
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;
	char names[FT_TARGET_COUNT][128];
	char norm[128];
	const char *name[FT_TARGET_COUNT];

	for (int t = 0; t < FT_TARGET_COUNT; t++)
	{
		snprintf(names[t], sizeof names[t], "model.layers.%d.%s.weight", index, targets[t].module);
		name[t] = names[t];
	}
	snprintf(norm, sizeof norm, "model.layers.%d.input_layernorm.weight", index);
	FT_TRY(load_vector(l, norm, c->hidden, &layer->attention_norm));
	snprintf(norm, sizeof norm, "model.layers.%d.post_attention_layernorm.weight", index);
	FT_TRY(load_vector(l, norm, c->hidden, &layer->ffn_norm));
	FT_TRY(load_attention_extras(l, index));
	FT_TRY(load_weight(l, 3, &name[FT_Q_PROJ], (int64_t[]){q, kv, kv}, c->hidden, l->matrix_use,
					   &layer->qkv));
	FT_TRY(
		load_weight(l, 1, &name[FT_O_PROJ], (int64_t[]){c->hidden}, q, l->matrix_use, &layer->out));
	if (c->experts > 0)
		return load_experts(l, index);
	FT_TRY(load_weight(l, 2, &name[FT_GATE_PROJ], (int64_t[]){c->ffn, c->ffn}, c->hidden,
					   l->matrix_use, &layer->gate_up));
	FT_TRY(load_weight(l, 1, &name[FT_DOWN_PROJ], (int64_t[]){c->hidden}, c->ffn, l->matrix_use,
					   &layer->down));
	return FT_OK;
}

/*
 * Inverse frequencies of RoPE, in f32 as transformers computes them
 * (modeling_rope_utils.py): 1 / θ^(2i/D), scaled as the configuration says, and
 * divided by the factors that a GGUF of Llama 3.1 brings (rope_freqs.weight).
 */
static ft_status
inverse_frequencies(loader *l, float *inverse)
{
	const ft_config *c = &l->model->config;
	int half = c->head_dim / 2;
	const ft_model_tensor *t;
	float *factors;
	ft_status status;

	for (int i = 0; i < half; i++)
	{
		float f = 1.0f / powf((float) c->rope_theta, (float) (2 * i) / (float) c->head_dim);

		if (c->rope_scaling == FT_ROPE_LINEAR)
			f /= (float) c->rope_factor;
		else if (c->rope_scaling == FT_ROPE_LLAMA3)
		{
			double wavelength = 2.0 * M_PI / f;
			double low = c->rope_original_positions / c->rope_low_freq;
			double high = c->rope_original_positions / c->rope_high_freq;

			if (wavelength > low)
				f = (float) (f / c->rope_factor);
			else if (wavelength >= high)
			{
				double smooth = (c->rope_original_positions / wavelength - c->rope_low_freq) /
								(c->rope_high_freq - c->rope_low_freq);

				f = (float) ((1.0 - smooth) * f / c->rope_factor + smooth * f);
			}
		}
		inverse[i] = f;
	}
	if (!ft_model_file_find(l->file, "rope_freqs.weight"))
		return FT_OK;
	FT_TRY(find_tensor(l, "rope_freqs.weight", 1, half, &t));
	if (t->dtype != FT_F32)
		return ft_fail(FT_UNSUPPORTED, "%s: tensor \"%s\" has type %s, expected f32",
					   ft_model_file_path(l->file), t->name, ft_dtype_get(t->dtype)->name);
	FT_TRY(ft_alloc((void **) &factors, (size_t) half, sizeof(float)));
	status = ft_model_file_read(l->file, t, factors);
	for (int i = 0; i < half && status == FT_OK; i++)
	{
		if (!(factors[i] > 0))
			status = ft_fail(FT_CORRUPT, "%s: tensor \"%s\" has value %g at %d, expected > 0",
							 ft_model_file_path(l->file), t->name, factors[i], i);
		else
			inverse[i] /= factors[i];
	}
	free(factors);
	return status;
}

/* cos and sin of position · inverse frequency, all in f32. */
static ft_status
load_rope(loader *l)
{
	ft_model *model = l->model;
	int half = model->config.head_dim / 2;
	int64_t n = (int64_t) model->rope_positions * half;
	float *inverse = NULL;
	float *tables = NULL;
	ft_status status;

	FT_TRY(device_floats(model, -1, n, &model->rope_cos));
	FT_TRY(device_floats(model, -1, n, &model->rope_sin));
	FT_TRY(ft_alloc((void **) &inverse, (size_t) half, sizeof(float)));
	status = inverse_frequencies(l, inverse);
	if (status == FT_OK)
		status = ft_alloc((void **) &tables, (size_t) n, 2 * sizeof(float));
	if (status == FT_OK)
	{
		for (int64_t i = 0; i < n; i++)
		{
			float angle = (float) (i / half) * inverse[i % half];

			tables[i] = cosf(angle);
			tables[n + i] = sinf(angle);
		}
		status = model->ops->copy_to_device(l->stream, model->rope_cos, tables,
											(size_t) n * sizeof(float));
		if (status == FT_OK)
			status = model->ops->copy_to_device(l->stream, model->rope_sin, tables + n,
												(size_t) n * sizeof(float));
		if (status == FT_OK)
			status = model->ops->stream_synchronize(l->stream);
	}
	free(tables);
	free(inverse);
	return status;
}

/* What the arithmetic of decode.c and the training loop takes for granted. */
static ft_status
check_config(const ft_model_file *file)
{
	const ft_config *c = ft_model_file_config(file);

	if (c->hidden < 1 || c->ffn < 1 || c->layers < 1 || c->heads < 1 || c->kv_heads < 1 ||
		c->head_dim < 2 || c->head_dim % 2 != 0 || c->vocab < 1 || c->max_positions < 1 ||
		c->heads % c->kv_heads != 0)
		return ft_fail(FT_CORRUPT,
					   "%s: impossible shape: width %d, feed-forward %d, layers %d, heads %d, "
					   "key/value heads %d, head size %d, vocabulary %d, context %d",
					   ft_model_file_path(file), c->hidden, c->ffn, c->layers, c->heads,
					   c->kv_heads, c->head_dim, c->vocab, c->max_positions);
	if (c->head_dim > MAX_HEAD_DIM)
		return ft_fail(FT_UNSUPPORTED, "%s: head size %d is over the limit of %d",
					   ft_model_file_path(file), c->head_dim, MAX_HEAD_DIM);
	if (!(c->rope_theta > 0) || !(c->rms_eps >= 0))
		return ft_fail(FT_CORRUPT, "%s: rope theta is %g and the norm's epsilon %g",
					   ft_model_file_path(file), c->rope_theta, c->rms_eps);
	if (c->rope_scaling != FT_ROPE_PLAIN && !(c->rope_factor > 0))
		return ft_fail(FT_CORRUPT, "%s: rope scaling factor is %g", ft_model_file_path(file),
					   c->rope_factor);
	if (c->rope_scaling == FT_ROPE_LLAMA3 &&
		(!(c->rope_low_freq > 0) || !(c->rope_high_freq > c->rope_low_freq) ||
		 c->rope_original_positions < 1))
		return ft_fail(FT_CORRUPT,
					   "%s: rope scaling has low factor %g, high factor %g, original context %d",
					   ft_model_file_path(file), c->rope_low_freq, c->rope_high_freq,
					   c->rope_original_positions);
	return FT_OK;
}

static ft_status
load_all(loader *l)
{
	ft_model *model = l->model;
	const ft_config *c = &model->config;
	const char *embedding = "model.embed_tokens.weight";
	const char *head = "lm_head.weight";
	const int64_t rows = c->vocab;

	FT_TRY(load_rope(l));
	for (int i = 0; i < c->layers; i++)
		FT_TRY(load_layer(l, i));
	FT_TRY(load_vector(l, "model.norm.weight", c->hidden, &model->final_norm));
	if (c->tied_embeddings)
	{
		FT_TRY(load_weight(l, 1, &embedding, &rows, c->hidden, l->use | FT_USE_EMBED,
						   &model->embedding));
		model->head = model->embedding;
	}
	else
	{
		FT_TRY(load_weight(l, 1, &embedding, &rows, c->hidden, FT_USE_EMBED, &model->embedding));
		FT_TRY(load_weight(l, 1, &head, &rows, c->hidden, l->use, &model->head));
	}
	/* a tensor that nothing reads would silently change what the model says */
	for (int i = 0; i < ft_model_file_tensors(l->file); i++)
		if (!l->used[i])
			return ft_fail(FT_UNSUPPORTED, "%s: tensor \"%s\" is not supported",
						   ft_model_file_path(l->file), ft_model_file_tensor(l->file, i)->name);
	return FT_OK;
}

/* The context, from what is asked for (0: nothing) and what there is. */
static ft_status
choose_positions(const ft_model_file *file, const ft_device_info *info, int *positions)
{
	const ft_config *config = ft_model_file_config(file);
	int64_t bytes;

	if (*positions <= 0 || *positions > config->max_positions)
		*positions = config->max_positions;
	/* the tables' size is the one thing here that the size of the file does not bound */
	bytes = (int64_t) *positions * config->head_dim * (int64_t) sizeof(float);
	if (*positions > MAX_POSITIONS)
		ft_fail(FT_UNSUPPORTED, "%s: context of %d tokens is over the limit of %d",
				ft_model_file_path(file), *positions, MAX_POSITIONS);
	else if (bytes > info->memory_free / 2)
		ft_fail(FT_NO_MEMORY, "%s: a context of %d tokens needs %lld MiB, %lld MiB are free",
				ft_model_file_path(file), *positions, (long long) (bytes >> 20),
				(long long) (info->memory_free >> 20));
	else
		return FT_OK;
	return ft_hint(*positions > MAX_POSITIONS ? FT_UNSUPPORTED : FT_NO_MEMORY,
				   "Set the option context_length to a smaller number.");
}

/* Does a weight for training stay as the file has it, whatever is asked for?  A CPU that computes
 * in f32 keeps the blocks of a quantised type, and its products read them faster than dequantising
 * for each would be. */
static bool
stays_as_stored(const ft_model_file *file, const ft_device_info *info)
{
	if (info->threads == 0 || info->compute_dtype != FT_F32)
		return false;
	for (int i = 0; i < ft_model_file_tensors(file); i++)
	{
		const ft_model_tensor *t = ft_model_file_tensor(file, i);

		if (t->rows > 1 && strstr(t->name, ".layers.") != NULL &&
			strstr(t->name, "block_sparse_moe.gate.") == NULL &&
			ft_dtype_get(t->dtype)->block_values == 1)
			return false;
	}
	return true;
}

/* The type of cached keys and values.  A step reads all of them, as it does the weights: where
 * these are rounded and fast numerics are asked for, f32 would only take twice the time. */
static ft_dtype
cache_type(const ft_model_file *file, const ft_device_info *info)
{
	if (info->numerics != FT_NUMERICS_FAST)
		return info->compute_dtype;
	for (int i = 0; i < ft_model_file_tensors(file); i++)
	{
		const ft_model_tensor *t = ft_model_file_tensor(file, i);

		if (t->rows > 1 && strstr(t->name, ".layers.") != NULL &&
			(t->dtype == FT_BF16 || ft_dtype_get(t->dtype)->block_values > 1))
			return FT_BF16;
	}
	return info->compute_dtype;
}

static ft_status
load(const ft_model_file *file, const ft_ops *ops, ft_device *device, unsigned use, bool trainable,
	 int max_positions, ft_model **model)
{
	const ft_config *config = ft_model_file_config(file);
	ft_device_info info;
	loader l = {.file = file, .use = use & (FT_USE_TRAIN | FT_USE_SERVE)};
	bool quantised;
	ft_model *m = NULL;
	ft_status status;

	FT_TRY(check_config(file));
	FT_TRY(ops->device_info(device, &info));
	FT_TRY(choose_positions(file, &info, &max_positions));
	FT_TRY(ft_alloc((void **) &m, 1, sizeof *m));
	m->config = *config;
	m->ops = ops;
	m->device = device;
	m->compute = info.compute_dtype;
	m->cached = cache_type(file, &info);
	m->rope_positions = max_positions;
	if (m->config.window >= max_positions)
		m->config.window = 0; /* it hides nothing */
	quantised = use & FT_USE_DEQUANTISE && !stays_as_stored(file, &info);
	m->quantised = quantised;
	l.matrix_use = quantised ? FT_USE_DEQUANTISE : l.use;
	l.model = m;
	status = ft_alloc((void **) &m->layers, (size_t) config->layers, sizeof *m->layers);
	if (status == FT_OK)
		status = ft_alloc((void **) &l.used, (size_t) ft_model_file_tensors(file), sizeof *l.used);
	if (status == FT_OK)
		status = ops->stream_create(device, &l.stream);
	if (status == FT_OK && trainable)
		status = ft_parameters_create(config, ops, device, m->compute, &m->parameters);
	if (status == FT_OK && trainable)
		m->bytes += m->parameters->arena.bytes;
	if (status == FT_OK)
		status = load_all(&l);
	if (l.stream)
		ops->stream_destroy(l.stream);
	free(l.used);
	if (status != FT_OK)
	{
		ft_model_free(m);
		return status;
	}
	*model = m;
	return FT_OK;
}

ft_status
ft_model_load(const ft_model_file *file, const ft_ops *ops, ft_device *device, unsigned use,
			  int max_positions, ft_model **model)
{
	return load(file, ops, device, use, false, max_positions, model);
}

ft_status
ft_model_load_trainable(const ft_model_file *file, const ft_ops *ops, ft_device *device,
						int max_positions, ft_model **model)
{
	return load(file, ops, device, FT_USE_TRAIN, true, max_positions, model);
}

static void
free_weight(const ft_ops *ops, ft_weight *weight)
{
	if (weight)
		ops->weight_free(weight);
}

static void
free_weights(const ft_ops *ops, ft_weight **weights, int n)
{
	for (int i = 0; weights != NULL && i < n; i++)
		free_weight(ops, weights[i]);
	free(weights);
}

/* Of a vector; the parameters' go with them. */
static void
free_vector(const ft_model *model, float *vector)
{
	if (vector && model->parameters == NULL)
		model->ops->mem_free(model->device, FT_MEM_DEVICE, vector);
}

static void
free_memory(const ft_model *model, void *memory)
{
	if (memory)
		model->ops->mem_free(model->device, FT_MEM_DEVICE, memory);
}

void
ft_model_free(ft_model *model)
{
	if (!model)
		return;
	for (int i = 0; model->layers && i < model->config.layers; i++)
	{
		ft_layer *layer = &model->layers[i];

		free_weight(model->ops, layer->qkv);
		free_weight(model->ops, layer->out);
		free_weight(model->ops, layer->gate_up);
		free_weight(model->ops, layer->down);
		free_vector(model, layer->attention_norm);
		free_vector(model, layer->ffn_norm);
		free_weight(model->ops, layer->router);
		free_weights(model->ops, layer->experts_gate_up, model->config.experts);
		free_weights(model->ops, layer->experts_down, model->config.experts);
		free_vector(model, layer->qkv_bias);
		free_vector(model, layer->q_norm);
		free_vector(model, layer->k_norm);
	}
	if (model->head != model->embedding)
		free_weight(model->ops, model->head);
	free_weight(model->ops, model->embedding);
	free_vector(model, model->final_norm);
	free_memory(model, model->rope_cos);
	free_memory(model, model->rope_sin);
	ft_parameters_free(model->parameters);
	free(model->layers);
	free(model);
}
