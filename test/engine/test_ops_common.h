/*
 * test_ops_common.h: what the tests of the table of operations share.
 *
 * The tests drive a backend through its table alone, so that one program
 * judges every backend: PG_FINETUNE_TEST_BACKEND names it ("cpu", "cuda").  Every test
 * of a program runs for every variant: on the CPU each instruction set that the
 * processor has, with one thread and with three.
 *
 * References are computed here, in f64, from the values as the operation sees
 * them (rounded to its input type), and compared by normalised mean-squared
 * error, Σ (result − reference)² / Σ reference².
 */
#ifndef TEST_OPS_COMMON_H
#define TEST_OPS_COMMON_H

#include "backend_cuda.h"
#include "ops.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define UNUSED __attribute__((unused))

/* What sanitizers look for shows in a part of the shapes, which the plain build judges all. */
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED true
#define SANITIZED_BY_CLANG 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED false
#endif

/* References in f64 are not what is examined. */
#ifdef SANITIZED_BY_CLANG
#define UNEXAMINED __attribute__((no_sanitize("address", "undefined", "coverage")))
#else
#define UNEXAMINED
#endif

typedef struct test_variant
{
	const char *cpu; /* PG_FINETUNE_CPU */
	int threads;
	ft_numerics numerics;
	const char *group; /* of tests, the only one for which it differs from the others; NULL: all */
} test_variant;

/* The device under test. */
static const ft_ops *ops;
static ft_device *device;
static ft_stream *stream;
static ft_device_info info;

static void
must(ft_status status)
{
	if (status != FT_OK)
		fail_msg("%s: %s", ft_status_name(status), ft_error_message());
}

/* --- random numbers, the same on every machine --- */

static uint64_t random_state = 1;

UNUSED static uint32_t
random_bits(void)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t) (random_state >> 32);
}

/* In [0, 1). */
UNUSED static double
random_unit(void)
{
	return random_bits() / 4294967296.0;
}

/* Roughly normal, variance 1. */
UNUSED static double
random_normal(void)
{
	double sum = -2;

	for (int i = 0; i < 4; i++)
		sum += random_unit();
	return sum * 1.7320508075688772;
}

/* --- 16-bit floats, written without the project's own conversions --- */

UNUSED static double
half_value(uint16_t h)
{
	int exponent = (h >> 10) & 31;
	double mantissa = h & 1023;
	double value;

	if (exponent == 31)
		value = mantissa != 0 ? NAN : INFINITY;
	else
		value = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
	return h & 0x8000 ? -value : value;
}

/* The representable value nearest to x (ties to even) with `bits` explicit mantissa bits. */
UNUSED static double
round_to(double x, int bits)
{
	int exponent;
	double mantissa = frexp(x, &exponent);

	return x == 0 ? x : ldexp(nearbyint(ldexp(mantissa, bits + 1)), exponent - bits - 1);
}

UNUSED static double
round_as(double x, ft_dtype dtype)
{
	return dtype == FT_BF16 ? round_to((float) x, 7) : (double) (float) x;
}

static uint16_t
bf16_bits(double x)
{
	float f = (float) round_to(x, 7);
	uint32_t u;

	memcpy(&u, &f, 4);
	return (uint16_t) (u >> 16);
}

static double
bf16_value(uint16_t bits)
{
	uint32_t u = (uint32_t) bits << 16;
	float f;

	memcpy(&f, &u, 4);
	return f;
}

/* --- device memory --- */

static void *
device_alloc(size_t bytes)
{
	void *memory;

	must(ops->mem_alloc(device, FT_MEM_DEVICE, bytes, &memory));
	return memory;
}

UNUSED static void
device_free(void *memory)
{
	ops->mem_free(device, FT_MEM_DEVICE, memory);
}

UNUSED static void *
upload(const void *host, size_t bytes)
{
	void *memory = device_alloc(bytes);

	must(ops->copy_to_device(stream, memory, host, bytes));
	return memory;
}

UNUSED static void
download(void *host, const void *memory, size_t bytes)
{
	must(ops->copy_to_host(stream, host, memory, bytes));
}

/* --- matrices on the device, with their values in f64 beside them --- */

/* Rows are `pad` values longer than cols; the padding is filled with a NaN that no operation may
 * read into a result or write over. */
typedef struct tensor
{
	ft_mat mat;
	double *value; /* [rows][cols] as uploaded */
} tensor;

#define CANARY_F32 0x7fc0beefu
#define CANARY_16 0x7fceu

static size_t
tensor_bytes(const tensor *t)
{
	return (size_t) (t->mat.rows * t->mat.ld) * (t->mat.dtype == FT_F32 ? 4 : 2);
}

static void
tensor_upload(tensor *t)
{
	size_t bytes = tensor_bytes(t);
	void *host = malloc(bytes + 1);

	for (int64_t i = 0; i < t->mat.rows; i++)
		for (int64_t j = 0; j < t->mat.ld; j++)
		{
			int64_t at = i * t->mat.ld + j;
			bool pad = j >= t->mat.cols;
			double v = pad ? 0 : t->value[i * t->mat.cols + j];

			if (t->mat.dtype == FT_F32)
			{
				float f = (float) v;

				if (pad)
					((uint32_t *) host)[at] = CANARY_F32;
				else
					((float *) host)[at] = f;
			}
			else
				((uint16_t *) host)[at] = pad ? CANARY_16 : bf16_bits(v);
		}
	must(ops->copy_to_device(stream, t->mat.data, host, bytes));
	free(host);
}

/* A matrix with the values of make(), rounded to its type. */
static tensor
tensor_make(int64_t rows, int64_t cols, int64_t pad, ft_dtype dtype, double (*make)(void),
			double scale)
{
	tensor t = {.mat = {NULL, dtype, rows, cols, cols + pad}};

	t.value = calloc((size_t) (rows * cols) + 1, sizeof *t.value);
	for (int64_t i = 0; i < rows * cols; i++)
		t.value[i] = make != NULL ? round_as(scale * make(), dtype) : 0;
	t.mat.data = device_alloc(tensor_bytes(&t) + 4);
	tensor_upload(&t);
	return t;
}

UNUSED static tensor
tensor_random(int64_t rows, int64_t cols, int64_t pad, ft_dtype dtype)
{
	return tensor_make(rows, cols, pad, dtype, random_normal, 1);
}

UNUSED static tensor
tensor_zero(int64_t rows, int64_t cols, int64_t pad, ft_dtype dtype)
{
	return tensor_make(rows, cols, pad, dtype, NULL, 0);
}

UNUSED static void
tensor_free(tensor *t)
{
	device_free(t->mat.data);
	free(t->value);
}

/* The values now on the device, [rows][cols]; fails when the padding was written.  Free it. */
static double *
tensor_read(const tensor *t)
{
	size_t bytes = tensor_bytes(t);
	void *host = malloc(bytes + 1);
	double *value = calloc((size_t) (t->mat.rows * t->mat.cols) + 1, sizeof *value);

	download(host, t->mat.data, bytes);
	for (int64_t i = 0; i < t->mat.rows; i++)
		for (int64_t j = 0; j < t->mat.ld; j++)
		{
			int64_t at = i * t->mat.ld + j;

			if (j < t->mat.cols)
				value[i * t->mat.cols + j] = t->mat.dtype == FT_F32
												 ? ((const float *) host)[at]
												 : bf16_value(((const uint16_t *) host)[at]);
			else if (t->mat.dtype == FT_F32)
				assert_int_equal(((const uint32_t *) host)[at], CANARY_F32);
			else
				assert_int_equal(((const uint16_t *) host)[at], CANARY_16);
		}
	free(host);
	return value;
}

/* --- judging --- */

static double
nmse(const double *result, const double *reference, int64_t n)
{
	double error = 0;
	double norm = 0;

	for (int64_t i = 0; i < n; i++)
	{
		error += (result[i] - reference[i]) * (result[i] - reference[i]);
		norm += reference[i] * reference[i];
	}
	if (isnan(error))
		return INFINITY;
	return norm > 0 ? error / norm : error;
}

/* What a result of that type may be off: f32 sums, or a rounding to 8 significant bits, which is at
 * most 2^-8 of a value. */
static double
tolerance(ft_dtype dtype)
{
	return dtype == FT_F32 ? 1e-11 : 1.6e-5;
}

static void
check_values(const char *what, const double *result, const double *reference, int64_t n,
			 double limit)
{
	double error = nmse(result, reference, n);

	if (!(error <= limit))
		fail_msg("%s: normalised error %.3g, at most %.3g expected", what, error, limit);
}

UNUSED static void
check_tensor(const char *what, const tensor *t, const double *reference)
{
	double *result = tensor_read(t);

	check_values(what, result, reference, t->mat.rows * t->mat.cols, tolerance(t->mat.dtype));
	free(result);
}

/* Bytes of two device matrices of one shape are equal. */
UNUSED static void
check_same_bits(const char *what, const tensor *a, const tensor *b)
{
	double *x = tensor_read(a);
	double *y = tensor_read(b);

	if (memcmp(x, y, (size_t) (a->mat.rows * a->mat.cols) * sizeof *x) != 0)
		fail_msg("%s: results differ in their bits", what);
	free(x);
	free(y);
}

/* --- variants --- */

static const ft_ops *
backend_by_name(const char *name)
{
	const ft_ops *found = NULL;

	if (strcmp(name, "cpu") == 0)
		return ft_cpu_ops();
	if (strcmp(name, "cuda") == 0 && ft_cuda_backend(&found) == FT_OK)
		return found;
	return NULL;
}

/* Open the device in the variant; false with a printed reason where the machine lacks it. */
static bool
open_variant(const test_variant *variant)
{
	ft_device_config config = {ops->name, variant->threads, variant->numerics};

	if (variant->cpu != NULL)
		setenv("PG_FINETUNE_CPU", variant->cpu, 1);
	else
		unsetenv("PG_FINETUNE_CPU");
	if (ops->device_open(&config, &device) != FT_OK)
	{
		printf("skip: %s\n", ft_error_message());
		return false;
	}
	must(ops->device_info(device, &info));
	must(ops->stream_create(device, &stream));
	return true;
}

UNUSED static void
close_variant(void)
{
	ops->stream_destroy(stream);
	ops->device_close(device);
	stream = NULL;
	device = NULL;
}

static const test_variant cpu_variants[] = {
	{NULL, 3, FT_NUMERICS_FAST, NULL},          {NULL, 1, FT_NUMERICS_REFERENCE, NULL},
	{"avx2", 3, FT_NUMERICS_FAST, NULL},        {"portable", 3, FT_NUMERICS_FAST, NULL},
	{"bf16", 3, FT_NUMERICS_FAST, NULL},        {"avx512", 3, FT_NUMERICS_FAST, "matmul"},
	{"avxvnni", 3, FT_NUMERICS_FAST, "matmul"},
};

static const test_variant other_variants[] = {
	{NULL, 1, FT_NUMERICS_FAST, NULL},
	{NULL, 1, FT_NUMERICS_REFERENCE, NULL},
};

/* Run the tests for every variant of the backend; the program's exit status. */
UNUSED static int
run_variants(const char *group, const struct CMUnitTest *tests, size_t n)
{
	const char *name = getenv("PG_FINETUNE_TEST_BACKEND");
	const char *only = getenv("PG_FINETUNE_TEST_NUMERICS"); /* "fast", "reference" */
	const test_variant *variants = cpu_variants;
	size_t n_variants = sizeof cpu_variants / sizeof *cpu_variants;
	int failed = 0;

	if (name == NULL)
		name = "cpu";
	ops = backend_by_name(name);
	if (ops == NULL || ft_ops_check(ops) != FT_OK)
	{
		fprintf(stderr, "no backend \"%s\": %s\n", name, ft_error_message());
		return 1;
	}
	if (strcmp(ops->name, "cpu") != 0)
	{
		variants = other_variants;
		n_variants = sizeof other_variants / sizeof *other_variants;
	}
	for (size_t i = 0; i < n_variants; i++)
	{
		bool fast = variants[i].numerics == FT_NUMERICS_FAST;
		char title[320];

		if (only != NULL && strcmp(only, fast ? "fast" : "reference") != 0)
			continue;
		if (variants[i].group != NULL && strcmp(variants[i].group, group) != 0)
			continue;
		if (!open_variant(&variants[i]))
			continue;
		snprintf(title, sizeof title, "%s, %s %s, %d threads, %s", group, info.name, info.features,
				 info.threads, fast ? "fast" : "reference");
		random_state = 1;
		failed += _cmocka_run_group_tests(title, tests, n, NULL, NULL);
		close_variant();
	}
	return failed != 0;
}

#endif
