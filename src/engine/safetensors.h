/*
 * safetensors.h: reading and writing safetensors files.
 *
 * Format: https://huggingface.co/docs/safetensors, "Format": a 64-bit
 * little-endian header length, a JSON object of that length, the tensors' bytes
 * without holes.
 *
 * A reader trusts nothing: every count is checked against the bytes that are
 * left before anything is allocated for it, and contents are read with pread,
 * so a file that shrinks under us gives an error and no SIGBUS.
 */
#ifndef FT_SAFETENSORS_H
#define FT_SAFETENSORS_H

#include "status.h"
#include "tensor.h"

#define FT_SAFETENSORS_MAX_DIMS 8

typedef struct ft_safetensor
{
	char *name;
	char dtype[8];   /* as written: "F32", "BF16", "I64" … */
	int value_bytes; /* of one value of that dtype */
	int n_dims;
	int64_t dims[FT_SAFETENSORS_MAX_DIMS]; /* outermost first */
	uint64_t offset;                       /* absolute, in the file */
	uint64_t bytes;                        /* = product of dims · value_bytes */
} ft_safetensor;

typedef struct ft_safetensors ft_safetensors;

/* Open a file and check its whole header: FT_NOT_FOUND, FT_IO, FT_CORRUPT (what contradicts what),
 * FT_UNSUPPORTED (a dtype of no whole number of bytes).  Messages name the path. */
ft_status ft_safetensors_open(const char *path, ft_safetensors **file);
/* The same of an open file, which stays the caller's and open; messages do not name it. */
ft_status ft_safetensors_open_fd(int fd, ft_safetensors **file);
void ft_safetensors_close(ft_safetensors *file);

/* The tensors in the order of their bytes. */
size_t ft_safetensors_count(const ft_safetensors *file);
const ft_safetensor *ft_safetensors_at(const ft_safetensors *file, size_t i);
/* NULL when there is none of that name. */
const ft_safetensor *ft_safetensors_find(const ft_safetensors *file, const char *name);
/* A value of "__metadata__", or NULL. */
const char *ft_safetensors_metadata(const ft_safetensors *file, const char *key);

/* Read a tensor's bytes as stored into memory of tensor->bytes. */
ft_status ft_safetensors_read(const ft_safetensors *file, const ft_safetensor *tensor, void *to);
/* Read a tensor of dtype F32, F16 or BF16 as `n` floats (n must be its number of values). */
ft_status ft_safetensors_read_f32(const ft_safetensors *file, const ft_safetensor *tensor,
								  float *to, int64_t n);

/* A matrix or vector to be written. */
typedef struct ft_safetensor_out
{
	const char *name;
	int64_t rows; /* -1: a vector, [cols] */
	int64_t cols;
	const float *values; /* written as F32 */
} ft_safetensor_out;

/* Write a file with the tensors in the order given, and fsync it.  The same input gives the same
 * bytes. The caller writes under a temporary name and renames. */
ft_status ft_safetensors_write(const char *path, const ft_safetensor_out *tensors, size_t n);
/* The same with a member of the metadata; value NULL: without. */
ft_status ft_safetensors_write_with(const char *path, const ft_safetensor_out *tensors, size_t n,
									const char *key, const char *value);

#endif
