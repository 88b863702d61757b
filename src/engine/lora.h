/*
 * lora.h: the LoRA side of the linear layers, forward and backward.
 *
 * Targets that read the same input form a group: q, k and v; o; gate and up;
 * down.  The A matrices of a group are one product.  With y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ
 * and u = x·Aᵀ (saved):
 *
 *     du = s · dy · B        dB = s · dyᵀ · u
 *     dA = duᵀ · x           dx += du · A
 *
 * so that a weight-shaped gradient is never formed (Hu et al., "LoRA:
 * Low-Rank Adaptation of Large Language Models", 2021).
 *
 * With dropout each target has an input of its own, x where its mask keeps it,
 * over 1 − p (as PEFT has it, in training only):  u = drop(x)·Aᵀ,
 * dA = duᵀ·drop(x), dx += drop(du · A).  The masks are made anew in backward.
 *
 * Masters and gradients are f32.  What enters a product is in the model's
 * compute type; the operands are made from the masters once per optimizer step.
 */
#ifndef FT_LORA_H
#define FT_LORA_H

#include "adapter.h"
#include "arena.h"

typedef enum ft_lora_group
{
	FT_GROUP_QKV,
	FT_GROUP_OUT,
	FT_GROUP_GATE_UP,
	FT_GROUP_DOWN,
	FT_GROUP_COUNT
} ft_lora_group;

#define FT_GROUP_TARGETS 3 /* most targets in a group */

/* Which of a group's targets the adapter has, and where they stand in the group's output. */
typedef struct ft_lora_members
{
	int n;  /* 0: the group is not adapted */
	int in; /* features that all of them read */
	int target[FT_GROUP_TARGETS];
	int column[FT_GROUP_TARGETS]; /* first column of the group's output */
	int out[FT_GROUP_TARGETS];
} ft_lora_members;

typedef struct ft_lora
{
	const ft_ops *ops;
	const ft_adapter *adapter;
	ft_dtype compute;
	ft_lora_members members[FT_GROUP_COUNT];
	int64_t
		*a_at; /* [layers · FT_GROUP_COUNT] offset of a group's stacked A [n·R, in] in operands */
	int64_t *b_at; /* [layers · FT_TARGET_COUNT] offset of B [out, R] in operands */
	int64_t n_operands;
	void *operands;  /* device, compute type */
	float *gradient; /* device, laid out as adapter->values */
	float *da;       /* [n·R, in] scratch */
	float *product;  /* [T, n·R] scratch */
	void *du;        /* [T, n·R] scratch, compute type; = product when that is f32 */
	float *dropped;  /* [T, widest input] scratch; only with dropout */
	ft_dropout dropout;
	bool dropping; /* training, with dropout */
} ft_lora;

/* Plan the memory for batches of at most `capacity` tokens in the arena (not yet allocated). */
ft_status ft_lora_create(const ft_model *model, const ft_adapter *adapter, int64_t capacity,
						 ft_arena *arena, ft_lora **lora);
void ft_lora_free(ft_lora *lora);

/* Columns of a group's saved u: n·R. */
int64_t ft_lora_columns(const ft_lora *lora, ft_lora_group group);

/* Make the operands from the adapter's values: after the arena's allocation and after each update.
 */
ft_status ft_lora_prepare(ft_lora *lora, ft_stream *stream);
ft_status ft_lora_zero_gradient(ft_lora *lora, ft_stream *stream);

/* The masks of an optimizer step: they depend on the seed, the step, the layer, the target, and a
 * token's document and place in it, so on nothing of how a step is computed.  positions and
 * documents [T] are those of the rows that forward and backward are given (device). */
void ft_lora_set_dropout(ft_lora *lora, uint64_t seed, int64_t step);
void ft_lora_begin_dropout(ft_lora *lora, const int32_t *positions, const int32_t *documents);
void ft_lora_end_dropout(ft_lora *lora);

/* u = x·Aᵀ [T, n·R] (compute type, saved for backward); y (f32 [T, all columns]) += s·u·Bᵀ. */
ft_status ft_lora_forward(ft_lora *lora, ft_stream *stream, int layer, ft_lora_group group,
						  ft_mat y, ft_mat x, ft_mat u);
/* Add the group's dA and dB to the gradient; dx (f32; data NULL: not wanted) += du·A.  dy [T, all
 * columns], x and u in the compute type. */
ft_status ft_lora_backward(ft_lora *lora, ft_stream *stream, int layer, ft_lora_group group,
						   ft_mat dx, ft_mat dy, ft_mat x, ft_mat u);

#endif
