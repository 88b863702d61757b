/*
 * grammar.c: building grammars, and what makes one usable.
 */
#include "grammar.h"

#include "buffer.h"

#include <stdlib.h>
#include <string.h>

/* --- building --- */

ft_status
ft_grammar_create(ft_grammar **grammar)
{
	return ft_alloc((void **) grammar, 1, sizeof **grammar);
}

void
ft_grammar_free(ft_grammar *grammar)
{
	if (!grammar)
		return;
	free(grammar->nodes);
	free(grammar->edges);
	free(grammar->rules);
	free(grammar);
}

/* After a failure numbers are 0 and mean nothing. */
int32_t
ft_grammar_node_new(ft_grammar *g)
{
	if (g->status == FT_OK && g->n_nodes >= FT_GRAMMAR_MAX_NODES)
		g->status = ft_fail(FT_INVALID, "the schema is too large: it takes more than %d states",
							FT_GRAMMAR_MAX_NODES);
	if (g->status == FT_OK)
		g->status =
			ft_grow((void **) &g->nodes, &g->nodes_capacity, g->n_nodes + 1, sizeof *g->nodes);
	if (g->status != FT_OK)
		return 0;
	g->nodes[g->n_nodes] = (ft_grammar_node){.first_edge = -1};
	return (int32_t) g->n_nodes++;
}

int32_t
ft_grammar_rule_new(ft_grammar *g)
{
	int32_t entry = ft_grammar_node_new(g);
	int32_t exit = ft_grammar_node_new(g);

	if (g->status == FT_OK)
		g->status =
			ft_grow((void **) &g->rules, &g->rules_capacity, g->n_rules + 1, sizeof *g->rules);
	if (g->status != FT_OK)
		return 0;
	g->nodes[exit].is_exit = true;
	g->rules[g->n_rules] = (ft_grammar_rule){entry, exit};
	return (int32_t) g->n_rules++;
}

int32_t
ft_grammar_entry(const ft_grammar *g, int32_t rule)
{
	return g->status == FT_OK ? g->rules[rule].entry : 0;
}

int32_t
ft_grammar_exit(const ft_grammar *g, int32_t rule)
{
	return g->status == FT_OK ? g->rules[rule].exit : 0;
}

static void
add_edge(ft_grammar *g, ft_grammar_edge edge)
{
	if (g->status == FT_OK)
		g->status =
			ft_grow((void **) &g->edges, &g->edges_capacity, g->n_edges + 1, sizeof *g->edges);
	if (g->status != FT_OK)
		return;
	edge.next = g->nodes[edge.from].first_edge;
	g->nodes[edge.from].first_edge = (int32_t) g->n_edges;
	g->edges[g->n_edges++] = edge;
}

void
ft_grammar_bytes(ft_grammar *g, int32_t from, int low, int high, int32_t to)
{
	add_edge(g, (ft_grammar_edge){.kind = FT_EDGE_BYTES,
								  .low = (uint8_t) low,
								  .high = (uint8_t) high,
								  .from = from,
								  .to = to});
}

void
ft_grammar_empty(ft_grammar *g, int32_t from, int32_t to)
{
	add_edge(g, (ft_grammar_edge){.kind = FT_EDGE_EMPTY, .from = from, .to = to});
}

void
ft_grammar_call(ft_grammar *g, int32_t from, int32_t rule, int32_t to)
{
	add_edge(g, (ft_grammar_edge){.kind = FT_EDGE_CALL, .rule = rule, .from = from, .to = to});
}

void
ft_grammar_literal(ft_grammar *g, int32_t from, const char *text, size_t n, int32_t to)
{
	for (size_t i = 0; i < n; i++)
	{
		int byte = (unsigned char) text[i];
		int32_t next = i + 1 == n ? to : ft_grammar_node_new(g);

		ft_grammar_bytes(g, from, byte, byte, next);
		from = next;
	}
}

/* --- which nodes lead to their rule's exit --- */

/* For each node the edges that wait for it: those that lead to it, and those that call its rule. */
typedef struct waiting
{
	size_t *begin; /* [n_nodes + 1] */
	int32_t *edges;
	int32_t *queue; /* [n_nodes] */
} waiting;

static void
waiting_free(waiting *w)
{
	free(w->begin);
	free(w->edges);
	free(w->queue);
}

static int32_t
called_entry(const ft_grammar *g, const ft_grammar_edge *edge)
{
	return edge->kind == FT_EDGE_CALL ? g->rules[edge->rule].entry : -1;
}

static ft_status
waiting_make(const ft_grammar *g, waiting *w)
{
	*w = (waiting){0};
	FT_TRY(ft_alloc((void **) &w->begin, g->n_nodes + 2, sizeof *w->begin));
	FT_TRY(ft_alloc((void **) &w->edges, 2 * g->n_edges, sizeof *w->edges));
	FT_TRY(ft_alloc((void **) &w->queue, g->n_nodes, sizeof *w->queue));
	for (size_t i = 0; i < g->n_edges; i++)
	{
		int32_t entry = called_entry(g, &g->edges[i]);

		w->begin[g->edges[i].to + 2]++;
		if (entry >= 0)
			w->begin[entry + 2]++;
	}
	for (size_t i = 2; i < g->n_nodes + 2; i++)
		w->begin[i] += w->begin[i - 1];
	for (size_t i = 0; i < g->n_edges; i++)
	{
		int32_t entry = called_entry(g, &g->edges[i]);

		w->edges[w->begin[g->edges[i].to + 1]++] = (int32_t) i;
		if (entry >= 0)
			w->edges[w->begin[entry + 1]++] = (int32_t) i;
	}
	return FT_OK;
}

/* marked[n]: the exit can be reached from node n; without_bytes: over edges that take none. */
static void
mark(const ft_grammar *g, waiting *w, bool without_bytes, bool *marked)
{
	size_t n = 0;

	for (size_t i = 0; i < g->n_rules; i++)
	{
		marked[g->rules[i].exit] = true;
		w->queue[n++] = g->rules[i].exit;
	}
	while (n > 0)
	{
		int32_t node = w->queue[--n];

		for (size_t i = w->begin[node]; i < w->begin[node + 1]; i++)
		{
			const ft_grammar_edge *edge = &g->edges[w->edges[i]];
			int32_t entry = called_entry(g, edge);

			if (marked[edge->from] || !marked[edge->to] || (entry >= 0 && !marked[entry]) ||
				(without_bytes && edge->kind == FT_EDGE_BYTES))
				continue;
			marked[edge->from] = true;
			w->queue[n++] = edge->from;
		}
	}
}

/* Take out what leads nowhere. */
static void
prune(ft_grammar *g, const bool *live)
{
	for (size_t i = 0; i < g->n_nodes; i++)
	{
		int32_t *at = &g->nodes[i].first_edge;

		while (*at >= 0)
		{
			ft_grammar_edge *edge = &g->edges[*at];
			int32_t entry = called_entry(g, edge);

			if (live[edge->to] && (entry < 0 || live[entry]))
				at = &edge->next;
			else
				*at = edge->next;
		}
	}
}

/* --- rules that call themselves at once --- */

typedef struct visit
{
	int32_t node;
	int32_t edge; /* to look at next, */
	bool behind;  /* its call being done, what is behind it: the rule may be empty */
} visit;

/* The node that the visit leads to next without taking a byte, -1 when there are no more. */
static int32_t
next_without_byte(const ft_grammar *g, const bool *nullable, visit *v)
{
	while (v->edge >= 0)
	{
		const ft_grammar_edge *edge = &g->edges[v->edge];

		if (edge->kind == FT_EDGE_CALL && !v->behind && nullable[g->rules[edge->rule].entry])
		{
			v->behind = true;
			return g->rules[edge->rule].entry;
		}
		v->edge = edge->next;
		if (v->behind || edge->kind == FT_EDGE_EMPTY)
		{
			v->behind = false;
			return edge->to;
		}
		if (edge->kind == FT_EDGE_CALL)
			return g->rules[edge->rule].entry;
	}
	return -1;
}

/* A depth-first search for circles that take no byte. */
static ft_status
find_circle(const ft_grammar *g, const bool *nullable, visit *stack, uint8_t *seen)
{
	enum
	{
		NEW,
		OPEN,
		DONE
	};

	for (size_t start = 0; start < g->n_nodes; start++)
	{
		size_t depth = 0;

		if (seen[start] != NEW)
			continue;
		stack[depth++] = (visit){(int32_t) start, g->nodes[start].first_edge, false};
		seen[start] = OPEN;
		while (depth > 0)
		{
			int32_t next = next_without_byte(g, nullable, &stack[depth - 1]);

			if (next < 0)
				seen[stack[--depth].node] = DONE;
			else if (seen[next] == OPEN)
				return ft_fail(FT_INVALID, "the schema refers to itself with nothing between");
			else if (seen[next] == NEW)
			{
				seen[next] = OPEN;
				stack[depth++] = (visit){next, g->nodes[next].first_edge, false};
			}
		}
	}
	return FT_OK;
}

/* --- finishing --- */

typedef struct finishing
{
	waiting waiting;
	bool *live;
	bool *nullable;
	visit *stack;
	uint8_t *seen;
} finishing;

static ft_status
finish(ft_grammar *g, finishing *f)
{
	FT_TRY(waiting_make(g, &f->waiting));
	FT_TRY(ft_alloc((void **) &f->live, g->n_nodes, sizeof *f->live));
	FT_TRY(ft_alloc((void **) &f->nullable, g->n_nodes, sizeof *f->nullable));
	FT_TRY(ft_alloc((void **) &f->stack, g->n_nodes, sizeof *f->stack));
	FT_TRY(ft_alloc((void **) &f->seen, g->n_nodes, 1));
	mark(g, &f->waiting, false, f->live);
	if (!f->live[g->rules[g->root].entry])
		return ft_hint(ft_fail(FT_INVALID, "no value of finite size fits the schema"),
					   "A schema that refers to itself must do so in an optional property, in an "
					   "array that may be empty, or beside another alternative.");
	prune(g, f->live);
	mark(g, &f->waiting, true, f->nullable);
	return find_circle(g, f->nullable, f->stack, f->seen);
}

ft_status
ft_grammar_finish(ft_grammar *g, int32_t root)
{
	finishing f = {0};
	ft_status status = g->status;

	g->root = root;
	if (status == FT_OK)
		status = finish(g, &f);
	waiting_free(&f.waiting);
	free(f.live);
	free(f.nullable);
	free(f.stack);
	free(f.seen);
	return status;
}
