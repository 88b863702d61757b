/*
 * nf4.c: quantising a matrix to NF4.
 */
#include "nf4.h"

#include "buffer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CODES 16
#define MAP 256
#define LEAST 1e-38f /* what a scale of 0 is taken for, where something is divided by it */

static const float nf4_values[CODES] = FT_NF4_VALUES;

/* Where one code ends and the next begins. */
static void
bounds_of(float *bounds, const float *values, int n)
{
	for (int i = 0; i + 1 < n; i++)
		bounds[i] = (values[i] + values[i + 1]) / 2;
}

/*
 * The 8-bit "dynamic" type (create_dynamic_map in bitsandbytes' functional.py;
 * arXiv 1511.04561): a decimal exponent from -6 to 0, and the more bits of
 * fraction the larger it is; for each, the middles of equal parts of [0.1, 1].
 */
static void
dynamic_map(float *map)
{
	int n = 0;

	for (int e = 0; e < 7; e++)
	{
		int parts = 1 << e;
		float step = (1.0f - 0.1f) / (float) parts;
		float power = (float) pow(10, e - 6);

		for (int i = 0; i < parts; i++)
		{
			float edge[2];

			/* from the nearer end and rounded once, as torch.linspace does */
			for (int j = 0; j < 2; j++)
				edge[j] = i + j < (parts + 1) / 2 ? fmaf(step, (float) (i + j), 0.1f)
												  : fmaf(-step, (float) (parts - i - j), 1.0f);
			map[MAP / 2 + n] = power * ((edge[0] + edge[1]) / 2);
			map[MAP / 2 - 2 - n] = -map[MAP / 2 + n];
			n++;
		}
	}
	map[MAP / 2 - 1] = 0;
	map[MAP - 1] = 1;
}

/* Values [first, first + n) of a contiguous matrix. */
static void
read_values(float *x, ft_mat m, int64_t first, int n)
{
	const uint16_t *half = (const uint16_t *) m.data + first;

	if (m.dtype == FT_F32)
		memcpy(x, (const float *) m.data + first, (size_t) n * sizeof *x);
	for (int i = 0; i < n && m.dtype == FT_BF16; i++)
		x[i] = ft_bf16_to_f32(half[i]);
	for (int i = 0; i < n && m.dtype == FT_F16; i++)
		x[i] = ft_f16_to_f32(half[i]);
}

/* The largest magnitude; not finite where any value is not.  By the bits of the magnitudes, which
 * are in the order of the values and compare faster. */
static float
largest(const float *x, int n)
{
	union
	{
		float f;
		int32_t i;
	} most = {0};

	for (int i = 0; i < n; i++)
	{
		int32_t bits;

		memcpy(&bits, x + i, sizeof bits);
		bits &= INT32_MAX;
		most.i = bits > most.i ? bits : most.i;
	}
	return most.f;
}

/* 64 values, of which a last block's missing ones are 0. */
static void
quantise_block(uint8_t *codes, const float *x, float scale, const float *bounds)
{
	float inverse = 1.0f / (scale > LEAST ? scale : LEAST);
	int32_t code[FT_NF4_BLOCK];

	for (int i = 0; i < FT_NF4_BLOCK; i++)
	{
		float value = x[i] * inverse;

		code[i] = 0;
		for (int c = 0; c < CODES - 1; c++)
			code[i] += value > bounds[c];
	}
	for (int i = 0; i < FT_NF4_BLOCK / 2; i++)
		codes[i] = (uint8_t) (code[2 * i] << 4 | code[2 * i + 1]);
}

/* How many bounds lie below x. */
static uint8_t
nearest(const float *bounds, float x)
{
	int low = 0;
	int high = MAP - 1;

	while (low < high)
	{
		int middle = (low + high) / 2;

		if (x > bounds[middle])
			low = middle + 1;
		else
			high = middle;
	}
	return (uint8_t) low;
}

static void
quantise_scales(const ft_nf4 *to, const float *scales)
{
	float bounds[MAP - 1];
	double sum = 0;

	bounds_of(bounds, to->map, MAP);
	for (int64_t i = 0; i < to->blocks; i++)
		sum += scales[i];
	*to->offset = to->blocks > 0 ? (float) (sum / (double) to->blocks) : 0.0f;
	for (int64_t g = 0; g < to->groups; g++)
	{
		int64_t first = g * FT_NF4_GROUP;
		int n = (int) (to->blocks - first < FT_NF4_GROUP ? to->blocks - first : FT_NF4_GROUP);
		float x[FT_NF4_GROUP];
		float inverse;

		for (int i = 0; i < n; i++)
			x[i] = scales[first + i] - *to->offset;
		to->group[g] = largest(x, n);
		inverse = 1.0f / (to->group[g] > LEAST ? to->group[g] : LEAST);
		for (int i = 0; i < n; i++)
			to->absmax[first + i] = nearest(bounds, x[i] * inverse);
	}
}

static ft_status
quantise_blocks(const ft_nf4 *to, ft_mat m, float *scales)
{
	int64_t n = m.rows * m.cols;
	float bounds[CODES - 1];

	bounds_of(bounds, nf4_values, CODES);
	for (int64_t b = 0; b < to->blocks; b++)
	{
		int64_t first = b * FT_NF4_BLOCK;
		float x[FT_NF4_BLOCK] = {0};

		read_values(x, m, first, (int) (n - first < FT_NF4_BLOCK ? n - first : FT_NF4_BLOCK));
		scales[b] = largest(x, FT_NF4_BLOCK);
		if (!isfinite(scales[b]))
			return ft_fail(FT_CORRUPT, "a value near column %lld of row %lld is not finite",
						   (long long) (first % m.cols), (long long) (first / m.cols));
		quantise_block(to->codes + b * (FT_NF4_BLOCK / 2), x, scales[b], bounds);
	}
	return FT_OK;
}

ft_status
ft_nf4_quantise(ft_mat m, void *data)
{
	ft_nf4 to = ft_nf4_parts(data, m.rows * m.cols);
	float *scales;
	ft_status status;

	if (m.dtype != FT_F32 && m.dtype != FT_F16 && m.dtype != FT_BF16)
		return ft_fail(FT_UNSUPPORTED, "nf4 from %s is not supported", ft_dtype_get(m.dtype)->name);
	FT_TRY(ft_alloc((void **) &scales, (size_t) to.blocks + 1, sizeof *scales));
	dynamic_map(to.map);
	status = quantise_blocks(&to, m, scales);
	if (status == FT_OK)
		quantise_scales(&to, scales);
	free(scales);
	return status;
}
