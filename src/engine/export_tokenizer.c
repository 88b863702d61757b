/*
 * export_tokenizer.c: a vocabulary as tokenizer.json and tokenizer_config.json
 * (https://huggingface.co/docs/tokenizers).
 *
 * All tokens stand in the model's vocabulary, the special ones also among the
 * added ones: so each keeps its id.
 */
#include "export.h"

#include "tokenizer_pre.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* Patterns as the families' own tokenizer.json have them. */
#define LLAMA3(digits)                                                         \
	"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" digits \
	"| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const struct
{
	const char *pre;
	const char *pattern; /* NULL: GPT-2's, which ByteLevel has */
	bool digits;         /* single digits first */
} kinds[] = {
	{"default", NULL, false},
	{"gpt-2", NULL, false},
	{"smollm", NULL, true},
	{"llama-bpe", LLAMA3("{1,3}"), false},
	{"llama3", LLAMA3("{1,3}"), false},
	{"llama-v3", LLAMA3("{1,3}"), false},
	{"qwen2", LLAMA3(""), false},
	{"deepseek-r1-qwen", LLAMA3(""), false},
};

#define N_KINDS (sizeof kinds / sizeof kinds[0])

static size_t
find_kind(const ft_vocabulary *v)
{
	size_t i = 0;

	while (i < N_KINDS && strcmp(kinds[i].pre, v->pre) != 0)
		i++;
	return i;
}

static json_t *
pre_tokenizer(size_t kind)
{
	json_t *list = json_array();

	if (kinds[kind].digits)
		json_array_append_new(list,
							  json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1));
	if (kinds[kind].pattern != NULL)
		json_array_append_new(list, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split",
											  "pattern", "Regex", kinds[kind].pattern, "behavior",
											  "Isolated", "invert", 0));
	json_array_append_new(list, json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel",
										  "add_prefix_space", 0, "trim_offsets", 1, "use_regex",
										  (int) (kinds[kind].pattern == NULL)));
	return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", list);
}

static json_t *
text_of(const ft_string *s)
{
	return json_stringn(s->data, s->length);
}

/* Where a text begins with bos, the template says so; else nothing is added. */
static json_t *
post_processor(const ft_vocabulary *v)
{
	json_t *bos;
	json_t *result;

	if (!v->add_bos || v->bos < 0)
		return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
						 "trim_offsets", 0, "use_regex", 1);
	bos = text_of(&v->tokens[v->bos]);
	if (bos == NULL)
		return NULL;
	result = json_pack("{s:s, s:[{s:{s:O, s:i}}, {s:{s:s, s:i}}], "
					   "s:[{s:{s:O, s:i}}, {s:{s:s, s:i}}, {s:{s:O, s:i}}, {s:{s:s, s:i}}], "
					   "s:{s:{s:O, s:[i], s:[O]}}}",
					   "type", "TemplateProcessing", "single", "SpecialToken", "id", bos, "type_id",
					   0, "Sequence", "id", "A", "type_id", 0, "pair", "SpecialToken", "id", bos,
					   "type_id", 0, "Sequence", "id", "A", "type_id", 0, "SpecialToken", "id", bos,
					   "type_id", 1, "Sequence", "id", "B", "type_id", 1, "special_tokens",
					   json_string_value(bos), "id", bos, "ids", v->bos, "tokens", bos);
	json_decref(bos);
	return result;
}

static bool
is_added(const ft_vocabulary *v, size_t i)
{
	return v->types != NULL &&
		   (v->types[i] == FT_TOKEN_CONTROL || v->types[i] == FT_TOKEN_USER_DEFINED);
}

static ft_status
make_vocabulary(const ft_vocabulary *v, json_t *vocabulary, json_t *added)
{
	for (size_t i = 0; i < v->n_tokens; i++)
	{
		json_t *text = text_of(&v->tokens[i]);

		if (text == NULL)
			return ft_fail(FT_UNSUPPORTED, "token %zu of the vocabulary is no UTF-8", i);
		json_object_setn_new_nocheck(vocabulary, v->tokens[i].data, v->tokens[i].length,
									 json_integer((json_int_t) i));
		if (is_added(v, i))
			json_array_append_new(
				added, json_pack("{s:i, s:O, s:b, s:b, s:b, s:b, s:b}", "id", (int) i, "content",
								 text, "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0,
								 "special", (int) (v->types[i] == FT_TOKEN_CONTROL)));
		json_decref(text);
	}
	if (json_object_size(vocabulary) != v->n_tokens)
		return ft_fail(FT_UNSUPPORTED, "%zu tokens of the vocabulary have only %zu texts",
					   v->n_tokens, json_object_size(vocabulary));
	return FT_OK;
}

static ft_status
make_merges(const ft_vocabulary *v, json_t *merges)
{
	for (size_t i = 0; i < v->n_merges; i++)
	{
		json_t *text = text_of(&v->merges[i]);

		if (text == NULL)
			return ft_fail(FT_UNSUPPORTED, "merge %zu of the vocabulary is no UTF-8", i);
		json_array_append_new(merges, text);
	}
	return FT_OK;
}

static json_t *
make_tokenizer(const ft_vocabulary *v, size_t kind, json_t *vocabulary, json_t *added,
			   json_t *merges)
{
	json_t *model =
		json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:O, s:O}", "type", "BPE", "dropout",
				  "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
				  "byte_fallback", 0, "ignore_merges", (int) ft_pre_ignores_merges(v->pre), "vocab",
				  vocabulary, "merges", merges);

	return json_pack("{s:s, s:n, s:n, s:O, s:o, s:o, s:o, s:{s:s, s:b, s:b, s:b}, s:o}", "version",
					 "1.0", "truncation", "padding", "added_tokens", added, "normalizer",
					 ft_pre_normalises(v->pre) ? json_pack("{s:s}", "type", "NFC") : json_null(),
					 "pre_tokenizer", pre_tokenizer(kind), "post_processor", post_processor(v),
					 "decoder", "type", "ByteLevel", "add_prefix_space", 1, "trim_offsets", 1,
					 "use_regex", 1, "model", model);
}

static ft_status
write_json(const char *directory, const char *name, json_t *json)
{
	char *text = json != NULL ? json_dumps(json, JSON_INDENT(2)) : NULL;
	ft_status status;

	json_decref(json);
	if (text == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory for \"%s\"", name);
	status = ft_out_file(directory, name, text, strlen(text));
	free(text);
	return status;
}

static ft_status
write_config(const ft_vocabulary *v, const ft_config *c, const char *chat_template,
			 const char *directory)
{
	const struct
	{
		const char *key;
		int id;
	} names[] = {{"bos_token", v->bos},
				 {"eos_token", v->eos},
				 {"unk_token", v->unknown},
				 {"pad_token", v->pad}};
	json_t *json =
		json_pack("{s:s, s:i, s:b}", "tokenizer_class", "PreTrainedTokenizerFast",
				  "model_max_length", c->max_positions, "clean_up_tokenization_spaces", 0);

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
	{
		if (names[i].id >= 0)
			json_object_set_new(json, names[i].key, text_of(&v->tokens[names[i].id]));
	}
	if (chat_template != NULL &&
		json_object_set_new(json, "chat_template", json_string(chat_template)) < 0)
	{
		json_decref(json);
		return ft_fail(FT_UNSUPPORTED, "the chat template is no UTF-8");
	}
	return write_json(directory, "tokenizer_config.json", json);
}

ft_status
ft_export_tokenizer(const ft_vocabulary *v, const ft_config *config, const char *chat_template,
					const char *directory)
{
	size_t kind = find_kind(v);
	json_t *vocabulary;
	json_t *added;
	json_t *merges;
	ft_status status;

	if (strcmp(v->model, "gpt2") != 0 || kind == N_KINDS)
		return ft_hint(ft_fail(FT_UNSUPPORTED,
							   "a tokenizer of kind \"%s\" (\"%s\") cannot be written as "
							   "tokenizer.json",
							   v->model, v->pre),
					   "A GGUF file can hold it.");
	vocabulary = json_object();
	added = json_array();
	merges = json_array();
	status = make_vocabulary(v, vocabulary, added);
	if (status == FT_OK)
		status = make_merges(v, merges);
	if (status == FT_OK)
		status = write_json(directory, "tokenizer.json",
							make_tokenizer(v, kind, vocabulary, added, merges));
	if (status == FT_OK)
		status = write_config(v, config, chat_template, directory);
	json_decref(vocabulary);
	json_decref(added);
	json_decref(merges);
	return status;
}
