/*
 * linear_integer.c: linear() of quantised weights in whole numbers (integer.h):
 * which weights, the rounding of the rows, and the cutting into pieces.
 */
#include "integer.h"

#include "pack.h"

#include <string.h>

/* Rows of x that a piece goes through: their rounded values stay in the L2 cache beside it. */
#define PASS_ROWS 256
/* Groups of a piece where there are enough of them. */
#define PIECE_GROUPS 4
/* A thread is not woken for less than so many multiply-adds. */
#define MIN_WORK (1024 * 1024)

typedef struct integer_job
{
	const ft_weight *w;
	ft_mat x;
	ft_mat y;
	float beta;
	ft_rounded rounded;
	int64_t first; /* row of the pass */
	int64_t rows;
	ft_stream *s;
} integer_job;

bool
ft_integer_suits(const ft_weight *w)
{
	const ft_integer_kernels *kernels = w->device->integer;

	if (kernels == NULL || w->n_parts == 0 || w->cols % FT_INTEGER_BLOCK != 0)
		return false;
	for (int i = 0; i < w->n_parts; i++)
		if (kernels->multiply[w->parts[i].dtype] == NULL)
			return false;
	return true;
}

/* --- rounding --- */

static void
round_task(void *context, int worker, int64_t begin, int64_t end)
{
	integer_job *job = context;
	const ft_device *device = job->w->device;

	for (int64_t i = begin; i < end; i++)
	{
		const void *row = ft_at(job->x, job->first + i, 0);

		if (job->x.dtype == FT_BF16)
		{
			float *wide = ft_worker_scratch(job->s, worker);

			device->kernels->to_f32(wide, row, job->x.cols);
			row = wide;
		}
		device->integer->round(&job->rounded, i, row);
	}
}

/* --- products --- */

static const ft_part *
part_of_group(const ft_weight *w, int64_t group)
{
	int i = w->n_parts - 1;

	while (group < w->parts[i].first_group)
		i--;
	return &w->parts[i];
}

static void
store_row(const integer_job *job, void *to, const float *from, int64_t n)
{
	if (job->y.dtype == FT_BF16)
		job->w->device->kernels->to_bf16(to, from, n);
	else if (job->beta == 1)
		job->w->device->kernels->axpy(to, from, 1, n);
	else
		memcpy(to, from, (size_t) n * sizeof *from);
}

/* One group of the weight with all rows of the pass. */
static void
multiply_group(const integer_job *job, float *tile, int64_t g)
{
	const ft_part *part = part_of_group(job->w, g);
	int64_t in_part = g - part->first_group;
	int64_t column = part->first_row + in_part * FT_GROUP;
	int64_t n = ft_min(FT_GROUP, part->rows - in_part * FT_GROUP);

	job->w->device->integer->multiply[part->dtype](
		tile, FT_GROUP, part->groups + in_part * part->group_bytes, &job->rounded, 0, job->rows);
	for (int64_t i = 0; i < job->rows; i++)
		store_row(job, ft_at(job->y, job->first + i, column), tile + i * FT_GROUP, n);
}

static void
multiply_task(void *context, int worker, int64_t begin, int64_t end)
{
	const integer_job *job = context;
	float *tile = ft_worker_scratch(job->s, worker);

	for (int64_t g = begin; g < end; g++)
		multiply_group(job, tile, g);
}

/* --- all of it --- */

static ft_status
reserve(integer_job *job, int64_t rows)
{
	size_t k = (size_t) job->w->cols;
	size_t blocks = k / FT_INTEGER_BLOCK;
	size_t n = (size_t) rows;
	size_t tile = n * FT_GROUP * sizeof(float);
	size_t wide = k * sizeof(float);
	void *memory;

	FT_TRY(ft_scratch_get(&job->s->shared, n * (2 * k + 2 * blocks * sizeof(float)), &memory));
	job->rounded = (ft_rounded){.k = job->w->cols,
								.scale = memory,
								.sum = (float *) memory + n * blocks,
								.natural = (int8_t *) ((float *) memory + 2 * n * blocks)};
	job->rounded.split = job->rounded.natural + n * k;
	return ft_worker_scratch_reserve(job->s, tile > wide ? tile : wide);
}

ft_status
ft_integer_linear(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta)
{
	integer_job job = {.w = w, .x = x, .y = y, .beta = beta, .s = s};
	int64_t threads = ft_pool_threads(s->device->pool);

	FT_TRY(reserve(&job, ft_min(x.rows, PASS_ROWS)));
	for (job.first = 0; job.first < x.rows; job.first += PASS_ROWS)
	{
		int64_t grain;

		job.rows = ft_min(PASS_ROWS, x.rows - job.first);
		ft_run(s, job.rows, 4 * w->cols, round_task, &job);
		/* two pieces a thread at least: one that is held up does not hold up all */
		grain = ft_min(PIECE_GROUPS, ft_divide_up(w->n_groups, 2 * threads));
		while (grain < w->n_groups && grain * FT_GROUP * job.rows * w->cols < MIN_WORK)
			grain++;
		ft_pool_run(s->device->pool, w->n_groups, grain, multiply_task, &job);
	}
	return FT_OK;
}
