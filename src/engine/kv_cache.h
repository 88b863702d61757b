/*
 * kv_cache.h: the paged cache of keys and values, and whose its blocks are.
 *
 * A block holds FT_KV_BLOCK tokens of a sequence, in every layer at the same
 * index.  Memory is taken once; handing out and taking back blocks is host
 * bookkeeping only.  Not thread-safe but for a look at the counts: the
 * scheduler owns it.
 *
 * A full block may be named by what it holds: the SHA-256 of its tokens and of
 * the name of the block before it, which begins with who may see it.  Who asks
 * for that name shares the block, and nobody writes into it.  When its last
 * user gives it back it is free, but keeps its name until the block is wanted
 * for something else; those given back first go first.
 */
#ifndef FT_KV_CACHE_H
#define FT_KV_CACHE_H

#include "model.h"

#include <stdatomic.h>

typedef struct ft_kv_key
{
	uint8_t sum[32];
} ft_kv_key;

typedef struct ft_kv_cache
{
	ft_kv_layer *layers; /* [config.layers] */
	int n_blocks;
	atomic_int n_free; /* nobody's, with or without a name; others may look at it */
	atomic_int n_kept; /* of them, those with a name; likewise */

	/* private */
	int32_t *empty_blocks;       /* a stack, [n_free - n_kept] */
	struct ft_kv_entry *entries; /* [n_blocks] */
	int32_t *buckets;            /* [n_buckets] the first block of each, -1: none */
	uint32_t n_buckets;          /* a power of two */
	int32_t oldest, newest;      /* of the free blocks with a name; -1: none */
	void *memory;                /* device, all layers */
	const ft_ops *ops;
	ft_device *device;
	int n_layers;
} ft_kv_cache;

/* Bytes of device memory that one block of all layers takes. */
int64_t ft_kv_block_bytes(const ft_model *model);

/* Blocks that hold n tokens. */
static inline int
ft_kv_blocks_for(int64_t n)
{
	return (int) ((n + FT_KV_BLOCK - 1) / FT_KV_BLOCK);
}

/* A cache of n_blocks blocks of the model's compute type. */
ft_status ft_kv_cache_create(const ft_model *model, int n_blocks, ft_kv_cache **cache);
void ft_kv_cache_free(ft_kv_cache *cache);

/* Hand out n blocks, all or none; false when fewer are free.  Names go as far as they must. */
bool ft_kv_take(ft_kv_cache *cache, int n, int32_t *blocks);
/* One user less of each.  The last of them is the first to lose its name later. */
void ft_kv_give_back(ft_kv_cache *cache, const int32_t *blocks, int n);

/* The block of that name, -1 for none. */
int32_t ft_kv_find(const ft_kv_cache *cache, const ft_kv_key *key);
/* One user more of a block that was found. */
void ft_kv_share(ft_kv_cache *cache, int32_t block);
/* Name a full block that has none.  Where another one has that name, and so the same contents, the
 * caller's is given back, and that one, shared now, is returned; else the caller's. */
int32_t ft_kv_name(ft_kv_cache *cache, int32_t block, const ft_kv_key *key);

/* What the names of a sequence begin with: whoever gives another `salt` or `weights` shares
 * nothing. */
ft_status ft_kv_key_begin(const char *salt, uint64_t weights, ft_kv_key *key);
/* The name of a block with tokens[FT_KV_BLOCK], behind the one named `before`. */
ft_status ft_kv_key_next(const ft_kv_key *before, const int32_t *tokens, ft_kv_key *key);

#endif
