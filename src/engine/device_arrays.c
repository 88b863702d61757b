/*
 * device_arrays.c: arrays of device memory as a safetensors file, and back.
 */
#include "device_arrays.h"

#include "buffer.h"
#include "files.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE ((size_t) 8 << 20)
#define HEADER_ALIGNMENT 8

ft_device_array
ft_device_array_make(const char *name, ft_dtype dtype, int64_t n, void *data)
{
	bool f32 = dtype == FT_F32;

	return (ft_device_array){.name = name,
							 .type = f32 ? "F32" : "BF16",
							 .n = n,
							 .bytes = (size_t) n * (f32 ? 4 : 2),
							 .data = data};
}

/* The file up to the first value: the same arrays give the same bytes. */
static ft_status
make_header(const ft_device_array *arrays, int n, ft_text *header)
{
	uint64_t length;
	uint64_t at = 0;

	FT_TRY(ft_text_append(header, "\0\0\0\0\0\0\0\0{", 9));
	for (int i = 0; i < n; i++)
	{
		FT_TRY(ft_text_printf(
			header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld],\"data_offsets\":[%llu,%llu]}",
			i > 0 ? "," : "", arrays[i].name, arrays[i].type, (long long) arrays[i].n,
			(unsigned long long) at, (unsigned long long) (at + arrays[i].bytes)));
		at += arrays[i].bytes;
	}
	FT_TRY(ft_text_append(header, "}", 1));
	while (header->length % HEADER_ALIGNMENT != 0)
		FT_TRY(ft_text_append(header, " ", 1));
	length = header->length - 8;
	for (int i = 0; i < 8; i++)
		header->data[i] = (char) (unsigned char) (length >> (8 * i));
	return FT_OK;
}

static ft_status
write_array(int fd, const char *path, const ft_device_array *array, char *buffer, const ft_ops *ops,
			ft_stream *stream)
{
	for (size_t at = 0; at < array->bytes; at += PIECE)
	{
		size_t n = array->bytes - at < PIECE ? array->bytes - at : PIECE;

		const char *from = (const char *) array->data + at;

		if (ops != NULL)
		{
			FT_TRY(ops->copy_to_host(stream, buffer, from, n));
			from = buffer;
		}
		FT_TRY(ft_write_all(fd, from, n, path));
	}
	return FT_OK;
}

static ft_status
write_file(int fd, const char *path, const ft_device_array *arrays, int n, char *buffer,
		   const ft_ops *ops, ft_stream *stream)
{
	ft_text header = {0};
	ft_status status = make_header(arrays, n, &header);

	if (status == FT_OK)
		status = ft_write_all(fd, header.data, header.length, path);
	ft_text_free(&header);
	for (int i = 0; status == FT_OK && i < n; i++)
		status = write_array(fd, path, &arrays[i], buffer, ops, stream);
	if (status == FT_OK && fsync(fd) < 0)
		status = ft_fail_errno("could not fsync \"%s\"", path);
	return status;
}

ft_status
ft_device_arrays_write(const char *path, const ft_device_array *arrays, int n, const ft_ops *ops,
					   ft_stream *stream)
{
	void *buffer;
	ft_status status;
	int fd;

	FT_TRY(ft_alloc(&buffer, PIECE, 1));
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		status = ft_fail_errno("could not create \"%s\"", path);
	else
	{
		status = write_file(fd, path, arrays, n, buffer, ops, stream);
		/* what is synced cannot be lost by closing it */
		close(fd);
	}
	free(buffer);
	return status;
}

/* --- reading --- */

static ft_status
check_header(int fd, const char *path, const ft_device_array *arrays, int n, uint64_t *length)
{
	ft_text expected = {0};
	void *found = NULL;
	ft_status status = make_header(arrays, n, &expected);

	if (status == FT_OK)
		status = ft_alloc(&found, expected.length, 1);
	if (status == FT_OK)
		status = ft_read_at(fd, found, expected.length, 0, path);
	if (status == FT_OK && memcmp(found, expected.data, expected.length) != 0)
		status = ft_hint(ft_fail(FT_MISMATCH, "\"%s\" has other arrays than expected", path),
						 "The run was begun with other numerics, or on another kind of device.");
	*length = expected.length;
	free(found);
	ft_text_free(&expected);
	return status;
}

static ft_status
read_array(int fd, const char *path, const ft_device_array *array, uint64_t offset, char *buffer,
		   const ft_ops *ops, ft_stream *stream)
{
	for (size_t at = 0; at < array->bytes; at += PIECE)
	{
		size_t n = array->bytes - at < PIECE ? array->bytes - at : PIECE;

		FT_TRY(ft_read_at(fd, buffer, n, offset + at, path));
		FT_TRY(ops->copy_to_device(stream, (char *) array->data + at, buffer, n));
		FT_TRY(ops->stream_synchronize(stream));
	}
	return FT_OK;
}

ft_status
ft_device_arrays_read(const char *path, const ft_device_array *arrays, int n, const ft_ops *ops,
					  ft_stream *stream)
{
	void *buffer;
	uint64_t offset;
	ft_status status;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return ft_fail_errno("could not open \"%s\"", path);
	status = ft_alloc(&buffer, PIECE, 1);
	if (status == FT_OK)
		status = check_header(fd, path, arrays, n, &offset);
	for (int i = 0; status == FT_OK && i < n; i++)
	{
		status = read_array(fd, path, &arrays[i], offset, buffer, ops, stream);
		offset += arrays[i].bytes;
	}
	free(buffer);
	close(fd);
	return status;
}
