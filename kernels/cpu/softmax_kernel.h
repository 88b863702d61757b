/*
 * softmax_kernel.h: maxima, exponentials and their sums along a row.
 *
 * A NaN in the row ends up in the result: a loss that is not finite must be
 * seen.
 */
#include "simd.h"

INLINE bool
v_any(vi mask)
{
#if VW == 16
	return _mm512_movepi32_mask((__m512i) mask) != 0;
#elif VW == 8
	return _mm256_movemask_ps((__m256) mask) != 0;
#else
	int any = 0;

	for (int j = 0; j < VW; j++)
		any |= mask[j];
	return any != 0;
#endif
}

static float
max_row(const float *x, int64_t n)
{
	vf largest = v_set1(-INFINITY);
	int64_t i = 0;

	for (; i + VW <= n; i += VW)
		largest = v_max(v_load(x + i), largest);
	if (i < n)
		largest = v_max(v_load_n(x + i, n - i, -INFINITY), largest);
	return v_sum_max(largest);
}

static float
exp_row(float *x, float scale, float shift, int64_t n)
{
	vf s = v_set1(scale);
	vf b = v_set1(-shift);
	vf sum = v_zero();
	int64_t i = 0;

	for (; i + VW <= n; i += VW)
	{
		vf e = v_exp(v_fma(s, v_load(x + i), b));

		sum = sum + e;
		v_store(x + i, e);
	}
	if (i < n)
	{
		vf e = v_exp(v_fma(s, v_load_n(x + i, n - i, 0), b));

		v_store_n(x + i, e, n - i);
		sum = sum + v_load_n(x + i, n - i, 0);
	}
	return v_sum(sum);
}

static void
softmax_grad(float *dp, const float *p, float delta, float scale, int64_t n)
{
	vf d = v_set1(delta);
	vf s = v_set1(scale);
	int64_t i = 0;

	for (; i + VW <= n; i += VW)
		v_store(dp + i, v_load(p + i) * (v_load(dp + i) - d) * s);
	if (i < n)
		v_store_n(dp + i, v_load_n(p + i, n - i, 0) * (v_load_n(dp + i, n - i, 0) - d) * s, n - i);
}

static int64_t
argmax(const float *x, int64_t n)
{
	float largest = max_row(x, n);
	vf want = v_set1(largest);
	int64_t i = 0;

	for (; i + VW <= n; i += VW)
	{
		if (v_any(v_load(x + i) == want))
			break;
	}
	for (; i < n; i++)
		if (x[i] == largest)
			return i;
	return 0;
}

static double
sum_exp(const float *x, float max, float scale, int64_t n)
{
	double sum = 0;
	vf b = v_set1(max);
	vf f = v_set1(scale);

	for (int64_t first = 0; first < n; first += 64 * VW)
	{
		int64_t end = first + 64 * VW < n ? first + 64 * VW : n;
		int64_t i = first;
		vf s = v_zero();

		for (; i + VW <= end; i += VW)
			s = s + v_exp((v_load(x + i) - b) * f);
		if (i < end)
			s = s + v_exp((v_load_n(x + i, end - i, -INFINITY) - b) * f);
		for (int j = 0; j < VW; j++)
			sum += s[j];
	}
	return sum;
}

static void
exp_scale(float *x, float max, float factor, int64_t n)
{
	vf b = v_set1(max);
	vf f = v_set1(factor);
	int64_t i = 0;

	for (; i + VW <= n; i += VW)
		v_store(x + i, v_exp(v_load(x + i) - b) * f);
	if (i < n)
		v_store_n(x + i, v_exp(v_load_n(x + i, n - i, 0) - b) * f, n - i);
}

/* Positions of the values >= floor, in order, until `room` are found; returns how many. */
static int64_t
find_above(int32_t *index, const float *x, float floor, int64_t n, int64_t room)
{
	vf least = v_set1(floor);
	int64_t found = 0;

	for (int64_t i = 0; i < n; i += VW)
	{
		int64_t count = n - i < VW ? n - i : VW;

		if (count == VW && !v_any(v_load(x + i) >= least))
			continue;
		for (int64_t j = i; j < i + count; j++)
			if (x[j] >= floor)
			{
				if (found == room)
					return found;
				index[found++] = (int32_t) j;
			}
	}
	return found;
}
