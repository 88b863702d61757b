/*
 * buffer.h: growing arrays of the host side (never used inside operations).
 */
#ifndef FT_BUFFER_H
#define FT_BUFFER_H

#include "status.h"

#include <stddef.h>
#include <stdint.h>

/* Bytes, always followed by a NUL that length does not count.  Zero-initialise; free with
 * ft_text_free. */
typedef struct ft_text
{
	char *data;
	size_t length;
	size_t capacity;
} ft_text;

ft_status ft_text_append(ft_text *text, const char *bytes, size_t n);
ft_status ft_text_printf(ft_text *text, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ft_text_clear(ft_text *text); /* length 0, memory kept */
void ft_text_free(ft_text *text);

/* Token ids. */
typedef struct ft_ids
{
	int32_t *data;
	size_t length;
	size_t capacity;
} ft_ids;

ft_status ft_ids_push(ft_ids *ids, int32_t id);
ft_status ft_ids_append(ft_ids *ids, const int32_t *more, size_t n);
void ft_ids_clear(ft_ids *ids);
void ft_ids_free(ft_ids *ids);

/* malloc(n · size) and realloc with checked multiplication; FT_NO_MEMORY says how much was wanted.
 */
ft_status ft_alloc(void **memory, size_t n, size_t size); /* zeroed; n = 0 gives a valid pointer */
ft_status ft_grow(void **memory, size_t *capacity, size_t wanted, size_t size);

#endif
