/*
 * fuzz_row.c: a line of training data to tokens and weights.
 */
#include "fuzz_vocabulary.h"
#include "row.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* No side of a row is longer than it may be, and a pair has two. */
static void
check(const ft_row_encoder *e)
{
	size_t limit = (size_t) e->max_length;
	size_t rest = e->ids.length - e->chosen;

	if (e->ids.length != e->weights.length || e->ids.length != e->targets.length ||
		e->chosen > limit || e->chosen > e->ids.length || rest > limit ||
		(e->pairs && (e->chosen < 2 || rest < 2)) || (!e->pairs && e->chosen != 0))
		abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const ft_config config = {.vocab = FUZZ_TOKENS,
									 .max_positions = 64,
									 .bos = -1,
									 .pad = -1,
									 .n_eos = 1,
									 .eos = {FUZZ_BYTES + FUZZ_MERGED + 1}};
	static ft_row_encoder e;
	ft_row_kind kind;
	bool truncated;

	if (e.tokenizer == NULL)
	{
		e.vocabulary = fuzz_vocabulary("smollm");
		e.tokenizer = fuzz_tokenizer("smollm");
		e.config = &config;
		if (ft_chat_template_find("smollm2", NULL, &e.chat_template) != FT_OK)
			abort();
	}
	/* the first byte: how long a row may be, whether it is a pair, and whether prompts are trained
	 */
	if (size == 0)
		return 0;
	e.max_length = 8 + (data[0] & 0x3f);
	e.pairs = (data[0] & 0xc0) == 0x40;
	e.train_on_inputs = data[0] >> 7;
	if (ft_row_encode(&e, (const char *) data + 1, size - 1, &kind, &truncated) == FT_OK &&
		kind == FT_ROW_USED)
		check(&e);
	return 0;
}
