/*
 * pack.c: stored rows into packed groups, and single rows back.
 *
 * Packing happens once, when a weight is made; the loops that run for every
 * token are in unpack_kernel.h.
 */
#include "pack.h"

#include <string.h>

/* What a packed block of 32 columns holds beside d, in this order; "words" are 16 × u32. */
typedef struct layout
{
	bool minimum;   /* m[16] f16 */
	int scales;     /* bytes of a row */
	int high_words; /* as many bits of each q, above the low ones */
	int low_words;
} layout;

static const layout layouts[FT_DTYPE_COUNT] = {
	[FT_Q4_0] = {.low_words = 4},
	[FT_Q4_1] = {.minimum = true, .low_words = 4},
	[FT_Q5_0] = {.high_words = 1, .low_words = 4},
	[FT_Q5_1] = {.minimum = true, .high_words = 1, .low_words = 4},
	[FT_Q8_0] = {.low_words = 8},
	[FT_Q2_K] = {.minimum = true, .scales = 2, .low_words = 2},
	[FT_Q3_K] = {.scales = 2, .high_words = 1, .low_words = 2},
	[FT_Q4_K] = {.minimum = true, .scales = 2, .low_words = 4},
	[FT_Q5_K] = {.minimum = true, .scales = 2, .high_words = 1, .low_words = 4},
	[FT_Q6_K] = {.scales = 2, .high_words = 2, .low_words = 4},
};

static int
scales_at(const layout *l)
{
	return l->minimum ? 64 : 32;
}

static int
high_at(const layout *l)
{
	return scales_at(l) + FT_GROUP * l->scales;
}

static int
low_at(const layout *l)
{
	return high_at(l) + 64 * l->high_words;
}

int
ft_pack_columns(ft_dtype dtype)
{
	return dtype == FT_F32 || dtype == FT_F16 ? 1 : dtype == FT_BF16 ? 2 : 32;
}

int64_t
ft_pack_block_bytes(ft_dtype dtype)
{
	if (dtype == FT_F32 || dtype == FT_BF16)
		return 64;
	if (dtype == FT_F16)
		return 32;
	if ((unsigned) dtype >= FT_DTYPE_COUNT || layouts[dtype].low_words == 0)
		return -1;
	return low_at(&layouts[dtype]) + 64 * layouts[dtype].low_words;
}

int64_t
ft_pack_group_bytes(ft_dtype dtype, int64_t cols)
{
	int columns = ft_pack_columns(dtype);
	int64_t bytes = ft_pack_block_bytes(dtype);

	return bytes < 0 ? -1 : (cols + columns - 1) / columns * bytes;
}

/* Where column i stands in a row's words, when a column takes so many bits. */
static int
byte_of(int lane, int i, int bits)
{
	return FT_PACK_VECTOR(i) * bits / 8 * 64 + lane * 4 + i % 8 / 2;
}

static int
shift_of(int i, int bits)
{
	return FT_PACK_VECTOR(i) * bits % 8;
}

/* Lay one row's block into its place of the group's block. */
static void
pack_block(uint8_t *to, ft_dtype dtype, int lane, const ft_block *b)
{
	const layout *l = &layouts[dtype];
	uint8_t *high = to + high_at(l);
	uint8_t *low = to + low_at(l);

	memcpy(to + lane * 2, &b->d, 2);
	if (l->minimum)
		memcpy(to + 32 + lane * 2, &b->m, 2);
	for (int i = 0; i < l->scales; i++)
		to[scales_at(l) + FT_GROUP * i + lane] = b->scale[i];
	for (int i = 0; i < 32; i++)
	{
		int mask = (1 << l->low_words) - 1;

		low[byte_of(lane, i, l->low_words)] |=
			(uint8_t) ((b->q[i] & mask) << shift_of(i, l->low_words));
		if (l->high_words > 0)
			high[byte_of(lane, i, l->high_words)] |=
				(uint8_t) (b->q[i] >> l->low_words << shift_of(i, l->high_words));
	}
}

/* The row's integers of one packed block. */
static void
unpack_block(ft_block *b, ft_dtype dtype, int lane, const uint8_t *from)
{
	const layout *l = &layouts[dtype];
	const uint8_t *high = from + high_at(l);
	const uint8_t *low = from + low_at(l);

	memset(b, 0, sizeof *b);
	memcpy(&b->d, from + lane * 2, 2);
	if (l->minimum)
		memcpy(&b->m, from + 32 + lane * 2, 2);
	for (int i = 0; i < l->scales; i++)
		b->scale[i] = from[scales_at(l) + FT_GROUP * i + lane];
	for (int i = 0; i < 32; i++)
	{
		int low_mask = (1 << l->low_words) - 1;
		int high_mask = (1 << l->high_words) - 1;

		b->q[i] = low[byte_of(lane, i, l->low_words)] >> shift_of(i, l->low_words) & low_mask;
		if (l->high_words > 0)
			b->q[i] |=
				(uint8_t) ((high[byte_of(lane, i, l->high_words)] >> shift_of(i, l->high_words) &
							high_mask)
						   << l->low_words);
	}
}

void
ft_pack_group(uint8_t *group, ft_dtype dtype, const uint8_t *rows, int64_t row_bytes, int n,
			  int64_t cols)
{
	int64_t block_bytes = ft_pack_block_bytes(dtype);
	ft_block b;

	for (int lane = 0; lane < n; lane++, rows += row_bytes)
	{
		if (ft_pack_columns(dtype) == 32)
			for (int64_t i = 0; i < cols / 32; i++)
			{
				ft_block_read(&b, dtype, rows, i);
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

void
ft_unpack_row(float *y, ft_dtype dtype, const uint8_t *group, int lane, int64_t cols)
{
	const uint16_t *half = (const uint16_t *) group;
	ft_block b;

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
				ft_block_values(y + i * 32, dtype, &b);
			}
			break;
	}
}
