/*
 * transformer.c: memory and forward pass of training.
 */
#include "transformer.h"

#include "buffer.h"

#include <math.h>
#include <stdlib.h>

#define LOSS_CHUNK 256 /* rows of logits: enough for a product at full speed */

static int64_t
qkv_columns(const ft_config *c)
{
	return (int64_t) (c->heads + 2 * c->kv_heads) * c->head_dim;
}

/* Values of the largest matrix of a block, or of an expert. */
static int64_t
largest_matrix(const ft_config *c)
{
	int64_t rows = qkv_columns(c) > 2 * (int64_t) c->ffn ? qkv_columns(c) : 2 * (int64_t) c->ffn;

	return rows * c->hidden;
}

/* --- memory --- */

static ft_status
want_batch(ft_transformer *t)
{
	int64_t n = t->capacity;

	FT_TRY(ft_arena_want(&t->arena, &t->ids, n, FT_I32));
	FT_TRY(ft_arena_want(&t->arena, &t->positions, n, FT_I32));
	if (t->lora != NULL && t->lora->adapter->dropout > 0)
		FT_TRY(ft_arena_want(&t->arena, &t->document_of, n, FT_I32));
	FT_TRY(ft_arena_want(&t->arena, &t->starts, n + 1, FT_I32));
	FT_TRY(ft_arena_want(&t->arena, &t->row_of, n, FT_I32));
	FT_TRY(ft_arena_want(&t->arena, &t->all_of, n, FT_I32));
	FT_TRY(ft_arena_want(&t->arena, &t->rows, n, FT_I32));
	FT_TRY(ft_arena_want(&t->arena, &t->targets, n, FT_I32));
	FT_TRY(ft_arena_want(&t->arena, &t->weights, n, FT_F32));
	FT_TRY(ft_arena_want(&t->arena, &t->loss, n, FT_F32));
	return ft_arena_want(&t->arena, &t->correct, n, FT_F32);
}

/* Values that a layer keeps for each token, gate and up aside. */
static int64_t
saved_columns(const ft_transformer *t)
{
	const ft_config *c = &t->model->config;
	int64_t columns =
		2 * ((int64_t) c->hidden + 1) + qkv_columns(c) + (int64_t) c->heads * (c->head_dim + 1);

	for (int g = 0; t->lora != NULL && g < FT_GROUP_COUNT; g++)
		columns += ft_lora_columns(t->lora, (ft_lora_group) g);
	return columns;
}

/* How many layers do not keep gate and up where only so many tokens are kept. */
static int
remade_layers(const ft_transformer *t, int64_t kept)
{
	const ft_config *c = &t->model->config;
	int64_t gate_up = 2 * (int64_t) c->ffn;
	int64_t over = (t->capacity - kept) * (saved_columns(t) + gate_up) * c->layers;
	int64_t layers;

	if (t->forward_only || c->experts > 0 || over <= 0)
		return 0;
	/* and one more, since they share one */
	layers = (over - 1) / (t->capacity * gate_up) + 2;
	return layers < c->layers ? (int) layers : c->layers;
}

static ft_status
want_saved(ft_transformer *t)
{
	const ft_config *c = &t->model->config;
	ft_dtype compute = t->model->compute;
	int64_t n = t->capacity;

	for (int i = 0; i < (t->forward_only ? 1 : c->layers); i++)
	{
		ft_saved_layer *s = &t->saved[i];

		FT_TRY(ft_arena_want(&t->arena, &s->input, n * c->hidden, FT_F32));
		FT_TRY(ft_arena_want(&t->arena, &s->middle, n * c->hidden, FT_F32));
		FT_TRY(ft_arena_want(&t->arena, &s->attention_rstd, n, FT_F32));
		FT_TRY(ft_arena_want(&t->arena, &s->ffn_rstd, n, FT_F32));
		FT_TRY(ft_arena_want(&t->arena, &s->qkv, n * qkv_columns(c), compute));
		FT_TRY(ft_arena_want(&t->arena, &s->attended, n * c->heads * c->head_dim, compute));
		FT_TRY(ft_arena_want(&t->arena, &s->lse, n * c->heads, FT_F32));
		if (i == 0 || i >= t->remade)
			FT_TRY(ft_arena_want(&t->arena, &s->gate_up, n * ft_ffn_rows(c) * 2 * c->ffn, compute));
		for (int g = 0; t->lora != NULL && g < FT_GROUP_COUNT; g++)
			FT_TRY(ft_arena_want(&t->arena, &s->u[g],
								 n * ft_lora_columns(t->lora, (ft_lora_group) g), compute));
	}
	return ft_arena_want(&t->arena, &t->final, n * c->hidden, FT_F32);
}

static ft_status
want_scratch(ft_transformer *t)
{
	const ft_config *c = &t->model->config;
	ft_dtype compute = t->model->compute;
	int64_t n = t->capacity;
	int64_t head_columns = (int64_t) c->heads * c->head_dim;
	int64_t branch = head_columns > c->hidden ? head_columns : c->hidden;
	int64_t ffn = ft_ffn_rows(c) * c->ffn; /* experts' gate and up are never wide */
	int64_t widest_ffn = c->experts > 0 ? ffn : 2 * ffn;
	int64_t widest = qkv_columns(c) > widest_ffn ? qkv_columns(c) : widest_ffn;

	if (widest < c->hidden)
		widest = c->hidden;
	FT_TRY(ft_arena_want(&t->arena, &t->rotated, c->qk_norm ? n * qkv_columns(c) : 0, compute));
	FT_TRY(
		ft_arena_want(&t->arena, &t->matrix, t->model->quantised ? largest_matrix(c) : 0, compute));
	FT_TRY(ft_arena_want(&t->arena, &t->normed, n * c->hidden, compute));
	FT_TRY(ft_arena_want(&t->arena, &t->product, n * ffn, compute));
	FT_TRY(ft_arena_want(&t->arena, &t->branch, n * branch, FT_F32));
	FT_TRY(ft_arena_want(&t->arena, &t->dhidden, n * c->hidden, FT_F32));
	FT_TRY(ft_arena_want(&t->arena, &t->dproduct, n * ffn, FT_F32));
	FT_TRY(ft_arena_want(&t->arena, &t->dqkv, n * qkv_columns(c), compute));
	FT_TRY(ft_arena_want(&t->arena, &t->all_qkv, n * qkv_columns(c), compute));
	FT_TRY(ft_arena_want(&t->arena, &t->all_attended, n * head_columns, compute));
	FT_TRY(ft_arena_want(&t->arena, &t->all_lse, n * c->heads, FT_F32));
	FT_TRY(ft_arena_want(&t->arena, &t->all_dqkv, n * qkv_columns(c), compute));
	FT_TRY(ft_arena_want(&t->arena, &t->all_dattended, n * head_columns, compute));
	if (compute != FT_F32)
	{
		FT_TRY(ft_arena_want(&t->arena, &t->dqkv_sum, n * qkv_columns(c), FT_F32));
		FT_TRY(ft_arena_want(&t->arena, &t->wide, n * widest, FT_F32));
		FT_TRY(ft_arena_want(&t->arena, &t->narrow, n * widest, compute));
		FT_TRY(ft_arena_want(&t->arena, &t->logits_narrow, t->loss_chunk * c->vocab, compute));
	}
	FT_TRY(ft_arena_want(&t->arena, &t->logits, t->loss_chunk * c->vocab, FT_F32));
	FT_TRY(ft_arena_want(&t->arena, &t->chunk_hidden, t->loss_chunk * c->hidden, FT_F32));
	FT_TRY(ft_arena_want(&t->arena, &t->chunk_normed, t->loss_chunk * c->hidden, compute));
	FT_TRY(ft_arena_want(&t->arena, &t->chunk_dnormed, t->loss_chunk * c->hidden, FT_F32));
	FT_TRY(ft_arena_want(&t->arena, &t->chunk_dhidden, t->loss_chunk * c->hidden, FT_F32));
	return ft_arena_want(&t->arena, &t->chunk_rstd, t->loss_chunk, FT_F32);
}

/* Everything but the allocation. */
static ft_status
plan(const ft_model *model, const ft_adapter *adapter, int64_t capacity, int64_t kept,
	 ft_transformer **result)
{
	ft_transformer *t;

	*result = NULL;
	FT_TRY(ft_alloc((void **) &t, 1, sizeof *t));
	*result = t;
	t->model = model;
	t->ops = model->ops;
	t->capacity = capacity;
	t->loss_chunk = capacity < LOSS_CHUNK ? capacity : LOSS_CHUNK;
	FT_TRY(ft_alloc((void **) &t->saved, (size_t) model->config.layers, sizeof t->saved[0]));
	if (adapter != NULL)
		FT_TRY(ft_lora_create(model, adapter, capacity, &t->arena, &t->lora));
	t->forward_only = kept == 0;
	t->remade = remade_layers(t, kept);
	FT_TRY(want_batch(t));
	FT_TRY(want_saved(t));
	FT_TRY(ft_experts_plan(t));
	return want_scratch(t);
}

ft_status
ft_transformer_bytes(const ft_model *model, const ft_adapter *adapter, int64_t capacity,
					 int64_t *bytes)
{
	return ft_transformer_bytes_kept(model, adapter, capacity, capacity, bytes);
}

ft_status
ft_transformer_bytes_kept(const ft_model *model, const ft_adapter *adapter, int64_t capacity,
						  int64_t kept, int64_t *bytes)
{
	ft_transformer *t;
	ft_status status = plan(model, adapter, capacity, kept, &t);

	if (status == FT_OK)
		*bytes = t->arena.bytes;
	ft_transformer_free(t);
	return status;
}

ft_status
ft_transformer_create(const ft_model *model, const ft_adapter *adapter, int64_t capacity,
					  ft_transformer **result)
{
	return ft_transformer_create_kept(model, adapter, capacity, capacity, result);
}

ft_status
ft_transformer_create_kept(const ft_model *model, const ft_adapter *adapter, int64_t capacity,
						   int64_t kept, ft_transformer **result)
{
	ft_transformer *t;
	ft_status status = plan(model, adapter, capacity, kept, &t);

	*result = NULL;
	if (status == FT_OK)
		status = ft_arena_allocate(&t->arena, model->ops, model->device);
	if (status == FT_OK)
	{
		if (model->compute == FT_F32)
			t->dqkv_sum = t->dqkv;
		for (int i = 1; i < t->remade; i++)
			t->saved[i].gate_up = t->saved[0].gate_up;
		for (int i = 1; t->forward_only && i < model->config.layers; i++)
			t->saved[i] = t->saved[0];
		status = ft_alloc((void **) &t->host_loss, (size_t) capacity * 2, sizeof(float));
	}
	if (status == FT_OK)
		status = ft_alloc((void **) &t->host_logprobs, (size_t) capacity, sizeof(double));
	if (status == FT_OK)
		status = model->ops->stream_create(model->device, &t->stream);
	if (status == FT_OK)
		status = ft_transformer_adapter_changed(t);
	if (status != FT_OK)
	{
		ft_transformer_free(t);
		return status;
	}
	*result = t;
	return FT_OK;
}

void
ft_transformer_free(ft_transformer *t)
{
	if (t == NULL)
		return;
	if (t->stream != NULL)
		t->ops->stream_destroy(t->stream);
	ft_arena_free(&t->arena);
	ft_lora_free(t->lora);
	ft_experts_free(t->experts);
	free(t->host_loss);
	free(t->host_logprobs);
	free(t->saved);
	free(t);
}

ft_status
ft_transformer_adapter_changed(ft_transformer *t)
{
	return t->lora != NULL ? ft_lora_prepare(t->lora, t->stream) : FT_OK;
}

/* --- the batch --- */

ft_status
ft_transformer_load(ft_transformer *t, const ft_microbatch *batch)
{
	const ft_config *c = &t->model->config;
	size_t n = (size_t) batch->tokens;
	size_t trained = (size_t) batch->trained;

	if (batch->all > t->capacity)
		return ft_fail(FT_INTERNAL, "batch of %lld tokens is over the planned %lld",
					   (long long) batch->all, (long long) t->capacity);
	if (batch->max_length > t->model->rope_positions)
		return ft_fail(FT_INTERNAL, "document of %d tokens is over the planned %d",
					   batch->max_length, t->model->rope_positions);
	FT_TRY(t->ops->copy_to_device(t->stream, t->ids, batch->ids, n * 4));
	FT_TRY(t->ops->copy_to_device(t->stream, t->positions, batch->positions, n * 4));
	if (t->document_of != NULL)
		FT_TRY(t->ops->copy_to_device(t->stream, t->document_of, batch->document_of, n * 4));
	FT_TRY(t->ops->copy_to_device(t->stream, t->starts, batch->starts,
								  ((size_t) batch->n_documents + 1) * 4));
	FT_TRY(t->ops->copy_to_device(t->stream, t->row_of, batch->row_of, (size_t) batch->all * 4));
	FT_TRY(t->ops->copy_to_device(t->stream, t->all_of, batch->all_of, n * 4));
	FT_TRY(t->ops->copy_to_device(t->stream, t->rows, batch->rows, trained * 4));
	FT_TRY(t->ops->copy_to_device(t->stream, t->targets, batch->targets, trained * 4));
	FT_TRY(t->ops->copy_to_device(t->stream, t->weights, batch->weights, trained * 4));
	t->attention = (ft_attention){.heads = c->heads,
								  .kv_heads = c->kv_heads,
								  .head_dim = c->head_dim,
								  .scale = 1.0f / sqrtf((float) c->head_dim),
								  .n_sequences = batch->n_documents,
								  .max_length = batch->max_length,
								  .starts = t->starts,
								  .starts_host = batch->starts};
	return FT_OK;
}

ft_status
ft_transformer_round(ft_transformer *t, ft_mat m, void *narrow, ft_mat *rounded)
{
	*rounded = m;
	if (t->model->compute == FT_F32)
		return FT_OK;
	*rounded = ft_mat_make(narrow, t->model->compute, m.rows, m.cols);
	return t->ops->convert(t->stream, *rounded, m);
}

ft_status
ft_transformer_product(ft_transformer *t, ft_mat y, ft_mat x, const ft_weight *weight,
					   bool gradient)
{
	ft_mat matrix = ft_mat_make(t->matrix, t->model->compute, gradient ? x.cols : y.cols,
								gradient ? y.cols : x.cols);

	if (t->model->quantised)
	{
		FT_TRY(t->ops->dequantise(t->stream, matrix, weight));
		return t->ops->matmul(t->stream, y, x, false, matrix, !gradient, 1.0f, 0.0f);
	}
	if (gradient)
		return t->ops->linear_grad_input(t->stream, y, x, weight, 0.0f);
	return t->ops->linear(t->stream, y, x, weight, 0.0f, false);
}

/* --- forward --- */

/* y = x·Wᵀ with LoRA and a bias (NULL: none), in the compute type: both are added in f32 before
 * rounding. */
static ft_status
adapted_linear(ft_transformer *t, int layer, ft_lora_group group, ft_mat y, ft_mat x,
			   const ft_weight *weight, const float *bias)
{
	ft_mat sum = y;

	if (y.dtype != FT_F32)
		sum = ft_mat_make(t->wide, FT_F32, y.rows, y.cols);
	FT_TRY(ft_transformer_product(t, sum, x, weight, false));
	if (t->lora != NULL)
		FT_TRY(ft_lora_forward(t->lora, t->stream, layer, group, sum, x,
							   ft_transformer_u(t, layer, group, x.rows)));
	if (bias != NULL)
		FT_TRY(t->ops->add_bias(t->stream, sum, bias));
	if (sum.data != y.data)
		FT_TRY(t->ops->convert(t->stream, y, sum));
	return FT_OK;
}

ft_status
ft_transformer_rotated(ft_transformer *t, int layer, ft_mat qkv, ft_mat *rotated)
{
	const ft_config *c = &t->model->config;
	const ft_layer *w = &t->model->layers[layer];
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;
	ft_mat to = ft_mat_make(t->rotated, qkv.dtype, qkv.rows, qkv.cols);

	*rotated = qkv;
	if (!c->qk_norm)
		return FT_OK;
	*rotated = to;
	FT_TRY(t->ops->head_norm(t->stream, ft_mat_cols(to, 0, q), ft_mat_cols(qkv, 0, q), c->head_dim,
							 w->q_norm, c->rms_eps));
	FT_TRY(t->ops->head_norm(t->stream, ft_mat_cols(to, q, kv), ft_mat_cols(qkv, q, kv),
							 c->head_dim, w->k_norm, c->rms_eps));
	FT_TRY(t->ops->convert(t->stream, ft_mat_cols(to, q + kv, kv), ft_mat_cols(qkv, q + kv, kv)));
	return t->ops->rope(t->stream, ft_transformer_qk(c, to), c->head_dim, t->positions,
						t->model->rope_cos, t->model->rope_sin, false);
}

/* attended and lse of the rows from qkv. */
static ft_status
attend(ft_transformer *t, const ft_microbatch *batch, int layer, ft_mat qkv, ft_mat attended)
{
	const ft_config *c = &t->model->config;
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;
	ft_mat lse = ft_mat_make(t->saved[layer].lse, FT_F32, batch->tokens, c->heads);
	ft_mat all_qkv = ft_mat_make(t->all_qkv, qkv.dtype, batch->all, qkv.cols);
	ft_mat all_attended = ft_mat_make(t->all_attended, qkv.dtype, batch->all, q);
	ft_mat all_lse = ft_mat_make(t->all_lse, FT_F32, batch->all, c->heads);

	t->attention.window = ft_config_window(c, layer);
	if (batch->shared == 0)
		return t->ops->attention(t->stream, &t->attention, attended, lse.data,
								 ft_mat_cols(qkv, 0, q), ft_mat_cols(qkv, q, kv),
								 ft_mat_cols(qkv, q + kv, kv));
	FT_TRY(t->ops->gather_rows(t->stream, all_qkv, qkv, t->row_of));
	FT_TRY(t->ops->attention(t->stream, &t->attention, all_attended, t->all_lse,
							 ft_mat_cols(all_qkv, 0, q), ft_mat_cols(all_qkv, q, kv),
							 ft_mat_cols(all_qkv, q + kv, kv)));
	FT_TRY(t->ops->gather_rows(t->stream, attended, all_attended, t->all_of));
	return t->ops->gather_rows(t->stream, lse, all_lse, t->all_of);
}

/* branch = o(attention(qkv(norm(input)))) */
static ft_status
attention_block(ft_transformer *t, const ft_microbatch *batch, int layer, ft_mat normed)
{
	const ft_config *c = &t->model->config;
	const ft_layer *w = &t->model->layers[layer];
	ft_saved_layer *s = &t->saved[layer];
	ft_dtype compute = t->model->compute;
	int64_t rows = batch->tokens;
	ft_mat qkv = ft_mat_make(s->qkv, compute, rows, qkv_columns(c));
	ft_mat attended = ft_mat_make(s->attended, compute, rows, (int64_t) c->heads * c->head_dim);
	ft_mat rotated;

	FT_TRY(adapted_linear(t, layer, FT_GROUP_QKV, qkv, normed, w->qkv, w->qkv_bias));
	if (!c->qk_norm)
		FT_TRY(t->ops->rope(t->stream, ft_transformer_qk(c, qkv), c->head_dim, t->positions,
							t->model->rope_cos, t->model->rope_sin, false));
	FT_TRY(ft_transformer_rotated(t, layer, qkv, &rotated));
	FT_TRY(attend(t, batch, layer, rotated, attended));
	return adapted_linear(t, layer, FT_GROUP_OUT, ft_mat_make(t->branch, FT_F32, rows, c->hidden),
						  attended, w->out, NULL);
}

ft_status
ft_transformer_gate_up(ft_transformer *t, int layer, ft_mat normed)
{
	ft_mat gate_up = ft_mat_make(t->saved[layer].gate_up, t->model->compute, normed.rows,
								 2 * (int64_t) t->model->config.ffn);

	return adapted_linear(t, layer, FT_GROUP_GATE_UP, gate_up, normed,
						  t->model->layers[layer].gate_up, NULL);
}

/* branch = down(swiglu(gate_up(norm(middle)))) */
static ft_status
ffn_block(ft_transformer *t, int layer, int64_t rows, ft_mat normed)
{
	const ft_config *c = &t->model->config;
	const ft_layer *w = &t->model->layers[layer];
	ft_dtype compute = t->model->compute;
	ft_mat gate_up = ft_mat_make(t->saved[layer].gate_up, compute, rows, 2 * (int64_t) c->ffn);
	ft_mat product = ft_mat_make(t->product, compute, rows, c->ffn);

	if (t->experts != NULL)
		return ft_experts_forward(t, layer, normed);
	FT_TRY(ft_transformer_gate_up(t, layer, normed));
	FT_TRY(t->ops->swiglu(t->stream, product, gate_up));
	return adapted_linear(t, layer, FT_GROUP_DOWN, ft_mat_make(t->branch, FT_F32, rows, c->hidden),
						  product, w->down, NULL);
}

ft_status
ft_transformer_forward(ft_transformer *t, const ft_microbatch *batch)
{
	const ft_config *c = &t->model->config;
	int64_t rows = batch->tokens;
	ft_mat normed = ft_mat_make(t->normed, t->model->compute, rows, c->hidden);
	ft_mat branch = ft_mat_make(t->branch, FT_F32, rows, c->hidden);
	ft_mat previous = ft_mat_make(t->saved[0].input, FT_F32, rows, c->hidden);
	ft_mat none = {0};

	FT_TRY(t->ops->embed(t->stream, previous, t->model->embedding, t->ids));
	for (int i = 0; i < c->layers; i++)
	{
		const ft_layer *w = &t->model->layers[i];
		ft_saved_layer *s = &t->saved[i];
		ft_mat input = ft_mat_make(s->input, FT_F32, rows, c->hidden);
		ft_mat middle = ft_mat_make(s->middle, FT_F32, rows, c->hidden);

		if (t->tick != NULL)
			FT_TRY(t->tick(t->tick_context));
		FT_TRY(t->ops->rmsnorm(t->stream, normed, input, s->attention_rstd, previous,
							   i == 0 ? none : branch, w->attention_norm, c->rms_eps));
		FT_TRY(attention_block(t, batch, i, normed));
		FT_TRY(t->ops->rmsnorm(t->stream, normed, middle, s->ffn_rstd, input, branch, w->ffn_norm,
							   c->rms_eps));
		FT_TRY(ffn_block(t, i, rows, normed));
		previous = middle;
	}

	/* the final norm is made at the loss rows only (loss.c); here just the sum */
	FT_TRY(t->ops->copy(t->stream, t->final, previous.data, (size_t) (rows * c->hidden) * 4));
	return t->ops->add(t->stream, ft_mat_make(t->final, FT_F32, rows, c->hidden), branch, 1.0f);
}

/* --- passes --- */

ft_status
ft_transformer_evaluate(ft_transformer *t, const ft_microbatch *batch, ft_loss_sums *sums)
{
	if (batch->trained == 0)
		return FT_OK;
	FT_TRY(ft_transformer_load(t, batch));
	FT_TRY(ft_transformer_forward(t, batch));
	return ft_transformer_loss(t, batch, 0.0, sums);
}

ft_status
ft_transformer_train(ft_transformer *t, const ft_microbatch *batch, double grad_scale,
					 ft_loss_sums *sums)
{
	ft_status status;

	if (t->forward_only)
		return ft_fail(FT_INTERNAL, "nothing is kept for a backward pass");
	/* nothing is learned from a batch without a trained token */
	if (batch->trained == 0)
		return FT_OK;
	FT_TRY(ft_transformer_load(t, batch));
	if (t->lora != NULL)
		ft_lora_begin_dropout(t->lora, t->positions, t->document_of);
	status = ft_transformer_forward(t, batch);
	if (status == FT_OK)
		status = ft_transformer_loss(t, batch, grad_scale, sums);
	if (status == FT_OK)
		status = ft_transformer_backward(t, batch);
	if (t->lora != NULL)
		ft_lora_end_dropout(t->lora);
	return status;
}
