/*
 * inspect.c: describing a model file by its header, also one that cannot be used.
 */
#include "inspect.h"

#include "chat_template.h"
#include "inspect_internal.h"
#include "model_file_internal.h"
#include "programs.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- JSON --- */

ft_status
ft_inspect_set(json_t *object, const char *key, json_t *value)
{
	if (json_object_set_new(object, key, value) != 0)
		return ft_fail(FT_NO_MEMORY, "out of memory: a description wanted");
	return FT_OK;
}

ft_status
ft_inspect_set_int(json_t *object, const char *key, int64_t value)
{
	return ft_inspect_set(object, key, json_integer(value));
}

/* Null where the file has something that is no text. */
static ft_status
set_string(json_t *object, const char *key, ft_string s)
{
	json_t *value = s.data != NULL ? json_stringn(s.data, s.length) : NULL;

	return ft_inspect_set(object, key, value != NULL ? value : json_null());
}

ft_status
ft_inspect_append(json_t *array, const char *words)
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
		return ft_inspect_set(object, key, json_null());
	return ft_inspect_set_int(object, key, value);
}

static ft_status
describe_tensors(json_t *object, const ft_gguf *g)
{
	json_t *types = json_object();
	int64_t parameters = 0;

	FT_TRY(ft_inspect_set(object, "tensor_types", types));
	for (size_t i = 0; i < g->n_tensors; i++)
	{
		const ft_gguf_tensor *t = &g->tensors[i];
		const char *name = ft_gguf_tensor_type_name(t->type);
		json_int_t count = json_integer_value(json_object_get(types, name));
		int64_t values = 1;
		bool overflow = strcmp(t->name, "rope_freqs.weight") == 0;

		FT_TRY(ft_inspect_set_int(types, name, count + 1));
		for (int d = 0; d < FT_GGUF_MAX_DIMS && !overflow; d++)
			overflow = __builtin_mul_overflow(values, t->dims[d], &values);
		if (!overflow && __builtin_add_overflow(parameters, values, &parameters))
			parameters = INT64_MAX;
	}
	return ft_inspect_set_int(object, "parameters", parameters);
}

static ft_status
describe_tokenizer(json_t *object, const ft_gguf *g)
{
	const ft_gguf_value *tokens = ft_gguf_find(g, "tokenizer.ggml.tokens");
	json_t *tokenizer = json_object();

	FT_TRY(ft_inspect_set(object, "tokenizer", tokenizer));
	FT_TRY(set_string(tokenizer, "model", header_string(g, "tokenizer.ggml.model")));
	FT_TRY(set_string(tokenizer, "pre", header_string(g, "tokenizer.ggml.pre")));
	return ft_inspect_set_int(tokenizer, "tokens",
							  tokens != NULL && tokens->array ? (int64_t) tokens->count : 0);
}

static ft_status
describe_container(json_t *object, const ft_model_file *file)
{
	const ft_gguf *g = file->gguf;

	FT_TRY(ft_inspect_set(object, "format", json_string("gguf")));
	FT_TRY(ft_inspect_set_int(object, "format_version", g->version));
	FT_TRY(set_string(object, "architecture", header_string(g, "general.architecture")));
	FT_TRY(set_string(object, "name", header_string(g, "general.name")));
	FT_TRY(ft_inspect_set_int(object, "bytes", ft_model_file_bytes(file)));
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
	FT_TRY(ft_inspect_set(object, "tied_embeddings",
						  json_boolean(ft_gguf_find_tensor(g, "output.weight") == NULL)));
	return describe_tokenizer(object, g);
}

/* --- as it would be used --- */

ft_status
ft_inspect_config(json_t *object, const ft_config *c)
{
	FT_TRY(ft_inspect_set_int(object, "layers", c->layers));
	FT_TRY(ft_inspect_set_int(object, "hidden", c->hidden));
	FT_TRY(ft_inspect_set_int(object, "ffn", c->ffn));
	FT_TRY(ft_inspect_set_int(object, "experts", c->experts));
	FT_TRY(ft_inspect_set_int(object, "experts_per_token", c->experts_per_token));
	FT_TRY(ft_inspect_set_int(object, "heads", c->heads));
	FT_TRY(ft_inspect_set_int(object, "kv_heads", c->kv_heads));
	FT_TRY(ft_inspect_set_int(object, "head_dim", c->head_dim));
	FT_TRY(ft_inspect_set_int(object, "vocab", c->vocab));
	return ft_inspect_set_int(object, "context_length", c->max_positions);
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
		FT_TRY(ft_inspect_append(unsupported, words));
	}
	return FT_OK;
}

ft_status
ft_inspect_template(json_t *object, const char *jinja, const char *template_name)
{
	const ft_chat_template *chat_template;
	ft_status status = ft_chat_template_find(template_name, jinja, &chat_template);

	if (status == FT_OK)
		return ft_inspect_set(object, "chat_template",
							  json_string(ft_chat_template_name(chat_template)));
	if (status != FT_UNSUPPORTED)
		return status;
	FT_TRY(ft_inspect_set(object, "chat_template", json_null()));
	return ft_inspect_set(object, "chat_template_reason", json_string(ft_error_message()));
}

static ft_status
describe_template(json_t *object, const ft_model_file *file, const char *template_name)
{
	ft_string jinja = header_string(file->gguf, "tokenizer.chat_template");
	ft_text text = {0};
	ft_status status = ft_text_append(&text, jinja.data, jinja.length);

	if (status == FT_OK)
		status = ft_inspect_template(object, text.data, template_name);
	ft_text_free(&text);
	return status;
}

static ft_status
describe_use(json_t *object, ft_model_file *file, const char *template_name)
{
	json_t *unsupported = json_array();
	ft_status status;

	FT_TRY(ft_inspect_set(object, "unsupported", unsupported));
	status = ft_model_file_read_header(file);
	if (status == FT_UNSUPPORTED)
		FT_TRY(ft_inspect_append(unsupported, ft_error_message()));
	else if (status != FT_OK)
		return ft_context(status, "model file \"%s\": ", file->path);
	else
	{
		FT_TRY(ft_inspect_config(object, &file->config));
		status = ft_tokenizer_check_kind(file->vocabulary.model, file->vocabulary.pre);
		if (status == FT_UNSUPPORTED)
			FT_TRY(ft_inspect_append(unsupported, ft_error_message()));
	}
	FT_TRY(list_types(unsupported, file->gguf));
	return describe_template(object, file, template_name);
}

static ft_status
describe_gguf(json_t *object, ft_model_file *file, const char *template_name)
{
	FT_TRY(describe_container(object, file));
	return describe_use(object, file, template_name);
}

static ft_status
add_plan(json_t *object, const ft_config *config, const ft_plan_options *plan)
{
	json_t *value;

	FT_TRY(ft_memory_plan_json(config, plan, &value));
	return ft_inspect_set(object, "plan", value);
}

static ft_status
describe(const char *path, const char *template_name, const ft_plan_options *plan,
		 json_t **description)
{
	json_t *object;
	ft_model_file *file;
	ft_status status;

	FT_TRY(ft_model_file_open_container(path, &file));
	object = json_object();
	if (file->gguf != NULL)
		status = describe_gguf(object, file, template_name);
	else
		status = ft_inspect_directory(object, file, template_name);
	/* sizes that were read and checked can be planned with, whatever else is missing */
	if (status == FT_OK && plan != NULL && file->config_known)
		status = add_plan(object, &file->config, plan);
	ft_model_file_close(file);
	if (status == FT_OK)
		*description = object;
	else
		json_decref(object);
	return status;
}

ft_status
ft_inspect(const char *path, const char *template_name, json_t **description)
{
	return describe(path, template_name, NULL, description);
}

/* --- the program --- */

typedef struct settings
{
	const char *path;
	bool plan;
	ft_plan_options options;
} settings;

static bool
read_count(const char *text, long limit, long *to)
{
	char *end;

	*to = strtol(text, &end, 10);
	return end != text && *end == '\0' && *to >= 1 && *to <= limit;
}

static bool
parse_arguments(int argc, char **argv, settings *s)
{
	static const struct option options[] = {{"plan", no_argument, NULL, 'p'},
											{"memory", required_argument, NULL, 'm'},
											{"tokens", required_argument, NULL, 't'},
											{0}};
	long n;
	int c;

	*s = (settings){.options = FT_PLAN_DEFAULTS};
	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		if (c == 'p')
			s->plan = true;
		else if (c == 'm' && read_count(optarg, 1 << 20, &n))
			s->options.memory = (int64_t) n << 30;
		else if (c == 't' && read_count(optarg, 1 << 20, &n))
			s->options.tokens = n;
		else
			return false;
	}
	s->path = argv[optind];
	return argc - optind == 1;
}

int
ft_inspect_main(int argc, char **argv)
{
	settings s;
	json_t *description;
	int written;

	if (!parse_arguments(argc, argv, &s))
	{
		fprintf(stderr, "usage: pg_finetune_engine inspect [--plan [--memory GIB] [--tokens N]] "
						"PATH\n");
		return FT_EXIT_USAGE;
	}
	if (describe(s.path, NULL, s.plan ? &s.options : NULL, &description) != FT_OK)
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
