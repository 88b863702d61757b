/*
 * weight_layout.h: where each of a model's own weights stands in one array of
 * all of them.
 *
 * Who trains all weights has several arrays of this layout: the weights
 * themselves, their gradients, the optimizer's moments.  Matrices come first,
 * then the vectors (norms and biases): optimizers decay only the former, and
 * only the former may be kept in 16 bits.  q, k and v stand in one matrix, as do
 * gate and up (model.h).
 */
#ifndef FT_WEIGHT_LAYOUT_H
#define FT_WEIGHT_LAYOUT_H

#include "model_file.h"

/* Offsets in values of a layer's weights; -1: the layer has none. */
typedef struct ft_layer_places
{
	int64_t qkv;             /* [(H + 2G)·D, C] */
	int64_t out;             /* [C, H·D] */
	int64_t gate_up;         /* [2F, C]; -1, as down: the layer has experts */
	int64_t down;            /* [C, F] */
	int64_t router;          /* [E, C] */
	int64_t experts_gate_up; /* [E, 2F, C] */
	int64_t experts_down;    /* [E, C, F] */
	int64_t attention_norm;  /* [C] */
	int64_t ffn_norm;        /* [C] */
	int64_t qkv_bias;        /* [(H + 2G)·D] */
	int64_t q_norm;          /* [D] */
	int64_t k_norm;          /* [D] */
} ft_layer_places;

typedef struct ft_weight_layout
{
	ft_config config;
	int64_t matrices;   /* values of all matrices: where the vectors begin */
	int64_t n;          /* values in all; what stands between two weights is unused */
	int64_t embedding;  /* [V, C] */
	int64_t head;       /* [V, C]; the embedding's when tied */
	int64_t final_norm; /* [C] */
	ft_layer_places *layers;
} ft_weight_layout;

/* Every weight begins at a multiple of so many values. */
#define FT_WEIGHT_ALIGNMENT 32

ft_status ft_weight_layout_create(const ft_config *config, ft_weight_layout **layout);
void ft_weight_layout_free(ft_weight_layout *layout);

/* Offset of the tensor of that Hugging Face name ("model.layers.0.mlp.up_proj.weight"), *n values;
 * -1 when the model has none of that name. */
int64_t ft_weight_layout_find(const ft_weight_layout *layout, const char *name, int64_t *n);

#endif
