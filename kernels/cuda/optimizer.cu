/*
 * optimizer.cu: AdamW (Loshchilov and Hutter, "Decoupled Weight Decay
 * Regularization", 2019) and the sum of squares that clipping needs.
 */
#include "intrinsics.cuh"

#include <math.h>

#define THREADS 256

struct adamw_step
{
	float beta1;
	float beta2;
	float step_size;       /* learning rate / (1 − β1ⁿ) */
	float sqrt_correction; /* √(1 − β2ⁿ) */
	float eps;
	float keep; /* 1 − learning rate · weight decay */
	float grad_scale;
};

static __global__ void
adamw_update(float *param, float *m, float *v, const float *grad, int64_t n, adamw_step step)
{
	for (int64_t i = blockIdx.x * (int64_t) THREADS + threadIdx.x; i < n;
		 i += gridDim.x * (int64_t) THREADS)
	{
		float g = grad[i] * step.grad_scale;
		float first = step.beta1 * m[i] + (1.0f - step.beta1) * g;
		float second = step.beta2 * v[i] + (1.0f - step.beta2) * g * g;

		m[i] = first;
		v[i] = second;
		param[i] = param[i] * step.keep -
				   step.step_size * first / (sqrtf(second) / step.sqrt_correction + step.eps);
	}
}

ft_status
ft_cuda_adamw(ft_stream *s, float *param, float *m, float *v, const float *grad, int64_t n,
			  const ft_adamw *settings)
{
	adamw_step step;

	FT_TRY(ft_cuda_enter(s));
	if (settings->step < 1)
		return ft_fail(FT_INVALID, "adamw: step %lld, the first is 1", (long long) settings->step);
	if (n == 0)
		return FT_OK;
	step.beta1 = settings->beta1;
	step.beta2 = settings->beta2;
	step.step_size =
		(float) (settings->learning_rate / (1.0 - pow(settings->beta1, (double) settings->step)));
	step.sqrt_correction = (float) sqrt(1.0 - pow(settings->beta2, (double) settings->step));
	step.eps = settings->eps;
	step.keep = (float) (1.0 - (double) settings->learning_rate * settings->weight_decay);
	step.grad_scale = settings->grad_scale;
	FT_LAUNCH(adamw_update, (unsigned) ft_min64(ft_divide_up(n, THREADS), 1 << 20), THREADS, 0,
			  s->stream, param, m, v, grad, n, step);
	return ft_cuda_launched("adamw");
}

/* How many partial sums there are depends on n alone, so the order of the sum does. */
static __global__ void
partial_squares(double *partials, const float *x, int64_t n)
{
	__shared__ double shared[THREADS / FT_WARP];
	double sum = 0;

	for (int64_t i = blockIdx.x * (int64_t) THREADS + threadIdx.x; i < n;
		 i += gridDim.x * (int64_t) THREADS)
		sum += (double) x[i] * x[i];
	sum = block_sum(sum, shared);
	if (threadIdx.x == 0)
		partials[blockIdx.x] = sum;
}

static __global__ void
total_squares(double *result, const double *partials, int n)
{
	__shared__ double shared[THREADS / FT_WARP];
	double sum = 0;

	for (int i = threadIdx.x; i < n; i += THREADS)
		sum += partials[i];
	sum = block_sum(sum, shared);
	if (threadIdx.x == 0)
		*result = sum;
}

ft_status
ft_cuda_sum_squares(ft_stream *s, double *result, const float *x, int64_t n)
{
	int partials = (int) ft_min64(ft_divide_up(n, THREADS * 4), FT_PARTIAL_SUMS);

	FT_TRY(ft_cuda_enter(s));
	if (partials > 0)
	{
		FT_LAUNCH(partial_squares, (unsigned) partials, THREADS, 0, s->stream, s->partials, x, n);
		FT_TRY(ft_cuda_launched("sum_squares"));
	}
	FT_LAUNCH(total_squares, 1, THREADS, 0, s->stream, result, s->partials, partials);
	return ft_cuda_launched("sum_squares");
}
