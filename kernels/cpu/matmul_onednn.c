/*
 * matmul_onednn.c: bf16 products by oneDNN, called from our own threads.
 *
 * The result is cut into pieces of a fixed size, each of them one call of the
 * library on one thread: OpenMP teams spin, and two of them on one machine
 * collapse.  A primitive is needed for each shape and costs half a millisecond
 * to make, so primitives are kept, and the fixed size makes the shapes few.
 */
#include "onednn.h"

#ifdef FT_HAVE_ONEDNN

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Rows or columns of a piece. */
#define PIECE 256

typedef struct library_job
{
	ft_stream *s;
	const ft_onednn *dnnl;
	ft_mat c;
	ft_mat a;
	ft_mat b;
	bool ta;
	bool tb;
	float alpha;
	float beta;
	bool by_rows;
	dnnl_status_t *status; /* [pieces] */
} library_job;

/* c, a and b of the piece's rows or columns. */
static void
cut_piece(const library_job *job, int64_t piece, ft_mat *c, ft_mat *a, ft_mat *b)
{
	int64_t first = piece * PIECE;

	*c = job->c;
	*a = job->a;
	*b = job->b;
	if (job->by_rows)
	{
		int64_t n = ft_min(PIECE, job->c.rows - first);

		*c = ft_mat_rows(job->c, first, n);
		*a = job->ta ? ft_mat_cols(job->a, first, n) : ft_mat_rows(job->a, first, n);
	}
	else
	{
		int64_t n = ft_min(PIECE, job->c.cols - first);

		*c = ft_mat_cols(job->c, first, n);
		*b = job->tb ? ft_mat_rows(job->b, first, n) : ft_mat_cols(job->b, first, n);
	}
}

/* --- kept primitives --- */

typedef struct primitive_key
{
	int64_t m;
	int64_t n;
	int64_t k;
	int64_t lda;
	int64_t ldb;
	int64_t ldc;
	float alpha;
	float beta;
	int ta;
	int tb;
	int c_dtype;
	int unused; /* no padding: keys are compared as bytes */
} primitive_key;

typedef struct kept_primitive
{
	primitive_key key;
	dnnl_memory_desc_t a;
	dnnl_memory_desc_t b;
	dnnl_memory_desc_t c;
	dnnl_memory_desc_t scratchpad;
	dnnl_primitive_t primitive;
	struct kept_primitive *next;
} kept_primitive;

#define BUCKETS 256

/* Shapes are few (layers of one model times two row counts), so nothing is ever thrown away. */
static kept_primitive *buckets[BUCKETS];
static pthread_mutex_t buckets_lock = PTHREAD_MUTEX_INITIALIZER;

static unsigned
hash_key(const primitive_key *key)
{
	const unsigned char *p = (const unsigned char *) key;
	unsigned h = 2166136261u;

	for (size_t i = 0; i < sizeof *key; i++)
		h = (h ^ p[i]) * 16777619u;
	return h % BUCKETS;
}

static dnnl_status_t
describe(const ft_onednn *dnnl, dnnl_memory_desc_t *md, int64_t rows, int64_t cols, int64_t ld,
		 bool transposed, dnnl_data_type_t type)
{
	dnnl_dims_t dims = {rows, cols};
	dnnl_dims_t strides = {transposed ? 1 : ld, transposed ? ld : 1};

	return dnnl->dnnl_memory_desc_init_by_strides(md, 2, dims, type, strides);
}

static dnnl_status_t
make_attributes(const ft_onednn *dnnl, const primitive_key *key, dnnl_primitive_attr_t *attr)
{
	dnnl_post_ops_t ops = NULL;
	dnnl_status_t status = dnnl->dnnl_primitive_attr_create(attr);

	if (status == dnnl_success)
		status = dnnl->dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
	if (status == dnnl_success && key->alpha != 1)
		status = dnnl->dnnl_primitive_attr_set_output_scales(*attr, 1, 0, &key->alpha);
	if (status == dnnl_success && key->beta != 0)
	{
		status = dnnl->dnnl_post_ops_create(&ops);
		if (status == dnnl_success)
			status = dnnl->dnnl_post_ops_append_sum(ops, key->beta);
		if (status == dnnl_success)
			status = dnnl->dnnl_primitive_attr_set_post_ops(*attr, ops);
		dnnl->dnnl_post_ops_destroy(ops);
	}
	return status;
}

static dnnl_status_t
make_primitive(const ft_onednn *dnnl, const primitive_key *key, kept_primitive *p)
{
	dnnl_data_type_t out = key->c_dtype == FT_BF16 ? dnnl_bf16 : dnnl_f32;
	dnnl_matmul_desc_t desc;
	dnnl_primitive_attr_t attr = NULL;
	dnnl_primitive_desc_t pd = NULL;
	dnnl_status_t status;

	p->key = *key;
	status = describe(dnnl, &p->a, key->m, key->k, key->lda, key->ta, dnnl_bf16);
	if (status == dnnl_success)
		status = describe(dnnl, &p->b, key->k, key->n, key->ldb, key->tb, dnnl_bf16);
	if (status == dnnl_success)
		status = describe(dnnl, &p->c, key->m, key->n, key->ldc, false, out);
	if (status == dnnl_success)
		status = dnnl->dnnl_matmul_desc_init(&desc, &p->a, &p->b, NULL, &p->c);
	if (status == dnnl_success)
		status = make_attributes(dnnl, key, &attr);
	if (status == dnnl_success)
		status = dnnl->dnnl_primitive_desc_create(&pd, &desc, attr, dnnl->engine, NULL);
	if (status == dnnl_success)
	{
		p->scratchpad = *dnnl->dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
		status = dnnl->dnnl_primitive_create(&p->primitive, pd);
	}
	if (pd != NULL)
		dnnl->dnnl_primitive_desc_destroy(pd);
	if (attr != NULL)
		dnnl->dnnl_primitive_attr_destroy(attr);
	return status;
}

static dnnl_status_t
get_primitive(const ft_onednn *dnnl, const primitive_key *key, const kept_primitive **result)
{
	unsigned bucket = hash_key(key);
	kept_primitive *p;
	dnnl_status_t status = dnnl_success;

	pthread_mutex_lock(&buckets_lock);
	for (p = buckets[bucket]; p != NULL; p = p->next)
		if (memcmp(&p->key, key, sizeof *key) == 0)
			break;
	if (p == NULL)
	{
		p = calloc(1, sizeof *p);
		status = p == NULL ? dnnl_out_of_memory : make_primitive(dnnl, key, p);
		if (status == dnnl_success)
		{
			p->next = buckets[bucket];
			buckets[bucket] = p;
		}
		else
			free(p);
	}
	pthread_mutex_unlock(&buckets_lock);
	*result = p;
	return status;
}

static dnnl_status_t
execute(const library_job *job, const kept_primitive *p, ft_mat c, ft_mat a, ft_mat b,
		void *scratchpad)
{
	const ft_onednn *dnnl = job->dnnl;
	dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, NULL},
							  {DNNL_ARG_WEIGHTS, NULL},
							  {DNNL_ARG_DST, NULL},
							  {DNNL_ARG_SCRATCHPAD, NULL}};
	const dnnl_memory_desc_t *md[] = {&p->a, &p->b, &p->c, &p->scratchpad};
	void *data[] = {a.data, b.data, c.data, scratchpad};
	dnnl_stream_t stream = NULL;
	dnnl_status_t status =
		dnnl->dnnl_stream_create(&stream, dnnl->engine, dnnl_stream_default_flags);

	for (int i = 0; i < 4 && status == dnnl_success; i++)
		status = dnnl->dnnl_memory_create(&args[i].memory, md[i], dnnl->engine, data[i]);
	if (status == dnnl_success)
		status = dnnl->dnnl_primitive_execute(p->primitive, stream, 4, args);
	if (status == dnnl_success)
		status = dnnl->dnnl_stream_wait(stream);
	for (int i = 0; i < 4; i++)
		if (args[i].memory != NULL)
			dnnl->dnnl_memory_destroy(args[i].memory);
	if (stream != NULL)
		dnnl->dnnl_stream_destroy(stream);
	return status;
}

static dnnl_status_t
multiply_piece(const library_job *job, int worker, ft_mat c, ft_mat a, ft_mat b)
{
	primitive_key key = {.m = c.rows,
						 .n = c.cols,
						 .k = job->ta ? a.rows : a.cols,
						 .lda = a.ld,
						 .ldb = b.ld,
						 .ldc = c.ld,
						 .alpha = job->alpha,
						 .beta = job->beta,
						 .ta = job->ta,
						 .tb = job->tb,
						 .c_dtype = (int) c.dtype};
	const kept_primitive *p;
	void *scratchpad;
	dnnl_status_t status = get_primitive(job->dnnl, &key, &p);

	if (status != dnnl_success)
		return status;
	if (ft_scratch_get(&job->s->worker[worker],
					   job->dnnl->dnnl_memory_desc_get_size(&p->scratchpad), &scratchpad) != FT_OK)
		return dnnl_out_of_memory;
	return execute(job, p, c, a, b, scratchpad);
}

/* --- the whole product --- */

static void
library_task(void *context, int worker, int64_t begin, int64_t end)
{
	library_job *job = context;

	job->dnnl->omp_set_num_threads(1);
	for (int64_t piece = begin; piece < end; piece++)
	{
		ft_mat c, a, b;

		cut_piece(job, piece, &c, &a, &b);
		job->status[piece] = multiply_piece(job, worker, c, a, b);
	}
}

ft_status
ft_onednn_matmul(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha,
				 float beta, bool *done)
{
	library_job job = {
		.s = s, .c = c, .a = a, .b = b, .ta = ta, .tb = tb, .alpha = alpha, .beta = beta};
	int64_t pieces;
	void *memory;

	*done = false;
	if (a.dtype != FT_BF16 || b.dtype != FT_BF16 || s->device->compute_dtype != FT_BF16)
		return FT_OK;
	job.dnnl = ft_onednn_get();
	if (job.dnnl == NULL)
		return FT_OK;
	job.by_rows =
		c.rows >= c.cols || ft_divide_up(c.rows, PIECE) >= ft_pool_threads(s->device->pool);
	pieces = ft_divide_up(job.by_rows ? c.rows : c.cols, PIECE);
	FT_TRY(ft_scratch_get(&s->shared, (size_t) pieces * sizeof *job.status, &memory));
	job.status = memory;
	ft_pool_run(s->device->pool, pieces, 1, library_task, &job);
	for (int64_t i = 0; i < pieces; i++)
		if (job.status[i] != dnnl_success)
			return ft_fail(job.status[i] == dnnl_out_of_memory ? FT_NO_MEMORY : FT_INTERNAL,
						   "oneDNN failed with %d on a product [%lld, %lld] over %lld",
						   (int) job.status[i], (long long) c.rows, (long long) c.cols,
						   (long long) (ta ? a.rows : a.cols));
	*done = true;
	return FT_OK;
}

#else

ft_status
ft_onednn_matmul(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha,
				 float beta, bool *done)
{
	(void) s, (void) c, (void) a, (void) ta, (void) b, (void) tb, (void) alpha, (void) beta;
	*done = false;
	return FT_OK;
}

#endif
