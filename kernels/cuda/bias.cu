/*
 * bias.cu: adding a bias to every row, and its gradient, the sum of the rows.
 */
#include "intrinsics.cuh"

#define THREADS 256
#define CHUNK 1024 /* columns that a block of add_bias handles */
#define COLUMNS 32 /* that a block of sum_rows sums */
#define ROW_LANES (THREADS / COLUMNS)

template <typename T>
static __global__ void
add_to_rows(view<T> y, const float *bias)
{
	int64_t end = ft_min64((blockIdx.x + 1) * (int64_t) CHUNK, y.cols);

	for (int64_t i = blockIdx.y; i < y.rows; i += gridDim.y)
	{
		T *row = y.row(i);

		for (int64_t j = blockIdx.x * (int64_t) CHUNK + threadIdx.x; j < end; j += THREADS)
			set_value(row[j], value(row[j]) + bias[j]);
	}
}

ft_status
ft_cuda_add_bias(ft_stream *s, ft_mat y, const float *bias)
{
	dim3 grid((unsigned) ft_divide_up(y.cols, CHUNK), (unsigned) ft_min64(y.rows, FT_MAX_GRID_Y));

	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("add_bias", "y", y, y.rows, y.cols));
	if (y.rows == 0 || y.cols == 0)
		return FT_OK;
	return with_type("add_bias", y.dtype,
					 [&](auto type)
					 {
						 typedef typename decltype(type)::type T;

						 FT_LAUNCH((add_to_rows<T>), grid, THREADS, 0, s->stream, view_of<T>(y),
								   bias);
						 return ft_cuda_launched("add_bias");
					 });
}

/* A block COLUMNS columns, its ROW_LANES threads of a column each every ROW_LANES-th row. */
template <typename T>
static __global__ void
sum_columns(float *total, view<const T> x)
{
	__shared__ float sums[ROW_LANES][COLUMNS];
	int column = threadIdx.x % COLUMNS;
	int lane = threadIdx.x / COLUMNS;
	int64_t j = blockIdx.x * (int64_t) COLUMNS + column;
	float sum = 0;

	if (j < x.cols)
	{
		for (int64_t i = lane; i < x.rows; i += ROW_LANES)
			sum += value(x.row(i)[j]);
	}
	sums[lane][column] = sum;
	__syncthreads();
	if (lane != 0 || j >= x.cols)
		return;
	for (int i = 1; i < ROW_LANES; i++)
		sum += sums[i][column];
	total[j] += sum;
}

ft_status
ft_cuda_sum_rows(ft_stream *s, float *sum, ft_mat x)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("sum_rows", "x", x, x.rows, x.cols));
	if (x.rows == 0 || x.cols == 0)
		return FT_OK;
	return with_type("sum_rows", x.dtype,
					 [&](auto type)
					 {
						 typedef typename decltype(type)::type T;

						 FT_LAUNCH((sum_columns<T>), (unsigned) ft_divide_up(x.cols, COLUMNS),
								   THREADS, 0, s->stream, sum, view_of<const T>(x));
						 return ft_cuda_launched("sum_rows");
					 });
}
