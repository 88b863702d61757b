/*
 * dequantise.c: a weight's values, in a matrix.
 */
#include "cpu.h"

#include "pack.h"

#include <string.h>

#define NF4_BLOCKS 16 /* that are dequantised at a time: 4 KiB of f32 */

typedef struct dequantise_job
{
	const ft_kernels *kernels;
	ft_mat y; /* the part's rows */
	const ft_part *part;
	ft_nf4 nf4; /* of a part of that type */
} dequantise_job;

static void
store(const dequantise_job *job, void *y, const float *x, int64_t n)
{
	if (job->y.dtype == FT_F32)
		memcpy(y, x, (size_t) n * sizeof *x);
	else
		job->kernels->to_bf16(y, x, n);
}

/* --- NF4 --- */

/* Items are NF4_BLOCKS blocks. */
static void
nf4_task(void *context, int worker, int64_t begin, int64_t end)
{
	const dequantise_job *job = context;
	const ft_nf4 *t = &job->nf4;
	int64_t values = job->y.rows * job->y.cols;
	_Alignas(64) float row[NF4_BLOCKS * FT_NF4_BLOCK];
	float scales[NF4_BLOCKS];

	(void) worker;
	for (int64_t i = begin; i < end; i++)
	{
		int64_t first = i * NF4_BLOCKS;
		int64_t blocks = ft_min(NF4_BLOCKS, t->blocks - first);
		int64_t at = first * FT_NF4_BLOCK;
		int64_t n = ft_min(blocks * FT_NF4_BLOCK, values - at);

		for (int64_t b = 0; b < blocks; b++)
		{
			float scale = t->map[t->absmax[first + b]] * t->group[(first + b) / FT_NF4_GROUP];

			scales[b] = scale + *t->offset;
		}
		job->kernels->nf4(row, t->codes + first * (FT_NF4_BLOCK / 2), scales, blocks);
		store(job, ft_at(job->y, 0, at), row, n);
	}
}

/* --- packed groups of 16 rows --- */

/* Columns [first, first + k) of a group's n rows. */
static void
unpack_columns(const dequantise_job *job, int64_t group, int64_t n, int64_t first, int64_t k)
{
	_Alignas(64) float panel[FT_PANEL_K * FT_GROUP]; /* [column][row] */
	_Alignas(64) float turned[FT_GROUP * FT_GROUP];
	_Alignas(64) float rows[FT_GROUP * FT_PANEL_K];
	const uint8_t *packed = job->part->groups + group * job->part->group_bytes;

	job->kernels->unpack[job->part->dtype](panel, packed, first, k, packed);
	for (int64_t c = 0; c < k; c += FT_GROUP)
	{
		int64_t width = ft_min(FT_GROUP, k - c);

		job->kernels->fill_panel(turned, panel + c * FT_GROUP, FT_GROUP, width, FT_GROUP);
		for (int64_t r = 0; r < n; r++)
			memcpy(rows + r * FT_PANEL_K + c, turned + r * FT_GROUP,
				   (size_t) width * sizeof(float));
	}
	for (int64_t r = 0; r < n; r++)
		store(job, ft_at(job->y, group * FT_GROUP + r, first), rows + r * FT_PANEL_K, k);
}

static void
group_task(void *context, int worker, int64_t begin, int64_t end)
{
	const dequantise_job *job = context;
	int64_t cols = job->y.cols;

	(void) worker;
	for (int64_t g = begin; g < end; g++)
		for (int64_t first = 0; first < cols; first += FT_PANEL_K)
			unpack_columns(job, g, ft_min(FT_GROUP, job->y.rows - g * FT_GROUP), first,
						   ft_min(FT_PANEL_K, cols - first));
}

ft_status
ft_cpu_dequantise(ft_stream *s, ft_mat y, const ft_weight *w)
{
	FT_TRY(ft_check_float("dequantise", y));
	FT_TRY(ft_check_shape("dequantise", "output", y, w->rows, w->cols));
	if (!(w->use & FT_USE_DEQUANTISE))
		return ft_fail(FT_UNSUPPORTED, "dequantise: weight was not made for it");
	if (y.ld != y.cols)
		return ft_bad_shape("dequantise", "output", y, w->rows, w->cols);
	for (int i = 0; i < w->n_parts; i++)
	{
		const ft_part *part = &w->parts[i];
		dequantise_job job = {.kernels = s->device->kernels,
							  .y = ft_mat_rows(y, part->first_row, part->rows),
							  .part = part};

		if (part->dtype == FT_NF4)
		{
			job.nf4 = ft_nf4_parts(part->groups, part->rows * w->cols);
			ft_run(s, ft_divide_up(job.nf4.blocks, NF4_BLOCKS), NF4_BLOCKS * FT_NF4_BLOCK, nf4_task,
				   &job);
		}
		else
			ft_run(s, ft_divide_up(part->rows, FT_GROUP), 2 * FT_GROUP * w->cols, group_task, &job);
	}
	return FT_OK;
}
