/*
 * fuzz_config.c: the JSON files of a model directory that others wrote.  The
 * first byte says which: config.json and with it a plan of its memory,
 * generation_config.json, or the index of shards in a directory of its own.
 */
#include "files.h"
#include "hf_config.h"
#include "memory_plan.h"
#include "model_file_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A model of one layer, whose index is fuzzed; its one shard has no tensor. */
static const char config_text[] =
	"{\"model_type\":\"llama\",\"vocab_size\":2,\"hidden_size\":2,\"intermediate_size\":2,"
	"\"num_hidden_layers\":1,\"num_attention_heads\":1}";

static char directory[64];

static void
remove_directory(void)
{
	(void) ft_remove_tree(directory);
}

static void
write_part(const char *name, const void *bytes, size_t n)
{
	char path[FT_PATH_SIZE];
	FILE *file;

	snprintf(path, sizeof path, "%s/%s", directory, name);
	file = fopen(path, "we");
	if (file == NULL || fwrite(bytes, 1, n, file) != n || fclose(file) != 0)
		abort();
}

static void
read_index(const uint8_t *data, size_t size)
{
	static const char shard[] = "\2\0\0\0\0\0\0\0{}";
	ft_model_file *file;

	if (directory[0] == '\0')
	{
		snprintf(directory, sizeof directory, "/tmp/fuzz_config.XXXXXX");
		if (mkdtemp(directory) == NULL)
			abort();
		atexit(remove_directory);
		write_part("config.json", config_text, sizeof config_text - 1);
		write_part("model-1.safetensors", shard, sizeof shard - 1);
	}
	write_part("model.safetensors.index.json", data, size);
	if (ft_model_file_open(directory, &file) == FT_OK)
		abort(); /* it has no tokenizer */
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	ft_config config;
	ft_memory_plan plan;
	const char *text = (const char *) data + 1;

	if (size == 0)
		return 0;
	if (data[0] % 4 == 2)
		read_index(data + 1, size - 1);
	else if (data[0] % 4 == 1)
	{
		config = (ft_config){.vocab = 1000};
		(void) ft_hf_generation_read(text, size - 1, &config);
		if (config.n_eos > FT_MAX_EOS)
			abort();
	}
	else if (ft_hf_config_read(text, size - 1, &config) == FT_OK &&
			 ft_model_config_check(&config) == FT_OK && config.layers < 100)
	{
		if (ft_config_parameters(&config) <= 0)
			abort();
		/* a plan may say that there is no such number of bytes */
		for (int m = 0; m < FT_METHOD_COUNT; m++)
			(void) ft_memory_plan_make(&config, (ft_method) m, 16, 2048, &plan);
	}
	return 0;
}
