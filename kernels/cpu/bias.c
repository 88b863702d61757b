/*
 * bias.c: adding a bias to every row, and its gradient, the sum of the rows.
 */
#include "cpu.h"

#include <string.h>

/* Columns that a task of sum_rows takes through all rows. */
#define SLICE 256

/* Rows that are summed on their own first, which keeps the digits of long sums. */
#define SUM_ROWS 64

typedef struct bias_job
{
	ft_stream *s;
	ft_mat m;
	const float *bias;
	float *sum;
} bias_job;

static void
add_bias_task(void *context, int worker, int64_t begin, int64_t end)
{
	bias_job *job = context;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
		job->s->device->kernels->accumulate(ft_at(job->m, i, 0), job->m.dtype == FT_BF16, job->bias,
											false, job->m.cols);
}

ft_status
ft_cpu_add_bias(ft_stream *s, ft_mat y, const float *bias)
{
	bias_job job = {.s = s, .m = y, .bias = bias};

	FT_TRY(ft_check_float("add_bias", y));
	FT_TRY(ft_check_shape("add_bias", "output", y, y.rows, y.cols));
	ft_run(s, y.rows, y.cols, add_bias_task, &job);
	return FT_OK;
}

static void
sum_rows_task(void *context, int worker, int64_t begin, int64_t end)
{
	bias_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;
	float some[SLICE];

	(void) worker;
	for (int64_t slice = begin; slice < end; slice++)
	{
		int64_t first = slice * SLICE;
		int64_t n = ft_min(job->m.cols - first, SLICE);

		for (int64_t row = 0; row < job->m.rows; row += SUM_ROWS)
		{
			int64_t last = ft_min(row + SUM_ROWS, job->m.rows);

			memset(some, 0, sizeof some);
			for (int64_t i = row; i < last; i++)
				kernels->accumulate(some, false, ft_at(job->m, i, first), job->m.dtype == FT_BF16,
									n);
			kernels->accumulate(job->sum + first, false, some, false, n);
		}
	}
}

ft_status
ft_cpu_sum_rows(ft_stream *s, float *sum, ft_mat x)
{
	bias_job job = {.s = s, .m = x, .sum = sum};

	FT_TRY(ft_check_float("sum_rows", x));
	FT_TRY(ft_check_shape("sum_rows", "input", x, x.rows, x.cols));
	ft_run(s, ft_divide_up(x.cols, SLICE), x.rows * SLICE, sum_rows_task, &job);
	return FT_OK;
}
