/*
 * checkpoint.h: all that a resume needs, in a directory of its own.
 *
 *     checkpoint-<step>/adapter/               the adapter, a PEFT directory
 *     checkpoint-<step>/best/                  the best one so far, where it is kept and another
 *     checkpoint-<step>/optimizer.safetensors  AdamW's moments
 *     checkpoint-<step>/state.json             counters, sums, digests of the files
 *
 * Where all weights are trained there are, in place of adapter/ and best/,
 * weights.safetensors and best.safetensors (full.h).
 *
 * The place in the data, the schedule and every random number follow from the
 * step and the job (packing.h, random.h), so they need no state of their own.
 * A directory is written under a temporary name, synced and renamed; the last
 * two good ones are kept.
 */
#ifndef FT_CHECKPOINT_H
#define FT_CHECKPOINT_H

#include "adapter.h"
#include "digest.h"

/* The evaluation with the lowest validation loss, where a run is to end early. */
typedef struct ft_best
{
	int64_t step; /* 0: none yet */
	double training_loss;
	double validation_loss;
	double validation_accuracy;
	int64_t waited; /* evaluations since then */
} ft_best;

/* Where a run stands after `step` optimizer steps. */
typedef struct ft_run_state
{
	int64_t step;
	int64_t tokens;         /* through the model in training so far */
	int64_t trained;        /* of those, with a loss */
	double loss;            /* Σ weight · loss since the last evaluation */
	double weight;          /* Σ weight since the last evaluation */
	double training_loss;   /* of the steps before the last evaluation; NaN: none yet */
	double validation_loss; /* of the last evaluation; NaN: none yet */
	double validation_accuracy;
	double elapsed; /* seconds of training, all attempts */
	ft_best best;
} ft_run_state;

/* AdamW's moments on the host, laid out as the adapter's values. */
typedef struct ft_moments
{
	float *m;
	float *v;
	int64_t n;
} ft_moments;

/* Save; `identity` says whose run this is (a digest of base, data and options), `best` is the
 * adapter of state->best (NULL: none is kept).  FT_NO_SPACE and the like leave earlier checkpoints
 * as they were and no temporary files. */
ft_status
ft_checkpoint_save(const char *directory, const char *identity, const ft_run_state *state,
				   const ft_adapter *adapter, const ft_adapter *best, const ft_config *config,
				   const char *base_name, const ft_moments *moments);

/* The newest checkpoint that is whole; one that is not is passed over with a log line.  Without
 * any, state->step is 0 and *adapter NULL; *best is NULL where no best one was kept.  The moments'
 * arrays of n values are the caller's. FT_MISMATCH when it is another run's. */
ft_status ft_checkpoint_load(const char *directory, const char *identity, const ft_model *model,
							 ft_run_state *state, ft_adapter **adapter, ft_adapter **best,
							 ft_moments *moments);

/* What a checkpoint holds beside the run's state, for who has something else than an adapter. */
typedef struct ft_checkpoint_contents
{
	/* Digested; the last one is of the best weights, which are there only where they are others
	 * than the newest. */
	const char *files[3];
	/* Write them into, and read them from, a checkpoint's directory; best_beside: of the best
	 * weights there is an own file.  What is read has been found whole. */
	ft_status (*save)(void *context, const char *directory, bool best_beside);
	ft_status (*load)(void *context, const char *directory, const ft_run_state *state,
					  bool best_beside);
	void *context;
} ft_checkpoint_contents;

/* As the two above. */
ft_status
ft_checkpoint_save_contents(const char *directory, const char *identity, const ft_run_state *state,
							const ft_checkpoint_contents *contents);
ft_status
ft_checkpoint_load_contents(const char *directory, const char *identity, ft_run_state *state,
							const ft_checkpoint_contents *contents, bool *found);

/* Remove what a killed run left half-written (names that end in ".tmp"). */
ft_status ft_checkpoint_clean(const char *directory);

#endif
