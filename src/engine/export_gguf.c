/*
 * export_gguf.c: merged models and adapters as GGUF files, as llama.cpp reads
 * them.
 *
 * Vectors stay f32, and so does what a file of matrices of another type keeps in
 * f32.  Rows of q and k are interleaved where the architecture has them so,
 * and those of their LoRA B likewise (gguf_model.c knows which).
 */
#include "export.h"

#include "gguf_write.h"
#include "model_file_internal.h"

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
	FT_TRY(put_real(w, c, "attention.layer_norm_rms_epsilon", c->rms_eps));
	FT_TRY(put_real(w, c, "rope.freq_base", c->rope_theta));
	if (c->rope_scaling != FT_ROPE_LINEAR)
		return FT_OK;
	snprintf(key, sizeof key, "%s.rope.scaling.type", ft_gguf_architecture_of(c));
	FT_TRY(ft_gguf_put_string(w, key, "linear"));
	return put_real(w, c, "rope.scaling.factor", c->rope_factor);
}

static ft_status
put_id(ft_gguf_writer *w, const char *key, int id)
{
	return id < 0 ? FT_OK : ft_gguf_put_u32(w, key, (uint32_t) id);
}

/* A reader counts the tokens to know how many rows the embedding has: rows without a token get one
 * that nothing is tokenised to. */
static ft_status
put_tokens(ft_gguf_writer *w, const ft_vocabulary *v, size_t n)
{
	ft_string *tokens = NULL;
	int32_t *types = NULL;
	float *scores = NULL;
	char(*names)[32] = NULL;
	ft_status status = ft_alloc((void **) &tokens, n, sizeof *tokens);

	if (status == FT_OK)
		status = ft_alloc((void **) &types, n, sizeof *types);
	if (status == FT_OK)
		status = ft_alloc((void **) &scores, n, sizeof *scores);
	if (status == FT_OK)
		status = ft_alloc((void **) &names, n, sizeof *names);
	for (size_t i = 0; status == FT_OK && i < n; i++)
	{
		bool known = i < v->n_tokens;

		snprintf(names[i], sizeof names[i], "[PAD%zu]", i);
		tokens[i] = known ? v->tokens[i] : (ft_string){names[i], strlen(names[i])};
		types[i] = !known ? FT_TOKEN_UNUSED : v->types != NULL ? v->types[i] : FT_TOKEN_NORMAL;
		scores[i] = known && v->scores != NULL ? v->scores[i] : 0;
	}
	if (status == FT_OK)
		status = ft_gguf_put_strings(w, "tokenizer.ggml.tokens", tokens, n);
	if (status == FT_OK)
		status = ft_gguf_put_i32s(w, "tokenizer.ggml.token_type", types, n);
	if (status == FT_OK && v->scores != NULL)
		status = ft_gguf_put_f32s(w, "tokenizer.ggml.scores", scores, n);
	free(tokens);
	free(types);
	free(scores);
	free(names);
	return status;
}

static ft_status
make_tokenizer_keys(ft_gguf_writer *w, const ft_config *c, const ft_vocabulary *v,
					const char *chat_template)
{
	/* llama.cpp merges such tokens by their scores alone */
	if (strcmp(v->model, "llama") == 0 && v->scores == NULL)
		return ft_hint(
			ft_fail(FT_UNSUPPORTED,
					"a SentencePiece-style tokenizer without scores cannot be written to "
					"a GGUF file"),
			"Put the model's tokenizer.model beside its tokenizer.json.");
	FT_TRY(ft_gguf_put_string(w, "tokenizer.ggml.model", v->model));
	if (v->pre[0] != '\0')
		FT_TRY(ft_gguf_put_string(w, "tokenizer.ggml.pre", v->pre));
	FT_TRY(put_tokens(w, v, (size_t) c->vocab));
	if (v->n_merges > 0)
		FT_TRY(ft_gguf_put_strings(w, "tokenizer.ggml.merges", v->merges, v->n_merges));
	FT_TRY(put_id(w, "tokenizer.ggml.bos_token_id", v->bos));
	FT_TRY(put_id(w, "tokenizer.ggml.eos_token_id", v->eos));
	FT_TRY(put_id(w, "tokenizer.ggml.unknown_token_id", v->unknown));
	FT_TRY(put_id(w, "tokenizer.ggml.padding_token_id", v->pad));
	FT_TRY(ft_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", v->add_bos));
	FT_TRY(
		ft_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", v->space_prefix != FT_SPACE_NONE));
	return chat_template == NULL ? FT_OK
								 : ft_gguf_put_string(w, "tokenizer.chat_template", chat_template);
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
	return make_tokenizer_keys(w, &file->config, &file->vocabulary, file->chat_template);
}

/* --- tensors --- */

/* A tensor of the file and what becomes of it. */
typedef struct plan
{
	const ft_model_tensor *from; /* NULL: Llama 3.1's factors, which the base has as numbers */
	char name[128];
	int permuted_heads;
	ft_dtype to;
} plan;

/* What llama.cpp wants in f32, or cannot have in blocks. */
static ft_dtype
type_of(const ft_model_tensor *t, ft_dtype to)
{
	if (t->rows == 1)
		return FT_F32;
	return to == FT_Q8_0 && t->cols % 32 != 0 ? FT_F16 : to;
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
		FT_TRY(ft_gguf_name_of(&file->config, p->from->name, p->name, &p->permuted_heads));
		p->to = type_of(p->from, to);
		FT_TRY(ft_gguf_put_tensor(w, p->name, p->to, p->from->rows == 1 ? -1 : p->from->rows,
								  p->from->cols));
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
write_model(ft_merge *merge, const ft_gguf_writer *w, const plan *plans, int n, ft_out *out)
{
	FT_TRY(write_header(w, out));
	for (int i = 0; i < n; i++)
	{
		uint64_t before = out->bytes;

		if (plans[i].from == NULL)
			FT_TRY(write_rope_factors(&merge->file->config, out));
		else
			FT_TRY(ft_merge_tensor(merge, plans[i].from, plans[i].to, plans[i].permuted_heads,
								   ft_out_write, out));
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

static ft_status
plan_adapter(const ft_merge *merge, ft_gguf_writer *w)
{
	for (int i = 0; i < merge->file->n_tensors; i++)
	{
		ft_merge_pair pair = ft_merge_find(merge, &merge->file->tensors[i]);
		char base[128];
		char name[160];
		int heads;

		if (pair.a == NULL)
			continue;
		FT_TRY(ft_gguf_name_of(&merge->file->config, pair.tensor->name, base, &heads));
		snprintf(name, sizeof name, "%s.lora_a", base);
		FT_TRY(ft_gguf_put_tensor(w, name, FT_F32, pair.a->dims[0], pair.a->dims[1]));
		snprintf(name, sizeof name, "%s.lora_b", base);
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
		char base[128];
		int heads;

		if (pair.a == NULL)
			continue;
		FT_TRY(ft_gguf_name_of(&merge->file->config, pair.tensor->name, base, &heads));
		FT_TRY(write_factor(merge, pair.a, 0, out));
		FT_TRY(write_factor(merge, pair.b, heads, out));
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
