/*
 * attention_paged.c: the paged cache of keys and values, and attention over it,
 * for serving.
 *
 * Inside a block of 16 positions a head's keys stand as [D][16], its values as
 * [16][D]: both are then panels of the matrix kernel as they lie, and a score
 * is one chain of multiply-adds over D for any number of rows.  A row's sums
 * begin at a position that follows from its own position and the window alone,
 * so they do not depend on the rows beside it.
 */
#include "attention.h"

#include <math.h>
#include <string.h>

/* Rows times query heads of a task. */
#define TASK_ROWS 32

typedef struct paged_job
{
	ft_stream *s;
	ft_mat out;
	ft_mat q;
	ft_mat k; /* kv_store */
	ft_mat v;
	const ft_kv_layer *cache;
	const ft_paged_batch *batch;
	int heads;
	int window;
	float scale;
	int64_t rows_per_task;
	int64_t tasks_per_sequence;
} paged_job;

typedef struct paged_scratch
{
	float *queries; /* [m][D] */
	float *result;  /* [m][D], D rounded up */
	float *block;   /* [D][16], D rounded up: a block that cannot be used as it lies */
	float *scores;  /* [m][context], rounded up */
} paged_scratch;

static ft_status
check_cache(const char *operation, const ft_kv_layer *cache, const ft_paged_batch *batch,
			int64_t rows)
{
	if (!ft_is_float(cache->dtype))
		return ft_bad_types(operation, cache->dtype, FT_F32);
	if (cache->kv_heads < 1 || cache->head_dim < 1 || batch->n < 0 ||
		batch->max_context > (int64_t) batch->max_blocks * FT_KV_BLOCK)
		return ft_fail(FT_INVALID, "%s: %d sequences with context %d in %d blocks, %d heads of %d",
					   operation, batch->n, batch->max_context, batch->max_blocks, cache->kv_heads,
					   cache->head_dim);
	for (int i = 0; i < batch->n; i++)
	{
		int64_t count = (int64_t) batch->row_start[i + 1] - batch->row_start[i];

		if (batch->row_start[i] < 0 || count < 0 || count > batch->max_rows ||
			batch->row_start[i + 1] > rows || batch->context[i] < 0 ||
			batch->context[i] + count > batch->max_context)
			return ft_fail(FT_INVALID,
						   "%s: sequence %d has rows %d to %d of %lld from position %d on",
						   operation, i, batch->row_start[i], batch->row_start[i + 1],
						   (long long) rows, batch->context[i]);
	}
	return FT_OK;
}

/* A head's keys or values in the cache block that holds a sequence's position. */
static void *
cache_block(const ft_kv_layer *cache, void *base, const ft_paged_batch *batch, int sequence,
			int64_t position, int head)
{
	int64_t block = batch->blocks[(int64_t) sequence * batch->max_blocks + position / FT_KV_BLOCK];
	int64_t at = (block * cache->kv_heads + head) * FT_KV_BLOCK * cache->head_dim;

	return (char *) base + at * (cache->dtype == FT_F32 ? 4 : 2);
}

static int
sequence_of_row(const ft_paged_batch *batch, int64_t row)
{
	int low = 0;
	int high = batch->n - 1;

	/* the last sequence that starts at or before the row and is not empty */
	while (low < high)
	{
		int middle = (low + high + 1) / 2;

		if (batch->row_start[middle] <= row)
			low = middle;
		else
			high = middle - 1;
	}
	return low;
}

static void
store_value(void *to, ft_dtype to_type, int64_t i, ft_mat from, int64_t row, int64_t column)
{
	const void *p = ft_at(from, row, column);

	if (to_type == from.dtype)
	{
		if (to_type == FT_F32)
			((float *) to)[i] = *(const float *) p;
		else
			((uint16_t *) to)[i] = *(const uint16_t *) p;
	}
	else if (to_type == FT_F32)
		((float *) to)[i] = ft_bf16_to_f32(*(const uint16_t *) p);
	else
		((uint16_t *) to)[i] = ft_f32_to_bf16(*(const float *) p);
}

static void
kv_store_task(void *context, int worker, int64_t begin, int64_t end)
{
	paged_job *job = context;
	const ft_paged_batch *batch = job->batch;
	const ft_kv_layer *cache = job->cache;
	int64_t d = cache->head_dim;

	(void) worker;
	for (int64_t row = begin < batch->row_start[0] ? batch->row_start[0] : begin; row < end; row++)
	{
		int i = sequence_of_row(batch, row);
		int64_t position = batch->context[i] + row - batch->row_start[i];
		int64_t slot = position % FT_KV_BLOCK;

		for (int head = 0; head < cache->kv_heads; head++)
		{
			void *keys = cache_block(cache, cache->k, batch, i, position, head);
			void *values = cache_block(cache, cache->v, batch, i, position, head);

			for (int64_t j = 0; j < d; j++)
			{
				store_value(keys, cache->dtype, j * FT_KV_BLOCK + slot, job->k, row, head * d + j);
				store_value(values, cache->dtype, slot * d + j, job->v, row, head * d + j);
			}
		}
	}
}

ft_status
ft_cpu_kv_store(ft_stream *s, const ft_kv_layer *cache, const ft_paged_batch *batch, ft_mat k,
				ft_mat v)
{
	paged_job job = {.s = s, .cache = cache, .batch = batch, .k = k, .v = v};
	int64_t width = (int64_t) cache->kv_heads * cache->head_dim;

	FT_TRY(check_cache("kv_store", cache, batch, k.rows));
	if (!ft_is_float(k.dtype) || v.dtype != k.dtype)
		return ft_bad_types("kv_store", k.dtype, v.dtype);
	FT_TRY(ft_check_shape("kv_store", "k", k, k.rows, width));
	FT_TRY(ft_check_shape("kv_store", "v", v, k.rows, width));
	if (batch->n == 0)
		return FT_OK;
	ft_run(s, batch->row_start[batch->n], 8 * width, kv_store_task, &job);
	return FT_OK;
}

/* A block's keys as a panel [D][16]. */
static const float *
key_panel(const paged_job *job, const paged_scratch *t, int sequence, int64_t position, int head)
{
	const ft_kv_layer *cache = job->cache;
	const void *block = cache_block(cache, cache->k, job->batch, sequence, position, head);

	if (cache->dtype == FT_F32)
		return block;
	job->s->device->kernels->to_f32(t->block, block, (int64_t) FT_KV_BLOCK * cache->head_dim);
	return t->block;
}

/* A block's values as panels of 16 dimensions, *ld values apart; `n` positions are in use. */
static const float *
value_panel(const paged_job *job, const paged_scratch *t, int sequence, int64_t position, int head,
			int64_t n, int64_t *ld)
{
	const ft_kv_layer *cache = job->cache;
	const void *block = cache_block(cache, cache->v, job->batch, sequence, position, head);
	int64_t d = cache->head_dim;

	*ld = d;
	if (cache->dtype == FT_F32 && d % FT_GROUP == 0)
		return block;
	*ld = ft_round_up(d, FT_GROUP);
	for (int64_t i = 0; i < n; i++)
	{
		float *to = t->block + i * *ld;

		memset(to, 0, (size_t) *ld * sizeof *to);
		if (cache->dtype == FT_F32)
			memcpy(to, (const float *) block + i * d, (size_t) d * sizeof *to);
		else
			job->s->device->kernels->to_f32(to, (const uint16_t *) block + i * d, d);
	}
	return t->block;
}

/* Softmax of one row's scores; scores[0] is position `base`, the row stands at `at`. */
static float
softmax_row(const paged_job *job, float *scores, int64_t n, int64_t base, int64_t at)
{
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t first = job->window > 0 && at >= job->window ? at - job->window + 1 : 0;
	int64_t aligned = first / FT_KV_BLOCK * FT_KV_BLOCK - base;
	int64_t count = at + 1 - base - aligned;
	float max;
	float sum;

	for (int64_t i = aligned; i < first - base; i++)
		scores[i] = -INFINITY;
	max = kernels->max_row(scores + aligned, count) * job->scale;
	sum = kernels->exp_row(scores + aligned, job->scale, max, count);
	memset(scores, 0, (size_t) aligned * sizeof *scores);
	memset(scores + aligned + count, 0, (size_t) (n - aligned - count) * sizeof *scores);
	return 1 / sum;
}

/* Rows [row, row + rows) of the batch, all of sequence i, for the query heads of one key/value
 * head. */
static void
attend_rows(paged_job *job, const paged_scratch *t, int i, int head, int64_t row, int64_t rows)
{
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t d = job->cache->head_dim;
	int64_t width = ft_round_up(d, FT_GROUP);
	int64_t group = job->heads / job->cache->kv_heads;
	int64_t m = rows * group;
	int64_t at = job->batch->context[i] + row - job->batch->row_start[i];
	int64_t end = at + rows;
	int64_t base = job->window > 0 && at >= job->window
					   ? (at - job->window + 1) / FT_KV_BLOCK * FT_KV_BLOCK
					   : 0;
	int64_t ld = ft_round_up(end - base, FT_KV_BLOCK);

	for (int64_t r = 0; r < rows; r++)
	{
		float *to = t->queries + r * group * d;
		ft_rows from =
			ft_attention_rows(kernels, to, job->q, row + r, head * group * d, 1, group * d);

		if (from.data != to)
			memcpy(to, from.data, (size_t) (group * d) * sizeof *to);
	}
	memset(t->scores, 0, (size_t) (m * ld) * sizeof *t->scores);
	for (int64_t p = base; p < end; p += FT_KV_BLOCK)
		kernels->gemm(t->scores + p - base, ld, t->queries, d, 1, key_panel(job, t, i, p, head),
					  FT_GROUP, 0, m, 1, d);

	/* the factor 1 / sum goes into the row's scale at the end: keep it where the queries were */
	for (int64_t r = 0; r < m; r++)
		t->queries[r] = softmax_row(job, t->scores + r * ld, ld, base, at + r / group);

	memset(t->result, 0, (size_t) (m * width) * sizeof *t->result);
	for (int64_t p = base; p < end; p += FT_KV_BLOCK)
	{
		int64_t n = ft_min(FT_KV_BLOCK, end - p);
		int64_t pk;
		const float *panel = value_panel(job, t, i, p, head, n, &pk);

		kernels->gemm(t->result, width, t->scores + p - base, ld, 1, panel, pk, FT_GROUP, m,
					  (int) (width / FT_GROUP), n);
	}
	for (int64_t r = 0; r < m; r++)
	{
		float *from = t->result + r * width;
		void *out = ft_at(job->out, row + r / group, (head * group + r % group) * d);

		for (int64_t j = 0; j < d; j++)
			from[j] *= t->queries[r];
		if (job->out.dtype == FT_F32)
			memcpy(out, from, (size_t) d * sizeof *from);
		else
			kernels->to_bf16(out, from, d);
	}
}

static size_t
cut_scratch(const paged_job *job, float *memory, paged_scratch *t)
{
	int64_t d = ft_round_up(job->cache->head_dim, FT_GROUP);
	int64_t m = job->rows_per_task * (job->heads / job->cache->kv_heads);
	int64_t context = ft_round_up(job->batch->max_context, FT_KV_BLOCK) + FT_KV_BLOCK;
	int64_t total = ft_round_up(m * d, FT_GROUP) + m * d + d * FT_KV_BLOCK + m * context;

	*t = (paged_scratch){0};
	if (memory == NULL) /* only the size is asked for */
		return (size_t) total * sizeof(float);
	t->queries = memory;
	t->result = t->queries + ft_round_up(m * d, FT_GROUP);
	t->block = t->result + m * d;
	t->scores = t->block + d * FT_KV_BLOCK;
	return (size_t) total * sizeof(float);
}

static void
paged_task(void *context, int worker, int64_t begin, int64_t end)
{
	paged_job *job = context;
	const ft_paged_batch *batch = job->batch;
	paged_scratch t;

	cut_scratch(job, ft_worker_scratch(job->s, worker), &t);
	for (int64_t unit = begin; unit < end; unit++)
	{
		int head = (int) (unit % job->cache->kv_heads);
		int64_t part = unit / job->cache->kv_heads % job->tasks_per_sequence;
		int i = (int) (unit / job->cache->kv_heads / job->tasks_per_sequence);
		int64_t row = batch->row_start[i] + part * job->rows_per_task;
		int64_t rows = ft_min(job->rows_per_task, batch->row_start[i + 1] - row);

		if (rows > 0)
			attend_rows(job, &t, i, head, row, rows);
	}
}

ft_status
ft_cpu_attention_paged(ft_stream *s, ft_mat out, ft_mat q, const ft_kv_layer *cache,
					   const ft_paged_batch *batch, int heads, int window, float scale)
{
	paged_job job = {.s = s,
					 .out = out,
					 .q = q,
					 .cache = cache,
					 .batch = batch,
					 .heads = heads,
					 .window = window,
					 .scale = scale};
	int64_t width = (int64_t) heads * cache->head_dim;
	int64_t cost;
	paged_scratch unused;

	FT_TRY(check_cache("attention_paged", cache, batch, q.rows));
	if (heads < 1 || heads % cache->kv_heads != 0)
		return ft_fail(FT_INVALID, "attention_paged: %d heads with %d key/value heads", heads,
					   cache->kv_heads);
	FT_TRY(ft_check_float("attention_paged", q));
	FT_TRY(ft_check_float("attention_paged", out));
	FT_TRY(ft_check_shape("attention_paged", "q", q, out.rows, width));
	FT_TRY(ft_check_shape("attention_paged", "out", out, out.rows, width));
	if (batch->n == 0 || batch->max_rows == 0)
		return FT_OK;
	job.rows_per_task = TASK_ROWS / (heads / cache->kv_heads);
	if (job.rows_per_task < 1)
		job.rows_per_task = 1;
	if (job.rows_per_task > batch->max_rows)
		job.rows_per_task = batch->max_rows;
	job.tasks_per_sequence = ft_divide_up(batch->max_rows, job.rows_per_task);
	FT_TRY(ft_worker_scratch_reserve(s, cut_scratch(&job, NULL, &unused)));

	/* a short context is not worth another thread */
	cost = (int64_t) batch->max_context * cache->head_dim;
	ft_pool_run(s->device->pool, batch->n * job.tasks_per_sequence * cache->kv_heads,
				cost >= 8192 ? 1 : ft_divide_up(8192, cost > 0 ? cost : 1), paged_task, &job);
	return FT_OK;
}
