/*
 * linear_serve.c: y = x · Wᵀ with packed weights, for serving.
 *
 * "Row-fixed": every element of y is one chain of multiply-adds over k from
 * zero, whatever the number of rows is and however the columns are shared out,
 * so a request's logits do not depend on what else is in the batch.  A task
 * takes a few groups of 16 columns, unpacks 128 k of them at a time into the
 * L1 cache and multiplies all rows with that.
 */
#include "cpu.h"

#include "pack.h"

#include <string.h>

#define TILE_GROUPS 4
#define TILE_COLUMNS (TILE_GROUPS * FT_GROUP)
#define MAX_ROWS 512 /* of a pass over the weight */

typedef struct serve_job
{
	ft_stream *s;
	ft_mat y;
	const ft_weight *weight;
	const float *x; /* rows of the pass, f32 */
	int64_t ldx;
	int64_t first;
	int64_t rows;
	float beta;
} serve_job;

typedef struct serve_scratch
{
	_Alignas(64) float panel[TILE_GROUPS * FT_PANEL_K * FT_GROUP];
	_Alignas(64) float acc[]; /* [rows][TILE_COLUMNS] */
} serve_scratch;

static const ft_part *
part_of_group(const ft_weight *w, int64_t group)
{
	int i = w->n_parts - 1;

	while (group < w->parts[i].first_group)
		i--;
	return &w->parts[i];
}

static void
store_group(const serve_job *job, const float *acc, const ft_part *part, int64_t group)
{
	int64_t column = part->first_row + group * FT_GROUP;
	int64_t n = ft_min(FT_GROUP, part->rows - group * FT_GROUP);

	for (int64_t i = 0; i < job->rows; i++, acc += TILE_COLUMNS)
	{
		void *y = ft_at(job->y, job->first + i, column);

		if (job->y.dtype == FT_BF16)
			for (int64_t j = 0; j < n; j++)
				((uint16_t *) y)[j] = ft_f32_to_bf16(acc[j]);
		else if (job->beta != 0)
			for (int64_t j = 0; j < n; j++)
				((float *) y)[j] += acc[j];
		else
			memcpy(y, acc, (size_t) n * sizeof *acc);
	}
}

/* Groups [begin, begin + n) of one tile. */
static void
serve_tile(const serve_job *job, serve_scratch *scratch, int64_t begin, int n)
{
	const ft_kernels *kernels = job->s->device->kernels;
	const ft_weight *w = job->weight;
	const ft_part *part[TILE_GROUPS];

	for (int g = 0; g < n; g++)
		part[g] = part_of_group(w, begin + g);
	memset(scratch->acc, 0, (size_t) (job->rows * TILE_COLUMNS) * sizeof(float));
	for (int64_t k0 = 0; k0 < w->cols; k0 += FT_PANEL_K)
	{
		int64_t k = ft_min(FT_PANEL_K, w->cols - k0);

		for (int g = 0; g < n; g++)
			kernels->unpack[part[g]->dtype](
				scratch->panel + g * FT_PANEL_K * FT_GROUP,
				part[g]->groups + (begin + g - part[g]->first_group) * part[g]->group_bytes, k0, k);
		kernels->gemm(scratch->acc, TILE_COLUMNS, job->x + k0, job->ldx, 1, scratch->panel,
					  FT_GROUP, FT_PANEL_K * FT_GROUP, job->rows, n, k);
	}
	for (int g = 0; g < n; g++)
		store_group(job, scratch->acc + g * FT_GROUP, part[g], begin + g - part[g]->first_group);
}

static void
serve_task(void *context, int worker, int64_t begin, int64_t end)
{
	serve_job *job = context;
	serve_scratch *scratch = ft_worker_scratch(job->s, worker);

	for (int64_t g = begin; g < end; g += TILE_GROUPS)
		serve_tile(job, scratch, g, (int) ft_min(TILE_GROUPS, end - g));
}

/* The rows as f32. */
static ft_status
rows_as_f32(ft_stream *s, ft_mat x, const float **rows, int64_t *ld)
{
	void *memory;

	if (x.dtype == FT_F32)
	{
		*rows = x.data;
		*ld = x.ld;
		return FT_OK;
	}
	FT_TRY(ft_scratch_get(&s->shared, (size_t) (x.rows * x.cols) * sizeof(float), &memory));
	for (int64_t i = 0; i < x.rows; i++)
		s->device->kernels->to_f32((float *) memory + i * x.cols, ft_at(x, i, 0), x.cols);
	*rows = memory;
	*ld = x.cols;
	return FT_OK;
}

ft_status
ft_linear_serve(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta)
{
	serve_job job = {.s = s, .y = y, .weight = w, .beta = beta};
	int threads = ft_pool_threads(s->device->pool);
	const float *rows;

	FT_TRY(rows_as_f32(s, x, &rows, &job.ldx));
	FT_TRY(ft_worker_scratch_reserve(s, sizeof(serve_scratch) + (size_t) ft_min(x.rows, MAX_ROWS) *
																	TILE_COLUMNS * sizeof(float)));
	for (job.first = 0; job.first < x.rows; job.first += MAX_ROWS)
	{
		/* two pieces a thread at least, so that one that is held up does not hold up all */
		int64_t grain = ft_divide_up(w->n_groups, (int64_t) 2 * threads);

		if (grain > 4 * TILE_GROUPS)
			grain = 4 * TILE_GROUPS;
		job.rows = ft_min(MAX_ROWS, x.rows - job.first);
		job.x = rows + job.first * job.ldx;
		ft_pool_run(s->device->pool, w->n_groups, grain, serve_task, &job);
	}
	return FT_OK;
}
