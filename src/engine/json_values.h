/*
 * json_values.h: given JSON values as part of a grammar.
 */
#ifndef FT_JSON_VALUES_H
#define FT_JSON_VALUES_H

#include "grammar.h"

#include <jansson.h>

/* Edges for the texts of values[n], each written one way: compact, characters as they are. */
ft_status ft_json_values_grammar(const json_t *const *values, size_t n, ft_grammar *grammar,
								 int32_t from, int32_t to);

#endif
