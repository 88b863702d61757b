/*
 * model_file.c: base models on disk: opening, checking and reading, for every format.
 */
#include "model_file.h"

#include "buffer.h"
#include "digest.h"
#include "model_directory.h"
#include "model_file_internal.h"
#include "ops.h"
#include "tokenizer_files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- configuration --- */

static ft_status
check_range(const char *what, int64_t value, int64_t min, int64_t max)
{
	if (value < min || value > max)
		return ft_fail(FT_CORRUPT, "%s is %lld, expected %lld to %lld", what, (long long) value,
					   (long long) min, (long long) max);
	return FT_OK;
}

ft_status
ft_model_experts_check(const ft_config *c)
{
	if (c->experts > FT_MAX_EXPERTS)
		return ft_fail(FT_UNSUPPORTED, "%d experts are over the limit of %d", c->experts,
					   FT_MAX_EXPERTS);
	if (c->experts < 0 || c->experts_per_token < 0 || c->experts_per_token > c->experts ||
		(c->experts == 0) != (c->experts_per_token == 0))
		return ft_fail(FT_CORRUPT, "%d of %d experts are used for a token", c->experts_per_token,
					   c->experts);
	return FT_OK;
}

/* Bounds far beyond any model, so that products of these cannot overflow 64 bits. */
ft_status
ft_model_config_check(const ft_config *c)
{
	FT_TRY(check_range("number of layers", c->layers, 1, 4096));
	FT_TRY(check_range("hidden size", c->hidden, 1, 1 << 20));
	FT_TRY(check_range("feed-forward size", c->ffn, 1, 1 << 22));
	FT_TRY(check_range("number of attention heads", c->heads, 1, 8192));
	FT_TRY(check_range("number of key/value heads", c->kv_heads, 1, c->heads));
	FT_TRY(check_range("head dimension", c->head_dim, 2, 4096));
	FT_TRY(check_range("vocabulary size", c->vocab, 1, 1 << 24));
	FT_TRY(check_range("context length", c->max_positions, 1, 1 << 28));
	FT_TRY(check_range("sliding window", c->window, 0, INT_MAX));
	FT_TRY(ft_model_experts_check(c));
	FT_TRY(check_range("first layer with a sliding window", c->window_from, 0, INT_MAX));
	if (c->heads % c->kv_heads != 0)
		return ft_fail(FT_CORRUPT, "%d attention heads cannot share %d key/value heads", c->heads,
					   c->kv_heads);
	if (c->head_dim % 2 != 0)
		return ft_fail(FT_CORRUPT, "head dimension %d is odd", c->head_dim);
	if (!(c->rms_eps > 0 && c->rms_eps < 1))
		return ft_fail(FT_CORRUPT, "RMSNorm epsilon is %g, expected between 0 and 1",
					   (double) c->rms_eps);
	if (!(c->rope_theta > 0 && c->rope_theta < 1e30))
		return ft_fail(FT_CORRUPT, "RoPE base is %g, expected a positive number", c->rope_theta);
	if (c->rope_scaling != FT_ROPE_PLAIN && !(c->rope_factor > 0 && c->rope_factor < 1e30))
		return ft_fail(FT_CORRUPT, "RoPE scaling factor is %g, expected a positive number",
					   c->rope_factor);
	return FT_OK;
}

/* --- tensors --- */

static int
compare_names(const void *a, const void *b, void *tensors)
{
	const ft_model_tensor *t = tensors;

	return strcmp(t[*(const int *) a].name, t[*(const int *) b].name);
}

/* Several names of a file may mean the same tensor, so duplicates are looked for here as well. */
static ft_status
index_tensors(ft_model_file *file)
{
	void *memory;

	FT_TRY(ft_alloc(&memory, (size_t) file->n_tensors, sizeof(int)));
	file->by_name = memory;
	for (int i = 0; i < file->n_tensors; i++)
		file->by_name[i] = i;
	qsort_r(file->by_name, (size_t) file->n_tensors, sizeof(int), compare_names, file->tensors);
	for (int i = 1; i < file->n_tensors; i++)
	{
		if (compare_names(&file->by_name[i - 1], &file->by_name[i], file->tensors) == 0)
			return ft_fail(FT_CORRUPT, "tensor \"%s\" stands twice",
						   file->tensors[file->by_name[i]].name);
	}
	return FT_OK;
}

const ft_model_tensor *
ft_model_file_find(const ft_model_file *file, const char *name)
{
	int low = 0;
	int high = file->n_tensors;

	while (low < high)
	{
		int middle = low + (high - low) / 2;
		const ft_model_tensor *t = &file->tensors[file->by_name[middle]];
		int c = strcmp(name, t->name);

		if (c == 0)
			return t;
		if (c < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return NULL;
}

/* The tensor must be there, with this shape, of a type that holds numbers. */
static ft_status
check_tensor(const ft_model_file *file, const char *name, int64_t rows, int64_t cols)
{
	const ft_model_tensor *t = ft_model_file_find(file, name);

	if (t == NULL)
		return ft_fail(FT_CORRUPT, "tensor \"%s\" is missing", name);
	if (t->rows != rows || t->cols != cols)
		return ft_fail(FT_CORRUPT, "tensor \"%s\" has shape [%lld, %lld], expected [%lld, %lld]",
					   name, (long long) t->rows, (long long) t->cols, (long long) rows,
					   (long long) cols);
	if (t->dtype == FT_I32 || (rows == 1 && ft_dtype_get(t->dtype)->block_values != 1))
		return ft_fail(FT_UNSUPPORTED, "tensor \"%s\" is of type %s", name,
					   ft_dtype_get(t->dtype)->name);
	return FT_OK;
}

/* The feed-forward part: one, or the router and its experts. */
static ft_status
check_ffn(const ft_model_file *file, int layer)
{
	static const char *const dense[] = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"};
	static const char *const matrices[] = {"w1", "w3", "w2"};
	const ft_config *c = &file->config;
	char name[sizeof((ft_model_tensor *) 0)->name];

	if (c->experts > 0)
	{
		snprintf(name, sizeof name, "model.layers.%d.block_sparse_moe.gate.weight", layer);
		FT_TRY(check_tensor(file, name, c->experts, c->hidden));
	}
	for (int e = 0; e == 0 || e < c->experts; e++)
	{
		for (int i = 0; i < 3; i++)
		{
			if (c->experts > 0)
				snprintf(name, sizeof name, "model.layers.%d.block_sparse_moe.experts.%d.%s.weight",
						 layer, e, matrices[i]);
			else
				snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, dense[i]);
			FT_TRY(
				check_tensor(file, name, i == 2 ? c->hidden : c->ffn, i == 2 ? c->ffn : c->hidden));
		}
	}
	return FT_OK;
}

static ft_status
check_layer(const ft_model_file *file, int layer)
{
	const ft_config *c = &file->config;
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;
	const struct
	{
		const char *name;
		int64_t rows;
		int64_t cols; /* 0: this family has none */
	} tensors[] = {
		{"self_attn.q_proj.bias", 1, c->qkv_bias ? q : 0},
		{"self_attn.k_proj.bias", 1, c->qkv_bias ? kv : 0},
		{"self_attn.v_proj.bias", 1, c->qkv_bias ? kv : 0},
		{"self_attn.q_norm.weight", 1, c->qk_norm ? c->head_dim : 0},
		{"self_attn.k_norm.weight", 1, c->qk_norm ? c->head_dim : 0},
		{"input_layernorm.weight", 1, c->hidden},
		{"self_attn.q_proj.weight", q, c->hidden},
		{"self_attn.k_proj.weight", kv, c->hidden},
		{"self_attn.v_proj.weight", kv, c->hidden},
		{"self_attn.o_proj.weight", c->hidden, q},
		{"post_attention_layernorm.weight", 1, c->hidden},
	};

	for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
	{
		char name[sizeof((ft_model_tensor *) 0)->name];

		snprintf(name, sizeof name, "model.layers.%d.%s", layer, tensors[i].name);
		if (tensors[i].cols > 0)
			FT_TRY(check_tensor(file, name, tensors[i].rows, tensors[i].cols));
	}
	return check_ffn(file, layer);
}

/* Frequencies are divided by these, so none may be zero, negative or not finite. */
static ft_status
check_rope_freqs(const ft_model_file *file)
{
	const ft_model_tensor *t = ft_model_file_find(file, "rope_freqs.weight");
	float *factors;
	void *memory;
	ft_status status;

	if (t == NULL)
		return FT_OK;
	FT_TRY(check_tensor(file, t->name, 1, file->config.head_dim / 2));
	if (t->dtype != FT_F32)
		return ft_fail(FT_UNSUPPORTED, "tensor \"%s\" is of type %s, expected f32", t->name,
					   ft_dtype_get(t->dtype)->name);
	FT_TRY(ft_alloc(&memory, (size_t) t->cols, sizeof(float)));
	factors = memory;
	status = ft_model_file_read(file, t, factors);
	for (int64_t i = 0; status == FT_OK && i < t->cols; i++)
	{
		if (!(factors[i] > 0 && factors[i] < 1e30f))
			status = ft_fail(FT_CORRUPT, "tensor \"%s\" has the factor %g, expected a positive one",
							 t->name, (double) factors[i]);
	}
	free(memory);
	return status;
}

static ft_status
check_tensors(const ft_model_file *file)
{
	const ft_config *c = &file->config;

	FT_TRY(check_tensor(file, "model.embed_tokens.weight", c->vocab, c->hidden));
	FT_TRY(check_tensor(file, "model.norm.weight", 1, c->hidden));
	if (!c->tied_embeddings)
		FT_TRY(check_tensor(file, "lm_head.weight", c->vocab, c->hidden));
	for (int i = 0; i < c->layers; i++)
		FT_TRY(check_layer(file, i));
	return check_rope_freqs(file);
}

/* --- vocabulary --- */

static void
add_eos(ft_config *c, int id)
{
	if (id < 0 || id >= c->vocab || c->n_eos == FT_MAX_EOS)
		return;
	for (int i = 0; i < c->n_eos; i++)
	{
		if (c->eos[i] == id)
			return;
	}
	c->eos[c->n_eos++] = id;
}

/* Files name one end token, but a model that was trained on a chat template ends its turns with
 * that template's token, whatever the file says. */
static void
add_known_ends(ft_config *c, const ft_vocabulary *v)
{
	static const char *const ends[] = {"<|im_end|>", "<|eot_id|>", "<|end_of_text|>",
									   "<|endoftext|>"};

	for (size_t e = 0; e < sizeof ends / sizeof ends[0]; e++)
	{
		size_t n = strlen(ends[e]);

		for (size_t i = 0; i < v->n_tokens; i++)
		{
			bool special = v->types[i] == FT_TOKEN_CONTROL || v->types[i] == FT_TOKEN_USER_DEFINED;

			if (special && v->tokens[i].length == n && memcmp(v->tokens[i].data, ends[e], n) == 0)
				add_eos(c, (int) i);
		}
	}
}

ft_status
ft_model_file_check_vocabulary(ft_model_file *file)
{
	ft_config *c = &file->config;
	const ft_vocabulary *v = &file->vocabulary;

	if (v->n_tokens > (size_t) c->vocab)
		return ft_fail(FT_CORRUPT, "vocabulary has %zu tokens, but the embedding has %d rows",
					   v->n_tokens, c->vocab);
	c->bos = v->bos;
	c->pad = v->pad;
	add_eos(c, v->eos);
	add_known_ends(c, v);
	return FT_OK;
}

/* --- opening and reading --- */

static ft_status
open_part(const char *path, ft_model_part *part)
{
	struct stat st;

	part->path = strdup(path);
	if (part->path == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory: %zu bytes wanted", strlen(path) + 1);
	/* without O_NONBLOCK a FIFO would hold us up */
	part->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (part->fd < 0)
		return ft_fail_errno("could not open");
	if (fstat(part->fd, &st) != 0)
		return ft_fail_errno("could not stat");
	if (!S_ISREG(st.st_mode))
		return ft_fail(FT_UNSUPPORTED, "not a regular file");
	part->size = (uint64_t) st.st_size;
	return FT_OK;
}

static ft_status
open_container(ft_model_file *file)
{
	struct stat st;
	void *memory;

	if (stat(file->path, &st) == 0 && S_ISDIR(st.st_mode))
		return ft_directory_open(file);
	FT_TRY(ft_alloc(&memory, 1, sizeof(ft_model_part)));
	file->parts = memory;
	file->parts[0].fd = -1;
	file->n_parts = 1;
	FT_TRY(open_part(file->path, &file->parts[0]));
	return ft_gguf_open(file->parts[0].fd, file->parts[0].size, &file->gguf);
}

ft_status
ft_model_file_open_container(const char *path, ft_model_file **file)
{
	void *memory;
	ft_model_file *f;
	ft_status status;

	FT_TRY(ft_alloc(&memory, 1, sizeof(ft_model_file)));
	f = memory;
	f->directory = -1;
	f->path = strdup(path);
	if (f->path == NULL)
		status = ft_fail(FT_NO_MEMORY, "out of memory: %zu bytes wanted", strlen(path) + 1);
	else
		status = open_container(f);
	if (status != FT_OK)
	{
		ft_model_file_close(f);
		return ft_context(status, "model file \"%s\": ", path);
	}
	*file = f;
	return FT_OK;
}

ft_status
ft_model_file_read_config(ft_model_file *file)
{
	FT_TRY(file->gguf != NULL ? ft_gguf_read_config(file) : ft_hf_read_config(file));
	FT_TRY(ft_model_config_check(&file->config));
	file->config_known = true;
	return FT_OK;
}

ft_status
ft_model_file_check_tensors(ft_model_file *file)
{
	FT_TRY(index_tensors(file));
	return check_tensors(file);
}

ft_status
ft_model_file_read_header(ft_model_file *file)
{
	FT_TRY(ft_model_file_read_config(file));
	FT_TRY(file->gguf != NULL ? ft_gguf_read_contents(file) : ft_hf_read_contents(file));
	FT_TRY(ft_model_file_check_tensors(file));
	return ft_model_file_check_vocabulary(file);
}

ft_status
ft_model_file_open(const char *path, ft_model_file **file)
{
	ft_status status;

	FT_TRY(ft_model_file_open_container(path, file));
	status = ft_model_file_read_header(*file);
	if (status != FT_OK)
	{
		ft_model_file_close(*file);
		*file = NULL;
		return ft_context(status, "model file \"%s\": ", path);
	}
	return FT_OK;
}

void
ft_model_file_close(ft_model_file *file)
{
	if (file == NULL)
		return;
	for (int i = 0; i < file->n_parts; i++)
	{
		if (file->parts[i].fd >= 0)
			close(file->parts[i].fd);
		free(file->parts[i].path);
	}
	free(file->parts);
	if (file->gguf != NULL)
	{
		free(file->vocabulary.tokens);
		free(file->vocabulary.types);
		free(file->vocabulary.scores);
		free(file->vocabulary.merges);
		free(file->vocabulary.added);
	}
	ft_gguf_close(file->gguf);
	ft_tokenizer_files_free(file->tokenizer_files);
	if (file->directory >= 0)
		close(file->directory);
	free(file->chat_template);
	free(file->tensors);
	free(file->by_name);
	free(file->path);
	free(file);
}

/* Read bytes [offset, offset + n) of a part; the file may have shrunk since its header was checked.
 */
static ft_status
read_bytes(const ft_model_part *part, uint64_t offset, void *to, uint64_t n)
{
	uint64_t done = 0;

	while (done < n)
	{
		ssize_t got = pread(part->fd, (char *) to + done, n - done, (off_t) (offset + done));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return ft_fail_errno("could not read %llu bytes at offset %llu",
								 (unsigned long long) (n - done),
								 (unsigned long long) (offset + done));
		if (got == 0)
			return ft_fail(FT_CORRUPT, "truncated: %llu bytes at offset %llu, expected %llu",
						   (unsigned long long) done, (unsigned long long) offset,
						   (unsigned long long) n);
		done += (uint64_t) got;
	}
	return FT_OK;
}

/* GGUF pairs RoPE's dimensions (2j, 2j + 1) where Hugging Face pairs (j, j + D/2): its row 2j + i
 * of a head is our row i·D/2 + j.  Whole rows move, so the type does not matter. */
static ft_status
read_permuted(const ft_model_part *part, const ft_model_tensor *t, char *to)
{
	uint64_t row_bytes = t->bytes / (uint64_t) t->rows;
	int64_t dim = t->rows / t->permuted_heads;
	void *head;
	ft_status status = FT_OK;

	FT_TRY(ft_alloc(&head, (size_t) dim, row_bytes));
	for (int h = 0; h < t->permuted_heads && status == FT_OK; h++)
	{
		uint64_t first = (uint64_t) (h * dim) * row_bytes;

		status = read_bytes(part, t->offset + first, head, (uint64_t) dim * row_bytes);
		for (int64_t row = 0; row < dim && status == FT_OK; row++)
		{
			int64_t target = row % 2 * (dim / 2) + row / 2;

			memcpy(to + first + (uint64_t) target * row_bytes,
				   (char *) head + (uint64_t) row * row_bytes, row_bytes);
		}
	}
	free(head);
	return status;
}

ft_status
ft_model_file_read(const ft_model_file *file, const ft_model_tensor *tensor, void *to)
{
	const ft_model_part *part = &file->parts[tensor->file];
	ft_status status;

	if (tensor->permuted_heads > 0)
		status = read_permuted(part, tensor, to);
	else
		status = read_bytes(part, tensor->offset, to, tensor->bytes);
	if (status != FT_OK)
		return ft_context(status, "model file \"%s\": tensor \"%s\": ", part->path, tensor->name);
	return FT_OK;
}

/* --- what is known of it --- */

const char *
ft_model_file_path(const ft_model_file *file)
{
	return file->path;
}

const ft_config *
ft_model_file_config(const ft_model_file *file)
{
	return &file->config;
}

const ft_vocabulary *
ft_model_file_vocabulary(const ft_model_file *file)
{
	return &file->vocabulary;
}

const char *
ft_model_file_template(const ft_model_file *file)
{
	return file->chat_template;
}

int
ft_model_file_tensors(const ft_model_file *file)
{
	return file->n_tensors;
}

const ft_model_tensor *
ft_model_file_tensor(const ft_model_file *file, int i)
{
	return &file->tensors[i];
}

int64_t
ft_model_file_parameters(const ft_model_file *file)
{
	int64_t n = 0;

	for (int i = 0; i < file->n_tensors; i++)
	{
		if (strcmp(file->tensors[i].name, "rope_freqs.weight") != 0)
			n += file->tensors[i].rows * file->tensors[i].cols;
	}
	return n;
}

int64_t
ft_model_file_bytes(const ft_model_file *file)
{
	int64_t n = 0;

	for (int i = 0; i < file->n_parts; i++)
		n += (int64_t) file->parts[i].size;
	return n;
}

ft_status
ft_model_file_digest(const ft_model_file *file, char hex[65])
{
	ft_status status =
		file->gguf != NULL ? ft_digest_fd(file->parts[0].fd, hex) : ft_directory_digest(file, hex);

	return status == FT_OK ? FT_OK : ft_context(status, "model file \"%s\": ", file->path);
}
