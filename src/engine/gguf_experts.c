/*
 * gguf_experts.c: experts in a GGUF file, as llama.cpp stores Mixtral's.
 *
 * A layer's experts are stacked: ffn_gate_exps, ffn_up_exps and ffn_down_exps
 * have the experts as their third dimension, and a slice of them is known here
 * under the name that Hugging Face gives an expert's own matrix.  Older files
 * have a tensor for each expert (ffn_gate.3.weight).
 */
#include "model_file_internal.h"

#include <stdio.h>
#include <string.h>

#define SOFTMAX 1 /* of expert_gating_func, as llama.cpp numbers them */
#define ROUTER "ffn_gate_inp.weight"
#define OURS "block_sparse_moe."

static const struct
{
	const char *stacked;
	const char *single; /* followed by the expert's number and ".weight" */
	const char *ours;
} names[] = {
	{"ffn_gate_exps.weight", "ffn_gate.", "w1"},
	{"ffn_down_exps.weight", "ffn_down.", "w2"},
	{"ffn_up_exps.weight", "ffn_up.", "w3"},
};

/* --- configuration --- */

static ft_status
unsupported_key(const ft_config *c, const char *key)
{
	return ft_fail(FT_UNSUPPORTED, "key \"%s.%s\" asks for what is not supported", c->architecture,
				   key);
}

static ft_status
read_int(const ft_model_file *file, const char *key, int64_t *value)
{
	char full[128];

	snprintf(full, sizeof full, "%s.%s", file->config.architecture, key);
	return ft_gguf_int(file->gguf, full, false, 0, INT32_MAX, value);
}

/* Experts that are chosen, weighted or shaped in another way than Mixtral's. */
static ft_status
refuse_variants(const ft_model_file *file)
{
	const ft_config *c = &file->config;
	int64_t gating = SOFTMAX;
	int64_t ffn = 0;
	double scale = 1;
	bool normalised = true;
	char key[128];

	FT_TRY(read_int(file, "expert_gating_func", &gating));
	if (gating != SOFTMAX && gating != 0)
		return unsupported_key(c, "expert_gating_func");
	FT_TRY(read_int(file, "expert_feed_forward_length", &ffn));
	if (ffn != 0 && ffn != c->ffn)
		return unsupported_key(c, "expert_feed_forward_length");
	snprintf(key, sizeof key, "%s.expert_weights_scale", c->architecture);
	FT_TRY(ft_gguf_float(file->gguf, key, false, &scale));
	if (scale != 0 && scale != 1)
		return unsupported_key(c, "expert_weights_scale");
	snprintf(key, sizeof key, "%s.expert_weights_norm", c->architecture);
	FT_TRY(ft_gguf_bool(file->gguf, key, &normalised));
	return normalised ? FT_OK : unsupported_key(c, "expert_weights_norm");
}

ft_status
ft_gguf_read_experts(ft_model_file *file)
{
	ft_config *c = &file->config;
	int64_t experts = 0;
	int64_t used = 0;

	FT_TRY(read_int(file, "expert_count", &experts));
	FT_TRY(read_int(file, "expert_used_count", &used));
	if (experts > 0 && strcmp(c->architecture, "llama") != 0)
		return unsupported_key(c, "expert_count");
	c->experts = (int) experts;
	c->experts_per_token = (int) used;
	return experts > 0 ? refuse_variants(file) : FT_OK;
}

/* --- tensors --- */

static void
expert_name(ft_model_tensor *t, int layer, int expert, const char *matrix)
{
	snprintf(t->name, sizeof t->name, "model.layers.%d." OURS "experts.%d.%s.weight", layer, expert,
			 matrix);
}

bool
ft_gguf_expert_tensor(const ft_config *c, const char *gguf, int layer, ft_model_tensor *t)
{
	if (c->experts == 0)
		return false;
	if (strcmp(gguf, ROUTER) == 0)
	{
		snprintf(t->name, sizeof t->name, "model.layers.%d." OURS "gate.weight", layer);
		return true;
	}
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
	{
		size_t n = strlen(names[i].single);
		int expert;
		int end = 0;

		/* at most seven digits, so that no number overflows */
		if (strncmp(gguf, names[i].single, n) == 0 && gguf[n] >= '0' && gguf[n] <= '9' &&
			sscanf(gguf + n, "%7d%n", &expert, &end) == 1 && expert < c->experts &&
			strcmp(gguf + n + end, ".weight") == 0)
		{
			expert_name(t, layer, expert, names[i].ours);
			return true;
		}
	}
	return false;
}

bool
ft_gguf_expert_place(const ft_config *c, const char *ours, const char **name, ft_gguf_place *place)
{
	int expert;
	int end = 0;

	if (c->experts == 0)
		return false;
	if (strcmp(ours, OURS "gate.weight") == 0)
	{
		*name = ROUTER;
		place->router = true;
		return true;
	}
	if (sscanf(ours, OURS "experts.%7d.%n", &expert, &end) != 1 || end == 0 || expert < 0 ||
		expert >= c->experts)
		return false;
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
	{
		size_t n = strlen(names[i].ours);

		if (strncmp(ours + end, names[i].ours, n) != 0 || strcmp(ours + end + n, ".weight") != 0)
			continue;
		*name = names[i].stacked;
		place->expert = expert;
		return true;
	}
	return false;
}

/* Which of the stacked tensors it is, and its layer; NULL: none. */
static const char *
stacked_matrix(const ft_config *c, const char *gguf, int *layer)
{
	int end = 0;

	if (c->experts == 0 || sscanf(gguf, "blk.%7d.%n", layer, &end) != 1 || end == 0 || *layer < 0 ||
		*layer >= c->layers)
		return NULL;
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
	{
		if (strcmp(gguf + end, names[i].stacked) == 0)
			return names[i].ours;
	}
	return NULL;
}

int
ft_gguf_tensor_slices(const ft_config *c, const ft_gguf_tensor *tensor)
{
	int layer;

	/* a wrong number of them is refused below, before any slice is made */
	return stacked_matrix(c, tensor->name, &layer) != NULL &&
				   tensor->dims[2] == (uint64_t) c->experts
			   ? c->experts
			   : 1;
}

ft_status
ft_gguf_expert_slices(const ft_config *c, const ft_gguf_tensor *from, ft_model_tensor *slices,
					  bool *stacked)
{
	int layer;
	ft_dtype dtype;
	const char *matrix = stacked_matrix(c, from->name, &layer);

	*stacked = matrix != NULL;
	if (matrix == NULL)
		return FT_OK;
	if (from->dims[2] != (uint64_t) c->experts || from->dims[3] != 1)
		return ft_fail(FT_CORRUPT, "tensor \"%s\" holds %llu experts, expected %d", from->name,
					   (unsigned long long) from->dims[2], c->experts);
	FT_TRY(ft_gguf_known_type(from, &dtype));
	for (int e = 0; e < c->experts; e++)
	{
		ft_model_tensor *t = &slices[e];

		expert_name(t, layer, e, matrix);
		t->dtype = dtype;
		t->rows = (int64_t) from->dims[1];
		t->cols = (int64_t) from->dims[0];
		/* blocks lie along rows, so a slice is a whole number of them */
		t->bytes = from->bytes / (uint64_t) c->experts;
		t->offset = from->offset + (uint64_t) e * t->bytes;
	}
	return FT_OK;
}
