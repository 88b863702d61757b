/*
 * backward.c: the backward pass of training.
 *
 * Every step is a gradient of inputs; the adapter's gradient is taken on the way
 * (lora.c), and that of the base's weights where somebody wants it: dW = dyᵀ·x.
 * While the base is frozen nothing reads the gradient of the first layer's
 * input, so it is not made.
 */
#include "transformer.h"

/* Where a layer's weights have their gradients: all NULL while the base is frozen. */
static const ft_layer_gradients *
gradients_of(const ft_transformer *t, int layer)
{
	static const ft_layer_gradients frozen;

	return t->weight_gradients != NULL ? &t->weight_gradients->layers[layer] : &frozen;
}

/* dx (f32) = dy·W + LoRA's part; dy in the compute type.  dweight may be NULL. */
static ft_status
adapted_linear_grad(ft_transformer *t, int layer, ft_lora_group group, ft_mat dx, ft_mat dy,
					ft_mat x, const ft_weight *weight, float *dweight)
{
	if (dx.data != NULL)
		FT_TRY(ft_transformer_product(t, dx, dy, weight, true));
	if (dweight != NULL)
		FT_TRY(t->ops->matmul(t->stream, ft_mat_make(dweight, FT_F32, dy.cols, x.cols), dy, true, x,
							  false, 1.0f, 1.0f));
	if (t->lora == NULL)
		return FT_OK;
	return ft_lora_backward(t->lora, t->stream, layer, group, dx, dy, x,
							ft_transformer_u(t, layer, group, x.rows));
}

/* dhidden: from the layer's output to `middle`. */
static ft_status
ffn_backward(ft_transformer *t, int layer, int64_t rows)
{
	const ft_config *c = &t->model->config;
	const ft_layer *w = &t->model->layers[layer];
	const ft_layer_gradients *g = gradients_of(t, layer);
	const ft_saved_layer *s = &t->saved[layer];
	ft_dtype compute = t->model->compute;
	ft_mat dhidden = ft_mat_make(t->dhidden, FT_F32, rows, c->hidden);
	ft_mat gate_up = ft_mat_make(s->gate_up, compute, rows, 2 * (int64_t) c->ffn);
	ft_mat product = ft_mat_make(t->product, compute, rows, c->ffn);
	ft_mat dproduct = ft_mat_make(t->dproduct, FT_F32, rows, c->ffn);
	ft_mat middle = ft_mat_make(s->middle, FT_F32, rows, c->hidden);
	ft_mat normed = ft_mat_make(t->normed, compute, rows, c->hidden);
	ft_mat dnormed = ft_mat_make(t->branch, FT_F32, rows, c->hidden);
	ft_mat none = {0};
	ft_mat dy;

	if (t->experts != NULL)
		return ft_experts_backward(t, layer, g, rows);
	FT_TRY(t->ops->swiglu(t->stream, product, gate_up));
	FT_TRY(ft_transformer_round(t, dhidden, t->narrow, &dy));
	FT_TRY(adapted_linear_grad(t, layer, FT_GROUP_DOWN, dproduct, dy, product, w->down, g->down));
	FT_TRY(ft_transformer_round(t, dproduct, t->narrow, &dy));
	FT_TRY(t->ops->swiglu_grad(t->stream, gate_up, dy, gate_up));
	FT_TRY(t->ops->rmsnorm(t->stream, normed, none, NULL, middle, none, w->ffn_norm, c->rms_eps));
	FT_TRY(adapted_linear_grad(t, layer, FT_GROUP_GATE_UP, dnormed, gate_up, normed, w->gate_up,
							   g->gate_up));
	return t->ops->rmsnorm_grad(t->stream, dhidden, g->ffn_norm, dnormed, middle, w->ffn_norm,
								s->ffn_rstd);
}

/* Attention's gradient over whole documents. */
static ft_status
attention_grad(ft_transformer *t, ft_mat dqkv, ft_mat dattended, ft_mat qkv, ft_mat attended,
			   const float *lse)
{
	const ft_config *c = &t->model->config;
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;

	return t->ops->attention_grad(t->stream, &t->attention, ft_mat_cols(dqkv, 0, q),
								  ft_mat_cols(dqkv, q, kv), ft_mat_cols(dqkv, q + kv, kv),
								  dattended, ft_mat_cols(qkv, 0, q), ft_mat_cols(qkv, q, kv),
								  ft_mat_cols(qkv, q + kv, kv), attended, lse);
}

/* dqkv of the rows from that of whole documents: a shared row gets the sum over the documents. */
static ft_status
sum_shared(ft_transformer *t, const ft_microbatch *batch, ft_mat dqkv, ft_mat all_dqkv)
{
	ft_mat sum = ft_mat_make(t->dqkv_sum, FT_F32, batch->tokens, dqkv.cols);
	ft_mat all = all_dqkv;

	if (all.dtype != FT_F32)
	{
		all = ft_mat_make(t->wide, FT_F32, batch->all, dqkv.cols);
		FT_TRY(t->ops->convert(t->stream, all, all_dqkv));
	}
	FT_TRY(t->ops->gather_rows(t->stream, sum, all, t->all_of));
	for (int i = 1; i < batch->n_documents; i++)
		FT_TRY(t->ops->add(t->stream, ft_mat_rows(sum, 0, batch->shared),
						   ft_mat_rows(all, batch->starts[i], batch->shared), 1.0f));
	if (sum.data != dqkv.data)
		FT_TRY(t->ops->convert(t->stream, dqkv, sum));
	return FT_OK;
}

/* The same over rows of which some are shared.  A shared row's own output was computed once, so its
 * gradient is the first document's alone; as key and value it was seen by all. */
static ft_status
shared_attention_grad(ft_transformer *t, const ft_microbatch *batch, int layer, ft_mat dqkv,
					  ft_mat dattended, ft_mat qkv, ft_mat attended)
{
	const ft_config *c = &t->model->config;
	ft_mat lse = ft_mat_make(t->saved[layer].lse, FT_F32, batch->tokens, c->heads);
	ft_mat all_lse = ft_mat_make(t->all_lse, FT_F32, batch->all, c->heads);
	ft_mat all_qkv = ft_mat_make(t->all_qkv, qkv.dtype, batch->all, qkv.cols);
	ft_mat all_dqkv = ft_mat_make(t->all_dqkv, qkv.dtype, batch->all, qkv.cols);
	ft_mat all_attended = ft_mat_make(t->all_attended, qkv.dtype, batch->all, attended.cols);
	ft_mat all_dattended = ft_mat_make(t->all_dattended, qkv.dtype, batch->all, attended.cols);
	size_t row = (size_t) ft_row_bytes(qkv.dtype, attended.cols);

	FT_TRY(t->ops->gather_rows(t->stream, all_lse, lse, t->row_of));
	FT_TRY(t->ops->gather_rows(t->stream, all_qkv, qkv, t->row_of));
	FT_TRY(t->ops->gather_rows(t->stream, all_attended, attended, t->row_of));
	FT_TRY(t->ops->gather_rows(t->stream, all_dattended, dattended, t->row_of));
	for (int i = 1; i < batch->n_documents; i++)
		FT_TRY(t->ops->zero(t->stream,
							ft_mat_rows(all_dattended, batch->starts[i], batch->shared).data,
							row * (size_t) batch->shared));
	FT_TRY(attention_grad(t, all_dqkv, all_dattended, all_qkv, all_attended, t->all_lse));
	return sum_shared(t, batch, dqkv, all_dqkv);
}

/* dqkv through the norms of q's and k's heads. */
static ft_status
heads_backward(ft_transformer *t, int layer, ft_mat dqkv, ft_mat qkv)
{
	const ft_config *c = &t->model->config;
	const ft_layer *w = &t->model->layers[layer];
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;
	const ft_layer_gradients *g = gradients_of(t, layer);

	if (!c->qk_norm)
		return FT_OK;
	FT_TRY(t->ops->head_norm_grad(t->stream, ft_mat_cols(dqkv, 0, q), g->q_norm,
								  ft_mat_cols(qkv, 0, q), c->head_dim, w->q_norm, c->rms_eps));
	return t->ops->head_norm_grad(t->stream, ft_mat_cols(dqkv, q, kv), g->k_norm,
								  ft_mat_cols(qkv, q, kv), c->head_dim, w->k_norm, c->rms_eps);
}

/* dqkv from the gradient of the attention block's output. */
static ft_status
attention_backward(ft_transformer *t, const ft_microbatch *batch, int layer, ft_mat dqkv)
{
	const ft_config *c = &t->model->config;
	const ft_layer *w = &t->model->layers[layer];
	const ft_saved_layer *s = &t->saved[layer];
	ft_dtype compute = t->model->compute;
	int64_t rows = batch->tokens;
	int64_t q_columns = (int64_t) c->heads * c->head_dim;
	ft_mat qkv = ft_mat_make(s->qkv, compute, rows, dqkv.cols);
	ft_mat attended = ft_mat_make(s->attended, compute, rows, q_columns);
	ft_mat dattended = ft_mat_make(t->branch, FT_F32, rows, q_columns);
	ft_mat rotated;
	ft_mat dy;

	FT_TRY(
		ft_transformer_round(t, ft_mat_make(t->dhidden, FT_F32, rows, c->hidden), t->narrow, &dy));
	FT_TRY(adapted_linear_grad(t, layer, FT_GROUP_OUT, dattended, dy, attended, w->out,
							   gradients_of(t, layer)->out));
	FT_TRY(ft_transformer_round(t, dattended, t->narrow, &dy));
	FT_TRY(ft_transformer_rotated(t, layer, qkv, &rotated));
	t->attention.window = ft_config_window(c, layer);
	if (batch->shared > 0)
		FT_TRY(shared_attention_grad(t, batch, layer, dqkv, dy, rotated, attended));
	else
		FT_TRY(attention_grad(t, dqkv, dy, rotated, attended, s->lse));
	FT_TRY(t->ops->rope(t->stream, ft_transformer_qk(c, dqkv), c->head_dim, t->positions,
						t->model->rope_cos, t->model->rope_sin, true));
	return heads_backward(t, layer, dqkv, qkv);
}

/* dhidden: from `middle` to the layer's input. */
static ft_status
attention_block_backward(ft_transformer *t, const ft_microbatch *batch, int layer)
{
	const ft_config *c = &t->model->config;
	const ft_layer *w = &t->model->layers[layer];
	const ft_layer_gradients *g = gradients_of(t, layer);
	const ft_saved_layer *s = &t->saved[layer];
	ft_dtype compute = t->model->compute;
	bool last = layer == 0 && t->weight_gradients == NULL; /* nothing reads the input's gradient */
	int64_t rows = batch->tokens;
	ft_mat dqkv =
		ft_mat_make(t->dqkv, compute, rows, (int64_t) (c->heads + 2 * c->kv_heads) * c->head_dim);
	ft_mat input = ft_mat_make(s->input, FT_F32, rows, c->hidden);
	ft_mat normed = ft_mat_make(t->normed, compute, rows, c->hidden);
	ft_mat dnormed = ft_mat_make(t->branch, FT_F32, rows, c->hidden);
	ft_mat none = {0};

	FT_TRY(attention_backward(t, batch, layer, dqkv));
	FT_TRY(
		t->ops->rmsnorm(t->stream, normed, none, NULL, input, none, w->attention_norm, c->rms_eps));
	FT_TRY(adapted_linear_grad(t, layer, FT_GROUP_QKV, last ? none : dnormed, dqkv, normed, w->qkv,
							   g->qkv));
	if (g->qkv_bias != NULL)
		FT_TRY(t->ops->sum_rows(t->stream, g->qkv_bias, dqkv));
	if (last)
		return FT_OK;
	return t->ops->rmsnorm_grad(t->stream, ft_mat_make(t->dhidden, FT_F32, rows, c->hidden),
								g->attention_norm, dnormed, input, w->attention_norm,
								s->attention_rstd);
}

ft_status
ft_transformer_backward(ft_transformer *t, const ft_microbatch *batch)
{
	const ft_config *c = &t->model->config;

	for (int i = t->model->config.layers - 1; i >= 0; i--)
	{
		if (t->tick != NULL)
			FT_TRY(t->tick(t->tick_context));
		FT_TRY(ffn_backward(t, i, batch->tokens));
		FT_TRY(attention_block_backward(t, batch, i));
	}
	if (t->weight_gradients == NULL)
		return FT_OK;
	return t->ops->embed_grad(
		t->stream, ft_mat_make(t->weight_gradients->embedding, FT_F32, c->vocab, c->hidden),
		ft_mat_make(t->dhidden, FT_F32, batch->tokens, c->hidden), t->ids);
}
