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
#define MIN_ROWS 48
#define FEW_ROWS 16
#define COPY_ROWS 12 /* more of them are copied */
/* Input rows of a pass, in bytes: they are read once for every tile and should stay in the L2
 * cache. */
#define PASS_BYTES (512 * 1024)

typedef struct serve_job
{
	ft_stream *s;
	ft_mat y;
	const ft_weight *weight;
	ft_mat input;
	const float *x; /* element (i, k) is x[k / FT_PANEL_K · chunk + i · ldx + k % FT_PANEL_K] */
	int64_t ldx;
	int64_t chunk;
	float *packed; /* x, where it is a copy */
	int64_t first; /* rows of the pass */
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

/* Packed bytes of columns [k0, ..) of a group. */
static const uint8_t *
packed_columns(const ft_part *part, int64_t group, int64_t k0)
{
	return part->groups + group * part->group_bytes +
		   k0 / ft_pack_columns(part->dtype) * ft_pack_block_bytes(part->dtype);
}

/* Groups [begin, begin + n) of one tile. */
static void
serve_tile(const serve_job *job, serve_scratch *scratch, int64_t begin, int n)
{
	const ft_kernels *kernels = job->s->device->kernels;
	const ft_weight *w = job->weight;
	const ft_part *part[TILE_GROUPS];
	/* with few rows a short step, so that reading the weights goes on beside the arithmetic */
	const int64_t step = job->rows <= FEW_ROWS ? FT_PANEL_K / 4 : FT_PANEL_K;

	for (int g = 0; g < n; g++)
		part[g] = part_of_group(w, begin + g);
	memset(scratch->acc, 0, (size_t) (job->rows * TILE_COLUMNS) * sizeof(float));
	for (int64_t k0 = 0; k0 < w->cols; k0 += step)
	{
		int64_t k = ft_min(step, w->cols - k0);

		for (int g = 0; g < n; g++)
		{
			int64_t group = begin + g - part[g]->first_group;
			/* then come the next columns of this group, or the first ones of the next tile's */
			const uint8_t *ahead = k0 + step < w->cols
									   ? packed_columns(part[g], group, k0 + step)
									   : packed_columns(part[g], group + TILE_GROUPS, 0);

			kernels->unpack[part[g]->dtype](scratch->panel + g * FT_PANEL_K * FT_GROUP,
											part[g]->groups + group * part[g]->group_bytes, k0, k,
											ahead);
		}
		kernels->gemm(
			scratch->acc, TILE_COLUMNS,
			job->x + k0 / FT_PANEL_K * job->chunk + job->first * job->ldx + k0 % FT_PANEL_K,
			job->ldx, 1, scratch->panel, FT_GROUP, FT_PANEL_K * FT_GROUP, job->rows, n, k);
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

static void
pack_rows_task(void *context, int worker, int64_t begin, int64_t end)
{
	const serve_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
		for (int64_t k0 = 0; k0 < job->input.cols; k0 += FT_PANEL_K)
		{
			int64_t k = ft_min(FT_PANEL_K, job->input.cols - k0);
			float *to = job->packed + k0 / FT_PANEL_K * job->chunk + i * FT_PANEL_K;

			if (job->input.dtype == FT_F32)
				memcpy(to, ft_at(job->input, i, k0), (size_t) k * sizeof *to);
			else
				kernels->to_f32(to, ft_at(job->input, i, k0), k);
		}
}

/* Where the kernel reads the rows: as they lie when they are few, else copied as f32 in chunks of
 * FT_PANEL_K columns, since rows a power of two apart fight for the same cache lines. */
static ft_status
prepare_rows(serve_job *job)
{
	int64_t chunks = ft_divide_up(job->input.cols, FT_PANEL_K);
	void *memory;

	if (job->input.dtype == FT_F32 && job->input.rows <= COPY_ROWS)
	{
		job->x = job->input.data;
		job->ldx = job->input.ld;
		job->chunk = FT_PANEL_K;
		return FT_OK;
	}
	job->ldx = FT_PANEL_K;
	job->chunk = job->input.rows * FT_PANEL_K;
	FT_TRY(
		ft_scratch_get(&job->s->shared, (size_t) (chunks * job->chunk) * sizeof(float), &memory));
	job->packed = memory;
	job->x = memory;
	ft_run(job->s, job->input.rows, job->input.cols, pack_rows_task, job);
	return FT_OK;
}

ft_status
ft_linear_serve(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta)
{
	serve_job job = {.s = s, .y = y, .input = x, .weight = w, .beta = beta};
	int threads = ft_pool_threads(s->device->pool);
	int64_t pass = PASS_BYTES / (int64_t) sizeof(float) / w->cols;

	/* passes of equal length, in the steps of the kernel's row blocks */
	pass = pass < MIN_ROWS ? MIN_ROWS : ft_min(pass, MAX_ROWS);
	pass = ft_divide_up(x.rows, ft_divide_up(x.rows, pass));
	pass = ft_divide_up(pass, 12) * 12;
	FT_TRY(prepare_rows(&job));
	FT_TRY(ft_worker_scratch_reserve(s, sizeof(serve_scratch) +
											(size_t) pass * TILE_COLUMNS * sizeof(float)));
	for (job.first = 0; job.first < x.rows; job.first += pass)
	{
		/* two pieces a thread at least, so that one that is held up does not hold up all */
		int64_t tiles = ft_divide_up(w->n_groups, TILE_GROUPS);
		int64_t grain = ft_divide_up(tiles, (int64_t) 2 * threads);

		job.rows = ft_min(pass, x.rows - job.first);
		ft_pool_run(s->device->pool, w->n_groups, ft_min(grain, 4) * TILE_GROUPS, serve_task, &job);
	}
	return FT_OK;
}
