/*
 * gguf_write.h: the container format of GGUF files, version 3, being written.
 *
 * Keys and descriptions are collected in memory; the header is then written at
 * once, and after it the tensors' contents in the order of their descriptions.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
#ifndef FT_GGUF_WRITE_H
#define FT_GGUF_WRITE_H

#include "gguf.h"

#define FT_GGUF_ALIGNMENT 32

/* Zero-initialise; free with ft_gguf_writer_free. */
typedef struct ft_gguf_writer
{
	ft_text values;
	ft_text infos;
	uint64_t n_values;
	uint64_t n_tensors;
	uint64_t data_bytes; /* of the contents so far, padded */
} ft_gguf_writer;

void ft_gguf_writer_free(ft_gguf_writer *writer);

/* Keys must differ; nobody checks. */
ft_status ft_gguf_put_u32(ft_gguf_writer *w, const char *key, uint32_t value);
ft_status ft_gguf_put_f32(ft_gguf_writer *w, const char *key, float value);
ft_status ft_gguf_put_bool(ft_gguf_writer *w, const char *key, bool value);
ft_status ft_gguf_put_string(ft_gguf_writer *w, const char *key, const char *value);
ft_status
ft_gguf_put_strings(ft_gguf_writer *w, const char *key, const ft_string *values, size_t n);
ft_status ft_gguf_put_i32s(ft_gguf_writer *w, const char *key, const int32_t *values, size_t n);
ft_status ft_gguf_put_f32s(ft_gguf_writer *w, const char *key, const float *values, size_t n);
/* A key of another file, with its value. */
ft_status ft_gguf_put_copy(ft_gguf_writer *w, const ft_gguf *from, const ft_gguf_value *value);

/* Describe a matrix, or with rows < 0 a vector of cols values; its contents come next. */
ft_status
ft_gguf_put_tensor(ft_gguf_writer *w, const char *name, ft_dtype dtype, int64_t rows, int64_t cols);
/* n matrices of one shape, stacked: contents one after the other. */
ft_status ft_gguf_put_stack(ft_gguf_writer *w, const char *name, ft_dtype dtype, int64_t n,
							int64_t rows, int64_t cols);

/* All that stands before the contents. */
ft_status ft_gguf_header(const ft_gguf_writer *w, ft_text *header);
/* Zeros that follow n bytes of contents. */
size_t ft_gguf_padding(uint64_t n);

#endif
