/*
 * full.c: training of all of a model's own weights.
 */
#include "full.h"

#include "buffer.h"
#include "random.h"

#include <stdlib.h>

/* --- memory --- */

static int64_t
blocks_of(const ft_weight_layout *l)
{
	return (l->matrices + FT_MOMENT_BLOCK - 1) / FT_MOMENT_BLOCK;
}

/* Bytes, in the arena's words of four. */
static ft_status
want_bytes(ft_arena *arena, void *where, int64_t n)
{
	return ft_arena_want(arena, where, (n + 3) / 4, FT_I32);
}

static ft_status
plan(ft_full *f)
{
	const ft_weight_layout *l = f->layout;
	int64_t vectors = l->n - l->matrices;

	if (f->small)
	{
		FT_TRY(want_bytes(&f->arena, &f->matrices_m, l->matrices));
		FT_TRY(want_bytes(&f->arena, &f->matrices_v, l->matrices));
		FT_TRY(want_bytes(&f->arena, &f->matrices_m_exponents, blocks_of(l)));
		FT_TRY(want_bytes(&f->arena, &f->matrices_v_exponents, blocks_of(l)));
	}
	else
	{
		FT_TRY(ft_arena_want(&f->arena, &f->matrices_m, l->matrices, FT_F32));
		FT_TRY(ft_arena_want(&f->arena, &f->matrices_v, l->matrices, FT_F32));
	}
	FT_TRY(ft_arena_want(&f->arena, &f->vectors_m, vectors, FT_F32));
	FT_TRY(ft_arena_want(&f->arena, &f->vectors_v, vectors, FT_F32));
	/* an f64 stands in the place of two values of 4 bytes */
	return ft_arena_want(&f->arena, &f->squares, 2, FT_F32);
}

ft_status
ft_full_bytes(const ft_config *config, bool small, int64_t *gradient, int64_t *moments)
{
	ft_full f = {.small = small};
	ft_weight_layout *layout;
	ft_status status;

	FT_TRY(ft_weight_layout_create(config, &layout));
	f.layout = layout;
	status = plan(&f);
	*gradient = layout->n * (int64_t) sizeof(float);
	*moments = f.arena.bytes;
	ft_arena_free(&f.arena);
	ft_weight_layout_free(layout);
	return status;
}

ft_status
ft_full_wants_small(const ft_model *model, bool *small)
{
	ft_device_info info;

	FT_TRY(model->ops->device_info(model->device, &info));
	*small = info.numerics == FT_NUMERICS_FAST;
	return FT_OK;
}

/* Bytes of all weights. */
static size_t
weight_bytes(const ft_full *f)
{
	const ft_weight_layout *l = f->layout;

	return (size_t) l->matrices * ft_parameters_value_bytes(f->model->parameters, 0) +
		   (size_t) (l->n - l->matrices) * sizeof(float);
}

static ft_status
create(ft_full *f)
{
	FT_TRY(ft_full_wants_small(f->model, &f->small));
	FT_TRY(plan(f));
	FT_TRY(ft_arena_allocate(&f->arena, f->model->ops, f->model->device));
	FT_TRY(ft_weight_gradients_create(f->model, &f->gradients));
	if (f->options->early_stopping_patience > 0)
		FT_TRY(ft_alloc((void **) &f->best, weight_bytes(f), 1));
	return FT_OK;
}

ft_status
ft_full_create(const ft_model *model, const ft_options *options, ft_full **full)
{
	ft_full *f;
	ft_status status;

	if (model->parameters == NULL)
		return ft_fail(FT_INTERNAL, "the model was not loaded for training all of its weights");
	FT_TRY(ft_alloc((void **) &f, 1, sizeof *f));
	f->model = model;
	f->layout = model->parameters->layout;
	f->options = options;
	status = create(f);
	if (status != FT_OK)
	{
		ft_full_free(f);
		return status;
	}
	*full = f;
	return FT_OK;
}

void
ft_full_free(ft_full *f)
{
	if (f == NULL)
		return;
	ft_weight_gradients_free(f->gradients);
	ft_arena_free(&f->arena);
	free(f->best);
	free(f);
}

/* --- steps --- */

static ft_status
update_matrices(ft_full *f, ft_stream *stream, ft_adamw *settings)
{
	const ft_ops *ops = f->model->ops;
	const ft_parameters *p = f->model->parameters;
	int64_t n = f->layout->matrices;

	settings->weight_decay = (float) f->options->weight_decay;
	if (!f->small)
		return ops->adamw(stream, p->matrices, f->matrices_m, f->matrices_v, f->gradients->values,
						  n, settings);
	ft_philox(f->options->seed, FT_STREAM_ROUNDING, (uint64_t) settings->step, settings->noise);
	return ops->adamw_8bit(stream, ft_mat_make(p->matrices, p->dtype, 1, n), f->matrices_m,
						   f->matrices_v, f->matrices_m_exponents, f->matrices_v_exponents,
						   f->gradients->values, settings);
}

ft_status
ft_full_step(ft_full *f, ft_stream *stream, int64_t step, double learning_rate, double *norm)
{
	const ft_ops *ops = f->model->ops;
	int64_t vectors = f->layout->n - f->layout->matrices;
	ft_adamw settings;

	FT_TRY(ft_optimizer_settings(ops, stream, f->squares, f->gradients->values, f->gradients->n,
								 f->options->max_grad_norm, step, learning_rate, &settings, norm));
	FT_TRY(update_matrices(f, stream, &settings));
	settings.weight_decay = 0;
	return ops->adamw(stream, f->model->parameters->vectors, f->vectors_m, f->vectors_v,
					  f->gradients->values + f->layout->matrices, vectors, &settings);
}

/* --- the best weights --- */

ft_status
ft_full_keep_best(ft_full *f, ft_stream *stream)
{
	const ft_ops *ops = f->model->ops;
	const ft_parameters *p = f->model->parameters;
	size_t all = weight_bytes(f);
	size_t vectors = (size_t) (f->layout->n - f->layout->matrices) * sizeof(float);

	FT_TRY(ops->copy_to_host(stream, f->best, p->matrices, all - vectors));
	return ops->copy_to_host(stream, f->best + (all - vectors), p->vectors, vectors);
}

ft_status
ft_full_take_best(ft_full *f, ft_stream *stream)
{
	const ft_ops *ops = f->model->ops;
	const ft_parameters *p = f->model->parameters;
	size_t all = weight_bytes(f);
	size_t vectors = (size_t) (f->layout->n - f->layout->matrices) * sizeof(float);

	FT_TRY(ops->copy_to_device(stream, p->matrices, f->best, all - vectors));
	FT_TRY(ops->copy_to_device(stream, p->vectors, f->best + (all - vectors), vectors));
	return ops->stream_synchronize(stream);
}
