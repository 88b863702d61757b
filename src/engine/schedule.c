/*
 * schedule.c: what happens at which optimizer step.
 */
#include "schedule.h"

#include <math.h>

#define MIN_EVALUATION_DISTANCE 10
#define CHECKPOINT_SECONDS 30.0 /* of work that a killed run may lose */
#define CHECKPOINT_SHARE 20     /* but no more than one part of so many is spent on writing them */

double
ft_learning_rate(const ft_options *options, int64_t step, int64_t total)
{
	int64_t warmup = (int64_t) ceil(options->warmup_ratio * (double) total);
	double low = options->min_lr_ratio;
	double progress;
	double factor;

	if (step <= warmup)
		return options->learning_rate * (double) step / (double) warmup;
	/* 0 at the first step after warm-up, 1 just after the last step: none has a rate of 0 */
	progress = (double) (step - 1 - warmup) / (double) (total - warmup);
	switch (options->lr_scheduler)
	{
		case FT_LINEAR:
			factor = 1.0 - progress;
			break;
		case FT_CONSTANT:
			return options->learning_rate;
		case FT_COSINE:
		default:
			factor = 0.5 * (1.0 + cos(M_PI * progress));
			break;
	}
	return options->learning_rate * (low + (1.0 - low) * factor);
}

/* The i-th of n stands at i/n of the way; due where that share is passed. */
static bool
nth_due(int n, int64_t step, int64_t total)
{
	return step * n / total != (step - 1) * n / total;
}

bool
ft_evaluation_due(const ft_options *options, int64_t step, int64_t total)
{
	int64_t distance = (total + 9) / 10;

	if (step == 0 || step == total)
		return true;
	if (options->n_evals > 0)
		return nth_due(options->n_evals, step, total);
	if (distance < MIN_EVALUATION_DISTANCE)
		distance = MIN_EVALUATION_DISTANCE;
	return step % distance == 0 && total - step >= MIN_EVALUATION_DISTANCE;
}

bool
ft_checkpoint_due(const ft_options *options, int64_t step, int64_t total)
{
	return ft_evaluation_due(options, step, total) ||
		   (options->n_checkpoints > 0 && nth_due(options->n_checkpoints, step, total));
}

/* All weights with their moments may take long to write: a run is not to spend its time on that. */
double
ft_checkpoint_interval(double save_seconds)
{
	return fmax(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * save_seconds);
}
