/*
 * attention.cuh: what the attention kernels share.
 */
#ifndef FT_CUDA_ATTENTION_CUH
#define FT_CUDA_ATTENTION_CUH

#include "intrinsics.cuh"

#define FT_MAX_HEAD_DIM 256
#define FT_LOG2E 1.4426950408889634f
#define FT_LN2 0.6931471805599453f

/* An ft_attention as a kernel takes it. */
struct attention_shape
{
	int heads;
	int kv_heads;
	int head_dim;
	int window;
	float scale;
	int n_sequences;
	int tiles; /* of the longest sequence, where a block handles a tile of rows */
	const int32_t *starts;
};

static inline attention_shape
attention_shape_of(const ft_attention *a, int tile)
{
	return attention_shape{a->heads,
						   a->kv_heads,
						   a->head_dim,
						   a->window,
						   a->scale,
						   a->n_sequences,
						   tile > 0 ? (a->max_length + tile - 1) / tile : 0,
						   a->starts};
}

/* The sequence that a row belongs to: the last that begins at or before it. */
__device__ __forceinline__ int
sequence_of(const int32_t *starts, int n, int row)
{
	int low = 0;
	int high = n - 1;

	while (low < high)
	{
		int middle = (low + high + 1) / 2;

		if (starts[middle] <= row)
			low = middle;
		else
			high = middle - 1;
	}
	return low;
}

/* May position `row` see position `key`? */
__device__ __forceinline__ bool
sees(int row, int key, int window)
{
	return key <= row && (window == 0 || key > row - window);
}

/* Is a matrix fit for loads of 16 bytes at whole heads? */
static inline bool
is_aligned(ft_mat m)
{
	return (uintptr_t) m.data % 16 == 0 && m.ld % 8 == 0;
}

/* --- tiles of bf16 in shared memory --- */

/* Rows of D values, padded so that the eight rows of a matrix lie in different banks. */
template <int D> struct tile_row
{
	bf16 values[D + 8];
};

struct tile_source
{
	const bf16 *data;
	int64_t ld;
	bool aligned;
};

/* ROWS rows from `from` (already at its first row and head); rows from `valid` on are zero. */
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void
load_tile(tile_row<D> *tile, const bf16 *from, int64_t ld, bool aligned, int valid)
{
	for (int i = threadIdx.x; i < ROWS * (D / 8); i += THREADS)
	{
		int row = i / (D / 8);
		int col = i % (D / 8) * 8;
		uint32_t v[4] = {0, 0, 0, 0};

		if (row < valid)
			load_eight(v, from + row * ld, col, D, aligned);
		*(uint4 *) &tile[row].values[col] = make_uint4(v[0], v[1], v[2], v[3]);
	}
}

/* a = 16 rows of a tile, columns [16 step, 16 step + 16). */
template <int D>
__device__ __forceinline__ void
load_a(uint32_t (&a)[4], const tile_row<D> *rows, int step)
{
	int lane = threadIdx.x % FT_WARP;

	load_matrices(a, &rows[lane % 16].values[step * 16 + lane / 16 * 8]);
}

/* b for two neighbouring groups of eight columns of the product, which are rows of the tile: b[0],
 * b[1] for rows 0-7, b[2], b[3] for rows 8-15. */
template <int D>
__device__ __forceinline__ void
load_b_rows(uint32_t (&b)[4], const tile_row<D> *rows, int step)
{
	int lane = threadIdx.x % FT_WARP;

	load_matrices(b, &rows[lane % 8 + lane / 16 * 8].values[step * 16 + lane / 8 % 2 * 8]);
}

/* b for two neighbouring groups of eight columns of the product, which are columns of the tile, k
 * being its 16 rows. */
template <int D>
__device__ __forceinline__ void
load_b_columns(uint32_t (&b)[4], const tile_row<D> *rows, int pair)
{
	int lane = threadIdx.x % FT_WARP;

	load_matrices_transposed(b, &rows[lane % 16].values[pair * 16 + lane / 16 * 8]);
}

/* product[16, 8 N] = 16 rows of `left` · (8 N rows of `right`)ᵀ over D. */
template <int D, int N>
__device__ __forceinline__ void
multiply_rows(float (&product)[N][4], const tile_row<D> *left, const tile_row<D> *right)
{
#pragma unroll
	for (int n = 0; n < N; n++)
		product[n][0] = product[n][1] = product[n][2] = product[n][3] = 0.0f;
#pragma unroll
	for (int step = 0; step < D / 16; step++)
	{
		uint32_t a[4];

		load_a<D>(a, left, step);
#pragma unroll
		for (int pair = 0; pair < N / 2; pair++)
		{
			uint32_t b[4];

			load_b_rows<D>(b, right + pair * 16, step);
			mma_bf16(product[2 * pair], a, b[0], b[1]);
			mma_bf16(product[2 * pair + 1], a, b[2], b[3]);
		}
	}
}

/* sum[16, D] += left[16, 8 N] (a product as it stands in registers, rounded to bf16) · the tile's 8
 * N rows. */
template <int D, int N>
__device__ __forceinline__ void
accumulate_rows(float (&sum)[D / 8][4], const float (&left)[N][4], const tile_row<D> *right)
{
#pragma unroll
	for (int step = 0; step < N / 2; step++)
	{
		uint32_t a[4] = {pack_bf16(left[2 * step][0], left[2 * step][1]),
						 pack_bf16(left[2 * step][2], left[2 * step][3]),
						 pack_bf16(left[2 * step + 1][0], left[2 * step + 1][1]),
						 pack_bf16(left[2 * step + 1][2], left[2 * step + 1][3])};

#pragma unroll
		for (int pair = 0; pair < D / 16; pair++)
		{
			uint32_t b[4];

			load_b_columns<D>(b, right + step * 16, pair);
			mma_bf16(sum[2 * pair], a, b[0], b[1]);
			mma_bf16(sum[2 * pair + 1], a, b[2], b[3]);
		}
	}
}

/* Write a warp's 16 rows of D values, times factor, those of [0, valid). */
template <int D>
__device__ __forceinline__ void
store_rows(bf16 *to, int64_t ld, const float (&sum)[D / 8][4], float low, float high, int valid)
{
	int lane = threadIdx.x % FT_WARP;

#pragma unroll
	for (int n = 0; n < D / 8; n++)
	{
#pragma unroll
		for (int i = 0; i < 4; i++)
		{
			int row = lane / 4 + i / 2 * 8;

			if (row < valid)
				set_value(to[row * ld + n * 8 + lane % 4 * 2 + i % 2],
						  sum[n][i] * (i < 2 ? low : high));
		}
	}
}

/* Sum or maximum over the four lanes that hold a row of a fragment. */
__device__ __forceinline__ float
quad_max(float x)
{
	x = fmaxf(x, __shfl_xor_sync(FT_ALL_LANES, x, 1));
	return fmaxf(x, __shfl_xor_sync(FT_ALL_LANES, x, 2));
}

__device__ __forceinline__ float
quad_sum(float x)
{
	x += __shfl_xor_sync(FT_ALL_LANES, x, 1);
	return x + __shfl_xor_sync(FT_ALL_LANES, x, 2);
}

/* One step of the online softmax (Milakov and Gimelshein, 2018) for a fragment's rows g and g + 8:
 * scores, in units of log 2, −∞ where masked, become weights; max and sum (this lane's share) are
 * kept up.  correction is what earlier weights are to be multiplied by.  A step in which a row sees
 * nothing leaves the row exactly as it was. */
template <int N>
__device__ __forceinline__ void
softmax_step(float (&score)[N][4], float (&max)[2], float (&sum)[2], float (&correction)[2])
{
#pragma unroll
	for (int half = 0; half < 2; half++)
	{
		float largest = -INFINITY;
		float shift;

#pragma unroll
		for (int n = 0; n < N; n++)
			largest = fmaxf(largest, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
		largest = fmaxf(max[half], quad_max(largest));
		shift = largest == -INFINITY ? 0.0f : largest;
		correction[half] = exp2f(max[half] - shift);
		max[half] = largest;
		sum[half] *= correction[half];
#pragma unroll
		for (int n = 0; n < N; n++)
		{
#pragma unroll
			for (int i = 2 * half; i < 2 * half + 2; i++)
			{
				score[n][i] = exp2f(score[n][i] - shift);
				sum[half] += score[n][i];
			}
		}
	}
}

#endif
