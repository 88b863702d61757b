/*
 * lora_segments.c: the low-rank update of a batch whose rows have different adapters.
 *
 * Row-fixed like product.c: x · aᵀ is a dot product per rank, summed in
 * the same order for any number of rows, and the product with b a chain of
 * multiply-adds over the rank.  Threads share the rows of all segments for the
 * former and blocks of columns of all segments for the latter, so that few rows
 * of many adapters keep them busy as well as many rows of one do.
 */
#include "cpu.h"

#include <string.h>

#define BLOCK_ROWS 32
#define BLOCK_GROUPS 4
#define BLOCK_COLUMNS (BLOCK_GROUPS * FT_GROUP)

typedef struct lora_job
{
	ft_stream *s;
	ft_mat y;
	ft_mat x;
	const ft_lora_segment *segments;
	float *low; /* x · aᵀ, [rows][rank] of each segment, one after the other */
} lora_job;

static void
add_row(const ft_kernels *kernels, ft_mat y, int64_t row, int64_t column, const float *from,
		int64_t n, float scale)
{
	uint16_t *to = ft_at(y, row, column);

	if (y.dtype == FT_F32)
		kernels->axpy(ft_at(y, row, column), from, scale, n);
	else
		for (int64_t j = 0; j < n; j++)
			to[j] = ft_f32_to_bf16(ft_bf16_to_f32(to[j]) + scale * from[j]);
}

/* low = x · aᵀ for rows [begin, end) of all segments' rows. */
static void
lower_task(void *context, int worker, int64_t begin, int64_t end)
{
	const lora_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;
	const ft_lora_segment *segment = job->segments;
	int64_t in = job->x.cols;
	float *x_wide = ft_worker_scratch(job->s, worker); /* [in] */
	float *a_wide = x_wide + in;                       /* [rank][in] */
	float *low = job->low;

	for (int64_t first = 0; begin < end; first += segment->rows, segment++)
	{
		const float *a = segment->a;

		if (begin < first + segment->rows && segment->dtype != FT_F32)
		{
			kernels->to_f32(a_wide, segment->a, segment->rank * in);
			a = a_wide;
		}
		for (; begin < ft_min(end, first + segment->rows); begin++)
		{
			int64_t i = begin - first;
			const float *x = ft_at(job->x, segment->row + i, 0);

			if (job->x.dtype != FT_F32)
			{
				kernels->to_f32(x_wide, ft_at(job->x, segment->row + i, 0), in);
				x = x_wide;
			}
			kernels->dots(low + i * segment->rank, x, a, in, segment->rank, in);
		}
		low += segment->rows * segment->rank;
	}
}

/* y += scale · low · bᵀ for columns [column, column + BLOCK_COLUMNS) of the segment's. */
static void
raise_block(const lora_job *job, int worker, const ft_lora_segment *segment, const float *low,
			int64_t column)
{
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t n = ft_min(BLOCK_COLUMNS, segment->out - column);
	int groups = (int) ft_divide_up(n, FT_GROUP);
	int64_t rank = segment->rank;
	float *acc = ft_worker_scratch(job->s, worker);  /* [BLOCK_ROWS][BLOCK_COLUMNS] */
	float *panel = acc + BLOCK_ROWS * BLOCK_COLUMNS; /* [groups][rank][16] */
	float *b_wide = panel + rank * BLOCK_COLUMNS;    /* [n][rank] */
	const float *b = b_wide;

	if (segment->dtype == FT_F32)
		b = (const float *) segment->b + column * rank;
	else
		kernels->to_f32(b_wide, (const uint16_t *) segment->b + column * rank, n * rank);
	for (int g = 0; g < groups; g++)
		kernels->fill_panel(panel + g * rank * FT_GROUP, b + g * FT_GROUP * rank, rank,
							ft_min(FT_GROUP, n - g * FT_GROUP), rank);
	for (int64_t row = 0; row < segment->rows; row += BLOCK_ROWS)
	{
		int64_t rows = ft_min(BLOCK_ROWS, segment->rows - row);

		memset(acc, 0, (size_t) (rows * BLOCK_COLUMNS) * sizeof *acc);
		kernels->gemm(acc, BLOCK_COLUMNS, low + row * rank, rank, 1, panel, FT_GROUP,
					  rank * FT_GROUP, rows, groups, rank);
		for (int64_t i = 0; i < rows; i++)
			add_row(kernels, job->y, segment->row + row + i, segment->column + column,
					acc + i * BLOCK_COLUMNS, n, segment->scale);
	}
}

/* Blocks [begin, end) of all segments' columns. */
static void
raise_task(void *context, int worker, int64_t begin, int64_t end)
{
	const lora_job *job = context;
	const ft_lora_segment *segment = job->segments;
	const float *low = job->low;

	for (int64_t first = 0; begin < end; segment++)
	{
		int64_t blocks = ft_divide_up(segment->out, BLOCK_COLUMNS);

		for (; begin < ft_min(end, first + blocks); begin++)
			raise_block(job, worker, segment, low, (begin - first) * BLOCK_COLUMNS);
		first += blocks;
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
	if (segment->dtype != FT_F32 && segment->dtype != FT_BF16)
		return ft_bad_types("lora", segment->dtype, y.dtype);
	return FT_OK;
}

ft_status
ft_cpu_lora(ft_stream *s, ft_mat y, ft_mat x, const ft_lora_segment *segments, int n)
{
	lora_job job = {.s = s, .y = y, .x = x, .segments = segments};
	int64_t rows = 0, blocks = 0, values = 0, rank = 1;
	int64_t raised = 0;   /* multiply-adds of the second product */
	int64_t lower, raise; /* scratch for them */

	FT_TRY(ft_check_float("lora", y));
	FT_TRY(ft_check_float("lora", x));
	for (int i = 0; i < n; i++)
	{
		FT_TRY(check_segment(y, x, &segments[i]));
		rows += segments[i].rows;
		blocks += ft_divide_up(segments[i].out, BLOCK_COLUMNS);
		values += segments[i].rows * segments[i].rank;
		raised += segments[i].rows * segments[i].rank * segments[i].out;
		if (segments[i].rank > rank)
			rank = segments[i].rank;
	}
	if (rows == 0 || blocks == 0)
		return FT_OK;
	lower = x.cols * (1 + rank);
	raise = BLOCK_COLUMNS * (BLOCK_ROWS + 2 * rank);
	FT_TRY(ft_worker_scratch_reserve(s, (size_t) (lower > raise ? lower : raise) * sizeof(float)));
	FT_TRY(ft_scratch_get(&s->shared, (size_t) values * sizeof(float), (void **) &job.low));
	ft_run(s, rows, rank * x.cols / 2, lower_task, &job);
	ft_run(s, blocks, raised / blocks / 4 + BLOCK_COLUMNS * rank, raise_task, &job);
	return FT_OK;
}
