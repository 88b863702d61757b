/*
 * buckets.c: numbers by keys, found with one look into memory.
 */
#include "buckets.h"

#include <stdlib.h>
#include <string.h>

/* Two to four keys a bucket on average: one in twenty is full at most, where keys are not chosen to
 * make it so. */
ft_status
ft_buckets_create(ft_buckets *buckets, size_t n)
{
	size_t bytes = FT_BUCKET * sizeof(uint64_t);
	int bits = 1;
	void *memory;

	while (((size_t) 4 << bits) < n)
		bits++;
	if (posix_memalign(&memory, bytes, bytes << bits) != 0)
		return ft_fail(FT_NO_MEMORY, "out of memory for a table of %zu keys", n);
	memset(memory, 0xff, bytes << bits);
	buckets->places = memory;
	buckets->shift = 64 - bits;
	return FT_OK;
}

void
ft_buckets_free(ft_buckets *buckets)
{
	free(buckets->places);
	buckets->places = NULL;
}

void
ft_buckets_put(ft_buckets *buckets, uint64_t key, uint32_t number)
{
	uint64_t *bucket = ft_bucket_of(buckets, key);

	for (int k = 0; k < FT_BUCKET; k++)
	{
		if (bucket[k] == FT_BUCKET_EMPTY)
		{
			bucket[k] = key << FT_BUCKET_NUMBER_BITS | number;
			return;
		}
	}
}
