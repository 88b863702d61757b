/*
 * decode.c: the forward pass of a serving batch.
 *
 *     h = embed(tokens)
 *     per layer:  x = norm(h);  q, k, v = x·QKVᵀ (+ LoRA, + bias);  (norm the heads of q and k;)
 *                 rotate q and k;  store k, v
 *                 h += attention(q, cache)·Oᵀ (+ LoRA)
 *                 x = norm(h);  h += (silu(gate) · up)·downᵀ (+ LoRA),  gate | up = x·GUᵀ (+ LoRA)
 *                               or the weighted sum of its experts (experts.h)
 *     logits = norm(h)·headᵀ, at the rows that need them only
 *
 * The addition of each branch to h is folded into the norm that follows it.
 */
#include "decode.h"

#include "arena.h"
#include "buffer.h"
#include "experts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A run of a batch's rows that share an adapter. */
typedef struct adapter_run
{
	const ft_adapter *adapter;
	int row;
	int rows;
} adapter_run;

struct ft_decoder
{
	const ft_model *model;
	const ft_ops *ops;
	ft_stream *stream;
	int max_rows;
	int max_sequences;
	int max_blocks; /* of a sequence */
	int n_wanted;   /* rows of logits that the last run left */

	/* device: activations */
	ft_arena arena;
	float *h;      /* [T, C] residual stream */
	void *x;       /* [T, C] normed */
	void *qkv;     /* [T, (H + 2G)·D] */
	void *heads;   /* [T, H·D] attention's result */
	void *gate_up; /* [T, 2F]; with experts [T · K, 2F] */
	void *act;     /* [T, F]; with experts [T · K, F] */
	void *branch;  /* [T, C] */
	ft_experts_work experts;
	float *last_h; /* [S, C] rows whose logits are wanted */
	void *last_branch;
	void *last_x;
	float *logits;    /* [S, V] */
	int32_t *sampled; /* [S] */

	/* integers of a batch: filled on the host, sent in one copy */
	int32_t *host_ints;
	int32_t *device_ints;
	size_t n_ints;
	float *host_logits; /* [V] a row that is being changed */

	adapter_run *runs; /* [S] */
	int n_runs;
	ft_lora_segment *segments; /* [3·S] */
};

/* Where the parts of the integer arrays begin. */
typedef struct int_layout
{
	size_t ids;
	size_t positions;
	size_t row_start;
	size_t context;
	size_t wanted;
	size_t blocks; /* last: its size depends on the batch */
} int_layout;

static int_layout
ints_of(const ft_decoder *d)
{
	size_t rows = (size_t) d->max_rows;
	size_t sequences = (size_t) d->max_sequences;
	int_layout at;

	at.ids = 0;
	at.positions = at.ids + rows;
	at.row_start = at.positions + rows;
	at.context = at.row_start + sequences + 1;
	at.wanted = at.context + sequences;
	at.blocks = at.wanted + sequences;
	return at;
}

static ft_status
plan(ft_decoder *d)
{
	const ft_config *c = &d->model->config;
	ft_dtype compute = d->model->compute;
	int64_t t = d->max_rows;
	int64_t s = d->max_sequences;
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;

	FT_TRY(ft_arena_want(&d->arena, &d->h, t * c->hidden, FT_F32));
	FT_TRY(ft_arena_want(&d->arena, &d->x, t * c->hidden, compute));
	FT_TRY(ft_arena_want(&d->arena, &d->qkv, t * (q + 2 * kv), compute));
	FT_TRY(ft_arena_want(&d->arena, &d->heads, t * q, compute));
	FT_TRY(ft_arena_want(&d->arena, &d->gate_up, t * ft_ffn_rows(c) * 2 * c->ffn, compute));
	FT_TRY(ft_arena_want(&d->arena, &d->act, t * ft_ffn_rows(c) * c->ffn, compute));
	FT_TRY(ft_arena_want(&d->arena, &d->branch, t * c->hidden, compute));
	FT_TRY(ft_experts_work_want(&d->experts, d->model, t, &d->arena));
	FT_TRY(ft_arena_want(&d->arena, &d->last_h, s * c->hidden, FT_F32));
	FT_TRY(ft_arena_want(&d->arena, &d->last_branch, s * c->hidden, compute));
	FT_TRY(ft_arena_want(&d->arena, &d->last_x, s * c->hidden, compute));
	FT_TRY(ft_arena_want(&d->arena, &d->logits, s * c->vocab, FT_F32));
	FT_TRY(ft_arena_want(&d->arena, &d->sampled, s, FT_I32));
	return ft_arena_want(&d->arena, &d->device_ints, (int64_t) d->n_ints, FT_I32);
}

ft_status
ft_decoder_create(const ft_model *model, int max_rows, int max_sequences, ft_decoder **decoder)
{
	ft_decoder *d;
	ft_status status;

	if (max_sequences < 1 || max_rows < max_sequences)
		return ft_fail(FT_INVALID, "a batch of %d rows cannot hold %d sequences", max_rows,
					   max_sequences);
	FT_TRY(ft_alloc((void **) &d, 1, sizeof *d));
	d->model = model;
	d->ops = model->ops;
	d->max_rows = max_rows;
	d->max_sequences = max_sequences;
	d->max_blocks = ft_kv_blocks_for(model->rope_positions);
	d->n_ints = ints_of(d).blocks + (size_t) max_sequences * (size_t) d->max_blocks;
	status = plan(d);
	if (status == FT_OK)
		status = ft_arena_allocate(&d->arena, d->ops, model->device);
	if (status == FT_OK)
		status = d->ops->stream_create(model->device, &d->stream);
	if (status == FT_OK)
		status = d->ops->mem_alloc(model->device, FT_MEM_HOST, d->n_ints * sizeof(int32_t),
								   (void **) &d->host_ints);
	if (status == FT_OK)
		status = d->ops->mem_alloc(model->device, FT_MEM_HOST,
								   (size_t) model->config.vocab * sizeof(float),
								   (void **) &d->host_logits);
	if (status == FT_OK)
		status = ft_alloc((void **) &d->runs, (size_t) max_sequences, sizeof *d->runs);
	if (status == FT_OK)
		status = ft_alloc((void **) &d->segments, (size_t) max_sequences, 3 * sizeof *d->segments);
	if (status != FT_OK)
	{
		ft_decoder_free(d);
		return status;
	}
	*decoder = d;
	return FT_OK;
}

void
ft_decoder_free(ft_decoder *decoder)
{
	if (!decoder)
		return;
	ft_arena_free(&decoder->arena);
	if (decoder->host_ints)
		decoder->ops->mem_free(decoder->model->device, FT_MEM_HOST, decoder->host_ints);
	if (decoder->host_logits)
		decoder->ops->mem_free(decoder->model->device, FT_MEM_HOST, decoder->host_logits);
	if (decoder->stream)
		decoder->ops->stream_destroy(decoder->stream);
	free(decoder->runs);
	free(decoder->segments);
	free(decoder);
}

int64_t
ft_decoder_bytes(const ft_decoder *decoder)
{
	return decoder->arena.bytes;
}

static ft_status
check_item(const ft_decoder *d, const ft_kv_cache *cache, const ft_decode_item *item)
{
	int64_t end = (int64_t) item->context + item->rows;

	if (item->rows < 1 || item->context < 0 || end > d->model->rope_positions)
		return ft_fail(FT_INTERNAL, "rows %d at position %d are outside the context of %d",
					   item->rows, item->context, d->model->rope_positions);
	for (int i = 0; i < ft_kv_blocks_for(end); i++)
		if (item->blocks[i] < 0 || item->blocks[i] >= cache->n_blocks)
			return ft_fail(FT_INTERNAL, "cache block %d is outside the cache of %d blocks",
						   item->blocks[i], cache->n_blocks);
	return FT_OK;
}

/* Lay the items out as the batch's integers and send them. */
static ft_status
prepare(ft_decoder *d, const ft_kv_cache *cache, const ft_decode_item *items, int n, int *rows,
		ft_paged_batch *batch)
{
	int_layout at = ints_of(d);
	int32_t *host = d->host_ints;
	int row = 0;
	size_t used;

	if (n > d->max_sequences)
		return ft_fail(FT_INTERNAL, "a batch of %d sequences, planned were %d", n,
					   d->max_sequences);
	*batch = (ft_paged_batch){.n = n};
	for (int i = 0; i < n; i++)
	{
		int end = items[i].context + items[i].rows;

		FT_TRY(check_item(d, cache, &items[i]));
		if (items[i].rows > batch->max_rows)
			batch->max_rows = items[i].rows;
		if (end > batch->max_context)
			batch->max_context = end;
	}
	batch->max_blocks = ft_kv_blocks_for(batch->max_context);
	d->n_wanted = 0;
	d->n_runs = 0;
	for (int i = 0; i < n; i++)
	{
		const ft_decode_item *item = &items[i];
		int blocks = ft_kv_blocks_for((int64_t) item->context + item->rows);
		int32_t *to = host + at.blocks + (size_t) i * (size_t) batch->max_blocks;

		if (item->rows > d->max_rows - row)
			return ft_fail(FT_INTERNAL, "a batch of more than the %d rows planned", d->max_rows);
		host[at.row_start + (size_t) i] = row;
		host[at.context + (size_t) i] = item->context;
		for (int r = 0; r < item->rows; r++)
		{
			host[at.ids + (size_t) (row + r)] = item->tokens[r];
			host[at.positions + (size_t) (row + r)] = item->context + r;
		}
		memcpy(to, item->blocks, (size_t) blocks * sizeof(int32_t));
		memset(to + blocks, 0, (size_t) (batch->max_blocks - blocks) * sizeof(int32_t));
		if (d->n_runs > 0 && d->runs[d->n_runs - 1].adapter == item->adapter)
			d->runs[d->n_runs - 1].rows += item->rows;
		else
			d->runs[d->n_runs++] = (adapter_run){item->adapter, row, item->rows};
		row += item->rows;
		if (item->wants_logits)
			host[at.wanted + (size_t) d->n_wanted++] = row - 1;
	}
	host[at.row_start + (size_t) n] = row;
	*rows = row;
	used = at.blocks + (size_t) n * (size_t) batch->max_blocks;
	batch->row_start = d->device_ints + at.row_start;
	batch->context = d->device_ints + at.context;
	batch->blocks = d->device_ints + at.blocks;
	return d->ops->copy_to_device(d->stream, d->device_ints, host, used * sizeof(int32_t));
}

/* Add the adapters' part of n targets that share the input x; target i's outputs begin at
 * column[i]. */
static ft_status
add_lora(ft_decoder *d, ft_mat y, ft_mat x, int layer, int n, const ft_target *targets,
		 const int64_t *columns)
{
	int used = 0;

	for (int r = 0; r < d->n_runs; r++)
	{
		const ft_adapter *adapter = d->runs[r].adapter;

		if (!adapter)
			continue;
		for (int i = 0; i < n; i++)
		{
			int slot = layer * FT_TARGET_COUNT + (int) targets[i];
			int in, out;

			if (adapter->a_at[slot] < 0)
				continue;
			ft_target_shape(&d->model->config, targets[i], &in, &out);
			d->segments[used++] = (ft_lora_segment){
				.row = d->runs[r].row,
				.rows = d->runs[r].rows,
				.column = columns[i],
				.out = out,
				.rank = adapter->rank,
				.scale = adapter->scale,
				.dtype = ft_adapter_dtype(adapter),
				.a = ft_adapter_at(adapter, adapter->a_at[slot]),
				.b = ft_adapter_at(adapter, adapter->b_at[slot]),
			};
		}
	}
	if (used == 0)
		return FT_OK;
	return d->ops->lora(d->stream, y, x, d->segments, used);
}

/* What only some families have between the projections and RoPE. */
static ft_status
add_bias_and_norms(ft_decoder *d, int index, ft_mat qkv)
{
	const ft_config *c = &d->model->config;
	const ft_layer *layer = &d->model->layers[index];
	ft_mat q = ft_mat_cols(qkv, 0, (int64_t) c->heads * c->head_dim);
	ft_mat k = ft_mat_cols(qkv, q.cols, (int64_t) c->kv_heads * c->head_dim);

	if (c->qkv_bias)
		FT_TRY(d->ops->add_bias(d->stream, qkv, layer->qkv_bias));
	if (!c->qk_norm)
		return FT_OK;
	FT_TRY(d->ops->head_norm(d->stream, q, q, c->head_dim, layer->q_norm, c->rms_eps));
	return d->ops->head_norm(d->stream, k, k, c->head_dim, layer->k_norm, c->rms_eps);
}

/* branch = attention(x)·Oᵀ */
static ft_status
attention_branch(ft_decoder *d, const ft_kv_cache *cache, const ft_paged_batch *batch, int index,
				 ft_mat x, ft_mat branch)
{
	static const ft_target qkv_targets[] = {FT_Q_PROJ, FT_K_PROJ, FT_V_PROJ};
	static const ft_target out_target = FT_O_PROJ;
	const ft_ops *ops = d->ops;
	const ft_model *m = d->model;
	const ft_config *c = &m->config;
	const ft_layer *layer = &m->layers[index];
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;
	const int64_t columns[] = {0, q, q + kv};
	const int64_t zero = 0;
	ft_mat qkv = ft_mat_make(d->qkv, m->compute, x.rows, q + 2 * kv);
	ft_mat heads = ft_mat_make(d->heads, m->compute, x.rows, q);

	FT_TRY(ops->linear(d->stream, qkv, x, layer->qkv, 0, true));
	FT_TRY(add_lora(d, qkv, x, index, 3, qkv_targets, columns));
	FT_TRY(add_bias_and_norms(d, index, qkv));
	FT_TRY(ops->rope(d->stream, ft_mat_cols(qkv, 0, q + kv), c->head_dim,
					 d->device_ints + ints_of(d).positions, m->rope_cos, m->rope_sin, false));
	FT_TRY(ops->kv_store(d->stream, &cache->layers[index], batch, ft_mat_cols(qkv, q, kv),
						 ft_mat_cols(qkv, q + kv, kv)));
	FT_TRY(ops->attention_paged(d->stream, heads, ft_mat_cols(qkv, 0, q), &cache->layers[index],
								batch, c->heads, ft_config_window(c, index),
								1.0f / sqrtf((float) c->head_dim)));
	FT_TRY(ops->linear(d->stream, branch, heads, layer->out, 0, true));
	return add_lora(d, branch, heads, index, 1, &out_target, &zero);
}

/* branch = (silu(gate) · up)·downᵀ */
static ft_status
ffn_branch(ft_decoder *d, int index, ft_mat x, ft_mat branch)
{
	static const ft_target up_targets[] = {FT_GATE_PROJ, FT_UP_PROJ};
	static const ft_target down_target = FT_DOWN_PROJ;
	const ft_ops *ops = d->ops;
	const ft_model *m = d->model;
	const ft_layer *layer = &m->layers[index];
	const int64_t columns[] = {0, m->config.ffn};
	const int64_t zero = 0;
	ft_mat gate_up = ft_mat_make(d->gate_up, m->compute, x.rows, 2 * (int64_t) m->config.ffn);
	ft_mat act = ft_mat_make(d->act, m->compute, x.rows, m->config.ffn);

	if (m->config.experts > 0)
		return ft_experts_serve(&d->experts, m, d->stream, index, branch, x, d->gate_up, d->act);
	FT_TRY(ops->linear(d->stream, gate_up, x, layer->gate_up, 0, true));
	FT_TRY(add_lora(d, gate_up, x, index, 2, up_targets, columns));
	FT_TRY(ops->swiglu(d->stream, act, gate_up));
	FT_TRY(ops->linear(d->stream, branch, act, layer->down, 0, true));
	return add_lora(d, branch, act, index, 1, &down_target, &zero);
}

/* Final norm and head at the wanted rows. */
static ft_status
wanted_logits(ft_decoder *d, ft_mat h, ft_mat branch)
{
	const ft_ops *ops = d->ops;
	const ft_model *m = d->model;
	const int32_t *wanted = d->device_ints + ints_of(d).wanted;
	ft_mat last_h = ft_mat_make(d->last_h, FT_F32, d->n_wanted, h.cols);
	ft_mat last_branch = ft_mat_make(d->last_branch, m->compute, d->n_wanted, h.cols);
	ft_mat last_x = ft_mat_make(d->last_x, m->compute, d->n_wanted, h.cols);
	ft_mat logits = ft_mat_make(d->logits, FT_F32, d->n_wanted, m->config.vocab);

	if (d->n_wanted == 0)
		return FT_OK;
	FT_TRY(ops->gather_rows(d->stream, last_h, h, wanted));
	FT_TRY(ops->gather_rows(d->stream, last_branch, branch, wanted));
	FT_TRY(ops->rmsnorm(d->stream, last_x, last_h, NULL, last_h, last_branch, m->final_norm,
						m->config.rms_eps));
	return ops->linear(d->stream, logits, last_x, m->head, 0, true);
}

ft_status
ft_decoder_run(ft_decoder *d, const ft_kv_cache *cache, const ft_decode_item *items, int n)
{
	const ft_ops *ops = d->ops;
	const ft_model *m = d->model;
	const ft_config *c = &m->config;
	ft_paged_batch batch;
	ft_mat none = {0};
	ft_mat h, x, branch;
	int rows = 0;

	FT_TRY(prepare(d, cache, items, n, &rows, &batch));
	h = ft_mat_make(d->h, FT_F32, rows, c->hidden);
	x = ft_mat_make(d->x, m->compute, rows, c->hidden);
	branch = ft_mat_make(d->branch, m->compute, rows, c->hidden);
	FT_TRY(ops->embed(d->stream, h, m->embedding, d->device_ints + ints_of(d).ids));
	for (int i = 0; i < c->layers; i++)
	{
		const ft_layer *layer = &m->layers[i];

		FT_TRY(ops->rmsnorm(d->stream, x, h, NULL, h, i == 0 ? none : branch, layer->attention_norm,
							c->rms_eps));
		FT_TRY(attention_branch(d, cache, &batch, i, x, branch));
		FT_TRY(ops->rmsnorm(d->stream, x, h, NULL, h, branch, layer->ffn_norm, c->rms_eps));
		FT_TRY(ffn_branch(d, i, x, branch));
	}
	return wanted_logits(d, h, branch);
}

ft_status
ft_decoder_sample(ft_decoder *d, const ft_sample *params, int32_t *ids)
{
	ft_mat logits = ft_mat_make(d->logits, FT_F32, d->n_wanted, d->model->config.vocab);

	FT_TRY(d->ops->sample(d->stream, logits, params, d->sampled, NULL));
	return d->ops->copy_to_host(d->stream, ids, d->sampled, (size_t) d->n_wanted * sizeof(int32_t));
}

ft_status
ft_decoder_logits(ft_decoder *d, int i, float *logits)
{
	size_t vocab = (size_t) d->model->config.vocab;

	if (i < 0 || i >= d->n_wanted)
		return ft_fail(FT_INTERNAL, "logits of row %d, there are %d", i, d->n_wanted);
	return d->ops->copy_to_host(d->stream, logits, d->logits + (size_t) i * vocab,
								vocab * sizeof(float));
}

ft_status
ft_decoder_edit_logits(ft_decoder *d, int i, void (*edit)(void *context, float *logits),
					   void *context)
{
	size_t vocab = (size_t) d->model->config.vocab;

	FT_TRY(ft_decoder_logits(d, i, d->host_logits));
	edit(context, d->host_logits);
	return d->ops->copy_to_device(d->stream, d->logits + (size_t) i * vocab, d->host_logits,
								  vocab * sizeof(float));
}
