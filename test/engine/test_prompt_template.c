/*
 * test_prompt_template.c: prompts in a text of the model's own: what it may be,
 * how rows and questions are put into it, and that an adapter carries it.
 */
#include "prompt_template.h"

#include "files.h"
#include "row.h"
#include "tiny_model.h"
#include "training.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TEMPLATE "Q: {prompt}\nA: "

static int
setup(void **state)
{
	tiny_run *run;

	must(ft_alloc((void **) &run, 1, sizeof *run));
	tiny_open(run, "tied", 1);
	*state = run;
	return 0;
}

static int
teardown(void **state)
{
	tiny_close(*state);
	free(*state);
	return 0;
}

static void
test_fill(void **state)
{
	static const struct
	{
		const char *template;
		const char *filled;
	} cases[] = {
		{"{prompt}", "a {prompt} b"},
		{TEMPLATE, "Q: a {prompt} b\nA: "},
		{"{{{prompt}}}", "{a {prompt} b}"},
		{"{{prompt}} {prompt} {{}}", "{prompt} a {prompt} b {}"},
		{"\xc3\xa9{prompt}\xc3\xa9", "\xc3\xa9"
									 "a {prompt} b\xc3\xa9"},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		ft_text text = {0};

		must(ft_prompt_template_check(cases[i].template));
		must(ft_prompt_template_fill(cases[i].template, "a {prompt} b", 12, &text));
		assert_string_equal(text.data, cases[i].filled);
		ft_text_free(&text);
	}
}

static void
test_wrong_templates(void **state)
{
	static const char *const cases[][2] = {
		{"", "prompt template has {prompt} 0 times, not once"},
		{"no place", "prompt template has {prompt} 0 times, not once"},
		{"{{prompt}}", "prompt template has {prompt} 0 times, not once"},
		{"{prompt} and {prompt}", "prompt template has {prompt} 2 times, not once"},
		{"a {prompt} {system}", "a brace that is neither doubled nor of {prompt} at byte 12"},
		{"{prompt", "a brace that is neither doubled nor of {prompt} at byte 1"},
		{"{prompt}}", "a brace that is neither doubled nor of {prompt} at byte 9"},
		{"{ prompt }", "at byte 1"},
		{"{prompt}{", "at byte 9"},
	};
	char longest[FT_PROMPT_TEMPLATE_SIZE + 1];

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		assert_int_equal(ft_prompt_template_check(cases[i][0]), FT_INVALID);
		assert_non_null(strstr(ft_error_message(), cases[i][1]));
		assert_non_null(strstr(ft_error_hint(), "{prompt} stands for the prompt"));
	}
	memset(longest, 'x', sizeof longest);
	memcpy(longest, "{prompt}", 8);
	longest[FT_PROMPT_TEMPLATE_SIZE - 1] = '\0';
	must(ft_prompt_template_check(longest));
	longest[FT_PROMPT_TEMPLATE_SIZE - 1] = 'x';
	longest[FT_PROMPT_TEMPLATE_SIZE] = '\0';
	assert_int_equal(ft_prompt_template_check(longest), FT_INVALID);
	assert_string_equal(ft_error_message(),
						"prompt template has 4096 bytes, at most 4095 are allowed");
}

static ft_row_encoder
encoder_of(const tiny_run *run, const char *prompt_template, const char *chat_template)
{
	ft_row_encoder e = {.config = ft_model_file_config(run->file),
						.vocabulary = ft_model_file_vocabulary(run->file),
						.tokenizer = run->tokenizer,
						.chat_template = run->chat_template,
						.prompt_template = prompt_template,
						.max_length = 40};

	if (chat_template != NULL)
		must(ft_chat_template_find(chat_template, NULL, &e.chat_template));
	return e;
}

static void
encode(ft_row_encoder *e, const char *line, bool truncated)
{
	ft_row_kind kind;
	bool cut;

	must(ft_row_encode(e, line, strlen(line), &kind, &cut));
	assert_int_equal(kind, FT_ROW_USED);
	assert_int_equal(cut, truncated);
}

static void
same_row(const ft_row_encoder *a, const ft_row_encoder *b)
{
	assert_int_equal(a->ids.length, b->ids.length);
	assert_memory_equal(a->ids.data, b->ids.data, a->ids.length * sizeof(int32_t));
	assert_memory_equal(a->weights.data, b->weights.data, a->ids.length * sizeof(float));
}

/* A row is what the same text, put together by hand, is without any template; and a question is
 * what stands before its answer. */
static void
test_rows_and_questions(void **state)
{
	const tiny_run *run = *state;
	ft_row_encoder templated = encoder_of(run, TEMPLATE, NULL);
	ft_row_encoder plain = encoder_of(run, NULL, "plain");
	ft_message question = {"user", "<|im_end|> hi", 13, 1};
	ft_ids ids = {0};

	encode(&templated, "{\"prompt\": \"<|im_end|> hi\", \"completion\": \"the 1\"}", false);
	encode(&plain, "{\"prompt\": \"Q: <|im_end|> hi\\nA: \", \"completion\": \"the 1\"}", false);
	same_row(&templated, &plain);
	must(ft_prompt_encode(TEMPLATE, run->chat_template, run->tokenizer, &question, 1, true, &ids,
						  NULL));
	assert_true(ids.length < templated.ids.length);
	assert_memory_equal(ids.data, templated.ids.data, ids.length * sizeof(int32_t));
	for (size_t i = 0; i < templated.ids.length; i++)
		assert_int_equal(templated.weights.data[i] > 0, i >= ids.length);
	/* its own end, and nothing else, is a special token */
	for (size_t i = 0; i < templated.ids.length; i++)
		assert_int_equal(ft_tokenizer_is_special(run->tokenizer, templated.ids.data[i]),
						 i + 1 == templated.ids.length);

	/* what looks like a special token in the template is text, too */
	templated.prompt_template = "<|im_end|>{prompt}";
	encode(&templated, "{\"prompt\": \"hi\", \"completion\": \"the 1\"}", false);
	for (size_t i = 0; i + 1 < templated.ids.length; i++)
		assert_false(ft_tokenizer_is_special(run->tokenizer, templated.ids.data[i]));
	ft_ids_free(&ids);
	ft_row_encoder_clear(&templated);
	ft_row_encoder_clear(&plain);
}

/* A long prompt loses its beginning, never the template. */
static void
test_cut_rows(void **state)
{
	const tiny_run *run = *state;
	ft_row_encoder e = encoder_of(run, TEMPLATE, NULL);
	ft_text text = {0};

	encode(&e,
		   "{\"prompt\": \"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz0123456789\", "
		   "\"completion\": \"the 1\"}",
		   true);
	assert_true(e.ids.length <= 40);
	must(ft_tokenizer_decode(run->tokenizer, e.ids.data, e.ids.length, true, &text));
	assert_int_equal(strncmp(text.data, "Q: ", 3), 0);
	assert_non_null(strstr(text.data, "0123456789\nA: the 1"));
	ft_text_free(&text);
	ft_row_encoder_clear(&e);
}

static void
test_no_conversations(void **state)
{
	static const ft_message messages[3] = {
		{"system", "s", 1, 1}, {"user", "u", 1, 1}, {"assistant", "a", 1, 1}};
	const tiny_run *run = *state;
	ft_row_encoder e = encoder_of(run, TEMPLATE, NULL);
	const char *line = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": "
					   "\"assistant\", \"content\": \"b\"}]}";
	ft_ids ids = {0};
	ft_row_kind kind;
	bool cut;

	assert_int_equal(ft_prompt_encode(TEMPLATE, run->chat_template, run->tokenizer, messages, 2,
									  true, &ids, NULL),
					 FT_INVALID);
	assert_string_equal(ft_error_message(), "a model with a prompt template takes one prompt, "
											"neither a system message nor a conversation");
	assert_int_equal(ft_prompt_encode(TEMPLATE, run->chat_template, run->tokenizer, messages + 2, 1,
									  true, &ids, NULL),
					 FT_INVALID);
	assert_int_equal(ft_prompt_encode(TEMPLATE, run->chat_template, run->tokenizer, messages, 3,
									  true, &ids, NULL),
					 FT_INVALID);
	must(ft_prompt_encode(TEMPLATE, run->chat_template, run->tokenizer, messages + 1, 2, true, &ids,
						  NULL));
	assert_int_equal(ft_row_encode(&e, line, strlen(line), &kind, &cut), FT_INVALID);
	assert_string_equal(ft_error_message(),
						"row has messages, which a prompt template has no place for");
	/* what has no prompt is as ever */
	encode(&e, "{\"text\": \"the end\"}", false);
	encode(&e, "{\"input_ids\": [70, 71, 72]}", false);
	ft_ids_free(&ids);
	ft_row_encoder_clear(&e);
}

static ft_options
options_of(const char *text, ft_status expected)
{
	json_t *json = json_loads(text, 0, NULL);
	ft_options o;

	assert_non_null(json);
	assert_int_equal(ft_options_read(json, &o), expected);
	json_decref(json);
	return o;
}

static void
test_option(void **state)
{
	ft_options o = options_of("{\"prompt_template\": \"Q: {prompt}\\nA: \"}", FT_OK);
	json_t *json = ft_options_json(&o);

	(void) state;
	assert_string_equal(o.prompt_template, TEMPLATE);
	assert_string_equal(json_string_value(json_object_get(json, "prompt_template")), TEMPLATE);
	json_decref(json);
	/* an adapter's own is the option's, and no other may be given */
	must(ft_options_adopt_template(&o, TEMPLATE));
	assert_int_equal(ft_options_adopt_template(&o, "Z: {prompt}"), FT_INVALID);
	assert_int_equal(ft_options_adopt_template(&o, NULL), FT_INVALID);
	assert_string_equal(ft_error_message(),
						"option \"prompt_template\" is not that of the adapter to continue from");
	o = options_of("{\"prompt_template\": null}", FT_OK);
	assert_string_equal(o.prompt_template, "");
	json = ft_options_json(&o);
	assert_null(json_object_get(json, "prompt_template"));
	json_decref(json);
	must(ft_options_adopt_template(&o, NULL));
	must(ft_options_adopt_template(&o, TEMPLATE));
	assert_string_equal(o.prompt_template, TEMPLATE);
	options_of("{\"prompt_template\": 3}", FT_INVALID);
	assert_string_equal(ft_error_message(), "option \"prompt_template\" is no string");
	options_of("{\"prompt_template\": \"auto\"}", FT_INVALID);
	assert_string_equal(ft_error_message(), "prompt template has {prompt} 0 times, not once");
}

/* Written and read with the adapter; a wrong one there is damage. */
static void
test_adapter_carries_it(void **state)
{
	static const float zero[1];
	const ft_safetensor_out tensor = {"x", -1, 1, zero};
	const tiny_run *run = *state;
	char *directory = tiny_directory();
	ft_adapter *adapter = tiny_adapter(run, "tied");
	char path[FT_PATH_SIZE];
	char *found;

	must(ft_path_join(path, directory, "adapter"));
	assert_null(adapter->prompt_template);
	must(ft_peft_save(adapter, &run->model->config, "tiny", path));
	must(ft_peft_read_prompt_template(path, &found));
	assert_null(found);
	adapter->prompt_template = strdup("\"\xc3\xa9\" {prompt}\n");
	must(ft_peft_save(adapter, &run->model->config, "tiny", path));
	must(ft_peft_read_prompt_template(path, &found));
	assert_string_equal(found, adapter->prompt_template);
	ft_adapter_free(adapter);
	must(ft_peft_load(run->model, path, &adapter));
	assert_string_equal(found, adapter->prompt_template);
	free(found);
	ft_adapter_free(adapter);

	must(ft_path_join(path, directory, "adapter/" FT_PEFT_TENSORS));
	must(ft_safetensors_write_with(path, &tensor, 1, "prompt_template", "{nothing}"));
	must(ft_path_join(path, directory, "adapter"));
	assert_int_equal(ft_peft_read_prompt_template(path, &found), FT_CORRUPT);
	assert_non_null(strstr(ft_error_message(), "at byte 1"));
	tiny_remove(directory);
	free(directory);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fill),
		cmocka_unit_test(test_wrong_templates),
		cmocka_unit_test_setup_teardown(test_rows_and_questions, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cut_rows, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_conversations, setup, teardown),
		cmocka_unit_test(test_option),
		cmocka_unit_test_setup_teardown(test_adapter_carries_it, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
