/*
 * grammar_json.h: the parts that grammars of JSON texts are put together from.
 *
 * What they generate is JSON that every parser takes, PostgreSQL's jsonb among
 * them: valid UTF-8, escapes of surrogates in pairs, no escaped NUL, numbers
 * of at most 18 digits before the point, 17 behind it and an exponent of two.
 * Between tokens there may be a space, or a line break and up to 32 more spaces
 * or tabs, where printers of JSON put them; so an answer cannot go on for ever
 * with nothing in it.
 */
#ifndef FT_GRAMMAR_JSON_H
#define FT_GRAMMAR_JSON_H

#include "grammar.h"

/* Rule and nodes that have these numbers in every grammar that ft_grammar_json_begin began: the
 * inside of a string, its closing quote included. */
#define FT_STRING_RULE 0
#define FT_STRING_NODES 30

/* The node that a byte of a string's inside leads to from a node below FT_STRING_NODES, -1 for
 * none. ft_string_entry and ft_string_exit are the rule's. */
int ft_string_next(int node, unsigned char byte);
#define FT_STRING_ENTRY 0
#define FT_STRING_EXIT 1

typedef struct ft_json_rules
{
	int32_t space;   /* may be nothing */
	int32_t integer; /* rules */
	int32_t number;
	int32_t value; /* any */
	int32_t object;
	int32_t array;
} ft_json_rules;

/* A new grammar's first rules.  value, object and array are empty until ft_grammar_json_any. */
void ft_grammar_json_begin(ft_grammar *grammar, ft_json_rules *rules);
/* What any JSON value is. */
void ft_grammar_json_any(ft_grammar *grammar, const ft_json_rules *rules);
/* A string, from its opening quote on. */
void ft_grammar_json_string(ft_grammar *grammar, int32_t from, int32_t to);

#endif
