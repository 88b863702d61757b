/*
 * trainer.c: optimizer steps and evaluations over a dataset.
 */
#include "trainer.h"

#include "evaluator.h"

#include <math.h>
#include <stdlib.h>

#define HOST_CAPACITY 1024    /* more rows than this make no product on a CPU faster */
#define DEVICE_CAPACITY 65536 /* nor on a GPU */
#define KEPT_IN_F32 1536      /* tokens of a single long row whose activations are all kept */

int64_t
ft_trainer_total_steps(const ft_dataset *dataset, const ft_options *options)
{
	int64_t steps =
		(int64_t) ft_epoch_steps(dataset->train, dataset->n_train, options->batch_size) *
		options->max_epochs;

	return options->max_steps > 0 && options->max_steps < steps ? options->max_steps : steps;
}

/* --- memory --- */

/* Tokens of the largest batch that a step can need: its share, and the document over its border. */
static int64_t
wanted_capacity(const ft_dataset *dataset, const ft_options *options, int64_t limit)
{
	uint32_t steps = ft_epoch_steps(dataset->train, dataset->n_train, options->batch_size);
	int64_t batches =
		options->gradient_accumulation_steps > 0 ? options->gradient_accumulation_steps : 1;
	int64_t wanted = dataset->tokens / steps / batches + dataset->max_length;

	if (!options->packing)
		wanted = dataset->max_length;
	if (wanted > limit)
		wanted = limit;
	return wanted > dataset->max_length ? wanted : dataset->max_length;
}

/* Tokens whose activations are kept of a batch that is trained on. */
static int64_t
kept_tokens(const ft_model *model, int64_t capacity)
{
	return model->compute == FT_F32 && capacity > KEPT_IN_F32 ? KEPT_IN_F32 : capacity;
}

/* Lower *capacity until a transformer fits beside `beside` bytes of something else. */
static ft_status
fit_memory(const ft_model *model, const ft_adapter *adapter, const ft_dataset *dataset,
		   bool training, int64_t beside, int64_t *capacity)
{
	ft_device_info info;
	int64_t bytes;

	FT_TRY(model->ops->device_info(model->device, &info));
	for (;;)
	{
		FT_TRY(ft_transformer_bytes_kept(model, adapter, *capacity,
										 training ? kept_tokens(model, *capacity) : 0, &bytes));
		/* an eighth stays free for what others need meanwhile */
		if (bytes + beside <= info.memory_free - info.memory_free / 8)
			return FT_OK;
		if (*capacity <= dataset->max_length)
			break;
		*capacity = *capacity / 2 > dataset->max_length ? *capacity / 2 : dataset->max_length;
	}
	return ft_hint(ft_fail(FT_NO_MEMORY,
						   "documents of %d tokens need %lld MiB, %lld MiB are free on %s",
						   dataset->max_length, (long long) ((bytes + beside) >> 20),
						   (long long) (info.memory_free >> 20), info.name),
				   "Lower max_seq_length, or free memory.");
}

/* More tokens than this make no batch any faster. */
static ft_status
useful_capacity(const ft_model *model, int64_t *limit)
{
	ft_device_info info;

	FT_TRY(model->ops->device_info(model->device, &info));
	*limit = info.threads > 0 ? HOST_CAPACITY : DEVICE_CAPACITY;
	return FT_OK;
}

/* Bytes that training all weights needs beside these; the best ones are kept on the host. */
static ft_status
full_beside(const ft_model *model, const ft_options *options, int64_t *bytes)
{
	ft_device_info info;
	int64_t gradient;
	int64_t moments;

	FT_TRY(model->ops->device_info(model->device, &info));
	FT_TRY(ft_full_bytes(&model->config, info.numerics == FT_NUMERICS_FAST, &gradient, &moments));
	*bytes = gradient + moments;
	if (options->early_stopping_patience > 0 && info.threads > 0)
		*bytes += model->parameters->arena.bytes;
	return FT_OK;
}

ft_status
ft_trainer_choose_capacity(const ft_model *model, const ft_adapter *adapter,
						   const ft_dataset *dataset, const ft_options *options, int64_t *capacity)
{
	int copies = options->early_stopping_patience > 0 ? 3 : 2; /* the moments, the best adapter */
	int64_t beside = 0;
	int64_t limit;

	if (options->full)
		FT_TRY(full_beside(model, options, &beside));
	else
		beside = adapter->n * copies * (int64_t) sizeof(float);
	FT_TRY(useful_capacity(model, &limit));
	*capacity = wanted_capacity(dataset, options, limit);
	return fit_memory(model, adapter, dataset, true, beside, capacity);
}

ft_status
ft_evaluation_choose_capacity(const ft_model *model, const ft_adapter *adapter,
							  const ft_dataset *dataset, int64_t *capacity)
{
	int64_t limit;

	FT_TRY(useful_capacity(model, &limit));
	*capacity = dataset->tokens < limit ? dataset->tokens : limit;
	if (*capacity < dataset->max_length)
		*capacity = dataset->max_length;
	return fit_memory(model, adapter, dataset, false, 0, capacity);
}

/* The optimizer of an adapter. */
static ft_status
create_adapter_parts(ft_trainer *t)
{
	const ft_model *model = t->model;

	FT_TRY(ft_optimizer_plan(&t->optimizer, t->adapter, t->options->weight_decay,
							 t->options->max_grad_norm, &t->arena));
	FT_TRY(ft_arena_allocate(&t->arena, model->ops, model->device));
	t->moments.n = t->adapter->n;
	FT_TRY(ft_alloc((void **) &t->moments.m, (size_t) t->moments.n, sizeof(float)));
	FT_TRY(ft_alloc((void **) &t->moments.v, (size_t) t->moments.n, sizeof(float)));
	if (t->options->early_stopping_patience > 0)
		FT_TRY(ft_adapter_create(model, t->adapter->rank, t->adapter->alpha, t->adapter->use_rslora,
								 t->adapter->targets, &t->best));
	return FT_OK;
}

static ft_status
create_parts(ft_trainer *t)
{
	if (t->options->full)
		FT_TRY(ft_full_create(t->model, t->options, &t->full));
	else
		FT_TRY(create_adapter_parts(t));
	FT_TRY(ft_epoch_create(&t->epoch, t->dataset->n_train, (uint32_t) t->steps_per_epoch));
	FT_TRY(ft_microbatch_create(t->capacity, &t->batch));
	FT_TRY(ft_transformer_create_kept(t->model, t->adapter, t->capacity,
									  kept_tokens(t->model, t->capacity), &t->transformer));
	t->transformer->dpo_beta = t->options->dpo_beta;
	if (t->full != NULL)
		t->transformer->weight_gradients = t->full->gradients;
	return FT_OK;
}

ft_status
ft_trainer_create(const ft_model *model, ft_dataset *dataset, const ft_options *options,
				  ft_adapter *adapter, int64_t capacity, ft_trainer **result)
{
	ft_trainer *t;
	ft_status status;

	*result = NULL;
	if (options->early_stopping_patience > 0 && dataset->n_validation == 0)
		return ft_fail(FT_INVALID, "option \"early_stopping_patience\" needs validation rows, "
								   "there are none");
	FT_TRY(ft_alloc((void **) &t, 1, sizeof *t));
	t->model = model;
	t->dataset = dataset;
	t->options = options;
	t->adapter = adapter;
	t->capacity = capacity;
	t->steps_per_epoch = ft_epoch_steps(dataset->train, dataset->n_train, options->batch_size);
	t->total_steps = ft_trainer_total_steps(dataset, options);
	t->state =
		(ft_run_state){.training_loss = NAN, .validation_loss = NAN, .validation_accuracy = NAN};
	status = create_parts(t);
	if (status != FT_OK)
	{
		t->adapter = NULL; /* stays the caller's */
		ft_trainer_free(t);
		return status;
	}
	*result = t;
	return FT_OK;
}

void
ft_trainer_free(ft_trainer *t)
{
	if (t == NULL)
		return;
	ft_transformer_free(t->transformer);
	ft_arena_free(&t->arena);
	ft_epoch_free(&t->epoch);
	ft_microbatch_free(&t->batch);
	free(t->moments.m);
	free(t->moments.v);
	ft_adapter_free(t->best);
	ft_adapter_free(t->adapter);
	ft_full_free(t->full);
	free(t);
}

void
ft_trainer_set_tick(ft_trainer *t, ft_tick tick, void *context)
{
	t->transformer->tick = tick;
	t->transformer->tick_context = context;
}

ft_status
ft_trainer_resume(ft_trainer *t, const ft_run_state *state)
{
	t->state = *state;
	if (t->full != NULL)
		return FT_OK;
	return ft_optimizer_load(&t->optimizer, t->transformer->stream, &t->moments);
}

ft_status
ft_trainer_read_moments(ft_trainer *t)
{
	if (t->full != NULL)
		return FT_OK;
	return ft_optimizer_save(&t->optimizer, t->transformer->stream, &t->moments);
}

/* --- steps --- */

/* Step state.step + 1 drops by its own masks, which differ by document. */
static void
set_dropout(ft_trainer *t)
{
	bool dropout = t->adapter != NULL && t->adapter->dropout > 0;

	t->batch.apart = dropout;
	if (dropout)
		ft_lora_set_dropout(t->transformer->lora, t->options->seed, t->state.step + 1);
}

ft_status
ft_trainer_gradient(ft_trainer *t, const uint32_t *chosen, uint32_t n, double grad_scale,
					ft_loss_sums *sums)
{
	uint32_t batches = t->options->packing ? (uint32_t) t->options->gradient_accumulation_steps : n;
	ft_packing packing;
	ft_status status;

	FT_TRY(ft_pack(t->dataset->train, chosen, n, t->capacity, batches, &packing));
	status = t->full != NULL ? ft_weight_gradients_zero(t->full->gradients, t->transformer->stream)
							 : ft_lora_zero_gradient(t->transformer->lora, t->transformer->stream);
	set_dropout(t);
	for (uint32_t i = 0; status == FT_OK && i < packing.n_batches; i++)
	{
		status = ft_microbatch_fill(&t->batch, t->dataset, t->dataset->train, &packing, i);
		if (status == FT_OK)
			status = ft_transformer_train(t->transformer, &t->batch, grad_scale, sums);
	}
	t->batch.apart = false;
	ft_packing_free(&packing);
	return status;
}

/* The one place where a step's loss is divided: by the weight of all its batches. */
static double
step_grad_scale(const ft_trainer *t, const uint32_t *chosen, uint32_t n, ft_step_report *report)
{
	double weight = 0;

	for (uint32_t i = 0; i < n; i++)
	{
		weight += t->dataset->train[chosen[i]].weight;
		report->tokens += t->dataset->train[chosen[i]].length;
	}
	return weight > 0 ? 1.0 / weight : 0.0;
}

/* What is trained, by the gradient that has been made. */
static ft_status
update(ft_trainer *t, int64_t step, ft_step_report *report)
{
	ft_stream *stream = t->transformer->stream;

	if (t->full != NULL)
		return ft_full_step(t->full, stream, step, report->learning_rate, &report->grad_norm);
	FT_TRY(ft_optimizer_step(&t->optimizer, stream, t->adapter, t->transformer->lora->gradient,
							 step, report->learning_rate, &report->grad_norm));
	return ft_transformer_adapter_changed(t->transformer);
}

ft_status
ft_trainer_step(ft_trainer *t, ft_step_report *report)
{
	int64_t step = t->state.step + 1;
	uint32_t epoch = (uint32_t) ((step - 1) / t->steps_per_epoch);
	uint32_t place = (uint32_t) ((step - 1) % t->steps_per_epoch);
	ft_loss_sums sums = {0};
	const uint32_t *chosen;
	uint32_t n;
	double grad_scale;

	*report = (ft_step_report){.learning_rate = ft_learning_rate(t->options, step, t->total_steps)};
	if (t->epoch.index != epoch)
		ft_epoch_shuffle(&t->epoch, t->dataset->train, t->options->seed, epoch);
	chosen = t->epoch.order + t->epoch.first[place];
	n = t->epoch.first[place + 1] - t->epoch.first[place];
	grad_scale = step_grad_scale(t, chosen, n, report);
	FT_TRY(ft_trainer_gradient(t, chosen, n, grad_scale, &sums));
	report->loss = sums.loss * grad_scale;
	report->margin = sums.margin * grad_scale;
	report->trained = sums.trained;
	if (!isfinite(report->loss))
		return ft_fail(FT_NON_FINITE, "loss is %g at step %lld, learning rate %g", report->loss,
					   (long long) step, report->learning_rate);
	FT_TRY(update(t, step, report));
	t->state.step = step;
	t->state.tokens += report->tokens;
	t->state.trained += report->trained;
	t->state.loss += sums.loss;
	t->state.weight += sums.weight;
	return FT_OK;
}

/* --- evaluation --- */

ft_status
ft_trainer_evaluate(ft_trainer *t)
{
	ft_evaluation evaluation = {0};

	FT_TRY(ft_evaluate(t->transformer, t->dataset, t->dataset->validation, t->dataset->n_validation,
					   t->capacity, &t->batch, &evaluation));
	if (evaluation.sums.weight > 0)
	{
		t->state.validation_loss = ft_evaluation_loss(&evaluation);
		t->state.validation_accuracy = ft_evaluation_accuracy(&evaluation);
		t->validation_margin = ft_evaluation_margin(&evaluation);
		if (!isfinite(t->state.validation_loss))
			return ft_fail(FT_NON_FINITE, "validation loss is %g at step %lld",
						   t->state.validation_loss, (long long) t->state.step);
	}
	if (t->state.weight > 0)
		t->state.training_loss = t->state.loss / t->state.weight;
	t->state.loss = 0;
	t->state.weight = 0;
	return FT_OK;
}
