/*
 * swiglu.cu: the gated unit of the feed-forward layer (Shazeer, "GLU Variants
 * Improve Transformer", 2020) and its gradient.
 *
 *     y = silu(g) · u,   silu(g) = g · σ(g)
 *     du = dy · silu(g),   dg = dy · u · σ(g) · (1 + g · (1 − σ(g)))
 */
#include "intrinsics.cuh"

#define THREADS 256
#define CHUNK 1024 /* columns that a block handles */

static dim3
grid_of(int64_t rows, int64_t cols)
{
	return dim3((unsigned) ft_divide_up(cols, CHUNK), (unsigned) ft_min64(rows, FT_MAX_GRID_Y));
}

__device__ __forceinline__ float
sigmoid(float x)
{
	return 1.0f / (1.0f + expf(-x));
}

template <typename Y, typename G>
static __global__ void
swiglu(view<Y> y, view<const G> gate_up)
{
	int64_t end = ft_min64((blockIdx.x + 1) * (int64_t) CHUNK, y.cols);

	for (int64_t i = blockIdx.y; i < y.rows; i += gridDim.y)
	{
		const G *gate = gate_up.row(i);
		const G *up = gate + y.cols;

		for (int64_t j = blockIdx.x * (int64_t) CHUNK + threadIdx.x; j < end; j += THREADS)
		{
			float g = value(gate[j]);

			set_value(y.row(i)[j], g * sigmoid(g) * value(up[j]));
		}
	}
}

ft_status
ft_cuda_swiglu(ft_stream *s, ft_mat y, ft_mat gate_up)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("swiglu", "gate_up", gate_up, y.rows, 2 * y.cols));
	if (y.rows == 0 || y.cols == 0)
		return FT_OK;
	return with_types("swiglu", y.dtype, gate_up.dtype,
					  [&](auto ty, auto tg)
					  {
						  typedef typename decltype(ty)::type Y;
						  typedef typename decltype(tg)::type G;

						  FT_LAUNCH((swiglu<Y, G>), grid_of(y.rows, y.cols), THREADS, 0, s->stream,
									view_of<Y>(y), view_of<const G>(gate_up));
						  return ft_cuda_launched("swiglu");
					  });
}

/* d and gate_up may be the same memory: a thread reads both halves before it writes them. */
template <typename D, typename DY, typename G>
static __global__ void
swiglu_grad(view<D> d, view<const DY> dy, view<const G> gate_up)
{
	int64_t end = ft_min64((blockIdx.x + 1) * (int64_t) CHUNK, dy.cols);

	for (int64_t i = blockIdx.y; i < dy.rows; i += gridDim.y)
	{
		for (int64_t j = blockIdx.x * (int64_t) CHUNK + threadIdx.x; j < end; j += THREADS)
		{
			float g = value(gate_up.row(i)[j]);
			float u = value(gate_up.row(i)[dy.cols + j]);
			float from = value(dy.row(i)[j]);
			float p = sigmoid(g);

			set_value(d.row(i)[j], from * u * p * (1.0f + g * (1.0f - p)));
			set_value(d.row(i)[dy.cols + j], from * g * p);
		}
	}
}

ft_status
ft_cuda_swiglu_grad(ft_stream *s, ft_mat dgate_up, ft_mat dy, ft_mat gate_up)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("swiglu_grad", "gate_up", gate_up, dy.rows, 2 * dy.cols));
	FT_TRY(ft_cuda_shape("swiglu_grad", "dgate_up", dgate_up, dy.rows, 2 * dy.cols));
	if (dy.rows == 0 || dy.cols == 0)
		return FT_OK;
	return with_types("swiglu_grad", dgate_up.dtype, gate_up.dtype,
					  [&](auto td, auto tg)
					  {
						  return with_type(
							  "swiglu_grad", dy.dtype,
							  [&](auto ty)
							  {
								  typedef typename decltype(td)::type D;
								  typedef typename decltype(tg)::type G;
								  typedef typename decltype(ty)::type DY;

								  FT_LAUNCH((swiglu_grad<D, DY, G>), grid_of(dy.rows, dy.cols),
											THREADS, 0, s->stream, view_of<D>(dgate_up),
											view_of<const DY>(dy), view_of<const G>(gate_up));
								  return ft_cuda_launched("swiglu_grad");
							  });
					  });
}
