/*
 * inspect.c: describing a model file by its header, also one that cannot be used.
 */
#include "inspect.h"

#include "chat_template.h"
#include "model_file_internal.h"
#include "programs.h"

#include <stdio.h>
#include <string.h>

/* --- JSON --- */

static ft_status
set(json_t *object, const char *key, json_t *value)
{
	if (json_object_set_new(object, key, value) != 0)
		return ft_fail(FT_NO_MEMORY, "out of memory: a description wanted");
	return FT_OK;
}

static ft_status
set_int(json_t *object, const char *key, int64_t value)
{
	return set(object, key, json_integer(value));
}

/* Null where the file has something that is no text. */
static ft_status
set_string(json_t *object, const char *key, ft_string s)
{
	json_t *value = s.data != NULL ? json_stringn(s.data, s.length) : NULL;

	return set(object, key, value != NULL ? value : json_null());
}

static ft_status
append_words(json_t *array, const char *words)
{
	if (json_array_append_new(array, json_string(words)) != 0)
		return ft_fail(FT_NO_MEMORY, "out of memory: a description wanted");
	return FT_OK;
}

/* --- from the container, whatever the model --- */

/* A string of the header; empty where there is none or it is of another type. */
static ft_string
header_string(const ft_gguf *g, const char *key)
{
	ft_string s = {0};

	(void) ft_gguf_string(g, key, false, &s);
	return s;
}

/* "<architecture>.<key>", null where it is missing or no integer. */
static ft_status
set_header_int(json_t *object, const char *key, const ft_gguf *g, const char *suffix)
{
	ft_string architecture = header_string(g, "general.architecture");
	char full[128];
	int64_t value = -1;

	snprintf(full, sizeof full, "%.*s.%s",
			 (int) (architecture.length < 64 ? architecture.length : 64),
			 architecture.data != NULL ? architecture.data : "", suffix);
	if (ft_gguf_int(g, full, false, 0, INT64_MAX, &value) != FT_OK || value < 0)
		return set(object, key, json_null());
	return set_int(object, key, value);
}

static ft_status
describe_tensors(json_t *object, const ft_gguf *g)
{
	json_t *types = json_object();
	int64_t parameters = 0;

	FT_TRY(set(object, "tensor_types", types));
	for (size_t i = 0; i < g->n_tensors; i++)
	{
		const ft_gguf_tensor *t = &g->tensors[i];
		const char *name = ft_gguf_tensor_type_name(t->type);
		json_int_t count = json_integer_value(json_object_get(types, name));
		int64_t values = 1;
		bool overflow = strcmp(t->name, "rope_freqs.weight") == 0;

		FT_TRY(set_int(types, name, count + 1));
		for (int d = 0; d < FT_GGUF_MAX_DIMS && !overflow; d++)
			overflow = __builtin_mul_overflow(values, t->dims[d], &values);
		if (!overflow && __builtin_add_overflow(parameters, values, &parameters))
			parameters = INT64_MAX;
	}
	return set_int(object, "parameters", parameters);
}

static ft_status
describe_tokenizer(json_t *object, const ft_gguf *g)
{
	const ft_gguf_value *tokens = ft_gguf_find(g, "tokenizer.ggml.tokens");
	json_t *tokenizer = json_object();

	FT_TRY(set(object, "tokenizer", tokenizer));
	FT_TRY(set_string(tokenizer, "model", header_string(g, "tokenizer.ggml.model")));
	FT_TRY(set_string(tokenizer, "pre", header_string(g, "tokenizer.ggml.pre")));
	return set_int(tokenizer, "tokens",
				   tokens != NULL && tokens->array ? (int64_t) tokens->count : 0);
}

static ft_status
describe_container(json_t *object, const ft_model_file *file)
{
	const ft_gguf *g = file->gguf;

	FT_TRY(set(object, "format", json_string("gguf")));
	FT_TRY(set_int(object, "format_version", g->version));
	FT_TRY(set_string(object, "architecture", header_string(g, "general.architecture")));
	FT_TRY(set_string(object, "name", header_string(g, "general.name")));
	FT_TRY(set_int(object, "bytes", ft_model_file_bytes(file)));
	FT_TRY(describe_tensors(object, g));
	FT_TRY(set_header_int(object, "layers", g, "block_count"));
	FT_TRY(set_header_int(object, "hidden", g, "embedding_length"));
	FT_TRY(set_header_int(object, "ffn", g, "feed_forward_length"));
	FT_TRY(set_header_int(object, "experts", g, "expert_count"));
	FT_TRY(set_header_int(object, "experts_per_token", g, "expert_used_count"));
	FT_TRY(set_header_int(object, "heads", g, "attention.head_count"));
	FT_TRY(set_header_int(object, "kv_heads", g, "attention.head_count_kv"));
	FT_TRY(set_header_int(object, "head_dim", g, "attention.key_length"));
	FT_TRY(set_header_int(object, "vocab", g, "vocab_size"));
	FT_TRY(set_header_int(object, "context_length", g, "context_length"));
	FT_TRY(set(object, "tied_embeddings",
			   json_boolean(ft_gguf_find_tensor(g, "output.weight") == NULL)));
	return describe_tokenizer(object, g);
}

/* --- as it would be used --- */

/* What the configuration makes of the header, defaults and derived sizes included. */
static ft_status
describe_config(json_t *object, const ft_config *c)
{
	FT_TRY(set_int(object, "layers", c->layers));
	FT_TRY(set_int(object, "hidden", c->hidden));
	FT_TRY(set_int(object, "ffn", c->ffn));
	FT_TRY(set_int(object, "experts", c->experts));
	FT_TRY(set_int(object, "experts_per_token", c->experts_per_token));
	FT_TRY(set_int(object, "heads", c->heads));
	FT_TRY(set_int(object, "kv_heads", c->kv_heads));
	FT_TRY(set_int(object, "head_dim", c->head_dim));
	FT_TRY(set_int(object, "vocab", c->vocab));
	return set_int(object, "context_length", c->max_positions);
}

/* Every tensor type that has no place here, not only the first one that was met. */
static ft_status
list_types(json_t *unsupported, const ft_gguf *g)
{
	bool listed[64] = {false};

	for (size_t i = 0; i < g->n_tensors; i++)
	{
		uint32_t type = g->tensors[i].type;
		uint32_t slot = type < 63 ? type : 63;
		char words[64];

		if (listed[slot] || ft_gguf_tensor_dtype(type) != FT_DTYPE_COUNT)
			continue;
		listed[slot] = true;
		snprintf(words, sizeof words, "tensors of type %s (%u)", ft_gguf_tensor_type_name(type),
				 type);
		FT_TRY(append_words(unsupported, words));
	}
	return FT_OK;
}

static ft_status
describe_template(json_t *object, const ft_model_file *file, const char *template_name)
{
	const ft_chat_template *chat_template;
	ft_string jinja = header_string(file->gguf, "tokenizer.chat_template");
	ft_text text = {0};
	ft_status status = ft_text_append(&text, jinja.data, jinja.length);

	if (status == FT_OK)
		status = ft_chat_template_find(template_name, text.data, &chat_template);
	ft_text_free(&text);
	if (status == FT_OK)
		return set(object, "chat_template", json_string(ft_chat_template_name(chat_template)));
	if (status != FT_UNSUPPORTED)
		return status;
	FT_TRY(set(object, "chat_template", json_null()));
	return set(object, "chat_template_reason", json_string(ft_error_message()));
}

static ft_status
describe_use(json_t *object, ft_model_file *file, const char *template_name)
{
	json_t *unsupported = json_array();
	ft_status status;

	FT_TRY(set(object, "unsupported", unsupported));
	status = ft_model_file_read_header(file);
	if (status == FT_UNSUPPORTED)
		FT_TRY(append_words(unsupported, ft_error_message()));
	else if (status != FT_OK)
		return ft_context(status, "model file \"%s\": ", file->path);
	else
	{
		FT_TRY(describe_config(object, &file->config));
		status = ft_tokenizer_check_kind(file->vocabulary.model, file->vocabulary.pre);
		if (status == FT_UNSUPPORTED)
			FT_TRY(append_words(unsupported, ft_error_message()));
	}
	FT_TRY(list_types(unsupported, file->gguf));
	return describe_template(object, file, template_name);
}

ft_status
ft_inspect(const char *path, const char *template_name, json_t **description)
{
	json_t *object;
	ft_model_file *file;
	ft_status status;

	FT_TRY(ft_model_file_open_container(path, &file));
	object = json_object();
	status = describe_container(object, file);
	if (status == FT_OK)
		status = describe_use(object, file, template_name);
	ft_model_file_close(file);
	if (status == FT_OK)
		*description = object;
	else
		json_decref(object);
	return status;
}

/* --- the program --- */

int
ft_inspect_main(int argc, char **argv)
{
	json_t *description;
	int written;

	if (argc != 2 || argv[1][0] == '-')
	{
		fprintf(stderr, "usage: pg_finetune_engine inspect FILE\n");
		return FT_EXIT_USAGE;
	}
	if (ft_inspect(argv[1], NULL, &description) != FT_OK)
	{
		fprintf(stderr, "%s\n", ft_error_message());
		if (ft_error_hint()[0] != '\0')
			fprintf(stderr, "hint: %s\n", ft_error_hint());
		return FT_EXIT_FAILED;
	}
	written = json_dumpf(description, stdout, JSON_INDENT(2));
	json_decref(description);
	if (written != 0 || putchar('\n') == EOF || fflush(stdout) != 0)
	{
		fprintf(stderr, "could not write the description\n");
		return FT_EXIT_FAILED;
	}
	return FT_EXIT_DONE;
}
