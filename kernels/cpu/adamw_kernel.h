/*
 * adamw_kernel.h: AdamW with moments of 8 bits (small_moments.h), a block at a time.
 */
#ifndef FT_CPU_ADAMW_KERNEL_H
#define FT_CPU_ADAMW_KERNEL_H

#include "kernels.h"
#include "simd.h"

typedef uint8_t vb __attribute__((vector_size(VW)));

/* --- small_moments.h's functions, VW values at a time: to the bit the same --- */

INLINE vu
vu_set1(uint32_t x)
{
	return (vu) v_set1(ft_bits_float(x));
}

/* a where the mask is set, else b. */
INLINE vu
vu_choose(vi mask, vu a, vu b)
{
	return ((vu) mask & a) | (~(vu) mask & b);
}

INLINE vu
vu_bytes(const uint8_t *p)
{
	vb bytes;

	memcpy(&bytes, p, sizeof bytes);
	return __builtin_convertvector(bytes, vu);
}

INLINE void
vu_store_bytes(uint8_t *p, vu v)
{
	vb bytes = __builtin_convertvector(v, vb);

	memcpy(p, &bytes, sizeof bytes);
}

/* ft_mix of the numbers from `from` on. */
INLINE vu
vu_mix(uint32_t from)
{
	vu x;

	for (int j = 0; j < VW; j++)
		x[j] = (uint32_t) j;
	x += from;
	x ^= x >> 16;
	x *= 0x21f0aaadu;
	x ^= x >> 15;
	x *= 0xd35a2d97u;
	return x ^ x >> 15;
}

/* ft_moment_magnitude's bits */
INLINE vu
moment_magnitudes(vu code, uint32_t top, uint32_t exponent)
{
	vu bits = code + (exponent << 3);
	vi is_zero = (code == 0) | ((vi) bits < (int32_t) top + 8);

	return ~(vu) is_zero & ((bits - top) << 20);
}

INLINE vf
first_moments(vu code, uint32_t exponent)
{
	return (vf) (moment_magnitudes(code & 127u, 127, exponent) | (code & 128u) << 24);
}

INLINE vf
second_moments(vu code, uint32_t exponent)
{
	return (vf) moment_magnitudes(code, 255, exponent);
}

INLINE vu
second_moment_codes(vf x, uint32_t exponent, vu random)
{
	vu bits = (vu) x;
	vi code = (vi) ((bits + (random >> 12)) >> 20) + (255 - (int32_t) (exponent << 3));

	code = (vi) vu_choose(code < 1, vu_set1(1), (vu) code);
	code = (vi) vu_choose(code > 255, vu_set1(255), (vu) code);
	return ~(vu) (bits == 0) & (vu) code;
}

INLINE vu
first_moment_codes(vf x, uint32_t exponent, vu random)
{
	vu bits = (vu) x & 0x7fffffffu;
	int32_t base = 127 - (int32_t) (exponent << 3);
	vi code = (vi) ((bits + (random >> 12)) >> 20) + base;
	vi is_small = (vi) (bits >> 20) + base < 1;
	vf chance = __builtin_convertvector((vi) (random >> 8), vf) * 0x1p-24f;
	vi is_one = chance * ft_moment_magnitude(1, 127, exponent) < (vf) bits;

	code = (vi) vu_choose(code > 127, vu_set1(127), (vu) code);
	return vu_choose(is_small, (vu) is_one & 1u, (vu) code) | ((vu) x >> 24 & 128u);
}

/* --- a block --- */

/* What all blocks have in common. */
typedef struct adamw_step
{
	vf step;
	vf root;
	vf keep;
	vf beta1;
	vf beta2;
	vf rest1;
	vf rest2;
	vf scale;
	vf eps;
} adamw_step;

static adamw_step
adamw_step_of(const ft_adamw *s)
{
	double correction1 = 1 - pow(s->beta1, (double) s->step);
	double correction2 = 1 - pow(s->beta2, (double) s->step);

	return (adamw_step){
		.step = v_set1((float) (s->learning_rate / correction1)),
		.root = v_set1((float) (1 / sqrt(correction2))),
		.keep = v_set1((float) (1 - (double) s->learning_rate * s->weight_decay)),
		.beta1 = v_set1(s->beta1),
		.beta2 = v_set1(s->beta2),
		.rest1 = v_set1((float) (1 - (double) s->beta1)),
		.rest2 = v_set1((float) (1 - (double) s->beta2)),
		.scale = v_set1(s->grad_scale),
		.eps = v_set1(s->eps),
	};
}

/* The exponent of a block whose magnitudes' bits have these largest ones. */
INLINE uint8_t
block_exponent(vi largest)
{
	int32_t result = 0;

	for (int j = 0; j < VW; j++)
		result = largest[j] > result ? largest[j] : result;
	return (uint8_t) ft_moment_exponent((uint32_t) result);
}

/* VW parameters from i on, f32 or bf16. */
INLINE vf
adamw_param(const void *param, bool bf16, int i)
{
	if (!bf16)
		return v_load((const float *) param + i);
	return (vf) (__builtin_convertvector(*(const vh_unaligned *) ((const uint16_t *) param + i), vu)
				 << 16);
}

INLINE void
adamw_store_param(void *param, bool bf16, int i, vf value, uint32_t noise)
{
	vu bits;

	if (!bf16)
	{
		v_store((float *) param + i, value);
		return;
	}
	bits = (vu) value + (vu_mix(noise + (uint32_t) i) >> 16);
	*(vh_unaligned *) ((uint16_t *) param + i) = __builtin_convertvector(bits >> 16, vh);
}

/* A whole block in place: all pointers are to its first value, the exponents to its own. */
INLINE void
adamw_block(void *param, bool bf16, uint8_t *m, uint8_t *v, uint8_t *m_exponent,
			uint8_t *v_exponent, const float *grad, const adamw_step *s, const uint32_t noise[3])
{
	_Alignas(64) float first[FT_MOMENT_BLOCK];
	_Alignas(64) float second[FT_MOMENT_BLOCK];
	vi first_largest = {0};
	vi second_largest = {0};

	for (int i = 0; i < FT_MOMENT_BLOCK; i += VW)
	{
		vf g = v_load(grad + i) * s->scale;
		vf m1 = v_fma(s->beta1, first_moments(vu_bytes(m + i), *m_exponent), s->rest1 * g);
		vf m2 = v_fma(s->beta2, second_moments(vu_bytes(v + i), *v_exponent), s->rest2 * g * g);
		vi m1_bits = (vi) m1 & 0x7fffffff;
		vi m2_bits = (vi) m2 & 0x7fffffff;
		vf value = adamw_param(param, bf16, i) * s->keep -
				   s->step * m1 / v_fma(v_sqrt(m2), s->root, s->eps);

		v_store(first + i, m1);
		v_store(second + i, m2);
		first_largest = (vi) vu_choose(m1_bits > first_largest, (vu) m1_bits, (vu) first_largest);
		second_largest =
			(vi) vu_choose(m2_bits > second_largest, (vu) m2_bits, (vu) second_largest);
		adamw_store_param(param, bf16, i, value, noise[FT_NOISE_PARAM]);
	}
	*m_exponent = block_exponent(first_largest);
	*v_exponent = block_exponent(second_largest);
	for (int i = 0; i < FT_MOMENT_BLOCK; i += VW)
	{
		vu m_random = vu_mix(noise[FT_NOISE_FIRST] + (uint32_t) i);
		vu v_random = vu_mix(noise[FT_NOISE_SECOND] + (uint32_t) i);

		vu_store_bytes(m + i, first_moment_codes(v_load(first + i), *m_exponent, m_random));
		vu_store_bytes(v + i, second_moment_codes(v_load(second + i), *v_exponent, v_random));
	}
}

/* The last block, of n values: in a copy with zeros behind them. */
static void
adamw_rest(void *param, bool bf16, uint8_t *m, uint8_t *v, uint8_t *m_exponent, uint8_t *v_exponent,
		   const float *grad, int64_t n, const adamw_step *s, const uint32_t noise[3])
{
	float whole_param[FT_MOMENT_BLOCK] = {0};
	float whole_grad[FT_MOMENT_BLOCK] = {0};
	uint8_t whole_m[FT_MOMENT_BLOCK] = {0};
	uint8_t whole_v[FT_MOMENT_BLOCK] = {0};
	size_t bytes = (size_t) n * (bf16 ? sizeof(uint16_t) : sizeof(float));

	memcpy(whole_param, param, bytes);
	memcpy(whole_grad, grad, (size_t) n * sizeof(float));
	memcpy(whole_m, m, (size_t) n);
	memcpy(whole_v, v, (size_t) n);
	adamw_block(whole_param, bf16, whole_m, whole_v, m_exponent, v_exponent, whole_grad, s, noise);
	memcpy(param, whole_param, bytes);
	memcpy(m, whole_m, (size_t) n);
	memcpy(v, whole_v, (size_t) n);
}

static void
adamw_8bit(void *param, bool bf16, uint8_t *m, uint8_t *v, uint8_t *m_exponents,
		   uint8_t *v_exponents, const float *grad, int64_t first, int64_t blocks, int64_t n,
		   const ft_adamw *s)
{
	adamw_step step = adamw_step_of(s);

	for (int64_t i = first; i < first + blocks; i++)
	{
		int64_t at = i * FT_MOMENT_BLOCK;
		void *here = (char *) param + (size_t) at * (bf16 ? sizeof(uint16_t) : sizeof(float));
		uint32_t noise[3];

		for (int kind = 0; kind < 3; kind++)
			noise[kind] = ft_block_noise(s->noise, i, kind);
		if (n - at < FT_MOMENT_BLOCK)
			adamw_rest(here, bf16, m + at, v + at, m_exponents + i, v_exponents + i, grad + at,
					   n - at, &step, noise);
		else if (bf16)
			adamw_block(here, true, m + at, v + at, m_exponents + i, v_exponents + i, grad + at,
						&step, noise);
		else
			adamw_block(here, false, m + at, v + at, m_exponents + i, v_exponents + i, grad + at,
						&step, noise);
	}
}

#endif
