/*
 * tokenizer_files.c: the tokeniser of a Hugging Face directory: which files, and what
 * tokenizer_config.json says.
 */
#include "tokenizer_files.h"

#include "files.h"
#include "tokenizer_files_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The largest vocabularies take 20 MB. */
#define MAX_FILE_BYTES (256 << 20)

#define JSON_FILE "tokenizer.json"
#define MODEL_FILE "tokenizer.model"
#define CONFIG_FILE "tokenizer_config.json"
/* Its numbers are not looked at, and may be of any size: "model_max_length" is 1e30 for no limit,
 * written as an integer. */
#define CONFIG_FLAGS JSON_DECODE_INT_AS_REAL

/* --- tokens --- */

ft_status
ft_files_allocate(ft_vocabulary *v, size_t n)
{
	void *memory;

	FT_TRY(ft_alloc(&memory, n, sizeof(ft_string)));
	v->tokens = memory;
	FT_TRY(ft_alloc(&memory, n, sizeof(int32_t)));
	v->types = memory;
	FT_TRY(ft_alloc(&memory, n, sizeof(uint8_t)));
	v->added = memory;
	v->n_tokens = n;
	for (size_t i = 0; i < n; i++)
	{
		v->tokens[i] = (ft_string){"", 0};
		v->types[i] = FT_TOKEN_UNUSED;
	}
	return FT_OK;
}

ft_status
ft_files_set(ft_vocabulary *v, size_t id, ft_string text, ft_token_type type)
{
	const ft_string *old = &v->tokens[id];

	if (v->types[id] != FT_TOKEN_UNUSED &&
		(old->length != text.length || memcmp(old->data, text.data, text.length) != 0))
		return ft_fail(FT_CORRUPT, "two tokens have the id %zu", id);
	v->tokens[id] = text;
	v->types[id] = (int32_t) type;
	return FT_OK;
}

ft_status
ft_files_set_added(ft_vocabulary *v, size_t id, const json_t *object)
{
	static const struct
	{
		const char *key;
		uint8_t flag;
	} flags[] = {{"lstrip", FT_ADDED_LSTRIP},
				 {"rstrip", FT_ADDED_RSTRIP},
				 {"single_word", FT_ADDED_SINGLE_WORD},
				 {"normalized", FT_ADDED_NORMALIZED}};
	const json_t *content = json_object_get(object, "content");
	ft_string text = {json_string_value(content), json_string_length(content)};
	bool special = json_is_true(json_object_get(object, "special"));

	if (!json_is_string(content) || text.length == 0)
		return ft_fail(FT_CORRUPT, "added token %zu has no content", id);
	FT_TRY(ft_files_set(v, id, text, special ? FT_TOKEN_CONTROL : FT_TOKEN_USER_DEFINED));
	v->added[id] = 0;
	for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
	{
		const json_t *value = json_object_get(object, flags[i].key);

		if (value != NULL && !json_is_boolean(value))
			return ft_fail(FT_CORRUPT, "\"%s\" of added token %zu is no boolean", flags[i].key, id);
		if (json_is_true(value))
			v->added[id] |= flags[i].flag;
	}
	return FT_OK;
}

ft_status
ft_files_highest(const json_t *id, size_t limit, size_t *n)
{
	json_int_t value = json_integer_value(id);

	if (!json_is_integer(id) || value < 0)
		return ft_fail(FT_CORRUPT, "a token has no id");
	if ((unsigned long long) value >= limit)
		return ft_fail(FT_CORRUPT, "token id %lld is out of range, expected less than %zu",
					   (long long) value, limit);
	if ((size_t) value >= *n)
		*n = (size_t) value + 1;
	return FT_OK;
}

int
ft_files_find(const ft_vocabulary *v, const char *text, size_t n)
{
	int found = -1;

	for (size_t i = 0; i < v->n_tokens; i++)
	{
		const ft_string *s = &v->tokens[i];

		if (s->length != n || v->types[i] == FT_TOKEN_UNUSED || memcmp(s->data, text, n) != 0)
			continue;
		if (v->types[i] == FT_TOKEN_CONTROL || v->types[i] == FT_TOKEN_USER_DEFINED)
			return (int) i;
		if (found < 0)
			found = (int) i;
	}
	return found;
}

/* --- tokenizer_config.json --- */

/* A token by the name that the key gives it, as a string or as an object with content.  *to stays
 * where there is none. */
static ft_status
named_token(const ft_tokenizer_files *files, const char *key, bool required, int *to)
{
	const json_t *value = json_object_get(files->config, key);
	const json_t *content = json_is_object(value) ? json_object_get(value, "content") : value;
	int id;

	if (value == NULL || json_is_null(value))
		return FT_OK;
	if (!json_is_string(content))
		return ft_fail(FT_CORRUPT, "\"%s\" is no token", key);
	id = ft_files_find(&files->vocabulary, json_string_value(content), json_string_length(content));
	if (id < 0 && required)
		return ft_fail(FT_CORRUPT, "\"%s\" is a token that the vocabulary lacks", key);
	*to = id;
	return FT_OK;
}

static ft_status
config_bool(const json_t *config, const char *key, bool *to)
{
	const json_t *value = json_object_get(config, key);

	if (value == NULL || json_is_null(value))
		return FT_OK;
	if (!json_is_boolean(value))
		return ft_fail(FT_CORRUPT, "\"%s\" is no boolean", key);
	*to = json_is_true(value);
	return FT_OK;
}

static ft_status
apply_config(ft_tokenizer_files *files)
{
	ft_vocabulary *v = &files->vocabulary;
	bool add_eos = false;

	if (files->config == NULL)
		return FT_OK;
	FT_TRY(named_token(files, "bos_token", true, &v->bos));
	FT_TRY(named_token(files, "eos_token", true, &v->eos));
	FT_TRY(named_token(files, "pad_token", false, &v->pad));
	FT_TRY(config_bool(files->config, "add_bos_token", &v->add_bos));
	FT_TRY(config_bool(files->config, "add_eos_token", &add_eos));
	if (add_eos)
		return ft_fail(FT_UNSUPPORTED, "\"add_eos_token\" is true, which is not supported");
	return FT_OK;
}

/* --- files --- */

/* *found false when there is no such file. */
static ft_status
read_file(int dirfd, const char *name, ft_text *text, bool *found)
{
	struct stat st;
	void *memory;
	ft_status status = FT_OK;
	int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	*found = fd >= 0;
	if (fd < 0)
		return errno == ENOENT ? FT_OK : ft_fail_errno("could not open the file");
	if (fstat(fd, &st) != 0)
		status = ft_fail_errno("could not look at the file");
	else if (!S_ISREG(st.st_mode))
		status = ft_fail(FT_INVALID, "is no regular file");
	else if (st.st_size > MAX_FILE_BYTES)
		status = ft_fail(FT_UNSUPPORTED, "has %lld bytes, expected at most %d",
						 (long long) st.st_size, MAX_FILE_BYTES);
	if (status == FT_OK)
		status = ft_alloc(&memory, (size_t) st.st_size + 1, 1);
	if (status == FT_OK)
	{
		*text = (ft_text){memory, (size_t) st.st_size, (size_t) st.st_size + 1};
		status = ft_read_at(fd, text->data, text->length, 0, name);
	}
	close(fd);
	return status;
}

static ft_status
parse_json(const char *bytes, size_t n, size_t flags, json_t **json)
{
	json_error_t error;

	*json = json_loadb(bytes, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | flags, &error);
	if (*json == NULL && json_error_code(&error) == json_error_out_of_memory)
		return ft_fail(FT_NO_MEMORY, "out of memory: JSON wanted");
	if (*json == NULL)
		return ft_fail(FT_CORRUPT, "is no JSON: line %d, column %d: %s", error.line, error.column,
					   json_error_code(&error) == json_error_duplicate_key ? "a key stands twice"
																		   : "bad syntax");
	if (!json_is_object(*json))
		return ft_fail(FT_CORRUPT, "is no JSON object");
	return FT_OK;
}

static ft_status
read_config(int dirfd, ft_tokenizer_files *files)
{
	ft_text text = {0};
	bool found;
	ft_status status = read_file(dirfd, CONFIG_FILE, &text, &found);

	if (status == FT_OK && found)
		status = parse_json(text.data, text.length, CONFIG_FLAGS, &files->config);
	ft_text_free(&text);
	return status;
}

/* tokenizer.json goes before tokenizer.model, as in transformers. */
static ft_status
read_tokens(int dirfd, ft_tokenizer_files *files)
{
	bool found;

	files->source = JSON_FILE;
	FT_TRY(read_file(dirfd, JSON_FILE, &files->file, &found));
	if (found)
	{
		FT_TRY(parse_json(files->file.data, files->file.length, 0, &files->json));
		ft_text_free(&files->file);
		return ft_files_from_json(files);
	}
	files->source = MODEL_FILE;
	FT_TRY(read_file(dirfd, MODEL_FILE, &files->file, &found));
	if (!found)
		return ft_hint(ft_fail(FT_NOT_FOUND, "no such file"),
					   "A model's directory has a tokenizer.json or a tokenizer.model.");
	if (faccessat(dirfd, "added_tokens.json", F_OK, 0) == 0 &&
		json_object_get(files->config, "added_tokens_decoder") == NULL)
		return ft_hint(ft_fail(FT_UNSUPPORTED, "tokens of added_tokens.json are not supported"),
					   "Save the tokeniser again with a transformers that writes tokenizer.json.");
	return ft_files_from_model(files);
}

static ft_status
read_all(int dirfd, const char *dirname, ft_tokenizer_files *files)
{
	ft_status status = read_config(dirfd, files);

	if (status != FT_OK)
		return ft_context(status, "tokenizer file \"%s/" CONFIG_FILE "\": ", dirname);
	status = read_tokens(dirfd, files);
	if (status != FT_OK)
		return ft_context(status, "tokenizer file \"%s/%s\": ", dirname, files->source);
	status = apply_config(files);
	if (status != FT_OK)
		return ft_context(status, "tokenizer file \"%s/" CONFIG_FILE "\": ", dirname);
	return FT_OK;
}

ft_status
ft_tokenizer_files_read(int dirfd, const char *dirname, ft_tokenizer_files **files)
{
	void *memory;
	ft_status status;

	FT_TRY(ft_alloc(&memory, 1, sizeof(ft_tokenizer_files)));
	status = read_all(dirfd, dirname, memory);
	if (status != FT_OK)
	{
		ft_tokenizer_files_free(memory);
		return status;
	}
	*files = memory;
	return FT_OK;
}

static ft_status
parse_all(const char *name, const char *bytes, size_t n, const char *config,
		  ft_tokenizer_files *files)
{
	if (config != NULL)
		FT_TRY(parse_json(config, strlen(config), CONFIG_FLAGS, &files->config));
	if (strcmp(name, JSON_FILE) == 0)
	{
		files->source = JSON_FILE;
		FT_TRY(parse_json(bytes, n, 0, &files->json));
		FT_TRY(ft_files_from_json(files));
	}
	else
	{
		files->source = MODEL_FILE;
		FT_TRY(ft_text_append(&files->file, bytes, n));
		FT_TRY(ft_files_from_model(files));
	}
	return apply_config(files);
}

ft_status
ft_tokenizer_files_parse(const char *name, const char *bytes, size_t n, const char *config,
						 ft_tokenizer_files **files)
{
	void *memory;
	ft_status status;

	FT_TRY(ft_alloc(&memory, 1, sizeof(ft_tokenizer_files)));
	status = parse_all(name, bytes, n, config, memory);
	if (status != FT_OK)
	{
		ft_tokenizer_files_free(memory);
		return status;
	}
	*files = memory;
	return FT_OK;
}

void
ft_tokenizer_files_free(ft_tokenizer_files *files)
{
	if (files == NULL)
		return;
	free(files->vocabulary.tokens);
	free(files->vocabulary.types);
	free(files->vocabulary.scores);
	free(files->vocabulary.merges);
	free(files->vocabulary.added);
	ft_text_free(&files->file);
	ft_text_free(&files->merges);
	json_decref(files->json);
	json_decref(files->config);
	free(files);
}

const ft_vocabulary *
ft_tokenizer_files_vocabulary(const ft_tokenizer_files *files)
{
	return &files->vocabulary;
}

const char *
ft_tokenizer_files_source(const ft_tokenizer_files *files)
{
	return files->source;
}
