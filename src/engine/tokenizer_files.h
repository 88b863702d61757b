/*
 * tokenizer_files.h: the tokeniser of a Hugging Face directory.
 *
 * Read are tokenizer.json, or tokenizer.model (SentencePiece) where there is none, and of
 * tokenizer_config.json the names of the special tokens and whether a text begins with bos.
 */
#ifndef FT_TOKENIZER_FILES_H
#define FT_TOKENIZER_FILES_H

#include "tokenizer.h"

typedef struct ft_tokenizer_files ft_tokenizer_files;

/* Reads the files in the open directory dirfd; dirname is for messages only, which name the file
 * and what is wrong with it.  FT_NOT_FOUND: it has neither of the two; FT_CORRUPT: broken or
 * contradictory; FT_UNSUPPORTED: a kind of model, normaliser, pre-tokeniser or decoder that is not
 * known, by name.  The caller frees the files. */
ft_status ft_tokenizer_files_read(int dirfd, const char *dirname, ft_tokenizer_files **files);
void ft_tokenizer_files_free(ft_tokenizer_files *files);

/* What ft_tokenizer_create needs; lives as long as the files.  Ids that the files leave out below
 * their highest one are unused tokens without text. */
const ft_vocabulary *ft_tokenizer_files_vocabulary(const ft_tokenizer_files *files);
/* The name of the file that the tokens came from: "tokenizer.json" or "tokenizer.model". */
const char *ft_tokenizer_files_source(const ft_tokenizer_files *files);

#endif
