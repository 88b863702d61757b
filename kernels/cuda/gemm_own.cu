/*
 * gemm_own.cu: matrix products without a library, in f32 arithmetic.
 *
 * For reference numerics in serving, for pairs of types that cuBLASLt does not
 * multiply and for shapes that it refuses.  A thread sums its outputs over k in
 * rising order, whatever the number of rows: so a row of the result does not
 * depend on how many others there are.
 */
#include "packed.cuh"

#define TILE 64  /* rows and columns of the result that a block makes */
#define DEPTH 32 /* of k at a time: a unit of a packed weight */
#define SIDE 16  /* threads along each side of the tile */
#define EACH (TILE / SIDE)
#define THREADS (SIDE * SIDE)

/* A value of a matrix whose type the kernel is told.  This kernel is no product's fast path, so it
 * is not made for each combination of types. */
__device__ __forceinline__ float
value_at(const void *data, bool is_bf16, int64_t i)
{
	return is_bf16 ? value(((const bf16 *) data)[i]) : ((const float *) data)[i];
}

/* An operand [n, k] with any strides. */
struct strided
{
	const void *data;
	bool is_bf16;
	int64_t n;
	int64_t k;
	int64_t step_n;
	int64_t step_k;

	/* Lay rows [first, first + TILE), k [k0, k0 + DEPTH) out as tile[k][row]. */
	__device__ void load(float (*tile)[TILE + 4], int64_t first, int64_t k0) const
	{
		for (int i = threadIdx.x; i < TILE * DEPTH; i += THREADS)
		{
			/* Neighbouring threads read neighbouring values. */
			int row = step_k == 1 ? i / DEPTH : i % TILE;
			int depth = step_k == 1 ? i % DEPTH : i / TILE;
			bool inside = first + row < n && k0 + depth < k;
			int64_t at = (first + row) * step_n + (k0 + depth) * step_k;

			tile[depth][row] = inside ? value_at(data, is_bf16, at) : 0.0f;
		}
	}
};

/* Rows of a packed weight. */
template <ft_dtype TYPE> struct packed_rows
{
	ft_packed part;
	int64_t n;
	int64_t k;

	__device__ void load(float (*tile)[TILE + 4], int64_t first, int64_t k0) const
	{
		for (int i = threadIdx.x; i < TILE * DEPTH / 8; i += THREADS)
		{
			int row = i / 4;
			int c = i % 4;
			float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};

			if (first + row < n)
				packed_eight<TYPE>(v, part, (first + row) * part.units + k0 / FT_UNIT, c);
#pragma unroll
			for (int j = 0; j < 8; j++)
				tile[c * 8 + j][row] = k0 + c * 8 + j < k ? v[j] : 0.0f;
		}
	}
};

/* One tile by a block: c (f32 or bf16) = alpha · a · bᵀ + beta · c. */
template <typename B>
__device__ __forceinline__ void
multiply_tile(float (*tile_a)[TILE + 4], float (*tile_b)[TILE + 4], const ft_mat &c,
			  const strided &a, const B &b, float alpha, float beta, int64_t first_row,
			  int64_t first_col)
{
	int row = threadIdx.x / SIDE * EACH;
	int col = threadIdx.x % SIDE * EACH;
	float sum[EACH][EACH] = {};

	for (int64_t k0 = 0; k0 < a.k; k0 += DEPTH)
	{
		a.load(tile_a, first_row, k0);
		b.load(tile_b, first_col, k0);
		__syncthreads();
#pragma unroll 4
		for (int k = 0; k < DEPTH; k++)
		{
			float x[EACH];
			float y[EACH];

#pragma unroll
			for (int i = 0; i < EACH; i++)
			{
				x[i] = tile_a[k][row + i];
				y[i] = tile_b[k][col + i];
			}
#pragma unroll
			for (int i = 0; i < EACH; i++)
			{
#pragma unroll
				for (int j = 0; j < EACH; j++)
					sum[i][j] += x[i] * y[j];
			}
		}
		__syncthreads();
	}
#pragma unroll
	for (int i = 0; i < EACH * EACH; i++)
	{
		int64_t at_row = first_row + row + i / EACH;
		int64_t at_col = first_col + col + i % EACH;
		int64_t at = at_row * c.ld + at_col;
		float x = alpha * sum[i / EACH][i % EACH];

		if (at_row >= c.rows || at_col >= c.cols)
			continue;
		if (beta != 0.0f)
			x += beta * value_at(c.data, c.dtype == FT_BF16, at);
		if (c.dtype == FT_BF16)
			set_value(((bf16 *) c.data)[at], x);
		else
			((float *) c.data)[at] = x;
	}
}

template <typename B>
static __global__ void
multiply(ft_mat c, strided a, B b, float alpha, float beta)
{
	__shared__ float tile_a[DEPTH][TILE + 4];
	__shared__ float tile_b[DEPTH][TILE + 4];

	multiply_tile(tile_a, tile_b, c, a, b, alpha, beta, blockIdx.y * (int64_t) TILE,
				  blockIdx.x * (int64_t) TILE);
}

/* The same over the rows of part blockIdx.z's expert. */
template <ft_dtype TYPE>
static __global__ void
multiply_experts(ft_mat c, strided a, ft_expert_parts parts, const int32_t *starts)
{
	__shared__ float tile_a[DEPTH][TILE + 4];
	__shared__ float tile_b[DEPTH][TILE + 4];
	const ft_packed &part = parts.part[blockIdx.z].packed;
	int expert = parts.part[blockIdx.z].expert;
	int64_t first = starts[expert];
	int64_t rows = starts[expert + 1] - first;
	packed_rows<TYPE> w = {part, part.rows, a.k};

	if (blockIdx.x * (int64_t) TILE >= part.rows)
		return;
	c.data = (char *) c.data + (first * c.ld + part.first) * (c.dtype == FT_F32 ? 4 : 2);
	c.rows = rows;
	c.cols = part.rows;
	a.data = (const char *) a.data + first * a.step_n * (a.is_bf16 ? 2 : 4);
	a.n = rows;
	for (int64_t row = blockIdx.y * (int64_t) TILE; row < rows; row += gridDim.y * (int64_t) TILE)
		multiply_tile(tile_a, tile_b, c, a, w, 1.0f, 0.0f, row, blockIdx.x * (int64_t) TILE);
}

template <typename B>
static ft_status
launch(ft_stream *s, ft_mat c, strided a, B b, float alpha, float beta)
{
	dim3 grid((unsigned) ft_divide_up(c.cols, TILE), (unsigned) ft_divide_up(c.rows, TILE));

	if (grid.y > FT_MAX_GRID_Y)
		return ft_fail(FT_UNSUPPORTED, "matrix product of %lld rows", (long long) c.rows);
	FT_LAUNCH((multiply<B>), grid, THREADS, 0, s->stream, c, a, b, alpha, beta);
	return ft_cuda_launched("matrix product");
}

static strided
operand(ft_mat m, bool transposed)
{
	if (transposed)
		return strided{m.data, m.dtype == FT_BF16, m.cols, m.rows, 1, m.ld};
	return strided{m.data, m.dtype == FT_BF16, m.rows, m.cols, m.ld, 1};
}

ft_status
ft_cuda_gemm_own(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha,
				 float beta)
{
	/* b is [k, n] and the kernel takes rows of n. */
	return launch(s, c, operand(a, ta), operand(b, !tb), alpha, beta);
}

ft_status
ft_cuda_linear_f32(ft_stream *s, ft_mat y, ft_mat x, const ft_packed *part, float beta)
{
	return with_stored("linear", part->dtype,
					   [&](auto stored)
					   {
						   packed_rows<decltype(stored)::type> w = {*part, part->rows, x.cols};

						   return launch(s, y, operand(x, false), w, 1.0f, beta);
					   });
}

ft_status
ft_cuda_experts_f32(ft_stream *s, ft_mat y, ft_mat x, const ft_expert_parts *parts, int n_experts,
					const int32_t *starts)
{
	/* Twice an expert's share of the rows; one that has more goes on after these. */
	int64_t share = ft_divide_up(2 * y.rows, n_experts);
	dim3 grid((unsigned) ft_divide_up(parts->rows, TILE),
			  (unsigned) ft_min64(ft_divide_up(share, TILE), FT_MAX_GRID_Y), (unsigned) parts->n);

	return with_stored("linear_experts", parts->part[0].packed.dtype,
					   [&](auto stored)
					   {
						   FT_LAUNCH((multiply_experts<decltype(stored)::type>), grid, THREADS, 0,
									 s->stream, y, operand(x, false), *parts, starts);
						   return ft_cuda_launched("linear_experts");
					   });
}
