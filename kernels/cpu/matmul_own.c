/*
 * matmul_own.c: dense products by our own kernels.
 *
 * For products that are too small for a library, and for all of them where
 * oneDNN cannot be loaded.  op(b) is copied into panels of 16 columns, op(a)
 * into rows of f32 where it is not that already; each task computes a tile of
 * the result.
 */
#include "cpu.h"

#include "transpose.h"

#include <string.h>

#define TILE_ROWS 96
#define TILE_COLUMNS 64
#define TILE_GROUPS (TILE_COLUMNS / FT_GROUP)
#define TILE_K 256

typedef struct matmul_job
{
	ft_stream *s;
	ft_mat c;
	ft_mat a;
	ft_mat b;
	bool ta;
	bool tb;
	float alpha;
	float beta;
	int64_t k;
	int64_t column_tiles;
} matmul_job;

typedef struct tile_scratch
{
	_Alignas(64) float acc[TILE_ROWS * TILE_COLUMNS];
	_Alignas(64) float panel[TILE_GROUPS * TILE_K * FT_GROUP];
	_Alignas(64) float rows[TILE_ROWS * TILE_K];
} tile_scratch;

static float
element(ft_mat m, int64_t row, int64_t column)
{
	const void *p = ft_at(m, row, column);

	return m.dtype == FT_F32 ? *(const float *) p : ft_bf16_to_f32(*(const uint16_t *) p);
}

/* panel[group][k][16] = op(b)[k0 .., column ..], zero beyond n columns. */
static void
pack_panel(const matmul_job *job, float *panel, int64_t k0, int64_t k, int64_t column, int64_t n)
{
	ft_mat b = job->b;

	for (int64_t first = 0; first < n; first += FT_GROUP, panel += k * FT_GROUP)
	{
		int64_t width = ft_min(FT_GROUP, n - first);

		if (width < FT_GROUP)
			memset(panel, 0, (size_t) (k * FT_GROUP) * sizeof *panel);
		if (job->tb && b.dtype == FT_F32)
			ft_transpose_panel(panel, ft_at(b, column + first, k0), b.ld, width, k);
		else if (job->tb)
			for (int64_t j = 0; j < width; j++)
				for (int64_t t = 0; t < k; t++)
					panel[t * FT_GROUP + j] = element(b, column + first + j, k0 + t);
		else if (b.dtype == FT_F32 && width == FT_GROUP)
			for (int64_t t = 0; t < k; t++)
				memcpy(panel + t * FT_GROUP, ft_at(b, k0 + t, column + first),
					   FT_GROUP * sizeof *panel);
		else if (b.dtype == FT_F32)
			for (int64_t t = 0; t < k; t++)
				memcpy(panel + t * FT_GROUP, ft_at(b, k0 + t, column + first),
					   (size_t) width * sizeof *panel);
		else
			for (int64_t t = 0; t < k; t++)
				for (int64_t j = 0; j < width; j++)
					panel[t * FT_GROUP + j] = element(b, k0 + t, column + first + j);
	}
}

/* rows[m][k] = op(a)[row .., k0 ..]. */
static void
pack_rows(const matmul_job *job, float *rows, int64_t row, int64_t m, int64_t k0, int64_t k)
{
	if (job->ta)
		for (int64_t t = 0; t < k; t++)
			for (int64_t i = 0; i < m; i++)
				rows[i * k + t] = element(job->a, k0 + t, row + i);
	else
		for (int64_t i = 0; i < m; i++)
			for (int64_t t = 0; t < k; t++)
				rows[i * k + t] = element(job->a, row + i, k0 + t);
}

static void
store_tile(const matmul_job *job, const float *acc, int64_t row, int64_t m, int64_t column,
		   int64_t n)
{
	for (int64_t i = 0; i < m; i++)
	{
		void *c = ft_at(job->c, row + i, column);
		const float *from = acc + i * TILE_COLUMNS;

		for (int64_t j = 0; j < n; j++)
		{
			float value = job->alpha * from[j];

			if (job->c.dtype == FT_BF16)
				((uint16_t *) c)[j] = ft_f32_to_bf16(value);
			else
				((float *) c)[j] = value + (job->beta != 0 ? job->beta * ((float *) c)[j] : 0);
		}
	}
}

static void
matmul_task(void *context, int worker, int64_t begin, int64_t end)
{
	matmul_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;
	tile_scratch *scratch = ft_worker_scratch(job->s, worker);

	for (int64_t tile = begin; tile < end; tile++)
	{
		int64_t row = tile / job->column_tiles * TILE_ROWS;
		int64_t column = tile % job->column_tiles * TILE_COLUMNS;
		int64_t m = ft_min(TILE_ROWS, job->c.rows - row);
		int64_t n = ft_min(TILE_COLUMNS, job->c.cols - column);

		memset(scratch->acc, 0, sizeof scratch->acc);
		for (int64_t k0 = 0; k0 < job->k; k0 += TILE_K)
		{
			int64_t k = ft_min(TILE_K, job->k - k0);
			const float *x = scratch->rows;
			int64_t xm = k;
			int64_t xk = 1;

			pack_panel(job, scratch->panel, k0, k, column, n);
			if (job->a.dtype != FT_F32)
				pack_rows(job, scratch->rows, row, m, k0, k);
			else if (job->ta)
			{
				x = ft_at(job->a, k0, row);
				xm = 1;
				xk = job->a.ld;
			}
			else
			{
				x = ft_at(job->a, row, k0);
				xm = job->a.ld;
			}
			kernels->gemm(scratch->acc, TILE_COLUMNS, x, xm, xk, scratch->panel, FT_GROUP,
						  k * FT_GROUP, m, (int) ft_divide_up(n, FT_GROUP), k);
		}
		store_tile(job, scratch->acc, row, m, column, n);
	}
}

ft_status
ft_own_matmul(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha, float beta)
{
	matmul_job job = {.s = s,
					  .c = c,
					  .a = a,
					  .b = b,
					  .ta = ta,
					  .tb = tb,
					  .alpha = alpha,
					  .beta = beta,
					  .k = ta ? a.rows : a.cols,
					  .column_tiles = ft_divide_up(c.cols, TILE_COLUMNS)};

	FT_TRY(ft_worker_scratch_reserve(s, sizeof(tile_scratch)));
	ft_run(s, ft_divide_up(c.rows, TILE_ROWS) * job.column_tiles,
		   ft_min(c.rows, TILE_ROWS) * ft_min(c.cols, TILE_COLUMNS) * job.k / 16, matmul_task,
		   &job);
	return FT_OK;
}
