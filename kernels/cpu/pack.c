/*
 * pack.c: stored rows and packed groups, value by value.
 *
 * Packing happens once, when a weight is made; the loops that run for every
 * token are in unpack_kernel.h.
 */
#include "pack.h"

#include <string.h>

float
ft_f16_to_f32(uint16_t h)
{
	uint32_t sign = (uint32_t) (h & 0x8000) << 16;
	uint32_t exponent = (h >> 10) & 31;
	uint32_t mantissa = h & 0x3ff;
	union
	{
		uint32_t u;
		float f;
	} x;

	if (exponent == 0)
	{
		/* zero or subnormal: mantissa · 2^-24, exact in f32 */
		x.f = (float) mantissa * 0x1p-24f;
		x.u |= sign;
	}
	else if (exponent == 31)
		x.u = sign | 0x7f800000 | mantissa << 13;
	else
		x.u = sign | (exponent + 112) << 23 | mantissa << 13;
	return x.f;
}

uint16_t
ft_f32_to_f16(float f)
{
	union
	{
		float f;
		uint32_t u;
	} x = {f};
	uint16_t sign = (uint16_t) (x.u >> 16 & 0x8000);
	uint32_t magnitude = x.u & 0x7fffffff;

	if (magnitude > 0x7f800000)
		return sign | 0x7e00; /* NaN */
	if (magnitude >= 0x477ff000)
		return sign | 0x7c00; /* rounds to infinity */
	if (magnitude < 0x38800000)
	{
		/* subnormal: adding 0.5 leaves the rounded mantissa in the low bits */
		x.u = magnitude;
		x.f += 0.5f;
		return (uint16_t) (sign | (x.u - 0x3f000000));
	}
	magnitude += 0xfff + (magnitude >> 13 & 1);
	return (uint16_t) (sign | (magnitude - 0x38000000) >> 13);
}

static uint16_t
read_u16(const uint8_t *p)
{
	return (uint16_t) (p[0] | p[1] << 8);
}

static uint32_t
read_u32(const uint8_t *p)
{
	return p[0] | (uint32_t) p[1] << 8 | (uint32_t) p[2] << 16 | (uint32_t) p[3] << 24;
}

/* The integers of a quantised block of 32 columns, with its factor and offset: x = q · d + m.
 * In q6_k each half of 16 columns has its own d. */
typedef struct quants
{
	uint8_t q[32]; /* q8_0: + 128 */
	uint16_t d;
	uint16_t m;
	int8_t scale[2];
} quants;

static void
read_nibbles(quants *b, const uint8_t *p)
{
	for (int i = 0; i < 16; i++)
	{
		b->q[i] = p[i] & 15;
		b->q[i + 16] = p[i] >> 4;
	}
}

static void
read_high_bits(quants *b, uint32_t high)
{
	for (int i = 0; i < 32; i++)
		b->q[i] |= (high >> i & 1) << 4;
}

/* Columns 32 · part .. of a q6_k block: 128 B of low nibbles, 64 B of high pairs, 16 scales, d. */
static void
read_q6_k(quants *b, const uint8_t *p, int part)
{
	const uint8_t *low = p + part / 4 * 64 + part % 2 * 32;
	const uint8_t *high = p + 128 + part / 4 * 32;
	int shift = part % 4 * 2;

	for (int i = 0; i < 32; i++)
	{
		int nibble = part % 4 < 2 ? low[i] & 15 : low[i] >> 4;

		b->q[i] = (uint8_t) (nibble | (high[i] >> shift & 3) << 4);
	}
	b->scale[0] = (int8_t) p[192 + part * 2];
	b->scale[1] = (int8_t) p[192 + part * 2 + 1];
	b->d = read_u16(p + 208);
}

/* Columns [32 · block, + 32) of a stored row. */
static void
read_block(quants *b, ft_dtype dtype, const uint8_t *row, int64_t block)
{
	const uint8_t *p = row + block * ft_dtype_get(dtype)->block_bytes;

	memset(b, 0, sizeof *b);
	if (dtype == FT_Q6_K)
	{
		read_q6_k(b, row + block / 8 * 210, (int) (block % 8));
		return;
	}
	b->d = read_u16(p);
	switch (dtype)
	{
		case FT_Q4_0:
			read_nibbles(b, p + 2);
			break;
		case FT_Q4_1:
			b->m = read_u16(p + 2);
			read_nibbles(b, p + 4);
			break;
		case FT_Q5_0:
			read_nibbles(b, p + 6);
			read_high_bits(b, read_u32(p + 2));
			break;
		case FT_Q5_1:
			b->m = read_u16(p + 2);
			read_nibbles(b, p + 8);
			read_high_bits(b, read_u32(p + 4));
			break;
		default: /* FT_Q8_0 */
			for (int i = 0; i < 32; i++)
				b->q[i] = (uint8_t) (p[2 + i] + 128);
			break;
	}
}

static void
block_values(float *y, ft_dtype dtype, const quants *b)
{
	float d = ft_f16_to_f32(b->d);
	float m = ft_f16_to_f32(b->m);

	for (int i = 0; i < 32; i++)
	{
		int q = b->q[i];

		switch (dtype)
		{
			case FT_Q4_0:
				y[i] = (float) (q - 8) * d;
				break;
			case FT_Q5_0:
				y[i] = (float) (q - 16) * d;
				break;
			case FT_Q8_0:
				y[i] = (float) (q - 128) * d;
				break;
			case FT_Q6_K:
				y[i] = d * (float) b->scale[i / 16] * (float) (q - 32);
				break;
			default:
				y[i] = (float) q * d + m;
				break;
		}
	}
}

void
ft_stored_row(float *y, ft_dtype dtype, const void *row, int64_t cols)
{
	const uint16_t *half = row;
	quants b;

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
				read_block(&b, dtype, row, i);
				block_values(y + i * 32, dtype, &b);
			}
			break;
	}
}

int
ft_pack_columns(ft_dtype dtype)
{
	return dtype == FT_F32 || dtype == FT_F16 ? 1 : dtype == FT_BF16 ? 2 : 32;
}

int64_t
ft_pack_block_bytes(ft_dtype dtype)
{
	switch (dtype)
	{
		case FT_F32:
		case FT_BF16:
			return 64;
		case FT_F16:
			return 32;
		case FT_Q4_0:
			return 32 + 256;
		case FT_Q4_1:
			return 64 + 256;
		case FT_Q5_0:
			return 32 + 64 + 256;
		case FT_Q5_1:
			return 64 + 64 + 256;
		case FT_Q8_0:
			return 32 + 512;
		case FT_Q6_K:
			return 32 + 32 + 128 + 256;
		default:
			return -1;
	}
}

int64_t
ft_pack_group_bytes(ft_dtype dtype, int64_t cols)
{
	int columns = ft_pack_columns(dtype);
	int64_t bytes = ft_pack_block_bytes(dtype);

	return bytes < 0 ? -1 : (cols + columns - 1) / columns * bytes;
}

static void
put_u16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t) v;
	p[1] = (uint8_t) (v >> 8);
}

static void
or_u32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] |= (uint8_t) (v >> 8 * i);
}

static bool
has_minimum(ft_dtype dtype)
{
	return dtype == FT_Q4_1 || dtype == FT_Q5_1;
}

/* Lay one row's block into its place of the group's block. */
static void
pack_block(uint8_t *to, ft_dtype dtype, int lane, const quants *b)
{
	uint8_t *words = to + ft_pack_block_bytes(dtype) - 256 + lane * 4;
	uint8_t *bits = to + (has_minimum(dtype) ? 64 : 32) + lane * 4;

	put_u16(to + lane * 2, b->d);
	if (has_minimum(dtype))
		put_u16(to + 32 + lane * 2, b->m);
	if (dtype == FT_Q8_0)
	{
		for (int i = 0; i < 32; i++)
			to[32 + i / 4 * 64 + lane * 4 + i % 4] = (uint8_t) (b->q[i] - 128);
		return;
	}
	if (dtype == FT_Q6_K)
	{
		to[32 + lane] = (uint8_t) b->scale[0];
		to[48 + lane] = (uint8_t) b->scale[1];
	}
	for (int i = 0; i < 32; i++)
	{
		uint32_t high = b->q[i] >> 4;

		or_u32(words + i / 8 * 64, (uint32_t) (b->q[i] & 15) << i % 8 * 4);
		if (dtype == FT_Q6_K)
			or_u32(to + 64 + i / 16 * 64 + lane * 4, high << i % 16 * 2);
		else if (dtype == FT_Q5_0 || dtype == FT_Q5_1)
			or_u32(bits, high << i);
	}
}

void
ft_pack_group(uint8_t *group, ft_dtype dtype, const uint8_t *rows, int64_t row_bytes, int n,
			  int64_t cols)
{
	int64_t block_bytes = ft_pack_block_bytes(dtype);
	quants b;

	for (int lane = 0; lane < n; lane++, rows += row_bytes)
	{
		if (ft_pack_columns(dtype) == 32)
			for (int64_t i = 0; i < cols / 32; i++)
			{
				read_block(&b, dtype, rows, i);
				pack_block(group + i * block_bytes, dtype, lane, &b);
			}
		else if (dtype == FT_F32)
			for (int64_t i = 0; i < cols; i++)
				memcpy(group + (i * FT_GROUP + lane) * 4, rows + i * 4, 4);
		else if (dtype == FT_F16)
			for (int64_t i = 0; i < cols; i++)
				memcpy(group + (i * FT_GROUP + lane) * 2, rows + i * 2, 2);
		else
			for (int64_t i = 0; i < cols; i++)
				memcpy(group + i / 2 * 64 + lane * 4 + i % 2 * 2, rows + i * 2, 2);
	}
}

/* The row's integers of one packed block. */
static void
unpack_block(quants *b, ft_dtype dtype, int lane, const uint8_t *from)
{
	const uint8_t *words = from + ft_pack_block_bytes(dtype) - 256 + lane * 4;
	const uint8_t *bits = from + (has_minimum(dtype) ? 64 : 32) + lane * 4;

	memset(b, 0, sizeof *b);
	b->d = read_u16(from + lane * 2);
	if (has_minimum(dtype))
		b->m = read_u16(from + 32 + lane * 2);
	if (dtype == FT_Q8_0)
	{
		for (int i = 0; i < 32; i++)
			b->q[i] = (uint8_t) (from[32 + i / 4 * 64 + lane * 4 + i % 4] + 128);
		return;
	}
	if (dtype == FT_Q6_K)
	{
		b->scale[0] = (int8_t) from[32 + lane];
		b->scale[1] = (int8_t) from[48 + lane];
	}
	for (int i = 0; i < 32; i++)
	{
		uint32_t high = 0;

		if (dtype == FT_Q6_K)
			high = read_u32(from + 64 + i / 16 * 64 + lane * 4) >> i % 16 * 2 & 3;
		else if (dtype == FT_Q5_0 || dtype == FT_Q5_1)
			high = read_u32(bits) >> i & 1;
		b->q[i] = (uint8_t) ((read_u32(words + i / 8 * 64) >> i % 8 * 4 & 15) | high << 4);
	}
}

void
ft_unpack_row(float *y, ft_dtype dtype, const uint8_t *group, int lane, int64_t cols)
{
	const uint16_t *half = (const uint16_t *) group;
	quants b;

	switch (dtype)
	{
		case FT_F32:
			for (int64_t i = 0; i < cols; i++)
				y[i] = ((const float *) group)[i * FT_GROUP + lane];
			break;
		case FT_F16:
			for (int64_t i = 0; i < cols; i++)
				y[i] = ft_f16_to_f32(half[i * FT_GROUP + lane]);
			break;
		case FT_BF16:
			for (int64_t i = 0; i < cols; i++)
				y[i] = ft_bf16_to_f32(half[i / 2 * 32 + lane * 2 + i % 2]);
			break;
		default:
			for (int64_t i = 0; i < cols / 32; i++)
			{
				unpack_block(&b, dtype, lane, group + i * ft_pack_block_bytes(dtype));
				block_values(y + i * 32, dtype, &b);
			}
			break;
	}
}
