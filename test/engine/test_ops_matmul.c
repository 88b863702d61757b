/*
 * test_ops_matmul.c: products: linear for training and for serving, its input
 * gradient, plain products, LoRA segments.
 */
#include "test_ops_common.h"

#include "test_ops_quant.h"

/* c = alpha · op(a) · op(b) + beta · c in f64. */
UNEXAMINED static void
multiply(double *c, const double *a, bool ta, const double *b, bool tb, int64_t m, int64_t n,
		 int64_t k, double alpha, double beta)
{
	for (int64_t i = 0; i < m; i++)
		for (int64_t j = 0; j < n; j++)
		{
			const double *x = ta ? a + i : a + i * k;
			const double *y = tb ? b + j * k : b + j;
			int64_t x_step = ta ? m : 1;
			int64_t y_step = tb ? 1 : n;
			double sum = 0;
			double odd = 0;

			for (int64_t t = 0; t + 1 < k; t += 2)
			{
				sum += x[t * x_step] * y[t * y_step];
				odd += x[(t + 1) * x_step] * y[(t + 1) * y_step];
			}
			if (k % 2 != 0)
				sum += x[(k - 1) * x_step] * y[(k - 1) * y_step];
			sum += odd;
			c[i * n + j] = alpha * sum + (beta != 0 ? beta * c[i * n + j] : 0);
		}
}

static void
check_matmul(int64_t m, int64_t n, int64_t k, ft_dtype in, ft_dtype out, int which, float alpha,
			 float beta)
{
	bool ta = which & 1;
	bool tb = which & 2;
	int64_t pad = which & 4 ? 7 : 0;
	tensor a = ta ? tensor_random(k, m, pad, in) : tensor_random(m, k, pad, in);
	tensor b = tb ? tensor_random(n, k, 2 * pad, in) : tensor_random(k, n, 2 * pad, in);
	tensor c = beta != 0 ? tensor_random(m, n, pad, out) : tensor_zero(m, n, pad, out);
	tensor again = tensor_zero(m, n, pad, out);

	memcpy(again.value, c.value, (size_t) (m * n) * sizeof *c.value);
	tensor_upload(&again);
	must(ops->matmul(stream, c.mat, a.mat, ta, b.mat, tb, alpha, beta));
	must(ops->matmul(stream, again.mat, a.mat, ta, b.mat, tb, alpha, beta));
	multiply(c.value, a.value, ta, b.value, tb, m, n, k, alpha, beta);
	check_tensor("matmul", &c, c.value);
	check_same_bits("matmul, twice", &c, &again);
	tensor_free(&a);
	tensor_free(&b);
	tensor_free(&c);
	tensor_free(&again);
}

static void
test_matmul(void **state)
{
	static const int64_t shapes[][3] = {
		{1, 1, 1},
		{3, 5, 7},
		{17, 33, 65},
		{64, 48, 96},
		{65, 16, 200},
		{16, 130, 257},
		{1, 300, 576},
		{129, 97, 16},
		{0, 5, 3},
		{5, 0, 3},
		{4, 5, 0},
		/* several passes; a narrow result; rows whole pages apart */
		{530, 80, 140},
		{600, 20, 40},
		{20, 80, 1024}};

	(void) state;
	for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
		for (int which = 0; which < 8; which++)
		{
			const int64_t *s = shapes[i];

			check_matmul(s[0], s[1], s[2], FT_F32, FT_F32, which, 1, 0);
			check_matmul(s[0], s[1], s[2], FT_F32, FT_F32, which, 0.5f, 1);
			check_matmul(s[0], s[1], s[2], FT_F32, FT_BF16, which, 1, 0);
			check_matmul(s[0], s[1], s[2], FT_BF16, FT_F32, which, 2, -0.25f);
			check_matmul(s[0], s[1], s[2], FT_BF16, FT_BF16, which, 1, 0);
		}
}

/* A weight of three parts of different stored types, its values stacked in f64. */
typedef struct stacked
{
	stored part[3];
	double *value;
	int64_t rows;
	int64_t cols;
} stacked;

static stacked
stacked_random(int first_type, int64_t cols, const int64_t *rows)
{
	stacked s = {.cols = cols};
	int64_t at = 0;

	for (int i = 0; i < 3; i++)
		s.rows += rows[i];
	s.value = calloc((size_t) (s.rows * cols) + 1, sizeof *s.value);
	for (int i = 0; i < 3; i++)
	{
		ft_dtype dtype = stored_types[(first_type + i) % n_stored_types];

		if (cols % ft_dtype_get(dtype)->block_values != 0)
			dtype = cols % 32 != 0 ? FT_BF16 : FT_Q8_0;
		s.part[i] = stored_random(dtype, rows[i], cols);
		memcpy(s.value + at, s.part[i].value, (size_t) (rows[i] * cols) * sizeof *s.value);
		at += rows[i] * cols;
	}
	return s;
}

static ft_weight *
stacked_weight(const stacked *s, unsigned use)
{
	ft_mat parts[3] = {s->part[0].mat, s->part[1].mat, s->part[2].mat};
	ft_weight *w;

	must(ops->weight_create(device, parts, 3, use, &w));
	assert_true(ops->weight_bytes(w) > 0);
	return w;
}

static void
stacked_free(stacked *s)
{
	for (int i = 0; i < 3; i++)
		stored_free(&s->part[i]);
	free(s->value);
}

/* The values that a training product sees: rounded where the device computes in bf16. */
static double *
training_values(const stacked *s)
{
	double *value = malloc((size_t) (s->rows * s->cols) * sizeof *value);

	for (int64_t i = 0; i < s->rows * s->cols; i++)
		value[i] = round_as((float) s->value[i], info.compute_dtype);
	return value;
}

static const int64_t part_rows[][3] = {{16, 16, 32}, {5, 1, 17}, {48, 33, 64}};
static const int64_t part_cols[] = {256, 37, 288};
static const int64_t row_counts[] = {0, 1, 3, 8, 17, 65, 130};

/* Sanitizers see many rows with the first types alone. */
static bool
left_out(int type, int64_t rows)
{
	return SANITIZED && type > 1 && rows > 17;
}

#define COUNT_OF(array) ((int) (sizeof(array) / sizeof(array)[0]))

/* Does serving round its input? */
static bool
rounds(const stacked *s)
{
	return serving_rounds(s->part, 3);
}

/* One input type; results f32, f32 added to what is there, and bf16. */
static void
check_linear(const stacked *s, const double *value, const ft_weight *w, int64_t rows, ft_dtype in,
			 bool row_fixed)
{
	const char *what = row_fixed ? "linear, serving" : "linear, training";
	tensor x = tensor_random(rows, s->cols, 3, in);
	tensor y = tensor_zero(rows, s->rows, 5, FT_F32);
	tensor sum = tensor_random(rows, s->rows, 0, FT_F32);
	tensor y16 = tensor_zero(rows, s->rows, 2, FT_BF16);

	if (row_fixed && rounds(s))
		round_blocks(x.value, rows * s->cols);
	multiply(y.value, x.value, false, value, true, rows, s->rows, s->cols, 1, 0);
	must(ops->linear(stream, y.mat, x.mat, w, 0, row_fixed));
	check_tensor(what, &y, y.value);
	must(ops->linear(stream, y16.mat, x.mat, w, 0, row_fixed));
	check_tensor(what, &y16, y.value);
	for (int64_t i = 0; i < rows * s->rows; i++)
		sum.value[i] += y.value[i];
	must(ops->linear(stream, sum.mat, x.mat, w, 1, row_fixed));
	check_tensor(what, &sum, sum.value);
	tensor_free(&x);
	tensor_free(&y);
	tensor_free(&sum);
	tensor_free(&y16);
}

static void
test_linear_serve(void **state)
{
	(void) state;
	for (int type = 0; type < n_stored_types; type++)
		for (int p = 0; p < COUNT_OF(part_rows); p++)
			for (int c = 0; c < COUNT_OF(part_cols); c++)
			{
				stacked s = stacked_random(type, part_cols[c], part_rows[p]);
				ft_weight *w = stacked_weight(&s, FT_USE_SERVE);

				for (int r = 0; r < COUNT_OF(row_counts); r++)
				{
					if (left_out(type, row_counts[r]))
						continue;
					check_linear(&s, s.value, w, row_counts[r], FT_F32, true);
					check_linear(&s, s.value, w, row_counts[r], FT_BF16, true);
				}
				ops->weight_free(w);
				stacked_free(&s);
			}
}

/* In bf16 numerics an f32 input may be rounded, so only bf16 inputs are judged as exact there. */
static void
test_linear_train(void **state)
{
	bool bf16 = info.compute_dtype == FT_BF16;

	(void) state;
	for (int type = 0; type < n_stored_types; type++)
		for (int p = 0; p < COUNT_OF(part_rows); p++)
			for (int c = 0; c < COUNT_OF(part_cols); c++)
			{
				stacked s = stacked_random(type, part_cols[c], part_rows[p]);
				double *value = training_values(&s);
				ft_weight *w = stacked_weight(&s, FT_USE_TRAIN);

				for (int r = 0; r < COUNT_OF(row_counts); r++)
				{
					int64_t rows = left_out(type, row_counts[r]) ? 2 : row_counts[r];
					tensor dy = tensor_random(rows, s.rows, 2, info.compute_dtype);
					tensor dx = tensor_random(rows, s.cols, 1, FT_F32);
					tensor dx16 = tensor_zero(rows, s.cols, 1, FT_BF16);

					check_linear(&s, value, w, rows, FT_BF16, false);
					if (!bf16)
						check_linear(&s, value, w, rows, FT_F32, false);
					multiply(dx16.value, dy.value, false, value, false, rows, s.cols, s.rows, 1, 0);
					for (int64_t i = 0; i < rows * s.cols; i++)
						dx.value[i] += dx16.value[i];
					must(ops->linear_grad_input(stream, dx.mat, dy.mat, w, 1));
					check_tensor("linear_grad_input", &dx, dx.value);
					must(ops->linear_grad_input(stream, dx16.mat, dy.mat, w, 0));
					check_tensor("linear_grad_input to bf16", &dx16, dx16.value);
					tensor_free(&dy);
					tensor_free(&dx);
					tensor_free(&dx16);
				}
				ops->weight_free(w);
				free(value);
				stacked_free(&s);
			}
}

/* A matrix of the caller's is a weight for training, and row-fixed, too; what it has changed to
 * counts. */
static void
test_linear_view(void **state)
{
	static const ft_dtype types[] = {FT_F32, FT_BF16};

	(void) state;
	for (int type = 0; type < 2; type++)
		for (int c = 0; c < COUNT_OF(part_cols); c++)
		{
			tensor m = tensor_random(39, part_cols[c], 0, types[type]);
			tensor other = tensor_random(39, part_cols[c], 0, types[type]);
			stacked s = {.rows = 39, .cols = part_cols[c]};
			ft_weight *w;

			must(ops->weight_view(device, m.mat, &w));
			must(ops->copy(stream, m.mat.data, other.mat.data,
						   (size_t) (39 * part_cols[c]) * (types[type] == FT_F32 ? 4 : 2)));
			for (int r = 0; r < COUNT_OF(row_counts); r++)
			{
				tensor dy = tensor_random(row_counts[r], 39, 2, types[type]);
				tensor dx = tensor_zero(row_counts[r], part_cols[c], 1, FT_F32);

				check_linear(&s, other.value, w, row_counts[r], types[type], false);
				check_linear(&s, other.value, w, row_counts[r], types[type], true);
				multiply(dx.value, dy.value, false, other.value, false, row_counts[r], s.cols,
						 s.rows, 1, 0);
				must(ops->linear_grad_input(stream, dx.mat, dy.mat, w, 0));
				check_tensor("linear_grad_input of a view", &dx, dx.value);
				tensor_free(&dy);
				tensor_free(&dx);
			}
			ops->weight_free(w);
			m.mat.ld++;
			assert_int_equal(ops->weight_view(device, m.mat, &w), FT_INVALID);
			m.mat.ld--;
			m.mat.dtype = FT_F16;
			assert_int_equal(ops->weight_view(device, m.mat, &w), FT_UNSUPPORTED);
			m.mat.dtype = types[type];
			tensor_free(&m);
			tensor_free(&other);
		}
}

/* The gradient of the head: softmax less the target, times words that have much in common, so
 * that a sum over the whole vocabulary nearly cancels.  Its rounding stays that of short sums.
 */
static void
test_gradient_over_a_vocabulary(void **state)
{
	enum
	{
		ROWS = 5,
		WORDS = 49152,
		COLUMNS = 32
	};
	tensor words = tensor_random(WORDS, COLUMNS, 0, FT_F32);
	tensor dy = tensor_random(ROWS, WORDS, 0, FT_F32);
	tensor dx = tensor_zero(ROWS, COLUMNS, 0, FT_F32);
	float result[ROWS * COLUMNS];
	ft_weight *w;

	(void) state;
	if (strcmp(info.name, "cpu") != 0 || info.compute_dtype != FT_F32)
	{
		print_message("skipped: not a CPU that computes in f32\n");
		tensor_free(&words);
		tensor_free(&dy);
		tensor_free(&dx);
		skip();
	}
	for (int64_t i = 0; i < (int64_t) WORDS * COLUMNS; i++)
		words.value[i] = (float) (1 + 0.1 * words.value[i]);
	for (int64_t i = 0; i < ROWS; i++)
	{
		double *row = dy.value + i * WORDS;
		double sum = 0;

		for (int64_t j = 0; j < WORDS; j++)
			sum += row[j] = exp(row[j]);
		for (int64_t j = 0; j < WORDS; j++)
			row[j] = (float) (row[j] / sum - (j == 1000 * i ? 1 : 0));
	}
	tensor_upload(&words);
	tensor_upload(&dy);
	multiply(dx.value, dy.value, false, words.value, false, ROWS, COLUMNS, WORDS, 1, 0);
	/* a weight laid out for training, one in its own layout, and a plain product */
	for (int way = 0; way < 3; way++)
	{
		double error = 0;
		double size = 0;

		if (way == 2)
			must(ops->matmul(stream, dx.mat, dy.mat, false, words.mat, false, 1, 0));
		else
		{
			if (way == 1)
				must(ops->weight_view(device, words.mat, &w));
			else
				must(ops->weight_create(device, &words.mat, 1, FT_USE_TRAIN, &w));
			must(ops->linear_grad_input(stream, dx.mat, dy.mat, w, 0));
			ops->weight_free(w);
		}
		must(ops->copy_to_host(stream, result, dx.mat.data, sizeof result));
		must(ops->stream_synchronize(stream));
		for (int i = 0; i < ROWS * COLUMNS; i++)
		{
			error += (result[i] - dx.value[i]) * (result[i] - dx.value[i]);
			size += dx.value[i] * dx.value[i];
		}
		print_message("relative error of a gradient over %d words: %.2g\n", WORDS,
					  sqrt(error / size));
		assert_true(error <= 1e-10 * size);
	}
	tensor_free(&words);
	tensor_free(&dy);
	tensor_free(&dx);
}

/* Columns of weights that begin with this type: whole blocks. */
static int64_t
row_fixed_cols(int type)
{
	return ft_dtype_get(stored_types[type])->block_values == 256 ? 256 : 288;
}

/* A row's result has the same bits whether it is alone or the first, middle or last of many. */
static void
check_row_fixed(int type, ft_dtype in)
{
	static const int64_t rows[3] = {40, 24, 17};
	enum
	{
		ROWS = SANITIZED ? 33 : 70
	};
	stacked s = stacked_random(type, row_fixed_cols(type), rows);
	ft_weight *w = stacked_weight(&s, FT_USE_SERVE);
	tensor x = tensor_random(ROWS, s.cols, 0, in);
	tensor all = tensor_zero(ROWS, s.rows, 0, FT_F32);
	tensor some = tensor_zero(ROWS, s.rows, 0, FT_F32);
	double *want;

	must(ops->linear(stream, all.mat, x.mat, w, 0, true));
	want = tensor_read(&all);
	for (int64_t m = 1; m <= ROWS; m++)
		for (int64_t first = 0; first + m <= ROWS; first += m < 8 ? 11 : ROWS - m + 1)
		{
			ft_mat part = ft_mat_rows(some.mat, 0, m);
			double *got;

			must(ops->linear(stream, part, ft_mat_rows(x.mat, first, m), w, 0, true));
			got = tensor_read(&some);
			if (memcmp(got, want + first * s.rows, (size_t) (m * s.rows) * sizeof *got) != 0)
				fail_msg("row of %d changes with %lld rows from %lld on", stored_types[type],
						 (long long) m, (long long) first);
			free(got);
		}
	free(want);
	tensor_free(&x);
	tensor_free(&all);
	tensor_free(&some);
	ops->weight_free(w);
	stacked_free(&s);
}

static void
test_row_fixed(void **state)
{
	(void) state;
	for (int type = 0; type < n_stored_types; type++)
	{
		check_row_fixed(type, FT_F32);
		check_row_fixed(type, FT_BF16);
	}
}

/* What the first instruction set has made of each type; the others make the same of it, portable
 * code but for its lack of fused multiply-adds. */
static void
test_instruction_sets_agree(void **state)
{
	static const int64_t rows[3] = {40, 24, 17};
	static double *first[sizeof stored_types / sizeof *stored_types];
	enum
	{
		ROWS = 9
	};

	(void) state;
	if (strcmp(info.name, "cpu") != 0 || info.numerics != FT_NUMERICS_FAST)
		return;
	random_state = 11;
	for (int type = 0; type < n_stored_types; type++)
	{
		stacked s = stacked_random(type, row_fixed_cols(type), rows);
		ft_weight *w = stacked_weight(&s, FT_USE_SERVE);
		tensor x = tensor_random(ROWS, s.cols, 0, FT_F32);
		tensor y = tensor_zero(ROWS, s.rows, 0, FT_F32);
		double *got;

		must(ops->linear(stream, y.mat, x.mat, w, 0, true));
		got = tensor_read(&y);
		if (first[type] == NULL)
			first[type] = got;
		else
		{
			check_values("linear, another instruction set", got, first[type], ROWS * s.rows, 1e-12);
			if (rounds(&s) && strstr(info.features, "portable") == NULL)
				assert_memory_equal(got, first[type], (size_t) (ROWS * s.rows) * sizeof(double));
			free(got);
		}
		tensor_free(&x);
		tensor_free(&y);
		ops->weight_free(w);
		stacked_free(&s);
	}
}

/* What is no number stays none. */
static void
test_not_a_number(void **state)
{
	static const int64_t rows[3] = {16, 16, 16};
	static const float bad[] = {NAN, INFINITY};

	(void) state;
	for (int type = 0; type < n_stored_types; type++)
		for (int i = 0; i < 2; i++)
		{
			stacked s = stacked_random(type, row_fixed_cols(type), rows);
			ft_weight *w = stacked_weight(&s, FT_USE_SERVE);
			tensor x = tensor_random(2, s.cols, 0, FT_F32);
			tensor y = tensor_zero(2, s.rows, 0, FT_F32);
			double *got;

			x.value[s.cols - 5] = bad[i];
			tensor_upload(&x);
			must(ops->linear(stream, y.mat, x.mat, w, 0, true));
			got = tensor_read(&y);
			for (int64_t j = 0; j < s.rows; j++)
				assert_true(!isfinite(got[j]) && isfinite(got[s.rows + j]));
			free(got);
			tensor_free(&x);
			tensor_free(&y);
			ops->weight_free(w);
			stacked_free(&s);
		}
}

static void
lora_reference(double *y, int64_t ldy, const double *x, int64_t in, const ft_lora_segment *s,
			   const double *a, const double *b)
{
	for (int64_t i = s->row; i < s->row + s->rows; i++)
		for (int r = 0; r < s->rank; r++)
		{
			double low = 0;

			for (int64_t k = 0; k < in; k++)
				low += x[i * in + k] * a[r * in + k];
			for (int64_t j = 0; j < s->out; j++)
				y[i * ldy + s->column + j] += s->scale * low * b[j * s->rank + r];
		}
}

static void
check_lora(int64_t in, int64_t out, ft_dtype dtype, ft_dtype adapter)
{
	enum
	{
		ROWS = 41
	};
	static const int64_t runs[][4] = {{0, 1, 0, 0}, {1, 33, 0, 0}, {36, 5, 3, 0}, {38, 0, 0, 0}};
	static const int ranks[] = {16, 7, 40, 1};
	tensor x = tensor_random(ROWS, in, 1, dtype);
	tensor y = tensor_random(ROWS, out, 2, dtype);
	tensor a[4];
	tensor b[4];
	ft_lora_segment segments[4];

	for (int i = 0; i < 4; i++)
	{
		int64_t columns = out - runs[i][2];

		a[i] = tensor_random(ranks[i], in, 0, adapter);
		b[i] = tensor_random(columns, ranks[i], 0, adapter);
		segments[i] =
			(ft_lora_segment){runs[i][0], runs[i][1], runs[i][2],    columns,      ranks[i],
							  0.5f,       adapter,    a[i].mat.data, b[i].mat.data};
		lora_reference(y.value, out, x.value, in, &segments[i], a[i].value, b[i].value);
	}
	must(ops->lora(stream, y.mat, x.mat, segments, 4));
	check_tensor("lora", &y, y.value);
	segments[0].rows = ROWS + 1;
	assert_int_equal(ops->lora(stream, y.mat, x.mat, segments, 1), FT_INVALID);
	for (int i = 0; i < 4; i++)
	{
		tensor_free(&a[i]);
		tensor_free(&b[i]);
	}
	tensor_free(&x);
	tensor_free(&y);
}

static void
test_lora(void **state)
{
	(void) state;
	check_lora(64, 48, FT_F32, FT_F32);
	check_lora(77, 53, FT_F32, FT_F32);
	check_lora(77, 131, FT_F32, FT_BF16);
	check_lora(576, 200, FT_F32, FT_F32);
	check_lora(96, 50, FT_BF16, FT_F32);
	check_lora(96, 50, FT_BF16, FT_BF16);
}

static void
test_lora_row_fixed(void **state)
{
	enum
	{
		ROWS = 70,
		IN = 200,
		OUT = 65,
		RANK = 16
	};
	tensor x = tensor_random(ROWS, IN, 0, FT_F32);
	tensor a = tensor_random(RANK, IN, 0, FT_F32);
	tensor b = tensor_random(OUT, RANK, 0, FT_F32);
	tensor all = tensor_zero(ROWS, OUT, 0, FT_F32);
	ft_lora_segment segment = {0, ROWS, 0, OUT, RANK, 1.5f, FT_F32, a.mat.data, b.mat.data};
	double *want;

	(void) state;
	must(ops->lora(stream, all.mat, x.mat, &segment, 1));
	want = tensor_read(&all);
	for (int64_t m = 1; m <= ROWS; m++)
	{
		tensor some = tensor_zero(m, OUT, 0, FT_F32);
		double *got;

		segment.rows = m;
		must(ops->lora(stream, some.mat, ft_mat_rows(x.mat, ROWS - m, m), &segment, 1));
		got = tensor_read(&some);
		assert_memory_equal(got, want + (ROWS - m) * OUT, (size_t) (m * OUT) * sizeof *got);
		free(got);
		tensor_free(&some);
	}
	free(want);
	tensor_free(&x);
	tensor_free(&a);
	tensor_free(&b);
	tensor_free(&all);
}

static void
test_refusals(void **state)
{
	stored m = stored_random(FT_Q4_0, 4, 64);
	stored odd = stored_random(FT_F32, 4, 33);
	tensor x = tensor_random(2, 64, 0, FT_F32);
	tensor y = tensor_zero(2, 4, 0, FT_F32);
	tensor y16 = tensor_zero(2, 4, 0, FT_BF16);
	ft_weight *w;

	(void) state;
	must(ops->weight_create(device, &m.mat, 1, FT_USE_SERVE, &w));
	assert_int_equal(ops->linear(stream, y.mat, x.mat, w, 0, false), FT_UNSUPPORTED);
	assert_int_equal(ops->linear_grad_input(stream, x.mat, y.mat, w, 0), FT_UNSUPPORTED);
	assert_int_equal(ops->linear(stream, y.mat, x.mat, w, 0.5f, true), FT_INVALID);
	assert_int_equal(ops->linear(stream, y16.mat, x.mat, w, 1, true), FT_INVALID);
	assert_int_equal(ops->linear(stream, y.mat, y.mat, w, 0, true), FT_INVALID);
	assert_int_equal(ops->matmul(stream, y.mat, x.mat, false, y16.mat, false, 1, 0),
					 FT_UNSUPPORTED);
	assert_int_equal(ops->matmul(stream, y.mat, x.mat, false, x.mat, false, 1, 0), FT_INVALID);
	ops->weight_free(w);
	odd.mat.dtype = FT_Q4_0;
	assert_int_equal(ops->weight_create(device, &odd.mat, 1, FT_USE_SERVE, &w), FT_INVALID);
	odd.mat.dtype = FT_I32;
	assert_int_equal(ops->weight_create(device, &odd.mat, 1, FT_USE_SERVE, &w), FT_UNSUPPORTED);
	assert_int_equal(ops->weight_create(device, &m.mat, 1, 0, &w), FT_INVALID);
	stored_free(&m);
	stored_free(&odd);
	tensor_free(&x);
	tensor_free(&y);
	tensor_free(&y16);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_matmul),
		cmocka_unit_test(test_linear_serve),
		cmocka_unit_test(test_linear_train),
		cmocka_unit_test(test_gradient_over_a_vocabulary),
		cmocka_unit_test(test_linear_view),
		cmocka_unit_test(test_row_fixed),
		cmocka_unit_test(test_instruction_sets_agree),
		cmocka_unit_test(test_not_a_number),
		cmocka_unit_test(test_lora),
		cmocka_unit_test(test_lora_row_fixed),
		cmocka_unit_test(test_refusals),
	};

	return run_variants("matmul", tests, sizeof tests / sizeof *tests);
}
