/*
 * test_sampler.c: what ends an answer, what its text is, and its random numbers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sampler.h"
#include "tiny_model.h"

static char *directory;
static ft_model_file *file;
static ft_tokenizer *tokenizer;

static int
set_up(void **state)
{
	char path[512];

	(void) state;
	directory = tiny_directory();
	snprintf(path, sizeof path, "%s/tiny.gguf", directory);
	tiny_model_write(path, &tiny_default);
	return ft_model_file_open(path, &file) != FT_OK ||
		   ft_tokenizer_create(ft_model_file_vocabulary(file), &tokenizer) != FT_OK;
}

static int
tear_down(void **state)
{
	(void) state;
	ft_tokenizer_free(tokenizer);
	ft_model_file_close(file);
	tiny_remove(directory);
	free(directory);
	return 0;
}

/* Push the bytes (each is a token of the tiny model) until the answer ends; how many were taken. */
static int
push_bytes(ft_generation *generation, const char *bytes)
{
	int n = 0;

	for (; bytes[n] && generation->finish == FT_FINISH_NONE; n++)
		assert_int_equal(ft_generation_push(generation, (unsigned char) bytes[n]), FT_OK);
	return n;
}

static void
add_stop(ft_sampling *sampling, const char *stop)
{
	sampling->stops = realloc(sampling->stops, (sampling->n_stops + 1) * sizeof sampling->stops[0]);
	assert_non_null(sampling->stops);
	sampling->stops[sampling->n_stops] = (ft_text){0};
	assert_int_equal(ft_text_append(&sampling->stops[sampling->n_stops++], stop, strlen(stop)),
					 FT_OK);
}

static void
assert_text(const ft_generation *generation, const char *expected)
{
	ft_text text = {0};

	assert_int_equal(ft_generation_text(generation, 0, &text), FT_OK);
	assert_string_equal(text.data, expected);
	ft_text_free(&text);
}

static void
test_defaults_are_greedy(void **state)
{
	ft_sampling sampling;
	ft_generation generation;
	ft_sample sample;

	(void) state;
	ft_sampling_default(&sampling);
	assert_int_equal(sampling.max_tokens, 4096);
	ft_generation_start(&generation, tokenizer, ft_model_file_config(file), &sampling, NULL, 5);
	sample = ft_generation_draw(&generation);
	assert_true(sample.temperature == 0 && sample.top_p == 1 && sample.min_p == 0);
	assert_int_equal(sample.top_k, 0);
}

static void
test_end_token_stops(void **state)
{
	ft_sampling sampling;
	ft_generation generation;

	(void) state;
	ft_sampling_default(&sampling);
	ft_generation_start(&generation, tokenizer, ft_model_file_config(file), &sampling, NULL, 10);
	push_bytes(&generation, "ab");
	assert_null(ft_finish_name(generation.finish));
	assert_int_equal(ft_generation_push(&generation, TINY_END), FT_OK);
	assert_string_equal(ft_finish_name(generation.finish), "stop");
	assert_int_equal(generation.ids.length, 3);
	assert_text(&generation, "ab");
	ft_generation_free(&generation);

	/* unless it is to be ignored, when it leaves no trace in the text */
	sampling.ignore_eos = true;
	ft_generation_start(&generation, tokenizer, ft_model_file_config(file), &sampling, NULL, 10);
	assert_int_equal(ft_generation_push(&generation, TINY_END), FT_OK);
	assert_int_equal(generation.finish, FT_FINISH_NONE);
	push_bytes(&generation, "c");
	assert_text(&generation, "c");
	ft_generation_free(&generation);
}

static void
test_limit(void **state)
{
	ft_sampling sampling;
	ft_generation generation;

	(void) state;
	ft_sampling_default(&sampling);
	ft_generation_start(&generation, tokenizer, ft_model_file_config(file), &sampling, NULL, 3);
	assert_int_equal(push_bytes(&generation, "abcdef"), 3);
	assert_string_equal(ft_finish_name(generation.finish), "length");
	assert_text(&generation, "abc");
	ft_generation_free(&generation);
}

static void
test_stop_strings(void **state)
{
	static const struct
	{
		const char *stops[3];
		const char *bytes;
		const char *text;
		int taken;
	} cases[] = {
		{{"X"}, "abXcd", "ab", 3},
		{{"cd"}, "abcdef", "ab", 4},
		{{"ab"}, "abcdef", "", 2},
		{{"aab"}, "aaaab", "aa", 5},
		{{"zzz", "de"}, "abcdef", "abc", 5},
		/* both end at the same token: the one that begins first cuts */
		{{"d", "bcd"}, "abcdef", "a", 4},
		{{"\xC3\xA9"}, "caf\xC3\xA9!", "caf", 5},
		{{"not there"}, "abcdef", "abcdef", 6},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		ft_sampling sampling;
		ft_generation generation;

		ft_sampling_default(&sampling);
		for (int k = 0; k < 3 && cases[i].stops[k]; k++)
			add_stop(&sampling, cases[i].stops[k]);
		ft_generation_start(&generation, tokenizer, ft_model_file_config(file), &sampling, NULL,
							100);
		assert_int_equal(push_bytes(&generation, cases[i].bytes), cases[i].taken);
		assert_text(&generation, cases[i].text);
		ft_generation_free(&generation);
		ft_sampling_free(&sampling);
	}
}

static void
test_text_is_valid_utf8(void **state)
{
	static const struct
	{
		const char *bytes;
		const char *text;
	} cases[] = {
		{"caf\xC3\xA9", "caf\xC3\xA9"},
		/* cut off at the end: dropped */
		{"caf\xC3", "caf"},
		{"\xF0\x9F\x98", ""},
		/* anything else invalid: replaced, a maximal part at a time */
		{"a\xC3z", "a\xEF\xBF\xBDz"},
		{"\xFF\xFE!", "\xEF\xBF\xBD\xEF\xBF\xBD!"},
		{"\xED\xA0\x80.", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD."},
		{"\xC0\xAF.", "\xEF\xBF\xBD\xEF\xBF\xBD."},
		{"\xF0\x9F\x98.", "\xEF\xBF\xBD."},
		{"\xF4\x90\x80\x80.", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD."},
	};
	ft_text text = {0};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		ft_sampling sampling;
		ft_generation generation;

		ft_sampling_default(&sampling);
		ft_generation_start(&generation, tokenizer, ft_model_file_config(file), &sampling, NULL,
							100);
		push_bytes(&generation, cases[i].bytes);
		assert_text(&generation, cases[i].text);
		ft_generation_free(&generation);
	}
	assert_int_equal(ft_text_make_valid("a\0b", 3, &text), FT_OK);
	assert_string_equal(text.data, "a\xEF\xBF\xBD"
								   "b");
	ft_text_free(&text);
}

static void
test_seeds(void **state)
{
	ft_sampling a, b;
	ft_generation first, again, other;
	int same = 0;

	(void) state;
	ft_sampling_default(&a);
	a.temperature = 1;
	a.seed = 17;
	b = a;
	b.seed = 18;
	ft_generation_start(&first, tokenizer, ft_model_file_config(file), &a, NULL, 100);
	ft_generation_start(&again, tokenizer, ft_model_file_config(file), &a, NULL, 100);
	ft_generation_start(&other, tokenizer, ft_model_file_config(file), &b, NULL, 100);
	for (int i = 0; i < 50; i++)
	{
		float x = ft_generation_draw(&first).uniform;

		assert_true(x >= 0 && x < 1);
		/* drawing twice is no progress: only tokens count */
		assert_true(x == ft_generation_draw(&first).uniform);
		assert_true(x == ft_generation_draw(&again).uniform);
		same += x == ft_generation_draw(&other).uniform;
		push_bytes(&first, "a");
		push_bytes(&again, "b");
		push_bytes(&other, "c");
	}
	assert_true(same < 5);
	ft_generation_free(&first);
	ft_generation_free(&again);
	ft_generation_free(&other);
}

/*
 * Penalties by hand.  Repetition as transformers' RepetitionPenaltyLogitsProcessor has it (a logit
 * of a token of prompt or answer is divided when positive, multiplied when negative); frequency and
 * presence as OpenAI defines them (c[j] times the one, once the other, for tokens of the answer).
 */
static void
test_penalties(void **state)
{
	/* the prompt is "abba", the answer so far "bcc" */
	const int32_t prompt[] = {'a', 'b', 'b', 'a'};
	static const struct
	{
		float repetition, frequency, presence;
		float a, b, c, d; /* logits that were 4, -3, 2 and 1 */
	} cases[] = {
		{1, 0, 0, 4, -3, 2, 1},
		{2, 0, 0, 2, -6, 1, 1},
		{0.5f, 0, 0, 8, -1.5f, 4, 1},
		{1, 0.25f, 0, 4, -3.25f, 1.5f, 1},
		{1, 0, 0.5f, 4, -3.5f, 1.5f, 1},
		{1, -0.25f, -0.5f, 4, -2.25f, 3, 1},
		{2, 0.25f, 0.5f, 2, -6.75f, 0, 1},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		float logits[300] = {['a'] = 4, ['b'] = -3, ['c'] = 2, ['d'] = 1};
		ft_sampling sampling;
		ft_generation generation;

		ft_sampling_default(&sampling);
		sampling.repetition_penalty = cases[i].repetition;
		sampling.frequency_penalty = cases[i].frequency;
		sampling.presence_penalty = cases[i].presence;
		ft_generation_start(&generation, tokenizer, ft_model_file_config(file), &sampling, NULL,
							100);
		assert_int_equal(ft_generation_has_penalties(&generation), i > 0);
		assert_int_equal(ft_generation_read_prompt(&generation, prompt, 4), FT_OK);
		push_bytes(&generation, "bcc");
		ft_generation_penalize(&generation, logits);
		assert_true(logits['a'] == cases[i].a);
		assert_true(logits['b'] == cases[i].b);
		assert_true(logits['c'] == cases[i].c);
		assert_true(logits['d'] == cases[i].d);
		for (int id = 0; id < 300; id++)
			assert_true((id >= 'a' && id <= 'd') || logits[id] == 0);
		ft_generation_free(&generation);
	}
}

/* Every token of a long answer is counted, however they are mixed. */
static void
test_penalties_of_many_tokens(void **state)
{
	float logits[256] = {0};
	int counts[256] = {0};
	ft_sampling sampling;
	ft_generation generation;

	(void) state;
	ft_sampling_default(&sampling);
	sampling.frequency_penalty = 1;
	ft_generation_start(&generation, tokenizer, ft_model_file_config(file), &sampling, NULL,
						100000);
	for (int i = 0; i < 1000; i++)
	{
		int id = 1 + i * i * 7 % 255;

		assert_int_equal(ft_generation_push(&generation, id), FT_OK);
		counts[id]++;
	}
	ft_generation_penalize(&generation, logits);
	for (int id = 0; id < 256; id++)
		assert_true(logits[id] == (float) -counts[id]);
	ft_generation_free(&generation);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults_are_greedy),
		cmocka_unit_test(test_end_token_stops),
		cmocka_unit_test(test_limit),
		cmocka_unit_test(test_stop_strings),
		cmocka_unit_test(test_text_is_valid_utf8),
		cmocka_unit_test(test_seeds),
		cmocka_unit_test(test_penalties),
		cmocka_unit_test(test_penalties_of_many_tokens),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
