/*
 * grammar.h: a context-free language of bytes, as nodes and edges.
 *
 * A rule is a graph with one entry and one exit.  An edge takes a byte out of a
 * range, or nothing, or whatever another rule describes, its call.  Several
 * edges of a node may fit: the text may then go on either way (automaton.h).
 *
 * Functions that build remember the first failure, which ft_grammar_finish
 * returns: whoever builds need not look at each.
 */
#ifndef FT_GRAMMAR_H
#define FT_GRAMMAR_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Beyond this a grammar is refused (FT_INVALID). */
#define FT_GRAMMAR_MAX_NODES 200000

#define FT_GRAMMAR_REST_MAX (1 << 30)
#define FT_GRAMMAR_NO_EXIT INT32_MAX

typedef enum ft_edge_kind
{
	FT_EDGE_BYTES,
	FT_EDGE_EMPTY,
	FT_EDGE_CALL
} ft_edge_kind;

typedef struct ft_grammar_edge
{
	uint8_t kind; /* ft_edge_kind */
	uint8_t low, high;
	int32_t rule;
	int32_t from;
	int32_t to;
	int32_t next; /* of the node's edges, -1: the last */
} ft_grammar_edge;

typedef struct ft_grammar_node
{
	int32_t first_edge; /* -1: none */
	bool is_exit;       /* of its rule */
} ft_grammar_node;

typedef struct ft_grammar_rule
{
	int32_t entry;
	int32_t exit;
} ft_grammar_rule;

typedef struct ft_grammar
{
	ft_grammar_node *nodes;
	size_t n_nodes;
	ft_grammar_edge *edges;
	size_t n_edges;
	ft_grammar_rule *rules;
	size_t n_rules;
	int32_t root; /* rule */
	/* Once finished, [n_nodes]: the fewest bytes from a node to its rule's exit, at most
	 * FT_GRAMMAR_REST_MAX; FT_GRAMMAR_NO_EXIT: none are. */
	int32_t *rest;

	/* private */
	size_t nodes_capacity;
	size_t edges_capacity;
	size_t rules_capacity;
	ft_status status;
} ft_grammar;

ft_status ft_grammar_create(ft_grammar **grammar);
void ft_grammar_free(ft_grammar *grammar);

int32_t ft_grammar_rule_new(ft_grammar *grammar);
int32_t ft_grammar_entry(const ft_grammar *grammar, int32_t rule);
int32_t ft_grammar_exit(const ft_grammar *grammar, int32_t rule);
int32_t ft_grammar_node_new(ft_grammar *grammar);
void ft_grammar_bytes(ft_grammar *grammar, int32_t from, int low, int high, int32_t to);
void ft_grammar_empty(ft_grammar *grammar, int32_t from, int32_t to);
void ft_grammar_call(ft_grammar *grammar, int32_t from, int32_t rule, int32_t to);
/* Edges for text[0, n), n at least 1. */
void ft_grammar_literal(ft_grammar *grammar, int32_t from, const char *text, size_t n, int32_t to);

/* No more is added.  Edges that lead to no end are taken out.  FT_INVALID when no text of finite
 * length is in the language of the root, or when a rule calls itself before it has taken a byte. */
ft_status ft_grammar_finish(ft_grammar *grammar, int32_t root);

/* Sum of two numbers of bytes, neither FT_GRAMMAR_NO_EXIT. */
static inline int32_t
ft_grammar_rest_sum(int32_t a, int32_t b)
{
	return a < FT_GRAMMAR_REST_MAX - b ? a + b : FT_GRAMMAR_REST_MAX;
}

#endif
