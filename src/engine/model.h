/*
 * model.h: a decoder's weights on a device.
 *
 * The base is immutable and shared: training, serving and any number of
 * adapters read the same ft_model; where all weights are trained, they are views
 * of its parameters, which then change.  QKV and gate/up are stacked into one weight
 * each, so that each is one product.
 */
#ifndef FT_MODEL_H
#define FT_MODEL_H

#include "model_file.h"
#include "ops.h"
#include "parameters.h"

typedef struct ft_layer
{
	ft_weight *qkv;        /* [(H + 2G)·D, C]: q, then k, then v */
	ft_weight *out;        /* [C, H·D] */
	ft_weight *gate_up;    /* [2F, C]: gate, then up */
	ft_weight *down;       /* [C, F] */
	float *attention_norm; /* [C] */
	float *ffn_norm;       /* [C] */
	/* in place of gate_up and down, where there are experts */
	ft_weight *router;           /* [E, C] */
	ft_weight **experts_gate_up; /* [E], each [2F, C] */
	ft_weight **experts_down;    /* [E], each [C, F] */
	float *qkv_bias;             /* [(H + 2G)·D], or NULL: the family has none */
	float *q_norm;               /* [D], or NULL: the family has none */
	float *k_norm;               /* [D], or NULL */
} ft_layer;

typedef struct ft_model
{
	ft_config config;
	const ft_ops *ops;
	ft_device *device;
	ft_dtype compute; /* of activations that enter products */
	ft_dtype cached;  /* of keys and values in the cache of a server */
	/* The blocks' matrices, but not a router, are held in few bits, and dequantised before each
	 * product (transformer.h): with FT_USE_DEQUANTISE. */
	bool quantised;
	ft_weight *embedding; /* [V, C] */
	ft_weight *head;      /* [V, C]; the same object as embedding when tied */
	float *final_norm;    /* [C] */
	ft_layer *layers;
	float *rope_cos; /* [max_positions, D/2] */
	float *rope_sin;
	int rope_positions;        /* rows of the tables */
	int64_t bytes;             /* device memory held */
	ft_parameters *parameters; /* what the weights are views of; NULL: they never change */
} ft_model;

/* Load onto the device for the given use (FT_USE_TRAIN, FT_USE_SERVE); max_positions bounds the
 * RoPE tables and the context (0: the config's own).  With FT_USE_DEQUANTISE beside FT_USE_TRAIN
 * the blocks' matrices are held as they are in the file where that is quantised, else in NF4
 * (nf4.h).  Where the device keeps all of them so anyhow, that is a model as without. */
ft_status ft_model_load(const ft_model_file *file, const ft_ops *ops, ft_device *device,
						unsigned use, int max_positions, ft_model **model);
/* The same for training all of its weights, which stand at (*model)->parameters: from whatever type
 * into f32, or bf16 where products are in bf16. */
ft_status ft_model_load_trainable(const ft_model_file *file, const ft_ops *ops, ft_device *device,
								  int max_positions, ft_model **model);
void ft_model_free(ft_model *model);

/* The seven linear layers of a block that LoRA can adapt, in the order of the adapter's storage. */
typedef enum ft_target
{
	FT_Q_PROJ,
	FT_K_PROJ,
	FT_V_PROJ,
	FT_O_PROJ,
	FT_GATE_PROJ,
	FT_UP_PROJ,
	FT_DOWN_PROJ,
	FT_TARGET_COUNT
} ft_target;

/* "q_proj" … and "self_attn.q_proj" / "mlp.gate_proj" (module path inside a block). */
const char *ft_target_name(ft_target target);
const char *ft_target_module(ft_target target);
/* The targets that a model of that shape has: not those of experts, which are never adapted. */
unsigned ft_target_all(const ft_config *config);
/* FT_UNSUPPORTED unless it has all of these (bits). */
ft_status ft_target_check(const ft_config *config, unsigned wanted);
/* in and out features of a target. */
void ft_target_shape(const ft_config *config, ft_target target, int *in, int *out);

#endif
