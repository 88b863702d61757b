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
	free(grammar->rest);
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

/* --- how far nodes are from their rule's exit --- */

/* For each node the edges that wait for it: those that lead to it, and those that call its rule. */
typedef struct waiting
{
	size_t *begin; /* [n_nodes + 1] */
	int32_t *edges;
} waiting;

static void
waiting_free(waiting *w)
{
	free(w->begin);
	free(w->edges);
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

/* A node that is known to be so far, the nearest first. */
typedef struct distance
{
	int32_t rest;
	int32_t node;
} distance;

typedef struct heap
{
	distance *items; /* from 1 on; room for all that are ever put */
	size_t n;
} heap;

static void
heap_put(heap *h, distance d)
{
	size_t i = ++h->n;

	for (; i > 1 && h->items[i / 2].rest > d.rest; i /= 2)
		h->items[i] = h->items[i / 2];
	h->items[i] = d;
}

static distance
heap_take(heap *h)
{
	distance least = h->items[1], last = h->items[h->n--];
	size_t i = 1;

	for (size_t child; (child = 2 * i) <= h->n; i = child)
	{
		if (child < h->n && h->items[child + 1].rest < h->items[child].rest)
			child++;
		if (h->items[child].rest >= last.rest)
			break;
		h->items[i] = h->items[child];
	}
	h->items[i] = last;
	return least;
}

/* Knuth 1977, "A generalization of Dijkstra's algorithm": what an edge costs may depend on how far
 * the called rule's entry is from its exit, which is known before it is needed. */
static void
measure(const ft_grammar *g, const waiting *w, heap *h, int32_t *rest)
{
	for (size_t i = 0; i < g->n_nodes; i++)
		rest[i] = FT_GRAMMAR_NO_EXIT;
	for (size_t i = 0; i < g->n_rules; i++)
		heap_put(h, (distance){0, g->rules[i].exit});
	while (h->n > 0)
	{
		distance d = heap_take(h);

		if (rest[d.node] != FT_GRAMMAR_NO_EXIT)
			continue;
		rest[d.node] = d.rest;
		for (size_t i = w->begin[d.node]; i < w->begin[d.node + 1]; i++)
		{
			const ft_grammar_edge *edge = &g->edges[w->edges[i]];
			int32_t entry = called_entry(g, edge);
			int32_t cost = edge->kind == FT_EDGE_BYTES;

			if (entry >= 0)
				cost = rest[entry];
			if (rest[edge->from] == FT_GRAMMAR_NO_EXIT && rest[edge->to] != FT_GRAMMAR_NO_EXIT &&
				cost != FT_GRAMMAR_NO_EXIT)
				heap_put(h, (distance){ft_grammar_rest_sum(rest[edge->to], cost), edge->from});
		}
	}
}

/* Take out what leads nowhere. */
static void
prune(ft_grammar *g)
{
	for (size_t i = 0; i < g->n_nodes; i++)
	{
		int32_t *at = &g->nodes[i].first_edge;

		while (*at >= 0)
		{
			ft_grammar_edge *edge = &g->edges[*at];
			int32_t entry = called_entry(g, edge);

			if (g->rest[edge->to] != FT_GRAMMAR_NO_EXIT &&
				(entry < 0 || g->rest[entry] != FT_GRAMMAR_NO_EXIT))
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
next_without_byte(const ft_grammar *g, visit *v)
{
	while (v->edge >= 0)
	{
		const ft_grammar_edge *edge = &g->edges[v->edge];

		if (edge->kind == FT_EDGE_CALL && !v->behind && g->rest[g->rules[edge->rule].entry] == 0)
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
find_circle(const ft_grammar *g, visit *stack, uint8_t *seen)
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
			int32_t next = next_without_byte(g, &stack[depth - 1]);

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
	heap heap;
	visit *stack;
	uint8_t *seen;
} finishing;

static ft_status
finish(ft_grammar *g, finishing *f)
{
	FT_TRY(waiting_make(g, &f->waiting));
	/* an edge is put at most once for each end that it waits for */
	FT_TRY(
		ft_alloc((void **) &f->heap.items, 2 * g->n_edges + g->n_rules + 1, sizeof *f->heap.items));
	FT_TRY(ft_alloc((void **) &g->rest, g->n_nodes, sizeof *g->rest));
	FT_TRY(ft_alloc((void **) &f->stack, g->n_nodes, sizeof *f->stack));
	FT_TRY(ft_alloc((void **) &f->seen, g->n_nodes, 1));
	measure(g, &f->waiting, &f->heap, g->rest);
	if (g->rest[g->rules[g->root].entry] == FT_GRAMMAR_NO_EXIT)
		return ft_hint(ft_fail(FT_INVALID, "no value of finite size fits the schema"),
					   "A schema that refers to itself must do so in an optional property, in an "
					   "array that may be empty, or beside another alternative.");
	prune(g);
	return find_circle(g, f->stack, f->seen);
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
	free(f.heap.items);
	free(f.stack);
	free(f.seen);
	return status;
}
