/*
 * rows.cu: moving and adding rows, and the lookup of embeddings.
 */
#include "packed.cuh"

#define THREADS 256
#define CHUNK 1024 /* columns that a block handles */

static dim3
grid_of(ft_mat m)
{
	return dim3((unsigned) ft_divide_up(m.cols, CHUNK), (unsigned) ft_min64(m.rows, FT_MAX_GRID_Y));
}

static bool
is_empty(ft_mat m)
{
	return m.rows == 0 || m.cols == 0;
}

/* --- embed --- */

/* A thread eight columns. */
template <ft_dtype TYPE, typename Y>
static __global__ void
embed_part(view<Y> y, ft_packed part, int64_t all_rows, const int32_t *ids)
{
	for (int64_t i = blockIdx.y; i < y.rows; i += gridDim.y)
	{
		int64_t id = ids[i];
		bool known = id >= 0 && id < all_rows;
		int64_t first = (blockIdx.x * (int64_t) THREADS + threadIdx.x) * 8;
		float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};

		/* An id that is in no part is the first part's to answer. */
		if (known ? id < part.first || id >= part.first + part.rows : part.first != 0)
			continue;
		if (first >= y.cols)
			continue;
		if (known)
			packed_eight<TYPE>(v, part, (id - part.first) * part.units + first / FT_UNIT,
							   (int) (first % FT_UNIT / 8));
		for (int j = 0; j < 8 && first + j < y.cols; j++)
			set_value(y.row(i)[first + j], v[j]);
	}
}

/* The same from a plain matrix. */
template <typename W, typename Y>
static __global__ void
embed_plain(view<Y> y, view<const W> matrix, const int32_t *ids)
{
	for (int64_t i = blockIdx.y; i < y.rows; i += gridDim.y)
	{
		int64_t id = ids[i];
		bool known = id >= 0 && id < matrix.rows;
		int64_t end = ft_min64((blockIdx.x + 1) * (int64_t) CHUNK, y.cols);

		for (int64_t j = blockIdx.x * (int64_t) CHUNK + threadIdx.x; j < end; j += THREADS)
			set_value(y.row(i)[j], known ? value(matrix.row(id)[j]) : 0.0f);
	}
}

static ft_status
embed_view(ft_stream *s, ft_mat y, ft_mat matrix, const int32_t *ids)
{
	return with_type("embed", matrix.dtype,
					 [&](auto from)
					 {
						 return with_type("embed", y.dtype,
										  [&](auto to)
										  {
											  typedef typename decltype(from)::type W;
											  typedef typename decltype(to)::type Y;

											  FT_LAUNCH((embed_plain<W, Y>), grid_of(y), THREADS, 0,
														s->stream, view_of<Y>(y),
														view_of<const W>(matrix), ids);
											  return ft_cuda_launched("embed");
										  });
					 });
}

ft_status
ft_cuda_embed(ft_stream *s, ft_mat y, const ft_weight *w, const int32_t *ids)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("embed", "y", y, y.rows, w->cols));
	if (!(w->use & FT_USE_EMBED))
		return ft_fail(FT_UNSUPPORTED, "embed: the weight was not made for it");
	if (is_empty(y))
		return FT_OK;
	if (w->is_view)
		return embed_view(s, y, ft_mat_make(w->dense, w->dense_type, w->rows, w->cols), ids);
	for (int i = 0; i < w->n_parts; i++)
	{
		const ft_packed *part = &w->parts[i];
		dim3 grid((unsigned) ft_divide_up(y.cols, THREADS * 8),
				  (unsigned) ft_min64(y.rows, FT_MAX_GRID_Y));

		FT_TRY(with_stored("embed", part->dtype,
						   [&](auto stored)
						   {
							   return with_type("embed", y.dtype,
												[&](auto to)
												{
													typedef typename decltype(to)::type Y;

													FT_LAUNCH(
														(embed_part<decltype(stored)::type, Y>),
														grid, THREADS, 0, s->stream, view_of<Y>(y),
														*part, w->rows, ids);
													return ft_cuda_launched("embed");
												});
						   }));
	}
	return FT_OK;
}

/* --- the gradient of embed --- */

/* A block columns of a row, if no earlier row has its id; it adds the later ones with that id, too,
 * in their order. */
static __global__ void
embed_grad_row(view<float> dw, view<const float> dy, const int32_t *ids)
{
	__shared__ int shared[THREADS / FT_WARP];
	int64_t first = blockIdx.x * (int64_t) CHUNK + threadIdx.x;
	int64_t end = ft_min64((blockIdx.x + 1) * (int64_t) CHUNK, dy.cols);

	for (int64_t i = blockIdx.y; i < dy.rows; i += gridDim.y)
	{
		int32_t id = ids[i];
		int earlier = 0;

		if (id < 0 || id >= dw.rows)
			continue;
		for (int64_t k = threadIdx.x; k < i; k += THREADS)
			earlier |= ids[k] == id;
		if (block_sum(earlier, shared) > 0)
			continue;
		for (int64_t k = i; k < dy.rows; k++)
		{
			if (ids[k] != id)
				continue;
			for (int64_t j = first; j < end; j += THREADS)
				dw.row(id)[j] += dy.row(k)[j];
		}
	}
}

ft_status
ft_cuda_embed_grad(ft_stream *s, ft_mat dw, ft_mat dy, const int32_t *ids)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("embed_grad", "dy", dy, dy.rows, dw.cols));
	if (dw.dtype != FT_F32 || dy.dtype != FT_F32)
		return ft_cuda_unsupported("embed_grad", dw.dtype, dy.dtype);
	if (is_empty(dy))
		return FT_OK;
	FT_LAUNCH(embed_grad_row, grid_of(dy), THREADS, 0, s->stream, view_of<float>(dw),
			  view_of<const float>(dy), ids);
	return ft_cuda_launched("embed_grad");
}

/* --- gather and scatter --- */

template <typename T>
static __global__ void
gather(view<T> y, view<const T> x, const int32_t *index)
{
	int64_t end = ft_min64((blockIdx.x + 1) * (int64_t) CHUNK, y.cols);

	for (int64_t i = blockIdx.y; i < y.rows; i += gridDim.y)
	{
		const T *from = x.row(index[i]);

		for (int64_t j = blockIdx.x * (int64_t) CHUNK + threadIdx.x; j < end; j += THREADS)
			y.row(i)[j] = from[j];
	}
}

ft_status
ft_cuda_gather_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *index)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("gather_rows", "y", y, y.rows, x.cols));
	if (y.dtype != x.dtype)
		return ft_cuda_unsupported("gather_rows", x.dtype, y.dtype);
	if (is_empty(y))
		return FT_OK;
	return with_type("gather_rows", x.dtype,
					 [&](auto type)
					 {
						 typedef typename decltype(type)::type T;

						 FT_LAUNCH((gather<T>), grid_of(y), THREADS, 0, s->stream, view_of<T>(y),
								   view_of<const T>(x), index);
						 return ft_cuda_launched("gather_rows");
					 });
}

static __global__ void
scatter_add(view<float> y, view<const float> x, const int32_t *index)
{
	int64_t end = ft_min64((blockIdx.x + 1) * (int64_t) CHUNK, x.cols);

	for (int64_t i = blockIdx.y; i < x.rows; i += gridDim.y)
	{
		float *to = y.row(index[i]);

		for (int64_t j = blockIdx.x * (int64_t) CHUNK + threadIdx.x; j < end; j += THREADS)
			to[j] += x.row(i)[j];
	}
}

ft_status
ft_cuda_scatter_add_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *index)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("scatter_add_rows", "y", y, y.rows, x.cols));
	if (x.dtype != FT_F32 || y.dtype != FT_F32)
		return ft_cuda_unsupported("scatter_add_rows", x.dtype, y.dtype);
	if (is_empty(x))
		return FT_OK;
	FT_LAUNCH(scatter_add, grid_of(x), THREADS, 0, s->stream, view_of<float>(y),
			  view_of<const float>(x), index);
	return ft_cuda_launched("scatter_add_rows");
}

/* --- add --- */

static __global__ void
add_scaled(view<float> y, view<const float> x, float alpha)
{
	int64_t end = ft_min64((blockIdx.x + 1) * (int64_t) CHUNK, y.cols);

	for (int64_t i = blockIdx.y; i < y.rows; i += gridDim.y)
	{
		for (int64_t j = blockIdx.x * (int64_t) CHUNK + threadIdx.x; j < end; j += THREADS)
			y.row(i)[j] += alpha * x.row(i)[j];
	}
}

ft_status
ft_cuda_add(ft_stream *s, ft_mat y, ft_mat x, float alpha)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("add", "y", y, x.rows, x.cols));
	if (x.dtype != FT_F32 || y.dtype != FT_F32)
		return ft_cuda_unsupported("add", x.dtype, y.dtype);
	if (is_empty(y))
		return FT_OK;
	FT_LAUNCH(add_scaled, grid_of(y), THREADS, 0, s->stream, view_of<float>(y),
			  view_of<const float>(x), alpha);
	return ft_cuda_launched("add");
}
