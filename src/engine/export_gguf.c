/*
 * export_gguf.c: merged models and adapters as GGUF files, as llama.cpp reads
 * them.
 *
 * Vectors stay f32, and so does what a file of matrices of another type keeps in
 * f32.  Rows of q and k are interleaved where the architecture has them so,
 * and those of their LoRA B likewise (gguf_model.c knows which).  A layer's
 * experts are stacked, whether the base has them so or one by one.
 */
#include "export.h"

#include "export_gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* general.file_type, what most matrices are (llama.h of llama.cpp: enum llama_ftype). */
static uint32_t
file_type(ft_dtype to)
{
	return to == FT_F32 ? 0 : to == FT_F16 ? 1 : to == FT_Q8_0 ? 7 : 32 /* bf16 */;
}

/* --- keys --- */

static bool
begins_with(const char *key, size_t n, const char *prefix)
{
	return n >= strlen(prefix) && memcmp(key, prefix, strlen(prefix)) == 0;
}

/* Keys of the base's file that are about that file, or are written anew. */
static bool
is_of_file(const char *key, size_t n)
{
	static const char *const keys[] = {
		"general.alignment",
		"general.file_type",
		"general.quantization_version",
		"general.type",
		"general.quantized_by",
		"general.imatrix",
		"quantize.",
		"split.",
	};

	for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
	{
		if (begins_with(key, n, keys[i]))
			return true;
	}
	return false;
}

static ft_status
copy_keys(ft_gguf_writer *w, const ft_gguf *g)
{
	for (size_t i = 0; i < g->n_values; i++)
	{
		const ft_gguf_value *v = &g->values[i];

		if (!is_of_file((const char *) g->header + v->key_at, v->key_length))
			FT_TRY(ft_gguf_put_copy(w, g, v));
	}
	return FT_OK;
}

/* "<architecture>.<key>" */
static ft_status
put_int(ft_gguf_writer *w, const ft_config *c, const char *key, int value)
{
	char full[128];

	snprintf(full, sizeof full, "%s.%s", ft_gguf_architecture_of(c), key);
	return ft_gguf_put_u32(w, full, (uint32_t) value);
}

static ft_status
put_real(ft_gguf_writer *w, const ft_config *c, const char *key, double value)
{
	char full[128];

	snprintf(full, sizeof full, "%s.%s", ft_gguf_architecture_of(c), key);
	return ft_gguf_put_f32(w, full, (float) value);
}

static ft_status
make_config_keys(ft_gguf_writer *w, const ft_config *c)
{
	char key[128];

	FT_TRY(ft_gguf_put_string(w, "general.architecture", ft_gguf_architecture_of(c)));
	FT_TRY(put_int(w, c, "block_count", c->layers));
	FT_TRY(put_int(w, c, "context_length", c->max_positions));
	FT_TRY(put_int(w, c, "embedding_length", c->hidden));
	FT_TRY(put_int(w, c, "feed_forward_length", c->ffn));
	FT_TRY(put_int(w, c, "attention.head_count", c->heads));
	FT_TRY(put_int(w, c, "attention.head_count_kv", c->kv_heads));
	FT_TRY(put_int(w, c, "attention.key_length", c->head_dim));
	FT_TRY(put_int(w, c, "attention.value_length", c->head_dim));
	FT_TRY(put_int(w, c, "rope.dimension_count", c->head_dim));
	FT_TRY(put_int(w, c, "vocab_size", c->vocab));
	if (c->window > 0)
		FT_TRY(put_int(w, c, "attention.sliding_window", c->window));
	if (c->experts > 0)
	{
		FT_TRY(put_int(w, c, "expert_count", c->experts));
		FT_TRY(put_int(w, c, "expert_used_count", c->experts_per_token));
	}
	FT_TRY(put_real(w, c, "attention.layer_norm_rms_epsilon", c->rms_eps));
	FT_TRY(put_real(w, c, "rope.freq_base", c->rope_theta));
	if (c->rope_scaling != FT_ROPE_LINEAR)
		return FT_OK;
	snprintf(key, sizeof key, "%s.rope.scaling.type", ft_gguf_architecture_of(c));
	FT_TRY(ft_gguf_put_string(w, key, "linear"));
	return put_real(w, c, "rope.scaling.factor", c->rope_factor);
}

/* A GGUF base's own keys, since there may be some that only others understand. */
static ft_status
put_keys(ft_gguf_writer *w, const ft_model_file *file, ft_dtype to)
{
	FT_TRY(ft_gguf_put_string(w, "general.type", "model"));
	FT_TRY(ft_gguf_put_u32(w, "general.file_type", file_type(to)));
	if (to == FT_Q8_0)
		FT_TRY(ft_gguf_put_u32(w, "general.quantization_version", 2));
	if (file->gguf != NULL)
		return copy_keys(w, file->gguf);
	FT_TRY(make_config_keys(w, &file->config));
	return ft_export_gguf_tokenizer(w, &file->config, &file->vocabulary, file->chat_template);
}

/* --- tensors --- */

/* A tensor of the file and what it is made of. */
typedef struct plan
{
	/* the first of an expert's matrices, whose others are looked up; NULL: Llama 3.1's factors,
	 * which the base has as numbers */
	const ft_model_tensor *from;
	ft_gguf_place place;
	ft_dtype to;
} plan;

/* What llama.cpp wants in f32 (the router too: a rounded one may choose other experts), or cannot
 * have in blocks. */
static ft_dtype
type_of(const ft_model_tensor *t, const ft_gguf_place *place, ft_dtype to)
{
	if (t->rows == 1 || place->router)
		return FT_F32;
	return to == FT_Q8_0 && t->cols % 32 != 0 ? FT_F16 : to;
}

/* The same matrix of another expert: there is one, or the file would have been refused. */
static ft_status
find_expert(const ft_model_file *file, const ft_model_tensor *first, int expert,
			const ft_model_tensor **t)
{
	static const char number[] = ".experts.0.";
	const char *at = strstr(first->name, number);
	char name[sizeof first->name];

	snprintf(name, sizeof name, "%.*s.experts.%d.%s", (int) (at - first->name), first->name, expert,
			 at + sizeof number - 1);
	*t = ft_model_file_find(file, name);
	return *t != NULL ? FT_OK : ft_fail(FT_INTERNAL, "there is no tensor \"%s\"", name);
}

static ft_status
put_info(const ft_model_file *file, const plan *p, ft_gguf_writer *w)
{
	const ft_model_tensor *t = p->from;

	if (p->place.expert >= 0)
		return ft_gguf_put_stack(w, p->place.name, p->to, file->config.experts, t->rows, t->cols);
	return ft_gguf_put_tensor(w, p->place.name, p->to, t->rows == 1 ? -1 : t->rows, t->cols);
}

static ft_status
plan_tensors(const ft_model_file *file, ft_dtype to, ft_gguf_writer *w, plan *plans, int *n)
{
	for (int i = 0; i < file->n_tensors; i++)
	{
		plan *p = &plans[*n];

		p->from = &file->tensors[i];
		/* a head beside the embedding that it is tied to */
		if (file->config.tied_embeddings && strcmp(p->from->name, "lm_head.weight") == 0)
			continue;
		FT_TRY(ft_gguf_place_of(&file->config, p->from->name, &p->place));
		/* the others lie behind the first */
		if (p->place.expert > 0)
			continue;
		p->to = type_of(p->from, &p->place, to);
		FT_TRY(put_info(file, p, w));
		++*n;
	}
	if (file->config.rope_scaling != FT_ROPE_LLAMA3 ||
		ft_model_file_find(file, "rope_freqs.weight") != NULL)
		return FT_OK;
	plans[(*n)++].from = NULL;
	return ft_gguf_put_tensor(w, "rope_freqs.weight", FT_F32, -1, file->config.head_dim / 2);
}

static ft_status
write_rope_factors(const ft_config *c, ft_out *out)
{
	size_t n = (size_t) c->head_dim / 2;
	float *factors = NULL;
	ft_status status;

	FT_TRY(ft_alloc((void **) &factors, n, sizeof *factors));
	ft_rope_factors(c, factors);
	status = ft_out_write(out, factors, n * sizeof *factors);
	free(factors);
	return status;
}

static ft_status
write_padding(ft_out *out, uint64_t before)
{
	static const char zeros[FT_GGUF_ALIGNMENT];

	return ft_out_write(out, zeros, ft_gguf_padding(out->bytes - before));
}

static ft_status
write_header(const ft_gguf_writer *w, ft_out *out)
{
	ft_text header = {0};
	ft_status status = ft_gguf_header(w, &header);

	if (status == FT_OK)
		status = ft_out_write(out, header.data, header.length);
	ft_text_free(&header);
	return status;
}

static ft_status
write_tensor(ft_merge *merge, const plan *p, ft_out *out)
{
	const ft_model_file *file = merge->file;

	if (p->from == NULL)
		return write_rope_factors(&file->config, out);
	if (p->place.expert < 0)
		return ft_merge_tensor(merge, p->from, p->to, p->place.permuted_heads, ft_out_write, out);
	for (int e = 0; e < file->config.experts; e++)
	{
		const ft_model_tensor *t;

		FT_TRY(find_expert(file, p->from, e, &t));
		FT_TRY(ft_merge_tensor(merge, t, p->to, 0, ft_out_write, out));
	}
	return FT_OK;
}

static ft_status
write_model(ft_merge *merge, const ft_gguf_writer *w, const plan *plans, int n, ft_out *out)
{
	FT_TRY(write_header(w, out));
	for (int i = 0; i < n; i++)
	{
		uint64_t before = out->bytes;

		FT_TRY(write_tensor(merge, &plans[i], out));
		FT_TRY(write_padding(out, before));
	}
	return FT_OK;
}

ft_status
ft_export_gguf(ft_merge *merge, ft_dtype to, const char *directory)
{
	ft_gguf_writer w = {0};
	plan *plans = NULL;
	int n = 0;
	ft_out out;
	ft_status status;

	status = ft_alloc((void **) &plans, (size_t) merge->file->n_tensors + 1, sizeof *plans);
	if (status == FT_OK)
		status = put_keys(&w, merge->file, to);
	if (status == FT_OK)
		status = plan_tensors(merge->file, to, &w, plans, &n);
	if (status == FT_OK)
		status = ft_out_create(directory, "model.gguf", &out);
	if (status == FT_OK)
		status = ft_out_finish(&out, write_model(merge, &w, plans, n, &out));
	ft_gguf_writer_free(&w);
	free(plans);
	return status;
}

/* --- adapters --- */

/* There is no key for rslora: with alpha · √r a reader that divides by r has the same scale. */
static float
effective_alpha(const ft_peft_config *c)
{
	return c->use_rslora ? c->alpha * sqrtf((float) c->rank) : c->alpha;
}

static ft_status
put_adapter_keys(ft_gguf_writer *w, const ft_merge *merge)
{
	FT_TRY(ft_gguf_put_string(w, "general.architecture",
							  ft_gguf_architecture_of(&merge->file->config)));
	FT_TRY(ft_gguf_put_string(w, "general.type", "adapter"));
	FT_TRY(ft_gguf_put_u32(w, "general.file_type", file_type(FT_F32)));
	FT_TRY(ft_gguf_put_string(w, "adapter.type", "lora"));
	return ft_gguf_put_f32(w, "adapter.lora.alpha", effective_alpha(&merge->config));
}

/* Where the tensor lies that a pair belongs to.  Of stacked experts the format has pairs for all at
 * once, which an adapter of ours never has: experts and router stay as they are. */
static ft_status
place_of_pair(const ft_merge *merge, const ft_merge_pair *pair, ft_gguf_place *place)
{
	FT_TRY(ft_gguf_place_of(&merge->file->config, pair->tensor->name, place));
	if (place->expert < 0 && !place->router)
		return FT_OK;
	return ft_hint(ft_fail(FT_UNSUPPORTED, "tensor \"%s\" of a mixture of experts is not adapted",
						   pair->a->name),
				   "The modules of a mixture of experts are q_proj, k_proj, v_proj and o_proj.");
}

static ft_status
plan_adapter(const ft_merge *merge, ft_gguf_writer *w)
{
	for (int i = 0; i < merge->file->n_tensors; i++)
	{
		ft_merge_pair pair = ft_merge_find(merge, &merge->file->tensors[i]);
		ft_gguf_place place;
		char name[160];

		if (pair.a == NULL)
			continue;
		FT_TRY(place_of_pair(merge, &pair, &place));
		snprintf(name, sizeof name, "%s.lora_a", place.name);
		FT_TRY(ft_gguf_put_tensor(w, name, FT_F32, pair.a->dims[0], pair.a->dims[1]));
		snprintf(name, sizeof name, "%s.lora_b", place.name);
		FT_TRY(ft_gguf_put_tensor(w, name, FT_F32, pair.b->dims[0], pair.b->dims[1]));
	}
	return FT_OK;
}

static ft_status
write_factor(const ft_merge *merge, const ft_safetensor *t, int heads, ft_out *out)
{
	size_t n = (size_t) (t->dims[0] * t->dims[1]);
	float *values = NULL;
	float *turned = NULL;
	uint64_t before = out->bytes;
	ft_status status = ft_alloc((void **) &values, n, sizeof *values);

	if (status == FT_OK)
		status = ft_alloc((void **) &turned, n, sizeof *turned);
	if (status == FT_OK)
		status = ft_safetensors_read_f32(merge->adapter, t, values, (int64_t) n);
	if (status == FT_OK && heads > 0)
		ft_interleave_rows(turned, values, t->dims[0], (size_t) t->dims[1] * sizeof *values, heads);
	if (status == FT_OK)
		status = ft_out_write(out, heads > 0 ? turned : values, n * sizeof *values);
	if (status == FT_OK)
		status = write_padding(out, before);
	free(values);
	free(turned);
	return status;
}

static ft_status
write_adapter(const ft_merge *merge, const ft_gguf_writer *w, ft_out *out)
{
	FT_TRY(write_header(w, out));
	for (int i = 0; i < merge->file->n_tensors; i++)
	{
		ft_merge_pair pair = ft_merge_find(merge, &merge->file->tensors[i]);
		ft_gguf_place place;

		if (pair.a == NULL)
			continue;
		FT_TRY(place_of_pair(merge, &pair, &place));
		FT_TRY(write_factor(merge, pair.a, 0, out));
		FT_TRY(write_factor(merge, pair.b, place.permuted_heads, out));
		if (merge->tick != NULL)
			FT_TRY(merge->tick(merge->tick_context));
	}
	return FT_OK;
}

ft_status
ft_export_gguf_adapter(ft_merge *merge, const char *directory)
{
	ft_gguf_writer w = {0};
	ft_out out;
	ft_status status = put_adapter_keys(&w, merge);

	if (status == FT_OK)
		status = plan_adapter(merge, &w);
	if (status == FT_OK)
		status = ft_out_create(directory, "adapter.gguf", &out);
	if (status == FT_OK)
		status = ft_out_finish(&out, write_adapter(merge, &w, &out));
	ft_gguf_writer_free(&w);
	return status;
}
