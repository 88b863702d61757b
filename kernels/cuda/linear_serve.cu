/*
 * linear_serve.cu: y = x · Wᵀ for serving, by bf16 matrix instructions over a
 * packed weight, such that a row of y depends on its row of x alone.
 *
 * The weight's rows are the 16 rows of a fragment and the tokens its 8 columns,
 * so that a single token wastes arithmetic that nobody waits for, and no memory
 * traffic.  The warps of a block share its outputs: warp w takes the units w,
 * w + WARPS, … of 32 columns of k, and at the end the warps' sums are added in
 * order.  That order is the same for every tile shape; the shape follows the
 * number of tokens.
 *
 * Lane (g, c) holds columns [8 c, 8 c + 8) of a unit, of the weight's rows g and
 * g + 8 and of token g: each a whole vector load.  The fragments' k are these
 * columns in another order, the same for both operands.
 *
 * Weights are exactly as stored: see operand_of.
 */
#include "packed.cuh"

#define WARPS 8
#define THREADS (WARPS * FT_WARP)

/* How the values of a type become bf16 operands without loss. */
template <ft_dtype TYPE> struct operand_of
{
	/* Quantised types enter as their integers, which bf16 holds exactly, and are scaled per unit.
	 */
	static constexpr bool scaled = TYPE != FT_F32 && TYPE != FT_F16 && TYPE != FT_BF16;
	static constexpr bool has_min = ft_packed_has_min(TYPE);
	/* With a scale for each 16 columns a step of the product takes one of these halves. */
	static constexpr bool halves = ft_packed_halves(TYPE);
	/* f16 is the sum of two bf16, f32 of three. */
	static constexpr int addends = TYPE == FT_F32 ? 3 : TYPE == FT_F16 ? 2 : 1;
};

/* What a lane has of a row of the weight for one unit. */
template <ft_dtype TYPE> struct weight_unit
{
	uint32_t values[operand_of<TYPE>::addends][4];
	float scale[2]; /* of each step */
	float min[2];
};

/* Split eight values into bf16 addends, each of what the ones before leave. */
template <int ADDENDS>
__device__ __forceinline__ void
split_eight(uint32_t (&packed)[ADDENDS][4], float (&v)[8])
{
#pragma unroll
	for (int a = 0; a < ADDENDS; a++)
	{
#pragma unroll
		for (int i = 0; i < 4; i++)
		{
			packed[a][i] = pack_bf16(v[2 * i], v[2 * i + 1]);
			v[2 * i] -= bits_to_float(packed[a][i] << 16);
			v[2 * i + 1] -= bits_to_float(packed[a][i] & 0xffff0000u);
		}
	}
}

/* Columns [4 c, 4 c + 4) of both halves of a unit. */
template <ft_dtype TYPE>
__device__ __forceinline__ void
load_halves(weight_unit<TYPE> &w, const ft_packed &part, int64_t unit, int c)
{
	uint32_t nibbles = 0;
	uint32_t bits = 0;

	if constexpr (TYPE == FT_Q6_K)
		nibbles = ((const uint32_t *) part.quants)[unit * 4 + c];
	if constexpr (TYPE == FT_Q3_K)
		bits = ((const uint32_t *) part.high)[unit] >> (c * 4);
#pragma unroll
	for (int half = 0; half < 2; half++)
	{
		const uint32_t *words = (const uint32_t *) (TYPE == FT_Q6_K ? part.high : part.quants);
		uint32_t pairs = words[unit * 2 + half] >> (c * 8);
		float v[4];

#pragma unroll
		for (int i = 0; i < 4; i++)
		{
			int pair = (int) (pairs >> (2 * i) & 3);
			int code = TYPE == FT_Q6_K ? (int) (nibbles >> (i * 8 + half * 4) & 15) + (pair << 4)
									   : pair + ((int) (bits >> (16 * half + i) & 1) << 2);

			v[i] = (float) (code - ft_packed_offset(TYPE));
		}
		w.values[0][2 * half] = pack_bf16(v[0], v[1]);
		w.values[0][2 * half + 1] = pack_bf16(v[2], v[3]);
		packed_scale_256<TYPE>(w.scale[half], w.min[half], part, unit, half);
	}
}

template <ft_dtype TYPE>
__device__ __forceinline__ void
load_weight(weight_unit<TYPE> &w, const ft_packed &part, int64_t unit, int c)
{
	if constexpr (operand_of<TYPE>::halves)
		load_halves<TYPE>(w, part, unit, c);
	else if constexpr (TYPE == FT_BF16)
	{
		uint4 x = ((const uint4 *) part.quants)[unit * 4 + c];

		w.values[0][0] = x.x, w.values[0][1] = x.y;
		w.values[0][2] = x.z, w.values[0][3] = x.w;
	}
	else
	{
		float v[8];

		if constexpr (operand_of<TYPE>::scaled)
			packed_codes<TYPE>(v, w.scale[0], w.min[0], part, unit, c);
		else
			packed_eight<TYPE>(v, part, unit, c);
		split_eight<operand_of<TYPE>::addends>(w.values, v);
	}
}

/* The lane's columns of a token: as those of the weight. */
template <ft_dtype TYPE>
__device__ __forceinline__ void
load_token(uint32_t (&x)[4], const bf16 *row, int64_t unit, int c, int64_t cols, bool aligned)
{
	if constexpr (operand_of<TYPE>::halves)
	{
		/* such types have whole units of columns only */
		const bf16 *from = row + unit * FT_UNIT + c * 4;

#pragma unroll
		for (int i = 0; i < 4; i++)
			x[i] = from[i / 2 * 16 + i % 2 * 2].bits |
				   (uint32_t) from[i / 2 * 16 + i % 2 * 2 + 1].bits << 16;
	}
	else
		load_eight(x, row, unit * FT_UNIT + c * 8, cols, aligned);
}

/* sum += the product of a unit of 16 rows (the lane's rows `low` and `high`) and 8 tokens.
 * column_sums are the tokens' sums over each half of the unit, or in the first over all of it,
 * where the type has minima. */
template <ft_dtype TYPE>
__device__ __forceinline__ void
add_unit(float (&sum)[4], const weight_unit<TYPE> &low, const weight_unit<TYPE> &high,
		 const uint32_t (&x)[4], const float (&column_sums)[2][4])
{
	typedef operand_of<TYPE> kind;
	float product[4] = {};

#pragma unroll
	for (int addend = 0; addend < kind::addends; addend++)
	{
#pragma unroll
		for (int step = 0; step < 2; step++)
		{
			const uint32_t(&l)[4] = low.values[addend];
			const uint32_t(&h)[4] = high.values[addend];
			uint32_t a[4] = {l[2 * step], h[2 * step], l[2 * step + 1], h[2 * step + 1]};

			if constexpr (!kind::scaled)
				mma_bf16(sum, a, x[2 * step], x[2 * step + 1]);
			else
				mma_bf16(product, a, x[2 * step], x[2 * step + 1]);
			if constexpr (kind::halves)
			{
#pragma unroll
				for (int i = 0; i < 4; i++)
				{
					sum[i] += (i < 2 ? low : high).scale[step] * product[i];
					if constexpr (kind::has_min)
						sum[i] += (i < 2 ? low : high).min[step] * column_sums[step][i];
					product[i] = 0;
				}
			}
		}
	}
	if constexpr (kind::scaled && !kind::halves)
	{
#pragma unroll
		for (int i = 0; i < 4; i++)
		{
			sum[i] += (i < 2 ? low : high).scale[0] * product[i];
			if constexpr (kind::has_min)
				sum[i] += (i < 2 ? low : high).min[0] * column_sums[0][i];
		}
	}
}

/* One tile by a block: MT fragments of 16 weight rows by NT fragments of 8 tokens. */
template <ft_dtype TYPE, int MT, int NT>
__device__ __forceinline__ void
multiply_tile(float (*total)[MT * 16 + 1], const ft_mat &y, const view<const bf16> &x,
			  bool x_aligned, const ft_packed &part, float beta, int64_t first_row,
			  int64_t first_token)
{
	const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
	int warp = threadIdx.x / FT_WARP;
	int lane = threadIdx.x % FT_WARP;
	int g = lane / 4;
	int c = lane % 4;
	float sum[MT][NT][4] = {};

#pragma unroll 1
	for (int64_t unit = warp; unit < part.units; unit += WARPS)
	{
		weight_unit<TYPE> w[MT][2];

#pragma unroll
		for (int i = 0; i < 2 * MT; i++)
		{
			int64_t row = first_row + i * 8 + g;

			/* A row beyond the last is computed and not written. */
			row = row < part.rows ? row : part.rows - 1;
			load_weight<TYPE>(w[i / 2][i % 2], part, row * part.units + unit, c);
		}
#pragma unroll
		for (int n = 0; n < NT; n++)
		{
			int64_t token = first_token + n * 8 + g;
			uint32_t columns[4] = {0, 0, 0, 0};
			float column_sums[2][4] = {};

			if (token < x.rows)
				load_token<TYPE>(columns, x.row(token), unit, c, x.cols, x_aligned);
			if constexpr (operand_of<TYPE>::has_min)
			{
				mma_bf16(column_sums[0], ones, columns[0], columns[1]);
				mma_bf16(column_sums[operand_of<TYPE>::halves], ones, columns[2], columns[3]);
			}
#pragma unroll
			for (int m = 0; m < MT; m++)
				add_unit<TYPE>(sum[m][n], w[m][0], w[m][1], columns, column_sums);
		}
	}

	/* Add the warps' sums in order. */
	for (int turn = 0; turn < WARPS; turn++)
	{
		if (turn == warp)
		{
#pragma unroll
			for (int m = 0; m < MT; m++)
			{
#pragma unroll
				for (int n = 0; n < NT; n++)
				{
#pragma unroll
					for (int i = 0; i < 4; i++)
					{
						float *at = &total[n * 8 + c * 2 + i % 2][m * 16 + g + i / 2 * 8];

						*at = turn == 0 ? sum[m][n][i] : *at + sum[m][n][i];
					}
				}
			}
		}
		__syncthreads();
	}
	for (int i = threadIdx.x; i < NT * 8 * MT * 16; i += THREADS)
	{
		int64_t token = first_token + i / (MT * 16);
		int64_t row = first_row + i % (MT * 16);

		float *to = (float *) y.data + token * y.ld + row;
		float x = total[i / (MT * 16)][i % (MT * 16)];

		if (token >= y.rows || row >= part.rows)
			continue;
		if (y.dtype == FT_BF16)
			set_value(((bf16 *) y.data)[token * y.ld + row], x);
		else
			*to = beta != 0.0f ? x + beta * *to : x;
	}
}

template <ft_dtype TYPE, int MT, int NT>
static __global__ void
__launch_bounds__(THREADS)
	linear_tile(ft_mat y, view<const bf16> x, bool x_aligned, ft_packed part, float beta)
{
	__shared__ float total[NT * 8][MT * 16 + 1];

	multiply_tile<TYPE, MT, NT>(total, y, x, x_aligned, part, beta,
								blockIdx.x * (int64_t) (MT * 16), blockIdx.y * (int64_t) (NT * 8));
}

/* The same over the rows of part blockIdx.z's expert. */
template <ft_dtype TYPE, int MT, int NT>
static __global__ void
__launch_bounds__(THREADS) experts_tile(ft_mat y, view<const bf16> x, bool x_aligned,
										ft_expert_parts parts, const int32_t *starts)
{
	__shared__ float total[NT * 8][MT * 16 + 1];
	const ft_packed &part = parts.part[blockIdx.z].packed;
	int expert = parts.part[blockIdx.z].expert;
	int64_t first = starts[expert];
	int64_t rows = starts[expert + 1] - first;

	if (blockIdx.x * (int64_t) (MT * 16) >= part.rows)
		return;
	y.data = (char *) y.data + (first * y.ld + part.first) * (y.dtype == FT_F32 ? 4 : 2);
	y.rows = rows;
	x.data += first * x.ld;
	x.rows = rows;
	for (int64_t token = blockIdx.y * (int64_t) (NT * 8); token < rows;
		 token += gridDim.y * (int64_t) (NT * 8))
	{
		multiply_tile<TYPE, MT, NT>(total, y, x, x_aligned, part, 0.0f,
									blockIdx.x * (int64_t) (MT * 16), token);
		__syncthreads();
	}
}

template <ft_dtype TYPE, int MT, int NT>
static ft_status
launch(ft_stream *s, ft_mat y, ft_mat x, const ft_packed *part, float beta)
{
	bool x_aligned = (uintptr_t) x.data % 16 == 0 && x.ld % 8 == 0;
	dim3 grid((unsigned) ft_divide_up(part->rows, MT * 16),
			  (unsigned) ft_divide_up(y.rows, NT * 8));

	if (grid.y > FT_MAX_GRID_Y)
		return ft_fail(FT_UNSUPPORTED, "linear of %lld rows", (long long) y.rows);
	FT_LAUNCH((linear_tile<TYPE, MT, NT>), grid, THREADS, 0, s->stream, y, view_of<const bf16>(x),
			  x_aligned, *part, beta);
	return ft_cuda_launched("linear");
}

ft_status
ft_cuda_linear_bf16(ft_stream *s, ft_mat y, ft_mat x, const ft_packed *part, float beta)
{
	return with_stored("linear", part->dtype,
					   [&](auto stored)
					   {
						   constexpr ft_dtype type = decltype(stored)::type;

						   if (y.rows <= 8)
							   return launch<type, 1, 1>(s, y, x, part, beta);
						   return launch<type, 2, 4>(s, y, x, part, beta);
					   });
}

/* --- the same for experts --- */

template <ft_dtype TYPE, int MT, int NT>
static ft_status
launch_experts(ft_stream *s, ft_mat y, ft_mat x, const ft_expert_parts *parts, int n_experts,
			   const int32_t *starts)
{
	bool x_aligned = (uintptr_t) x.data % 16 == 0 && x.ld % 8 == 0;
	/* Twice an expert's share of the rows; one that has more goes on after these. */
	int64_t share = ft_divide_up(2 * y.rows, n_experts);
	dim3 grid((unsigned) ft_divide_up(parts->rows, MT * 16),
			  (unsigned) ft_min64(ft_divide_up(share, NT * 8), FT_MAX_GRID_Y), (unsigned) parts->n);

	FT_LAUNCH((experts_tile<TYPE, MT, NT>), grid, THREADS, 0, s->stream, y, view_of<const bf16>(x),
			  x_aligned, *parts, starts);
	return ft_cuda_launched("linear_experts");
}

ft_status
ft_cuda_experts_bf16(ft_stream *s, ft_mat y, ft_mat x, const ft_expert_parts *parts, int n_experts,
					 const int32_t *starts)
{
	return with_stored("linear_experts", parts->part[0].packed.dtype,
					   [&](auto stored)
					   {
						   constexpr ft_dtype type = decltype(stored)::type;

						   if (2 * y.rows <= 8 * n_experts)
							   return launch_experts<type, 1, 1>(s, y, x, parts, n_experts, starts);
						   return launch_experts<type, 2, 4>(s, y, x, parts, n_experts, starts);
					   });
}
