/*
 * dequant.cu: conversions between element types, and the values of weights.
 */
#include "packed.cuh"

#define THREADS 256
#define CHUNK 1024 /* columns that a block converts */

static dim3
grid_of(ft_mat m)
{
	return dim3((unsigned) ft_divide_up(m.cols, CHUNK), (unsigned) ft_min64(m.rows, FT_MAX_GRID_Y));
}

template <typename Y, typename X>
static __global__ void
convert_plain(view<Y> y, view<const X> x)
{
	int64_t end = ft_min64((blockIdx.x + 1) * (int64_t) CHUNK, y.cols);

	for (int64_t i = blockIdx.y; i < y.rows; i += gridDim.y)
	{
		for (int64_t j = blockIdx.x * (int64_t) CHUNK + threadIdx.x; j < end; j += THREADS)
			set_value(y.row(i)[j], value(x.row(i)[j]));
	}
}

template <ft_dtype TYPE, typename Y>
static __global__ void
convert_blocks(view<Y> y, const uint8_t *x, int64_t row_bytes)
{
	int64_t end = ft_min64((blockIdx.x + 1) * (int64_t) CHUNK, y.cols);

	for (int64_t i = blockIdx.y; i < y.rows; i += gridDim.y)
	{
		for (int64_t j = blockIdx.x * (int64_t) CHUNK + threadIdx.x; j < end; j += THREADS)
			set_value(y.row(i)[j], raw_value<TYPE>(x + i * row_bytes, j));
	}
}

static ft_status
from_blocks(ft_stream *s, ft_mat y, ft_mat x)
{
	int64_t row_bytes = ft_row_bytes(x.dtype, x.cols);

	if (row_bytes < 0 || x.ld != x.cols)
		return ft_fail(FT_INVALID, "convert: rows of %lld values of type %s are not whole blocks",
					   (long long) x.cols, ft_dtype_get(x.dtype)->name);
	if (y.dtype != FT_F32 && y.dtype != FT_BF16)
		return ft_cuda_unsupported("convert", x.dtype, y.dtype);
	return with_stored("convert", x.dtype,
					   [&](auto stored)
					   {
						   constexpr ft_dtype type = decltype(stored)::type;

						   if constexpr (type == FT_F32 || type == FT_F16 || type == FT_BF16)
							   return ft_cuda_unsupported("convert", x.dtype, y.dtype);
						   else
							   return with_type("convert", y.dtype,
												[&](auto to)
												{
													typedef typename decltype(to)::type Y;

													FT_LAUNCH((convert_blocks<type, Y>), grid_of(y),
															  THREADS, 0, s->stream, view_of<Y>(y),
															  (const uint8_t *) x.data, row_bytes);
													return ft_cuda_launched("convert");
												});
					   });
}

template <typename F>
static ft_status
with_plain(ft_dtype x, ft_dtype y, ft_dtype type, F f)
{
	if (type == FT_F32)
		return f(type_tag<float>());
	if (type == FT_BF16)
		return f(type_tag<bf16>());
	if (type == FT_F16)
		return f(type_tag<f16>());
	return ft_cuda_unsupported("convert", x, y);
}

ft_status
ft_cuda_convert(ft_stream *s, ft_mat y, ft_mat x)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("convert", "y", y, x.rows, x.cols));
	if (y.rows == 0 || y.cols == 0)
		return FT_OK;
	if (ft_is_quantised(x.dtype))
		return from_blocks(s, y, x);
	return with_plain(x.dtype, y.dtype, x.dtype,
					  [&](auto from)
					  {
						  return with_plain(x.dtype, y.dtype, y.dtype,
											[&](auto to)
											{
												typedef typename decltype(from)::type X;
												typedef typename decltype(to)::type Y;

												FT_LAUNCH((convert_plain<Y, X>), grid_of(y),
														  THREADS, 0, s->stream, view_of<Y>(y),
														  view_of<const X>(x));
												return ft_cuda_launched("convert");
											});
					  });
}

/* --- weights --- */

/* A thread a byte of codes: two values.  Products and sums are rounded apart. */
template <typename Y>
static __global__ void
nf4_values(Y *y, int64_t n, ft_nf4 t)
{
	const float values[16] = FT_NF4_VALUES;
	int64_t i = blockIdx.x * (int64_t) THREADS + threadIdx.x;
	int64_t block = 2 * i / FT_NF4_BLOCK;
	float scale;

	if (2 * i >= n)
		return;
	scale = rounded_product(t.map[t.absmax[block]], t.group[block / FT_NF4_GROUP]) + *t.offset;
	set_value(y[2 * i], values[t.codes[i] >> 4] * scale);
	if (2 * i + 1 < n)
		set_value(y[2 * i + 1], values[t.codes[i] & 15] * scale);
}

static ft_status
from_nf4(ft_stream *s, ft_mat y, ft_mat x)
{
	int64_t n = x.rows * x.cols;
	ft_nf4 t = ft_nf4_parts(x.data, n);

	return with_type("dequantise", y.dtype,
					 [&](auto to)
					 {
						 typedef typename decltype(to)::type Y;

						 FT_LAUNCH((nf4_values<Y>), (unsigned) ft_divide_up(n, 2 * THREADS),
								   THREADS, 0, s->stream, (Y *) y.data, n, t);
						 return ft_cuda_launched("dequantise");
					 });
}

ft_status
ft_cuda_dequantise(ft_stream *s, ft_mat y, const ft_weight *w)
{
	int64_t first = 0;

	FT_TRY(ft_cuda_enter(s));
	if (y.dtype != FT_F32 && y.dtype != FT_BF16)
		return ft_cuda_unsupported("dequantise", y.dtype, y.dtype);
	FT_TRY(ft_cuda_shape("dequantise", "y", y, w->rows, w->cols));
	if (!(w->use & FT_USE_DEQUANTISE))
		return ft_fail(FT_UNSUPPORTED, "dequantise: the weight was not made for it");
	if (y.ld != y.cols)
		return ft_fail(FT_INVALID, "dequantise: rows of %lld values are %lld apart",
					   (long long) y.cols, (long long) y.ld);
	for (int i = 0; i < w->n_parts; i++)
	{
		ft_mat rows = ft_mat_rows(y, first, w->stored[i].rows);

		if (w->stored[i].dtype == FT_NF4)
			FT_TRY(from_nf4(s, rows, w->stored[i]));
		else
			FT_TRY(ft_cuda_convert(s, rows, w->stored[i]));
		first += w->stored[i].rows;
	}
	return FT_OK;
}
