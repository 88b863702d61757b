/*
 * preference.h: the loss of preference pairs, direct preference optimisation.
 *
 * A pair is a prompt with a chosen and a rejected answer.  With log π(y), the
 * sum of the log-probabilities of the answer's tokens (its end token included),
 * and log ρ(y), the same of the reference model, an answer's reward is
 * β · (log π(y) − log ρ(y)), and with the margin m between the two rewards
 *
 *     loss = −log σ(m)      d loss / d log π(y) = ∓β · σ(−m)
 *
 * for the chosen (−) and the rejected (+) answer (Rafailov et al., "Direct
 * Preference Optimization: Your Language Model is Secretly a Reward Model",
 * 2023).  A token's gradient is therefore its cross entropy's, times a factor
 * that is the same for all tokens of a side, and known only once both sides'
 * sums are: the head's product is made twice, and what comes before it once.
 */
#ifndef FT_PREFERENCE_H
#define FT_PREFERENCE_H

#include "transformer.h"

/* log π of each of the batch's documents, loaded and forwarded, to logprobs[n_documents]. */
ft_status
ft_preference_logprobs(ft_transformer *transformer, const ft_microbatch *batch, double *logprobs);

/* The sums of the batch's pairs added to *sums; with grad_scale ≠ 0 also dhidden, of grad_scale ·
 * Σ weight · loss. */
ft_status ft_preference_loss(ft_transformer *transformer, const ft_microbatch *batch,
							 double grad_scale, ft_loss_sums *sums);

#endif
