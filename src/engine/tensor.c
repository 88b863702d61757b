/*
 * tensor.c: what is known of the element types, and conversions of single values.
 */
#include "tensor.h"

static const ft_dtype_info dtypes[FT_DTYPE_COUNT] = {
	[FT_F32] = {"f32", 1, 4},       [FT_F16] = {"f16", 1, 2},       [FT_BF16] = {"bf16", 1, 2},
	[FT_Q4_0] = {"q4_0", 32, 18},   [FT_Q4_1] = {"q4_1", 32, 20},   [FT_Q5_0] = {"q5_0", 32, 22},
	[FT_Q5_1] = {"q5_1", 32, 24},   [FT_Q8_0] = {"q8_0", 32, 34},   [FT_Q2_K] = {"q2_k", 256, 84},
	[FT_Q3_K] = {"q3_k", 256, 110}, [FT_Q4_K] = {"q4_k", 256, 144}, [FT_Q5_K] = {"q5_k", 256, 176},
	[FT_Q6_K] = {"q6_k", 256, 210}, [FT_I32] = {"i32", 1, 4},       [FT_NF4] = {"nf4", 0, 0},
};

static const ft_dtype_info unknown = {"unknown", 0, 0};

const ft_dtype_info *
ft_dtype_get(ft_dtype dtype)
{
	return (unsigned) dtype < FT_DTYPE_COUNT ? &dtypes[dtype] : &unknown;
}

int64_t
ft_row_bytes(ft_dtype dtype, int64_t cols)
{
	const ft_dtype_info *info = ft_dtype_get(dtype);
	int64_t bytes;

	if (info->block_values == 0 || cols < 0 || cols % info->block_values != 0 ||
		__builtin_mul_overflow(cols / info->block_values, info->block_bytes, &bytes))
		return -1;
	return bytes;
}

/* Counts of a table of n values, and the bytes of all of it. */
static ft_nf4
nf4_counts(int64_t n, int64_t *bytes)
{
	ft_nf4 t = {.blocks = n / FT_NF4_BLOCK + (n % FT_NF4_BLOCK != 0)};

	t.groups = t.blocks / FT_NF4_GROUP + (t.blocks % FT_NF4_GROUP != 0);
	*bytes = (256 + 1 + t.groups) * (int64_t) sizeof(float) + t.blocks * (1 + FT_NF4_BLOCK / 2);
	return t;
}

int64_t
ft_nf4_bytes(int64_t n)
{
	int64_t bytes;

	nf4_counts(n, &bytes);
	return bytes;
}

ft_nf4
ft_nf4_parts(void *data, int64_t n)
{
	int64_t bytes;
	ft_nf4 t = nf4_counts(n, &bytes);

	t.map = data;
	t.offset = t.map + 256;
	t.group = t.offset + 1;
	t.absmax = (uint8_t *) (t.group + t.groups);
	t.codes = t.absmax + t.blocks;
	return t;
}

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
