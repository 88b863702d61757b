/*
 * linear.cu: which product does what: the library, the serving kernels, or the
 * own kernel where neither applies.
 */
#include "cuda.cuh"

static ft_status
check_beta(const char *op, ft_mat y, float beta)
{
	if (beta != 0.0f && y.dtype != FT_F32)
		return ft_fail(FT_INVALID, "%s: beta %g needs an f32 result, not %s", op, (double) beta,
					   ft_dtype_get(y.dtype)->name);
	return FT_OK;
}

/* For a layer's products beta says whether to add. */
static ft_status
check_adds(const char *op, ft_mat y, float beta)
{
	if (beta != 0.0f && beta != 1.0f)
		return ft_fail(FT_INVALID, "%s: beta %g is neither 0 nor 1", op, (double) beta);
	return check_beta(op, y, beta);
}

/* c = alpha · op(a) · op(b) + beta · c of checked operands, of any pair of f32 and bf16. */
static ft_status
product(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha, float beta)
{
	bool done = false;

	if (c.rows == 0 || c.cols == 0)
		return FT_OK;
	/* A product over no columns is the own kernel's: it scales c. */
	if (a.dtype == b.dtype && a.rows > 0 && a.cols > 0)
		FT_TRY(ft_lt_gemm(s, c, a, ta, b, tb, alpha, beta, &done));
	if (done)
		return FT_OK;
	return ft_cuda_gemm_own(s, c, a, ta, b, tb, alpha, beta);
}

ft_status
ft_cuda_matmul(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha,
			   float beta)
{
	int64_t k = ta ? a.rows : a.cols;

	FT_TRY(ft_cuda_enter(s));
	if (a.dtype != b.dtype || (a.dtype != FT_F32 && a.dtype != FT_BF16))
		return ft_cuda_unsupported("matmul", a.dtype, b.dtype);
	if (c.dtype != FT_F32 && c.dtype != FT_BF16)
		return ft_cuda_unsupported("matmul", a.dtype, c.dtype);
	FT_TRY(ft_cuda_shape("matmul", "a", a, ta ? k : c.rows, ta ? c.rows : k));
	FT_TRY(ft_cuda_shape("matmul", "b", b, tb ? c.cols : k, tb ? k : c.cols));
	FT_TRY(check_beta("matmul", c, beta));
	return product(s, c, a, ta, b, tb, alpha, beta);
}

static ft_mat
dense_of(const ft_weight *w)
{
	return ft_mat{w->dense, w->dense_type, w->rows, w->cols, w->pitch};
}

static ft_status
linear_row_fixed(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta)
{
	bool by_bf16 = s->device->numerics == FT_NUMERICS_FAST && x.dtype == FT_BF16;

	for (int i = 0; i < w->n_parts; i++)
	{
		const ft_packed *part = &w->parts[i];
		ft_mat to = ft_mat_cols(y, part->first, part->rows);

		FT_TRY(by_bf16 ? ft_cuda_linear_bf16(s, to, x, part, beta)
					   : ft_cuda_linear_f32(s, to, x, part, beta));
	}
	return FT_OK;
}

ft_status
ft_cuda_linear(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta, bool row_fixed)
{
	FT_TRY(ft_cuda_enter(s));
	if ((x.dtype != FT_F32 && x.dtype != FT_BF16) || (y.dtype != FT_F32 && y.dtype != FT_BF16))
		return ft_cuda_unsupported("linear", x.dtype, y.dtype);
	FT_TRY(ft_cuda_shape("linear", "x", x, y.rows, w->cols));
	FT_TRY(ft_cuda_shape("linear", "y", y, x.rows, w->rows));
	FT_TRY(check_adds("linear", y, beta));
	if (w->is_view && row_fixed)
		return y.rows == 0 ? FT_OK
						   : ft_cuda_gemm_own(s, y, x, false, dense_of(w), true, 1.0f, beta);
	if (!(w->use & (row_fixed ? FT_USE_SERVE : FT_USE_TRAIN)))
		return ft_fail(FT_UNSUPPORTED, "linear: the weight was not made for %s",
					   row_fixed ? "serving" : "training");
	if (y.rows == 0)
		return FT_OK;
	if (row_fixed)
		return linear_row_fixed(s, y, x, w, beta);
	return product(s, y, x, false, dense_of(w), true, 1.0f, beta);
}

ft_status
ft_cuda_linear_grad_input(ft_stream *s, ft_mat dx, ft_mat dy, const ft_weight *w, float beta)
{
	FT_TRY(ft_cuda_enter(s));
	if ((dx.dtype != FT_F32 && dx.dtype != FT_BF16) || (dy.dtype != FT_F32 && dy.dtype != FT_BF16))
		return ft_cuda_unsupported("linear_grad_input", dx.dtype, dy.dtype);
	FT_TRY(ft_cuda_shape("linear_grad_input", "dy", dy, dx.rows, w->rows));
	FT_TRY(ft_cuda_shape("linear_grad_input", "dx", dx, dy.rows, w->cols));
	if (!(w->use & FT_USE_TRAIN))
		return ft_fail(FT_UNSUPPORTED, "linear_grad_input: the weight was not made for training");
	FT_TRY(check_adds("linear_grad_input", dx, beta));
	return product(s, dx, dy, false, dense_of(w), false, 1.0f, beta);
}
