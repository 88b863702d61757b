/*
 * automaton.h: where a text stands in a grammar, byte by byte.
 *
 * A state is the set of all places in the grammar that the bytes so far may
 * have led to, each with the calls it has to return from.  States are made when
 * they are first come to and then known by their number, so that a byte costs
 * a look into a table.  Not thread-safe.
 */
#ifndef FT_AUTOMATON_H
#define FT_AUTOMATON_H

#include "grammar.h"

#define FT_STATE_NONE (-1) /* the text is not in the language */

/* A state with more places than this is refused (FT_INVALID): each alternative that cannot be told
 * from another by what has come so far is one, and calls multiply them. */
#define FT_STATE_MAX_PLACES 2048

typedef struct ft_automaton ft_automaton;

/* A place: a node with edges that take bytes, and the calls it is in. */
typedef struct ft_place
{
	int32_t node;
	int32_t calls; /* number of a list of calls; 0: none */
} ft_place;

/* The grammar must be finished and outlive the automaton. */
ft_status ft_automaton_create(const ft_grammar *grammar, ft_automaton **automaton);
void ft_automaton_free(ft_automaton *automaton);

ft_status ft_automaton_start(ft_automaton *automaton, int32_t *state);
/* Where a byte leads; FT_STATE_NONE when the language has no such text. */
ft_status
ft_automaton_next(ft_automaton *automaton, int32_t state, unsigned char byte, int32_t *next);
/* May the text end here? */
bool ft_automaton_accepts(const ft_automaton *automaton, int32_t state);
/* Can it go on? */
bool ft_automaton_goes_on(const ft_automaton *automaton, int32_t state);
/* The fewest bytes behind which the text may end, at most FT_GRAMMAR_REST_MAX; of the part of it
 * that is left when the innermost call of `calls` has returned. */
int32_t ft_automaton_rest(const ft_automaton *automaton, int32_t state);
int32_t ft_automaton_calls_rest(const ft_automaton *automaton, int32_t calls);

/* The places of a state; valid until another state is made. */
const ft_place *ft_automaton_places(const ft_automaton *automaton, int32_t state, size_t *n);
/* The state of some of them, in their order; of those in which the text may go on after the
 * innermost call of `calls` has returned. */
ft_status
ft_automaton_state_of(ft_automaton *automaton, const ft_place *places, size_t n, int32_t *state);
ft_status ft_automaton_returned(ft_automaton *automaton, int32_t calls, int32_t *state);

/* Memory that states have taken. */
size_t ft_automaton_bytes(const ft_automaton *automaton);
/* States that have been made, which their numbers are below. */
size_t ft_automaton_states(const ft_automaton *automaton);
/* Forget all states but these, whose numbers are replaced by their new ones. */
ft_status ft_automaton_forget(ft_automaton *automaton, int32_t **states, size_t n);

#endif
