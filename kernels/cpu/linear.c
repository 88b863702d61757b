/*
 * linear.c: products with weights and with plain matrices: checks, and which
 * implementation does them.
 */
#include "cpu.h"

/* Below this many multiply-adds the library's own overhead is the larger part. */
#define LIBRARY_MIN_WORK (64 * 1024)

static ft_status
multiply(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha, float beta)
{
	int64_t k = ta ? a.rows : a.cols;
	bool done = false;

	if (c.rows * c.cols * k >= LIBRARY_MIN_WORK)
		FT_TRY(ft_onednn_matmul(s, c, a, ta, b, tb, alpha, beta, &done));
	return done ? FT_OK : ft_own_matmul(s, c, a, ta, b, tb, alpha, beta);
}

ft_status
ft_cpu_matmul(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha, float beta)
{
	int64_t k = ta ? a.rows : a.cols;

	if (!ft_is_float(a.dtype) || a.dtype != b.dtype)
		return ft_bad_types("matmul", a.dtype, b.dtype);
	if (!ft_is_float(c.dtype) || (c.dtype == FT_BF16 && beta != 0))
		return ft_bad_types("matmul", a.dtype, c.dtype);
	if (ta)
		FT_TRY(ft_check_shape("matmul", "a (transposed)", a, k, c.rows));
	else
		FT_TRY(ft_check_shape("matmul", "a", a, c.rows, k));
	if (tb)
		FT_TRY(ft_check_shape("matmul", "b (transposed)", b, c.cols, k));
	else
		FT_TRY(ft_check_shape("matmul", "b", b, k, c.cols));
	FT_TRY(ft_check_shape("matmul", "c", c, c.rows, c.cols));
	if (c.rows == 0 || c.cols == 0)
		return FT_OK;
	return multiply(s, c, a, ta, b, tb, alpha, beta);
}

static ft_status
check_linear(const char *operation, ft_mat y, ft_mat x, int64_t rows, int64_t cols, float beta)
{
	FT_TRY(ft_check_float(operation, x));
	FT_TRY(ft_check_float(operation, y));
	if (beta != 0 && (beta != 1 || y.dtype != FT_F32))
		return ft_fail(FT_INVALID, "%s: beta must be 0, or 1 with an f32 result, not %g (%s)",
					   operation, (double) beta, ft_dtype_get(y.dtype)->name);
	FT_TRY(ft_check_shape(operation, "input", x, y.rows, cols));
	return ft_check_shape(operation, "output", y, y.rows, rows);
}

static ft_mat
dense_matrix(const ft_weight *w)
{
	return ft_mat_make(w->dense, FT_BF16, w->rows, w->cols);
}

/* Our own kernel is row-fixed; the library is not. */
static ft_status
linear_view(ft_stream *s, ft_mat y, ft_mat x, ft_mat matrix, float beta, bool row_fixed)
{
	if (y.rows == 0 || y.cols == 0)
		return FT_OK;
	return row_fixed ? ft_own_matmul(s, y, x, false, matrix, true, 1, beta)
					 : multiply(s, y, x, false, matrix, true, 1, beta);
}

ft_status
ft_cpu_linear(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta, bool row_fixed)
{
	FT_TRY(check_linear("linear", y, x, w->rows, w->cols, beta));
	if (w->view.data != NULL)
		return linear_view(s, y, x, w->view, beta, row_fixed);
	if (!(w->use & (row_fixed ? FT_USE_SERVE : FT_USE_TRAIN)))
		return ft_fail(FT_UNSUPPORTED, "linear: weight was not made for %s",
					   row_fixed ? "serving" : "training");
	if (y.rows == 0 || y.cols == 0)
		return FT_OK;
	if (row_fixed || w->dense == NULL)
		return ft_packed_linear(s, y, x, w, beta);
	return multiply(s, y, x, false, dense_matrix(w), true, 1, beta);
}

static ft_status
view_grad_input(ft_stream *s, ft_mat dx, ft_mat dy, ft_mat matrix, float beta)
{
	bool done;

	FT_TRY(ft_onednn_matmul(s, dx, dy, false, matrix, false, 1, beta, &done));
	return done ? FT_OK : ft_own_grad_input(s, dx, dy, matrix, beta);
}

ft_status
ft_cpu_linear_grad_input(ft_stream *s, ft_mat dx, ft_mat dy, const ft_weight *w, float beta)
{
	FT_TRY(check_linear("linear_grad_input", dx, dy, w->cols, w->rows, beta));
	if (!(w->use & FT_USE_TRAIN))
		return ft_fail(FT_UNSUPPORTED, "linear_grad_input: weight was not made for training");
	if (dx.rows == 0 || dx.cols == 0)
		return FT_OK;
	if (w->view.data != NULL)
		return view_grad_input(s, dx, dy, w->view, beta);
	if (w->dense == NULL)
		return ft_packed_grad_input(s, dx, dy, w, beta);
	return multiply(s, dx, dy, false, dense_matrix(w), false, 1, beta);
}
