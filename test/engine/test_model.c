/*
 * test_model.c: loading weights: shapes, RoPE tables, and files that lack something.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"
#include "serving.h"
#include "tiny_model.h"

static char *directory;
static char path[512];

static int
set_up(void **state)
{
	(void) state;
	directory = tiny_directory();
	snprintf(path, sizeof path, "%s/tiny.gguf", directory);
	return 0;
}

static int
tear_down(void **state)
{
	(void) state;
	tiny_remove(directory);
	free(directory);
	return 0;
}

static void
test_targets(void **state)
{
	const ft_config c = {.hidden = 48, .ffn = 80, .heads = 6, .kv_heads = 2, .head_dim = 10};
	const struct
	{
		const char *name;
		const char *module;
		int in;
		int out;
	} expected[FT_TARGET_COUNT] = {
		{"q_proj", "self_attn.q_proj", 48, 60}, {"k_proj", "self_attn.k_proj", 48, 20},
		{"v_proj", "self_attn.v_proj", 48, 20}, {"o_proj", "self_attn.o_proj", 60, 48},
		{"gate_proj", "mlp.gate_proj", 48, 80}, {"up_proj", "mlp.up_proj", 48, 80},
		{"down_proj", "mlp.down_proj", 80, 48},
	};

	(void) state;
	for (int t = 0; t < FT_TARGET_COUNT; t++)
	{
		int in, out;

		ft_target_shape(&c, (ft_target) t, &in, &out);
		assert_string_equal(ft_target_name((ft_target) t), expected[t].name);
		assert_string_equal(ft_target_module((ft_target) t), expected[t].module);
		assert_int_equal(in, expected[t].in);
		assert_int_equal(out, expected[t].out);
	}
}

static void
test_load(void **state)
{
	serving s;

	(void) state;
	tiny_model_write(path, &tiny_default);
	serving_open(&s, path, FT_NUMERICS_REFERENCE, 1, 64);
	assert_int_equal(s.model->config.layers, 2);
	assert_int_equal(s.model->rope_positions, 256);
	assert_ptr_equal(s.model->head, s.model->embedding);
	assert_true(s.model->bytes > 0);
	serving_close(&s);
}

static void
test_rope_tables(void **state)
{
	serving s;
	int half = tiny_default.head_dim / 2;

	(void) state;
	tiny_model_write(path, &tiny_default);
	serving_open(&s, path, FT_NUMERICS_REFERENCE, 1, 64);
	for (int position = 0; position < 256; position += 51)
		for (int i = 0; i < half; i++)
		{
			double angle = position * pow(10000.0, -2.0 * i / tiny_default.head_dim);

			assert_true(fabs(s.model->rope_cos[position * half + i] - cos(angle)) < 1e-4);
			assert_true(fabs(s.model->rope_sin[position * half + i] - sin(angle)) < 1e-4);
		}
	serving_close(&s);
}

static void
test_rope_factors(void **state)
{
	tiny_model tiny = tiny_default;
	int half = tiny.head_dim / 2;
	float factors[16];
	serving s;

	(void) state;
	tiny.rope_freqs = true;
	tiny_model_write(path, &tiny);
	serving_open(&s, path, FT_NUMERICS_REFERENCE, 1, 64);
	assert_int_equal(
		ft_model_file_read(s.file, ft_model_file_find(s.file, "rope_freqs.weight"), factors),
		FT_OK);
	for (int i = 0; i < half; i++)
	{
		double angle = 200 * pow(10000.0, -2.0 * i / tiny.head_dim) / factors[i];

		assert_true(fabs(s.model->rope_cos[200 * half + i] - cos(angle)) < 1e-4);
	}
	serving_close(&s);
}

static void
test_context_is_bounded(void **state)
{
	ft_device_config config = {.name = "cpu", .threads = 1};
	const ft_ops *ops = ft_cpu_ops();
	ft_device *device;
	ft_model_file *file;
	ft_model *model;

	(void) state;
	tiny_model_write(path, &tiny_default);
	assert_int_equal(ops->device_open(&config, &device), FT_OK);
	assert_int_equal(ft_model_file_open(path, &file), FT_OK);
	assert_int_equal(ft_model_load(file, ops, device, FT_USE_SERVE, 100, &model), FT_OK);
	assert_int_equal(model->rope_positions, 100);
	ft_model_free(model);
	assert_int_equal(ft_model_load(file, ops, device, FT_USE_SERVE, 1000, &model), FT_OK);
	assert_int_equal(model->rope_positions, 256);
	ft_model_free(model);
	ft_model_file_close(file);
	ops->device_close(device);
}

/* Sizes that nothing in the file stands for are refused before anything is allocated for them. */
static void
test_claims_are_bounded(void **state)
{
	ft_device_config config = {.name = "cpu", .threads = 1};
	const ft_ops *ops = ft_cpu_ops();
	tiny_model tiny = tiny_default;
	ft_device *device;
	ft_model_file *file;
	ft_model *model;

	(void) state;
	assert_int_equal(ops->device_open(&config, &device), FT_OK);
	tiny.context = 2000000;
	tiny_model_write(path, &tiny);
	assert_int_equal(ft_model_file_open(path, &file), FT_OK);
	assert_int_equal(ft_model_load(file, ops, device, FT_USE_SERVE, 0, &model), FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "2000000"));
	assert_non_null(strstr(ft_error_hint(), "context_length"));
	assert_int_equal(ft_model_load(file, ops, device, FT_USE_SERVE, 500, &model), FT_OK);
	assert_int_equal(model->rope_positions, 500);
	ft_model_free(model);
	ft_model_file_close(file);

	tiny = tiny_default;
	tiny.head_dim = 2048;
	tiny_model_write(path, &tiny);
	assert_int_equal(ft_model_file_open(path, &file), FT_OK);
	assert_int_equal(ft_model_load(file, ops, device, FT_USE_SERVE, 0, &model), FT_UNSUPPORTED);
	ft_model_file_close(file);
	ops->device_close(device);
}

/* A file that shrinks after its header was read gives an error, whichever tensor it happens in. */
static void
test_shrinking_file(void **state)
{
	ft_device_config config = {.name = "cpu", .threads = 1};
	const ft_ops *ops = ft_cpu_ops();
	ft_device *device;
	struct stat st;

	(void) state;
	assert_int_equal(ops->device_open(&config, &device), FT_OK);
	for (int eighth = 1; eighth < 8; eighth++)
	{
		ft_model_file *file;
		ft_model *model = NULL;

		tiny_model_write(path, &tiny_default);
		assert_int_equal(stat(path, &st), 0);
		assert_int_equal(ft_model_file_open(path, &file), FT_OK);
		assert_int_equal(truncate(path, st.st_size * eighth / 8), 0);
		assert_int_not_equal(ft_model_load(file, ops, device, FT_USE_SERVE, 0, &model), FT_OK);
		assert_null(model);
		assert_non_null(strstr(ft_error_message(), "tiny.gguf"));
		ft_model_file_close(file);
	}
	ops->device_close(device);
}

static void
test_adapter_limits(void **state)
{
	ft_adapter *adapter;
	unsigned all = (1u << FT_TARGET_COUNT) - 1;
	serving s;

	(void) state;
	tiny_model_write(path, &tiny_default);
	serving_open(&s, path, FT_NUMERICS_REFERENCE, 1, 64);
	assert_int_equal(ft_adapter_create(s.model, 0, 1, false, all, &adapter), FT_INVALID);
	assert_int_equal(ft_adapter_create(s.model, 1 << 20, 1, false, all, &adapter), FT_INVALID);
	assert_int_equal(ft_adapter_create(s.model, 4, NAN, false, all, &adapter), FT_INVALID);
	assert_int_equal(ft_adapter_create(s.model, 4, 1, false, 0, &adapter), FT_INVALID);
	assert_int_equal(ft_adapter_create(s.model, 4, 1, false, all + 1, &adapter), FT_INVALID);

	/* only what is adapted has a place; A begins uniform within 1/√in, B zero */
	assert_int_equal(ft_adapter_create(s.model, 4, 8, true, 1u << FT_V_PROJ, &adapter), FT_OK);
	assert_true(adapter->scale == 4);
	assert_int_equal(adapter->a_at[FT_Q_PROJ], -1);
	assert_int_equal(ft_adapter_init(adapter, &s.model->config, 3), FT_OK);
	for (int layer = 0; layer < 2; layer++)
	{
		const float *a = adapter->values + adapter->a_at[layer * FT_TARGET_COUNT + FT_V_PROJ];
		const float *b = adapter->values + adapter->b_at[layer * FT_TARGET_COUNT + FT_V_PROJ];
		double squares = 0;

		for (int i = 0; i < 4 * 48; i++)
		{
			assert_true(fabsf(a[i]) <= 1 / sqrtf(48));
			squares += (double) a[i] * a[i];
		}
		/* a uniform number's mean square is a third of its bound's */
		assert_true(fabs(squares / (4 * 48) * 48 * 3 - 1) < 0.25);
		for (int i = 0; i < 16 * 4; i++)
			assert_true(b[i] == 0);
	}
	ft_adapter_free(adapter);
	serving_close(&s);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_targets),
		cmocka_unit_test(test_load),
		cmocka_unit_test(test_rope_tables),
		cmocka_unit_test(test_rope_factors),
		cmocka_unit_test(test_context_is_bounded),
		cmocka_unit_test(test_claims_are_bounded),
		cmocka_unit_test(test_shrinking_file),
		cmocka_unit_test(test_adapter_limits),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
