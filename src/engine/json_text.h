/*
 * json_text.h: JSON that others wrote, in the files of a model directory.
 *
 * Getters treat null as a missing member, as transformers does.  Messages name
 * the key and never repeat text of the file but printable characters.
 */
#ifndef FT_JSON_TEXT_H
#define FT_JSON_TEXT_H

#include "status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An object out of text[0, n); the caller frees it.  FT_CORRUPT: no JSON, a key that stands twice,
 * nested too deep, or no object. */
ft_status ft_json_parse(const char *text, size_t n, json_t **object);

/* The same with all numbers as reals: for a file whose numbers are not looked at, and may be of any
 * size, as the 1e30 that tokenizer_config.json has for "no limit". */
ft_status ft_json_parse_words(const char *text, size_t n, json_t **object);

/* NULL where it is missing or null. */
const json_t *ft_json_get(const json_t *object, const char *key);

/* Leave *to alone where the member is missing; FT_CORRUPT where it is something else, or not from
 * low to high. */
ft_status
ft_json_get_int(const json_t *object, const char *key, int64_t low, int64_t high, int64_t *to);
ft_status ft_json_get_number(const json_t *object, const char *key, double *to);
ft_status ft_json_get_flag(const json_t *object, const char *key, bool *to);
/* The string stays the object's. */
ft_status ft_json_get_string(const json_t *object, const char *key, const char **to);

/* A copy for a message: what is not printable ASCII replaced, cut to its room. */
#define FT_PRINTABLE_SIZE 64
const char *ft_json_printable(const char *text, char to[FT_PRINTABLE_SIZE]);

#endif
