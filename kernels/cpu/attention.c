/*
 * attention.c: causal attention over packed sequences, for training.
 */
#include "attention.h"

#include <math.h>
#include <string.h>

/* Query rows of a task: long enough that packing its keys is cheap beside using them. */
#define TASK_ROWS 256

typedef struct attention_job
{
	ft_stream *s;
	const ft_attention *a;
	ft_mat out;
	float *lse;
	ft_mat q;
	ft_mat k;
	ft_mat v;
	int64_t parts; /* tasks that the longest sequence is cut into */
} attention_job;

/* Scratch of one task, cut out of the worker's memory. */
typedef struct attention_scratch
{
	float *keys;    /* [L / 16][D][16] */
	float *values;  /* [D / 16][L][16] */
	float *queries; /* [FT_QUERY_BLOCK][D] */
	float *scores;  /* [FT_QUERY_BLOCK][L] */
	float *result;  /* [FT_QUERY_BLOCK][D], D rounded up */
} attention_scratch;

ft_status
ft_attention_check(const char *operation, const ft_attention *a, ft_mat q, ft_mat k, ft_mat v,
				   ft_mat out)
{
	int64_t d = a->head_dim;

	if (a->heads < 1 || a->kv_heads < 1 || a->heads % a->kv_heads != 0 || d < 1)
		return ft_fail(FT_INVALID, "%s: %d heads of %d with %d key/value heads", operation,
					   a->heads, a->head_dim, a->kv_heads);
	if (!ft_is_float(q.dtype) || k.dtype != q.dtype || v.dtype != q.dtype || out.dtype != q.dtype)
		return ft_bad_types(operation, q.dtype, k.dtype != q.dtype ? k.dtype : out.dtype);
	FT_TRY(ft_check_shape(operation, "q", q, q.rows, a->heads * d));
	FT_TRY(ft_check_shape(operation, "k", k, q.rows, a->kv_heads * d));
	FT_TRY(ft_check_shape(operation, "v", v, q.rows, a->kv_heads * d));
	FT_TRY(ft_check_shape(operation, "out", out, q.rows, a->heads * d));
	if (a->n_sequences < 0 || (a->n_sequences > 0 && (a->starts_host[0] != 0 ||
													  a->starts_host[a->n_sequences] != q.rows)))
		return ft_fail(FT_INVALID, "%s: the sequences do not cover the %lld rows", operation,
					   (long long) q.rows);
	for (int i = 0; i < a->n_sequences; i++)
		if (a->starts_host[i + 1] < a->starts_host[i] ||
			a->starts_host[i + 1] - a->starts_host[i] > a->max_length)
			return ft_fail(FT_INVALID, "%s: sequence %d has rows %d to %d, at most %d expected",
						   operation, i, a->starts_host[i], a->starts_host[i + 1], a->max_length);
	return FT_OK;
}

ft_rows
ft_attention_rows(const ft_kernels *kernels, float *scratch, ft_mat m, int64_t row, int64_t column,
				  int64_t rows, int64_t cols)
{
	if (m.dtype == FT_F32)
		return (ft_rows){ft_at(m, row, column), m.ld, 0};
	for (int64_t i = 0; i < rows; i++)
		kernels->to_f32(scratch + i * cols, ft_at(m, row + i, column), cols);
	return (ft_rows){scratch, cols, 0};
}

void
ft_attention_pack_keys(const ft_kernels *kernels, float *panel, ft_mat m, int64_t row,
					   int64_t column, int64_t rows, int64_t d)
{
	for (int64_t i = 0; i < rows; i += FT_GROUP, panel += d * FT_GROUP)
	{
		int64_t n = ft_min(FT_GROUP, rows - i);

		if (m.dtype == FT_F32)
		{
			kernels->fill_panel(panel, ft_at(m, row + i, column), m.ld, n, d);
			continue;
		}
		for (int64_t k = 0; k < FT_GROUP; k++)
		{
			const uint16_t *from = ft_at(m, row + i + ft_min(k, n - 1), column);

			for (int64_t j = 0; j < d; j++)
				panel[j * FT_GROUP + k] = k < n ? ft_bf16_to_f32(from[j]) : 0;
		}
	}
}

ft_rows
ft_attention_dims(float *scratch, ft_mat m, int64_t row, int64_t column, int64_t rows, int64_t cols)
{
	if (m.dtype == FT_F32 && cols % FT_GROUP == 0)
		return (ft_rows){ft_at(m, row, column), m.ld, FT_GROUP};
	for (int64_t g = 0; g < cols; g += FT_GROUP)
	{
		int64_t width = ft_min(FT_GROUP, cols - g);

		for (int64_t i = 0; i < rows; i++)
		{
			const void *from = ft_at(m, row + i, column + g);
			float *to = scratch + (g * rows + i * FT_GROUP);

			memset(to, 0, FT_GROUP * sizeof *to);
			if (m.dtype == FT_F32)
				memcpy(to, from, (size_t) width * sizeof *to);
			else
				for (int64_t j = 0; j < width; j++)
					to[j] = ft_bf16_to_f32(((const uint16_t *) from)[j]);
		}
	}
	return (ft_rows){scratch, FT_GROUP, rows * FT_GROUP};
}

/* Softmax of one row's scores in place: zero outside of [first, last]. Returns log of the sum. */
static float
softmax_row(const ft_kernels *kernels, float *scores, int64_t n, int64_t first, int64_t last,
			float scale, float *inverse)
{
	int64_t count = last + 1 - first;
	float max = kernels->max_row(scores + first, count) * scale;
	float sum = kernels->exp_row(scores + first, scale, max, count);

	memset(scores, 0, (size_t) first * sizeof *scores);
	memset(scores + last + 1, 0, (size_t) (n - last - 1) * sizeof *scores);
	*inverse = 1 / sum;
	return max + logf(sum);
}

/* Rows [begin, begin + rows) of the sequence at `start`, for one head; keys from `base` on are
 * packed, `packed` of them. */
static void
attend_block(attention_job *job, const attention_scratch *t, int head, int64_t start, int64_t begin,
			 int64_t rows, int64_t base, ft_rows values)
{
	const ft_attention *a = job->a;
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t d = a->head_dim;
	int64_t width = ft_round_up(d, FT_GROUP);
	int64_t n = begin + rows - base; /* keys that any of the rows sees */
	int64_t ld = ft_round_up(n, FT_GROUP);
	float inverse[FT_QUERY_BLOCK];
	ft_rows queries =
		ft_attention_rows(kernels, t->queries, job->q, start + begin, head * d, rows, d);

	memset(t->scores, 0, (size_t) (rows * ld) * sizeof *t->scores);
	kernels->gemm(t->scores, ld, queries.data, queries.ld, 1, t->keys, FT_GROUP, d * FT_GROUP, rows,
				  (int) (ld / FT_GROUP), d);
	for (int64_t i = 0; i < rows; i++)
		job->lse[(start + begin + i) * a->heads + head] = softmax_row(
			kernels, t->scores + i * ld, ld, ft_attention_first_key(a, begin + i) - base,
			begin + i - base, a->scale, &inverse[i]);
	memset(t->result, 0, (size_t) (rows * width) * sizeof *t->result);
	kernels->gemm(t->result, width, t->scores, ld, 1, values.data, values.ld, values.pg, rows,
				  (int) (width / FT_GROUP), n);
	for (int64_t i = 0; i < rows; i++)
	{
		float *row = t->result + i * width;
		void *out = ft_at(job->out, start + begin + i, head * d);

		for (int64_t j = 0; j < d; j++)
			row[j] *= inverse[i];
		if (job->out.dtype == FT_F32)
			memcpy(out, row, (size_t) d * sizeof *row);
		else
			kernels->to_bf16(out, row, d);
	}
}

static attention_scratch
cut_scratch(const ft_attention *a, float *memory)
{
	int64_t length = ft_round_up(a->max_length, FT_GROUP);
	int64_t d = ft_round_up(a->head_dim, FT_GROUP);
	attention_scratch t;

	t.keys = memory;
	t.values = t.keys + length * d;
	t.queries = t.values + length * d;
	t.scores = t.queries + FT_QUERY_BLOCK * d;
	t.result = t.scores + FT_QUERY_BLOCK * length;
	return t;
}

static size_t
scratch_bytes(const ft_attention *a)
{
	int64_t length = ft_round_up(a->max_length, FT_GROUP);
	int64_t d = ft_round_up(a->head_dim, FT_GROUP);

	return (size_t) (2 * length * d + FT_QUERY_BLOCK * (length + 2 * d)) * sizeof(float);
}

static void
attention_task(void *context, int worker, int64_t begin, int64_t end)
{
	attention_job *job = context;
	const ft_attention *a = job->a;
	attention_scratch t = cut_scratch(a, ft_worker_scratch(job->s, worker));
	int64_t d = a->head_dim;
	int group = a->heads / a->kv_heads;

	for (int64_t unit = begin; unit < end; unit++)
	{
		int kv_head = (int) (unit % a->kv_heads);
		int64_t part = unit / a->kv_heads % job->parts;
		int64_t sequence = unit / a->kv_heads / job->parts;
		int64_t start = job->a->starts_host[sequence];
		int64_t length = job->a->starts_host[sequence + 1] - start;
		int64_t first = part * TASK_ROWS;
		int64_t last = ft_min(length, first + TASK_ROWS);
		int64_t base;
		ft_rows values;

		if (first >= last)
			continue;
		base = ft_attention_first_key(a, first);
		ft_attention_pack_keys(job->s->device->kernels, t.keys, job->k, start + base, kv_head * d,
							   last - base, d);
		values = ft_attention_dims(t.values, job->v, start + base, kv_head * d, last - base, d);
		for (int64_t row = first; row < last; row += FT_QUERY_BLOCK)
			for (int h = 0; h < group; h++)
				attend_block(job, &t, kv_head * group + h, start, row,
							 ft_min(FT_QUERY_BLOCK, last - row), base, values);
	}
}

ft_status
ft_cpu_attention(ft_stream *s, const ft_attention *a, ft_mat out, float *lse, ft_mat q, ft_mat k,
				 ft_mat v)
{
	attention_job job = {.s = s, .a = a, .out = out, .lse = lse, .q = q, .k = k, .v = v};

	FT_TRY(ft_attention_check("attention", a, q, k, v, out));
	FT_TRY(ft_worker_scratch_reserve(s, scratch_bytes(a)));
	job.parts = ft_divide_up(a->max_length, TASK_ROWS);
	ft_pool_run(s->device->pool, a->n_sequences * job.parts * a->kv_heads, 1, attention_task, &job);
	return FT_OK;
}
