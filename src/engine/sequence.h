/*
 * sequence.h: a request's tokens, and the cache blocks that hold their keys and values.
 *
 * Blocks are found in the cache under the names of what they hold
 * (kv_cache.h), taken when rows are to be computed, named when they are full,
 * and given back when nothing will look at them any more.  None of this
 * changes what is computed: a block that is found has the very bytes that
 * would be put there.
 */
#ifndef FT_SEQUENCE_H
#define FT_SEQUENCE_H

#include "kv_cache.h"

typedef struct ft_sequence
{
	ft_ids tokens;   /* prompt and answer so far */
	size_t computed; /* of them, in the cache */
	int32_t *blocks; /* [n_blocks]; those before n_passed are another's again */
	int n_blocks;

	/* private */
	ft_kv_cache *cache;
	size_t window; /* of every layer; 0: some layer looks at everything */
	int n_passed;
	ft_kv_key *keys; /* [n_keys] what names begin with, then those of the blocks; NULL: no names */
	int n_keys;
	int n_named; /* blocks, passed ones included */
} ft_sequence;

/* A sequence that begins with tokens[0, n) and grows by `limit` at most, of a model with the cache.
 * salt: whose it is (ft_kv_key_begin), NULL: it shares no blocks.  weights: which adapter's.  To be
 * freed even after a failure. */
ft_status ft_sequence_begin(ft_sequence *sequence, const ft_model *model, ft_kv_cache *cache,
							const int32_t *tokens, size_t n, size_t limit, const char *salt,
							uint64_t weights);
/* All blocks must have been given back. */
void ft_sequence_free(ft_sequence *sequence);

/* For a sequence that has no blocks: share those that are in the cache already, as far as they
 * leave one token to compute. */
void ft_sequence_find(ft_sequence *sequence);
/* Enough blocks for the first n tokens; false, and nothing is changed, when fewer are free. */
bool ft_sequence_reserve(ft_sequence *sequence, size_t n);
/* Keys and values of the next `rows` tokens are in their blocks now. */
ft_status ft_sequence_computed(ft_sequence *sequence, size_t rows);
/* All blocks; what was computed is to be found or computed again. */
void ft_sequence_give_back(ft_sequence *sequence);

#endif
