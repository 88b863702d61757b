/*
 * buckets.h: numbers by keys, found with one look into memory.
 *
 * A key has one bucket, a cache line of 8 places.  What a full bucket does not hold has to be
 * looked for in another way: so no choice of keys makes it slow, and what is looked for otherwise
 * had better be found in O(log n).
 */
#ifndef FT_BUCKETS_H
#define FT_BUCKETS_H

#include "status.h"

#include <stddef.h>
#include <stdint.h>

#define FT_BUCKET 8
#define FT_BUCKET_EMPTY UINT64_MAX
#define FT_BUCKET_KEY_BITS 40
#define FT_BUCKET_NUMBER_BITS 24

typedef struct ft_buckets
{
	uint64_t *places; /* key << FT_BUCKET_NUMBER_BITS | number; those of a bucket from its front */
	int shift;        /* of a hash, which says the bucket */
} ft_buckets;

/* What was found: the number, or one of these. */
#define FT_BUCKET_NONE (-1)
#define FT_BUCKET_UNKNOWN (-2)

/* Empty, with room for n keys; zero-initialise `buckets` before, and free it after.  FT_NO_MEMORY.
 */
ft_status ft_buckets_create(ft_buckets *buckets, size_t n);
void ft_buckets_free(ft_buckets *buckets);

/* key below 2^40 - 1, number below 2^24; the first of several with one key is found. */
void ft_buckets_put(ft_buckets *buckets, uint64_t key, uint32_t number);

static inline uint64_t *
ft_bucket_of(const ft_buckets *buckets, uint64_t key)
{
	return buckets->places + FT_BUCKET * ((key * 0x9e3779b97f4a7c15u) >> buckets->shift);
}

static inline int32_t
ft_buckets_find(const ft_buckets *buckets, uint64_t key)
{
	const uint64_t *bucket = ft_bucket_of(buckets, key);

	for (int k = 0; k < FT_BUCKET; k++)
	{
		if (bucket[k] >> FT_BUCKET_NUMBER_BITS == key)
			return (int32_t) (bucket[k] & (((uint64_t) 1 << FT_BUCKET_NUMBER_BITS) - 1));
		if (bucket[k] == FT_BUCKET_EMPTY)
			return FT_BUCKET_NONE;
	}
	return FT_BUCKET_UNKNOWN;
}

#endif
