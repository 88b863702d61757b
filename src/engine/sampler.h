/*
 * sampler.h: one request's way from logits to text.
 *
 * The draw itself is an operation (ops->sample); here are the random numbers
 * that go into it, what the text so far does to its logits, and what ends an
 * answer: an end token, a stop string, the token limit, or that the required
 * format is complete.
 */
#ifndef FT_SAMPLER_H
#define FT_SAMPLER_H

#include "constraint.h"
#include "logprobs.h"
#include "model_file.h"
#include "ops.h"
#include "tokenizer.h"

#define FT_DEFAULT_MAX_TOKENS 4096

/* What a request asks for.  Stop strings are owned. */
typedef struct ft_sampling
{
	float temperature; /* 0: greedy */
	float top_p;
	float min_p;
	int32_t top_k;
	uint64_t seed;
	float presence_penalty;   /* 0: off */
	float frequency_penalty;  /* 0: off */
	float repetition_penalty; /* above 0; 1: off */
	int max_tokens;           /* at least 1 */
	bool ignore_eos;
	bool logprobs;    /* of the tokens drawn are wanted, */
	int top_logprobs; /* and of so many that might have been, at most FT_MAX_TOP_LOGPROBS */
	ft_text *stops;   /* [n_stops], none empty */
	size_t n_stops;
} ft_sampling;

void ft_sampling_default(ft_sampling *sampling);
void ft_sampling_free(ft_sampling *sampling);

typedef enum ft_finish
{
	FT_FINISH_NONE,  /* goes on */
	FT_FINISH_STOP,  /* end token, stop string, or complete */
	FT_FINISH_LENGTH /* limit reached */
} ft_finish;

/* "stop", "length"; NULL while it goes on. */
const char *ft_finish_name(ft_finish finish);

/* A token that penalties are for. */
typedef struct ft_seen_token
{
	int32_t id;
	uint32_t answered; /* how often it stands in the answer so far; 0: in the prompt only */
} ft_seen_token;

/* An answer in the making. */
typedef struct ft_generation
{
	const ft_tokenizer *tokenizer;
	const ft_config *config;
	const ft_sampling *sampling;
	int limit;    /* tokens */
	ft_ids ids;   /* drawn so far, the end token included */
	ft_text text; /* cut before a stop string; may end inside a character until finished */
	ft_finish finish;
	ft_constraint *constraint; /* NULL: the answer may be anything */
	ft_match match;            /* from the first draw on */
	ft_logprobs logprobs;      /* of ids, where they are wanted; an end token has none */

	/* the distinct tokens of prompt and answer by id; empty without penalties */
	ft_seen_token *seen;
	size_t n_seen;
	size_t seen_capacity;
} ft_generation;

/* The pointers must outlive the generation.  limit: tokens at most, at least 1.  constraint: NULL
 * for none. */
void ft_generation_start(ft_generation *generation, const ft_tokenizer *tokenizer,
						 const ft_config *config, const ft_sampling *sampling,
						 ft_constraint *constraint, int limit);
void ft_generation_free(ft_generation *generation);

/* No token is drawn any more.  In the thread that drew them, before ft_generation_free. */
void ft_generation_end(ft_generation *generation);

/* Take note of the prompt's tokens, which the repetition penalty is for too.  Once, before the
 * first draw. */
ft_status ft_generation_read_prompt(ft_generation *generation, const int32_t *ids, size_t n);

/* Must the logits of the next draw be changed before it? */
bool ft_generation_edits(const ft_generation *generation);

/* Change them: penalties, then what the constraint allows. */
ft_status ft_generation_edit(ft_generation *generation, float *logits);

/* Does the text so far change what is drawn next? */
bool ft_generation_has_penalties(const ft_generation *generation);

/*
 * Apply the penalties to logits [vocabulary], in vLLM's order:
 *
 *     l = l > 0 ? l / repetition : l · repetition    tokens of prompt and answer (Keskar et al.
 * 2019, as in Hugging Face's RepetitionPenaltyLogitsProcessor) l = l - frequency · count - presence
 * tokens of the answer (OpenAI's definition)
 */
void ft_generation_penalize(const ft_generation *generation, float *logits);

/* Parameters of the next draw.  Its random number depends on the seed and the number of tokens
 * drawn so far alone. */
ft_sample ft_generation_draw(const ft_generation *generation);

/* Take the token drawn; sets finish. */
ft_status ft_generation_push(ft_generation *generation, int32_t id);

/* Append bytes[0, n) as valid UTF-8 without NUL (which no reader of C strings, PostgreSQL among
 * them, could take): every invalid sequence becomes U+FFFD. */
ft_status ft_text_make_valid(const char *bytes, size_t n, ft_text *text);

/* Append the finished text from byte `from` on, made valid; a character that the limit has cut off
 * is dropped. */
ft_status ft_generation_text(const ft_generation *generation, size_t from, ft_text *text);

/* How many bytes of the text no later token can change: it may end inside of a character, or with
 * what may become a stop string. */
size_t ft_generation_settled(const ft_generation *generation);

#endif
