/*
 * rope.c: rotary position embedding over the halves of each head.
 */
#include "cpu.h"

typedef struct rope_job
{
	ft_stream *s;
	ft_mat x;
	int head_dim;
	const int32_t *positions;
	const float *cos_table;
	const float *sin_table;
	float sign;
} rope_job;

static void
rope_task(void *context, int worker, int64_t begin, int64_t end)
{
	rope_job *job = context;
	int64_t half = job->head_dim / 2;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
	{
		int64_t at = job->positions[i] * half;

		for (int64_t c = 0; c < job->x.cols; c += job->head_dim)
			job->s->device->kernels->rope(ft_at(job->x, i, c), job->x.dtype == FT_BF16,
										  job->cos_table + at, job->sin_table + at, job->sign,
										  half);
	}
}

ft_status
ft_cpu_rope(ft_stream *s, ft_mat x, int head_dim, const int32_t *positions, const float *cos_table,
			const float *sin_table, bool inverse)
{
	rope_job job = {.s = s,
					.x = x,
					.head_dim = head_dim,
					.positions = positions,
					.cos_table = cos_table,
					.sin_table = sin_table,
					.sign = inverse ? -1 : 1};

	FT_TRY(ft_check_float("rope", x));
	if (head_dim < 2 || head_dim % 2 != 0 || x.cols % head_dim != 0)
		return ft_fail(FT_INVALID, "rope: %lld columns are no heads of an even size %d",
					   (long long) x.cols, head_dim);
	FT_TRY(ft_check_shape("rope", "input", x, x.rows, x.cols));
	ft_run(s, x.rows, 2 * x.cols, rope_task, &job);
	return FT_OK;
}
