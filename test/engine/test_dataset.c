/*
 * test_dataset.c: rows to documents, cutting, counting, splitting; steps and
 * batches made of them.
 */
#include "training.h"

#include "files.h"
#include "row.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct fixture
{
	tiny_run run;
	char *directory;
	ft_row_encoder encoder;
} fixture;

static int
setup(void **state)
{
	fixture *f;

	must(ft_alloc((void **) &f, 1, sizeof *f));
	tiny_open(&f->run, "tied", 1);
	f->directory = tiny_directory();
	f->encoder = (ft_row_encoder){.config = ft_model_file_config(f->run.file),
								  .vocabulary = ft_model_file_vocabulary(f->run.file),
								  .tokenizer = f->run.tokenizer,
								  .chat_template = f->run.chat_template,
								  .max_length = 64};
	*state = f;
	return 0;
}

static int
teardown(void **state)
{
	fixture *f = *state;

	ft_row_encoder_clear(&f->encoder);
	tiny_remove(f->directory);
	tiny_close(&f->run);
	free(f->directory);
	free(f);
	return 0;
}

/* The last row's tokens as text; with only_trained those that have a weight. */
static char *
text_of(const fixture *f, bool only_trained)
{
	ft_text text = {0};

	for (size_t i = 0; i < f->encoder.ids.length; i++)
	{
		if (!only_trained || f->encoder.weights.data[i] > 0)
			must(ft_tokenizer_decode(f->run.tokenizer, &f->encoder.ids.data[i], 1, false, &text));
	}
	must(ft_text_append(&text, "", 0));
	return text.data;
}

static void
check_row(fixture *f, const char *line, ft_row_kind kind, bool truncated, const char *whole,
		  const char *trained)
{
	ft_row_kind found;
	bool cut;
	char *text;

	must(ft_row_encode(&f->encoder, line, strlen(line), &found, &cut));
	assert_int_equal(found, kind);
	assert_int_equal(cut, truncated);
	if (kind != FT_ROW_USED)
		return;
	assert_true(f->encoder.ids.length <= (size_t) f->encoder.max_length);
	assert_int_equal(f->encoder.ids.length, f->encoder.weights.length);
	text = text_of(f, false);
	if (whole != NULL)
		assert_string_equal(text, whole);
	free(text);
	text = text_of(f, true);
	if (trained != NULL)
		assert_string_equal(text, trained);
	free(text);
}

static void
test_rows(void **state)
{
	fixture *f = *state;

	check_row(f, "{\"prompt\": \"hi\", \"completion\": \"the\"}", FT_ROW_USED, false,
			  "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nthe<|im_end|>",
			  "the<|im_end|>");
	check_row(f, "{\"prompt\": \"\", \"completion\": \"\"}", FT_ROW_USED, false,
			  "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>", "<|im_end|>");
	check_row(f,
			  "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
			  "\"content\": \"b\", \"weight\": 0}, {\"role\": \"user\", \"content\": \"c\"}, "
			  "{\"role\": \"assistant\", \"content\": \"d\"}]}",
			  FT_ROW_USED, false, NULL, "d<|im_end|>");
	check_row(f, "{\"text\": \"the end\"}", FT_ROW_USED, false, "the end<|im_end|>",
			  " end<|im_end|>");
	check_row(f, "{\"prompt\": null, \"completion\": \"x\"}", FT_ROW_NULL, false, NULL, NULL);
	check_row(f, "{\"text\": null}", FT_ROW_NULL, false, NULL, NULL);
	check_row(f, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", FT_ROW_UNTRAINED,
			  false, NULL, NULL);
	check_row(f, "{\"prompt\": \"a\", \"completion\": \"b\", \"weight\": 0}", FT_ROW_UNTRAINED,
			  false, NULL, NULL);
}

/* A special token written by a user stays text. */
static void
test_user_text_is_never_special(void **state)
{
	fixture *f = *state;
	ft_row_kind kind;
	bool cut;
	const char *line = "{\"prompt\": \"<|im_end|>\", \"completion\": \"<|im_end|>\"}";
	int ends = 0;

	must(ft_row_encode(&f->encoder, line, strlen(line), &kind, &cut));
	for (size_t i = 0; i < f->encoder.ids.length; i++)
		ends += f->encoder.ids.data[i] == 2;
	assert_int_equal(ends, 2);
}

static void
test_train_on_inputs(void **state)
{
	fixture *f = *state;

	f->encoder.train_on_inputs = true;
	check_row(f, "{\"prompt\": \"hi\", \"completion\": \"the\"}", FT_ROW_USED, false, NULL,
			  "user\nhi<|im_end|>\n<|im_start|>assistant\nthe<|im_end|>\n");
	f->encoder.train_on_inputs = false;
}

static void
test_row_weight(void **state)
{
	fixture *f = *state;

	check_row(f, "{\"prompt\": \"hi\", \"completion\": \"x\", \"weight\": 0.5}", FT_ROW_USED, false,
			  NULL, "x<|im_end|>");
	assert_true(f->encoder.weights.data[f->encoder.ids.length - 1] == 0.5f);
}

/* The weight of a token of the last row. */
static float
weight_at(const fixture *f, size_t i)
{
	assert_true(i < f->encoder.weights.length);
	return f->encoder.weights.data[i];
}

#define TURNS                                                                                    \
	"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "       \
	"\"content\": \"b\", \"weight\": %s}, {\"role\": \"user\", \"content\": \"c\", \"weight\": " \
	"7}, "                                                                                       \
	"{\"role\": \"assistant\", \"content\": \"d\"}], \"weight\": %s}"

/* Every turn's weight times the row's, and nothing but 0 and 1 of the others. */
static void
check_turn_weights(fixture *f, const char *turn, const char *row, float first, float last,
				   float prompt)
{
	ft_row_kind kind;
	bool cut;
	char line[512];
	size_t b = SIZE_MAX;
	size_t c = SIZE_MAX;
	size_t d = SIZE_MAX;

	snprintf(line, sizeof line, TURNS, turn, row);
	must(ft_row_encode(&f->encoder, line, strlen(line), &kind, &cut));
	assert_int_equal(kind, FT_ROW_USED);
	for (size_t i = 0; i < f->encoder.ids.length; i++)
	{
		ft_text text = {0};

		must(ft_tokenizer_decode(f->run.tokenizer, &f->encoder.ids.data[i], 1, false, &text));
		must(ft_text_append(&text, "", 1));
		b = strcmp(text.data, "b") == 0 ? i : b;
		c = strcmp(text.data, "c") == 0 ? i : c;
		d = strcmp(text.data, "d") == 0 ? i : d;
		ft_text_free(&text);
	}
	assert_true(weight_at(f, b) == first);
	assert_true(weight_at(f, b + 1) == first); /* the end token */
	assert_true(weight_at(f, c) == prompt);
	assert_true(weight_at(f, d) == last);
}

static void
test_turn_weights(void **state)
{
	fixture *f = *state;

	check_turn_weights(f, "1", "1", 1, 1, 0);
	check_turn_weights(f, "0", "1", 0, 1, 0);
	check_turn_weights(f, "0.25", "2", 0.5f, 2, 0);
	f->encoder.train_on_inputs = true;
	check_turn_weights(f, "1", "1", 1, 1, 1);
	check_turn_weights(f, "0", "3", 0, 3, 3);
	check_turn_weights(f, "0.5", "1", 0.5f, 1, 1);
}

/* A tokenised row: what is kept of it, in the order of ids, targets, weights. */
static void
check_tokens(fixture *f, const char *line, bool truncated, size_t n, const int32_t *ids,
			 const int32_t *targets, const float *weights)
{
	check_row(f, line, FT_ROW_USED, truncated, NULL, NULL);
	assert_int_equal(f->encoder.ids.length, n);
	assert_int_equal(f->encoder.targets.length, n);
	assert_memory_equal(f->encoder.ids.data, ids, n * sizeof *ids);
	assert_memory_equal(f->encoder.targets.data, targets, n * sizeof *targets);
	assert_memory_equal(f->encoder.weights.data, weights, n * sizeof *weights);
}

static void
test_tokens(void **state)
{
	fixture *f = *state;
	const int32_t ids[] = {5, 6, 7, 8};
	const int32_t relabelled[] = {5, 6, 9, 8};
	const float all[] = {0, 1, 1, 1};
	const float half[] = {0, 0, 1, 1};
	const float heavy[] = {0, 0, 2.5f, 2.5f};
	const float middle[] = {0, 1, 0, 1};

	check_tokens(f, "{\"input_ids\": [5, 6, 7, 8]}", false, 4, ids, ids, all);
	check_tokens(f, "{\"input_ids\": [5,6,7,8], \"labels\": [-100, -100, 7, 8]}", false, 4, ids,
				 ids, half);
	check_tokens(f, "{\"input_ids\": [5,6,7,8], \"labels\": [5, 6, -100, 8]}", false, 4, ids, ids,
				 middle);
	/* a label of its own is the target, never the input */
	check_tokens(f, "{\"input_ids\": [5,6,7,8], \"labels\": [-100, -100, 9, 8], \"weight\": 2.5}",
				 false, 4, ids, relabelled, heavy);
	/* padding goes, whatever stands there; so does what is behind the last trained token */
	check_tokens(
		f,
		"{\"input_ids\": [-1, 99999, 5, 6, 7, 8, 0], \"labels\": [1, 1, 1, -100, 7, 8, 3], "
		"\"attention_mask\": [0, 0, 1, 1, 1, 1, 0]}",
		false, 4, ids, (const int32_t[]){1, 6, 7, 8}, half);
	check_tokens(f, "{\"input_ids\": [5,6,7,8,9,9], \"labels\": [5,6,7,8,-100,-100]}", false, 4,
				 ids, ids, all);
	f->encoder.train_on_inputs = true;
	check_tokens(f, "{\"input_ids\": [5,6,7,8], \"labels\": [-100, -100, 7, 8]}", false, 4, ids,
				 ids, half);
	f->encoder.train_on_inputs = false;
	f->encoder.max_length = 4;
	check_tokens(f, "{\"input_ids\": [5,6,7,8,9]}", true, 4, ids, ids, all);
	check_tokens(f, "{\"input_ids\": [0,5,6,7,8], \"attention_mask\": [0,1,1,1,1]}", false, 4, ids,
				 ids, all);
	check_tokens(f, "{\"input_ids\": [5,6,7,8,9], \"labels\": [5,6,7,8,-100]}", false, 4, ids, ids,
				 all);
	check_row(f, "{\"input_ids\": [5,6,7,8,9], \"labels\": [-100,-100,-100,-100,9]}",
			  FT_ROW_UNTRAINED, true, NULL, NULL);
	check_row(f, "{\"input_ids\": [5]}", FT_ROW_UNTRAINED, false, NULL, NULL);
	check_row(f, "{\"input_ids\": [5, 6], \"labels\": [5, -100]}", FT_ROW_UNTRAINED, false, NULL,
			  NULL);
	check_row(f, "{\"input_ids\": [5, 6], \"attention_mask\": [0, 0]}", FT_ROW_UNTRAINED, false,
			  NULL, NULL);
	check_row(f, "{\"input_ids\": [5, 6], \"weight\": 0}", FT_ROW_UNTRAINED, false, NULL, NULL);
	check_row(f, "{\"input_ids\": [5, 6], \"labels\": null}", FT_ROW_NULL, false, NULL, NULL);
	check_row(f, "{\"input_ids\": [5, 6], \"weight\": null}", FT_ROW_NULL, false, NULL, NULL);
}

static void
test_long_rows_are_cut(void **state)
{
	fixture *f = *state;
	static const char accents[] =
		"{\"prompt\": \"xx\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"
		"\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\", "
		"\"completion\": \"y\"}";
	ft_row_kind kind;
	bool cut;
	char *text;

	/* the prompt loses its beginning, the completion stays */
	check_row(f,
			  "{\"prompt\": \"0123456789012345678901234567890123456789END\", \"completion\": "
			  "\"yes\"}",
			  FT_ROW_USED, true, NULL, "yes<|im_end|>");
	text = text_of(f, false);
	assert_non_null(strstr(text, "9END<|im_end|>"));
	assert_int_equal(f->encoder.ids.length, 64);
	free(text);

	/* a long completion loses its end, never the end token, and leaves the prompt half of the room
	 */
	check_row(f,
			  "{\"prompt\": \"question\", \"completion\": "
			  "\"0123456789012345678901234567890123456789012345678901234567890123456789\"}",
			  FT_ROW_USED, true, NULL, NULL);
	text = text_of(f, false);
	assert_non_null(strstr(text, "question<|im_end|>"));
	assert_non_null(strstr(text, "assistant\n0123456789"));
	assert_int_equal(f->encoder.ids.data[f->encoder.ids.length - 1], 2);
	assert_int_equal(f->encoder.ids.length, 64);
	free(text);

	/* old exchanges go first */
	check_row(f,
			  "{\"messages\": [{\"role\": \"user\", \"content\": \"first first first\"}, "
			  "{\"role\": \"assistant\", \"content\": \"one one one\"}, {\"role\": \"user\", "
			  "\"content\": \"second\"}, {\"role\": \"assistant\", \"content\": \"two\"}]}",
			  FT_ROW_USED, true, NULL, "two<|im_end|>");

	/* a text has no end where it was cut; a character is cut in whole */
	check_row(
		f, "{\"text\": \"0123456789012345678901234567890123456789012345678901234567890123456789\"}",
		FT_ROW_USED, true, NULL, NULL);
	assert_int_not_equal(f->encoder.ids.data[63], 2);
	f->encoder.max_length = 50;
	must(ft_row_encode(&f->encoder, accents, strlen(accents), &kind, &cut));
	assert_true(cut);
	text = text_of(f, false);
	assert_non_null(strstr(text, "user\n\xc3\xa9"));
	free(text);
}

static void
check_bad(fixture *f, const char *line, const char *expected)
{
	ft_row_kind kind;
	bool cut;

	assert_int_equal(ft_row_encode(&f->encoder, line, strlen(line), &kind, &cut), FT_INVALID);
	if (strstr(ft_error_message(), expected) == NULL)
		fail_msg("message \"%s\" lacks \"%s\"", ft_error_message(), expected);
	assert_null(strstr(ft_error_message(), "SECRET"));
	assert_null(strstr(ft_error_hint(), "SECRET"));
}

static void
test_bad_rows(void **state)
{
	fixture *f = *state;

	check_bad(f, "{\"prompt\": \"SECRET", "not valid JSON");
	check_bad(f, "", "not valid JSON");
	check_bad(f, "[\"SECRET\"]", "no JSON object");
	check_bad(f, "{\"prompt\": \"SECRET\"}", "\"completion\" is missing");
	check_bad(f, "{\"completion\": \"SECRET\"}", "\"prompt\" is missing");
	check_bad(f, "{\"prompt\": 1, \"completion\": \"SECRET\"}", "\"prompt\" is no string");
	check_bad(f, "{\"prompt\": \"SECRET\", \"completion\": \"x\", \"text\": \"y\"}",
			  "2 column sets");
	check_bad(f, "{}", "0 column sets");
	check_bad(f, "{\"answer\": \"SECRET\"}", "unknown column \"answer\"");
	check_bad(f, "{\"text\": [\"SECRET\"]}", "\"text\" is no string");
	check_bad(f, "{\"messages\": []}", "no list of messages");
	check_bad(f, "{\"messages\": [\"SECRET\"]}", "message 1");
	check_bad(f, "{\"messages\": [{\"role\": \"SECRETROLE\", \"content\": 1}]}", "message 1");
	check_bad(f, "{\"text\": \"SECRET\", \"weight\": -1}", "column \"weight\" is neither 0");
	check_bad(f, "{\"text\": \"SECRET\", \"weight\": \"SECRET\"}", "column \"weight\"");
	check_bad(f, "{\"text\": \"SECRET\", \"weight\": 1e13}", "from 1e-12 to 1e+12");
	check_bad(f, "{\"text\": \"SECRET\", \"weight\": 1e-13}", "column \"weight\"");
	check_bad(f, "{\"text\": \"SECRET\", \"weight\": 1e400}", "not valid JSON");
	check_bad(f,
			  "{\"messages\": [{\"role\": \"user\", \"content\": \"SECRET\"}, {\"role\": "
			  "\"assistant\", \"content\": \"SECRET\", \"weight\": -1}]}",
			  "\"weight\" of message 2 is neither 0");
	check_bad(f, "{\"input_ids\": \"SECRET\"}", "column \"input_ids\" is no list");
	check_bad(f, "{\"input_ids\": []}", "column \"input_ids\" is empty");
	check_bad(f, "{\"input_ids\": [1, \"SECRET\"]}",
			  "element 2 of column \"input_ids\" is no integer");
	check_bad(f, "{\"input_ids\": [1, null]}", "element 2 of column \"input_ids\" is no integer");
	check_bad(f, "{\"input_ids\": [1, [2]]}", "element 2 of column \"input_ids\" is no integer");
	check_bad(f, "{\"input_ids\": [1, 99999]}",
			  "element 2 of column \"input_ids\" is outside of the vocabulary of");
	check_bad(f, "{\"input_ids\": [1, -100]}", "element 2 of column \"input_ids\" is outside");
	check_bad(f, "{\"input_ids\": [1, 4294967297]}",
			  "element 2 of column \"input_ids\" is outside");
	check_bad(f, "{\"input_ids\": [1, 2], \"labels\": [1]}",
			  "column \"labels\" has 1 elements, \"input_ids\" has 2");
	check_bad(f, "{\"input_ids\": [1, 2], \"labels\": []}", "column \"labels\" is empty");
	check_bad(f, "{\"input_ids\": [1, 2], \"labels\": [1, -1]}",
			  "element 2 of column \"labels\" is neither -100 nor in the vocabulary");
	check_bad(f, "{\"input_ids\": [1, 2], \"labels\": [1, 99999]}",
			  "element 2 of column \"labels\"");
	check_bad(f, "{\"input_ids\": [1, 2], \"attention_mask\": [1, 1, 1]}",
			  "column \"attention_mask\" has 3 elements, \"input_ids\" has 2");
	check_bad(f, "{\"input_ids\": [1, 2], \"attention_mask\": [1, 2]}",
			  "element 2 of column \"attention_mask\" is neither 0 nor 1");
	check_bad(f, "{\"input_ids\": [1, 2, 3], \"attention_mask\": [1, 0, 1]}",
			  "element 2 of column \"attention_mask\" is 0 between");
	check_bad(f, "{\"labels\": [1]}", "column \"input_ids\" is missing");
	check_bad(f, "{\"input_ids\": [1, 2], \"text\": \"SECRET\"}", "2 column sets");
	check_bad(f, "{\"weight\": 1}", "0 column sets");
	check_bad(f, "{\"text\": \"SECRET\", \"text\": \"SECRET\"}", "not valid JSON");
	check_bad(f, "{\"text\": \"\xff SECRET\"}", "not valid JSON");
}

static const char rows[] = "{\"prompt\": \"a\", \"completion\": \"1\"}\n"
						   "{\"prompt\": null, \"completion\": \"2\"}\n"
						   "{\"prompt\": \"c\", \"completion\": \"3\"}\n"
						   "{\"prompt\": \"ddddddddddddddddddddddddddddddddddddddddddddddddddd\", "
						   "\"completion\": \"4\"}\n"
						   "{\"prompt\": \"e\", \"completion\": \"5\"}";

static void
test_counts_and_split(void **state)
{
	fixture *f = *state;
	ft_dataset_options options = {.max_length = 64, .validation_fraction = 0.25, .seed = 3};
	ft_dataset *d = dataset_of(&f->run, f->directory, rows, NULL, &options);
	char hex[FT_DIGEST_HEX];
	int32_t ids[64];
	int32_t targets[64];
	float weights[64];
	ft_dataset *again;

	assert_int_equal(d->rows_read, 5);
	assert_int_equal(d->rows_used, 4);
	assert_int_equal(d->rows_skipped_null, 1);
	assert_int_equal(d->rows_truncated, 1);
	assert_int_equal(d->n_train, 3);
	assert_int_equal(d->n_validation, 1);
	assert_int_equal(d->max_length, 64);
	must(ft_digest_bytes(rows, strlen(rows), hex));
	assert_string_equal(d->data_hash, hex);
	must(ft_dataset_read(d, &d->train[0], ids, targets, weights));
	assert_int_equal(ids[0], 1);
	assert_memory_equal(targets, ids, (size_t) d->train[0].length * sizeof *ids);
	assert_true(weights[0] == 0 && weights[d->train[0].length - 1] == 1);
	assert_int_equal(d->train[0].trained, 2);
	again = dataset_of(&f->run, f->directory, rows, NULL, &options);
	assert_memory_equal(again->train, d->train, 3 * sizeof *d->train);
	ft_dataset_close(again);
	ft_dataset_close(d);

	options.validation_fraction = 0;
	d = dataset_of(&f->run, f->directory, rows, NULL, &options);
	assert_int_equal(d->n_train, 4);
	assert_int_equal(d->n_validation, 0);
	ft_dataset_close(d);

	options.validation_fraction = 0.9;
	d = dataset_of(&f->run, f->directory, rows, "{\"text\": \"the end\"}\n", &options);
	assert_int_equal(d->n_train, 4);
	assert_int_equal(d->n_validation, 1);
	ft_dataset_close(d);
}

static void
check_build_fails(fixture *f, const char *text, const char *expected)
{
	ft_dataset_options options = {.max_length = 64};
	char path[FT_PATH_SIZE];

	write_text(f->directory, "train.jsonl", text);
	assert_int_equal(ft_dataset_build(f->directory, &options, ft_model_file_config(f->run.file),
									  ft_model_file_vocabulary(f->run.file), f->run.tokenizer,
									  f->run.chat_template, NULL, NULL),
					 FT_INVALID);
	assert_non_null(strstr(ft_error_message(), expected));
	must(ft_path_join(path, f->directory, "dataset.bin.tmp"));
	assert_false(ft_file_exists(path));
	must(ft_path_join(path, f->directory, "dataset.bin"));
	assert_false(ft_file_exists(path));
}

static void
test_unusable_files(void **state)
{
	fixture *f = *state;

	check_build_fails(f, "", "no usable rows");
	assert_string_not_equal(ft_error_hint(), "");
	check_build_fails(f, "{\"prompt\": null, \"completion\": null}\n", "1 with a null");
	check_build_fails(f, "{\"text\": \"the end\"}\n{\"text\": 5}\n", "row 2 of train.jsonl");
	check_build_fails(f, "{\"text\": \"the end\", \"weight\": 0}\n", "no usable rows: 1 read");
	check_build_fails(f, "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 70000]}\n",
					  "row 2 of train.jsonl: element 2 of column \"input_ids\"");
	check_build_fails(f, "{\"text\": \"the end\"}\n\n{\"text\": \"x\"}\n", "row 2 of train.jsonl");
}

/* Weights are part of the data: of its hash, and of the documents; a row of weight 0 is none. */
static void
test_weights_in_dataset(void **state)
{
	fixture *f = *state;
	ft_dataset_options options = {.max_length = 64};
	const char *lines[3] = {"{\"input_ids\": [5, 6, 7]}\n",
							"{\"input_ids\": [5, 6, 7], \"weight\": 0.5}\n",
							"{\"input_ids\": [5, 6, 7]}\n{\"input_ids\": [8, 9], \"weight\": 0}\n"};
	ft_dataset *d[3];

	for (int i = 0; i < 3; i++)
		d[i] = dataset_of(&f->run, f->directory, lines[i], NULL, &options);
	assert_true(d[0]->train[0].weight == 2 && d[1]->train[0].weight == 1);
	assert_int_equal(d[1]->train[0].trained, 2);
	assert_string_not_equal(d[0]->data_hash, d[1]->data_hash);
	assert_int_equal(d[2]->n_train, 1);
	assert_int_equal(d[2]->rows_read, 2);
	assert_int_equal(d[2]->rows_used, 1);
	assert_int_equal(d[2]->rows_skipped_null, 0);
	assert_memory_equal(d[2]->train, d[0]->train, sizeof d[0]->train[0]);
	for (int i = 0; i < 3; i++)
		ft_dataset_close(d[i]);
}

/* A dataset that was cut short, or whose index points elsewhere, is refused. */
static void
test_corrupt_dataset(void **state)
{
	fixture *f = *state;
	ft_dataset_options options = {.max_length = 64};
	ft_dataset *d = dataset_of(&f->run, f->directory, rows, NULL, &options);
	ft_text text = {0};
	char path[FT_PATH_SIZE];

	ft_dataset_close(d);
	must(ft_path_join(path, f->directory, "dataset.bin"));
	must(ft_read_file(path, 1 << 20, &text));
	for (size_t n = 0; n < text.length; n += 7)
	{
		must(ft_replace_file(path, text.data, n));
		assert_int_equal(ft_dataset_open(f->directory, &d), FT_CORRUPT);
	}
	for (size_t at = text.length - 24; at < text.length - 12; at++)
	{
		text.data[at] ^= 0x7f;
		must(ft_replace_file(path, text.data, text.length));
		text.data[at] ^= 0x7f;
		if (ft_dataset_open(f->directory, &d) == FT_OK)
			ft_dataset_close(d);
	}
	unlink(path);
	assert_int_equal(ft_dataset_open(f->directory, &d), FT_NOT_FOUND);
	ft_text_free(&text);
}

/* --- steps and batches --- */

#define N_DOCUMENTS 200

static void
make_lengths(ft_document *documents, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		documents[i] = (ft_document){.length = (int32_t) (2 + i * 37 % 60 + (i % 50 == 0) * 300)};
}

static void
test_epochs_use_each_document_once(void **state)
{
	ft_document documents[N_DOCUMENTS];
	const int64_t batches[] = {1, 64, 500, 4000, 1 << 20};

	(void) state;
	make_lengths(documents, N_DOCUMENTS);
	for (int b = 0; b < 5; b++)
	{
		uint32_t n_steps = ft_epoch_steps(documents, N_DOCUMENTS, batches[b]);
		ft_epoch epoch;
		uint32_t first_order;

		assert_true(n_steps >= 1 && n_steps <= N_DOCUMENTS);
		must(ft_epoch_create(&epoch, N_DOCUMENTS, n_steps));
		for (uint32_t e = 0; e < 3; e++)
		{
			bool seen[N_DOCUMENTS] = {false};

			ft_epoch_shuffle(&epoch, documents, 9, e);
			for (uint32_t s = 0; s < n_steps; s++)
			{
				assert_true(epoch.first[s] < epoch.first[s + 1]);
				for (uint32_t i = epoch.first[s]; i < epoch.first[s + 1]; i++)
				{
					assert_false(seen[epoch.order[i]]);
					seen[epoch.order[i]] = true;
				}
			}
			assert_int_equal(epoch.first[n_steps], N_DOCUMENTS);
			if (e > 0)
				assert_int_not_equal(first_order, epoch.order[0] * 1000 + epoch.order[1]);
			first_order = epoch.order[0] * 1000 + epoch.order[1];
		}
		ft_epoch_free(&epoch);
	}
}

static void
test_steps_are_about_equal(void **state)
{
	ft_document documents[N_DOCUMENTS];
	uint32_t n_steps;
	ft_epoch epoch;

	(void) state;
	for (uint32_t i = 0; i < N_DOCUMENTS; i++)
		documents[i] = (ft_document){.length = 30 + (int32_t) (i % 31)};
	n_steps = ft_epoch_steps(documents, N_DOCUMENTS, 512);
	must(ft_epoch_create(&epoch, N_DOCUMENTS, n_steps));
	ft_epoch_shuffle(&epoch, documents, 1, 0);
	for (uint32_t s = 0; s < n_steps; s++)
	{
		int64_t tokens = 0;

		for (uint32_t i = epoch.first[s]; i < epoch.first[s + 1]; i++)
			tokens += documents[epoch.order[i]].length;
		assert_true(tokens > 512 - 90 && tokens < 512 + 90);
	}
	ft_epoch_free(&epoch);
}

static void
test_batches_fit(void **state)
{
	ft_document documents[N_DOCUMENTS];
	uint32_t chosen[N_DOCUMENTS];

	(void) state;
	make_lengths(documents, N_DOCUMENTS);
	for (uint32_t i = 0; i < N_DOCUMENTS; i++)
		chosen[i] = N_DOCUMENTS - 1 - i;
	for (int64_t capacity = 361; capacity < 20000; capacity *= 2)
	{
		for (uint32_t wanted = 0; wanted <= 8; wanted += 4)
		{
			bool seen[N_DOCUMENTS] = {false};
			ft_packing packing;

			must(ft_pack(documents, chosen, N_DOCUMENTS, capacity, wanted, &packing));
			assert_true(packing.n_batches >= wanted);
			for (uint32_t b = 0; b < packing.n_batches; b++)
			{
				int64_t tokens = 0;

				for (uint32_t i = packing.first[b]; i < packing.first[b + 1]; i++)
				{
					assert_false(seen[packing.documents[i]]);
					seen[packing.documents[i]] = true;
					tokens += documents[packing.documents[i]].length;
					if (i > packing.first[b])
						assert_true(packing.documents[i] < packing.documents[i - 1]);
				}
				assert_true(tokens <= capacity && tokens > 0);
			}
			for (uint32_t i = 0; i < N_DOCUMENTS; i++)
				assert_true(seen[i]);
			ft_packing_free(&packing);
		}
	}
	{
		ft_packing packing;

		assert_int_equal(ft_pack(documents, chosen, N_DOCUMENTS, 100, 0, &packing), FT_INTERNAL);
		must(ft_pack(documents, chosen, 0, 100, 0, &packing));
		assert_int_equal(packing.n_batches, 0);
		ft_packing_free(&packing);
	}
}

static void
test_microbatch(void **state)
{
	fixture *f = *state;
	ft_dataset_options options = {.max_length = 64};
	ft_dataset *d = dataset_of(&f->run, f->directory, rows, NULL, &options);
	uint32_t chosen[2] = {2, 0};
	ft_packing packing;
	ft_microbatch batch;

	must(ft_pack(d->train, chosen, 2, 256, 0, &packing));
	must(ft_microbatch_create(256, &batch));
	for (int round = 0; round < 2; round++)
	{
		must(ft_microbatch_fill(&batch, d, d->train, &packing, 0));
		assert_int_equal(batch.n_documents, 2);
		assert_int_equal(batch.all, d->train[2].length + d->train[0].length);
		assert_int_equal(batch.tokens, batch.all - batch.shared);
		assert_int_equal(batch.starts[1], d->train[2].length);
		assert_int_equal(batch.positions[batch.row_of[batch.starts[1]]], 0);
		assert_int_equal(batch.positions[batch.row_of[batch.all - 1]], d->train[0].length - 1);
		assert_int_equal(batch.trained, 4);
		/* each loss row predicts the token behind it */
		for (int64_t i = 0; i < batch.trained; i++)
			assert_int_equal(batch.targets[i], batch.ids[batch.rows[i] + 1]);
		assert_int_equal(batch.rows[3], batch.tokens - 2);
	}
	ft_microbatch_free(&batch);
	ft_packing_free(&packing);
	ft_dataset_close(d);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_rows, setup, teardown),
		cmocka_unit_test_setup_teardown(test_user_text_is_never_special, setup, teardown),
		cmocka_unit_test_setup_teardown(test_train_on_inputs, setup, teardown),
		cmocka_unit_test_setup_teardown(test_row_weight, setup, teardown),
		cmocka_unit_test_setup_teardown(test_turn_weights, setup, teardown),
		cmocka_unit_test_setup_teardown(test_tokens, setup, teardown),
		cmocka_unit_test_setup_teardown(test_long_rows_are_cut, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_rows, setup, teardown),
		cmocka_unit_test_setup_teardown(test_counts_and_split, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unusable_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_weights_in_dataset, setup, teardown),
		cmocka_unit_test_setup_teardown(test_corrupt_dataset, setup, teardown),
		cmocka_unit_test(test_epochs_use_each_document_once),
		cmocka_unit_test(test_steps_are_about_equal),
		cmocka_unit_test(test_batches_fit),
		cmocka_unit_test_setup_teardown(test_microbatch, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
