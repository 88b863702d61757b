/*
 * weight_gradients.c: memory of the gradients of a model's own weights.
 */
#include "weight_gradients.h"

#include "buffer.h"

#include <stdlib.h>

static float *
at(const ft_weight_gradients *g, int64_t place)
{
	return place >= 0 ? g->values + place : NULL;
}

static void
set_layer(const ft_weight_gradients *g, const ft_layer_places *from, ft_layer_gradients *to)
{
	to->qkv = at(g, from->qkv);
	to->qkv_bias = at(g, from->qkv_bias);
	to->q_norm = at(g, from->q_norm);
	to->k_norm = at(g, from->k_norm);
	to->out = at(g, from->out);
	to->gate_up = at(g, from->gate_up);
	to->down = at(g, from->down);
	to->router = at(g, from->router);
	to->experts_gate_up = at(g, from->experts_gate_up);
	to->experts_down = at(g, from->experts_down);
	to->attention_norm = at(g, from->attention_norm);
	to->ffn_norm = at(g, from->ffn_norm);
}

static ft_status
create(const ft_model *model, ft_weight_gradients *g)
{
	const ft_config *c = &model->config;

	g->ops = model->ops;
	FT_TRY(ft_weight_layout_create(c, &g->layout));
	FT_TRY(ft_alloc((void **) &g->layers, (size_t) c->layers, sizeof g->layers[0]));
	g->n = g->layout->n;
	FT_TRY(ft_arena_want(&g->arena, &g->values, g->n, FT_F32));
	FT_TRY(ft_arena_allocate(&g->arena, model->ops, model->device));
	g->embedding = at(g, g->layout->embedding);
	g->head = at(g, g->layout->head);
	g->final_norm = at(g, g->layout->final_norm);
	for (int i = 0; i < c->layers; i++)
		set_layer(g, &g->layout->layers[i], &g->layers[i]);
	return FT_OK;
}

ft_status
ft_weight_gradients_create(const ft_model *model, ft_weight_gradients **gradients)
{
	ft_weight_gradients *g;
	ft_status status;

	FT_TRY(ft_alloc((void **) &g, 1, sizeof *g));
	status = create(model, g);
	if (status != FT_OK)
	{
		ft_weight_gradients_free(g);
		return status;
	}
	*gradients = g;
	return FT_OK;
}

void
ft_weight_gradients_free(ft_weight_gradients *gradients)
{
	if (gradients == NULL)
		return;
	ft_arena_free(&gradients->arena);
	ft_weight_layout_free(gradients->layout);
	free(gradients->layers);
	free(gradients);
}

ft_status
ft_weight_gradients_zero(ft_weight_gradients *gradients, ft_stream *stream)
{
	return gradients->ops->zero(stream, gradients->values, (size_t) gradients->n * sizeof(float));
}

float *
ft_weight_gradients_find(const ft_weight_gradients *gradients, const char *name, int64_t *n)
{
	return at(gradients, ft_weight_layout_find(gradients->layout, name, n));
}
