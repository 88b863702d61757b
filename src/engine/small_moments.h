/*
 * small_moments.h: AdamW's moments in 8 bits, and rounding by chance.
 *
 * A block of FT_MOMENT_BLOCK moments shares an exponent, that of the smallest
 * power of two that none of them exceeds.  Below it a code is a small float of
 * three mantissa bits: neighbours are 6 to 12 % apart over the whole range, which
 * is 2^-31 for second moments (unsigned) and 2^-15 for first ones (signed).  A
 * linear code would make zero of all that are far below a block's largest, and a
 * second moment of zero divides by nothing.  As the shared factor is a power of
 * two, a moment that does not change keeps its code when the block's largest
 * does.
 *
 * A second moment changes by a thousandth at a step, far less than a code's, so
 * rounding to the nearest would keep it where it is for ever.  All rounding here is
 * up or down by chance, in proportion to what is lost, which is right in the mean
 * (as bf16 weights are: Gupta et al., "Deep Learning with Limited Numerical
 * Precision", 2015).  The numbers drawn are a function of the step's noise and
 * the value's place alone.
 */
#ifndef FT_SMALL_MOMENTS_H
#define FT_SMALL_MOMENTS_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define FT_ANYWHERE static __host__ __device__ inline
#else
#define FT_ANYWHERE static inline
#endif

#define FT_MOMENT_BLOCK 256

/* What a value needs numbers for. */
enum
{
	FT_NOISE_PARAM,
	FT_NOISE_FIRST,
	FT_NOISE_SECOND
};

/* A bijection of 32 bits that leaves no trace of the input's order (Wellons, "Prospecting for Hash
 * Functions", 2018). */
FT_ANYWHERE uint32_t
ft_mix(uint32_t x)
{
	x ^= x >> 16;
	x *= 0x21f0aaadu;
	x ^= x >> 15;
	x *= 0xd35a2d97u;
	return x ^ x >> 15;
}

/* The seed of a block's numbers of one kind; value i's is ft_mix(seed + i). */
FT_ANYWHERE uint32_t
ft_block_noise(const uint32_t noise[4], int64_t block, int kind)
{
	uint32_t x = ft_mix((uint32_t) block ^ noise[0]) + noise[1 + kind];

	return ft_mix(x + (uint32_t) ((uint64_t) block >> 32));
}

FT_ANYWHERE uint32_t
ft_float_bits(float x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof bits);
	return bits;
}

FT_ANYWHERE float
ft_bits_float(uint32_t bits)
{
	float x;

	memcpy(&x, &bits, sizeof x);
	return x;
}

/* The exponent of a block whose largest moment, by magnitude, has these bits: 2^(result − 127), or
 * 0 where all are zero. */
FT_ANYWHERE uint32_t
ft_moment_exponent(uint32_t largest)
{
	uint32_t exponent = (largest + 0x7fffffu) >> 23;

	return exponent < 254 ? exponent : 254;
}

/* The magnitude of code 1 to `top`, where `top` stands for the block's power of two. */
FT_ANYWHERE float
ft_moment_magnitude(uint32_t code, uint32_t top, uint32_t exponent)
{
	uint32_t bits = code + (exponent << 3);

	return code == 0 || bits < top + 8 ? 0.0f : ft_bits_float((bits - top) << 20);
}

FT_ANYWHERE float
ft_second_moment(uint8_t code, uint32_t exponent)
{
	return ft_moment_magnitude(code, 255, exponent);
}

FT_ANYWHERE float
ft_first_moment(uint8_t code, uint32_t exponent)
{
	float magnitude = ft_moment_magnitude(code & 127u, 127, exponent);

	return (code & 128u) != 0 ? -magnitude : magnitude;
}

/* What is not zero never becomes zero. */
FT_ANYWHERE uint8_t
ft_second_moment_code(float x, uint32_t exponent, uint32_t random)
{
	uint32_t bits = ft_float_bits(x);
	int32_t code = (int32_t) ((bits + (random >> 12)) >> 20) + 255 - (int32_t) (exponent << 3);

	if (bits == 0)
		return 0;
	return (uint8_t) (code < 1 ? 1 : code > 255 ? 255 : code);
}

/* Below the smallest magnitude it is that or zero, by chance, too. */
FT_ANYWHERE uint8_t
ft_first_moment_code(float x, uint32_t exponent, uint32_t random)
{
	uint32_t bits = ft_float_bits(x) & 0x7fffffffu;
	uint32_t sign = ft_float_bits(x) >> 24 & 128u;
	int32_t base = 127 - (int32_t) (exponent << 3);
	int32_t code = (int32_t) ((bits + (random >> 12)) >> 20) + base;

	if ((int32_t) (bits >> 20) + base < 1)
	{
		float smallest = ft_moment_magnitude(1, 127, exponent);

		code = (float) (random >> 8) * 0x1p-24f * smallest < ft_bits_float(bits);
	}
	return (uint8_t) (sign | (uint32_t) (code > 127 ? 127 : code));
}

/* bf16, up or down by chance. */
FT_ANYWHERE uint16_t
ft_bf16_by_chance(float x, uint32_t random)
{
	return (uint16_t) ((ft_float_bits(x) + (random >> 16)) >> 16);
}

#endif
