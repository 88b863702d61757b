/*
 * test_blocks.c: stored types give the very bits that the package gguf gives
 * (test/golden/blocks.gguf), by conversion, by lookup, by dequantising and by
 * products.
 */
#include "test_ops_common.h"

#include "gguf.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static const ft_dtype types[] = {FT_F32,  FT_F16,  FT_BF16, FT_Q4_0, FT_Q4_1, FT_Q5_0, FT_Q5_1,
								 FT_Q8_0, FT_Q2_K, FT_Q3_K, FT_Q4_K, FT_Q5_K, FT_Q6_K};
#define N_TYPES ((int) (sizeof types / sizeof *types))

static int fixture;
static ft_gguf *golden;

/* "<type>.<what>" of the fixture; free the data. */
static ft_mat
read_tensor(ft_dtype type, const char *what)
{
	const ft_gguf_tensor *t;
	char name[64];
	ft_mat m;

	snprintf(name, sizeof name, "%s.%s", ft_dtype_get(type)->name, what);
	t = ft_gguf_find_tensor(golden, name);
	assert_non_null(t);
	m = ft_mat_make(malloc(t->bytes), ft_gguf_tensor_dtype(t->type), (int64_t) t->dims[1],
					(int64_t) t->dims[0]);
	assert_int_equal(pread(fixture, m.data, t->bytes, (off_t) t->offset), t->bytes);
	return m;
}

static void
check_bits(const char *what, ft_dtype type, const float *got, const float *expected, int64_t n)
{
	for (int64_t i = 0; i < n; i++)
		if (memcmp(&got[i], &expected[i], sizeof *got) != 0)
			fail_msg("%s of %s: value %lld is %a, expected %a", what, ft_dtype_get(type)->name,
					 (long long) i, (double) got[i], (double) expected[i]);
}

static void
test_convert(void **state)
{
	(void) state;
	for (int i = 0; i < N_TYPES; i++)
	{
		ft_mat stored = read_tensor(types[i], "stored");
		ft_mat values = read_tensor(types[i], "values");
		int64_t n = stored.rows * stored.cols;
		size_t bytes = (size_t) (stored.rows * ft_row_bytes(stored.dtype, stored.cols));
		float *got = malloc((size_t) n * sizeof *got);
		void *x = upload(stored.data, bytes);
		void *y = device_alloc((size_t) n * sizeof *got);

		assert_int_equal(stored.dtype, types[i]);
		assert_int_equal(values.dtype, FT_F32);
		must(ops->convert(stream, ft_mat_make(y, FT_F32, stored.rows, stored.cols),
						  ft_mat_make(x, stored.dtype, stored.rows, stored.cols)));
		download(got, y, (size_t) n * sizeof *got);
		check_bits("conversion", types[i], got, values.data, n);
		device_free(x);
		device_free(y);
		free(got);
		free(stored.data);
		free(values.data);
	}
}

static void
test_embed(void **state)
{
	(void) state;
	for (int i = 0; i < N_TYPES; i++)
	{
		ft_mat stored = read_tensor(types[i], "stored");
		ft_mat values = read_tensor(types[i], "values");
		int64_t n = stored.rows * stored.cols;
		float *got = malloc((size_t) n * sizeof *got);
		void *y = device_alloc((size_t) n * sizeof *got);
		int32_t rows[64];
		int32_t *ids;
		ft_weight *w;

		assert_true(stored.rows <= 64);
		for (int32_t r = 0; r < stored.rows; r++)
			rows[r] = r;
		ids = upload(rows, sizeof rows);
		must(ops->weight_create(device, &stored, 1, FT_USE_EMBED, &w));
		must(ops->embed(stream, ft_mat_make(y, FT_F32, stored.rows, stored.cols), w, ids));
		download(got, y, (size_t) n * sizeof *got);
		check_bits("lookup", types[i], got, values.data, n);
		ops->weight_free(w);
		device_free(ids);
		device_free(y);
		free(got);
		free(stored.data);
		free(values.data);
	}
}

/* A weight of the matrix twice, into f32 and bf16.  The sign of a zero is left open. */
static void
test_dequantise(void **state)
{
	(void) state;
	for (int i = 0; i < N_TYPES; i++)
	{
		ft_mat stored = read_tensor(types[i], "stored");
		ft_mat values = read_tensor(types[i], "values");
		ft_mat parts[2] = {stored, stored};
		int64_t n = stored.rows * stored.cols;
		float *got = malloc((size_t) (2 * n) * sizeof *got);
		uint16_t *narrow = malloc((size_t) (2 * n) * sizeof *narrow);
		void *y = device_alloc((size_t) (2 * n) * sizeof *got);
		ft_weight *w;

		must(ops->weight_create(device, parts, 2, FT_USE_DEQUANTISE, &w));
		must(ops->dequantise(stream, ft_mat_make(y, FT_F32, 2 * stored.rows, stored.cols), w));
		download(got, y, (size_t) (2 * n) * sizeof *got);
		must(ops->dequantise(stream, ft_mat_make(y, FT_BF16, 2 * stored.rows, stored.cols), w));
		download(narrow, y, (size_t) (2 * n) * sizeof *narrow);
		for (int p = 0; p < 2; p++)
			for (int64_t j = 0; j < n; j++)
			{
				float expected = ((float *) values.data)[j];
				float rounded = ft_bf16_to_f32(ft_f32_to_bf16(expected));

				if (got[p * n + j] != expected || ft_bf16_to_f32(narrow[p * n + j]) != rounded)
					fail_msg("dequantising %s: value %lld is %a, in bf16 %a, expected %a",
							 ft_dtype_get(types[i])->name, (long long) j, (double) got[p * n + j],
							 (double) ft_bf16_to_f32(narrow[p * n + j]), (double) expected);
			}
		ops->weight_free(w);
		device_free(y);
		free(got);
		free(narrow);
		free(stored.data);
		free(values.data);
	}
}

/* The product with a unit vector is a column; adding zeros to it changes but the sign of a zero. */
static void
test_product(void **state)
{
	(void) state;
	for (int i = 0; i < N_TYPES; i++)
	{
		ft_mat stored = read_tensor(types[i], "stored");
		ft_mat values = read_tensor(types[i], "values");
		tensor x = tensor_zero(stored.cols, stored.cols, 0, FT_BF16);
		tensor y = tensor_zero(stored.cols, stored.rows, 0, FT_F32);
		double *got;
		ft_weight *w;

		/* a float times one is not that float where it is split or flushed */
		if (ft_dtype_get(types[i])->block_values == 1)
			goto next;
		for (int64_t c = 0; c < stored.cols; c++)
			x.value[c * stored.cols + c] = 1;
		tensor_upload(&x);
		must(ops->weight_create(device, &stored, 1, FT_USE_SERVE, &w));
		must(ops->linear(stream, y.mat, x.mat, w, 0, true));
		got = tensor_read(&y);
		for (int64_t r = 0; r < stored.rows; r++)
			for (int64_t c = 0; c < stored.cols; c++)
			{
				float expected = ((float *) values.data)[r * stored.cols + c];

				if (got[c * stored.rows + r] != (double) expected)
					fail_msg("product with %s: row %lld, column %lld is %a, expected %a",
							 ft_dtype_get(types[i])->name, (long long) r, (long long) c,
							 got[c * stored.rows + r], (double) expected);
			}
		free(got);
		ops->weight_free(w);
	next:
		tensor_free(&x);
		tensor_free(&y);
		free(stored.data);
		free(values.data);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_convert),
		cmocka_unit_test(test_embed),
		cmocka_unit_test(test_dequantise),
		cmocka_unit_test(test_product),
	};
	struct stat st;

	fixture = open("test/golden/blocks.gguf", O_RDONLY);
	if (fixture < 0 || fstat(fixture, &st) != 0 ||
		ft_gguf_open(fixture, (uint64_t) st.st_size, &golden) != FT_OK)
	{
		fprintf(stderr, "test/golden/blocks.gguf: %s\n", ft_error_message());
		return 1;
	}
	return run_variants("blocks", tests, sizeof tests / sizeof *tests);
}
