/*
 * philox.h: counter-based random numbers (Philox 4x32-10).
 *
 * Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011.  A number is a function of key and counter alone: there is no state
 * to save, and a draw does not depend on what else was drawn before it.
 */
#ifndef FT_PHILOX_H
#define FT_PHILOX_H

#include <stdint.h>

/* Four random words for the 64-bit key and the 128-bit counter (high, low). */
static inline void
ft_philox(uint64_t key, uint64_t high, uint64_t low, uint32_t out[4])
{
	uint32_t k0 = (uint32_t) key;
	uint32_t k1 = (uint32_t) (key >> 32);
	uint32_t c0 = (uint32_t) low;
	uint32_t c1 = (uint32_t) (low >> 32);
	uint32_t c2 = (uint32_t) high;
	uint32_t c3 = (uint32_t) (high >> 32);

	for (int round = 0; round < 10; round++)
	{
		uint64_t p0 = (uint64_t) 0xD2511F53u * c0;
		uint64_t p1 = (uint64_t) 0xCD9E8D57u * c2;

		c0 = (uint32_t) (p1 >> 32) ^ c1 ^ k0;
		c1 = (uint32_t) p1;
		c2 = (uint32_t) (p0 >> 32) ^ c3 ^ k1;
		c3 = (uint32_t) p0;
		k0 += 0x9E3779B9u;
		k1 += 0xBB67AE85u;
	}
	out[0] = c0;
	out[1] = c1;
	out[2] = c2;
	out[3] = c3;
}

/* A word as a number in [0, 1), of 24 bits: every value is exact in f32. */
static inline float
ft_uniform(uint32_t word)
{
	return (float) (word >> 8) * 0x1p-24f;
}

#endif
