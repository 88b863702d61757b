/*
 * tensor.c: what is known of the element types.
 */
#include "tensor.h"

static const ft_dtype_info dtypes[FT_DTYPE_COUNT] = {
	[FT_F32] = {"f32", 1, 4},       [FT_F16] = {"f16", 1, 2},       [FT_BF16] = {"bf16", 1, 2},
	[FT_Q4_0] = {"q4_0", 32, 18},   [FT_Q4_1] = {"q4_1", 32, 20},   [FT_Q5_0] = {"q5_0", 32, 22},
	[FT_Q5_1] = {"q5_1", 32, 24},   [FT_Q8_0] = {"q8_0", 32, 34},   [FT_Q2_K] = {"q2_k", 256, 84},
	[FT_Q3_K] = {"q3_k", 256, 110}, [FT_Q4_K] = {"q4_k", 256, 144}, [FT_Q5_K] = {"q5_k", 256, 176},
	[FT_Q6_K] = {"q6_k", 256, 210}, [FT_I32] = {"i32", 1, 4},
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
