/*
 * linear_integer.c: linear() of quantised weights in whole numbers (integer.h):
 * which weights, the rounding of the rows, and the cutting into pieces.
 */
#include "integer.h"

#include "pack.h"

#include <string.h>

/* Rows of x that a piece goes through, in bytes of their rounded values: they stay in the L2 cache.
 */
#define PASS_BYTES (512 * 1024)
#define MIN_ROWS 48
#define MAX_ROWS 192
/* Rows that take as long as reading the weight does. */
#define READ_ROWS 12
/* A piece for each thread is worth it from about ten microseconds on: multiply-adds. */
#define MIN_WORK (1536 * 1024)
/* Pieces of each thread where there is enough to do: one that is held up does not hold up all. */
#define MAX_PIECES 8

typedef struct integer_job
{
	const ft_weight *w;
	ft_mat x;
	ft_mat y;
	float beta;
	ft_rounded rounded; /* rows of the pass */
	int64_t first;      /* of them */
	int64_t panel_bytes;
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
	const ft_rounded *rounded = &job->rounded;

	for (int64_t i = begin; i < end; i++)
	{
		const void *row = ft_at(job->x, job->first + i, 0);
		int64_t tile = ((i + 1) * rounded->tiles - 1) / rounded->rows;
		int64_t first = ft_tile_row(rounded, tile);

		if (job->x.dtype == FT_BF16)
		{
			float *wide = ft_worker_scratch(job->s, worker);

			device->kernels->to_f32(wide, row, job->x.cols);
			row = wide;
		}
		device->integer->round(ft_tile_blocks(rounded, tile),
							   (int) (ft_tile_row(rounded, tile + 1) - first), (int) (i - first),
							   row, rounded->k);
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

/* Groups [g, g + groups) of a part with all rows of the pass. */
static void
multiply_groups(const integer_job *job, uint8_t *scratch, const ft_part *part, int64_t g,
				int64_t groups)
{
	const ft_integer_kernels *kernels = job->w->device->integer;
	int64_t column = part->first_row + g * FT_GROUP;
	int64_t n = ft_min(groups * FT_GROUP, part->rows - g * FT_GROUP);
	const uint8_t *group = part->groups + g * part->group_bytes;
	float *tile = (float *) (scratch + job->panel_bytes);
	int64_t ld = groups * FT_GROUP;
	bool in_place = job->y.dtype == FT_F32 && job->beta == 0 && n == ld;

	if (in_place)
	{
		kernels->multiply[part->dtype](ft_at(job->y, job->first, column), job->y.ld, group,
									   part->group_bytes, groups, &job->rounded, scratch);
		return;
	}
	kernels->multiply[part->dtype](tile, ld, group, part->group_bytes, groups, &job->rounded,
								   scratch);
	for (int64_t i = 0; i < job->rounded.rows; i++)
		store_row(job, ft_at(job->y, job->first + i, column), tile + i * ld, n);
}

static void
multiply_task(void *context, int worker, int64_t begin, int64_t end)
{
	const integer_job *job = context;
	uint8_t *scratch = ft_worker_scratch(job->s, worker);

	while (begin < end)
	{
		const ft_part *part = part_of_group(job->w, begin);
		int64_t g = begin - part->first_group;
		int64_t left = ft_min(end - begin, ft_divide_up(part->rows, FT_GROUP) - g);
		int64_t groups = ft_min(left, job->w->device->integer->groups);

		multiply_groups(job, scratch, part, g, groups);
		begin += groups;
	}
}

/* --- all of it --- */

/* Passes of whole tiles. */
static int64_t
plan_pass(const integer_job *job, int64_t row_bytes)
{
	int64_t tile = job->rounded.kernels->tile_rows;
	int64_t pass = PASS_BYTES / row_bytes;

	pass = pass < MIN_ROWS ? MIN_ROWS : ft_min(pass, MAX_ROWS);
	pass = ft_divide_up(job->x.rows, ft_divide_up(job->x.rows, pass));
	return ft_divide_up(pass, tile) * tile;
}

static ft_status
reserve(integer_job *job, int64_t rows, int64_t row_bytes)
{
	int64_t blocks = job->w->cols / FT_INTEGER_BLOCK;
	size_t tile = (size_t) (rows * FT_GROUP * job->rounded.kernels->groups) * sizeof(float);
	size_t wide = (size_t) job->w->cols * sizeof(float);
	void *memory;

	FT_TRY(ft_scratch_get(&job->s->shared, (size_t) (rows * row_bytes), &memory));
	job->rounded.blocks = memory;
	job->panel_bytes = blocks * job->rounded.kernels->panel_bytes;
	return ft_worker_scratch_reserve(job->s,
									 (size_t) job->panel_bytes + (tile > wide ? tile : wide));
}

/* Groups of a piece. */
static int64_t
plan_grain(const integer_job *job)
{
	int64_t threads = ft_pool_threads(job->s->device->pool);
	int64_t groups = job->w->n_groups;
	int64_t work = groups * FT_GROUP * job->w->cols * (job->rounded.rows + READ_ROWS);
	int64_t pieces = ft_min(work / (MIN_WORK * threads), MAX_PIECES);

	int64_t grain = groups;

	if (pieces > 0)
		grain = ft_divide_up(groups, pieces * threads);
	else if (work >= MIN_WORK)
		grain = ft_divide_up(groups, threads);
	return ft_divide_up(grain, job->w->device->integer->groups) * job->w->device->integer->groups;
}

ft_status
ft_integer_linear(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta)
{
	const ft_integer_kernels *kernels = s->device->integer;
	integer_job job = {.w = w,
					   .x = x,
					   .y = y,
					   .beta = beta,
					   .s = s,
					   .rounded = {.k = w->cols, .kernels = kernels}};
	int64_t row_bytes = w->cols / FT_INTEGER_BLOCK * kernels->row_bytes;
	int64_t pass = plan_pass(&job, row_bytes);

	FT_TRY(reserve(&job, ft_min(x.rows, pass), row_bytes));
	for (job.first = 0; job.first < x.rows; job.first += pass)
	{
		job.rounded.rows = ft_min(pass, x.rows - job.first);
		job.rounded.tiles = ft_tiles_of(kernels, job.rounded.rows);
		ft_run(s, job.rounded.rows, 4 * w->cols, round_task, &job);
		ft_pool_run(s->device->pool, w->n_groups, plan_grain(&job), multiply_task, &job);
	}
	return FT_OK;
}
