/*
 * lora.cu: y[row, column..] += scale · (x[row] · aᵀ) · bᵀ for runs of rows that
 * share an adapter: all adapters of a batch in one launch.
 *
 * A block handles ROWS rows of a segment and OUT_CHUNK of its columns.  It first
 * makes u = x · aᵀ for its rows in shared memory; that is repeated for every
 * chunk of columns, which costs less than a second launch and a round through
 * memory.  A warp sums one u over its lanes, then through a fixed tree, so a
 * row's result does not depend on what else is in the batch.
 */
#include "intrinsics.cuh"

#define THREADS 256
#define WARPS (THREADS / FT_WARP)
#define ROWS 8
#define OUT_CHUNK 1024
#define MAX_RANK 512
#define MAX_SEGMENTS 55 /* that fit into a launch's 4 KiB of arguments */

struct segment_batch
{
	int n;
	ft_lora_segment segments[MAX_SEGMENTS];
};

static_assert(sizeof(segment_batch) <= 3584, "a launch's arguments are limited to 4 KiB");

/* Value i of a segment's matrix. */
static __device__ inline float
weight(const ft_lora_segment &segment, const void *matrix, int64_t i)
{
	return segment.dtype == FT_BF16 ? value(((const bf16 *) matrix)[i])
									: ((const float *) matrix)[i];
}

template <typename Y, typename X>
static __global__ void
add_segments(view<Y> y, view<const X> x, segment_batch batch)
{
	FT_DYNAMIC_SHARED(memory);
	const ft_lora_segment &segment = batch.segments[blockIdx.z];
	float(*u)[MAX_RANK] = (float(*)[MAX_RANK]) memory;
	int warp = threadIdx.x / FT_WARP;
	int lane = threadIdx.x % FT_WARP;
	int64_t first = blockIdx.x * (int64_t) ROWS;
	int64_t column = blockIdx.y * (int64_t) OUT_CHUNK;
	int rows;

	if (first >= segment.rows || column >= segment.out)
		return;
	rows = (int) ft_min64(ROWS, segment.rows - first);
	for (int i = warp; i < rows * segment.rank; i += WARPS)
	{
		const X *from = x.row(segment.row + first + i / segment.rank);
		int64_t a = i % segment.rank * x.cols;
		float sum = 0;

		for (int64_t k = lane; k < x.cols; k += FT_WARP)
			sum += value(from[k]) * weight(segment, segment.a, a + k);
		sum = warp_sum(sum);
		if (lane == 0)
			u[i / segment.rank][i % segment.rank] = sum * segment.scale;
	}
	__syncthreads();
	for (int64_t j = column + threadIdx.x; j < ft_min64(column + OUT_CHUNK, segment.out);
		 j += THREADS)
	{
		for (int i = 0; i < rows; i++)
		{
			Y *to = y.row(segment.row + first + i) + segment.column + j;
			float sum = 0;

			for (int r = 0; r < segment.rank; r++)
				sum += u[i][r] * weight(segment, segment.b, j * segment.rank + r);
			set_value(*to, value(*to) + sum);
		}
	}
}

static ft_status
check_segment(const ft_lora_segment *segment, ft_mat y)
{
	if (segment->row < 0 || segment->rows < 0 || segment->row + segment->rows > y.rows ||
		segment->column < 0 || segment->out < 0 || segment->column + segment->out > y.cols)
		return ft_fail(
			FT_INVALID, "lora: rows %lld + %lld, columns %lld + %lld are outside [%lld, %lld]",
			(long long) segment->row, (long long) segment->rows, (long long) segment->column,
			(long long) segment->out, (long long) y.rows, (long long) y.cols);
	if (segment->rank < 1 || segment->rank > MAX_RANK)
		return ft_fail(FT_UNSUPPORTED, "lora: rank %d is not in 1 … %d", segment->rank, MAX_RANK);
	if (segment->dtype != FT_F32 && segment->dtype != FT_BF16)
		return ft_fail(FT_UNSUPPORTED, "lora: an adapter of type %s is not supported",
					   ft_dtype_get(segment->dtype)->name);
	return FT_OK;
}

static ft_status
launch(ft_stream *s, ft_mat y, ft_mat x, const segment_batch &batch)
{
	int64_t rows = 0;
	int64_t out = 0;
	dim3 grid;

	for (int i = 0; i < batch.n; i++)
	{
		if (batch.segments[i].rows > rows)
			rows = batch.segments[i].rows;
		if (batch.segments[i].out > out)
			out = batch.segments[i].out;
	}
	if (rows == 0 || out == 0)
		return FT_OK;
	grid = dim3((unsigned) ft_divide_up(rows, ROWS), (unsigned) ft_divide_up(out, OUT_CHUNK),
				(unsigned) batch.n);
	return with_types("lora", y.dtype, x.dtype,
					  [&](auto ty, auto tx)
					  {
						  typedef typename decltype(ty)::type Y;
						  typedef typename decltype(tx)::type X;

						  FT_LAUNCH((add_segments<Y, X>), grid, THREADS,
									ROWS * MAX_RANK * sizeof(float), s->stream, view_of<Y>(y),
									view_of<const X>(x), batch);
						  return ft_cuda_launched("lora");
					  });
}

ft_status
ft_cuda_lora(ft_stream *s, ft_mat y, ft_mat x, const ft_lora_segment *segments, int n)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("lora", "x", x, y.rows, x.cols));
	for (int done = 0; done < n;)
	{
		segment_batch batch;

		batch.n = 0;
		for (; done < n && batch.n < MAX_SEGMENTS; done++)
		{
			FT_TRY(check_segment(&segments[done], y));
			batch.segments[batch.n++] = segments[done];
		}
		FT_TRY(launch(s, y, x, batch));
	}
	return FT_OK;
}
