/*
 * test_tokenizer_bpe.c: merging long pieces by drawn merges, against the definition: again and
 * again the pair of the lowest rank, of one rank the leftmost.
 */
#include "random.h"
#include "tokenizer_bpe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TOKENS 300
#define DRAWN 120
/* more than ids in a key of the table of merges can have */
#define MANY_TOKENS (((size_t) 1 << FT_BUCKET_KEY_BITS / 2) + 1)
#define LONGEST 9000

typedef struct table
{
	ft_bpe bpe;
	int32_t rank[TOKENS][TOKENS]; /* -1: no merge */
	int32_t merged[TOKENS][TOKENS];
} table;

/* Each token but the first `letters` is made of two before it; so many have each rank.  With
 * doubling it is made of the one before it, twice. */
static void
make_table(table *t, uint64_t seed, int letters, int of_one_rank, bool doubling, size_t n_tokens)
{
	ft_token_merge *merges = calloc(TOKENS, sizeof *merges);
	size_t n = 0;

	memset(t->rank, -1, sizeof t->rank);
	for (int32_t id = letters; id < DRAWN; id++)
	{
		uint64_t i = (uint64_t) id;
		int32_t left = (int32_t) ft_random_below(seed, 0, i, i);
		int32_t right = (int32_t) ft_random_below(seed, 1, i, i);

		if (doubling && id % 8 > 0)
			left = right = id - 1;
		if (t->rank[left][right] >= 0)
			continue;
		t->rank[left][right] = (int32_t) ft_random_below(seed, 2, i, 1 << 12) / of_one_rank;
		t->merged[left][right] = id;
		merges[n++] = (ft_token_merge){left, right, t->rank[left][right], id};
	}
	assert_int_equal(ft_bpe_init(&t->bpe, n_tokens, merges, n), FT_OK);
}

static size_t
merge_by_definition(const table *t, int32_t *tokens, size_t n)
{
	for (;;)
	{
		size_t best = n;

		for (size_t i = 0; i + 1 < n; i++)
		{
			int32_t rank = t->rank[tokens[i]][tokens[i + 1]];

			if (rank >= 0 && (best == n || rank < t->rank[tokens[best]][tokens[best + 1]]))
				best = i;
		}
		if (best == n)
			return n;
		tokens[best] = t->merged[tokens[best]][tokens[best + 1]];
		n--;
		memmove(tokens + best + 1, tokens + best + 2, (n - best - 1) * sizeof *tokens);
	}
}

static void
compare(const table *t, ft_bpe_work *work, int32_t *tokens, size_t n)
{
	int32_t *expected = malloc(n * sizeof *expected);
	size_t wanted;

	memcpy(expected, tokens, n * sizeof *tokens);
	wanted = merge_by_definition(t, expected, n);
	assert_int_equal(ft_bpe_merge(&t->bpe, work, tokens, &n), FT_OK);
	assert_int_equal(n, wanted);
	assert_memory_equal(tokens, expected, n * sizeof *tokens);
	free(expected);
}

static void
test_long_pieces(void **state)
{
	static const size_t lengths[] = {LONGEST, 3000, 1025, 513, 512, 257, 129, 128,
									 127,     100,  65,   64,  33,  2,   1};
	table *t = malloc(sizeof *t);
	int32_t *tokens = malloc(LONGEST * sizeof *tokens);

	(void) state;
	for (uint64_t seed = 0; seed < 12; seed++)
	{
		int letters = 1 + (int) seed % 6 / 2;
		ft_bpe_work work = {0};

		make_table(t, seed, letters, seed % 2 == 0 ? 1 : 512, seed >= 6,
				   seed % 6 == 4 ? MANY_TOKENS : DRAWN);
		for (size_t k = 0; k < sizeof lengths / sizeof lengths[0]; k++)
		{
			size_t n = lengths[k];

			for (size_t i = 0; i < n; i++)
				tokens[i] = (int32_t) ft_random_below(seed, 3 + k, i, (uint64_t) letters);
			compare(t, &work, tokens, n);
		}
		ft_bpe_work_free(&work);
		ft_bpe_free(&t->bpe);
	}
	free(tokens);
	free(t);
}

/* Each letter is merged with the one that follows it in the alphabet, the last ones first: whether
 * the first two of an alphabet are merged depends on where it ends, a hundred letters further on.
 */
#define LETTERS 140
#define TEXTS 300

static void
test_far_ends(void **state)
{
	ft_token_merge *merges = calloc(LETTERS, sizeof *merges);
	table *t = malloc(sizeof *t);
	ft_bpe_work work = {0};

	(void) state;
	memset(t->rank, -1, sizeof t->rank);
	for (int32_t i = 0; i + 1 < LETTERS; i++)
	{
		merges[i] = (ft_token_merge){i, i + 1, LETTERS - i, LETTERS + i};
		t->rank[i][i + 1] = LETTERS - i;
		t->merged[i][i + 1] = LETTERS + i;
	}
	assert_int_equal(ft_bpe_init(&t->bpe, TOKENS, merges, LETTERS - 1), FT_OK);
	for (uint64_t text = 0; text < TEXTS; text++)
	{
		size_t n = 100 + ft_random_below(text, 0, 0, 500);
		int32_t *tokens = malloc(n * sizeof *tokens);
		size_t left = 0;

		for (size_t i = 0; i < n; i++, left--)
		{
			if (left == 0)
				left = 1 + ft_random_below(text, 1, i, LETTERS);
			tokens[i] = (int32_t) (LETTERS - left);
		}
		compare(t, &work, tokens, n);
		free(tokens);
	}
	ft_bpe_work_free(&work);
	ft_bpe_free(&t->bpe);
	free(t);
}

/* Pairs that all have one bucket of the table, which has room for few of them. */
#define CROWD 40

static void
test_full_bucket(void **state)
{
	ft_token_merge *merges = calloc(CROWD, sizeof *merges);
	ft_token_merge copy[CROWD];
	ft_bpe_work work = {0};
	ft_buckets buckets = {0};
	ft_bpe bpe = {0};
	int32_t right = 0;

	(void) state;
	assert_int_equal(ft_buckets_create(&buckets, CROWD), FT_OK);
	for (int32_t i = 0; i < CROWD; i++, right++)
	{
		while (ft_bucket_of(&buckets, (uint64_t) 1 << FT_BUCKET_KEY_BITS / 2 | (uint64_t) right) !=
			   buckets.places)
			right++;
		merges[i] = (ft_token_merge){1, right, i, 2 + i};
	}
	memcpy(copy, merges, sizeof copy);
	assert_int_equal(ft_bpe_init(&bpe, (size_t) right + 2, merges, CROWD), FT_OK);
	for (int32_t i = 0; i < CROWD; i++)
	{
		int32_t tokens[] = {1, copy[i].right};
		size_t n = 2;

		assert_int_equal(ft_bpe_merge(&bpe, &work, tokens, &n), FT_OK);
		assert_int_equal(n, 1);
		assert_int_equal(tokens[0], copy[i].merged);
	}
	ft_bpe_work_free(&work);
	ft_bpe_free(&bpe);
	ft_buckets_free(&buckets);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_long_pieces),
		cmocka_unit_test(test_far_ends),
		cmocka_unit_test(test_full_bucket),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
