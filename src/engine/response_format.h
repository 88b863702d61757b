/*
 * response_format.h: OpenAI's response_format, as a constraint of the answer.
 *
 * A base keeps the constraints that were asked for last, with all they have
 * learnt of its vocabulary: the next request with the same schema finds them.
 */
#ifndef FT_RESPONSE_FORMAT_H
#define FT_RESPONSE_FORMAT_H

#include "constraint.h"

#include <jansson.h>

typedef struct ft_constraint_cache ft_constraint_cache;

/* Of the tokens below `vocabulary`. */
ft_status ft_constraint_cache_create(const ft_tokenizer *tokenizer, size_t vocabulary,
									 ft_constraint_cache **cache);
void ft_constraint_cache_free(ft_constraint_cache *cache);

/* The constraint of a format, NULL for {"type": "text"} or where the format is NULL; to be given
 * back.  One thread gets and puts; no match may be left when one is given back for the last time.
 */
ft_status ft_constraint_cache_get(ft_constraint_cache *cache, const json_t *format,
								  ft_constraint **constraint);
void ft_constraint_cache_put(ft_constraint_cache *cache, ft_constraint *constraint);

/* The grammar of a format, NULL where everything is in it. */
ft_status ft_response_format_grammar(const json_t *format, ft_grammar **grammar);

#endif
