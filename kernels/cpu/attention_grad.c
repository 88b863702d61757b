/*
 * attention_grad.c: gradient of the packed causal attention.
 *
 * With P = softmax(scale · Q Kᵀ) and D = rowsum(dO · O):
 *   dV = Pᵀ dO,  dS = P · (dO Vᵀ − D) · scale,  dQ = dS K,  dK = dSᵀ Q.
 * P is computed again from the stored log of the softmax sum.  A task has all
 * query heads of one key/value head of one sequence, so dK and dV are summed in
 * one place, in one order.
 */
#include "attention.h"

#include <string.h>

typedef struct grad_job
{
	ft_stream *s;
	const ft_attention *a;
	ft_mat dq;
	ft_mat dk;
	ft_mat dv;
	ft_mat dout;
	ft_mat q;
	ft_mat k;
	ft_mat v;
	ft_mat out;
	const float *lse;
} grad_job;

typedef struct grad_scratch
{
	float *keys;       /* [L / 16][D][16] */
	float *values;     /* [L / 16][D][16] */
	float *key_dims;   /* [D / 16][L][16] */
	float *dk;         /* [L][D], D rounded up */
	float *dv;         /* [L][D] */
	float *queries;    /* [block][D] */
	float *douts;      /* [block][D] */
	float *outs;       /* [block][D] */
	float *query_dims; /* [D / 16][block][16] */
	float *dout_dims;  /* [D / 16][block][16] */
	float *dq;         /* [block][D] */
	float *p;          /* [block][L] */
	float *ds;         /* [block][L] */
} grad_scratch;

static size_t
cut_scratch(const ft_attention *a, float *memory, grad_scratch *t)
{
	int64_t length = ft_round_up(a->max_length, FT_GROUP);
	int64_t d = ft_round_up(a->head_dim, FT_GROUP);
	int64_t by_length = length * d;
	int64_t by_block = FT_QUERY_BLOCK * d;
	int64_t by_score = FT_QUERY_BLOCK * length;
	int64_t total = 5 * by_length + 6 * by_block + 2 * by_score;

	*t = (grad_scratch){0};
	if (memory == NULL) /* only the size is asked for */
		return (size_t) total * sizeof(float);
	t->keys = memory;
	t->values = t->keys + by_length;
	t->key_dims = t->values + by_length;
	t->dk = t->key_dims + by_length;
	t->dv = t->dk + by_length;
	t->queries = t->dv + by_length;
	t->douts = t->queries + by_block;
	t->outs = t->douts + by_block;
	t->query_dims = t->outs + by_block;
	t->dout_dims = t->query_dims + by_block;
	t->dq = t->dout_dims + by_block;
	t->p = t->dq + by_block;
	t->ds = t->p + by_score;
	return (size_t) total * sizeof(float);
}

/* Store rows of f32 in the result's type. */
static void
store_rows(const ft_kernels *kernels, ft_mat m, int64_t row, int64_t column, const float *from,
		   int64_t ld, int64_t rows, int64_t cols)
{
	for (int64_t i = 0; i < rows; i++)
		if (m.dtype == FT_F32)
			memcpy(ft_at(m, row + i, column), from + i * ld, (size_t) cols * sizeof *from);
		else
			kernels->to_bf16(ft_at(m, row + i, column), from + i * ld, cols);
}

/* P and dS of the block's rows from scores and dO Vᵀ, both [rows][ld], keys from `base` on. */
static void
score_gradients(const grad_job *job, const grad_scratch *t, int head, int64_t start, int64_t begin,
				int64_t rows, int64_t base, int64_t ld, ft_rows douts)
{
	const ft_attention *a = job->a;
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t d = a->head_dim;
	ft_rows outs = ft_attention_rows(kernels, t->outs, job->out, start + begin, head * d, rows, d);

	for (int64_t i = 0; i < rows; i++)
	{
		float *p = t->p + i * ld;
		float *ds = t->ds + i * ld;
		int64_t first = ft_attention_first_key(a, begin + i) - base;
		int64_t last = begin + i - base;
		size_t before = (size_t) first * sizeof *p;
		size_t after = (size_t) (ld - last - 1) * sizeof *p;
		float delta;

		kernels->dots(&delta, douts.data + i * douts.ld, outs.data + i * outs.ld, d, 1, d);
		kernels->exp_row(p + first, a->scale, job->lse[(start + begin + i) * a->heads + head],
						 last + 1 - first);
		kernels->softmax_grad(ds + first, p + first, delta, a->scale, last + 1 - first);
		memset(p, 0, before);
		memset(ds, 0, before);
		memset(p + last + 1, 0, after);
		memset(ds + last + 1, 0, after);
	}
}

/* One head's rows [begin, begin + rows) of the sequence at `start`. */
static void
grad_block(grad_job *job, const grad_scratch *t, int head, int64_t start, int64_t begin,
		   int64_t rows, ft_rows keys)
{
	const ft_attention *a = job->a;
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t d = a->head_dim;
	int64_t width = ft_round_up(d, FT_GROUP);
	int groups = (int) (width / FT_GROUP);
	/* keys from a whole panel on, so that the panels' addresses are simple */
	int64_t base = ft_attention_first_key(a, begin) / FT_GROUP * FT_GROUP;
	int64_t n = begin + rows - base;
	int64_t ld = ft_round_up(n, FT_GROUP);

	int64_t at = start + begin;
	ft_rows queries = ft_attention_rows(kernels, t->queries, job->q, at, head * d, rows, d);
	ft_rows douts = ft_attention_rows(kernels, t->douts, job->dout, at, head * d, rows, d);
	ft_rows query_dims = ft_attention_dims(t->query_dims, job->q, at, head * d, rows, d);
	ft_rows dout_dims = ft_attention_dims(t->dout_dims, job->dout, at, head * d, rows, d);

	memset(t->p, 0, (size_t) (rows * ld) * sizeof *t->p);
	memset(t->ds, 0, (size_t) (rows * ld) * sizeof *t->ds);
	kernels->gemm(t->p, ld, queries.data, queries.ld, 1, t->keys + base * d, FT_GROUP, d * FT_GROUP,
				  rows, (int) (ld / FT_GROUP), d);
	kernels->gemm(t->ds, ld, douts.data, douts.ld, 1, t->values + base * d, FT_GROUP, d * FT_GROUP,
				  rows, (int) (ld / FT_GROUP), d);
	score_gradients(job, t, head, start, begin, rows, base, ld, douts);

	kernels->gemm(t->dv + base * width, width, t->p, 1, ld, dout_dims.data, dout_dims.ld,
				  dout_dims.pg, n, groups, rows);
	kernels->gemm(t->dk + base * width, width, t->ds, 1, ld, query_dims.data, query_dims.ld,
				  query_dims.pg, n, groups, rows);
	memset(t->dq, 0, (size_t) (rows * width) * sizeof *t->dq);
	kernels->gemm(t->dq, width, t->ds, ld, 1, keys.data + base * keys.ld, keys.ld, keys.pg, rows,
				  groups, n);
	store_rows(kernels, job->dq, start + begin, head * d, t->dq, width, rows, d);
}

static void
grad_task(void *context, int worker, int64_t first_unit, int64_t end_unit)
{
	grad_job *job = context;
	const ft_attention *a = job->a;
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t d = a->head_dim;
	int64_t width = ft_round_up(d, FT_GROUP);
	int group = a->heads / a->kv_heads;
	grad_scratch t;

	cut_scratch(a, ft_worker_scratch(job->s, worker), &t);
	for (int64_t unit = first_unit; unit < end_unit; unit++)
	{
		int64_t column = unit % a->kv_heads * d;
		int64_t start = a->starts_host[unit / a->kv_heads];
		int64_t length = a->starts_host[unit / a->kv_heads + 1] - start;
		size_t bytes = (size_t) (length * width) * sizeof(float);
		ft_rows keys;

		ft_attention_pack_keys(job->s->device->kernels, t.keys, job->k, start, column, length, d);
		ft_attention_pack_keys(job->s->device->kernels, t.values, job->v, start, column, length, d);
		keys = ft_attention_dims(t.key_dims, job->k, start, column, length, d);
		memset(t.dk, 0, bytes);
		memset(t.dv, 0, bytes);
		for (int h = 0; h < group; h++)
			for (int64_t row = 0; row < length; row += FT_QUERY_BLOCK)
				grad_block(job, &t, (int) (unit % a->kv_heads) * group + h, start, row,
						   ft_min(FT_QUERY_BLOCK, length - row), keys);
		store_rows(kernels, job->dk, start, column, t.dk, width, length, d);
		store_rows(kernels, job->dv, start, column, t.dv, width, length, d);
	}
}

ft_status
ft_cpu_attention_grad(ft_stream *s, const ft_attention *a, ft_mat dq, ft_mat dk, ft_mat dv,
					  ft_mat dout, ft_mat q, ft_mat k, ft_mat v, ft_mat out, const float *lse)
{
	grad_job job = {.s = s,
					.a = a,
					.dq = dq,
					.dk = dk,
					.dv = dv,
					.dout = dout,
					.q = q,
					.k = k,
					.v = v,
					.out = out,
					.lse = lse};
	grad_scratch unused;

	FT_TRY(ft_attention_check("attention_grad", a, q, k, v, out));
	FT_TRY(ft_attention_check("attention_grad", a, dq, dk, dv, dout));
	if (dq.dtype != q.dtype)
		return ft_bad_types("attention_grad", q.dtype, dq.dtype);
	FT_TRY(ft_check_shape("attention_grad", "dq", dq, q.rows, q.cols));
	FT_TRY(ft_worker_scratch_reserve(s, cut_scratch(a, NULL, &unused)));
	ft_pool_run(s->device->pool, (int64_t) a->n_sequences * a->kv_heads, 1, grad_task, &job);
	return FT_OK;
}
