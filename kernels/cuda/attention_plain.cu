/*
 * attention_plain.cu: attention and its gradient in f32 arithmetic, for any head
 * size up to 256: reference numerics, and sizes that have no matrix kernel.
 *
 * A warp owns a row (or, for dK and dV, a key) of one head and goes through what
 * it sees 32 positions at a time: a lane makes the score of one of them, then the
 * lanes share out the columns of the sums.
 */
#include "attention.cuh"

#define WARPS 4
#define THREADS (WARPS * FT_WARP)
#define COLUMNS (FT_MAX_HEAD_DIM / FT_WARP) /* of a sum that a lane keeps */

/* The warp's row as f32 in shared memory. */
template <typename T>
__device__ __forceinline__ void
share_row(float *shared, const T *row, int n)
{
	for (int i = threadIdx.x % FT_WARP; i < n; i += FT_WARP)
		shared[i] = value(row[i]);
	__syncwarp();
}

template <typename T>
__device__ __forceinline__ float
dot(const float *shared, const T *row, int n)
{
	float sum = 0;

	for (int i = 0; i < n; i++)
		sum += shared[i] * value(row[i]);
	return sum;
}

/* sum += weight of lane i · row i, for i < n; rows are ld apart. */
template <typename T>
__device__ __forceinline__ void
add_rows(float (&sum)[COLUMNS], float weight, int n, const T *rows, int64_t ld, int columns)
{
	int lane = threadIdx.x % FT_WARP;

	for (int i = 0; i < n; i++)
	{
		float w = __shfl_sync(FT_ALL_LANES, weight, i);

#pragma unroll
		for (int j = 0; j < COLUMNS; j++)
		{
			if (lane + j * FT_WARP < columns)
				sum[j] += w * value(rows[i * ld + lane + j * FT_WARP]);
		}
	}
}

template <typename T>
__device__ __forceinline__ void
store_columns(T *to, const float (&sum)[COLUMNS], float factor, int columns)
{
	int lane = threadIdx.x % FT_WARP;

#pragma unroll
	for (int j = 0; j < COLUMNS; j++)
	{
		if (lane + j * FT_WARP < columns)
			set_value(to[lane + j * FT_WARP], sum[j] * factor);
	}
}

/* First position that a row of a sequence sees. */
__device__ __forceinline__ int
first_seen(const attention_shape &shape, int begin, int row)
{
	return shape.window > 0 && row - shape.window + 1 > begin ? row - shape.window + 1 : begin;
}

/* --- forward --- */

template <typename T>
static __global__ void
plain_forward(attention_shape shape, view<T> out, float *lse, view<const T> q, view<const T> k,
			  view<const T> v)
{
	__shared__ float shared[WARPS][FT_MAX_HEAD_DIM];
	int warp = threadIdx.x / FT_WARP;
	int lane = threadIdx.x % FT_WARP;
	int row = blockIdx.x * WARPS + warp;
	int head = blockIdx.y;
	int d = shape.head_dim;
	int kv = head / (shape.heads / shape.kv_heads) * d;
	float sum[COLUMNS] = {};
	float max = -INFINITY;
	float total = 0;

	if (row >= q.rows)
		return;
	share_row(shared[warp], q.row(row) + head * d, d);
	for (int key0 = first_seen(
			 shape, shape.starts[sequence_of(shape.starts, shape.n_sequences, row)], row);
		 key0 <= row; key0 += FT_WARP)
	{
		int n = row - key0 + 1 < FT_WARP ? row - key0 + 1 : FT_WARP;
		float score = -INFINITY;
		float largest;
		float correction;
		float weight;

		if (lane < n)
			score = shape.scale * dot(shared[warp], k.row(key0 + lane) + kv, d);
		largest = fmaxf(max, warp_max(score));
		correction = expf(max - largest);
		weight = lane < n ? expf(score - largest) : 0.0f;
		max = largest;
		total = total * correction + warp_sum(weight);
#pragma unroll
		for (int j = 0; j < COLUMNS; j++)
			sum[j] *= correction;
		add_rows(sum, weight, n, v.row(key0) + kv, v.ld, d);
	}
	store_columns(out.row(row) + head * d, sum, 1.0f / total, d);
	if (lane == 0)
		lse[(int64_t) row * shape.heads + head] = max + logf(total);
}

static ft_status
check_head(const ft_attention *a)
{
	if (a->head_dim < 1 || a->head_dim > FT_MAX_HEAD_DIM)
		return ft_fail(FT_UNSUPPORTED, "attention: head size %d is over %d", a->head_dim,
					   FT_MAX_HEAD_DIM);
	return FT_OK;
}

ft_status
ft_cuda_attention_plain(ft_stream *s, const ft_attention *a, ft_mat out, float *lse, ft_mat q,
						ft_mat k, ft_mat v)
{
	dim3 grid((unsigned) ft_divide_up(q.rows, WARPS), (unsigned) a->heads);

	FT_TRY(check_head(a));
	return with_type("attention", q.dtype,
					 [&](auto type)
					 {
						 typedef typename decltype(type)::type T;

						 FT_LAUNCH((plain_forward<T>), grid, THREADS, 0, s->stream,
								   attention_shape_of(a, 0), view_of<T>(out), lse,
								   view_of<const T>(q), view_of<const T>(k), view_of<const T>(v));
						 return ft_cuda_launched("attention");
					 });
}

/* --- backward --- */

template <typename T>
static __global__ void
delta_of_rows(attention_shape shape, float *delta, view<const T> dout, view<const T> out)
{
	int row = blockIdx.x * WARPS + threadIdx.x / FT_WARP;
	int head = blockIdx.y;
	float sum = 0;

	if (row >= out.rows)
		return;
	for (int i = threadIdx.x % FT_WARP; i < shape.head_dim; i += FT_WARP)
		sum += value(dout.row(row)[head * shape.head_dim + i]) *
			   value(out.row(row)[head * shape.head_dim + i]);
	sum = warp_sum(sum);
	if (threadIdx.x % FT_WARP == 0)
		delta[(int64_t) row * shape.heads + head] = sum;
}

ft_status
ft_cuda_attention_delta(ft_stream *s, const ft_attention *a, float *delta, ft_mat dout, ft_mat out)
{
	dim3 grid((unsigned) ft_divide_up(out.rows, WARPS), (unsigned) a->heads);

	return with_type("attention_grad", out.dtype,
					 [&](auto type)
					 {
						 typedef typename decltype(type)::type T;

						 FT_LAUNCH((delta_of_rows<T>), grid, THREADS, 0, s->stream,
								   attention_shape_of(a, 0), delta, view_of<const T>(dout),
								   view_of<const T>(out));
						 return ft_cuda_launched("attention_grad");
					 });
}

template <typename T> struct plain_inputs
{
	view<const T> dout;
	view<const T> q;
	view<const T> k;
	view<const T> v;
	const float *delta;
	const float *lse;
};

template <typename T>
static __global__ void
plain_backward_rows(attention_shape shape, view<T> dq, plain_inputs<T> in)
{
	__shared__ float q_shared[WARPS][FT_MAX_HEAD_DIM];
	__shared__ float dout_shared[WARPS][FT_MAX_HEAD_DIM];
	int warp = threadIdx.x / FT_WARP;
	int lane = threadIdx.x % FT_WARP;
	int row = blockIdx.x * WARPS + warp;
	int head = blockIdx.y;
	int d = shape.head_dim;
	int kv = head / (shape.heads / shape.kv_heads) * d;
	int64_t at = (int64_t) row * shape.heads + head;
	float sum[COLUMNS] = {};

	if (row >= dq.rows)
		return;
	share_row(q_shared[warp], in.q.row(row) + head * d, d);
	share_row(dout_shared[warp], in.dout.row(row) + head * d, d);
	for (int key0 = first_seen(
			 shape, shape.starts[sequence_of(shape.starts, shape.n_sequences, row)], row);
		 key0 <= row; key0 += FT_WARP)
	{
		int n = row - key0 + 1 < FT_WARP ? row - key0 + 1 : FT_WARP;
		float dscore = 0;

		if (lane < n)
		{
			float score = shape.scale * dot(q_shared[warp], in.k.row(key0 + lane) + kv, d);
			float dweight = dot(dout_shared[warp], in.v.row(key0 + lane) + kv, d);

			dscore = expf(score - in.lse[at]) * (dweight - in.delta[at]);
		}
		add_rows(sum, dscore, n, in.k.row(key0) + kv, in.k.ld, d);
	}
	store_columns(dq.row(row) + head * d, sum, shape.scale, d);
}

template <typename T>
static __global__ void
plain_backward_keys(attention_shape shape, view<T> dk, view<T> dv, plain_inputs<T> in)
{
	__shared__ float k_shared[WARPS][FT_MAX_HEAD_DIM];
	__shared__ float v_shared[WARPS][FT_MAX_HEAD_DIM];
	int warp = threadIdx.x / FT_WARP;
	int lane = threadIdx.x % FT_WARP;
	int key = blockIdx.x * WARPS + warp;
	int d = shape.head_dim;
	int kv = blockIdx.y * d;
	int group = shape.heads / shape.kv_heads;
	float sum_k[COLUMNS] = {};
	float sum_v[COLUMNS] = {};
	int end;

	if (key >= dk.rows)
		return;
	end = shape.starts[sequence_of(shape.starts, shape.n_sequences, key) + 1];
	if (shape.window > 0 && key + shape.window < end)
		end = key + shape.window;
	share_row(k_shared[warp], in.k.row(key) + kv, d);
	share_row(v_shared[warp], in.v.row(key) + kv, d);
	for (int head = blockIdx.y * group; head < (int) (blockIdx.y + 1) * group; head++)
	{
		for (int row0 = key; row0 < end; row0 += FT_WARP)
		{
			int n = end - row0 < FT_WARP ? end - row0 : FT_WARP;
			float weight = 0;
			float dscore = 0;

			if (lane < n)
			{
				int64_t at = (int64_t) (row0 + lane) * shape.heads + head;
				float score =
					shape.scale * dot(k_shared[warp], in.q.row(row0 + lane) + head * d, d);
				float dweight = dot(v_shared[warp], in.dout.row(row0 + lane) + head * d, d);

				weight = expf(score - in.lse[at]);
				dscore = weight * (dweight - in.delta[at]);
			}
			add_rows(sum_v, weight, n, in.dout.row(row0) + head * d, in.dout.ld, d);
			add_rows(sum_k, dscore, n, in.q.row(row0) + head * d, in.q.ld, d);
		}
	}
	store_columns(dk.row(key) + kv, sum_k, shape.scale, d);
	store_columns(dv.row(key) + kv, sum_v, 1.0f, d);
}

ft_status
ft_cuda_attention_grad_plain(ft_stream *s, const ft_attention *a, ft_mat dq, ft_mat dk, ft_mat dv,
							 ft_mat dout, ft_mat q, ft_mat k, ft_mat v, const float *delta,
							 const float *lse)
{
	unsigned blocks = (unsigned) ft_divide_up(q.rows, WARPS);

	FT_TRY(check_head(a));
	return with_type(
		"attention_grad", q.dtype,
		[&](auto type)
		{
			typedef typename decltype(type)::type T;
			plain_inputs<T> in = {view_of<const T>(dout),
								  view_of<const T>(q),
								  view_of<const T>(k),
								  view_of<const T>(v),
								  delta,
								  lse};

			FT_LAUNCH((plain_backward_rows<T>), dim3(blocks, (unsigned) a->heads), THREADS, 0,
					  s->stream, attention_shape_of(a, 0), view_of<T>(dq), in);
			FT_TRY(ft_cuda_launched("attention_grad"));
			FT_LAUNCH((plain_backward_keys<T>), dim3(blocks, (unsigned) a->kv_heads), THREADS, 0,
					  s->stream, attention_shape_of(a, 0), view_of<T>(dk), view_of<T>(dv), in);
			return ft_cuda_launched("attention_grad");
		});
}
