/*
 * full.h: training of all of a model's own weights (method full).
 *
 * The weights are the model's parameters, which are changed in place; beside
 * them stand their gradient (f32) and AdamW's moments.  For reference numerics
 * all is f32.  Else the moments of the matrices have 8 bits (ops.h, adamw_8bit),
 * and where products are in bf16 so are the matrices: what an update adds is less
 * than a bf16 step most of the time, so they are rounded up or down by chance, in
 * proportion to what is lost, which is right in the mean.  Norms and biases,
 * and their moments, are always f32.
 *
 * As transformers' Trainer does, weight decay spares norms and biases.
 */
#ifndef FT_FULL_H
#define FT_FULL_H

#include "checkpoint.h"
#include "job_file.h"
#include "optimizer.h"
#include "transformer.h"

typedef struct ft_full
{
	const ft_model *model;
	const ft_weight_layout *layout; /* the parameters' */
	const ft_options *options;
	ft_weight_gradients *gradients;
	bool small; /* the matrices' moments have 8 bits */
	ft_arena arena;
	void *matrices_m; /* f32 [matrices], or u8 */
	void *matrices_v;
	uint8_t *matrices_m_exponents; /* of each block of FT_MOMENT_BLOCK; NULL for f32 */
	uint8_t *matrices_v_exponents;
	float *vectors_m; /* [n − matrices] */
	float *vectors_v;
	double *squares; /* [1] */
	char *best;      /* host: with early stopping the weights at state.best, matrices first */
} ft_full;

/* What ft_full_create will take on the device for such a configuration, of the gradient and of the
 * moments. */
ft_status ft_full_bytes(const ft_config *config, bool small, int64_t *gradient, int64_t *moments);

/* Are moments of 8 bits used on the model's device? */
ft_status ft_full_wants_small(const ft_model *model, bool *small);

/* The model must have been loaded for training all weights, and outlive this, as the options
 * must. */
ft_status ft_full_create(const ft_model *model, const ft_options *options, ft_full **full);
void ft_full_free(ft_full *full);

/* Update number `step` (from 1); *norm is the gradient's before clipping.  FT_NON_FINITE, with
 * nothing changed, when that is not finite. */
ft_status
ft_full_step(ft_full *full, ft_stream *stream, int64_t step, double learning_rate, double *norm);

/* Keep the weights as the best ones so far, and make the best ones the model's. */
ft_status ft_full_keep_best(ft_full *full, ft_stream *stream);
ft_status ft_full_take_best(ft_full *full, ft_stream *stream);

/* Checkpoints (full_checkpoint.c): as ft_checkpoint_save and ft_checkpoint_load do it for adapters,
 * but weights and moments are read to where they belong.  *found: there was one. */
ft_status ft_full_save(const char *directory, const char *identity, const ft_run_state *state,
					   ft_full *full, ft_stream *stream);
ft_status ft_full_load(const char *directory, const char *identity, ft_run_state *state,
					   ft_full *full, ft_stream *stream, bool *found);

/* The result (full_result.c), directory/model: what transformers loads, made from the base's file,
 * with the weights as they are.  It appears whole: written below another name, synced, renamed. */
#define FT_FULL_RESULT "model"
ft_status ft_full_write(const ft_full *full, ft_stream *stream, const ft_model_file *file,
						const char *directory, ft_tick tick, void *tick_context);
/* Before hours of training: can the base's configuration and tokenizer be written so? */
ft_status ft_full_check(const ft_model_file *file, const char *directory);

#endif
