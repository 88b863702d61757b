/*
 * test_ops_experts.c: mixture of experts: routing with ties, sorting rows by
 * expert, the experts' products, the weighted sum, and the gradients.
 */
#include "test_ops_common.h"

#include "test_ops_quant.h"

#define COUNT_OF(array) ((int) (sizeof(array) / sizeof(array)[0]))

/* How rows spread over experts. */
typedef enum spread
{
	AT_RANDOM,
	TO_THE_FIRST,
	TO_THE_LAST,
	TO_EVERY_OTHER, /* the others have no row */
	N_SPREADS
} spread;

/* [rows · k], for each row different experts where k allows it. */
static int32_t *
spread_slots(spread how, int64_t rows, int k, int n)
{
	int32_t *experts = calloc((size_t) (rows * k) + 1, sizeof *experts);

	for (int64_t t = 0; t < rows; t++)
	{
		int first = (int) (random_bits() % (unsigned) n);

		for (int j = 0; j < k; j++)
		{
			int at = (first + j * (n > 2 ? 2 : 1)) % n;

			if (how == TO_THE_FIRST)
				at = 0;
			if (how == TO_THE_LAST)
				at = n - 1;
			if (how == TO_EVERY_OTHER)
				at = at / 2 * 2;
			experts[t * k + j] = at;
		}
	}
	return experts;
}

/* What group_rows() is to give, by insertion. */
static void
places_by_hand(const int32_t *experts, int64_t slots, int n, int32_t *starts, int32_t *place)
{
	int32_t at = 0;

	for (int e = 0; e < n; e++)
	{
		starts[e] = at;
		for (int64_t i = 0; i < slots; i++)
			if (experts[i] == e)
				place[i] = at++;
	}
	starts[n] = at;
}

/* --- routing --- */

/* Steps of 1/4, so that many are equal. */
static double
random_step(void)
{
	return (double) (random_bits() % 9) / 4 - 1;
}

/* The chosen experts of a row and their renormalised probabilities, in f64. */
static void
route_by_hand(const double *logits, int n, int k, int *chosen, double *weights)
{
	bool taken[FT_MAX_EXPERTS] = {false};
	double total = 0;
	double sum = 0;

	for (int e = 0; e < n; e++)
		total += exp(logits[e]);
	for (int j = 0; j < k; j++)
	{
		chosen[j] = -1;
		for (int e = 0; e < n; e++)
			if (!taken[e] && (chosen[j] < 0 || logits[e] > logits[chosen[j]]))
				chosen[j] = e;
		taken[chosen[j]] = true;
		weights[j] = exp(logits[chosen[j]]) / total;
		sum += weights[j];
	}
	for (int j = 0; j < k; j++)
		weights[j] /= sum;
}

static void
check_route(int n, int k, int64_t rows)
{
	tensor logits = tensor_make(rows, n, 3, FT_F32, random_step, 1);
	size_t slots = (size_t) (rows * k);
	int32_t *experts = device_alloc(slots * 4 + 4);
	float *weights = device_alloc(slots * 4 + 4);
	int32_t *got = calloc(slots + 1, sizeof *got);
	float *got_weights = calloc(slots + 1, sizeof *got_weights);
	double *softmax;

	must(ops->route(stream, experts, weights, logits.mat, k));
	download(got, experts, slots * 4);
	download(got_weights, weights, slots * 4);
	softmax = tensor_read(&logits);
	for (int64_t t = 0; t < rows; t++)
	{
		int chosen[FT_MAX_EXPERTS];
		double expected[FT_MAX_EXPERTS];
		double result[FT_MAX_EXPERTS];
		double sum = 0;

		route_by_hand(logits.value + t * n, n, k, chosen, expected);
		for (int j = 0; j < k; j++)
		{
			assert_int_equal(got[t * k + j], chosen[j]);
			result[j] = got_weights[t * k + j];
		}
		check_values("route", result, expected, k, tolerance(FT_F32));
		for (int e = 0; e < n; e++)
			sum += softmax[t * n + e];
		assert_true(fabs(sum - 1) < 1e-5);
	}
	/* the last row alone gives the same bits */
	if (rows > 1)
	{
		float alone[FT_MAX_EXPERTS];

		tensor_upload(&logits);
		must(ops->route(stream, experts, weights, ft_mat_rows(logits.mat, rows - 1, 1), k));
		download(alone, weights, (size_t) k * 4);
		assert_memory_equal(alone, got_weights + (rows - 1) * k, (size_t) k * 4);
	}
	free(softmax);
	free(got);
	free(got_weights);
	device_free(experts);
	device_free(weights);
	tensor_free(&logits);
}

static void
test_route(void **state)
{
	static const int counts[] = {1, 2, 5, 8, 33, FT_MAX_EXPERTS};
	static const int64_t rows[] = {0, 1, 3, 300};

	(void) state;
	for (int i = 0; i < COUNT_OF(counts); i++)
		for (int r = 0; r < COUNT_OF(rows); r++)
		{
			check_route(counts[i], 1, rows[r]);
			check_route(counts[i], counts[i] < 2 ? 1 : 2, rows[r]);
			check_route(counts[i], counts[i], rows[r] < 10 ? rows[r] : 10);
		}
}

/* Experts are distinct and in range even where no number is the largest. */
static void
test_route_of_no_numbers(void **state)
{
	float logits[2][5] = {{NAN, NAN, NAN, NAN, NAN}, {0, NAN, 1, 2, -INFINITY}};
	float *memory = upload(logits, sizeof logits);
	int32_t *experts = device_alloc(2 * 3 * 4);
	float *weights = device_alloc(2 * 3 * 4);
	int32_t got[2][3];
	ft_mat none = ft_mat_make(memory, FT_F32, 2, 5);

	(void) state;
	must(ops->route(stream, experts, weights, none, 3));
	download(got, experts, sizeof got);
	for (int t = 0; t < 2; t++)
	{
		unsigned seen = 0;

		for (int j = 0; j < 3; j++)
		{
			assert_true(got[t][j] >= 0 && got[t][j] < 5);
			seen |= 1u << got[t][j];
		}
		assert_int_equal(__builtin_popcount(seen), 3);
	}
	assert_int_equal(ops->route(stream, experts, weights, none, 6), FT_INVALID);
	assert_int_equal(ops->route(stream, experts, weights, none, 0), FT_INVALID);
	device_free(memory);
	device_free(experts);
	device_free(weights);
}

/* Against finite differences of Σ dw · w in f64, the choice held. */
static void
test_route_grad(void **state)
{
	static const int counts[] = {1, 2, 5, 8, 40};
	enum
	{
		ROWS = 7
	};

	(void) state;
	for (int i = 0; i < COUNT_OF(counts); i++)
		for (int k = 1; k <= counts[i] && k <= 3; k++)
		{
			int n = counts[i];
			tensor logits = tensor_random(ROWS, n, 2, FT_F32);
			tensor dlogits = tensor_random(ROWS, n, 1, FT_F32);
			tensor dweights = tensor_random(ROWS, k, 0, FT_F32);
			int32_t *experts = device_alloc((size_t) (ROWS * k) * 4);
			float *weights = device_alloc((size_t) (ROWS * k) * 4);
			double *reference = calloc((size_t) (ROWS * n), sizeof *reference);

			must(ops->route(stream, experts, weights, logits.mat, k));
			must(ops->route_grad(stream, dlogits.mat, dweights.mat.data, weights, experts, k));
			for (int64_t at = 0; at < ROWS * n; at++)
			{
				int64_t t = at / n;
				int chosen[FT_MAX_EXPERTS];
				double w[2][FT_MAX_EXPERTS];

				for (int side = 0; side < 2; side++)
				{
					logits.value[at] += side == 0 ? 1e-6 : -2e-6;
					route_by_hand(logits.value + t * n, n, k, chosen, w[side]);
				}
				logits.value[at] += 1e-6;
				for (int j = 0; j < k; j++)
					reference[at] += dweights.value[t * k + j] * (w[0][j] - w[1][j]) / 2e-6;
			}
			{
				double *result = tensor_read(&dlogits);
				double norm = 0;

				for (int64_t at = 0; at < ROWS * n; at++)
				{
					assert_true(fabs(result[at] - reference[at]) < 1e-5);
					norm += fabs(result[at]);
				}
				assert_true(k == 1 ? norm == 0 : norm > 0);
				free(result);
			}
			free(reference);
			device_free(experts);
			device_free(weights);
			tensor_free(&logits);
			tensor_free(&dlogits);
			tensor_free(&dweights);
		}
}

/* --- places --- */

static void
check_group(spread how, int64_t count, int n, int k)
{
	int64_t slots = count * k;
	size_t bytes = (size_t) slots * 4;
	int32_t *chosen = spread_slots(how, count, k, n);
	int32_t *experts = upload(chosen, bytes);
	int32_t *starts = device_alloc(((size_t) n + 1) * 4);
	int32_t *place = device_alloc(bytes);
	int32_t *row = device_alloc(bytes);
	int32_t expected_starts[FT_MAX_EXPERTS + 1];
	int32_t got_starts[FT_MAX_EXPERTS + 1];
	int32_t *expected = calloc((size_t) slots + 1, 4);
	int32_t *got = calloc((size_t) slots + 1, 4);
	int32_t *rows = calloc((size_t) slots + 1, 4);

	must(ops->group_rows(stream, starts, place, row, experts, count, k, n));
	places_by_hand(chosen, slots, n, expected_starts, expected);
	download(got_starts, starts, ((size_t) n + 1) * 4);
	download(got, place, bytes);
	download(rows, row, bytes);
	assert_memory_equal(got_starts, expected_starts, ((size_t) n + 1) * 4);
	assert_memory_equal(got, expected, bytes);
	for (int64_t s = 0; s < slots; s++)
		assert_int_equal(rows[expected[s]], s / k);
	free(chosen);
	free(expected);
	free(got);
	free(rows);
	device_free(experts);
	device_free(starts);
	device_free(place);
	device_free(row);
}

static void
test_group_rows(void **state)
{
	static const int64_t counts[] = {0, 1, 2, 19, 256, 1000};
	static const int experts_of[] = {1, 2, 5};

	(void) state;
	for (int how = 0; how < N_SPREADS; how++)
	{
		for (int c = 0; c < COUNT_OF(counts); c++)
			for (int i = 0; i < COUNT_OF(experts_of); i++)
				for (int k = 1; k <= 3; k++)
					check_group((spread) how, counts[c], experts_of[i], k);
		check_group((spread) how, 0, FT_MAX_EXPERTS, 8);
		check_group((spread) how, 40, FT_MAX_EXPERTS, 8);
	}
}

static void
test_group_refusals(void **state)
{
	int32_t bad = 5;
	int32_t *experts = upload(&bad, sizeof bad);
	int32_t *memory = device_alloc(64);

	(void) state;
	assert_int_equal(
		ops->group_rows(stream, memory, memory, memory, experts, 1, 1, FT_MAX_EXPERTS + 1),
		FT_INVALID);
	assert_int_equal(ops->group_rows(stream, memory, memory, memory, experts, 1 << 30, 4, 5),
					 FT_INVALID);
	if (strcmp(ops->name, "cpu") == 0)
		assert_int_equal(ops->group_rows(stream, memory, memory, memory, experts, 1, 1, 5),
						 FT_INVALID);
	device_free(experts);
	device_free(memory);
}

/* --- products --- */

/* n experts of two parts, of types that differ among them. */
typedef struct expert_weights
{
	int n;
	int64_t rows;
	int64_t cols;
	ft_weight *weight[FT_MAX_EXPERTS];
	double *value;               /* [n][rows][cols] */
	bool rounds[FT_MAX_EXPERTS]; /* its input */
} expert_weights;

static expert_weights
experts_random(int n, int64_t cols, int64_t first, int64_t second, int n_types)
{
	expert_weights w = {.n = n, .rows = first + second, .cols = cols};

	w.value = calloc((size_t) (n * w.rows * cols), sizeof *w.value);
	for (int e = 0; e < n; e++)
	{
		stored parts[2];
		double *to = w.value + e * w.rows * cols;

		for (int i = 0; i < 2; i++)
		{
			ft_dtype type = stored_types[(n + (e + i) % n_types) % n_stored_types];

			if (cols % ft_dtype_get(type)->block_values != 0)
				type = cols % 32 != 0 ? FT_BF16 : FT_Q8_0;
			parts[i] = stored_random(type, i == 0 ? first : second, cols);
			memcpy(to, parts[i].value, (size_t) (parts[i].mat.rows * cols) * sizeof *to);
			to += parts[i].mat.rows * cols;
		}
		must(ops->weight_create(device, (ft_mat[]){parts[0].mat, parts[1].mat}, 2, FT_USE_SERVE,
								&w.weight[e]));
		w.rounds[e] = serving_rounds(parts, 2);
		stored_free(&parts[0]);
		stored_free(&parts[1]);
	}
	return w;
}

static void
experts_free(expert_weights *w)
{
	for (int e = 0; e < w->n; e++)
		ops->weight_free(w->weight[e]);
	free(w->value);
}

static void
check_linear_experts(const expert_weights *w, spread how, int64_t rows, ft_dtype in, ft_dtype out)
{
	int32_t *experts = spread_slots(how, rows, 1, w->n);
	int32_t starts[FT_MAX_EXPERTS + 1];
	int32_t *place = calloc((size_t) rows + 1, sizeof *place);
	int32_t *device_starts;
	tensor x = tensor_random(rows, w->cols, 3, in);
	tensor y = tensor_random(rows, w->rows, 5, out);
	tensor alone = tensor_zero(rows, w->rows, 0, out);

	places_by_hand(experts, rows, w->n, starts, place);
	device_starts = upload(starts, ((size_t) w->n + 1) * 4);
	must(ops->linear_experts(stream, y.mat, x.mat, w->weight, w->n, device_starts));
	for (int e = 0; e < w->n; e++)
		for (int64_t p = starts[e]; p < starts[e + 1]; p++)
		{
			if (w->rounds[e])
				round_blocks(x.value + p * w->cols, w->cols);
			for (int64_t i = 0; i < w->rows; i++)
			{
				double sum = 0;

				for (int64_t k = 0; k < w->cols; k++)
					sum += x.value[p * w->cols + k] * w->value[(e * w->rows + i) * w->cols + k];
				y.value[p * w->rows + i] = sum;
			}
			/* a row does not depend on what stands beside it */
			must(ops->linear(stream, ft_mat_rows(alone.mat, p, 1), ft_mat_rows(x.mat, p, 1),
							 w->weight[e], 0, true));
		}
	check_tensor("linear_experts", &y, y.value);
	check_same_bits("linear_experts of one row", &y, &alone);
	free(experts);
	free(place);
	device_free(device_starts);
	tensor_free(&x);
	tensor_free(&y);
	tensor_free(&alone);
}

static void
test_linear_experts(void **state)
{
	static const struct
	{
		int n;
		int64_t cols;
		int64_t first;
		int64_t second;
		int n_types;
	} shapes[] = {{1, 37, 5, 1, 1}, {5, 256, 33, 48, 1}, {5, 288, 17, 17, 9}, {20, 64, 16, 3, 3}};
	static const int64_t rows[] = {0, 1, 3, 21, 90};

	(void) state;
	for (int i = 0; i < COUNT_OF(shapes); i++)
	{
		expert_weights w = experts_random(shapes[i].n, shapes[i].cols, shapes[i].first,
										  shapes[i].second, shapes[i].n_types);

		for (int how = 0; how < N_SPREADS; how++)
			for (int r = 0; r < COUNT_OF(rows); r++)
			{
				check_linear_experts(&w, (spread) how, rows[r], FT_F32, FT_F32);
				check_linear_experts(&w, (spread) how, rows[r], FT_BF16, FT_F32);
				check_linear_experts(&w, (spread) how, rows[r], FT_BF16, FT_BF16);
			}
		experts_free(&w);
	}
}

/* --- the sum of a row's experts, and its gradient --- */

typedef struct slots
{
	int64_t rows;
	int k;
	int32_t *place; /* device */
	int32_t *host_place;
	tensor weights; /* [rows, k] */
} slots;

static slots
slots_random(int64_t rows, int k, int n)
{
	slots s = {.rows = rows, .k = k};
	int32_t *experts = spread_slots(AT_RANDOM, rows, k, n);
	int32_t starts[FT_MAX_EXPERTS + 1];

	s.host_place = calloc((size_t) (rows * k) + 1, sizeof *s.host_place);
	places_by_hand(experts, rows * k, n, starts, s.host_place);
	s.place = upload(s.host_place, (size_t) (rows * k) * 4);
	s.weights = tensor_random(rows, k, 0, FT_F32);
	free(experts);
	return s;
}

static void
slots_free(slots *s)
{
	device_free(s->place);
	free(s->host_place);
	tensor_free(&s->weights);
}

static void
check_combine(const slots *s, int64_t cols, ft_dtype in, ft_dtype out, bool weighted)
{
	tensor x = tensor_random(s->rows * s->k, cols, 2, in);
	tensor y = tensor_random(s->rows, cols, 1, out);

	for (int64_t at = 0; at < s->rows * cols; at++)
	{
		y.value[at] = 0;
		for (int j = 0; j < s->k; j++)
		{
			int64_t slot = at / cols * s->k + j;
			double v = x.value[s->host_place[slot] * cols + at % cols];

			y.value[at] += weighted ? s->weights.value[slot] * v : v;
		}
	}
	must(ops->combine_rows(stream, y.mat, x.mat, s->place, weighted ? s->weights.mat.data : NULL,
						   s->k));
	check_tensor("combine_rows", &y, y.value);
	tensor_free(&x);
	tensor_free(&y);
}

static void
check_weigh_grad(const slots *s, int64_t cols, ft_dtype in)
{
	int64_t n = s->rows * s->k;
	tensor x = tensor_random(n, cols, 2, in);
	tensor dx = tensor_random(n, cols, 3, FT_F32);
	tensor dweights = tensor_random(s->rows, s->k, 0, FT_F32);
	tensor weighted = tensor_random(n, cols, 1, in);
	double *size = calloc((size_t) n + 1, sizeof *size); /* of what is summed: it may cancel */
	double *sums;
	ft_mat none = {0};

	for (int64_t i = 0; i < n; i++)
	{
		int64_t p = s->host_place[i];

		dweights.value[i] = 0;
		for (int64_t c = 0; c < cols; c++)
		{
			dweights.value[i] += x.value[p * cols + c] * dx.value[p * cols + c];
			size[i] += fabs(x.value[p * cols + c] * dx.value[p * cols + c]);
			dx.value[p * cols + c] *= s->weights.value[i];
			weighted.value[p * cols + c] = s->weights.value[i] * x.value[p * cols + c];
		}
	}
	must(ops->weigh_rows_grad(stream, dweights.mat.data, dx.mat, cols % 2 ? weighted.mat : none,
							  x.mat, s->place, s->weights.mat.data));
	sums = tensor_read(&dweights);
	for (int64_t i = 0; i < n; i++)
		assert_true(fabs(sums[i] - dweights.value[i]) <= 1e-6 * size[i]);
	free(sums);
	free(size);
	check_tensor("weighted gradient", &dx, dx.value);
	if (cols % 2)
		check_tensor("weighted input", &weighted, weighted.value);
	tensor_free(&weighted);
	tensor_free(&x);
	tensor_free(&dx);
	tensor_free(&dweights);
}

static void
test_combine_and_gradient(void **state)
{
	static const int64_t widths[] = {1, 23, 67, 1100};
	static const int64_t counts[] = {0, 1, 37};

	(void) state;
	for (int c = 0; c < COUNT_OF(counts); c++)
		for (int k = 1; k <= 3; k++)
		{
			slots s = slots_random(counts[c], k, 5);

			for (int i = 0; i < COUNT_OF(widths); i++)
				for (int types = 0; types < 4; types++)
				{
					ft_dtype in = types & 1 ? FT_BF16 : FT_F32;

					check_combine(&s, widths[i], in, types & 2 ? FT_BF16 : FT_F32, true);
					check_combine(&s, widths[i], in, types & 2 ? FT_BF16 : FT_F32, false);
					if (types < 2)
						check_weigh_grad(&s, widths[i], in);
				}
			slots_free(&s);
		}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_route),
		cmocka_unit_test(test_route_of_no_numbers),
		cmocka_unit_test(test_route_grad),
		cmocka_unit_test(test_group_rows),
		cmocka_unit_test(test_group_refusals),
		cmocka_unit_test(test_linear_experts),
		cmocka_unit_test(test_combine_and_gradient),
	};

	return run_variants("experts", tests, COUNT_OF(tests));
}
