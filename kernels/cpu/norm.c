/*
 * norm.c: RMSNorm with the residual sum before it, and its gradient.
 */
#include "cpu.h"

#include <string.h>

typedef struct norm_job
{
	ft_stream *s;
	ft_mat y;
	ft_mat h;
	ft_mat x;
	ft_mat branch;
	float *rstd;
	const float *weight;
	float eps;
	/* gradient: dx, dy */
	ft_mat dx;
	ft_mat dy;
	float *dweight; /* [blocks][cols] partial sums, or NULL */
	int64_t block;  /* rows that share one partial sum */
} norm_job;

static void
norm_task(void *context, int worker, int64_t begin, int64_t end)
{
	norm_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
	{
		float *h = job->h.data != NULL ? ft_at(job->h, i, 0) : NULL;
		const void *branch = job->branch.data != NULL ? ft_at(job->branch, i, 0) : NULL;
		float rstd = kernels->rmsnorm(ft_at(job->y, i, 0), job->y.dtype == FT_BF16, h,
									  ft_at(job->x, i, 0), branch, job->branch.dtype == FT_BF16,
									  job->weight, job->eps, job->x.cols);

		if (job->rstd != NULL)
			job->rstd[i] = rstd;
	}
}

ft_status
ft_cpu_rmsnorm(ft_stream *s, ft_mat y, ft_mat h, float *rstd, ft_mat x, ft_mat branch,
			   const float *weight, float eps)
{
	norm_job job = {.s = s,
					.y = y,
					.h = h,
					.x = x,
					.branch = branch,
					.rstd = rstd,
					.weight = weight,
					.eps = eps};

	FT_TRY(ft_check_float("rmsnorm", y));
	FT_TRY(ft_check_f32("rmsnorm", x));
	FT_TRY(ft_check_shape("rmsnorm", "input", x, y.rows, y.cols));
	FT_TRY(ft_check_shape("rmsnorm", "output", y, y.rows, y.cols));
	if (h.data != NULL)
	{
		FT_TRY(ft_check_f32("rmsnorm", h));
		FT_TRY(ft_check_shape("rmsnorm", "sum", h, y.rows, y.cols));
	}
	if (branch.data != NULL)
	{
		FT_TRY(ft_check_float("rmsnorm", branch));
		FT_TRY(ft_check_shape("rmsnorm", "branch", branch, y.rows, y.cols));
	}
	ft_run(s, y.rows, 3 * y.cols, norm_task, &job);
	return FT_OK;
}

static void
norm_grad_task(void *context, int worker, int64_t begin, int64_t end)
{
	norm_job *job = context;
	int64_t cols = job->x.cols;

	(void) worker;
	for (int64_t block = begin; block < end; block++)
	{
		float *dweight = job->dweight != NULL ? job->dweight + block * cols : NULL;
		int64_t last = ft_min(job->x.rows, (block + 1) * job->block);

		if (dweight != NULL)
			memset(dweight, 0, (size_t) cols * sizeof *dweight);
		for (int64_t i = block * job->block; i < last; i++)
			job->s->device->kernels->rmsnorm_grad(
				ft_at(job->dx, i, 0), dweight, ft_at(job->dy, i, 0), job->dy.dtype == FT_BF16,
				ft_at(job->x, i, 0), job->weight, job->rstd[i], cols);
	}
}

ft_status
ft_cpu_rmsnorm_grad(ft_stream *s, ft_mat dx, float *dweight, ft_mat dy, ft_mat x,
					const float *weight, const float *rstd)
{
	norm_job job = {.s = s, .x = x, .dx = dx, .dy = dy, .weight = weight, .rstd = (float *) rstd};
	int64_t blocks;
	void *memory;

	FT_TRY(ft_check_float("rmsnorm_grad", dy));
	FT_TRY(ft_check_f32("rmsnorm_grad", x));
	FT_TRY(ft_check_f32("rmsnorm_grad", dx));
	FT_TRY(ft_check_shape("rmsnorm_grad", "input", x, dx.rows, dx.cols));
	FT_TRY(ft_check_shape("rmsnorm_grad", "gradient of the output", dy, dx.rows, dx.cols));
	FT_TRY(ft_check_shape("rmsnorm_grad", "gradient of the input", dx, dx.rows, dx.cols));

	/* the blocks, and with them the order of the sums, follow from the number of rows alone */
	job.block = ft_divide_up(x.rows, 64);
	if (job.block < 16)
		job.block = 16;
	blocks = ft_divide_up(x.rows, job.block);
	if (dweight != NULL)
	{
		FT_TRY(ft_scratch_get(&s->shared, (size_t) (blocks * x.cols) * sizeof(float), &memory));
		job.dweight = memory;
	}
	ft_run(s, blocks, 6 * x.cols * job.block, norm_grad_task, &job);
	if (dweight != NULL)
		for (int64_t i = 0; i < blocks; i++)
			s->device->kernels->axpy(dweight, job.dweight + i * x.cols, 1, x.cols);
	return FT_OK;
}
