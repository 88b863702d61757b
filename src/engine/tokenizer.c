/*
 * tokenizer.c: the vocabulary: making a tokeniser, decoding, questions.
 *
 * Ids equal those of Hugging Face's tokenizers library for the same vocabulary.  That library never
 * sees text that is not UTF-8; here each byte of such text that belongs to no character is a piece
 * of its own.
 */
#include "tokenizer_internal.h"

#include "utf8.h"

#include <stdlib.h>
#include <string.h>

/* --- what files store --- */

/* A byte that is a printable Latin-1 character stands for itself. */
static bool
stands_for_itself(unsigned byte)
{
	return (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte < 0x100 && byte != 0xad);
}

void
ft_make_alphabet(int16_t byte_of[FT_ALPHABET_END])
{
	int next = 256;

	memset(byte_of, -1, FT_ALPHABET_END * sizeof byte_of[0]);
	for (unsigned byte = 0; byte < 256; byte++)
		byte_of[stands_for_itself(byte) ? (int) byte : next++] = (int16_t) byte;
}

ft_status
ft_append_stored(ft_text *text, const int16_t *byte_of, const char *stored, size_t n)
{
	size_t start = text->length;

	if (byte_of == NULL)
		return ft_append_spaced(text, stored, n);
	for (size_t at = 0; at < n;)
	{
		uint32_t code = 0;
		size_t length = ft_utf8_decode(stored + at, n - at, &code);
		char byte;

		if (length == 0 || code >= FT_ALPHABET_END || byte_of[code] < 0)
		{
			text->length = start;
			return ft_text_append(text, stored, n);
		}
		byte = (char) byte_of[code];
		FT_TRY(ft_text_append(text, &byte, 1));
		at += length;
	}
	return FT_OK;
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The byte that "<0x0A>" stands for, -1 for other texts. */
static int
byte_named(ft_string s)
{
	if (s.length != 6 || memcmp(s.data, "<0x", 3) != 0 || s.data[5] != '>' ||
		hex_digit(s.data[3]) < 0 || hex_digit(s.data[4]) < 0)
		return -1;
	return hex_digit(s.data[3]) * 16 + hex_digit(s.data[4]);
}

/* --- looking tokens up --- */

static int
compare_bytes(const char *a, size_t na, const char *b, size_t nb)
{
	int c = memcmp(a, b, na < nb ? na : nb);

	return c != 0 ? c : (na > nb) - (na < nb);
}

static int
compare_ids(const void *a, const void *b, void *tokenizer)
{
	const ft_tokenizer *t = tokenizer;
	int32_t x = *(const int32_t *) a;
	int32_t y = *(const int32_t *) b;
	int c = compare_bytes(ft_token_text(t, x), t->tokens[x].length, ft_token_text(t, y),
						  t->tokens[y].length);

	return c != 0 ? c : (x > y) - (x < y);
}

/* First place in sorted whose token is not below the bytes. */
static size_t
lower_bound(const ft_tokenizer *t, const char *bytes, size_t n)
{
	size_t low = 0;
	size_t high = t->n_tokens;

	while (low < high)
	{
		size_t middle = low + (high - low) / 2;
		int32_t id = t->sorted[middle];

		if (compare_bytes(ft_token_text(t, id), t->tokens[id].length, bytes, n) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

int32_t
ft_find_token(const ft_tokenizer *t, const char *bytes, size_t n, bool prefer_special)
{
	int32_t found = -1;

	for (size_t i = lower_bound(t, bytes, n); i < t->n_tokens; i++)
	{
		int32_t id = t->sorted[i];

		if (t->tokens[id].length != n || memcmp(ft_token_text(t, id), bytes, n) != 0)
			break;
		if (t->tokens[id].byte)
			continue;
		if (t->tokens[id].special == prefer_special)
			return id;
		if (found < 0)
			found = id;
	}
	return found;
}

/* --- making one --- */

static bool
looks_special(ft_string s)
{
	return s.length > 4 && memcmp(s.data, "<|", 2) == 0 &&
		   memcmp(s.data + s.length - 2, "|>", 2) == 0;
}

static ft_status
add_token(ft_tokenizer *t, const ft_vocabulary *v, const int16_t *byte_of, size_t i)
{
	ft_string s = v->tokens[i];
	int32_t type = v->types != NULL ? v->types[i] : FT_TOKEN_NORMAL;
	ft_token *to = &t->tokens[i];
	bool user_defined = type == FT_TOKEN_USER_DEFINED;
	int byte = -1;

	if (s.length > INT32_MAX)
		return ft_fail(FT_CORRUPT, "token %zu has %zu bytes", i, s.length);
	to->flags = v->added != NULL ? v->added[i] : 0;
	/* some converters to GGUF store chat tokens as user-defined ones */
	to->special = type == FT_TOKEN_CONTROL || type == FT_TOKEN_UNKNOWN ||
				  (user_defined && v->added == NULL && looks_special(s));
	to->added =
		(type == FT_TOKEN_CONTROL || type == FT_TOKEN_UNKNOWN || user_defined) && s.length > 0;
	to->at = t->text.length;
	if (v->byte_fallback && (type == FT_TOKEN_NORMAL || type == FT_TOKEN_BYTE))
		byte = byte_named(s);
	if (byte >= 0)
	{
		char c = (char) byte;

		to->byte = true;
		FT_TRY(ft_text_append(&t->text, &c, 1));
		if (t->bytes[byte] < 0)
			t->bytes[byte] = (int32_t) i;
	}
	else if (to->special || (user_defined && !(to->flags & FT_ADDED_SYMBOL)))
		FT_TRY(ft_text_append(&t->text, s.data, s.length));
	else if (type != FT_TOKEN_UNUSED || s.length > 0)
		FT_TRY(ft_append_stored(&t->text, byte_of, s.data, s.length));
	to->length = (uint32_t) (t->text.length - to->at);
	t->sorted[i] = (int32_t) i;
	return FT_OK;
}

static ft_status
add_tokens(ft_tokenizer *t, const ft_vocabulary *v, const int16_t *byte_of)
{
	void *memory;

	FT_TRY(ft_alloc(&memory, v->n_tokens, sizeof(ft_token)));
	t->tokens = memory;
	FT_TRY(ft_alloc(&memory, v->n_tokens, sizeof(int32_t)));
	t->sorted = memory;
	t->n_tokens = v->n_tokens;
	memset(t->bytes, -1, sizeof t->bytes);
	/* so that text is never NULL */
	FT_TRY(ft_text_append(&t->text, "", 0));
	for (size_t i = 0; i < v->n_tokens; i++)
		FT_TRY(add_token(t, v, byte_of, i));
	qsort_r(t->sorted, t->n_tokens, sizeof(int32_t), compare_ids, t);
	return FT_OK;
}

/* A byte-level vocabulary has a token of each byte, by its text. */
static void
note_bytes(ft_tokenizer *t)
{
	for (int byte = 0; byte < 256; byte++)
	{
		char c = (char) byte;
		int32_t id = ft_find_token(t, &c, 1, false);

		t->bytes[byte] = id >= 0 && !t->tokens[id].special ? id : -1;
	}
}

/* A SentencePiece-style one has tokens of characters. */
static ft_status
note_characters(ft_tokenizer *t)
{
	void *memory;

	FT_TRY(ft_alloc(&memory, FT_TABLED_CHARACTERS, sizeof(int32_t)));
	t->characters = memory;
	memset(memory, -1, FT_TABLED_CHARACTERS * sizeof(int32_t));
	for (size_t i = t->n_tokens; i > 0; i--)
	{
		int32_t id = (int32_t) i - 1;
		const ft_token *token = &t->tokens[id];
		uint32_t code;

		if (!token->special && !token->byte && token->length > 0 && token->length < 4 &&
			!(token->flags & FT_ADDED_SYMBOL) &&
			ft_utf8_decode(ft_token_text(t, id), token->length, &code) == token->length)
			t->characters[code] = id;
	}
	return FT_OK;
}

static ft_status
check_byte_level(const char *pre)
{
	if (pre[0] == '\0')
		return ft_hint(ft_fail(FT_UNSUPPORTED, "the file does not name its pre-tokeniser"),
					   "Convert the model again with a converter that writes tokenizer.ggml.pre.");
	if (!ft_pre_known(pre))
		return ft_hint(ft_fail(FT_UNSUPPORTED, "pre-tokeniser \"%s\" is not supported", pre),
					   "Supported pre-tokenisers: smollm, llama-bpe, gpt-2, qwen2, default.");
	return FT_OK;
}

ft_status
ft_tokenizer_check_kind(const char *model, const char *pre)
{
	if (model[0] == '\0')
		return ft_fail(FT_UNSUPPORTED, "the file has no tokenizer");
	if (strcmp(model, "llama") == 0)
		return FT_OK;
	if (strcmp(model, "gpt2") != 0)
		return ft_hint(ft_fail(FT_UNSUPPORTED, "tokenizer model \"%s\" is not supported", model),
					   "Supported are byte-level BPE and SentencePiece's BPE, which GGUF files "
					   "call \"gpt2\" and \"llama\".");
	return check_byte_level(pre);
}

static ft_status
check_counts(const ft_vocabulary *v)
{
	if (v->n_tokens == 0 || v->n_tokens > INT32_MAX - 1 || v->n_merges > INT32_MAX - 1)
		return ft_fail(FT_CORRUPT, "vocabulary has %zu tokens and %zu merges", v->n_tokens,
					   v->n_merges);
	for (int i = 0; i < 3; i++)
	{
		int id = i == 0 ? v->bos : i == 1 ? v->eos : v->unknown;

		if (id < -1 || (id >= 0 && (size_t) id >= v->n_tokens))
			return ft_fail(FT_CORRUPT, "token %d is named, but the vocabulary has %zu tokens", id,
						   v->n_tokens);
	}
	return FT_OK;
}

static ft_status
fill(ft_tokenizer *t, const ft_vocabulary *v)
{
	int16_t byte_of[FT_ALPHABET_END];
	bool byte_level = strcmp(v->model, "gpt2") == 0;

	FT_TRY(ft_tokenizer_check_kind(v->model, v->pre));
	FT_TRY(check_counts(v));
	ft_make_alphabet(byte_of);
	t->bos = v->bos;
	t->eos = v->eos;
	t->unknown = v->unknown;
	t->adds_bos = v->add_bos && v->bos >= 0;
	t->nfc = v->nfc;
	t->space_prefix = byte_level ? FT_SPACE_NONE : v->space_prefix;
	t->space_prefix_once = v->space_prefix_once;
	t->ignore_merges = v->ignore_merges == FT_MERGES_BY_PRE ? ft_pre_ignores_merges(v->pre)
															: v->ignore_merges == FT_MERGES_IGNORED;
	if (byte_level)
		FT_TRY(ft_pre_create(v->pre, &t->pre));
	FT_TRY(add_tokens(t, v, byte_level ? byte_of : NULL));
	FT_TRY(ft_list_added(t));
	if (byte_level)
		note_bytes(t);
	else
		FT_TRY(note_characters(t));
	return ft_make_merges(t, v, byte_level ? byte_of : NULL);
}

ft_status
ft_tokenizer_create(const ft_vocabulary *vocabulary, ft_tokenizer **tokenizer)
{
	void *memory;
	ft_status status;

	FT_TRY(ft_alloc(&memory, 1, sizeof(ft_tokenizer)));
	status = fill(memory, vocabulary);
	if (status != FT_OK)
	{
		ft_tokenizer_free(memory);
		return status;
	}
	*tokenizer = memory;
	return FT_OK;
}

void
ft_tokenizer_free(ft_tokenizer *tokenizer)
{
	if (tokenizer == NULL)
		return;
	ft_bpe_free(&tokenizer->bpe);
	ft_pre_free(tokenizer->pre);
	ft_free_added(tokenizer);
	ft_text_free(&tokenizer->text);
	free(tokenizer->tokens);
	free(tokenizer->sorted);
	free(tokenizer->characters);
	free(tokenizer);
}

/* --- decoding and questions --- */

ft_status
ft_tokenizer_decode_part(const ft_tokenizer *tokenizer, const int32_t *ids, size_t n,
						 bool skip_special, ft_text *text)
{
	for (size_t i = 0; i < n; i++)
	{
		const ft_token *t;

		if (ids[i] < 0 || (size_t) ids[i] >= tokenizer->n_tokens)
			return ft_fail(FT_INVALID, "token id %d is out of range, expected 0 to %zu", ids[i],
						   tokenizer->n_tokens - 1);
		t = &tokenizer->tokens[ids[i]];
		if (skip_special && t->special)
			continue;
		FT_TRY(ft_text_append(text, ft_token_text(tokenizer, ids[i]), t->length));
	}
	return FT_OK;
}

ft_status
ft_tokenizer_decode(const ft_tokenizer *tokenizer, const int32_t *ids, size_t n, bool skip_special,
					ft_text *text)
{
	size_t start = text->length;

	FT_TRY(ft_tokenizer_decode_part(tokenizer, ids, n, skip_special, text));
	if (tokenizer->space_prefix != FT_SPACE_NONE && text->length > start &&
		text->data[start] == ' ')
	{
		text->length--;
		memmove(text->data + start, text->data + start + 1, text->length - start + 1);
	}
	return FT_OK;
}

int32_t
ft_tokenizer_find(const ft_tokenizer *tokenizer, const char *text)
{
	return ft_find_token(tokenizer, text, strlen(text), true);
}

size_t
ft_tokenizer_size(const ft_tokenizer *tokenizer)
{
	return tokenizer->n_tokens;
}

bool
ft_tokenizer_is_special(const ft_tokenizer *tokenizer, int32_t id)
{
	return id >= 0 && (size_t) id < tokenizer->n_tokens && tokenizer->tokens[id].special;
}

int32_t
ft_tokenizer_bos(const ft_tokenizer *tokenizer)
{
	return tokenizer->bos;
}

int32_t
ft_tokenizer_eos(const ft_tokenizer *tokenizer)
{
	return tokenizer->eos;
}

bool
ft_tokenizer_adds_bos(const ft_tokenizer *tokenizer)
{
	return tokenizer->adds_bos;
}
