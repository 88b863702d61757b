/*
 * test_options.c: values for options that nobody set, and options as JSON.
 */
#include "training.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const ft_config small = {.hidden = 576, .max_positions = 8192};
static const ft_config wide = {.hidden = 4096, .max_positions = 1024};

static ft_options
read_options(const char *text)
{
	json_t *json = json_loads(text, 0, NULL);
	ft_options o;

	assert_non_null(json);
	must(ft_options_read(json, &o));
	json_decref(json);
	return o;
}

static void
test_defaults(void **state)
{
	ft_options o = read_options("{}");
	ft_data_size data = {.documents = 300, .tokens = 17000, .max_length = 80};

	(void) state;
	ft_options_resolve(&o, &small, 0, &data);
	assert_int_equal(o.lora_r, 16);
	assert_true(o.lora_alpha == 32);
	assert_int_equal(o.lora_target_modules, 127);
	assert_true(o.learning_rate > 0 && o.learning_rate <= 1e-3);
	assert_int_equal(o.lr_scheduler, FT_COSINE);
	assert_true(o.warmup_ratio == 0.03 && o.weight_decay == 0 && o.max_grad_norm == 1);
	assert_true(o.validation_fraction == 0.1 && o.seed == 42 && o.packing && !o.train_on_inputs);
	assert_int_equal(o.max_seq_length, 2048);
	assert_true(o.batch_size > 0 && o.max_epochs >= 1);
}

/* Whatever the table's size: no fewer than two hundred steps where the rows allow it, and never so
 * many that a large table is read over and over. */
static void
test_steps_suit_the_table(void **state)
{
	int64_t last_batch = 0;

	(void) state;
	for (int64_t tokens = 100; tokens < 1000000000; tokens *= 3)
	{
		ft_data_size data = {.documents = tokens / 50, .tokens = tokens, .max_length = 100};
		ft_options o = read_options("{}");
		int64_t steps;

		ft_options_resolve(&o, &small, 0, &data);
		steps = tokens / o.batch_size * o.max_epochs;
		assert_true(o.max_epochs >= 1 && o.max_epochs <= 50);
		assert_true(o.batch_size >= last_batch);
		last_batch = o.batch_size;
		if (tokens > 10000)
			assert_true(steps >= 200);
		if (tokens > 10000000)
			assert_int_equal(o.max_epochs, 1);
	}
}

/* Method full takes smaller steps, and no option of adapters; its options say so again. */
static void
test_full(void **state)
{
	static const char *const refused[] = {"lora_r", "lora_alpha", "lora_dropout", "use_rslora",
										  "lora_target_modules"};
	ft_options o =
		read_options("{\"method\": \"full\", \"lora_r\": \"auto\", \"use_rslora\": null}");
	ft_data_size data = {.documents = 300, .tokens = 17000, .max_length = 80};
	ft_options again;
	json_t *json;

	(void) state;
	assert_true(o.full);
	ft_options_resolve(&o, &small, 0, &data);
	assert_true(o.learning_rate == 2e-5);
	json = ft_options_json(&o);
	assert_string_equal(json_string_value(json_object_get(json, "method")), "full");
	for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
		assert_null(json_object_get(json, refused[i]));
	must(ft_options_read(json, &again));
	assert_true(again.full && again.learning_rate == o.learning_rate);
	json_decref(json);
	for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
	{
		json = json_pack("{s:s, s:i}", "method", "full", refused[i], 0);
		assert_int_equal(ft_options_read(json, &o), FT_INVALID);
		/* whatever is wrong with the value itself is said first */
		assert_non_null(strstr(ft_error_message(), refused[i]));
		json_decref(json);
	}
	json = json_pack("{s:i, s:s}", "lora_r", 4, "method", "full");
	assert_int_equal(ft_options_read(json, &o), FT_INVALID);
	assert_string_equal(ft_error_message(),
						"option \"lora_r\" does not go with method full, which has no adapter");
	json_decref(json);
}

static void
test_what_is_set_stays(void **state)
{
	ft_options o = read_options("{\"lora_r\": 8, \"max_epochs\": 3, \"batch_size\": 777, "
								"\"learning_rate\": 0.5, \"max_seq_length\": 100000, "
								"\"lora_alpha\": \"auto\", \"method\": null, \"seed\": 0, "
								"\"lora_target_modules\": [\"q_proj\", \"down_proj\"]}");
	ft_data_size data = {.documents = 10, .tokens = 1000, .max_length = 200};

	(void) state;
	ft_options_resolve(&o, &wide, 512, &data);
	assert_int_equal(o.lora_r, 8);
	assert_true(o.lora_alpha == 16);
	assert_int_equal(o.max_epochs, 3);
	assert_int_equal(o.batch_size, 777);
	assert_true(o.learning_rate == 0.5);
	assert_int_equal(o.max_seq_length, 512);
	assert_int_equal(o.lora_target_modules, 1 << FT_Q_PROJ | 1 << FT_DOWN_PROJ);
	assert_int_equal(o.seed, 0);
}

/* Experts are not adapted by default; a list is the caller's. */
static void
test_targets_of_experts(void **state)
{
	static const char *const texts[] = {"{}", "{\"lora_target_modules\": \"all-linear\"}",
										"{\"lora_target_modules\": [\"v_proj\", \"up_proj\"]}"};
	static const int expected[] = {15, 15, 1 << FT_V_PROJ | 1 << FT_UP_PROJ};
	ft_config experts = small;
	ft_data_size data = {.documents = 10, .tokens = 1000, .max_length = 200};

	(void) state;
	experts.experts = 8;
	experts.experts_per_token = 2;
	for (int i = 0; i < 3; i++)
	{
		ft_options o = read_options(texts[i]);

		ft_options_resolve(&o, &experts, 0, &data);
		assert_int_equal(o.lora_target_modules, expected[i]);
	}
}

static void
test_steps_without_epochs(void **state)
{
	ft_options o = read_options("{\"max_steps\": 12}");
	ft_data_size data = {.documents = 10, .tokens = 1000, .max_length = 200};

	(void) state;
	ft_options_resolve(&o, &small, 0, &data);
	assert_int_equal(o.max_steps, 12);
	assert_int_equal(o.max_epochs, 50);
}

/* The plan file is read back to the same options, to the last bit of a real. */
static void
test_round_trip(void **state)
{
	ft_options o = read_options("{\"learning_rate\": 0.1234567890123456, \"n_evals\": 3, "
								"\"lr_scheduler\": \"linear\", \"use_rslora\": true, "
								"\"gradient_accumulation_steps\": 2, \"packing\": false}");
	ft_data_size data = {.documents = 300, .tokens = 17000, .max_length = 80};
	json_t *json;
	char *text;
	ft_options again;

	(void) state;
	ft_options_resolve(&o, &small, 0, &data);
	json = ft_options_json(&o);
	text = json_dumps(json, 0);
	json_decref(json);
	again = read_options(text);
	free(text);
	assert_true(again.learning_rate == o.learning_rate && again.lora_alpha == o.lora_alpha);
	assert_int_equal(again.lr_scheduler, FT_LINEAR);
	assert_true(again.use_rslora && !again.packing);
	assert_int_equal(again.gradient_accumulation_steps, 2);
	json = ft_options_json(&again);
	text = json_dumps(json, JSON_SORT_KEYS);
	json_decref(json);
	json = ft_options_json(&o);
	{
		char *first = json_dumps(json, JSON_SORT_KEYS);

		assert_string_equal(first, text);
		free(first);
	}
	json_decref(json);
	free(text);
}

static void
test_methods(void **state)
{
	static const char *const methods[] = {"lora", "qlora"};

	(void) state;
	for (int i = 0; i < 2; i++)
	{
		ft_options o = {0};
		json_t *json = json_pack("{s:s}", "method", methods[i]);

		must(ft_options_read(json, &o));
		json_decref(json);
		assert_int_equal(o.qlora, i == 1);
		json = ft_options_json(&o);
		assert_string_equal(json_string_value(json_object_get(json, "method")), methods[i]);
		json_decref(json);
	}
}

static void
test_caller_options_are_left_alone(void **state)
{
	(void) state;
	read_options("{\"priority\": 3, \"storage\": \"database\", \"early_stopping_patience\": null}");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_steps_suit_the_table),
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_what_is_set_stays),
		cmocka_unit_test(test_targets_of_experts),
		cmocka_unit_test(test_steps_without_epochs),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_methods),
		cmocka_unit_test(test_caller_options_are_left_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
