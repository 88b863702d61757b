/*
 * test_ops_quant.h: random matrices of every stored type, with their values in
 * f64 by the formats' definitions (ENGINE.md's blocks, GGUF's layout).
 */
#ifndef TEST_OPS_QUANT_H
#define TEST_OPS_QUANT_H

#include "test_ops_common.h"

static const ft_dtype stored_types[] = {FT_F32,  FT_F16,  FT_BF16, FT_Q4_0, FT_Q4_1,
										FT_Q5_0, FT_Q5_1, FT_Q8_0, FT_Q2_K, FT_Q3_K,
										FT_Q4_K, FT_Q5_K, FT_Q6_K};
static const int n_stored_types = sizeof stored_types / sizeof *stored_types;

/* A stored matrix in host memory. */
typedef struct stored
{
	ft_mat mat;
	double *value;
} stored;

/* A half-precision number of about that size, either sign. */
static uint16_t
random_half(double size)
{
	int exponent = 15 + ilogb(size);

	return (uint16_t) ((random_bits() & 0x8000) | (unsigned) exponent << 10 |
					   (random_bits() & 0x3ff));
}

static uint16_t
get_half(const uint8_t *p)
{
	return (uint16_t) (p[0] | p[1] << 8);
}

static void
put_half(uint8_t *p, uint16_t h)
{
	p[0] = (uint8_t) h;
	p[1] = (uint8_t) (h >> 8);
}

/* 32 values: d, perhaps m, perhaps 32 high bits, 16 bytes of nibbles. */
static void
nibble_values(double *y, const uint8_t *p, bool minimum, bool high, int offset)
{
	double d = half_value(get_half(p));
	double m = minimum ? half_value(get_half(p + 2)) : 0;
	const uint8_t *bits = p + (minimum ? 4 : 2);
	const uint8_t *nibbles = bits + (high ? 4 : 0);

	for (int i = 0; i < 32; i++)
	{
		int q = i < 16 ? nibbles[i] % 16 : nibbles[i - 16] / 16;

		if (high && bits[i / 8] >> i % 8 & 1)
			q += 16;
		y[i] = (q - offset) * d + m;
	}
}

/* 256 values: ql[128], qh[64], i8 scales[16], d.  In each half of 128, value l + 32 j (l < 32, j <
 * 4) has its low bits in ql[l + 32 (j mod 2)] (low nibble for j < 2) and its high ones in qh[l] >>
 * 2 j. */
static void
q6_k_values(double *y, const uint8_t *p)
{
	double d = half_value(get_half(p + 208));

	for (int half = 0; half < 2; half++)
		for (int j = 0; j < 4; j++)
			for (int l = 0; l < 32; l++)
			{
				int byte = p[64 * half + l + 32 * (j % 2)];
				int low = j < 2 ? byte % 16 : byte / 16;
				int high = p[128 + 32 * half + l] >> 2 * j & 3;
				int at = 128 * half + 32 * j + l;

				y[at] = d * (int8_t) p[192 + at / 16] * (low + 16 * high - 32);
			}
}

/* 256 values: 16 × (scale | min << 4), qs[64], d, dmin.  Value l + 32 j of half n of 128 is in bits
 * 2 j of qs[32 n + l]. */
static void
q2_k_values(double *y, const uint8_t *p)
{
	double d = half_value(get_half(p + 80));
	double m = half_value(get_half(p + 82));

	for (int at = 0; at < 256; at++)
	{
		int q = p[16 + at / 128 * 32 + at % 32] >> at % 128 / 32 * 2 & 3;

		y[at] = d * (p[at / 16] & 15) * q - m * (p[at / 16] >> 4);
	}
}

/* 256 values: hmask[32], qs[64] as q2_k's, scales[12], d.  Bit l of hmask[i] set: nothing is taken
 * off value i + 32 l, else 4.  Six bits a scale: byte i of 0-7 has the low nibbles of scales i and
 * i + 8, byte 8 + i the high pairs of scales i, i + 4, i + 8 and i + 12. */
static void
q3_k_values(double *y, const uint8_t *p)
{
	double d = half_value(get_half(p + 108));
	const uint8_t *s = p + 96;

	for (int at = 0; at < 256; at++)
	{
		int q = p[32 + at / 128 * 32 + at % 32] >> at % 128 / 32 * 2 & 3;
		int i = at / 16;
		int scale = (i < 8 ? s[i] & 15 : s[i - 8] >> 4) + 16 * (s[8 + i % 4] >> i / 4 * 2 & 3);

		y[at] = d * (scale - 32) * (p[at % 32] >> at / 32 & 1 ? q : q - 4);
	}
}

/* 256 values: d, dmin, scales[12], with `high` qh[32], qs[128].  Of each 64 values the first 32 are
 * low nibbles; bit l of qh[i] is the fifth of value i + 32 l. */
static void
q4_k_values(double *y, const uint8_t *p, bool high)
{
	double d = half_value(get_half(p));
	double m = half_value(get_half(p + 2));
	const uint8_t *s = p + 4;
	const uint8_t *qs = p + (high ? 48 : 16);

	for (int at = 0; at < 256; at++)
	{
		int i = at / 32;
		int q = i % 2 == 0 ? qs[at / 64 * 32 + at % 32] & 15 : qs[at / 64 * 32 + at % 32] >> 4;
		int scale = i < 4 ? s[i] & 63 : (s[i + 4] & 15) + 16 * (s[i - 4] >> 6);
		int min = i < 4 ? s[i + 4] & 63 : (s[i + 4] >> 4) + 16 * (s[i] >> 6);

		if (high && p[16 + at % 32] >> i & 1)
			q += 16;
		y[at] = d * scale * q - m * min;
	}
}

static void
block_random(uint8_t *p, ft_dtype dtype, double *y)
{
	int bytes = ft_dtype_get(dtype)->block_bytes;

	for (int i = 0; i < bytes; i++)
		p[i] = (uint8_t) random_bits();
	switch (dtype)
	{
		case FT_F32:
		{
			float f = (float) random_normal();

			memcpy(p, &f, sizeof f);
			y[0] = f;
			break;
		}
		case FT_F16:
			put_half(p, random_half(1));
			y[0] = half_value(get_half(p));
			break;
		case FT_BF16:
			put_half(p, bf16_bits(random_normal()));
			y[0] = bf16_value(get_half(p));
			break;
		case FT_Q4_0:
			put_half(p, random_half(0.1));
			nibble_values(y, p, false, false, 8);
			break;
		case FT_Q4_1:
			put_half(p, random_half(0.1));
			put_half(p + 2, random_half(0.5));
			nibble_values(y, p, true, false, 0);
			break;
		case FT_Q5_0:
			put_half(p, random_half(0.05));
			nibble_values(y, p, false, true, 16);
			break;
		case FT_Q5_1:
			put_half(p, random_half(0.05));
			put_half(p + 2, random_half(0.5));
			nibble_values(y, p, true, true, 0);
			break;
		case FT_Q8_0:
			put_half(p, random_half(0.01));
			for (int i = 0; i < 32; i++)
				y[i] = (int8_t) p[2 + i] * half_value(get_half(p));
			break;
		case FT_Q2_K:
			put_half(p + 80, random_half(0.02));
			put_half(p + 82, random_half(0.05));
			q2_k_values(y, p);
			break;
		case FT_Q3_K:
			put_half(p + 108, random_half(0.01));
			q3_k_values(y, p);
			break;
		case FT_Q4_K:
		case FT_Q5_K:
			put_half(p, random_half(0.002));
			put_half(p + 2, random_half(0.01));
			q4_k_values(y, p, dtype == FT_Q5_K);
			break;
		default: /* FT_Q6_K */
			put_half(p + 208, random_half(0.001));
			q6_k_values(y, p);
			break;
	}
}

static stored
stored_random(ft_dtype dtype, int64_t rows, int64_t cols)
{
	const ft_dtype_info *type = ft_dtype_get(dtype);
	int64_t blocks = rows * cols / type->block_values;
	uint8_t *data = malloc((size_t) (blocks * type->block_bytes) + 1);
	stored m = {.mat = ft_mat_make(data, dtype, rows, cols)};

	m.value = malloc((size_t) (rows * cols) * sizeof *m.value + 1);
	for (int64_t i = 0; i < blocks; i++)
		block_random(data + i * type->block_bytes, dtype, m.value + i * type->block_values);
	return m;
}

static void
stored_free(stored *m)
{
	free(m->mat.data);
	free(m->value);
}

/* Serving rounds a row to 8 bits, in blocks of 32 columns, where all n parts of a weight are
 * quantised and numerics allow it. */
UNUSED static bool
serving_rounds(const stored *parts, int n)
{
	if (strcmp(info.name, "cpu") != 0 || info.numerics != FT_NUMERICS_FAST)
		return false;
	for (int i = 0; i < n; i++)
		if (ft_dtype_get(parts[i].mat.dtype)->block_values < 32)
			return false;
	return true;
}

/* What is left of n values then. */
UNUSED static void
round_blocks(double *value, int64_t n)
{
	for (; n > 0; n -= 32, value += 32)
	{
		float largest = 0;

		for (int i = 0; i < 32; i++)
			largest = fmaxf(largest, (float) fabs(value[i]));
		for (int i = 0; i < 32; i++)
			value[i] = largest > 0 ? nearbyintf((float) value[i] * (127 / largest)) *
										 (double) (largest * (1.0f / 127))
								   : 0;
	}
}

#endif
