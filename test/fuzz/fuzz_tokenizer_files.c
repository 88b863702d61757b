/*
 * fuzz_tokenizer_files.c: tokenizer.json or tokenizer.model, as others wrote them.  The first byte
 * chooses the format; what is accepted must make a tokeniser or an error, and that must encode and
 * decode any text.
 */
#include "tokenizer_files_internal.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
use(const ft_tokenizer *tokenizer, const char *text, size_t n)
{
	ft_ids ids = {0};
	ft_text back = {0};

	for (int special = 0; special < 2; special++)
	{
		ft_ids_clear(&ids);
		if (ft_tokenizer_encode(tokenizer, text, n, special, &ids) != FT_OK ||
			ft_tokenizer_decode(tokenizer, ids.data, ids.length, false, &back) != FT_OK)
			abort();
		for (size_t i = 0; i < ids.length; i++)
		{
			if (ids.data[i] < 0 || (size_t) ids.data[i] >= ft_tokenizer_size(tokenizer))
				abort();
		}
	}
	ft_ids_free(&ids);
	ft_text_free(&back);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char text[] = "a ab  abc\xff\n12 <s> it's \xe2\x96\x81 \xc3\xa9";
	ft_tokenizer_files *files;
	ft_tokenizer *tokenizer;

	if (size == 0)
		return 0;
	if (ft_tokenizer_files_parse(data[0] == 'm' ? "tokenizer.model" : "tokenizer.json",
								 (const char *) data + 1, size - 1, NULL, &files) != FT_OK)
		return 0;
	if (ft_tokenizer_create(ft_tokenizer_files_vocabulary(files), &tokenizer) == FT_OK)
	{
		use(tokenizer, text, sizeof text - 1);
		use(tokenizer, (const char *) data, size < 4096 ? size : 4096);
		ft_tokenizer_free(tokenizer);
	}
	ft_tokenizer_files_free(files);
	return 0;
}
