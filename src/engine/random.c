/*
 * random.c: Philox4x32-10.
 */
#include "random.h"

#define ROUNDS 10
#define MULTIPLIER_0 0xD2511F53u
#define MULTIPLIER_1 0xCD9E8D57u
#define WEYL_0 0x9E3779B9u
#define WEYL_1 0xBB67AE85u

void
ft_philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4])
{
	uint32_t c0 = (uint32_t) counter;
	uint32_t c1 = (uint32_t) (counter >> 32);
	uint32_t c2 = (uint32_t) stream;
	uint32_t c3 = (uint32_t) (stream >> 32);
	uint32_t k0 = (uint32_t) seed;
	uint32_t k1 = (uint32_t) (seed >> 32);

	for (int i = 0; i < ROUNDS; i++)
	{
		uint64_t p0 = (uint64_t) MULTIPLIER_0 * c0;
		uint64_t p1 = (uint64_t) MULTIPLIER_1 * c2;

		c0 = (uint32_t) (p1 >> 32) ^ c1 ^ k0;
		c1 = (uint32_t) p1;
		c2 = (uint32_t) (p0 >> 32) ^ c3 ^ k1;
		c3 = (uint32_t) p0;
		k0 += WEYL_0;
		k1 += WEYL_1;
	}
	out[0] = c0;
	out[1] = c1;
	out[2] = c2;
	out[3] = c3;
}

float
ft_random_uniform(uint64_t seed, uint64_t stream, uint64_t counter)
{
	uint32_t words[4];

	/* four draws share a block */
	ft_philox(seed, stream, counter >> 2, words);
	return (float) (words[counter & 3] >> 8) * 0x1p-24f;
}

uint64_t
ft_random_below(uint64_t seed, uint64_t stream, uint64_t counter, uint64_t n)
{
	uint32_t words[4];
	uint64_t bits;

	ft_philox(seed, stream, counter, words);
	bits = (uint64_t) words[1] << 32 | words[0];
	return (uint64_t) (((unsigned __int128) bits * n) >> 64);
}

void
ft_random_shuffle(uint64_t seed, uint64_t stream, uint32_t *items, size_t n)
{
	for (size_t i = n; i > 1; i--)
	{
		size_t j = (size_t) ft_random_below(seed, stream, i, i);
		uint32_t item = items[j];

		items[j] = items[i - 1];
		items[i - 1] = item;
	}
}
