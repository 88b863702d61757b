/*
 * head_norm.cu: RMSNorm of each head of a row on its own, and its gradient; the
 * formulas are norm.cu's.
 *
 * A warp a head: heads are short, and there are many.
 */
#include "intrinsics.cuh"

#define THREADS 256
#define WARPS (THREADS / FT_WARP)
#define COLUMNS 32 /* of dweight that a block sums */
#define LANES (THREADS / COLUMNS)
#define MOST_SLABS 128 /* partial sums of dweight */

/* Head i of the matrix, of n in a row. */
template <typename T>
static __device__ __forceinline__ T *
head_at(view<T> m, int64_t i, int64_t n, int head_dim)
{
	return m.row(i / n) + i % n * head_dim;
}

/* 1 / rms of a head, in every lane. */
template <typename T>
static __device__ __forceinline__ float
head_factor(const T *x, int head_dim, float eps)
{
	float sum = 0;

	for (int j = threadIdx.x % FT_WARP; j < head_dim; j += FT_WARP)
		sum += value(x[j]) * value(x[j]);
	return 1.0f / sqrtf(warp_sum(sum) / (float) head_dim + eps);
}

template <typename T>
static __global__ void
norm_heads(view<T> y, view<const T> x, int64_t heads, int head_dim, const float *weight, float eps)
{
	int64_t i = blockIdx.x * (int64_t) WARPS + threadIdx.x / FT_WARP;
	const T *from;
	T *to;
	float r;

	if (i >= x.rows * heads)
		return;
	from = head_at(x, i, heads, head_dim);
	to = head_at(y, i, heads, head_dim);
	r = head_factor(from, head_dim, eps);
	for (int j = threadIdx.x % FT_WARP; j < head_dim; j += FT_WARP)
		set_value(to[j], value(from[j]) * r * weight[j]);
}

static ft_status
check(const char *op, ft_mat y, ft_mat x, int head_dim)
{
	FT_TRY(ft_cuda_shape(op, "y", y, x.rows, x.cols));
	if (y.dtype != x.dtype)
		return ft_cuda_unsupported(op, x.dtype, y.dtype);
	if (head_dim < 1 || x.cols % head_dim != 0)
		return ft_fail(FT_INVALID, "%s: %lld columns are no whole heads of %d", op,
					   (long long) x.cols, head_dim);
	return FT_OK;
}

ft_status
ft_cuda_head_norm(ft_stream *s, ft_mat y, ft_mat x, int head_dim, const float *weight, float eps)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(check("head_norm", y, x, head_dim));
	if (x.rows == 0 || x.cols == 0)
		return FT_OK;
	return with_type("head_norm", x.dtype,
					 [&](auto type)
					 {
						 typedef typename decltype(type)::type T;
						 int64_t heads = x.cols / head_dim;

						 FT_LAUNCH((norm_heads<T>), (unsigned) ft_divide_up(x.rows * heads, WARPS),
								   THREADS, 0, s->stream, view_of<T>(y), view_of<const T>(x), heads,
								   head_dim, weight, eps);
						 return ft_cuda_launched("head_norm");
					 });
}

template <typename T>
static __global__ void
head_factors(float *factors, view<const T> x, int64_t heads, int head_dim, float eps)
{
	int64_t i = blockIdx.x * (int64_t) WARPS + threadIdx.x / FT_WARP;
	float r;

	if (i >= x.rows * heads)
		return;
	r = head_factor(head_at(x, i, heads, head_dim), head_dim, eps);
	if (threadIdx.x % FT_WARP == 0)
		factors[i] = r;
}

/* Block (column group, slab): the slab's heads' part of dweight. */
template <typename T>
static __global__ void
weight_partials(float *partials, view<const T> dy, view<const T> x, const float *factors,
				int64_t heads, int head_dim, int64_t slab)
{
	__shared__ float sums[LANES][COLUMNS];
	int column = threadIdx.x % COLUMNS;
	int lane = threadIdx.x / COLUMNS;
	int j = blockIdx.x * COLUMNS + column;
	int64_t end = ft_min64((blockIdx.y + 1) * slab, x.rows * heads);
	float sum = 0;

	if (j < head_dim)
	{
		for (int64_t i = blockIdx.y * slab + lane; i < end; i += LANES)
			sum += value(head_at(dy, i, heads, head_dim)[j]) *
				   value(head_at(x, i, heads, head_dim)[j]) * factors[i];
	}
	sums[lane][column] = sum;
	__syncthreads();
	if (lane != 0 || j >= head_dim)
		return;
	for (int i = 1; i < LANES; i++)
		sum += sums[i][column];
	partials[blockIdx.y * (int64_t) head_dim + j] = sum;
}

static __global__ void
add_partials(float *dweight, const float *partials, int slabs, int head_dim)
{
	int j = blockIdx.x * THREADS + threadIdx.x;
	float sum = 0;

	if (j >= head_dim)
		return;
	for (int i = 0; i < slabs; i++)
		sum += partials[(int64_t) i * head_dim + j];
	dweight[j] += sum;
}

/* How many slabs there are depends on the shape alone, so the order of the sum does. */
template <typename T>
static ft_status
weight_gradient(ft_stream *s, float *dweight, ft_mat dy, ft_mat x, int head_dim, float eps)
{
	int64_t heads = x.cols / head_dim;
	int64_t n = x.rows * heads;
	int64_t slab = ft_divide_up(n, ft_min64(MOST_SLABS, ft_divide_up(n, 64)));
	int64_t slabs = ft_divide_up(n, slab);
	dim3 grid((unsigned) ft_divide_up(head_dim, COLUMNS), (unsigned) slabs);
	void *memory;
	float *factors;
	float *partials;

	FT_TRY(ft_cuda_scratch(s, (size_t) (n + slabs * head_dim) * sizeof(float), &memory));
	factors = (float *) memory;
	partials = factors + n;
	FT_LAUNCH((head_factors<T>), (unsigned) ft_divide_up(n, WARPS), THREADS, 0, s->stream, factors,
			  view_of<const T>(x), heads, head_dim, eps);
	FT_TRY(ft_cuda_launched("head_norm_grad"));
	FT_LAUNCH((weight_partials<T>), grid, THREADS, 0, s->stream, partials, view_of<const T>(dy),
			  view_of<const T>(x), factors, heads, head_dim, slab);
	FT_TRY(ft_cuda_launched("head_norm_grad"));
	FT_LAUNCH(add_partials, (unsigned) ft_divide_up(head_dim, THREADS), THREADS, 0, s->stream,
			  dweight, partials, (int) slabs, head_dim);
	return ft_cuda_launched("head_norm_grad");
}

template <typename T>
static __global__ void
norm_heads_grad(view<T> d, view<const T> x, int64_t heads, int head_dim, const float *weight,
				float eps)
{
	int64_t i = blockIdx.x * (int64_t) WARPS + threadIdx.x / FT_WARP;
	const T *from;
	T *grad;
	float dot = 0;
	float r;

	if (i >= x.rows * heads)
		return;
	from = head_at(x, i, heads, head_dim);
	grad = head_at(d, i, heads, head_dim);
	r = head_factor(from, head_dim, eps);
	for (int j = threadIdx.x % FT_WARP; j < head_dim; j += FT_WARP)
		dot += value(grad[j]) * weight[j] * value(from[j]);
	dot = warp_sum(dot) * r * r / (float) head_dim;
	for (int j = threadIdx.x % FT_WARP; j < head_dim; j += FT_WARP)
		set_value(grad[j], r * (value(grad[j]) * weight[j] - value(from[j]) * dot));
}

ft_status
ft_cuda_head_norm_grad(ft_stream *s, ft_mat d, float *dweight, ft_mat x, int head_dim,
					   const float *weight, float eps)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(check("head_norm_grad", d, x, head_dim));
	if (x.rows == 0 || x.cols == 0)
		return FT_OK;
	return with_type("head_norm_grad", x.dtype,
					 [&](auto type)
					 {
						 typedef typename decltype(type)::type T;
						 int64_t heads = x.cols / head_dim;

						 if (dweight != NULL)
							 FT_TRY(weight_gradient<T>(s, dweight, d, x, head_dim, eps));
						 FT_LAUNCH((norm_heads_grad<T>),
								   (unsigned) ft_divide_up(x.rows * heads, WARPS), THREADS, 0,
								   s->stream, view_of<T>(d), view_of<const T>(x), heads, head_dim,
								   weight, eps);
						 return ft_cuda_launched("head_norm_grad");
					 });
}
