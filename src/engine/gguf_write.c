/*
 * gguf_write.c: the GGUF container, written.
 */
#include "gguf_write.h"

#include <endian.h>
#include <string.h>

#define GGUF_VERSION 3

void
ft_gguf_writer_free(ft_gguf_writer *writer)
{
	ft_text_free(&writer->values);
	ft_text_free(&writer->infos);
}

static ft_status
put_u32(ft_text *to, uint32_t value)
{
	value = htole32(value);
	return ft_text_append(to, (const char *) &value, sizeof value);
}

static ft_status
put_u64(ft_text *to, uint64_t value)
{
	value = htole64(value);
	return ft_text_append(to, (const char *) &value, sizeof value);
}

static ft_status
put_f32(ft_text *to, float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof bits);
	return put_u32(to, bits);
}

static ft_status
put_text(ft_text *to, const char *text, size_t n)
{
	FT_TRY(put_u64(to, n));
	return ft_text_append(to, text, n);
}

/* --- keys and values --- */

static ft_status
put_key(ft_gguf_writer *w, const char *key, size_t n, ft_gguf_type type)
{
	FT_TRY(put_text(&w->values, key, n));
	w->n_values++;
	return put_u32(&w->values, type);
}

static ft_status
put_array(ft_gguf_writer *w, const char *key, size_t length, ft_gguf_type type, uint64_t n)
{
	FT_TRY(put_key(w, key, length, FT_GGUF_ARRAY));
	FT_TRY(put_u32(&w->values, type));
	return put_u64(&w->values, n);
}

ft_status
ft_gguf_put_u32(ft_gguf_writer *w, const char *key, uint32_t value)
{
	FT_TRY(put_key(w, key, strlen(key), FT_GGUF_U32));
	return put_u32(&w->values, value);
}

ft_status
ft_gguf_put_f32(ft_gguf_writer *w, const char *key, float value)
{
	FT_TRY(put_key(w, key, strlen(key), FT_GGUF_F32));
	return put_f32(&w->values, value);
}

ft_status
ft_gguf_put_bool(ft_gguf_writer *w, const char *key, bool value)
{
	FT_TRY(put_key(w, key, strlen(key), FT_GGUF_BOOL));
	return ft_text_append(&w->values, value ? "\1" : "\0", 1);
}

ft_status
ft_gguf_put_string(ft_gguf_writer *w, const char *key, const char *value)
{
	FT_TRY(put_key(w, key, strlen(key), FT_GGUF_STRING));
	return put_text(&w->values, value, strlen(value));
}

ft_status
ft_gguf_put_strings(ft_gguf_writer *w, const char *key, const ft_string *values, size_t n)
{
	FT_TRY(put_array(w, key, strlen(key), FT_GGUF_STRING, n));
	for (size_t i = 0; i < n; i++)
		FT_TRY(put_text(&w->values, values[i].data, values[i].length));
	return FT_OK;
}

ft_status
ft_gguf_put_i32s(ft_gguf_writer *w, const char *key, const int32_t *values, size_t n)
{
	FT_TRY(put_array(w, key, strlen(key), FT_GGUF_I32, n));
	for (size_t i = 0; i < n; i++)
		FT_TRY(put_u32(&w->values, (uint32_t) values[i]));
	return FT_OK;
}

ft_status
ft_gguf_put_f32s(ft_gguf_writer *w, const char *key, const float *values, size_t n)
{
	FT_TRY(put_array(w, key, strlen(key), FT_GGUF_F32, n));
	for (size_t i = 0; i < n; i++)
		FT_TRY(put_f32(&w->values, values[i]));
	return FT_OK;
}

ft_status
ft_gguf_put_copy(ft_gguf_writer *w, const ft_gguf *from, const ft_gguf_value *value)
{
	const char *header = (const char *) from->header;

	if (value->array)
		FT_TRY(put_array(w, header + value->key_at, value->key_length, value->type, value->count));
	else
		FT_TRY(put_key(w, header + value->key_at, value->key_length, value->type));
	return ft_text_append(&w->values, header + value->at, ft_gguf_value_bytes(from, value));
}

/* --- tensors --- */

size_t
ft_gguf_padding(uint64_t n)
{
	return (size_t) ((FT_GGUF_ALIGNMENT - n % FT_GGUF_ALIGNMENT) % FT_GGUF_ALIGNMENT);
}

/* Dimensions outermost first, as everywhere but in the file. */
static ft_status
put_info(ft_gguf_writer *w, const char *name, ft_dtype dtype, const int64_t *dims, int n_dims)
{
	uint64_t bytes = (uint64_t) ft_row_bytes(dtype, dims[n_dims - 1]);

	FT_TRY(put_text(&w->infos, name, strlen(name)));
	FT_TRY(put_u32(&w->infos, (uint32_t) n_dims));
	for (int i = n_dims - 1; i >= 0; i--)
	{
		FT_TRY(put_u64(&w->infos, (uint64_t) dims[i]));
		if (i < n_dims - 1)
			bytes *= (uint64_t) dims[i];
	}
	FT_TRY(put_u32(&w->infos, ft_gguf_tensor_type(dtype)));
	FT_TRY(put_u64(&w->infos, w->data_bytes));
	w->n_tensors++;
	w->data_bytes += bytes + ft_gguf_padding(bytes);
	return FT_OK;
}

ft_status
ft_gguf_put_tensor(ft_gguf_writer *w, const char *name, ft_dtype dtype, int64_t rows, int64_t cols)
{
	const int64_t dims[] = {rows, cols};

	return rows < 0 ? put_info(w, name, dtype, dims + 1, 1) : put_info(w, name, dtype, dims, 2);
}

ft_status
ft_gguf_put_stack(ft_gguf_writer *w, const char *name, ft_dtype dtype, int64_t n, int64_t rows,
				  int64_t cols)
{
	const int64_t dims[] = {n, rows, cols};

	return put_info(w, name, dtype, dims, 3);
}

ft_status
ft_gguf_header(const ft_gguf_writer *w, ft_text *header)
{
	static const char zeros[FT_GGUF_ALIGNMENT];

	FT_TRY(ft_text_append(header, "GGUF", 4));
	FT_TRY(put_u32(header, GGUF_VERSION));
	FT_TRY(put_u64(header, w->n_tensors));
	FT_TRY(put_u64(header, w->n_values));
	FT_TRY(ft_text_append(header, w->values.data, w->values.length));
	FT_TRY(ft_text_append(header, w->infos.data, w->infos.length));
	return ft_text_append(header, zeros, ft_gguf_padding(header->length));
}
