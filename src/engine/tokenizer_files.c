/*
 * tokenizer_files.c: the tokeniser of a Hugging Face directory: byte-level BPE
 * out of tokenizer.json.
 */
#include "tokenizer_files.h"

#include "files.h"
#include "json_text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILE ((size_t) 1 << 28)
#define MAX_TOKENS (1 << 24)

struct ft_tokenizer_files
{
	ft_vocabulary vocabulary;
	json_t *json;   /* owns the tokens' text */
	ft_text merges; /* the merges' text */
};

/* The text of a file; no text when it is not there. */
static ft_status
read_text(int dirfd, const char *name, ft_text *text)
{
	int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;
	void *memory;
	ft_status status;

	if (fd < 0 && errno == ENOENT)
		return FT_OK;
	if (fd < 0)
		return ft_fail_errno("could not open");
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (uint64_t) st.st_size > MAX_FILE)
		status = ft_fail(FT_UNSUPPORTED, "is no regular file of at most %zu bytes", MAX_FILE);
	else
		status = ft_alloc(&memory, (size_t) st.st_size + 1, 1);
	if (status == FT_OK)
	{
		*text = (ft_text){memory, (size_t) st.st_size, (size_t) st.st_size + 1};
		status = ft_read_at(fd, memory, (size_t) st.st_size, 0, name);
	}
	close(fd);
	return status;
}

static ft_status
read_json(int dirfd, const char *name, bool words, json_t **json)
{
	ft_text text = {0};
	ft_status status = read_text(dirfd, name, &text);

	*json = NULL;
	if (status == FT_OK && text.data != NULL)
		status = words ? ft_json_parse_words(text.data, text.length, json)
					   : ft_json_parse(text.data, text.length, json);
	ft_text_free(&text);
	return status;
}

/* --- tokens --- */

static ft_status
set_token(ft_vocabulary *v, const char *text, size_t n, const json_t *id, int32_t type)
{
	json_int_t at = json_integer_value(id);

	if (!json_is_integer(id) || at < 0 || (size_t) at >= v->n_tokens)
		return ft_fail(FT_CORRUPT, "a token has no id below %zu", v->n_tokens);
	v->tokens[at] = (ft_string){text, n};
	v->types[at] = type;
	return FT_OK;
}

static void
widen(const json_t *id, size_t *n)
{
	if (json_is_integer(id) && json_integer_value(id) >= (json_int_t) *n &&
		json_integer_value(id) < MAX_TOKENS)
		*n = (size_t) json_integer_value(id) + 1;
}

static ft_status
read_tokens(const json_t *vocab, const json_t *added, ft_vocabulary *v)
{
	const char *key;
	size_t length;
	json_t *value;
	size_t i;

	json_object_foreach ((json_t *) vocab, key, value)
		widen(value, &v->n_tokens);
	json_array_foreach ((json_t *) added, i, value)
		widen(json_object_get(value, "id"), &v->n_tokens);
	FT_TRY(ft_alloc((void **) &v->tokens, v->n_tokens, sizeof v->tokens[0]));
	FT_TRY(ft_alloc((void **) &v->types, v->n_tokens, sizeof v->types[0]));
	for (i = 0; i < v->n_tokens; i++)
	{
		v->tokens[i] = (ft_string){"", 0};
		v->types[i] = FT_TOKEN_UNUSED;
	}
	json_object_keylen_foreach((json_t *) vocab, key, length, value)
		FT_TRY(set_token(v, key, length, value, FT_TOKEN_NORMAL));
	json_array_foreach ((json_t *) added, i, value)
	{
		const json_t *text = json_object_get(value, "content");
		bool special = json_is_true(json_object_get(value, "special"));

		if (!json_is_string(text))
			return ft_fail(FT_CORRUPT, "an added token has no content");
		FT_TRY(set_token(v, json_string_value(text), json_string_length(text),
						 json_object_get(value, "id"),
						 special ? FT_TOKEN_CONTROL : FT_TOKEN_USER_DEFINED));
	}
	return FT_OK;
}

/* A merge is "left right", or a pair. */
static ft_status
append_merge(const json_t *merge, ft_text *text)
{
	const json_t *left = json_array_get(merge, 0);
	const json_t *right = json_array_get(merge, 1);

	if (json_is_string(merge))
		return ft_text_append(text, json_string_value(merge), json_string_length(merge));
	if (!json_is_string(left) || !json_is_string(right))
		return ft_fail(FT_CORRUPT, "a merge is neither a string nor a pair");
	FT_TRY(ft_text_append(text, json_string_value(left), json_string_length(left)));
	FT_TRY(ft_text_append(text, " ", 1));
	return ft_text_append(text, json_string_value(right), json_string_length(right));
}

static ft_status
read_merges(const json_t *merges, ft_tokenizer_files *files)
{
	ft_vocabulary *v = &files->vocabulary;
	size_t at = 0;

	FT_TRY(ft_alloc((void **) &v->merges, json_array_size(merges), sizeof v->merges[0]));
	for (size_t i = 0; i < json_array_size(merges); i++)
	{
		FT_TRY(append_merge(json_array_get(merges, i), &files->merges));
		v->merges[v->n_merges++].length = files->merges.length - at;
		at = files->merges.length;
	}
	for (size_t i = 0, start = 0; i < v->n_merges; start += v->merges[i++].length)
		v->merges[i].data = files->merges.data + start;
	return FT_OK;
}

/* --- kind --- */

static bool
has_type(const json_t *step, const char *type)
{
	const char *name = json_string_value(json_object_get(step, "type"));
	const json_t *steps = json_object_get(step, "pretokenizers");

	if (name != NULL && strcmp(name, type) == 0)
		return true;
	for (size_t i = 0; i < json_array_size(steps); i++)
	{
		name = json_string_value(json_object_get(json_array_get(steps, i), "type"));
		if (name != NULL && strcmp(name, type) == 0)
			return true;
	}
	return false;
}

static ft_status
read_kind(const json_t *json, ft_vocabulary *v)
{
	const json_t *model = json_object_get(json, "model");
	const json_t *pre = json_object_get(json, "pre_tokenizer");
	const char *type = json_string_value(json_object_get(model, "type"));
	char text[FT_PRINTABLE_SIZE];

	if (type == NULL || strcmp(type, "BPE") != 0)
		return ft_fail(FT_UNSUPPORTED, "model \"%s\" is not supported",
					   ft_json_printable(type != NULL ? type : "", text));
	if (!has_type(pre, "ByteLevel") || has_type(pre, "Split"))
		return ft_fail(FT_UNSUPPORTED, "its pre-tokeniser is not supported");
	strcpy(v->model, "gpt2");
	strcpy(v->pre, has_type(pre, "Digits") ? "smollm" : "gpt-2");
	return FT_OK;
}

/* --- special tokens --- */

/* A token of tokenizer_config.json, a string or an object with its content. */
static int
find_special(const ft_vocabulary *v, const json_t *config, const char *key)
{
	const json_t *value = json_object_get(config, key);
	const char *text;

	if (json_is_object(value))
		value = json_object_get(value, "content");
	text = json_string_value(value);
	for (size_t i = 0; text != NULL && i < v->n_tokens; i++)
	{
		if (v->tokens[i].length == strlen(text) &&
			memcmp(v->tokens[i].data, text, strlen(text)) == 0)
			return (int) i;
	}
	return -1;
}

static ft_status
read_special(int dirfd, ft_vocabulary *v)
{
	json_t *config;

	v->bos = v->eos = v->unknown = v->pad = -1;
	FT_TRY(read_json(dirfd, "tokenizer_config.json", true, &config));
	v->bos = find_special(v, config, "bos_token");
	v->eos = find_special(v, config, "eos_token");
	v->pad = find_special(v, config, "pad_token");
	v->unknown = find_special(v, config, "unk_token");
	v->add_bos = json_is_true(json_object_get(config, "add_bos_token"));
	json_decref(config);
	return FT_OK;
}

/* --- all of it --- */

static ft_status
read_tokenizer(int dirfd, ft_tokenizer_files *files)
{
	const json_t *model;

	FT_TRY(read_json(dirfd, "tokenizer.json", false, &files->json));
	if (files->json == NULL)
		return ft_fail(FT_NOT_FOUND, "is missing");
	model = json_object_get(files->json, "model");
	FT_TRY(read_kind(files->json, &files->vocabulary));
	FT_TRY(read_tokens(json_object_get(model, "vocab"),
					   json_object_get(files->json, "added_tokens"), &files->vocabulary));
	return read_merges(json_object_get(model, "merges"), files);
}

ft_status
ft_tokenizer_files_read(int dirfd, const char *dirname, ft_tokenizer_files **result)
{
	ft_tokenizer_files *files;
	const char *name = "tokenizer.json";
	ft_status status;

	(void) dirname;
	*result = NULL;
	FT_TRY(ft_alloc((void **) &files, 1, sizeof *files));
	status = read_tokenizer(dirfd, files);
	if (status == FT_OK)
	{
		name = "tokenizer_config.json";
		status = read_special(dirfd, &files->vocabulary);
	}
	if (status != FT_OK)
	{
		ft_tokenizer_files_free(files);
		return ft_context(status, "%s: ", name);
	}
	*result = files;
	return FT_OK;
}

const ft_vocabulary *
ft_tokenizer_files_vocabulary(const ft_tokenizer_files *files)
{
	return &files->vocabulary;
}

const char *
ft_tokenizer_files_source(const ft_tokenizer_files *files)
{
	(void) files;
	return "tokenizer.json";
}

void
ft_tokenizer_files_free(ft_tokenizer_files *files)
{
	if (files == NULL)
		return;
	free(files->vocabulary.tokens);
	free(files->vocabulary.types);
	free(files->vocabulary.merges);
	ft_text_free(&files->merges);
	json_decref(files->json);
	free(files);
}
