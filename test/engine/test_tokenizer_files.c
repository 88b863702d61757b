/*
 * test_tokenizer_files.c: the tokenisers of directories, against tokenizers' and sentencepiece's;
 * conversations of the families, against transformers'; and files that are broken.
 */
#include "chat_template.h"
#include "tokenizer_files.h"
#include "tokenizer_files_internal.h"

#include <fcntl.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define FILES "test/golden/tokenizer_files"
#define MODEL "tokenizer.model"
#define JSON "tokenizer.json"

static json_t *small;
static json_t *expected;
static json_t *families;

static json_t *
load(const char *path)
{
	json_error_t error;
	json_t *value = json_load_file(path, JSON_ALLOW_NUL, &error);

	if (value == NULL)
		fail_msg("%s: %s", path, error.text);
	return value;
}

static int
load_fixtures(void **state)
{
	(void) state;
	small = load("test/golden/tokenizer_small.json");
	expected = load(FILES "/ids.json");
	families = load("test/golden/chat_families.json");
	return 0;
}

static int
free_fixtures(void **state)
{
	(void) state;
	json_decref(small);
	json_decref(expected);
	json_decref(families);
	return 0;
}

static ft_status
read_directory(const char *path, ft_tokenizer_files **files)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY);
	ft_status status;

	assert_true(fd >= 0);
	status = ft_tokenizer_files_read(fd, path, files);
	close(fd);
	return status;
}

static ft_tokenizer *
open_tokenizer(const char *name)
{
	char path[256];
	ft_tokenizer_files *files;
	ft_tokenizer *tokenizer = NULL;

	snprintf(path, sizeof path, FILES "/%s", name);
	if (read_directory(path, &files) != FT_OK ||
		ft_tokenizer_create(ft_tokenizer_files_vocabulary(files), &tokenizer) != FT_OK)
		fail_msg("%s", ft_error_message());
	ft_tokenizer_files_free(files);
	return tokenizer;
}

static void
compare(const char *name, size_t number, const ft_ids *ids, const json_t *wanted)
{
	if (ids->length != json_array_size(wanted))
		fail_msg("%s: text %zu has %zu tokens, expected %zu", name, number, ids->length,
				 json_array_size(wanted));
	for (size_t i = 0; i < ids->length; i++)
	{
		json_int_t id = json_integer_value(json_array_get(wanted, i));

		if (ids->data[i] != id)
			fail_msg("%s: text %zu, token %zu is %d, expected %d", name, number, i, ids->data[i],
					 (int) id);
	}
}

/* The ids of text i: in an array, or in an object of those that differ from another's. */
static const json_t *
wanted_ids(const json_t *ids, const json_t *others, size_t i)
{
	char key[24];
	const json_t *found;

	if (json_is_array(ids))
		return json_array_get(ids, i);
	snprintf(key, sizeof key, "%zu", i);
	found = json_object_get(ids, key);
	return found != NULL ? found : wanted_ids(others, NULL, i);
}

static void
compare_all(const char *name, const json_t *ids, const json_t *others, bool special)
{
	ft_tokenizer *t = open_tokenizer(name);
	const json_t *texts = json_object_get(small, "texts");
	ft_ids got = {0};

	assert_true(json_array_size(texts) > 300);
	for (size_t i = 0; i < json_array_size(texts); i++)
	{
		const json_t *text = json_array_get(texts, i);

		ft_ids_clear(&got);
		assert_int_equal(ft_tokenizer_encode(t, json_string_value(text), json_string_length(text),
											 special, &got),
						 FT_OK);
		compare(name, i, &got, wanted_ids(ids, others, i));
	}
	ft_ids_free(&got);
	ft_tokenizer_free(t);
}

static void
test_sentencepiece(void **state)
{
	const json_t *model = json_object_get(json_object_get(expected, "spm_model"), "ids");
	const json_t *spm = json_object_get(expected, "spm_json");
	const json_t *inst = json_object_get(expected, "inst_json");

	(void) state;
	compare_all("spm_model", model, NULL, false);
	compare_all("spm_json", json_object_get(spm, "ids"), model, false);
	compare_all("inst_json", json_object_get(inst, "ids"), NULL, false);
	compare_all("inst_json", json_object_get(inst, "special"), json_object_get(inst, "ids"), true);
}

/* The file of a real family, with each pattern that a family has. */
static void
test_byte_level(void **state)
{
	(void) state;
	compare_all("byte_level", json_object_get(json_object_get(small, "ids"), "llama-bpe"), NULL,
				false);
}

static void
test_round_trip(void **state)
{
	static const char *const names[] = {"spm_model", "spm_json", "inst_model"};
	const json_t *texts = json_object_get(small, "texts");
	ft_ids ids = {0};
	ft_text text = {0};

	(void) state;
	for (size_t k = 0; k < 3; k++)
	{
		ft_tokenizer *t = open_tokenizer(names[k]);

		for (size_t i = 0; i < json_array_size(texts); i++)
		{
			const char *s = json_string_value(json_array_get(texts, i));
			size_t n = json_string_length(json_array_get(texts, i));

			/* no space is put before an added token that a text begins with */
			if (k == 1 && strncmp(s, "<tool>", 6) == 0)
				continue;
			ft_ids_clear(&ids);
			ft_text_clear(&text);
			assert_int_equal(ft_tokenizer_encode(t, s, n, false, &ids), FT_OK);
			for (size_t j = 0; j < ids.length; j++)
				assert_false(ft_tokenizer_is_special(t, ids.data[j]));
			assert_int_equal(ft_tokenizer_decode(t, ids.data, ids.length, false, &text), FT_OK);
			if (strstr(s, "<tool>") == NULL || k != 1)
			{
				assert_int_equal(text.length, n);
				assert_memory_equal(n > 0 ? text.data : "", s, n);
			}
		}
		ft_tokenizer_free(t);
	}
	ft_ids_free(&ids);
	ft_text_free(&text);
}

/* Bytes that are no text come back; a space is put before the text once, and not inside of it. */
static void
test_bytes(void **state)
{
	ft_tokenizer *t = open_tokenizer("spm_model");
	ft_ids ids = {0};
	ft_text text = {0};
	char bytes[256];

	(void) state;
	for (int i = 0; i < 256; i++)
		bytes[i] = (char) i;
	assert_int_equal(ft_tokenizer_encode(t, bytes, 256, true, &ids), FT_OK);
	assert_int_equal(ft_tokenizer_decode(t, ids.data, ids.length, true, &text), FT_OK);
	assert_int_equal(text.length, 256);
	assert_memory_equal(text.data, bytes, 256);

	ft_ids_clear(&ids);
	ft_text_clear(&text);
	assert_int_equal(ft_tokenizer_encode_part(t, "ab", 2, false, FT_START_INSIDE, &ids), FT_OK);
	assert_int_equal(ft_tokenizer_decode_part(t, ids.data, ids.length, false, &text), FT_OK);
	assert_string_equal(text.data, "ab");
	ft_ids_clear(&ids);
	ft_text_clear(&text);
	assert_int_equal(ft_tokenizer_encode_part(t, "ab", 2, false, FT_START_SPECIAL, &ids), FT_OK);
	assert_int_equal(ft_tokenizer_decode_part(t, ids.data, ids.length, false, &text), FT_OK);
	assert_string_equal(text.data, " ab");
	ft_ids_free(&ids);
	ft_text_free(&text);
	ft_tokenizer_free(t);
}

/* One text of 256 kB each, of kinds that a slow tokeniser is slow on: the test's time limit is the
 * runner's, and quadratic work would exceed it by far. */
static void
test_long_texts(void **state)
{
	static const char *const units[] = {"a", " ",    "ab",    " a", "1", "\n", "\xcc\xa3\xcc\x80",
										"é", "\xff", "<tool>"};
	size_t n = 1 << 18;
	char *text = malloc(n);
	ft_ids ids = {0};

	(void) state;
	for (size_t k = 0; k < 2; k++)
	{
		ft_tokenizer *t = open_tokenizer(k == 0 ? "spm_model" : "byte_level");

		for (size_t u = 0; u < sizeof units / sizeof units[0]; u++)
		{
			size_t length = strlen(units[u]);

			for (size_t i = 0; i < n; i++)
				text[i] = units[u][i % length];
			ft_ids_clear(&ids);
			assert_int_equal(ft_tokenizer_encode(t, text, n, false, &ids), FT_OK);
			assert_true(ids.length > 0);
		}
		ft_tokenizer_free(t);
	}
	free(text);
	ft_ids_free(&ids);
}

static void
test_config(void **state)
{
	ft_tokenizer_files *files;
	const ft_vocabulary *v;

	(void) state;
	assert_int_equal(read_directory(FILES "/spm_json", &files), FT_OK);
	v = ft_tokenizer_files_vocabulary(files);
	assert_string_equal(ft_tokenizer_files_source(files), JSON);
	assert_string_equal(v->model, "llama");
	assert_true(v->bos == 1 && v->eos == 2 && v->unknown == 0 && v->pad == -1);
	assert_true(v->add_bos && v->byte_fallback);
	ft_tokenizer_files_free(files);
	assert_int_equal(read_directory(FILES "/byte_level", &files), FT_OK);
	v = ft_tokenizer_files_vocabulary(files);
	assert_string_equal(v->model, "gpt2");
	assert_string_equal(v->pre, "llama-bpe");
	assert_true(v->bos == 3 && v->eos == 0);
	assert_int_equal(v->ignore_merges, FT_MERGES_IGNORED);
	ft_tokenizer_files_free(files);
	assert_int_equal(read_directory(FILES, &files), FT_NOT_FOUND);
	assert_non_null(strstr(ft_error_message(), FILES "/" MODEL));
}

/* --- conversations --- */

static void
compare_conversation(const char *name, const ft_chat_template *t, const ft_tokenizer *tokenizer,
					 const json_t *test, size_t number)
{
	const json_t *list = json_object_get(test, "messages");
	ft_message messages[16];
	size_t n = json_array_size(list);
	ft_ids ids = {0};
	ft_weights weights = {0};

	assert_in_range(n, 1, 16);
	for (size_t i = 0; i < n; i++)
	{
		const json_t *m = json_array_get(list, i);
		const json_t *content = json_object_get(m, "content");

		messages[i] = (ft_message){json_string_value(json_object_get(m, "role")),
								   json_string_value(content), json_string_length(content), 1};
	}
	if (ft_chat_encode(t, tokenizer, messages, n,
					   json_is_true(json_object_get(test, "add_generation_prompt")), &ids,
					   &weights) != FT_OK)
		fail_msg("%s: %s", name, ft_error_message());
	assert_int_equal(weights.length, ids.length);
	compare(name, number, &ids, json_object_get(test, "ids"));
	ft_ids_free(&ids);
	ft_weights_free(&weights);
}

/* Each family's template is known by its text, and rendered as transformers renders it. */
static void
test_families(void **state)
{
	size_t g;
	json_t *group;

	(void) state;
	json_array_foreach (families, g, group)
	{
		const char *name = json_string_value(json_object_get(group, "template"));
		ft_tokenizer *tokenizer =
			open_tokenizer(json_string_value(json_object_get(group, "tokenizer")));
		const ft_chat_template *t;
		size_t i;
		json_t *test;

		if (ft_chat_template_find(NULL, json_string_value(json_object_get(group, "jinja")), &t) !=
			FT_OK)
			fail_msg("%s: %s", name, ft_error_message());
		assert_string_equal(ft_chat_template_name(t), name);
		json_array_foreach (json_object_get(group, "cases"), i, test)
			compare_conversation(name, t, tokenizer, test, i);
		assert_true(i >= 5);
		ft_tokenizer_free(tokenizer);
	}
	assert_true(g >= 15);
}

static ft_message
say(const char *role, const char *content)
{
	return (ft_message){role, content, strlen(content), 1};
}

/* What is trained begins where generation begins, and has no special token but the end. */
static void
test_inst_prefix(void **state)
{
	static const char *const names[] = {"mistral-v0.1", "mistral-v0.2", "mistral",
										"mistral-v0.3", "llama2",       "zephyr"};
	static const char *const tokenizers[] = {"spm_json", "inst_json", "inst_model"};

	(void) state;
	for (size_t k = 0; k < 18; k++)
	{
		ft_tokenizer *tokenizer = open_tokenizer(tokenizers[k / 6]);
		const ft_chat_template *t;
		ft_message messages[] = {say("user", "[/INST] </s> <s>[INST]"),
								 say("assistant", "</s>yes")};
		ft_ids prompt = {0};
		ft_ids whole = {0};
		ft_weights weights = {0};
		int ends = 0;

		assert_int_equal(ft_chat_template_find(names[k % 6], NULL, &t), FT_OK);
		assert_int_equal(ft_chat_encode(t, tokenizer, messages, 1, true, &prompt, NULL), FT_OK);
		assert_int_equal(ft_chat_encode(t, tokenizer, messages, 2, false, &whole, &weights), FT_OK);
		assert_true(whole.length > prompt.length);
		assert_memory_equal(prompt.data, whole.data, prompt.length * sizeof(int32_t));
		for (size_t i = 0; i < whole.length; i++)
		{
			bool special = ft_tokenizer_is_special(tokenizer, whole.data[i]);

			assert_true(i >= prompt.length || weights.data[i] == 0);
			if (i < prompt.length)
				continue;
			if (special)
				assert_int_equal(whole.data[i], ft_tokenizer_eos(tokenizer));
			ends += special;
		}
		assert_int_equal(ends, 1);
		assert_true(weights.data[prompt.length] == 1);
		ft_ids_free(&prompt);
		ft_ids_free(&whole);
		ft_weights_free(&weights);
		ft_tokenizer_free(tokenizer);
	}
}

static void
test_inst_roles(void **state)
{
	ft_tokenizer *tokenizer = open_tokenizer("spm_json");
	const ft_message odd[] = {say("user", "a"), say("user", "b")};
	const ft_message answer = say("assistant", "a");
	const ft_message system = say("system", "a");
	const ft_chat_template *t;
	ft_ids ids = {0};

	(void) state;
	assert_int_equal(ft_chat_template_find("mistral", NULL, &t), FT_OK);
	assert_true(ft_chat_template_answers_space(t));
	assert_int_equal(ft_chat_encode(t, tokenizer, odd, 2, true, &ids, NULL), FT_INVALID);
	assert_string_equal(ft_error_message(),
						"message 2 has role \"user\", but chat template \"mistral\" expects "
						"\"assistant\" there");
	assert_int_equal(ft_chat_encode(t, tokenizer, &answer, 1, true, &ids, NULL), FT_INVALID);
	assert_int_equal(ft_chat_encode(t, tokenizer, &system, 1, true, &ids, NULL), FT_INVALID);
	assert_non_null(strstr(ft_error_message(), "needs a message with role \"user\""));
	assert_int_equal(ft_chat_template_find("mistral-v0.2", NULL, &t), FT_OK);
	assert_int_equal(ft_chat_encode(t, tokenizer, &system, 1, true, &ids, NULL), FT_INVALID);
	assert_non_null(strstr(ft_error_message(), "no place for a system message"));
	ft_ids_free(&ids);
	ft_tokenizer_free(tokenizer);
}

/* --- broken files --- */

static ft_status
parse(const char *name, const char *bytes, size_t n, const char *config)
{
	ft_tokenizer_files *files;
	ft_tokenizer *tokenizer;
	ft_status status = ft_tokenizer_files_parse(name, bytes, n, config, &files);

	if (status != FT_OK)
		return status;
	status = ft_tokenizer_create(ft_tokenizer_files_vocabulary(files), &tokenizer);
	if (status == FT_OK)
	{
		ft_ids ids = {0};

		assert_int_equal(ft_tokenizer_encode(tokenizer, "abc \xff <s>", 9, true, &ids), FT_OK);
		ft_ids_free(&ids);
		ft_tokenizer_free(tokenizer);
	}
	ft_tokenizer_files_free(files);
	return status;
}

static char *
read_all(const char *path, size_t *n)
{
	FILE *f = fopen(path, "rb");
	char *bytes = calloc(1, 1 << 20);

	assert_non_null(f);
	*n = fread(bytes, 1, 1 << 20, f);
	fclose(f);
	return bytes;
}

/* A copy of just n bytes, so that reading beyond them is seen. */
static ft_status
parse_copy(const char *name, const char *bytes, size_t n)
{
	char *copy = malloc(n > 0 ? n : 1);
	ft_status status;

	memcpy(copy, bytes, n);
	status = parse(name, copy, n, NULL);
	free(copy);
	return status;
}

static void
test_truncated(void **state)
{
	size_t n;
	char *bytes = read_all(FILES "/spm_json/" JSON, &n);

	(void) state;
	for (size_t at = 0; at + 2 < n; at += 64)
		assert_int_equal(parse_copy(JSON, bytes, at), FT_CORRUPT);
	free(bytes);
	bytes = read_all(FILES "/spm_model/" MODEL, &n);
	for (size_t at = 0; at < n; at += 64)
	{
		/* a beginning that ends between two pieces is a smaller model without its settings */
		ft_status status = parse_copy(MODEL, bytes, at);

		assert_true(status == FT_CORRUPT || status == FT_UNSUPPORTED);
	}
	free(bytes);
}

#define SPM_STEPS                                                                                 \
	"\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"   \
	"\"\xe2\x96\x81\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":"         \
	"\"\xe2\x96\x81\"}]},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\"," \
	"\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"},{\"type\":\"Fuse\"},{\"type\":" \
	"\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}"
#define BYTE_STEPS                                                                                 \
	"\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":" \
	"\"ByteLevel\"}"
#define FILE_OF(steps, vocab, merges, added)                                                \
	"{\"added_tokens\":[" added "]," steps ",\"model\":{\"type\":\"BPE\",\"vocab\":{" vocab \
	"},\"merges\":[" merges "]}}"
#define AB "\"a\":0,\"b\":1,\"ab\":2"

static void
test_json(void **state)
{
	static const struct
	{
		const char *text;
		const char *config;
		ft_status status;
		const char *message;
	} cases[] = {
		{FILE_OF(SPM_STEPS, AB, "\"a b\"", ""), NULL, FT_OK, NULL},
		{FILE_OF(BYTE_STEPS, AB, "[\"a\",\"b\"]", ""), NULL, FT_OK, NULL},
		/* a merge of what it makes, and one before its parts are there */
		{FILE_OF(BYTE_STEPS, AB ",\"aba\":3", "\"ab a\",\"a b\"", ""), NULL, FT_OK, NULL},
		{FILE_OF(BYTE_STEPS, "\"a\":0,\"aa\":1,\"aaa\":2", "\"a aa\",\"aa a\",\"a a\"", ""), NULL,
		 FT_OK, NULL},
		{FILE_OF(BYTE_STEPS, AB, "\"a b\"", "{\"id\":5,\"content\":\"<s>\",\"special\":true}"),
		 "{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"<s>\"}}", FT_OK, NULL},
		{FILE_OF(BYTE_STEPS, AB, "\"a c\"", ""), NULL, FT_CORRUPT, "merge 0 needs a token"},
		{FILE_OF(BYTE_STEPS, AB, "\"b a\"", ""), NULL, FT_CORRUPT, "merge 0 needs a token"},
		{FILE_OF(BYTE_STEPS, AB, "\"ab\"", ""), NULL, FT_CORRUPT, "does not name two tokens"},
		{FILE_OF(BYTE_STEPS, AB, "\"a b c\"", ""), NULL, FT_CORRUPT, "does not name two tokens"},
		{FILE_OF(BYTE_STEPS, AB, "[\"a\"]", ""), NULL, FT_CORRUPT, "does not name two tokens"},
		{FILE_OF(BYTE_STEPS, AB, "7", ""), NULL, FT_CORRUPT, "does not name two tokens"},
		{FILE_OF(BYTE_STEPS, "\"a\":0,\"a\":1", "", ""), NULL, FT_CORRUPT, "a key stands twice"},
		{FILE_OF(BYTE_STEPS, "\"a\":0,\"b\":0", "", ""), NULL, FT_CORRUPT,
		 "two tokens have the id 0"},
		{FILE_OF(BYTE_STEPS, "\"a\":9999999999", "", ""), NULL, FT_CORRUPT,
		 "token id 9999999999 is out of range"},
		{FILE_OF(BYTE_STEPS, "\"a\":70000", "", ""), NULL, FT_CORRUPT, "out of range"},
		{FILE_OF(BYTE_STEPS, "\"a\":-1", "", ""), NULL, FT_CORRUPT, "a token has no id"},
		{FILE_OF(BYTE_STEPS, "\"a\":1.5", "", ""), NULL, FT_CORRUPT, "a token has no id"},
		{FILE_OF(BYTE_STEPS, "", "", ""), NULL, FT_CORRUPT, "0 tokens"},
		{FILE_OF(BYTE_STEPS, AB, "", "{\"id\":1,\"content\":\"x\"}"), NULL, FT_CORRUPT,
		 "two tokens have the id 1"},
		{FILE_OF(BYTE_STEPS, AB, "", "{\"id\":3,\"content\":\"b\"}"), NULL, FT_CORRUPT,
		 "added token 3 is token 1 of the vocabulary"},
		{FILE_OF(BYTE_STEPS, AB, "", "{\"id\":3}"), NULL, FT_CORRUPT, "has no content"},
		{FILE_OF(BYTE_STEPS, AB, "", "{\"id\":3,\"content\":\"x\",\"lstrip\":1}"), NULL, FT_CORRUPT,
		 "\"lstrip\" of added token 3 is no boolean"},
		{FILE_OF("\"normalizer\":{\"type\":\"Lowercase\"}," BYTE_STEPS, AB, "", ""), NULL,
		 FT_UNSUPPORTED, "normalizer \"Lowercase\" is not supported"},
		{FILE_OF("\"pre_tokenizer\":{\"type\":\"Whitespace\"}", AB, "", ""), NULL, FT_UNSUPPORTED,
		 "pre_tokenizer \"Whitespace\" is not supported"},
		{FILE_OF("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x+\"},"
				 "\"behavior\":\"Isolated\"}",
				 AB, "", ""),
		 NULL, FT_UNSUPPORTED, "pre_tokenizer \"Split\" with this pattern"},
		{FILE_OF("\"decoder\":{\"type\":\"WordPiece\"}", AB, "", ""), NULL, FT_UNSUPPORTED,
		 "decoder \"WordPiece\" is not supported"},
		{FILE_OF("\"x\":0", AB, "", ""), NULL, FT_UNSUPPORTED, "neither \"ByteLevel\""},
		{FILE_OF(SPM_STEPS ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\"}", AB,
				 "", ""),
		 NULL, FT_UNSUPPORTED, "pre_tokenizer \"Metaspace\" with this replacement"},
		{"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", NULL, FT_UNSUPPORTED,
		 "model \"Unigram\" is not supported"},
		{"{\"model\":{\"type\":\"BPE\",\"dropout\":0.1}}", NULL, FT_UNSUPPORTED, "with dropout"},
		{"{}", NULL, FT_CORRUPT, "there is no model"},
		{"[]", NULL, FT_CORRUPT, "is no JSON object"},
		{FILE_OF(BYTE_STEPS, AB, "", ""), "{\"bos_token\":\"<s>\"}", FT_CORRUPT,
		 "\"bos_token\" is a token that the vocabulary lacks"},
		{FILE_OF(BYTE_STEPS, AB, "", ""), "{\"eos_token\":7}", FT_CORRUPT,
		 "\"eos_token\" is no token"},
		{FILE_OF(BYTE_STEPS, AB, "", ""), "{\"add_bos_token\":7}", FT_CORRUPT,
		 "\"add_bos_token\" is no boolean"},
		{FILE_OF(BYTE_STEPS, AB, "", ""), "{\"add_eos_token\":true}", FT_UNSUPPORTED,
		 "\"add_eos_token\" is true"},
		{FILE_OF(BYTE_STEPS ",\"post_processor\":{\"type\":\"BertProcessing\"}", AB, "", ""), NULL,
		 FT_UNSUPPORTED, "post_processor \"BertProcessing\" is not supported"},
		{FILE_OF(BYTE_STEPS ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
							"{\"Sequence\":{}},{\"SpecialToken\":{\"id\":\"a\"}}]}",
				 AB, "", ""),
		 NULL, FT_UNSUPPORTED, "a token that is not before the text"},
	};
	char *deep = malloc(100001);

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		ft_status status = parse(JSON, cases[i].text, strlen(cases[i].text), cases[i].config);

		if (status != cases[i].status)
			fail_msg("case %zu: %s, %s", i, ft_status_name(status), ft_error_message());
		if (cases[i].message != NULL && strstr(ft_error_message(), cases[i].message) == NULL)
			fail_msg("case %zu: \"%s\"", i, ft_error_message());
	}
	memset(deep, '[', 100000);
	assert_int_equal(parse(JSON, deep, 100000, NULL), FT_CORRUPT);
	free(deep);
	assert_int_equal(parse(JSON, "{}\0{}", 5, NULL), FT_CORRUPT);
}

/* A model of pieces "a", "b", "ab" with settings appended. */
static ft_status
parse_model(const char *settings, size_t n, const char *config)
{
	static const char pieces[] = "\x0a\x03\x0a\x01"
								 "a"
								 "\x0a\x08\x0a\x01"
								 "b\x15\x00\x00\x00\x00"
								 "\x0a\x04\x0a\x02"
								 "ab";
	char bytes[256];

	memcpy(bytes, pieces, sizeof pieces - 1);
	memcpy(bytes + sizeof pieces - 1, settings, n);
	return parse(MODEL, bytes, sizeof pieces - 1 + n, config);
}

static void
test_model(void **state)
{
	/* trainer_spec: model_type BPE; normalizer_spec: remove_extra_whitespaces false */
#define BPE "\x12\x02\x18\x02"
#define KEEP "\x1a\x02\x20\x00"
	static const struct
	{
		const char *bytes;
		size_t n;
		ft_status status;
		const char *message;
	} cases[] = {
		{BPE KEEP, 8, FT_OK, NULL},
		{"", 0, FT_UNSUPPORTED, "type unigram"},
		{"\x12\x02\x18\x03" KEEP, 8, FT_UNSUPPORTED, "type word"},
		{"\x12\x02\x18\x09" KEEP, 8, FT_UNSUPPORTED, "type unknown"},
		{BPE, 4, FT_UNSUPPORTED, "remove_extra_whitespaces"},
		{BPE KEEP "\x1a\x03\x12\x01x", 13, FT_UNSUPPORTED, "precompiled_charsmap"},
		{BPE KEEP "\x1a\x02\x28\x00", 12, FT_UNSUPPORTED, "not escaped"},
		{BPE KEEP "\x12\x03\xc0\x01\x01", 13, FT_UNSUPPORTED, "treat_whitespace_as_suffix"},
		{BPE KEEP "\x0a\x00", 10, FT_CORRUPT, "piece 3 is empty"},
		{BPE KEEP "\x0a\x05\x0a\x01x\x18\x09", 15, FT_CORRUPT, "piece 3 is of type 9"},
		{BPE KEEP "\x0a\x05\x0a\x01x\x18\x05", 15, FT_UNSUPPORTED, "piece 3 is of type unused"},
		{BPE KEEP "\x0a\x05\x0a\x01x\x10\x01", 15, FT_CORRUPT, "field \"score\" has wire type 0"},
		{BPE KEEP "\x0a\x7f", 10, FT_CORRUPT, "is truncated"},
		{BPE KEEP "\x0b", 9, FT_CORRUPT, "wire type 3"},
		{BPE KEEP "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 20, FT_CORRUPT,
		 "more than 64 bits"},
		{BPE KEEP "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 18, FT_CORRUPT, "is truncated"},
		{BPE KEEP "\x0a\x08\x0a\x01x\x15\x00\x00\xc0\x7f", 18, FT_CORRUPT,
		 "score of token 3 is not a number"},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		ft_status status = parse_model(cases[i].bytes, cases[i].n, NULL);

		if (status != cases[i].status)
			fail_msg("case %zu: %s, %s", i, ft_status_name(status), ft_error_message());
		if (cases[i].message != NULL && strstr(ft_error_message(), cases[i].message) == NULL)
			fail_msg("case %zu: \"%s\"", i, ft_error_message());
	}
	assert_int_equal(parse(MODEL, "", 0, NULL), FT_CORRUPT);
	assert_non_null(strstr(ft_error_message(), "has no pieces"));
	/* tokens behind the pieces */
	assert_int_equal(parse_model(BPE KEEP, 8,
								 "{\"added_tokens_decoder\":{\"1\":{\"content\":\"b\"},\"9\":"
								 "{\"content\":\"<p>\",\"special\":true}},\"pad_token\":\"<p>\"}"),
					 FT_OK);
	assert_int_equal(
		parse_model(BPE KEEP, 8, "{\"added_tokens_decoder\":{\"1\":{\"content\":\"x\"}}}"),
		FT_CORRUPT);
	assert_non_null(strstr(ft_error_message(), "another text for piece 1"));
	assert_int_equal(
		parse_model(BPE KEEP, 8, "{\"added_tokens_decoder\":{\"1x\":{\"content\":\"x\"}}}"),
		FT_CORRUPT);
	assert_int_equal(
		parse_model(BPE KEEP, 8,
					"{\"added_tokens_decoder\":{\"99999999999\":{\"content\":\"x\"}}}"),
		FT_CORRUPT);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sentencepiece), cmocka_unit_test(test_byte_level),
		cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_bytes),
		cmocka_unit_test(test_long_texts),    cmocka_unit_test(test_config),
		cmocka_unit_test(test_families),      cmocka_unit_test(test_inst_prefix),
		cmocka_unit_test(test_inst_roles),    cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_json),          cmocka_unit_test(test_model),
	};

	return cmocka_run_group_tests(tests, load_fixtures, free_fixtures);
}
