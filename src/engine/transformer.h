/*
 * transformer.h: training's forward and backward pass of a decoder over a
 * packed batch.
 *
 * Documents stand one after the other, without padding; attention is
 * block-diagonal and positions begin anew in each.  What backward needs is
 * kept per layer, except what a cheap row operation makes again: the normalised
 * inputs and the SwiGLU product.
 *
 * The residual stream, norms, softmax and loss are f32.  Activations that enter
 * a product are in the model's compute type, and so is a matrix that is held
 * quantised, dequantised for one product at a time.
 */
#ifndef FT_TRANSFORMER_H
#define FT_TRANSFORMER_H

#include "experts.h"
#include "lora.h"
#include "weight_gradients.h"

/*
 * A packed batch on the host.
 *
 * Documents often begin alike: a system prompt, the words of an instruction.
 * The tokens that all documents of a batch begin with stand in it once, and the
 * products, norms and activations of these rows are computed once; only
 * attention sees every document whole.  So there are two layouts: rows [T] (the
 * shared beginning, then the rest of each document) and, for attention, all
 * documents whole [all].  Without a shared beginning they are the same.
 *
 * Row t is trained to predict the token after it; loss rows are those rows.
 */
typedef struct ft_microbatch
{
	int64_t tokens;     /* T */
	int32_t *ids;       /* [T] */
	int32_t *positions; /* [T] from 0 in each document */
	int64_t trained;    /* loss rows */
	int32_t *rows;      /* [trained] ascending */
	int32_t *targets;   /* [trained] */
	float *weights;     /* [trained] */

	/* Which documents these are among all that are trained on: dropout drops by them.  With `apart`
	 * no beginning is shared. */
	int32_t *numbers;     /* [n_documents] */
	int32_t *document_of; /* [T] the number of the row's document */
	bool apart;

	int64_t all; /* tokens of all documents */
	int n_documents;
	int32_t *starts;  /* [n_documents + 1] in the layout of whole documents */
	int max_length;   /* of the longest document */
	int shared;       /* rows that all documents begin with; 0: none */
	int32_t *row_of;  /* [all] the row of each token of whole documents */
	int32_t *all_of;  /* [T] where a row's token stands in whole documents, for the first time */
	int32_t *all_ids; /* [all] */
	int32_t *all_targets; /* [all] what is to be predicted in its place: the token, or its label */
	float *all_weights;   /* [all] weight of a target */

	/* Of preference pairs (preference.h) documents 2 · i and 2 · i + 1 are the chosen and the
	 * rejected side of pair i. */
	int n_pairs;          /* 0: the documents are no pairs */
	double *pair_weights; /* [n_pairs] */
	double *reference;    /* [2 · n_pairs] log-probability of a side by the reference model */
} ft_microbatch;

/* Sums over the loss rows of one or more batches; of pairs loss and weight are a pair's, and it is
 * correct when the chosen side has the greater reward. */
typedef struct ft_loss_sums
{
	double loss;    /* Σ weight · loss */
	double weight;  /* Σ weight */
	double correct; /* Σ weight where the arg-max is the target */
	double margin;  /* of pairs: Σ weight · (reward of the chosen side − of the rejected one) */
	int64_t trained;
} ft_loss_sums;

/* What a layer keeps for backward. */
typedef struct ft_saved_layer
{
	float *input;            /* [T, C] residual stream at the layer's start */
	float *middle;           /* [T, C] after attention */
	float *attention_rstd;   /* [T] */
	float *ffn_rstd;         /* [T] */
	void *qkv;               /* [T, (H + 2G)·D], rotated; as projected where heads are normed */
	void *attended;          /* [T, H·D] */
	float *lse;              /* [T, H] */
	void *gate_up;           /* [T, 2F]; with experts [T · K, 2F], a row a place (experts.h) */
	void *u[FT_GROUP_COUNT]; /* [T, n·R] LoRA's x·Aᵀ */
} ft_saved_layer;

/* Called between layers; anything but FT_OK ends the pass with that status. */
typedef ft_status (*ft_tick)(void *context);

typedef struct ft_transformer
{
	const ft_model *model;
	const ft_ops *ops;
	ft_stream *stream;
	ft_lora *lora;       /* NULL: no adapter */
	ft_experts *experts; /* NULL: dense */
	/* Set by who wants gradients of the base's weights; NULL: they are not made. */
	ft_weight_gradients *weight_gradients;
	double dpo_beta;  /* set by who has pairs (preference.h) */
	int64_t capacity; /* most tokens of a batch */
	int remade;       /* so many layers, the first ones, share their gate and up: they are made anew
					   * in backward */
	bool forward_only;  /* all layers share what they would keep */
	int64_t loss_chunk; /* rows whose logits exist at a time */
	ft_tick tick;       /* may be NULL */
	void *tick_context;
	ft_arena arena;

	/* the batch, on the device */
	int32_t *ids;
	int32_t *positions;
	int32_t *document_of; /* only with dropout */
	int32_t *starts;
	int32_t *row_of;
	int32_t *all_of;
	int32_t *rows;
	int32_t *targets;
	float *weights;
	float *loss;    /* [trained] */
	float *correct; /* [trained] */
	ft_attention attention;
	float *host_loss;      /* host [2 · capacity] loss, then correct */
	double *host_logprobs; /* host [capacity] of documents, for pairs */

	ft_saved_layer *saved;
	float *final; /* [T, C] residual stream after the last layer */

	/* scratch */
	void *rotated;   /* [T, (H + 2G)·D] compute: qkv with normed heads rotated; else unused */
	void *normed;    /* [T, C] compute */
	void *product;   /* [T, F] compute: SwiGLU's result; with experts [T · K, F] */
	float *branch;   /* [T, C] output of o or down; gradient of a normed input or of `attended` */
	float *wide;     /* [T, widest] linear outputs before they are rounded to the compute type */
	void *narrow;    /* [T, widest] compute: a gradient rounded for a product */
	void *matrix;    /* [the largest of the blocks'] compute: dequantised; where they are held so */
	float *dhidden;  /* [T, C] gradient of the residual stream */
	float *dproduct; /* as product */
	void *dqkv;      /* [T, (H + 2G)·D] compute */
	float *dqkv_sum; /* the same, before it is rounded; = dqkv in f32 */
	/* whole documents, where a beginning is shared */
	void *all_qkv;        /* [all, (H + 2G)·D] compute */
	void *all_attended;   /* [all, H·D] compute */
	float *all_lse;       /* [all, H] */
	void *all_dqkv;       /* [all, (H + 2G)·D] compute */
	void *all_dattended;  /* [all, H·D] compute */
	float *logits;        /* [chunk, V] */
	void *logits_narrow;  /* [chunk, V] compute */
	float *chunk_hidden;  /* [chunk, C] */
	void *chunk_normed;   /* [chunk, C] compute */
	float *chunk_dnormed; /* [chunk, C] */
	float *chunk_dhidden; /* [chunk, C] */
	float *chunk_rstd;    /* [chunk] */
} ft_transformer;

/* Device bytes that a transformer for batches of that many tokens takes; adapter NULL: none. */
ft_status ft_transformer_bytes(const ft_model *model, const ft_adapter *adapter, int64_t capacity,
							   int64_t *bytes);
/* Model and adapter (NULL: none) must outlive it. */
ft_status ft_transformer_create(const ft_model *model, const ft_adapter *adapter, int64_t capacity,
								ft_transformer **transformer);
/* The same, but layers keep no more than a batch of `kept` tokens would take, as far as that can
 * be: gate and up, about half of it, are made anew in backward, by the same arithmetic, for a
 * quarter of a layer's time; not with experts.  0: for evaluations alone, which keep nothing. */
ft_status ft_transformer_bytes_kept(const ft_model *model, const ft_adapter *adapter,
									int64_t capacity, int64_t kept, int64_t *bytes);
ft_status ft_transformer_create_kept(const ft_model *model, const ft_adapter *adapter,
									 int64_t capacity, int64_t kept, ft_transformer **transformer);
void ft_transformer_free(ft_transformer *transformer);

/* Read the adapter's values anew: before the first pass and after each update. */
ft_status ft_transformer_adapter_changed(ft_transformer *transformer);

/* Forward, and the loss rows' sums added to *sums. */
ft_status ft_transformer_evaluate(ft_transformer *transformer, const ft_microbatch *batch,
								  ft_loss_sums *sums);
/* The same, and the adapter's gradient of grad_scale · Σ weight · loss added to lora->gradient,
 * that of the base's weights, where it is wanted, to weight_gradients. */
ft_status ft_transformer_train(ft_transformer *transformer, const ft_microbatch *batch,
							   double grad_scale, ft_loss_sums *sums);

/* --- parts, in the order in which the two above call them --- */

ft_status ft_transformer_load(ft_transformer *transformer, const ft_microbatch *batch);
/* transformer.c: fills saved and final. */
ft_status ft_transformer_forward(ft_transformer *transformer, const ft_microbatch *batch);
/* loss.c: with grad_scale ≠ 0 also dhidden.  Of pairs it is the loss of preference.h. */
ft_status ft_transformer_loss(ft_transformer *transformer, const ft_microbatch *batch,
							  double grad_scale, ft_loss_sums *sums);
/* loss.c: loss and correct of the loss rows, to host_loss; with grad_scale ≠ 0 also dhidden, from
 * the weights that are on the device. */
ft_status ft_transformer_row_losses(ft_transformer *transformer, const ft_microbatch *batch,
									double grad_scale);
/* backward.c: from dhidden to lora->gradient and weight_gradients; overwrites what was saved. */
ft_status ft_transformer_backward(ft_transformer *transformer, const ft_microbatch *batch);

/* gate_up of a layer from the normed `middle`; not with experts. */
ft_status ft_transformer_gate_up(ft_transformer *transformer, int layer, ft_mat normed);
/* y = x·Wᵀ or, `gradient`, y = x·W of a block's weight; x in the compute type. */
ft_status ft_transformer_product(ft_transformer *transformer, ft_mat y, ft_mat x,
								 const ft_weight *weight, bool gradient);
/* `m` (f32) in the compute type: itself, or rounded into `narrow`. */
ft_status
ft_transformer_round(ft_transformer *transformer, ft_mat m, void *narrow, ft_mat *rounded);
/* A group's saved u for that many rows; lora must not be NULL. */
static inline ft_mat
ft_transformer_u(const ft_transformer *t, int layer, ft_lora_group group, int64_t rows)
{
	return ft_mat_make(t->saved[layer].u[group], t->model->compute, rows,
					   ft_lora_columns(t->lora, group));
}

/* What attention reads, from the layer's saved qkv: the same matrix, or `rotated` filled from it
 * where the heads of q and k are normed first. */
ft_status
ft_transformer_rotated(ft_transformer *transformer, int layer, ft_mat qkv, ft_mat *rotated);
/* The rotated halves of a qkv matrix: q and k stand side by side. */
static inline ft_mat
ft_transformer_qk(const ft_config *c, ft_mat qkv)
{
	return ft_mat_cols(qkv, 0, (int64_t) (c->heads + c->kv_heads) * c->head_dim);
}

#endif
