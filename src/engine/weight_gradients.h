/*
 * weight_gradients.h: gradients of a model's own weights, for who trains all of
 * them.
 *
 * They are f32, in one piece of device memory (weight_layout.h), so that an
 * optimizer can walk over them.
 */
#ifndef FT_WEIGHT_GRADIENTS_H
#define FT_WEIGHT_GRADIENTS_H

#include "arena.h"
#include "model.h"
#include "weight_layout.h"

/* What a layer's weights are (model.h), of the same shapes. */
typedef struct ft_layer_gradients
{
	float *qkv;
	float *qkv_bias; /* NULL: the family has none */
	float *q_norm;   /* NULL: the family has none */
	float *k_norm;
	float *out;
	float *gate_up; /* NULL, as down: the layer has experts */
	float *down;
	float *router;          /* [E, C], or NULL: the layer has no experts */
	float *experts_gate_up; /* [E, 2F, C], or NULL */
	float *experts_down;    /* [E, C, F], or NULL */
	float *attention_norm;
	float *ffn_norm;
} ft_layer_gradients;

typedef struct ft_weight_gradients
{
	ft_weight_layout *layout;
	const ft_ops *ops;
	float *values; /* device [n], all of them; what stands between two is 0 */
	int64_t n;
	float *embedding; /* [V, C] */
	float *head;      /* [V, C]; the same as embedding when tied: there both parts add up */
	float *final_norm;
	ft_layer_gradients *layers;
	ft_arena arena; /* private */
} ft_weight_gradients;

/* All zero.  FT_NO_MEMORY, with both sizes, when the device has not that much. */
ft_status ft_weight_gradients_create(const ft_model *model, ft_weight_gradients **gradients);
void ft_weight_gradients_free(ft_weight_gradients *gradients);
ft_status ft_weight_gradients_zero(ft_weight_gradients *gradients, ft_stream *stream);

/* The gradient of the tensor of that Hugging Face name ("model.layers.0.mlp.up_proj.weight"), n
 * values; NULL when the model has none of that name. */
float *ft_weight_gradients_find(const ft_weight_gradients *gradients, const char *name, int64_t *n);

#endif
