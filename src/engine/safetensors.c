/*
 * safetensors.c: reading and writing safetensors files.
 */
#include "safetensors.h"

#include "buffer.h"
#include "files.h"

#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_HEADER 100000000u /* the reference implementation's own limit */
#define HEADER_ALIGNMENT 8

struct ft_safetensors
{
	int fd;
	bool borrowed;  /* fd is the caller's */
	char *path;     /* for messages */
	json_t *header; /* owns the metadata's strings */
	size_t count;
	ft_safetensor *tensors;
};

static const struct
{
	const char *name;
	int bytes;
} dtypes[] = {
	{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8},     {"I64", 8},
	{"I32", 4}, {"I16", 2}, {"I8", 1},   {"U64", 8},     {"U32", 4},
	{"U16", 2}, {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
};

static int
dtype_bytes(const char *name)
{
	for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
	{
		if (strcmp(dtypes[i].name, name) == 0)
			return dtypes[i].bytes;
	}
	return 0;
}

/* A non-negative integer out of the header. */
static ft_status
read_count(const json_t *value, const char *tensor, const char *what, uint64_t *count)
{
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return ft_fail(FT_CORRUPT, "%s of tensor \"%.100s\" is not a count", what, tensor);
	*count = (uint64_t) json_integer_value(value);
	return FT_OK;
}

static ft_status
read_shape(const json_t *shape, ft_safetensor *tensor)
{
	uint64_t bytes = (uint64_t) tensor->value_bytes;

	if (!json_is_array(shape))
		return ft_fail(FT_CORRUPT, "tensor \"%.100s\" has no shape", tensor->name);
	if (json_array_size(shape) > FT_SAFETENSORS_MAX_DIMS)
		return ft_fail(FT_UNSUPPORTED,
					   "tensor \"%.100s\" has %zu dimensions, at most %d are supported",
					   tensor->name, json_array_size(shape), FT_SAFETENSORS_MAX_DIMS);
	tensor->n_dims = (int) json_array_size(shape);
	for (int i = 0; i < tensor->n_dims; i++)
	{
		uint64_t dim;

		FT_TRY(read_count(json_array_get(shape, (size_t) i), tensor->name, "a dimension", &dim));
		if (__builtin_mul_overflow(bytes, dim, &bytes) || bytes > INT64_MAX)
			return ft_fail(FT_CORRUPT, "size of tensor \"%.100s\" overflows", tensor->name);
		tensor->dims[i] = (int64_t) dim;
	}
	tensor->bytes = bytes;
	return FT_OK;
}

static ft_status
read_offsets(const json_t *offsets, uint64_t data_bytes, ft_safetensor *tensor)
{
	uint64_t begin;
	uint64_t end;

	if (!json_is_array(offsets) || json_array_size(offsets) != 2)
		return ft_fail(FT_CORRUPT, "tensor \"%.100s\" has no pair of data_offsets", tensor->name);
	FT_TRY(read_count(json_array_get(offsets, 0), tensor->name, "an offset", &begin));
	FT_TRY(read_count(json_array_get(offsets, 1), tensor->name, "an offset", &end));
	if (begin > end || end > data_bytes)
		return ft_fail(FT_CORRUPT, "tensor \"%.100s\" stands at bytes %llu to %llu of %llu",
					   tensor->name, (unsigned long long) begin, (unsigned long long) end,
					   (unsigned long long) data_bytes);
	if (end - begin != tensor->bytes)
		return ft_fail(FT_CORRUPT, "tensor \"%.100s\" has %llu bytes, its shape needs %llu",
					   tensor->name, (unsigned long long) (end - begin),
					   (unsigned long long) tensor->bytes);
	tensor->offset = begin;
	return FT_OK;
}

static ft_status
read_tensor(const char *name, const json_t *entry, uint64_t data_bytes, ft_safetensor *tensor)
{
	const char *dtype;
	const char *key;
	json_t *value;

	tensor->name = strdup(name);
	if (tensor->name == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	if (!json_is_object(entry))
		return ft_fail(FT_CORRUPT, "entry of tensor \"%.100s\" is not an object", name);
	json_object_foreach ((json_t *) entry, key, value)
	{
		if (strcmp(key, "dtype") != 0 && strcmp(key, "shape") != 0 &&
			strcmp(key, "data_offsets") != 0)
			return ft_fail(FT_CORRUPT, "tensor \"%.100s\" has an unknown key \"%.100s\"", name,
						   key);
	}
	dtype = json_string_value(json_object_get(entry, "dtype"));
	if (dtype == NULL)
		return ft_fail(FT_CORRUPT, "tensor \"%.100s\" has no dtype", name);
	tensor->value_bytes = dtype_bytes(dtype);
	if (tensor->value_bytes == 0)
		return ft_fail(FT_UNSUPPORTED, "dtype \"%.20s\" of tensor \"%.100s\" is not supported",
					   dtype, name);
	memcpy(tensor->dtype, dtype, strlen(dtype) + 1);
	FT_TRY(read_shape(json_object_get(entry, "shape"), tensor));
	return read_offsets(json_object_get(entry, "data_offsets"), data_bytes, tensor);
}

static ft_status
check_metadata(const json_t *metadata)
{
	const char *key;
	json_t *value;

	if (!json_is_object(metadata))
		return ft_fail(FT_CORRUPT, "__metadata__ is not an object");
	json_object_foreach ((json_t *) metadata, key, value)
	{
		if (!json_is_string(value))
			return ft_fail(FT_CORRUPT, "__metadata__ value \"%.100s\" is not a string", key);
	}
	return FT_OK;
}

static int
by_offset(const void *a, const void *b)
{
	const ft_safetensor *x = a;
	const ft_safetensor *y = b;

	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	if (x->bytes != y->bytes) /* empty tensors stand before the one that begins where they do */
		return x->bytes < y->bytes ? -1 : 1;
	return strcmp(x->name, y->name);
}

/* No overlap, no hole, nothing after the last. */
static ft_status
check_spans(ft_safetensors *file, uint64_t data_start, uint64_t data_bytes)
{
	uint64_t at = 0;

	qsort(file->tensors, file->count, sizeof file->tensors[0], by_offset);
	for (size_t i = 0; i < file->count; i++)
	{
		ft_safetensor *tensor = &file->tensors[i];

		if (tensor->offset != at)
			return ft_fail(FT_CORRUPT, "tensor \"%.100s\" begins at byte %llu, expected %llu",
						   tensor->name, (unsigned long long) tensor->offset,
						   (unsigned long long) at);
		at += tensor->bytes;
		tensor->offset += data_start;
	}
	if (at != data_bytes)
		return ft_fail(FT_CORRUPT, "tensors end at byte %llu, the file at %llu",
					   (unsigned long long) at, (unsigned long long) data_bytes);
	return FT_OK;
}

static ft_status
read_entries(ft_safetensors *file, uint64_t data_start, uint64_t data_bytes)
{
	const char *name;
	json_t *entry;

	if (!json_is_object(file->header))
		return ft_fail(FT_CORRUPT, "header is not a JSON object");
	FT_TRY(ft_alloc((void **) &file->tensors, json_object_size(file->header),
					sizeof file->tensors[0]));
	json_object_foreach (file->header, name, entry)
	{
		if (strcmp(name, "__metadata__") == 0)
			FT_TRY(check_metadata(entry));
		else
			FT_TRY(read_tensor(name, entry, data_bytes, &file->tensors[file->count++]));
	}
	return check_spans(file, data_start, data_bytes);
}

static uint64_t
little_endian_64(const unsigned char bytes[8])
{
	uint64_t value = 0;

	for (int i = 7; i >= 0; i--)
		value = value << 8 | bytes[i];
	return value;
}

static ft_status
parse_header(ft_safetensors *file, const char *text, size_t length)
{
	json_error_t error;

	if (length == 0 || text[0] != '{')
		return ft_fail(FT_CORRUPT, "header does not begin with \"{\"");
	file->header = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
	if (file->header == NULL)
		return ft_fail(FT_CORRUPT, "header is not valid JSON at byte %d", error.position);
	return FT_OK;
}

static ft_status
read_header(ft_safetensors *file)
{
	struct stat st;
	unsigned char prefix[8];
	uint64_t length;
	void *text;
	ft_status status;

	if (fstat(file->fd, &st) < 0)
		return ft_fail_errno("could not stat the file");
	if (!S_ISREG(st.st_mode))
		return ft_fail(FT_INVALID, "not a regular file");
	if (st.st_size < 8)
		return ft_fail(FT_CORRUPT, "file has %lld bytes, expected at least 8",
					   (long long) st.st_size);
	FT_TRY(ft_read_at(file->fd, prefix, 8, 0, file->path));
	length = little_endian_64(prefix);
	if (length > MAX_HEADER || length > (uint64_t) st.st_size - 8)
		return ft_fail(FT_CORRUPT, "header of %llu bytes in a file of %lld (limit %u)",
					   (unsigned long long) length, (long long) st.st_size, MAX_HEADER);
	FT_TRY(ft_alloc(&text, (size_t) length, 1));
	status = ft_read_at(file->fd, text, (size_t) length, 8, file->path);
	if (status == FT_OK)
		status = parse_header(file, text, (size_t) length);
	free(text);
	if (status == FT_OK)
		status = read_entries(file, 8 + length, (uint64_t) st.st_size - 8 - length);
	return status;
}

ft_status
ft_safetensors_open(const char *path, ft_safetensors **result)
{
	ft_safetensors *file;
	ft_status status;

	*result = NULL;
	FT_TRY(ft_alloc((void **) &file, 1, sizeof *file));
	file->path = strdup(path);
	file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (file->path == NULL)
		status = ft_fail(FT_NO_MEMORY, "out of memory");
	else if (file->fd < 0)
		status = ft_fail_errno("could not open \"%s\"", path);
	else if ((status = read_header(file)) != FT_OK)
		status = ft_context(status, "%s: ", path);
	if (status != FT_OK)
	{
		ft_safetensors_close(file);
		return status;
	}
	*result = file;
	return FT_OK;
}

ft_status
ft_safetensors_open_fd(int fd, ft_safetensors **result)
{
	ft_safetensors *file;
	ft_status status;

	*result = NULL;
	FT_TRY(ft_alloc((void **) &file, 1, sizeof *file));
	file->fd = fd;
	file->borrowed = true;
	file->path = strdup("safetensors file");
	status =
		file->path != NULL ? read_header(file) : ft_fail(FT_NO_MEMORY, "out of memory: a file");
	if (status != FT_OK)
	{
		ft_safetensors_close(file);
		return status;
	}
	*result = file;
	return FT_OK;
}

void
ft_safetensors_close(ft_safetensors *file)
{
	if (file == NULL)
		return;
	for (size_t i = 0; i < file->count; i++)
		free(file->tensors[i].name);
	free(file->tensors);
	json_decref(file->header);
	if (file->fd >= 0 && !file->borrowed)
		close(file->fd);
	free(file->path);
	free(file);
}

size_t
ft_safetensors_count(const ft_safetensors *file)
{
	return file->count;
}

const ft_safetensor *
ft_safetensors_at(const ft_safetensors *file, size_t i)
{
	return &file->tensors[i];
}

const ft_safetensor *
ft_safetensors_find(const ft_safetensors *file, const char *name)
{
	for (size_t i = 0; i < file->count; i++)
	{
		if (strcmp(file->tensors[i].name, name) == 0)
			return &file->tensors[i];
	}
	return NULL;
}

const char *
ft_safetensors_metadata(const ft_safetensors *file, const char *key)
{
	return json_string_value(json_object_get(json_object_get(file->header, "__metadata__"), key));
}

ft_status
ft_safetensors_read(const ft_safetensors *file, const ft_safetensor *tensor, void *to)
{
	return ft_read_at(file->fd, to, tensor->bytes, tensor->offset, file->path);
}

/* IEEE half precision: 1 sign, 5 exponent, 10 mantissa bits. */
static float
f16_to_f32(uint16_t h)
{
	int exponent = h >> 10 & 31;
	int mantissa = h & 1023;
	float magnitude;

	if (exponent == 31)
		magnitude = mantissa != 0 ? NAN : INFINITY;
	else if (exponent == 0)
		magnitude = ldexpf((float) mantissa, -24);
	else
		magnitude = ldexpf((float) (mantissa + 1024), exponent - 25);
	return h >> 15 ? -magnitude : magnitude;
}

ft_status
ft_safetensors_read_f32(const ft_safetensors *file, const ft_safetensor *tensor, float *to,
						int64_t n)
{
	bool f32 = strcmp(tensor->dtype, "F32") == 0;
	bool bf16 = strcmp(tensor->dtype, "BF16") == 0;
	char *halves;

	if (!f32 && !bf16 && strcmp(tensor->dtype, "F16") != 0)
		return ft_fail(FT_UNSUPPORTED, "tensor \"%.100s\" has dtype %s, expected F32, F16 or BF16",
					   tensor->name, tensor->dtype);
	if ((uint64_t) n * (uint64_t) tensor->value_bytes != tensor->bytes)
		return ft_fail(
			FT_MISMATCH, "tensor \"%.100s\" has %llu values, expected %lld", tensor->name,
			(unsigned long long) (tensor->bytes / (uint64_t) tensor->value_bytes), (long long) n);
	if (f32)
		return ft_safetensors_read(file, tensor, to);

	/* the halves go into the upper half of the result and are widened from the front */
	halves = (char *) to + n * 2;
	FT_TRY(ft_safetensors_read(file, tensor, halves));
	for (int64_t i = 0; i < n; i++)
	{
		uint16_t half;
		float value;

		memcpy(&half, halves + i * 2, sizeof half);
		value = bf16 ? ft_bf16_to_f32(half) : f16_to_f32(half);
		memcpy(&to[i], &value, sizeof value);
	}
	return FT_OK;
}

/* --- writing --- */

static json_t *
describe_tensor(const ft_safetensor_out *tensor, uint64_t begin, uint64_t end)
{
	if (tensor->rows < 0)
		return json_pack("{s:s, s:[I], s:[I, I]}", "dtype", "F32", "shape",
						 (json_int_t) tensor->cols, "data_offsets", (json_int_t) begin,
						 (json_int_t) end);
	return json_pack("{s:s, s:[I, I], s:[I, I]}", "dtype", "F32", "shape",
					 (json_int_t) tensor->rows, (json_int_t) tensor->cols, "data_offsets",
					 (json_int_t) begin, (json_int_t) end);
}

static uint64_t
tensor_bytes(const ft_safetensor_out *tensor)
{
	return (uint64_t) (tensor->rows < 0 ? 1 : tensor->rows) * (uint64_t) tensor->cols *
		   sizeof(float);
}

/* The header's JSON, padded with blanks to the alignment. */
static ft_status
make_header(const ft_safetensor_out *tensors, size_t n, const char *key, const char *value,
			ft_text *text)
{
	json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
	uint64_t at = 0;
	char *dump;
	ft_status status = FT_OK;

	if (value != NULL &&
		json_object_set_new(json_object_get(header, "__metadata__"), key, json_string(value)) != 0)
		status = ft_fail(FT_INTERNAL, "could not describe \"%s\"", key);
	for (size_t i = 0; i < n; i++)
	{
		uint64_t end = at + tensor_bytes(&tensors[i]);

		if (json_object_set_new(header, tensors[i].name, describe_tensor(&tensors[i], at, end)) !=
			0)
			status = ft_fail(FT_INTERNAL, "could not describe tensor \"%s\"", tensors[i].name);
		at = end;
	}
	dump = json_dumps(header, JSON_COMPACT);
	json_decref(header);
	if (dump == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	if (status == FT_OK)
		status = ft_text_append(text, dump, strlen(dump));
	free(dump);
	while (status == FT_OK && text->length % HEADER_ALIGNMENT != 0)
		status = ft_text_append(text, " ", 1);
	return status;
}

static ft_status
write_tensors(int fd, const char *path, const ft_safetensor_out *tensors, size_t n,
			  const ft_text *header)
{
	unsigned char prefix[8];

	for (int i = 0; i < 8; i++)
		prefix[i] = (unsigned char) ((uint64_t) header->length >> (8 * i));
	FT_TRY(ft_write_all(fd, prefix, sizeof prefix, path));
	FT_TRY(ft_write_all(fd, header->data, header->length, path));
	for (size_t i = 0; i < n; i++)
		FT_TRY(ft_write_all(fd, tensors[i].values, tensor_bytes(&tensors[i]), path));
	if (fsync(fd) < 0)
		return ft_fail_errno("could not fsync \"%s\"", path);
	return FT_OK;
}

ft_status
ft_safetensors_write_with(const char *path, const ft_safetensor_out *tensors, size_t n,
						  const char *key, const char *value)
{
	ft_text header = {0};
	ft_status status = make_header(tensors, n, key, value, &header);
	int fd;

	if (status == FT_OK)
	{
		fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		if (fd < 0)
			status = ft_fail_errno("could not create \"%s\"", path);
		else
		{
			status = write_tensors(fd, path, tensors, n, &header);
			close(fd);
		}
	}
	ft_text_free(&header);
	return status;
}

ft_status
ft_safetensors_write(const char *path, const ft_safetensor_out *tensors, size_t n)
{
	return ft_safetensors_write_with(path, tensors, n, NULL, NULL);
}
