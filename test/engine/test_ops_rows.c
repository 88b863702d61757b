/*
 * test_ops_rows.c: embedding, gathering, scattering, conversions, sums, AdamW;
 * and the table itself.
 */
#include "test_ops_common.h"

#include "test_ops_quant.h"

static void
test_table(void **state)
{
	ft_ops broken = *ops;

	(void) state;
	must(ft_ops_check(ops));
	broken.attention_grad = NULL;
	assert_int_equal(ft_ops_check(&broken), FT_INTERNAL);
	assert_non_null(strstr(ft_error_message(), "attention_grad"));
	broken = *ops;
	broken.version++;
	assert_int_equal(ft_ops_check(&broken), FT_INTERNAL);
	assert_true(info.threads >= 1 || strcmp(ops->name, "cpu") != 0);
	assert_true(info.memory_total > 0);
	assert_true(info.compute_dtype == FT_F32 || info.compute_dtype == FT_BF16);
}

/* What cannot be opened says why. */
static void
test_open_refusals(void **state)
{
	const char *before = getenv("PG_FINETUNE_CPU");
	char *kept = before != NULL ? strdup(before) : NULL;
	ft_device_config config = {"abacus", 1, FT_NUMERICS_FAST};
	ft_device *unused;

	(void) state;
	assert_int_equal(ops->device_open(&config, &unused), FT_DEVICE);
	assert_non_null(strstr(ft_error_message(), "abacus"));
	if (strcmp(ops->name, "cpu") == 0)
	{
		config.name = "cpu";
		config.threads = 0;
		assert_int_equal(ops->device_open(&config, &unused), FT_INVALID);
		config.threads = 1;
		setenv("PG_FINETUNE_CPU", "mmx", 1);
		assert_int_equal(ops->device_open(&config, &unused), FT_DEVICE);
		assert_non_null(strstr(ft_error_message(), "mmx"));
	}
	if (kept != NULL)
		setenv("PG_FINETUNE_CPU", kept, 1);
	else
		unsetenv("PG_FINETUNE_CPU");
	free(kept);
}

static void
test_memory(void **state)
{
	static const size_t sizes[] = {0, 1, 4096, 70001, 999999, (size_t) 5 << 20};

	(void) state;
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
	{
		size_t n = sizes[i];
		unsigned char *host = malloc(n + 1);
		unsigned char *memory;
		unsigned char *other;

		must(ops->mem_alloc(device, FT_MEM_DEVICE, n, (void **) &memory));
		must(ops->mem_alloc(device, FT_MEM_HOST, n, (void **) &other));
		assert_int_equal((uintptr_t) memory % 64, 0);
		memset(host, 1, n);
		download(host, memory, n);
		for (size_t j = 0; j < n; j++)
			assert_int_equal(host[j], 0);
		for (size_t j = 0; j < n; j++)
			host[j] = (unsigned char) random_bits();
		must(ops->copy_to_device(stream, memory, host, n));
		must(ops->copy_to_host(stream, other, memory, n));
		assert_memory_equal(host, other, n);
		must(ops->zero(stream, memory, n));
		must(ops->stream_synchronize(stream));
		download(host, memory, n);
		for (size_t j = 0; j < n; j++)
			assert_int_equal(host[j], 0);
		ops->mem_free(device, FT_MEM_DEVICE, memory);
		ops->mem_free(device, FT_MEM_HOST, other);
		free(host);
	}
}

/* Blocks that the CPU takes from one mapping stay apart, whatever goes before them. */
static void
test_memory_shared(void **state)
{
	enum
	{
		BLOCKS = 80,
		BYTES = 300001
	};
	unsigned char *memory[BLOCKS];
	unsigned char *host = malloc(BYTES);

	(void) state;
	for (int round = 0; round < 2; round++)
	{
		for (int i = 0; i < BLOCKS; i++)
		{
			must(ops->mem_alloc(device, FT_MEM_DEVICE, BYTES, (void **) &memory[i]));
			assert_int_equal((uintptr_t) memory[i] % 64, 0);
			download(host, memory[i], BYTES);
			for (int j = 0; j < BYTES; j++)
				assert_int_equal(host[j], 0);
			memset(host, i + 1, BYTES);
			must(ops->copy_to_device(stream, memory[i], host, BYTES));
		}
		must(ops->stream_synchronize(stream));
		for (int i = 0; i < BLOCKS; i += 2)
			ops->mem_free(device, FT_MEM_DEVICE, memory[i]);
		for (int i = BLOCKS - 1; i > 0; i -= 2)
		{
			download(host, memory[i], BYTES);
			assert_int_equal(host[0], i + 1);
			assert_memory_equal(host, host + 1, BYTES - 1);
			ops->mem_free(device, FT_MEM_DEVICE, memory[i]);
		}
	}
	free(host);
}

static void
test_embed(void **state)
{
	static const int32_t ids[] = {0, 45, 7, 7, -1, 46, 31, 2000000000};
	static const unsigned uses[] = {FT_USE_EMBED, FT_USE_EMBED | FT_USE_SERVE,
									FT_USE_EMBED | FT_USE_TRAIN,
									FT_USE_EMBED | FT_USE_TRAIN | FT_USE_SERVE};
	int n = sizeof ids / sizeof *ids;

	(void) state;
	for (int type = 0; type < n_stored_types; type++)
		for (size_t u = 0; u < sizeof uses / sizeof *uses; u++)
			for (int f32 = 0; f32 < 2; f32++)
			{
				int64_t cols = ft_dtype_get(stored_types[type])->block_values == 256 ? 512 : 96;
				stored m = stored_random(stored_types[type], 46, cols);
				double *reference = calloc((size_t) (n * cols), sizeof *reference);
				int32_t *device_ids = upload(ids, sizeof ids);
				tensor y = tensor_zero(n, cols, 3, f32 ? FT_F32 : FT_BF16);
				ft_weight *w;

				must(ops->weight_create(device, &m.mat, 1, uses[u], &w));
				must(ops->embed(stream, y.mat, w, device_ids));
				for (int i = 0; i < n; i++)
					if (ids[i] >= 0 && ids[i] < 46)
						memcpy(reference + i * cols, m.value + ids[i] * cols,
							   (size_t) cols * sizeof *reference);
				if (f32 && !(uses[u] & FT_USE_TRAIN && info.compute_dtype == FT_BF16))
				{
					double *result = tensor_read(&y);

					/* stored values are exact in f32 */
					for (int64_t i = 0; i < n * cols; i++)
						assert_true(result[i] == (double) (float) reference[i]);
					free(result);
				}
				else
				{
					double *result = tensor_read(&y);

					check_values("embed", result, reference, n * cols, tolerance(FT_BF16));
					free(result);
				}
				ops->weight_free(w);
				device_free(device_ids);
				tensor_free(&y);
				stored_free(&m);
				free(reference);
			}
}

/* The rows of a matrix of the caller's, as they are at each call. */
static void
test_embed_view(void **state)
{
	static const int32_t ids[] = {0, 12, 5, 5, -1, 13, 2000000000};
	static const ft_dtype types[] = {FT_F32, FT_BF16};
	int n = sizeof ids / sizeof *ids;

	(void) state;
	for (int type = 0; type < 4; type++)
	{
		tensor first = tensor_random(13, 37, 0, types[type / 2]);
		tensor second = tensor_random(13, 37, 0, types[type / 2]);
		int32_t *device_ids = upload(ids, sizeof ids);
		tensor y = tensor_zero(n, 37, 3, types[type % 2]);
		ft_weight *w;

		must(ops->weight_view(device, first.mat, &w));
		for (int pass = 0; pass < 2; pass++)
		{
			memset(y.value, 0, (size_t) n * 37 * sizeof *y.value);
			must(ops->embed(stream, y.mat, w, device_ids));
			for (int i = 0; i < n; i++)
				if (ids[i] >= 0 && ids[i] < 13)
					memcpy(y.value + i * 37, first.value + ids[i] * 37, 37 * sizeof *y.value);
			check_tensor("embed of a view", &y, y.value);
			must(ops->copy(stream, first.mat.data, second.mat.data,
						   (size_t) 13 * 37 * (types[type / 2] == FT_F32 ? 4 : 2)));
			memcpy(first.value, second.value, 13 * 37 * sizeof *first.value);
		}
		ops->weight_free(w);
		device_free(device_ids);
		tensor_free(&first);
		tensor_free(&second);
		tensor_free(&y);
	}
}

static void
test_gather_scatter(void **state)
{
	static const int32_t index[] = {4, 0, 6, 3, 1};
	int32_t *device_index = upload(index, sizeof index);

	(void) state;
	for (int64_t cols = 1; cols <= 67; cols += 11)
		for (int f32 = 0; f32 < 2; f32++)
		{
			ft_dtype dtype = f32 ? FT_F32 : FT_BF16;
			tensor x = tensor_random(7, cols, 2, dtype);
			tensor y = tensor_zero(5, cols, 1, dtype);
			double *result;

			must(ops->gather_rows(stream, y.mat, x.mat, device_index));
			result = tensor_read(&y);
			for (int64_t i = 0; i < 5 * cols; i++)
				assert_true(result[i] == x.value[index[i / cols] * cols + i % cols]);
			free(result);
			if (f32)
			{
				tensor add = tensor_random(5, cols, 0, FT_F32);

				must(ops->scatter_add_rows(stream, x.mat, add.mat, device_index));
				for (int64_t i = 0; i < 5 * cols; i++)
					x.value[index[i / cols] * cols + i % cols] += add.value[i];
				check_tensor("scatter_add_rows", &x, x.value);
				tensor_free(&add);
			}
			tensor_free(&x);
			tensor_free(&y);
		}
	device_free(device_index);
}

static void
test_convert_plain(void **state)
{
	(void) state;
	for (int64_t cols = 1; cols <= 67; cols += 22)
	{
		tensor x = tensor_random(3, cols, 1, FT_F32);
		tensor y = tensor_zero(3, cols, 2, FT_BF16);
		tensor back = tensor_zero(3, cols, 0, FT_F32);
		tensor half = tensor_zero(3, cols, 0, FT_BF16);
		ft_mat f16 = half.mat;
		double *result;
		uint16_t *bits = malloc((size_t) (3 * cols) * 2);

		f16.dtype = FT_F16;
		must(ops->convert(stream, y.mat, x.mat));
		result = tensor_read(&y);
		for (int64_t i = 0; i < 3 * cols; i++)
			assert_true(result[i] == round_to(x.value[i], 7));
		must(ops->convert(stream, back.mat, y.mat));
		for (int64_t i = 0; i < 3 * cols; i++)
			y.value[i] = result[i];
		free(result);
		check_tensor("bf16 to f32", &back, y.value);

		must(ops->convert(stream, f16, x.mat));
		download(bits, half.mat.data, (size_t) (3 * cols) * 2);
		for (int64_t i = 0; i < 3 * cols; i++)
			assert_true(half_value(bits[i]) == round_to(x.value[i], 10) ||
						fabs(x.value[i]) < ldexp(1, -14));
		must(ops->convert(stream, back.mat, f16));
		result = tensor_read(&back);
		for (int64_t i = 0; i < 3 * cols; i++)
			assert_true(result[i] == half_value(bits[i]));
		free(result);
		free(bits);
		tensor_free(&x);
		tensor_free(&y);
		tensor_free(&back);
		tensor_free(&half);
	}
}

/* Values at the edges of the 16-bit types, as bits. */
static void
test_convert_edges(void **state)
{
	static const float values[] = {0.0f,          -0.0f,         1.00390625f,   1.01171875f,
								   65504.0f,      65519.9f,      65520.0f,      -1e30f,
								   5.9604645e-8f, 2.9e-8f,       2.9802322e-8f, 6.1035156e-5f,
								   6.0e-5f,       3.3895314e38f, 1e-40f};
	static const uint16_t half[] = {0x0000, 0x8000, 0x3c04, 0x3c0c, 0x7bff, 0x7bff, 0x7c00, 0xfc00,
									0x0001, 0x0000, 0x0000, 0x0400, 0x03ef, 0x7c00, 0x0000};
	static const uint16_t bf16[] = {0x0000, 0x8000, 0x3f80, 0x3f82, 0x4780, 0x4780, 0x4780, 0xf14a,
									0x3380, 0x32f9, 0x3300, 0x3880, 0x387c, 0x7f7f, 0x0001};
	enum
	{
		N = sizeof values / sizeof *values
	};
	uint16_t bits[N];
	float *x = upload(values, sizeof values);
	uint16_t *y = device_alloc(sizeof bits);
	float nan = NAN;

	(void) state;
	must(ops->convert(stream, ft_mat_make(y, FT_F16, 1, N), ft_mat_make(x, FT_F32, 1, N)));
	download(bits, y, sizeof bits);
	for (int i = 0; i < N; i++)
		if (bits[i] != half[i])
			fail_msg("f16 of %g is %04x, expected %04x", (double) values[i], bits[i], half[i]);
	must(ops->convert(stream, ft_mat_make(y, FT_BF16, 1, N), ft_mat_make(x, FT_F32, 1, N)));
	download(bits, y, sizeof bits);
	for (int i = 0; i < N; i++)
		if (bits[i] != bf16[i])
			fail_msg("bf16 of %g is %04x, expected %04x", (double) values[i], bits[i], bf16[i]);
	must(ops->copy_to_device(stream, x, &nan, sizeof nan));
	for (int f16 = 0; f16 < 2; f16++)
	{
		ft_dtype dtype = f16 ? FT_F16 : FT_BF16;

		must(ops->convert(stream, ft_mat_make(y, dtype, 1, 1), ft_mat_make(x, FT_F32, 1, 1)));
		download(bits, y, 2);
		assert_true(isnan(f16 ? half_value(bits[0]) : bf16_value(bits[0])));
	}
	device_free(x);
	device_free(y);
}

static void
test_convert_quantised(void **state)
{
	(void) state;
	for (int type = 0; type < n_stored_types; type++)
	{
		stored m = stored_random(stored_types[type], 5, 256);
		size_t bytes = (size_t) (5 * ft_row_bytes(stored_types[type], 256));
		ft_mat x = m.mat;
		tensor y = tensor_zero(5, 256, 1, FT_F32);
		tensor z = tensor_zero(5, 256, 0, FT_BF16);
		double *result;

		x.data = upload(m.mat.data, bytes);
		must(ops->convert(stream, y.mat, x));
		result = tensor_read(&y);
		for (int i = 0; i < 5 * 256; i++)
			assert_true(result[i] == (double) (float) m.value[i]);
		free(result);
		must(ops->convert(stream, z.mat, x));
		result = tensor_read(&z);
		for (int i = 0; i < 5 * 256; i++)
			assert_true(result[i] == round_to((float) m.value[i], 7));
		free(result);
		device_free(x.data);
		tensor_free(&y);
		tensor_free(&z);
		stored_free(&m);
	}
}

static void
test_add(void **state)
{
	(void) state;
	for (int64_t rows = 0; rows <= 65; rows += 13)
	{
		tensor y = tensor_random(rows, 33, 2, FT_F32);
		tensor x = tensor_random(rows, 33, 5, FT_F32);

		must(ops->add(stream, y.mat, x.mat, -0.75f));
		for (int64_t i = 0; i < rows * 33; i++)
			y.value[i] -= 0.75 * x.value[i];
		check_tensor("add", &y, y.value);
		tensor_free(&x);
		tensor_free(&y);
	}
}

static void
test_sum_squares(void **state)
{
	static const int64_t sizes[] = {0, 1, 7, 16384, 100003};
	double *result = device_alloc(sizeof *result);

	(void) state;
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
	{
		tensor x = tensor_random(1, sizes[i], 0, FT_F32);
		double sum = 0;
		double first;
		double second;

		for (int64_t j = 0; j < sizes[i]; j++)
			sum += x.value[j] * x.value[j];
		must(ops->sum_squares(stream, result, x.mat.data, sizes[i]));
		download(&first, result, sizeof first);
		assert_true(fabs(first - sum) <= 1e-6 * sum);
		must(ops->sum_squares(stream, result, x.mat.data, sizes[i]));
		download(&second, result, sizeof second);
		assert_memory_equal(&first, &second, sizeof first);
		tensor_free(&x);
	}
	device_free(result);
}

static void
adamw_reference(double *p, double *m, double *v, const double *g, int64_t n, const ft_adamw *s)
{
	for (int64_t i = 0; i < n; i++)
	{
		double grad = g[i] * s->grad_scale;

		m[i] = s->beta1 * m[i] + (1 - (double) s->beta1) * grad;
		v[i] = s->beta2 * v[i] + (1 - (double) s->beta2) * grad * grad;
		p[i] -= s->learning_rate * s->weight_decay * p[i];
		p[i] -= s->learning_rate * (m[i] / (1 - pow(s->beta1, (double) s->step))) /
				(sqrt(v[i] / (1 - pow(s->beta2, (double) s->step))) + s->eps);
	}
}

static void
test_adamw(void **state)
{
	static const int64_t sizes[] = {1, 19, 40000};

	(void) state;
	for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++)
	{
		int64_t n = sizes[c];
		tensor p = tensor_random(1, n, 0, FT_F32);
		tensor m = tensor_zero(1, n, 0, FT_F32);
		tensor v = tensor_zero(1, n, 0, FT_F32);
		ft_adamw settings = {.learning_rate = 0.01f,
							 .beta1 = 0.9f,
							 .beta2 = 0.999f,
							 .eps = 1e-8f,
							 .weight_decay = 0.1f,
							 .grad_scale = 0.5f};

		for (settings.step = 1; settings.step <= 5; settings.step++)
		{
			tensor g = tensor_random(1, n, 0, FT_F32);

			must(ops->adamw(stream, p.mat.data, m.mat.data, v.mat.data, g.mat.data, n, &settings));
			adamw_reference(p.value, m.value, v.value, g.value, n, &settings);
			tensor_free(&g);
		}
		check_tensor("adamw parameters", &p, p.value);
		check_tensor("adamw first moment", &m, m.value);
		check_tensor("adamw second moment", &v, v.value);
		settings.step = 0;
		assert_int_equal(
			ops->adamw(stream, p.mat.data, m.mat.data, v.mat.data, p.mat.data, n, &settings),
			FT_INVALID);
		tensor_free(&p);
		tensor_free(&m);
		tensor_free(&v);
	}
}

/* Parameters and moments of 8 bits on the device. */
typedef struct small_state
{
	tensor param;
	uint8_t *m;
	uint8_t *v;
	uint8_t *m_exponents;
	uint8_t *v_exponents;
} small_state;

static small_state
small_zero(int64_t n, ft_dtype dtype)
{
	size_t blocks = (size_t) (n + FT_MOMENT_BLOCK - 1) / FT_MOMENT_BLOCK;
	uint8_t *zero = calloc((size_t) n, 1);
	small_state s = {tensor_random(1, n, 0, dtype), upload(zero, (size_t) n),
					 upload(zero, (size_t) n), upload(zero, blocks), upload(zero, blocks)};

	free(zero);
	return s;
}

static void
small_free(small_state *s)
{
	tensor_free(&s->param);
	device_free(s->m);
	device_free(s->v);
	device_free(s->m_exponents);
	device_free(s->v_exponents);
}

static void
small_step(small_state *s, const float *grad, const ft_adamw *settings)
{
	must(ops->adamw_8bit(stream, s->param.mat, s->m, s->v, s->m_exponents, s->v_exponents, grad,
						 settings));
}

/* From a state that is just what the codes say, one step's moments are the two codes next to the
 * exact ones, or one of them, and the parameters what these exact ones make. */
static void
check_small_step(int64_t n, ft_dtype dtype, int64_t step)
{
	size_t blocks = (size_t) (n + FT_MOMENT_BLOCK - 1) / FT_MOMENT_BLOCK;
	small_state s = small_zero(n, dtype);
	tensor g = tensor_random(1, n, 0, FT_F32);
	uint8_t *m = malloc((size_t) n);
	uint8_t *v = malloc((size_t) n);
	uint8_t *exponents = malloc(2 * blocks);
	double *first = calloc((size_t) n, sizeof *first);
	double *second = calloc((size_t) n, sizeof *second);
	double *after;
	ft_adamw settings = {.learning_rate = 0.01f,
						 .beta1 = 0.9f,
						 .beta2 = 0.999f,
						 .eps = 1e-8f,
						 .weight_decay = 0.1f,
						 .grad_scale = 0.5f,
						 .step = step,
						 .noise = {1, 2, 3, 4}};

	for (int64_t i = 0; i < n; i++)
	{
		m[i] = (uint8_t) random_bits();
		v[i] = (uint8_t) random_bits();
		first[i] = ft_first_moment(m[i], 120);
		second[i] = ft_second_moment(v[i], 110);
	}
	memset(exponents, 120, blocks);
	memset(exponents + blocks, 110, blocks);
	must(ops->copy_to_device(stream, s.m, m, (size_t) n));
	must(ops->copy_to_device(stream, s.v, v, (size_t) n));
	must(ops->copy_to_device(stream, s.m_exponents, exponents, blocks));
	must(ops->copy_to_device(stream, s.v_exponents, exponents + blocks, blocks));
	small_step(&s, g.mat.data, &settings);
	adamw_reference(s.param.value, first, second, g.value, n, &settings);
	download(m, s.m, (size_t) n);
	download(v, s.v, (size_t) n);
	download(exponents, s.m_exponents, blocks);
	download(exponents + blocks, s.v_exponents, blocks);
	after = tensor_read(&s.param);
	for (int64_t i = 0; i < n; i++)
	{
		uint32_t m_exponent = exponents[i / FT_MOMENT_BLOCK];
		uint32_t v_exponent = exponents[blocks + (size_t) (i / FT_MOMENT_BLOCK)];
		double smallest = ldexp(1, (int) m_exponent - 127 - 15);

		/* neighbours are at most an eighth apart */
		assert_true(fabs(ft_first_moment(m[i], m_exponent) - first[i]) <=
					fmax(fabs(first[i]) / 8 * 1.001, smallest));
		assert_true(fabs(ft_second_moment(v[i], v_exponent) - second[i]) <=
					fmax(second[i] / 8 * 1.001, ldexp(1, (int) v_exponent - 127 - 31)));
		/* and bf16's an 128th */
		assert_true(fabs(after[i] - s.param.value[i]) <=
					fabs(s.param.value[i]) / (dtype == FT_F32 ? 1e5 : 127.9) + 1e-7);
	}
	free(after);
	free(m);
	free(v);
	free(exponents);
	free(first);
	free(second);
	tensor_free(&g);
	small_free(&s);
}

static void
test_adamw_8bit(void **state)
{
	static const int64_t sizes[] = {1, 19, 256, 300, 5000};
	small_state s = small_zero(5, FT_F32);
	ft_adamw settings = {.step = 0};

	(void) state;
	for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++)
	{
		check_small_step(sizes[c], FT_F32, 1);
		check_small_step(sizes[c], FT_BF16, 3);
	}
	assert_int_equal(ops->adamw_8bit(stream, s.param.mat, s.m, s.v, s.m_exponents, s.v_exponents,
									 s.param.mat.data, &settings),
					 FT_INVALID);
	settings.step = 1;
	assert_int_equal(ops->adamw_8bit(stream, ft_mat_make(s.param.mat.data, FT_I32, 1, 5), s.m, s.v,
									 s.m_exponents, s.v_exponents, s.param.mat.data, &settings),
					 FT_UNSUPPORTED);
	small_free(&s);
}

/* Many values that are alike and go the same way: their mean is what it is in exact arithmetic,
 * both where each step moves a bf16 weight by less than half of its precision, and where a second
 * moment changes by less than half of a code.  The same noise gives the same bytes, other noise
 * others. */
static void
test_rounding_by_chance(void **state)
{
	enum
	{
		N = 16384,
		STEPS = SANITIZED ? 20 : 60
	};
	small_state s[3] = {small_zero(N, FT_BF16), small_zero(N, FT_BF16), small_zero(N, FT_BF16)};
	tensor g = tensor_zero(1, N, 0, FT_F32);
	uint8_t *codes = malloc(N);
	float *host = malloc(N * sizeof *host);
	double p = 1;
	double m = 0;
	double v = 0;
	double mean[2] = {0, 0};
	double *after[3];
	uint8_t exponents[N / FT_MOMENT_BLOCK];

	(void) state;
	for (int64_t step = 1; step <= STEPS; step++)
	{
		double grad = step % 2 == 0 ? 1.5 : 0.5;
		ft_adamw settings = {.learning_rate = 1e-4f,
							 .beta1 = 0.9f,
							 .beta2 = 0.999f,
							 .eps = 1e-8f,
							 .grad_scale = 1,
							 .step = step};

		for (int i = 0; i < N; i++)
			host[i] = (float) grad;
		must(ops->copy_to_device(stream, g.mat.data, host, N * sizeof *host));
		adamw_reference(&p, &m, &v, &grad, 1, &settings);
		for (int k = 0; k < 3; k++)
		{
			uint16_t one = 0x3f80;

			for (int i = 0; step == 1 && i < N; i++)
				((uint16_t *) host)[i] = one;
			if (step == 1)
				must(ops->copy_to_device(stream, s[k].param.mat.data, host, N * sizeof one));
			settings.noise[0] = (uint32_t) step * 2654435761u;
			settings.noise[1] = k == 2;
			small_step(&s[k], g.mat.data, &settings);
		}
	}
	for (int k = 0; k < 3; k++)
		after[k] = tensor_read(&s[k].param);
	download(codes, s[0].v, N);
	download(exponents, s[0].v_exponents, sizeof exponents);
	for (int i = 0; i < N; i++)
	{
		mean[0] += after[0][i] / N;
		mean[1] += ft_second_moment(codes[i], exponents[i / FT_MOMENT_BLOCK]) / N;
	}
	assert_true(fabs((mean[0] - 1) / (p - 1) - 1) < 0.02);
	assert_true(fabs(mean[1] / v - 1) < 0.02);
	assert_memory_equal(after[0], after[1], N * sizeof *after[0]);
	assert_memory_not_equal(after[0], after[2], N * sizeof *after[0]);
	for (int k = 0; k < 3; k++)
	{
		free(after[k]);
		small_free(&s[k]);
	}
	free(codes);
	free(host);
	tensor_free(&g);
}

static void
test_refusals(void **state)
{
	tensor x = tensor_random(3, 8, 0, FT_F32);
	tensor y = tensor_zero(3, 8, 0, FT_BF16);
	ft_mat ints = ft_mat_make(x.mat.data, FT_I32, 3, 8);
	ft_mat narrow = ft_mat_make(x.mat.data, FT_F32, 3, 7);
	int32_t outside[] = {0, 3, 1};
	int32_t *index = upload(outside, sizeof outside);

	(void) state;
	assert_int_equal(ops->add(stream, x.mat, y.mat, 1), FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "bf16"));
	assert_int_equal(ops->convert(stream, y.mat, ints), FT_UNSUPPORTED);
	assert_int_equal(ops->convert(stream, y.mat, narrow), FT_INVALID);
	assert_int_equal(ops->gather_rows(stream, y.mat, x.mat, index), FT_UNSUPPORTED);
	tensor_free(&x);
	tensor_free(&y);
	device_free(index);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_table),
		cmocka_unit_test(test_open_refusals),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_memory_shared),
		cmocka_unit_test(test_embed),
		cmocka_unit_test(test_embed_view),
		cmocka_unit_test(test_gather_scatter),
		cmocka_unit_test(test_convert_plain),
		cmocka_unit_test(test_convert_edges),
		cmocka_unit_test(test_convert_quantised),
		cmocka_unit_test(test_add),
		cmocka_unit_test(test_sum_squares),
		cmocka_unit_test(test_adamw),
		cmocka_unit_test(test_adamw_8bit),
		cmocka_unit_test(test_rounding_by_chance),
		cmocka_unit_test(test_refusals),
	};

	return run_variants("rows", tests, sizeof tests / sizeof *tests);
}
