/*
 * adapter.h: a LoRA adapter on a device, as training makes it and serving reads it.
 *
 * All matrices stand in one f32 array, layer by layer, target by target, A
 * before B: gradients and optimizer moments are arrays of the same layout, and
 * an optimizer step is one operation.  The A matrices of q, k and v (and of
 * gate and up) of a layer follow each other only through ft_adapter_a offsets;
 * nothing else may assume the order.
 */
#ifndef FT_ADAPTER_H
#define FT_ADAPTER_H

#include "model.h"

typedef struct ft_adapter
{
	int rank;
	float alpha;
	bool use_rslora;
	float scale;           /* alpha / rank, with rslora alpha / √rank */
	unsigned targets;      /* bit per ft_target */
	double dropout;        /* share of the input that training drops; 0 in all that is loaded */
	char *prompt_template; /* prompt_template.h; NULL: none */
	int layers;
	int64_t n;         /* values in all */
	float *values;     /* device [n]; NULL once rounded */
	uint16_t *rounded; /* device [n], bf16; NULL until then */
	int64_t *a_at; /* [layers · FT_TARGET_COUNT] offset of A [rank, in], -1 when not a target */
	int64_t *b_at; /* offset of B [out, rank] */
	const ft_ops *ops;
	ft_device *device;
} ft_adapter;

/* Zeroed adapter of the model's shapes. */
ft_status ft_adapter_create(const ft_model *model, int rank, float alpha, bool use_rslora,
							unsigned targets, ft_adapter **adapter);
/* A from kaiming-uniform(√5), B zero, by the seed. */
ft_status ft_adapter_init(ft_adapter *adapter, const ft_config *config, uint64_t seed);
void ft_adapter_free(ft_adapter *adapter);

/* Keep the values in bf16, for serving alone: few rows of many adapters take as long as reading
 * them does. */
ft_status ft_adapter_round(ft_adapter *adapter);

/* Bytes of the values. */
static inline int64_t
ft_adapter_bytes(const ft_adapter *adapter)
{
	return adapter->n * (int64_t) (adapter->rounded ? sizeof(uint16_t) : sizeof(float));
}

/* Their type: f32, or bf16 once rounded. */
static inline ft_dtype
ft_adapter_dtype(const ft_adapter *adapter)
{
	return adapter->rounded ? FT_BF16 : FT_F32;
}

/* The values from an offset on. */
static inline const void *
ft_adapter_at(const ft_adapter *adapter, int64_t offset)
{
	return adapter->rounded ? (const void *) (adapter->rounded + offset)
							: (const void *) (adapter->values + offset);
}

/* What an adapter_config.json says. */
typedef struct ft_peft_config
{
	int rank;
	float alpha;
	bool use_rslora;
	unsigned targets; /* bit per ft_target */
} ft_peft_config;

#define FT_PEFT_TENSORS "adapter_model.safetensors"

/* Of a PEFT directory; FT_UNSUPPORTED names what an adapter may not ask for. */
ft_status ft_peft_read_config(const char *directory, ft_peft_config *config);

/* The prompt template of the adapter in a PEFT directory (NULL: none); free. */
ft_status ft_peft_read_prompt_template(const char *directory, char **prompt_template);

/* PEFT directory: adapter_config.json and adapter_model.safetensors (peft.c). */
ft_status ft_peft_load(const ft_model *model, const char *directory, ft_adapter **adapter);
ft_status ft_peft_save(const ft_adapter *adapter, const ft_config *config, const char *base_name,
					   const char *directory);

#endif
