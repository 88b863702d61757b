/*
 * sequence.c: the blocks of one sequence: found, taken, named, given back.
 */
#include "sequence.h"

#include <stdlib.h>
#include <string.h>

/* Names of the first n blocks. */
static ft_status
make_keys(ft_sequence *s, int n)
{
	while (s->n_keys <= n)
	{
		FT_TRY(ft_kv_key_next(&s->keys[s->n_keys - 1],
							  s->tokens.data + (size_t) (s->n_keys - 1) * FT_KV_BLOCK,
							  &s->keys[s->n_keys]));
		s->n_keys++;
	}
	return FT_OK;
}

ft_status
ft_sequence_begin(ft_sequence *s, const ft_model *model, ft_kv_cache *cache, const int32_t *tokens,
				  size_t n, size_t limit, const char *salt, uint64_t weights)
{
	const ft_config *c = &model->config;
	size_t blocks = (size_t) ft_kv_blocks_for((int64_t) (n + limit));

	*s = (ft_sequence){.cache = cache};
	s->window = c->window_from > 0 ? 0 : (size_t) c->window;
	FT_TRY(ft_ids_append(&s->tokens, tokens, n));
	FT_TRY(ft_alloc((void **) &s->blocks, blocks, sizeof *s->blocks));
	if (!salt)
		return FT_OK;
	FT_TRY(ft_alloc((void **) &s->keys, blocks + 1, sizeof *s->keys));
	FT_TRY(ft_kv_key_begin(salt, weights, &s->keys[0]));
	s->n_keys = 1;
	return make_keys(s, (int) (n / FT_KV_BLOCK));
}

void
ft_sequence_free(ft_sequence *s)
{
	ft_ids_free(&s->tokens);
	free(s->blocks);
	free(s->keys);
	*s = (ft_sequence){0};
}

/* Where every layer has a sliding window: blocks that no token from position `next` on will see. */
static int
passed_at(const ft_sequence *s, size_t next)
{
	if (s->window == 0 || next < s->window)
		return 0;
	return (int) ((next - s->window + 1) / FT_KV_BLOCK);
}

void
ft_sequence_find(ft_sequence *s)
{
	int most = (int) ((s->tokens.length - 1) / FT_KV_BLOCK);
	int from = 0; /* blocks from here to i are all there */
	int found = 0;

	if (!s->keys)
		return;
	for (int i = 0; i < most && i < s->n_keys - 1; i++)
	{
		int32_t block = ft_kv_find(s->cache, &s->keys[i + 1]);

		if (block < 0)
		{
			if (s->window == 0)
				break;
			from = i + 1;
			continue;
		}
		s->blocks[i] = block;
		if (passed_at(s, (size_t) (i + 1) * FT_KV_BLOCK) >= from)
			found = i + 1;
	}
	s->computed = (size_t) found * FT_KV_BLOCK;
	s->n_blocks = s->n_named = found;
	s->n_passed = passed_at(s, s->computed);
	/* any number of a block: nobody looks */
	memset(s->blocks, 0, (size_t) s->n_passed * sizeof *s->blocks);
	for (int i = s->n_passed; i < found; i++)
		ft_kv_share(s->cache, s->blocks[i]);
}

bool
ft_sequence_reserve(ft_sequence *s, size_t n)
{
	int wanted = ft_kv_blocks_for((int64_t) n) - s->n_blocks;

	if (wanted <= 0)
		return true;
	if (!ft_kv_take(s->cache, wanted, s->blocks + s->n_blocks))
		return false;
	s->n_blocks += wanted;
	return true;
}

/* Give back the blocks that no token to come will see. */
static void
give_back_passed(ft_sequence *s)
{
	int32_t *first = s->blocks + s->n_passed;
	int passed = passed_at(s, s->computed) - s->n_passed;

	if (passed <= 0)
		return;
	ft_kv_give_back(s->cache, first, passed);
	memset(first, 0, (size_t) passed * sizeof *first);
	s->n_passed += passed;
}

ft_status
ft_sequence_computed(ft_sequence *s, size_t rows)
{
	s->computed += rows;
	if (s->keys)
	{
		int full = (int) (s->computed / FT_KV_BLOCK);

		FT_TRY(make_keys(s, full));
		for (; s->n_named < full; s->n_named++)
			s->blocks[s->n_named] =
				ft_kv_name(s->cache, s->blocks[s->n_named], &s->keys[s->n_named + 1]);
	}
	give_back_passed(s);
	return FT_OK;
}

void
ft_sequence_give_back(ft_sequence *s)
{
	int n = s->n_blocks - s->n_passed;

	if (n > 0)
		ft_kv_give_back(s->cache, s->blocks + s->n_passed, n);
	s->n_blocks = 0;
	s->n_passed = 0;
	s->n_named = 0;
	s->computed = 0;
}
