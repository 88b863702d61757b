/*
 * logprobs.c: log-probabilities of drawn tokens and of the likeliest ones.
 */
#include "logprobs.h"

#include "buffer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void
ft_logprobs_free(ft_logprobs *l)
{
	free(l->list);
	free(l->logits);
	*l = (ft_logprobs){0};
}

/* The n largest logits, the largest first, the lowest id first among equals. */
static void
find_top(const float *logits, size_t vocabulary, int n, ft_token_logprob *top)
{
	int found = 0;

	for (size_t id = 0; id < vocabulary; id++)
	{
		int at = found;

		if (found == n && !(logits[id] > top[n - 1].logprob))
			continue;
		if (found < n)
			found++;
		else
			at = n - 1;
		for (; at > 0 && logits[id] > top[at - 1].logprob; at--)
			top[at] = top[at - 1];
		top[at] = (ft_token_logprob){(int32_t) id, logits[id]};
	}
}

ft_status
ft_logprobs_look(ft_logprobs *l, const float *logits, size_t vocabulary)
{
	ft_drawn_logprobs *next;
	double total = 0;
	float max = logits[0];

	if (!l->logits)
		FT_TRY(ft_alloc((void **) &l->logits, vocabulary, sizeof *l->logits));
	FT_TRY(ft_grow((void **) &l->list, &l->capacity, l->n + 1, sizeof *l->list));
	memcpy(l->logits, logits, vocabulary * sizeof *logits);
	for (size_t i = 1; i < vocabulary; i++)
		max = logits[i] > max ? logits[i] : max;
	for (size_t i = 0; i < vocabulary; i++)
		total += (double) expf(logits[i] - max);
	l->log_total = max + log(total);
	next = &l->list[l->n];
	*next = (ft_drawn_logprobs){.drawn.id = -1};
	if (l->n_top > (int) vocabulary)
		l->n_top = (int) vocabulary;
	find_top(logits, vocabulary, l->n_top, next->top);
	for (int i = 0; i < l->n_top; i++)
		next->top[i].logprob = (float) (next->top[i].logprob - l->log_total);
	return FT_OK;
}

ft_status
ft_logprobs_add(ft_logprobs *l, int32_t id, size_t text_at)
{
	if (!l->logits)
		return ft_fail(FT_INTERNAL, "a token was drawn from logits that were not looked at");
	l->list[l->n].drawn = (ft_token_logprob){id, (float) (l->logits[id] - l->log_total)};
	l->list[l->n++].text_at = text_at;
	return FT_OK;
}
