/*
 * test_kv_cache.c: blocks are handed out once, all or none, and come back; those with a name are
 * shared, and kept until they are needed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serving.h"
#include "tiny_model.h"

#define BLOCKS 10

static serving s;
static char *directory;

static int
set_up(void **state)
{
	char path[512];

	(void) state;
	directory = tiny_directory();
	snprintf(path, sizeof path, "%s/tiny.gguf", directory);
	tiny_model_write(path, &tiny_default);
	serving_open(&s, path, FT_NUMERICS_REFERENCE, 1, BLOCKS * FT_KV_BLOCK);
	return 0;
}

static int
tear_down(void **state)
{
	(void) state;
	serving_close(&s);
	tiny_remove(directory);
	free(directory);
	return 0;
}

static void
test_blocks_for(void **state)
{
	(void) state;
	assert_int_equal(ft_kv_blocks_for(0), 0);
	assert_int_equal(ft_kv_blocks_for(1), 1);
	assert_int_equal(ft_kv_blocks_for(16), 1);
	assert_int_equal(ft_kv_blocks_for(17), 2);
}

static void
test_size(void **state)
{
	/* two layers, k and v, 2 heads of 8 values in f32, 16 tokens */
	(void) state;
	assert_int_equal(ft_kv_block_bytes(s.model), 2 * 2 * 2 * 8 * 4 * 16);
}

static void
test_each_block_once(void **state)
{
	int32_t blocks[BLOCKS];
	bool seen[BLOCKS] = {false};

	(void) state;
	assert_int_equal(s.cache->n_blocks, BLOCKS);
	assert_true(ft_kv_take(s.cache, 4, blocks));
	assert_true(ft_kv_take(s.cache, 6, blocks + 4));
	assert_int_equal(s.cache->n_free, 0);
	for (int i = 0; i < BLOCKS; i++)
	{
		assert_in_range(blocks[i], 0, BLOCKS - 1);
		assert_false(seen[blocks[i]]);
		seen[blocks[i]] = true;
	}
	ft_kv_give_back(s.cache, blocks, BLOCKS);
	assert_int_equal(s.cache->n_free, BLOCKS);
}

static void
test_all_or_none(void **state)
{
	int32_t blocks[BLOCKS + 1];

	(void) state;
	assert_true(ft_kv_take(s.cache, 7, blocks));
	memset(blocks + 7, 0x7f, 4 * sizeof(int32_t));
	assert_false(ft_kv_take(s.cache, 4, blocks + 7));
	assert_int_equal(s.cache->n_free, 3);
	assert_int_equal(blocks[7], 0x7f7f7f7f);
	assert_true(ft_kv_take(s.cache, 0, blocks + 7));
	ft_kv_give_back(s.cache, blocks, 7);
	assert_int_equal(s.cache->n_free, BLOCKS);
}

static void
test_no_empty_cache(void **state)
{
	ft_kv_cache *cache = NULL;

	(void) state;
	assert_int_equal(ft_kv_cache_create(s.model, 0, &cache), FT_INVALID);
	assert_null(cache);
}

/* The name of a first block that is full of one token. */
static ft_kv_key
name_of(const char *salt, uint64_t weights, int32_t token)
{
	int32_t tokens[FT_KV_BLOCK];
	ft_kv_key begin, key;

	for (int i = 0; i < FT_KV_BLOCK; i++)
		tokens[i] = token;
	assert_int_equal(ft_kv_key_begin(salt, weights, &begin), FT_OK);
	assert_int_equal(ft_kv_key_next(&begin, tokens, &key), FT_OK);
	return key;
}

static void
test_names_differ(void **state)
{
	ft_kv_key keys[] = {name_of("", 0, 1), name_of("a", 0, 1), name_of("", 1, 1),
						name_of("", 0, 2)};
	ft_kv_key again = name_of("a", 0, 1);
	int32_t tokens[FT_KV_BLOCK] = {0};
	ft_kv_key second;

	(void) state;
	for (size_t i = 0; i < 4; i++)
		for (size_t k = 0; k < i; k++)
			assert_memory_not_equal(&keys[i], &keys[k], sizeof keys[0]);
	assert_memory_equal(&again, &keys[1], sizeof again);
	assert_int_equal(ft_kv_key_next(&keys[0], tokens, &second), FT_OK);
	assert_int_equal(ft_kv_key_next(&keys[1], tokens, &again), FT_OK);
	assert_memory_not_equal(&again, &second, sizeof again);
}

static void
test_sharing(void **state)
{
	ft_kv_key key = name_of("", 0, 1);
	int32_t mine, other;

	(void) state;
	assert_int_equal(ft_kv_find(s.cache, &key), -1);
	assert_true(ft_kv_take(s.cache, 1, &mine));
	assert_int_equal(ft_kv_name(s.cache, mine, &key), mine);
	assert_int_equal(ft_kv_find(s.cache, &key), mine);
	ft_kv_share(s.cache, mine);
	assert_int_equal(s.cache->n_free, BLOCKS - 1);

	/* who has computed the same gives its block up for this one */
	assert_true(ft_kv_take(s.cache, 1, &other));
	assert_int_not_equal(other, mine);
	assert_int_equal(ft_kv_name(s.cache, other, &key), mine);
	assert_int_equal(s.cache->n_free, BLOCKS - 1);

	for (int i = 0; i < 3; i++)
	{
		assert_int_equal(s.cache->n_kept, 0);
		ft_kv_give_back(s.cache, &mine, 1);
	}
	assert_int_equal(s.cache->n_free, BLOCKS);
	assert_int_equal(s.cache->n_kept, 1);
	assert_int_equal(ft_kv_find(s.cache, &key), mine);
	ft_kv_share(s.cache, mine);
	assert_int_equal(s.cache->n_kept, 0);
	assert_int_equal(s.cache->n_free, BLOCKS - 1);
	ft_kv_give_back(s.cache, &mine, 1);
}

static void
test_oldest_name_goes_first(void **state)
{
	int32_t blocks[BLOCKS];

	(void) state;
	assert_true(ft_kv_take(s.cache, BLOCKS, blocks));
	for (int i = 0; i < BLOCKS; i++)
	{
		ft_kv_key key = name_of("order", 0, i);

		assert_int_equal(ft_kv_name(s.cache, blocks[i], &key), blocks[i]);
	}
	/* of one sequence the end goes before the beginning; then the other */
	ft_kv_give_back(s.cache, blocks + 5, 5);
	ft_kv_give_back(s.cache, blocks, 5);
	assert_int_equal(s.cache->n_kept, BLOCKS);
	for (int n = 1; n <= BLOCKS; n++)
	{
		static const int order[BLOCKS] = {9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
		int32_t taken[BLOCKS];

		assert_true(ft_kv_take(s.cache, 1, taken));
		assert_int_equal(taken[0], blocks[order[n - 1]]);
		for (int i = 0; i < BLOCKS; i++)
		{
			ft_kv_key key = name_of("order", 0, order[i]);

			assert_int_equal(ft_kv_find(s.cache, &key), i < n ? -1 : blocks[order[i]]);
		}
	}
	assert_int_equal(s.cache->n_free, 0);
	assert_int_equal(s.cache->n_kept, 0);
	ft_kv_give_back(s.cache, blocks, BLOCKS);
	assert_int_equal(s.cache->n_kept, 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_blocks_for),      cmocka_unit_test(test_size),
		cmocka_unit_test(test_each_block_once), cmocka_unit_test(test_all_or_none),
		cmocka_unit_test(test_no_empty_cache),  cmocka_unit_test(test_names_differ),
		cmocka_unit_test(test_sharing),         cmocka_unit_test(test_oldest_name_goes_first),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
