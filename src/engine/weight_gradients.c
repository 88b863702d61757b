/*
 * weight_gradients.c: memory of the gradients of a model's own weights.
 */
#include "weight_gradients.h"

#include "buffer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ft_status
plan_ffn(ft_weight_gradients *g, ft_layer_gradients *layer)
{
	const ft_config *c = &g->config;
	int64_t matrix = (int64_t) c->ffn * c->hidden;

	if (c->experts == 0)
	{
		FT_TRY(ft_arena_want(&g->arena, &layer->gate_up, 2 * matrix, FT_F32));
		return ft_arena_want(&g->arena, &layer->down, matrix, FT_F32);
	}
	FT_TRY(ft_arena_want(&g->arena, &layer->router, (int64_t) c->experts * c->hidden, FT_F32));
	FT_TRY(ft_arena_want(&g->arena, &layer->experts_gate_up, c->experts * 2 * matrix, FT_F32));
	return ft_arena_want(&g->arena, &layer->experts_down, c->experts * matrix, FT_F32);
}

static ft_status
plan_layer(ft_weight_gradients *g, ft_layer_gradients *layer)
{
	const ft_config *c = &g->config;
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t qkv = q + 2 * (int64_t) c->kv_heads * c->head_dim;

	FT_TRY(ft_arena_want(&g->arena, &layer->qkv, qkv * c->hidden, FT_F32));
	FT_TRY(ft_arena_want(&g->arena, &layer->out, q * c->hidden, FT_F32));
	FT_TRY(plan_ffn(g, layer));
	FT_TRY(ft_arena_want(&g->arena, &layer->attention_norm, c->hidden, FT_F32));
	FT_TRY(ft_arena_want(&g->arena, &layer->ffn_norm, c->hidden, FT_F32));
	if (c->qkv_bias)
		FT_TRY(ft_arena_want(&g->arena, &layer->qkv_bias, qkv, FT_F32));
	if (!c->qk_norm)
		return FT_OK;
	FT_TRY(ft_arena_want(&g->arena, &layer->q_norm, c->head_dim, FT_F32));
	return ft_arena_want(&g->arena, &layer->k_norm, c->head_dim, FT_F32);
}

static ft_status
plan(ft_weight_gradients *g)
{
	const ft_config *c = &g->config;
	int64_t table = (int64_t) c->vocab * c->hidden;

	FT_TRY(ft_alloc((void **) &g->layers, (size_t) c->layers, sizeof g->layers[0]));
	FT_TRY(ft_arena_want(&g->arena, &g->embedding, table, FT_F32));
	for (int i = 0; i < c->layers; i++)
		FT_TRY(plan_layer(g, &g->layers[i]));
	FT_TRY(ft_arena_want(&g->arena, &g->final_norm, c->hidden, FT_F32));
	if (!c->tied_embeddings)
		FT_TRY(ft_arena_want(&g->arena, &g->head, table, FT_F32));
	return FT_OK;
}

ft_status
ft_weight_gradients_create(const ft_model *model, ft_weight_gradients **gradients)
{
	ft_weight_gradients *g;
	ft_status status;

	FT_TRY(ft_alloc((void **) &g, 1, sizeof *g));
	g->config = model->config;
	g->ops = model->ops;
	status = plan(g);
	if (status == FT_OK)
		status = ft_arena_allocate(&g->arena, model->ops, model->device);
	if (status != FT_OK)
	{
		ft_weight_gradients_free(g);
		return status;
	}
	g->values = g->arena.memory;
	g->n = g->arena.bytes / (int64_t) sizeof(float);
	if (g->config.tied_embeddings)
		g->head = g->embedding;
	*gradients = g;
	return FT_OK;
}

void
ft_weight_gradients_free(ft_weight_gradients *gradients)
{
	if (gradients == NULL)
		return;
	ft_arena_free(&gradients->arena);
	free(gradients->layers);
	free(gradients);
}

ft_status
ft_weight_gradients_zero(ft_weight_gradients *gradients, ft_stream *stream)
{
	return gradients->ops->zero(stream, gradients->values, (size_t) gradients->n * sizeof(float));
}

/* Rows [first, first + rows) of a matrix of `cols` columns; NULL stays NULL. */
static float *
part(float *matrix, int64_t first, int64_t rows, int64_t cols, int64_t *n)
{
	*n = rows * cols;
	return matrix != NULL ? matrix + first * cols : NULL;
}

/* Those of the router and the experts, "block_sparse_moe.…". */
static float *
find_in_experts(const ft_config *c, const ft_layer_gradients *layer, const char *name, int64_t *n)
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
		return NULL;
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
			return NULL;
	}
}

static float *
find_in_layer(const ft_config *c, const ft_layer_gradients *layer, const char *name, int64_t *n)
{
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;
	const struct
	{
		const char *name;
		float *matrix;
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
			return part(parts[i].matrix, parts[i].first, parts[i].rows, parts[i].cols, n);
	if (strncmp(name, "block_sparse_moe.", 17) == 0)
		return find_in_experts(c, layer, name + 17, n);
	return NULL;
}

float *
ft_weight_gradients_find(const ft_weight_gradients *gradients, const char *name, int64_t *n)
{
	const ft_config *c = &gradients->config;
	int layer;
	int end = 0;

	if (strcmp(name, "model.embed_tokens.weight") == 0)
		return part(gradients->embedding, 0, c->vocab, c->hidden, n);
	if (strcmp(name, "model.norm.weight") == 0)
		return part(gradients->final_norm, 0, 1, c->hidden, n);
	if (strcmp(name, "lm_head.weight") == 0)
		return part(c->tied_embeddings ? NULL : gradients->head, 0, c->vocab, c->hidden, n);
	/* at most seven digits, so that no number overflows */
	if (sscanf(name, "model.layers.%7d.%n", &layer, &end) == 1 && end > 0 && layer >= 0 &&
		layer < c->layers)
		return find_in_layer(c, &gradients->layers[layer], name + end, n);
	return NULL;
}
