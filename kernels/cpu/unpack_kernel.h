/*
 * unpack_kernel.h: packed groups (pack.h) to panels of f32.
 *
 * The value is exact: q · d · scale fits 24 bits for every type here, so that with
 * a minimum it is rounded once, with or without a fused multiply-add.
 */
#include "simd.h"

#include "pack.h"

/* The bit of column 8 j + i in a word of bits (pack.h). */
#define HIGH_BIT(j, i) (8 * ((i) / 2) + FT_PACK_VECTOR(8 * (j) + (i)))
/* The lower bit of the pair of column 8 j + i, j < 2, in the word of 16 columns. */
#define PAIR_BIT(j, i) (8 * ((i) / 2) + 2 * FT_PACK_VECTOR(8 * (j) + (i)))

/* Float of the low four bits of every word. */
INLINE vf
v_nibble(vu v)
{
#if VW == 16
	const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

	return (vf) _mm512_permutexvar_ps((__m512i) v, table);
#else
	return v_to_float(v & 15);
#endif
}

/* Ask for what will be unpacked later.  In step with the unpacking itself, since a core waits for
 * about a dozen lines at a time. */
INLINE void
prefetch(const uint8_t *ahead, const int bytes)
{
#pragma GCC unroll 8
	for (int i = 0; i < bytes; i += 64)
		__builtin_prefetch(ahead + i);
}

/* 32 columns of nibbles: value = (q + base) · d + m; high bits and minimum by constant flags. */
INLINE void
unpack_nibbles(float *panel, const uint8_t *block, const bool minimum, const bool high,
			   const float base)
{
	const uint8_t *bits = block + (minimum ? 64 : 32);
	const uint8_t *words = bits + (high ? 64 : 0);

	for (int r = 0; r < FT_GROUP; r += VW)
	{
		vf d = v_from_f16((const uint16_t *) block + r);
		vf m = minimum ? v_from_f16((const uint16_t *) (block + 32) + r) : d * v_set1(base);
		vu h = high ? v_words(bits + r * 4) : (vu){0};

#pragma GCC unroll 4
		for (int j = 0; j < 4; j++)
		{
			vu w = v_words(words + j * 64 + r * 4);

#pragma GCC unroll 8
			for (int i = 0; i < 8; i++)
			{
				vf q;

				if (high)
					q = v_to_float(((w >> (4 * i)) & 15) | (((h >> HIGH_BIT(j, i)) & 1) << 4));
				else
					q = v_nibble(w >> (4 * i));
				v_store(panel + (8 * j + i) * FT_GROUP + r, v_fma(q, d, m));
			}
		}
	}
}

#define UNPACK_NIBBLES(type, dtype, minimum, high, base)                                    \
	static void unpack_##type(float *panel, const uint8_t *group, int64_t first, int64_t k, \
							  const uint8_t *ahead)                                         \
	{                                                                                       \
		const int bytes = (minimum ? 64 : 32) + (high ? 64 : 0) + 256;                      \
                                                                                            \
		group += first / 32 * bytes;                                                        \
		for (int64_t t = 0; t < k; t += 32, group += bytes, ahead += bytes)                 \
		{                                                                                   \
			prefetch(ahead, bytes);                                                         \
			unpack_nibbles(panel + t * FT_GROUP, group, minimum, high, base);               \
		}                                                                                   \
	}

UNPACK_NIBBLES(q4_0, FT_Q4_0, false, false, -8)
UNPACK_NIBBLES(q4_1, FT_Q4_1, true, false, 0)
UNPACK_NIBBLES(q5_0, FT_Q5_0, false, true, -16)
UNPACK_NIBBLES(q5_1, FT_Q5_1, true, true, 0)

static void
unpack_q8_0(float *panel, const uint8_t *group, int64_t first, int64_t k, const uint8_t *ahead)
{
	const int bytes = 32 + 512;

	group += first / 32 * bytes;
	for (int64_t t = 0; t < k; t += 32, group += bytes, ahead += bytes)
	{
		prefetch(ahead, bytes);
		for (int r = 0; r < FT_GROUP; r += VW)
		{
			vf d = v_from_f16((const uint16_t *) group + r);

			for (int j = 0; j < 8; j++)
			{
				vi w = (vi) v_words(group + 32 + j * 64 + r * 4);
				float *to = panel + (t + j / 2 * 8 + j % 2) * FT_GROUP + r;

#pragma GCC unroll 4
				for (int i = 0; i < 4; i++)
					v_store(to + 2 * i * FT_GROUP,
							v_to_float((vu) ((w << (24 - 8 * i)) >> 24)) * d);
			}
		}
	}
}

static void
unpack_q6_k(float *panel, const uint8_t *group, int64_t first, int64_t k, const uint8_t *ahead)
{
	const int bytes = 32 + 32 + 128 + 256;

	group += first / 32 * bytes;
	for (int64_t t = 0; t < k; t += 32, group += bytes, ahead += bytes)
	{
		prefetch(ahead, bytes);
		for (int r = 0; r < FT_GROUP; r += VW)
		{
			vf d = v_from_f16((const uint16_t *) group + r);

			for (int half = 0; half < 2; half++)
			{
				vf scale = d * v_from_i8((const int8_t *) group + 32 + 16 * half + r);
				vf offset = scale * v_set1(-32);
				vu h = v_words(group + 64 + half * 64 + r * 4);

#pragma GCC unroll 2
				for (int j = 0; j < 2; j++)
				{
					vu w = v_words(group + 192 + (2 * half + j) * 64 + r * 4);
					float *to = panel + (t + 16 * half + 8 * j) * FT_GROUP + r;

#pragma GCC unroll 8
					for (int i = 0; i < 8; i++)
					{
						vu q = ((w >> (4 * i)) & 15) | (((h >> PAIR_BIT(j, i)) & 3) << 4);

						v_store(to + i * FT_GROUP, v_fma(v_to_float(q), scale, offset));
					}
				}
			}
		}
	}
}

/* 32 columns of pairs of bits, each half of 16 with its own scale; q2_k has a minimum for each
 * half, q3_k a high bit for each column. */
INLINE void
unpack_pairs(float *panel, const uint8_t *block, const bool minimum)
{
	const uint8_t *scales = block + (minimum ? 64 : 32);
	const uint8_t *bits = scales + 32;
	const uint8_t *words = bits + (minimum ? 0 : 64);

	for (int r = 0; r < FT_GROUP; r += VW)
	{
		vf d = v_from_f16((const uint16_t *) block + r);
		vf m = minimum ? v_from_f16((const uint16_t *) (block + 32) + r) : d;
		vu h = minimum ? (vu){0} : v_words(bits + r * 4);

		for (int half = 0; half < 2; half++)
		{
			const uint8_t *at = scales + FT_GROUP * half + r;
			vf scale = d * (minimum ? v_from_low_nibbles(at) : v_from_i8((const int8_t *) at));
			vf offset = minimum ? m * -v_from_high_nibbles(at) : scale * v_set1(-4);
			vu w = v_words(words + half * 64 + r * 4);

#pragma GCC unroll 16
			for (int i = 0; i < 16; i++)
			{
				vu q = (w >> PAIR_BIT(i / 8, i % 8)) & 3;

				if (!minimum)
					q |= ((h >> HIGH_BIT(2 * half + i / 8, i % 8)) & 1) << 2;
				v_store(panel + (16 * half + i) * FT_GROUP + r,
						v_fma(v_to_float(q), scale, offset));
			}
		}
	}
}

/* 32 columns of nibbles with a scale and a minimum, high bits by a constant flag. */
INLINE void
unpack_scaled_nibbles(float *panel, const uint8_t *block, const bool high)
{
	const uint8_t *bits = block + 96;
	const uint8_t *words = bits + (high ? 64 : 0);

	for (int r = 0; r < FT_GROUP; r += VW)
	{
		vf d = v_from_f16((const uint16_t *) block + r) * v_from_u8(block + 64 + r);
		vf m = v_from_f16((const uint16_t *) (block + 32) + r) * -v_from_u8(block + 80 + r);
		vu h = high ? v_words(bits + r * 4) : (vu){0};

#pragma GCC unroll 4
		for (int j = 0; j < 4; j++)
		{
			vu w = v_words(words + j * 64 + r * 4);

#pragma GCC unroll 8
			for (int i = 0; i < 8; i++)
			{
				vf q;

				if (high)
					q = v_to_float(((w >> (4 * i)) & 15) | (((h >> HIGH_BIT(j, i)) & 1) << 4));
				else
					q = v_nibble(w >> (4 * i));
				v_store(panel + (8 * j + i) * FT_GROUP + r, v_fma(q, d, m));
			}
		}
	}
}

#define UNPACK_K(type, block_bytes, unpack, flag)                                           \
	static void unpack_##type(float *panel, const uint8_t *group, int64_t first, int64_t k, \
							  const uint8_t *ahead)                                         \
	{                                                                                       \
		const int bytes = block_bytes;                                                      \
                                                                                            \
		group += first / 32 * bytes;                                                        \
		for (int64_t t = 0; t < k; t += 32, group += bytes, ahead += bytes)                 \
		{                                                                                   \
			prefetch(ahead, bytes);                                                         \
			unpack(panel + t * FT_GROUP, group, flag);                                      \
		}                                                                                   \
	}

UNPACK_K(q2_k, 64 + 32 + 128, unpack_pairs, true)
UNPACK_K(q3_k, 32 + 32 + 64 + 128, unpack_pairs, false)
UNPACK_K(q4_k, 64 + 32 + 256, unpack_scaled_nibbles, false)
UNPACK_K(q5_k, 64 + 32 + 64 + 256, unpack_scaled_nibbles, true)

static void
unpack_f32(float *panel, const uint8_t *group, int64_t first, int64_t k, const uint8_t *ahead)
{
	const float *from = (const float *) group + first * FT_GROUP;

	for (int64_t t = 0; t < k * FT_GROUP; t += FT_GROUP)
	{
		prefetch(ahead + t * 4, 64);
		memcpy(panel + t, from + t, FT_GROUP * sizeof(float));
	}
}

static void
unpack_f16(float *panel, const uint8_t *group, int64_t first, int64_t k, const uint8_t *ahead)
{
	const uint16_t *from = (const uint16_t *) group + first * FT_GROUP;

	for (int64_t t = 0; t < k * FT_GROUP; t += FT_GROUP)
	{
		__builtin_prefetch(ahead + t * 2);
		for (int r = 0; r < FT_GROUP; r += VW)
			v_store(panel + t + r, v_from_f16(from + t + r));
	}
}

static void
unpack_bf16(float *panel, const uint8_t *group, int64_t first, int64_t k, const uint8_t *ahead)
{
	group += first / 2 * 64;
	for (int64_t t = 0; t + 2 <= k; t += 2, group += 64, ahead += 64)
	{
		prefetch(ahead, 64);
		for (int r = 0; r < FT_GROUP; r += VW)
		{
			vu pair = v_words(group + r * 4);

			v_store(panel + t * FT_GROUP + r, (vf) (pair << 16));
			v_store(panel + (t + 1) * FT_GROUP + r, (vf) (pair & 0xffff0000));
		}
	}
	if (k % 2 != 0)
		for (int r = 0; r < FT_GROUP; r += VW)
			v_store(panel + (k - 1) * FT_GROUP + r, (vf) (v_words(group + r * 4) << 16));
}
