/*
 * attention_backward.cu: the gradient of attention_forward.cu.
 *
 * With P = softmax of the scaled scores, remade from the saved log-sum, and
 * delta[t] = Σ dout[t] · out[t] (Dao, "FlashAttention-2", 2023):
 *
 *     dV = Pᵀ · dout,   dS = P ∘ (dout · Vᵀ − delta),   dQ = s · dS · K,   dK = s · dSᵀ · Q
 *
 * Two kernels, one that owns rows and makes dQ, one that owns keys and makes dK
 * and dV over all query heads of its group: scores are computed twice, and no
 * sum depends on which block came first.
 */
#include "attention.cuh"

#define TILE 64
#define WARPS (TILE / 16)
#define THREADS (WARPS * FT_WARP)

struct gradient_inputs
{
	view<const bf16> dout;
	view<const bf16> q;
	view<const bf16> k;
	view<const bf16> v;
	const float *delta; /* [T, H] */
	const float *lse;   /* [T, H] */
	bool aligned;
};

/* --- dQ --- */

template <int D> struct rows_shared
{
	tile_row<D> q[TILE];
	tile_row<D> dout[TILE];
	tile_row<D> k[TILE];
	tile_row<D> v[TILE];
};

/* score becomes dS / s. */
template <int N>
__device__ __forceinline__ void
score_gradient(float (&score)[N][4], const float (&dweight)[N][4], const float (&lse)[2],
			   const float (&delta)[2], int row, int key, const attention_shape &shape)
{
#pragma unroll
	for (int n = 0; n < N; n++)
	{
#pragma unroll
		for (int i = 0; i < 4; i++)
		{
			float weight = exp2f(score[n][i] * shape.scale * FT_LOG2E - lse[i / 2]);

			score[n][i] = sees(row + i / 2 * 8, key + n * 8 + i % 2, shape.window)
							  ? weight * (dweight[n][i] - delta[i / 2])
							  : 0.0f;
		}
	}
}

template <int D>
static __global__ void
__launch_bounds__(THREADS) backward_rows(attention_shape shape, view<bf16> dq, gradient_inputs in)
{
	FT_DYNAMIC_SHARED(memory);
	rows_shared<D> *shared = (rows_shared<D> *) memory;
	int warp = threadIdx.x / FT_WARP;
	int g = threadIdx.x % FT_WARP / 4;
	int c = threadIdx.x % 4;
	int sequence = blockIdx.x / shape.tiles;
	int first = blockIdx.x % shape.tiles * TILE;
	int head = blockIdx.y;
	int kv_head = head / (shape.heads / shape.kv_heads);
	int begin = shape.starts[sequence];
	int length = shape.starts[sequence + 1] - begin;
	float sum[D / 8][4] = {};
	float lse[2];
	float delta[2];
	int low;

	if (first >= length)
		return;
	load_tile<D, TILE, THREADS>(shared->q, in.q.row(begin + first) + head * D, in.q.ld, in.aligned,
								length - first);
	load_tile<D, TILE, THREADS>(shared->dout, in.dout.row(begin + first) + head * D, in.dout.ld,
								in.aligned, length - first);
	for (int half = 0; half < 2; half++)
	{
		int row = first + warp * 16 + g + half * 8;
		int64_t at = (int64_t) (begin + row) * shape.heads + head;

		lse[half] = row < length ? in.lse[at] * FT_LOG2E : 0.0f;
		delta[half] = row < length ? in.delta[at] : 0.0f;
	}
	low = shape.window > 0 && first >= shape.window ? (first - shape.window + 1) / TILE * TILE : 0;
	for (int key0 = low; key0 < first + TILE && key0 < length; key0 += TILE)
	{
		float score[TILE / 8][4];
		float dweight[TILE / 8][4];

		__syncthreads();
		load_tile<D, TILE, THREADS>(shared->k, in.k.row(begin + key0) + kv_head * D, in.k.ld,
									in.aligned, length - key0);
		load_tile<D, TILE, THREADS>(shared->v, in.v.row(begin + key0) + kv_head * D, in.v.ld,
									in.aligned, length - key0);
		__syncthreads();
		multiply_rows<D>(score, shared->q + warp * 16, shared->k);
		multiply_rows<D>(dweight, shared->dout + warp * 16, shared->v);
		score_gradient(score, dweight, lse, delta, first + warp * 16 + g, key0 + c * 2, shape);
		accumulate_rows<D>(sum, score, shared->k);
	}
	first += warp * 16;
	store_rows<D>(dq.row(begin + first) + head * D, dq.ld, sum, shape.scale, shape.scale,
				  length - first);
}

/* --- dK and dV --- */

/* Rows at a time: what the registers of a warp leave room for. */
template <int D> struct keys_tile
{
	static constexpr int rows = D == 128 ? 32 : 64;
};

template <int D> struct keys_shared
{
	tile_row<D> k[TILE];
	tile_row<D> v[TILE];
	tile_row<D> q[keys_tile<D>::rows];
	tile_row<D> dout[keys_tile<D>::rows];
	float lse[keys_tile<D>::rows];
	float delta[keys_tile<D>::rows];
};

/* Fragments are [keys, rows] here: score becomes Pᵀ, dweight becomes dSᵀ / s. */
template <int N>
__device__ __forceinline__ void
transposed_gradient(float (&score)[N][4], float (&dweight)[N][4], const float *lse,
					const float *delta, int key, int row0, int length, const attention_shape &shape)
{
	int column = threadIdx.x % 4 * 2;

#pragma unroll
	for (int n = 0; n < N; n++)
	{
#pragma unroll
		for (int i = 0; i < 4; i++)
		{
			int at = n * 8 + column + i % 2;
			bool seen = row0 + at < length && sees(row0 + at, key + i / 2 * 8, shape.window);
			float weight = exp2f(score[n][i] * shape.scale * FT_LOG2E - lse[at]);

			score[n][i] = seen ? weight : 0.0f;
			dweight[n][i] = seen ? weight * (dweight[n][i] - delta[at]) : 0.0f;
		}
	}
}

template <int D>
static __global__ void
__launch_bounds__(THREADS)
	backward_keys(attention_shape shape, view<bf16> dk, view<bf16> dv, gradient_inputs in)
{
	FT_DYNAMIC_SHARED(memory);
	constexpr int ROWS = keys_tile<D>::rows;
	keys_shared<D> *shared = (keys_shared<D> *) memory;
	int warp = threadIdx.x / FT_WARP;
	int g = threadIdx.x % FT_WARP / 4;
	int sequence = blockIdx.x / shape.tiles;
	int first = blockIdx.x % shape.tiles * TILE;
	int kv_head = blockIdx.y;
	int group = shape.heads / shape.kv_heads;
	int begin = shape.starts[sequence];
	int length = shape.starts[sequence + 1] - begin;
	float sum_k[D / 8][4] = {};
	float sum_v[D / 8][4] = {};
	int end;

	if (first >= length)
		return;
	load_tile<D, TILE, THREADS>(shared->k, in.k.row(begin + first) + kv_head * D, in.k.ld,
								in.aligned, length - first);
	load_tile<D, TILE, THREADS>(shared->v, in.v.row(begin + first) + kv_head * D, in.v.ld,
								in.aligned, length - first);
	/* Rows beyond this see none of the keys. */
	end = shape.window > 0 && first + TILE - 1 + shape.window < length
			  ? first + TILE - 1 + shape.window
			  : length;
	for (int i = 0; i < group; i++)
	{
		int head = kv_head * group + i;

		for (int row0 = first; row0 < end; row0 += ROWS)
		{
			float score[ROWS / 8][4];
			float dweight[ROWS / 8][4];

			__syncthreads();
			load_tile<D, ROWS, THREADS>(shared->q, in.q.row(begin + row0) + head * D, in.q.ld,
										in.aligned, length - row0);
			load_tile<D, ROWS, THREADS>(shared->dout, in.dout.row(begin + row0) + head * D,
										in.dout.ld, in.aligned, length - row0);
			for (int r = threadIdx.x; r < ROWS; r += THREADS)
			{
				int64_t at = (int64_t) (begin + row0 + r) * shape.heads + head;

				shared->lse[r] = row0 + r < length ? in.lse[at] * FT_LOG2E : 0.0f;
				shared->delta[r] = row0 + r < length ? in.delta[at] : 0.0f;
			}
			__syncthreads();
			multiply_rows<D>(score, shared->k + warp * 16, shared->q);
			multiply_rows<D>(dweight, shared->v + warp * 16, shared->dout);
			transposed_gradient(score, dweight, shared->lse, shared->delta, first + warp * 16 + g,
								row0, length, shape);
			accumulate_rows<D>(sum_v, score, shared->dout);
			accumulate_rows<D>(sum_k, dweight, shared->q);
		}
	}
	first += warp * 16;
	store_rows<D>(dk.row(begin + first) + kv_head * D, dk.ld, sum_k, shape.scale, shape.scale,
				  length - first);
	store_rows<D>(dv.row(begin + first) + kv_head * D, dv.ld, sum_v, 1.0f, 1.0f, length - first);
}

/* --- launching --- */

static ft_status
allow_shared(const void *kernel, size_t bytes)
{
	return ft_cuda_check(
		cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) bytes),
		"attention_grad");
}

template <int D>
static ft_status
launch(ft_stream *s, const ft_attention *a, ft_mat dq, ft_mat dk, ft_mat dv,
	   const gradient_inputs &in)
{
	attention_shape shape = attention_shape_of(a, TILE);
	unsigned tiles = (unsigned) (shape.tiles * shape.n_sequences);
	auto rows = backward_rows<D>;
	auto keys = backward_keys<D>;

	FT_TRY(allow_shared((const void *) rows, sizeof(rows_shared<D>)));
	FT_TRY(allow_shared((const void *) keys, sizeof(keys_shared<D>)));
	FT_LAUNCH(rows, dim3(tiles, (unsigned) shape.heads), THREADS, sizeof(rows_shared<D>), s->stream,
			  shape, view_of<bf16>(dq), in);
	FT_TRY(ft_cuda_launched("attention_grad"));
	FT_LAUNCH(keys, dim3(tiles, (unsigned) shape.kv_heads), THREADS, sizeof(keys_shared<D>),
			  s->stream, shape, view_of<bf16>(dk), view_of<bf16>(dv), in);
	return ft_cuda_launched("attention_grad");
}

static ft_status
check(const ft_attention *a, ft_mat q, const ft_mat *wide, const ft_mat *narrow)
{
	int64_t heads = (int64_t) a->heads * a->head_dim;
	int64_t kv_heads = (int64_t) a->kv_heads * a->head_dim;

	if (a->kv_heads < 1 || a->heads % a->kv_heads != 0)
		return ft_fail(FT_INVALID, "attention_grad: %d heads over %d key/value heads", a->heads,
					   a->kv_heads);
	if (a->n_sequences < 0 || a->starts_host[0] != 0 || a->starts_host[a->n_sequences] != q.rows)
		return ft_fail(FT_INVALID, "attention_grad: %d sequences end at row %d of %lld",
					   a->n_sequences, a->starts_host[a->n_sequences], (long long) q.rows);
	for (int i = 0; i < 4; i++)
	{
		FT_TRY(ft_cuda_shape("attention_grad", "a matrix of query heads", wide[i], q.rows, heads));
		FT_TRY(ft_cuda_shape("attention_grad", "a matrix of key/value heads", narrow[i], q.rows,
							 kv_heads));
		if (wide[i].dtype != q.dtype)
			return ft_cuda_unsupported("attention_grad", q.dtype, wide[i].dtype);
		if (narrow[i].dtype != q.dtype)
			return ft_cuda_unsupported("attention_grad", q.dtype, narrow[i].dtype);
	}
	return FT_OK;
}

ft_status
ft_cuda_attention_grad(ft_stream *s, const ft_attention *a, ft_mat dq, ft_mat dk, ft_mat dv,
					   ft_mat dout, ft_mat q, ft_mat k, ft_mat v, ft_mat out, const float *lse)
{
	const ft_mat wide[] = {dq, dout, q, out};
	const ft_mat narrow[] = {dk, dv, k, v};
	void *delta;

	FT_TRY(ft_cuda_enter(s));
	FT_TRY(check(a, q, wide, narrow));
	if (q.rows == 0 || a->n_sequences == 0)
		return FT_OK;
	FT_TRY(ft_cuda_scratch(s, (size_t) q.rows * (size_t) a->heads * sizeof(float), &delta));
	FT_TRY(ft_cuda_attention_delta(s, a, (float *) delta, dout, out));
	if (q.dtype == FT_BF16 && s->device->numerics == FT_NUMERICS_FAST &&
		(a->head_dim == 64 || a->head_dim == 128))
	{
		gradient_inputs in = {view_of<const bf16>(dout),
							  view_of<const bf16>(q),
							  view_of<const bf16>(k),
							  view_of<const bf16>(v),
							  (const float *) delta,
							  lse,
							  is_aligned(dout) && is_aligned(q) && is_aligned(k) && is_aligned(v)};

		return a->head_dim == 64 ? launch<64>(s, a, dq, dk, dv, in)
								 : launch<128>(s, a, dq, dk, dv, in);
	}
	return ft_cuda_attention_grad_plain(s, a, dq, dk, dv, dout, q, k, v, (const float *) delta,
										lse);
}
