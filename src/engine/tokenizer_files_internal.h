/*
 * tokenizer_files_internal.h: what the readers of tokenizer.json and tokenizer.model fill.
 */
#ifndef FT_TOKENIZER_FILES_INTERNAL_H
#define FT_TOKENIZER_FILES_INTERNAL_H

#include "tokenizer_files.h"

#include <jansson.h>

struct ft_tokenizer_files
{
	ft_vocabulary vocabulary;
	const char *source;
	/* what the vocabulary's strings lie in */
	json_t *json;
	ft_text file;
	ft_text merges;
	json_t *config; /* tokenizer_config.json; NULL: there is none */
};

/* An id that is this far behind the number of tokens is taken for a damaged one. */
#define FT_ID_SLACK 65536

/* Allocate the arrays of n tokens, all unused. */
ft_status ft_files_allocate(ft_vocabulary *v, size_t n);
/* Set a token; FT_CORRUPT when its id has another text already. */
ft_status ft_files_set(ft_vocabulary *v, size_t id, ft_string text, ft_token_type type);
/* An object of tokenizer.json's added_tokens (its id in it), or of added_tokens_decoder. */
ft_status ft_files_set_added(ft_vocabulary *v, size_t id, const json_t *object);
/* The highest of these ids + 1, at most limit; FT_CORRUPT for what is no id. */
ft_status ft_files_highest(const json_t *id, size_t limit, size_t *n);
/* The id of a token by its text as stored, -1 for none: added ones first. */
int ft_files_find(const ft_vocabulary *v, const char *text, size_t n);

/* Fill files->vocabulary from the parsed files->json. */
ft_status ft_files_from_json(ft_tokenizer_files *files);
/* Fill files->vocabulary from the bytes in files->file, and tokens that files->config adds. */
ft_status ft_files_from_model(ft_tokenizer_files *files);

/* For fuzzing and tests: the same from memory; name is tokenizer.json or tokenizer.model, config
 * may be NULL. */
ft_status ft_tokenizer_files_parse(const char *name, const char *bytes, size_t n,
								   const char *config, ft_tokenizer_files **files);

#endif
