/*
 * constraint.c: sets of tokens for states of an automaton.
 */
#include "constraint.h"

#include "buffer.h"
#include "grammar_json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A constraint that has come to hold so much forgets what nobody needs at the moment. */
#define FORGET_BYTES ((size_t) 32 << 20)

/* States that one token may add at most: beyond, the schema is too intricate to be served. */
#define MAX_NEW_STATES 20000

/* How tokens lead on from a place inside a string. */
typedef struct string_tokens
{
	bool made;
	uint64_t *inside; /* [n_words] those that stay inside */
	int32_t *ends;    /* nodes of the tree whose byte is the closing quote */
	size_t n_ends;
	size_t ends_capacity;
} string_tokens;

struct ft_constraint_vocabulary
{
	ft_token_trie *trie;
	size_t n_words; /* of a set */
	string_tokens strings[FT_STRING_NODES];
	int32_t *path; /* [depth + 1] states or nodes at each depth */
};

/* Tokens that may come next. */
typedef struct token_set
{
	uint64_t *words; /* [n_words]; NULL: not made */
	int32_t nearest; /* the fewest bytes to an end behind one of them, over all of them the least */
	int32_t farthest; /* and the most */
} token_set;

struct ft_constraint
{
	ft_grammar *grammar;
	ft_automaton *automaton;
	ft_constraint_vocabulary *vocabulary;
	token_set *sets; /* by state */
	size_t sets_capacity;
	size_t n_sets;       /* made */
	token_set narrowed;  /* of the last state that had to be in a hurry */
	int32_t string_rest; /* the most bytes from inside a string to behind its closing quote */
	ft_match *matches;
	bool broken; /* memory ran out while states were renumbered: matches have none */
};

/* --- sets --- */

static void
add_tokens(const ft_token_trie *trie, const ft_trie_node *node, uint64_t *words)
{
	for (int i = 0; i < node->n_tokens; i++)
	{
		int32_t id = trie->tokens[node->first_token + i];

		words[id / 64] |= (uint64_t) 1 << id % 64;
	}
}

/* --- inside of strings --- */

static ft_status
make_string_tokens(ft_constraint_vocabulary *v, int from, string_tokens *made)
{
	const ft_token_trie *trie = v->trie;

	FT_TRY(ft_alloc((void **) &made->inside, v->n_words, sizeof *made->inside));
	v->path[0] = from;
	for (int32_t i = 0; (size_t) i < trie->n_nodes;)
	{
		const ft_trie_node *node = &trie->nodes[i];
		int next = ft_string_next(v->path[node->depth - 1], node->byte);

		if (next < 0 || next == FT_STRING_EXIT)
		{
			if (next == FT_STRING_EXIT)
			{
				FT_TRY(ft_grow((void **) &made->ends, &made->ends_capacity, made->n_ends + 1,
							   sizeof *made->ends));
				made->ends[made->n_ends++] = i;
			}
			i = node->end;
			continue;
		}
		v->path[node->depth] = next;
		add_tokens(trie, node, made->inside);
		i++;
	}
	made->made = true;
	return FT_OK;
}

static void
free_string_tokens(string_tokens *s)
{
	free(s->inside);
	free(s->ends);
	*s = (string_tokens){0};
}

static ft_status
string_tokens_of(ft_constraint_vocabulary *v, int32_t node, const string_tokens **result)
{
	string_tokens *s = &v->strings[node];

	if (!s->made)
	{
		ft_status status = make_string_tokens(v, node, s);

		if (status != FT_OK)
		{
			free_string_tokens(s);
			return status;
		}
	}
	*result = s;
	return FT_OK;
}

ft_status
ft_constraint_vocabulary_create(const ft_tokenizer *tokenizer, size_t vocabulary,
								ft_constraint_vocabulary **result)
{
	ft_constraint_vocabulary *v;
	ft_status status;

	FT_TRY(ft_alloc((void **) &v, 1, sizeof *v));
	v->n_words = (vocabulary + 63) / 64;
	status = ft_token_trie_create(tokenizer, vocabulary, &v->trie);
	if (status == FT_OK)
		status = ft_alloc((void **) &v->path, (size_t) v->trie->depth + 1, sizeof *v->path);
	if (status != FT_OK)
	{
		ft_constraint_vocabulary_free(v);
		return status;
	}
	*result = v;
	return FT_OK;
}

void
ft_constraint_vocabulary_free(ft_constraint_vocabulary *v)
{
	if (!v)
		return;
	for (int i = 0; i < FT_STRING_NODES; i++)
		free_string_tokens(&v->strings[i]);
	ft_token_trie_free(v->trie);
	free(v->path);
	free(v);
}

/* --- tokens of a state --- */

/* Behind tokens that are in the set now the text can end within `rest` bytes. */
static void
note_rest(token_set *set, int32_t nearest, int32_t farthest)
{
	set->nearest = nearest < set->nearest ? nearest : set->nearest;
	set->farthest = farthest > set->farthest ? farthest : set->farthest;
}

/* Add the tokens that end with a node of the tree and lead to the state, if it is near enough. */
static void
add_near_tokens(const ft_constraint *c, const ft_trie_node *node, int32_t state, int32_t limit,
				token_set *set)
{
	int32_t rest = ft_automaton_rest(c->automaton, state);

	if (node->n_tokens == 0 || rest > limit)
		return;
	add_tokens(c->vocabulary->trie, node, set->words);
	note_rest(set, rest, rest);
}

/* Add the tokens in nodes [from, to) of the tree along which the automaton goes from the state,
 * which is that at their least depth less one. */
static ft_status
walk(ft_constraint *c, int32_t state, int32_t from, int32_t to, int32_t limit, token_set *set)
{
	const ft_token_trie *trie = c->vocabulary->trie;
	int32_t *path = c->vocabulary->path;
	size_t most = ft_automaton_states(c->automaton) + MAX_NEW_STATES;

	if (from == to)
		return FT_OK;
	path[trie->nodes[from].depth - 1] = state;
	for (int32_t i = from; i < to;)
	{
		const ft_trie_node *node = &trie->nodes[i];
		int32_t next;

		FT_TRY(ft_automaton_next(c->automaton, path[node->depth - 1], node->byte, &next));
		if (next == FT_STATE_NONE)
		{
			i = node->end;
			continue;
		}
		if (ft_automaton_states(c->automaton) > most)
			return ft_fail(FT_INVALID,
						   "the schema is too intricate: a token can go more than %d ways",
						   MAX_NEW_STATES);
		path[node->depth] = next;
		add_near_tokens(c, node, next, limit, set);
		i++;
	}
	return FT_OK;
}

/* Tokens from a place inside a string, all that stay inside being near enough. */
static ft_status
add_string_place(ft_constraint *c, ft_place place, int32_t limit, token_set *set)
{
	const ft_token_trie *trie = c->vocabulary->trie;
	int32_t behind = ft_automaton_calls_rest(c->automaton, place.calls);
	const string_tokens *s;
	int32_t returned;

	FT_TRY(string_tokens_of(c->vocabulary, place.node, &s));
	for (size_t i = 0; i < c->vocabulary->n_words; i++)
		set->words[i] |= s->inside[i];
	note_rest(set, ft_grammar_rest_sum(1, behind), ft_grammar_rest_sum(c->string_rest, behind));
	FT_TRY(ft_automaton_returned(c->automaton, place.calls, &returned));
	for (size_t i = 0; i < s->n_ends; i++)
	{
		const ft_trie_node *node = &trie->nodes[s->ends[i]];

		add_near_tokens(c, node, returned, limit, set);
		FT_TRY(walk(c, returned, s->ends[i] + 1, node->end, limit, set));
	}
	return FT_OK;
}

static ft_status
fill_set(ft_constraint *c, int32_t state, int32_t limit, token_set *set)
{
	size_t n, n_others = 0;
	const ft_place *places = ft_automaton_places(c->automaton, state, &n);
	ft_place *others;
	ft_place *strings;
	ft_status status = FT_OK;

	set->nearest = FT_GRAMMAR_REST_MAX;
	set->farthest = 0;
	memset(set->words, 0, c->vocabulary->n_words * sizeof *set->words);
	FT_TRY(ft_alloc((void **) &others, 2 * n, sizeof *others));
	strings = others + n;
	for (size_t i = 0; i < n; i++)
	{
		int32_t behind = ft_automaton_calls_rest(c->automaton, places[i].calls);

		if (places[i].node < FT_STRING_NODES &&
			ft_grammar_rest_sum(c->string_rest, behind) <= limit)
			strings[i - n_others] = places[i];
		else
			others[n_others++] = places[i];
	}
	for (size_t i = 0; i < n - n_others && status == FT_OK; i++)
		status = add_string_place(c, strings[i], limit, set);
	if (status == FT_OK && n_others > 0)
	{
		if (n_others < n)
			status = ft_automaton_state_of(c->automaton, others, n_others, &state);
		if (status == FT_OK)
			status = walk(c, state, 0, (int32_t) c->vocabulary->trie->n_nodes, limit, set);
	}
	free(others);
	return status;
}

/* --- forgetting --- */

static void
free_sets(ft_constraint *c)
{
	for (size_t i = 0; i < c->sets_capacity; i++)
		free(c->sets[i].words);
	free(c->sets);
	c->sets = NULL;
	c->sets_capacity = 0;
	c->n_sets = 0;
}

/* Begin anew with the states that matches are in. */
static ft_status
forget(ft_constraint *c)
{
	int32_t **states;
	size_t n = 0;
	ft_status status;

	for (const ft_match *m = c->matches; m; m = m->next)
		n++;
	FT_TRY(ft_alloc((void **) &states, n, sizeof *states));
	n = 0;
	for (ft_match *m = c->matches; m; m = m->next)
		states[n++] = &m->state;
	free_sets(c);
	status = ft_automaton_forget(c->automaton, states, n);
	c->broken = status != FT_OK;
	free(states);
	return status;
}

static ft_status
check_whole(const ft_constraint *c)
{
	return c->broken ? ft_fail(FT_NO_MEMORY, "out of memory: an answer's place was lost") : FT_OK;
}

/* --- constraints --- */

ft_status
ft_constraint_create(ft_grammar *grammar, ft_constraint_vocabulary *vocabulary,
					 ft_constraint **constraint)
{
	ft_constraint *c;
	ft_status status = ft_alloc((void **) &c, 1, sizeof *c);

	if (status != FT_OK)
	{
		ft_grammar_free(grammar);
		return status;
	}
	c->grammar = grammar;
	c->vocabulary = vocabulary;
	for (int i = 0; i < FT_STRING_NODES; i++)
		if (grammar->rest[i] != FT_GRAMMAR_NO_EXIT && grammar->rest[i] > c->string_rest)
			c->string_rest = grammar->rest[i];
	status = ft_automaton_create(grammar, &c->automaton);
	if (status == FT_OK)
		status =
			ft_alloc((void **) &c->narrowed.words, vocabulary->n_words, sizeof *c->narrowed.words);
	if (status != FT_OK)
	{
		ft_constraint_free(c);
		return status;
	}
	*constraint = c;
	return FT_OK;
}

void
ft_constraint_free(ft_constraint *constraint)
{
	if (!constraint)
		return;
	free_sets(constraint);
	free(constraint->narrowed.words);
	ft_automaton_free(constraint->automaton);
	ft_grammar_free(constraint->grammar);
	free(constraint);
}

/* --- matches --- */

ft_status
ft_match_begin(ft_constraint *constraint, ft_match *match)
{
	*match = (ft_match){0};
	if (constraint->broken && !constraint->matches)
		FT_TRY(forget(constraint));
	FT_TRY(check_whole(constraint));
	FT_TRY(ft_automaton_start(constraint->automaton, &match->state));
	match->constraint = constraint;
	match->next = constraint->matches;
	match->link = &constraint->matches;
	if (match->next)
		match->next->link = &match->next;
	constraint->matches = match;
	return FT_OK;
}

void
ft_match_end(ft_match *match)
{
	if (!match->constraint)
		return;
	*match->link = match->next;
	if (match->next)
		match->next->link = match->link;
	*match = (ft_match){0};
}

/* All tokens that may come next in a state. */
static ft_status
set_of(ft_constraint *c, int32_t state, const token_set **result)
{
	token_set *set;

	if ((size_t) state >= c->sets_capacity)
	{
		size_t before = c->sets_capacity;

		FT_TRY(ft_grow((void **) &c->sets, &c->sets_capacity, (size_t) state + 1, sizeof *c->sets));
		memset(c->sets + before, 0, (c->sets_capacity - before) * sizeof *c->sets);
	}
	set = &c->sets[state];
	if (!set->words)
	{
		ft_status status;

		FT_TRY(ft_alloc((void **) &set->words, c->vocabulary->n_words, sizeof *set->words));
		status = fill_set(c, state, FT_GRAMMAR_REST_MAX, set);
		if (status != FT_OK)
		{
			free(set->words);
			set->words = NULL;
			return status;
		}
		c->n_sets++;
	}
	*result = set;
	return FT_OK;
}

ft_status
ft_match_tokens(ft_match *match, int32_t left, const uint64_t **words, bool *may_end)
{
	ft_constraint *c = match->constraint;
	const token_set *set;
	int32_t limit = left - 1;

	FT_TRY(check_whole(c));
	if (ft_automaton_bytes(c->automaton) + c->n_sets * c->vocabulary->n_words * sizeof **words >
		FORGET_BYTES)
		FT_TRY(forget(c));
	FT_TRY(set_of(c, match->state, &set));
	*may_end = ft_automaton_accepts(c->automaton, match->state);
	if (set->farthest > limit)
	{
		if (set->nearest > limit && !*may_end)
			limit = set->nearest;
		FT_TRY(fill_set(c, match->state, limit, &c->narrowed));
		set = &c->narrowed;
	}
	*words = set->words;
	return FT_OK;
}

ft_status
ft_match_mask(ft_match *match, int32_t left, const int32_t *ends, int n_ends, float *logits)
{
	const ft_constraint_vocabulary *v = match->constraint->vocabulary;
	size_t n = v->trie->vocabulary;
	const uint64_t *words;
	float kept[16];
	bool may_end, any = false;

	/* where no token ends an answer, one that may end need not be in a hurry */
	FT_TRY(ft_match_tokens(match, n_ends > 0 ? left : INT32_MAX, &words, &may_end));
	if (n_ends > (int) (sizeof kept / sizeof kept[0]))
		n_ends = (int) (sizeof kept / sizeof kept[0]);
	for (int i = 0; i < n_ends; i++)
		kept[i] = logits[ends[i]];
	for (size_t i = 0; i < v->n_words; i++)
	{
		uint64_t word = words[i];
		size_t from = 64 * i, to = from + 64 < n ? from + 64 : n;

		any = any || word != 0;
		if (word == 0)
			for (size_t t = from; t < to; t++)
				logits[t] = -INFINITY;
		else if (word != UINT64_MAX)
			for (size_t t = from; t < to; t++)
				logits[t] = word >> (t - from) & 1 ? logits[t] : -INFINITY;
	}
	for (int i = 0; i < n_ends; i++)
		logits[ends[i]] = may_end ? kept[i] : -INFINITY;
	if (!any && !(may_end && n_ends > 0))
		return ft_fail(FT_UNSUPPORTED,
					   "the model's vocabulary has no token that goes on with the required answer");
	return FT_OK;
}

ft_status
ft_match_push(ft_match *match, const char *text, size_t n)
{
	FT_TRY(check_whole(match->constraint));
	for (size_t i = 0; i < n; i++)
	{
		int32_t next;

		FT_TRY(ft_automaton_next(match->constraint->automaton, match->state,
								 (unsigned char) text[i], &next));
		if (next == FT_STATE_NONE)
			return ft_fail(FT_INTERNAL, "a token was drawn that the schema does not allow");
		match->state = next;
	}
	return FT_OK;
}

bool
ft_match_is_whole(const ft_match *match)
{
	return !match->constraint->broken &&
		   !ft_automaton_goes_on(match->constraint->automaton, match->state);
}
