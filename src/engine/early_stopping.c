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

ft_status
ft_early_stopping_note(ft_trainer *t)
{
	ft_best *best = &t->state.best;

	if (t->best == NULL || t->state.step == 0)
		return FT_OK;
	if (best->step > 0 && t->state.validation_loss >= best->validation_loss)
	{
		best->waited++;
		return FT_OK;
	}
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
	return t->best != NULL && t->state.best.waited >= t->options->early_stopping_patience;
}

ft_status
ft_early_stopping_take_best(ft_trainer *t)
{
	const ft_best *best = &t->state.best;

	if (t->best == NULL || best->step == 0)
		return FT_OK;
	FT_TRY(copy_values(t, t->adapter, t->best));
	t->state.training_loss = best->training_loss;
	t->state.validation_loss = best->validation_loss;
	t->state.validation_accuracy = best->validation_accuracy;
	return ft_transformer_adapter_changed(t->transformer);
}
