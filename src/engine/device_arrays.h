/*
 * device_arrays.h: arrays of device memory as a safetensors file, and back.
 *
 * For what is as large as a model: the bytes go through a small buffer, so that
 * nothing is held twice on the host.
 */
#ifndef FT_DEVICE_ARRAYS_H
#define FT_DEVICE_ARRAYS_H

#include "ops.h"

typedef struct ft_device_array
{
	const char *name;
	const char *type; /* as safetensors writes it: "F32", "BF16", "U8" */
	int64_t n;        /* values */
	size_t bytes;     /* of all of them */
	void *data;       /* device; to be written without ops, host */
} ft_device_array;

#define FT_MAX_DEVICE_ARRAYS 8

/* One of n values of f32 or bf16. */
ft_device_array ft_device_array_make(const char *name, ft_dtype dtype, int64_t n, void *data);

/* Write a new file and fsync it; the caller renames.  ops NULL: the arrays are on the host. */
ft_status ft_device_arrays_write(const char *path, const ft_device_array *arrays, int n,
								 const ft_ops *ops, ft_stream *stream);
/* Fill the arrays from a file of just these; FT_MISMATCH, with nothing read, when it has others. */
ft_status ft_device_arrays_read(const char *path, const ft_device_array *arrays, int n,
								const ft_ops *ops, ft_stream *stream);

#endif
