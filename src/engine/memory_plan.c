/*
 * memory_plan.c: the memory that training takes, from a model's configuration alone.
 */
#include "memory_plan.h"

#include "buffer.h"
#include "full.h"
#include "hf_config.h"
#include "optimizer.h"
#include "transformer.h"

#include <stdlib.h>

#define MAX_TOKENS 65536 /* more make no batch faster on any device */
#define BF16_BYTES 2

/* So that no sum of bytes overflows; far beyond any model. */
#define MAX_PARAMETERS ((int64_t) 1 << 56)

static const char *const names[] = {
	[FT_METHOD_LORA] = "lora", [FT_METHOD_QLORA] = "qlora", [FT_METHOD_FULL] = "full"};

const char *
ft_method_name(ft_method method)
{
	return names[method];
}

/* --- a device that only counts --- */

static ft_status
alloc_nothing(ft_device *device, ft_mem_space space, size_t bytes, void **memory)
{
	(void) device;
	(void) space;
	(void) bytes;
	return ft_alloc(memory, 1, 1);
}

static void
free_nothing(ft_device *device, ft_mem_space space, void *memory)
{
	(void) device;
	(void) space;
	free(memory);
}

static const ft_ops counting = {
	.name = "plan", .mem_alloc = alloc_nothing, .mem_free = free_nothing};

static ft_model
model_of(const ft_config *config, ft_method method)
{
	return (ft_model){.config = *config,
					  .ops = &counting,
					  .compute = FT_BF16,
					  .quantised = method == FT_METHOD_QLORA};
}

/* --- parts --- */

/* The matrices of a layer that LoRA is made for and qlora holds in few bits, without embeddings,
 * norms and routers: their values, or their bytes in NF4. */
static int64_t
layer_matrices(const ft_config *c, bool nf4)
{
	int64_t q = (int64_t) c->heads * c->head_dim;
	int64_t kv = (int64_t) c->kv_heads * c->head_dim;
	int64_t experts = c->experts > 0 ? c->experts : 1;
	const struct
	{
		int64_t values;
		int64_t count;
	} kinds[] = {
		{c->hidden * q, 2}, {c->hidden * kv, 2}, {(int64_t) c->hidden * c->ffn, 3 * experts}};
	int64_t sum = 0;

	for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
		sum += kinds[i].count * (nf4 ? ft_nf4_bytes(kinds[i].values) : kinds[i].values);
	return sum;
}

/* Norms and biases, which are kept in f32. */
static int64_t
vector_parameters(const ft_config *c)
{
	int64_t layer = 2 * (int64_t) c->hidden;

	if (c->qkv_bias)
		layer += (int64_t) (c->heads + 2 * c->kv_heads) * c->head_dim;
	if (c->qk_norm)
		layer += 2 * c->head_dim;
	return c->layers * layer + c->hidden;
}

static int64_t
rope_bytes(const ft_config *c, int64_t tokens)
{
	int64_t positions = tokens < c->max_positions ? tokens : c->max_positions;

	return positions * c->head_dim * (int64_t) sizeof(float);
}

static int64_t
weight_bytes(const ft_config *c, ft_method method)
{
	int64_t all = ft_config_parameters(c);
	int64_t linear = c->layers * layer_matrices(c, false);
	int64_t vectors = vector_parameters(c);
	int64_t rest = (all - linear - vectors) * BF16_BYTES + vectors * (int64_t) sizeof(float);

	if (method == FT_METHOD_QLORA)
		return rest + c->layers * layer_matrices(c, true);
	return rest + linear * BF16_BYTES;
}

static ft_status
plan_adapter(const ft_adapter *adapter, ft_memory_plan *plan)
{
	ft_arena arena = {0};
	ft_optimizer optimizer;
	ft_status status = ft_optimizer_plan(&optimizer, adapter, 0, 0, &arena);

	plan->adapter = adapter->n * (int64_t) sizeof(float);
	plan->optimizer = arena.bytes;
	plan->host = adapter->n * 2 * (int64_t) sizeof(float);
	ft_arena_free(&arena);
	return status;
}

/* All weights in one place, with their gradient and moments. */
static ft_status
plan_full(const ft_config *c, int64_t tokens, ft_memory_plan *plan)
{
	ft_weight_layout *layout;
	int64_t gradient;
	int64_t moments;

	FT_TRY(ft_weight_layout_create(c, &layout));
	plan->weights = layout->matrices * BF16_BYTES +
					(layout->n - layout->matrices) * (int64_t) sizeof(float) +
					rope_bytes(c, tokens);
	ft_weight_layout_free(layout);
	FT_TRY(ft_full_bytes(c, true, &gradient, &moments));
	plan->optimizer = gradient + moments;
	return FT_OK;
}

/* --- the plan --- */

ft_status
ft_memory_plan_make(const ft_config *config, ft_method method, int rank, int64_t tokens,
					ft_memory_plan *plan)
{
	ft_model model = model_of(config, method);
	ft_adapter *adapter = NULL;
	ft_status status = FT_OK;

	if (ft_config_parameters(config) > MAX_PARAMETERS)
		return ft_fail(FT_NO_MEMORY, "no memory holds %lld parameters",
					   (long long) ft_config_parameters(config));
	*plan = (ft_memory_plan){.weights = weight_bytes(config, method) + rope_bytes(config, tokens)};
	if (method == FT_METHOD_FULL)
		status = plan_full(config, tokens, plan);
	else
	{
		status =
			ft_adapter_create(&model, rank, (float) rank, false, ft_target_all(config), &adapter);
		if (status == FT_OK)
			status = plan_adapter(adapter, plan);
	}
	if (status == FT_OK)
		status = ft_transformer_bytes(&model, adapter, tokens, &plan->activations);
	ft_adapter_free(adapter);
	plan->total = plan->weights + plan->adapter + plan->optimizer + plan->activations;
	return status;
}

bool
ft_memory_plan_fits(const ft_memory_plan *plan, int64_t memory)
{
	int64_t left = memory - plan->weights;

	return left > 0 && plan->total - plan->weights <= left - left / 8;
}

ft_status
ft_memory_plan_tokens(const ft_config *config, ft_method method, int rank, int64_t memory,
					  int64_t *tokens)
{
	int64_t low = 0;
	int64_t high = MAX_TOKENS;

	while (low < high)
	{
		int64_t middle = high - (high - low) / 2;
		ft_memory_plan plan;

		FT_TRY(ft_memory_plan_make(config, method, rank, middle, &plan));
		if (ft_memory_plan_fits(&plan, memory))
			low = middle;
		else
			high = middle - 1;
	}
	*tokens = low;
	return FT_OK;
}

/* --- as JSON --- */

static ft_status
method_json(const ft_config *config, ft_method method, const ft_plan_options *o, json_t **json)
{
	ft_memory_plan plan;
	int64_t tokens;

	FT_TRY(ft_memory_plan_make(config, method, o->rank, o->tokens, &plan));
	*json = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "weights", (json_int_t) plan.weights,
					  "adapter", (json_int_t) plan.adapter, "optimizer",
					  (json_int_t) plan.optimizer, "activations", (json_int_t) plan.activations,
					  "total", (json_int_t) plan.total, "host", (json_int_t) plan.host);
	if (o->memory == 0)
		return FT_OK;
	FT_TRY(ft_memory_plan_tokens(config, method, o->rank, o->memory, &tokens));
	json_object_set_new(*json, "fits", json_boolean(ft_memory_plan_fits(&plan, o->memory)));
	json_object_set_new(*json, "max_tokens", json_integer(tokens));
	return FT_OK;
}

ft_status
ft_memory_plan_json(const ft_config *config, const ft_plan_options *o, json_t **json)
{
	json_t *object = json_pack("{s:I, s:i}", "tokens", (json_int_t) o->tokens, "lora_r", o->rank);

	for (int m = 0; m < FT_METHOD_COUNT; m++)
	{
		json_t *method = NULL;
		ft_status status = method_json(config, (ft_method) m, o, &method);

		if (method != NULL)
			json_object_set_new(object, names[m], method);
		if (status != FT_OK)
		{
			json_decref(object);
			return status;
		}
	}
	if (o->memory > 0)
		json_object_set_new(object, "memory", json_integer(o->memory));
	*json = object;
	return FT_OK;
}
