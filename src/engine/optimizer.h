/*
 * optimizer.h: AdamW over an adapter, with clipping by the global norm.
 */
#ifndef FT_OPTIMIZER_H
#define FT_OPTIMIZER_H

#include "adapter.h"
#include "arena.h"
#include "checkpoint.h"

typedef struct ft_optimizer
{
	const ft_ops *ops;
	int64_t n;
	double weight_decay;
	double max_grad_norm; /* 0: no clipping */
	float *m;             /* device [n] */
	float *v;             /* device [n] */
	double *squares;      /* device [1] */
} ft_optimizer;

/* Plan the moments (zero at first) in an arena that is not yet allocated. */
ft_status ft_optimizer_plan(ft_optimizer *optimizer, const ft_adapter *adapter, double weight_decay,
							double max_grad_norm, ft_arena *arena);

/* Update number `step` (from 1) of the adapter's values; *norm is the gradient's before clipping.
 * FT_NON_FINITE, with nothing changed, when that is not finite. */
ft_status
ft_optimizer_step(ft_optimizer *optimizer, ft_stream *stream, ft_adapter *adapter,
				  const float *gradient, int64_t step, double learning_rate, double *norm);

/* AdamW's settings for update number `step` by a gradient of n values, clipped by its norm, without
 * weight decay; *norm is the gradient's before clipping, `squares` device [1] to sum in.
 * FT_NON_FINITE when the norm is not finite. */
ft_status
ft_optimizer_settings(const ft_ops *ops, ft_stream *stream, double *squares, const float *gradient,
					  int64_t n, double max_grad_norm, int64_t step, double learning_rate,
					  ft_adamw *settings, double *norm);

/* Moments to and from arrays on the host. */
ft_status ft_optimizer_save(const ft_optimizer *optimizer, ft_stream *stream, ft_moments *to);
ft_status ft_optimizer_load(ft_optimizer *optimizer, ft_stream *stream, const ft_moments *from);

#endif
