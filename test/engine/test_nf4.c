/*
 * test_nf4.c: matrices in NF4 have the very codes, scales and values that
 * bitsandbytes gives them (test/golden/make_nf4.py), whatever the instruction
 * set, the threads and the backend that dequantises them.
 */
#include "test_ops_common.h"

#include "nf4.h"
#include "safetensors.h"

#define GOLDEN "test/golden/nf4/matrices.safetensors"

static ft_safetensors *golden;

static const struct
{
	const char *name;
	ft_dtype dtype;
	int64_t rows;
	int64_t cols;
} matrices[] = {
	{"bf16", FT_BF16, 264, 64}, /* more blocks than a group has */
	{"f16", FT_F16, 6, 128},
	{"f32", FT_F32, 3, 192}, /* and a block of zeros */
};
#define N_MATRICES ((int) (sizeof matrices / sizeof *matrices))

/* The bytes of "<matrix>.<part>", of which there must be so many; free. */
static void *
golden_bytes(const char *matrix, const char *part, int64_t bytes)
{
	const ft_safetensor *t;
	char name[64];
	void *data;

	snprintf(name, sizeof name, "%s%s%s", matrix, *matrix ? "." : "", part);
	t = ft_safetensors_find(golden, name);
	if (t == NULL || (int64_t) t->bytes != bytes)
		fail_msg("%s has %lld bytes, expected %lld", name, t ? (long long) t->bytes : -1LL,
				 (long long) bytes);
	data = malloc(t->bytes);
	must(ft_safetensors_read(golden, t, data));
	return data;
}

static void
same_bytes(const char *matrix, const char *part, const void *got, int64_t bytes)
{
	uint8_t *expected = golden_bytes(matrix, part, bytes);

	for (int64_t i = 0; i < bytes; i++)
		if (((const uint8_t *) got)[i] != expected[i])
			fail_msg("%s.%s: byte %lld of %lld is %d, expected %d", matrix, part, (long long) i,
					 (long long) bytes, ((const uint8_t *) got)[i], expected[i]);
	free(expected);
}

static ft_mat
golden_matrix(int i)
{
	int64_t size = ft_dtype_get(matrices[i].dtype)->block_bytes;

	return ft_mat_make(
		golden_bytes(matrices[i].name, "weight", matrices[i].rows * matrices[i].cols * size),
		matrices[i].dtype, matrices[i].rows, matrices[i].cols);
}

static ft_mat
quantised(ft_mat m)
{
	void *data = malloc((size_t) ft_nf4_bytes(m.rows * m.cols));

	must(ft_nf4_quantise(m, data));
	return ft_mat_make(data, FT_NF4, m.rows, m.cols);
}

static void
test_codes_and_scales(void **state)
{
	(void) state;
	for (int i = 0; i < N_MATRICES; i++)
	{
		const char *name = matrices[i].name;
		ft_mat weight = golden_matrix(i);
		ft_mat nf4 = quantised(weight);
		ft_nf4 t = ft_nf4_parts(nf4.data, nf4.rows * nf4.cols);

		assert_int_equal(t.blocks, nf4.rows * nf4.cols / 64);
		same_bytes("", "map", t.map, 256 * 4);
		same_bytes(name, "codes", t.codes, t.blocks * 32);
		same_bytes(name, "offset", t.offset, 4);
		same_bytes(name, "group", t.group, t.groups * 4);
		same_bytes(name, "absmax", t.absmax, t.blocks);
		free(nf4.data);
		free(weight.data);
	}
}

/* y of the weight, in f32 or, as f32, of bf16; free. */
static float *
dequantised(const ft_weight *w, int64_t rows, int64_t cols, ft_dtype dtype)
{
	size_t size = dtype == FT_F32 ? 4 : 2;
	size_t n = (size_t) (rows * cols);
	void *y = device_alloc(n * size);
	uint16_t *narrow = malloc(n * size);
	float *values = malloc(n * sizeof *values);

	must(ops->dequantise(stream, ft_mat_make(y, dtype, rows, cols), w));
	download(dtype == FT_F32 ? (void *) values : narrow, y, n * size);
	for (size_t i = 0; i < n && dtype == FT_BF16; i++)
		values[i] = ft_bf16_to_f32(narrow[i]);
	device_free(y);
	free(narrow);
	return values;
}

static void
test_values(void **state)
{
	(void) state;
	for (int i = 0; i < N_MATRICES; i++)
	{
		int64_t n = matrices[i].rows * matrices[i].cols;
		ft_mat weight = golden_matrix(i);
		ft_mat nf4 = quantised(weight);
		float *expected = golden_bytes(matrices[i].name, "values", n * 4);
		float *narrow;
		float *values;
		ft_weight *w;

		must(ops->weight_create(device, &nf4, 1, FT_USE_DEQUANTISE, &w));
		assert_in_range(ops->weight_bytes(w), ft_nf4_bytes(n), ft_nf4_bytes(n) + 255);
		values = dequantised(w, nf4.rows, nf4.cols, FT_F32);
		narrow = dequantised(w, nf4.rows, nf4.cols, FT_BF16);
		same_bytes(matrices[i].name, "values", values, n * 4);
		for (int64_t j = 0; j < n; j++)
			if (narrow[j] != ft_bf16_to_f32(ft_f32_to_bf16(expected[j])))
				fail_msg("%s: value %lld in bf16 is %a, expected the rounded %a", matrices[i].name,
						 (long long) j, (double) narrow[j], (double) expected[j]);
		ops->weight_free(w);
		free(values);
		free(narrow);
		free(expected);
		free(nf4.data);
		free(weight.data);
	}
}

/* Value j of a quantised matrix by the format's definition. */
static float
value_of(ft_mat m, int64_t j)
{
	static const float codes[16] = FT_NF4_VALUES;
	ft_nf4 t = ft_nf4_parts(m.data, m.rows * m.cols);
	int64_t block = j / 64;
	volatile float product = t.map[t.absmax[block]] * t.group[block / 256];
	float scale = product + *t.offset;

	return codes[t.codes[j / 2] >> (j % 2 == 0 ? 4 : 0) & 15] * scale;
}

/* Rows that no block fits, and several matrices in one weight. */
static void
test_odd_sizes(void **state)
{
	static const int64_t sizes[][2] = {{1, 1}, {1, 63}, {3, 22}, {5, 36}, {33, 52}, {70, 250}};
	const int n_sizes = (int) (sizeof sizes / sizeof *sizes);

	(void) state;
	for (int i = 0; i < n_sizes; i++)
	{
		int64_t rows = sizes[i][0];
		int64_t cols = sizes[i][1];
		int64_t n = rows * cols;
		ft_mat plain[2];
		ft_mat parts[2];
		float *values;
		ft_weight *w;

		for (int p = 0; p < 2; p++)
		{
			plain[p] = ft_mat_make(malloc((size_t) n * 4), FT_F32, rows, cols);
			for (int64_t j = 0; j < n; j++)
				((float *) plain[p].data)[j] = (float) random_unit();
			parts[p] = quantised(plain[p]);
		}
		must(ops->weight_create(device, parts, 2, FT_USE_DEQUANTISE, &w));
		values = dequantised(w, 2 * rows, cols, FT_F32);
		for (int64_t j = 0; j < 2 * n; j++)
		{
			float expected = ((float *) plain[j / n].data)[j % n];

			if (values[j] != value_of(parts[j / n], j % n))
				fail_msg("[%lld, %lld]: value %lld is %a, expected %a", (long long) rows,
						 (long long) cols, (long long) j, (double) values[j],
						 (double) value_of(parts[j / n], j % n));
			/* half of the widest gap between two codes above 0, and the scale's own error */
			if (!(fabsf(values[j] - expected) < 0.16f))
				fail_msg("[%lld, %lld]: value %lld is %g, expected about %g", (long long) rows,
						 (long long) cols, (long long) j, (double) values[j], (double) expected);
		}
		ops->weight_free(w);
		free(values);
		for (int p = 0; p < 2; p++)
		{
			free(plain[p].data);
			free(parts[p].data);
		}
	}
}

static void
test_refusals(void **state)
{
	float bad[128] = {0};
	ft_mat m = ft_mat_make(bad, FT_F32, 2, 64);
	ft_mat nf4 = quantised(m);
	void *y = device_alloc(sizeof bad);
	ft_weight *w = NULL;

	(void) state;
	assert_int_equal(ops->weight_create(device, &nf4, 1, FT_USE_TRAIN, &w), FT_UNSUPPORTED);
	assert_int_equal(ops->weight_create(device, &nf4, 1, FT_USE_TRAIN | FT_USE_DEQUANTISE, &w),
					 FT_UNSUPPORTED);
	must(ops->weight_create(device, &nf4, 1, FT_USE_DEQUANTISE, &w));
	assert_int_equal(ops->dequantise(stream, ft_mat_make(y, FT_F32, 1, 64), w), FT_INVALID);
	assert_int_equal(ops->dequantise(stream, ft_mat_make(y, FT_F16, 2, 64), w), FT_UNSUPPORTED);
	assert_int_equal(ops->linear(stream, ft_mat_make(y, FT_F32, 1, 2),
								 ft_mat_make(y, FT_F32, 1, 64), w, 0, true),
					 FT_UNSUPPORTED);
	ops->weight_free(w);
	must(ops->weight_create(device, &m, 1, FT_USE_TRAIN, &w));
	assert_int_equal(ops->dequantise(stream, ft_mat_make(y, FT_F32, 2, 64), w), FT_UNSUPPORTED);
	ops->weight_free(w);
	device_free(y);

	bad[70] = INFINITY;
	assert_int_equal(ft_nf4_quantise(m, nf4.data), FT_CORRUPT);
	assert_string_equal(ft_error_message(), "a value near column 0 of row 1 is not finite");
	bad[70] = NAN;
	assert_int_equal(ft_nf4_quantise(m, nf4.data), FT_CORRUPT);
	m.dtype = FT_I32;
	assert_int_equal(ft_nf4_quantise(m, nf4.data), FT_UNSUPPORTED);
	free(nf4.data);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_codes_and_scales),
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_odd_sizes),
		cmocka_unit_test(test_refusals),
	};
	int failed;

	if (ft_safetensors_open(GOLDEN, &golden) != FT_OK)
	{
		fprintf(stderr, "%s\n", ft_error_message());
		return 1;
	}
	failed = run_variants("nf4", tests, sizeof tests / sizeof *tests);
	ft_safetensors_close(golden);
	return failed;
}
