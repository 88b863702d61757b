/*
 * token_trie.h: the bytes of a vocabulary's tokens as a tree, to ask which of them may come next.
 */
#ifndef FT_TOKEN_TRIE_H
#define FT_TOKEN_TRIE_H

#include "tokenizer.h"

/* A byte of one or more tokens.  Nodes stand in depth-first order: the children of node i are
 * behind it, up to nodes[i].end. */
typedef struct ft_trie_node
{
	int32_t end;
	int32_t first_token; /* tokens[first_token … first_token + n_tokens) end with this byte */
	uint16_t n_tokens;
	uint16_t depth; /* of the first byte: 1 */
	uint8_t byte;
} ft_trie_node;

typedef struct ft_token_trie
{
	ft_trie_node *nodes;
	size_t n_nodes;
	int32_t *tokens;
	size_t n_tokens;
	size_t vocabulary; /* ids are below */
	int depth;         /* of the deepest node */
} ft_token_trie;

/* Of all tokens with a text that are no special ones and have an id below `vocabulary`.  Immutable
 * once made.  FT_UNSUPPORTED: a token is longer than 65535 bytes. */
ft_status
ft_token_trie_create(const ft_tokenizer *tokenizer, size_t vocabulary, ft_token_trie **trie);
void ft_token_trie_free(ft_token_trie *trie);

#endif
