/*
 * json_schema.h: a JSON Schema as the grammar of the texts that fit it.
 *
 * Understood is what OpenAI's strict mode takes: type (one or a list), objects
 * with properties, required and additionalProperties false, arrays with items,
 * minItems and maxItems, enum, const, anyOf, and $ref to any part of the schema,
 * to itself as well.  Annotations (title, description, default, examples …) mean
 * nothing.  Any other keyword is FT_UNSUPPORTED and named with its place:
 * texts that a schema does not allow must not come out.
 *
 * A text has the keys of an object in the order of its properties, and none
 * but these, also where additionalProperties is left out.
 */
#ifndef FT_JSON_SCHEMA_H
#define FT_JSON_SCHEMA_H

#include "grammar.h"

#include <jansson.h>

/* required_first: the keys that "required" has come first, in its order, for callers that have lost
 * that of the properties.  FT_UNSUPPORTED: a keyword that is not known; FT_INVALID: a schema that
 * is wrong, that nothing fits, or that is too large. */
ft_status ft_json_schema_grammar(const json_t *schema, bool required_first, ft_grammar **grammar);

/* Any JSON object. */
ft_status ft_json_object_grammar(ft_grammar **grammar);

#endif
