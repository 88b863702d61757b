/*
 * peft.c: an adapter as a PEFT directory, adapter_config.json and
 * adapter_model.safetensors (https://huggingface.co/docs/peft, "Checkpoint
 * format").
 *
 * What PEFT can say and this engine cannot do is refused by name: an adapter
 * that loads must compute what PEFT would.
 */
#include "adapter.h"
#include "files.h"
#include "prompt_template.h"
#include "safetensors.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_CONFIG (1 << 20)
#define CONFIG_NAME "adapter_config.json"
#define TENSORS_NAME FT_PEFT_TENSORS

/* --- configuration --- */

/* Keys that are read here, or change nothing of what an adapter computes.  Any other must be
 * absent, or have a value that says nothing: so a key that is yet to be invented is refused too. */
static const char *const harmless[] = {
	"auto_mapping",
	"base_model_name_or_path",
	"bias",
	"corda_config",
	"eva_config",
	"inference_mode",
	"init_lora_weights",
	"loftq_config",
	"lora_alpha",
	"lora_dropout",
	"megatron_core",
	"peft_type",
	"peft_version",
	"qalora_group_size",
	"r",
	"revision",
	"target_modules",
	"task_type",
	"use_rslora",
};

/* Ways to begin that leave the base as it is; others (PiSSA, OLoRA …) train over a changed one. */
static const char *const beginnings[] = {"gaussian", "eva", "orthogonal"};

static bool
in_list(const char *name, const char *const *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
	{
		if (strcmp(name, list[i]) == 0)
			return true;
	}
	return false;
}

#define IN_LIST(name, list) in_list(name, list, sizeof(list) / sizeof(list)[0])

static bool
says_nothing(const json_t *value)
{
	return value == NULL || json_is_null(value) || json_is_false(value) ||
		   (json_is_array(value) && json_array_size(value) == 0) ||
		   (json_is_object(value) && json_object_size(value) == 0);
}

static ft_status
refuse_unsupported(const json_t *config)
{
	const char *type = json_string_value(json_object_get(config, "peft_type"));
	const json_t *bias = json_object_get(config, "bias");
	const json_t *start = json_object_get(config, "init_lora_weights");
	const char *key;
	json_t *value;

	if (type == NULL || strcmp(type, "LORA") != 0)
		return ft_fail(FT_UNSUPPORTED, "peft_type \"%.40s\" is not supported, only \"LORA\"",
					   type != NULL ? type : "");
	if (!says_nothing(bias) &&
		(!json_is_string(bias) || strcmp(json_string_value(bias), "none") != 0))
		return ft_fail(FT_UNSUPPORTED, "bias is not \"none\", which is all that is supported");
	if (json_is_string(start) && !IN_LIST(json_string_value(start), beginnings))
		return ft_fail(FT_UNSUPPORTED, "init_lora_weights \"%.40s\" is not supported",
					   json_string_value(start));
	json_object_foreach ((json_t *) config, key, value)
	{
		if (!IN_LIST(key, harmless) && !says_nothing(value))
			return ft_fail(FT_UNSUPPORTED, "%.60s is not supported", key);
	}
	return FT_OK;
}

/* "q_proj", "self_attn.q_proj", or, as PEFT writes what it was told by "all-linear",
 * "model.layers.0.self_attn.q_proj": whether each layer has it, the tensors tell. */
static bool
names_target(const char *name, ft_target target)
{
	int layer;
	int end = 0;

	if (sscanf(name, "model.layers.%7d.%n", &layer, &end) == 1 && end > 0)
		return strcmp(name + end, ft_target_module(target)) == 0;
	return strcmp(name, ft_target_name(target)) == 0 || strcmp(name, ft_target_module(target)) == 0;
}

static ft_status
add_target(const char *name, unsigned *targets)
{
	for (int t = 0; t < FT_TARGET_COUNT; t++)
	{
		if (names_target(name, (ft_target) t))
		{
			*targets |= 1u << t;
			return FT_OK;
		}
	}
	return ft_fail(FT_UNSUPPORTED, "target module \"%.60s\" is not supported", name);
}

static ft_status
read_targets(const json_t *modules, unsigned *targets)
{
	size_t i;
	json_t *module;

	*targets = 0;
	if (json_is_string(modules) && strcmp(json_string_value(modules), "all-linear") == 0)
	{
		*targets = (1u << FT_TARGET_COUNT) - 1;
		return FT_OK;
	}
	if (json_is_string(modules))
		return ft_fail(FT_UNSUPPORTED,
					   "target_modules is a pattern, only a list or \"all-linear\" is supported");
	if (!json_is_array(modules) || json_array_size(modules) == 0)
		return ft_fail(FT_CORRUPT, "target_modules is no list of names");
	json_array_foreach ((json_t *) modules, i, module)
	{
		if (!json_is_string(module))
			return ft_fail(FT_CORRUPT, "target_modules is no list of names");
		FT_TRY(add_target(json_string_value(module), targets));
	}
	return FT_OK;
}

static ft_status
read_config(const json_t *json, ft_peft_config *config)
{
	const json_t *rank = json_object_get(json, "r");
	const json_t *alpha = json_object_get(json, "lora_alpha");

	if (!json_is_object(json))
		return ft_fail(FT_CORRUPT, "not a JSON object");
	FT_TRY(refuse_unsupported(json));
	if (!json_is_integer(rank) || json_integer_value(rank) < 1 || json_integer_value(rank) > 65536)
		return ft_fail(FT_CORRUPT, "r is no integer from 1 to 65536");
	if (!json_is_number(alpha) || !(json_number_value(alpha) > 0) ||
		!isfinite((float) json_number_value(alpha)))
		return ft_fail(FT_CORRUPT, "lora_alpha is no positive number");
	config->rank = (int) json_integer_value(rank);
	config->alpha = (float) json_number_value(alpha);
	config->use_rslora = json_is_true(json_object_get(json, "use_rslora"));
	return read_targets(json_object_get(json, "target_modules"), &config->targets);
}

ft_status
ft_peft_read_config(const char *directory, ft_peft_config *config)
{
	char path[FT_PATH_SIZE];
	ft_text text = {0};
	json_error_t error;
	json_t *json;
	ft_status status;

	FT_TRY(ft_path_join(path, directory, CONFIG_NAME));
	status = ft_read_file(path, MAX_CONFIG, &text);
	if (status == FT_OK)
	{
		json = json_loadb(text.data, text.length, JSON_REJECT_DUPLICATES, &error);
		if (json == NULL)
			status = ft_fail(FT_CORRUPT, "not valid JSON at line %d", error.line);
		else
			status = read_config(json, config);
		json_decref(json);
		if (status != FT_OK)
			status = ft_context(status, "%s: ", path);
	}
	ft_text_free(&text);
	return status;
}

/* --- tensors --- */

#define NAME_SIZE 128

static void
tensor_name(int layer, int target, char which, char name[NAME_SIZE])
{
	snprintf(name, NAME_SIZE, "base_model.model.model.layers.%d.%s.lora_%c.weight", layer,
			 ft_target_module((ft_target) target), which);
}

static ft_status
read_matrix(const ft_safetensors *file, const char *name, int64_t rows, int64_t cols, float *to)
{
	const ft_safetensor *tensor = ft_safetensors_find(file, name);

	if (tensor == NULL)
		return ft_fail(FT_MISMATCH, "tensor \"%s\" is missing", name);
	if (tensor->n_dims != 2 || tensor->dims[0] != rows || tensor->dims[1] != cols)
		return ft_fail(FT_MISMATCH, "tensor \"%s\" has shape [%lld, %lld], expected [%lld, %lld]",
					   name, (long long) (tensor->n_dims > 0 ? tensor->dims[0] : 0),
					   (long long) (tensor->n_dims > 1 ? tensor->dims[1] : 0), (long long) rows,
					   (long long) cols);
	FT_TRY(ft_safetensors_read_f32(file, tensor, to, rows * cols));
	for (int64_t i = 0; i < rows * cols; i++)
	{
		if (!isfinite(to[i]))
			return ft_fail(FT_CORRUPT, "tensor \"%s\" has a value that is not finite", name);
	}
	return FT_OK;
}

static ft_status
read_matrices(const ft_safetensors *file, const ft_config *config, const ft_adapter *adapter,
			  float *values)
{
	size_t n = 0;

	for (int slot = 0; slot < adapter->layers * FT_TARGET_COUNT; slot++)
	{
		int layer = slot / FT_TARGET_COUNT;
		int target = slot % FT_TARGET_COUNT;
		char name[NAME_SIZE];
		int in;
		int out;

		if (adapter->a_at[slot] < 0)
			continue;
		ft_target_shape(config, (ft_target) target, &in, &out);
		tensor_name(layer, target, 'A', name);
		FT_TRY(read_matrix(file, name, adapter->rank, in, values + adapter->a_at[slot]));
		tensor_name(layer, target, 'B', name);
		FT_TRY(read_matrix(file, name, out, adapter->rank, values + adapter->b_at[slot]));
		n += 2;
	}
	if (ft_safetensors_count(file) != n)
		return ft_fail(FT_UNSUPPORTED, "file has %zu tensors, its configuration needs %zu",
					   ft_safetensors_count(file), n);
	return FT_OK;
}

static ft_status
to_device(const ft_adapter *adapter, const float *values)
{
	ft_stream *stream;
	ft_status status;

	FT_TRY(adapter->ops->stream_create(adapter->device, &stream));
	status = adapter->ops->copy_to_device(stream, adapter->values, values,
										  (size_t) adapter->n * sizeof(float));
	if (status == FT_OK)
		status = adapter->ops->stream_synchronize(stream);
	adapter->ops->stream_destroy(stream);
	return status;
}

static ft_status
to_host(const ft_adapter *adapter, float *values)
{
	ft_stream *stream;
	ft_status status;

	FT_TRY(adapter->ops->stream_create(adapter->device, &stream));
	status = adapter->ops->copy_to_host(stream, values, adapter->values,
										(size_t) adapter->n * sizeof(float));
	adapter->ops->stream_destroy(stream);
	return status;
}

/* In the metadata of the file, which PEFT does not read. */
#define PROMPT_TEMPLATE_KEY "prompt_template"

static ft_status
read_prompt_template(const ft_safetensors *file, const char *path, char **prompt_template)
{
	const char *value = ft_safetensors_metadata(file, PROMPT_TEMPLATE_KEY);
	ft_status status;

	*prompt_template = NULL;
	if (value == NULL)
		return FT_OK;
	status = ft_prompt_template_check(value);
	if (status != FT_OK)
		return ft_context(FT_CORRUPT, "%s: ", path);
	*prompt_template = strdup(value);
	return *prompt_template != NULL ? FT_OK : ft_fail(FT_NO_MEMORY, "out of memory");
}

ft_status
ft_peft_read_prompt_template(const char *directory, char **prompt_template)
{
	char path[FT_PATH_SIZE];
	ft_safetensors *file;
	ft_status status;

	FT_TRY(ft_path_join(path, directory, TENSORS_NAME));
	FT_TRY(ft_safetensors_open(path, &file));
	status = read_prompt_template(file, path, prompt_template);
	ft_safetensors_close(file);
	return status;
}

static ft_status
load_tensors(const char *directory, const ft_config *config, ft_adapter *adapter)
{
	char path[FT_PATH_SIZE];
	ft_safetensors *file;
	float *values = NULL;
	ft_status status;

	FT_TRY(ft_path_join(path, directory, TENSORS_NAME));
	FT_TRY(ft_safetensors_open(path, &file));
	status = ft_alloc((void **) &values, (size_t) adapter->n, sizeof(float));
	if (status == FT_OK)
	{
		status = read_matrices(file, config, adapter, values);
		if (status != FT_OK)
			status = ft_context(status, "%s: ", path);
	}
	if (status == FT_OK)
		status = read_prompt_template(file, path, &adapter->prompt_template);
	if (status == FT_OK)
		status = to_device(adapter, values);
	free(values);
	ft_safetensors_close(file);
	return status;
}

ft_status
ft_peft_load(const ft_model *model, const char *directory, ft_adapter **result)
{
	ft_peft_config config = {0};
	ft_adapter *adapter;
	ft_status status;

	*result = NULL;
	FT_TRY(ft_peft_read_config(directory, &config));
	FT_TRY(ft_adapter_create(model, config.rank, config.alpha, config.use_rslora, config.targets,
							 &adapter));
	status = load_tensors(directory, &model->config, adapter);
	if (status != FT_OK)
	{
		ft_adapter_free(adapter);
		return status;
	}
	*result = adapter;
	return FT_OK;
}

/* --- saving --- */

static ft_status
save_config(const ft_adapter *adapter, const char *base_name, const char *directory)
{
	char path[FT_PATH_SIZE];
	json_t *targets = json_array();
	json_t *config;
	char *text;
	ft_status status;

	for (int t = 0; t < FT_TARGET_COUNT; t++)
	{
		if (adapter->targets & (1u << t))
			json_array_append_new(targets, json_string(ft_target_name((ft_target) t)));
	}
	config = json_pack(
		"{s:s, s:s, s:s, s:b, s:i, s:f, s:f, s:s, s:b, s:b, s:b, s:b, s:o, s:{}, s:{}, s:n}",
		"peft_type", "LORA", "task_type", "CAUSAL_LM", "base_model_name_or_path", base_name,
		"inference_mode", 1, "r", adapter->rank, "lora_alpha", (double) adapter->alpha,
		"lora_dropout", adapter->dropout, "bias", "none", "use_rslora", (int) adapter->use_rslora,
		"use_dora", 0, "fan_in_fan_out", 0, "init_lora_weights", 1, "target_modules", targets,
		"rank_pattern", "alpha_pattern", "modules_to_save");
	if (config == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	/* PEFT writes a whole alpha as an integer */
	if (adapter->alpha == floorf(adapter->alpha))
		json_object_set_new(config, "lora_alpha", json_integer((json_int_t) adapter->alpha));
	text = json_dumps(config, JSON_INDENT(2) | JSON_SORT_KEYS);
	json_decref(config);
	if (text == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	status = ft_path_join(path, directory, CONFIG_NAME);
	if (status == FT_OK)
		status = ft_replace_file(path, text, strlen(text));
	free(text);
	return status;
}

static ft_status
save_tensors(const ft_adapter *adapter, const ft_config *config, const float *values,
			 const char *directory)
{
	size_t slots = (size_t) adapter->layers * FT_TARGET_COUNT;
	char path[FT_PATH_SIZE];
	char(*names)[NAME_SIZE] = NULL;
	ft_safetensor_out *tensors = NULL;
	size_t n = 0;
	ft_status status;

	FT_TRY(ft_path_join(path, directory, TENSORS_NAME));
	status = ft_alloc((void **) &names, slots * 2, NAME_SIZE);
	if (status == FT_OK)
		status = ft_alloc((void **) &tensors, slots * 2, sizeof *tensors);
	for (size_t slot = 0; slot < slots && status == FT_OK; slot++)
	{
		int target = (int) (slot % FT_TARGET_COUNT);
		int in;
		int out;

		if (adapter->a_at[slot] < 0)
			continue;
		ft_target_shape(config, (ft_target) target, &in, &out);
		tensor_name((int) slot / FT_TARGET_COUNT, target, 'A', names[n]);
		tensors[n] = (ft_safetensor_out){names[n], adapter->rank, in, values + adapter->a_at[slot]};
		n++;
		tensor_name((int) slot / FT_TARGET_COUNT, target, 'B', names[n]);
		tensors[n] =
			(ft_safetensor_out){names[n], out, adapter->rank, values + adapter->b_at[slot]};
		n++;
	}
	if (status == FT_OK)
		status = ft_safetensors_write_with(path, tensors, n, PROMPT_TEMPLATE_KEY,
										   adapter->prompt_template);
	free(tensors);
	free(names);
	return status;
}

static ft_status
save_into(const ft_adapter *adapter, const ft_config *config, const char *base_name,
		  const char *directory)
{
	float *values;
	ft_status status;

	if (mkdir(directory, 0700) < 0)
		return ft_fail_errno("could not create directory \"%s\"", directory);
	FT_TRY(ft_alloc((void **) &values, (size_t) adapter->n, sizeof(float)));
	status = to_host(adapter, values);
	if (status == FT_OK)
		status = save_tensors(adapter, config, values, directory);
	if (status == FT_OK)
		status = save_config(adapter, base_name, directory);
	free(values);
	return status;
}

ft_status
ft_peft_save(const ft_adapter *adapter, const ft_config *config, const char *base_name,
			 const char *directory)
{
	char temporary[FT_PATH_SIZE];
	ft_status status;

	if (snprintf(temporary, sizeof temporary, "%s.tmp", directory) >= (int) sizeof temporary)
		return ft_fail(FT_INVALID, "path is longer than %d", FT_PATH_SIZE - 1);
	FT_TRY(ft_remove_tree(temporary));
	status = save_into(adapter, config, base_name, temporary);
	/* a directory cannot be renamed over one that holds files */
	if (status == FT_OK)
		status = ft_remove_tree(directory);
	if (status == FT_OK)
		status = ft_rename_durably(temporary, directory);
	if (status != FT_OK)
	{
		char message[512];
		char hint[512];

		/* the clean-up may fail too; what is told is the first failure */
		snprintf(message, sizeof message, "%s", ft_error_message());
		snprintf(hint, sizeof hint, "%s", ft_error_hint());
		ft_remove_tree(temporary);
		ft_fail(status, "%s", message);
		if (hint[0] != '\0')
			ft_hint(status, "%s", hint);
	}
	return status;
}
