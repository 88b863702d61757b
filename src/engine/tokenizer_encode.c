/*
 * tokenizer_encode.c: text to ids.
 *
 * Added tokens are cut out of the text as it comes, what is between them is normalised, more added
 * tokens are looked for, and what is then left is cut into pieces, whose bytes or characters are
 * merged.  In a long text most pieces have been seen before, so short ones are remembered.
 */
#include "tokenizer_internal.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>

/* Remembered pieces: each has one place in the table, so nothing that a text holds makes looking
 * one up slow.  64 bytes. */
#define PIECE_BYTES 22
#define PIECE_IDS 10
#define PIECES 8192
/* Texts below this are not worth the table. */
#define MANY_BYTES 4096

typedef struct remembered
{
	uint8_t length; /* 0: empty */
	uint8_t n_ids;
	char bytes[PIECE_BYTES];
	int32_t ids[PIECE_IDS];
} remembered;

typedef struct encoder
{
	const ft_tokenizer *tokenizer;
	bool parse_special;
	ft_ids *ids;
	ft_pre_scan *scan;
	ft_bpe_work work;
	ft_ids symbols; /* of one piece */
	ft_text normal;
	ft_text prefixed;
	remembered *pieces; /* NULL: none are remembered */
} encoder;

/* --- one piece --- */

static ft_status
push_bytes(encoder *e, const char *bytes, size_t n)
{
	const ft_tokenizer *t = e->tokenizer;

	for (size_t i = 0; i < n; i++)
	{
		int32_t id = t->bytes[(unsigned char) bytes[i]];

		if (id >= 0)
			FT_TRY(ft_ids_push(&e->symbols, id));
	}
	return FT_OK;
}

/* A character without a token: its bytes', if all have one, else the unknown token, which stands
 * for a run of such characters. */
static ft_status
push_unknown(encoder *e, const char *bytes, size_t n)
{
	const ft_tokenizer *t = e->tokenizer;
	bool known = true;

	for (size_t i = 0; i < n; i++)
		known = known && t->bytes[(unsigned char) bytes[i]] >= 0;
	if (known)
		return push_bytes(e, bytes, n);
	if (t->unknown < 0 ||
		(e->symbols.length > 0 && e->symbols.data[e->symbols.length - 1] == t->unknown))
		return FT_OK;
	return ft_ids_push(&e->symbols, t->unknown);
}

static ft_status
push_characters(encoder *e, const char *piece, size_t n)
{
	const ft_tokenizer *t = e->tokenizer;

	for (size_t at = 0, length; at < n; at += length)
	{
		uint32_t code;
		int32_t id = -1;

		length = ft_utf8_decode(piece + at, n - at, &code);
		if (length == 0)
			length = 1;
		else if (code < FT_TABLED_CHARACTERS)
			id = t->characters[code];
		else
		{
			id = ft_find_token(t, piece + at, length, false);
			if (id >= 0 && (t->tokens[id].special || t->tokens[id].flags & FT_ADDED_SYMBOL))
				id = -1;
		}
		FT_TRY(id >= 0 ? ft_ids_push(&e->symbols, id) : push_unknown(e, piece + at, length));
	}
	return FT_OK;
}

static ft_status
merge_piece(encoder *e, const char *piece, size_t n)
{
	const ft_tokenizer *t = e->tokenizer;

	ft_ids_clear(&e->symbols);
	if (t->ignore_merges)
	{
		int32_t id = ft_find_token(t, piece, n, false);

		if (id >= 0 && !t->tokens[id].special && !(t->tokens[id].flags & FT_ADDED_SYMBOL))
			return ft_ids_push(&e->symbols, id);
	}
	FT_TRY(t->pre != NULL ? push_bytes(e, piece, n) : push_characters(e, piece, n));
	return ft_bpe_merge(&t->bpe, &e->work, e->symbols.data, &e->symbols.length);
}

static remembered *
place_of(const encoder *e, const char *piece, size_t n)
{
	uint64_t hash = n;

	for (size_t i = 0; i < n; i++)
		hash = (hash ^ (unsigned char) piece[i]) * 0x9e3779b97f4a7c15u;
	return &e->pieces[hash >> 51];
}

_Static_assert(PIECES == 1 << (64 - 51), "the hash's upper bits choose a piece's place");

static ft_status
encode_piece(encoder *e, const char *piece, size_t n)
{
	remembered *place = NULL;

	if (e->pieces != NULL && n <= PIECE_BYTES)
	{
		place = place_of(e, piece, n);
		if (place->length == n && memcmp(place->bytes, piece, n) == 0)
			return ft_ids_append(e->ids, place->ids, place->n_ids);
	}
	FT_TRY(merge_piece(e, piece, n));
	if (place != NULL && e->symbols.length <= PIECE_IDS)
	{
		place->length = (uint8_t) n;
		place->n_ids = (uint8_t) e->symbols.length;
		memcpy(place->bytes, piece, n);
		memcpy(place->ids, e->symbols.data, e->symbols.length * sizeof(int32_t));
	}
	return ft_ids_append(e->ids, e->symbols.data, e->symbols.length);
}

/* --- text without added tokens --- */

/* Byte-level: runs of valid UTF-8 by the pattern, each byte between them alone. */
static ft_status
encode_by_pattern(encoder *e, const char *text, size_t n)
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

/* SentencePiece style: one piece, but cut before spaces where no merge joins what is there. */
static ft_status
encode_by_spaces(encoder *e, const char *text, size_t n)
{
	const bool *splits = e->tokenizer->space_splits;
	size_t start = 0;

	for (size_t at = 1; at <= n; at++)
	{
		if (at < n && (text[at] != ' ' || !splits[(unsigned char) text[at - 1]]))
			continue;
		FT_TRY(encode_piece(e, text + start, at - start));
		start = at;
	}
	return FT_OK;
}

/* prefix: a space is put before the text. */
static ft_status
encode_pieces(encoder *e, const char *text, size_t n, bool prefix)
{
	const ft_tokenizer *t = e->tokenizer;
	size_t at = 0;

	if (n == 0)
		return FT_OK;
	if (prefix && !(t->space_prefix_once && text[0] == ' '))
	{
		ft_text_clear(&e->prefixed);
		FT_TRY(ft_text_append(&e->prefixed, " ", 1));
		FT_TRY(ft_text_append(&e->prefixed, text, n));
		text = e->prefixed.data;
		n = e->prefixed.length;
	}
	while (at < n)
	{
		int32_t id;
		size_t start;
		size_t end;

		ft_find_added(t, &t->symbols, text, n, at, true, &id, &start, &end);
		FT_TRY(t->pre != NULL ? encode_by_pattern(e, text + at, start - at)
							  : encode_by_spaces(e, text + at, start - at));
		if (id >= 0)
			FT_TRY(ft_ids_push(e->ids, id));
		at = end;
	}
	return FT_OK;
}

/* --- around added tokens --- */

/* Between added tokens of the text as it came.  The reference puts the space before normalising
 * where it is put always, else before each stretch that is then left. */
static ft_status
encode_stretch(encoder *e, const char *text, size_t n, bool prefix)
{
	const ft_tokenizer *t = e->tokenizer;
	bool normal = t->pre != NULL ? !t->nfc || ft_looks_nfc(text, n)
								 : !t->nfc && memmem(text, n, FT_SPACE_MARK, 3) == NULL;
	bool prefix_early = prefix && !t->space_prefix_once && t->normalised.n > 0;
	size_t at = 0;

	if (n == 0)
		return FT_OK;
	if (!normal || prefix_early)
	{
		ft_text_clear(&e->normal);
		if (prefix_early)
			FT_TRY(ft_text_append(&e->normal, " ", 1));
		FT_TRY(ft_append_normalised(t, &e->normal, text, n));
		text = e->normal.data;
		n = e->normal.length;
		prefix = prefix && !prefix_early;
	}
	while (at < n)
	{
		int32_t id;
		size_t start;
		size_t end;
		bool first = at == 0;

		ft_find_added(t, &t->normalised, text, n, at, e->parse_special, &id, &start, &end);
		FT_TRY(encode_pieces(e, text + at, start - at,
							 first ? prefix
								   : t->space_prefix == FT_SPACE_ALWAYS && t->space_prefix_once));
		if (id >= 0)
			FT_TRY(ft_ids_push(e->ids, id));
		at = end;
	}
	return FT_OK;
}

/* Is a space put before the stretch at text[at]? */
static bool
has_prefix(const ft_tokenizer *t, const char *text, size_t at, ft_text_start start)
{
	bool first = at == 0 && start == FT_START_TEXT;

	if (at == 0 && start == FT_START_INSIDE)
		return false;
	switch (t->space_prefix)
	{
		case FT_SPACE_NONE:
			return false;
		case FT_SPACE_FIRST:
			return first;
		case FT_SPACE_ALWAYS:
			return true;
		case FT_SPACE_TEXTS:
			return first || text[at] != ' ';
	}
	return false;
}

static ft_status
encode_all(encoder *e, const char *text, size_t n, ft_text_start text_start)
{
	const ft_tokenizer *t = e->tokenizer;
	size_t at = 0;

	while (at < n)
	{
		int32_t id;
		size_t start;
		size_t end;

		ft_find_added(t, &t->raw, text, n, at, e->parse_special, &id, &start, &end);
		FT_TRY(encode_stretch(e, text + at, start - at, has_prefix(t, text, at, text_start)));
		if (id >= 0)
			FT_TRY(ft_ids_push(e->ids, id));
		at = end;
	}
	return FT_OK;
}

static ft_status
prepare(encoder *e, size_t n)
{
	void *memory;

	/* so that they are never NULL */
	FT_TRY(ft_text_append(&e->normal, "", 0));
	FT_TRY(ft_ids_push(&e->symbols, 0));
	if (e->tokenizer->pre != NULL)
		FT_TRY(ft_pre_scan_create(e->tokenizer->pre, &e->scan));
	if (n < MANY_BYTES)
		return FT_OK;
	FT_TRY(ft_alloc(&memory, PIECES, sizeof(remembered)));
	e->pieces = memory;
	return FT_OK;
}

ft_status
ft_tokenizer_encode_part(const ft_tokenizer *tokenizer, const char *text, size_t n,
						 bool parse_special, ft_text_start start, ft_ids *ids)
{
	encoder e = {.tokenizer = tokenizer, .parse_special = parse_special, .ids = ids};
	ft_status status;

	if (n == 0)
		return FT_OK;
	status = prepare(&e, n);
	if (status == FT_OK)
		status = encode_all(&e, text, n, start);
	ft_bpe_work_free(&e.work);
	ft_pre_scan_free(e.scan);
	ft_ids_free(&e.symbols);
	ft_text_free(&e.normal);
	ft_text_free(&e.prefixed);
	free(e.pieces);
	return status;
}

ft_status
ft_tokenizer_encode(const ft_tokenizer *tokenizer, const char *text, size_t n, bool parse_special,
					ft_ids *ids)
{
	return ft_tokenizer_encode_part(tokenizer, text, n, parse_special, FT_START_TEXT, ids);
}
