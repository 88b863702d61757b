/*
 * api_key.h: the key that requests over TCP must show.
 */
#ifndef FT_API_KEY_H
#define FT_API_KEY_H

#include "status.h"

#include <stdbool.h>
#include <stdint.h>

/* Only a digest of it is kept. */
typedef struct ft_api_key
{
	uint8_t sum[32];
} ft_api_key;

/* The first line of a file that only its owner may read (FT_INVALID), at least 16 characters. */
ft_status ft_api_key_read(const char *path, ft_api_key *key);

/* Does a request's Authorization (NULL: it has none) show the key, as "Bearer KEY"?  Takes as long
 * whatever it shows. */
bool ft_api_key_shown(const ft_api_key *key, const char *authorization);

#endif
