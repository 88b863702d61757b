/*
 * digest.c: SHA-256 by libcrypto.
 */
#include "digest.h"

#include "buffer.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
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

static ft_status
add_file(EVP_MD_CTX *context, int fd, unsigned char *chunk)
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
			return FT_OK;
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
	ft_status status;

	FT_TRY(ft_alloc(&chunk, CHUNK, 1));
	status = start(&context);
	if (status == FT_OK)
	{
		status = add_file(context, fd, chunk);
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
