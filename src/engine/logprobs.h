/*
 * logprobs.h: how likely a model found the tokens of an answer, and which others.
 *
 * Probabilities are the model's own, before penalties, temperature and masks.
 */
#ifndef FT_LOGPROBS_H
#define FT_LOGPROBS_H

#include "status.h"

#include <stddef.h>
#include <stdint.h>

#define FT_MAX_TOP_LOGPROBS 20

typedef struct ft_token_logprob
{
	int32_t id;
	float logprob;
} ft_token_logprob;

/* Of one token drawn. */
typedef struct ft_drawn_logprobs
{
	ft_token_logprob drawn;
	ft_token_logprob top[FT_MAX_TOP_LOGPROBS]; /* [n_top of the list], the likeliest first */
	size_t text_at;                            /* bytes of the answer before it */
} ft_drawn_logprobs;

typedef struct ft_logprobs
{
	int n_top; /* 0: only the drawn one's */
	ft_drawn_logprobs *list;
	size_t n;

	/* private: of the next draw */
	size_t capacity;
	float *logits; /* [vocabulary] */
	double log_total;
} ft_logprobs;

void ft_logprobs_free(ft_logprobs *logprobs);
/* Before a draw from the logits [vocabulary] and before they are changed. */
ft_status ft_logprobs_look(ft_logprobs *logprobs, const float *logits, size_t vocabulary);
/* After it. */
ft_status ft_logprobs_add(ft_logprobs *logprobs, int32_t id, size_t text_at);

#endif
