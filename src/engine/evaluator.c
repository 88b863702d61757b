/*
 * evaluator.c: what a model makes of documents that say what is right.
 */
#include "evaluator.h"

#include <math.h>

/* After the batch's pass: the documents all of whose loss rows were right. */
static int64_t
count_exact(const ft_transformer *t, const ft_microbatch *batch)
{
	const float *correct = t->host_loss + batch->trained;
	int64_t exact = 0;
	int64_t i = 0;

	/* loss rows ascend, and so do their documents; no loss row is shared by two */
	for (int d = 0; d < batch->n_documents; d++)
	{
		bool all = true;

		for (; i < batch->trained && batch->all_of[batch->rows[i]] < batch->starts[d + 1]; i++)
			all &= correct[i] != 0.0f;
		exact += all;
	}
	return exact;
}

static ft_status
evaluate_window(ft_transformer *t, const ft_dataset *dataset, const ft_document *documents,
				uint32_t n, int64_t capacity, ft_microbatch *batch, ft_evaluation *evaluation)
{
	ft_packing packing;
	ft_status status = FT_OK;

	FT_TRY(ft_pack_window(documents, n, capacity, &packing));
	for (uint32_t i = 0; status == FT_OK && i < packing.n_batches; i++)
	{
		status = ft_microbatch_fill(batch, dataset, documents, &packing, i);
		if (status == FT_OK)
			status = ft_transformer_evaluate(t, batch, &evaluation->sums);
		if (status == FT_OK && batch->n_pairs == 0)
			evaluation->exact += count_exact(t, batch);
	}
	ft_packing_free(&packing);
	return status;
}

ft_status
ft_evaluate(ft_transformer *t, const ft_dataset *dataset, const ft_document *documents, uint32_t n,
			int64_t capacity, ft_microbatch *batch, ft_evaluation *evaluation)
{
	for (uint32_t at = 0; at < n; at += FT_WINDOW)
		FT_TRY(evaluate_window(t, dataset, documents + at, n - at < FT_WINDOW ? n - at : FT_WINDOW,
							   capacity, batch, evaluation));
	return FT_OK;
}

double
ft_evaluation_loss(const ft_evaluation *e)
{
	return e->sums.weight > 0 ? e->sums.loss / e->sums.weight : NAN;
}

double
ft_evaluation_margin(const ft_evaluation *e)
{
	return e->sums.weight > 0 ? e->sums.margin / e->sums.weight : NAN;
}

double
ft_evaluation_accuracy(const ft_evaluation *e)
{
	return e->sums.weight > 0 ? e->sums.correct / e->sums.weight : NAN;
}
