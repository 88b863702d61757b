/*
 * optimizer.c: AdamW (Loshchilov, Hutter, "Decoupled Weight Decay
 * Regularization", 2019) with PyTorch's constants and its clipping rule.
 */
#include "optimizer.h"

#include <math.h>

#define BETA1 0.9f
#define BETA2 0.999f
#define EPSILON 1e-8f
#define CLIP_EPSILON 1e-6 /* torch.nn.utils.clip_grad_norm_ */

ft_status
ft_optimizer_plan(ft_optimizer *o, const ft_adapter *adapter, double weight_decay,
				  double max_grad_norm, ft_arena *arena)
{
	*o = (ft_optimizer){.ops = adapter->ops,
						.n = adapter->n,
						.weight_decay = weight_decay,
						.max_grad_norm = max_grad_norm};
	FT_TRY(ft_arena_want(arena, &o->m, o->n, FT_F32));
	FT_TRY(ft_arena_want(arena, &o->v, o->n, FT_F32));
	/* an f64 stands in the place of two values of 4 bytes */
	return ft_arena_want(arena, &o->squares, 2, FT_F32);
}

ft_status
ft_optimizer_settings(const ft_ops *ops, ft_stream *stream, double *squares, const float *gradient,
					  int64_t n, double max_grad_norm, int64_t step, double learning_rate,
					  ft_adamw *settings, double *norm)
{
	double sum;

	*settings = (ft_adamw){.learning_rate = (float) learning_rate,
						   .beta1 = BETA1,
						   .beta2 = BETA2,
						   .eps = EPSILON,
						   .grad_scale = 1.0f,
						   .step = step};
	FT_TRY(ops->sum_squares(stream, squares, gradient, n));
	FT_TRY(ops->copy_to_host(stream, &sum, squares, sizeof sum));
	*norm = sqrt(sum);
	if (!isfinite(*norm))
		return ft_fail(FT_NON_FINITE, "gradient norm is %g at step %lld, learning rate %g", *norm,
					   (long long) step, learning_rate);
	if (max_grad_norm > 0 && *norm + CLIP_EPSILON > max_grad_norm)
		settings->grad_scale = (float) (max_grad_norm / (*norm + CLIP_EPSILON));
	return FT_OK;
}

ft_status
ft_optimizer_step(ft_optimizer *o, ft_stream *stream, ft_adapter *adapter, const float *gradient,
				  int64_t step, double learning_rate, double *norm)
{
	ft_adamw settings;

	FT_TRY(ft_optimizer_settings(o->ops, stream, o->squares, gradient, o->n, o->max_grad_norm, step,
								 learning_rate, &settings, norm));
	settings.weight_decay = (float) o->weight_decay;
	return o->ops->adamw(stream, adapter->values, o->m, o->v, gradient, o->n, &settings);
}

ft_status
ft_optimizer_save(const ft_optimizer *o, ft_stream *stream, ft_moments *to)
{
	size_t bytes = (size_t) o->n * sizeof(float);

	FT_TRY(o->ops->copy_to_host(stream, to->m, o->m, bytes));
	return o->ops->copy_to_host(stream, to->v, o->v, bytes);
}

ft_status
ft_optimizer_load(ft_optimizer *o, ft_stream *stream, const ft_moments *from)
{
	size_t bytes = (size_t) o->n * sizeof(float);

	FT_TRY(o->ops->copy_to_device(stream, o->m, from->m, bytes));
	FT_TRY(o->ops->copy_to_device(stream, o->v, from->v, bytes));
	return o->ops->stream_synchronize(stream);
}
