/*
 * adapter.c: a LoRA adapter's memory and first values.
 */
#include "adapter.h"

#include "buffer.h"
#include "random.h"

#include <math.h>
#include <stdlib.h>

#define MAX_RANK 1024

/* Offsets are multiples of this many values, so that every matrix begins on a 64-byte line. */
#define ALIGNMENT 16

static int64_t
aligned(int64_t n)
{
	return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Give every matrix its place; the size of them all. */
static void
plan(ft_adapter *adapter, const ft_config *config)
{
	int64_t at = 0;

	for (int layer = 0; layer < adapter->layers; layer++)
		for (int t = 0; t < FT_TARGET_COUNT; t++)
		{
			int i = layer * FT_TARGET_COUNT + t;
			int in, out;

			adapter->a_at[i] = -1;
			adapter->b_at[i] = -1;
			if (!(adapter->targets & (1u << t)))
				continue;
			ft_target_shape(config, (ft_target) t, &in, &out);
			adapter->a_at[i] = at;
			at += aligned((int64_t) adapter->rank * in);
			adapter->b_at[i] = at;
			at += aligned((int64_t) out * adapter->rank);
		}
	adapter->n = at;
}

ft_status
ft_adapter_create(const ft_model *model, int rank, float alpha, bool use_rslora, unsigned targets,
				  ft_adapter **adapter)
{
	int layers = model->config.layers;
	size_t slots = (size_t) layers * FT_TARGET_COUNT;
	ft_adapter *a;
	ft_status status;

	if (rank < 1 || rank > MAX_RANK)
		return ft_fail(FT_INVALID, "LoRA rank %d is not between 1 and %d", rank, MAX_RANK);
	if (!isfinite(alpha) || alpha <= 0)
		return ft_fail(FT_INVALID, "LoRA alpha %g is not a positive number", alpha);
	if (targets == 0 || targets >> FT_TARGET_COUNT)
		return ft_fail(FT_INVALID, "LoRA targets 0x%x are not a set of the %d linear layers",
					   targets, FT_TARGET_COUNT);
	FT_TRY(ft_target_check(&model->config, targets));
	FT_TRY(ft_alloc((void **) &a, 1, sizeof *a));
	a->rank = rank;
	a->alpha = alpha;
	a->use_rslora = use_rslora;
	a->scale = use_rslora ? alpha / sqrtf((float) rank) : alpha / (float) rank;
	a->targets = targets;
	a->layers = layers;
	a->ops = model->ops;
	a->device = model->device;
	status = ft_alloc((void **) &a->a_at, slots, sizeof *a->a_at);
	if (status == FT_OK)
		status = ft_alloc((void **) &a->b_at, slots, sizeof *a->b_at);
	if (status == FT_OK)
	{
		plan(a, &model->config);
		status = a->ops->mem_alloc(a->device, FT_MEM_DEVICE, (size_t) a->n * sizeof(float),
								   (void **) &a->values);
	}
	if (status != FT_OK)
	{
		ft_adapter_free(a);
		return status;
	}
	*adapter = a;
	return FT_OK;
}

/*
 * PEFT's start: A uniform in ±1/√in (kaiming-uniform with a = √5 is that), B
 * zero, so that an untrained adapter changes nothing.  A matrix's numbers are
 * keyed by its layer and target: they do not depend on what else is adapted.
 */
ft_status
ft_adapter_init(ft_adapter *adapter, const ft_config *config, uint64_t seed)
{
	const ft_ops *ops = adapter->ops;
	ft_stream *stream;
	float *host;
	ft_status status;

	FT_TRY(ft_alloc((void **) &host, (size_t) adapter->n, sizeof(float)));
	for (int i = 0; i < adapter->layers * FT_TARGET_COUNT; i++)
	{
		int in, out;
		float bound;

		if (adapter->a_at[i] < 0)
			continue;
		ft_target_shape(config, (ft_target) (i % FT_TARGET_COUNT), &in, &out);
		bound = 1.0f / sqrtf((float) in);
		for (int64_t k = 0; k < (int64_t) adapter->rank * in; k++)
		{
			float u = ft_random_uniform(seed, FT_STREAM_LORA_INIT + (uint64_t) i, (uint64_t) k);

			host[adapter->a_at[i] + k] = (2.0f * u - 1.0f) * bound;
		}
	}
	status = ops->stream_create(adapter->device, &stream);
	if (status == FT_OK)
	{
		status =
			ops->copy_to_device(stream, adapter->values, host, (size_t) adapter->n * sizeof(float));
		if (status == FT_OK)
			status = ops->stream_synchronize(stream);
		ops->stream_destroy(stream);
	}
	free(host);
	return status;
}

ft_status
ft_adapter_round(ft_adapter *adapter)
{
	const ft_ops *ops = adapter->ops;
	uint16_t *rounded;
	ft_stream *stream;
	ft_status status;

	FT_TRY(ops->mem_alloc(adapter->device, FT_MEM_DEVICE, (size_t) adapter->n * sizeof *rounded,
						  (void **) &rounded));
	status = ops->stream_create(adapter->device, &stream);
	if (status == FT_OK)
	{
		status = ops->convert(stream, ft_mat_make(rounded, FT_BF16, 1, adapter->n),
							  ft_mat_make(adapter->values, FT_F32, 1, adapter->n));
		if (status == FT_OK)
			status = ops->stream_synchronize(stream);
		ops->stream_destroy(stream);
	}
	if (status != FT_OK)
	{
		ops->mem_free(adapter->device, FT_MEM_DEVICE, rounded);
		return status;
	}
	ops->mem_free(adapter->device, FT_MEM_DEVICE, adapter->values);
	adapter->values = NULL;
	adapter->rounded = rounded;
	return FT_OK;
}

void
ft_adapter_free(ft_adapter *adapter)
{
	if (!adapter)
		return;
	if (adapter->values)
		adapter->ops->mem_free(adapter->device, FT_MEM_DEVICE, adapter->values);
	if (adapter->rounded)
		adapter->ops->mem_free(adapter->device, FT_MEM_DEVICE, adapter->rounded);
	free(adapter->prompt_template);
	free(adapter->a_at);
	free(adapter->b_at);
	free(adapter);
}
