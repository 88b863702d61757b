/*
 * test_ops_attention.c: packed attention of training, its gradient, and
 * attention over the paged cache.
 */
#include "test_ops_common.h"

/* A batch of packed sequences. */
typedef struct attention_case
{
	int heads;
	int kv_heads;
	int head_dim;
	int window;
	int n;
	int32_t length[6];
} attention_case;

static const attention_case cases[] = {
	{9, 3, 64, 0, 3, {17, 1, 65}},      {1, 1, 64, 0, 1, {1}},
	{4, 4, 16, 0, 2, {3, 33}},          {6, 2, 10, 0, 4, {5, 0, 31, 2}},
	{9, 3, 64, 24, 2, {70, 20}},        {2, 1, 128, 0, 1, {300}},
	{2, 1, 33, 7, 2, {40, 9}},          {3, 1, 8, 1, 1, {20}},
	{4, 2, 64, 1000, 3, {16, 32, 130}}, {2, 2, 4, 0, 1, {0}},
};

#define COUNT_OF(array) ((int) (sizeof(array) / sizeof(array)[0]))

static int64_t
first_key(int64_t at, int window)
{
	return window > 0 && at >= window ? at - window + 1 : 0;
}

/* One query row over keys [first, last] (rows of a matrix with row length ld): probabilities, log
 * of the sum. */
static double
softmax_row(double *p, const double *q, const double *k, int64_t ld, int64_t first, int64_t last,
			int d, double scale)
{
	double max = -INFINITY;
	double sum = 0;

	for (int64_t j = first; j <= last; j++)
	{
		double dot = 0;

		for (int t = 0; t < d; t++)
			dot += q[t] * k[j * ld + t];
		p[j - first] = dot * scale;
		max = p[j - first] > max ? p[j - first] : max;
	}
	for (int64_t j = first; j <= last; j++)
		sum += exp(p[j - first] - max);
	for (int64_t j = first; j <= last; j++)
		p[j - first] = exp(p[j - first] - max) / sum;
	return max + log(sum);
}

typedef struct reference
{
	double *out; /* [T][H D] */
	double *lse; /* [T][H] */
	double *dq;  /* [T][(H + 2 G) D]: dq, dk, dv */
} reference;

/* Attention of qkv [T][(H + 2 G) D], and with dout its gradient. */
static void
attention_reference(const attention_case *c, double scale, const double *qkv, const double *dout,
					reference *r)
{
	int64_t d = c->head_dim;
	int64_t ld = (c->heads + 2 * c->kv_heads) * d;
	int64_t width = c->heads * d;
	int64_t start = 0;
	double *p = malloc(1000 * sizeof *p);

	for (int s = 0; s < c->n; start += c->length[s++])
		for (int64_t i = 0; i < c->length[s]; i++)
			for (int h = 0; h < c->heads; h++)
			{
				int64_t first = first_key(i, c->window);
				int64_t key_at = start * ld + (c->heads + h / (c->heads / c->kv_heads)) * d;
				int64_t value_at = key_at + c->kv_heads * d;
				int64_t query_at = (start + i) * ld + h * d;
				double *o = r->out + (start + i) * width + h * d;
				const double *go = dout + (start + i) * width + h * d;
				double delta = 0;

				r->lse[(start + i) * c->heads + h] =
					softmax_row(p, qkv + query_at, qkv + key_at, ld, first, i, (int) d, scale);
				for (int64_t j = first; j <= i; j++)
					for (int64_t t = 0; t < d; t++)
						o[t] += p[j - first] * qkv[value_at + j * ld + t];
				for (int64_t t = 0; t < d; t++)
					delta += go[t] * o[t];
				for (int64_t j = first; j <= i; j++)
				{
					double dp = 0;
					double ds;

					for (int64_t t = 0; t < d; t++)
						dp += go[t] * qkv[value_at + j * ld + t];
					ds = p[j - first] * (dp - delta) * scale;
					for (int64_t t = 0; t < d; t++)
					{
						r->dq[query_at + t] += ds * qkv[key_at + j * ld + t];
						r->dq[key_at + j * ld + t] += ds * qkv[query_at + t];
						r->dq[value_at + j * ld + t] += p[j - first] * go[t];
					}
				}
			}
	free(p);
}

static reference
reference_make(const attention_case *c, double scale, const double *qkv, const double *dout,
			   int64_t rows)
{
	size_t width = (size_t) (c->heads + 2 * c->kv_heads) * (size_t) c->head_dim;
	reference r = {
		.out = calloc((size_t) rows * width + 1, sizeof(double)),
		.lse = calloc((size_t) rows * (size_t) c->heads + 1, sizeof(double)),
		.dq = calloc((size_t) rows * width + 1, sizeof(double)),
	};

	attention_reference(c, scale, qkv, dout, &r);
	return r;
}

static void
reference_free(reference *r)
{
	free(r->out);
	free(r->lse);
	free(r->dq);
}

/* The gradient's formula against central differences of Σ dout · out. */
static void
test_formula(void **state)
{
	static const attention_case c = {4, 2, 3, 4, 2, {6, 3}};
	enum
	{
		ROWS = 9,
		OUT = ROWS * 4 * 3,
		ALL = ROWS * 8 * 3
	};
	double qkv[ALL], dout[OUT];
	reference r;

	(void) state;
	for (int i = 0; i < ALL; i++)
		qkv[i] = random_normal();
	for (int i = 0; i < OUT; i++)
		dout[i] = random_normal();
	r = reference_make(&c, 0.7, qkv, dout, ROWS);
	for (int i = 0; i < ALL; i++)
	{
		double at = qkv[i];
		double loss[2] = {0};

		for (int side = 0; side < 2; side++)
		{
			reference moved;

			qkv[i] = at + (side ? -1e-6 : 1e-6);
			moved = reference_make(&c, 0.7, qkv, dout, ROWS);
			for (int j = 0; j < OUT; j++)
				loss[side] += dout[j] * moved.out[j];
			reference_free(&moved);
		}
		qkv[i] = at;
		assert_true(fabs((loss[0] - loss[1]) / 2e-6 - r.dq[i]) < 1e-6);
	}
	reference_free(&r);
}

/* pad: what rows are longer than their values, in units; backends read whole vectors where the rows
 * allow it. */
static void
check_case(const attention_case *c, ft_dtype dtype, int64_t pad)
{
	int64_t d = c->head_dim;
	int64_t q_width = c->heads * d;
	int64_t k_width = c->kv_heads * d;
	int32_t starts[8] = {0};
	ft_attention a = {.heads = c->heads,
					  .kv_heads = c->kv_heads,
					  .head_dim = c->head_dim,
					  .window = c->window,
					  .scale = (float) (1 / sqrt((double) d)),
					  .n_sequences = c->n,
					  .starts_host = starts};
	int32_t *on_device;
	int64_t rows;
	tensor qkv, out, dout, dqkv, again, lse;
	reference r;
	ft_mat q, k, v;

	for (int i = 0; i < c->n; i++)
	{
		starts[i + 1] = starts[i] + c->length[i];
		if (c->length[i] > a.max_length)
			a.max_length = c->length[i];
	}
	rows = starts[c->n];
	on_device = upload(starts, sizeof starts);
	a.starts = on_device;
	qkv = tensor_random(rows, q_width + 2 * k_width, 3 * pad, dtype);
	out = tensor_zero(rows, q_width, pad, dtype);
	dout = tensor_random(rows, q_width, 2 * pad, dtype);
	dqkv = tensor_zero(rows, q_width + 2 * k_width, pad, dtype);
	again = tensor_zero(rows, q_width + 2 * k_width, pad, dtype);
	lse = tensor_zero(rows, c->heads, 0, FT_F32);
	q = ft_mat_cols(qkv.mat, 0, q_width);
	k = ft_mat_cols(qkv.mat, q_width, k_width);
	v = ft_mat_cols(qkv.mat, q_width + k_width, k_width);
	r = reference_make(c, a.scale, qkv.value, dout.value, rows);

	must(ops->attention(stream, &a, out.mat, lse.mat.data, q, k, v));
	check_tensor("attention", &out, r.out);
	check_tensor("attention's log of the sum", &lse, r.lse);
	/* overwritten, not added to; and the same bits again */
	for (int round = 0; round < 2; round++)
	{
		tensor *to = round ? &again : &dqkv;

		must(ops->attention_grad(stream, &a, ft_mat_cols(to->mat, 0, q_width),
								 ft_mat_cols(to->mat, q_width, k_width),
								 ft_mat_cols(to->mat, q_width + k_width, k_width), dout.mat, q, k,
								 v, out.mat, lse.mat.data));
	}
	check_tensor("attention_grad", &dqkv, r.dq);
	must(ops->attention_grad(stream, &a, ft_mat_cols(dqkv.mat, 0, q_width),
							 ft_mat_cols(dqkv.mat, q_width, k_width),
							 ft_mat_cols(dqkv.mat, q_width + k_width, k_width), dout.mat, q, k, v,
							 out.mat, lse.mat.data));
	check_same_bits("attention_grad, twice", &dqkv, &again);
	reference_free(&r);
	device_free(on_device);
	tensor_free(&qkv);
	tensor_free(&out);
	tensor_free(&dout);
	tensor_free(&dqkv);
	tensor_free(&again);
	tensor_free(&lse);
}

static void
test_attention(void **state)
{
	(void) state;
	for (int i = 0; i < COUNT_OF(cases); i++)
	{
		check_case(&cases[i], FT_F32, 1);
		check_case(&cases[i], FT_BF16, 1);
		check_case(&cases[i], FT_BF16, 8);
	}
}

/* --- the paged cache --- */

enum
{
	MAX_BLOCKS = 8,
	SEQUENCES = 3
};

/* A cache on the device whose blocks are handed out in a scrambled order, stale values in all. */
typedef struct paged
{
	ft_kv_layer layer;
	ft_paged_batch batch;
	int32_t row_start[SEQUENCES + 1];
	int32_t context[SEQUENCES];
	int32_t *on_device[3];
} paged;

static paged
paged_make(int kv_heads, int head_dim, ft_dtype dtype)
{
	int32_t blocks[SEQUENCES * MAX_BLOCKS];
	int64_t values = (int64_t) (SEQUENCES * MAX_BLOCKS + 1) * kv_heads * FT_KV_BLOCK * head_dim;
	paged p = {.layer = {.dtype = dtype, .kv_heads = kv_heads, .head_dim = head_dim}};
	tensor stale[2];

	for (int i = 0; i < SEQUENCES * MAX_BLOCKS; i++)
		blocks[i] = (i * 7) % (SEQUENCES * MAX_BLOCKS) + 1;
	for (int i = 0; i < 2; i++)
	{
		stale[i] = tensor_random(1, values, 0, dtype);
		free(stale[i].value);
	}
	p.layer.k = stale[0].mat.data;
	p.layer.v = stale[1].mat.data;
	p.batch.n = SEQUENCES;
	p.batch.max_blocks = MAX_BLOCKS;
	p.on_device[0] = device_alloc(sizeof p.row_start);
	p.on_device[1] = device_alloc(sizeof p.context);
	p.on_device[2] = upload(blocks, sizeof blocks);
	p.batch.row_start = p.on_device[0];
	p.batch.context = p.on_device[1];
	p.batch.blocks = p.on_device[2];
	return p;
}

static void
paged_free(paged *p)
{
	device_free(p->layer.k);
	device_free(p->layer.v);
	for (int i = 0; i < 3; i++)
		device_free(p->on_device[i]);
}

/* Say that the next rows are `count[i]` of each sequence, from position `context[i]` on. */
static void
paged_step(paged *p, const int32_t *context, const int32_t *count)
{
	p->batch.max_rows = 0;
	p->batch.max_context = 0;
	for (int i = 0; i < SEQUENCES; i++)
	{
		p->context[i] = context[i];
		p->row_start[i + 1] = p->row_start[i] + count[i];
		if (count[i] > p->batch.max_rows)
			p->batch.max_rows = count[i];
		if (context[i] + count[i] > p->batch.max_context)
			p->batch.max_context = context[i] + count[i];
	}
	must(ops->copy_to_device(stream, p->on_device[0], p->row_start, sizeof p->row_start));
	must(ops->copy_to_device(stream, p->on_device[1], p->context, sizeof p->context));
}

static const int32_t lengths[SEQUENCES] = {100, 1, 37};

/* Feed the sequences in steps of at most `step` rows and gather the results of all positions into
 * result[sequence][position][H D]. */
static void
run_paged(paged *p, const tensor qkv[SEQUENCES], int heads, int window, float scale, int step,
		  ft_dtype out_type, double *result[SEQUENCES])
{
	int64_t d = p->layer.head_dim;
	int64_t q_width = heads * d;
	int64_t k_width = p->layer.kv_heads * d;
	int32_t done[SEQUENCES] = {0};

	for (;;)
	{
		int32_t count[SEQUENCES];
		int64_t rows = 0;
		tensor in, out;
		double *got;

		for (int i = 0; i < SEQUENCES; i++)
		{
			count[i] = lengths[i] - done[i] < step ? lengths[i] - done[i] : step;
			rows += count[i];
		}
		if (rows == 0)
			return;
		paged_step(p, done, count);
		in = tensor_zero(rows, q_width + 2 * k_width, 0, qkv[0].mat.dtype);
		out = tensor_zero(rows, q_width, 1, out_type);
		for (int i = 0; i < SEQUENCES; i++)
			for (int64_t j = 0; j < count[i] * in.mat.cols; j++)
				in.value[p->row_start[i] * in.mat.cols + j] =
					qkv[i].value[done[i] * in.mat.cols + j];
		tensor_upload(&in);
		must(ops->kv_store(stream, &p->layer, &p->batch, ft_mat_cols(in.mat, q_width, k_width),
						   ft_mat_cols(in.mat, q_width + k_width, k_width)));
		must(ops->attention_paged(stream, out.mat, ft_mat_cols(in.mat, 0, q_width), &p->layer,
								  &p->batch, heads, window, scale));
		got = tensor_read(&out);
		for (int i = 0; i < SEQUENCES; i++)
		{
			memcpy(result[i] + done[i] * q_width, got + p->row_start[i] * q_width,
				   (size_t) (count[i] * q_width) * sizeof *got);
			done[i] += count[i];
		}
		free(got);
		tensor_free(&in);
		tensor_free(&out);
	}
}

static void
check_paged(int heads, int kv_heads, int head_dim, int window, ft_dtype in, ft_dtype cached,
			ft_dtype out)
{
	static const int steps[] = {100, 1, 7, 33};
	int64_t q_width = (int64_t) heads * head_dim;
	int64_t width = (int64_t) (heads + 2 * kv_heads) * head_dim;
	float scale = (float) (1 / sqrt(head_dim));
	tensor qkv[SEQUENCES];
	double *result[SEQUENCES];
	double *first[SEQUENCES];

	for (int i = 0; i < SEQUENCES; i++)
	{
		qkv[i] = tensor_random(lengths[i], width, 0, in);
		result[i] = calloc((size_t) (lengths[i] * q_width), sizeof(double));
		first[i] = calloc((size_t) (lengths[i] * q_width), sizeof(double));
	}
	for (int s = 0; s < COUNT_OF(steps); s++)
	{
		paged p = paged_make(kv_heads, head_dim, cached);

		run_paged(&p, qkv, heads, window, scale, steps[s], out, s == 0 ? first : result);
		paged_free(&p);
		if (s > 0)
			for (int i = 0; i < SEQUENCES; i++)
				if (memcmp(first[i], result[i], (size_t) (lengths[i] * q_width) * sizeof(double)) !=
					0)
					fail_msg("attention_paged: rows change with steps of %d", steps[s]);
	}
	for (int i = 0; i < SEQUENCES; i++)
	{
		attention_case c = {heads, kv_heads, head_dim, window, 1, {lengths[i]}};
		double *zero = calloc((size_t) (lengths[i] * q_width), sizeof *zero);
		reference r;

		for (int64_t j = 0; j < lengths[i] * width; j++)
			if (j % width >= q_width)
				qkv[i].value[j] = round_as(qkv[i].value[j], cached);
		r = reference_make(&c, scale, qkv[i].value, zero, lengths[i]);
		check_values("attention_paged", first[i], r.out, lengths[i] * q_width, tolerance(out));
		reference_free(&r);
		free(zero);
		free(first[i]);
		free(result[i]);
		tensor_free(&qkv[i]);
	}
}

static void
test_paged(void **state)
{
	(void) state;
	check_paged(9, 3, 64, 0, FT_F32, FT_F32, FT_F32);
	check_paged(9, 3, 64, 0, FT_F32, FT_BF16, FT_F32);
	check_paged(4, 4, 16, 0, FT_BF16, FT_F32, FT_BF16);
	check_paged(6, 2, 10, 0, FT_F32, FT_F32, FT_F32);
	check_paged(6, 2, 10, 21, FT_F32, FT_BF16, FT_BF16);
	check_paged(9, 3, 64, 40, FT_F32, FT_F32, FT_F32);
	check_paged(40, 1, 8, 16, FT_F32, FT_F32, FT_F32);
	check_paged(9, 3, 64, 0, FT_BF16, FT_BF16, FT_BF16);
	check_paged(4, 4, 64, 24, FT_BF16, FT_BF16, FT_BF16);
	check_paged(8, 2, 128, 0, FT_BF16, FT_BF16, FT_BF16);
	check_paged(20, 1, 128, 37, FT_BF16, FT_BF16, FT_BF16);
}

static void
test_refusals(void **state)
{
	int32_t starts[] = {0, 4};
	ft_attention a = {.heads = 3,
					  .kv_heads = 2,
					  .head_dim = 4,
					  .scale = 1,
					  .n_sequences = 1,
					  .max_length = 4,
					  .starts = starts,
					  .starts_host = starts};
	tensor q = tensor_random(4, 12, 0, FT_F32);
	tensor k = tensor_random(4, 8, 0, FT_F32);
	tensor k16 = tensor_random(4, 4, 0, FT_BF16);
	tensor lse = tensor_zero(4, 3, 0, FT_F32);

	(void) state;
	assert_int_equal(ops->attention(stream, &a, q.mat, lse.mat.data, q.mat, k.mat, k.mat),
					 FT_INVALID);
	a.kv_heads = 1;
	assert_int_equal(ops->attention(stream, &a, q.mat, lse.mat.data, q.mat, k.mat, k.mat),
					 FT_INVALID);
	assert_int_equal(ops->attention(stream, &a, q.mat, lse.mat.data, q.mat, k16.mat, k16.mat),
					 FT_UNSUPPORTED);
	starts[1] = 5;
	assert_int_equal(ops->attention(stream, &a, q.mat, lse.mat.data, q.mat,
									ft_mat_cols(k.mat, 0, 4), ft_mat_cols(k.mat, 4, 4)),
					 FT_INVALID);
	starts[1] = 4;
	a.max_length = 3;
	if (strcmp(ops->name, "cpu") == 0)
		assert_int_equal(ops->attention(stream, &a, q.mat, lse.mat.data, q.mat,
										ft_mat_cols(k.mat, 0, 4), ft_mat_cols(k.mat, 4, 4)),
						 FT_INVALID);
	tensor_free(&q);
	tensor_free(&k);
	tensor_free(&k16);
	tensor_free(&lse);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_formula),
		cmocka_unit_test(test_attention),
		cmocka_unit_test(test_paged),
		cmocka_unit_test(test_refusals),
	};

	return run_variants("attention", tests, sizeof tests / sizeof *tests);
}
