/*
 * api_key.c: reading the key, and comparing what is shown with it.
 */
#include "api_key.h"

#include "digest.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define LEAST 16
#define MOST 1024

static ft_status
check_rights(int fd, const char *path)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		return ft_fail_errno("could not stat \"%s\"", path);
	if (!S_ISREG(st.st_mode))
		return ft_fail(FT_INVALID, "\"%s\" is no file", path);
	if (st.st_mode & (S_IRWXG | S_IRWXO))
		return ft_hint(ft_fail(FT_INVALID, "key file \"%s\" has group or world access", path),
					   "Take it away by chmod 600.");
	return FT_OK;
}

static ft_status
read_line(int fd, const char *path, char line[MOST + 1], size_t *length)
{
	ssize_t n = read(fd, line, MOST);

	if (n < 0)
		return ft_fail_errno("could not read \"%s\"", path);
	line[n] = '\0';
	*length = strcspn(line, "\r\n");
	if (*length < LEAST || *length == MOST)
		return ft_fail(FT_INVALID, "the key in \"%s\" has %zu characters, expected %d to %d", path,
					   *length, LEAST, MOST - 1);
	return FT_OK;
}

ft_status
ft_api_key_read(const char *path, ft_api_key *key)
{
	char line[MOST + 1];
	size_t length = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ft_status status;

	if (fd < 0)
		return ft_fail_errno("could not open \"%s\"", path);
	status = check_rights(fd, path);
	if (status == FT_OK)
		status = read_line(fd, path, line, &length);
	close(fd);
	if (status == FT_OK)
		status = ft_digest_pair(line, length, "", 0, key->sum);
	OPENSSL_cleanse(line, sizeof line);
	return status;
}

bool
ft_api_key_shown(const ft_api_key *key, const char *authorization)
{
	static const char scheme[] = "Bearer ";
	uint8_t sum[32];

	if (!authorization || strncasecmp(authorization, scheme, strlen(scheme)) != 0)
		return false;
	authorization += strlen(scheme);
	/* digests have one length and say nothing of how much of a key is right */
	return ft_digest_pair(authorization, strlen(authorization), "", 0, sum) == FT_OK &&
		   CRYPTO_memcmp(sum, key->sum, sizeof sum) == 0;
}
