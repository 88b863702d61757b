/*
 * kv_cache.c: memory and free blocks of the paged cache.
 */
#include "kv_cache.h"

#include "buffer.h"

#include <stdlib.h>

static int64_t
layer_block_bytes(const ft_model *model)
{
	const ft_config *c = &model->config;

	return ft_row_bytes(model->compute, (int64_t) c->kv_heads * FT_KV_BLOCK * c->head_dim);
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
	status = ft_alloc((void **) &kv->layers, (size_t) n_layers, sizeof *kv->layers);
	if (status == FT_OK)
		status = ft_alloc((void **) &kv->free_blocks, (size_t) n_blocks, sizeof(int32_t));
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
			.dtype = model->compute,
			.kv_heads = model->config.kv_heads,
			.head_dim = model->config.head_dim,
		};
	}
	/* the lowest index is handed out first, so that a little-used cache stays little touched */
	for (int i = 0; i < n_blocks; i++)
		kv->free_blocks[i] = n_blocks - 1 - i;
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
	free(cache->free_blocks);
	free(cache->layers);
	free(cache);
}

bool
ft_kv_take(ft_kv_cache *cache, int n, int32_t *blocks)
{
	if (n > cache->n_free)
		return false;
	for (int i = 0; i < n; i++)
		blocks[i] = cache->free_blocks[--cache->n_free];
	return true;
}

void
ft_kv_give_back(ft_kv_cache *cache, const int32_t *blocks, int n)
{
	for (int i = n; i-- > 0;)
		cache->free_blocks[cache->n_free++] = blocks[i];
}
