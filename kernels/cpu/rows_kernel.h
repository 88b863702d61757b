/*
 * rows_kernel.h: loops over the elements of one row: conversions, RMSNorm, RoPE,
 * SwiGLU, AdamW.
 */
#include "simd.h"

/* Run `body` for whole vectors, then once for the rest with FULL false and `left` elements. */
#define ROW_LOOP(n, body)                \
	do                                   \
	{                                    \
		int64_t i = 0;                   \
		for (; i + VW <= (n); i += VW)   \
		{                                \
			const bool full = true;      \
			const int64_t left = VW;     \
			body                         \
		}                                \
		if (i < (n))                     \
		{                                \
			const bool full = false;     \
			const int64_t left = (n) -i; \
			body                         \
		}                                \
	} while (0)

#define LOAD(p, bf16) (full ? v_load_as(p, i, bf16) : v_load_as_n(p, i, left, bf16))
#define STORE(p, v, bf16) (full ? v_store_as(p, i, v, bf16) : v_store_as_n(p, i, v, left, bf16))

static void
to_f32(float *y, const uint16_t *x, int64_t n)
{
	ROW_LOOP(n, STORE(y, LOAD(x, true), false););
}

static void
to_bf16(uint16_t *y, const float *x, int64_t n)
{
	ROW_LOOP(n, STORE(y, LOAD(x, false), true););
}

static void
axpy(float *y, const float *x, float alpha, int64_t n)
{
	vf a = v_set1(alpha);

	ROW_LOOP(n, STORE(y, v_fma(a, LOAD(x, false), LOAD(y, false)), false););
}

/* Sums of 4096 squares in f32 lanes would lose digits that a gradient norm needs: f64 every 64. */
static double
sum_squares(const float *x, int64_t n)
{
	double sum = 0;

	for (int64_t first = 0; first < n; first += 64 * VW)
	{
		int64_t count = n - first < 64 * VW ? n - first : 64 * VW;
		const float *p = x + first;
		vf s = v_zero();

		ROW_LOOP(count, {
			vf a = LOAD(p, false);
			s = v_fma(a, a, s);
		});
		for (int j = 0; j < VW; j++)
			sum += s[j];
	}
	return sum;
}

INLINE float
rmsnorm_as(void *y, const bool y_bf16, float *h, const float *x, const void *branch,
		   const bool has_branch, const bool branch_bf16, const float *weight, float eps, int64_t n)
{
	vf s0 = v_zero();
	float rstd;
	vf r;

	ROW_LOOP(n, {
		vf a = LOAD(x, false);
		if (has_branch)
			a = a + LOAD(branch, branch_bf16);
		if (h != NULL)
			STORE(h, a, false);
		s0 = v_fma(a, a, s0);
	});
	rstd = 1.0f / sqrtf(v_sum(s0) / (float) n + eps);
	r = v_set1(rstd);
	ROW_LOOP(n, {
		vf a;
		if (h != NULL)
			a = LOAD(h, false);
		else
		{
			a = LOAD(x, false);
			if (has_branch)
				a = a + LOAD(branch, branch_bf16);
		}
		STORE(y, a * r * LOAD(weight, false), y_bf16);
	});
	return rstd;
}

static float
rmsnorm(void *y, bool y_bf16, float *h, const float *x, const void *branch, bool branch_bf16,
		const float *weight, float eps, int64_t n)
{
	if (branch == NULL)
		return y_bf16 ? rmsnorm_as(y, true, h, x, NULL, false, false, weight, eps, n)
					  : rmsnorm_as(y, false, h, x, NULL, false, false, weight, eps, n);
	if (branch_bf16)
		return y_bf16 ? rmsnorm_as(y, true, h, x, branch, true, true, weight, eps, n)
					  : rmsnorm_as(y, false, h, x, branch, true, true, weight, eps, n);
	return y_bf16 ? rmsnorm_as(y, true, h, x, branch, true, false, weight, eps, n)
				  : rmsnorm_as(y, false, h, x, branch, true, false, weight, eps, n);
}

/* With x̂ = x · rstd and g = dy · weight: dx = rstd · (g − x̂ · mean(g · x̂)), dweight = dy · x̂. */
INLINE void
rmsnorm_grad_as(float *dx, float *dweight, const void *dy, const bool bf16, const float *x,
				const float *weight, float rstd, int64_t n)
{
	vf s = v_zero();
	vf r = v_set1(rstd);
	vf mean;

	ROW_LOOP(n, { s = v_fma(LOAD(dy, bf16) * LOAD(weight, false), LOAD(x, false) * r, s); });
	mean = v_set1(v_sum(s) / (float) n);
	ROW_LOOP(n, {
		vf xhat = LOAD(x, false) * r;
		vf d = LOAD(dy, bf16);
		vf g = d * LOAD(weight, false);
		STORE(dx, v_fma(r, g - xhat * mean, LOAD(dx, false)), false);
		if (dweight != NULL)
			STORE(dweight, v_fma(d, xhat, LOAD(dweight, false)), false);
	});
}

static void
rmsnorm_grad(float *dx, float *dweight, const void *dy, bool bf16, const float *x,
			 const float *weight, float rstd, int64_t n)
{
	if (bf16)
		rmsnorm_grad_as(dx, dweight, dy, true, x, weight, rstd, n);
	else
		rmsnorm_grad_as(dx, dweight, dy, false, x, weight, rstd, n);
}

static void
accumulate(void *y, bool y_bf16, const void *x, bool x_bf16, int64_t n)
{
	if (!y_bf16 && !x_bf16)
		ROW_LOOP(n, STORE(y, LOAD(y, false) + LOAD(x, false), false););
	else
		ROW_LOOP(n, STORE(y, LOAD(y, y_bf16) + LOAD(x, x_bf16), y_bf16););
}

INLINE float
head_factor(const void *x, const bool bf16, float eps, int64_t n)
{
	vf sum = v_zero();

	ROW_LOOP(n, {
		vf a = LOAD(x, bf16);
		sum = v_fma(a, a, sum);
	});
	return 1.0f / sqrtf(v_sum(sum) / (float) n + eps);
}

INLINE void
head_norm_as(void *y, const void *x, const bool bf16, const float *weight, float eps, int64_t n)
{
	vf r = v_set1(head_factor(x, bf16, eps, n));

	ROW_LOOP(n, STORE(y, LOAD(x, bf16) * r * LOAD(weight, false), bf16););
}

static void
head_norm(void *y, const void *x, bool bf16, const float *weight, float eps, int64_t n)
{
	if (bf16)
		head_norm_as(y, x, true, weight, eps, n);
	else
		head_norm_as(y, x, false, weight, eps, n);
}

/* rmsnorm_grad's formulas. */
INLINE void
head_norm_grad_as(void *d, float *dweight, const void *x, const bool bf16, const float *weight,
				  float eps, int64_t n)
{
	vf r = v_set1(head_factor(x, bf16, eps, n));
	vf s = v_zero();
	vf mean;

	ROW_LOOP(n, { s = v_fma(LOAD(d, bf16) * LOAD(weight, false), LOAD(x, bf16) * r, s); });
	mean = v_set1(v_sum(s) / (float) n);
	ROW_LOOP(n, {
		vf xhat = LOAD(x, bf16) * r;
		vf dy = LOAD(d, bf16);
		if (dweight != NULL)
			STORE(dweight, v_fma(dy, xhat, LOAD(dweight, false)), false);
		STORE(d, r * (dy * LOAD(weight, false) - xhat * mean), bf16);
	});
}

static void
head_norm_grad(void *d, float *dweight, const void *x, bool bf16, const float *weight, float eps,
			   int64_t n)
{
	if (bf16)
		head_norm_grad_as(d, dweight, x, true, weight, eps, n);
	else
		head_norm_grad_as(d, dweight, x, false, weight, eps, n);
}

INLINE void
rope_as(void *x1, void *x2, const bool bf16, const float *cos_row, const float *sin_row, float sign,
		int64_t half)
{
	vf flip = v_set1(sign);

	ROW_LOOP(half, {
		vf a = LOAD(x1, bf16);
		vf b = LOAD(x2, bf16);
		vf c = LOAD(cos_row, false);
		vf s = LOAD(sin_row, false) * flip;
		STORE(x1, a * c - b * s, bf16);
		STORE(x2, b * c + a * s, bf16);
	});
}

static void
rope(void *x, bool bf16, const float *cos_row, const float *sin_row, float sign, int64_t half)
{
	if (bf16)
		rope_as(x, (uint16_t *) x + half, true, cos_row, sin_row, sign, half);
	else
		rope_as(x, (float *) x + half, false, cos_row, sin_row, sign, half);
}

INLINE vf
v_sigmoid(vf x)
{
	vf one = v_set1(1);

	return one / (one + v_exp(v_zero() - x));
}

INLINE void
swiglu_as(void *y, const bool y_bf16, const void *gate, const void *up, const bool bf16, int64_t n)
{
	ROW_LOOP(n, {
		vf g = LOAD(gate, bf16);
		STORE(y, g * v_sigmoid(g) * LOAD(up, bf16), y_bf16);
	});
}

static void
swiglu(void *y, bool y_bf16, const void *gate, const void *up, bool bf16, int64_t n)
{
	if (y_bf16)
		bf16 ? swiglu_as(y, true, gate, up, true, n) : swiglu_as(y, true, gate, up, false, n);
	else
		bf16 ? swiglu_as(y, false, gate, up, true, n) : swiglu_as(y, false, gate, up, false, n);
}

/* With σ = sigmoid(gate): dgate = dy · up · σ · (1 + gate · (1 − σ)), dup = dy · gate · σ. */
INLINE void
swiglu_grad_as(void *dgate, void *dup, const bool d_bf16, const void *dy, const bool dy_bf16,
			   const void *gate, const void *up, const bool bf16, int64_t n)
{
	vf one = v_set1(1);

	ROW_LOOP(n, {
		vf g = LOAD(gate, bf16);
		vf u = LOAD(up, bf16);
		vf d = LOAD(dy, dy_bf16);
		vf sigmoid = v_sigmoid(g);
		STORE(dgate, d * u * sigmoid * v_fma(g, one - sigmoid, one), d_bf16);
		STORE(dup, d * g * sigmoid, d_bf16);
	});
}

static void
swiglu_grad(void *dgate, void *dup, bool d_bf16, const void *dy, bool dy_bf16, const void *gate,
			const void *up, bool bf16, int64_t n)
{
	if (!d_bf16 && !dy_bf16 && !bf16)
		swiglu_grad_as(dgate, dup, false, dy, false, gate, up, false, n);
	else if (d_bf16 && dy_bf16 && bf16)
		swiglu_grad_as(dgate, dup, true, dy, true, gate, up, true, n);
	else
		swiglu_grad_as(dgate, dup, d_bf16, dy, dy_bf16, gate, up, bf16, n);
}

/* Loshchilov and Hutter, "Decoupled weight decay regularization", algorithm 2, in PyTorch's order:
 * decay first, then the bias-corrected step. */
static void
adamw(float *param, float *m, float *v, const float *grad, int64_t n, const ft_adamw *s)
{
	double correction1 = 1 - pow(s->beta1, (double) s->step);
	double correction2 = 1 - pow(s->beta2, (double) s->step);
	vf step = v_set1((float) (s->learning_rate / correction1));
	vf root = v_set1((float) (1 / sqrt(correction2)));
	vf keep = v_set1((float) (1 - (double) s->learning_rate * s->weight_decay));
	vf beta1 = v_set1(s->beta1);
	vf beta2 = v_set1(s->beta2);
	vf rest1 = v_set1((float) (1 - (double) s->beta1));
	vf rest2 = v_set1((float) (1 - (double) s->beta2));
	vf scale = v_set1(s->grad_scale);
	vf eps = v_set1(s->eps);

	ROW_LOOP(n, {
		vf g = LOAD(grad, false) * scale;
		vf first = v_fma(beta1, LOAD(m, false), rest1 * g);
		vf second = v_fma(beta2, LOAD(v, false), rest2 * g * g);
		vf p = LOAD(param, false) * keep;
		STORE(m, first, false);
		STORE(v, second, false);
		STORE(param, p - step * first / v_fma(v_sqrt(second), root, eps), false);
	});
}
