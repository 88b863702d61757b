/*
 * digest.h: SHA-256 of files, by which bases and adapters are known.
 */
#ifndef FT_DIGEST_H
#define FT_DIGEST_H

#include "status.h"

#include <stddef.h>

#define FT_DIGEST_HEX 65 /* 64 hex digits and NUL */

/* Of everything an open file holds, read by position: the descriptor's own offset is not used.  The
 * message of a failure does not name the file. */
ft_status ft_digest_fd(int fd, char hex[FT_DIGEST_HEX]);
/* Of a file by name; messages name it. */
ft_status ft_digest_file(const char *path, char hex[FT_DIGEST_HEX]);
ft_status ft_digest_bytes(const void *bytes, size_t n, char hex[FT_DIGEST_HEX]);

#endif
