/*
 * kv_cache.c: memory, users and names of the paged cache's blocks.
 */
#include "kv_cache.h"

#include "buffer.h"
#include "digest.h"

#include <stdlib.h>
#include <string.h>

/* What is known of a block. */
typedef struct ft_kv_entry
{
	ft_kv_key key; /* its name, where it is named */
	bool named;
	int32_t users;
	int32_t next;         /* of its bucket, -1: the last */
	int32_t older, newer; /* of the free blocks with a name, -1: none */
} ft_kv_entry;

static int64_t
layer_block_bytes(const ft_model *model)
{
	const ft_config *c = &model->config;

	return ft_row_bytes(model->cached, (int64_t) c->kv_heads * FT_KV_BLOCK * c->head_dim);
}

int64_t
ft_kv_block_bytes(const ft_model *model)
{
	return 2 * model->config.layers * layer_block_bytes(model);
}

ft_status
ft_kv_cache_create(const ft_model *model, int n_blocks, ft_kv_cache **cache)
{
	int n_layers = model->config.layers;
	int64_t half = layer_block_bytes(model) * n_blocks; /* one layer's k, or its v */
	ft_kv_cache *kv;
	ft_status status;

	if (n_blocks < 1)
		return ft_fail(FT_INVALID, "a key/value cache of %d blocks is empty", n_blocks);
	FT_TRY(ft_alloc((void **) &kv, 1, sizeof *kv));
	kv->ops = model->ops;
	kv->device = model->device;
	kv->n_layers = n_layers;
	kv->n_blocks = n_blocks;
	kv->n_free = n_blocks;
	kv->oldest = kv->newest = -1;
	for (kv->n_buckets = 16; kv->n_buckets < (uint32_t) n_blocks;)
		kv->n_buckets *= 2;
	status = ft_alloc((void **) &kv->layers, (size_t) n_layers, sizeof *kv->layers);
	if (status == FT_OK)
		status = ft_alloc((void **) &kv->empty_blocks, (size_t) n_blocks, sizeof(int32_t));
	if (status == FT_OK)
		status = ft_alloc((void **) &kv->entries, (size_t) n_blocks, sizeof *kv->entries);
	if (status == FT_OK)
		status = ft_alloc((void **) &kv->buckets, kv->n_buckets, sizeof(int32_t));
	if (status == FT_OK)
		status = kv->ops->mem_alloc(kv->device, FT_MEM_DEVICE, (size_t) (2 * n_layers * half),
									&kv->memory);
	if (status != FT_OK)
	{
		ft_kv_cache_free(kv);
		return status;
	}
	for (int i = 0; i < n_layers; i++)
	{
		kv->layers[i] = (ft_kv_layer){
			.k = (char *) kv->memory + 2 * i * half,
			.v = (char *) kv->memory + (2 * i + 1) * half,
			.dtype = model->cached,
			.kv_heads = model->config.kv_heads,
			.head_dim = model->config.head_dim,
		};
	}
	/* the lowest index is handed out first, so that a little-used cache stays little touched */
	for (int i = 0; i < n_blocks; i++)
		kv->empty_blocks[i] = n_blocks - 1 - i;
	memset(kv->buckets, -1, kv->n_buckets * sizeof(int32_t));
	*cache = kv;
	return FT_OK;
}

void
ft_kv_cache_free(ft_kv_cache *cache)
{
	if (!cache)
		return;
	if (cache->memory)
		cache->ops->mem_free(cache->device, FT_MEM_DEVICE, cache->memory);
	free(cache->empty_blocks);
	free(cache->entries);
	free(cache->buckets);
	free(cache->layers);
	free(cache);
}

/* --- names --- */

ft_status
ft_kv_key_begin(const char *salt, uint64_t weights, ft_kv_key *key)
{
	return ft_digest_pair(&weights, sizeof weights, salt, strlen(salt), key->sum);
}

ft_status
ft_kv_key_next(const ft_kv_key *before, const int32_t *tokens, ft_kv_key *key)
{
	return ft_digest_pair(before->sum, sizeof before->sum, tokens, FT_KV_BLOCK * sizeof *tokens,
						  key->sum);
}

static int32_t *
bucket_of(const ft_kv_cache *cache, const ft_kv_key *key)
{
	uint32_t hash;

	memcpy(&hash, key->sum, sizeof hash);
	return &cache->buckets[hash & (cache->n_buckets - 1)];
}

int32_t
ft_kv_find(const ft_kv_cache *cache, const ft_kv_key *key)
{
	int32_t block = *bucket_of(cache, key);

	while (block >= 0 && memcmp(&cache->entries[block].key, key, sizeof *key) != 0)
		block = cache->entries[block].next;
	return block;
}

static void
forget_name(ft_kv_cache *cache, int32_t block)
{
	ft_kv_entry *entry = &cache->entries[block];
	int32_t *at = bucket_of(cache, &entry->key);

	while (*at != block)
		at = &cache->entries[*at].next;
	*at = entry->next;
	entry->named = false;
}

/* --- free blocks that keep their names --- */

static void
keep(ft_kv_cache *cache, int32_t block)
{
	ft_kv_entry *entry = &cache->entries[block];

	entry->older = cache->newest;
	entry->newer = -1;
	if (cache->newest >= 0)
		cache->entries[cache->newest].newer = block;
	else
		cache->oldest = block;
	cache->newest = block;
	cache->n_kept++;
}

static void
keep_no_more(ft_kv_cache *cache, int32_t block)
{
	ft_kv_entry *entry = &cache->entries[block];

	if (entry->older >= 0)
		cache->entries[entry->older].newer = entry->newer;
	else
		cache->oldest = entry->newer;
	if (entry->newer >= 0)
		cache->entries[entry->newer].older = entry->older;
	else
		cache->newest = entry->older;
	cache->n_kept--;
}

/* --- users --- */

bool
ft_kv_take(ft_kv_cache *cache, int n, int32_t *blocks)
{
	if (n > cache->n_free)
		return false;
	for (int i = 0; i < n; i++)
	{
		int n_empty = cache->n_free - cache->n_kept;

		if (n_empty > 0)
			blocks[i] = cache->empty_blocks[n_empty - 1];
		else
		{
			blocks[i] = cache->oldest;
			keep_no_more(cache, blocks[i]);
			forget_name(cache, blocks[i]);
		}
		cache->entries[blocks[i]].users = 1;
		cache->n_free--;
	}
	return true;
}

void
ft_kv_give_back(ft_kv_cache *cache, const int32_t *blocks, int n)
{
	for (int i = n; i-- > 0;)
	{
		ft_kv_entry *entry = &cache->entries[blocks[i]];

		if (--entry->users > 0)
			continue;
		if (entry->named)
			keep(cache, blocks[i]);
		else
			cache->empty_blocks[cache->n_free - cache->n_kept] = blocks[i];
		cache->n_free++;
	}
}

void
ft_kv_share(ft_kv_cache *cache, int32_t block)
{
	ft_kv_entry *entry = &cache->entries[block];

	if (entry->users++ > 0)
		return;
	keep_no_more(cache, block);
	cache->n_free--;
}

int32_t
ft_kv_name(ft_kv_cache *cache, int32_t block, const ft_kv_key *key)
{
	int32_t known = ft_kv_find(cache, key);
	ft_kv_entry *entry = &cache->entries[block];
	int32_t *bucket = bucket_of(cache, key);

	if (known >= 0)
	{
		ft_kv_share(cache, known);
		ft_kv_give_back(cache, &block, 1);
		return known;
	}
	entry->key = *key;
	entry->named = true;
	entry->next = *bucket;
	*bucket = block;
	return block;
}
