/*
 * test_ops_transformer.c: RMSNorm, RoPE, SwiGLU, and their gradients.
 *
 * Each gradient's formula is first checked against central differences of the
 * f64 reference, then the operation against the formula.
 */
#include "test_ops_common.h"

static const int64_t row_counts[] = {0, 1, 3, 17, 65};
static const int64_t widths[] = {1, 7, 16, 33, 64, 576};

#define COUNT_OF(array) ((int) (sizeof(array) / sizeof(array)[0]))

/* --- RMSNorm --- */

static void
norm_row(double *y, double *rstd, const double *h, const double *weight, int64_t n, double eps)
{
	double sum = 0;

	for (int64_t j = 0; j < n; j++)
		sum += h[j] * h[j];
	*rstd = 1 / sqrt(sum / (double) n + eps);
	for (int64_t j = 0; j < n; j++)
		y[j] = h[j] * *rstd * weight[j];
}

static void
check_norm(int64_t rows, int64_t n, ft_dtype out, ft_dtype branch_type, int mode)
{
	bool branch = mode & 1;
	bool keep = mode & 2;
	bool in_place = mode & 4;
	double eps = 1e-5f;
	tensor x = tensor_random(rows, n, 2, FT_F32);
	tensor b = tensor_random(rows, n, 3, branch_type);
	tensor h = tensor_zero(rows, n, 1, FT_F32);
	tensor y = tensor_zero(rows, n, 1, out);
	tensor weight = tensor_random(1, n, 0, FT_F32);
	tensor rstd = tensor_zero(rows > 0 ? rows : 1, 1, 0, FT_F32);
	ft_mat none = {0};

	for (int64_t i = 0; i < rows; i++)
	{
		for (int64_t j = 0; j < n; j++)
			h.value[i * n + j] = x.value[i * n + j] + (branch ? b.value[i * n + j] : 0);
		norm_row(y.value + i * n, rstd.value + i, h.value + i * n, weight.value, n, eps);
	}
	must(ops->rmsnorm(stream, y.mat,
					  !keep      ? none
					  : in_place ? x.mat
								 : h.mat,
					  mode & 8 ? NULL : rstd.mat.data, x.mat, branch ? b.mat : none,
					  weight.mat.data, (float) eps));
	check_tensor("rmsnorm", &y, y.value);
	if (keep)
		check_tensor("rmsnorm's sum", in_place ? &x : &h, h.value);
	if (!(mode & 8) && rows > 0)
		check_tensor("rmsnorm's factor", &rstd, rstd.value);
	tensor_free(&x);
	tensor_free(&b);
	tensor_free(&h);
	tensor_free(&y);
	tensor_free(&weight);
	tensor_free(&rstd);
}

static void
test_rmsnorm(void **state)
{
	(void) state;
	for (int r = 0; r < COUNT_OF(row_counts); r++)
		for (int w = 0; w < COUNT_OF(widths); w++)
			for (int mode = 0; mode < 16; mode++)
			{
				check_norm(row_counts[r], widths[w], FT_F32, FT_F32, mode);
				check_norm(row_counts[r], widths[w], FT_BF16, FT_BF16, mode);
				check_norm(row_counts[r], widths[w], FT_F32, FT_BF16, mode);
			}
}

/* dx and dweight of Σ dy · y, added to what is there. */
static void
norm_gradient(double *dx, double *dweight, const double *dy, const double *x, const double *weight,
			  double rstd, int64_t n)
{
	double mean = 0;

	for (int64_t j = 0; j < n; j++)
		mean += dy[j] * weight[j] * x[j] * rstd / (double) n;
	for (int64_t j = 0; j < n; j++)
	{
		dx[j] += rstd * (dy[j] * weight[j] - x[j] * rstd * mean);
		dweight[j] += dy[j] * x[j] * rstd;
	}
}

static double
norm_loss(const double *x, const double *weight, const double *dy, int64_t n, double eps)
{
	double y[64];
	double rstd;
	double loss = 0;

	norm_row(y, &rstd, x, weight, n, eps);
	for (int64_t j = 0; j < n; j++)
		loss += dy[j] * y[j];
	return loss;
}

static void
test_rmsnorm_formula(void **state)
{
	enum
	{
		N = 33
	};
	double x[N], weight[N], dy[N], y[N], rstd;
	double dx[N] = {0}, dweight[N] = {0};
	double step = 1e-6;

	(void) state;
	for (int j = 0; j < N; j++)
	{
		x[j] = random_normal();
		weight[j] = random_normal();
		dy[j] = random_normal();
	}
	norm_row(y, &rstd, x, weight, N, 1e-5);
	norm_gradient(dx, dweight, dy, x, weight, rstd, N);
	for (int j = 0; j < N; j++)
	{
		double at = x[j];
		double up;

		x[j] = at + step;
		up = norm_loss(x, weight, dy, N, 1e-5);
		x[j] = at - step;
		assert_true(fabs((up - norm_loss(x, weight, dy, N, 1e-5)) / (2 * step) - dx[j]) < 1e-7);
		x[j] = at;
		at = weight[j];
		weight[j] = at + step;
		up = norm_loss(x, weight, dy, N, 1e-5);
		weight[j] = at - step;
		assert_true(fabs((up - norm_loss(x, weight, dy, N, 1e-5)) / (2 * step) - dweight[j]) <
					1e-7);
		weight[j] = at;
	}
}

static void
test_rmsnorm_grad(void **state)
{
	(void) state;
	for (int r = 0; r < COUNT_OF(row_counts); r++)
		for (int w = 0; w < COUNT_OF(widths); w++)
			for (int mode = 0; mode < 4; mode++)
			{
				int64_t rows = row_counts[r];
				int64_t n = widths[w];
				tensor x = tensor_random(rows, n, 1, FT_F32);
				tensor dy = tensor_random(rows, n, 2, mode & 1 ? FT_BF16 : FT_F32);
				tensor dx = tensor_random(rows, n, 3, FT_F32);
				tensor weight = tensor_random(1, n, 0, FT_F32);
				tensor dweight = tensor_random(1, n, 0, FT_F32);
				tensor rstd = tensor_random(rows > 0 ? rows : 1, 1, 0, FT_F32);

				for (int64_t i = 0; i < rows; i++)
					norm_gradient(dx.value + i * n, dweight.value, dy.value + i * n,
								  x.value + i * n, weight.value, rstd.value[i], n);
				must(ops->rmsnorm_grad(stream, dx.mat, mode & 2 ? dweight.mat.data : NULL, dy.mat,
									   x.mat, weight.mat.data, rstd.mat.data));
				check_tensor("rmsnorm_grad", &dx, dx.value);
				if (mode & 2)
					check_tensor("rmsnorm_grad of the weight", &dweight, dweight.value);
				tensor_free(&x);
				tensor_free(&dy);
				tensor_free(&dx);
				tensor_free(&weight);
				tensor_free(&dweight);
				tensor_free(&rstd);
			}
}

/* --- RoPE --- */

static void
check_rope(int64_t rows, int64_t heads, int head_dim, ft_dtype dtype)
{
	enum
	{
		POSITIONS = 50
	};
	int64_t half = head_dim / 2;
	tensor x = tensor_random(rows, heads * head_dim, 3, dtype);
	tensor angle_cos = tensor_zero(POSITIONS, half, 0, FT_F32);
	tensor angle_sin = tensor_zero(POSITIONS, half, 0, FT_F32);
	int32_t *positions = malloc((size_t) rows * sizeof *positions + 1);
	int32_t *on_device;
	double *before = malloc((size_t) (rows * heads * head_dim) * sizeof *before + 1);

	for (int64_t i = 0; i < POSITIONS * half; i++)
	{
		double angle = (double) (i / half) / pow(10000, (double) (i % half) / (double) half);

		angle_cos.value[i] = round_as(cos(angle), FT_F32);
		angle_sin.value[i] = round_as(sin(angle), FT_F32);
	}
	tensor_upload(&angle_cos);
	tensor_upload(&angle_sin);
	memcpy(before, x.value, (size_t) (rows * heads * head_dim) * sizeof *before);
	for (int64_t i = 0; i < rows; i++)
	{
		positions[i] = (int32_t) (random_bits() % POSITIONS);
		for (int64_t h = 0; h < heads; h++)
			for (int64_t j = 0; j < half; j++)
			{
				double *x1 = x.value + (i * heads + h) * head_dim + j;
				double c = angle_cos.value[positions[i] * half + j];
				double s = angle_sin.value[positions[i] * half + j];
				double first = *x1;

				*x1 = first * c - x1[half] * s;
				x1[half] = x1[half] * c + first * s;
			}
	}
	on_device = upload(positions, (size_t) rows * sizeof *positions);
	must(ops->rope(stream, x.mat, head_dim, on_device, angle_cos.mat.data, angle_sin.mat.data,
				   false));
	check_tensor("rope", &x, x.value);
	/* the inverse rotation is the gradient, and brings the input back */
	must(ops->rope(stream, x.mat, head_dim, on_device, angle_cos.mat.data, angle_sin.mat.data,
				   true));
	check_tensor("rope, inverse", &x, before);
	free(positions);
	free(before);
	device_free(on_device);
	tensor_free(&x);
	tensor_free(&angle_cos);
	tensor_free(&angle_sin);
}

static void
test_rope(void **state)
{
	static const int head_dims[] = {2, 10, 64, 128};

	(void) state;
	for (int r = 0; r < COUNT_OF(row_counts); r++)
		for (int d = 0; d < COUNT_OF(head_dims); d++)
		{
			check_rope(row_counts[r], 1, head_dims[d], FT_F32);
			check_rope(row_counts[r], 3, head_dims[d], FT_F32);
			check_rope(row_counts[r], 3, head_dims[d], FT_BF16);
		}
}

/* --- SwiGLU --- */

static double
silu(double x)
{
	return x / (1 + exp(-x));
}

static double
silu_slope(double x)
{
	double sigmoid = 1 / (1 + exp(-x));

	return sigmoid * (1 + x * (1 - sigmoid));
}

/* Gates far out on both sides, too. */
static double
gate_value(void)
{
	double x = random_normal();

	return random_bits() % 8 == 0 ? 40 * x : x;
}

static void
test_swiglu_formula(void **state)
{
	(void) state;
	for (double x = -20; x < 20; x += 0.37)
		assert_true(fabs((silu(x + 1e-5) - silu(x - 1e-5)) / 2e-5 - silu_slope(x)) < 1e-8);
}

static void
check_swiglu(int64_t rows, int64_t f, ft_dtype in, ft_dtype out, bool in_place)
{
	tensor gate_up = tensor_make(rows, 2 * f, 1, in, gate_value, 1);
	tensor y = tensor_zero(rows, f, 2, out);
	tensor dy = tensor_random(rows, f, 3, out);
	tensor d = tensor_zero(rows, 2 * f, 4, in);

	for (int64_t i = 0; i < rows; i++)
		for (int64_t j = 0; j < f; j++)
		{
			double gate = gate_up.value[i * 2 * f + j];
			double up = gate_up.value[i * 2 * f + f + j];

			y.value[i * f + j] = silu(gate) * up;
			d.value[i * 2 * f + j] = dy.value[i * f + j] * up * silu_slope(gate);
			d.value[i * 2 * f + f + j] = dy.value[i * f + j] * silu(gate);
		}
	must(ops->swiglu(stream, y.mat, gate_up.mat));
	check_tensor("swiglu", &y, y.value);
	must(ops->swiglu_grad(stream, in_place ? gate_up.mat : d.mat, dy.mat, gate_up.mat));
	check_tensor("swiglu_grad", in_place ? &gate_up : &d, d.value);
	tensor_free(&gate_up);
	tensor_free(&y);
	tensor_free(&dy);
	tensor_free(&d);
}

static void
test_swiglu(void **state)
{
	(void) state;
	for (int r = 0; r < COUNT_OF(row_counts); r++)
		for (int w = 0; w < COUNT_OF(widths); w++)
			for (int in_place = 0; in_place < 2; in_place++)
			{
				check_swiglu(row_counts[r], widths[w], FT_F32, FT_F32, in_place);
				check_swiglu(row_counts[r], widths[w], FT_BF16, FT_BF16, in_place);
				check_swiglu(row_counts[r], widths[w], FT_F32, FT_BF16, in_place);
			}
}

/* A NaN must reach the result: a training step that broke has to be seen. */
static void
test_nan_is_kept(void **state)
{
	tensor x = tensor_random(1, 40, 0, FT_F32);
	tensor y = tensor_zero(1, 20, 0, FT_F32);
	float nan = NAN;
	double *result;

	(void) state;
	must(ops->copy_to_device(stream, (float *) x.mat.data + 3, &nan, sizeof nan));
	must(ops->swiglu(stream, y.mat, x.mat));
	result = tensor_read(&y);
	for (int i = 0; i < 20; i++)
		assert_int_equal(isnan(result[i]), i == 3);
	free(result);
	tensor_free(&x);
	tensor_free(&y);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rmsnorm),        cmocka_unit_test(test_rmsnorm_formula),
		cmocka_unit_test(test_rmsnorm_grad),   cmocka_unit_test(test_rope),
		cmocka_unit_test(test_swiglu_formula), cmocka_unit_test(test_swiglu),
		cmocka_unit_test(test_nan_is_kept),
	};

	return run_variants("transformer", tests, sizeof tests / sizeof *tests);
}
