/*
 * buffer.c: growing arrays of the host side.
 */
#include "buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

ft_status
ft_alloc(void **memory, size_t n, size_t size)
{
	size_t bytes;

	*memory = NULL;
	if (__builtin_mul_overflow(n, size, &bytes) || bytes > PTRDIFF_MAX)
		return ft_fail(FT_NO_MEMORY, "out of memory: %zu times %zu bytes wanted", n, size);
	*memory = calloc(1, bytes > 0 ? bytes : 1);
	if (*memory == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory: %zu bytes wanted", bytes);
	return FT_OK;
}

ft_status
ft_grow(void **memory, size_t *capacity, size_t wanted, size_t size)
{
	size_t target = *capacity;
	size_t bytes;
	void *grown;

	if (wanted <= *capacity && *memory != NULL)
		return FT_OK;

	/* by half each time, so that n appends cost O(n) */
	if (target < 16)
		target = 16;
	while (target < wanted)
	{
		if (__builtin_add_overflow(target, target / 2, &target))
			target = wanted;
	}
	if (__builtin_mul_overflow(target, size, &bytes) || bytes > PTRDIFF_MAX)
		return ft_fail(FT_NO_MEMORY, "out of memory: %zu times %zu bytes wanted", wanted, size);
	grown = realloc(*memory, bytes);
	if (grown == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory: %zu bytes wanted", bytes);
	*memory = grown;
	*capacity = target;
	return FT_OK;
}

/* Make room for n more bytes and a NUL. */
static ft_status
reserve_text(ft_text *text, size_t n)
{
	void *data = text->data;
	size_t wanted;

	if (__builtin_add_overflow(text->length, n, &wanted) ||
		__builtin_add_overflow(wanted, 1, &wanted))
		return ft_fail(FT_NO_MEMORY, "out of memory: a text of more than %zu bytes wanted", n);
	FT_TRY(ft_grow(&data, &text->capacity, wanted, 1));
	text->data = data;
	return FT_OK;
}

ft_status
ft_text_append(ft_text *text, const char *bytes, size_t n)
{
	FT_TRY(reserve_text(text, n));
	if (n > 0)
		memcpy(text->data + text->length, bytes, n);
	text->length += n;
	text->data[text->length] = '\0';
	return FT_OK;
}

ft_status
ft_text_printf(ft_text *text, const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(NULL, 0, fmt, args);
	va_end(args);
	if (n < 0)
		return ft_fail(FT_INTERNAL, "could not format text with \"%s\"", fmt);
	FT_TRY(reserve_text(text, (size_t) n));
	va_start(args, fmt);
	vsnprintf(text->data + text->length, (size_t) n + 1, fmt, args);
	va_end(args);
	text->length += (size_t) n;
	return FT_OK;
}

void
ft_text_clear(ft_text *text)
{
	text->length = 0;
	if (text->data != NULL)
		text->data[0] = '\0';
}

void
ft_text_free(ft_text *text)
{
	free(text->data);
	*text = (ft_text){0};
}

ft_status
ft_ids_push(ft_ids *ids, int32_t id)
{
	return ft_ids_append(ids, &id, 1);
}

ft_status
ft_ids_append(ft_ids *ids, const int32_t *more, size_t n)
{
	void *data = ids->data;
	size_t wanted;

	if (__builtin_add_overflow(ids->length, n, &wanted))
		return ft_fail(FT_NO_MEMORY, "out of memory: %zu more tokens wanted", n);
	FT_TRY(ft_grow(&data, &ids->capacity, wanted, sizeof(int32_t)));
	ids->data = data;
	if (n > 0)
		memcpy(ids->data + ids->length, more, n * sizeof(int32_t));
	ids->length = wanted;
	return FT_OK;
}

void
ft_ids_clear(ft_ids *ids)
{
	ids->length = 0;
}

void
ft_ids_free(ft_ids *ids)
{
	free(ids->data);
	*ids = (ft_ids){0};
}
