/*
 * evaluator.h: what a model makes of documents that say what is right.
 */
#ifndef FT_EVALUATOR_H
#define FT_EVALUATOR_H

#include "packing.h"

typedef struct ft_evaluation
{
	ft_loss_sums sums;
	int64_t exact; /* documents of which every trained token is the most likely one; 0 of pairs */
} ft_evaluation;

/* Add what the transformer makes of n documents, in batches of at most `capacity` tokens, through
 * `batch`, which has room for as many.
 *
 * A document counts as exact when each trained token is the arg-max after the true tokens before
 * it.  A greedy answer would then have taken the same one each time: the answer, its end included,
 * is the document's, without having been generated. */
ft_status
ft_evaluate(ft_transformer *transformer, const ft_dataset *dataset, const ft_document *documents,
			uint32_t n, int64_t capacity, ft_microbatch *batch, ft_evaluation *evaluation);

/* Mean loss and token accuracy, and of pairs the mean margin; NaN without any weight. */
double ft_evaluation_loss(const ft_evaluation *evaluation);
double ft_evaluation_accuracy(const ft_evaluation *evaluation);
double ft_evaluation_margin(const ft_evaluation *evaluation);

#endif
