/*
 * gemm_kernel.h: the product of a few rows with panels of 16 columns.
 *
 * A block of MR rows by NV vectors of the result stays in registers while k
 * runs; MR and NV are constants in every instance.  How the result is cut into
 * blocks never changes its bits, because every element is one chain of
 * multiply-adds over k: this is what makes serving independent of the batch.
 */
#include "simd.h"

#define GROUP_VECTORS (FT_GROUP / VW)

INLINE void
gemm_block(const int MR, const int NV, float *acc, int64_t lda, const float *x, int64_t xm,
		   int64_t xk, const float *panel, int64_t pk, int64_t pg, int64_t k)
{
	vf c[12][4];

#pragma GCC unroll 12
	for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
		for (int j = 0; j < NV; j++)
			c[i][j] = v_load(acc + i * lda + j * VW);
	for (int64_t t = 0; t < k; t++)
	{
		vf w[4];

#pragma GCC unroll 4
		for (int j = 0; j < NV; j++)
			w[j] = v_load(panel + (j / GROUP_VECTORS) * pg + t * pk + (j % GROUP_VECTORS) * VW);
#pragma GCC unroll 12
		for (int i = 0; i < MR; i++)
		{
			vf a = v_set1(x[i * xm + t * xk]);

#pragma GCC unroll 4
			for (int j = 0; j < NV; j++)
				c[i][j] = v_fma(a, w[j], c[i][j]);
		}
	}
#pragma GCC unroll 12
	for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
		for (int j = 0; j < NV; j++)
			v_store(acc + i * lda + j * VW, c[i][j]);
}

#define BLOCK_ARGS                                                                       \
	float *acc, int64_t lda, const float *x, int64_t xm, int64_t xk, const float *panel, \
		int64_t pk, int64_t pg, int64_t k
#define BLOCK(mr, nv)                                              \
	static void gemm_##mr##x##nv(BLOCK_ARGS)                       \
	{                                                              \
		gemm_block(mr, nv, acc, lda, x, xm, xk, panel, pk, pg, k); \
	}

typedef void (*gemm_block_fn)(BLOCK_ARGS);

/* Rows of a block for 1 to 4 vectors, so that accumulators, weights and one broadcast fit the
 * registers. */
/* The formatter takes a macro that defines a function for the beginning of a declaration. */
/* clang-format off */
#if VW == 16
BLOCK(1, 1) BLOCK(2, 1) BLOCK(3, 1) BLOCK(4, 1) BLOCK(5, 1) BLOCK(6, 1)
BLOCK(7, 1) BLOCK(8, 1) BLOCK(9, 1) BLOCK(10, 1) BLOCK(11, 1) BLOCK(12, 1)
BLOCK(1, 2) BLOCK(2, 2) BLOCK(3, 2) BLOCK(4, 2) BLOCK(5, 2) BLOCK(6, 2)
BLOCK(7, 2) BLOCK(8, 2) BLOCK(9, 2) BLOCK(10, 2) BLOCK(11, 2) BLOCK(12, 2)
BLOCK(1, 3) BLOCK(2, 3) BLOCK(3, 3) BLOCK(4, 3)
BLOCK(5, 3) BLOCK(6, 3) BLOCK(7, 3) BLOCK(8, 3)
BLOCK(1, 4) BLOCK(2, 4) BLOCK(3, 4) BLOCK(4, 4) BLOCK(5, 4) BLOCK(6, 4)
static const gemm_block_fn blocks_1[] = {gemm_1x1, gemm_2x1, gemm_3x1, gemm_4x1,
										 gemm_5x1, gemm_6x1, gemm_7x1, gemm_8x1,
										 gemm_9x1, gemm_10x1, gemm_11x1, gemm_12x1};
static const gemm_block_fn blocks_2[] = {gemm_1x2, gemm_2x2, gemm_3x2, gemm_4x2,
										 gemm_5x2, gemm_6x2, gemm_7x2, gemm_8x2,
										 gemm_9x2, gemm_10x2, gemm_11x2, gemm_12x2};
static const gemm_block_fn blocks_3[] = {gemm_1x3, gemm_2x3, gemm_3x3, gemm_4x3,
										 gemm_5x3, gemm_6x3, gemm_7x3, gemm_8x3};
static const gemm_block_fn blocks_4[] = {gemm_1x4, gemm_2x4, gemm_3x4,
										 gemm_4x4, gemm_5x4, gemm_6x4};
#elif VW == 8
BLOCK(1, 2) BLOCK(2, 2) BLOCK(3, 2) BLOCK(4, 2) BLOCK(5, 2) BLOCK(6, 2)
BLOCK(1, 4) BLOCK(2, 4) BLOCK(3, 4)
static const gemm_block_fn blocks_2[] = {gemm_1x2, gemm_2x2, gemm_3x2,
										 gemm_4x2, gemm_5x2, gemm_6x2};
static const gemm_block_fn blocks_4[] = {gemm_1x4, gemm_2x4, gemm_3x4};
#else
BLOCK(1, 4) BLOCK(2, 4) BLOCK(3, 4)
static const gemm_block_fn blocks_4[] = {gemm_1x4, gemm_2x4, gemm_3x4};
#endif
/* clang-format on */

#define COUNT(array) ((int) (sizeof(array) / sizeof(array)[0]))

static void
gemm_rows(const gemm_block_fn *block, int max_rows, float *acc, int64_t lda, const float *x,
		  int64_t xm, int64_t xk, const float *panel, int64_t pk, int64_t pg, int64_t m, int64_t k)
{
	/* cut evenly: 13 rows are 7 and 6, not 12 and 1 */
	int64_t left = (m + max_rows - 1) / max_rows;

	for (int64_t i = 0; i < m; left--)
	{
		int64_t rows = (m - i + left - 1) / left;

		block[rows - 1](acc + i * lda, lda, x + i * xm, xm, xk, panel, pk, pg, k);
		i += rows;
	}
}

static void
gemm(float *acc, int64_t lda, const float *x, int64_t xm, int64_t xk, const float *panel,
	 int64_t pk, int64_t pg, int64_t m, int groups, int64_t k)
{
	while (groups > 0)
	{
		const gemm_block_fn *block;
		int rows;
		int done;

#if VW == 16
		if (groups >= 4 && (m <= COUNT(blocks_4) || m > COUNT(blocks_2)))
			block = blocks_4, rows = COUNT(blocks_4), done = 4;
		else if (groups == 3 && m > COUNT(blocks_2))
			block = blocks_3, rows = COUNT(blocks_3), done = 3;
		else if (groups >= 2)
			block = blocks_2, rows = COUNT(blocks_2), done = 2;
		else
			block = blocks_1, rows = COUNT(blocks_1), done = 1;
#elif VW == 8
		if (groups >= 2 && m <= COUNT(blocks_4))
			block = blocks_4, rows = COUNT(blocks_4), done = 2;
		else
			block = blocks_2, rows = COUNT(blocks_2), done = 1;
#else
		block = blocks_4, rows = COUNT(blocks_4), done = 1;
#endif
		gemm_rows(block, rows, acc, lda, x, xm, xk, panel, pk, pg, m, k);
		acc += done * FT_GROUP;
		panel += done * pg;
		groups -= done;
	}
}

/* Four dot products at a time share the loads of x; each keeps its own two partial sums. */
INLINE void
dots_block(const int N, float *out, const float *x, const float *rows, int64_t ld, int64_t k)
{
	vf even[4] = {0};
	vf odd[4] = {0};
	int64_t t = 0;

	for (; t + 2 * VW <= k; t += 2 * VW)
	{
		vf a = v_load(x + t);
		vf b = v_load(x + t + VW);

#pragma GCC unroll 4
		for (int j = 0; j < N; j++)
		{
			even[j] = v_fma(a, v_load(rows + j * ld + t), even[j]);
			odd[j] = v_fma(b, v_load(rows + j * ld + t + VW), odd[j]);
		}
	}
	for (; t < k; t += VW)
	{
		int64_t n = k - t < VW ? k - t : VW;
		vf a = v_load_n(x + t, n, 0);

#pragma GCC unroll 4
		for (int j = 0; j < N; j++)
			even[j] = v_fma(a, v_load_n(rows + j * ld + t, n, 0), even[j]);
	}
#pragma GCC unroll 4
	for (int j = 0; j < N; j++)
		out[j] = v_sum(even[j] + odd[j]);
}

static void
dots(float *out, const float *x, const float *rows, int64_t ld, int64_t n, int64_t k)
{
	int64_t j = 0;

	for (; j + 4 <= n; j += 4)
		dots_block(4, out + j, x, rows + j * ld, ld, k);
	for (; j < n; j++)
		dots_block(1, out + j, x, rows + j * ld, ld, k);
}
