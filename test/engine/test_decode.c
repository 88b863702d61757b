/*
 * test_decode.c: a sequence's numbers do not depend on what shares its batch,
 * on how its prompt was cut, or on the blocks that it was given.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "random.h"
#include "serving.h"
#include "tiny_model.h"

#define V TINY_VOCABULARY

static char *directory;
static char path[512];
static char adapter_path[512];

static int
set_up(void **state)
{
	(void) state;
	directory = tiny_directory();
	snprintf(path, sizeof path, "%s/tiny.gguf", directory);
	snprintf(adapter_path, sizeof adapter_path, "%s/adapter", directory);
	return 0;
}

static int
tear_down(void **state)
{
	(void) state;
	tiny_remove(directory);
	free(directory);
	return 0;
}

static void
random_tokens(uint64_t seed, int n, int32_t *tokens)
{
	for (int i = 0; i < n; i++)
		tokens[i] = (int32_t) ft_random_below(seed, 0, (uint64_t) i, V);
}

static void
assert_same_bits(const float *a, const float *b)
{
	for (int i = 0; i < V; i++)
		assert_true(isfinite(a[i]));
	assert_memory_equal(a, b, V * sizeof(float));
}

/* The last row's logits are the same bits however the prompt is cut. */
static void
check_chunks(const tiny_model *tiny, ft_numerics numerics, int threads, bool with_adapter)
{
	static const int chunks[] = {512, 1, 7, 64};
	enum
	{
		N = 200
	};
	ft_adapter *adapter = NULL;
	serving s;
	int32_t tokens[N];
	float first[V];
	float *logits = malloc(sizeof(float) * V * N);

	assert_non_null(logits);
	tiny_model_write(path, tiny);
	serving_open(&s, path, numerics, threads, 256);
	if (with_adapter)
	{
		tiny_adapter_write(adapter_path, tiny, 5);
		assert_int_equal(ft_peft_load(s.model, adapter_path, &adapter), FT_OK);
	}
	random_tokens(3, N, tokens);
	for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++)
	{
		int pieces = (N + chunks[c] - 1) / chunks[c];
		const float *last = logits + (size_t) (pieces - 1) * V;

		serving_feed(&s, adapter, tokens, N, chunks[c], logits);
		if (c == 0)
			memcpy(first, last, sizeof first);
		else
			assert_same_bits(first, last);
	}
	ft_adapter_free(adapter);
	serving_close(&s);
	free(logits);
}

static void
test_chunks(void **state)
{
	(void) state;
	check_chunks(&tiny_default, FT_NUMERICS_REFERENCE, 1, false);
	check_chunks(&tiny_default, FT_NUMERICS_FAST, 2, false);
}

static void
test_chunks_quantised(void **state)
{
	tiny_model tiny = tiny_default;

	(void) state;
	tiny.hidden = 64;
	tiny.ffn = 96;
	tiny.head_dim = 16;
	tiny.q4_1 = true;
	check_chunks(&tiny, FT_NUMERICS_REFERENCE, 2, false);
	check_chunks(&tiny, FT_NUMERICS_FAST, 2, false);
	check_chunks(&tiny, FT_NUMERICS_FAST, 1, true);
}

static void
test_chunks_with_adapter(void **state)
{
	(void) state;
	check_chunks(&tiny_default, FT_NUMERICS_REFERENCE, 2, true);
	check_chunks(&tiny_default, FT_NUMERICS_FAST, 2, true);
}

/* Sequences of many lengths over two adapters and the base, all in one batch. */
static void
test_batch(void **state)
{
	enum
	{
		SEQUENCES = 9,
		MOST = 60
	};
	ft_adapter *adapters[3] = {NULL};
	ft_decode_item items[SEQUENCES];
	int32_t tokens[SEQUENCES][MOST];
	int32_t blocks[SEQUENCES][4];
	float alone[V], together[V];
	serving s;

	(void) state;
	tiny_model_write(path, &tiny_default);
	serving_open(&s, path, FT_NUMERICS_FAST, 2, 1024);
	for (uint64_t i = 1; i < 3; i++)
	{
		tiny_adapter_write(adapter_path, &tiny_default, i);
		assert_int_equal(ft_peft_load(s.model, adapter_path, &adapters[i]), FT_OK);
	}
	for (int i = 0; i < SEQUENCES; i++)
	{
		random_tokens((uint64_t) i, MOST, tokens[i]);
		assert_true(ft_kv_take(s.cache, 4, blocks[i]));
		items[i] = (ft_decode_item){
			.tokens = tokens[i],
			.rows = i % 2 ? 1 : 1 + 7 * i,
			.blocks = blocks[i],
			.adapter = adapters[i / 3],
			.wants_logits = i != 4,
		};
	}
	assert_int_equal(ft_decoder_run(s.decoder, s.cache, items, SEQUENCES), FT_OK);
	for (int i = 0, wanted = 0; i < SEQUENCES; i++)
	{
		int32_t other[4];
		ft_decode_item item = items[i];
		serving t = s;

		if (!item.wants_logits)
			continue;
		/* a decoder of its own, or its run would replace the batch's logits */
		assert_int_equal(ft_decoder_create(s.model, 64, 1, &t.decoder), FT_OK);
		assert_true(ft_kv_take(s.cache, 4, other));
		item.blocks = other;
		assert_int_equal(ft_decoder_run(t.decoder, s.cache, &item, 1), FT_OK);
		assert_int_equal(ft_decoder_logits(t.decoder, 0, alone), FT_OK);
		assert_int_equal(ft_decoder_logits(s.decoder, wanted++, together), FT_OK);
		assert_same_bits(alone, together);
		ft_kv_give_back(s.cache, other, 4);
		ft_decoder_free(t.decoder);
	}
	for (int i = 1; i < 3; i++)
		ft_adapter_free(adapters[i]);
	serving_close(&s);
}

/* An adapter changes the answer; one whose B is zero does not. */
static void
test_adapter(void **state)
{
	ft_adapter *adapter, *untrained;
	int32_t tokens[20];
	float base[V], with[V], with_untrained[V];
	serving s;

	(void) state;
	tiny_model_write(path, &tiny_default);
	tiny_adapter_write(adapter_path, &tiny_default, 1);
	serving_open(&s, path, FT_NUMERICS_REFERENCE, 1, 64);
	random_tokens(1, 20, tokens);
	assert_int_equal(ft_peft_load(s.model, adapter_path, &adapter), FT_OK);
	assert_int_equal(
		ft_adapter_create(s.model, 8, 16, true, (1u << FT_TARGET_COUNT) - 1, &untrained), FT_OK);
	assert_int_equal(ft_adapter_init(untrained, &s.model->config, 7), FT_OK);
	serving_feed(&s, NULL, tokens, 20, 20, base);
	serving_feed(&s, adapter, tokens, 20, 20, with);
	serving_feed(&s, untrained, tokens, 20, 20, with_untrained);
	assert_memory_not_equal(base, with, sizeof base);
	assert_same_bits(base, with_untrained);
	ft_adapter_free(adapter);
	ft_adapter_free(untrained);
	serving_close(&s);
}

/* Greedy answers over many steps, and a head of its own, and frequencies with factors. */
static void
test_variants_are_finite_and_differ(void **state)
{
	tiny_model variants[3] = {tiny_default, tiny_default, tiny_default};
	int32_t tokens[40];
	float logits[3][V];

	(void) state;
	variants[1].tied = false;
	variants[2].rope_freqs = true;
	random_tokens(1, 40, tokens);
	for (int i = 0; i < 3; i++)
	{
		serving s;

		tiny_model_write(path, &variants[i]);
		serving_open(&s, path, FT_NUMERICS_REFERENCE, 1, 64);
		serving_feed(&s, NULL, tokens, 40, 40, logits[i]);
		assert_same_bits(logits[i], logits[i]);
		serving_close(&s);
	}
	assert_memory_not_equal(logits[0], logits[1], sizeof logits[0]);
	assert_memory_not_equal(logits[0], logits[2], sizeof logits[0]);
}

/* What must never reach the kernels is refused. */
static void
test_refusals(void **state)
{
	int32_t token = 1, block = 0, bad_block = 9;
	ft_decode_item item = {.tokens = &token, .rows = 1, .blocks = &block};
	serving s;

	(void) state;
	tiny_model_write(path, &tiny_default);
	serving_open(&s, path, FT_NUMERICS_REFERENCE, 1, 64);
	assert_int_equal(ft_decoder_run(s.decoder, s.cache, &item, 1), FT_OK);
	item.blocks = &bad_block;
	assert_int_equal(ft_decoder_run(s.decoder, s.cache, &item, 1), FT_INTERNAL);
	item.blocks = &block;
	item.context = tiny_default.context;
	assert_int_equal(ft_decoder_run(s.decoder, s.cache, &item, 1), FT_INTERNAL);
	item.context = 0;
	item.rows = 0;
	assert_int_equal(ft_decoder_run(s.decoder, s.cache, &item, 1), FT_INTERNAL);
	serving_close(&s);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_chunks),
		cmocka_unit_test(test_chunks_quantised),
		cmocka_unit_test(test_chunks_with_adapter),
		cmocka_unit_test(test_batch),
		cmocka_unit_test(test_adapter),
		cmocka_unit_test(test_variants_are_finite_and_differ),
		cmocka_unit_test(test_refusals),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
