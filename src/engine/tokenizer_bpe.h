/*
 * tokenizer_bpe.h: byte-pair encoding: the merges of a vocabulary, and their application to one
 * piece.
 */
#ifndef FT_TOKENIZER_BPE_H
#define FT_TOKENIZER_BPE_H

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

typedef struct ft_bpe
{
	size_t n_tokens;
	/* [n_tokens + 1] merges of a left token: merges[first[left], first[left + 1]) */
	uint32_t *first;
	ft_token_merge *merges; /* by left, right */
	size_t n_merges;
} ft_bpe;

/* Working memory that merging reuses from piece to piece; zero-initialise, one a thread and a
 * vocabulary. */
typedef struct ft_bpe_work
{
	struct ft_bpe_symbol *symbols;
	size_t symbols_capacity;
	struct ft_bpe_pair *pairs; /* looked up lately; NULL until a piece is very long */
	/* rank and place of merges to come: many of them sorted, and what has become possible since */
	uint64_t *sorted;
	size_t sorted_capacity;
	size_t sorted_at;
	size_t n_sorted;
	uint64_t *spare; /* to sort in */
	size_t spare_capacity;
	uint64_t *heap;
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
