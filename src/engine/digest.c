/*
 * digest.c: SHA-256 by libcrypto.
 */
#include "digest.h"

#include "buffer.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define CHUNK ((size_t) 1 << 20)

static ft_status
finish(EVP_MD_CTX *context, char hex[FT_DIGEST_HEX])
{
	static const char digits[] = "0123456789abcdef";
	unsigned char sum[EVP_MAX_MD_SIZE];
	unsigned n = 0;

	if (EVP_DigestFinal_ex(context, sum, &n) != 1 || n != 32)
		return ft_fail(FT_INTERNAL, "could not compute a SHA-256 digest");
	for (unsigned i = 0; i < n; i++)
	{
		hex[2 * i] = digits[sum[i] >> 4];
		hex[2 * i + 1] = digits[sum[i] & 15];
	}
	hex[FT_DIGEST_HEX - 1] = '\0';
	return FT_OK;
}

static ft_status
start(EVP_MD_CTX **context)
{
	*context = EVP_MD_CTX_new();
	if (*context == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory: a SHA-256 context wanted");
	if (EVP_DigestInit_ex(*context, EVP_sha256(), NULL) != 1)
	{
		EVP_MD_CTX_free(*context);
		return ft_fail(FT_INTERNAL, "could not start a SHA-256 digest");
	}
	return FT_OK;
}

/* *size is how much there was. */
static ft_status
add_file(EVP_MD_CTX *context, int fd, unsigned char *chunk, uint64_t *size)
{
	off_t at = 0;

	for (;;)
	{
		ssize_t got = pread(fd, chunk, CHUNK, at);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return ft_fail_errno("could not read at offset %lld", (long long) at);
		if (got == 0)
		{
			*size = (uint64_t) at;
			return FT_OK;
		}
		if (EVP_DigestUpdate(context, chunk, (size_t) got) != 1)
			return ft_fail(FT_INTERNAL, "could not compute a SHA-256 digest");
		at += got;
	}
}

ft_status
ft_digest_fd(int fd, char hex[FT_DIGEST_HEX])
{
	EVP_MD_CTX *context;
	void *chunk;
	uint64_t size;
	ft_status status;

	FT_TRY(ft_alloc(&chunk, CHUNK, 1));
	status = start(&context);
	if (status == FT_OK)
	{
		status = add_file(context, fd, chunk, &size);
		if (status == FT_OK)
			status = finish(context, hex);
		EVP_MD_CTX_free(context);
	}
	free(chunk);
	return status;
}

static ft_status
add_length(EVP_MD_CTX *context, uint64_t length)
{
	unsigned char bytes[8];

	for (int i = 0; i < 8; i++)
		bytes[i] = (unsigned char) (length >> (56 - 8 * i));
	if (EVP_DigestUpdate(context, bytes, sizeof bytes) != 1)
		return ft_fail(FT_INTERNAL, "could not compute a SHA-256 digest");
	return FT_OK;
}

static ft_status
add_entry(EVP_MD_CTX *context, const ft_digest_file_entry *file, unsigned char *chunk)
{
	uint64_t size;

	FT_TRY(add_length(context, strlen(file->name)));
	if (EVP_DigestUpdate(context, file->name, strlen(file->name)) != 1)
		return ft_fail(FT_INTERNAL, "could not compute a SHA-256 digest");
	FT_TRY(add_length(context, file->size));
	FT_TRY(add_file(context, file->fd, chunk, &size));
	if (size != file->size)
		return ft_fail(FT_CORRUPT, "has %llu bytes, it had %llu", (unsigned long long) size,
					   (unsigned long long) file->size);
	return FT_OK;
}

ft_status
ft_digest_files(const ft_digest_file_entry *files, size_t n, char hex[FT_DIGEST_HEX])
{
	EVP_MD_CTX *context;
	void *chunk;
	ft_status status;

	FT_TRY(ft_alloc(&chunk, CHUNK, 1));
	status = start(&context);
	if (status == FT_OK)
	{
		for (size_t i = 0; i < n && status == FT_OK; i++)
		{
			status = add_entry(context, &files[i], chunk);
			if (status != FT_OK)
				status = ft_context(status, "file \"%s\": ", files[i].name);
		}
		if (status == FT_OK)
			status = finish(context, hex);
		EVP_MD_CTX_free(context);
	}
	free(chunk);
	return status;
}

ft_status
ft_digest_file(const char *path, char hex[FT_DIGEST_HEX])
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ft_status status;

	if (fd < 0)
		return ft_fail_errno("could not open file \"%s\"", path);
	status = ft_digest_fd(fd, hex);
	close(fd);
	return status == FT_OK ? FT_OK : ft_context(status, "file \"%s\": ", path);
}

ft_status
ft_digest_bytes(const void *bytes, size_t n, char hex[FT_DIGEST_HEX])
{
	EVP_MD_CTX *context;
	ft_status status;

	FT_TRY(start(&context));
	if (EVP_DigestUpdate(context, bytes, n) == 1)
		status = finish(context, hex);
	else
		status = ft_fail(FT_INTERNAL, "could not compute a SHA-256 digest");
	EVP_MD_CTX_free(context);
	return status;
}

ft_status
ft_digest_pair(const void *first, size_t n_first, const void *second, size_t n_second,
			   uint8_t sum[32])
{
	EVP_MD_CTX *context;
	unsigned n = 0;
	bool done;

	FT_TRY(start(&context));
	done = EVP_DigestUpdate(context, first, n_first) == 1 &&
		   EVP_DigestUpdate(context, second, n_second) == 1 &&
		   EVP_DigestFinal_ex(context, sum, &n) == 1 && n == 32;
	EVP_MD_CTX_free(context);
	return done ? FT_OK : ft_fail(FT_INTERNAL, "could not compute a SHA-256 digest");
}
