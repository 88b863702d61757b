/*
 * norm.cu: RMSNorm with the residual addition before it, and its gradient.
 *
 *     h = x + branch,  r = 1 / √(mean h² + eps),  y = h · r · weight
 *
 * and, with g = dy · weight (Zhang and Sennrich, "Root Mean Square Layer
 * Normalization", 2019):
 *
 *     dx += r · (g − h · r² · mean(g · h)),     dweight += Σ over rows of dy · h · r
 */
#include "intrinsics.cuh"

#define THREADS 256
#define COLUMNS 32 /* of dweight that a block sums */
#define ROW_LANES (THREADS / COLUMNS)

/* A block a row. */
template <typename Y, typename B>
static __global__ void
norm_row(view<Y> y, view<float> h, float *rstd, view<const float> x, view<const B> branch,
		 const float *weight, float eps)
{
	__shared__ float shared[THREADS / FT_WARP];
	int64_t i = blockIdx.x;
	const float *from = x.row(i);
	const B *add = branch.data != NULL ? branch.row(i) : NULL;
	float *keep = h.data != NULL ? h.row(i) : NULL;
	Y *to = y.row(i);
	float sum = 0;
	float r;

	for (int64_t j = threadIdx.x; j < y.cols; j += THREADS)
	{
		float v = from[j] + (add != NULL ? value(add[j]) : 0.0f);

		if (keep != NULL)
			keep[j] = v;
		sum += v * v;
	}
	sum = block_sum(sum, shared);
	r = 1.0f / sqrtf(sum / (float) y.cols + eps);
	if (rstd != NULL && threadIdx.x == 0)
		rstd[i] = r;
	for (int64_t j = threadIdx.x; j < y.cols; j += THREADS)
	{
		/* h may be x: then from[j] has the branch in it already. */
		float v = keep != NULL ? keep[j] : from[j] + (add != NULL ? value(add[j]) : 0.0f);

		set_value(to[j], v * r * weight[j]);
	}
}

ft_status
ft_cuda_rmsnorm(ft_stream *s, ft_mat y, ft_mat h, float *rstd, ft_mat x, ft_mat branch,
				const float *weight, float eps)
{
	ft_dtype branch_type = branch.data != NULL ? branch.dtype : FT_F32;

	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("rmsnorm", "y", y, x.rows, x.cols));
	FT_TRY(ft_cuda_type("rmsnorm", "x", x, FT_F32));
	if (h.data != NULL)
	{
		FT_TRY(ft_cuda_shape("rmsnorm", "h", h, x.rows, x.cols));
		FT_TRY(ft_cuda_type("rmsnorm", "h", h, FT_F32));
	}
	if (branch.data != NULL)
		FT_TRY(ft_cuda_shape("rmsnorm", "the branch", branch, x.rows, x.cols));
	if (x.rows == 0 || x.cols == 0)
		return FT_OK;
	return with_types("rmsnorm", y.dtype, branch_type,
					  [&](auto ty, auto tb)
					  {
						  typedef typename decltype(ty)::type Y;
						  typedef typename decltype(tb)::type B;

						  FT_LAUNCH((norm_row<Y, B>), (unsigned) x.rows, THREADS, 0, s->stream,
									view_of<Y>(y), view_of<float>(h), rstd, view_of<const float>(x),
									view_of<const B>(branch), weight, eps);
						  return ft_cuda_launched("rmsnorm");
					  });
}

template <typename DY>
static __global__ void
norm_grad_row(view<float> dx, view<const DY> dy, view<const float> x, const float *weight,
			  const float *rstd)
{
	__shared__ float shared[THREADS / FT_WARP];
	int64_t i = blockIdx.x;
	float r = rstd[i];
	float dot = 0;

	for (int64_t j = threadIdx.x; j < dx.cols; j += THREADS)
		dot += value(dy.row(i)[j]) * weight[j] * x.row(i)[j];
	dot = block_sum(dot, shared);
	dot = dot * r * r / (float) dx.cols;
	for (int64_t j = threadIdx.x; j < dx.cols; j += THREADS)
		dx.row(i)[j] += r * (value(dy.row(i)[j]) * weight[j] - x.row(i)[j] * dot);
}

/* A block sums COLUMNS columns, its ROW_LANES threads of a column each every ROW_LANES-th row. */
template <typename DY>
static __global__ void
norm_grad_weight(float *dweight, view<const DY> dy, view<const float> x, const float *rstd)
{
	__shared__ float sums[ROW_LANES][COLUMNS];
	int column = threadIdx.x % COLUMNS;
	int lane = threadIdx.x / COLUMNS;
	int64_t j = blockIdx.x * (int64_t) COLUMNS + column;
	float sum = 0;

	if (j < x.cols)
	{
		for (int64_t i = lane; i < x.rows; i += ROW_LANES)
			sum += value(dy.row(i)[j]) * x.row(i)[j] * rstd[i];
	}
	sums[lane][column] = sum;
	__syncthreads();
	if (lane != 0 || j >= x.cols)
		return;
	for (int i = 1; i < ROW_LANES; i++)
		sum += sums[i][column];
	dweight[j] += sum;
}

ft_status
ft_cuda_rmsnorm_grad(ft_stream *s, ft_mat dx, float *dweight, ft_mat dy, ft_mat x,
					 const float *weight, const float *rstd)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("rmsnorm_grad", "dx", dx, x.rows, x.cols));
	FT_TRY(ft_cuda_shape("rmsnorm_grad", "dy", dy, x.rows, x.cols));
	FT_TRY(ft_cuda_type("rmsnorm_grad", "x", x, FT_F32));
	FT_TRY(ft_cuda_type("rmsnorm_grad", "dx", dx, FT_F32));
	if (x.rows == 0 || x.cols == 0)
		return FT_OK;
	return with_type("rmsnorm_grad", dy.dtype,
					 [&](auto type)
					 {
						 typedef typename decltype(type)::type DY;

						 FT_LAUNCH((norm_grad_row<DY>), (unsigned) x.rows, THREADS, 0, s->stream,
								   view_of<float>(dx), view_of<const DY>(dy),
								   view_of<const float>(x), weight, rstd);
						 FT_TRY(ft_cuda_launched("rmsnorm_grad"));
						 if (dweight == NULL)
							 return FT_OK;
						 FT_LAUNCH((norm_grad_weight<DY>), (unsigned) ft_divide_up(x.cols, COLUMNS),
								   THREADS, 0, s->stream, dweight, view_of<const DY>(dy),
								   view_of<const float>(x), rstd);
						 return ft_cuda_launched("rmsnorm_grad");
					 });
}
