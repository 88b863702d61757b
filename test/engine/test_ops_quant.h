/*
 * test_ops_quant.h: random matrices of every stored type, with their values in
 * f64 by the formats' definitions (ENGINE.md's blocks, GGUF's layout).
 */
#ifndef TEST_OPS_QUANT_H
#define TEST_OPS_QUANT_H

#include "test_ops_common.h"

static const ft_dtype stored_types[] = {FT_F32,  FT_F16,  FT_BF16, FT_Q4_0, FT_Q4_1,
										FT_Q5_0, FT_Q5_1, FT_Q8_0, FT_Q6_K};
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

#endif
