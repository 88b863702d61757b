/*
 * attention_forward.cu: causal attention inside packed sequences, by bf16 matrix
 * instructions, without ever forming the matrix of scores (Dao,
 * "FlashAttention-2", 2023).  Head sizes 64 and 128; all else is
 * attention_plain.cu's.
 *
 * A block handles TILE rows of one sequence and one query head, each of its four
 * warps 16 of them, and goes through the keys TILE at a time.
 */
#include "attention.cuh"

#define TILE 64
#define WARPS (TILE / 16)
#define THREADS (WARPS * FT_WARP)

template <int D> struct forward_shared
{
	tile_row<D> q[TILE];
	tile_row<D> k[TILE];
	tile_row<D> v[TILE];
};

template <int D>
static __global__ void
__launch_bounds__(THREADS)
	forward(attention_shape shape, view<bf16> out, float *lse, view<const bf16> q,
			view<const bf16> k, view<const bf16> v, bool aligned)
{
	FT_DYNAMIC_SHARED(memory);
	forward_shared<D> *shared = (forward_shared<D> *) memory;
	int warp = threadIdx.x / FT_WARP;
	int g = threadIdx.x % FT_WARP / 4;
	int c = threadIdx.x % 4;
	int sequence = blockIdx.x / shape.tiles;
	int first = blockIdx.x % shape.tiles * TILE;
	int head = blockIdx.y;
	int kv_head = head / (shape.heads / shape.kv_heads);
	int begin = shape.starts[sequence];
	int length = shape.starts[sequence + 1] - begin;
	float scale = shape.scale * FT_LOG2E;
	float sum[D / 8][4] = {};
	float max[2] = {-INFINITY, -INFINITY};
	float total[2] = {0, 0};
	int low;

	if (first >= length)
		return;
	load_tile<D, TILE, THREADS>(shared->q, q.row(begin + first) + head * D, q.ld, aligned,
								length - first);
	low = shape.window > 0 && first >= shape.window ? (first - shape.window + 1) / TILE * TILE : 0;
	for (int key0 = low; key0 < first + TILE && key0 < length; key0 += TILE)
	{
		float score[TILE / 8][4];
		float correction[2];

		__syncthreads();
		load_tile<D, TILE, THREADS>(shared->k, k.row(begin + key0) + kv_head * D, k.ld, aligned,
									length - key0);
		load_tile<D, TILE, THREADS>(shared->v, v.row(begin + key0) + kv_head * D, v.ld, aligned,
									length - key0);
		__syncthreads();
		multiply_rows<D>(score, shared->q + warp * 16, shared->k);
#pragma unroll
		for (int n = 0; n < TILE / 8; n++)
		{
#pragma unroll
			for (int i = 0; i < 4; i++)
			{
				int row = first + warp * 16 + g + i / 2 * 8;
				int key = key0 + n * 8 + c * 2 + i % 2;

				score[n][i] = sees(row, key, shape.window) ? score[n][i] * scale : -INFINITY;
			}
		}
		softmax_step(score, max, total, correction);
#pragma unroll
		for (int n = 0; n < D / 8; n++)
		{
#pragma unroll
			for (int i = 0; i < 4; i++)
				sum[n][i] *= correction[i / 2];
		}
		accumulate_rows<D>(sum, score, shared->v);
	}
	total[0] = quad_sum(total[0]);
	total[1] = quad_sum(total[1]);
	first += warp * 16;
	store_rows<D>(out.row(begin + first) + head * D, out.ld, sum, 1.0f / total[0], 1.0f / total[1],
				  length - first);
	for (int half = 0; half < 2; half++)
	{
		int row = first + g + half * 8;

		if (c == 0 && row < length)
			lse[(int64_t) (begin + row) * shape.heads + head] =
				(max[half] + log2f(total[half])) * FT_LN2;
	}
}

template <int D>
static ft_status
launch(ft_stream *s, const ft_attention *a, ft_mat out, float *lse, ft_mat q, ft_mat k, ft_mat v)
{
	attention_shape shape = attention_shape_of(a, TILE);
	dim3 grid((unsigned) (shape.tiles * shape.n_sequences), (unsigned) shape.heads);
	size_t bytes = sizeof(forward_shared<D>);
	bool aligned = is_aligned(q) && is_aligned(k) && is_aligned(v);
	auto kernel = forward<D>;

	FT_TRY(ft_cuda_check(cudaFuncSetAttribute((const void *) kernel,
											  cudaFuncAttributeMaxDynamicSharedMemorySize,
											  (int) bytes),
						 "attention"));
	FT_LAUNCH(kernel, grid, THREADS, bytes, s->stream, shape, view_of<bf16>(out), lse,
			  view_of<const bf16>(q), view_of<const bf16>(k), view_of<const bf16>(v), aligned);
	return ft_cuda_launched("attention");
}

static ft_status
check(const ft_attention *a, ft_mat out, ft_mat q, ft_mat k, ft_mat v)
{
	int64_t wide = (int64_t) a->heads * a->head_dim;
	int64_t narrow = (int64_t) a->kv_heads * a->head_dim;

	FT_TRY(ft_cuda_shape("attention", "q", q, q.rows, wide));
	FT_TRY(ft_cuda_shape("attention", "k", k, q.rows, narrow));
	FT_TRY(ft_cuda_shape("attention", "v", v, q.rows, narrow));
	FT_TRY(ft_cuda_shape("attention", "out", out, q.rows, wide));
	FT_TRY(ft_cuda_type("attention", "k", k, q.dtype));
	FT_TRY(ft_cuda_type("attention", "v", v, q.dtype));
	FT_TRY(ft_cuda_type("attention", "out", out, q.dtype));
	if (a->kv_heads < 1 || a->heads % a->kv_heads != 0)
		return ft_fail(FT_INVALID, "attention: %d heads over %d key/value heads", a->heads,
					   a->kv_heads);
	if (a->n_sequences < 0 || a->starts_host[0] != 0 || a->starts_host[a->n_sequences] != q.rows)
		return ft_fail(FT_INVALID, "attention: %d sequences end at row %d of %lld", a->n_sequences,
					   a->starts_host[a->n_sequences], (long long) q.rows);
	return FT_OK;
}

ft_status
ft_cuda_attention(ft_stream *s, const ft_attention *a, ft_mat out, float *lse, ft_mat q, ft_mat k,
				  ft_mat v)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(check(a, out, q, k, v));
	if (q.rows == 0 || a->n_sequences == 0)
		return FT_OK;
	if (q.dtype == FT_BF16 && s->device->numerics == FT_NUMERICS_FAST)
	{
		if (a->head_dim == 64)
			return launch<64>(s, a, out, lse, q, k, v);
		if (a->head_dim == 128)
			return launch<128>(s, a, out, lse, q, k, v);
	}
	return ft_cuda_attention_plain(s, a, out, lse, q, k, v);
}
