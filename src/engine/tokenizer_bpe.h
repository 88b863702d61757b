/*
 * tokenizer_bpe.h: byte-pair encoding: the merges of a vocabulary, and their application to one
 * piece.
 */
#ifndef FT_TOKENIZER_BPE_H
#define FT_TOKENIZER_BPE_H

#include "buckets.h"
#include "buffer.h"

#include <stdbool.h>

/* left and right, next to each other, become merged; the lower the rank, the earlier. */
typedef struct ft_token_merge
{
	int32_t left;
	int32_t right;
	int32_t rank;
	int32_t merged;
} ft_token_merge;

/* What a pair of tokens becomes. */
typedef struct ft_bpe_outcome
{
	int32_t rank;
	int32_t merged;
} ft_bpe_outcome;

typedef struct ft_bpe
{
	size_t n_tokens;
	/* [n_tokens + 1] merges of a left token: merges[first[left], first[left + 1]) */
	uint32_t *first;
	ft_token_merge *merges; /* by left, right */
	size_t n_merges;
	uint64_t *rights; /* [n_tokens] bits of a hash of the tokens that it is merged with */
	/* by rank, and where each pair's is; NULL for vocabularies of an unusual size */
	ft_bpe_outcome *outcomes;
	ft_buckets table;
} ft_bpe;

/* Symbols next to each other and what has become of them. */
typedef struct ft_bpe_part
{
	size_t n_symbols;
	size_t n; /* of tokens */
	/* [capacity] each; `tokens` is what is allocated */
	int32_t *tokens;
	int32_t *starts; /* a token's first symbol */
	int32_t *merged; /* what a token and the next one become, and the rank of that */
	int32_t *ranks;
	size_t capacity;
} ft_bpe_part;

/* Working memory that merging reuses from piece to piece; zero-initialise, one a thread and a
 * vocabulary. */
typedef struct ft_bpe_work
{
	ft_bpe_part parts[2];
	ft_ids done; /* tokens of a long piece */
	struct ft_bpe_symbol *symbols;
	size_t symbols_capacity;
	uint64_t *heap; /* rank and place of merges to come */
	size_t heap_capacity;
	size_t heap_size;
} ft_bpe_work;

/* Sorts the merges (which become the bpe's) and indexes them.  Of two merges of one pair the later
 * counts, as in the reference. */
ft_status ft_bpe_init(ft_bpe *bpe, size_t n_tokens, ft_token_merge *merges, size_t n_merges);
void ft_bpe_free(ft_bpe *bpe);

/* Merge the tokens that a piece begins with, in place: *n is how many are left.  O(n log n). */
ft_status ft_bpe_merge(const ft_bpe *bpe, ft_bpe_work *work, int32_t *tokens, size_t *n);
void ft_bpe_work_free(ft_bpe_work *work);

#endif
