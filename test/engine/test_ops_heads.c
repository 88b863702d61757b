/*
 * test_ops_heads.c: the norm of single heads, biases, and the gradients that
 * only weights have: of a norm of heads, of a bias, of an embedding.
 *
 * The gradient of the norm is checked against central differences of the f64
 * reference first, then the operation against the formula.
 */
#include "test_ops_common.h"

static const int64_t row_counts[] = {0, 1, 3, 17, 65, 200};

#define COUNT_OF(array) ((int) (sizeof(array) / sizeof(array)[0]))

/* --- norm of heads --- */

static double
factor_of(const double *x, int n, double eps)
{
	double sum = 0;

	for (int j = 0; j < n; j++)
		sum += x[j] * x[j];
	return 1 / sqrt(sum / n + eps);
}

static void
norm_head(double *y, const double *x, const double *weight, int n, double eps)
{
	double factor = factor_of(x, n, eps);

	for (int j = 0; j < n; j++)
		y[j] = x[j] * factor * weight[j];
}

/* dx, and dweight added to, of Σ dy · y. */
static void
norm_head_gradient(double *dx, double *dweight, const double *dy, const double *x,
				   const double *weight, int n, double eps)
{
	double factor = factor_of(x, n, eps);
	double mean = 0;

	for (int j = 0; j < n; j++)
		mean += dy[j] * weight[j] * x[j] * factor / n;
	for (int j = 0; j < n; j++)
	{
		dweight[j] += dy[j] * x[j] * factor;
		dx[j] = factor * (dy[j] * weight[j] - x[j] * factor * mean);
	}
}

static double
norm_loss(const double *x, const double *weight, const double *dy, int n, double eps)
{
	double y[64];
	double loss = 0;

	norm_head(y, x, weight, n, eps);
	for (int j = 0; j < n; j++)
		loss += dy[j] * y[j];
	return loss;
}

/* (loss(value + step) − loss(value − step)) / 2 step, value one of x or weight. */
static double
slope(double *value, const double *x, const double *weight, const double *dy, int n)
{
	const double step = 1e-6;
	double at = *value;
	double up;
	double down;

	*value = at + step;
	up = norm_loss(x, weight, dy, n, 1e-5);
	*value = at - step;
	down = norm_loss(x, weight, dy, n, 1e-5);
	*value = at;
	return (up - down) / (2 * step);
}

static void
test_head_norm_formula(void **state)
{
	enum
	{
		N = 33
	};
	double x[N], weight[N], dy[N], dx[N];
	double dweight[N] = {0};

	(void) state;
	for (int j = 0; j < N; j++)
	{
		x[j] = random_normal();
		weight[j] = random_normal();
		dy[j] = random_normal();
	}
	norm_head_gradient(dx, dweight, dy, x, weight, N, 1e-5);
	for (int j = 0; j < N; j++)
	{
		assert_true(fabs(slope(&x[j], x, weight, dy, N) - dx[j]) < 1e-7);
		assert_true(fabs(slope(&weight[j], x, weight, dy, N) - dweight[j]) < 1e-7);
	}
}

static void
check_head_norm(int64_t rows, int heads, int dim, ft_dtype dtype, bool in_place)
{
	const double eps = 1e-5f;
	int64_t cols = (int64_t) heads * dim;
	tensor x = tensor_random(rows, cols, 3, dtype);
	tensor y = tensor_zero(rows, cols, in_place ? 3 : 1, dtype);
	tensor d = tensor_random(rows, cols, 2, dtype);
	tensor d_alone = d;
	tensor weight = tensor_random(1, dim, 0, FT_F32);
	tensor dweight = tensor_random(1, dim, 0, FT_F32);

	for (int64_t i = 0; i < rows * heads; i++)
		norm_head(y.value + i * dim, x.value + i * dim, weight.value, dim, eps);
	must(ops->head_norm(stream, y.mat, x.mat, dim, weight.mat.data, (float) eps));
	check_tensor("head_norm", &y, y.value);

	for (int64_t i = 0; i < rows * heads; i++)
	{
		double dx[256];

		norm_head_gradient(dx, dweight.value, d.value + i * dim, x.value + i * dim, weight.value,
						   dim, eps);
		memcpy(d.value + i * dim, dx, (size_t) dim * sizeof *dx);
	}
	if (in_place)
	{
		/* without the weight's gradient the input's is the same */
		size_t bytes = tensor_bytes(&d);

		d_alone.mat.data = device_alloc(bytes + 4);
		must(ops->copy(stream, d_alone.mat.data, d.mat.data, bytes));
		must(ops->head_norm_grad(stream, d_alone.mat, NULL, x.mat, dim, weight.mat.data,
								 (float) eps));
		check_tensor("head_norm_grad alone", &d_alone, d.value);
		device_free(d_alone.mat.data);
	}
	must(ops->head_norm_grad(stream, d.mat, dweight.mat.data, x.mat, dim, weight.mat.data,
							 (float) eps));
	check_tensor("head_norm_grad", &d, d.value);
	check_tensor("head_norm_grad of the weight", &dweight, dweight.value);
	if (in_place)
	{
		must(ops->head_norm(stream, x.mat, x.mat, dim, weight.mat.data, (float) eps));
		check_same_bits("head_norm in place", &x, &y);
	}
	tensor_free(&x);
	tensor_free(&y);
	tensor_free(&d);
	tensor_free(&weight);
	tensor_free(&dweight);
}

static void
test_head_norm(void **state)
{
	/* not 1: its gradient is the difference of two equals */
	static const int dims[] = {2, 10, 33, 64, 128, 200};

	(void) state;
	for (int r = 0; r < COUNT_OF(row_counts); r++)
		for (int d = 0; d < COUNT_OF(dims); d++)
			for (int in_place = 0; in_place < 2; in_place++)
			{
				check_head_norm(row_counts[r], 1, dims[d], FT_F32, in_place);
				check_head_norm(row_counts[r], 3, dims[d], FT_F32, in_place);
				check_head_norm(row_counts[r], 3, dims[d], FT_BF16, in_place);
			}
}

/* A row's result is the same alone and in company: serving relies on it. */
static void
test_rows_are_fixed(void **state)
{
	(void) state;
	for (int type = 0; type < 2; type++)
	{
		ft_dtype dtype = type ? FT_BF16 : FT_F32;
		tensor x = tensor_random(37, 3 * 20, 1, dtype);
		tensor all = tensor_zero(37, 3 * 20, 0, dtype);
		tensor alone = tensor_zero(37, 3 * 20, 0, dtype);
		tensor weight = tensor_random(1, 3 * 20, 0, FT_F32);

		must(ops->head_norm(stream, all.mat, x.mat, 20, weight.mat.data, 1e-5f));
		must(ops->add_bias(stream, all.mat, weight.mat.data));
		for (int i = 0; i < 37; i++)
		{
			ft_mat row = ft_mat_rows(alone.mat, i, 1);

			must(ops->head_norm(stream, row, ft_mat_rows(x.mat, i, 1), 20, weight.mat.data, 1e-5f));
			must(ops->add_bias(stream, row, weight.mat.data));
		}
		check_same_bits("rows alone and together", &all, &alone);
		tensor_free(&x);
		tensor_free(&all);
		tensor_free(&alone);
		tensor_free(&weight);
	}
}

/* --- bias --- */

static void
check_bias(int64_t rows, int64_t cols, ft_dtype dtype)
{
	tensor y = tensor_random(rows, cols, 3, dtype);
	tensor x = tensor_random(rows, cols, 2, dtype);
	tensor bias = tensor_random(1, cols, 0, FT_F32);
	tensor sum = tensor_random(1, cols, 0, FT_F32);
	tensor again = tensor_zero(1, cols, 0, FT_F32);

	must(ops->copy(stream, again.mat.data, sum.mat.data, (size_t) cols * sizeof(float)));
	for (int64_t i = 0; i < rows; i++)
		for (int64_t j = 0; j < cols; j++)
		{
			y.value[i * cols + j] += bias.value[j];
			sum.value[j] += x.value[i * cols + j];
		}
	must(ops->add_bias(stream, y.mat, bias.mat.data));
	check_tensor("add_bias", &y, y.value);
	must(ops->sum_rows(stream, sum.mat.data, x.mat));
	check_tensor("sum_rows", &sum, sum.value);
	must(ops->sum_rows(stream, again.mat.data, x.mat));
	check_same_bits("sum_rows again", &again, &sum);
	tensor_free(&y);
	tensor_free(&x);
	tensor_free(&bias);
	tensor_free(&sum);
	tensor_free(&again);
}

static void
test_bias(void **state)
{
	static const int64_t widths[] = {1, 7, 33, 255, 576, 1100};

	(void) state;
	for (int r = 0; r < COUNT_OF(row_counts); r++)
		for (int w = 0; w < COUNT_OF(widths); w++)
		{
			check_bias(row_counts[r], widths[w], FT_F32);
			check_bias(row_counts[r], widths[w], FT_BF16);
		}
}

/* --- embedding --- */

/* Few ids for many rows, so that most are met again; some are no ids at all. */
static void
check_embed_grad(int64_t rows, int64_t cols)
{
	enum
	{
		VOCABULARY = 23
	};
	tensor dw = tensor_random(VOCABULARY, cols, 1, FT_F32);
	tensor again = tensor_zero(VOCABULARY, cols, 1, FT_F32);
	tensor dy = tensor_random(rows, cols, 3, FT_F32);
	int32_t *ids = malloc((size_t) rows * sizeof *ids + 1);
	int32_t *on_device;

	must(ops->copy(stream, again.mat.data, dw.mat.data, tensor_bytes(&dw)));
	for (int64_t i = 0; i < rows; i++)
	{
		ids[i] = (int32_t) (random_bits() % (VOCABULARY + 3)) - 1;
		for (int64_t j = 0; j < cols && ids[i] >= 0 && ids[i] < VOCABULARY; j++)
			dw.value[ids[i] * cols + j] += dy.value[i * cols + j];
	}
	on_device = upload(ids, (size_t) rows * sizeof *ids);
	must(ops->embed_grad(stream, dw.mat, dy.mat, on_device));
	check_tensor("embed_grad", &dw, dw.value);
	must(ops->embed_grad(stream, again.mat, dy.mat, on_device));
	check_same_bits("embed_grad again", &again, &dw);
	free(ids);
	device_free(on_device);
	tensor_free(&dw);
	tensor_free(&again);
	tensor_free(&dy);
}

static void
test_embed_grad(void **state)
{
	static const int64_t widths[] = {1, 36, 257, 1100};

	(void) state;
	for (int r = 0; r < COUNT_OF(row_counts); r++)
		for (int w = 0; w < COUNT_OF(widths); w++)
			check_embed_grad(row_counts[r], widths[w]);
}

/* --- refusals --- */

static void
test_refusals(void **state)
{
	tensor x = tensor_random(2, 12, 0, FT_F32);
	tensor y = tensor_zero(2, 12, 0, FT_BF16);
	tensor weight = tensor_random(1, 12, 0, FT_F32);
	ft_mat narrow = ft_mat_cols(x.mat, 0, 8);
	ft_mat ints = x.mat;
	int32_t *ids = upload((int32_t[]){0, 1}, 2 * sizeof(int32_t));

	(void) state;
	ints.dtype = FT_I32;
	assert_int_equal(ops->head_norm(stream, x.mat, x.mat, 5, weight.mat.data, 1e-5f), FT_INVALID);
	assert_non_null(strstr(ft_error_message(), "whole heads of 5"));
	assert_int_equal(ops->head_norm(stream, y.mat, x.mat, 4, weight.mat.data, 1e-5f),
					 FT_UNSUPPORTED);
	assert_int_equal(ops->head_norm_grad(stream, narrow, NULL, x.mat, 4, weight.mat.data, 1e-5f),
					 FT_INVALID);
	assert_int_equal(ops->add_bias(stream, ints, weight.mat.data), FT_UNSUPPORTED);
	assert_int_equal(ops->sum_rows(stream, weight.mat.data, ints), FT_UNSUPPORTED);
	assert_int_equal(ops->embed_grad(stream, x.mat, y.mat, ids), FT_UNSUPPORTED);
	assert_int_equal(ops->embed_grad(stream, x.mat, narrow, ids), FT_INVALID);
	device_free(ids);
	tensor_free(&x);
	tensor_free(&y);
	tensor_free(&weight);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_head_norm_formula), cmocka_unit_test(test_head_norm),
		cmocka_unit_test(test_rows_are_fixed),    cmocka_unit_test(test_bias),
		cmocka_unit_test(test_embed_grad),        cmocka_unit_test(test_refusals),
	};

	return run_variants("heads", tests, sizeof tests / sizeof *tests);
}
