/*
 * request.h: bodies of HTTP requests, checked and taken apart.
 *
 * A field that we do not know, or know but cannot honour, is an error that
 * names it: an option that is silently ignored gives answers nobody asked for.
 * Fields of OpenAI's API that we do not implement are accepted with the value
 * that means "off".
 */
#ifndef FT_REQUEST_H
#define FT_REQUEST_H

#include "chat_template.h"
#include "sampler.h"

#include <jansson.h>

/* The body as a JSON object (a new reference), or FT_INVALID without any of its text. */
ft_status ft_body_parse(const char *body, size_t n, json_t **object);

/* A member that must be a string without NUL; owned by the object. */
ft_status ft_body_string(const json_t *object, const char *name, const char **value);
/* The same, or NULL where the member is missing or null. */
ft_status ft_body_optional_string(const json_t *object, const char *name, const char **value);
/* An integer in [least, most], or `missing` where the member is missing or null. */
ft_status ft_body_optional_integer(const json_t *object, const char *name, json_int_t least,
								   json_int_t most, json_int_t missing, json_int_t *value);
/* FT_INVALID names a member that is not in the list (NULL at its end). */
ft_status ft_body_only(const json_t *object, const char *const *names);
/* A list of token ids, each in [0, vocabulary); appended to ids. */
ft_status ft_body_token_ids(const json_t *value, const char *name, size_t vocabulary, ft_ids *ids);

typedef enum ft_input_kind
{
	FT_INPUT_COMPLETION, /* prompt */
	FT_INPUT_CHAT,       /* messages */
	FT_INPUT_TOKENIZE    /* either */
} ft_input_kind;

/* What a model is to read.  Strings belong to the JSON object it was taken from, unless `owned`. */
typedef struct ft_input
{
	const json_t *prompt; /* a string, or a list of ids; NULL for a chat */
	ft_message *messages; /* [n_messages] */
	size_t n_messages;
	ft_text *owned; /* [n_messages] contents that were put together from parts */
	bool add_generation_prompt;
	bool add_special_tokens; /* for a prompt: the model's begin token */
} ft_input;

void ft_input_free(ft_input *input);

/* What else a completion asks for.  All belongs to the JSON object. */
typedef struct ft_answer_options
{
	const char *cache_salt;        /* NULL: none */
	const json_t *response_format; /* NULL: text */
	int n;                         /* answers, at least 1 */
	bool stream;                   /* pieces as they are made, */
	bool include_usage;            /* and at the end what it took, */
	bool continuous_usage;         /* and with each piece what it took so far, as vLLM has it */
} ft_answer_options;

/* The input, the sampling and the options of a completion; the latter two are NULL for
 * FT_INPUT_TOKENIZE.  Input and sampling are to be freed even after a failure.  Without "seed" the
 * seed is left as it is. */
ft_status ft_request_parse(const json_t *object, ft_input_kind kind, ft_input *input,
						   ft_sampling *sampling, ft_answer_options *options);

/* Append the tokens of an input; prompt_template: the model's (prompt_template.h), or NULL. */
ft_status ft_input_encode(const ft_input *input, const ft_tokenizer *tokenizer,
						  const ft_chat_template *chat_template, const char *prompt_template,
						  int bos, size_t vocabulary, ft_ids *ids);
/* Bytes of text in it: for a cheap lower bound of its tokens. */
size_t ft_input_bytes(const ft_input *input);

#endif
