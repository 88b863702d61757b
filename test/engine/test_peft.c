/*
 * test_peft.c: adapters as PEFT directories: PEFT's own, ours, and those that
 * cannot be computed as PEFT would.
 */
#include "files.h"
#include "tiny_model.h"
#include "training.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ADAPTER TINY_LLAMA "/tied/adapter"

typedef struct fixture
{
	tiny_run run;
	char *directory;
	char adapter[FT_PATH_SIZE];
} fixture;

static int
setup(void **state)
{
	fixture *f;

	must(ft_alloc((void **) &f, 1, sizeof *f));
	tiny_open(&f->run, "tied", 1);
	f->directory = tiny_directory();
	must(ft_path_join(f->adapter, f->directory, "adapter"));
	*state = f;
	return 0;
}

static int
teardown(void **state)
{
	fixture *f = *state;

	tiny_remove(f->directory);
	tiny_close(&f->run);
	free(f->directory);
	free(f);
	return 0;
}

static void
test_pefts_own(void **state)
{
	fixture *f = *state;
	ft_adapter *adapter = tiny_adapter(&f->run, "tied");
	float first;
	ft_safetensors *file;
	float reference[3 * 36];

	assert_int_equal(adapter->rank, 3);
	assert_true(adapter->alpha == 7 && !adapter->use_rslora);
	assert_true(adapter->scale == 7.0f / 3.0f);
	assert_int_equal(adapter->targets, 127);
	must(ft_safetensors_open(ADAPTER "/adapter_model.safetensors", &file));
	must(ft_safetensors_read_f32(
		file,
		ft_safetensors_find(file, "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"),
		reference, 3 * 36));
	first = adapter->values[adapter->a_at[FT_TARGET_COUNT + FT_K_PROJ]];
	assert_true(first == reference[0] && first != 0);
	ft_safetensors_close(file);
	ft_adapter_free(adapter);
}

static void
test_round_trip(void **state)
{
	fixture *f = *state;

	for (unsigned targets = 1; targets < 128; targets += 21)
	{
		ft_adapter *adapter;
		ft_adapter *again;

		must(ft_adapter_create(f->run.model, 5, 2.5f, targets % 2 == 0, targets, &adapter));
		must(ft_adapter_init(adapter, &f->run.model->config, targets));
		for (int64_t i = 0; i < adapter->n; i++)
			adapter->values[i] += 0.5f;
		must(ft_peft_save(adapter, &f->run.model->config, "tiny", f->adapter));
		must(ft_peft_load(f->run.model, f->adapter, &again));
		assert_int_equal(again->rank, 5);
		assert_int_equal(again->targets, targets);
		assert_true(again->scale == adapter->scale);
		for (int slot = 0; slot < adapter->layers * FT_TARGET_COUNT; slot++)
		{
			if (adapter->a_at[slot] < 0)
				continue;
			assert_memory_equal(again->values + again->a_at[slot],
								adapter->values + adapter->a_at[slot], 5 * 36 * sizeof(float));
			assert_memory_equal(again->values + again->b_at[slot],
								adapter->values + adapter->b_at[slot], 20 * 5 * sizeof(float));
		}
		ft_adapter_free(adapter);
		ft_adapter_free(again);
	}
	/* saving over an adapter replaces it, and leaves nothing beside it */
	{
		char path[FT_PATH_SIZE];

		must(ft_path_join(path, f->directory, "adapter.tmp"));
		assert_false(ft_file_exists(path));
	}
}

/* Change a key of the fixture's configuration and try to load. */
static void
check_config(fixture *f, const char *key, const char *value, ft_status expected,
			 const char *message)
{
	json_t *config = json_load_file(ADAPTER "/adapter_config.json", 0, NULL);
	json_t *item = json_loads(value, JSON_DECODE_ANY, NULL);
	char tensors[FT_PATH_SIZE];
	ft_text bytes = {0};
	ft_adapter *adapter;
	char *text;
	ft_status status;

	assert_non_null(item);
	json_object_set_new(config, key, item);
	text = json_dumps(config, 0);
	json_decref(config);
	must(ft_read_file(ADAPTER "/adapter_model.safetensors", 1 << 20, &bytes));
	must(ft_path_join(tensors, f->directory, "adapter_model.safetensors"));
	must(ft_replace_file(tensors, bytes.data, bytes.length));
	ft_text_free(&bytes);
	write_text(f->directory, "adapter_config.json", text);
	free(text);
	status = ft_peft_load(f->run.model, f->directory, &adapter);
	if (status != expected)
		fail_msg("%s = %s: %s, expected %s (%s)", key, value, ft_status_name(status),
				 ft_status_name(expected), ft_error_message());
	if (status == FT_OK)
		ft_adapter_free(adapter);
	else if (strstr(ft_error_message(), message) == NULL)
		fail_msg("%s = %s: message \"%s\" lacks \"%s\"", key, value, ft_error_message(), message);
}

static void
test_configurations(void **state)
{
	fixture *f = *state;

	check_config(f, "revision", "\"main\"", FT_OK, "");
	check_config(f, "target_modules", "\"all-linear\"", FT_OK, "");
	/* what PEFT makes of that */
	check_config(f, "target_modules",
				 "[\"model.layers.0.self_attn.q_proj\", \"model.layers.1.self_attn.q_proj\", "
				 "\"model.layers.0.self_attn.k_proj\", \"model.layers.1.self_attn.v_proj\", "
				 "\"model.layers.0.self_attn.o_proj\", \"model.layers.0.mlp.gate_proj\", "
				 "\"model.layers.0.mlp.up_proj\", \"model.layers.1.mlp.down_proj\"]",
				 FT_OK, "");
	check_config(f, "use_rslora", "true", FT_OK, "");
	check_config(f, "init_lora_weights", "\"gaussian\"", FT_OK, "");
	check_config(f, "use_dora", "true", FT_UNSUPPORTED, "use_dora");
	check_config(f, "bias", "\"all\"", FT_UNSUPPORTED, "bias");
	check_config(f, "modules_to_save", "[\"lm_head\"]", FT_UNSUPPORTED, "modules_to_save");
	check_config(f, "rank_pattern", "{\"q_proj\": 8}", FT_UNSUPPORTED, "rank_pattern");
	check_config(f, "alpha_pattern", "{\"q_proj\": 8}", FT_UNSUPPORTED, "alpha_pattern");
	check_config(f, "fan_in_fan_out", "true", FT_UNSUPPORTED, "fan_in_fan_out");
	check_config(f, "layers_to_transform", "[0]", FT_UNSUPPORTED, "layers_to_transform");
	check_config(f, "init_lora_weights", "\"pissa\"", FT_UNSUPPORTED, "pissa");
	check_config(f, "some_new_way", "7", FT_UNSUPPORTED, "some_new_way");
	check_config(f, "peft_type", "\"IA3\"", FT_UNSUPPORTED, "IA3");
	check_config(f, "r", "0", FT_CORRUPT, "r is");
	check_config(f, "r", "8", FT_MISMATCH, "shape [3, 36], expected [8, 36]");
	check_config(f, "r", "1000000000", FT_CORRUPT, "r is");
	check_config(f, "lora_alpha", "-1", FT_CORRUPT, "lora_alpha");
	check_config(f, "target_modules", "[\"q_proj\"]", FT_UNSUPPORTED, "28 tensors");
	check_config(f, "target_modules", "[\"q_proj\", \"lm_head\"]", FT_UNSUPPORTED, "lm_head");
	check_config(f, "target_modules", "[\"model.layers.0.q_proj\"]", FT_UNSUPPORTED,
				 "model.layers.0.q_proj");
	check_config(f, "target_modules", "\".*proj\"", FT_UNSUPPORTED, "pattern");
	check_config(f, "target_modules", "[]", FT_CORRUPT, "target_modules");
}

static void
test_missing_and_broken_files(void **state)
{
	fixture *f = *state;
	ft_adapter *adapter;

	assert_int_equal(ft_peft_load(f->run.model, f->directory, &adapter), FT_NOT_FOUND);
	write_text(f->directory, "adapter_config.json", "{\"peft_type\": \"LORA\"");
	assert_int_equal(ft_peft_load(f->run.model, f->directory, &adapter), FT_CORRUPT);
	write_text(f->directory, "adapter_config.json", "[]");
	assert_int_equal(ft_peft_load(f->run.model, f->directory, &adapter), FT_CORRUPT);
	write_text(f->directory, "adapter_config.json",
			   "{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 7, \"target_modules\": "
			   "[\"q_proj\"]}");
	assert_int_equal(ft_peft_load(f->run.model, f->directory, &adapter), FT_NOT_FOUND);
}

/* A value that is not finite would silence every answer. */
static void
test_non_finite_values(void **state)
{
	fixture *f = *state;
	ft_adapter *adapter = tiny_adapter(&f->run, "tied");
	ft_adapter *again;

	adapter->values[adapter->b_at[FT_O_PROJ]] = 1.0f / 0.0f;
	must(ft_peft_save(adapter, &f->run.model->config, "tiny", f->adapter));
	assert_int_equal(ft_peft_load(f->run.model, f->adapter, &again), FT_CORRUPT);
	ft_adapter_free(adapter);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_pefts_own, setup, teardown),
		cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
		cmocka_unit_test_setup_teardown(test_configurations, setup, teardown),
		cmocka_unit_test_setup_teardown(test_missing_and_broken_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_non_finite_values, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
