/*
 * optimizer.cu: AdamW (Loshchilov and Hutter, "Decoupled Weight Decay
 * Regularization", 2019), also with moments of 8 bits (small_moments.h), and the
 * sum of squares that clipping needs.
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

static adamw_step
step_of(const ft_adamw *settings)
{
	adamw_step step;

	step.beta1 = settings->beta1;
	step.beta2 = settings->beta2;
	step.step_size =
		(float) (settings->learning_rate / (1.0 - pow(settings->beta1, (double) settings->step)));
	step.sqrt_correction = (float) sqrt(1.0 - pow(settings->beta2, (double) settings->step));
	step.eps = settings->eps;
	step.keep = (float) (1.0 - (double) settings->learning_rate * settings->weight_decay);
	step.grad_scale = settings->grad_scale;
	return step;
}

ft_status
ft_cuda_adamw(ft_stream *s, float *param, float *m, float *v, const float *grad, int64_t n,
			  const ft_adamw *settings)
{
	FT_TRY(ft_cuda_enter(s));
	if (settings->step < 1)
		return ft_fail(FT_INVALID, "adamw: step %lld, the first is 1", (long long) settings->step);
	if (n == 0)
		return FT_OK;
	FT_LAUNCH(adamw_update, (unsigned) ft_min64(ft_divide_up(n, THREADS), 1 << 20), THREADS, 0,
			  s->stream, param, m, v, grad, n, step_of(settings));
	return ft_cuda_launched("adamw");
}

/* --- moments of 8 bits --- */

struct small_moments
{
	uint8_t *m;
	uint8_t *v;
	uint8_t *m_exponents;
	uint8_t *v_exponents;
	uint32_t noise[4];
};

/* The largest of all threads of a block, which may then use `shared` again. */
__device__ __forceinline__ float
block_largest(float x, float *shared)
{
	float largest = warp_max(x);

	if (threadIdx.x % FT_WARP == 0)
		shared[threadIdx.x / FT_WARP] = largest;
	__syncthreads();
	largest = shared[0];
	for (int i = 1; i < FT_MOMENT_BLOCK / FT_WARP; i++)
		largest = fmaxf(largest, shared[i]);
	__syncthreads();
	return largest;
}

/* A thread block a block of moments, a thread a value. */
template <typename P>
static __global__ void
adamw_8bit_update(P *param, small_moments small, const float *grad, int64_t n, adamw_step step)
{
	__shared__ float shared[FT_MOMENT_BLOCK / FT_WARP];

	for (int64_t block = blockIdx.x; block * FT_MOMENT_BLOCK < n; block += gridDim.x)
	{
		int64_t i = block * FT_MOMENT_BLOCK + threadIdx.x;
		bool inside = i < n;
		float g = inside ? grad[i] * step.grad_scale : 0.0f;
		float first = inside ? ft_first_moment(small.m[i], small.m_exponents[block]) : 0.0f;
		float second = inside ? ft_second_moment(small.v[i], small.v_exponents[block]) : 0.0f;
		uint32_t m_exponent;
		uint32_t v_exponent;

		first = step.beta1 * first + (1.0f - step.beta1) * g;
		second = step.beta2 * second + (1.0f - step.beta2) * g * g;
		/* its barriers also keep the exponents until all have read them */
		m_exponent = ft_moment_exponent(ft_float_bits(block_largest(fabsf(first), shared)));
		v_exponent = ft_moment_exponent(ft_float_bits(block_largest(second, shared)));
		if (inside)
		{
			float p = value(param[i]) * step.keep -
					  step.step_size * first / (sqrtf(second) / step.sqrt_correction + step.eps);
			uint32_t at = threadIdx.x;

			small.m[i] = ft_first_moment_code(
				first, m_exponent, ft_mix(ft_block_noise(small.noise, block, FT_NOISE_FIRST) + at));
			small.v[i] = ft_second_moment_code(
				second, v_exponent,
				ft_mix(ft_block_noise(small.noise, block, FT_NOISE_SECOND) + at));
			if constexpr (sizeof(P) == sizeof(float))
				param[i] = p;
			else
				((uint16_t *) param)[i] = ft_bf16_by_chance(
					p, ft_mix(ft_block_noise(small.noise, block, FT_NOISE_PARAM) + at));
		}
		if (threadIdx.x == 0)
		{
			small.m_exponents[block] = (uint8_t) m_exponent;
			small.v_exponents[block] = (uint8_t) v_exponent;
		}
	}
}

ft_status
ft_cuda_adamw_8bit(ft_stream *s, ft_mat param, uint8_t *m, uint8_t *v, uint8_t *m_exponents,
				   uint8_t *v_exponents, const float *grad, const ft_adamw *settings)
{
	int64_t n = param.cols;
	small_moments small = {m, v, m_exponents, v_exponents, {}};

	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("adamw_8bit", "param", param, 1, n));
	if (settings->step < 1)
		return ft_fail(FT_INVALID, "adamw_8bit: step %lld, the first is 1",
					   (long long) settings->step);
	memcpy(small.noise, settings->noise, sizeof small.noise);
	if (n == 0)
		return FT_OK;
	return with_type("adamw_8bit", param.dtype,
					 [&](auto type)
					 {
						 typedef typename decltype(type)::type P;

						 FT_LAUNCH((adamw_8bit_update<P>),
								   (unsigned) ft_min64(ft_divide_up(n, FT_MOMENT_BLOCK), 1 << 20),
								   FT_MOMENT_BLOCK, 0, s->stream, (P *) param.data, small, grad, n,
								   step_of(settings));
						 return ft_cuda_launched("adamw_8bit");
					 });
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
