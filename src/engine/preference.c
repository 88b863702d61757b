/*
 * preference.c: the loss of preference pairs, direct preference optimisation.
 */
#include "preference.h"

#include <math.h>

/* The document whose loss row i is, from document `d` on: rows ascend as documents do, and none of
 * them is shared by two. */
static int
document_of(const ft_microbatch *batch, int64_t i, int d)
{
	while (batch->all_of[batch->rows[i]] >= batch->starts[d + 1])
		d++;
	return d;
}

ft_status
ft_preference_logprobs(ft_transformer *t, const ft_microbatch *batch, double *logprobs)
{
	int d = 0;

	FT_TRY(ft_transformer_row_losses(t, batch, 0.0));
	for (int i = 0; i < batch->n_documents; i++)
		logprobs[i] = 0;
	for (int64_t i = 0; i < batch->trained; i++)
	{
		d = document_of(batch, i, d);
		logprobs[d] -= t->host_loss[i];
	}
	return FT_OK;
}

/* Reward of the chosen side less that of the rejected one. */
static double
margin_of(const ft_transformer *t, const ft_microbatch *batch, int pair)
{
	const double *policy = t->host_logprobs + 2 * pair;
	const double *reference = batch->reference + 2 * pair;

	return t->dpo_beta * ((policy[0] - reference[0]) - (policy[1] - reference[1]));
}

/* −log σ(m), without overflow. */
static double
loss_of(double margin)
{
	return margin > 0 ? log1p(exp(-margin)) : log1p(exp(margin)) - margin;
}

/* σ(−m) */
static double
slope_of(double margin)
{
	return 1 / (1 + exp(margin));
}

/* The weights of the loss rows, on the device: the gradient of the pairs' loss in the rows' own. */
static ft_status
put_weights(ft_transformer *t, const ft_microbatch *batch)
{
	float *weights = t->host_loss; /* read already */
	int d = 0;

	for (int64_t i = 0; i < batch->trained; i++)
	{
		double weight;

		d = document_of(batch, i, d);
		weight = batch->pair_weights[d / 2] * t->dpo_beta * slope_of(margin_of(t, batch, d / 2));
		weights[i] = (float) (d % 2 == 0 ? weight : -weight);
	}
	return t->ops->copy_to_device(t->stream, t->weights, weights,
								  (size_t) batch->trained * sizeof(float));
}

ft_status
ft_preference_loss(ft_transformer *t, const ft_microbatch *batch, double grad_scale,
				   ft_loss_sums *sums)
{
	FT_TRY(ft_preference_logprobs(t, batch, t->host_logprobs));
	for (int i = 0; i < batch->n_pairs; i++)
	{
		double margin = margin_of(t, batch, i);

		sums->loss += batch->pair_weights[i] * loss_of(margin);
		sums->weight += batch->pair_weights[i];
		sums->margin += batch->pair_weights[i] * margin;
		sums->correct += margin > 0 ? batch->pair_weights[i] : 0;
	}
	sums->trained += batch->trained;
	if (grad_scale == 0.0)
		return FT_OK;
	FT_TRY(put_weights(t, batch));
	return ft_transformer_row_losses(t, batch, grad_scale);
}
