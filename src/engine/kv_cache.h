/*
 * kv_cache.h: the paged cache of keys and values, and its free blocks.
 *
 * A block holds FT_KV_BLOCK tokens of one sequence, in every layer at the same
 * index.  Memory is taken once; handing out and taking back blocks is host
 * bookkeeping only.  Not thread-safe but for a look at n_free: the scheduler
 * owns it.
 */
#ifndef FT_KV_CACHE_H
#define FT_KV_CACHE_H

#include "model.h"

#include <stdatomic.h>

typedef struct ft_kv_cache
{
	ft_kv_layer *layers; /* [config.layers] */
	int n_blocks;
	atomic_int n_free; /* others may look at it */

	/* private */
	int32_t *free_blocks; /* a stack, [n_free] */
	void *memory;         /* device, all layers */
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

/* Hand out n blocks, all or none; false when fewer are free. */
bool ft_kv_take(ft_kv_cache *cache, int n, int32_t *blocks);
void ft_kv_give_back(ft_kv_cache *cache, const int32_t *blocks, int n);

#endif
