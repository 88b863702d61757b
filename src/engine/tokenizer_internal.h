/*
 * tokenizer_internal.h: what the parts of the tokeniser share.
 *
 * Tokens are kept as the bytes they stand for: files store byte-level ones in GPT-2's alphabet, and
 * SentencePiece's with U+2581 for a space, which text here has as a space as well.
 */
#ifndef FT_TOKENIZER_INTERNAL_H
#define FT_TOKENIZER_INTERNAL_H

#include "tokenizer.h"
#include "tokenizer_bpe.h"
#include "tokenizer_pre.h"

/* U+2581, which SentencePiece writes for a space */
#define FT_SPACE_MARK "\xe2\x96\x81"

/* Characters that stand for bytes end below this: 256 and the 68 bytes that are not printable. */
#define FT_ALPHABET_END 324

/* Characters whose tokens stand in a table: those of the basic plane. */
#define FT_TABLED_CHARACTERS 0x10000

typedef struct ft_token
{
	size_t at; /* in text */
	uint32_t length;
	uint8_t flags; /* FT_ADDED_ */
	bool special;  /* the template's and the model's own, never a user's text */
	bool added;    /* found in text as a whole, before merging */
	bool byte;     /* stands for a byte where there is no token of the character */
} ft_token;

/* A text that is looked for. */
typedef struct ft_added
{
	size_t at; /* in the list's text */
	size_t length;
	int32_t id;
} ft_added;

typedef struct ft_added_list
{
	ft_added *entries; /* by their bytes, a shorter one before those that it begins */
	size_t n;
	ft_text text;
	bool start[256];  /* an entry begins with this byte */
	bool whole[256];  /* an entry is this byte */
	bool second[256]; /* an entry goes on with this byte */
} ft_added_list;

struct ft_tokenizer
{
	size_t n_tokens;
	ft_token *tokens;
	ft_text text;    /* bytes of all tokens */
	int32_t *sorted; /* ids by their bytes */
	ft_bpe bpe;
	int32_t bytes[256]; /* tokens that a byte becomes where there is nothing better; -1: none */
	int32_t bos;
	int32_t eos;
	int32_t unknown; /* what has no token becomes this one; -1: nothing */
	bool adds_bos;
	bool nfc;
	ft_space_prefix space_prefix;
	bool space_prefix_once;

	ft_added_list raw;        /* looked for in text as it comes */
	ft_added_list normalised; /* in what is left, once normalised */
	ft_added_list symbols;    /* in what is left of that, without any cut in the text */

	/* byte-level: */
	ft_pre *pre; /* NULL: SentencePiece style */
	bool ignore_merges;
	/* SentencePiece style: */
	int32_t *characters;    /* [FT_TABLED_CHARACTERS] tokens of single characters; -1: none */
	bool space_splits[256]; /* no merge joins this byte and a space behind it */
};

static inline const char *
ft_token_text(const ft_tokenizer *t, int32_t id)
{
	return t->text.data + t->tokens[id].at;
}

/* byte_of[code] is the byte that a character stands for, -1 for none. */
void ft_make_alphabet(int16_t byte_of[FT_ALPHABET_END]);

/* Append the bytes that a stored token stands for; one that is not wholly of the alphabet stands
 * for itself.  byte_of NULL: SentencePiece's. */
ft_status ft_append_stored(ft_text *text, const int16_t *byte_of, const char *stored, size_t n);

/* The lowest id with these bytes that text may become, -1 for none; among several, one that is
 * special or not, as preferred. */
int32_t ft_find_token(const ft_tokenizer *t, const char *bytes, size_t n, bool prefer_special);

/* tokenizer_merges.c: the vocabulary's merges, from its list or its scores. */
ft_status ft_make_merges(ft_tokenizer *t, const ft_vocabulary *v, const int16_t *byte_of);

/* tokenizer_added.c: sort added tokens into their lists. */
ft_status ft_list_added(ft_tokenizer *t);
void ft_free_added(ft_tokenizer *t);

/* The next place in text[from, n) where a token of the list stands that may stand there, the
 * longest of those that begin there.  With with_special false a special token is passed over, as
 * text that is not looked into.  *id -1 and *start = n: there is none.  What the token takes of its
 * surroundings is between *start and *end, and from <= *start. */
void ft_find_added(const ft_tokenizer *t, const ft_added_list *list, const char *text, size_t n,
				   size_t from, bool with_special, int32_t *id, size_t *start, size_t *end);

/* tokenizer_normal.c: append text[0, n) in Unicode's form C; what is no UTF-8 stays as it is. */
ft_status ft_append_nfc(ft_text *to, const char *text, size_t n);
/* Is text[0, n) in form C, as far as a glance tells? */
bool ft_looks_nfc(const char *text, size_t n);
/* Append text[0, n) with spaces for U+2581. */
ft_status ft_append_spaced(ft_text *to, const char *text, size_t n);
/* Is this one of the characters that words are made of: letters, marks, digits, connectors? */
bool ft_is_word(uint32_t code);
/* Append text[0, n) as the tokeniser's normaliser has it, but for spaces that it puts before. */
ft_status ft_append_normalised(const ft_tokenizer *t, ft_text *to, const char *text, size_t n);

#endif
