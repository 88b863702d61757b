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

#define TOKENS 120
#define LONGEST 9000

typedef struct table
{
	ft_bpe bpe;
	int32_t rank[TOKENS][TOKENS]; /* -1: no merge */
	int32_t merged[TOKENS][TOKENS];
} table;

/* Each token but the first `letters` is made of two before it; so many have each rank. */
static void
make_table(table *t, uint64_t seed, int letters, int of_one_rank)
{
	ft_token_merge *merges = calloc(TOKENS, sizeof *merges);
	size_t n = 0;

	memset(t->rank, -1, sizeof t->rank);
	for (int32_t id = letters; id < TOKENS; id++)
	{
		uint64_t i = (uint64_t) id;
		int32_t left = (int32_t) ft_random_below(seed, 0, i, i);
		int32_t right = (int32_t) ft_random_below(seed, 1, i, i);

		if (t->rank[left][right] >= 0)
			continue;
		t->rank[left][right] = (int32_t) ft_random_below(seed, 2, i, 1 << 12) / of_one_rank;
		t->merged[left][right] = id;
		merges[n++] = (ft_token_merge){left, right, t->rank[left][right], id};
	}
	assert_int_equal(ft_bpe_init(&t->bpe, TOKENS, merges, n), FT_OK);
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
test_long_pieces(void **state)
{
	static const size_t lengths[] = {LONGEST, 3000, 2048, 2047, 100, 33, 32, 2, 1};
	table *t = malloc(sizeof *t);
	int32_t *tokens = malloc(LONGEST * sizeof *tokens);
	int32_t *expected = malloc(LONGEST * sizeof *expected);

	(void) state;
	for (uint64_t seed = 0; seed < 6; seed++)
	{
		int letters = 1 + (int) seed / 2;
		ft_bpe_work work = {0};

		make_table(t, seed, letters, seed % 2 == 0 ? 1 : 512);
		for (size_t k = 0; k < sizeof lengths / sizeof lengths[0]; k++)
		{
			size_t n = lengths[k];
			size_t wanted;

			for (size_t i = 0; i < n; i++)
				tokens[i] = (int32_t) ft_random_below(seed, 3 + k, i, (uint64_t) letters);
			memcpy(expected, tokens, n * sizeof *tokens);
			wanted = merge_by_definition(t, expected, n);
			assert_int_equal(ft_bpe_merge(&t->bpe, &work, tokens, &n), FT_OK);
			assert_int_equal(n, wanted);
			assert_memory_equal(tokens, expected, n * sizeof *tokens);
		}
		ft_bpe_work_free(&work);
		ft_bpe_free(&t->bpe);
	}
	free(tokens);
	free(expected);
	free(t);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_long_pieces)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
