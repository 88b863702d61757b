/*
 * constraint.h: which tokens may come next, so that an answer is in a grammar.
 *
 * The answer's bytes lead to a state of the grammar's automaton; for each state
 * the set of tokens that may come next is made once, by going through the tree
 * of the vocabulary as far as the automaton goes along.  Where an answer is
 * inside a string nearly all tokens fit: how far tokens lead there is the same
 * for every grammar, and is kept with the vocabulary; only what comes behind
 * the closing quote depends on where the string stands.
 *
 * An answer of a limited number of tokens is brought to its end in time: once
 * the tokens that are left might not do, only those may come behind which the
 * answer can end within as many bytes, of which a token has one at least.
 *
 * A constraint and its matches belong to one thread, but for making and freeing
 * the former.
 */
#ifndef FT_CONSTRAINT_H
#define FT_CONSTRAINT_H

#include "automaton.h"
#include "token_trie.h"

/* A vocabulary, and what constraints over it share. */
typedef struct ft_constraint_vocabulary ft_constraint_vocabulary;

ft_status ft_constraint_vocabulary_create(const ft_tokenizer *tokenizer, size_t vocabulary,
										  ft_constraint_vocabulary **result);
void ft_constraint_vocabulary_free(ft_constraint_vocabulary *vocabulary);

typedef struct ft_constraint ft_constraint;

/* Takes over the grammar, also where it fails; the vocabulary must outlive the constraint. */
ft_status ft_constraint_create(ft_grammar *grammar, ft_constraint_vocabulary *vocabulary,
							   ft_constraint **constraint);
/* No match may be left. */
void ft_constraint_free(ft_constraint *constraint);

/* One answer on its way through the grammar. */
typedef struct ft_match
{
	ft_constraint *constraint;
	int32_t state;
	struct ft_match *next, **link; /* private */
} ft_match;

ft_status ft_match_begin(ft_constraint *constraint, ft_match *match);
/* Also of one that has not begun (zeroed). */
void ft_match_end(ft_match *match);

/* Set the logits [vocabulary] of all tokens that may not come next to minus infinity.  left: tokens
 * to come, this one included.  The `ends`, at most 16, may come where the answer may end, and only
 * there.  FT_UNSUPPORTED when no token is left. */
ft_status
ft_match_mask(ft_match *match, int32_t left, const int32_t *ends, int n_ends, float *logits);
/* A token has been drawn that was not masked.  FT_INTERNAL: it was. */
ft_status ft_match_push(ft_match *match, const char *text, size_t n);
/* Is the answer complete, so that nothing can come behind it? */
bool ft_match_is_whole(const ft_match *match);

/* The set as bits, token t being bit t % 64 of word t / 64; *may_end: the answer may end here.
 * Where the tokens left do not do, those that bring the end nearest, or, if it may end here, none.
 * Valid until the next call for the constraint. */
ft_status ft_match_tokens(ft_match *match, int32_t left, const uint64_t **words, bool *may_end);

#endif
