/*
 * product.c: cutting a product into tiles, and the tiles.
 *
 * Rows are taken in passes that stay in the L2 cache, copied as f32 where that
 * pays; columns in tiles of three or four groups.  A task fills 128 k of a
 * tile's columns into the L1 cache and multiplies all rows of the pass with
 * them, so that b is read once a pass.
 */
#include "product.h"

#include "transpose.h"

#include <string.h>

#define MAX_ROWS 512 /* of a pass */
#define MIN_ROWS 192
#define FEW_ROWS 16   /* of which each reads b about as fast as it is multiplied */
#define BLOCK_ROWS 24 /* whole blocks of the kernel, of 6, 8 or 12 rows */
/* Input rows of a pass, in bytes: they are read once for every tile. */
#define PASS_BYTES (768 * 1024)
/* Rows of a tile where c is gone through only once: along its rows, then. */
#define IN_PLACE_ROWS 48
/* Up to so many rows a b that can be read as it lies is: copying it would cost more. */
#define PLAIN_ROWS 48

typedef struct product_job
{
	ft_stream *s;
	const ft_product *p;
	int64_t first; /* row of the pass */
	int64_t rows;
	int64_t tile_columns;
	int64_t column_tiles;
	int64_t tile_rows;
	/* element (i, k) of the pass is x[k / FT_PANEL_K · chunk + i · xm + k % FT_PANEL_K · xk] */
	const float *x;
	int64_t chunk;
	int64_t xm;
	int64_t xk;
	float *copy;   /* x, where it is one: alpha is in it */
	bool in_place; /* the kernel sums in c itself */
	bool plain;    /* b is read as it lies */
} product_job;

typedef struct tile_scratch
{
	_Alignas(64) float panel[FT_TILE_COLUMNS * FT_PANEL_K];
	_Alignas(64) float tile[]; /* [rows][FT_TILE_COLUMNS]; twice where chains are added up */
} tile_scratch;

/* --- tiles --- */

void
ft_product_store_row(const ft_product *p, void *to, const float *from, float alpha, int64_t n)
{
	if (p->c.dtype == FT_F32 && p->beta == 1)
		p->kernels->axpy(to, from, alpha, n);
	else if (p->c.dtype == FT_BF16)
		for (int64_t j = 0; j < n; j++)
			((uint16_t *) to)[j] = ft_f32_to_bf16(alpha * from[j]);
	else if (p->beta == 0 && alpha == 1)
		memcpy(to, from, (size_t) n * sizeof *from);
	else if (p->beta == 0)
		for (int64_t j = 0; j < n; j++)
			((float *) to)[j] = alpha * from[j];
	else
		for (int64_t j = 0; j < n; j++)
			((float *) to)[j] = alpha * from[j] + p->beta * ((float *) to)[j];
}

static void
store_tile(const product_job *job, const float *tile, int64_t row, int64_t rows, int64_t column,
		   int64_t columns)
{
	const ft_product *p = job->p;
	float alpha = job->copy != NULL ? 1 : p->alpha;

	if (p->store != NULL)
		p->store(p, tile, row, rows, column, columns);
	else if (!p->tc)
		for (int64_t i = 0; i < rows; i++, tile += FT_TILE_COLUMNS)
			ft_product_store_row(p, ft_at(p->c, row + i, column), tile, alpha, columns);
	else
		for (int64_t j = 0; j < columns; j++)
		{
			float across[BLOCK_ROWS];

			for (int64_t i = 0; i < rows; i += BLOCK_ROWS)
			{
				int64_t n = ft_min(BLOCK_ROWS, rows - i);

				for (int64_t l = 0; l < n; l++)
					across[l] = tile[(i + l) * FT_TILE_COLUMNS + j];
				ft_product_store_row(p, ft_at(p->c, column + j, row + i), across, alpha, n);
			}
		}
}

/* tile += x · b over k from `begin` to `end` */
static void
sum_tile(const product_job *job, float *tile, int64_t ld, float *panel, int64_t row, int64_t rows,
		 int64_t column, int64_t columns, int64_t begin, int64_t end)
{
	const ft_product *p = job->p;
	int groups = (int) ft_divide_up(columns, FT_GROUP);
	/* with few rows a short step, so that reading b goes on beside the arithmetic */
	int64_t step = rows <= FEW_ROWS && !job->plain ? FT_PANEL_K / 4 : FT_PANEL_K;

	for (int64_t k0 = begin; k0 < end; k0 += step)
	{
		int64_t k = ft_min(step, end - k0);
		const float *x =
			job->x + k0 / FT_PANEL_K * job->chunk + row * job->xm + k0 % FT_PANEL_K * job->xk;

		if (job->plain)
		{
			p->kernels->gemm(tile, ld, x, job->xm, job->xk, p->plain + k0 * p->plain_ld + column,
							 p->plain_ld, FT_GROUP, rows, groups, k);
			continue;
		}
		p->fill(p, panel, column, columns, k0, k);
		p->kernels->gemm(tile, ld, x, job->xm, job->xk, panel, FT_GROUP, FT_PANEL_K * FT_GROUP,
						 rows, groups, k);
	}
}

static bool
has_chains(const ft_product *p)
{
	return p->chain > 0 && p->k > p->chain;
}

/* scratch->tile = x · b, chain by chain */
static void
sum_chains(const product_job *job, tile_scratch *scratch, int64_t row, int64_t rows, int64_t column,
		   int64_t columns)
{
	const ft_product *p = job->p;
	int64_t chain = has_chains(p) ? p->chain : p->k;
	int64_t n = rows * FT_TILE_COLUMNS;
	float *part = scratch->tile + n;

	memset(scratch->tile, 0, (size_t) n * sizeof(float));
	sum_tile(job, scratch->tile, FT_TILE_COLUMNS, scratch->panel, row, rows, column, columns, 0,
			 ft_min(chain, p->k));
	for (int64_t k = chain; k < p->k; k += chain)
	{
		memset(part, 0, (size_t) n * sizeof(float));
		sum_tile(job, part, FT_TILE_COLUMNS, scratch->panel, row, rows, column, columns, k,
				 ft_min(k + chain, p->k));
		p->kernels->axpy(scratch->tile, part, 1, n);
	}
}

static void
multiply_tile(const product_job *job, tile_scratch *scratch, int64_t row, int64_t column)
{
	const ft_product *p = job->p;
	int64_t rows = ft_min(job->tile_rows, job->rows - row);
	int64_t columns = ft_min(job->tile_columns, p->columns - column);

	if (job->in_place && columns % FT_GROUP == 0)
	{
		ft_mat c = ft_mat_cols(ft_mat_rows(p->c, job->first + row, rows), column, columns);

		for (int64_t i = 0; i < rows && p->beta == 0; i++)
			memset(ft_at(c, i, 0), 0, (size_t) columns * sizeof(float));
		sum_tile(job, c.data, c.ld, scratch->panel, row, rows, column, columns, 0, p->k);
		return;
	}
	sum_chains(job, scratch, row, rows, column, columns);
	store_tile(job, scratch->tile, job->first + row, rows, column, columns);
}

static void
product_task(void *context, int worker, int64_t begin, int64_t end)
{
	const product_job *job = context;
	tile_scratch *scratch = ft_worker_scratch(job->s, worker);

	for (int64_t i = begin; i < end; i++)
		multiply_tile(job, scratch, i / job->column_tiles * job->tile_rows,
					  i % job->column_tiles * job->tile_columns);
}

/* --- the rows of a pass --- */

static float
element(ft_mat m, int64_t row, int64_t column)
{
	const void *p = ft_at(m, row, column);

	return m.dtype == FT_F32 ? *(const float *) p : ft_bf16_to_f32(*(const uint16_t *) p);
}

/* to[i][FT_PANEL_K] = op(a)[row + i, k0 ..], for i < n <= 4 of a transposed a. */
static void
copy_across(const ft_product *p, float *to, int64_t row, int64_t n, int64_t k0, int64_t k)
{
	int64_t t = 0;

	if (p->a.dtype == FT_F32 && n == 4)
		for (; t + 4 <= k; t += 4)
			ft_transpose_4x4(to + t, FT_PANEL_K, ft_at(p->a, k0 + t, row), p->a.ld);
	for (; t < k; t++)
		for (int64_t i = 0; i < n; i++)
			to[i * FT_PANEL_K + t] = element(p->a, k0 + t, row + i);
}

static void
copy_along(const ft_product *p, float *to, int64_t row, int64_t n, int64_t k0, int64_t k)
{
	for (int64_t i = 0; i < n; i++, to += FT_PANEL_K)
		if (p->a.dtype == FT_F32)
			memcpy(to, ft_at(p->a, row + i, k0), (size_t) k * sizeof *to);
		else
			p->kernels->to_f32(to, ft_at(p->a, row + i, k0), k);
}

static void
copy_rows(const product_job *job, int64_t row, int64_t n, int64_t k0)
{
	const ft_product *p = job->p;
	float *to = job->copy + k0 / FT_PANEL_K * job->chunk + row * FT_PANEL_K;
	int64_t k = ft_min(FT_PANEL_K, p->k - k0);

	(p->ta ? copy_across : copy_along)(p, to, job->first + row, n, k0, k);
	for (int64_t i = 0; i < n && p->alpha != 1; i++)
		for (int64_t t = 0; t < k; t++)
			to[i * FT_PANEL_K + t] *= p->alpha;
}

/* Four rows an item. */
static void
copy_rows_task(void *context, int worker, int64_t begin, int64_t end)
{
	const product_job *job = context;

	(void) worker;
	for (int64_t i = 4 * begin; i < ft_min(4 * end, job->rows); i += 4)
		for (int64_t k0 = 0; k0 < job->p->k; k0 += FT_PANEL_K)
			copy_rows(job, i, ft_min(4, job->rows - i), k0);
}

/* Whether the kernel reads the rows of a as they lie; else they are copied in chunks of FT_PANEL_K
 * columns.  Rows that are a whole number of pages apart fight for the same cache lines, which
 * matters when there are more than a few of them and more than one tile reads them. */
static bool
reads_as_they_lie(const ft_product *p)
{
	bool pages = p->a.ld * (int64_t) sizeof(float) % 4096 == 0;

	return p->a.dtype == FT_F32 &&
		   (p->columns <= FT_TILE_COLUMNS || (!p->ta && (p->rows <= FEW_ROWS || !pages)));
}

static ft_status
prepare_rows(product_job *job)
{
	const ft_product *p = job->p;
	void *memory;

	if (reads_as_they_lie(p))
	{
		job->xm = p->ta ? 1 : p->a.ld;
		job->xk = p->ta ? p->a.ld : 1;
		job->x = p->ta ? ft_at(p->a, 0, job->first) : ft_at(p->a, job->first, 0);
		job->chunk = FT_PANEL_K * job->xk;
		return FT_OK;
	}
	job->xm = FT_PANEL_K;
	job->xk = 1;
	job->chunk = job->rows * FT_PANEL_K;
	FT_TRY(ft_scratch_get(&job->s->shared,
						  (size_t) (ft_divide_up(p->k, FT_PANEL_K) * job->chunk) * sizeof(float),
						  &memory));
	job->copy = memory;
	job->x = memory;
	ft_run(job->s, ft_divide_up(job->rows, 4), 4 * p->k, copy_rows_task, job);
	return FT_OK;
}

/* --- cutting --- */

/* Passes of equal length. */
static int64_t
plan_pass(const ft_product *p)
{
	int64_t pass = PASS_BYTES / (int64_t) sizeof(float) / p->k;

	pass = pass < MIN_ROWS ? MIN_ROWS : ft_min(pass, MAX_ROWS);
	pass = ft_divide_up(p->rows, ft_divide_up(p->rows, pass));
	return ft_divide_up(pass, BLOCK_ROWS) * BLOCK_ROWS;
}

/* Tiles of three or four groups, whichever gives the threads equal shares; of fewer rows where
 * there are too few columns for all threads. */
static void
plan_tiles(product_job *job, int64_t pass)
{
	const ft_product *p = job->p;
	int64_t threads = ft_pool_threads(job->s->device->pool);
	int64_t groups = ft_divide_up(p->columns, FT_GROUP);
	int64_t of_3 = ft_divide_up(ft_divide_up(groups, 3), threads) * 3;
	int64_t of_4 = ft_divide_up(ft_divide_up(groups, 4), threads) * 4;
	int64_t parts;

	job->tile_columns = (of_3 < of_4 && p->rows > FEW_ROWS ? 3 : 4) * FT_GROUP;
	job->column_tiles = ft_divide_up(p->columns, job->tile_columns);
	parts = job->column_tiles >= 2 * threads ? 1 : ft_divide_up(2 * threads, job->column_tiles);
	job->tile_rows = ft_divide_up(ft_divide_up(pass, parts), BLOCK_ROWS) * BLOCK_ROWS;
}

ft_status
ft_product_run(ft_stream *s, ft_product *p)
{
	product_job job = {.s = s, .p = p};
	int64_t pass;

	if (p->rows == 0 || p->columns == 0)
		return FT_OK;
	p->kernels = s->device->kernels;
	pass = p->k > 0 ? plan_pass(p) : MAX_ROWS;
	plan_tiles(&job, ft_min(pass, p->rows));
	job.plain = p->plain != NULL && (p->rows <= PLAIN_ROWS || p->plain_ld == FT_GROUP);
	FT_TRY(ft_worker_scratch_reserve(s, sizeof(tile_scratch) +
											(size_t) (job.tile_rows * FT_TILE_COLUMNS) *
												(has_chains(p) ? 2 : 1) * sizeof(float)));
	for (job.first = 0; job.first < p->rows; job.first += pass)
	{
		int64_t tiles;
		int64_t grain;

		job.rows = ft_min(pass, p->rows - job.first);
		FT_TRY(prepare_rows(&job));
		/* more than one step would go through far more memory than a tile has */
		job.in_place = p->k <= FT_PANEL_K && p->store == NULL && !p->tc && p->c.dtype == FT_F32 &&
					   (p->beta == 0 || p->beta == 1) && (p->alpha == 1 || job.copy != NULL);
		if (job.in_place)
			job.tile_rows = ft_min(job.tile_rows, IN_PLACE_ROWS);
		tiles = job.column_tiles * ft_divide_up(job.rows, job.tile_rows);
		/* neighbours for one thread, but two pieces a thread at least, so that one that is held up
		 * does not hold up all; and no thread is woken for less than ten microseconds */
		grain = ft_min(4, tiles / ((int64_t) 2 * ft_pool_threads(s->device->pool)));
		grain = grain > 0 ? grain : 1;
		while (grain < tiles &&
			   grain * (ft_min(job.rows, job.tile_rows) + FEW_ROWS) * job.tile_columns * p->k <
				   512 * 1024)
			grain++;
		ft_pool_run(s->device->pool, tiles, grain, product_task, &job);
	}
	return FT_OK;
}
