/*
 * adamw_kernel.h: AdamW with moments of 8 bits (small_moments.h), a block at a time.
 */
#ifndef FT_CPU_ADAMW_KERNEL_H
#define FT_CPU_ADAMW_KERNEL_H

#include "kernels.h"
#include "simd.h"

typedef struct adamw_block
{
	_Alignas(64) float param[FT_MOMENT_BLOCK];
	_Alignas(64) float grad[FT_MOMENT_BLOCK];
	_Alignas(64) float first[FT_MOMENT_BLOCK];
	_Alignas(64) float second[FT_MOMENT_BLOCK];
} adamw_block;

/* The block's values of parameters and gradient; zero behind the last one. */
static void
adamw_load(adamw_block *b, const void *param, bool bf16, const float *grad, int64_t at, int64_t n)
{
	if (n < FT_MOMENT_BLOCK)
		memset(b, 0, sizeof *b);
	memcpy(b->grad, grad + at, (size_t) n * sizeof(float));
	if (!bf16)
		memcpy(b->param, (const float *) param + at, (size_t) n * sizeof(float));
	for (int64_t i = 0; bf16 && i < n; i++)
		b->param[i] = ft_bf16_to_f32(((const uint16_t *) param)[at + i]);
}

static void
adamw_store(const adamw_block *b, void *param, bool bf16, uint32_t noise, int64_t at, int64_t n)
{
	if (!bf16)
		memcpy((float *) param + at, b->param, (size_t) n * sizeof(float));
	for (int64_t i = 0; bf16 && i < n; i++)
		((uint16_t *) param)[at + i] = ft_bf16_by_chance(b->param[i], ft_mix(noise + (uint32_t) i));
}

static uint32_t
adamw_exponent(const float *moments)
{
	uint32_t largest = 0;

	for (int i = 0; i < FT_MOMENT_BLOCK; i++)
	{
		uint32_t bits = ft_float_bits(moments[i]) & 0x7fffffffu;

		largest = bits > largest ? bits : largest;
	}
	return ft_moment_exponent(largest);
}

static void
adamw_moments(adamw_block *b, const uint8_t *m, const uint8_t *v, uint32_t m_exponent,
			  uint32_t v_exponent, int64_t n)
{
	for (int64_t i = 0; i < n; i++)
		b->first[i] = ft_first_moment(m[i], m_exponent);
	for (int64_t i = 0; i < n; i++)
		b->second[i] = ft_second_moment(v[i], v_exponent);
}

static void
adamw_encode(const adamw_block *b, uint8_t *m, uint8_t *v, uint32_t m_exponent, uint32_t v_exponent,
			 uint32_t m_noise, uint32_t v_noise, int64_t n)
{
	for (int64_t i = 0; i < n; i++)
		m[i] = ft_first_moment_code(b->first[i], m_exponent, ft_mix(m_noise + (uint32_t) i));
	for (int64_t i = 0; i < n; i++)
		v[i] = ft_second_moment_code(b->second[i], v_exponent, ft_mix(v_noise + (uint32_t) i));
}

static void
adamw_8bit(void *param, bool bf16, uint8_t *m, uint8_t *v, uint8_t *m_exponents,
		   uint8_t *v_exponents, const float *grad, int64_t first, int64_t blocks, int64_t n,
		   const ft_adamw *s)
{
	double correction1 = 1 - pow(s->beta1, (double) s->step);
	double correction2 = 1 - pow(s->beta2, (double) s->step);
	vf step = v_set1((float) (s->learning_rate / correction1));
	vf root = v_set1((float) (1 / sqrt(correction2)));
	vf keep = v_set1((float) (1 - (double) s->learning_rate * s->weight_decay));
	vf beta1 = v_set1(s->beta1);
	vf beta2 = v_set1(s->beta2);
	vf rest1 = v_set1((float) (1 - (double) s->beta1));
	vf rest2 = v_set1((float) (1 - (double) s->beta2));
	vf scale = v_set1(s->grad_scale);
	vf eps = v_set1(s->eps);
	adamw_block b;

	for (int64_t block = first; block < first + blocks; block++)
	{
		int64_t at = block * FT_MOMENT_BLOCK;
		int64_t here = n - at < FT_MOMENT_BLOCK ? n - at : FT_MOMENT_BLOCK;

		adamw_load(&b, param, bf16, grad, at, here);
		adamw_moments(&b, m + at, v + at, m_exponents[block], v_exponents[block], here);
		for (int i = 0; i < FT_MOMENT_BLOCK; i += VW)
		{
			vf g = v_load(b.grad + i) * scale;
			vf m1 = v_fma(beta1, v_load(b.first + i), rest1 * g);
			vf m2 = v_fma(beta2, v_load(b.second + i), rest2 * g * g);

			v_store(b.first + i, m1);
			v_store(b.second + i, m2);
			v_store(b.param + i,
					v_load(b.param + i) * keep - step * m1 / v_fma(v_sqrt(m2), root, eps));
		}
		m_exponents[block] = (uint8_t) adamw_exponent(b.first);
		v_exponents[block] = (uint8_t) adamw_exponent(b.second);
		adamw_encode(&b, m + at, v + at, m_exponents[block], v_exponents[block],
					 ft_block_noise(s->noise, block, FT_NOISE_FIRST),
					 ft_block_noise(s->noise, block, FT_NOISE_SECOND), here);
		adamw_store(&b, param, bf16, ft_block_noise(s->noise, block, FT_NOISE_PARAM), at, here);
	}
}

#endif
