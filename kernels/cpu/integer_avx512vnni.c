/*
 * integer_avx512vnni.c: the kernels of integer.h for AVX-512 VNNI.
 *
 * vpdpbusd adds four products of an unsigned and a signed byte to each of 16
 * lanes: lane r is row r of the packed group, the four bytes are neighbouring
 * columns, and the activations' four bytes are the same for all lanes.
 */
#include "integer.h"

#include "pack.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Rows that share what was read of a block. */
#define MAX_ROWS 8

/* --- rounding --- */

/* [0 2 4 6 1 3 5 7] of every eight bytes */
INLINE __m256i
split_order(__m256i q)
{
	const __m256i order = _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15, 0,
										   2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);

	return _mm256_shuffle_epi8(q, order);
}

static void
round_row(ft_rounded *rounded, int64_t row, const float *x)
{
	int64_t blocks = rounded->k / FT_INTEGER_BLOCK;
	int8_t *natural = rounded->natural + row * rounded->k;
	int8_t *split = rounded->split + row * rounded->k;

	for (int64_t b = 0; b < blocks; b++, x += FT_INTEGER_BLOCK)
	{
		__m512 low = _mm512_loadu_ps(x);
		__m512 high = _mm512_loadu_ps(x + 16);
		float largest =
			_mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
		float scale = largest / 127;
		__m512 inverse = _mm512_set1_ps(largest > 0 ? 127 / largest : 0);
		__m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
		__m512i c = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
		__m256i q = _mm256_set_m128i(_mm512_cvtsepi32_epi8(c), _mm512_cvtsepi32_epi8(a));

		_mm256_storeu_si256((__m256i *) (natural + b * FT_INTEGER_BLOCK), q);
		_mm256_storeu_si256((__m256i *) (split + b * FT_INTEGER_BLOCK), split_order(q));
		rounded->scale[row * blocks + b] = scale;
		rounded->sum[row * blocks + b] =
			scale * (float) _mm512_reduce_add_epi32(_mm512_add_epi32(a, c));
	}
}

/* --- products --- */

/* The same four bytes in every lane. */
INLINE __m512i
four(const int8_t *q)
{
	int32_t bytes;

	memcpy(&bytes, q, sizeof bytes);
	return _mm512_set1_epi32(bytes);
}

INLINE __m512
from_f16(const uint8_t *p)
{
	return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p));
}

typedef enum layout
{
	NIBBLES, /* u from 0 to 15 in four words */
	HIGH,    /* u from 0 to 31: a word of high bits before them */
	BYTES    /* u from 0 to 255 in eight words, stored as u - 128 */
} layout;

/* 16 in every byte whose column's bit in h is set; the columns are those of the low or the high
 * nibbles of word j. */
INLINE __m512i
high_bits(__m512i h, const int j, const bool odd)
{
	const __m512i byte = _mm512_set1_epi32(0x01010101 * j);
	const __m512i lane = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
	const __m512i bits = _mm512_set1_epi32(odd ? (int) 0x80200802 : 0x40100401);
	__m512i copies = _mm512_shuffle_epi8(h, _mm512_add_epi8(byte, lane));

	return _mm512_maskz_set1_epi8(_mm512_test_epi8_mask(copies, bits), 16);
}

/* A block's values as vectors of unsigned bytes, in the order of the activations. */
INLINE void
read_words(__m512i u[8], const uint8_t *words, const layout kind)
{
	const __m512i nibble = _mm512_set1_epi8(15);
	const __m512i flip = _mm512_set1_epi8((char) 0x80);

	if (kind == BYTES)
	{
#pragma GCC unroll 8
		for (int j = 0; j < 8; j++)
			u[j] = _mm512_xor_si512(_mm512_loadu_si512(words + 64 * j), flip);
		return;
	}
#pragma GCC unroll 4
	for (int j = 0; j < 4; j++)
	{
		__m512i w = _mm512_loadu_si512(words + 64 * (j + (kind == HIGH)));

		u[2 * j] = _mm512_and_si512(w, nibble);
		u[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi32(w, 4), nibble);
		if (kind == HIGH)
		{
			__m512i h = _mm512_loadu_si512(words);

			u[2 * j] = _mm512_or_si512(u[2 * j], high_bits(h, j, false));
			u[2 * j + 1] = _mm512_or_si512(u[2 * j + 1], high_bits(h, j, true));
		}
	}
}

/* Rows [row, row + n) of x; n is a constant. */
INLINE void
multiply_rows(float *y, int64_t ldy, const uint8_t *group, const ft_rounded *x, int64_t row,
			  const int n, const layout kind, const bool minimum, const float base)
{
	const int bytes = (minimum ? 64 : 32) + (kind == NIBBLES ? 256 : kind == HIGH ? 320 : 512);
	const int64_t blocks = x->k / FT_INTEGER_BLOCK;
	const int8_t *q = (kind == BYTES ? x->natural : x->split) + row * x->k;
	const float *scale = x->scale + row * blocks;
	const float *sum = x->sum + row * blocks;
	__m512 total[MAX_ROWS];

#pragma GCC unroll 8
	for (int i = 0; i < n; i++)
		total[i] = _mm512_setzero_ps();
	for (int64_t b = 0; b < blocks; b++, group += bytes, q += FT_INTEGER_BLOCK)
	{
		__m512 d = from_f16(group);
		__m512 m = minimum ? from_f16(group + 32) : _mm512_mul_ps(d, _mm512_set1_ps(base));
		__m512i u[8];

		if (n == 1)
		{
#pragma GCC unroll 9
			for (int line = 0; line < bytes; line += 64)
				__builtin_prefetch(group + 8 * bytes + line);
		}
		read_words(u, group + (minimum ? 64 : 32), kind);
#pragma GCC unroll 8
		for (int i = 0; i < n; i++)
		{
			const int8_t *columns = q + i * x->k;
			__m512i products = _mm512_setzero_si512();
			__m512i others = _mm512_setzero_si512();

#pragma GCC unroll 4
			for (int j = 0; j < 4; j++)
			{
				products = _mm512_dpbusd_epi32(products, u[2 * j], four(columns + 8 * j));
				others = _mm512_dpbusd_epi32(others, u[2 * j + 1], four(columns + 8 * j + 4));
			}
			products = _mm512_add_epi32(products, others);
			total[i] = _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(scale[i * blocks + b])),
									   _mm512_cvtepi32_ps(products), total[i]);
			total[i] = _mm512_fmadd_ps(m, _mm512_set1_ps(sum[i * blocks + b]), total[i]);
		}
	}
#pragma GCC unroll 8
	for (int i = 0; i < n; i++)
		_mm512_storeu_ps(y + i * ldy, total[i]);
}

#define MULTIPLY(type, kind, minimum, base)                                                       \
	static void multiply_##type(float *y, int64_t ldy, const uint8_t *group, const ft_rounded *x, \
								int64_t row, int64_t rows)                                        \
	{                                                                                             \
		for (; rows >= 8; rows -= 8, row += 8, y += 8 * ldy)                                      \
			multiply_rows(y, ldy, group, x, row, 8, kind, minimum, base);                         \
		if (rows & 4)                                                                             \
		{                                                                                         \
			multiply_rows(y, ldy, group, x, row, 4, kind, minimum, base);                         \
			row += 4;                                                                             \
			y += 4 * ldy;                                                                         \
		}                                                                                         \
		if (rows & 2)                                                                             \
		{                                                                                         \
			multiply_rows(y, ldy, group, x, row, 2, kind, minimum, base);                         \
			row += 2;                                                                             \
			y += 2 * ldy;                                                                         \
		}                                                                                         \
		if (rows & 1)                                                                             \
			multiply_rows(y, ldy, group, x, row, 1, kind, minimum, base);                         \
	}

MULTIPLY(q4_0, NIBBLES, false, -8)
MULTIPLY(q4_1, NIBBLES, true, 0)
MULTIPLY(q5_0, HIGH, false, -16)
MULTIPLY(q5_1, HIGH, true, 0)
MULTIPLY(q8_0, BYTES, false, -128)

const ft_integer_kernels ft_integer_avx512vnni = {
	.round = round_row,
	.multiply = {[FT_Q4_0] = multiply_q4_0,
				 [FT_Q4_1] = multiply_q4_1,
				 [FT_Q5_0] = multiply_q5_0,
				 [FT_Q5_1] = multiply_q5_1,
				 [FT_Q8_0] = multiply_q8_0},
};
