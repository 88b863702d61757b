/*
 * fuzz_adapter.c: PEFT directories that others wrote, loaded over a tiny model.
 *
 * The input is the length of adapter_config.json (4 bytes, little-endian), that
 * file, and adapter_model.safetensors.
 */
#include "adapter.h"
#include "device.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BASE "test/golden/tiny_llama/tied/base.gguf"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char directory[] = "/tmp/fuzz_adapter.XXXXXX";

static void
must(ft_status status)
{
	if (status == FT_OK)
		return;
	fprintf(stderr, "%s\n", ft_error_message());
	abort();
}

static void
clean_up(void)
{
	char command[64];

	snprintf(command, sizeof command, "rm -rf %s", directory);
	if (system(command) != 0)
		fprintf(stderr, "could not remove %s\n", directory);
}

static ft_model *
open_model(void)
{
	const ft_ops *ops;
	ft_device *device;
	ft_model_file *file;
	ft_model *model;

	must(ft_device_open_named("cpu", 1, FT_NUMERICS_REFERENCE, &ops, &device));
	must(ft_model_file_open(BASE, &file));
	must(ft_model_load(file, ops, device, FT_USE_SERVE, 0, &model));
	ft_model_file_close(file);
	if (mkdtemp(directory) == NULL)
		abort();
	atexit(clean_up);
	return model;
}

static void
write_file(const char *name, const uint8_t *data, size_t n)
{
	char path[128];
	int fd;

	snprintf(path, sizeof path, "%s/%s", directory, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, data, n) != (ssize_t) n)
		abort();
	close(fd);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static ft_model *model = NULL;
	ft_adapter *adapter;
	uint32_t n;

	if (model == NULL)
		model = open_model();
	if (size < sizeof n)
		return 0;
	memcpy(&n, data, sizeof n);
	data += sizeof n;
	size -= sizeof n;
	if (n > size)
		return 0;
	write_file("adapter_config.json", data, n);
	write_file("adapter_model.safetensors", data + n, size - n);
	if (ft_peft_load(model, directory, &adapter) == FT_OK)
		ft_adapter_free(adapter);
	return 0;
}
