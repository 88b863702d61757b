/*
 * simd.h: vectors of VW floats, for the instruction set the file is compiled for.
 *
 * The kernels (*_kernel.h) are written once in these terms and compiled three
 * times, by kernels_avx512.c, kernels_avx2.c and kernels_portable.c.
 */
#ifndef FT_CPU_SIMD_H
#define FT_CPU_SIMD_H

#include "tensor.h"

#include <float.h>
#include <math.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define VW 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define VW 8
#else
#define VW 4
#endif

typedef float vf __attribute__((vector_size(VW * 4)));
typedef int32_t vi __attribute__((vector_size(VW * 4)));
typedef uint32_t vu __attribute__((vector_size(VW * 4)));
typedef uint16_t vh __attribute__((vector_size(VW * 2)));
typedef float vf_unaligned __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef uint32_t vu_unaligned __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef uint16_t vh_unaligned __attribute__((vector_size(VW * 2), aligned(2), may_alias));

/* The loop that follows is unrolled N times, so that its arrays are registers; not with sanitizers,
 * whose checks of each step take a compiler minutes then. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNROLL(n)
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define UNROLL(n)
#endif
#endif
#ifndef UNROLL
#define PRAGMA(text) _Pragma(#text)
#define UNROLL(n) PRAGMA(GCC unroll n)
#endif

#define INLINE static inline __attribute__((always_inline, unused))

INLINE vf
v_load(const float *p)
{
	return *(const vf_unaligned *) p;
}

INLINE void
v_store(float *p, vf v)
{
	*(vf_unaligned *) p = v;
}

INLINE vf
v_set1(float x)
{
#if VW == 16
	return (vf) _mm512_set1_ps(x);
#elif VW == 8
	return (vf) _mm256_set1_ps(x);
#else
	return (vf){x, x, x, x};
#endif
}

INLINE vf
v_zero(void)
{
	return (vf){0};
}

/* a · b + c, rounded once where the instruction set has it. */
INLINE vf
v_fma(vf a, vf b, vf c)
{
#if VW == 16
	return (vf) _mm512_fmadd_ps((__m512) a, (__m512) b, (__m512) c);
#elif VW == 8
	return (vf) _mm256_fmadd_ps((__m256) a, (__m256) b, (__m256) c);
#else
	return a * b + c;
#endif
}

INLINE vf
v_sqrt(vf x)
{
#if VW == 16
	return (vf) _mm512_sqrt_ps((__m512) x);
#elif VW == 8
	return (vf) _mm256_sqrt_ps((__m256) x);
#else
	for (int j = 0; j < VW; j++)
		x[j] = sqrtf(x[j]);
	return x;
#endif
}

/* The larger; where either is NaN, the second. */
INLINE vf
v_max(vf a, vf b)
{
#if VW == 16
	return (vf) _mm512_max_ps((__m512) a, (__m512) b);
#elif VW == 8
	return (vf) _mm256_max_ps((__m256) a, (__m256) b);
#else
	vi greater = a > b;

	return (vf) (((vi) a & greater) | ((vi) b & ~greater));
#endif
}

/* The smaller; where either is NaN, the second. */
INLINE vf
v_min(vf a, vf b)
{
#if VW == 16
	return (vf) _mm512_min_ps((__m512) a, (__m512) b);
#elif VW == 8
	return (vf) _mm256_min_ps((__m256) a, (__m256) b);
#else
	vi less = a < b;

	return (vf) (((vi) a & less) | ((vi) b & ~less));
#endif
}

/* x where a >= b, else 0. */
INLINE vf
v_keep_ge(vf x, vf a, vf b)
{
#if VW == 16
	return (vf) _mm512_mask_mov_ps(
		(__m512) x, _mm512_cmp_ps_mask((__m512) a, (__m512) b, _CMP_LT_OQ), _mm512_setzero_ps());
#else
	vi below = a < b;

	return (vf) ((vi) x & ~below);
#endif
}

/* First n lanes from memory, the others `fill`; 0 <= n <= VW. */
INLINE vf
v_load_n(const float *p, int64_t n, float fill)
{
#if VW == 16
	return (vf) _mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16) ((1u << n) - 1), p);
#else
	float lane[VW];

	for (int i = 0; i < VW; i++)
		lane[i] = i < n ? p[i] : fill;
	return v_load(lane);
#endif
}

INLINE void
v_store_n(float *p, vf v, int64_t n)
{
#if VW == 16
	_mm512_mask_storeu_ps(p, (__mmask16) ((1u << n) - 1), (__m512) v);
#else
	float lane[VW];

	v_store(lane, v);
	for (int i = 0; i < n; i++)
		p[i] = lane[i];
#endif
}

INLINE vf
v_from_bf16(const uint16_t *p)
{
#if VW == 16
	__m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p));

	return (vf) _mm512_slli_epi32(wide, 16);
#elif VW == 8
	__m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p));

	return (vf) _mm256_slli_epi32(wide, 16);
#else
	return (vf) (__builtin_convertvector(*(const vh_unaligned *) p, vu) << 16);
#endif
}

/* Round to nearest, ties to even; NaN stays NaN, as ft_f32_to_bf16. */
INLINE void
v_to_bf16(uint16_t *p, vf v)
{
	vu u = (vu) v;
	vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
	vu quiet = (u >> 16) | 0x40;
	vu nan = (vu) ((vi) (u & 0x7fffffff) > (vi) ((vu){0} + 0x7f800000));
	vu bits = (rounded & ~nan) | (quiet & nan);

#if VW == 16
	_mm256_storeu_si256((__m256i *) p, _mm512_cvtepi32_epi16((__m512i) bits));
#else
	*(vh_unaligned *) p = __builtin_convertvector(bits, vh);
#endif
}

INLINE vf
v_from_f16(const uint16_t *p)
{
#if VW == 16
	return (vf) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p));
#elif VW == 8
	return (vf) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p));
#else
	float lane[VW];

	for (int i = 0; i < VW; i++)
		lane[i] = ft_f16_to_f32(p[i]);
	return v_load(lane);
#endif
}

INLINE vf
v_from_i8(const int8_t *p)
{
#if VW == 16
	return (vf) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p)));
#elif VW == 8
	return (vf) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p)));
#else
	return (vf){p[0], p[1], p[2], p[3]};
#endif
}

/* The bits of each byte that `mask` has, shifted right. */
INLINE vf
v_from_bits(const uint8_t *p, const int shift, const int mask)
{
#if VW == 16
	__m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) p));

	return (vf) _mm512_cvtepi32_ps((__m512i) (((vu) wide >> shift) & (uint32_t) mask));
#elif VW == 8
	__m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) p));

	return (vf) _mm256_cvtepi32_ps((__m256i) (((vu) wide >> shift) & (uint32_t) mask));
#else
	return (vf){(float) (p[0] >> shift & mask), (float) (p[1] >> shift & mask),
				(float) (p[2] >> shift & mask), (float) (p[3] >> shift & mask)};
#endif
}

INLINE vf
v_from_u8(const uint8_t *p)
{
	return v_from_bits(p, 0, 255);
}

INLINE vf
v_from_low_nibbles(const uint8_t *p)
{
	return v_from_bits(p, 0, 15);
}

INLINE vf
v_from_high_nibbles(const uint8_t *p)
{
	return v_from_bits(p, 4, 15);
}

INLINE vf
v_to_float(vu v)
{
#if VW == 16
	return (vf) _mm512_cvtepi32_ps((__m512i) v);
#elif VW == 8
	return (vf) _mm256_cvtepi32_ps((__m256i) v);
#else
	return __builtin_convertvector((vi) v, vf);
#endif
}

INLINE vu
v_words(const uint8_t *p)
{
	return *(const vu_unaligned *) p;
}

/* Elements i .. i + VW of a row of either type. */
INLINE vf
v_load_as(const void *p, int64_t i, bool bf16)
{
	return bf16 ? v_from_bf16((const uint16_t *) p + i) : v_load((const float *) p + i);
}

INLINE void
v_store_as(void *p, int64_t i, vf v, bool bf16)
{
	if (bf16)
		v_to_bf16((uint16_t *) p + i, v);
	else
		v_store((float *) p + i, v);
}

/* The same for the last n < VW elements. */
INLINE vf
v_load_as_n(const void *p, int64_t i, int64_t n, bool bf16)
{
	float lane[VW] = {0};

	if (!bf16)
		return v_load_n((const float *) p + i, n, 0);
	for (int64_t j = 0; j < n; j++)
		lane[j] = ft_bf16_to_f32(((const uint16_t *) p)[i + j]);
	return v_load(lane);
}

INLINE void
v_store_as_n(void *p, int64_t i, vf v, int64_t n, bool bf16)
{
	uint16_t lane[VW];

	if (!bf16)
	{
		v_store_n((float *) p + i, v, n);
		return;
	}
	v_to_bf16(lane, v);
	memcpy((uint16_t *) p + i, lane, (size_t) n * 2);
}

/* Sum of the lanes, always as the same tree. */
INLINE float
v_sum(vf v)
{
	float lane[VW];

	v_store(lane, v);
	for (int width = VW / 2; width > 0; width /= 2)
		for (int i = 0; i < width; i++)
			lane[i] += lane[i + width];
	return lane[0];
}

INLINE float
v_sum_max(vf v)
{
	float lane[VW];

	v_store(lane, v);
	for (int width = VW / 2; width > 0; width /= 2)
		for (int i = 0; i < width; i++)
			lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
	return lane[0];
}

/*
 * e^x to about one unit in the last place: x = n ln 2 + r with |r| <= ln 2 / 2,
 * e^r by a polynomial of degree 6 fitted for the least relative error (3e-9).
 * Below -87.3 the result is 0, above 88.3 it stays at 2.3e38 (callers give
 * x <= 0 or only divide by the result); NaN stays NaN.
 */
INLINE vf
v_exp(vf x)
{
	const vf low = v_set1(-87.3f);
	const vf magic = v_set1(12582912.0f); /* 1.5 · 2^23: adding it rounds to an integer */
	vf clamped = v_max(low, v_min(v_set1(88.3f), x));
	vf shifted = v_fma(clamped, v_set1(1.44269504088896341f), magic);
	vf n = shifted - magic;
	vf r = v_fma(n, v_set1(-0.693359375f), clamped);
	vf p = v_set1(1.3814598e-3f);
	vf scale = (vf) (((vi) shifted << 23) + 0x3f800000);

	r = v_fma(n, v_set1(2.12194440e-4f), r);
	p = v_fma(p, r, v_set1(8.3687166e-3f));
	p = v_fma(p, r, v_set1(4.1668389e-2f));
	p = v_fma(p, r, v_set1(1.6666521e-1f));
	p = v_fma(p, r, v_set1(0.49999994f));
	p = v_fma(p, r * r, r);
	p = v_fma(p, scale, scale);
	return v_keep_ge(p, x, low);
}

#endif
