/*
 * trainer.h: optimizer steps and evaluations over a dataset.
 *
 * No files, no events: train.c does those.  What step n does is a function of
 * the job, the adapter (or, with method full, the model's parameters) and the
 * moments alone.
 */
#ifndef FT_TRAINER_H
#define FT_TRAINER_H

#include "full.h"
#include "optimizer.h"
#include "packing.h"
#include "schedule.h"

typedef struct ft_trainer
{
	const ft_model *model;
	ft_dataset *dataset;
	const ft_options *options; /* resolved */
	ft_adapter *adapter;       /* NULL with method full */
	ft_full *full;             /* NULL where an adapter is trained */
	ft_adapter *best;          /* with early stopping: the values at state.best; else NULL */
	ft_transformer *transformer;
	ft_arena arena; /* the moments */
	ft_optimizer optimizer;
	int64_t capacity; /* tokens of a batch */
	ft_epoch epoch;
	ft_microbatch batch;
	int64_t steps_per_epoch;
	int64_t total_steps;
	ft_run_state state;
	ft_moments moments;       /* on the host, for checkpoints */
	double validation_margin; /* of pairs, by the last evaluation */
} ft_trainer;

typedef struct ft_step_report
{
	double loss; /* mean over the step's weight; 0 when nothing was trained */
	double learning_rate;
	double grad_norm;
	double margin; /* of pairs: mean difference of the rewards (preference.h) */
	int64_t tokens;
	int64_t trained;
} ft_step_report;

/* Steps of the whole job. */
int64_t ft_trainer_total_steps(const ft_dataset *dataset, const ft_options *options);

/* How many tokens a batch may have: what a step needs, limited by the device's free memory.
 * FT_NO_MEMORY, with both sizes, when the longest document does not fit. */
ft_status
ft_trainer_choose_capacity(const ft_model *model, const ft_adapter *adapter,
						   const ft_dataset *dataset, const ft_options *options, int64_t *capacity);
/* The same for evaluating all of the training documents. */
ft_status ft_evaluation_choose_capacity(const ft_model *model, const ft_adapter *adapter,
										const ft_dataset *dataset, int64_t *capacity);

/* Everything but the adapter must outlive the trainer; the adapter becomes its own at success. With
 * method full it is NULL, and the model was loaded for that. */
ft_status ft_trainer_create(const ft_model *model, ft_dataset *dataset, const ft_options *options,
							ft_adapter *adapter, int64_t capacity, ft_trainer **trainer);
void ft_trainer_free(ft_trainer *trainer);

/* Called between layers; anything but FT_OK ends the step or evaluation with that status. */
void ft_trainer_set_tick(ft_trainer *trainer, ft_tick tick, void *context);

/* Continue from a checkpoint's state and, of an adapter, trainer->moments. */
ft_status ft_trainer_resume(ft_trainer *trainer, const ft_run_state *state);

/* The gradient of grad_scale · Σ weight · loss over n training documents, in place of the last one;
 * sums are added to.  The adapter stays as it is. */
ft_status ft_trainer_gradient(ft_trainer *trainer, const uint32_t *chosen, uint32_t n,
							  double grad_scale, ft_loss_sums *sums);

/* Step state.step + 1.  FT_NON_FINITE, with the adapter unchanged, when the loss or the gradient's
 * norm is not finite. */
ft_status ft_trainer_step(ft_trainer *trainer, ft_step_report *report);

/* Mean loss and token accuracy over the validation documents, into the state; the training loss
 * since the last evaluation becomes state.training_loss. */
ft_status ft_trainer_evaluate(ft_trainer *trainer);

/* Fill trainer->moments from the device. */
ft_status ft_trainer_read_moments(ft_trainer *trainer);

#endif
