/*
 * loss.c: cross entropy at the trained positions only.
 *
 * Logits of a large vocabulary never exist for a whole batch: the loss rows go
 * through the final norm and the head a chunk at a time, and the gradient is
 * formed in place of the logits.
 */
#include "transformer.h"

#include "buffer.h"
#include "preference.h"

/* From the chunk's gradient of the logits to the residual stream's, scattered to the rows. */
static ft_status
chunk_backward(ft_transformer *t, ft_mat logits, ft_mat hidden, ft_mat normed, const int32_t *rows,
			   int64_t tokens)
{
	const ft_config *c = &t->model->config;
	int64_t n = logits.rows;
	ft_mat dnormed = ft_mat_make(t->chunk_dnormed, FT_F32, n, c->hidden);
	ft_mat dhidden = ft_mat_make(t->chunk_dhidden, FT_F32, n, c->hidden);
	ft_mat dlogits;

	FT_TRY(ft_transformer_round(t, logits, t->logits_narrow, &dlogits));
	FT_TRY(t->ops->linear_grad_input(t->stream, dnormed, dlogits, t->model->head, 0.0f));
	if (t->weight_gradients != NULL)
		FT_TRY(t->ops->matmul(t->stream,
							  ft_mat_make(t->weight_gradients->head, FT_F32, c->vocab, c->hidden),
							  dlogits, true, normed, false, 1.0f, 1.0f));
	FT_TRY(t->ops->zero(t->stream, dhidden.data, (size_t) (n * c->hidden) * sizeof(float)));
	FT_TRY(t->ops->rmsnorm_grad(
		t->stream, dhidden, t->weight_gradients != NULL ? t->weight_gradients->final_norm : NULL,
		dnormed, hidden, t->model->final_norm, t->chunk_rstd));
	return t->ops->scatter_add_rows(t->stream, ft_mat_make(t->dhidden, FT_F32, tokens, c->hidden),
									dhidden, rows);
}

static ft_status
loss_chunk(ft_transformer *t, const ft_microbatch *batch, int64_t first, int64_t n,
		   double grad_scale)
{
	const ft_config *c = &t->model->config;
	ft_mat final = ft_mat_make(t->final, FT_F32, batch->tokens, c->hidden);
	ft_mat hidden = ft_mat_make(t->chunk_hidden, FT_F32, n, c->hidden);
	ft_mat normed = ft_mat_make(t->chunk_normed, t->model->compute, n, c->hidden);
	ft_mat logits = ft_mat_make(t->logits, FT_F32, n, c->vocab);
	ft_mat none = {0};

	FT_TRY(t->ops->gather_rows(t->stream, hidden, final, t->rows + first));
	FT_TRY(t->ops->rmsnorm(t->stream, normed, none, t->chunk_rstd, hidden, none,
						   t->model->final_norm, c->rms_eps));
	FT_TRY(t->ops->linear(t->stream, logits, normed, t->model->head, 0.0f, false));
	FT_TRY(t->ops->cross_entropy(t->stream, logits, t->targets + first, t->weights + first,
								 (float) grad_scale, t->loss + first, t->correct + first));
	if (grad_scale != 0.0)
		FT_TRY(chunk_backward(t, logits, hidden, normed, t->rows + first, batch->tokens));
	return FT_OK;
}

ft_status
ft_transformer_row_losses(ft_transformer *t, const ft_microbatch *batch, double grad_scale)
{
	const ft_config *c = &t->model->config;
	size_t bytes = (size_t) batch->trained * sizeof(float);

	if (grad_scale != 0.0)
		FT_TRY(t->ops->zero(t->stream, t->dhidden,
							(size_t) (batch->tokens * c->hidden) * sizeof(float)));
	for (int64_t first = 0; first < batch->trained; first += t->loss_chunk)
	{
		int64_t left = batch->trained - first;

		FT_TRY(
			loss_chunk(t, batch, first, left < t->loss_chunk ? left : t->loss_chunk, grad_scale));
		if (t->tick != NULL)
			FT_TRY(t->tick(t->tick_context));
	}
	FT_TRY(t->ops->copy_to_host(t->stream, t->host_loss, t->loss, bytes));
	return t->ops->copy_to_host(t->stream, t->host_loss + batch->trained, t->correct, bytes);
}

ft_status
ft_transformer_loss(ft_transformer *t, const ft_microbatch *batch, double grad_scale,
					ft_loss_sums *sums)
{
	const float *loss = t->host_loss;
	const float *correct = t->host_loss + batch->trained;

	if (batch->n_pairs > 0)
		return ft_preference_loss(t, batch, grad_scale, sums);
	FT_TRY(ft_transformer_row_losses(t, batch, grad_scale));
	for (int64_t i = 0; i < batch->trained; i++)
	{
		sums->loss += (double) batch->weights[i] * loss[i];
		sums->correct += (double) batch->weights[i] * correct[i];
		sums->weight += batch->weights[i];
	}
	sums->trained += batch->trained;
	return FT_OK;
}
