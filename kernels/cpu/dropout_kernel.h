/*
 * dropout_kernel.h: dropout of one row, its random words made VW blocks at a time.
 *
 * The words are those of Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel
 * Random Numbers: As Easy as 1, 2, 3", SC 2011).  A block's four words serve
 * four columns that stand 16 apart (ops.h), so that neighbours in a vector of
 * blocks are neighbours in the row whatever the width of a vector is.
 */
#include "simd.h"

#define PHILOX_ROUNDS 10
#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u
#define PHILOX_W1 0xBB67AE85u

/* Both halves of the products. */
INLINE void
v_multiply(vu a, uint32_t b, vu *high, vu *low)
{
#if VW == 16
	__m512i m = _mm512_set1_epi32((int) b);
	__m512i even = _mm512_mul_epu32((__m512i) a, m);
	__m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i) a, 32), m);

	*high = (vu) _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
	*low = (vu) _mm512_mask_mov_epi32(_mm512_slli_epi64(odd, 32), 0x5555, even);
#elif VW == 8
	__m256i m = _mm256_set1_epi32((int) b);
	__m256i even = _mm256_mul_epu32((__m256i) a, m);
	__m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i) a, 32), m);

	*high = (vu) _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
	*low = (vu) _mm256_blend_epi32(_mm256_slli_epi64(odd, 32), even, 0x55);
#else
	for (int i = 0; i < VW; i++)
	{
		uint64_t product = (uint64_t) a[i] * b;

		(*high)[i] = (uint32_t) (product >> 32);
		(*low)[i] = (uint32_t) product;
	}
#endif
}

INLINE void
v_philox(vu c[4], uint64_t key)
{
	uint32_t k0 = (uint32_t) key;
	uint32_t k1 = (uint32_t) (key >> 32);

	for (int i = 0; i < PHILOX_ROUNDS; i++)
	{
		vu high0 = {0};
		vu low0 = {0};
		vu high1 = {0};
		vu low1 = {0};

		v_multiply(c[0], PHILOX_M0, &high0, &low0);
		v_multiply(c[2], PHILOX_M1, &high1, &low1);
		c[0] = high1 ^ c[1] ^ k0;
		c[1] = low1;
		c[2] = high0 ^ c[3] ^ k1;
		c[3] = low0;
		k0 += PHILOX_W0;
		k1 += PHILOX_W1;
	}
}

/* Columns first … first + VW of a row, first a whole number of vectors, by their random words. */
INLINE void
drop_vector(void *y, const bool y_bf16, const void *x, const bool x_bf16, const bool add,
			uint32_t threshold, float scale, int64_t i, int64_t n, vu words)
{
	const bool full = i + VW <= n;
	const int64_t left = n - i;
	vi sign = (vi) ((vu){0} + 0x80000000u);
	vi keep = ((vi) words ^ sign) >= ((vi) ((vu){0} + threshold) ^ sign);
	vf v = full ? v_load_as(x, i, x_bf16) : v_load_as_n(x, i, left, x_bf16);

	v = (vf) ((vi) (v * v_set1(scale)) & keep);
	if (add)
		v += full ? v_load_as(y, i, y_bf16) : v_load_as_n(y, i, left, y_bf16);
	if (full)
		v_store_as(y, i, v, y_bf16);
	else
		v_store_as_n(y, i, v, left, y_bf16);
}

INLINE void
dropout_as(void *y, const bool y_bf16, const void *x, const bool x_bf16, const bool add,
		   const uint32_t place[3], uint64_t key, uint32_t threshold, float scale, int64_t n)
{
	for (int64_t block = 0; block / 16 * 64 < n; block += VW)
	{
		int64_t first = block / 16 * 64 + block % 16;
		uint32_t counter[VW];
		vu c[4] = {{0}, (vu){0} + place[0], (vu){0} + place[1], (vu){0} + place[2]};

		for (int j = 0; j < VW; j++)
			counter[j] = (uint32_t) (block + j);
		c[0] = *(const vu_unaligned *) counter;
		v_philox(c, key);
		for (int w = 0; w < 4 && first + 16 * w < n; w++)
			drop_vector(y, y_bf16, x, x_bf16, add, threshold, scale, first + 16 * w, n, c[w]);
	}
}

static void
dropout(void *y, bool y_bf16, const void *x, bool x_bf16, bool add, const uint32_t place[3],
		uint64_t key, uint32_t threshold, float scale, int64_t n)
{
	if (add)
		x_bf16 ? dropout_as(y, false, x, true, true, place, key, threshold, scale, n)
			   : dropout_as(y, false, x, false, true, place, key, threshold, scale, n);
	else if (y_bf16)
		x_bf16 ? dropout_as(y, true, x, true, false, place, key, threshold, scale, n)
			   : dropout_as(y, true, x, false, false, place, key, threshold, scale, n);
	else
		x_bf16 ? dropout_as(y, false, x, true, false, place, key, threshold, scale, n)
			   : dropout_as(y, false, x, false, false, place, key, threshold, scale, n);
}
