/*
 * tokenizer_merges.c: the merges of a vocabulary.
 *
 * Byte-level vocabularies and tokenizer.json list them.  SentencePiece knows scores only: two
 * neighbours merge when they make a token together, the one with the highest score first.  That is
 * the same as a list of all ways to make each token of two others, by falling score, those of one
 * score at one rank.
 */
#include "tokenizer_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A token of scores' that is longer is none that merging makes: SentencePiece's own end at 16
 * characters unless told otherwise. */
#define MAX_SCORED 256

/* May text become this token by merging? */
static bool
merges(const ft_tokenizer *t, int32_t id)
{
	return !t->tokens[id].special && !t->tokens[id].byte &&
		   !(t->tokens[id].flags & FT_ADDED_SYMBOL);
}

/* --- listed --- */

/* "left right" into ids; left < 0: to be ignored, because user text must never merge into a special
 * token. */
static ft_status
parse_merge(const ft_tokenizer *t, const int16_t *byte_of, ft_string s, size_t rank, ft_text *work,
			ft_token_merge *merge)
{
	const char *space = s.length > 1 ? memchr(s.data + 1, ' ', s.length - 1) : NULL;
	size_t left_length;
	int32_t ids[3];

	if (space == NULL)
		return ft_fail(FT_CORRUPT, "merge %zu does not name two tokens", rank);
	ft_text_clear(work);
	FT_TRY(ft_append_stored(work, byte_of, s.data, (size_t) (space - s.data)));
	left_length = work->length;
	FT_TRY(ft_append_stored(work, byte_of, space + 1, s.length - (size_t) (space - s.data) - 1));
	ids[0] = ft_find_token(t, work->data, left_length, false);
	ids[1] = ft_find_token(t, work->data + left_length, work->length - left_length, false);
	ids[2] = ft_find_token(t, work->data, work->length, false);
	*merge = (ft_token_merge){ids[0], ids[1], (int32_t) rank, ids[2]};
	for (int i = 0; i < 3; i++)
	{
		if (ids[i] < 0)
			return ft_fail(FT_CORRUPT, "merge %zu needs a token that the vocabulary lacks", rank);
		if (!merges(t, ids[i]))
			merge->left = -1;
	}
	return FT_OK;
}

static ft_status
parse_merges(const ft_tokenizer *t, const ft_vocabulary *v, const int16_t *byte_of,
			 ft_token_merge *list, size_t *n)
{
	ft_text work = {0};
	ft_status status = ft_text_append(&work, "", 0);

	for (size_t i = 0; i < v->n_merges && status == FT_OK; i++)
	{
		status = parse_merge(t, byte_of, v->merges[i], i, &work, &list[*n]);
		if (status == FT_OK && list[*n].left >= 0)
			(*n)++;
	}
	ft_text_free(&work);
	return status;
}

/* --- by scores --- */

typedef struct scored
{
	float score;
	int32_t id;
} scored;

static int
compare_scores(const void *a, const void *b)
{
	const scored *x = a;
	const scored *y = b;

	if (x->score != y->score)
		return x->score > y->score ? -1 : 1;
	return (x->id > y->id) - (x->id < y->id);
}

typedef struct merge_list
{
	ft_token_merge *data;
	size_t length;
	size_t capacity;
} merge_list;

/* All ways to make a token of two others. */
static ft_status
split_token(const ft_tokenizer *t, int32_t id, int32_t rank, merge_list *list)
{
	const char *text = ft_token_text(t, id);
	size_t n = t->tokens[id].length;

	/* one of two tokens with the same text is never found */
	if (n > MAX_SCORED || ft_find_token(t, text, n, false) != id)
		return FT_OK;
	for (size_t at = 1; at < n; at++)
	{
		void *memory = list->data;
		int32_t left;
		int32_t right;

		if (((unsigned char) text[at] & 0xc0) == 0x80)
			continue;
		left = ft_find_token(t, text, at, false);
		right = left >= 0 && merges(t, left) ? ft_find_token(t, text + at, n - at, false) : -1;
		if (right < 0 || !merges(t, right))
			continue;
		FT_TRY(ft_grow(&memory, &list->capacity, list->length + 1, sizeof(ft_token_merge)));
		list->data = memory;
		list->data[list->length++] = (ft_token_merge){left, right, rank, id};
	}
	return FT_OK;
}

static ft_status
split_tokens(const ft_tokenizer *t, const ft_vocabulary *v, scored *order, merge_list *list)
{
	size_t n = 0;
	int32_t rank = 0;

	for (size_t i = 0; i < t->n_tokens; i++)
	{
		if (isnan(v->scores[i]))
			return ft_fail(FT_CORRUPT, "the score of token %zu is not a number", i);
		if (merges(t, (int32_t) i))
			order[n++] = (scored){v->scores[i], (int32_t) i};
	}
	if (n > 0)
		qsort(order, n, sizeof(scored), compare_scores);
	for (size_t i = 0; i < n; i++)
	{
		rank += i > 0 && order[i].score != order[i - 1].score;
		FT_TRY(split_token(t, order[i].id, rank, list));
	}
	if (list->length > INT32_MAX)
		return ft_fail(FT_UNSUPPORTED, "the vocabulary has too many ways to merge");
	return FT_OK;
}

static ft_status
merges_of_scores(const ft_tokenizer *t, const ft_vocabulary *v, merge_list *list)
{
	void *order;
	ft_status status;

	FT_TRY(ft_alloc(&order, t->n_tokens, sizeof(scored)));
	status = split_tokens(t, v, order, list);
	free(order);
	return status;
}

/* --- both --- */

/* Where a space follows and no merge joins the two, text can be cut: what comes out is the same,
 * and words can be remembered. */
static void
note_splits(ft_tokenizer *t)
{
	memset(t->space_splits, t->characters[' '] >= 0, sizeof t->space_splits);
	t->space_splits[' '] = false;
	for (size_t i = 0; i < t->bpe.n_merges; i++)
	{
		int32_t id = t->bpe.merges[i].merged;
		const char *text = ft_token_text(t, id);

		for (size_t k = 1; k < t->tokens[id].length; k++)
		{
			if (text[k] == ' ')
				t->space_splits[(unsigned char) text[k - 1]] = false;
		}
	}
}

ft_status
ft_make_merges(ft_tokenizer *t, const ft_vocabulary *v, const int16_t *byte_of)
{
	merge_list list = {0};
	void *memory;
	ft_status status;

	if (v->n_merges > 0 || v->scores == NULL)
	{
		FT_TRY(ft_alloc(&memory, v->n_merges, sizeof(ft_token_merge)));
		list.data = memory;
		status = parse_merges(t, v, byte_of, list.data, &list.length);
	}
	else
		status = merges_of_scores(t, v, &list);
	if (status != FT_OK)
	{
		free(list.data);
		return status;
	}
	FT_TRY(ft_bpe_init(&t->bpe, t->n_tokens, list.data, list.length));
	if (t->pre == NULL)
		note_splits(t);
	return FT_OK;
}
