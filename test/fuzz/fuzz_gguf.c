/*
 * fuzz_gguf.c: model files that others wrote: header, description, contents, vocabulary, template.
 */
#include "chat_template.h"
#include "inspect.h"
#include "model_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
use(const ft_model_file *file)
{
	const ft_chat_template *chat_template;
	ft_tokenizer *tokenizer;
	ft_ids ids = {0};

	for (int i = 0; i < ft_model_file_tensors(file); i++)
	{
		const ft_model_tensor *t = ft_model_file_tensor(file, i);
		void *memory = malloc(t->bytes);

		/* an accepted tensor lies in the file, so it cannot be larger */
		if (memory == NULL || ft_model_file_read(file, t, memory) != FT_OK)
			abort();
		free(memory);
	}
	(void) ft_chat_template_find(NULL, ft_model_file_template(file), &chat_template);
	if (ft_tokenizer_create(ft_model_file_vocabulary(file), &tokenizer) != FT_OK)
		return;
	if (ft_tokenizer_encode(tokenizer, "Hello <|im_end|>  12\n", 21, true, &ids) != FT_OK)
		abort();
	for (size_t i = 0; i < ids.length; i++)
	{
		if (ids.data[i] < 0 || ids.data[i] >= ft_model_file_config(file)->vocab)
			abort();
	}
	ft_ids_free(&ids);
	ft_tokenizer_free(tokenizer);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	char path[64];
	ft_model_file *file;
	json_t *description;

	if (fd < 0)
		fd = memfd_create("fuzz.gguf", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t) size)
		abort();
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (ft_model_file_open(path, &file) == FT_OK)
	{
		use(file);
		ft_model_file_close(file);
	}
	if (ft_inspect(path, NULL, &description) == FT_OK)
		json_decref(description);
	return 0;
}
