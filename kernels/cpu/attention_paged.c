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
/* Cache blocks that are gone through at a time. */
#define CHUNK 8

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
	float *blocks;  /* [CHUNK][D][16], D rounded up: those that cannot be used as they lie */
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

/* n values of a row as the cache's type: where they stand, or in `room`. */
static const void *
row_as(const paged_job *job, void *room, ft_mat m, int64_t row, int64_t column, int64_t n)
{
	const void *from = ft_at(m, row, column);

	if (m.dtype == job->cache->dtype)
		return from;
	if (m.dtype == FT_F32)
		job->s->device->kernels->to_bf16(room, from, n);
	else
		job->s->device->kernels->to_f32(room, from, n);
	return room;
}

/* One head's keys become a column of the block, its values a row. */
static void
store_head(const paged_job *job, void *keys, void *values, const void *k, const void *v,
		   int64_t slot)
{
	int64_t d = job->cache->head_dim;

	if (job->cache->dtype == FT_F32)
	{
		for (int64_t j = 0; j < d; j++)
			((float *) keys)[j * FT_KV_BLOCK + slot] = ((const float *) k)[j];
		memcpy((float *) values + slot * d, v, (size_t) d * sizeof(float));
	}
	else
	{
		for (int64_t j = 0; j < d; j++)
			((uint16_t *) keys)[j * FT_KV_BLOCK + slot] = ((const uint16_t *) k)[j];
		memcpy((uint16_t *) values + slot * d, v, (size_t) d * sizeof(uint16_t));
	}
}

static void
kv_store_task(void *context, int worker, int64_t begin, int64_t end)
{
	const paged_job *job = context;
	const ft_paged_batch *batch = job->batch;
	const ft_kv_layer *cache = job->cache;
	int64_t d = cache->head_dim;
	float *room = ft_worker_scratch(job->s, worker); /* [2][D] */

	for (int64_t row = begin < batch->row_start[0] ? batch->row_start[0] : begin; row < end; row++)
	{
		int i = sequence_of_row(batch, row);
		int64_t position = batch->context[i] + row - batch->row_start[i];

		for (int head = 0; head < cache->kv_heads; head++)
			store_head(job, cache_block(cache, cache->k, batch, i, position, head),
					   cache_block(cache, cache->v, batch, i, position, head),
					   row_as(job, room, job->k, row, head * d, d),
					   row_as(job, room + d, job->v, row, head * d, d), position % FT_KV_BLOCK);
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
	FT_TRY(ft_worker_scratch_reserve(s, (size_t) (2 * cache->head_dim) * sizeof(float)));
	ft_run(s, batch->row_start[batch->n], 4 * width, kv_store_task, &job);
	return FT_OK;
}

/* Whether blocks are multiplied with where they lie, in the cache's own type, by m rows. */
static bool
reads_in_place(const paged_job *job, int64_t m)
{
	return job->cache->dtype == FT_F32 || m <= FT_PAGED_FEW;
}

/* A block's keys as a panel [D][16]: where they lie, or widened in `copy`. */
static const void *
key_panel(const paged_job *job, float *copy, int64_t m, int sequence, int64_t position, int head)
{
	const ft_kv_layer *cache = job->cache;
	const void *block = cache_block(cache, cache->k, job->batch, sequence, position, head);

	if (reads_in_place(job, m))
		return block;
	job->s->device->kernels->to_f32(copy, block, (int64_t) FT_KV_BLOCK * cache->head_dim);
	return copy;
}

/* Values from one position of a value panel to the next. */
static int64_t
value_stride(const ft_kv_layer *cache)
{
	return ft_round_up(cache->head_dim, FT_GROUP);
}

static bool
values_in_place(const paged_job *job, int64_t m)
{
	return job->cache->head_dim == value_stride(job->cache) && reads_in_place(job, m);
}

/* A block's values as a panel [16][D], D rounded up; `n` positions are in use. */
static const void *
value_panel(const paged_job *job, float *copy, int64_t m, int sequence, int64_t position, int head,
			int64_t n)
{
	const ft_kv_layer *cache = job->cache;
	const void *block = cache_block(cache, cache->v, job->batch, sequence, position, head);
	int64_t d = cache->head_dim;
	int64_t ld = value_stride(cache);

	if (values_in_place(job, m))
		return block;
	if (d == ld)
	{
		job->s->device->kernels->to_f32(copy, block, n * d);
		return copy;
	}
	for (int64_t i = 0; i < n; i++)
	{
		float *to = copy + i * ld;

		memset(to, 0, (size_t) ld * sizeof *to);
		if (cache->dtype == FT_F32)
			memcpy(to, (const float *) block + i * d, (size_t) d * sizeof *to);
		else
			job->s->device->kernels->to_f32(to, (const uint16_t *) block + i * d, d);
	}
	return copy;
}

/* What is read after the blocks before `position`: those from there on, and after the last keys the
 * first values. */
static void
look_ahead(const paged_job *job, const void **panels, bool values, int sequence, int64_t position,
		   int head, int64_t base, int64_t end)
{
	const ft_kv_layer *cache = job->cache;

	for (int i = 0; i < FT_PAGED_AHEAD; i++, position += FT_KV_BLOCK)
	{
		void *from = values ? cache->v : cache->k;
		int64_t at = position;

		if (position >= end && !values)
		{
			from = cache->v;
			at = ft_min(base + ft_round_up(position - end, FT_KV_BLOCK), end - 1);
		}
		panels[i] = cache_block(cache, from, job->batch, sequence, ft_min(at, end - 1), head);
	}
}

/* scores [m][ld] of the queries with the keys of positions [base, end). */
static void
score_keys(const paged_job *job, const paged_scratch *t, int i, int head, int64_t m, int64_t base,
		   int64_t end, int64_t ld)
{
	int64_t d = job->cache->head_dim;
	int64_t room = ft_round_up(d, FT_GROUP) * FT_KV_BLOCK;
	bool bf16 = job->cache->dtype == FT_BF16 && reads_in_place(job, m);
	const void *panels[CHUNK + FT_PAGED_AHEAD];

	for (int64_t p = base; p < end; p += CHUNK * FT_KV_BLOCK)
	{
		int64_t blocks = ft_min(CHUNK, ft_divide_up(end - p, FT_KV_BLOCK));

		for (int64_t b = 0; b < blocks; b++)
			panels[b] = key_panel(job, t->blocks + b * room, m, i, p + b * FT_KV_BLOCK, head);
		look_ahead(job, panels + blocks, false, i, p + blocks * FT_KV_BLOCK, head, base, end);
		job->s->device->kernels->paged_scores(t->scores + p - base, ld, t->queries, d, panels, bf16,
											  blocks, m, d);
	}
}

/* result [m][width] = scores times the values of positions [base, end). */
static void
mix_values(const paged_job *job, const paged_scratch *t, int i, int head, int64_t m, int64_t base,
		   int64_t end, int64_t ld)
{
	int64_t width = value_stride(job->cache);
	int64_t room = width * FT_KV_BLOCK;
	bool bf16 = job->cache->dtype == FT_BF16 && values_in_place(job, m);
	const void *panels[CHUNK + FT_PAGED_AHEAD];

	memset(t->result, 0, (size_t) (m * width) * sizeof *t->result);
	for (int64_t p = base; p < end; p += CHUNK * FT_KV_BLOCK)
	{
		int64_t positions = ft_min(CHUNK * FT_KV_BLOCK, end - p);
		int64_t blocks = ft_divide_up(positions, FT_KV_BLOCK);

		for (int64_t b = 0; b < blocks; b++)
			panels[b] = value_panel(job, t->blocks + b * room, m, i, p + b * FT_KV_BLOCK, head,
									ft_min(FT_KV_BLOCK, positions - b * FT_KV_BLOCK));
		look_ahead(job, panels + blocks, true, i, p + blocks * FT_KV_BLOCK, head, base, end);
		job->s->device->kernels->paged_mix(t->result, width, t->scores + p - base, ld, panels, bf16,
										   width, positions, m, width);
	}
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
	score_keys(job, t, i, head, m, base, end, ld);

	/* the factor 1 / sum goes into the row's scale at the end: keep it where the queries were */
	for (int64_t r = 0; r < m; r++)
		t->queries[r] = softmax_row(job, t->scores + r * ld, ld, base, at + r / group);

	mix_values(job, t, i, head, m, base, end, ld);
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
	int64_t total = ft_round_up(m * d, FT_GROUP) + m * d + CHUNK * d * FT_KV_BLOCK + m * context;

	*t = (paged_scratch){0};
	if (memory == NULL) /* only the size is asked for */
		return (size_t) total * sizeof(float);
	t->queries = memory;
	t->result = t->queries + ft_round_up(m * d, FT_GROUP);
	t->blocks = t->result + m * d;
	t->scores = t->blocks + CHUNK * d * FT_KV_BLOCK;
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
