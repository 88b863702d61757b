/*
 * packed.cuh: how the values of stored types are read on the device.
 *
 * raw_*: blocks as files have them (tensor.h names the formats; ggml-common.h of
 * ggml is their definition).  Blocks are 18 to 210 bytes long and so mostly
 * unaligned: used once, to convert or to pack.
 *
 * packed_eight(): the layout that weights keep on the device.  A row is a whole
 * number of units of 32 columns; unit u of row r of a part stands at index
 * r · units + u of each of these arrays:
 *
 *   f32, f16, bf16   quants 32 values
 *   q4_0             quants 16 B, scales f16 d            low nibbles are columns 0-15
 *   q4_1             quants 16 B, scales f16 d, f16 m
 *   q5_0, q5_1       as q4_0, q4_1, with high u32, bit j for column j
 *   q8_0             quants 32 × i8, scales f16 d
 *   q2_k             quants 2 × u32 (16 bit pairs each), scales u8 × 2 (a scale in the low nibble,
 *                    a minimum in the high one, for each 16 columns), block f16 d, f16 m
 *   q3_k             quants as q2_k, high u32, scales i8 × 2, block f16 d, 0
 *   q4_k, q5_k       quants and high as q4_1, q5_1, scales u8 scale, u8 minimum, block f16 d, f16 m
 *   q6_k             quants 16 B, high 2 × u32 (16 bit pairs each), scales f16 d, i8 × 2
 *
 * "block" is an array of one u32 for the 8 units of a block of 256 columns: unit u of row r has
 * the entry (r · units + u) / 8.
 *
 * A scale times an integer is exact in f32, a product of at most 24 bits; of it a minimum is taken
 * with one rounding.  So converting and looking up give the bits that the package gguf gives.
 */
#ifndef FT_CUDA_PACKED_CUH
#define FT_CUDA_PACKED_CUH

#include "intrinsics.cuh"

/* Types of blocks of 256 columns with 16 scales: each 16 columns of a unit have their own. */
__host__ __device__ constexpr bool
ft_packed_halves(ft_dtype type)
{
	return type == FT_Q2_K || type == FT_Q3_K || type == FT_Q6_K;
}

/* x = scale · q + min. */
__host__ __device__ constexpr bool
ft_packed_has_min(ft_dtype type)
{
	return type == FT_Q4_1 || type == FT_Q5_1 || type == FT_Q2_K || type == FT_Q4_K ||
		   type == FT_Q5_K;
}

__host__ __device__ constexpr int
ft_packed_quant_bytes(ft_dtype type)
{
	return type == FT_F32                        ? 128
		   : type == FT_F16 || type == FT_BF16   ? 64
		   : type == FT_Q8_0                     ? 32
		   : type == FT_Q2_K || type == FT_Q3_K ? 8
												 : 16;
}

__host__ __device__ constexpr int
ft_packed_high_bytes(ft_dtype type)
{
	return type == FT_Q6_K ? 8
		   : type == FT_Q5_0 || type == FT_Q5_1 || type == FT_Q5_K || type == FT_Q3_K ? 4
																					   : 0;
}

__host__ __device__ constexpr int
ft_packed_scale_bytes(ft_dtype type)
{
	return type == FT_F32 || type == FT_F16 || type == FT_BF16     ? 0
		   : type == FT_Q4_1 || type == FT_Q5_1 || type == FT_Q6_K ? 4
																   : 2;
}

/* Of the array with an entry for 8 units. */
__host__ __device__ constexpr int
ft_packed_block_bytes(ft_dtype type)
{
	return type == FT_Q2_K || type == FT_Q3_K || type == FT_Q4_K || type == FT_Q5_K ? 4 : 0;
}

/* What is taken off the integer of a type without minima. */
__host__ __device__ constexpr int
ft_packed_offset(ft_dtype type)
{
	return type == FT_Q3_K   ? 4
		   : type == FT_Q4_0 ? 8
		   : type == FT_Q5_0 ? 16
		   : type == FT_Q6_K ? 32
							 : 0;
}

/* --- raw blocks --- */

__device__ __forceinline__ uint16_t
raw_u16(const uint8_t *p)
{
	return (uint16_t) (p[0] | p[1] << 8);
}

/* Where the parts of a 32-value block lie. */
template <ft_dtype TYPE> struct raw_block
{
	static constexpr bool has_min = TYPE == FT_Q4_1 || TYPE == FT_Q5_1;
	static constexpr bool has_high = TYPE == FT_Q5_0 || TYPE == FT_Q5_1;
	static constexpr int high_at = has_min ? 4 : 2;
	static constexpr int quants_at = high_at + (has_high ? 4 : 0);
	static constexpr int bytes = quants_at + (TYPE == FT_Q8_0 ? 32 : 16);
};

/* Where those of a 256-value block lie. */
template <ft_dtype TYPE> struct raw_block_256
{
	static constexpr int bytes = TYPE == FT_Q2_K   ? 84
								 : TYPE == FT_Q3_K ? 110
								 : TYPE == FT_Q4_K ? 144
								 : TYPE == FT_Q5_K ? 176
												   : 210;
	static constexpr int d_at = TYPE == FT_Q2_K   ? 80
								: TYPE == FT_Q3_K ? 108
								: TYPE == FT_Q6_K ? 208
												  : 0;
	static constexpr int scales_at = TYPE == FT_Q2_K   ? 0
									 : TYPE == FT_Q3_K ? 96
									 : TYPE == FT_Q6_K ? 192
													   : 4;
	static constexpr int high_at = TYPE == FT_Q3_K ? 0 : TYPE == FT_Q6_K ? 128 : 16;
	static constexpr int quants_at = TYPE == FT_Q3_K   ? 32
									 : TYPE == FT_Q5_K ? 48
									 : TYPE == FT_Q6_K ? 0
													   : 16;
};

__host__ __device__ constexpr bool
is_block_of_256(ft_dtype type)
{
	return type == FT_Q6_K || ft_packed_block_bytes(type) > 0;
}

/* The stored integer of column l < 32 of unit u < 8 of a 256-value block. */
template <ft_dtype TYPE>
__device__ __forceinline__ int
raw_code_256(const uint8_t *block, int u, int l)
{
	typedef raw_block_256<TYPE> at;
	const uint8_t *quants = block + at::quants_at;
	const uint8_t *high = block + at::high_at;

	if constexpr (TYPE == FT_Q2_K)
		return quants[u / 4 * 32 + l] >> (u % 4 * 2) & 3;
	else if constexpr (TYPE == FT_Q3_K)
		return (quants[u / 4 * 32 + l] >> (u % 4 * 2) & 3) | (high[l] >> u & 1) << 2;
	else if constexpr (TYPE == FT_Q4_K)
		return quants[u / 2 * 32 + l] >> (u % 2 * 4) & 15;
	else if constexpr (TYPE == FT_Q5_K)
		return (quants[u / 2 * 32 + l] >> (u % 2 * 4) & 15) | (high[l] >> u & 1) << 4;
	else
		return (quants[u / 4 * 64 + u % 2 * 32 + l] >> (u % 4 / 2 * 4) & 15) |
			   (high[u / 4 * 32 + l] >> (u % 4 * 2) & 3) << 4;
}

/* The two scale bytes of unit u of a 256-value block, as packed units keep them. */
template <ft_dtype TYPE>
__device__ __forceinline__ uint16_t
raw_scales_256(const uint8_t *block, int u)
{
	const uint8_t *scales = block + raw_block_256<TYPE>::scales_at;

	if constexpr (TYPE == FT_Q3_K)
	{
		int both = 0;

		/* low nibbles in 8 bytes, first those of scales 0 to 7; pairs of high bits in 4 */
		for (int i = 2 * u; i < 2 * u + 2; i++)
		{
			int low = scales[i % 8] >> (i / 8 * 4) & 15;
			int high = scales[8 + i % 4] >> (i / 4 * 2) & 3;

			both |= (((low | high << 4) - 32) & 255) << (i % 2 * 8);
		}
		return (uint16_t) both;
	}
	else if constexpr (TYPE == FT_Q4_K || TYPE == FT_Q5_K)
	{
		/* the first four scales and minima have their six bits together */
		int scale = u < 4 ? scales[u] & 63 : (scales[u + 4] & 15) | scales[u - 4] >> 6 << 4;
		int min = u < 4 ? scales[u + 4] & 63 : scales[u + 4] >> 4 | scales[u] >> 6 << 4;

		return (uint16_t) (scale | min << 8);
	}
	else
		return raw_u16(scales + 2 * u);
}

/* f16 d and, in the high half, f16 m of a 256-value block. */
template <ft_dtype TYPE>
__device__ __forceinline__ uint32_t
raw_factors_256(const uint8_t *block)
{
	const uint8_t *at = block + raw_block_256<TYPE>::d_at;

	return raw_u16(at) | (ft_packed_has_min(TYPE) ? (uint32_t) raw_u16(at + 2) << 16 : 0);
}

/* Scale and minimum of one half (the same of both, where the type has one for a unit) from a unit's
 * two scale bytes and its block's factors: x = scale · (q - offset) + min. */
template <ft_dtype TYPE>
__device__ __forceinline__ void
scale_of_256(float &scale, float &min, uint16_t scales, uint32_t factors, int half)
{
	float d = f16_to_f32((uint16_t) factors);
	int byte = scales >> (half * 8) & 255;

	min = 0;
	if constexpr (TYPE == FT_Q2_K)
	{
		scale = d * (float) (byte & 15);
		min = -(f16_to_f32((uint16_t) (factors >> 16)) * (float) (byte >> 4));
	}
	else if constexpr (TYPE == FT_Q4_K || TYPE == FT_Q5_K)
	{
		scale = d * (float) (scales & 255);
		min = -(f16_to_f32((uint16_t) (factors >> 16)) * (float) (scales >> 8));
	}
	else
		scale = d * (float) (int8_t) byte;
}

/* The integer of column `col` as it is stored (before an offset is taken off). */
template <ft_dtype TYPE>
__device__ __forceinline__ int
raw_code(const uint8_t *row, int64_t col)
{
	if constexpr (is_block_of_256(TYPE))
		return raw_code_256<TYPE>(row + col / 256 * raw_block_256<TYPE>::bytes,
								  (int) (col % 256) / 32, (int) (col % 32));
	else
	{
		typedef raw_block<TYPE> at;
		const uint8_t *block = row + col / 32 * at::bytes;
		int j = (int) (col % 32);
		int code;

		if constexpr (TYPE == FT_Q8_0)
			return (int8_t) block[at::quants_at + j];
		code = block[at::quants_at + j % 16] >> (j / 16 * 4) & 15;
		if constexpr (at::has_high)
			code |= (block[at::high_at + j / 8] >> (j % 8) & 1) << 4;
		return code;
	}
}

template <ft_dtype TYPE>
__device__ __forceinline__ float
raw_value(const uint8_t *row, int64_t col)
{
	float code = (float) (raw_code<TYPE>(row, col) - ft_packed_offset(TYPE));
	float scale;
	float min;

	if constexpr (is_block_of_256(TYPE))
	{
		const uint8_t *block = row + col / 256 * raw_block_256<TYPE>::bytes;

		scale_of_256<TYPE>(scale, min, raw_scales_256<TYPE>(block, (int) (col % 256) / 32),
						   raw_factors_256<TYPE>(block), (int) (col % 32) / 16);
	}
	else
	{
		const uint8_t *block = row + col / 32 * raw_block<TYPE>::bytes;

		scale = f16_to_f32(raw_u16(block));
		min = raw_block<TYPE>::has_min ? f16_to_f32(raw_u16(block + 2)) : 0;
	}
	/* without a minimum nothing is added, so that a zero keeps its sign */
	return ft_packed_has_min(TYPE) ? scale * code + min : scale * code;
}

/* --- packed units --- */

/* Scale and minimum of one half of a unit, of a type of 256-value blocks. */
template <ft_dtype TYPE>
__device__ __forceinline__ void
packed_scale_256(float &scale, float &min, const ft_packed &part, int64_t unit, int half)
{
	if constexpr (TYPE == FT_Q6_K)
	{
		uint32_t both = ((const uint32_t *) part.scales)[unit];

		scale_of_256<TYPE>(scale, min, (uint16_t) (both >> 16), both & 0xffff, half);
	}
	else
		scale_of_256<TYPE>(scale, min, ((const uint16_t *) part.scales)[unit],
						   ((const uint32_t *) part.blocks)[unit / 8], half);
}

/* Columns [8 c, 8 c + 8), c < 4, of a unit of a type that has one scale for it, as integers:
 * x = v · scale + min. */
template <ft_dtype TYPE>
__device__ __forceinline__ void
packed_codes(float (&v)[8], float &scale, float &min, const ft_packed &part, int64_t unit, int c)
{
	min = 0;
	if constexpr (is_block_of_256(TYPE))
		packed_scale_256<TYPE>(scale, min, part, unit, 0);
	else if constexpr (ft_packed_scale_bytes(TYPE) == 2)
		scale = f16_to_f32(((const uint16_t *) part.scales)[unit]);
	else
	{
		uint32_t both = ((const uint32_t *) part.scales)[unit];

		scale = f16_to_f32((uint16_t) both);
		min = f16_to_f32((uint16_t) (both >> 16));
	}
	if constexpr (TYPE == FT_Q8_0)
	{
		uint2 x = ((const uint2 *) part.quants)[unit * 4 + c];
		uint32_t words[2] = {x.x, x.y};

#pragma unroll
		for (int i = 0; i < 8; i++)
			v[i] = (float) (int8_t) (words[i / 4] >> (i % 4 * 8));
	}
	else
	{
		uint2 x = ((const uint2 *) part.quants)[unit * 2 + c % 2];
		uint32_t words[2] = {x.x >> (c / 2 * 4), x.y >> (c / 2 * 4)};
		uint32_t high = 0;

		if constexpr (ft_packed_high_bytes(TYPE) > 0)
			high = ((const uint32_t *) part.high)[unit] >> (c * 8);
#pragma unroll
		for (int i = 0; i < 8; i++)
			v[i] = (float) ((int) (words[i / 4] >> (i % 4 * 8) & 15) +
							((int) (high >> i & 1) << 4) - ft_packed_offset(TYPE));
	}
}

/* The same columns of a type with a scale for each 16 columns. */
template <ft_dtype TYPE>
__device__ __forceinline__ void
packed_codes_of_halves(float (&v)[8], const ft_packed &part, int64_t unit, int c)
{
	uint32_t words[2] = {};
	uint32_t pairs = 0;
	uint32_t bits = 0;

	if constexpr (TYPE == FT_Q6_K)
	{
		uint2 x = ((const uint2 *) part.quants)[unit * 2 + c % 2];

		words[0] = x.x >> (c / 2 * 4);
		words[1] = x.y >> (c / 2 * 4);
		pairs = ((const uint32_t *) part.high)[unit * 2 + c / 2] >> (c % 2 * 16);
	}
	else
		pairs = ((const uint32_t *) part.quants)[unit * 2 + c / 2] >> (c % 2 * 16);
	if constexpr (TYPE == FT_Q3_K)
		bits = ((const uint32_t *) part.high)[unit] >> (c * 8);
#pragma unroll
	for (int i = 0; i < 8; i++)
	{
		int pair = (int) (pairs >> (2 * i) & 3);
		int code = TYPE == FT_Q6_K ? (int) (words[i / 4] >> (i % 4 * 8) & 15) + (pair << 4)
								   : pair + ((int) (bits >> i & 1) << 2);

		v[i] = (float) (code - ft_packed_offset(TYPE));
	}
}

/* Columns [8 c, 8 c + 8), c < 4, of a unit of any type, dequantised. */
template <ft_dtype TYPE>
__device__ __forceinline__ void
packed_eight(float (&v)[8], const ft_packed &part, int64_t unit, int c)
{
	if constexpr (TYPE == FT_F32)
	{
		const float4 *at = (const float4 *) part.quants + unit * 8 + c * 2;
		float4 a = at[0];
		float4 b = at[1];

		v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
		v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
	}
	else if constexpr (TYPE == FT_F16 || TYPE == FT_BF16)
	{
		uint4 x = ((const uint4 *) part.quants)[unit * 4 + c];
		uint32_t words[4] = {x.x, x.y, x.z, x.w};

#pragma unroll
		for (int i = 0; i < 8; i++)
		{
			uint16_t bits = (uint16_t) (words[i / 2] >> (i % 2 * 16));

			v[i] = TYPE == FT_F16 ? f16_to_f32(bits) : bits_to_float((uint32_t) bits << 16);
		}
	}
	else
	{
		float scale;
		float min;

		if constexpr (ft_packed_halves(TYPE))
		{
			packed_codes_of_halves<TYPE>(v, part, unit, c);
			packed_scale_256<TYPE>(scale, min, part, unit, c / 2);
		}
		else
			packed_codes<TYPE>(v, scale, min, part, unit, c);
#pragma unroll
		for (int i = 0; i < 8; i++)
			v[i] = ft_packed_has_min(TYPE) ? v[i] * scale + min : v[i] * scale;
	}
}

/* Call f with the stored type as a template argument. */
template <ft_dtype TYPE> struct stored_tag
{
	static constexpr ft_dtype type = TYPE;
};

template <typename F>
static ft_status
with_stored(const char *op, ft_dtype type, F f)
{
	switch (type)
	{
		case FT_F32:
			return f(stored_tag<FT_F32>());
		case FT_F16:
			return f(stored_tag<FT_F16>());
		case FT_BF16:
			return f(stored_tag<FT_BF16>());
		case FT_Q4_0:
			return f(stored_tag<FT_Q4_0>());
		case FT_Q4_1:
			return f(stored_tag<FT_Q4_1>());
		case FT_Q5_0:
			return f(stored_tag<FT_Q5_0>());
		case FT_Q5_1:
			return f(stored_tag<FT_Q5_1>());
		case FT_Q8_0:
			return f(stored_tag<FT_Q8_0>());
		case FT_Q2_K:
			return f(stored_tag<FT_Q2_K>());
		case FT_Q3_K:
			return f(stored_tag<FT_Q3_K>());
		case FT_Q4_K:
			return f(stored_tag<FT_Q4_K>());
		case FT_Q5_K:
			return f(stored_tag<FT_Q5_K>());
		case FT_Q6_K:
			return f(stored_tag<FT_Q6_K>());
		default:
			return ft_cuda_unsupported(op, type, type);
	}
}

static inline bool
ft_is_quantised(ft_dtype type)
{
	return ft_dtype_get(type)->block_values > 1;
}

#endif
