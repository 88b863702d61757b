/*
 * fuzz_vocabulary.h: a vocabulary for fuzz targets: every byte, some merges, some added tokens.
 */
#ifndef FUZZ_VOCABULARY_H
#define FUZZ_VOCABULARY_H

#include "tokenizer.h"
#include "utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FUZZ_BYTES 256

/* Tokens of more than a byte: left, right, both by their number here. */
static const char *const fuzz_merged[] = {
	"ab", "abab",     "  ",       "    ", "\n\n", "the", "th",   "12",
	"'s", "\xc3\xa9", "\xf0\x9f", "aa",   "aaaa", " a",  " the",
};
static const char *const fuzz_merges[][2] = {
	{"a", "b"},       {"t", "h"},   {"th", "e"},  {"ab", "ab"}, {" ", " "},
	{"  ", "  "},     {"\n", "\n"}, {"1", "2"},   {"'", "s"},   {"\xc3", "\xa9"},
	{"\xf0", "\x9f"}, {"a", "a"},   {"aa", "aa"}, {" ", "a"},   {" ", "the"},
};
static const char *const fuzz_added[] = {
	"<|im_start|>",        "<|im_end|>",        "<|endoftext|>", "<|eot_id|>",
	"<|start_header_id|>", "<|end_header_id|>", "<t>",           "<t>>"};

#define FUZZ_MERGED (sizeof fuzz_merged / sizeof fuzz_merged[0])
#define FUZZ_MERGES (sizeof fuzz_merges / sizeof fuzz_merges[0])
#define FUZZ_ADDED (sizeof fuzz_added / sizeof fuzz_added[0])
#define FUZZ_TOKENS (FUZZ_BYTES + FUZZ_MERGED + FUZZ_ADDED)

/* As files store it: each byte a printable character. */
static void
fuzz_store(ft_text *to, const char *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
	{
		unsigned char c = (unsigned char) bytes[i];
		unsigned code = c;
		char utf8[4];

		if (c <= 0x20)
			code = 256u + c;
		else if (c >= 0x7f && c <= 0xa0)
			code = 256u + 33 + (c - 0x7f);
		else if (c == 0xad)
			code = 256u + 67;
		if (ft_text_append(to, utf8, ft_utf8_encode(code, utf8)) != FT_OK)
			abort();
	}
}

static ft_string
fuzz_stored(const char *bytes, size_t n, const char *more)
{
	ft_text text = {0};

	fuzz_store(&text, bytes, n);
	if (more != NULL)
	{
		if (ft_text_append(&text, " ", 1) != FT_OK)
			abort();
		fuzz_store(&text, more, strlen(more));
	}
	return (ft_string){text.data, text.length};
}

/* Lives as long as the process, and is the same for every pre-tokeniser. */
static const ft_vocabulary *
fuzz_vocabulary(const char *pre)
{
	static ft_vocabulary vocabulary;
	ft_vocabulary *v = &vocabulary;
	size_t n = 0;

	snprintf(v->model, sizeof v->model, "gpt2");
	snprintf(v->pre, sizeof v->pre, "%s", pre);
	if (v->n_tokens > 0)
		return v;
	v->n_tokens = FUZZ_TOKENS;
	v->tokens = calloc(FUZZ_TOKENS, sizeof *v->tokens);
	v->types = calloc(FUZZ_TOKENS, sizeof *v->types);
	v->n_merges = FUZZ_MERGES;
	v->merges = calloc(FUZZ_MERGES, sizeof *v->merges);
	for (; n < FUZZ_BYTES; n++)
	{
		char byte = (char) n;

		v->tokens[n] = fuzz_stored(&byte, 1, NULL);
		v->types[n] = FT_TOKEN_NORMAL;
	}
	for (size_t i = 0; i < FUZZ_MERGED; i++, n++)
	{
		v->tokens[n] = fuzz_stored(fuzz_merged[i], strlen(fuzz_merged[i]), NULL);
		v->types[n] = FT_TOKEN_NORMAL;
	}
	for (size_t i = 0; i < FUZZ_ADDED; i++, n++)
	{
		v->tokens[n] = (ft_string){fuzz_added[i], strlen(fuzz_added[i])};
		v->types[n] = fuzz_added[i][1] == '|' ? FT_TOKEN_CONTROL : FT_TOKEN_USER_DEFINED;
	}
	for (size_t i = 0; i < FUZZ_MERGES; i++)
		v->merges[i] = fuzz_stored(fuzz_merges[i][0], strlen(fuzz_merges[i][0]), fuzz_merges[i][1]);
	v->bos = FUZZ_TOKENS - (int) FUZZ_ADDED;
	v->eos = v->bos + 1;
	v->unknown = v->pad = -1;
	return v;
}

static ft_tokenizer *
fuzz_tokenizer(const char *pre)
{
	ft_tokenizer *tokenizer;

	if (ft_tokenizer_create(fuzz_vocabulary(pre), &tokenizer) != FT_OK)
		abort();
	return tokenizer;
}

#endif
