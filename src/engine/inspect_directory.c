/*
 * inspect_directory.c: describing a Hugging Face directory, also one that is
 * not whole: what is missing is said, and the rest is read all the same.
 */
#include "hf_config.h"
#include "inspect_internal.h"
#include "model_directory.h"
#include "tokenizer_files.h"

/* A failure that is about the model becomes words, any other stays one. */
static ft_status
note(json_t *unsupported, ft_status status)
{
	if (status != FT_UNSUPPORTED && status != FT_NOT_FOUND)
		return status;
	return ft_inspect_append(unsupported, ft_error_message());
}

static ft_status
describe_nothing(json_t *object)
{
	static const char *const keys[] = {
		"architecture", "parameters", "layers",         "hidden",
		"ffn",          "experts",    "heads",          "kv_heads",
		"head_dim",     "vocab",      "context_length", "tied_embeddings"};

	for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
		FT_TRY(ft_inspect_set(object, keys[i], json_null()));
	return FT_OK;
}

static ft_status
describe_sizes(json_t *object, const ft_config *c)
{
	FT_TRY(ft_inspect_set(object, "architecture", json_string(c->architecture)));
	FT_TRY(ft_inspect_set_int(object, "parameters", ft_config_parameters(c)));
	FT_TRY(ft_inspect_config(object, c));
	return ft_inspect_set(object, "tied_embeddings", json_boolean(c->tied_embeddings));
}

static ft_status
describe_weights(json_t *object, const ft_model_file *file)
{
	json_t *types = json_object();

	FT_TRY(ft_inspect_set(object, "tensor_types", types));
	for (int i = 0; i < file->n_tensors; i++)
	{
		const char *name = ft_dtype_get(file->tensors[i].dtype)->name;
		json_int_t count = json_integer_value(json_object_get(types, name));

		FT_TRY(ft_inspect_set_int(types, name, count + 1));
	}
	return FT_OK;
}

/* The weights against the configuration; what has none is not broken, only not whole. */
static ft_status
look_at_weights(json_t *object, ft_model_file *file, json_t *unsupported)
{
	ft_status status;

	FT_TRY(ft_inspect_set(object, "weights",
						  json_string(ft_hf_has_weights(file) ? "present" : "missing")));
	if (!ft_hf_has_weights(file))
		FT_TRY(ft_inspect_append(unsupported, "the weights are missing"));
	else if (file->config_known)
	{
		status = ft_hf_read_weights(file);
		if (status == FT_OK)
			status = ft_model_file_check_tensors(file);
		FT_TRY(note(unsupported, status));
		if (status == FT_OK)
			FT_TRY(describe_sizes(object, &file->config));
	}
	return describe_weights(object, file);
}

static ft_status
describe_tokenizer(json_t *object, const ft_model_file *file)
{
	const ft_vocabulary *v = &file->vocabulary;
	json_t *tokenizer = json_object();

	FT_TRY(ft_inspect_set(object, "tokenizer", tokenizer));
	FT_TRY(ft_inspect_set(tokenizer, "source",
						  json_string(ft_tokenizer_files_source(file->tokenizer_files))));
	FT_TRY(ft_inspect_set(tokenizer, "model", json_string(v->model)));
	FT_TRY(ft_inspect_set(tokenizer, "pre", json_string(v->pre)));
	return ft_inspect_set_int(tokenizer, "tokens", (int64_t) v->n_tokens);
}

static ft_status
look_at_tokenizer(json_t *object, ft_model_file *file, json_t *unsupported)
{
	ft_status status = ft_hf_read_vocabulary(file);

	if (status == FT_NOT_FOUND)
	{
		FT_TRY(ft_inspect_set(object, "tokenizer", json_string("missing")));
		return ft_inspect_append(unsupported, "the tokenizer is missing");
	}
	if (status == FT_OK)
	{
		FT_TRY(describe_tokenizer(object, file));
		if (file->config_known)
			FT_TRY(ft_model_file_check_vocabulary(file));
		status = ft_tokenizer_check_kind(file->vocabulary.model, file->vocabulary.pre);
	}
	else
		FT_TRY(ft_inspect_set(object, "tokenizer", json_null()));
	return note(unsupported, status);
}

static ft_status
describe(json_t *object, ft_model_file *file, const char *template_name)
{
	json_t *unsupported = json_array();
	ft_status status;

	FT_TRY(ft_inspect_set(object, "format", json_string("safetensors")));
	FT_TRY(ft_inspect_set_int(object, "bytes", ft_model_file_bytes(file)));
	FT_TRY(ft_inspect_set(object, "unsupported", unsupported));
	status = ft_model_file_read_config(file);
	if (file->config_known)
		FT_TRY(describe_sizes(object, &file->config));
	else
		FT_TRY(describe_nothing(object));
	FT_TRY(note(unsupported, status));
	FT_TRY(look_at_weights(object, file, unsupported));
	FT_TRY(look_at_tokenizer(object, file, unsupported));
	FT_TRY(ft_hf_read_template(file));
	return ft_inspect_template(object, file->chat_template, template_name);
}

ft_status
ft_inspect_directory(json_t *object, ft_model_file *file, const char *template_name)
{
	ft_status status = describe(object, file, template_name);

	return status == FT_OK ? FT_OK : ft_context(status, "model file \"%s\": ", file->path);
}
