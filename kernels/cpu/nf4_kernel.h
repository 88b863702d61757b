/*
 * nf4_kernel.h: NF4 codes (tensor.h) to f32.
 */
#include "simd.h"

static const float nf4_values[16] = FT_NF4_VALUES;

/* y[0 .. 2 VW) = the values of VW bytes, of each the high nibble's first, times scale. */
INLINE void
nf4_values_of(float *y, const uint8_t *codes, vf scale)
{
#if VW == 16
	__m512 table = _mm512_loadu_ps(nf4_values);
	__m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) codes));
	/* the instruction looks at the low four bits only */
	__m512 high = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table);
	__m512 low = _mm512_permutexvar_ps(bytes, table);
	__m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
	__m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));

	v_store(y, (vf) _mm512_permutex2var_ps(high, first, low) * scale);
	v_store(y + VW, (vf) _mm512_permutex2var_ps(high, second, low) * scale);
#elif VW == 8
	__m256 negative = _mm256_loadu_ps(nf4_values);
	__m256 positive = _mm256_loadu_ps(nf4_values + 8);
	__m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) codes));
	__m256i nibbles[2] = {_mm256_srli_epi32(bytes, 4), bytes};
	__m256 v[2];
	__m256 even;
	__m256 odd;

	for (int i = 0; i < 2; i++)
	{
		/* bit 3 of the code, as the sign that blending looks at */
		__m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(nibbles[i], 28));

		v[i] = _mm256_blendv_ps(_mm256_permutevar8x32_ps(negative, nibbles[i]),
								_mm256_permutevar8x32_ps(positive, nibbles[i]), upper);
	}
	even = _mm256_unpacklo_ps(v[0], v[1]);
	odd = _mm256_unpackhi_ps(v[0], v[1]);
	v_store(y, (vf) _mm256_permute2f128_ps(even, odd, 0x20) * scale);
	v_store(y + VW, (vf) _mm256_permute2f128_ps(even, odd, 0x31) * scale);
#else
	float v[2 * VW];

	for (int i = 0; i < VW; i++)
	{
		v[2 * i] = nf4_values[codes[i] >> 4];
		v[2 * i + 1] = nf4_values[codes[i] & 15];
	}
	v_store(y, v_load(v) * scale);
	v_store(y + VW, v_load(v + VW) * scale);
#endif
}

static void
nf4(float *y, const uint8_t *codes, const float *scales, int64_t blocks)
{
	for (int64_t b = 0; b < blocks; b++)
	{
		vf scale = v_set1(scales[b]);

#pragma GCC unroll 2
		for (int i = 0; i < FT_NF4_BLOCK; i += 2 * VW, y += 2 * VW, codes += VW)
			nf4_values_of(y, codes, scale);
	}
}
