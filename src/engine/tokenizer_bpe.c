/*
 * tokenizer_bpe.c: merging by rank.
 *
 * Merges are looked up by a hash of the pair, and where that does not tell by bisection among the
 * merges of the left token: so no vocabulary can make lookups slow.
 *
 * A short piece is merged by passes: each looks for the lowest rank and merges its pairs from the
 * left.  A long one is cut into chunks that lie over each other, and those are merged: tokens are
 * the piece's if each two neighbours are what the text of these two alone is merged into, for what
 * happens between two tokens depends on nothing outside of them.  So where two chunks have a token
 * in common, what the first one has before it and what the second one has after it is what the
 * piece as a whole would give.  If they have none in common, chunks become twice as long; in long
 * ones a heap holds the merges that were possible when they were seen, and one that its neighbours
 * have overtaken is dropped when it comes up.  So a byte costs the same in a piece of a million
 * bytes as in a short one, but for the logarithm.
 */
#include "tokenizer_bpe.h"

#include <stdlib.h>
#include <string.h>

/* No merge. */
#define NO_RANK INT32_MAX

/* --- the table of merges --- */

/* Two ids are a key, where each has so many bits. */
#define ID_BITS (FT_BUCKET_KEY_BITS / 2)

static uint64_t
pair_key(int32_t left, int32_t right)
{
	return (uint64_t) left << ID_BITS | (uint64_t) right;
}

/* One of 64 bits. */
static uint64_t
right_bit(int32_t right)
{
	return (uint64_t) 1 << ((uint32_t) right * 0x9e3779b1u >> 26);
}

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

static int
compare_ranks(const void *a, const void *b, void *merges)
{
	const ft_token_merge *m = merges;
	uint32_t x = *(const uint32_t *) a;
	uint32_t y = *(const uint32_t *) b;

	return m[x].rank != m[y].rank ? (m[x].rank < m[y].rank ? -1 : 1) : (x > y) - (x < y);
}

/* The outcomes of merges stand by rank: a text needs few beyond the first ones, which so share
 * cache lines.  Vocabularies whose numbers do not fit have no such table. */
static ft_status
fill_table(ft_bpe *bpe)
{
	void *memory;
	uint32_t *order;

	if (bpe->n_tokens >= (size_t) 1 << ID_BITS ||
		bpe->n_merges > (size_t) 1 << FT_BUCKET_NUMBER_BITS || bpe->n_merges == 0)
		return FT_OK;
	FT_TRY(ft_alloc(&memory, bpe->n_merges, sizeof(ft_bpe_outcome)));
	bpe->outcomes = memory;
	FT_TRY(ft_buckets_create(&bpe->table, bpe->n_merges));
	FT_TRY(ft_alloc(&memory, bpe->n_merges, sizeof(uint32_t)));
	order = memory;
	for (size_t i = 0; i < bpe->n_merges; i++)
		order[i] = (uint32_t) i;
	qsort_r(order, bpe->n_merges, sizeof(uint32_t), compare_ranks, bpe->merges);
	for (size_t i = 0; i < bpe->n_merges; i++)
	{
		const ft_token_merge *m = &bpe->merges[order[i]];

		bpe->outcomes[i] = (ft_bpe_outcome){m->rank, m->merged};
		ft_buckets_put(&bpe->table, pair_key(m->left, m->right), (uint32_t) i);
	}
	free(order);
	return FT_OK;
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
	FT_TRY(ft_alloc(&memory, n_tokens, sizeof(uint64_t)));
	bpe->rights = memory;
	for (size_t i = 0; i < kept; i++)
		bpe->rights[merges[i].left] |= right_bit(merges[i].right);
	return fill_table(bpe);
}

void
ft_bpe_free(ft_bpe *bpe)
{
	free(bpe->merges);
	free(bpe->first);
	free(bpe->rights);
	free(bpe->outcomes);
	ft_buckets_free(&bpe->table);
	bpe->merges = NULL;
	bpe->first = NULL;
	bpe->rights = NULL;
	bpe->outcomes = NULL;
}

/* What the pair becomes, with rank NO_RANK where it is not merged. */
static ft_bpe_outcome
bisect(const ft_bpe *bpe, int32_t left, int32_t right)
{
	uint32_t low = bpe->first[left];
	uint32_t high = bpe->first[left + 1];

	while (low < high)
	{
		uint32_t middle = low + (high - low) / 2;
		const ft_token_merge *m = &bpe->merges[middle];

		if (m->right == right)
			return (ft_bpe_outcome){m->rank, m->merged};
		if (m->right > right)
			high = middle;
		else
			low = middle + 1;
	}
	return (ft_bpe_outcome){NO_RANK, -1};
}

static ft_bpe_outcome
find_merge(const ft_bpe *bpe, int32_t left, int32_t right)
{
	int32_t number = FT_BUCKET_UNKNOWN;

	if ((bpe->rights[left] & right_bit(right)) == 0)
		return (ft_bpe_outcome){NO_RANK, -1};
	if (bpe->table.places != NULL)
		number = ft_buckets_find(&bpe->table, pair_key(left, right));
	if (number == FT_BUCKET_NONE)
		return (ft_bpe_outcome){NO_RANK, -1};
	return number >= 0 ? bpe->outcomes[number] : bisect(bpe, left, right);
}

/* --- by passes --- */

/* Look up what the token at i and the next one become; returned is its rank. */
static int32_t
look_at(const ft_bpe *bpe, ft_bpe_part *part, size_t i, int32_t next)
{
	ft_bpe_outcome outcome = find_merge(bpe, part->tokens[i], next);

	part->merged[i] = outcome.merged;
	return part->ranks[i] = outcome.rank;
}

static void
move(ft_bpe_part *part, size_t to, size_t from, size_t n)
{
	memmove(part->tokens + to, part->tokens + from, n * sizeof(int32_t));
	memmove(part->starts + to, part->starts + from, n * sizeof(int32_t));
	memmove(part->merged + to, part->merged + from, n * sizeof(int32_t));
	memmove(part->ranks + to, part->ranks + from, n * sizeof(int32_t));
}

/* Merge the pairs of this rank from the left, until all are or one has come up that is before
 * them. */
static void
pass(const ft_bpe *bpe, ft_bpe_part *part, int32_t rank, size_t first)
{
	size_t n = part->n;
	size_t to = first;
	size_t from = first;
	bool ended = false;

	while (from < n && !ended)
	{
		size_t next = from + 1;

		/* what lies between two of the rank is moved at once */
		if (part->ranks[from] != rank)
		{
			while (next < n && part->ranks[next] != rank)
				next++;
			if (to != from)
				move(part, to, from, next - from);
			to += next - from;
			from = next;
			continue;
		}
		part->tokens[to] = part->merged[from];
		part->starts[to] = part->starts[from];
		from += 2;
		if (to > 0)
			ended = look_at(bpe, part, to - 1, part->tokens[to]) <= rank;
		if (from < n)
			ended |= look_at(bpe, part, to, part->tokens[from]) <= rank;
		else
			part->ranks[to] = NO_RANK;
		to++;
	}
	if (to != from)
		move(part, to, from, n - from);
	part->n = to + n - from;
}

static void
merge_by_passes(const ft_bpe *bpe, ft_bpe_part *part)
{
	for (size_t i = 0; i + 1 < part->n; i++)
		look_at(bpe, part, i, part->tokens[i + 1]);
	part->ranks[part->n - 1] = NO_RANK;
	for (;;)
	{
		int32_t least = NO_RANK;
		size_t first = 0;

		for (size_t i = 0; i < part->n; i++)
			least = part->ranks[i] < least ? part->ranks[i] : least;
		if (least == NO_RANK)
			return;
		while (part->ranks[first] != least)
			first++;
		pass(bpe, part, least, first);
	}
}

/* --- by a heap --- */

typedef struct ft_bpe_symbol
{
	int32_t token; /* -1: merged into the symbol before it */
	int32_t previous;
	int32_t next;
	ft_bpe_outcome outcome; /* with the next one */
} ft_bpe_symbol;

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

/* Remember the merge of the symbol at `left` with the one after it, if there is one. */
static ft_status
consider(const ft_bpe *bpe, ft_bpe_work *work, int32_t left)
{
	ft_bpe_symbol *s;

	if (left < 0)
		return FT_OK;
	s = &work->symbols[left];
	s->outcome = (ft_bpe_outcome){NO_RANK, -1};
	if (s->next >= 0)
		s->outcome = find_merge(bpe, s->token, work->symbols[s->next].token);
	return s->outcome.rank != NO_RANK ? push(work, make_key(s->outcome.rank, left)) : FT_OK;
}

static ft_status
list_symbols(const ft_bpe *bpe, ft_bpe_work *work, const int32_t *tokens, size_t n)
{
	void *memory = work->symbols;

	FT_TRY(ft_grow(&memory, &work->symbols_capacity, n, sizeof(ft_bpe_symbol)));
	work->symbols = memory;
	for (int32_t i = 0; i < (int32_t) n; i++)
		work->symbols[i] = (ft_bpe_symbol){
			.token = tokens[i], .previous = i - 1, .next = i + 1 < (int32_t) n ? i + 1 : -1};
	work->heap_size = 0;
	for (size_t i = 0; i < n; i++)
		FT_TRY(consider(bpe, work, (int32_t) i));
	return FT_OK;
}

static ft_status
merge_by_heap(const ft_bpe *bpe, ft_bpe_work *work, ft_bpe_part *part)
{
	FT_TRY(list_symbols(bpe, work, part->tokens, part->n));
	while (work->heap_size > 0)
	{
		uint64_t key = pop(work);
		int32_t at = (int32_t) (uint32_t) key;
		ft_bpe_symbol *left = &work->symbols[at];
		ft_bpe_symbol *right;

		/* the pair may have changed since; one of the same rank has its turn as well */
		if (left->token < 0 || (uint32_t) left->outcome.rank != key >> 32)
			continue;
		right = &work->symbols[left->next];
		left->token = left->outcome.merged;
		right->token = -1;
		left->next = right->next;
		if (left->next >= 0)
			work->symbols[left->next].previous = at;
		FT_TRY(consider(bpe, work, left->previous));
		FT_TRY(consider(bpe, work, at));
	}
	part->n = 0;
	for (int32_t i = 0; i >= 0; i = work->symbols[i].next)
	{
		part->tokens[part->n] = work->symbols[i].token;
		part->starts[part->n++] = i;
	}
	return FT_OK;
}

/* --- a piece --- */

/* So many symbols has a part of a long piece at first: short enough for passes over all of it. */
#define PART 64
/* Passes over more take longer than a heap. */
#define MANY 512

/* Merge the n symbols into the part's tokens. */
static ft_status
merge_part(const ft_bpe *bpe, ft_bpe_work *work, ft_bpe_part *part, const int32_t *symbols,
		   size_t n)
{
	if (n > part->capacity)
	{
		size_t capacity = n < 2 * PART ? 2 * PART : n;
		void *memory;

		FT_TRY(ft_alloc(&memory, capacity, 4 * sizeof(int32_t)));
		free(part->tokens);
		part->tokens = memory;
		part->starts = part->tokens + capacity;
		part->merged = part->starts + capacity;
		part->ranks = part->merged + capacity;
		part->capacity = capacity;
	}
	memcpy(part->tokens, symbols, n * sizeof(int32_t));
	for (size_t i = 0; i < n; i++)
		part->starts[i] = (int32_t) i;
	part->n = n;
	part->n_symbols = n;
	if (n > MANY)
		return merge_by_heap(bpe, work, part);
	merge_by_passes(bpe, part);
	return FT_OK;
}

static size_t
token_end(const ft_bpe_part *part, size_t i)
{
	return i + 1 < part->n ? (size_t) part->starts[i + 1] : part->n_symbols;
}

/* The second part begins where the first one's token `from` does.  Is there a token in both?  It is
 * *i of the first and *j of the second one. */
static bool
common_token(const ft_bpe_part *first, size_t from, const ft_bpe_part *second, size_t *i, size_t *j)
{
	size_t shift = (size_t) first->starts[from];

	*i = from;
	*j = 0;
	while (*i < first->n && *j < second->n)
	{
		size_t a = (size_t) first->starts[*i];
		size_t b = (size_t) second->starts[*j] + shift;

		if (a == b && token_end(first, *i) == token_end(second, *j) + shift)
			return true;
		*i += a <= b;
		*j += b <= a;
	}
	return false;
}

/* Where the next part begins: at the token of the last quarter that comes first. */
static size_t
overlap(const ft_bpe_part *part)
{
	size_t i = part->n - 1;

	while (i > 0 && (size_t) part->starts[i - 1] >= part->n_symbols - part->n_symbols / 4)
		i--;
	return i;
}

static size_t
least(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* Merge a piece of so many symbols that parts of it pay.  What of it is known stands in work->done
 * and then in the part, from its token `skip` on, but for what the part's end has spoiled. */
static ft_status
merge_long(const ft_bpe *bpe, ft_bpe_work *work, const int32_t *symbols, size_t n)
{
	ft_bpe_part *part = &work->parts[0];
	ft_bpe_part *next = &work->parts[1];
	size_t size = PART;
	size_t at = 0; /* the part's first symbol */
	size_t skip = 0;

	ft_ids_clear(&work->done);
	FT_TRY(merge_part(bpe, work, part, symbols, size));
	while (at + part->n_symbols < n)
	{
		size_t from = overlap(part);
		ft_bpe_part *swap = part;
		size_t begin;
		size_t i;
		size_t j;

		/* where long tokens leave it no way to go, a longer one takes its place */
		if (from <= skip || (size_t) part->starts[from] < part->n_symbols / 2)
		{
			from = skip;
			size *= 2;
		}
		for (;;)
		{
			begin = at + (size_t) part->starts[from];
			FT_TRY(merge_part(bpe, work, next, symbols + begin, least(size, n - begin)));
			if (common_token(part, from, next, &i, &j))
				break;
			if (begin == 0)
			{
				/* nothing is known yet: the longer part is as good a beginning */
				i = j = 0;
				break;
			}
			if (begin + size >= n && from == skip)
			{
				/* nothing in common up to the end: the piece as a whole */
				ft_ids_clear(&work->done);
				FT_TRY(merge_part(bpe, work, part, symbols, n));
				return ft_ids_append(&work->done, part->tokens, part->n);
			}
			from = skip;
			size *= 2;
		}
		FT_TRY(ft_ids_append(&work->done, part->tokens + skip, i - skip));
		skip = j;
		at = begin;
		part = next;
		next = swap;
	}
	return ft_ids_append(&work->done, part->tokens + skip, part->n - skip);
}

ft_status
ft_bpe_merge(const ft_bpe *bpe, ft_bpe_work *work, int32_t *tokens, size_t *n)
{
	const int32_t *merged;

	if (*n < 2)
		return FT_OK;
	if (*n > INT32_MAX - 1)
		return ft_fail(FT_INVALID, "a word of %zu characters is too long to tokenise", *n);
	if (*n <= 2 * PART)
	{
		FT_TRY(merge_part(bpe, work, &work->parts[0], tokens, *n));
		merged = work->parts[0].tokens;
		*n = work->parts[0].n;
	}
	else
	{
		FT_TRY(merge_long(bpe, work, tokens, *n));
		merged = work->done.data;
		*n = work->done.length;
	}
	memcpy(tokens, merged, *n * sizeof(int32_t));
	return FT_OK;
}

void
ft_bpe_work_free(ft_bpe_work *work)
{
	for (int i = 0; i < 2; i++)
		free(work->parts[i].tokens);
	ft_ids_free(&work->done);
	free(work->symbols);
	free(work->heap);
	*work = (ft_bpe_work){0};
}
