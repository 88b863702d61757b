/*
 * optimizer.c: AdamW, also with moments of 8 bits, and the sum of squares for the gradient norm.
 */
#include "cpu.h"

/* Values whose squares are one partial sum; the partial sums are added in order. */
#define SUM_BLOCK 16384

typedef struct sum_job
{
	const ft_kernels *kernels;
	const float *x;
	int64_t n;
	double *partial;
} sum_job;

static void
sum_task(void *context, int worker, int64_t begin, int64_t end)
{
	sum_job *job = context;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
		job->partial[i] = job->kernels->sum_squares(job->x + i * SUM_BLOCK,
													ft_min(SUM_BLOCK, job->n - i * SUM_BLOCK));
}

ft_status
ft_cpu_sum_squares(ft_stream *s, double *result, const float *x, int64_t n)
{
	sum_job job = {.kernels = s->device->kernels, .x = x, .n = n};
	int64_t blocks = ft_divide_up(n, SUM_BLOCK);
	void *memory;
	double sum = 0;

	FT_TRY(ft_scratch_get(&s->shared, (size_t) (blocks + 1) * sizeof(double), &memory));
	job.partial = memory;
	ft_run(s, blocks, SUM_BLOCK / 4, sum_task, &job);
	for (int64_t i = 0; i < blocks; i++)
		sum += job.partial[i];
	*result = sum;
	return FT_OK;
}

typedef struct adamw_job
{
	const ft_kernels *kernels;
	float *param;
	float *m;
	float *v;
	const float *grad;
	int64_t n;
	const ft_adamw *settings;
} adamw_job;

static void
adamw_task(void *context, int worker, int64_t begin, int64_t end)
{
	adamw_job *job = context;
	int64_t first = begin * SUM_BLOCK;
	int64_t n = ft_min(job->n, end * SUM_BLOCK) - first;

	(void) worker;
	job->kernels->adamw(job->param + first, job->m + first, job->v + first, job->grad + first, n,
						job->settings);
}

ft_status
ft_cpu_adamw(ft_stream *s, float *param, float *m, float *v, const float *grad, int64_t n,
			 const ft_adamw *settings)
{
	adamw_job job = {.kernels = s->device->kernels,
					 .param = param,
					 .m = m,
					 .v = v,
					 .grad = grad,
					 .n = n,
					 .settings = settings};

	if (settings->step < 1)
		return ft_fail(FT_INVALID, "adamw: step must be at least 1, not %lld",
					   (long long) settings->step);
	ft_run(s, ft_divide_up(n, SUM_BLOCK), 2 * SUM_BLOCK, adamw_task, &job);
	return FT_OK;
}

typedef struct adamw_8bit_job
{
	const ft_kernels *kernels;
	ft_mat param;
	uint8_t *m;
	uint8_t *v;
	uint8_t *m_exponents;
	uint8_t *v_exponents;
	const float *grad;
	const ft_adamw *settings;
} adamw_8bit_job;

static void
adamw_8bit_task(void *context, int worker, int64_t begin, int64_t end)
{
	const adamw_8bit_job *job = context;

	(void) worker;
	job->kernels->adamw_8bit(job->param.data, job->param.dtype == FT_BF16, job->m, job->v,
							 job->m_exponents, job->v_exponents, job->grad, begin, end - begin,
							 job->param.cols, job->settings);
}

ft_status
ft_cpu_adamw_8bit(ft_stream *s, ft_mat param, uint8_t *m, uint8_t *v, uint8_t *m_exponents,
				  uint8_t *v_exponents, const float *grad, const ft_adamw *settings)
{
	adamw_8bit_job job = {.kernels = s->device->kernels,
						  .param = param,
						  .m = m,
						  .v = v,
						  .m_exponents = m_exponents,
						  .v_exponents = v_exponents,
						  .grad = grad,
						  .settings = settings};

	FT_TRY(ft_check_float("adamw_8bit", param));
	FT_TRY(ft_check_shape("adamw_8bit", "the parameters", param, 1, param.cols));
	if (settings->step < 1)
		return ft_fail(FT_INVALID, "adamw_8bit: step must be at least 1, not %lld",
					   (long long) settings->step);
	ft_run(s, ft_divide_up(param.cols, FT_MOMENT_BLOCK), 8 * FT_MOMENT_BLOCK, adamw_8bit_task,
		   &job);
	return FT_OK;
}
