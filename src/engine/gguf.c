/*
 * gguf.c: the GGUF container.
 *
 * The header's length stands nowhere, so the header is read as far as parsing
 * needs it.  No count or length is believed: each is compared with the bytes
 * that are left in the file before anything is allocated or skipped by it, and
 * tables grow with what was really read.
 */
#include "gguf.h"

#include "buffer.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The largest vocabularies need some 20 MB. */
#define HEADER_LIMIT ((uint64_t) 256 << 20)
#define READ_AHEAD ((uint64_t) 1 << 20)
#define MAX_KEYS 65536
#define MAX_TENSORS 1048576
#define MAX_KEY_LENGTH 255

/* key length, key of a byte, type, value of a byte */
#define MIN_VALUE_BYTES (8 + 1 + 4 + 1)
/* name length, name of a byte, number of dimensions, one dimension, type, offset */
#define MIN_TENSOR_BYTES (8 + 1 + 4 + 8 + 4 + 8)

typedef struct reader
{
	ft_gguf *gguf;
	size_t capacity;
	size_t at; /* header[0, at) has been parsed */
} reader;

static const unsigned char type_sizes[FT_GGUF_TYPE_COUNT] = {
	[FT_GGUF_U8] = 1,  [FT_GGUF_I8] = 1,  [FT_GGUF_U16] = 2, [FT_GGUF_I16] = 2,
	[FT_GGUF_U32] = 4, [FT_GGUF_I32] = 4, [FT_GGUF_F32] = 4, [FT_GGUF_BOOL] = 1,
	[FT_GGUF_U64] = 8, [FT_GGUF_I64] = 8, [FT_GGUF_F64] = 8,
};

static const struct
{
	const char *name;
	ft_dtype dtype;
} tensor_types[] = {
	[0] = {"f32", FT_F32},
	[1] = {"f16", FT_F16},
	[2] = {"q4_0", FT_Q4_0},
	[3] = {"q4_1", FT_Q4_1},
	[6] = {"q5_0", FT_Q5_0},
	[7] = {"q5_1", FT_Q5_1},
	[8] = {"q8_0", FT_Q8_0},
	[9] = {"q8_1", FT_DTYPE_COUNT},
	[10] = {"q2_k", FT_Q2_K},
	[11] = {"q3_k", FT_Q3_K},
	[12] = {"q4_k", FT_Q4_K},
	[13] = {"q5_k", FT_Q5_K},
	[14] = {"q6_k", FT_Q6_K},
	[15] = {"q8_k", FT_DTYPE_COUNT},
	[16] = {"iq2_xxs", FT_DTYPE_COUNT},
	[17] = {"iq2_xs", FT_DTYPE_COUNT},
	[18] = {"iq3_xxs", FT_DTYPE_COUNT},
	[19] = {"iq1_s", FT_DTYPE_COUNT},
	[20] = {"iq4_nl", FT_DTYPE_COUNT},
	[21] = {"iq3_s", FT_DTYPE_COUNT},
	[22] = {"iq2_s", FT_DTYPE_COUNT},
	[23] = {"iq4_xs", FT_DTYPE_COUNT},
	[24] = {"i8", FT_DTYPE_COUNT},
	[25] = {"i16", FT_DTYPE_COUNT},
	[26] = {"i32", FT_I32},
	[27] = {"i64", FT_DTYPE_COUNT},
	[28] = {"f64", FT_DTYPE_COUNT},
	[29] = {"iq1_m", FT_DTYPE_COUNT},
	[30] = {"bf16", FT_BF16},
	[34] = {"tq1_0", FT_DTYPE_COUNT},
	[35] = {"tq2_0", FT_DTYPE_COUNT},
	[39] = {"mxfp4", FT_DTYPE_COUNT},
};

const char *
ft_gguf_tensor_type_name(uint32_t type)
{
	if (type >= sizeof tensor_types / sizeof tensor_types[0] || tensor_types[type].name == NULL)
		return "unknown";
	return tensor_types[type].name;
}

ft_dtype
ft_gguf_tensor_dtype(uint32_t type)
{
	if (type >= sizeof tensor_types / sizeof tensor_types[0] || tensor_types[type].name == NULL)
		return FT_DTYPE_COUNT;
	return tensor_types[type].dtype;
}

uint32_t
ft_gguf_tensor_type(ft_dtype dtype)
{
	uint32_t type = 0;

	while (ft_gguf_tensor_dtype(type) != dtype)
		type++;
	return type;
}

/* --- reading --- */

/* Make header[at, at + n) present. */
static ft_status
need(reader *r, uint64_t n, const char *what)
{
	ft_gguf *g = r->gguf;
	uint64_t end;
	uint64_t target;
	void *memory = g->header;

	if (n > g->file_size - r->at)
		return ft_fail(FT_CORRUPT,
					   "truncated: %s needs %llu bytes at offset %zu, but only %llu are left", what,
					   (unsigned long long) n, r->at, (unsigned long long) (g->file_size - r->at));
	end = r->at + n;
	if (end <= g->header_size)
		return FT_OK;
	if (end > HEADER_LIMIT)
		return ft_fail(FT_CORRUPT, "header is larger than %llu bytes",
					   (unsigned long long) HEADER_LIMIT);
	target = end + READ_AHEAD < g->file_size ? end + READ_AHEAD : g->file_size;
	FT_TRY(ft_grow(&memory, &r->capacity, target, 1));
	g->header = memory;
	while (g->header_size < target)
	{
		ssize_t got = pread(g->fd, g->header + g->header_size, target - g->header_size,
							(off_t) g->header_size);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return ft_fail_errno("could not read %llu bytes at offset %zu",
								 (unsigned long long) (target - g->header_size), g->header_size);
		if (got == 0)
			return ft_fail(FT_CORRUPT, "truncated while it was read: ended at offset %zu of %llu",
						   g->header_size, (unsigned long long) g->file_size);
		g->header_size += (size_t) got;
	}
	return FT_OK;
}

static uint32_t
u32_at(const ft_gguf *g, size_t at)
{
	uint32_t v;

	memcpy(&v, g->header + at, sizeof v);
	return le32toh(v);
}

static uint64_t
u64_at(const ft_gguf *g, size_t at)
{
	uint64_t v;

	memcpy(&v, g->header + at, sizeof v);
	return le64toh(v);
}

static ft_status
read_u32(reader *r, const char *what, uint32_t *v)
{
	FT_TRY(need(r, 4, what));
	*v = u32_at(r->gguf, r->at);
	r->at += 4;
	return FT_OK;
}

static ft_status
read_u64(reader *r, const char *what, uint64_t *v)
{
	FT_TRY(need(r, 8, what));
	*v = u64_at(r->gguf, r->at);
	r->at += 8;
	return FT_OK;
}

/* A name that will stand in messages: printable ASCII only. */
static ft_status
read_name(reader *r, const char *what, size_t max, size_t *at, size_t *length)
{
	uint64_t n;

	FT_TRY(read_u64(r, what, &n));
	if (n == 0 || n > max)
		return ft_fail(FT_CORRUPT, "%s at offset %zu has length %llu, expected 1 to %zu", what,
					   r->at - 8, (unsigned long long) n, max);
	FT_TRY(need(r, n, what));
	for (size_t i = 0; i < n; i++)
	{
		unsigned char c = r->gguf->header[r->at + i];

		if (c < 0x20 || c > 0x7e)
			return ft_fail(FT_CORRUPT, "%s at offset %zu has the byte 0x%02x", what, r->at, c);
	}
	*at = r->at;
	*length = n;
	r->at += n;
	return FT_OK;
}

/* --- keys and values --- */

static const char *
key_of(const ft_gguf *g, const ft_gguf_value *v)
{
	return (const char *) g->header + v->key_at;
}

/* Step over `count` values of a type, which all must be there. */
static ft_status
skip_values(reader *r, ft_gguf_type type, uint64_t count)
{
	uint64_t left = r->gguf->file_size - r->at;
	uint64_t smallest = type == FT_GGUF_STRING ? 8 : type_sizes[type];

	if (count > left / smallest)
		return ft_fail(FT_CORRUPT,
					   "truncated: an array of %llu values at offset %zu, but only %llu bytes are "
					   "left",
					   (unsigned long long) count, r->at, (unsigned long long) left);
	if (type != FT_GGUF_STRING)
	{
		FT_TRY(need(r, count * smallest, "a value"));
		r->at += count * smallest;
		return FT_OK;
	}
	for (uint64_t i = 0; i < count; i++)
	{
		uint64_t n;

		FT_TRY(read_u64(r, "a string's length", &n));
		FT_TRY(need(r, n, "a string"));
		r->at += n;
	}
	return FT_OK;
}

static ft_status
read_value(reader *r, ft_gguf_value *v)
{
	uint32_t type;

	FT_TRY(read_name(r, "a key", MAX_KEY_LENGTH, &v->key_at, &v->key_length));
	FT_TRY(read_u32(r, "a value's type", &type));
	v->count = 1;
	if (type == FT_GGUF_ARRAY)
	{
		v->array = true;
		FT_TRY(read_u32(r, "an array's type", &type));
		FT_TRY(read_u64(r, "an array's length", &v->count));
		if (type == FT_GGUF_ARRAY)
			return ft_fail(FT_UNSUPPORTED, "key \"%.*s\" is an array of arrays",
						   (int) v->key_length, key_of(r->gguf, v));
	}
	if (type >= FT_GGUF_TYPE_COUNT)
		return ft_fail(FT_CORRUPT, "key \"%.*s\" has the unknown type %u", (int) v->key_length,
					   key_of(r->gguf, v), type);
	v->type = (ft_gguf_type) type;
	v->at = r->at;
	return skip_values(r, v->type, v->count);
}

static int
compare_bytes(const char *a, size_t na, const char *b, size_t nb)
{
	int c = memcmp(a, b, na < nb ? na : nb);

	return c != 0 ? c : (na > nb) - (na < nb);
}

static int
compare_values(const void *a, const void *b, void *gguf)
{
	const ft_gguf_value *x = a;
	const ft_gguf_value *y = b;

	return compare_bytes(key_of(gguf, x), x->key_length, key_of(gguf, y), y->key_length);
}

static ft_status
read_values(reader *r, uint64_t count)
{
	ft_gguf *g = r->gguf;
	size_t capacity = 0;

	if (count > (g->file_size - r->at) / MIN_VALUE_BYTES || count > MAX_KEYS)
		return ft_fail(FT_CORRUPT, "claims %llu keys with %llu bytes left",
					   (unsigned long long) count, (unsigned long long) (g->file_size - r->at));
	for (uint64_t i = 0; i < count; i++)
	{
		void *memory = g->values;

		FT_TRY(ft_grow(&memory, &capacity, i + 1, sizeof(ft_gguf_value)));
		g->values = memory;
		g->values[i] = (ft_gguf_value){0};
		FT_TRY(read_value(r, &g->values[i]));
		g->n_values++;
	}
	if (g->n_values > 0)
		qsort_r(g->values, g->n_values, sizeof(ft_gguf_value), compare_values, g);
	for (size_t i = 1; i < g->n_values; i++)
	{
		if (compare_values(&g->values[i - 1], &g->values[i], g) == 0)
			return ft_fail(FT_CORRUPT, "key \"%.*s\" stands twice", (int) g->values[i].key_length,
						   key_of(g, &g->values[i]));
	}
	return FT_OK;
}

const ft_gguf_value *
ft_gguf_find(const ft_gguf *gguf, const char *key)
{
	size_t n = strlen(key);
	size_t low = 0;
	size_t high = gguf->n_values;

	while (low < high)
	{
		size_t middle = low + (high - low) / 2;
		const ft_gguf_value *v = &gguf->values[middle];
		int c = compare_bytes(key, n, key_of(gguf, v), v->key_length);

		if (c == 0)
			return v;
		if (c < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return NULL;
}

/* FT_OK with *v NULL: missing and not required. */
static ft_status
find_scalar(const ft_gguf *g, const char *key, bool required, const ft_gguf_value **v)
{
	*v = ft_gguf_find(g, key);
	if (*v == NULL && required)
		return ft_fail(FT_CORRUPT, "key \"%s\" is missing", key);
	if (*v != NULL && (*v)->array)
		return ft_fail(FT_UNSUPPORTED, "key \"%s\" is an array, expected one value", key);
	return FT_OK;
}

bool
ft_gguf_is_float(const ft_gguf_value *value)
{
	return value->type == FT_GGUF_F32 || value->type == FT_GGUF_F64;
}

bool
ft_gguf_is_int(const ft_gguf_value *value)
{
	return value->type != FT_GGUF_BOOL && value->type != FT_GGUF_STRING && !ft_gguf_is_float(value);
}

int64_t
ft_gguf_int_at(const ft_gguf *gguf, const ft_gguf_value *value, uint64_t i)
{
	size_t at = value->at + i * type_sizes[value->type];
	uint64_t u;

	switch (value->type)
	{
		case FT_GGUF_U8:
			return gguf->header[at];
		case FT_GGUF_I8:
			return (int8_t) gguf->header[at];
		case FT_GGUF_U16:
			return (uint16_t) (gguf->header[at] | gguf->header[at + 1] << 8);
		case FT_GGUF_I16:
			return (int16_t) (gguf->header[at] | gguf->header[at + 1] << 8);
		case FT_GGUF_U32:
			return u32_at(gguf, at);
		case FT_GGUF_I32:
			return (int32_t) u32_at(gguf, at);
		default:
			u = u64_at(gguf, at);
			/* beyond what any bound of ours allows, so the exact value does not matter */
			return value->type == FT_GGUF_U64 && u > INT64_MAX ? INT64_MAX : (int64_t) u;
	}
}

double
ft_gguf_float_at(const ft_gguf *gguf, const ft_gguf_value *value, uint64_t i)
{
	size_t at = value->at + i * type_sizes[value->type];

	if (value->type == FT_GGUF_F32)
	{
		uint32_t bits = u32_at(gguf, at);
		float f;

		memcpy(&f, &bits, sizeof f);
		return f;
	}
	else
	{
		uint64_t bits = u64_at(gguf, at);
		double d;

		memcpy(&d, &bits, sizeof d);
		return d;
	}
}

ft_status
ft_gguf_int(const ft_gguf *gguf, const char *key, bool required, int64_t min, int64_t max,
			int64_t *to)
{
	const ft_gguf_value *v;
	int64_t i;

	FT_TRY(find_scalar(gguf, key, required, &v));
	if (v == NULL)
		return FT_OK;
	if (!ft_gguf_is_int(v))
		return ft_fail(FT_CORRUPT, "key \"%s\" is no integer", key);
	i = ft_gguf_int_at(gguf, v, 0);
	if (i < min || i > max)
		return ft_fail(FT_CORRUPT, "key \"%s\" is %lld, expected %lld to %lld", key, (long long) i,
					   (long long) min, (long long) max);
	*to = i;
	return FT_OK;
}

ft_status
ft_gguf_float(const ft_gguf *gguf, const char *key, bool required, double *to)
{
	const ft_gguf_value *v;

	FT_TRY(find_scalar(gguf, key, required, &v));
	if (v == NULL)
		return FT_OK;
	if (!ft_gguf_is_float(v))
		return ft_fail(FT_CORRUPT, "key \"%s\" is no floating-point number", key);
	*to = ft_gguf_float_at(gguf, v, 0);
	if (!__builtin_isfinite(*to))
		return ft_fail(FT_CORRUPT, "key \"%s\" is not finite", key);
	return FT_OK;
}

ft_status
ft_gguf_bool(const ft_gguf *gguf, const char *key, bool *to)
{
	const ft_gguf_value *v;

	FT_TRY(find_scalar(gguf, key, false, &v));
	if (v == NULL)
		return FT_OK;
	if (v->type != FT_GGUF_BOOL)
		return ft_fail(FT_CORRUPT, "key \"%s\" is no boolean", key);
	*to = gguf->header[v->at] != 0;
	return FT_OK;
}

ft_status
ft_gguf_string(const ft_gguf *gguf, const char *key, bool required, ft_string *to)
{
	const ft_gguf_value *v;

	FT_TRY(find_scalar(gguf, key, required, &v));
	if (v == NULL)
		return FT_OK;
	if (v->type != FT_GGUF_STRING)
		return ft_fail(FT_CORRUPT, "key \"%s\" is no string", key);
	to->length = u64_at(gguf, v->at);
	to->data = (const char *) gguf->header + v->at + 8;
	return FT_OK;
}

ft_status
ft_gguf_strings(const ft_gguf *gguf, const ft_gguf_value *value, ft_string **strings)
{
	size_t at = value->at;
	void *memory;

	FT_TRY(ft_alloc(&memory, value->count, sizeof(ft_string)));
	*strings = memory;
	for (uint64_t i = 0; i < value->count; i++)
	{
		(*strings)[i].length = u64_at(gguf, at);
		(*strings)[i].data = (const char *) gguf->header + at + 8;
		at += 8 + (*strings)[i].length;
	}
	return FT_OK;
}

size_t
ft_gguf_value_bytes(const ft_gguf *gguf, const ft_gguf_value *value)
{
	size_t at = value->at;

	if (value->type != FT_GGUF_STRING)
		return value->count * type_sizes[value->type];
	for (uint64_t i = 0; i < value->count; i++)
		at += 8 + u64_at(gguf, at);
	return at - value->at;
}

/* --- tensors --- */

/* Its size, when the type is one we know; FT_CORRUPT when the shape cannot be. */
static ft_status
size_tensor(ft_gguf_tensor *t)
{
	ft_dtype dtype = ft_gguf_tensor_dtype(t->type);
	uint64_t rows = t->dims[1];
	int64_t row_bytes;

	if (__builtin_mul_overflow(rows, t->dims[2], &rows) ||
		__builtin_mul_overflow(rows, t->dims[3], &rows) || rows > INT64_MAX ||
		t->dims[0] > INT64_MAX)
		return ft_fail(FT_CORRUPT, "tensor \"%s\" has impossible dimensions", t->name);
	if (dtype == FT_DTYPE_COUNT)
		return FT_OK;
	row_bytes = ft_row_bytes(dtype, (int64_t) t->dims[0]);
	if (row_bytes < 0)
		return ft_fail(FT_CORRUPT, "tensor \"%s\" has rows of %llu values, which %s cannot store",
					   t->name, (unsigned long long) t->dims[0], ft_dtype_get(dtype)->name);
	if (__builtin_mul_overflow(rows, (uint64_t) row_bytes, &t->bytes) || t->bytes > INT64_MAX)
		return ft_fail(FT_CORRUPT, "tensor \"%s\" has impossible dimensions", t->name);
	return FT_OK;
}

static ft_status
read_tensor(reader *r, ft_gguf_tensor *t)
{
	size_t at;
	size_t length;
	uint32_t n_dims;

	FT_TRY(read_name(r, "a tensor's name", sizeof t->name - 1, &at, &length));
	memcpy(t->name, r->gguf->header + at, length);
	t->name[length] = '\0';
	FT_TRY(read_u32(r, "a tensor's number of dimensions", &n_dims));
	if (n_dims < 1 || n_dims > FT_GGUF_MAX_DIMS)
		return ft_fail(FT_CORRUPT, "tensor \"%s\" has %u dimensions, expected 1 to %d", t->name,
					   n_dims, FT_GGUF_MAX_DIMS);
	t->n_dims = (int) n_dims;
	for (uint32_t i = 0; i < FT_GGUF_MAX_DIMS; i++)
	{
		t->dims[i] = 1;
		if (i < n_dims)
			FT_TRY(read_u64(r, "a tensor's dimension", &t->dims[i]));
		if (t->dims[i] == 0)
			return ft_fail(FT_CORRUPT, "tensor \"%s\" has a dimension of 0", t->name);
	}
	FT_TRY(read_u32(r, "a tensor's type", &t->type));
	FT_TRY(read_u64(r, "a tensor's offset", &t->offset));
	return size_tensor(t);
}

static int
compare_names(const void *a, const void *b, void *gguf)
{
	const ft_gguf_tensor *tensors = ((const ft_gguf *) gguf)->tensors;

	return strcmp(tensors[*(const size_t *) a].name, tensors[*(const size_t *) b].name);
}

static int
compare_offsets(const void *a, const void *b, void *gguf)
{
	const ft_gguf_tensor *tensors = ((const ft_gguf *) gguf)->tensors;
	const ft_gguf_tensor *x = &tensors[*(const size_t *) a];
	const ft_gguf_tensor *y = &tensors[*(const size_t *) b];

	return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Every span inside the file, aligned, and none over another. */
static ft_status
check_spans(ft_gguf *g, uint64_t alignment)
{
	const ft_gguf_tensor *before = NULL;

	for (size_t i = 0; i < g->n_tensors; i++)
	{
		ft_gguf_tensor *t = &g->tensors[i];
		uint64_t present;

		if (t->offset % alignment != 0)
			return ft_fail(FT_CORRUPT, "tensor \"%s\" is at offset %llu, no multiple of %llu",
						   t->name, (unsigned long long) t->offset, (unsigned long long) alignment);
		if (__builtin_add_overflow(t->offset, g->data_offset, &t->offset))
			return ft_fail(FT_CORRUPT, "tensor \"%s\" is beyond any file's end", t->name);
		present = t->offset < g->file_size ? g->file_size - t->offset : 0;
		if (t->bytes > present || present == 0)
			return ft_fail(
				FT_CORRUPT,
				"truncated: tensor \"%s\" needs %llu bytes at offset %llu, but only %llu "
				"are there",
				t->name, (unsigned long long) t->bytes, (unsigned long long) t->offset,
				(unsigned long long) present);
	}

	qsort_r(g->by_name, g->n_tensors, sizeof(size_t), compare_offsets, g);
	for (size_t i = 0; i < g->n_tensors; i++)
	{
		const ft_gguf_tensor *t = &g->tensors[g->by_name[i]];

		if (before != NULL && t->offset - before->offset < (before->bytes > 0 ? before->bytes : 1))
			return ft_fail(FT_CORRUPT, "tensors \"%s\" and \"%s\" overlap", before->name, t->name);
		before = t;
	}
	return FT_OK;
}

static ft_status
read_tensors(reader *r, uint64_t count)
{
	ft_gguf *g = r->gguf;
	size_t capacity = 0;
	void *memory;

	if (count > (g->file_size - r->at) / MIN_TENSOR_BYTES || count > MAX_TENSORS)
		return ft_fail(FT_CORRUPT, "claims %llu tensors with %llu bytes left",
					   (unsigned long long) count, (unsigned long long) (g->file_size - r->at));
	for (uint64_t i = 0; i < count; i++)
	{
		memory = g->tensors;
		FT_TRY(ft_grow(&memory, &capacity, i + 1, sizeof(ft_gguf_tensor)));
		g->tensors = memory;
		g->tensors[i] = (ft_gguf_tensor){0};
		FT_TRY(read_tensor(r, &g->tensors[i]));
		g->n_tensors++;
	}
	FT_TRY(ft_alloc(&memory, g->n_tensors, sizeof(size_t)));
	g->by_name = memory;
	for (size_t i = 0; i < g->n_tensors; i++)
		g->by_name[i] = i;
	return FT_OK;
}

static ft_status
sort_tensors(ft_gguf *g)
{
	qsort_r(g->by_name, g->n_tensors, sizeof(size_t), compare_names, g);
	for (size_t i = 1; i < g->n_tensors; i++)
	{
		if (compare_names(&g->by_name[i - 1], &g->by_name[i], g) == 0)
			return ft_fail(FT_CORRUPT, "tensor \"%s\" stands twice",
						   g->tensors[g->by_name[i]].name);
	}
	return FT_OK;
}

const ft_gguf_tensor *
ft_gguf_find_tensor(const ft_gguf *gguf, const char *name)
{
	size_t low = 0;
	size_t high = gguf->n_tensors;

	while (low < high)
	{
		size_t middle = low + (high - low) / 2;
		const ft_gguf_tensor *t = &gguf->tensors[gguf->by_name[middle]];
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

/* --- the whole header --- */

static ft_status
read_version(reader *r)
{
	ft_gguf *g = r->gguf;

	FT_TRY(need(r, 4, "the magic number"));
	if (memcmp(g->header, "GGUF", 4) != 0)
		return ft_fail(FT_CORRUPT, "not a GGUF file");
	r->at = 4;
	FT_TRY(read_u32(r, "the version", &g->version));
	if ((g->version & 0xffff) == 0 && g->version != 0)
		return ft_fail(FT_UNSUPPORTED, "big-endian GGUF files are not supported");
	if (g->version < 2 || g->version > 3)
		return ft_fail(FT_UNSUPPORTED, "GGUF version %u is not supported, expected 2 or 3",
					   g->version);
	return FT_OK;
}

static ft_status
read_header(reader *r)
{
	ft_gguf *g = r->gguf;
	uint64_t n_tensors;
	uint64_t n_values;
	int64_t alignment = 32;

	FT_TRY(read_version(r));
	FT_TRY(read_u64(r, "the number of tensors", &n_tensors));
	FT_TRY(read_u64(r, "the number of keys", &n_values));
	FT_TRY(read_values(r, n_values));
	FT_TRY(ft_gguf_int(g, "general.alignment", false, 1, 1 << 30, &alignment));
	if ((alignment & (alignment - 1)) != 0)
		return ft_fail(FT_CORRUPT, "alignment %lld is no power of two", (long long) alignment);
	FT_TRY(read_tensors(r, n_tensors));
	g->data_offset = (r->at + (uint64_t) alignment - 1) & ~((uint64_t) alignment - 1);
	FT_TRY(check_spans(g, (uint64_t) alignment));
	return sort_tensors(g);
}

ft_status
ft_gguf_open(int fd, uint64_t file_size, ft_gguf **gguf)
{
	void *memory;
	reader r = {0};
	ft_status status;

	FT_TRY(ft_alloc(&memory, 1, sizeof(ft_gguf)));
	r.gguf = memory;
	r.gguf->fd = fd;
	r.gguf->file_size = file_size;
	status = read_header(&r);
	if (status != FT_OK)
	{
		ft_gguf_close(r.gguf);
		return status;
	}
	/* what was read ahead belongs to the tensors */
	memory = realloc(r.gguf->header, r.at);
	if (memory != NULL)
		r.gguf->header = memory;
	r.gguf->header_size = r.at;
	*gguf = r.gguf;
	return FT_OK;
}

void
ft_gguf_close(ft_gguf *gguf)
{
	if (gguf == NULL)
		return;
	free(gguf->header);
	free(gguf->values);
	free(gguf->tensors);
	free(gguf->by_name);
	free(gguf);
}
