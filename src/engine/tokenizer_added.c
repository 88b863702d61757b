/*
 * tokenizer_added.c: finding added tokens in text, by the rules of Hugging Face's tokenizers.
 *
 * The leftmost token counts, and of those that begin at one place the longest.  A token that is not
 * wanted (special, in a user's text) is passed over as a whole.
 */
#include "tokenizer_internal.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>

/* --- the lists --- */

static int
compare_added(const void *a, const void *b, void *list)
{
	const ft_added *x = a;
	const ft_added *y = b;
	const char *text = ((const ft_added_list *) list)->text.data;
	size_t n = x->length < y->length ? x->length : y->length;
	int c = memcmp(text + x->at, text + y->at, n);

	if (c != 0)
		return c;
	if (x->length != y->length)
		return x->length < y->length ? -1 : 1;
	return (x->id > y->id) - (x->id < y->id);
}

static ft_added_list *
list_of(ft_tokenizer *t, uint8_t flags)
{
	if (flags & FT_ADDED_SYMBOL)
		return &t->symbols;
	return flags & FT_ADDED_NORMALIZED ? &t->normalised : &t->raw;
}

static ft_status
add(ft_tokenizer *t, ft_added_list *list, int32_t id)
{
	ft_added *entry = &list->entries[list->n];
	const char *text = ft_token_text(t, id);
	size_t n = t->tokens[id].length;

	*entry = (ft_added){list->text.length, 0, id};
	if (list == &t->normalised)
	{
		/* as a text that stands alone would be: the reference does this, too */
		if (t->space_prefix != FT_SPACE_NONE && !t->space_prefix_once)
			FT_TRY(ft_text_append(&list->text, " ", 1));
		FT_TRY(ft_append_normalised(t, &list->text, text, n));
	}
	else
		FT_TRY(ft_text_append(&list->text, text, n));
	entry->length = list->text.length - entry->at;
	list->n++;
	list->start[(unsigned char) list->text.data[entry->at]] = true;
	if (entry->length == 1)
		list->whole[(unsigned char) list->text.data[entry->at]] = true;
	else if (entry->length > 1)
		list->second[(unsigned char) list->text.data[entry->at + 1]] = true;
	return FT_OK;
}

ft_status
ft_list_added(ft_tokenizer *t)
{
	ft_added_list *lists[] = {&t->raw, &t->normalised, &t->symbols};

	for (size_t i = 0; i < t->n_tokens; i++)
	{
		if (t->tokens[i].added)
			list_of(t, t->tokens[i].flags)->n++;
	}
	for (size_t l = 0; l < 3; l++)
	{
		void *memory;

		FT_TRY(ft_alloc(&memory, lists[l]->n, sizeof(ft_added)));
		lists[l]->entries = memory;
		lists[l]->n = 0;
	}
	for (size_t i = 0; i < t->n_tokens; i++)
	{
		if (t->tokens[i].added)
			FT_TRY(add(t, list_of(t, t->tokens[i].flags), (int32_t) i));
	}
	for (size_t l = 0; l < 3; l++)
		qsort_r(lists[l]->entries, lists[l]->n, sizeof(ft_added), compare_added, lists[l]);
	return FT_OK;
}

void
ft_free_added(ft_tokenizer *t)
{
	ft_added_list *lists[] = {&t->raw, &t->normalised, &t->symbols};

	for (size_t l = 0; l < 3; l++)
	{
		free(lists[l]->entries);
		ft_text_free(&lists[l]->text);
	}
}

/* --- finding --- */

/* The first entry of [low, high) whose byte at this depth is not below c. */
static size_t
first_from(const ft_added_list *list, size_t low, size_t high, size_t depth, unsigned c)
{
	while (low < high)
	{
		size_t middle = low + (high - low) / 2;

		if ((unsigned char) list->text.data[list->entries[middle].at + depth] < c)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The longest entry that text[0, n) begins with, NULL for none: the range of those that share the
 * bytes seen so far is narrowed byte by byte.  Of entries with one text, one that may be had. */
static const ft_added *
match(const ft_tokenizer *t, const ft_added_list *list, const char *text, size_t n,
	  bool with_special)
{
	size_t low = 0;
	size_t high = list->n;
	const ft_added *longest = NULL;

	for (size_t depth = 0; depth < n && low < high; depth++)
	{
		unsigned c = (unsigned char) text[depth];

		low = first_from(list, low, high, depth, c);
		high = first_from(list, low, high, depth, c + 1);
		/* shorter ones sort first, so those that end here are at the front */
		for (; low < high && list->entries[low].length == depth + 1; low++)
		{
			const ft_added *entry = &list->entries[low];

			if (longest == NULL || longest->length < entry->length || with_special ||
				!t->tokens[entry->id].special)
				longest = entry;
		}
	}
	return longest;
}

/* Where the character that ends at text[n] begins; n > 0. */
static size_t
character_before(const char *text, size_t n, uint32_t *code)
{
	for (size_t back = 1; back <= 4 && back <= n; back++)
	{
		if (ft_utf8_decode(text + n - back, back, code) == back)
			return n - back;
	}
	*code = 0xfffd;
	return n - 1;
}

static bool
stands_alone(const char *text, size_t n, size_t start, size_t end)
{
	uint32_t code;

	if (start > 0)
	{
		character_before(text, start, &code);
		if (ft_is_word(code))
			return false;
	}
	return end == n || ft_utf8_decode(text + end, n - end, &code) == 0 || !ft_is_word(code);
}

/* White space as regular expressions have it. */
static bool
is_space(uint32_t code)
{
	return ft_utf8_is_space(code) && !(code >= 0x1c && code <= 0x1f);
}

static void
take_spaces(uint8_t flags, const char *text, size_t n, size_t from, size_t *start, size_t *end)
{
	uint32_t code;

	while (flags & FT_ADDED_LSTRIP && *start > from)
	{
		size_t before = character_before(text, *start, &code);

		if (before < from || !is_space(code))
			break;
		*start = before;
	}
	while (flags & FT_ADDED_RSTRIP && *end < n)
	{
		size_t length = ft_utf8_decode(text + *end, n - *end, &code);

		if (length == 0 || !is_space(code))
			break;
		*end += length;
	}
}

/* May an entry stand here?  In most places the first two bytes tell that none does. */
static bool
may_match(const ft_added_list *list, const char *text, size_t n)
{
	unsigned char first = (unsigned char) text[0];

	return list->start[first] &&
		   (list->whole[first] || (n > 1 && list->second[(unsigned char) text[1]]));
}

void
ft_find_added(const ft_tokenizer *t, const ft_added_list *list, const char *text, size_t n,
			  size_t from, bool with_special, int32_t *id, size_t *start, size_t *end)
{
	for (size_t at = from; list->n > 0 && at < n;)
	{
		const ft_added *found = NULL;
		const ft_token *token;

		if (may_match(list, text + at, n - at))
			found = match(t, list, text + at, n - at, with_special);
		if (found == NULL)
		{
			at++;
			continue;
		}
		token = &t->tokens[found->id];
		*start = at;
		*end = at += found->length;
		if ((token->special && !with_special) ||
			(token->flags & FT_ADDED_SINGLE_WORD && !stands_alone(text, n, *start, *end)))
			continue;
		take_spaces(token->flags, text, n, from, start, end);
		*id = found->id;
		return;
	}
	*id = -1;
	*start = *end = n;
}
