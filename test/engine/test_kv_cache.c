/*
 * test_kv_cache.c: blocks are handed out once, all or none, and come back.
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

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_blocks_for),      cmocka_unit_test(test_size),
		cmocka_unit_test(test_each_block_once), cmocka_unit_test(test_all_or_none),
		cmocka_unit_test(test_no_empty_cache),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
