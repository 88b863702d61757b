/*
 * tokenizer_normal.c: normalisers: Unicode's form C, and SentencePiece's spaces.
 *
 * Decomposition, combining classes and composition are utf8proc's; marks are put in order here,
 * because utf8proc's exchange of neighbours takes quadratic time on a long run of marks.
 */
#include "tokenizer_internal.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* No character decomposes into more. */
#define MAX_DECOMPOSED 18

typedef struct points
{
	utf8proc_int32_t *data;
	size_t length;
	size_t capacity;
} points;

static utf8proc_propval_t
combining_class(utf8proc_int32_t code)
{
	return utf8proc_get_property(code)->combining_class;
}

/* Marks in the order of their classes, those of one class in the order in which they stand: counted
 * by class, so that a run of any length takes linear time. */
static ft_status
order_marks(utf8proc_int32_t *marks, size_t n)
{
	size_t places[256] = {0};
	size_t at = 0;
	bool ordered = true;
	void *memory;
	utf8proc_int32_t *copy;

	for (size_t i = 0; i < n; i++)
	{
		places[combining_class(marks[i])]++;
		ordered = ordered && (i == 0 || combining_class(marks[i - 1]) <= combining_class(marks[i]));
	}
	if (ordered)
		return FT_OK;
	FT_TRY(ft_alloc(&memory, n, sizeof *copy));
	copy = memory;
	memcpy(copy, marks, n * sizeof *copy);
	for (int c = 0; c < 256; c++)
	{
		size_t count = places[c];

		places[c] = at;
		at += count;
	}
	for (size_t i = 0; i < n; i++)
		marks[places[combining_class(copy[i])]++] = copy[i];
	free(copy);
	return FT_OK;
}

static ft_status
decompose(points *p, const char *text, size_t n)
{
	size_t first = 0; /* of the run of marks at the end */

	for (size_t at = 0, length; at < n; at += length)
	{
		uint32_t code = 0;
		void *memory = p->data;
		utf8proc_ssize_t more;

		length = ft_utf8_decode(text + at, n - at, &code);
		FT_TRY(ft_grow(&memory, &p->capacity, p->length + MAX_DECOMPOSED, sizeof *p->data));
		p->data = memory;
		more = utf8proc_decompose_char((utf8proc_int32_t) code, p->data + p->length, MAX_DECOMPOSED,
									   UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, NULL);
		if (more < 0 || more > MAX_DECOMPOSED)
			return ft_fail(FT_INTERNAL, "character U+%04X does not decompose", code);
		for (; more > 0; more--, p->length++)
		{
			if (combining_class(p->data[p->length]) != 0)
				continue;
			FT_TRY(order_marks(p->data + first, p->length - first));
			first = p->length + 1;
		}
	}
	return order_marks(p->data + first, p->length - first);
}

/* Of valid text. */
static ft_status
append_composed(ft_text *to, points *p, const char *text, size_t n)
{
	utf8proc_ssize_t length;

	p->length = 0;
	FT_TRY(decompose(p, text, n));
	length = utf8proc_normalize_utf32(p->data, (utf8proc_ssize_t) p->length,
									  UTF8PROC_COMPOSE | UTF8PROC_STABLE);
	if (length < 0)
		return ft_fail(FT_INTERNAL, "text does not compose: %s", utf8proc_errmsg(length));
	for (utf8proc_ssize_t i = 0; i < length; i++)
	{
		char utf8[4];

		FT_TRY(ft_text_append(to, utf8, ft_utf8_encode((uint32_t) p->data[i], utf8)));
	}
	return FT_OK;
}

bool
ft_is_word(uint32_t code)
{
	switch (utf8proc_category((utf8proc_int32_t) code))
	{
		case UTF8PROC_CATEGORY_LU:
		case UTF8PROC_CATEGORY_LL:
		case UTF8PROC_CATEGORY_LT:
		case UTF8PROC_CATEGORY_LM:
		case UTF8PROC_CATEGORY_LO:
		case UTF8PROC_CATEGORY_MN:
		case UTF8PROC_CATEGORY_MC:
		case UTF8PROC_CATEGORY_ME:
		case UTF8PROC_CATEGORY_ND:
		case UTF8PROC_CATEGORY_NL:
		case UTF8PROC_CATEGORY_PC:
			return true;
		default:
			/* joiners, and the circled letters */
			return code == 0x200c || code == 0x200d || (code >= 0x24b6 && code <= 0x24e9);
	}
}

bool
ft_looks_nfc(const char *text, size_t n)
{
	/* characters below U+0300, whose first bytes are below 0xcc, are what they are */
	for (size_t i = 0; i < n; i++)
	{
		if ((unsigned char) text[i] >= 0xcc)
			return false;
	}
	return true;
}

ft_status
ft_append_nfc(ft_text *to, const char *text, size_t n)
{
	points p = {0};
	ft_status status = FT_OK;

	while (n > 0 && status == FT_OK)
	{
		size_t valid = ft_utf8_valid(text, n);

		if (valid > 0)
			status = append_composed(to, &p, text, valid);
		if (valid < n && status == FT_OK)
			status = ft_text_append(to, text + valid++, 1);
		text += valid;
		n -= valid;
	}
	free(p.data);
	return status;
}

ft_status
ft_append_spaced(ft_text *to, const char *text, size_t n)
{
	while (n > 0)
	{
		const char *mark = memmem(text, n, FT_SPACE_MARK, strlen(FT_SPACE_MARK));
		size_t before = mark != NULL ? (size_t) (mark - text) : n;

		FT_TRY(ft_text_append(to, text, before));
		if (mark == NULL)
			break;
		FT_TRY(ft_text_append(to, " ", 1));
		text = mark + strlen(FT_SPACE_MARK);
		n -= before + strlen(FT_SPACE_MARK);
	}
	return FT_OK;
}

ft_status
ft_append_normalised(const ft_tokenizer *t, ft_text *to, const char *text, size_t n)
{
	ft_text composed = {0};
	ft_status status = FT_OK;

	if (t->nfc && !ft_looks_nfc(text, n))
	{
		status = ft_append_nfc(t->pre == NULL ? &composed : to, text, n);
		if (status == FT_OK && t->pre == NULL)
			status = ft_append_spaced(to, composed.data, composed.length);
	}
	else if (t->pre == NULL)
		status = ft_append_spaced(to, text, n);
	else
		status = ft_text_append(to, text, n);
	ft_text_free(&composed);
	return status;
}
