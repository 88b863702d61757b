/*
 * test_safetensors.c: files written and read again, and hostile ones: every
 * rule of the format broken in turn.
 */
#include "files.h"
#include "safetensors.h"
#include "tiny_model.h"
#include "training.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *directory;
static char path[FT_PATH_SIZE];

static int
setup(void **state)
{
	(void) state;
	directory = tiny_directory();
	must(ft_path_join(path, directory, "x.safetensors"));
	return 0;
}

static int
teardown(void **state)
{
	(void) state;
	tiny_remove(directory);
	free(directory);
	return 0;
}

/* A file with this header, its length as stated or the true one (-1), and data bytes. */
static void
write_file(const char *header, int64_t stated, size_t data)
{
	uint64_t length = stated < 0 ? strlen(header) : (uint64_t) stated;
	ft_text text = {0};

	for (int i = 0; i < 8; i++)
		must(ft_text_append(&text, &(char){(char) (length >> (8 * i))}, 1));
	must(ft_text_append(&text, header, strlen(header)));
	for (size_t i = 0; i < data; i++)
		must(ft_text_append(&text, &(char){(char) i}, 1));
	must(ft_replace_file(path, text.data, text.length));
	ft_text_free(&text);
}

static void
test_round_trip(void **state)
{
	const float matrix[6] = {1, -2, 3.5f, 0, 1e-30f, -0.0f};
	const float vector[3] = {7, 8, 9};
	const ft_safetensor_out out[] = {
		{"m", 2, 3, matrix}, {"v", -1, 3, vector}, {"none", 0, 4, NULL}};
	ft_safetensors *file;
	const ft_safetensor *t;
	float read[6];

	(void) state;
	must(ft_safetensors_write(path, out, 3));
	must(ft_safetensors_open(path, &file));
	assert_int_equal(ft_safetensors_count(file), 3);
	assert_string_equal(ft_safetensors_metadata(file, "format"), "pt");
	assert_null(ft_safetensors_metadata(file, "other"));
	assert_null(ft_safetensors_find(file, "w"));
	t = ft_safetensors_find(file, "m");
	assert_int_equal(t->n_dims, 2);
	assert_int_equal(t->dims[0], 2);
	assert_int_equal(t->dims[1], 3);
	must(ft_safetensors_read_f32(file, t, read, 6));
	assert_memory_equal(read, matrix, sizeof matrix);
	assert_int_equal(ft_safetensors_read_f32(file, t, read, 5), FT_MISMATCH);
	t = ft_safetensors_find(file, "v");
	assert_int_equal(t->n_dims, 1);
	must(ft_safetensors_read(file, t, read));
	assert_memory_equal(read, vector, sizeof vector);
	ft_safetensors_close(file);
}

static void
test_half_types(void **state)
{
	/* 1, -2, 65504, 2^-24, infinity as halves; then 1, -2 as bf16 */
	const char header[] = "{\"h\":{\"dtype\":\"F16\",\"shape\":[5],\"data_offsets\":[0,10]},"
						  "\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[10,14]},"
						  "\"i\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[14,18]}}";
	const uint16_t halves[7] = {0x3c00, 0xc000, 0x7bff, 0x0001, 0x7c00, 0x3f80, 0xc000};
	ft_text text = {0};
	ft_safetensors *file;
	float values[5];

	(void) state;
	write_file(header, -1, 0);
	must(ft_read_file(path, 4096, &text));
	must(ft_text_append(&text, (const char *) halves, sizeof halves));
	must(ft_text_append(&text, "abcd", 4));
	must(ft_replace_file(path, text.data, text.length));
	ft_text_free(&text);
	must(ft_safetensors_open(path, &file));
	must(ft_safetensors_read_f32(file, ft_safetensors_find(file, "h"), values, 5));
	assert_true(values[0] == 1 && values[1] == -2 && values[2] == 65504);
	assert_true(values[3] == 0x1p-24f && values[4] > 1e38f);
	must(ft_safetensors_read_f32(file, ft_safetensors_find(file, "b"), values, 2));
	assert_true(values[0] == 1 && values[1] == -2);
	assert_int_equal(ft_safetensors_read_f32(file, ft_safetensors_find(file, "i"), values, 1),
					 FT_UNSUPPORTED);
	ft_safetensors_close(file);
}

typedef struct hostile
{
	const char *header;
	int64_t stated; /* header length, -1: the true one */
	size_t data;
	const char *message;
} hostile;

#define T(shape, offsets) \
	"{\"a\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const hostile cases[] = {
	{"{}", 3, 0, "header of 3 bytes"},
	{"{}", 1LL << 40, 0, "header of"},
	{"{}", INT64_MAX, 0, "header of"},
	{"", 0, 0, "does not begin with"},
	{" {}", -1, 0, "does not begin with"},
	{"[]", -1, 0, "does not begin with"},
	{"{", -1, 0, "not valid JSON"},
	{"{}x", -1, 0, "not valid JSON"},
	{"{\"a\":1}", -1, 0, "not an object"},
	{"{\"__metadata__\":[]}", -1, 0, "__metadata__"},
	{"{\"__metadata__\":{\"a\":1}}", -1, 0, "__metadata__"},
	{T("[1]", "[0,4]"), -1, 3, "bytes 0 to 4 of 3"},
	{T("[1]", "[0,4]"), -1, 5, "end at byte 4, the file at 5"},
	{T("[2]", "[0,4]"), -1, 4, "has 4 bytes, its shape needs 8"},
	{T("[1]", "[4,0]"), -1, 4, "bytes 4 to 0"},
	{T("[1]", "[4,8]"), -1, 8, "begins at byte 4, expected 0"},
	{T("[1]", "[-4,0]"), -1, 4, "not a count"},
	{T("[1]", "[0.0,4.0]"), -1, 4, "not a count"},
	{T("[1]", "[0]"), -1, 4, "pair of data_offsets"},
	{T("[1]", "[0,18446744073709551616]"), -1, 4, "not valid JSON"},
	{T("[-1]", "[0,4]"), -1, 4, "not a count"},
	{T("[4611686018427387904]", "[0,0]"), -1, 0, "overflows"},
	{T("[4294967296,4294967296,4294967296]", "[0,4]"), -1, 4, "overflows"},
	{T("{}", "[0,4]"), -1, 4, "no shape"},
	{T("[1,1,1,1,1,1,1,1,1]", "[0,4]"), -1, 4, "9 dimensions"},
	{"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4, "no dtype"},
	{"{\"a\":{\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4, "dtype \"F4\""},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", -1, 4,
	 "unknown key"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
	 "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
	 -1, 4, "not valid JSON"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
	 "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
	 -1, 8, "begins at byte 4, expected 8"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
	 "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
	 -1, 12, "begins at byte 8, expected 4"},
};

static void
test_hostile_headers(void **state)
{
	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		ft_safetensors *file;
		ft_status status;

		write_file(cases[i].header, cases[i].stated, cases[i].data);
		status = ft_safetensors_open(path, &file);
		if (status != FT_CORRUPT && status != FT_UNSUPPORTED)
			fail_msg("case %zu: %s", i, ft_status_name(status));
		if (strstr(ft_error_message(), cases[i].message) == NULL)
			fail_msg("case %zu: message \"%s\" lacks \"%s\"", i, ft_error_message(),
					 cases[i].message);
		assert_non_null(strstr(ft_error_message(), path));
		assert_null(file);
	}
}

static void
test_short_files(void **state)
{
	ft_safetensors *file;
	char bytes[8] = {0};

	(void) state;
	for (size_t n = 0; n < 8; n++)
	{
		must(ft_replace_file(path, bytes, n));
		assert_int_equal(ft_safetensors_open(path, &file), FT_CORRUPT);
	}
	must(ft_remove_tree(path));
	assert_int_equal(ft_safetensors_open(path, &file), FT_NOT_FOUND);
	assert_int_equal(ft_safetensors_open(directory, &file), FT_INVALID);
}

/* A nest of brackets deeper than any stack. */
static void
test_deep_header(void **state)
{
	ft_text text = {0};
	ft_safetensors *file;

	(void) state;
	must(ft_text_append(&text, "{\"a\":", 5));
	for (int i = 0; i < 200000; i++)
		must(ft_text_append(&text, "[", 1));
	write_file(text.data, -1, 0);
	assert_int_equal(ft_safetensors_open(path, &file), FT_CORRUPT);
	ft_text_free(&text);
}

/* A file that shrinks after it was opened is an error of the read. */
static void
test_shrinking_file(void **state)
{
	ft_safetensors *file;
	float value;
	FILE *f;

	(void) state;
	write_file(T("[1]", "[0,4]"), -1, 4);
	must(ft_safetensors_open(path, &file));
	f = fopen(path, "w");
	fclose(f);
	assert_int_equal(ft_safetensors_read(file, ft_safetensors_at(file, 0), &value), FT_CORRUPT);
	ft_safetensors_close(file);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),      cmocka_unit_test(test_half_types),
		cmocka_unit_test(test_hostile_headers), cmocka_unit_test(test_short_files),
		cmocka_unit_test(test_deep_header),     cmocka_unit_test(test_shrinking_file),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
