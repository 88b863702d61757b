/*
 * test_tokenizer.c: token ids against Hugging Face's, and what that library never sees.
 */
#include "model_file.h"
#include "tokenizer.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define REAL_MODEL "cache/SmolLM2-135M-Instruct.Q4_1.gguf"
#define SMALL "test/golden/tokenizer_small.json"
#define SMOLLM2 "test/golden/tokenizer_smollm2.json"

static json_t *
load(const char *path)
{
	json_error_t error;
	json_t *value = json_load_file(path, JSON_ALLOW_NUL, &error);

	if (value == NULL)
		fail_msg("%s: %s", path, error.text);
	return value;
}

static ft_string *
strings_of(const json_t *array)
{
	ft_string *strings = calloc(json_array_size(array), sizeof(ft_string));

	for (size_t i = 0; i < json_array_size(array); i++)
	{
		strings[i].data = json_string_value(json_array_get(array, i));
		strings[i].length = json_string_length(json_array_get(array, i));
	}
	return strings;
}

/* The small vocabulary of the fixture with a pre-tokeniser. */
static ft_tokenizer *
make_small(const json_t *small, const char *pre)
{
	const json_t *types = json_object_get(small, "types");
	ft_vocabulary v = {.model = "gpt2", .unknown = -1, .pad = -1};
	ft_tokenizer *tokenizer;

	snprintf(v.pre, sizeof v.pre, "%s", pre);
	v.n_tokens = json_array_size(types);
	v.tokens = strings_of(json_object_get(small, "tokens"));
	v.n_merges = json_array_size(json_object_get(small, "merges"));
	v.merges = strings_of(json_object_get(small, "merges"));
	v.types = calloc(v.n_tokens, sizeof(int32_t));
	for (size_t i = 0; i < v.n_tokens; i++)
		v.types[i] = (int32_t) json_integer_value(json_array_get(types, i));
	v.bos = (int) json_integer_value(json_object_get(small, "bos"));
	v.eos = (int) json_integer_value(json_object_get(small, "eos"));
	if (ft_tokenizer_create(&v, &tokenizer) != FT_OK)
		fail_msg("%s", ft_error_message());
	free(v.tokens);
	free(v.merges);
	free(v.types);
	return tokenizer;
}

static ft_tokenizer *
make_real(void)
{
	ft_model_file *file;
	ft_tokenizer *tokenizer = NULL;

	if (access(REAL_MODEL, R_OK) != 0)
	{
		print_message("skip: %s is not there\n", REAL_MODEL);
		skip();
	}
	if (ft_model_file_open(REAL_MODEL, &file) != FT_OK ||
		ft_tokenizer_create(ft_model_file_vocabulary(file), &tokenizer) != FT_OK)
		fail_msg("%s", ft_error_message());
	ft_model_file_close(file);
	return tokenizer;
}

static void
encode(const ft_tokenizer *t, const char *text, size_t n, bool special, ft_ids *ids)
{
	ft_ids_clear(ids);
	if (ft_tokenizer_encode(t, text, n, special, ids) != FT_OK)
		fail_msg("%s", ft_error_message());
}

static size_t
decode(const ft_tokenizer *t, const ft_ids *ids, bool skip_special, ft_text *text)
{
	ft_text_clear(text);
	if (ft_tokenizer_decode(t, ids->data, ids->length, skip_special, text) != FT_OK)
		fail_msg("%s", ft_error_message());
	return text->length;
}

/* Every text's ids, one by one. */
static void
compare(const ft_tokenizer *t, const char *name, const json_t *texts, const json_t *expected,
		bool special)
{
	ft_ids ids = {0};
	size_t n = json_array_size(texts);

	assert_true(n > 300 && json_array_size(expected) == n);
	for (size_t i = 0; i < n; i++)
	{
		const json_t *text = json_array_get(texts, i);
		const json_t *wanted = json_array_get(expected, i);

		encode(t, json_string_value(text), json_string_length(text), special, &ids);
		if (ids.length != json_array_size(wanted))
			fail_msg("%s: text %zu has %zu tokens, expected %zu", name, i, ids.length,
					 json_array_size(wanted));
		for (size_t j = 0; j < ids.length; j++)
		{
			json_int_t id = json_integer_value(json_array_get(wanted, j));

			if (ids.data[j] != id)
				fail_msg("%s: text %zu, token %zu is %d, expected %d", name, i, j, ids.data[j],
						 (int) id);
		}
	}
	ft_ids_free(&ids);
}

static void
test_small(void **state)
{
	json_t *small = load(SMALL);
	json_t *texts = json_object_get(small, "texts");
	const char *kind;
	json_t *expected;
	ft_tokenizer *t;

	(void) state;
	json_object_foreach (json_object_get(small, "ids"), kind, expected)
	{
		t = make_small(small, kind);
		compare(t, kind, texts, expected, false);
		ft_tokenizer_free(t);
	}
	t = make_small(small, "smollm");
	compare(t, "special", texts, json_object_get(small, "special"), true);
	ft_tokenizer_free(t);
	json_decref(small);
}

static void
test_smollm2(void **state)
{
	ft_tokenizer *t = make_real();
	json_t *golden = load(SMOLLM2);
	json_t *texts = json_object_get(golden, "texts");

	(void) state;
	compare(t, "smollm2", texts, json_object_get(golden, "ids"), false);
	compare(t, "smollm2, special", texts, json_object_get(golden, "special"), true);
	ft_tokenizer_free(t);
	json_decref(golden);
}

/* Text without the two bytes that the small vocabulary lacks comes back as it was. */
static void
test_round_trip(void **state)
{
	json_t *small = load(SMALL);
	ft_tokenizer *t = make_small(small, "llama-bpe");
	json_t *texts = json_object_get(small, "texts");
	ft_ids ids = {0};
	ft_text text = {0};
	size_t i;
	json_t *value;

	(void) state;
	json_array_foreach (texts, i, value)
	{
		const char *s = json_string_value(value);
		size_t n = json_string_length(value);

		if (memchr(s, 0x04, n) != NULL || memchr(s, 0xf1, n) != NULL)
			continue;
		for (int special = 0; special < 2; special++)
		{
			encode(t, s, n, special, &ids);
			assert_int_equal(decode(t, &ids, false, &text), n);
			assert_memory_equal(text.data != NULL ? text.data : "", s, n);
		}
	}
	ft_ids_free(&ids);
	ft_text_free(&text);
	ft_tokenizer_free(t);
	json_decref(small);
}

/* Bytes that are no UTF-8 are tokens of their own, and what is between them is tokenised as ever.
 */
static void
test_invalid_utf8(void **state)
{
	static const struct
	{
		const char *text;
		size_t n;
	} cases[] = {
		{"\x80", 1},
		{"\xff\xfe", 2},
		{"abc\xc3", 4},
		{"\xe2\x82", 2},
		{"\xed\xa0\x80", 3}, /* a surrogate */
		{"\xc0\xaf", 2},     /* overlong */
		{"\xf4\x90\x80\x80", 4},
		{"hello\xff world\xc3\xa9\xc3", 15},
		{"\xf0\x9f\x91", 3},
	};
	json_t *small = load(SMALL);
	ft_tokenizer *t = make_small(small, "smollm");
	ft_ids ids = {0};
	ft_ids part = {0};
	ft_text text = {0};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		encode(t, cases[i].text, cases[i].n, false, &ids);
		assert_int_equal(decode(t, &ids, false, &text), cases[i].n);
		assert_memory_equal(text.data, cases[i].text, cases[i].n);
	}
	encode(t, "hello\xff world", 12, false, &ids);
	encode(t, "hello", 5, false, &part);
	assert_memory_equal(ids.data, part.data, part.length * sizeof(int32_t));
	assert_int_equal(ft_tokenizer_find(t, "\xff"), ids.data[part.length]);
	encode(t, " world", 6, false, &part);
	assert_memory_equal(ids.data + ids.length - part.length, part.data,
						part.length * sizeof(int32_t));
	ft_ids_free(&ids);
	ft_ids_free(&part);
	ft_text_free(&text);
	ft_tokenizer_free(t);
	json_decref(small);
}

static void
test_every_byte(void **state)
{
	json_t *small = load(SMALL);
	ft_tokenizer *t = make_small(small, "gpt-2");
	ft_ids ids = {0};
	ft_text text = {0};

	(void) state;
	for (int byte = 0; byte < 256; byte++)
	{
		char c = (char) byte;
		bool lacks = byte == 0x04 || byte == 0xf1;

		encode(t, &c, 1, false, &ids);
		assert_int_equal(ids.length, lacks ? 0 : 1);
		assert_int_equal(decode(t, &ids, true, &text), lacks ? 0 : 1);
		if (!lacks)
			assert_int_equal((unsigned char) text.data[0], byte);
	}
	ft_ids_free(&ids);
	ft_text_free(&text);
	ft_tokenizer_free(t);
	json_decref(small);
}

static void
test_special(void **state)
{
	json_t *small = load(SMALL);
	ft_tokenizer *t = make_small(small, "smollm");
	int32_t end = ft_tokenizer_find(t, "<|im_end|>");
	int32_t tool = ft_tokenizer_find(t, "<tool>");
	int32_t tools = ft_tokenizer_find(t, "<tool>>");
	ft_ids ids = {0};
	ft_text text = {0};

	(void) state;
	assert_int_equal(end, 2);
	assert_true(tool > 0 && tools == tool + 1);
	assert_true(ft_tokenizer_is_special(t, end));
	assert_false(ft_tokenizer_is_special(t, tool));
	assert_false(ft_tokenizer_is_special(t, -1));
	assert_false(ft_tokenizer_is_special(t, (int32_t) ft_tokenizer_size(t)));
	assert_int_equal(ft_tokenizer_find(t, "no such token"), -1);
	assert_true(ft_tokenizer_find(t, " ") > 0);

	/* a user's text is never special */
	encode(t, "a<|im_end|>", 11, false, &ids);
	for (size_t i = 0; i < ids.length; i++)
		assert_false(ft_tokenizer_is_special(t, ids.data[i]));
	assert_int_equal(decode(t, &ids, true, &text), 11);

	encode(t, "a<|im_end|>", 11, true, &ids);
	assert_int_equal(ids.length, 2);
	assert_int_equal(ids.data[1], end);
	assert_int_equal(decode(t, &ids, true, &text), 1);
	assert_int_equal(decode(t, &ids, false, &text), 11);
	assert_string_equal(text.data, "a<|im_end|>");

	/* the longest counts, also for tokens that anybody may write */
	encode(t, "<tool>>><tool>", 14, false, &ids);
	assert_int_equal(ids.length, 3);
	assert_int_equal(ids.data[0], tools);
	assert_int_equal(ids.data[2], tool);

	assert_int_equal(ft_tokenizer_bos(t), 3);
	assert_int_equal(ft_tokenizer_eos(t), 0);
	assert_false(ft_tokenizer_adds_bos(t));
	ft_ids_free(&ids);
	ft_text_free(&text);
	ft_tokenizer_free(t);
	json_decref(small);
}

static void
test_decode_range(void **state)
{
	json_t *small = load(SMALL);
	ft_tokenizer *t = make_small(small, "smollm");
	ft_text text = {0};
	int32_t ids[] = {-1, (int32_t) ft_tokenizer_size(t), INT32_MAX, INT32_MIN};

	(void) state;
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(ft_tokenizer_decode(t, &ids[i], 1, false, &text), FT_INVALID);
	ft_text_free(&text);
	ft_tokenizer_free(t);
	json_decref(small);
}

/* One word of 128 kB, of kinds that a slow tokeniser is slow on: the test's time limit is the
 * runner's, and quadratic work would exceed it by far. */
static void
test_long_words(void **state)
{
	static const char *const units[] = {"a",  " ", "\n", " \n",  "1",       "-",
										"ab", "<", "'",  "\xff", "\xc3\xa9"};
	static const char *const kinds[] = {"smollm", "llama-bpe"};
	size_t n = 1 << 17;
	char *text = malloc(n);
	json_t *small = load(SMALL);
	ft_ids ids = {0};
	ft_text back = {0};

	(void) state;
	for (size_t k = 0; k < 2; k++)
	{
		ft_tokenizer *t = make_small(small, kinds[k]);

		for (size_t u = 0; u < sizeof units / sizeof units[0]; u++)
		{
			for (size_t i = 0; i < n; i++)
				text[i] = units[u][i % strlen(units[u])];
			encode(t, text, n, true, &ids);
			assert_int_equal(decode(t, &ids, false, &back), n);
			assert_memory_equal(back.data, text, n);
		}
		ft_tokenizer_free(t);
	}
	free(text);
	ft_ids_free(&ids);
	ft_text_free(&back);
	json_decref(small);
}

/* Lowest rank first, leftmost first: what "from the left" or "longest first" would get wrong. */
static void
test_merge_order(void **state)
{
	static const ft_string tokens[] = {{"a", 1},  {"b", 1},   {"c", 1}, {"ab", 2},
									   {"bc", 2}, {"abc", 3}, {"aa", 2}};
	static const ft_string merges[] = {{"b c", 3}, {"a b", 3}, {"ab c", 4}, {"a a", 3}};
	static const struct
	{
		const char *text;
		size_t n;
		int32_t ids[4];
	} cases[] = {
		{"abc", 2, {0, 4}},  {"ab", 1, {3}},     {"aaa", 2, {6, 0}},
		{"aabc", 2, {6, 4}}, {"cab", 2, {2, 3}},
	};
	ft_vocabulary v = {.model = "gpt2", .pre = "gpt-2", .n_tokens = 7, .n_merges = 4};
	ft_tokenizer *t;
	ft_ids ids = {0};

	(void) state;
	v.tokens = (ft_string *) tokens;
	v.merges = (ft_string *) merges;
	assert_int_equal(ft_tokenizer_create(&v, &t), FT_OK);
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		encode(t, cases[i].text, strlen(cases[i].text), false, &ids);
		assert_int_equal(ids.length, cases[i].n);
		assert_memory_equal(ids.data, cases[i].ids, cases[i].n * sizeof(int32_t));
	}
	ft_ids_free(&ids);
	ft_tokenizer_free(t);
}

static void
test_refused(void **state)
{
	static const ft_string tokens[] = {{"a", 1}, {"b", 1}};
	static const ft_string bad[] = {{"ab", 2}, {"a b", 3}, {"", 0}, {" ", 1}, {"a c", 3}};
	ft_vocabulary v = {.model = "gpt2", .pre = "smollm", .n_tokens = 2};
	ft_tokenizer *t;

	(void) state;
	v.tokens = (ft_string *) tokens;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
	{
		v.merges = (ft_string *) &bad[i];
		v.n_merges = 1;
		assert_int_equal(ft_tokenizer_create(&v, &t), FT_CORRUPT);
		assert_non_null(strstr(ft_error_message(), "merge 0"));
	}
	v.n_merges = 0;
	snprintf(v.pre, sizeof v.pre, "viking");
	assert_int_equal(ft_tokenizer_create(&v, &t), FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "\"viking\""));
	v.pre[0] = '\0';
	assert_int_equal(ft_tokenizer_create(&v, &t), FT_UNSUPPORTED);
	snprintf(v.pre, sizeof v.pre, "smollm");
	snprintf(v.model, sizeof v.model, "bert");
	assert_int_equal(ft_tokenizer_create(&v, &t), FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "\"bert\""));
	snprintf(v.model, sizeof v.model, "gpt2");
	v.n_tokens = 0;
	assert_int_equal(ft_tokenizer_create(&v, &t), FT_CORRUPT);
}

static void
test_utf8_incomplete(void **state)
{
	static const struct
	{
		const char *text;
		size_t held;
	} cases[] = {
		{"", 0},
		{"a", 0},
		{"é", 0},
		{"a\xc3", 1},
		{"\xe2", 1},
		{"\xe2\x82", 2},
		{"\xe2\x82\xac", 0},
		{"\xf0", 1},
		{"\xf0\x9f", 2},
		{"\xf0\x9f\x91", 3},
		{"\xf0\x9f\x91\x8d", 0},
		{"\x80", 0},
		{"\xff", 0},
		{"\xc0", 0},
		{"\xf5", 0},
		{"\x80\x80\x80\x80", 0},
		{"\xed\xa0", 0},
		{"\xe0\x80", 0},
		{"\xf4\x90", 0},
		{"\xf0\x80\x80", 0},
		{"\xc3\xa9\xc3", 1},
		{"\xed\x9f", 2},
		{"\xed", 1},
		{"\xf4", 1},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		size_t held = ft_utf8_incomplete(cases[i].text, strlen(cases[i].text));

		if (held != cases[i].held)
			fail_msg("case %zu: %zu bytes held, expected %zu", i, held, cases[i].held);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_small),           cmocka_unit_test(test_smollm2),
		cmocka_unit_test(test_round_trip),      cmocka_unit_test(test_invalid_utf8),
		cmocka_unit_test(test_every_byte),      cmocka_unit_test(test_special),
		cmocka_unit_test(test_decode_range),    cmocka_unit_test(test_long_words),
		cmocka_unit_test(test_merge_order),     cmocka_unit_test(test_refused),
		cmocka_unit_test(test_utf8_incomplete),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
