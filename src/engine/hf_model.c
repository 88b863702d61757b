/*
 * hf_model.c: what the files of a Hugging Face directory mean: configuration,
 * tensors of one safetensors file or of the shards that an index names,
 * vocabulary, ends of generation and chat template.
 *
 * As transformers does, model.safetensors is taken where it is there, and the
 * index only where it is not.
 */
#include "hf_config.h"
#include "json_text.h"
#include "model_directory.h"
#include "prompt_template.h"
#include "safetensors.h"
#include "tokenizer_files.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CONFIG ((size_t) 1 << 20)
#define MAX_INDEX ((size_t) 1 << 24)
#define MAX_TOKENIZER_CONFIG ((size_t) 1 << 24)
#define MAX_TEMPLATE ((size_t) 1 << 20)

#define ONE_FILE "model.safetensors"
#define INDEX "model.safetensors.index.json"

/* --- configuration --- */

ft_status
ft_hf_read_config(ft_model_file *file)
{
	ft_text text = {0};
	ft_status status;

	FT_TRY(ft_directory_read(ft_directory_find(file, "config.json"), MAX_CONFIG, &text));
	status = ft_hf_config_read(text.data, text.length, &file->config);
	ft_text_free(&text);
	return status == FT_OK ? FT_OK : ft_context(status, "config.json: ");
}

/* --- tensors --- */

/* What older versions stored beside the weights, and follows from the configuration; and the head
 * of a model that is said to have none of its own. */
static bool
is_needless(const ft_config *c, const char *name)
{
	static const char suffix[] = ".rotary_emb.inv_freq";
	size_t n = strlen(name);

	if (n >= sizeof suffix && strcmp(name + n - (sizeof suffix - 1), suffix) == 0)
		return true;
	return c->tied_embeddings && strcmp(name, "lm_head.weight") == 0;
}

static ft_dtype
dtype_of(const char *name)
{
	return strcmp(name, "F32") == 0    ? FT_F32
		   : strcmp(name, "F16") == 0  ? FT_F16
		   : strcmp(name, "BF16") == 0 ? FT_BF16
									   : FT_DTYPE_COUNT;
}

static ft_status
add_tensor(ft_model_file *file, int part, const ft_safetensor *from)
{
	ft_model_tensor *t = &file->tensors[file->n_tensors];

	if (is_needless(&file->config, from->name))
		return FT_OK;
	if (strlen(from->name) >= sizeof t->name)
		return ft_fail(FT_UNSUPPORTED, "tensor \"%.100s…\" has a name of %zu bytes", from->name,
					   strlen(from->name));
	t->dtype = dtype_of(from->dtype);
	if (t->dtype == FT_DTYPE_COUNT)
		return ft_fail(FT_UNSUPPORTED, "tensor \"%s\" is of type %s, expected F32, F16 or BF16",
					   from->name, from->dtype);
	if (from->n_dims != 1 && from->n_dims != 2)
		return ft_fail(FT_UNSUPPORTED, "tensor \"%s\" has %d dimensions, expected 1 or 2",
					   from->name, from->n_dims);
	memcpy(t->name, from->name, strlen(from->name) + 1);
	t->rows = from->n_dims == 2 ? from->dims[0] : 1;
	t->cols = from->dims[from->n_dims - 1];
	t->file = part;
	t->offset = from->offset;
	t->bytes = from->bytes;
	file->n_tensors++;
	return FT_OK;
}

/* Every tensor of a file, which must be just what the index has there (NULL: there is no index). */
static ft_status
add_tensors(ft_model_file *file, int part, const ft_safetensors *from, const json_t *map)
{
	const char *shard = ft_directory_part_name(file, &file->parts[part]);
	size_t n = ft_safetensors_count(from);
	size_t capacity = (size_t) file->n_tensors;

	if (n > (size_t) INT_MAX - capacity)
		return ft_fail(FT_UNSUPPORTED, "has too many tensors");
	FT_TRY(ft_grow((void **) &file->tensors, &capacity, capacity + n + 1, sizeof file->tensors[0]));
	memset(file->tensors + file->n_tensors, 0,
		   (capacity - (size_t) file->n_tensors) * sizeof file->tensors[0]);
	for (size_t i = 0; i < n; i++)
	{
		const ft_safetensor *t = ft_safetensors_at(from, i);
		const char *place = map != NULL ? json_string_value(json_object_get(map, t->name)) : shard;

		if (place == NULL)
			return ft_fail(FT_CORRUPT, "tensor \"%.100s\" is not in " INDEX, t->name);
		if (strcmp(place, shard) != 0)
			return ft_fail(FT_CORRUPT, "tensor \"%.100s\" stands in \"%.100s\" by " INDEX, t->name,
						   place);
		FT_TRY(add_tensor(file, part, t));
	}
	return FT_OK;
}

/* Read the header of a weight file and take its tensors; *n is how many it has. */
static ft_status
add_file(ft_model_file *file, const ft_model_part *part, const json_t *map, size_t *n)
{
	ft_safetensors *from;
	ft_status status;

	status = ft_safetensors_open_fd(part->fd, &from);
	if (status == FT_OK)
	{
		status = add_tensors(file, (int) (part - file->parts), from, map);
		if (status == FT_OK && file->prompt_template == NULL)
			status =
				ft_prompt_template_read(from, FT_PROMPT_TEMPLATE_OF_MODEL, &file->prompt_template);
		*n = ft_safetensors_count(from);
		ft_safetensors_close(from);
	}
	if (status != FT_OK)
		return ft_context(status, "%s: ", ft_directory_part_name(file, part));
	return FT_OK;
}

/* --- shards --- */

/* The part that an index's name means.  A name that leads elsewhere is never one of the model's. */
static ft_status
find_shard(const ft_model_file *file, const char *name, const ft_model_part **part)
{
	char text[FT_PRINTABLE_SIZE];

	if (!ft_directory_part(name) || strstr(name, ".json") != NULL)
		return ft_fail(FT_CORRUPT, "\"%s\" is no name of a shard", ft_json_printable(name, text));
	*part = ft_directory_find(file, name);
	if (*part == NULL)
		return ft_fail(FT_NOT_FOUND, "shard \"%s\" is missing", ft_json_printable(name, text));
	return FT_OK;
}

/* Which parts the index names; every name must be one. */
static ft_status
find_shards(const ft_model_file *file, const json_t *map, bool *used)
{
	const char *tensor;
	json_t *value;

	json_object_foreach ((json_t *) map, tensor, value)
	{
		const ft_model_part *part;

		if (!json_is_string(value))
			return ft_fail(FT_CORRUPT, "the shard of tensor \"%.100s\" is no string", tensor);
		FT_TRY(find_shard(file, json_string_value(value), &part));
		used[part - file->parts] = true;
	}
	return FT_OK;
}

/* Everything a shard holds is in the index, so if the index has more, it names what is not there.
 */
static ft_status
find_missing(ft_model_file *file, const json_t *map, const bool *used)
{
	const char *name;
	json_t *value;

	for (int i = 0; i < file->n_parts; i++)
	{
		ft_safetensors *from;

		if (!used[i])
			continue;
		FT_TRY(ft_safetensors_open_fd(file->parts[i].fd, &from));
		for (size_t t = 0; t < ft_safetensors_count(from); t++)
			json_object_del((json_t *) map, ft_safetensors_at(from, t)->name);
		ft_safetensors_close(from);
	}
	json_object_foreach ((json_t *) map, name, value)
	{
		return ft_fail(FT_CORRUPT, "tensor \"%.100s\" is not in its shard \"%.100s\"", name,
					   json_string_value(value));
	}
	return FT_OK;
}

static ft_status
add_shards(ft_model_file *file, const json_t *index, bool *used)
{
	const json_t *map = ft_json_get(index, "weight_map");
	size_t wanted;
	size_t found = 0;
	ft_status status;

	if (!json_is_object(map))
		return ft_fail(FT_CORRUPT, INDEX ": \"weight_map\" is no object");
	wanted = json_object_size(map);
	status = find_shards(file, map, used);
	if (status != FT_OK)
		return ft_context(status, INDEX ": ");
	for (int i = 0; i < file->n_parts; i++)
	{
		size_t n = 0;

		if (used[i])
			FT_TRY(add_file(file, &file->parts[i], map, &n));
		found += n;
	}
	if (found != wanted)
	{
		status = find_missing(file, map, used);
		if (status != FT_OK)
			return ft_context(status, INDEX ": ");
	}
	return FT_OK;
}

static ft_status
read_index(ft_model_file *file, const ft_model_part *part)
{
	ft_text text = {0};
	json_t *index = NULL;
	bool *used = NULL;
	ft_status status = ft_directory_read(part, MAX_INDEX, &text);

	if (status == FT_OK)
	{
		status = ft_json_parse(text.data, text.length, &index);
		if (status != FT_OK)
			status = ft_context(status, INDEX ": ");
	}
	ft_text_free(&text);
	if (status == FT_OK)
		status = ft_alloc((void **) &used, (size_t) file->n_parts, sizeof used[0]);
	if (status == FT_OK)
		status = add_shards(file, index, used);
	free(used);
	json_decref(index);
	return status;
}

bool
ft_hf_has_weights(const ft_model_file *file)
{
	return ft_directory_find(file, ONE_FILE) != NULL || ft_directory_find(file, INDEX) != NULL;
}

ft_status
ft_hf_read_weights(ft_model_file *file)
{
	const ft_model_part *one = ft_directory_find(file, ONE_FILE);
	const ft_model_part *index = ft_directory_find(file, INDEX);
	size_t n;

	if (one != NULL)
		FT_TRY(add_file(file, one, NULL, &n));
	else if (index != NULL)
		FT_TRY(read_index(file, index));
	else
		return ft_hint(ft_fail(FT_NOT_FOUND, "has no weights"),
					   "Bring " ONE_FILE ", or " INDEX " with its shards. Weights in other formats "
					   "are not read.");
	/* a head without a tensor of its own is the embedding, whatever the configuration says */
	file->config.tied_embeddings = true;
	for (int i = 0; i < file->n_tensors; i++)
	{
		if (strcmp(file->tensors[i].name, "lm_head.weight") == 0)
			file->config.tied_embeddings = false;
	}
	return FT_OK;
}

/* --- vocabulary and ends --- */

ft_status
ft_hf_read_vocabulary(ft_model_file *file)
{
	const ft_model_part *part = ft_directory_find(file, "generation_config.json");
	ft_config *c = &file->config;
	ft_text text = {0};
	ft_status status = FT_OK;

	FT_TRY(ft_tokenizer_files_read(file->directory, file->path, &file->tokenizer_files));
	file->vocabulary = *ft_tokenizer_files_vocabulary(file->tokenizer_files);
	if (part != NULL)
	{
		FT_TRY(ft_directory_read(part, MAX_CONFIG, &text));
		status = ft_hf_generation_read(text.data, text.length, c);
		if (status != FT_OK)
			status = ft_context(status, "generation_config.json: ");
		ft_text_free(&text);
	}
	/* tokenizer_config.json need not name what the configuration does */
	if (file->vocabulary.bos < 0)
		file->vocabulary.bos = c->bos;
	if (file->vocabulary.eos < 0 && c->n_eos > 0)
		file->vocabulary.eos = c->eos[0];
	return status;
}

/* --- chat template --- */

static ft_status
copy_template(const char *text, size_t n, char **to)
{
	void *memory;

	if (memchr(text, '\0', n) != NULL)
		return ft_fail(FT_CORRUPT, "the chat template has a NUL byte");
	FT_TRY(ft_alloc(&memory, n + 1, 1));
	memcpy(memory, text, n);
	free(*to);
	*to = memory;
	return FT_OK;
}

/* One text, or a list of named ones, of which "default" is it. */
static ft_status
find_template(const json_t *json, char **to)
{
	const json_t *value = ft_json_get(json, "chat_template");
	size_t i;
	json_t *item;

	if (value == NULL)
		return FT_OK;
	if (json_is_string(value))
		return copy_template(json_string_value(value), json_string_length(value), to);
	if (!json_is_array(value))
		return ft_fail(FT_CORRUPT, "\"chat_template\" is neither a string nor a list");
	json_array_foreach ((json_t *) value, i, item)
	{
		const char *name = json_string_value(json_object_get(item, "name"));
		const json_t *text = json_object_get(item, "template");

		if (name != NULL && strcmp(name, "default") == 0 && json_is_string(text))
			return copy_template(json_string_value(text), json_string_length(text), to);
	}
	return FT_OK;
}

static ft_status
template_of_config(const ft_model_part *part, char **to)
{
	ft_text text = {0};
	json_t *json;
	ft_status status;

	FT_TRY(ft_directory_read(part, MAX_TOKENIZER_CONFIG, &text));
	status = ft_json_parse_words(text.data, text.length, &json);
	if (status == FT_OK)
	{
		status = find_template(json, to);
		json_decref(json);
	}
	ft_text_free(&text);
	return status == FT_OK ? FT_OK : ft_context(status, "tokenizer_config.json: ");
}

ft_status
ft_hf_read_template(ft_model_file *file)
{
	const ft_model_part *own = ft_directory_find(file, "chat_template.jinja");
	const ft_model_part *config = ft_directory_find(file, "tokenizer_config.json");
	ft_text text = {0};
	ft_status status;

	if (own == NULL)
		return config == NULL ? FT_OK : template_of_config(config, &file->chat_template);
	FT_TRY(ft_directory_read(own, MAX_TEMPLATE, &text));
	status = copy_template(text.data, text.length, &file->chat_template);
	ft_text_free(&text);
	return status == FT_OK ? FT_OK : ft_context(status, "chat_template.jinja: ");
}

ft_status
ft_hf_read_contents(ft_model_file *file)
{
	FT_TRY(ft_hf_read_weights(file));
	FT_TRY(ft_hf_read_vocabulary(file));
	return ft_hf_read_template(file);
}
