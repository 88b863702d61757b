/*
 * grammar_json.c: strings, numbers, spaces and any value as rules.
 */
#include "grammar_json.h"

#include <string.h>

#define INTEGER_DIGITS 18
#define FRACTION_DIGITS 17
#define EXPONENT_DIGITS 2
#define INDENT 32

/* --- strings --- */

/* Nodes of a string's inside, as numbered in every grammar. */
enum
{
	BODY = FT_STRING_ENTRY,
	END = FT_STRING_EXIT,
	TAIL_1, /* so many more bytes of a character, each 80 to BF */
	TAIL_2,
	TAIL_3,
	AFTER_E0, /* bytes that must not be overlong, a surrogate or beyond U+10FFFF */
	AFTER_ED,
	AFTER_F0,
	AFTER_F4,
	ESCAPE, /* behind a backslash */
	HEX_1,  /* behind \u */
	HEX_2,
	HEX_3,
	HEX_4,
	ZERO_2, /* behind \u0: the four digits must not all be zeros */
	ZERO_3,
	ZERO_4,
	HIGH_2, /* behind \ud: a lone low surrogate must not come */
	HIGH_3, /* behind \ud8 to \udb */
	HIGH_4,
	LOW_BACKSLASH, /* then a low one must follow */
	LOW_U,
	LOW_1,
	LOW_2,
	LOW_3,
	LOW_4,
	USED_NODES
};

_Static_assert(USED_NODES <= FT_STRING_NODES, "nodes of a string");

static const struct
{
	uint8_t from, low, high, to;
} string_edges[] = {
	{BODY, '"', '"', END},
	{BODY, 0x20, 0x21, BODY},
	{BODY, 0x23, 0x5b, BODY},
	{BODY, '\\', '\\', ESCAPE},
	{BODY, 0x5d, 0x7f, BODY},
	{BODY, 0xc2, 0xdf, TAIL_1},
	{BODY, 0xe0, 0xe0, AFTER_E0},
	{BODY, 0xe1, 0xec, TAIL_2},
	{BODY, 0xed, 0xed, AFTER_ED},
	{BODY, 0xee, 0xef, TAIL_2},
	{BODY, 0xf0, 0xf0, AFTER_F0},
	{BODY, 0xf1, 0xf3, TAIL_3},
	{BODY, 0xf4, 0xf4, AFTER_F4},
	{TAIL_1, 0x80, 0xbf, BODY},
	{TAIL_2, 0x80, 0xbf, TAIL_1},
	{TAIL_3, 0x80, 0xbf, TAIL_2},
	{AFTER_E0, 0xa0, 0xbf, TAIL_1},
	{AFTER_ED, 0x80, 0x9f, TAIL_1},
	{AFTER_F0, 0x90, 0xbf, TAIL_2},
	{AFTER_F4, 0x80, 0x8f, TAIL_2},
	{ESCAPE, '"', '"', BODY},
	{ESCAPE, '/', '/', BODY},
	{ESCAPE, '\\', '\\', BODY},
	{ESCAPE, 'b', 'b', BODY},
	{ESCAPE, 'f', 'f', BODY},
	{ESCAPE, 'n', 'n', BODY},
	{ESCAPE, 'r', 'r', BODY},
	{ESCAPE, 't', 't', BODY},
	{ESCAPE, 'u', 'u', HEX_1},
	{HEX_1, '0', '0', ZERO_2},
	{HEX_1, '1', '9', HEX_2},
	{HEX_1, 'a', 'c', HEX_2},
	{HEX_1, 'd', 'd', HIGH_2},
	{HEX_1, 'e', 'f', HEX_2},
	{HEX_1, 'A', 'C', HEX_2},
	{HEX_1, 'D', 'D', HIGH_2},
	{HEX_1, 'E', 'F', HEX_2},
	{HEX_2, '0', '9', HEX_3},
	{HEX_2, 'a', 'f', HEX_3},
	{HEX_2, 'A', 'F', HEX_3},
	{HEX_3, '0', '9', HEX_4},
	{HEX_3, 'a', 'f', HEX_4},
	{HEX_3, 'A', 'F', HEX_4},
	{HEX_4, '0', '9', BODY},
	{HEX_4, 'a', 'f', BODY},
	{HEX_4, 'A', 'F', BODY},
	{ZERO_2, '0', '0', ZERO_3},
	{ZERO_2, '1', '9', HEX_3},
	{ZERO_2, 'a', 'f', HEX_3},
	{ZERO_2, 'A', 'F', HEX_3},
	{ZERO_3, '0', '0', ZERO_4},
	{ZERO_3, '1', '9', HEX_4},
	{ZERO_3, 'a', 'f', HEX_4},
	{ZERO_3, 'A', 'F', HEX_4},
	{ZERO_4, '1', '9', BODY},
	{ZERO_4, 'a', 'f', BODY},
	{ZERO_4, 'A', 'F', BODY},
	{HIGH_2, '0', '7', HEX_3},
	{HIGH_2, '8', '9', HIGH_3},
	{HIGH_2, 'a', 'b', HIGH_3},
	{HIGH_2, 'A', 'B', HIGH_3},
	{HIGH_3, '0', '9', HIGH_4},
	{HIGH_3, 'a', 'f', HIGH_4},
	{HIGH_3, 'A', 'F', HIGH_4},
	{HIGH_4, '0', '9', LOW_BACKSLASH},
	{HIGH_4, 'a', 'f', LOW_BACKSLASH},
	{HIGH_4, 'A', 'F', LOW_BACKSLASH},
	{LOW_BACKSLASH, '\\', '\\', LOW_U},
	{LOW_U, 'u', 'u', LOW_1},
	{LOW_1, 'd', 'd', LOW_2},
	{LOW_1, 'D', 'D', LOW_2},
	{LOW_2, 'c', 'f', LOW_3},
	{LOW_2, 'C', 'F', LOW_3},
	{LOW_3, '0', '9', LOW_4},
	{LOW_3, 'a', 'f', LOW_4},
	{LOW_3, 'A', 'F', LOW_4},
	{LOW_4, '0', '9', BODY},
	{LOW_4, 'a', 'f', BODY},
	{LOW_4, 'A', 'F', BODY},
};

#define N_STRING_EDGES (sizeof string_edges / sizeof string_edges[0])

int
ft_string_next(int node, unsigned char byte)
{
	for (size_t i = 0; i < N_STRING_EDGES; i++)
		if (string_edges[i].from == node && byte >= string_edges[i].low &&
			byte <= string_edges[i].high)
			return string_edges[i].to;
	return -1;
}

/* The first rule, whose entry and exit are the first two nodes. */
static void
make_string(ft_grammar *g)
{
	ft_grammar_rule_new(g);
	while (g->status == FT_OK && g->n_nodes < FT_STRING_NODES)
		ft_grammar_node_new(g);
	for (size_t i = 0; i < N_STRING_EDGES; i++)
		ft_grammar_bytes(g, string_edges[i].from, string_edges[i].low, string_edges[i].high,
						 string_edges[i].to);
}

void
ft_grammar_json_string(ft_grammar *g, int32_t from, int32_t to)
{
	int32_t inside = ft_grammar_node_new(g);

	ft_grammar_bytes(g, from, '"', '"', inside);
	ft_grammar_call(g, inside, FT_STRING_RULE, to);
}

/* --- spaces and numbers --- */

static void
make_space(ft_grammar *g, int32_t rule)
{
	int32_t entry = ft_grammar_entry(g, rule);
	int32_t exit = ft_grammar_exit(g, rule);
	int32_t at = ft_grammar_node_new(g);

	ft_grammar_empty(g, entry, exit);
	ft_grammar_bytes(g, entry, ' ', ' ', exit);
	ft_grammar_bytes(g, entry, '\n', '\n', at);
	ft_grammar_empty(g, at, exit);
	for (int i = 0; i < INDENT; i++)
	{
		int32_t next = ft_grammar_node_new(g);

		ft_grammar_bytes(g, at, ' ', ' ', next);
		ft_grammar_bytes(g, at, '\t', '\t', next);
		ft_grammar_empty(g, next, exit);
		at = next;
	}
}

/* From `from` on up to n digits, the first of which is there already when `some`; after each, at
 * `to`. */
static void
add_digits(ft_grammar *g, int32_t from, int n, bool some, int32_t to)
{
	if (some)
		ft_grammar_empty(g, from, to);
	for (int i = some; i < n; i++)
	{
		int32_t next = ft_grammar_node_new(g);

		ft_grammar_bytes(g, from, '0', '9', next);
		ft_grammar_empty(g, next, to);
		from = next;
	}
}

static void
add_integer(ft_grammar *g, int32_t from, int32_t to)
{
	int32_t sign = ft_grammar_node_new(g);
	int32_t digits = ft_grammar_node_new(g);

	ft_grammar_empty(g, from, sign);
	ft_grammar_bytes(g, from, '-', '-', sign);
	ft_grammar_bytes(g, sign, '0', '0', to);
	ft_grammar_bytes(g, sign, '1', '9', digits);
	add_digits(g, digits, INTEGER_DIGITS, true, to);
}

static void
add_number(ft_grammar *g, int32_t from, int32_t to)
{
	int32_t whole = ft_grammar_node_new(g);
	int32_t point = ft_grammar_node_new(g);
	int32_t fraction = ft_grammar_node_new(g);
	int32_t exponent = ft_grammar_node_new(g);
	int32_t sign = ft_grammar_node_new(g);

	add_integer(g, from, whole);
	ft_grammar_empty(g, whole, fraction);
	ft_grammar_bytes(g, whole, '.', '.', point);
	add_digits(g, point, FRACTION_DIGITS, false, fraction);
	ft_grammar_empty(g, fraction, to);
	ft_grammar_bytes(g, fraction, 'e', 'e', exponent);
	ft_grammar_bytes(g, fraction, 'E', 'E', exponent);
	ft_grammar_empty(g, exponent, sign);
	ft_grammar_bytes(g, exponent, '+', '+', sign);
	ft_grammar_bytes(g, exponent, '-', '-', sign);
	add_digits(g, sign, EXPONENT_DIGITS, false, to);
}

void
ft_grammar_json_begin(ft_grammar *g, ft_json_rules *rules)
{
	make_string(g);
	rules->space = ft_grammar_rule_new(g);
	rules->integer = ft_grammar_rule_new(g);
	rules->number = ft_grammar_rule_new(g);
	rules->value = ft_grammar_rule_new(g);
	rules->object = ft_grammar_rule_new(g);
	rules->array = ft_grammar_rule_new(g);
	make_space(g, rules->space);
	add_integer(g, ft_grammar_entry(g, rules->integer), ft_grammar_exit(g, rules->integer));
	add_number(g, ft_grammar_entry(g, rules->number), ft_grammar_exit(g, rules->number));
}

/* --- any value --- */

static void
make_object(ft_grammar *g, const ft_json_rules *rules)
{
	int32_t end = ft_grammar_exit(g, rules->object);
	int32_t open = ft_grammar_node_new(g);
	int32_t first = ft_grammar_node_new(g);
	int32_t comma = ft_grammar_node_new(g);
	int32_t key = ft_grammar_node_new(g);
	int32_t named = ft_grammar_node_new(g);
	int32_t colon = ft_grammar_node_new(g);
	int32_t value = ft_grammar_node_new(g);
	int32_t done = ft_grammar_node_new(g);
	int32_t close = ft_grammar_node_new(g);

	ft_grammar_bytes(g, ft_grammar_entry(g, rules->object), '{', '{', open);
	ft_grammar_call(g, open, rules->space, first);
	ft_grammar_bytes(g, first, '}', '}', end);
	ft_grammar_empty(g, first, key);
	ft_grammar_json_string(g, key, named);
	ft_grammar_bytes(g, named, ':', ':', colon);
	ft_grammar_empty(g, colon, value);
	ft_grammar_bytes(g, colon, ' ', ' ', value);
	ft_grammar_call(g, value, rules->value, done);
	ft_grammar_bytes(g, done, ',', ',', comma);
	ft_grammar_call(g, comma, rules->space, key);
	ft_grammar_call(g, done, rules->space, close);
	ft_grammar_bytes(g, close, '}', '}', end);
}

static void
make_array(ft_grammar *g, const ft_json_rules *rules)
{
	int32_t end = ft_grammar_exit(g, rules->array);
	int32_t open = ft_grammar_node_new(g);
	int32_t first = ft_grammar_node_new(g);
	int32_t comma = ft_grammar_node_new(g);
	int32_t value = ft_grammar_node_new(g);
	int32_t done = ft_grammar_node_new(g);
	int32_t close = ft_grammar_node_new(g);

	ft_grammar_bytes(g, ft_grammar_entry(g, rules->array), '[', '[', open);
	ft_grammar_call(g, open, rules->space, first);
	ft_grammar_bytes(g, first, ']', ']', end);
	ft_grammar_empty(g, first, value);
	ft_grammar_call(g, value, rules->value, done);
	ft_grammar_bytes(g, done, ',', ',', comma);
	ft_grammar_call(g, comma, rules->space, value);
	ft_grammar_call(g, done, rules->space, close);
	ft_grammar_bytes(g, close, ']', ']', end);
}

void
ft_grammar_json_any(ft_grammar *g, const ft_json_rules *rules)
{
	static const char *const words[] = {"true", "false", "null"};
	int32_t entry = ft_grammar_entry(g, rules->value);
	int32_t exit = ft_grammar_exit(g, rules->value);

	make_object(g, rules);
	make_array(g, rules);
	ft_grammar_json_string(g, entry, exit);
	ft_grammar_call(g, entry, rules->number, exit);
	for (int i = 0; i < 3; i++)
		ft_grammar_literal(g, entry, words[i], strlen(words[i]), exit);
	ft_grammar_call(g, entry, rules->object, exit);
	ft_grammar_call(g, entry, rules->array, exit);
}
