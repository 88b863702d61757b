/*
 * swiglu.c: y = silu(gate) · up, and its gradient.
 */
#include "cpu.h"

typedef struct swiglu_job
{
	ft_stream *s;
	ft_mat y; /* gradient: dy */
	ft_mat gate_up;
	ft_mat dgate_up;
} swiglu_job;

static void
swiglu_task(void *context, int worker, int64_t begin, int64_t end)
{
	swiglu_job *job = context;
	int64_t f = job->y.cols;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
		job->s->device->kernels->swiglu(ft_at(job->y, i, 0), job->y.dtype == FT_BF16,
										ft_at(job->gate_up, i, 0), ft_at(job->gate_up, i, f),
										job->gate_up.dtype == FT_BF16, f);
}

ft_status
ft_cpu_swiglu(ft_stream *s, ft_mat y, ft_mat gate_up)
{
	swiglu_job job = {.s = s, .y = y, .gate_up = gate_up};

	FT_TRY(ft_check_float("swiglu", y));
	FT_TRY(ft_check_float("swiglu", gate_up));
	FT_TRY(ft_check_shape("swiglu", "output", y, y.rows, y.cols));
	FT_TRY(ft_check_shape("swiglu", "gate and up", gate_up, y.rows, 2 * y.cols));
	ft_run(s, y.rows, 8 * y.cols, swiglu_task, &job);
	return FT_OK;
}

static void
swiglu_grad_task(void *context, int worker, int64_t begin, int64_t end)
{
	swiglu_job *job = context;
	int64_t f = job->y.cols;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
		job->s->device->kernels->swiglu_grad(
			ft_at(job->dgate_up, i, 0), ft_at(job->dgate_up, i, f), job->dgate_up.dtype == FT_BF16,
			ft_at(job->y, i, 0), job->y.dtype == FT_BF16, ft_at(job->gate_up, i, 0),
			ft_at(job->gate_up, i, f), job->gate_up.dtype == FT_BF16, f);
}

ft_status
ft_cpu_swiglu_grad(ft_stream *s, ft_mat dgate_up, ft_mat dy, ft_mat gate_up)
{
	swiglu_job job = {.s = s, .y = dy, .gate_up = gate_up, .dgate_up = dgate_up};

	FT_TRY(ft_check_float("swiglu_grad", dy));
	FT_TRY(ft_check_float("swiglu_grad", gate_up));
	FT_TRY(ft_check_float("swiglu_grad", dgate_up));
	FT_TRY(ft_check_shape("swiglu_grad", "gradient of the output", dy, dy.rows, dy.cols));
	FT_TRY(ft_check_shape("swiglu_grad", "gate and up", gate_up, dy.rows, 2 * dy.cols));
	FT_TRY(ft_check_shape("swiglu_grad", "their gradient", dgate_up, dy.rows, 2 * dy.cols));
	ft_run(s, dy.rows, 10 * dy.cols, swiglu_grad_task, &job);
	return FT_OK;
}
