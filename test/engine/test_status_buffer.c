/*
 * test_status_buffer.c: errors as values, and growing arrays.
 */
#include "buffer.h"
#include "status.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void
test_names(void **state)
{
	(void) state;
	assert_string_equal(ft_status_name(FT_OK), "ok");
	assert_string_equal(ft_status_name(FT_NON_FINITE), "non_finite");
	assert_string_equal(ft_status_name((ft_status) 99), "internal");
	for (int i = 0; i < FT_STATUS_COUNT; i++)
	{
		assert_non_null(ft_status_name(i));
		for (int j = 0; j < i; j++)
			assert_string_not_equal(ft_status_name(i), ft_status_name(j));
	}
}

static void
test_messages(void **state)
{
	(void) state;
	assert_int_equal(ft_fail(FT_INVALID, "%d of %d", 1, 2), FT_INVALID);
	assert_string_equal(ft_error_message(), "1 of 2");
	assert_string_equal(ft_error_hint(), "");
	assert_int_equal(ft_hint(FT_INVALID, "Try %s.", "this"), FT_INVALID);
	assert_string_equal(ft_error_hint(), "Try this.");
	assert_int_equal(ft_context(FT_INVALID, "file \"%s\": ", "x"), FT_INVALID);
	assert_string_equal(ft_error_message(), "file \"x\": 1 of 2");
	assert_string_equal(ft_error_hint(), "Try this.");
	/* the record may be an argument of the failure that replaces it */
	assert_int_equal(ft_fail(FT_IO, "again: %s", ft_error_message()), FT_IO);
	assert_string_equal(ft_error_message(), "again: file \"x\": 1 of 2");
	assert_string_equal(ft_error_hint(), "");
}

static void
test_long_messages(void **state)
{
	char text[5000];

	(void) state;
	memset(text, 'x', sizeof text - 1);
	text[sizeof text - 1] = '\0';
	ft_fail(FT_INVALID, "%s", text);
	assert_in_range(strlen(ft_error_message()), 500, 4000);
	ft_context(FT_INVALID, "%s", text);
	ft_hint(FT_INVALID, "%s", text);
	assert_in_range(strlen(ft_error_message()), 500, 4000);
	assert_in_range(strlen(ft_error_hint()), 500, 4000);
}

static void
test_errno(void **state)
{
	static const struct
	{
		int error;
		ft_status code;
	} cases[] = {{ENOSPC, FT_NO_SPACE},  {EDQUOT, FT_NO_SPACE}, {ENOENT, FT_NOT_FOUND},
				 {ENOMEM, FT_NO_MEMORY}, {EIO, FT_IO},          {EACCES, FT_IO}};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		char expected[200];

		snprintf(expected, sizeof expected, "could not open \"y\": %s", strerror(cases[i].error));
		errno = cases[i].error;
		assert_int_equal(ft_fail_errno("could not open \"%s\"", "y"), cases[i].code);
		assert_string_equal(ft_error_message(), expected);
	}
}

static ft_status
twice(bool fail, int *calls)
{
	FT_TRY(fail ? ft_fail(FT_BUSY, "first") : FT_OK);
	(*calls)++;
	return FT_OK;
}

static void
test_try(void **state)
{
	int calls = 0;

	(void) state;
	assert_int_equal(twice(false, &calls), FT_OK);
	assert_int_equal(twice(true, &calls), FT_BUSY);
	assert_int_equal(calls, 1);
}

static void *
fail_elsewhere(void *found)
{
	*(bool *) found = ft_error_message()[0] != '\0';
	ft_fail(FT_IO, "theirs");
	return NULL;
}

static void
test_threads(void **state)
{
	pthread_t thread;
	bool found = true;

	(void) state;
	ft_fail(FT_INVALID, "ours");
	assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &found), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_false(found);
	assert_string_equal(ft_error_message(), "ours");
}

static void
test_text(void **state)
{
	ft_text text = {0};

	(void) state;
	assert_int_equal(ft_text_append(&text, NULL, 0), FT_OK);
	assert_string_equal(text.data, "");
	for (int i = 0; i < 10000; i++)
		assert_int_equal(ft_text_append(&text, "ab\0", 3), FT_OK);
	assert_int_equal(text.length, 30000);
	assert_true(text.capacity > text.length);
	assert_int_equal(text.data[text.length], 0);
	assert_memory_equal(text.data + 29997, "ab\0", 4);
	ft_text_clear(&text);
	assert_int_equal(text.length, 0);
	assert_int_equal(ft_text_printf(&text, "%s=%d", "x", 7), FT_OK);
	assert_int_equal(ft_text_printf(&text, "%*s", 20000, "y"), FT_OK);
	assert_int_equal(text.length, 20003);
	assert_memory_equal(text.data, "x=7   ", 6);
	assert_string_equal(text.data + 20002, "y");
	ft_text_free(&text);
	assert_null(text.data);
	ft_text_clear(&text);
	ft_text_free(&text);
}

static void
test_ids(void **state)
{
	ft_ids ids = {0};
	int32_t three[] = {1, 2, 3};

	(void) state;
	assert_int_equal(ft_ids_append(&ids, NULL, 0), FT_OK);
	for (int32_t i = 0; i < 5000; i++)
		assert_int_equal(ft_ids_push(&ids, i), FT_OK);
	assert_int_equal(ft_ids_append(&ids, three, 3), FT_OK);
	assert_int_equal(ids.length, 5003);
	for (int32_t i = 0; i < 5000; i++)
		assert_int_equal(ids.data[i], i);
	assert_int_equal(ids.data[5002], 3);
	ft_ids_clear(&ids);
	assert_int_equal(ids.length, 0);
	ft_ids_free(&ids);
	assert_null(ids.data);
}

/* Sizes that overflow, or that no machine has, are errors and leave everything as it was. */
static void
test_too_much(void **state)
{
	void *memory = NULL;
	size_t capacity = 0;
	ft_ids ids = {0};

	(void) state;
	assert_int_equal(ft_alloc(&memory, SIZE_MAX, 2), FT_NO_MEMORY);
	assert_null(memory);
	assert_int_equal(ft_alloc(&memory, SIZE_MAX / 2 + 1, 1), FT_NO_MEMORY);
	/* products that are 0 once they have wrapped */
	assert_int_equal(ft_alloc(&memory, (size_t) 1 << 60, 16), FT_NO_MEMORY);
	assert_int_equal(ft_grow(&memory, &capacity, 16, (size_t) 1 << 60), FT_NO_MEMORY);
	assert_null(memory);
	assert_int_equal(ft_alloc(&memory, 0, 8), FT_OK);
	assert_non_null(memory);
	free(memory);
	assert_int_equal(ft_alloc(&memory, 100, 8), FT_OK);
	for (int i = 0; i < 800; i++)
		assert_int_equal(((char *) memory)[i], 0);
	free(memory);

	memory = NULL;
	assert_int_equal(ft_grow(&memory, &capacity, 10, 4), FT_OK);
	assert_true(capacity >= 10);
	memset(memory, 1, capacity * 4);
	assert_int_equal(ft_grow(&memory, &capacity, SIZE_MAX, 4), FT_NO_MEMORY);
	assert_int_equal(ft_grow(&memory, &capacity, SIZE_MAX / 4, 4), FT_NO_MEMORY);
	assert_non_null(strstr(ft_error_message(), "out of memory"));
	assert_true(capacity >= 10 && capacity < 100);
	assert_int_equal(((char *) memory)[39], 1);
	free(memory);

	ids.length = SIZE_MAX - 1;
	assert_int_equal(ft_ids_append(&ids, NULL, 5), FT_NO_MEMORY);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),         cmocka_unit_test(test_messages),
		cmocka_unit_test(test_long_messages), cmocka_unit_test(test_errno),
		cmocka_unit_test(test_try),           cmocka_unit_test(test_threads),
		cmocka_unit_test(test_text),          cmocka_unit_test(test_ids),
		cmocka_unit_test(test_too_much),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
