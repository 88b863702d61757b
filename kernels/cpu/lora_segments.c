/*
 * lora_segments.c: the low-rank update of a batch whose rows have different adapters.
 *
 * Row-fixed like product.c: x · aᵀ is a dot product per rank, summed in
 * the same order for any number of rows, and the product with b a chain of
 * multiply-adds over the rank.
 */
#include "cpu.h"

#define BLOCK_ROWS 32

typedef struct lora_job
{
	ft_stream *s;
	ft_mat y;
	ft_mat x;
	const ft_lora_segment *segment;
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

static void
lora_task(void *context, int worker, int64_t begin, int64_t end)
{
	lora_job *job = context;
	const ft_lora_segment *segment = job->segment;
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t rank = segment->rank;
	int64_t in = job->x.cols;
	float *low = ft_worker_scratch(job->s, worker); /* [BLOCK_ROWS][rank] */
	float *acc = low + BLOCK_ROWS * rank;           /* [BLOCK_ROWS][16] */
	float *panel = acc + BLOCK_ROWS * FT_GROUP;     /* [rank][16] */
	float *x_row = panel + rank * FT_GROUP;         /* [in] */

	for (int64_t block = begin; block < end; block++)
	{
		int64_t row = segment->row + block * BLOCK_ROWS;
		int64_t rows = ft_min(BLOCK_ROWS, segment->row + segment->rows - row);

		for (int64_t i = 0; i < rows; i++)
		{
			const float *x = ft_at(job->x, row + i, 0);

			if (job->x.dtype != FT_F32)
			{
				kernels->to_f32(x_row, ft_at(job->x, row + i, 0), in);
				x = x_row;
			}
			kernels->dots(low + i * rank, x, segment->a, in, rank, in);
		}
		for (int64_t column = 0; column < segment->out; column += FT_GROUP)
		{
			int64_t n = ft_min(FT_GROUP, segment->out - column);

			kernels->fill_panel(panel, segment->b + column * rank, rank, n, rank);
			for (int64_t i = 0; i < rows * FT_GROUP; i++)
				acc[i] = 0;
			kernels->gemm(acc, FT_GROUP, low, rank, 1, panel, FT_GROUP, 0, rows, 1, rank);
			for (int64_t i = 0; i < rows; i++)
				add_row(job->y, row + i, segment->column + column, acc + i * FT_GROUP, n,
						segment->scale);
		}
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
	lora_job job = {.s = s, .y = y, .x = x};

	FT_TRY(ft_check_float("lora", y));
	FT_TRY(ft_check_float("lora", x));
	for (int i = 0; i < n; i++)
		FT_TRY(check_segment(y, x, &segments[i]));
	for (int i = 0; i < n; i++)
	{
		const ft_lora_segment *segment = &segments[i];
		int64_t rank = segment->rank;

		job.segment = segment;
		FT_TRY(ft_worker_scratch_reserve(
			s,
			(size_t) (BLOCK_ROWS * (rank + FT_GROUP) + rank * FT_GROUP + x.cols) * sizeof(float)));
		ft_run(s, ft_divide_up(segment->rows, BLOCK_ROWS),
			   BLOCK_ROWS * rank * (x.cols + segment->out) / 8, lora_task, &job);
	}
	return FT_OK;
}
