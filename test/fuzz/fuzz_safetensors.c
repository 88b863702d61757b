/*
 * fuzz_safetensors.c: adapter files that others wrote.
 */
#include "safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	char path[64];
	ft_safetensors *file;

	if (fd < 0)
		fd = memfd_create("fuzz.safetensors", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t) size)
		abort();
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (ft_safetensors_open(path, &file) != FT_OK)
		return 0;
	(void) ft_safetensors_metadata(file, "format");
	for (size_t i = 0; i < ft_safetensors_count(file); i++)
	{
		const ft_safetensor *t = ft_safetensors_at(file, i);
		size_t n = t->bytes / (size_t) t->value_bytes;
		void *memory = malloc(t->bytes + n * sizeof(float) + 1);

		if (memory == NULL || ft_safetensors_read(file, t, memory) != FT_OK ||
			ft_safetensors_find(file, t->name) == NULL)
			abort();
		(void) ft_safetensors_read_f32(file, t, memory, (int64_t) n);
		free(memory);
	}
	ft_safetensors_close(file);
	return 0;
}
