/*
 * test_gguf_tokenizer.c: vocabularies of SentencePiece's kind in GGUF files.
 */
#include "gguf_build.h"
#include "model_file.h"
#include "tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define MARK "\xe2\x96\x81"

static const char *const tokens[] = {"<unk>", "<s>", "</s>", "<0x0A>", MARK,
									 "a",     "b",   "ab",   MARK "a", "c"};
static const int32_t types[] = {2, 3, 3, 6, 1, 1, 1, 1, 1, 1};
static const float scores[] = {0, 0, 0, 0, -5, -6, -7, -2, -1, -8};

#define N (sizeof tokens / sizeof tokens[0])

static void
add_scores(gguf_build *b)
{
	struct __attribute__((packed))
	{
		uint32_t type;
		uint64_t n;
		float values[N];
	} array = {6, N, {0}};

	memcpy(array.values, scores, sizeof scores);
	gguf_build_raw(b, "tokenizer.ggml.scores", 9, &array, sizeof array);
}

static ft_status
open_vocabulary(gguf_build *b, ft_model_file **file)
{
	gguf_build_string(b, "tokenizer.ggml.model", "llama");
	gguf_build_strings(b, "tokenizer.ggml.tokens", tokens, N);
	gguf_build_i32s(b, "tokenizer.ggml.token_type", types, N);
	gguf_build_u32(b, "tokenizer.ggml.bos_token_id", 1);
	gguf_build_u32(b, "tokenizer.ggml.eos_token_id", 2);
	gguf_build_u32(b, "tokenizer.ggml.unknown_token_id", 0);
	gguf_build_llama(b);
	return gguf_build_open_model(b, file);
}

static void
expect_of(const ft_model_file *file, const char *text, bool special, const int32_t *wanted,
		  size_t n)
{
	ft_tokenizer *t;
	ft_ids ids = {0};

	assert_int_equal(ft_tokenizer_create(ft_model_file_vocabulary(file), &t), FT_OK);
	assert_int_equal(ft_tokenizer_encode(t, text, strlen(text), special, &ids), FT_OK);
	assert_int_equal(ids.length, n);
	assert_memory_equal(ids.data, wanted, n * sizeof(int32_t));
	ft_ids_free(&ids);
	ft_tokenizer_free(t);
}

static void
expect(const ft_model_file *file, const char *text, const int32_t *wanted, size_t n)
{
	expect_of(file, text, false, wanted, n);
}

/* The highest score first; bytes for what has no token, the unknown one for bytes that have none.
 */
static void
test_scores(void **state)
{
	gguf_build b = {0};
	ft_model_file *file;

	(void) state;
	add_scores(&b);
	assert_int_equal(open_vocabulary(&b, &file), FT_OK);
	assert_true(ft_model_file_vocabulary(file)->add_bos);
	expect(file, "ab", (int32_t[]){8, 6}, 2);
	expect(file, "aab\n", (int32_t[]){8, 7, 3}, 3);
	expect(file, "xyz b", (int32_t[]){4, 0, 4, 6}, 4);
	expect(file, "</s>", (int32_t[]){4, 0}, 2);
	/* where special tokens are meant, the unknown one is one of them */
	expect_of(file, "</s><unk>", true, (int32_t[]){2, 0}, 2);
	ft_model_file_close(file);
}

static void
test_no_prefix(void **state)
{
	gguf_build b = {0};
	ft_model_file *file;

	(void) state;
	add_scores(&b);
	gguf_build_bool(&b, "tokenizer.ggml.add_space_prefix", false);
	assert_int_equal(open_vocabulary(&b, &file), FT_OK);
	expect(file, "ab", (int32_t[]){7}, 1);
	ft_model_file_close(file);
}

static void
test_refused(void **state)
{
	gguf_build b = {0};
	ft_model_file *file;

	(void) state;
	assert_int_equal(open_vocabulary(&b, &file), FT_CORRUPT);
	assert_non_null(strstr(ft_error_message(), "key \"tokenizer.ggml.scores\" is missing"));
	add_scores(&b);
	gguf_build_bool(&b, "tokenizer.ggml.remove_extra_whitespaces", true);
	assert_int_equal(open_vocabulary(&b, &file), FT_UNSUPPORTED);
	assert_non_null(
		strstr(ft_error_message(), "key \"tokenizer.ggml.remove_extra_whitespaces\" is true"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_scores),
		cmocka_unit_test(test_no_prefix),
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
