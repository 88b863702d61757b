/*
 * tokenizer.c: byte-level BPE: vocabulary, encoding, decoding.
 *
 * Ids equal those of Hugging Face's tokenizers library for the same vocabulary.  That library never
 * sees text that is not UTF-8; here each byte of such text that belongs to no character is a piece
 * of its own.
 *
 * Files store byte-level tokens in GPT-2's alphabet, where each byte is a
 * printable character; here tokens are kept as the bytes they stand for.
 */
#include "tokenizer.h"

#include "tokenizer_bpe.h"
#include "tokenizer_pre.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>

typedef struct token
{
	size_t at; /* in text */
	uint32_t length;
	bool special; /* the template's and the model's own, never a user's text */
	bool added;   /* found in text as a whole, before merging */
} token;

struct ft_tokenizer
{
	size_t n_tokens;
	token *tokens;
	ft_text text;    /* bytes of all tokens */
	int32_t *sorted; /* ids by their bytes */
	int32_t *added;  /* ids of added tokens, by their bytes */
	size_t n_added;
	bool added_start[256]; /* an added token begins with this byte */
	ft_pre *pre;
	ft_bpe bpe;
	int32_t bos;
	int32_t eos;
	bool adds_bos;
};

/* --- GPT-2's alphabet --- */

/* Characters that stand for bytes end below this: 256 and the 68 bytes that are not printable. */
#define ALPHABET_END 324

/* A byte that is a printable Latin-1 character stands for itself. */
static bool
stands_for_itself(unsigned byte)
{
	return (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte < 0x100 && byte != 0xad);
}

/* byte_of[code] is the byte that a character stands for, -1 for none. */
static void
make_alphabet(int16_t byte_of[ALPHABET_END])
{
	int next = 256;

	memset(byte_of, -1, ALPHABET_END * sizeof byte_of[0]);
	for (unsigned byte = 0; byte < 256; byte++)
		byte_of[stands_for_itself(byte) ? (int) byte : next++] = (int16_t) byte;
}

/* Append the bytes a stored token stands for; one that is not wholly of the alphabet stands for
 * itself. */
static ft_status
append_stored(ft_text *text, const int16_t byte_of[ALPHABET_END], const char *stored, size_t n)
{
	size_t start = text->length;

	for (size_t at = 0; at < n;)
	{
		uint32_t code = 0;
		size_t length = ft_utf8_decode(stored + at, n - at, &code);
		char byte;

		if (length == 0 || code >= ALPHABET_END || byte_of[code] < 0)
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

/* --- looking tokens up --- */

static int
compare_bytes(const char *a, size_t na, const char *b, size_t nb)
{
	int c = memcmp(a, b, na < nb ? na : nb);

	return c != 0 ? c : (na > nb) - (na < nb);
}

static const char *
token_text(const ft_tokenizer *t, int32_t id)
{
	return t->text.data + t->tokens[id].at;
}

static int
compare_ids(const void *a, const void *b, void *tokenizer)
{
	const ft_tokenizer *t = tokenizer;
	int32_t x = *(const int32_t *) a;
	int32_t y = *(const int32_t *) b;
	int c =
		compare_bytes(token_text(t, x), t->tokens[x].length, token_text(t, y), t->tokens[y].length);

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

		if (compare_bytes(token_text(t, id), t->tokens[id].length, bytes, n) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The lowest id with these bytes, -1 for none; among several, one that is special or not, as
 * preferred. */
static int32_t
find_bytes(const ft_tokenizer *t, const char *bytes, size_t n, bool prefer_special)
{
	int32_t found = -1;

	for (size_t i = lower_bound(t, bytes, n); i < t->n_tokens; i++)
	{
		int32_t id = t->sorted[i];

		if (t->tokens[id].length != n || memcmp(token_text(t, id), bytes, n) != 0)
			break;
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
add_tokens(ft_tokenizer *t, const ft_vocabulary *v, const int16_t *byte_of)
{
	void *memory;

	FT_TRY(ft_alloc(&memory, v->n_tokens, sizeof(token)));
	t->tokens = memory;
	FT_TRY(ft_alloc(&memory, v->n_tokens, sizeof(int32_t)));
	t->sorted = memory;
	t->n_tokens = v->n_tokens;
	/* so that text is never NULL */
	FT_TRY(ft_text_append(&t->text, "", 0));
	for (size_t i = 0; i < v->n_tokens; i++)
	{
		ft_string s = v->tokens[i];
		int32_t type = v->types != NULL ? v->types[i] : FT_TOKEN_NORMAL;
		token *to = &t->tokens[i];
		bool user_defined = type == FT_TOKEN_USER_DEFINED;

		if (s.length > INT32_MAX)
			return ft_fail(FT_CORRUPT, "token %zu has %zu bytes", i, s.length);
		/* some converters store chat tokens as user-defined ones */
		to->special = type == FT_TOKEN_CONTROL || type == FT_TOKEN_UNKNOWN ||
					  (user_defined && looks_special(s));
		to->added = (type == FT_TOKEN_CONTROL || user_defined) && s.length > 0;
		to->at = t->text.length;
		if (to->special || user_defined)
			FT_TRY(ft_text_append(&t->text, s.data, s.length));
		else
			FT_TRY(append_stored(&t->text, byte_of, s.data, s.length));
		to->length = (uint32_t) (t->text.length - to->at);
		t->sorted[i] = (int32_t) i;
	}
	qsort_r(t->sorted, t->n_tokens, sizeof(int32_t), compare_ids, t);
	return FT_OK;
}

static ft_status
list_added(ft_tokenizer *t)
{
	void *memory;

	FT_TRY(ft_alloc(&memory, t->n_tokens, sizeof(int32_t)));
	t->added = memory;
	for (size_t i = 0; i < t->n_tokens; i++)
	{
		int32_t id = t->sorted[i];

		if (!t->tokens[id].added)
			continue;
		t->added[t->n_added++] = id;
		t->added_start[(unsigned char) token_text(t, id)[0]] = true;
	}
	return FT_OK;
}

/* "left right" into ids; left < 0: to be ignored, because user text must never merge into a special
 * token. */
static ft_status
parse_merge(const ft_tokenizer *t, const int16_t *byte_of, ft_string s, size_t rank, ft_text *work,
			ft_merge *merge)
{
	const char *space = s.length > 1 ? memchr(s.data + 1, ' ', s.length - 1) : NULL;
	size_t left_length;
	int32_t ids[3];

	if (space == NULL)
		return ft_fail(FT_CORRUPT, "merge %zu does not name two tokens", rank);
	ft_text_clear(work);
	FT_TRY(append_stored(work, byte_of, s.data, (size_t) (space - s.data)));
	left_length = work->length;
	FT_TRY(append_stored(work, byte_of, space + 1, s.length - (size_t) (space - s.data) - 1));
	ids[0] = find_bytes(t, work->data, left_length, false);
	ids[1] = find_bytes(t, work->data + left_length, work->length - left_length, false);
	ids[2] = find_bytes(t, work->data, work->length, false);
	*merge = (ft_merge){ids[0], ids[1], (int32_t) rank, ids[2]};
	for (int i = 0; i < 3; i++)
	{
		if (ids[i] < 0)
			return ft_fail(FT_CORRUPT, "merge %zu needs a token that the vocabulary lacks", rank);
		if (t->tokens[ids[i]].special)
			merge->left = -1;
	}
	return FT_OK;
}

static ft_status
parse_merges(const ft_tokenizer *t, const ft_vocabulary *v, const int16_t *byte_of,
			 ft_merge *merges, size_t *n)
{
	ft_text work = {0};
	ft_status status = ft_text_append(&work, "", 0);

	for (size_t i = 0; i < v->n_merges && status == FT_OK; i++)
	{
		status = parse_merge(t, byte_of, v->merges[i], i, &work, &merges[*n]);
		if (status == FT_OK && merges[*n].left >= 0)
			(*n)++;
	}
	ft_text_free(&work);
	return status;
}

static ft_status
make_bpe(ft_tokenizer *t, const ft_vocabulary *v, const int16_t *byte_of)
{
	void *merges;
	size_t n = 0;
	ft_status status;

	for (int byte = 0; byte < 256; byte++)
	{
		char c = (char) byte;
		int32_t id = find_bytes(t, &c, 1, false);

		t->bpe.bytes[byte] = id >= 0 && !t->tokens[id].special ? id : -1;
	}
	FT_TRY(ft_alloc(&merges, v->n_merges, sizeof(ft_merge)));
	status = parse_merges(t, v, byte_of, merges, &n);
	if (status != FT_OK)
	{
		free(merges);
		return status;
	}
	return ft_bpe_init(&t->bpe, t->n_tokens, merges, n);
}

ft_status
ft_tokenizer_check_kind(const char *model, const char *pre)
{
	if (model[0] == '\0')
		return ft_fail(FT_UNSUPPORTED, "the file has no tokenizer");
	if (strcmp(model, "gpt2") != 0)
		return ft_hint(ft_fail(FT_UNSUPPORTED, "tokenizer model \"%s\" is not supported", model),
					   "Supported is byte-level BPE, which GGUF files call \"gpt2\".");
	if (pre[0] == '\0')
		return ft_hint(ft_fail(FT_UNSUPPORTED, "the file does not name its pre-tokeniser"),
					   "Convert the model again with a converter that writes tokenizer.ggml.pre.");
	if (!ft_pre_known(pre))
		return ft_hint(ft_fail(FT_UNSUPPORTED, "pre-tokeniser \"%s\" is not supported", pre),
					   "Supported pre-tokenisers: smollm, llama-bpe, gpt-2, qwen2, default.");
	return FT_OK;
}

static ft_status
fill(ft_tokenizer *t, const ft_vocabulary *v)
{
	int16_t byte_of[ALPHABET_END];

	FT_TRY(ft_tokenizer_check_kind(v->model, v->pre));
	if (v->n_tokens == 0 || v->n_tokens > INT32_MAX - 1 || v->n_merges > INT32_MAX - 1)
		return ft_fail(FT_CORRUPT, "vocabulary has %zu tokens and %zu merges", v->n_tokens,
					   v->n_merges);
	make_alphabet(byte_of);
	FT_TRY(ft_pre_create(v->pre, &t->pre));
	FT_TRY(add_tokens(t, v, byte_of));
	FT_TRY(list_added(t));
	FT_TRY(make_bpe(t, v, byte_of));
	t->bos = v->bos;
	t->eos = v->eos;
	t->adds_bos = v->add_bos && v->bos >= 0;
	return FT_OK;
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
	ft_text_free(&tokenizer->text);
	free(tokenizer->tokens);
	free(tokenizer->sorted);
	free(tokenizer->added);
	free(tokenizer);
}

/* --- encoding --- */

typedef struct encoder
{
	const ft_tokenizer *tokenizer;
	ft_pre_scan *scan;
	ft_bpe_work work;
	ft_ids *ids;
} encoder;

static ft_status
encode_piece(encoder *e, const char *piece, size_t n)
{
	const ft_tokenizer *t = e->tokenizer;

	if (ft_pre_ignores_merges(t->pre))
	{
		int32_t id = find_bytes(t, piece, n, false);

		if (id >= 0 && !t->tokens[id].special)
			return ft_ids_push(e->ids, id);
	}
	return ft_bpe_encode(&t->bpe, &e->work, piece, n, e->ids);
}

/* Text without added tokens: its runs of valid UTF-8 by pieces, each byte between them alone. */
static ft_status
encode_plain(encoder *e, const char *text, size_t n)
{
	while (n > 0)
	{
		size_t valid = ft_utf8_valid(text, n);
		size_t length;

		for (size_t at = 0; at < valid; at += length)
		{
			FT_TRY(ft_pre_next(e->scan, text, valid, at, &length));
			FT_TRY(encode_piece(e, text + at, length));
		}
		if (valid < n)
			FT_TRY(encode_piece(e, text + valid++, 1));
		text += valid;
		n -= valid;
	}
	return FT_OK;
}

/* The longest added token that text[0, n) begins with, -1 for none: the range of those that share
 * the bytes seen so far is narrowed byte by byte. */
static int32_t
match_added(const ft_tokenizer *t, const char *text, size_t n, bool with_special)
{
	size_t low = 0;
	size_t high = t->n_added;
	int32_t longest = -1;

	if (!t->added_start[(unsigned char) text[0]])
		return -1;
	for (size_t depth = 0; depth < n && low < high; depth++)
	{
		unsigned char c = (unsigned char) text[depth];
		size_t end = high;
		size_t first;

		/* first whose byte at this depth is not below c, then first above it; all are longer than
		 * depth */
		for (first = low; low < end;)
		{
			size_t middle = low + (end - low) / 2;

			if ((unsigned char) token_text(t, t->added[middle])[depth] < c)
				low = middle + 1;
			else
				end = middle;
		}
		for (first = low; first < high;)
		{
			size_t middle = first + (high - first) / 2;

			if ((unsigned char) token_text(t, t->added[middle])[depth] <= c)
				first = middle + 1;
			else
				high = middle;
		}
		/* shorter ones sort first, so those that end here are at the front */
		for (; low < high && t->tokens[t->added[low]].length == depth + 1; low++)
		{
			if (with_special || !t->tokens[t->added[low]].special)
				longest = t->added[low];
		}
	}
	return longest;
}

static ft_status
encode_all(encoder *e, const char *text, size_t n, bool parse_special)
{
	const ft_tokenizer *t = e->tokenizer;
	size_t start = 0;

	for (size_t at = 0; at < n;)
	{
		int32_t id = match_added(t, text + at, n - at, parse_special);

		if (id < 0)
		{
			at++;
			continue;
		}
		FT_TRY(encode_plain(e, text + start, at - start));
		FT_TRY(ft_ids_push(e->ids, id));
		at += t->tokens[id].length;
		start = at;
	}
	return encode_plain(e, text + start, n - start);
}

ft_status
ft_tokenizer_encode(const ft_tokenizer *tokenizer, const char *text, size_t n, bool parse_special,
					ft_ids *ids)
{
	encoder e = {.tokenizer = tokenizer, .ids = ids};
	ft_status status;

	if (n == 0)
		return FT_OK;
	FT_TRY(ft_pre_scan_create(tokenizer->pre, &e.scan));
	status = encode_all(&e, text, n, parse_special);
	ft_bpe_work_free(&e.work);
	ft_pre_scan_free(e.scan);
	return status;
}

/* --- decoding and questions --- */

ft_status
ft_tokenizer_decode(const ft_tokenizer *tokenizer, const int32_t *ids, size_t n, bool skip_special,
					ft_text *text)
{
	for (size_t i = 0; i < n; i++)
	{
		const token *t;

		if (ids[i] < 0 || (size_t) ids[i] >= tokenizer->n_tokens)
			return ft_fail(FT_INVALID, "token id %d is out of range, expected 0 to %zu", ids[i],
						   tokenizer->n_tokens - 1);
		t = &tokenizer->tokens[ids[i]];
		if (skip_special && t->special)
			continue;
		FT_TRY(ft_text_append(text, token_text(tokenizer, ids[i]), t->length));
	}
	return FT_OK;
}

int32_t
ft_tokenizer_find(const ft_tokenizer *tokenizer, const char *text)
{
	return find_bytes(tokenizer, text, strlen(text), true);
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
