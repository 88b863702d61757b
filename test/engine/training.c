/*
 * training.c: what the tests of training share.
 */
#include "training.h"

#include "device.h"
#include "files.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void
must(ft_status status)
{
	if (status == FT_OK)
		return;
	fprintf(stderr, "unexpected failure: %s: %s\n", ft_status_name(status), ft_error_message());
	exit(1);
}

static void
path_of(char path[FT_PATH_SIZE], const char *which, const char *name)
{
	snprintf(path, FT_PATH_SIZE, "%s/%s/%s", TINY_LLAMA, which, name);
}

static void
open_run(tiny_run *run, const char *which, int threads, ft_numerics numerics)
{
	const char *backend = getenv("PG_FINETUNE_TEST_BACKEND");
	char path[FT_PATH_SIZE];

	memset(run, 0, sizeof *run);
	path_of(path, which, "base.gguf");
	must(ft_model_file_open(path, &run->file));
	must(ft_device_open_named(backend ? backend : "cpu", threads, numerics, &run->ops,
							  &run->device));
	must(ft_model_load(run->file, run->ops, run->device, FT_USE_TRAIN, 0, &run->model));
	must(ft_tokenizer_create(ft_model_file_vocabulary(run->file), &run->tokenizer));
	must(ft_chat_template_find(NULL, ft_model_file_template(run->file), &run->chat_template));
}

void
tiny_open(tiny_run *run, const char *which, int threads)
{
	open_run(run, which, threads, FT_NUMERICS_REFERENCE);
}

void
tiny_open_bf16(tiny_run *run, const char *which, int threads)
{
	setenv("PG_FINETUNE_CPU", "bf16", 1);
	open_run(run, which, threads, FT_NUMERICS_FAST);
	unsetenv("PG_FINETUNE_CPU");
}

void
tiny_close(tiny_run *run)
{
	ft_tokenizer_free(run->tokenizer);
	ft_model_free(run->model);
	run->ops->device_close(run->device);
	ft_model_file_close(run->file);
}

ft_adapter *
tiny_adapter(const tiny_run *run, const char *which)
{
	char path[FT_PATH_SIZE];
	ft_adapter *adapter;

	path_of(path, which, "adapter");
	must(ft_peft_load(run->model, path, &adapter));
	return adapter;
}

hand_document *
golden_documents(int *n)
{
	return read_documents(TINY_LLAMA "/documents.json", n);
}

hand_document *
read_documents(const char *path, int *n)
{
	json_t *json = json_load_file(path, 0, NULL);
	hand_document *documents;

	*n = (int) json_array_size(json);
	if (*n == 0)
	{
		fprintf(stderr, "no documents in %s\n", path);
		exit(1);
	}
	must(ft_alloc((void **) &documents, (size_t) *n, sizeof *documents));
	for (int i = 0; i < *n; i++)
	{
		const json_t *item = json_array_get(json, (size_t) i);
		const json_t *ids = json_object_get(item, "ids");
		const json_t *weights = json_object_get(item, "weights");

		documents[i].length = (int) json_array_size(ids);
		for (int j = 0; j < documents[i].length; j++)
		{
			documents[i].ids[j] = (int32_t) json_integer_value(json_array_get(ids, (size_t) j));
			documents[i].weights[j] =
				(float) json_number_value(json_array_get(weights, (size_t) j));
		}
	}
	json_decref(json);
	return documents;
}

float *
read_tensor(const char *path, const char *name, int64_t *n)
{
	ft_safetensors *file;
	const ft_safetensor *tensor;
	float *values;

	must(ft_safetensors_open(path, &file));
	tensor = ft_safetensors_find(file, name);
	if (tensor == NULL)
	{
		fprintf(stderr, "no tensor %s in %s\n", name, path);
		exit(1);
	}
	*n = (int64_t) (tensor->bytes / sizeof(float));
	must(ft_alloc((void **) &values, (size_t) *n, sizeof(float)));
	must(ft_safetensors_read_f32(file, tensor, values, *n));
	ft_safetensors_close(file);
	return values;
}

void
begin_alike(hand_document *documents, int n)
{
	hand_document first = documents[2];

	for (int i = 0; i < n; i++)
	{
		hand_document *d = &documents[i];

		memmove(d->ids + BEGINNING, d->ids, (size_t) d->length * sizeof(int32_t));
		memmove(d->weights + BEGINNING, d->weights, (size_t) d->length * sizeof(float));
		memcpy(d->ids, first.ids, BEGINNING * sizeof(int32_t));
		memset(d->weights, 0, BEGINNING * sizeof(float));
		d->ids[BEGINNING] = i; /* no two go on alike */
		d->length += BEGINNING;
	}
}

void
pack_by_hand(ft_microbatch *batch, const hand_document *documents, int n, int least_shared)
{
	must(ft_microbatch_create((int64_t) n * 64, batch));
	for (int i = 0; i < n; i++)
	{
		const hand_document *d = &documents[i];

		for (int j = 0; j < d->length; j++)
		{
			batch->all_ids[batch->all] = d->ids[j];
			batch->all_targets[batch->all] = d->ids[j];
			batch->all_weights[batch->all++] = d->weights[j];
		}
		batch->numbers[batch->n_documents] = i;
		batch->starts[++batch->n_documents] = (int32_t) batch->all;
		if (d->length > batch->max_length)
			batch->max_length = d->length;
	}
	ft_microbatch_arrange(batch, least_shared);
}

double
weight_by_hand(const hand_document *documents, int n)
{
	double weight = 0;

	for (int i = 0; i < n; i++)
	{
		for (int j = 1; j < documents[i].length; j++)
			weight += documents[i].weights[j];
	}
	return weight;
}

double
relative_error(const float *a, const float *b, int64_t n)
{
	double difference = 0;
	double size = 0;

	for (int64_t i = 0; i < n; i++)
	{
		difference += ((double) a[i] - b[i]) * ((double) a[i] - b[i]);
		size += (double) b[i] * b[i];
	}
	return size > 0 ? sqrt(difference / size) : sqrt(difference);
}

void
write_text(const char *directory, const char *name, const char *text)
{
	char path[FT_PATH_SIZE];

	must(ft_path_join(path, directory, name));
	must(ft_replace_file(path, text, strlen(text)));
}

ft_dataset *
dataset_of(const tiny_run *run, const char *directory, const char *train, const char *validation,
		   const ft_dataset_options *options)
{
	ft_dataset *dataset;

	write_text(directory, "train.jsonl", train);
	if (validation != NULL)
		write_text(directory, "validation.jsonl", validation);
	must(ft_dataset_build(directory, options, ft_model_file_config(run->file),
						  ft_model_file_vocabulary(run->file), run->tokenizer, run->chat_template,
						  NULL, NULL));
	must(ft_dataset_open(directory, &dataset));
	return dataset;
}
