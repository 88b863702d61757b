/*
 * early_stopping.c: ending a run whose validation loss no longer falls.
 */
#include "early_stopping.h"

static ft_status
copy_values(const ft_trainer *t, ft_adapter *to, const ft_adapter *from)
{
	ft_stream *stream = t->transformer->stream;

	FT_TRY(t->model->ops->copy(stream, to->values, from->values, (size_t) from->n * sizeof(float)));
	return t->model->ops->stream_synchronize(stream);
}

/* Is the best one kept? */
static bool
has_best(const ft_trainer *t)
{
	return t->options->early_stopping_patience > 0;
}

ft_status
ft_early_stopping_note(ft_trainer *t)
{
	ft_best *best = &t->state.best;

	if (!has_best(t) || t->state.step == 0)
		return FT_OK;
	if (best->step > 0 && t->state.validation_loss >= best->validation_loss)
	{
		best->waited++;
		return FT_OK;
	}
	if (t->full != NULL)
		FT_TRY(ft_full_keep_best(t->full, t->transformer->stream));
	else
		FT_TRY(copy_values(t, t->best, t->adapter));
	*best = (ft_best){.step = t->state.step,
					  .training_loss = t->state.training_loss,
					  .validation_loss = t->state.validation_loss,
					  .validation_accuracy = t->state.validation_accuracy};
	return FT_OK;
}

bool
ft_early_stopping_due(const ft_trainer *t)
{
	return has_best(t) && t->state.best.waited >= t->options->early_stopping_patience;
}

ft_status
ft_early_stopping_take_best(ft_trainer *t)
{
	const ft_best *best = &t->state.best;

	if (!has_best(t) || best->step == 0)
		return FT_OK;
	if (t->full != NULL)
		FT_TRY(ft_full_take_best(t->full, t->transformer->stream));
	else
		FT_TRY(copy_values(t, t->adapter, t->best));
	t->state.training_loss = best->training_loss;
	t->state.validation_loss = best->validation_loss;
	t->state.validation_accuracy = best->validation_accuracy;
	return ft_transformer_adapter_changed(t->transformer);
}
