/*
 * head_norm.c: RMSNorm of each head of a row on its own, and its gradient.
 */
#include "cpu.h"

#include <string.h>

typedef struct head_norm_job
{
	ft_stream *s;
	ft_mat y; /* of the gradient: d */
	ft_mat x;
	int64_t head_dim;
	const float *weight;
	float eps;
	float *dweight; /* [blocks][head_dim] partial sums, or NULL */
	int64_t block;  /* rows that share one partial sum */
} head_norm_job;

static ft_status
check(const char *operation, ft_mat y, ft_mat x, int head_dim)
{
	FT_TRY(ft_check_float(operation, x));
	if (y.dtype != x.dtype)
		return ft_bad_types(operation, x.dtype, y.dtype);
	FT_TRY(ft_check_shape(operation, "input", x, y.rows, y.cols));
	FT_TRY(ft_check_shape(operation, "output", y, y.rows, y.cols));
	if (head_dim < 1 || x.cols % head_dim != 0)
		return ft_fail(FT_INVALID, "%s: %lld columns are no whole heads of %d", operation,
					   (long long) x.cols, head_dim);
	return FT_OK;
}

static void
head_norm_task(void *context, int worker, int64_t begin, int64_t end)
{
	head_norm_job *job = context;
	bool bf16 = job->x.dtype == FT_BF16;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
		for (int64_t c = 0; c < job->x.cols; c += job->head_dim)
			job->s->device->kernels->head_norm(ft_at(job->y, i, c), ft_at(job->x, i, c), bf16,
											   job->weight, job->eps, job->head_dim);
}

ft_status
ft_cpu_head_norm(ft_stream *s, ft_mat y, ft_mat x, int head_dim, const float *weight, float eps)
{
	head_norm_job job = {
		.s = s, .y = y, .x = x, .head_dim = head_dim, .weight = weight, .eps = eps};

	FT_TRY(check("head_norm", y, x, head_dim));
	ft_run(s, x.rows, 2 * x.cols, head_norm_task, &job);
	return FT_OK;
}

static void
head_norm_grad_task(void *context, int worker, int64_t begin, int64_t end)
{
	head_norm_job *job = context;
	bool bf16 = job->x.dtype == FT_BF16;

	(void) worker;
	for (int64_t block = begin; block < end; block++)
	{
		float *dweight = job->dweight != NULL ? job->dweight + block * job->head_dim : NULL;
		int64_t last = ft_min(job->x.rows, (block + 1) * job->block);

		if (dweight != NULL)
			memset(dweight, 0, (size_t) job->head_dim * sizeof *dweight);
		for (int64_t i = block * job->block; i < last; i++)
			for (int64_t c = 0; c < job->x.cols; c += job->head_dim)
				job->s->device->kernels->head_norm_grad(ft_at(job->y, i, c), dweight,
														ft_at(job->x, i, c), bf16, job->weight,
														job->eps, job->head_dim);
	}
}

ft_status
ft_cpu_head_norm_grad(ft_stream *s, ft_mat d, float *dweight, ft_mat x, int head_dim,
					  const float *weight, float eps)
{
	head_norm_job job = {
		.s = s, .y = d, .x = x, .head_dim = head_dim, .weight = weight, .eps = eps};
	int64_t blocks;
	void *memory;

	FT_TRY(check("head_norm_grad", d, x, head_dim));

	/* the blocks, and with them the order of the sums, follow from the number of rows alone */
	job.block = ft_divide_up(x.rows, 64);
	if (job.block < 16)
		job.block = 16;
	blocks = ft_divide_up(x.rows, job.block);
	if (dweight != NULL)
	{
		FT_TRY(ft_scratch_get(&s->shared, (size_t) (blocks * head_dim) * sizeof(float), &memory));
		job.dweight = memory;
	}
	ft_run(s, blocks, 4 * x.cols * job.block, head_norm_grad_task, &job);
	if (dweight != NULL)
		for (int64_t i = 0; i < blocks; i++)
			s->device->kernels->axpy(dweight, job.dweight + i * head_dim, 1, head_dim);
	return FT_OK;
}
