/*
 * test_ops_dropout.c: dropout: its mask bit for bit, whichever backend makes it,
 * its scaling, and how much it keeps.
 */
#include "test_ops_common.h"

#include "random.h"

#define COUNT_OF(array) ((int) (sizeof(array) / sizeof *(array)))

/* As ops.h defines it, from the engine's own generator. */
static bool
is_kept(const ft_dropout *d, uint32_t position, uint32_t document, int64_t j)
{
	uint64_t which = (uint64_t) d->slot << 32 | document;
	uint64_t counter = (uint64_t) position << 32 | (uint64_t) (j / 64 * 16 + j % 16);
	uint32_t words[4];

	ft_philox(d->seed, which, counter, words);
	return words[j / 16 % 4] >= d->p * 4294967296.0;
}

typedef struct rows_of_documents
{
	int32_t *positions; /* host */
	int32_t *documents;
	ft_dropout settings;
} rows_of_documents;

static rows_of_documents
make_rows(int64_t n, double p, uint32_t slot)
{
	rows_of_documents r = {malloc((size_t) n * 4 + 4), malloc((size_t) n * 4 + 4), {.p = p}};

	for (int64_t i = 0; i < n; i++)
	{
		r.positions[i] = (int32_t) (i % 7);
		r.documents[i] = (int32_t) (1000000 + i / 7 * 31);
	}
	r.settings = (ft_dropout){.p = p,
							  .seed = 0x123456789abcdef0u,
							  .slot = slot,
							  .positions = upload(r.positions, (size_t) n * 4),
							  .documents = upload(r.documents, (size_t) n * 4)};
	return r;
}

static void
free_rows(rows_of_documents *r)
{
	device_free((void *) r->settings.positions);
	device_free((void *) r->settings.documents);
	free(r->positions);
	free(r->documents);
}

/* What y is to be; before: its values until then, NULL for a result that is not added. */
static double *
reference_of(const rows_of_documents *r, const tensor *x, const double *before)
{
	double *reference = calloc((size_t) (x->mat.rows * x->mat.cols) + 1, sizeof *reference);

	for (int64_t i = 0; i < x->mat.rows; i++)
		for (int64_t j = 0; j < x->mat.cols; j++)
		{
			int64_t at = i * x->mat.cols + j;

			if (is_kept(&r->settings, (uint32_t) r->positions[i], (uint32_t) r->documents[i], j))
				reference[at] = x->value[at] / (1 - r->settings.p);
			if (before != NULL)
				reference[at] += before[at];
		}
	return reference;
}

static void
check_dropout(int64_t rows, int64_t cols, ft_dtype from, ft_dtype to, bool add)
{
	rows_of_documents r = make_rows(rows, 0.3, (uint32_t) (rows + cols));
	tensor x = tensor_random(rows, cols, 5, from);
	tensor y = tensor_random(rows, cols, 2, to);
	double *reference = reference_of(&r, &x, add ? y.value : NULL);
	double *result;

	must(ops->dropout(stream, y.mat, x.mat, &r.settings, add ? 1.0f : 0.0f));
	check_tensor("dropout", &y, reference);
	result = tensor_read(&y);
	for (int64_t i = 0; i < rows * cols && !add; i++)
	{
		if ((result[i] == 0) != (reference[i] == 0))
			fail_msg("%lld rows of %lld: element %lld is %g, expected %g", (long long) rows,
					 (long long) cols, (long long) i, result[i], reference[i]);
	}
	free(result);
	if (!add && from == to)
	{
		must(ops->dropout(stream, x.mat, x.mat, &r.settings, 0.0f));
		check_tensor("dropout in place", &x, reference);
	}
	free(reference);
	tensor_free(&x);
	tensor_free(&y);
	free_rows(&r);
}

static void
test_dropout(void **state)
{
	static const int64_t row_counts[] = {0, 1, 3, 50};
	static const int64_t widths[] = {1, 15, 20, 63, 64, 65, 130, 576, 1029};

	(void) state;
	for (int r = 0; r < COUNT_OF(row_counts); r++)
		for (int w = 0; w < COUNT_OF(widths); w++)
		{
			check_dropout(row_counts[r], widths[w], FT_F32, FT_F32, false);
			check_dropout(row_counts[r], widths[w], FT_BF16, FT_BF16, false);
			check_dropout(row_counts[r], widths[w], FT_BF16, FT_F32, false);
			check_dropout(row_counts[r], widths[w], FT_F32, FT_BF16, false);
			check_dropout(row_counts[r], widths[w], FT_F32, FT_F32, true);
			check_dropout(row_counts[r], widths[w], FT_BF16, FT_F32, true);
		}
}

/* The share that is kept, of all and of each column, and the mean that stays: to five standard
 * deviations of what chance does. */
static void
check_rate(double p)
{
	enum
	{
		ROWS = 2000,
		COLS = 192
	};
	rows_of_documents r = make_rows(ROWS, p, 3);
	tensor x = tensor_zero(ROWS, COLS, 0, FT_F32);
	double deviation = sqrt(p * (1 - p));
	int64_t all = 0;
	double *result;

	for (int64_t i = 0; i < ROWS * COLS; i++)
		x.value[i] = 1;
	tensor_upload(&x);
	must(ops->dropout(stream, x.mat, x.mat, &r.settings, 0.0f));
	result = tensor_read(&x);
	for (int64_t j = 0; j < COLS; j++)
	{
		int64_t kept = 0;

		for (int64_t i = 0; i < ROWS; i++)
		{
			double v = result[i * COLS + j];

			assert_true(v == 0 || v == (double) (float) (1 / (1 - p)));
			kept += v != 0;
		}
		assert_true(fabs((double) kept / ROWS - (1 - p)) <= 5 * deviation / sqrt(ROWS));
		all += kept;
	}
	assert_true(fabs((double) all / (ROWS * COLS) - (1 - p)) <= 5 * deviation / sqrt(ROWS * COLS));
	free(result);
	tensor_free(&x);
	free_rows(&r);
}

static void
test_rate(void **state)
{
	(void) state;
	check_rate(0);
	check_rate(0.05);
	check_rate(0.5);
	check_rate(0.97);
}

/* Another seed, slot, document or position is another mask; the same is the same. */
static void
test_masks_differ(void **state)
{
	enum
	{
		COLS = 640
	};
	rows_of_documents r = make_rows(15, 0.5, 0);
	tensor x = tensor_zero(15, COLS, 0, FT_F32);
	tensor y = tensor_zero(15, COLS, 0, FT_F32);
	tensor again = tensor_zero(15, COLS, 0, FT_F32);
	ft_dropout other[3] = {r.settings, r.settings, r.settings};
	double *first;

	(void) state;
	for (int64_t i = 0; i < 15 * COLS; i++)
		x.value[i] = 1;
	tensor_upload(&x);
	must(ops->dropout(stream, y.mat, x.mat, &r.settings, 0.0f));
	must(ops->dropout(stream, again.mat, x.mat, &r.settings, 0.0f));
	check_same_bits("dropout again", &again, &y);
	first = tensor_read(&y);
	other[1].seed++;
	other[2].slot++;
	for (int o = 0; o < 3; o++)
	{
		double *second;

		must(ops->dropout(stream, y.mat, x.mat, &other[o], 0.0f));
		second = tensor_read(&y);
		for (int a = 0; a < 15; a++)
			for (int b = 0; b < 15; b++)
			{
				int equal = 0;

				for (int j = 0; j < COLS; j++)
					equal += (first[a * COLS + j] != 0) == (second[b * COLS + j] != 0);
				/* half of them by chance, with a standard deviation of 12.6 */
				if (o == 0 && a == b)
					assert_int_equal(equal, COLS);
				else
					assert_true(abs(equal - COLS / 2) < 76);
			}
		free(second);
	}
	free(first);
	tensor_free(&x);
	tensor_free(&y);
	tensor_free(&again);
	free_rows(&r);
}

static void
test_refusals(void **state)
{
	rows_of_documents r = make_rows(2, 0.5, 0);
	tensor x = tensor_random(2, 12, 0, FT_F32);
	tensor y = tensor_zero(2, 12, 0, FT_BF16);
	ft_mat narrow = ft_mat_cols(x.mat, 0, 8);
	ft_mat ints = x.mat;

	(void) state;
	ints.dtype = FT_I32;
	assert_int_equal(ops->dropout(stream, narrow, x.mat, &r.settings, 0), FT_INVALID);
	assert_int_equal(ops->dropout(stream, x.mat, ints, &r.settings, 0), FT_UNSUPPORTED);
	assert_int_equal(ops->dropout(stream, y.mat, x.mat, &r.settings, 1), FT_UNSUPPORTED);
	tensor_free(&x);
	tensor_free(&y);
	free_rows(&r);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_dropout),
		cmocka_unit_test(test_rate),
		cmocka_unit_test(test_masks_differ),
		cmocka_unit_test(test_refusals),
	};

	return run_variants("dropout", tests, sizeof tests / sizeof *tests);
}
