/*
 * digest.h: SHA-256 of files, by which bases and adapters are known.
 */
#ifndef FT_DIGEST_H
#define FT_DIGEST_H

#include "status.h"

#include <stddef.h>
#include <stdint.h>

#define FT_DIGEST_HEX 65 /* 64 hex digits and NUL */

/* Of everything an open file holds, read by position: the descriptor's own offset is not used.  The
 * message of a failure does not name the file. */
ft_status ft_digest_fd(int fd, char hex[FT_DIGEST_HEX]);
/* Of a file by name; messages name it. */
ft_status ft_digest_file(const char *path, char hex[FT_DIGEST_HEX]);
/* Of several open files in this order, each as: length of its name (8 bytes, big-endian), name,
 * length of its contents, contents.  FT_CORRUPT when one has not as many bytes as is said. */
typedef struct ft_digest_file_entry
{
	const char *name;
	int fd;
	uint64_t size;
} ft_digest_file_entry;
ft_status ft_digest_files(const ft_digest_file_entry *files, size_t n, char hex[FT_DIGEST_HEX]);
ft_status ft_digest_bytes(const void *bytes, size_t n, char hex[FT_DIGEST_HEX]);
/* Of two pieces of memory, one after the other, as its bytes. */
ft_status ft_digest_pair(const void *first, size_t n_first, const void *second, size_t n_second,
						 uint8_t sum[32]);

#endif
