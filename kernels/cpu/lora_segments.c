/*
 * lora_segments.c: the low-rank update of a batch whose rows have different adapters.
 *
 * Row-fixed like product.c: x · aᵀ is a dot product per rank, summed in
 * the same order for any number of rows, and the product with b a chain of
 * multiply-adds over the rank.  Threads share the rows of all segments for the
 * former and groups of columns of all segments for the latter, so that few rows
 * of many adapters keep them busy as well as many rows of one do.
 */
#include "cpu.h"

#define BLOCK_ROWS 32

typedef struct lora_job
{
	ft_stream *s;
	ft_mat y;
	ft_mat x;
	const ft_lora_segment *segments;
	float *low; /* x · aᵀ, [rows][rank] of each segment, one after the other */
} lora_job;

static void
add_row(ft_mat y, int64_t row, int64_t column, const float *from, int64_t n, float scale)
{
	void *to = ft_at(y, row, column);

	for (int64_t j = 0; j < n; j++)
		if (y.dtype == FT_F32)
			((float *) to)[j] += scale * from[j];
		else
			((uint16_t *) to)[j] =
				ft_f32_to_bf16(ft_bf16_to_f32(((uint16_t *) to)[j]) + scale * from[j]);
}

/* low = x · aᵀ for rows [begin, end) of all segments' rows. */
static void
lower_task(void *context, int worker, int64_t begin, int64_t end)
{
	const lora_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;
	const ft_lora_segment *segment = job->segments;
	int64_t in = job->x.cols;
	float *wide = ft_worker_scratch(job->s, worker); /* [in] */
	float *low = job->low;

	for (int64_t first = 0; begin < end; first += segment->rows, segment++)
	{
		for (; begin < ft_min(end, first + segment->rows); begin++)
		{
			int64_t i = begin - first;
			const float *x = ft_at(job->x, segment->row + i, 0);

			if (job->x.dtype != FT_F32)
			{
				kernels->to_f32(wide, ft_at(job->x, segment->row + i, 0), in);
				x = wide;
			}
			kernels->dots(low + i * segment->rank, x, segment->a, in, segment->rank, in);
		}
		low += segment->rows * segment->rank;
	}
}

/* y += scale · low · bᵀ for columns [column, column + FT_GROUP) of the segment's. */
static void
raise_group(const lora_job *job, int worker, const ft_lora_segment *segment, const float *low,
			int64_t column)
{
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t n = ft_min(FT_GROUP, segment->out - column);
	int64_t rank = segment->rank;
	float *acc = ft_worker_scratch(job->s, worker); /* [BLOCK_ROWS][16] */
	float *panel = acc + BLOCK_ROWS * FT_GROUP;     /* [rank][16] */

	kernels->fill_panel(panel, segment->b + column * rank, rank, n, rank);
	for (int64_t row = 0; row < segment->rows; row += BLOCK_ROWS)
	{
		int64_t rows = ft_min(BLOCK_ROWS, segment->rows - row);

		for (int64_t i = 0; i < rows * FT_GROUP; i++)
			acc[i] = 0;
		kernels->gemm(acc, FT_GROUP, low + row * rank, rank, 1, panel, FT_GROUP, 0, rows, 1, rank);
		for (int64_t i = 0; i < rows; i++)
			add_row(job->y, segment->row + row + i, segment->column + column, acc + i * FT_GROUP, n,
					segment->scale);
	}
}

/* Groups [begin, end) of all segments' columns. */
static void
raise_task(void *context, int worker, int64_t begin, int64_t end)
{
	const lora_job *job = context;
	const ft_lora_segment *segment = job->segments;
	const float *low = job->low;

	for (int64_t first = 0; begin < end; segment++)
	{
		int64_t groups = ft_divide_up(segment->out, FT_GROUP);

		for (; begin < ft_min(end, first + groups); begin++)
			raise_group(job, worker, segment, low, (begin - first) * FT_GROUP);
		first += groups;
		low += segment->rows * segment->rank;
	}
}

static ft_status
check_segment(ft_mat y, ft_mat x, const ft_lora_segment *segment)
{
	if (segment->rank < 1 || segment->row < 0 || segment->rows < 0 ||
		segment->row + segment->rows > ft_min(y.rows, x.rows) || segment->column < 0 ||
		segment->out < 0 || segment->column + segment->out > y.cols)
		return ft_fail(FT_INVALID,
					   "lora: rows %lld + %lld and columns %lld + %lld of rank %d lie outside of "
					   "[%lld, %lld]",
					   (long long) segment->row, (long long) segment->rows,
					   (long long) segment->column, (long long) segment->out, segment->rank,
					   (long long) y.rows, (long long) y.cols);
	return FT_OK;
}

ft_status
ft_cpu_lora(ft_stream *s, ft_mat y, ft_mat x, const ft_lora_segment *segments, int n)
{
	lora_job job = {.s = s, .y = y, .x = x, .segments = segments};
	int64_t rows = 0, groups = 0, values = 0, rank = 1;
	int64_t raised = 0; /* multiply-adds of the second product */
	int64_t wide;

	FT_TRY(ft_check_float("lora", y));
	FT_TRY(ft_check_float("lora", x));
	for (int i = 0; i < n; i++)
	{
		FT_TRY(check_segment(y, x, &segments[i]));
		rows += segments[i].rows;
		groups += ft_divide_up(segments[i].out, FT_GROUP);
		values += segments[i].rows * segments[i].rank;
		raised += segments[i].rows * segments[i].rank * segments[i].out;
		if (segments[i].rank > rank)
			rank = segments[i].rank;
	}
	if (rows == 0 || groups == 0)
		return FT_OK;
	wide = FT_GROUP * (BLOCK_ROWS + rank);
	FT_TRY(ft_worker_scratch_reserve(s, (size_t) (x.cols > wide ? x.cols : wide) * sizeof(float)));
	FT_TRY(ft_scratch_get(&s->shared, (size_t) values * sizeof(float), (void **) &job.low));
	ft_run(s, rows, rank * x.cols / 2, lower_task, &job);
	ft_run(s, groups, raised / groups / 4 + FT_GROUP * rank, raise_task, &job);
	return FT_OK;
}
