/*
 * token_trie.c: the tree of a vocabulary's tokens.
 */
#include "token_trie.h"

#include "tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

static size_t
common_bytes(const char *a, size_t na, const char *b, size_t nb)
{
	size_t n = 0;

	while (n < na && n < nb && a[n] == b[n])
		n++;
	return n;
}

/* Nodes of a token's bytes from `from` on.  open[depth]: the node of that depth above the next. */
static ft_status
add_nodes(ft_token_trie *trie, size_t *capacity, const char *text, size_t from, size_t n,
		  int32_t *open)
{
	for (size_t at = from; at < n; at++)
	{
		FT_TRY(ft_grow((void **) &trie->nodes, capacity, trie->n_nodes + 1, sizeof *trie->nodes));
		open[at + 1] = (int32_t) trie->n_nodes;
		trie->nodes[trie->n_nodes++] = (ft_trie_node){
			.end = -1,
			.first_token = (int32_t) trie->n_tokens,
			.depth = (uint16_t) (at + 1),
			.byte = (uint8_t) text[at],
		};
	}
	return FT_OK;
}

static void
close_nodes(ft_token_trie *trie, const int32_t *open, size_t above, size_t depth)
{
	for (size_t d = above + 1; d <= depth; d++)
		trie->nodes[open[d]].end = (int32_t) trie->n_nodes;
}

static ft_status
add_tokens(const ft_tokenizer *t, ft_token_trie *trie, int32_t *open)
{
	size_t capacity = 0;
	const char *before = "";
	size_t n_before = 0;

	/* by their bytes: a token comes behind those that it begins with */
	for (size_t i = 0; i < t->n_tokens; i++)
	{
		int32_t id = t->sorted[i];
		const ft_token *token = &t->tokens[id];
		const char *text = ft_token_text(t, id);
		size_t common;
		ft_trie_node *node;

		if (token->special || token->length == 0 || (size_t) id >= trie->vocabulary)
			continue;
		common = common_bytes(before, n_before, text, token->length);
		close_nodes(trie, open, common, n_before);
		FT_TRY(add_nodes(trie, &capacity, text, common, token->length, open));
		node = &trie->nodes[trie->n_nodes - 1];
		if (node->n_tokens == UINT16_MAX)
			return ft_fail(FT_UNSUPPORTED, "more than %d tokens have the same text", UINT16_MAX);
		if (node->n_tokens++ == 0)
			node->first_token = (int32_t) trie->n_tokens;
		trie->tokens[trie->n_tokens++] = id;
		before = text;
		n_before = token->length;
	}
	close_nodes(trie, open, 0, n_before);
	return FT_OK;
}

ft_status
ft_token_trie_create(const ft_tokenizer *tokenizer, size_t vocabulary, ft_token_trie **result)
{
	ft_token_trie *trie;
	int32_t *open = NULL;
	size_t longest = 0;
	ft_status status;

	for (size_t i = 0; i < tokenizer->n_tokens; i++)
		if (!tokenizer->tokens[i].special && tokenizer->tokens[i].length > longest)
			longest = tokenizer->tokens[i].length;
	if (longest > UINT16_MAX)
		return ft_fail(FT_UNSUPPORTED, "a token has %zu bytes, the limit is %d", longest,
					   UINT16_MAX);
	FT_TRY(ft_alloc((void **) &trie, 1, sizeof *trie));
	trie->vocabulary = vocabulary;
	trie->depth = (int) longest;
	status = ft_alloc((void **) &trie->tokens, tokenizer->n_tokens, sizeof *trie->tokens);
	if (status == FT_OK)
		status = ft_alloc((void **) &open, longest + 1, sizeof *open);
	if (status == FT_OK)
		status = add_tokens(tokenizer, trie, open);
	free(open);
	if (status != FT_OK)
	{
		ft_token_trie_free(trie);
		return status;
	}
	*result = trie;
	return FT_OK;
}

void
ft_token_trie_free(ft_token_trie *trie)
{
	if (!trie)
		return;
	free(trie->nodes);
	free(trie->tokens);
	free(trie);
}
