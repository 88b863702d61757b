/*
 * test_ops_loss.c: cross-entropy with its gradient, and sampling.
 */
#include "test_ops_common.h"

static const int64_t widths[] = {1, 2, 17, 1000, 4097};

#define COUNT_OF(array) ((int) (sizeof(array) / sizeof(array)[0]))

static double
logit_value(void)
{
	return 4 * random_normal();
}

/* Loss and gradient of one row; the gradient of Σ weight · scale · loss. */
static void
loss_row(double *loss, double *correct, double *grad, const double *x, int64_t n, int32_t target,
		 double factor)
{
	int64_t best = 0;
	double sum = 0;

	for (int64_t j = 1; j < n; j++)
		if (x[j] > x[best])
			best = j;
	for (int64_t j = 0; j < n; j++)
		sum += exp(x[j] - x[best]);
	*loss = log(sum) + x[best] - x[target];
	*correct = best == target;
	for (int64_t j = 0; j < n; j++)
		grad[j] = factor * (exp(x[j] - x[best]) / sum - (j == target));
}

static void
test_formula(void **state)
{
	enum
	{
		N = 9
	};
	double x[N], grad[N], unused[N], loss[2], correct;

	(void) state;
	for (int i = 0; i < N; i++)
		x[i] = random_normal();
	loss_row(loss, &correct, grad, x, N, 4, 0.3);
	for (int i = 0; i < N; i++)
	{
		double at = x[i];

		for (int side = 0; side < 2; side++)
		{
			x[i] = at + (side ? -1e-6 : 1e-6);
			loss_row(&loss[side], &correct, unused, x, N, 4, 0.3);
		}
		x[i] = at;
		assert_true(fabs(0.3 * (loss[0] - loss[1]) / 2e-6 - grad[i]) < 1e-8);
	}
}

static void
check_loss(int64_t rows, int64_t n, float grad_scale)
{
	tensor x = tensor_make(rows, n, 5, FT_F32, logit_value, 1);
	tensor weights = tensor_make(1, rows, 0, FT_F32, random_unit, 1);
	tensor loss = tensor_zero(1, rows, 0, FT_F32);
	tensor correct = tensor_zero(1, rows, 0, FT_F32);
	double *before = malloc((size_t) (rows * n) * sizeof *before + 1);
	int32_t *targets = malloc((size_t) rows * sizeof *targets + 1);
	int32_t *on_device;
	double *result;

	/* a weight may be negative: the gradient of a rejected answer is */
	for (int64_t i = 1; i < rows; i += 3)
		weights.value[i] = -weights.value[i];
	tensor_upload(&weights);
	memcpy(before, x.value, (size_t) (rows * n) * sizeof *before);
	for (int64_t i = 0; i < rows; i++)
	{
		double *row = x.value + i * n;
		int64_t best = 0;

		for (int64_t j = 1; j < n; j++)
			if (row[j] > row[best])
				best = j;
		targets[i] = (int32_t) (i % 3 == 0 ? best : random_bits() % n);
		loss_row(&loss.value[i], &correct.value[i], row, before + i * n, n, targets[i],
				 weights.value[i] * grad_scale);
	}
	on_device = upload(targets, (size_t) rows * sizeof *targets);
	must(ops->cross_entropy(stream, x.mat, on_device, weights.mat.data, grad_scale, loss.mat.data,
							correct.mat.data));
	result = tensor_read(&loss);
	for (int64_t i = 0; i < rows; i++)
		assert_true(fabs(result[i] - loss.value[i]) <= 2e-6 * (1 + fabs(loss.value[i])));
	free(result);
	result = tensor_read(&correct);
	for (int64_t i = 0; i < rows; i++)
		assert_true(result[i] == correct.value[i]);
	free(result);
	check_tensor("cross_entropy's gradient", &x, grad_scale != 0 ? x.value : before);
	free(before);
	free(targets);
	device_free(on_device);
	tensor_free(&x);
	tensor_free(&weights);
	tensor_free(&loss);
	tensor_free(&correct);
}

static void
test_cross_entropy(void **state)
{
	(void) state;
	for (int w = 0; w < COUNT_OF(widths); w++)
		for (int64_t rows = 0; rows <= 17; rows += rows < 3 ? 1 : 7)
		{
			check_loss(rows, widths[w], 0);
			check_loss(rows, widths[w], 0.25f);
		}
}

/* Ties, extreme logits, targets outside of the vocabulary, rows without weight, NaN. */
static void
test_cross_entropy_edges(void **state)
{
	enum
	{
		N = 40,
		ROWS = 7
	};
	tensor x = tensor_zero(ROWS, N, 0, FT_F32);
	tensor weights = tensor_make(1, ROWS, 0, FT_F32, random_unit, 1);
	tensor loss = tensor_zero(1, ROWS, 0, FT_F32);
	tensor correct = tensor_zero(1, ROWS, 0, FT_F32);
	int32_t targets[ROWS] = {0, 1, 20, -100, N, 3, 5};
	int32_t *on_device = upload(targets, sizeof targets);
	double *result;

	(void) state;
	x.value[2 * N + 20] = 5000; /* certain */
	x.value[2 * N + 21] = -5000;
	x.value[6 * N + 9] = NAN;
	tensor_upload(&x);
	weights.value[5] = 0;
	tensor_upload(&weights);
	must(ops->cross_entropy(stream, x.mat, on_device, weights.mat.data, 1, loss.mat.data,
							correct.mat.data));
	result = tensor_read(&loss);
	assert_true(fabs(result[0] - log(N)) < 1e-5 && fabs(result[1] - log(N)) < 1e-5);
	assert_true(result[2] == 0);
	assert_true(result[3] == 0 && result[4] == 0);
	assert_true(fabs(result[5] - log(N)) < 1e-5);
	assert_false(isfinite(result[6]));
	free(result);
	result = tensor_read(&correct);
	for (int i = 0; i < ROWS; i++)
		assert_true(i == 6 || result[i] == (i == 0 || i == 2));
	free(result);
	result = tensor_read(&x);
	for (int j = 0; j < N; j++)
	{
		assert_true(fabs(result[2 * N + j]) < 1e-30);
		assert_true(result[3 * N + j] == 0 && result[4 * N + j] == 0 && result[5 * N + j] == 0);
	}
	free(result);
	device_free(on_device);
	tensor_free(&x);
	tensor_free(&weights);
	tensor_free(&loss);
	tensor_free(&correct);
}

/* --- sampling --- */

/* Ids of a row by falling logit, lower id first. */
static const double *sort_logits;

static int
by_logit(const void *a, const void *b)
{
	int32_t x = *(const int32_t *) a;
	int32_t y = *(const int32_t *) b;

	if (sort_logits[x] != sort_logits[y])
		return sort_logits[x] > sort_logits[y] ? -1 : 1;
	return x < y ? -1 : 1;
}

/* Probabilities after temperature, top_k, top_p and min_p, in that order. */
static void
filtered(double *p, const double *x, int64_t n, const ft_sample *s)
{
	int32_t *order = malloc((size_t) n * sizeof *order);
	int64_t kept = s->top_k > 0 && s->top_k < n ? s->top_k : n;
	double total = 0;
	double sum = 0;
	int64_t i;

	for (i = 0; i < n; i++)
		order[i] = (int32_t) i;
	sort_logits = x;
	qsort(order, (size_t) n, sizeof *order, by_logit);
	for (i = 0; i < n; i++)
		p[i] = 0;
	for (i = 0; i < kept; i++)
		total += exp((x[order[i]] - x[order[0]]) / s->temperature);
	for (i = 0; i < kept && (i == 0 || s->top_p >= 1 || sum < s->top_p * total); i++)
		sum += exp((x[order[i]] - x[order[0]]) / s->temperature);
	kept = i;
	total = 0;
	for (i = 0; i < kept; i++)
	{
		double w = exp((x[order[i]] - x[order[0]]) / s->temperature);

		if (w >= s->min_p)
			p[order[i]] = w, total += w;
	}
	for (i = 0; i < n; i++)
		p[i] /= total;
	free(order);
}

/* Draw with many evenly spaced numbers: each id must come as often as its probability says, up to
 * the rounding of the ends of its interval. */
static void
check_sampling(int64_t n, ft_sample s)
{
	enum
	{
		DRAWS = 512
	};
	tensor x = tensor_zero(DRAWS, n, 0, FT_F32);
	ft_sample params[DRAWS];
	int32_t ids[DRAWS];
	double *p = malloc((size_t) n * sizeof *p);
	int *count = calloc((size_t) n, sizeof *count);
	int32_t *on_device = device_alloc(sizeof ids);
	tensor logprobs = tensor_zero(1, DRAWS, 0, FT_F32);
	double *result;
	double sum = 0;

	for (int64_t j = 0; j < n; j++)
		x.value[j] = round_as(2 * random_normal(), FT_F32);
	for (int64_t i = 1; i < DRAWS; i++)
		memcpy(x.value + i * n, x.value, (size_t) n * sizeof *x.value);
	tensor_upload(&x);
	for (int i = 0; i < DRAWS; i++)
	{
		params[i] = s;
		params[i].uniform = (i + 0.5f) / DRAWS;
	}
	must(ops->sample(stream, x.mat, params, on_device, logprobs.mat.data));
	download(ids, on_device, sizeof ids);
	filtered(p, x.value, n, &s);
	result = tensor_read(&logprobs);
	for (int64_t j = 0; j < n; j++)
		sum += exp(x.value[j]);
	for (int i = 0; i < DRAWS; i++)
	{
		assert_in_range(ids[i], 0, n - 1);
		count[ids[i]]++;
		assert_true(fabs(result[i] - (x.value[ids[i]] - log(sum))) < 1e-5);
	}
	for (int64_t j = 0; j < n; j++)
	{
		if (p[j] == 0)
			assert_int_equal(count[j], 0);
		assert_true(fabs(count[j] - p[j] * DRAWS) <= 1.01);
	}
	free(result);
	free(p);
	free(count);
	device_free(on_device);
	tensor_free(&x);
	tensor_free(&logprobs);
}

static void
test_sample(void **state)
{
	static const int64_t sizes[] = {1, 2, 33, 1000};

	(void) state;
	for (int i = 0; i < COUNT_OF(sizes); i++)
	{
		check_sampling(sizes[i], (ft_sample){.temperature = 1, .top_p = 1});
		check_sampling(sizes[i], (ft_sample){.temperature = 0.7f, .top_p = 0.9f});
		check_sampling(sizes[i], (ft_sample){.temperature = 1.5f, .top_p = 1, .top_k = 7});
		check_sampling(sizes[i], (ft_sample){.temperature = 1, .top_p = 0.5f, .top_k = 20});
		check_sampling(sizes[i], (ft_sample){.temperature = 1, .top_p = 1, .min_p = 0.1f});
		check_sampling(sizes[i],
					   (ft_sample){.temperature = 2, .top_p = 0.95f, .min_p = 0.2f, .top_k = 500});
		check_sampling(sizes[i], (ft_sample){.temperature = 1, .top_p = 0, .top_k = 0});
	}
}

/* Greedy takes the lowest id of a tie; so does top_k = 1. */
static void
test_sample_ties(void **state)
{
	enum
	{
		N = 70
	};
	tensor x = tensor_zero(3, N, 1, FT_F32);
	ft_sample params[3] = {{.top_p = 1},
						   {.temperature = 1, .top_p = 1, .top_k = 1, .uniform = 0.99f},
						   {.temperature = 1, .top_p = 1, .top_k = 2, .uniform = 0.99f}};
	int32_t ids[3];
	int32_t *on_device = device_alloc(sizeof ids);

	(void) state;
	for (int i = 0; i < 3; i++)
		x.value[i * N + 41] = x.value[i * N + 13] = x.value[i * N + 60] = 2;
	tensor_upload(&x);
	must(ops->sample(stream, x.mat, params, on_device, NULL));
	download(ids, on_device, sizeof ids);
	assert_int_equal(ids[0], 13);
	assert_int_equal(ids[1], 13);
	assert_int_equal(ids[2], 41);
	device_free(on_device);
	tensor_free(&x);
}

/* Forbidden tokens stand at minus infinity; a draw close to 1 must not reach them. */
static void
test_sample_masked(void **state)
{
	enum
	{
		N = 30
	};
	tensor x = tensor_zero(2, N, 0, FT_F32);
	ft_sample params[2] = {{.temperature = 1, .top_p = 1, .uniform = 0.99999994f},
						   {.temperature = 1, .top_p = 0.99f, .uniform = 0.99999994f}};
	int32_t ids[2];
	int32_t *on_device = device_alloc(sizeof ids);

	(void) state;
	for (int i = 0; i < 2 * N; i++)
		x.value[i] = i % N == 4 || i % N == 9 ? 1 : -INFINITY;
	tensor_upload(&x);
	must(ops->sample(stream, x.mat, params, on_device, NULL));
	download(ids, on_device, sizeof ids);
	assert_int_equal(ids[0], 9);
	assert_int_equal(ids[1], 9);
	device_free(on_device);
	tensor_free(&x);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_formula),
		cmocka_unit_test(test_cross_entropy),
		cmocka_unit_test(test_cross_entropy_edges),
		cmocka_unit_test(test_sample),
		cmocka_unit_test(test_sample_ties),
		cmocka_unit_test(test_sample_masked),
	};

	return run_variants("loss", tests, sizeof tests / sizeof *tests);
}
