/*
 * gguf_build.c: writes GGUF files for tests.
 */
#include "gguf_build.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static void
put(ft_text *to, const void *bytes, size_t n)
{
	if (ft_text_append(to, bytes, n) != FT_OK)
		abort();
}

static void
put_u32(ft_text *to, uint32_t v)
{
	put(to, &v, sizeof v);
}

static void
put_u64(ft_text *to, uint64_t v)
{
	put(to, &v, sizeof v);
}

static void
put_string(ft_text *to, const char *s)
{
	put_u64(to, strlen(s));
	put(to, s, strlen(s));
}

void
gguf_build_skip(gguf_build *b, const char *name)
{
	if (b->n_names == GGUF_BUILD_NAMES)
		abort();
	b->names[b->n_names++] = strdup(name);
}

/* Is the name new?  Remembers it. */
static bool
is_new(gguf_build *b, const char *name)
{
	for (int i = 0; i < b->n_names && !b->duplicates; i++)
	{
		if (strcmp(b->names[i], name) == 0)
			return false;
	}
	gguf_build_skip(b, name);
	return true;
}

void
gguf_build_raw(gguf_build *b, const char *key, uint32_t type, const void *bytes, size_t n)
{
	if (!is_new(b, key))
		return;
	put_string(&b->values, key);
	put_u32(&b->values, type);
	put(&b->values, bytes, n);
	b->n_values++;
}

void
gguf_build_u32(gguf_build *b, const char *key, uint32_t value)
{
	gguf_build_raw(b, key, FT_GGUF_U32, &value, sizeof value);
}

void
gguf_build_f32(gguf_build *b, const char *key, float value)
{
	gguf_build_raw(b, key, FT_GGUF_F32, &value, sizeof value);
}

void
gguf_build_bool(gguf_build *b, const char *key, bool value)
{
	char byte = value;

	gguf_build_raw(b, key, FT_GGUF_BOOL, &byte, 1);
}

void
gguf_build_string(gguf_build *b, const char *key, const char *value)
{
	ft_text text = {0};

	put_string(&text, value);
	gguf_build_raw(b, key, FT_GGUF_STRING, text.data, text.length);
	ft_text_free(&text);
}

void
gguf_build_strings(gguf_build *b, const char *key, const char *const *values, size_t n)
{
	ft_text text = {0};

	put_u32(&text, FT_GGUF_STRING);
	put_u64(&text, n);
	for (size_t i = 0; i < n; i++)
		put_string(&text, values[i]);
	gguf_build_raw(b, key, FT_GGUF_ARRAY, text.data, text.length);
	ft_text_free(&text);
}

void
gguf_build_i32s(gguf_build *b, const char *key, const int32_t *values, size_t n)
{
	ft_text text = {0};

	put_u32(&text, FT_GGUF_I32);
	put_u64(&text, n);
	put(&text, values, n * sizeof values[0]);
	gguf_build_raw(b, key, FT_GGUF_ARRAY, text.data, text.length);
	ft_text_free(&text);
}

void
gguf_build_info(gguf_build *b, const char *name, uint32_t type, const uint64_t *dims,
				uint32_t n_dims, uint64_t offset)
{
	if (!is_new(b, name))
		return;
	put_string(&b->infos, name);
	put_u32(&b->infos, n_dims);
	for (uint32_t i = 0; i < n_dims; i++)
		put_u64(&b->infos, dims[i]);
	put_u32(&b->infos, type);
	put_u64(&b->infos, offset);
	b->n_tensors++;
}

static void
pad(ft_text *to, size_t alignment)
{
	while (to->length % alignment != 0)
		put(to, "", 1);
}

void
gguf_build_tensor(gguf_build *b, const char *name, uint32_t type, const uint64_t *dims,
				  uint32_t n_dims, const void *bytes, size_t n)
{
	uint64_t before = b->n_tensors;

	pad(&b->data, b->alignment > 0 ? b->alignment : 32);
	gguf_build_info(b, name, type, dims, n_dims, b->data.length);
	if (b->n_tensors == before)
		return;
	for (size_t i = 0; bytes == NULL && i < n; i++)
		put(&b->data, "", 1);
	if (bytes != NULL)
		put(&b->data, bytes, n);
}

static void
zeros(gguf_build *b, const char *name, uint64_t cols, uint64_t rows)
{
	uint64_t dims[2] = {cols, rows};

	gguf_build_tensor(b, name, 0, dims, rows > 1 ? 2 : 1, NULL, cols * rows * 4);
}

void
gguf_build_llama(gguf_build *b)
{
	gguf_build_family(b, "llama");
}

void
gguf_build_family(gguf_build *b, const char *architecture)
{
	static const struct
	{
		const char *name;
		uint64_t cols;
		uint64_t rows;
		const char *only; /* the architecture that has it; NULL: all */
	} tensors[] = {
		{"attn_norm.weight", 32, 1, NULL},     {"attn_q.weight", 32, 32, NULL},
		{"attn_k.weight", 32, 16, NULL},       {"attn_v.weight", 32, 16, NULL},
		{"attn_output.weight", 32, 32, NULL},  {"ffn_norm.weight", 32, 1, NULL},
		{"ffn_gate.weight", 32, 64, NULL},     {"ffn_up.weight", 32, 64, NULL},
		{"ffn_down.weight", 64, 32, NULL},     {"attn_q.bias", 32, 1, "qwen2"},
		{"attn_k.bias", 16, 1, "qwen2"},       {"attn_v.bias", 16, 1, "qwen2"},
		{"attn_q_norm.weight", 8, 1, "qwen3"}, {"attn_k_norm.weight", 8, 1, "qwen3"},
	};
	static const struct
	{
		const char *name;
		uint32_t value;
	} keys[] = {
		{"block_count", 2},          {"context_length", 128},     {"embedding_length", 32},
		{"feed_forward_length", 64}, {"attention.head_count", 4}, {"attention.head_count_kv", 2},
	};
	char key[128];

	gguf_build_string(b, "general.architecture", architecture);
	for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
	{
		snprintf(key, sizeof key, "%s.%s", architecture, keys[i].name);
		gguf_build_u32(b, key, keys[i].value);
	}
	snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", architecture);
	gguf_build_f32(b, key, 1e-5f);
	zeros(b, "token_embd.weight", 32, 16);
	zeros(b, "output_norm.weight", 32, 1);
	for (int layer = 0; layer < 2; layer++)
	{
		for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
		{
			char name[64];

			if (tensors[i].only != NULL && strcmp(tensors[i].only, architecture) != 0)
				continue;
			snprintf(name, sizeof name, "blk.%d.%s", layer, tensors[i].name);
			zeros(b, name, tensors[i].cols, tensors[i].rows);
		}
	}
}

void
gguf_build_finish(gguf_build *b, ft_text *file)
{
	put(file, "GGUF", 4);
	put_u32(file, 3);
	put_u64(file, b->n_tensors);
	put_u64(file, b->n_values);
	put(file, b->values.data, b->values.length);
	put(file, b->infos.data, b->infos.length);
	pad(file, b->alignment > 0 ? b->alignment : 32);
	put(file, b->data.data, b->data.length);
	for (int i = 0; i < b->n_names; i++)
		free((char *) b->names[i]);
	ft_text_free(&b->values);
	ft_text_free(&b->infos);
	ft_text_free(&b->data);
	*b = (gguf_build){0};
}

int
gguf_build_open(const void *bytes, size_t n, char path[64])
{
	int fd = memfd_create("test.gguf", MFD_CLOEXEC);

	if (fd < 0 || (n > 0 && write(fd, bytes, n) != (ssize_t) n))
		abort();
	snprintf(path, 64, "/proc/self/fd/%d", fd);
	return fd;
}

ft_status
gguf_build_open_model(gguf_build *b, ft_model_file **model)
{
	ft_text bytes = {0};
	char path[64];
	ft_status status;
	int fd;

	gguf_build_finish(b, &bytes);
	fd = gguf_build_open(bytes.data, bytes.length, path);
	*model = NULL;
	status = ft_model_file_open(path, model);
	close(fd);
	ft_text_free(&bytes);
	return status;
}

void
gguf_build_refused(gguf_build *b, ft_status code, const char *words)
{
	ft_model_file *model;
	ft_status status = gguf_build_open_model(b, &model);

	if (status == FT_OK)
		fail_msg("accepted, expected: %s", words);
	if (status != code || strstr(ft_error_message(), words) == NULL)
		fail_msg("%s: \"%s\", expected %s: \"…%s…\"", ft_status_name(status), ft_error_message(),
				 ft_status_name(code), words);
}
