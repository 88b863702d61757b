/*
 * memory_plan.h: the memory that training takes, from a model's configuration
 * alone.
 *
 * Activations, adapter, weights that are trained and optimizer are planned by
 * the code that plans them in training (transformer.c, lora.c, adapter.c,
 * optimizer.c, weight_layout.c, full.c), on a device that hands out no memory.
 * With qlora the matrix that is dequantised for a product is among the
 * activations.  Weights that are not trained are counted by these formulas, with
 * P parameters:
 *
 *     lora       2 P bytes (bf16), 4 for norms and biases; the cosine and sine
 *                tables 4 · D a position
 *     qlora      the linear layers' in NF4 instead (ft_nf4_bytes), as over a base
 *                that is not quantised itself
 *
 * Everything is for products in bf16 (numerics "fast", on a CPU that has them,
 * or a GPU).
 */
#ifndef FT_MEMORY_PLAN_H
#define FT_MEMORY_PLAN_H

#include "model_file.h"

#include <jansson.h>

typedef enum ft_method
{
	FT_METHOD_LORA,
	FT_METHOD_QLORA,
	FT_METHOD_FULL,
	FT_METHOD_COUNT
} ft_method;

typedef struct ft_plan_options
{
	int64_t tokens; /* of a batch: at least those of the longest row */
	int64_t memory; /* bytes of the device, 0: not asked */
	int rank;       /* of LoRA, on all linear layers */
} ft_plan_options;

#define FT_PLAN_DEFAULTS ((ft_plan_options){.tokens = 2048, .rank = 16})

/* Bytes on the device that computes; where that is the CPU, of the host. */
typedef struct ft_memory_plan
{
	int64_t weights;     /* of the base, and the RoPE tables */
	int64_t adapter;     /* LoRA's values in f32 */
	int64_t optimizer;   /* moments, and with method full the gradient */
	int64_t activations; /* what a batch needs, LoRA's operands and gradient included */
	int64_t total;
	int64_t host; /* kept on the host for checkpoints; with method full they need none */
} ft_memory_plan;

const char *ft_method_name(ft_method method);

/* Every size of the configuration must have been checked. */
ft_status ft_memory_plan_make(const ft_config *config, ft_method method, int rank, int64_t tokens,
							  ft_memory_plan *plan);

/* Does it fit, as the trainer decides: an eighth of what the weights leave stays free. */
bool ft_memory_plan_fits(const ft_memory_plan *plan, int64_t memory);

/* The most tokens of a batch that fit into the memory, 0: not even one, up to what makes a batch no
 * faster (65,536). */
ft_status ft_memory_plan_tokens(const ft_config *config, ft_method method, int rank, int64_t memory,
								int64_t *tokens);

/* All methods as JSON (src/engine/README.md). */
ft_status
ft_memory_plan_json(const ft_config *config, const ft_plan_options *options, json_t **json);

#endif
