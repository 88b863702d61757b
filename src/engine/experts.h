/*
 * experts.h: a layer's feed-forward part where it is a mixture of experts, in
 * training and in serving (Jiang et al., "Mixtral of Experts", 2024).
 *
 *     p = softmax(x · routerᵀ) over all E experts, in f32
 *     the K largest p, divided by their sum, are a row's weights w
 *     y = Σ_j w_j · expert_j(x),  expert(x) = (silu(x·gateᵀ) · (x·upᵀ))·downᵀ
 *
 * Of equal p the lower expert wins, in training and in serving alike.
 *
 * A row's K choices are its slots.  Slots are sorted by expert into places, so
 * that each expert's product is one over neighbouring rows; no row is dropped,
 * however many an expert gets.  Backward gives the gradient of the input,
 * through the experts and through their weights; experts and router are frozen
 * unless somebody wants their gradients.
 */
#ifndef FT_EXPERTS_H
#define FT_EXPERTS_H

#include "arena.h"
#include "weight_gradients.h"

struct ft_transformer;
typedef struct ft_experts ft_experts; /* training's memory, private */

/* Rows of the feed-forward part for each token. */
static inline int64_t
ft_ffn_rows(const ft_config *config)
{
	return config->experts > 0 ? config->experts_per_token : 1;
}

/* Where the slots of rows went (device). */
typedef struct ft_routing
{
	int32_t *experts; /* [T · K] */
	float *weights;   /* [T · K] */
	int32_t *starts;  /* [E + 1] an expert's first place */
	int32_t *place;   /* [T · K] of a slot */
	int32_t *row;     /* [T · K] whose slot stands at a place */
} ft_routing;

/* Work memory of serving. */
typedef struct ft_experts_work
{
	ft_routing routing;
	float *logits; /* [T, E] */
	void *input;   /* [T · K, C] compute */
	float *output; /* [T · K, C] */
} ft_experts_work;

/* Plan memory for batches of `rows` in the arena, with the structures themselves where they stay;
 * nothing for a dense model. */
ft_status
ft_experts_work_want(ft_experts_work *work, const ft_model *model, int64_t rows, ft_arena *arena);
/* branch [T, C] from x [T, C], row-fixed; gate_up [T · K, 2F] and product [T · K, F] are scratch in
 * the compute type. */
ft_status ft_experts_serve(const ft_experts_work *work, const ft_model *model, ft_stream *stream,
						   int layer, ft_mat branch, ft_mat x, void *gate_up, void *product);

/* Training: plan the transformer's memory (transformer->experts, NULL for a dense model), and the
 * two passes, which stand in for those of the dense part (transformer.c, backward.c). */
ft_status ft_experts_plan(struct ft_transformer *transformer);
void ft_experts_free(ft_experts *experts);
ft_status ft_experts_forward(struct ft_transformer *transformer, int layer, ft_mat normed);
ft_status ft_experts_backward(struct ft_transformer *transformer, int layer,
							  const ft_layer_gradients *gradients, int64_t rows);

#endif
