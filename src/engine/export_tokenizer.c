/*
 * export_tokenizer.c: a vocabulary as tokenizer.json and tokenizer_config.json
 * (https://huggingface.co/docs/tokenizers).
 *
 * All tokens stand in the model's vocabulary, the special ones also among the
 * added ones: so each keeps its id.
 *
 * A SentencePiece-style vocabulary of scores becomes a list of merges, those that
 * our tokeniser makes of the scores: by falling score, and of one score by the
 * ids of what is merged, as transformers lists them.
 */
#include "export.h"

#include "tokenizer_internal.h"

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

/* A vocabulary on its way. */
typedef struct writing
{
	const ft_vocabulary *v;
	ft_tokenizer *tokenizer;
	bool sentencepiece;
	size_t kind; /* of a byte-level one */
	json_t *vocabulary;
	json_t *added;
	json_t *merges;
} writing;

static size_t
find_kind(const ft_vocabulary *v)
{
	size_t i = 0;

	while (i < N_KINDS && strcmp(kinds[i].pre, v->pre) != 0)
		i++;
	return i;
}

/* --- the steps --- */

static json_t *
byte_level(bool prefix, bool trim, bool pattern)
{
	return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", (int) prefix,
					 "trim_offsets", (int) trim, "use_regex", (int) pattern);
}

static json_t *
replacing(const char *from, const char *to)
{
	return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", from, "content",
					 to);
}

static json_t *
normalizer(const writing *w)
{
	json_t *list;

	if (!w->sentencepiece)
		return ft_pre_normalises(w->v->pre) ? json_pack("{s:s}", "type", "NFC") : json_null();
	/* the space that is put before a text is the pre-tokeniser's where it is not put always */
	if (w->v->space_prefix_once)
		return json_null();
	list = json_array();
	if (w->v->space_prefix != FT_SPACE_NONE)
		json_array_append_new(list,
							  json_pack("{s:s, s:s}", "type", "Prepend", "prepend", FT_SPACE_MARK));
	json_array_append_new(list, replacing(" ", FT_SPACE_MARK));
	return json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", list);
}

static json_t *
pre_tokenizer(const writing *w)
{
	json_t *list;

	if (w->sentencepiece && !w->v->space_prefix_once)
		return json_null();
	if (w->sentencepiece)
		return json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement", FT_SPACE_MARK,
						 "prepend_scheme",
						 w->v->space_prefix == FT_SPACE_FIRST ? "first" : "always", "split", 0);
	list = json_array();
	if (kinds[w->kind].digits)
		json_array_append_new(list,
							  json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1));
	if (kinds[w->kind].pattern != NULL)
		json_array_append_new(list, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split",
											  "pattern", "Regex", kinds[w->kind].pattern,
											  "behavior", "Isolated", "invert", 0));
	json_array_append_new(list, byte_level(false, true, kinds[w->kind].pattern == NULL));
	return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", list);
}

static json_t *
decoder(const writing *w)
{
	json_t *list;

	if (!w->sentencepiece)
		return byte_level(true, true, true);
	list = json_pack("[o, {s:s}, {s:s}]", replacing(FT_SPACE_MARK, " "), "type", "ByteFallback",
					 "type", "Fuse");
	if (w->v->space_prefix != FT_SPACE_NONE)
		json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content",
											  " ", "start", 1, "stop", 0));
	return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", list);
}

static json_t *
text_of(const ft_string *s)
{
	return json_stringn(s->data, s->length);
}

/* Where a text begins with bos, the template says so; else nothing is added. */
static json_t *
post_processor(const writing *w)
{
	const ft_vocabulary *v = w->v;
	json_t *bos;
	json_t *result;

	if (!v->add_bos || v->bos < 0)
		return w->sentencepiece ? json_null() : byte_level(false, false, true);
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

/* --- the model --- */

static ft_status
make_vocabulary(const writing *w)
{
	const ft_vocabulary *v = w->v;

	for (size_t i = 0; i < v->n_tokens; i++)
	{
		const ft_token *token = &w->tokenizer->tokens[i];
		json_t *text = text_of(&v->tokens[i]);

		if (text == NULL)
			return ft_fail(FT_UNSUPPORTED, "token %zu of the vocabulary is no UTF-8", i);
		json_object_setn_new_nocheck(w->vocabulary, v->tokens[i].data, v->tokens[i].length,
									 json_integer((json_int_t) i));
		if (token->added)
			json_array_append_new(w->added, json_pack("{s:i, s:O, s:b, s:b, s:b, s:b, s:b}", "id",
													  (int) i, "content", text, "single_word", 0,
													  "lstrip", 0, "rstrip", 0, "normalized", 0,
													  "special", (int) token->special));
		json_decref(text);
	}
	if (json_object_size(w->vocabulary) != v->n_tokens)
		return ft_fail(FT_UNSUPPORTED, "%zu tokens of the vocabulary have only %zu texts",
					   v->n_tokens, json_object_size(w->vocabulary));
	return FT_OK;
}

static ft_status
list_merges(const writing *w)
{
	const ft_vocabulary *v = w->v;

	for (size_t i = 0; i < v->n_merges; i++)
	{
		json_t *text = text_of(&v->merges[i]);

		if (text == NULL)
			return ft_fail(FT_UNSUPPORTED, "merge %zu of the vocabulary is no UTF-8", i);
		json_array_append_new(w->merges, text);
	}
	return FT_OK;
}

static int
compare_merges(const void *a, const void *b)
{
	const ft_token_merge *x = a;
	const ft_token_merge *y = b;

	if (x->rank != y->rank)
		return x->rank < y->rank ? -1 : 1;
	if (x->left != y->left)
		return x->left < y->left ? -1 : 1;
	return (x->right > y->right) - (x->right < y->right);
}

/* "left right", which readers of all versions take. */
static ft_status
put_merge(const writing *w, const ft_token_merge *merge, ft_text *work)
{
	const ft_string *left = &w->v->tokens[merge->left];
	const ft_string *right = &w->v->tokens[merge->right];

	if (memchr(left->data, ' ', left->length) != NULL ||
		memchr(right->data, ' ', right->length) != NULL)
		return ft_fail(FT_UNSUPPORTED,
					   "tokens %d and %d have a space that is not U+2581, which no list of merges "
					   "can say",
					   merge->left, merge->right);
	ft_text_clear(work);
	FT_TRY(ft_text_append(work, left->data, left->length));
	FT_TRY(ft_text_append(work, " ", 1));
	FT_TRY(ft_text_append(work, right->data, right->length));
	json_array_append_new(w->merges, json_stringn(work->data, work->length));
	return FT_OK;
}

static ft_status
merges_of_scores(const writing *w)
{
	const ft_bpe *bpe = &w->tokenizer->bpe;
	ft_text work = {0};
	ft_token_merge *sorted;
	ft_status status;

	FT_TRY(ft_alloc((void **) &sorted, bpe->n_merges, sizeof *sorted));
	if (bpe->n_merges > 0)
		memcpy(sorted, bpe->merges, bpe->n_merges * sizeof *sorted);
	qsort(sorted, bpe->n_merges, sizeof *sorted, compare_merges);
	status = ft_text_append(&work, "", 0);
	for (size_t i = 0; i < bpe->n_merges && status == FT_OK; i++)
		status = put_merge(w, &sorted[i], &work);
	ft_text_free(&work);
	free(sorted);
	return status;
}

static json_t *
unknown_token(const writing *w)
{
	return w->sentencepiece && w->v->unknown >= 0 ? text_of(&w->v->tokens[w->v->unknown])
												  : json_null();
}

static json_t *
make_tokenizer(const writing *w)
{
	json_t *model = json_pack(
		"{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:O, s:O}", "type", "BPE", "dropout", "unk_token",
		unknown_token(w), "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
		(int) w->sentencepiece, "byte_fallback", (int) w->sentencepiece, "ignore_merges",
		(int) w->tokenizer->ignore_merges, "vocab", w->vocabulary, "merges", w->merges);

	return json_pack("{s:s, s:n, s:n, s:O, s:o, s:o, s:o, s:o, s:o}", "version", "1.0",
					 "truncation", "padding", "added_tokens", w->added, "normalizer", normalizer(w),
					 "pre_tokenizer", pre_tokenizer(w), "post_processor", post_processor(w),
					 "decoder", decoder(w), "model", model);
}

/* --- files --- */

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

static ft_status
write_tokenizer(writing *w, const char *directory)
{
	FT_TRY(ft_tokenizer_create(w->v, &w->tokenizer));
	w->vocabulary = json_object();
	w->added = json_array();
	w->merges = json_array();
	FT_TRY(make_vocabulary(w));
	FT_TRY(w->sentencepiece ? merges_of_scores(w) : list_merges(w));
	return write_json(directory, "tokenizer.json", make_tokenizer(w));
}

static ft_status
check_kind(const writing *w)
{
	const ft_vocabulary *v = w->v;

	if (!w->sentencepiece && (strcmp(v->model, "gpt2") != 0 || w->kind == N_KINDS))
		return ft_hint(ft_fail(FT_UNSUPPORTED,
							   "a tokenizer of kind \"%s\" (\"%s\") cannot be written as "
							   "tokenizer.json",
							   v->model, v->pre),
					   "A GGUF file can hold it.");
	if (w->sentencepiece && v->space_prefix == FT_SPACE_TEXTS)
		return ft_hint(ft_fail(FT_UNSUPPORTED,
							   "a tokenizer that puts a space before text behind a special token, "
							   "unless there is one, cannot be written as tokenizer.json"),
					   "A GGUF file can hold it.");
	return FT_OK;
}

ft_status
ft_export_tokenizer(const ft_vocabulary *v, const ft_config *config, const char *chat_template,
					const char *directory)
{
	writing w = {.v = v, .kind = find_kind(v), .sentencepiece = strcmp(v->model, "llama") == 0};
	ft_status status = check_kind(&w);

	if (status == FT_OK)
		status = write_tokenizer(&w, directory);
	if (status == FT_OK)
		status = write_config(v, config, chat_template, directory);
	ft_tokenizer_free(w.tokenizer);
	json_decref(w.vocabulary);
	json_decref(w.added);
	json_decref(w.merges);
	return status;
}
