/*
 * utf8.h: UTF-8 as RFC 3629 has it: no surrogates, no overlong forms, nothing above U+10FFFF.
 */
#ifndef FT_UTF8_H
#define FT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes (1 to 4) of the character that text[0, n) begins with, and its code point; 0 when the bytes
 * there are no character. */
size_t ft_utf8_decode(const char *text, size_t n, uint32_t *code);

/* Writes the character's bytes (1 to 4) and returns their number. */
size_t ft_utf8_encode(uint32_t code, char to[4]);

/* Length of the longest beginning of text[0, n) that is valid. */
size_t ft_utf8_valid(const char *text, size_t n);

/* White space by Unicode's properties (and the four separators U+001C to U+001F), which is what
 * templates trim. */
bool ft_utf8_is_space(uint32_t code);

#endif
