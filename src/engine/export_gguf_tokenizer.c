/*
 * export_gguf_tokenizer.c: a directory's vocabulary as the keys of a GGUF file.
 *
 * Of a SentencePiece-style one a GGUF file has scores and no merges: whatever
 * two neighbours make a token together may merge, the highest score first, and
 * of one score the leftmost.  A tokenizer.json lists merges.  The scores
 *
 *     score of a token = −(rank of the first merge that makes it)
 *
 * say the same where the list holds all the ways to make each of its tokens,
 * those of one token next to each other.  transformers lists tokens of one score
 * mixed, by the ids or by the lengths of what is merged: such a stretch becomes
 * one score again, Mistral's runs of spaces for example.  Any other list is
 * refused.
 */
#include "export.h"

#include "export_gguf.h"
#include "tokenizer_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool
is_sentencepiece(const ft_vocabulary *v)
{
	return strcmp(v->model, "llama") == 0;
}

/* --- scores of listed merges --- */

/* Merges as they are listed. */
typedef struct listing
{
	const ft_tokenizer *t;
	uint32_t *order; /* [n] of bpe->merges, by rank */
	uint32_t *last;  /* [n_tokens] place in order of the last merge that makes a token */
} listing;

static int
compare_ranks(const void *a, const void *b, void *merges)
{
	const ft_token_merge *m = merges;
	int32_t x = m[*(const uint32_t *) a].rank;
	int32_t y = m[*(const uint32_t *) b].rank;

	return (x > y) - (x < y);
}

static const ft_token_merge *
listed(const listing *l, size_t i)
{
	return &l->t->bpe.merges[l->order[i]];
}

static int
characters(const ft_tokenizer *t, int32_t id)
{
	const char *text = ft_token_text(t, id);
	int n = 0;

	for (uint32_t i = 0; i < t->tokens[id].length; i++)
		n += ((unsigned char) text[i] & 0xc0) != 0x80;
	return n;
}

/* Are the merges [first, end) in one of the orders that transformers has for one score? */
static bool
is_of_one_score(const listing *l, size_t first, size_t end)
{
	bool by_ids = true;
	bool by_lengths = true;

	for (size_t i = first + 1; i < end; i++)
	{
		const ft_token_merge *x = listed(l, i - 1);
		const ft_token_merge *y = listed(l, i);
		int left = characters(l->t, x->left) - characters(l->t, y->left);
		int right = characters(l->t, x->right) - characters(l->t, y->right);

		by_ids = by_ids && (x->left < y->left || (x->left == y->left && x->right < y->right));
		by_lengths = by_lengths && (left > 0 || (left == 0 && right >= 0));
	}
	return by_ids || by_lengths;
}

/* One score for each stretch of merges that shares no token with the others; false when one of
 * several tokens is in an order that no score makes. */
static bool
score_stretches(const listing *l, float *scores)
{
	size_t n = l->t->bpe.n_merges;

	for (size_t first = 0, end; first < n; first = end)
	{
		bool several = false;

		end = (size_t) l->last[listed(l, first)->merged] + 1;
		for (size_t i = first; i < end; i++)
		{
			int32_t merged = listed(l, i)->merged;

			scores[merged] = -(float) listed(l, first)->rank;
			several = several || merged != listed(l, first)->merged;
			if (l->last[merged] >= end)
				end = (size_t) l->last[merged] + 1;
		}
		if (several && !is_of_one_score(l, first, end))
			return false;
	}
	return true;
}

static ft_status
list_merges(listing *l)
{
	const ft_bpe *bpe = &l->t->bpe;

	FT_TRY(ft_alloc((void **) &l->order, bpe->n_merges, sizeof *l->order));
	FT_TRY(ft_alloc((void **) &l->last, bpe->n_tokens, sizeof *l->last));
	for (size_t i = 0; i < bpe->n_merges; i++)
		l->order[i] = (uint32_t) i;
	qsort_r(l->order, bpe->n_merges, sizeof *l->order, compare_ranks, bpe->merges);
	for (size_t i = 0; i < bpe->n_merges; i++)
		l->last[listed(l, i)->merged] = (uint32_t) i;
	return FT_OK;
}

/* Merges of the scores are those listed?  Both are sorted by their tokens; their order is the
 * list's by the way the scores were made. */
static bool
same_merges(const ft_bpe *a, const ft_bpe *b)
{
	bool same = a->n_merges == b->n_merges;

	for (size_t i = 0; same && i < a->n_merges; i++)
	{
		const ft_token_merge *x = &a->merges[i];
		const ft_token_merge *y = &b->merges[i];

		same = x->left == y->left && x->right == y->right && x->merged == y->merged;
	}
	return same;
}

/* scores[n_tokens] that say what the vocabulary's merges say; t is its tokeniser. */
static ft_status
scores_of_merges(const ft_vocabulary *v, const ft_tokenizer *t, float *scores)
{
	ft_vocabulary by_scores = *v;
	ft_tokenizer *scored = NULL;
	listing l = {.t = t};
	bool same = false;
	ft_status status = list_merges(&l);

	/* what no merge makes comes last */
	for (size_t i = 0; i < v->n_tokens; i++)
		scores[i] = -(float) v->n_merges;
	by_scores.merges = NULL;
	by_scores.n_merges = 0;
	by_scores.scores = scores;
	if (status == FT_OK && score_stretches(&l, scores))
	{
		status = ft_tokenizer_create(&by_scores, &scored);
		same = status == FT_OK && same_merges(&t->bpe, &scored->bpe);
	}
	ft_tokenizer_free(scored);
	free(l.order);
	free(l.last);
	if (status != FT_OK || same)
		return status;
	return ft_hint(ft_fail(FT_UNSUPPORTED,
						   "the %zu merges of a SentencePiece-style tokenizer are not those of any "
						   "scores, which is what a GGUF file has",
						   v->n_merges),
				   "A directory of safetensors can hold it.");
}

/* --- tokens --- */

/* What llama.cpp tells them apart by. */
static int32_t
type_of(const ft_vocabulary *v, const ft_tokenizer *t, size_t i)
{
	int32_t type = v->types != NULL ? v->types[i] : FT_TOKEN_NORMAL;

	if (!is_sentencepiece(v))
		return type;
	if (v->unknown >= 0 && i == (size_t) v->unknown)
		return FT_TOKEN_UNKNOWN;
	return t->tokens[i].byte ? FT_TOKEN_BYTE : type;
}

/* A reader counts the tokens to know how many rows the embedding has: rows without a token get one
 * that nothing is tokenised to. */
static ft_status
fill_tokens(const ft_vocabulary *v, const ft_tokenizer *t, size_t n, ft_string *tokens,
			char (*names)[32], int32_t *types, float *scores)
{
	for (size_t i = 0; i < n; i++)
	{
		bool known = i < v->n_tokens;

		snprintf(names[i], sizeof names[i], "[PAD%zu]", i);
		tokens[i] = known ? v->tokens[i] : (ft_string){names[i], strlen(names[i])};
		types[i] = known ? type_of(v, t, i) : FT_TOKEN_UNUSED;
		if (known && v->scores != NULL)
			scores[i] = v->scores[i];
	}
	if (is_sentencepiece(v) && v->scores == NULL)
		return scores_of_merges(v, t, scores);
	return FT_OK;
}

static ft_status
put_tokens(ft_gguf_writer *w, const ft_vocabulary *v, const ft_tokenizer *t, size_t n)
{
	ft_string *tokens = NULL;
	int32_t *types = NULL;
	float *scores = NULL;
	char(*names)[32] = NULL;
	ft_status status = ft_alloc((void **) &tokens, n, sizeof *tokens);

	if (status == FT_OK)
		status = ft_alloc((void **) &types, n, sizeof *types);
	if (status == FT_OK)
		status = ft_alloc((void **) &scores, n, sizeof *scores);
	if (status == FT_OK)
		status = ft_alloc((void **) &names, n, sizeof *names);
	if (status == FT_OK)
		status = fill_tokens(v, t, n, tokens, names, types, scores);
	if (status == FT_OK)
		status = ft_gguf_put_strings(w, "tokenizer.ggml.tokens", tokens, n);
	if (status == FT_OK)
		status = ft_gguf_put_i32s(w, "tokenizer.ggml.token_type", types, n);
	if (status == FT_OK && (v->scores != NULL || is_sentencepiece(v)))
		status = ft_gguf_put_f32s(w, "tokenizer.ggml.scores", scores, n);
	free(tokens);
	free(types);
	free(scores);
	free(names);
	return status;
}

/* --- keys --- */

static ft_status
put_id(ft_gguf_writer *w, const char *key, int id)
{
	return id < 0 ? FT_OK : ft_gguf_put_u32(w, key, (uint32_t) id);
}

/* Others know whether a space is put before a text; where it is put besides, this says to us. */
static ft_status
put_space_prefix(ft_gguf_writer *w, const ft_vocabulary *v)
{
	const char *name = ft_gguf_space_prefix_name(v->space_prefix, v->space_prefix_once);

	FT_TRY(
		ft_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", v->space_prefix != FT_SPACE_NONE));
	return name == NULL ? FT_OK : ft_gguf_put_string(w, FT_GGUF_SPACE_PREFIX, name);
}

static ft_status
put_keys(ft_gguf_writer *w, const ft_config *c, const ft_vocabulary *v, const ft_tokenizer *t)
{
	/* llama.cpp takes it for granted, as our own reader does */
	if (is_sentencepiece(v) && !v->byte_fallback)
		return ft_hint(ft_fail(FT_UNSUPPORTED,
							   "a SentencePiece-style tokenizer that does not fall back to bytes "
							   "cannot be written to a GGUF file"),
					   "A directory of safetensors can hold it.");
	FT_TRY(ft_gguf_put_string(w, "tokenizer.ggml.model", v->model));
	if (v->pre[0] != '\0')
		FT_TRY(ft_gguf_put_string(w, "tokenizer.ggml.pre", v->pre));
	FT_TRY(put_tokens(w, v, t, (size_t) c->vocab));
	if (v->n_merges > 0 && !is_sentencepiece(v))
		FT_TRY(ft_gguf_put_strings(w, "tokenizer.ggml.merges", v->merges, v->n_merges));
	if (v->added != NULL)
		FT_TRY(ft_gguf_put_bool(w, FT_GGUF_EXACT_TYPES, true));
	FT_TRY(put_id(w, "tokenizer.ggml.bos_token_id", v->bos));
	FT_TRY(put_id(w, "tokenizer.ggml.eos_token_id", v->eos));
	FT_TRY(put_id(w, "tokenizer.ggml.unknown_token_id", v->unknown));
	FT_TRY(put_id(w, "tokenizer.ggml.padding_token_id", v->pad));
	FT_TRY(ft_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", v->add_bos));
	return put_space_prefix(w, v);
}

ft_status
ft_export_gguf_tokenizer(ft_gguf_writer *w, const ft_config *c, const ft_vocabulary *v,
						 const char *chat_template)
{
	ft_tokenizer *tokenizer;
	ft_status status;

	FT_TRY(ft_tokenizer_create(v, &tokenizer));
	status = put_keys(w, c, v, tokenizer);
	ft_tokenizer_free(tokenizer);
	if (status != FT_OK || chat_template == NULL)
		return status;
	return ft_gguf_put_string(w, "tokenizer.chat_template", chat_template);
}
