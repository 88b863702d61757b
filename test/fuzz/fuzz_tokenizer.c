/*
 * fuzz_tokenizer.c: any bytes to ids and back.  The first byte chooses the pre-tokeniser and
 * whether special tokens are looked for; whatever the text, it must come back.
 */
#include "fuzz_vocabulary.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const kinds[] = {"smollm", "gpt-2", "llama-bpe", "qwen2"};
	static ft_tokenizer *tokenizers[4];
	const ft_tokenizer *t;
	ft_ids ids = {0};
	ft_text text = {0};
	unsigned kind;

	if (size == 0)
		return 0;
	kind = data[0] & 3;
	if (tokenizers[kind] == NULL)
		tokenizers[kind] = fuzz_tokenizer(kinds[kind]);
	t = tokenizers[kind];
	if (ft_tokenizer_encode(t, (const char *) data + 1, size - 1, data[0] & 4, &ids) != FT_OK ||
		ft_tokenizer_decode(t, ids.data, ids.length, false, &text) != FT_OK ||
		text.length != size - 1 || (size > 1 && memcmp(text.data, data + 1, size - 1) != 0))
		abort();
	for (size_t i = 0; i < ids.length && !(data[0] & 4); i++)
	{
		if (ft_tokenizer_is_special(t, ids.data[i]))
			abort();
	}
	if (ft_utf8_incomplete((const char *) data, size) > 3)
		abort();
	ft_ids_free(&ids);
	ft_text_free(&text);
	return 0;
}
