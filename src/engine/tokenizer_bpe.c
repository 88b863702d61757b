/*
 * tokenizer_bpe.c: merging by rank.
 *
 * In a long piece symbols form a doubly linked list; a heap holds the merges that were possible
 * when they were seen, and one that its neighbours have overtaken is dropped
 * when it comes up.  So a piece of a million bytes costs no more a byte than a
 * short one, but for the logarithm.  Of a very long piece a heap that has grown
 * large is sorted at once, digit by digit, and taken from its front.
 *
 * Merges are looked up by bisection among those of their left token: nothing is
 * hashed, so no vocabulary can make lookups slow.  A very long piece has the same
 * pairs again and again: those looked up last are remembered, each in the one
 * place that it has.
 */
#include "tokenizer_bpe.h"

#include <stdlib.h>
#include <string.h>

typedef struct ft_bpe_symbol
{
	int32_t token; /* -1: merged into the symbol before it */
	int32_t previous;
	int32_t next;
	int32_t merge; /* with the next one, of bpe->merges; -1: none */
} ft_bpe_symbol;

/* A pair of tokens and their merge, as in a symbol. */
typedef struct ft_bpe_pair
{
	int32_t left;
	int32_t right;
	int32_t merge;
} ft_bpe_pair;

#define PAIR_BITS 11

/* --- the table of merges --- */

static int
compare_merges(const void *a, const void *b)
{
	const ft_token_merge *x = a;
	const ft_token_merge *y = b;

	if (x->left != y->left)
		return x->left < y->left ? -1 : 1;
	if (x->right != y->right)
		return x->right < y->right ? -1 : 1;
	return (x->rank > y->rank) - (x->rank < y->rank);
}

ft_status
ft_bpe_init(ft_bpe *bpe, size_t n_tokens, ft_token_merge *merges, size_t n_merges)
{
	void *memory;
	size_t kept = 0;

	bpe->merges = merges;
	bpe->n_tokens = n_tokens;
	if (n_merges > 0)
		qsort(merges, n_merges, sizeof(ft_token_merge), compare_merges);
	for (size_t i = 0; i < n_merges; i++)
	{
		if (kept > 0 && merges[kept - 1].left == merges[i].left &&
			merges[kept - 1].right == merges[i].right)
			kept--;
		merges[kept++] = merges[i];
	}
	bpe->n_merges = kept;

	FT_TRY(ft_alloc(&memory, n_tokens + 1, sizeof(uint32_t)));
	bpe->first = memory;
	for (size_t token = 0, i = 0; token <= n_tokens; token++)
	{
		while (i < kept && (size_t) merges[i].left < token)
			i++;
		bpe->first[token] = (uint32_t) i;
	}
	return FT_OK;
}

void
ft_bpe_free(ft_bpe *bpe)
{
	free(bpe->merges);
	free(bpe->first);
	bpe->merges = NULL;
	bpe->first = NULL;
}

static const ft_token_merge *
find_merge(const ft_bpe *bpe, int32_t left, int32_t right)
{
	uint32_t low = bpe->first[left];
	uint32_t high = bpe->first[left + 1];

	while (low < high)
	{
		uint32_t middle = low + (high - low) / 2;
		const ft_token_merge *m = &bpe->merges[middle];

		if (m->right == right)
			return m;
		if (m->right > right)
			high = middle;
		else
			low = middle + 1;
	}
	return NULL;
}

/* --- the heap --- */

/* Lowest rank first, leftmost among equals: one number says both. */
static uint64_t
make_key(int32_t rank, int32_t at)
{
	return (uint64_t) (uint32_t) rank << 32 | (uint32_t) at;
}

/* Four children an entry: half the levels of two, and they stand in a cache line or two. */
#define CHILDREN 4

static ft_status
push(ft_bpe_work *work, uint64_t key)
{
	void *memory = work->heap;
	size_t i = work->heap_size;

	FT_TRY(ft_grow(&memory, &work->heap_capacity, i + 1, sizeof(uint64_t)));
	work->heap = memory;
	work->heap_size++;
	while (i > 0 && key < work->heap[(i - 1) / CHILDREN])
	{
		work->heap[i] = work->heap[(i - 1) / CHILDREN];
		i = (i - 1) / CHILDREN;
	}
	work->heap[i] = key;
	return FT_OK;
}

static uint64_t
pop(ft_bpe_work *work)
{
	uint64_t *heap = work->heap;
	uint64_t top = heap[0];
	uint64_t last = heap[--work->heap_size];
	size_t n = work->heap_size;
	size_t i = 0;

	for (;;)
	{
		size_t child = CHILDREN * i + 1;
		size_t end = child + CHILDREN < n ? child + CHILDREN : n;
		size_t least = child;

		if (child >= n)
			break;
		for (size_t c = child + 1; c < end; c++)
			least = heap[c] < heap[least] ? c : least;
		if (heap[least] >= last)
			break;
		heap[i] = heap[least];
		i = least;
	}
	heap[i] = last;
	return top;
}

/* A heap of fewer fits the processor's nearest cache. */
#define MANY 2048

#define DIGIT_BITS 10
#define DIGITS (1 << DIGIT_BITS)

/* Sort keys[n] by the bits [low, low + bits), keeping the order of equal ones; spare[n] is worked
 * in.  Returned is which of the two holds them. */
static uint64_t *
sort_bits(uint64_t *keys, uint64_t *spare, size_t n, int low, int bits)
{
	for (int shift = low; shift < low + bits; shift += DIGIT_BITS)
	{
		size_t places[DIGITS + 1] = {0};
		uint64_t *swap = keys;

		for (size_t i = 0; i < n; i++)
			places[(keys[i] >> shift) % DIGITS + 1]++;
		for (int digit = 1; digit < DIGITS; digit++)
			places[digit] += places[digit - 1];
		for (size_t i = 0; i < n; i++)
			spare[places[(keys[i] >> shift) % DIGITS]++] = keys[i];
		keys = spare;
		spare = swap;
	}
	return keys;
}

static int
bits_of(uint32_t highest)
{
	return highest == 0 ? 0 : 32 - __builtin_clz(highest);
}

/* Put the heap's keys among the sorted ones. */
static ft_status
sort_heap(ft_bpe_work *work)
{
	size_t left = work->n_sorted - work->sorted_at;
	size_t n = work->heap_size;
	const uint64_t *from = left > 0 ? work->sorted + work->sorted_at : NULL;
	uint32_t rank = 0;
	uint32_t place = 0;
	void *memory = work->spare;
	uint64_t *keys;
	size_t at = 0;
	size_t k = 0;

	FT_TRY(ft_grow(&memory, &work->spare_capacity, left + n, sizeof(uint64_t)));
	work->spare = memory;
	for (size_t i = 0; i < n; i++)
	{
		rank |= (uint32_t) (work->heap[i] >> 32);
		place |= (uint32_t) work->heap[i];
	}
	keys = sort_bits(work->heap, work->spare, n, 0, bits_of(place));
	keys = sort_bits(keys, keys == work->heap ? work->spare : work->heap, n, 32, bits_of(rank));
	if (keys != work->heap)
		memcpy(work->heap, keys, n * sizeof(uint64_t));
	for (size_t i = 0; i < left + n; i++)
		work->spare[i] =
			k == n || (at < left && from[at] < work->heap[k]) ? from[at++] : work->heap[k++];
	memory = work->sorted;
	work->sorted = work->spare;
	work->spare = memory;
	at = work->sorted_capacity;
	work->sorted_capacity = work->spare_capacity;
	work->spare_capacity = at;
	work->sorted_at = 0;
	work->n_sorted = left + n;
	work->heap_size = 0;
	return FT_OK;
}

/* The next key; *more false when there is none. */
static ft_status
take(ft_bpe_work *work, uint64_t *key, bool *more)
{
	/* so large, too, that what is sorted is moved rarely */
	if (work->heap_size >= MANY && work->heap_size >= (work->n_sorted - work->sorted_at) / 4)
		FT_TRY(sort_heap(work));
	*more = work->heap_size > 0 || work->sorted_at < work->n_sorted;
	if (work->sorted_at < work->n_sorted &&
		(work->heap_size == 0 || work->sorted[work->sorted_at] < work->heap[0]))
		*key = work->sorted[work->sorted_at++];
	else if (*more)
		*key = pop(work);
	return FT_OK;
}

/* --- one piece --- */

/* The number of the pair's merge, -1 for none. */
static int32_t
merge_of(const ft_bpe *bpe, ft_bpe_work *work, int32_t left, int32_t right)
{
	uint32_t hash = (uint32_t) left * 0x9e3779b1u ^ (uint32_t) right * 0x85ebca6bu;
	ft_bpe_pair *pair = work->pairs != NULL ? &work->pairs[hash >> (32 - PAIR_BITS)] : NULL;
	const ft_token_merge *m;
	int32_t merge;

	if (pair != NULL && pair->left == left && pair->right == right)
		return pair->merge;
	m = find_merge(bpe, left, right);
	merge = m != NULL ? (int32_t) (m - bpe->merges) : -1;
	if (pair != NULL)
		*pair = (ft_bpe_pair){left, right, merge};
	return merge;
}

/* The merge of the symbol at `left` with the one after it, NULL for none; noted with the symbol. */
static const ft_token_merge *
look(const ft_bpe *bpe, ft_bpe_work *work, int32_t left)
{
	ft_bpe_symbol *s = &work->symbols[left];

	s->merge = s->next >= 0 ? merge_of(bpe, work, s->token, work->symbols[s->next].token) : -1;
	return s->merge >= 0 ? &bpe->merges[s->merge] : NULL;
}

/* Remember the merge of the symbol at `left` with the one after it, if there is one. */
static ft_status
consider(const ft_bpe *bpe, ft_bpe_work *work, int32_t left)
{
	const ft_token_merge *m = left >= 0 ? look(bpe, work, left) : NULL;

	return m != NULL ? push(work, make_key(m->rank, left)) : FT_OK;
}

static ft_status
list_symbols(ft_bpe_work *work, const int32_t *tokens, size_t n)
{
	void *memory = work->symbols;

	if (n > INT32_MAX - 1)
		return ft_fail(FT_INVALID, "a word of %zu characters is too long to tokenise", n);
	FT_TRY(ft_grow(&memory, &work->symbols_capacity, n, sizeof(ft_bpe_symbol)));
	work->symbols = memory;
	for (int32_t i = 0; i < (int32_t) n; i++)
		work->symbols[i] = (ft_bpe_symbol){tokens[i], i - 1, i + 1 < (int32_t) n ? i + 1 : -1, -1};
	return FT_OK;
}

/* Remember all merges that are possible in the piece of n symbols. */
static ft_status
consider_all(const ft_bpe *bpe, ft_bpe_work *work, size_t n)
{
	void *memory;

	work->heap_size = 0;
	work->n_sorted = work->sorted_at = 0;
	if (n >= MANY && work->pairs == NULL)
	{
		FT_TRY(ft_alloc(&memory, 1 << PAIR_BITS, sizeof(ft_bpe_pair)));
		work->pairs = memory;
		/* -1: no token */
		memset(memory, -1, (1 << PAIR_BITS) * sizeof(ft_bpe_pair));
	}
	for (size_t i = 0; i < n; i++)
		FT_TRY(consider(bpe, work, (int32_t) i));
	return FT_OK;
}

static ft_status
merge_symbols(const ft_bpe *bpe, ft_bpe_work *work)
{
	for (;;)
	{
		uint64_t key;
		bool more;
		int32_t at;
		ft_bpe_symbol *left;
		ft_bpe_symbol *right;
		const ft_token_merge *m;

		FT_TRY(take(work, &key, &more));
		if (!more)
			return FT_OK;
		at = (int32_t) (uint32_t) key;
		left = &work->symbols[at];
		if (left->token < 0 || left->merge < 0)
			continue;
		right = &work->symbols[left->next];
		/* the pair may have changed since; one of the same rank has its turn as well */
		m = &bpe->merges[left->merge];
		if ((uint32_t) m->rank != key >> 32)
			continue;
		left->token = m->merged;
		right->token = -1;
		left->next = right->next;
		if (left->next >= 0)
			work->symbols[left->next].previous = at;
		FT_TRY(consider(bpe, work, left->previous));
		FT_TRY(consider(bpe, work, at));
	}
}

/* So few that looking at all pairs again after each merge is faster than a heap. */
#define FEW 32

static void
merge_few(const ft_bpe *bpe, int32_t *tokens, size_t *n)
{
	const ft_token_merge *merges[FEW];
	size_t count = *n;

	for (size_t i = 0; i + 1 < count; i++)
		merges[i] = find_merge(bpe, tokens[i], tokens[i + 1]);
	for (;;)
	{
		const ft_token_merge *best = NULL;
		size_t at = 0;

		for (size_t i = 0; i + 1 < count; i++)
		{
			if (merges[i] != NULL && (best == NULL || merges[i]->rank < best->rank))
			{
				best = merges[i];
				at = i;
			}
		}
		if (best == NULL)
			break;
		tokens[at] = best->merged;
		count--;
		for (size_t i = at + 1; i < count; i++)
		{
			tokens[i] = tokens[i + 1];
			merges[i - 1] = merges[i];
		}
		if (at + 1 < count)
			merges[at] = find_merge(bpe, tokens[at], tokens[at + 1]);
		if (at > 0)
			merges[at - 1] = find_merge(bpe, tokens[at - 1], tokens[at]);
	}
	*n = count;
}

ft_status
ft_bpe_merge(const ft_bpe *bpe, ft_bpe_work *work, int32_t *tokens, size_t *n)
{
	size_t count = 0;

	if (*n <= FEW)
	{
		merge_few(bpe, tokens, n);
		return FT_OK;
	}
	FT_TRY(list_symbols(work, tokens, *n));
	FT_TRY(consider_all(bpe, work, *n));
	FT_TRY(merge_symbols(bpe, work));
	for (int32_t i = 0; i >= 0; i = work->symbols[i].next)
		tokens[count++] = work->symbols[i].token;
	*n = count;
	return FT_OK;
}

void
ft_bpe_work_free(ft_bpe_work *work)
{
	free(work->symbols);
	free(work->sorted);
	free(work->spare);
	free(work->pairs);
	free(work->heap);
	*work = (ft_bpe_work){0};
}
