/*
 * blocks.c: the blocks of stored types, value by value.
 *
 * The formats are GGUF's (ggml-common.h of ggml is their definition).  Values come out with the
 * very bits that the package gguf gives: each is a product that f32 holds exactly, of which a
 * minimum is taken with one rounding.
 */
#include "blocks.h"

#include <string.h>

uint16_t
ft_block_u16(const uint8_t *p)
{
	return (uint16_t) (p[0] | p[1] << 8);
}

static uint32_t
read_u32(const uint8_t *p)
{
	return p[0] | (uint32_t) p[1] << 8 | (uint32_t) p[2] << 16 | (uint32_t) p[3] << 24;
}

static void
read_nibbles(ft_block *b, const uint8_t *p)
{
	for (int i = 0; i < 16; i++)
	{
		b->q[i] = p[i] & 15;
		b->q[i + 16] = p[i] >> 4;
	}
}

static void
read_high_bits(ft_block *b, uint32_t high)
{
	for (int i = 0; i < 32; i++)
		b->q[i] |= (high >> i & 1) << 4;
}

/* Columns [32 · part, + 32) of a q2_k block: 16 scales and minima, 64 B of pairs, d, m. */
static void
read_q2_k(ft_block *b, const uint8_t *p, int part)
{
	const uint8_t *pairs = p + 16 + part / 4 * 32;

	for (int i = 0; i < 32; i++)
		b->q[i] = pairs[i] >> part % 4 * 2 & 3;
	b->scale[0] = p[part * 2];
	b->scale[1] = p[part * 2 + 1];
	b->d = ft_block_u16(p + 80);
	b->m = ft_block_u16(p + 82);
}

/* Scale i of q3_k: low nibbles in 8 bytes, first those of scales 0 to 7; pairs of high bits in 4.
 */
static uint8_t
q3_k_scale(const uint8_t *p, int i)
{
	int low = p[i % 8] >> i / 8 * 4 & 15;
	int high = p[8 + i % 4] >> i / 4 * 2 & 3;

	return (uint8_t) ((low | high << 4) - 32);
}

/* Of a q3_k block: 32 B of high bits, 64 B of pairs, 12 B of scales, d. */
static void
read_q3_k(ft_block *b, const uint8_t *p, int part)
{
	const uint8_t *pairs = p + 32 + part / 4 * 32;

	for (int i = 0; i < 32; i++)
		b->q[i] = (uint8_t) ((pairs[i] >> part % 4 * 2 & 3) | (p[i] >> part & 1) << 2);
	b->scale[0] = q3_k_scale(p + 96, part * 2);
	b->scale[1] = q3_k_scale(p + 96, part * 2 + 1);
	b->d = ft_block_u16(p + 108);
}

/* Of a q4_k block (d, m, 12 B of scales, 128 B of nibbles) or a q5_k block, which has 32 B of high
 * bits before the nibbles.  The first four scales and minima have their six bits together. */
static void
read_q4_k(ft_block *b, const uint8_t *p, int part, bool high)
{
	const uint8_t *scales = p + 4;
	const uint8_t *bits = p + 16;
	const uint8_t *nibbles = bits + (high ? 32 : 0) + part / 2 * 32;

	for (int i = 0; i < 32; i++)
	{
		b->q[i] = nibbles[i] >> part % 2 * 4 & 15;
		if (high)
			b->q[i] |= (bits[i] >> part & 1) << 4;
	}
	if (part < 4)
	{
		b->scale[0] = scales[part] & 63;
		b->scale[1] = scales[part + 4] & 63;
	}
	else
	{
		b->scale[0] = (uint8_t) ((scales[part + 4] & 15) | scales[part - 4] >> 6 << 4);
		b->scale[1] = (uint8_t) (scales[part + 4] >> 4 | scales[part] >> 6 << 4);
	}
	b->d = ft_block_u16(p);
	b->m = ft_block_u16(p + 2);
}

/* Of a q6_k block: 128 B of low nibbles, 64 B of high pairs, 16 scales, d. */
static void
read_q6_k(ft_block *b, const uint8_t *p, int part)
{
	const uint8_t *low = p + part / 4 * 64 + part % 2 * 32;
	const uint8_t *high = p + 128 + part / 4 * 32;
	int shift = part % 4 * 2;

	for (int i = 0; i < 32; i++)
	{
		int nibble = part % 4 < 2 ? low[i] & 15 : low[i] >> 4;

		b->q[i] = (uint8_t) (nibble | (high[i] >> shift & 3) << 4);
	}
	b->scale[0] = p[192 + part * 2];
	b->scale[1] = p[192 + part * 2 + 1];
	b->d = ft_block_u16(p + 208);
}

static void
read_block_of_256(ft_block *b, ft_dtype dtype, const uint8_t *p, int part)
{
	switch (dtype)
	{
		case FT_Q2_K:
			read_q2_k(b, p, part);
			break;
		case FT_Q3_K:
			read_q3_k(b, p, part);
			break;
		case FT_Q4_K:
		case FT_Q5_K:
			read_q4_k(b, p, part, dtype == FT_Q5_K);
			break;
		default: /* FT_Q6_K */
			read_q6_k(b, p, part);
			break;
	}
}

void
ft_block_read(ft_block *b, ft_dtype dtype, const uint8_t *row, int64_t block)
{
	const ft_dtype_info *type = ft_dtype_get(dtype);
	const uint8_t *p = row + block * 32 / type->block_values * type->block_bytes;

	memset(b, 0, sizeof *b);
	if (type->block_values == 256)
	{
		read_block_of_256(b, dtype, p, (int) (block % 8));
		return;
	}
	b->d = ft_block_u16(p);
	switch (dtype)
	{
		case FT_Q4_0:
			read_nibbles(b, p + 2);
			break;
		case FT_Q4_1:
			b->m = ft_block_u16(p + 2);
			read_nibbles(b, p + 4);
			break;
		case FT_Q5_0:
			read_nibbles(b, p + 6);
			read_high_bits(b, read_u32(p + 2));
			break;
		case FT_Q5_1:
			b->m = ft_block_u16(p + 2);
			read_nibbles(b, p + 8);
			read_high_bits(b, read_u32(p + 4));
			break;
		default: /* FT_Q8_0 */
			memcpy(b->q, p + 2, 32);
			break;
	}
}

/* Sixteen values y = (q + offset) · scale - minimum.  Without a minimum nothing is subtracted, so
 * that a zero keeps its sign. */
static void
scaled_values(float *y, const uint8_t *q, int offset, float scale)
{
	for (int i = 0; i < 16; i++)
		y[i] = scale * (float) (q[i] + offset);
}

static void
values_less_minimum(float *y, const uint8_t *q, float scale, float minimum)
{
	for (int i = 0; i < 16; i++)
		y[i] = scale * (float) q[i] - minimum;
}

void
ft_block_values(float *y, ft_dtype dtype, const ft_block *b)
{
	float d = ft_f16_to_f32(b->d);
	float m = ft_f16_to_f32(b->m);

	for (int half = 0; half < 2; half++, y += 16)
	{
		const uint8_t *q = b->q + 16 * half;
		uint8_t scale = b->scale[half];

		switch (dtype)
		{
			case FT_Q4_0:
				scaled_values(y, q, -8, d);
				break;
			case FT_Q5_0:
				scaled_values(y, q, -16, d);
				break;
			case FT_Q8_0:
				for (int i = 0; i < 16; i++)
					y[i] = d * (float) (int8_t) q[i];
				break;
			case FT_Q2_K:
				values_less_minimum(y, q, d * (float) (scale & 15), m * (float) (scale >> 4));
				break;
			case FT_Q3_K:
				scaled_values(y, q, -4, d * (float) (int8_t) scale);
				break;
			case FT_Q4_K:
			case FT_Q5_K:
				values_less_minimum(y, q, d * (float) b->scale[0], m * (float) b->scale[1]);
				break;
			case FT_Q6_K:
				scaled_values(y, q, -32, d * (float) (int8_t) scale);
				break;
			default: /* FT_Q4_1, FT_Q5_1: the minimum is added */
				values_less_minimum(y, q, d, -m);
				break;
		}
	}
}

void
ft_stored_row(float *y, ft_dtype dtype, const void *row, int64_t cols)
{
	const uint16_t *half = row;
	ft_block b;

	switch (dtype)
	{
		case FT_F32:
			memcpy(y, row, (size_t) cols * sizeof *y);
			break;
		case FT_F16:
			for (int64_t i = 0; i < cols; i++)
				y[i] = ft_f16_to_f32(half[i]);
			break;
		case FT_BF16:
			for (int64_t i = 0; i < cols; i++)
				y[i] = ft_bf16_to_f32(half[i]);
			break;
		default:
			for (int64_t i = 0; i < cols / 32; i++)
			{
				ft_block_read(&b, dtype, row, i);
				ft_block_values(y + i * 32, dtype, &b);
			}
			break;
	}
}
