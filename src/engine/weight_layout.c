/*
 * weight_layout.c: where each of a model's own weights stands in one array of all of them.
 */
#include "weight_layout.h"

#include "buffer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- making one --- */

/* A place for n values. */
static int64_t
take(ft_weight_layout *l, int64_t n)
{
	int64_t at = l->n;

	l->n += (n + FT_WEIGHT_ALIGNMENT - 1) / FT_WEIGHT_ALIGNMENT * FT_WEIGHT_ALIGNMENT;
	return at;
}

static void
place_matrices(ft_weight_layout *l, ft_layer_places *layer)
{
	const ft_config *c = &l->config;
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t qkv = q + 2 * (int64_t) c->kv_heads * c->head_dim;
	int64_t matrix = (int64_t) c->ffn * c->hidden;

	layer->qkv = take(l, qkv * c->hidden);
	layer->out = take(l, q * c->hidden);
	layer->gate_up = layer->down = -1;
	layer->router = layer->experts_gate_up = layer->experts_down = -1;
	if (c->experts > 0)
	{
		layer->router = take(l, (int64_t) c->experts * c->hidden);
		layer->experts_gate_up = take(l, c->experts * 2 * matrix);
		layer->experts_down = take(l, c->experts * matrix);
		return;
	}
	layer->gate_up = take(l, 2 * matrix);
	layer->down = take(l, matrix);
}

static void
place_vectors(ft_weight_layout *l, ft_layer_places *layer)
{
	const ft_config *c = &l->config;

	layer->attention_norm = take(l, c->hidden);
	layer->ffn_norm = take(l, c->hidden);
	layer->qkv_bias =
		c->qkv_bias ? take(l, (int64_t) (c->heads + 2 * c->kv_heads) * c->head_dim) : -1;
	layer->q_norm = c->qk_norm ? take(l, c->head_dim) : -1;
	layer->k_norm = c->qk_norm ? take(l, c->head_dim) : -1;
}

ft_status
ft_weight_layout_create(const ft_config *config, ft_weight_layout **layout)
{
	ft_weight_layout *l;
	int64_t table = (int64_t) config->vocab * config->hidden;
	ft_status status;

	FT_TRY(ft_alloc((void **) &l, 1, sizeof *l));
	l->config = *config;
	status = ft_alloc((void **) &l->layers, (size_t) config->layers, sizeof l->layers[0]);
	if (status != FT_OK)
	{
		ft_weight_layout_free(l);
		return status;
	}
	l->embedding = l->head = take(l, table);
	for (int i = 0; i < config->layers; i++)
		place_matrices(l, &l->layers[i]);
	if (!config->tied_embeddings)
		l->head = take(l, table);
	l->matrices = l->n;
	for (int i = 0; i < config->layers; i++)
		place_vectors(l, &l->layers[i]);
	l->final_norm = take(l, config->hidden);
	*layout = l;
	return FT_OK;
}

void
ft_weight_layout_free(ft_weight_layout *layout)
{
	if (layout == NULL)
		return;
	free(layout->layers);
	free(layout);
}

/* --- finding a tensor --- */

/* Rows [first, first + rows) of a matrix of `cols` columns at `at`; -1 stays -1. */
static int64_t
part(int64_t at, int64_t first, int64_t rows, int64_t cols, int64_t *n)
{
	*n = rows * cols;
	return at >= 0 ? at + first * cols : -1;
}

/* Those of the router and the experts, "block_sparse_moe.…". */
static int64_t
find_in_experts(const ft_config *c, const ft_layer_places *layer, const char *name, int64_t *n)
{
	int64_t f = c->ffn;
	int64_t expert;
	int e;
	int w;
	int end = 0;

	if (strcmp(name, "gate.weight") == 0)
		return part(layer->router, 0, c->experts, c->hidden, n);
	if (sscanf(name, "experts.%7d.w%1d.weight%n", &e, &w, &end) != 2 || end == 0 ||
		name[end] != '\0' || e < 0 || e >= c->experts)
		return -1;
	expert = e;
	switch (w)
	{
		case 1:
			return part(layer->experts_gate_up, expert * 2 * f, f, c->hidden, n);
		case 2:
			return part(layer->experts_down, expert * c->hidden, c->hidden, f, n);
		case 3:
			return part(layer->experts_gate_up, expert * 2 * f + f, f, c->hidden, n);
		default:
			return -1;
	}
}

static int64_t
find_in_layer(const ft_config *c, const ft_layer_places *layer, const char *name, int64_t *n)
{
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;
	const struct
	{
		const char *name;
		int64_t at;
		int64_t first;
		int64_t rows;
		int64_t cols;
	} parts[] = {
		{"input_layernorm.weight", layer->attention_norm, 0, 1, c->hidden},
		{"self_attn.q_proj.weight", layer->qkv, 0, q, c->hidden},
		{"self_attn.k_proj.weight", layer->qkv, q, kv, c->hidden},
		{"self_attn.v_proj.weight", layer->qkv, q + kv, kv, c->hidden},
		{"self_attn.q_proj.bias", layer->qkv_bias, 0, q, 1},
		{"self_attn.k_proj.bias", layer->qkv_bias, q, kv, 1},
		{"self_attn.v_proj.bias", layer->qkv_bias, q + kv, kv, 1},
		{"self_attn.q_norm.weight", layer->q_norm, 0, 1, c->head_dim},
		{"self_attn.k_norm.weight", layer->k_norm, 0, 1, c->head_dim},
		{"self_attn.o_proj.weight", layer->out, 0, c->hidden, q},
		{"post_attention_layernorm.weight", layer->ffn_norm, 0, 1, c->hidden},
		{"mlp.gate_proj.weight", layer->gate_up, 0, c->ffn, c->hidden},
		{"mlp.up_proj.weight", layer->gate_up, c->ffn, c->ffn, c->hidden},
		{"mlp.down_proj.weight", layer->down, 0, c->hidden, c->ffn},
	};

	for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
		if (strcmp(name, parts[i].name) == 0)
			return part(parts[i].at, parts[i].first, parts[i].rows, parts[i].cols, n);
	if (strncmp(name, "block_sparse_moe.", 17) == 0)
		return find_in_experts(c, layer, name + 17, n);
	return -1;
}

int64_t
ft_weight_layout_find(const ft_weight_layout *layout, const char *name, int64_t *n)
{
	const ft_config *c = &layout->config;
	int layer;
	int end = 0;

	if (strcmp(name, "model.embed_tokens.weight") == 0)
		return part(layout->embedding, 0, c->vocab, c->hidden, n);
	if (strcmp(name, "model.norm.weight") == 0)
		return part(layout->final_norm, 0, 1, c->hidden, n);
	if (strcmp(name, "lm_head.weight") == 0)
		return part(c->tied_embeddings ? -1 : layout->head, 0, c->vocab, c->hidden, n);
	/* at most seven digits, so that no number overflows */
	if (sscanf(name, "model.layers.%7d.%n", &layer, &end) == 1 && end > 0 && layer >= 0 &&
		layer < c->layers)
		return find_in_layer(c, &layout->layers[layer], name + end, n);
	return -1;
}
