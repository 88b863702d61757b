/*
 * fuzz_schema.c: JSON schemas of response_format, and answers that they let through.
 *
 * The input is a schema, or, where it is no JSON, nothing.  Where it becomes a
 * grammar, some answers are drawn from it, by tokens that its own bytes choose:
 * there must always be a token to go on with, and what is complete is JSON.
 */
#include "fuzz_vocabulary.h"

#include "json_schema.h"
#include "response_format.h"

#include <jansson.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ANSWERS 4
#define TOKENS 60

static ft_tokenizer *
tokenizer(void)
{
	static ft_tokenizer *made;

	if (!made)
		made = fuzz_tokenizer("gpt-2");
	return made;
}

/* The token of the set that `number` chooses, -1 when it is empty. */
static int32_t
choose(const uint64_t *words, uint32_t number)
{
	for (uint32_t i = 0; i < FUZZ_TOKENS; i++)
	{
		uint32_t id = (number + i) % FUZZ_TOKENS;

		if (words[id / 64] >> id % 64 & 1)
			return (int32_t) id;
	}
	return -1;
}

static void
check_json(const ft_text *text)
{
	json_t *json = json_loadb(text->data, text->length, JSON_DECODE_ANY, NULL);

	if (!json)
		abort();
	json_decref(json);
}

/* False when the schema turns out to be too intricate. */
static bool
draw_answer(ft_constraint *constraint, const uint8_t *data, size_t size, uint32_t seed)
{
	bool hurried = seed % 2 == 0; /* to end within TOKENS */
	ft_text text = {0};
	ft_match match;
	ft_status status = ft_match_begin(constraint, &match);

	for (int i = 0; status == FT_OK && i < TOKENS && !ft_match_is_whole(&match); i++)
	{
		size_t before = text.length;
		const uint64_t *words;
		bool may_end;
		int32_t id;

		status = ft_match_tokens(&match, hurried ? TOKENS - i : INT32_MAX, &words, &may_end);
		if (status != FT_OK)
			break;
		if (may_end && text.length > 0)
			check_json(&text);
		seed = (seed + data[(size_t) i % size] + 1) * 2654435761u;
		id = choose(words, seed >> 7);
		if (id < 0)
		{
			if (!may_end)
				abort();
			break;
		}
		if (ft_tokenizer_decode_part(tokenizer(), &id, 1, true, &text) != FT_OK)
			abort();
		status = ft_match_push(&match, text.data + before, text.length - before);
		if (status == FT_INTERNAL)
			abort();
	}
	if (status == FT_OK && ft_match_is_whole(&match))
		check_json(&text);
	if (match.constraint)
		ft_match_end(&match);
	ft_text_free(&text);
	return status == FT_OK;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static ft_constraint_vocabulary *vocabulary;
	json_t *schema = json_loadb((const char *) data, size, JSON_DECODE_ANY, NULL);
	ft_constraint *constraint;
	ft_grammar *grammar = NULL;

	if (!vocabulary &&
		ft_constraint_vocabulary_create(tokenizer(), FUZZ_TOKENS, &vocabulary) != FT_OK)
		abort();
	if (!schema)
		return 0;
	if (ft_json_schema_grammar(schema, size % 2 == 0, &grammar) != FT_OK)
	{
		if (grammar || strlen(ft_error_message()) == 0)
			abort();
	}
	else if (ft_constraint_create(grammar, vocabulary, &constraint) == FT_OK)
	{
		for (uint32_t i = 0; i < ANSWERS && draw_answer(constraint, data, size, i); i++)
			;
		ft_constraint_free(constraint);
	}
	json_decref(schema);
	return 0;
}
