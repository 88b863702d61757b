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
 *   q6_k             quants 16 B, high 2 × u32 (16 bit pairs each), scales f16 d, i8 × 2
 *
 * Dequantised values are exact in f32: a product of at most 24 bits.
 */
#ifndef FT_CUDA_PACKED_CUH
#define FT_CUDA_PACKED_CUH

#include "intrinsics.cuh"

__host__ __device__ constexpr int
ft_packed_quant_bytes(ft_dtype type)
{
	return type == FT_F32                      ? 128
		   : type == FT_F16 || type == FT_BF16 ? 64
		   : type == FT_Q8_0                   ? 32
											   : 16;
}

__host__ __device__ constexpr int
ft_packed_high_bytes(ft_dtype type)
{
	return type == FT_Q5_0 || type == FT_Q5_1 ? 4 : type == FT_Q6_K ? 8 : 0;
}

__host__ __device__ constexpr int
ft_packed_scale_bytes(ft_dtype type)
{
	return type == FT_Q4_0 || type == FT_Q5_0 || type == FT_Q8_0   ? 2
		   : type == FT_Q4_1 || type == FT_Q5_1 || type == FT_Q6_K ? 4
																   : 0;
}

/* --- raw blocks --- */

__device__ __forceinline__ uint16_t
raw_u16(const uint8_t *p)
{
	return (uint16_t) (p[0] | p[1] << 8);
}

/* Where the parts of a 32-value block lie; q6_k has its own functions. */
template <ft_dtype TYPE> struct raw_block
{
	static constexpr bool has_min = TYPE == FT_Q4_1 || TYPE == FT_Q5_1;
	static constexpr bool has_high = TYPE == FT_Q5_0 || TYPE == FT_Q5_1;
	static constexpr int high_at = has_min ? 4 : 2;
	static constexpr int quants_at = high_at + (has_high ? 4 : 0);
	static constexpr int bytes = quants_at + (TYPE == FT_Q8_0 ? 32 : 16);
	static constexpr int offset = TYPE == FT_Q4_0 ? 8 : TYPE == FT_Q5_0 ? 16 : 0;
};

/* The integer of column `col` as it is stored (before an offset is taken off). */
template <ft_dtype TYPE>
__device__ __forceinline__ int
raw_code(const uint8_t *row, int64_t col)
{
	if constexpr (TYPE == FT_Q6_K)
	{
		const uint8_t *block = row + col / 256 * 210;
		int half = (int) (col % 256) / 128;
		int quarter = (int) (col % 128) / 32;
		int l = (int) (col % 32);
		int low = block[half * 64 + (quarter & 1) * 32 + l] >> (quarter / 2 * 4) & 15;
		int high = block[128 + half * 32 + l] >> (quarter * 2) & 3;

		return low | high << 4;
	}
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
	int code = raw_code<TYPE>(row, col);

	if constexpr (TYPE == FT_Q6_K)
	{
		const uint8_t *block = row + col / 256 * 210;
		int scale = (int8_t) block[192 + col % 256 / 16];

		return f16_to_f32(raw_u16(block + 208)) * (float) (scale * (code - 32));
	}
	else
	{
		typedef raw_block<TYPE> at;
		const uint8_t *block = row + col / 32 * at::bytes;
		float x = f16_to_f32(raw_u16(block)) * (float) (code - at::offset);

		if constexpr (at::has_min)
			x += f16_to_f32(raw_u16(block + 2));
		return x;
	}
}

/* --- packed units --- */

/* Columns [8 c, 8 c + 8), c < 4, of a unit of a type of 32-value blocks: x = v · scale + min. */
template <ft_dtype TYPE>
__device__ __forceinline__ void
packed_codes(float (&v)[8], float &scale, float &min, const ft_packed &part, int64_t unit, int c)
{
	min = 0;
	if constexpr (ft_packed_scale_bytes(TYPE) == 2)
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
							((int) (high >> i & 1) << 4) - raw_block<TYPE>::offset);
	}
}

/* The same columns of q6_k, dequantised. */
__device__ __forceinline__ void
packed_eight_q6_k(float (&v)[8], const ft_packed &part, int64_t unit, int c)
{
	uint2 x = ((const uint2 *) part.quants)[unit * 2 + c % 2];
	uint32_t words[2] = {x.x >> (c / 2 * 4), x.y >> (c / 2 * 4)};
	uint32_t high = ((const uint32_t *) part.high)[unit * 2 + c / 2] >> (c % 2 * 16);
	uint32_t scales = ((const uint32_t *) part.scales)[unit];
	float d = f16_to_f32((uint16_t) scales);
	int scale = (int8_t) (scales >> (c < 2 ? 16 : 24));

#pragma unroll
	for (int i = 0; i < 8; i++)
	{
		int code = (int) (words[i / 4] >> (i % 4 * 8) & 15) + ((int) (high >> (2 * i) & 3) << 4);

		v[i] = d * (float) (scale * (code - 32));
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
	else if constexpr (TYPE == FT_Q6_K)
		packed_eight_q6_k(v, part, unit, c);
	else
	{
		float scale;
		float min;

		packed_codes<TYPE>(v, scale, min, part, unit, c);
#pragma unroll
		for (int i = 0; i < 8; i++)
			v[i] = v[i] * scale + min;
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
