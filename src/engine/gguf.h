/*
 * gguf.h: the container format of GGUF files, versions 2 and 3.
 *
 * Reads the header (keys, values, tensor descriptions) and checks all that can
 * be checked without knowing what the file is for.  What the keys mean for a
 * decoder is gguf_model.c's business.  Format:
 * https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
#ifndef FT_GGUF_H
#define FT_GGUF_H

#include "status.h"
#include "tensor.h"
#include "tokenizer.h"

typedef enum ft_gguf_type
{
	FT_GGUF_U8 = 0,
	FT_GGUF_I8 = 1,
	FT_GGUF_U16 = 2,
	FT_GGUF_I16 = 3,
	FT_GGUF_U32 = 4,
	FT_GGUF_I32 = 5,
	FT_GGUF_F32 = 6,
	FT_GGUF_BOOL = 7,
	FT_GGUF_STRING = 8,
	FT_GGUF_ARRAY = 9,
	FT_GGUF_U64 = 10,
	FT_GGUF_I64 = 11,
	FT_GGUF_F64 = 12,
	FT_GGUF_TYPE_COUNT
} ft_gguf_type;

/* A key and its value; `at` points into the header. */
typedef struct ft_gguf_value
{
	size_t key_at;
	size_t key_length;
	ft_gguf_type type; /* of the value, or of an array's elements */
	bool array;
	uint64_t count; /* elements; 1 for a scalar */
	size_t at;      /* first byte of the (first) value */
} ft_gguf_value;

#define FT_GGUF_MAX_DIMS 4

typedef struct ft_gguf_tensor
{
	char name[128];
	int n_dims;
	uint64_t dims[FT_GGUF_MAX_DIMS]; /* innermost first; 1 beyond n_dims */
	uint32_t type;                   /* the format's own number */
	uint64_t offset;                 /* absolute */
	uint64_t bytes;                  /* 0 when the type is not one of ft_dtype's */
} ft_gguf_tensor;

typedef struct ft_gguf
{
	int fd;
	uint64_t file_size;
	uint32_t version;
	unsigned char *header;
	size_t header_size;
	uint64_t data_offset;  /* of the tensors' contents */
	ft_gguf_value *values; /* by key */
	size_t n_values;
	ft_gguf_tensor *tensors; /* in the file's order */
	size_t n_tensors;
	size_t *by_name; /* indexes of tensors, sorted by name */
} ft_gguf;

/* Read the header of an open regular file of the given size; the descriptor stays the caller's.
 * FT_CORRUPT or FT_UNSUPPORTED say what is wrong, without the file's name. */
ft_status ft_gguf_open(int fd, uint64_t file_size, ft_gguf **gguf);
void ft_gguf_close(ft_gguf *gguf);

/* Values by key.  A missing key leaves the target untouched and is FT_OK, unless it is required
 * (FT_CORRUPT); a value of another type, or outside the bounds, is FT_CORRUPT. */
const ft_gguf_value *ft_gguf_find(const ft_gguf *gguf, const char *key);
ft_status ft_gguf_int(const ft_gguf *gguf, const char *key, bool required, int64_t min, int64_t max,
					  int64_t *to);
ft_status ft_gguf_float(const ft_gguf *gguf, const char *key, bool required, double *to);
ft_status ft_gguf_bool(const ft_gguf *gguf, const char *key, bool *to);
ft_status ft_gguf_string(const ft_gguf *gguf, const char *key, bool required, ft_string *to);

/* An array's strings, pointing into the header: strings is allocated (free()). */
ft_status ft_gguf_strings(const ft_gguf *gguf, const ft_gguf_value *value, ft_string **strings);
/* Element i of an array of integers or of floats. */
int64_t ft_gguf_int_at(const ft_gguf *gguf, const ft_gguf_value *value, uint64_t i);
double ft_gguf_float_at(const ft_gguf *gguf, const ft_gguf_value *value, uint64_t i);
bool ft_gguf_is_int(const ft_gguf_value *value);
bool ft_gguf_is_float(const ft_gguf_value *value);

/* Bytes of a value from its `at` on: of all its elements. */
size_t ft_gguf_value_bytes(const ft_gguf *gguf, const ft_gguf_value *value);

const ft_gguf_tensor *ft_gguf_find_tensor(const ft_gguf *gguf, const char *name);

/* Name of a tensor type ("q4_k"), "unknown" when the format has none of that number; and ours for
 * it, FT_DTYPE_COUNT when we have none. */
const char *ft_gguf_tensor_type_name(uint32_t type);
ft_dtype ft_gguf_tensor_dtype(uint32_t type);
/* The format's number for one of ours. */
uint32_t ft_gguf_tensor_type(ft_dtype dtype);

#endif
