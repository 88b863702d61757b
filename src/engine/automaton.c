/*
 * automaton.c: states of a grammar, made as they are come to.
 *
 * Lists of calls are kept once each: a list is the node that its innermost call
 * returns to, and the number of the list without it.  So are states, as the
 * sorted list of their places.  A table of edges leads from a state by classes
 * of bytes that no edge of the grammar tells apart.
 */
#include "automaton.h"

#include "buffer.h"

#include <stdlib.h>
#include <string.h>

#define UNKNOWN (-2) /* an edge that has not been asked for */

typedef struct state
{
	size_t first_place;
	int32_t n_places;
	int32_t rest;   /* the fewest bytes to an end */
	int32_t *edges; /* [n_classes] states, or UNKNOWN; NULL until one is asked for */
	bool accepts;
} state;

typedef struct call_list
{
	int32_t node;  /* the innermost call returns to it */
	int32_t outer; /* the list without it; 0: none */
	int32_t rest;  /* the fewest bytes through all of them */
} call_list;

/* Everything that ft_automaton_forget forgets. */
typedef struct memory
{
	state *states;
	size_t n_states, states_capacity;
	ft_place *places; /* of all states */
	size_t n_places, places_capacity;
	call_list *calls; /* [0] is the empty one */
	size_t n_calls, calls_capacity;
	int32_t *state_index; /* open addressing, -1: free */
	size_t state_slots;   /* a power of two */
	int32_t *call_index;
	size_t call_slots;
	size_t edge_bytes;
} memory;

struct ft_automaton
{
	const ft_grammar *grammar;
	uint8_t class_of[256];
	int n_classes;
	memory m;

	/* a state in the making */
	ft_place found[FT_STATE_MAX_PLACES]; /* every place come to, with bytes to take or without */
	size_t n_found;
	uint32_t found_index[2 * FT_STATE_MAX_PLACES]; /* numbers in found, from 1; 0: free */
	ft_place kept[FT_STATE_MAX_PLACES];            /* those with bytes to take */
	size_t n_kept;
	bool accepts;
};

/* --- memory --- */

static void
memory_free(memory *m)
{
	for (size_t i = 0; i < m->n_states; i++)
		free(m->states[i].edges);
	free(m->states);
	free(m->places);
	free(m->calls);
	free(m->state_index);
	free(m->call_index);
	*m = (memory){0};
}

static ft_status
index_make(int32_t **index, size_t *slots, size_t n)
{
	*slots = n;
	FT_TRY(ft_alloc((void **) index, n, sizeof **index));
	memset(*index, -1, n * sizeof **index);
	return FT_OK;
}

static ft_status
memory_make(memory *m)
{
	*m = (memory){0};
	FT_TRY(index_make(&m->state_index, &m->state_slots, 256));
	FT_TRY(index_make(&m->call_index, &m->call_slots, 256));
	FT_TRY(ft_grow((void **) &m->calls, &m->calls_capacity, 1, sizeof *m->calls));
	m->calls[m->n_calls++] = (call_list){-1, -1, 0};
	return FT_OK;
}

/* Mix bytes well enough for a table (FNV-1a by words). */
static uint64_t
mix(uint64_t hash, uint32_t value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
	return hash ^ (hash >> 29);
}

/* --- classes of bytes --- */

static void
make_classes(ft_automaton *a)
{
	bool begins[257] = {false};
	int class = -1;

	begins[0] = true;
	for (size_t i = 0; i < a->grammar->n_edges; i++)
	{
		const ft_grammar_edge *edge = &a->grammar->edges[i];

		if (edge->kind != FT_EDGE_BYTES)
			continue;
		begins[edge->low] = true;
		begins[edge->high + 1] = true;
	}
	for (int byte = 0; byte < 256; byte++)
	{
		class += begins[byte];
		a->class_of[byte] = (uint8_t) class;
	}
	a->n_classes = class + 1;
}

/* --- lists of calls --- */

static ft_status
calls_rehash(memory *m)
{
	free(m->call_index);
	m->call_index = NULL;
	FT_TRY(index_make(&m->call_index, &m->call_slots, 2 * m->call_slots));
	for (size_t i = 1; i < m->n_calls; i++)
	{
		size_t at = mix(mix(0, (uint32_t) m->calls[i].node), (uint32_t) m->calls[i].outer) &
					(m->call_slots - 1);

		while (m->call_index[at] >= 0)
			at = (at + 1) & (m->call_slots - 1);
		m->call_index[at] = (int32_t) i;
	}
	return FT_OK;
}

/* The number of the list that is `outer` and a call that returns to the node. */
static ft_status
list_of_calls(ft_automaton *a, int32_t node, int32_t outer, int32_t *list)
{
	memory *m = &a->m;
	size_t at;

	if (2 * m->n_calls >= m->call_slots)
		FT_TRY(calls_rehash(m));
	at = mix(mix(0, (uint32_t) node), (uint32_t) outer) & (m->call_slots - 1);
	for (; m->call_index[at] >= 0; at = (at + 1) & (m->call_slots - 1))
	{
		const call_list *known = &m->calls[m->call_index[at]];

		if (known->node == node && known->outer == outer)
		{
			*list = m->call_index[at];
			return FT_OK;
		}
	}
	FT_TRY(ft_grow((void **) &m->calls, &m->calls_capacity, m->n_calls + 1, sizeof *m->calls));
	m->calls[m->n_calls] =
		(call_list){node, outer, ft_grammar_rest_sum(a->grammar->rest[node], m->calls[outer].rest)};
	m->call_index[at] = *list = (int32_t) m->n_calls++;
	return FT_OK;
}

/* --- a state in the making --- */

static void
begin_state(ft_automaton *a)
{
	if (a->n_found > 0)
		memset(a->found_index, 0, sizeof a->found_index);
	a->n_found = 0;
	a->n_kept = 0;
	a->accepts = false;
}

/* Note a place, unless it is known. */
static ft_status
come_to(ft_automaton *a, int32_t node, int32_t calls)
{
	const size_t slots = sizeof a->found_index / sizeof a->found_index[0];
	size_t at = mix(mix(0, (uint32_t) node), (uint32_t) calls) % slots;

	for (; a->found_index[at] != 0; at = (at + 1) % slots)
	{
		const ft_place *known = &a->found[a->found_index[at] - 1];

		if (known->node == node && known->calls == calls)
			return FT_OK;
	}
	if (a->n_found == FT_STATE_MAX_PLACES)
		return ft_hint(ft_fail(FT_INVALID, "the schema leaves more than %d ways open at once",
							   FT_STATE_MAX_PLACES),
					   "Reduce the number of alternatives that begin alike.");
	a->found[a->n_found] = (ft_place){node, calls};
	a->found_index[at] = (uint32_t) ++a->n_found;
	return FT_OK;
}

/* Where a place leads without a byte. */
static ft_status
follow_edges(ft_automaton *a, ft_place place)
{
	const ft_grammar *g = a->grammar;
	bool takes_bytes = false;

	if (g->nodes[place.node].is_exit)
	{
		if (place.calls == 0)
			a->accepts = true;
		else
			FT_TRY(come_to(a, a->m.calls[place.calls].node, a->m.calls[place.calls].outer));
	}
	for (int32_t i = g->nodes[place.node].first_edge; i >= 0; i = g->edges[i].next)
	{
		const ft_grammar_edge *edge = &g->edges[i];
		int32_t calls = place.calls;

		if (edge->kind == FT_EDGE_BYTES)
			takes_bytes = true;
		else if (edge->kind == FT_EDGE_EMPTY)
			FT_TRY(come_to(a, edge->to, calls));
		else
		{
			/* a call at the end of a rule returns to where that does */
			if (!g->nodes[edge->to].is_exit)
				FT_TRY(list_of_calls(a, edge->to, place.calls, &calls));
			FT_TRY(come_to(a, g->rules[edge->rule].entry, calls));
		}
	}
	if (takes_bytes)
		a->kept[a->n_kept++] = place;
	return FT_OK;
}

static int
compare_places(const void *x, const void *y)
{
	const ft_place *a = x, *b = y;

	if (a->node != b->node)
		return a->node < b->node ? -1 : 1;
	return (a->calls > b->calls) - (a->calls < b->calls);
}

static uint64_t
hash_places(const ft_place *places, size_t n, bool accepts)
{
	uint64_t hash = accepts;

	for (size_t i = 0; i < n; i++)
		hash = mix(mix(hash, (uint32_t) places[i].node), (uint32_t) places[i].calls);
	return hash;
}

static ft_status
states_rehash(memory *m)
{
	free(m->state_index);
	m->state_index = NULL;
	FT_TRY(index_make(&m->state_index, &m->state_slots, 2 * m->state_slots));
	for (size_t i = 0; i < m->n_states; i++)
	{
		const state *s = &m->states[i];
		size_t at = hash_places(m->places + s->first_place, (size_t) s->n_places, s->accepts) &
					(m->state_slots - 1);

		while (m->state_index[at] >= 0)
			at = (at + 1) & (m->state_slots - 1);
		m->state_index[at] = (int32_t) i;
	}
	return FT_OK;
}

/* The fewest bytes to an end from the places in `kept`. */
static int32_t
rest_of_kept(const ft_automaton *a)
{
	int32_t least = a->accepts ? 0 : FT_GRAMMAR_REST_MAX;

	for (size_t i = 0; i < a->n_kept; i++)
	{
		int32_t rest = ft_grammar_rest_sum(a->grammar->rest[a->kept[i].node],
										   a->m.calls[a->kept[i].calls].rest);

		if (rest < least)
			least = rest;
	}
	return least;
}

/* The state of the places in `kept`. */
static ft_status
intern_kept(ft_automaton *a, int32_t *number)
{
	memory *m = &a->m;
	size_t at;

	*number = FT_STATE_NONE;
	if (a->n_kept == 0 && !a->accepts)
		return FT_OK;
	qsort(a->kept, a->n_kept, sizeof a->kept[0], compare_places);
	if (2 * m->n_states >= m->state_slots)
		FT_TRY(states_rehash(m));
	at = hash_places(a->kept, a->n_kept, a->accepts) & (m->state_slots - 1);
	for (; m->state_index[at] >= 0; at = (at + 1) & (m->state_slots - 1))
	{
		const state *s = &m->states[m->state_index[at]];

		if ((size_t) s->n_places == a->n_kept && s->accepts == a->accepts &&
			memcmp(m->places + s->first_place, a->kept, a->n_kept * sizeof a->kept[0]) == 0)
		{
			*number = m->state_index[at];
			return FT_OK;
		}
	}
	FT_TRY(ft_grow((void **) &m->states, &m->states_capacity, m->n_states + 1, sizeof *m->states));
	FT_TRY(ft_grow((void **) &m->places, &m->places_capacity, m->n_places + a->n_kept,
				   sizeof *m->places));
	m->states[m->n_states] = (state){.first_place = m->n_places,
									 .n_places = (int32_t) a->n_kept,
									 .rest = rest_of_kept(a),
									 .accepts = a->accepts};
	if (a->n_kept > 0)
		memcpy(m->places + m->n_places, a->kept, a->n_kept * sizeof a->kept[0]);
	m->n_places += a->n_kept;
	m->state_index[at] = *number = (int32_t) m->n_states++;
	return FT_OK;
}

/* The state of all places that have been come to, and those that they lead to without a byte. */
static ft_status
end_state(ft_automaton *a, int32_t *number)
{
	for (size_t i = 0; i < a->n_found; i++)
		FT_TRY(follow_edges(a, a->found[i]));
	return intern_kept(a, number);
}

/* --- questions --- */

ft_status
ft_automaton_start(ft_automaton *a, int32_t *number)
{
	begin_state(a);
	FT_TRY(come_to(a, a->grammar->rules[a->grammar->root].entry, 0));
	return end_state(a, number);
}

ft_status
ft_automaton_next(ft_automaton *a, int32_t number, unsigned char byte, int32_t *next)
{
	memory *m = &a->m;
	const ft_grammar *g = a->grammar;
	int class = a->class_of[byte];

	if (m->states[number].edges && m->states[number].edges[class] != UNKNOWN)
	{
		*next = m->states[number].edges[class];
		return FT_OK;
	}
	begin_state(a);
	for (int32_t i = 0; i < m->states[number].n_places; i++)
	{
		ft_place place = m->places[m->states[number].first_place + (size_t) i];

		for (int32_t k = g->nodes[place.node].first_edge; k >= 0; k = g->edges[k].next)
			if (g->edges[k].kind == FT_EDGE_BYTES && byte >= g->edges[k].low &&
				byte <= g->edges[k].high)
				FT_TRY(come_to(a, g->edges[k].to, place.calls));
	}
	FT_TRY(end_state(a, next));
	if (!m->states[number].edges)
	{
		FT_TRY(
			ft_alloc((void **) &m->states[number].edges, (size_t) a->n_classes, sizeof(int32_t)));
		for (int i = 0; i < a->n_classes; i++)
			m->states[number].edges[i] = UNKNOWN;
		m->edge_bytes += (size_t) a->n_classes * sizeof(int32_t);
	}
	m->states[number].edges[class] = *next;
	return FT_OK;
}

bool
ft_automaton_accepts(const ft_automaton *a, int32_t number)
{
	return a->m.states[number].accepts;
}

bool
ft_automaton_goes_on(const ft_automaton *a, int32_t number)
{
	return a->m.states[number].n_places > 0;
}

int32_t
ft_automaton_rest(const ft_automaton *a, int32_t number)
{
	return a->m.states[number].rest;
}

int32_t
ft_automaton_calls_rest(const ft_automaton *a, int32_t calls)
{
	return a->m.calls[calls].rest;
}

const ft_place *
ft_automaton_places(const ft_automaton *a, int32_t number, size_t *n)
{
	*n = (size_t) a->m.states[number].n_places;
	return a->m.places + a->m.states[number].first_place;
}

ft_status
ft_automaton_state_of(ft_automaton *a, const ft_place *places, size_t n, int32_t *number)
{
	begin_state(a);
	memcpy(a->kept, places, n * sizeof *places);
	a->n_kept = n;
	return intern_kept(a, number);
}

ft_status
ft_automaton_returned(ft_automaton *a, int32_t calls, int32_t *number)
{
	begin_state(a);
	if (calls == 0)
		a->accepts = true;
	else
		FT_TRY(come_to(a, a->m.calls[calls].node, a->m.calls[calls].outer));
	return end_state(a, number);
}

size_t
ft_automaton_bytes(const ft_automaton *a)
{
	const memory *m = &a->m;

	return m->edge_bytes + m->states_capacity * sizeof *m->states +
		   m->places_capacity * sizeof *m->places + m->calls_capacity * sizeof *m->calls +
		   (m->state_slots + m->call_slots) * sizeof(int32_t);
}

size_t
ft_automaton_states(const ft_automaton *a)
{
	return a->m.n_states;
}

/* --- forgetting --- */

/* The number of a list of the old memory in the new one.  lists has room for the longest. */
static ft_status
copy_calls(ft_automaton *a, const memory *from, int32_t calls, int32_t *lists, int32_t *number)
{
	size_t n = 0;

	for (; calls != 0; calls = from->calls[calls].outer)
		lists[n++] = calls;
	*number = 0;
	while (n-- > 0)
		FT_TRY(list_of_calls(a, from->calls[lists[n]].node, *number, number));
	return FT_OK;
}

static ft_status
copy_state(ft_automaton *a, const memory *from, int32_t *lists, int32_t *number)
{
	const state *s = &from->states[*number];

	begin_state(a);
	a->accepts = s->accepts;
	a->n_kept = (size_t) s->n_places;
	for (size_t i = 0; i < a->n_kept; i++)
	{
		ft_place place = from->places[s->first_place + i];

		a->kept[i].node = place.node;
		FT_TRY(copy_calls(a, from, place.calls, lists, &a->kept[i].calls));
	}
	return intern_kept(a, number);
}

ft_status
ft_automaton_forget(ft_automaton *a, int32_t **states, size_t n)
{
	memory before = a->m;
	int32_t *lists = NULL;
	ft_status status = memory_make(&a->m);

	if (status == FT_OK)
		status = ft_alloc((void **) &lists, before.n_calls, sizeof *lists);
	for (size_t i = 0; i < n && status == FT_OK; i++)
		status = copy_state(a, &before, lists, states[i]);
	free(lists);
	memory_free(&before);
	return status;
}

/* --- life --- */

ft_status
ft_automaton_create(const ft_grammar *grammar, ft_automaton **automaton)
{
	ft_automaton *a;
	ft_status status;

	FT_TRY(ft_alloc((void **) &a, 1, sizeof *a));
	a->grammar = grammar;
	make_classes(a);
	status = memory_make(&a->m);
	if (status != FT_OK)
	{
		ft_automaton_free(a);
		return status;
	}
	*automaton = a;
	return FT_OK;
}

void
ft_automaton_free(ft_automaton *automaton)
{
	if (!automaton)
		return;
	memory_free(&automaton->m);
	free(automaton);
}
