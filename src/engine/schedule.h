/*
 * schedule.h: what happens at which optimizer step.
 */
#ifndef FT_SCHEDULE_H
#define FT_SCHEDULE_H

#include "job_file.h"

/* The learning rate of step `step` (from 1) of `total`: linear warm-up over warmup_ratio of the
 * steps, then cosine, linear or constant down to min_lr_ratio of it at the last. */
double ft_learning_rate(const ft_options *options, int64_t step, int64_t total);

/* Whether the model is evaluated after step `step` (0: the untouched base). */
bool ft_evaluation_due(const ft_options *options, int64_t step, int64_t total);

/* Whether a checkpoint is written after step `step`, whatever the clock says. */
bool ft_checkpoint_due(const ft_options *options, int64_t step, int64_t total);

/* Seconds of work after which one is written anyway, where writing one takes `save_seconds`. */
double ft_checkpoint_interval(double save_seconds);

#endif
