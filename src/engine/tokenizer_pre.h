/*
 * tokenizer_pre.h: the pre-tokeniser: text is cut into pieces, and no token crosses a cut.
 *
 * Each kind is the regular expression that its models were trained with, known by the name that
 * GGUF gives it (tokenizer.ggml.pre).
 */
#ifndef FT_TOKENIZER_PRE_H
#define FT_TOKENIZER_PRE_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct ft_pre ft_pre;
/* State of one scan; one a thread. */
typedef struct ft_pre_scan ft_pre_scan;

/* FT_UNSUPPORTED for a name that is not known. */
ft_status ft_pre_create(const char *name, ft_pre **pre);
void ft_pre_free(ft_pre *pre);
bool ft_pre_known(const char *name);
/* The name of the kind that a regular expression of tokenizer.json is, split_digits: applied where
 * single digits have been cut off before; NULL for one that is not known.  Known are those texts of
 * which a kind here cuts the same. */
const char *ft_pre_by_pattern(const char *pattern, size_t n, bool split_digits);

/* What models of the kind do where their files do not say; false for a name that is not known.
 * A whole piece that is a token is that token, whatever the merges say: */
bool ft_pre_ignores_merges(const char *name);
/* a text begins with the model's BOS: */
bool ft_pre_adds_bos(const char *name);
/* text is brought to Unicode's form C: */
bool ft_pre_normalises(const char *name);

ft_status ft_pre_scan_create(const ft_pre *pre, ft_pre_scan **scan);
void ft_pre_scan_free(ft_pre_scan *scan);
/* Length of the piece at text[at], at < n; text[0, n) is valid UTF-8. */
ft_status ft_pre_next(ft_pre_scan *scan, const char *text, size_t n, size_t at, size_t *length);

#endif
