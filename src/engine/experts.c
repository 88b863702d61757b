/*
 * experts.c: mixture of experts, in training and in serving.
 *
 * Serving never asks the device how many rows an expert has: its products look
 * that up themselves.  Training asks once a layer, in forward, and then has an
 * ordinary product for each expert.
 */
#include "experts.h"

#include "buffer.h"
#include "transformer.h"

#include <stdlib.h>

struct ft_experts
{
	ft_routing *routing;  /* [layers] kept for backward */
	int32_t *host_starts; /* host [layers · (E + 1)] */
	float *logits;        /* [T, E] and their gradient */
	float *dweights;      /* [T · K] */
	void *input;   /* [T · K, C] compute: the experts' input, or the gradient of their output */
	float *output; /* [T · K, C] their output, or the gradient of their input */
};

static ft_status
want_routing(ft_routing *r, const ft_config *c, int64_t rows, ft_arena *arena)
{
	int64_t slots = rows * c->experts_per_token;

	FT_TRY(ft_arena_want(arena, &r->experts, slots, FT_I32));
	FT_TRY(ft_arena_want(arena, &r->weights, slots, FT_F32));
	FT_TRY(ft_arena_want(arena, &r->starts, c->experts + 1, FT_I32));
	FT_TRY(ft_arena_want(arena, &r->place, slots, FT_I32));
	return ft_arena_want(arena, &r->row, slots, FT_I32);
}

/* Choose and sort: from the rows' logits to where each slot stands. */
static ft_status
choose(const ft_model *m, ft_stream *stream, const ft_layer *layer, const ft_routing *r,
	   float *logits, ft_mat x)
{
	const ft_config *c = &m->config;
	ft_mat all = ft_mat_make(logits, FT_F32, x.rows, c->experts);

	FT_TRY(m->ops->linear(stream, all, x, layer->router, 0, true));
	FT_TRY(m->ops->route(stream, r->experts, r->weights, all, c->experts_per_token));
	return m->ops->group_rows(stream, r->starts, r->place, r->row, r->experts, x.rows,
							  c->experts_per_token, c->experts);
}

/* --- serving --- */

ft_status
ft_experts_work_want(ft_experts_work *work, const ft_model *model, int64_t rows, ft_arena *arena)
{
	const ft_config *c = &model->config;
	int64_t slots = rows * c->experts_per_token;

	if (c->experts == 0)
		return FT_OK;
	FT_TRY(want_routing(&work->routing, c, rows, arena));
	FT_TRY(ft_arena_want(arena, &work->logits, rows * c->experts, FT_F32));
	FT_TRY(ft_arena_want(arena, &work->input, slots * c->hidden, model->compute));
	return ft_arena_want(arena, &work->output, slots * c->hidden, FT_F32);
}

ft_status
ft_experts_serve(const ft_experts_work *work, const ft_model *m, ft_stream *stream, int layer,
				 ft_mat branch, ft_mat x, void *gate_up, void *product)
{
	const ft_ops *ops = m->ops;
	const ft_config *c = &m->config;
	const ft_layer *l = &m->layers[layer];
	const ft_routing *r = &work->routing;
	int64_t slots = x.rows * c->experts_per_token;
	ft_mat input = ft_mat_make(work->input, m->compute, slots, c->hidden);
	ft_mat wide = ft_mat_make(gate_up, m->compute, slots, 2 * (int64_t) c->ffn);
	ft_mat act = ft_mat_make(product, m->compute, slots, c->ffn);
	ft_mat output = ft_mat_make(work->output, FT_F32, slots, c->hidden);

	FT_TRY(choose(m, stream, l, r, work->logits, x));
	FT_TRY(ops->gather_rows(stream, input, x, r->row));
	FT_TRY(ops->linear_experts(stream, wide, input, l->experts_gate_up, c->experts, r->starts));
	FT_TRY(ops->swiglu(stream, act, wide));
	FT_TRY(ops->linear_experts(stream, output, act, l->experts_down, c->experts, r->starts));
	return ops->combine_rows(stream, branch, output, r->place, r->weights, c->experts_per_token);
}

/* --- training --- */

static ft_status
plan(ft_experts *x, ft_transformer *t)
{
	const ft_config *c = &t->model->config;
	int64_t slots = t->capacity * c->experts_per_token;

	FT_TRY(ft_alloc((void **) &x->routing, (size_t) c->layers, sizeof *x->routing));
	FT_TRY(ft_alloc((void **) &x->host_starts, (size_t) c->layers * ((size_t) c->experts + 1),
					sizeof *x->host_starts));
	for (int i = 0; i < c->layers; i++)
		FT_TRY(want_routing(&x->routing[i], c, t->capacity, &t->arena));
	FT_TRY(ft_arena_want(&t->arena, &x->logits, t->capacity * c->experts, FT_F32));
	FT_TRY(ft_arena_want(&t->arena, &x->dweights, slots, FT_F32));
	FT_TRY(ft_arena_want(&t->arena, &x->input, slots * c->hidden, t->model->compute));
	return ft_arena_want(&t->arena, &x->output, slots * c->hidden, FT_F32);
}

ft_status
ft_experts_plan(ft_transformer *t)
{
	if (t->model->config.experts == 0)
		return FT_OK;
	FT_TRY(ft_alloc((void **) &t->experts, 1, sizeof *t->experts));
	return plan(t->experts, t);
}

void
ft_experts_free(ft_experts *experts)
{
	if (experts == NULL)
		return;
	free(experts->routing);
	free(experts->host_starts);
	free(experts);
}

static int32_t *
host_starts(const ft_transformer *t, int layer)
{
	return t->experts->host_starts + (size_t) layer * ((size_t) t->model->config.experts + 1);
}

/*
 * Rows to compute for an expert that has n: a little more, of which there are
 * few different numbers, since a library's product of a shape that it sees for
 * the first time takes long.
 */
static int64_t
rounded_rows(int64_t n)
{
	int64_t step = 1;

	while (step * 32 <= n)
		step *= 2;
	return (n + step - 1) / step * step;
}

/* y = x · Wᵀ, or (gradient) y = x · W, each place by its expert's weight.  The rows that an expert
 * computes beyond its own belong to later experts, which then write them anew. */
static ft_status
each_expert(ft_transformer *t, int layer, ft_mat y, ft_mat x, ft_weight *const *weights,
			bool gradient)
{
	const int32_t *starts = host_starts(t, layer);

	for (int e = 0; e < t->model->config.experts; e++)
	{
		int64_t rows = rounded_rows(starts[e + 1] - starts[e]);

		if (rows == 0)
			continue;
		if (rows > y.rows - starts[e])
			rows = y.rows - starts[e];
		FT_TRY(ft_transformer_product(t, ft_mat_rows(y, starts[e], rows),
									  ft_mat_rows(x, starts[e], rows), weights[e], gradient));
	}
	return FT_OK;
}

/* branch = the weighted sum of the experts of norm(middle) */
ft_status
ft_experts_forward(ft_transformer *t, int layer, ft_mat normed)
{
	const ft_config *c = &t->model->config;
	const ft_layer *l = &t->model->layers[layer];
	ft_experts *x = t->experts;
	const ft_routing *r = &x->routing[layer];
	ft_dtype compute = t->model->compute;
	int64_t slots = normed.rows * c->experts_per_token;
	ft_mat input = ft_mat_make(x->input, compute, slots, c->hidden);
	ft_mat gate_up = ft_mat_make(t->saved[layer].gate_up, compute, slots, 2 * (int64_t) c->ffn);
	ft_mat product = ft_mat_make(t->product, compute, slots, c->ffn);
	ft_mat output = ft_mat_make(x->output, FT_F32, slots, c->hidden);
	ft_mat branch = ft_mat_make(t->branch, FT_F32, normed.rows, c->hidden);

	FT_TRY(choose(t->model, t->stream, l, r, x->logits, normed));
	FT_TRY(t->ops->copy_to_host(t->stream, host_starts(t, layer), r->starts,
								((size_t) c->experts + 1) * sizeof(int32_t)));
	FT_TRY(t->ops->gather_rows(t->stream, input, normed, r->row));
	FT_TRY(each_expert(t, layer, gate_up, input, l->experts_gate_up, false));
	FT_TRY(t->ops->swiglu(t->stream, product, gate_up));
	FT_TRY(each_expert(t, layer, output, product, l->experts_down, false));
	return t->ops->combine_rows(t->stream, branch, output, r->place, r->weights,
								c->experts_per_token);
}

/* dW_e += dyᵀ · x over each expert's places; dw [E, columns of dy, columns of x]. */
static ft_status
each_gradient(ft_transformer *t, int layer, float *dw, ft_mat dy, ft_mat x)
{
	const int32_t *starts = host_starts(t, layer);

	for (int e = 0; dw != NULL && e < t->model->config.experts; e++, dw += dy.cols * x.cols)
	{
		int64_t rows = starts[e + 1] - starts[e];

		if (rows > 0)
			FT_TRY(t->ops->matmul(t->stream, ft_mat_make(dw, FT_F32, dy.cols, x.cols),
								  ft_mat_rows(dy, starts[e], rows), true,
								  ft_mat_rows(x, starts[e], rows), false, 1, 1));
	}
	return FT_OK;
}

/* The gradients of the router and of gate and up, both of which read norm(middle): made again. */
static ft_status
weight_gradients(ft_transformer *t, int layer, const ft_layer_gradients *g, ft_mat dgate_up,
				 ft_mat dlogits)
{
	const ft_config *c = &t->model->config;
	ft_dtype compute = t->model->compute;
	ft_mat middle = ft_mat_make(t->saved[layer].middle, FT_F32, dlogits.rows, c->hidden);
	ft_mat normed = ft_mat_make(t->normed, compute, dlogits.rows, c->hidden);
	ft_mat input = ft_mat_make(t->experts->input, compute, dgate_up.rows, c->hidden);
	ft_mat none = {0};
	ft_mat dy;

	FT_TRY(t->ops->rmsnorm(t->stream, normed, none, NULL, middle, none,
						   t->model->layers[layer].ffn_norm, c->rms_eps));
	FT_TRY(t->ops->gather_rows(t->stream, input, normed, t->experts->routing[layer].row));
	FT_TRY(each_gradient(t, layer, g->experts_gate_up, dgate_up, input));
	if (g->router == NULL)
		return FT_OK;
	FT_TRY(ft_transformer_round(t, dlogits, t->narrow, &dy));
	return t->ops->matmul(t->stream, ft_mat_make(g->router, FT_F32, c->experts, c->hidden), dy,
						  true, normed, false, 1, 1);
}

/*
 * The gradient of norm(middle), into `branch`.  With g = dy·down, a place's
 * gradient before its weight, that of the weight is product · g, and that of
 * the product w · g.
 */
static ft_status
input_gradient(ft_transformer *t, int layer, const ft_layer_gradients *g, int64_t rows,
			   ft_mat dnormed)
{
	const ft_config *c = &t->model->config;
	const ft_layer *l = &t->model->layers[layer];
	ft_experts *x = t->experts;
	const ft_routing *r = &x->routing[layer];
	ft_dtype compute = t->model->compute;
	int k = c->experts_per_token;
	int64_t slots = rows * k;
	ft_mat gate_up = ft_mat_make(t->saved[layer].gate_up, compute, slots, 2 * (int64_t) c->ffn);
	ft_mat product = ft_mat_make(t->product, compute, slots, c->ffn);
	ft_mat dproduct = ft_mat_make(t->dproduct, FT_F32, slots, c->ffn);
	ft_mat doutput = ft_mat_make(x->input, compute, slots, c->hidden);
	ft_mat dinput = ft_mat_make(x->output, FT_F32, slots, c->hidden);
	ft_mat dlogits = ft_mat_make(x->logits, FT_F32, rows, c->experts);
	ft_mat weighted = product; /* in place, when it has been read */
	ft_mat dy;

	if (g->experts_down == NULL)
		weighted.data = NULL;

	FT_TRY(
		ft_transformer_round(t, ft_mat_make(t->dhidden, FT_F32, rows, c->hidden), t->narrow, &dy));
	FT_TRY(t->ops->gather_rows(t->stream, doutput, dy, r->row));
	FT_TRY(t->ops->swiglu(t->stream, product, gate_up));
	FT_TRY(each_expert(t, layer, dproduct, doutput, l->experts_down, true));
	FT_TRY(t->ops->weigh_rows_grad(t->stream, x->dweights, dproduct, weighted, product, r->place,
								   r->weights));
	FT_TRY(each_gradient(t, layer, g->experts_down, doutput, product));
	FT_TRY(ft_transformer_round(t, dproduct, t->narrow, &dy));
	FT_TRY(t->ops->swiglu_grad(t->stream, gate_up, dy, gate_up));
	FT_TRY(each_expert(t, layer, dinput, gate_up, l->experts_gate_up, true));
	FT_TRY(t->ops->combine_rows(t->stream, dnormed, dinput, r->place, NULL, k));
	FT_TRY(t->ops->route_grad(t->stream, dlogits, x->dweights, r->weights, r->experts, k));
	if (g->experts_gate_up != NULL || g->router != NULL)
		FT_TRY(weight_gradients(t, layer, g, gate_up, dlogits));
	return t->ops->linear_grad_input(t->stream, dnormed, dlogits, l->router, 1);
}

/* dhidden: from the layer's output to `middle`. */
ft_status
ft_experts_backward(ft_transformer *t, int layer, const ft_layer_gradients *g, int64_t rows)
{
	const ft_config *c = &t->model->config;
	const ft_saved_layer *s = &t->saved[layer];
	ft_mat dnormed = ft_mat_make(t->branch, FT_F32, rows, c->hidden);

	FT_TRY(input_gradient(t, layer, g, rows, dnormed));
	return t->ops->rmsnorm_grad(t->stream, ft_mat_make(t->dhidden, FT_F32, rows, c->hidden),
								g->ffn_norm, dnormed,
								ft_mat_make(s->middle, FT_F32, rows, c->hidden),
								t->model->layers[layer].ffn_norm, s->ffn_rstd);
}
