/*
 * attention_paged.cu: the paged cache of keys and values, and attention over it,
 * row-fixed, for decoding and prefill alike.
 *
 * A cache block of one layer is [G][16][D].  The matrix kernel handles 16 rows of
 * a product at a time: the query heads of one key/value head for one or several
 * tokens of a sequence.  Its warps share the cache blocks, warp w taking those
 * whose number in the sequence is w modulo WARPS, and their softmaxes are merged
 * in order: what a row sums depends on its own position only, and a cache block
 * that a row sees nothing of leaves the row's sums exactly as they were.
 *
 * Keys and values go straight from memory into fragments.  Lane (g, c) reads
 * columns [8 c, 8 c + 8) of 32 of key g, the fragments' k being these in another
 * order, and columns [8 g, 8 g + 8) of 64 of the values, the fragments' columns
 * being those in another order.
 */
#include "attention.cuh"

#define WARPS 4
#define THREADS (WARPS * FT_WARP)
#define STORE_THREADS 128

/* An ft_paged_batch and a cache as a kernel takes them. */
struct paged_shape
{
	int n;
	int max_blocks;
	const int32_t *row_start;
	const int32_t *context;
	const int32_t *blocks;
	int heads;
	int kv_heads;
	int head_dim;
	int window;
	float scale;
};

static paged_shape
paged_shape_of(const ft_kv_layer *cache, const ft_paged_batch *batch, int heads, int window,
			   float scale)
{
	return paged_shape{batch->n, batch->max_blocks, batch->row_start, batch->context, batch->blocks,
					   heads,    cache->kv_heads,   cache->head_dim,  window,         scale};
}

/* Where the values of a position of a sequence begin. */
__device__ __forceinline__ int64_t
cache_row(const paged_shape &shape, int sequence, int position, int kv_head)
{
	int64_t block = shape.blocks[(int64_t) sequence * shape.max_blocks + position / FT_KV_BLOCK];

	return ((block * shape.kv_heads + kv_head) * FT_KV_BLOCK + position % FT_KV_BLOCK) *
		   shape.head_dim;
}

static ft_status
check(const char *op, const ft_kv_layer *cache, const ft_paged_batch *batch)
{
	if (cache->dtype != FT_F32 && cache->dtype != FT_BF16)
		return ft_cuda_unsupported(op, cache->dtype, FT_F32);
	if (cache->kv_heads < 1 || cache->head_dim < 1 || batch->n < 0 || batch->n > FT_MAX_GRID_Y ||
		batch->max_context > (int64_t) batch->max_blocks * FT_KV_BLOCK)
		return ft_fail(FT_INVALID, "%s: %d sequences with context %d in %d blocks, %d heads of %d",
					   op, batch->n, batch->max_context, batch->max_blocks, cache->kv_heads,
					   cache->head_dim);
	return FT_OK;
}

/* --- storing --- */

template <typename C, typename X>
static __global__ void
store(paged_shape shape, C *cache_k, C *cache_v, view<const X> k, view<const X> v)
{
	int row = blockIdx.x;
	int sequence = sequence_of(shape.row_start, shape.n, row);
	int position = shape.context[sequence] + row - shape.row_start[sequence];

	for (int i = threadIdx.x; i < (int) k.cols; i += STORE_THREADS)
	{
		int64_t to = cache_row(shape, sequence, position, i / shape.head_dim) + i % shape.head_dim;

		set_value(cache_k[to], value(k.row(row)[i]));
		set_value(cache_v[to], value(v.row(row)[i]));
	}
}

ft_status
ft_cuda_kv_store(ft_stream *s, const ft_kv_layer *cache, const ft_paged_batch *batch, ft_mat k,
				 ft_mat v)
{
	int64_t cols = (int64_t) cache->kv_heads * cache->head_dim;

	FT_TRY(ft_cuda_enter(s));
	FT_TRY(check("kv_store", cache, batch));
	FT_TRY(ft_cuda_shape("kv_store", "k", k, k.rows, cols));
	FT_TRY(ft_cuda_shape("kv_store", "v", v, k.rows, cols));
	if (k.dtype != v.dtype)
		return ft_cuda_unsupported("kv_store", k.dtype, v.dtype);
	if (k.rows == 0 || batch->n == 0)
		return FT_OK;
	return with_types("kv_store", cache->dtype, k.dtype,
					  [&](auto type_c, auto type_x)
					  {
						  typedef typename decltype(type_c)::type C;
						  typedef typename decltype(type_x)::type X;

						  FT_LAUNCH((store<C, X>), (unsigned) k.rows, STORE_THREADS, 0, s->stream,
									paged_shape_of(cache, batch, 0, 0, 0), (C *) cache->k,
									(C *) cache->v, view_of<const X>(k), view_of<const X>(v));
						  return ft_cuda_launched("kv_store");
					  });
}

/* --- any type and head size --- */

/* A warp a row and head, as in attention_plain.cu. */
template <typename Q, typename C>
static __global__ void
paged_plain(paged_shape shape, ft_mat out, view<const Q> q, const C *cache_k, const C *cache_v)
{
	__shared__ float shared[WARPS][FT_MAX_HEAD_DIM];
	int warp = threadIdx.x / FT_WARP;
	int lane = threadIdx.x % FT_WARP;
	int row = blockIdx.x * WARPS + warp;
	int head = blockIdx.y;
	int kv_head = head / (shape.heads / shape.kv_heads);
	int d = shape.head_dim;
	float sum[FT_MAX_HEAD_DIM / FT_WARP] = {};
	float max = -INFINITY;
	float total = 0;
	int sequence;
	int position;

	if (row >= q.rows)
		return;
	sequence = sequence_of(shape.row_start, shape.n, row);
	position = shape.context[sequence] + row - shape.row_start[sequence];
	for (int i = lane; i < d; i += FT_WARP)
		shared[warp][i] = value(q.row(row)[head * d + i]);
	__syncwarp();
	for (int key0 = shape.window > 0 && position >= shape.window ? position - shape.window + 1 : 0;
		 key0 <= position; key0 += FT_WARP)
	{
		int n = position - key0 + 1 < FT_WARP ? position - key0 + 1 : FT_WARP;
		float score = -INFINITY;
		float correction;
		float weight;
		float largest;

		if (lane < n)
		{
			const C *key = cache_k + cache_row(shape, sequence, key0 + lane, kv_head);

			score = 0;
			for (int i = 0; i < d; i++)
				score += shared[warp][i] * value(key[i]);
			score *= shape.scale;
		}
		largest = fmaxf(max, warp_max(score));
		correction = expf(max - largest);
		weight = lane < n ? expf(score - largest) : 0.0f;
		max = largest;
		total = total * correction + warp_sum(weight);
#pragma unroll
		for (int j = 0; j < FT_MAX_HEAD_DIM / FT_WARP; j++)
			sum[j] *= correction;
		for (int i = 0; i < n; i++)
		{
			const C *from = cache_v + cache_row(shape, sequence, key0 + i, kv_head);
			float w = __shfl_sync(FT_ALL_LANES, weight, i);

#pragma unroll
			for (int j = 0; j < FT_MAX_HEAD_DIM / FT_WARP; j++)
			{
				if (lane + j * FT_WARP < d)
					sum[j] += w * value(from[lane + j * FT_WARP]);
			}
		}
	}
#pragma unroll
	for (int j = 0; j < FT_MAX_HEAD_DIM / FT_WARP; j++)
	{
		int64_t to = row * out.ld + head * d + lane + j * FT_WARP;

		if (lane + j * FT_WARP >= d)
			continue;
		if (out.dtype == FT_BF16)
			set_value(((bf16 *) out.data)[to], sum[j] / total);
		else
			((float *) out.data)[to] = sum[j] / total;
	}
}

static ft_status
launch_plain(ft_stream *s, const paged_shape &shape, ft_mat out, ft_mat q, const ft_kv_layer *cache)
{
	dim3 grid((unsigned) ft_divide_up(q.rows, WARPS), (unsigned) shape.heads);

	if (shape.head_dim > FT_MAX_HEAD_DIM)
		return ft_fail(FT_UNSUPPORTED, "attention_paged: head size %d is over %d", shape.head_dim,
					   FT_MAX_HEAD_DIM);
	return with_types("attention_paged", q.dtype, cache->dtype,
					  [&](auto type_q, auto type_c)
					  {
						  typedef typename decltype(type_q)::type Q;
						  typedef typename decltype(type_c)::type C;

						  FT_LAUNCH((paged_plain<Q, C>), grid, THREADS, 0, s->stream, shape, out,
									view_of<const Q>(q), (const C *) cache->k,
									(const C *) cache->v);
						  return ft_cuda_launched("attention_paged");
					  });
}

/* --- bf16, head sizes 64 and 128 --- */

/* What a warp has of 16 rows. */
template <int D> struct row_sums
{
	float max[2];   /* of rows g and g + 8, in units of log 2 */
	float total[2]; /* this lane's share */
	float sum[D / 8][4];
};

template <int D> struct merge_shared
{
	float max[WARPS][16];
	float total[WARPS][16];
	float sum[WARPS][16][D];
};

__device__ __forceinline__ uint4
load_whole(const bf16 *from)
{
	return *(const uint4 *) from;
}

/* Two values of one column, of keys that follow each other, from two rows of eight. */
__device__ __forceinline__ uint32_t
column_pair(const uint32_t (&first)[4], const uint32_t (&second)[4], int column)
{
	if (column % 2 == 0)
		return (first[column / 2] & 0xffffu) | second[column / 2] << 16;
	return first[column / 2] >> 16 | (second[column / 2] & 0xffff0000u);
}

/* score[16 rows, 16 keys] of a cache block. */
template <int D>
__device__ __forceinline__ void
block_scores(float (&score)[2][4], const uint32_t (&q)[2][D / 32][4], const bf16 *keys)
{
	int lane = threadIdx.x % FT_WARP;

#pragma unroll
	for (int n = 0; n < 2; n++)
	{
		score[n][0] = score[n][1] = score[n][2] = score[n][3] = 0.0f;
#pragma unroll
		for (int unit = 0; unit < D / 32; unit++)
		{
			uint4 x = load_whole(keys + (n * 8 + lane / 4) * D + unit * 32 + lane % 4 * 8);
			uint32_t k[4] = {x.x, x.y, x.z, x.w};

#pragma unroll
			for (int step = 0; step < 2; step++)
			{
				uint32_t a[4] = {q[0][unit][2 * step], q[1][unit][2 * step],
								 q[0][unit][2 * step + 1], q[1][unit][2 * step + 1]};

				mma_bf16(score[n], a, k[2 * step], k[2 * step + 1]);
			}
		}
	}
}

/* sum += weights[16 rows, 16 keys] · the block's values; keys from `valid` on are not read, as
 * memory that nothing was stored in may hold anything. */
template <int D>
__device__ __forceinline__ void
add_values(float (&sum)[D / 8][4], const float (&weight)[2][4], const bf16 *values, int valid)
{
	int lane = threadIdx.x % FT_WARP;
	uint32_t a[4] = {pack_bf16(weight[0][0], weight[0][1]), pack_bf16(weight[0][2], weight[0][3]),
					 pack_bf16(weight[1][0], weight[1][1]), pack_bf16(weight[1][2], weight[1][3])};

#pragma unroll
	for (int part = 0; part < D / 64; part++)
	{
		uint32_t v[4][4];

#pragma unroll
		for (int i = 0; i < 4; i++)
		{
			int key = lane % 4 * 2 + i % 2 + i / 2 * 8;
			uint4 x = make_uint4(0, 0, 0, 0);

			if (key < valid)
				x = load_whole(values + key * D + part * 64 + lane / 4 * 8);
			v[i][0] = x.x, v[i][1] = x.y, v[i][2] = x.z, v[i][3] = x.w;
		}
#pragma unroll
		for (int column = 0; column < 8; column++)
			mma_bf16(sum[part * 8 + column], a, column_pair(v[0], v[1], column),
					 column_pair(v[2], v[3], column));
	}
}

/* The warps' sums, in order, and then the rows' results. */
template <int D>
__device__ static void
merge(merge_shared<D> *shared, const row_sums<D> &mine, const paged_shape &shape, view<bf16> out,
	  int first_row, int first, int rows, int kv_head)
{
	int warp = threadIdx.x / FT_WARP;
	int lane = threadIdx.x % FT_WARP;
	int group = shape.heads / shape.kv_heads;

	for (int half = 0; half < 2; half++)
	{
		float total = quad_sum(mine.total[half]);

		if (lane % 4 == 0)
		{
			shared->max[warp][lane / 4 + half * 8] = mine.max[half];
			shared->total[warp][lane / 4 + half * 8] = total;
		}
	}
#pragma unroll
	for (int n = 0; n < D / 8; n++)
	{
#pragma unroll
		for (int i = 0; i < 4; i++)
		{
			int column = n / 8 * 64 + (lane % 4 * 2 + i % 2) * 8 + n % 8;

			shared->sum[warp][lane / 4 + i / 2 * 8][column] = mine.sum[n][i];
		}
	}
	__syncthreads();
	for (int i = threadIdx.x; i < 16 * D; i += THREADS)
	{
		int row = first + i / D;
		int column = (kv_head * group + row % group) * D + i % D;
		float max = -INFINITY;
		float total = 0;
		float sum = 0;

		if (row >= rows)
			break;
		for (int w = 0; w < WARPS; w++)
			max = fmaxf(max, shared->max[w][i / D]);
		for (int w = 0; w < WARPS; w++)
		{
			float factor = exp2f(shared->max[w][i / D] - max);

			total += factor * shared->total[w][i / D];
			sum += factor * shared->sum[w][i / D][i % D];
		}
		set_value(out.row(first_row + row / group)[column], sum / total);
	}
}

template <int D>
static __global__ void
__launch_bounds__(THREADS) paged(paged_shape shape, view<bf16> out, view<const bf16> q,
								 bool aligned, const bf16 *cache_k, const bf16 *cache_v)
{
	FT_DYNAMIC_SHARED(memory);
	int warp = threadIdx.x / FT_WARP;
	int lane = threadIdx.x % FT_WARP;
	int sequence = blockIdx.z;
	int kv_head = blockIdx.y;
	int first = blockIdx.x * 16; /* of the sequence's rows times query heads */
	int group = shape.heads / shape.kv_heads;
	int first_row = shape.row_start[sequence];
	int rows = (shape.row_start[sequence + 1] - first_row) * group;
	int context = shape.context[sequence];
	uint32_t query[2][D / 32][4];
	int position[2];
	row_sums<D> mine = {{-INFINITY, -INFINITY}, {0, 0}, {}};
	int lowest;
	int last;

	if (first >= rows)
		return;
	for (int half = 0; half < 2; half++)
	{
		int row = first + lane / 4 + half * 8;
		int token = (row < rows ? row : rows - 1) / group;
		int head = kv_head * group + row % group;

		position[half] = context + token;
#pragma unroll
		for (int unit = 0; unit < D / 32; unit++)
			load_eight(query[half][unit], q.row(first_row + token) + head * D,
					   unit * 32 + lane % 4 * 8, D, aligned);
	}
	last = context + ((first + 15 < rows ? first + 15 : rows - 1) / group);
	lowest = context + first / group - shape.window + 1;
	lowest = shape.window > 0 && lowest > 0 ? lowest / FT_KV_BLOCK : 0;
	for (int block = lowest + (warp - lowest % WARPS + WARPS) % WARPS; block * FT_KV_BLOCK <= last;
		 block += WARPS)
	{
		int64_t at = cache_row(shape, sequence, block * FT_KV_BLOCK, kv_head);
		float score[2][4];
		float correction[2];

		block_scores<D>(score, query, cache_k + at);
#pragma unroll
		for (int n = 0; n < 2; n++)
		{
#pragma unroll
			for (int i = 0; i < 4; i++)
			{
				int key = block * FT_KV_BLOCK + n * 8 + lane % 4 * 2 + i % 2;

				score[n][i] = sees(position[i / 2], key, shape.window)
								  ? score[n][i] * shape.scale * FT_LOG2E
								  : -INFINITY;
			}
		}
		softmax_step(score, mine.max, mine.total, correction);
#pragma unroll
		for (int n = 0; n < D / 8; n++)
		{
#pragma unroll
			for (int i = 0; i < 4; i++)
				mine.sum[n][i] *= correction[i / 2];
		}
		add_values<D>(mine.sum, score, cache_v + at, last - block * FT_KV_BLOCK + 1);
	}
	merge<D>((merge_shared<D> *) memory, mine, shape, out, first_row, first, rows, kv_head);
}

template <int D>
static ft_status
launch(ft_stream *s, const paged_shape &shape, ft_mat out, ft_mat q, const ft_kv_layer *cache,
	   const ft_paged_batch *batch)
{
	int group = shape.heads / shape.kv_heads;
	dim3 grid((unsigned) ft_divide_up((int64_t) batch->max_rows * group, 16),
			  (unsigned) shape.kv_heads, (unsigned) batch->n);
	size_t bytes = sizeof(merge_shared<D>);
	auto kernel = paged<D>;

	if (grid.x == 0)
		return FT_OK;
	FT_LAUNCH(kernel, grid, THREADS, bytes, s->stream, shape, view_of<bf16>(out),
			  view_of<const bf16>(q), is_aligned(q), (const bf16 *) cache->k,
			  (const bf16 *) cache->v);
	return ft_cuda_launched("attention_paged");
}

ft_status
ft_cuda_attention_paged(ft_stream *s, ft_mat out, ft_mat q, const ft_kv_layer *cache,
						const ft_paged_batch *batch, int heads, int window, float scale)
{
	paged_shape shape = paged_shape_of(cache, batch, heads, window, scale);
	int64_t cols = (int64_t) heads * cache->head_dim;

	FT_TRY(ft_cuda_enter(s));
	FT_TRY(check("attention_paged", cache, batch));
	FT_TRY(ft_cuda_shape("attention_paged", "q", q, q.rows, cols));
	FT_TRY(ft_cuda_shape("attention_paged", "out", out, q.rows, cols));
	if (heads % cache->kv_heads != 0)
		return ft_fail(FT_INVALID, "attention_paged: %d heads over %d key/value heads", heads,
					   cache->kv_heads);
	if (out.dtype != FT_F32 && out.dtype != FT_BF16)
		return ft_cuda_unsupported("attention_paged", q.dtype, out.dtype);
	if (q.rows == 0 || batch->n == 0)
		return FT_OK;
	if (q.dtype == FT_BF16 && out.dtype == FT_BF16 && cache->dtype == FT_BF16 &&
		s->device->numerics == FT_NUMERICS_FAST)
	{
		if (cache->head_dim == 64)
			return launch<64>(s, shape, out, q, cache, batch);
		if (cache->head_dim == 128)
			return launch<128>(s, shape, out, q, cache, batch);
	}
	return launch_plain(s, shape, out, q, cache);
}
