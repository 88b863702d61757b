/*
 * early_stopping.h: ending a run whose validation loss no longer falls.
 *
 * With the option early_stopping_patience = P a run ends after P evaluations in
 * a row that were no better than the best one, and its result is the adapter (or,
 * with method full, the model) of the best one, also when it is not ended early.  The untouched
 * base's evaluation does not count.
 */
#ifndef FT_EARLY_STOPPING_H
#define FT_EARLY_STOPPING_H

#include "trainer.h"

/* After an evaluation: keep the adapter when it is the best one so far. */
ft_status ft_early_stopping_note(ft_trainer *trainer);

/* Has the patience come to its end? */
bool ft_early_stopping_due(const ft_trainer *trainer);

/* Make the best adapter, and what was said of it, the trainer's own. */
ft_status ft_early_stopping_take_best(ft_trainer *trainer);

#endif
