/*
 * train.c: the program `train JOBDIR`: from job.json to an adapter, or with
 * method full to a model (README.md).
 *
 * Whatever decides the result is fixed before the first step, in plan.json, so
 * that an attempt on a machine with less free memory goes on as the first one
 * did.  Clocks decide only when a checkpoint is written, which changes nothing.
 */
#include "early_stopping.h"
#include "files.h"
#include "metric_log.h"
#include "programs.h"
#include "reference.h"
#include "setup.h"

#include <stdlib.h>
#include <string.h>

#define MAX_PLAN (1 << 20)

typedef struct run
{
	ft_setup setup;
	int64_t capacity; /* tokens of a batch, as planned */
	char identity[FT_DIGEST_HEX];
	ft_trainer *trainer;
	int64_t resumed_from;
	ft_metric_log *metrics;
	double step_seconds; /* spent in steps by this attempt */
	int64_t step_tokens; /* trained on by this attempt */
	double saved_at;     /* when the last checkpoint was written */
	double save_seconds; /* what that took */
	int64_t saved_step;  /* and of which step; as one that was resumed from */
	bool evaluating;     /* the state is between a step and its evaluation */
	double round_at;     /* up to when state.elapsed is counted */
} run;

/* --- the plan --- */

static ft_status
write_plan(run *r, const char *path)
{
	json_t *plan = json_pack("{s:o, s:I}", "options", ft_options_json(&r->setup.job->options),
							 "capacity", (json_int_t) r->capacity);
	char *text = json_dumps(plan, JSON_INDENT(2));
	ft_status status;

	json_decref(plan);
	if (text == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	status = ft_replace_file(path, text, strlen(text));
	free(text);
	return status;
}

static ft_status
read_plan(run *r, const char *path)
{
	ft_text text = {0};
	json_t *plan = NULL;
	ft_status status = ft_read_file(path, MAX_PLAN, &text);

	if (status == FT_OK &&
		(plan = json_loadb(text.data, text.length, JSON_REJECT_DUPLICATES, NULL)) == NULL)
		status = ft_fail(FT_CORRUPT, "\"%s\" is not valid JSON", path);
	if (status == FT_OK)
		status = ft_options_read(json_object_get(plan, "options"), &r->setup.job->options);
	if (status == FT_OK)
	{
		r->capacity = json_integer_value(json_object_get(plan, "capacity"));
		if (r->capacity < r->setup.dataset->max_length)
			status = ft_fail(FT_CORRUPT, "\"%s\" has capacity %lld, documents have up to %d tokens",
							 path, (long long) r->capacity, r->setup.dataset->max_length);
	}
	json_decref(plan);
	ft_text_free(&text);
	return status;
}

/* A checkpoint goes on only with the same base, data and plan. */
static ft_status
make_identity(run *r)
{
	json_t *options = ft_options_json(&r->setup.job->options);
	char *dump = json_dumps(options, JSON_COMPACT | JSON_SORT_KEYS);
	ft_text text = {0};
	ft_status status;

	json_decref(options);
	if (dump == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	status = ft_text_printf(&text, "%s %s %lld %s", r->setup.base_digest,
							r->setup.dataset->data_hash, (long long) r->capacity, dump);
	if (status == FT_OK)
		status = ft_digest_bytes(text.data, text.length, r->identity);
	ft_text_free(&text);
	free(dump);
	return status;
}

/* Resolve the options, or take those of the first attempt. */
static ft_status
resolve_options(run *r, const char *path)
{
	if (ft_file_exists(path))
		return read_plan(r, path);
	ft_setup_resolve_options(&r->setup);
	return FT_OK;
}

/* --- the device --- */

/* A new adapter, the batch size that the memory allows, and the trainer over both. */
static ft_status
create_trainer(run *r, const char *plan)
{
	const ft_options *o = &r->setup.job->options;
	bool planned = ft_file_exists(plan);
	ft_adapter *adapter;
	ft_status status;

	FT_TRY(ft_setup_new_adapter(&r->setup, &adapter));
	status = FT_OK;
	if (!planned)
		status =
			ft_trainer_choose_capacity(r->setup.model, adapter, r->setup.dataset, o, &r->capacity);
	if (status == FT_OK && !planned)
		status = write_plan(r, plan);
	if (status == FT_OK)
		status = ft_trainer_create(r->setup.model, r->setup.dataset, o, adapter, r->capacity,
								   &r->trainer);
	if (status != FT_OK)
	{
		ft_adapter_free(adapter);
		return status;
	}
	ft_trainer_set_tick(r->trainer, ft_setup_tick, &r->setup);
	return FT_OK;
}

static ft_status
resume_full(run *r)
{
	ft_trainer *t = r->trainer;
	ft_run_state state;
	bool found;

	FT_TRY(ft_full_load(r->setup.directory, r->identity, &state, t->full, t->transformer->stream,
						&found));
	if (!found)
		return FT_OK;
	r->resumed_from = r->saved_step = state.step;
	return ft_trainer_resume(t, &state);
}

/* Put the newest checkpoint's values into the trainer. */
static ft_status
resume(run *r)
{
	ft_trainer *t = r->trainer;
	ft_run_state state;
	ft_adapter *saved;
	ft_adapter *best;
	ft_status status;

	if (t->full != NULL)
		return resume_full(r);
	FT_TRY(ft_checkpoint_load(r->setup.directory, r->identity, r->setup.model, &state, &saved,
							  &best, &t->moments));
	if (saved == NULL)
		return FT_OK;
	if (best != NULL)
	{
		ft_adapter_free(t->best);
		t->best = best;
	}
	/* while the adapter is still the first one; there is something to do only for a damaged file */
	status = ft_reference_prepare(r->setup.directory, r->identity, t);
	if (status == FT_OK)
		status = r->setup.ops->copy(t->transformer->stream, t->adapter->values, saved->values,
									(size_t) saved->n * sizeof(float));
	if (status == FT_OK)
		status = ft_trainer_resume(t, &state); /* waits, so that the copy may go */
	if (status == FT_OK)
		status = ft_transformer_adapter_changed(t->transformer);
	ft_adapter_free(saved);
	r->resumed_from = r->saved_step = state.step;
	return status;
}

static ft_status
prepare(run *r)
{
	char plan[FT_PATH_SIZE];

	r->setup.trains = true;
	FT_TRY(ft_checkpoint_clean(r->setup.directory));
	FT_TRY(ft_setup_open_base(&r->setup));
	FT_TRY(ft_setup_open_dataset(&r->setup));
	FT_TRY(ft_setup_open_device(&r->setup));
	FT_TRY(ft_path_join(plan, r->setup.directory, "plan.json"));
	FT_TRY(resolve_options(r, plan));
	ft_events_long_call(r->setup.events, FT_LONG_CALL_SECONDS);
	FT_TRY(create_trainer(r, plan));
	FT_TRY(make_identity(r));
	FT_TRY(resume(r));
	FT_TRY(ft_metric_log_open(r->setup.directory, r->resumed_from, &r->metrics));
	return ft_setup_tick(&r->setup);
}

/* --- events --- */

static ft_status
send_start(run *r)
{
	FT_TRY(ft_setup_send_started(&r->setup, r->resumed_from));
	FT_TRY(ft_setup_send_dataset(&r->setup));
	FT_TRY(ft_setup_send_plan(&r->setup, r->trainer));
	if (r->setup.job->replay_from < 0)
		return FT_OK;
	return ft_metric_log_replay(r->metrics, r->setup.job->replay_from, r->setup.events);
}

/* An event that carries metrics is logged before anybody can have read it. */
static ft_status
send_metrics(run *r, const char *name, json_t *fields)
{
	char *line;
	size_t n;
	ft_status status;

	FT_TRY(ft_event_line(name, fields, &line, &n));
	status = ft_metric_log_append(r->metrics, line, n);
	if (status == FT_OK)
		status = ft_events_send_line(r->setup.events, line, n);
	free(line);
	return status;
}

static double
epochs_done(const ft_trainer *t)
{
	return (double) t->state.step / (double) t->steps_per_epoch;
}

static double
tokens_per_second(const run *r)
{
	return r->step_seconds > 0 ? (double) r->step_tokens / r->step_seconds : 0.0;
}

/* Only pairs have a margin. */
static json_t *
margin_or_nothing(const run *r, double margin)
{
	return r->setup.dataset->pairs ? ft_real_or_null(margin) : NULL;
}

static ft_status
send_step(run *r, const ft_step_report *report)
{
	const ft_trainer *t = r->trainer;

	return send_metrics(
		r, "step",
		json_pack("{s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:f, s:f, s:o*}", "step",
				  (json_int_t) t->state.step, "total_steps", (json_int_t) t->total_steps, "epoch",
				  epochs_done(t), "training_loss", report->loss, "learning_rate",
				  report->learning_rate, "grad_norm", report->grad_norm, "tokens",
				  (json_int_t) t->state.tokens, "trained_tokens", (json_int_t) t->state.trained,
				  "tokens_per_second", tokens_per_second(r), "elapsed", t->state.elapsed,
				  "reward_margin", margin_or_nothing(r, report->margin)));
}

static ft_status
send_evaluation(run *r)
{
	const ft_trainer *t = r->trainer;

	return send_metrics(
		r, "evaluation",
		json_pack("{s:I, s:f, s:o, s:o, s:o*}", "step", (json_int_t) t->state.step, "epoch",
				  epochs_done(t), "validation_loss", ft_real_or_null(t->state.validation_loss),
				  "validation_token_accuracy", ft_real_or_null(t->state.validation_accuracy),
				  "reward_margin", margin_or_nothing(r, t->validation_margin)));
}

static ft_status
send_stopped_early(run *r)
{
	const ft_trainer *t = r->trainer;

	return ft_events_send(r->setup.events, "stopped_early",
						  json_pack("{s:I, s:I, s:I, s:f}", "step", (json_int_t) t->state.step,
									"total_steps", (json_int_t) t->total_steps, "best_step",
									(json_int_t) t->state.best.step, "validation_loss",
									t->state.best.validation_loss));
}

static ft_status
send_completed(run *r)
{
	const ft_trainer *t = r->trainer;
	const char *result = t->full != NULL ? FT_FULL_RESULT : "adapter";

	return ft_events_send(
		r->setup.events, "completed",
		json_pack("{s:s, s:o, s:o, s:o, s:I, s:I, s:I, s:f}", result, result, "training_loss",
				  ft_real_or_null(t->state.training_loss), "validation_loss",
				  ft_real_or_null(t->state.validation_loss), "validation_token_accuracy",
				  ft_real_or_null(t->state.validation_accuracy), "steps",
				  (json_int_t) t->state.step, "best_step",
				  (json_int_t) (t->state.best.step > 0 ? t->state.best.step : t->state.step),
				  "trained_tokens", (json_int_t) t->state.trained, "tokens_per_second",
				  tokens_per_second(r)));
}

/* --- training --- */

static void
count_elapsed(run *r)
{
	double now = ft_monotonic_seconds();

	r->trainer->state.elapsed += now - r->round_at;
	r->round_at = now;
}

/* It takes a third of an epoch or so: it is told before. */
static ft_status
make_reference(run *r)
{
	const ft_dataset *d = r->setup.dataset;

	if (!d->pairs)
		return FT_OK;
	FT_TRY(ft_events_send(r->setup.events, "reference",
						  json_pack("{s:I}", "pairs", (json_int_t) d->n_train + d->n_validation)));
	return ft_reference_prepare(r->setup.directory, r->identity, r->trainer);
}

static ft_status
evaluate(run *r)
{
	r->evaluating = true;
	FT_TRY(ft_trainer_evaluate(r->trainer));
	FT_TRY(ft_early_stopping_note(r->trainer));
	r->evaluating = false;
	if (r->setup.dataset->n_validation == 0)
		return FT_OK;
	return send_evaluation(r);
}

static ft_status
save(run *r)
{
	ft_trainer *t = r->trainer;
	char name[64];

	count_elapsed(r);
	ft_events_long_call(r->setup.events, FT_LONG_CALL_SECONDS);
	FT_TRY(ft_metric_log_sync(r->metrics));
	FT_TRY(ft_setup_save_checkpoint(&r->setup, t, r->identity));
	r->saved_at = ft_monotonic_seconds();
	r->save_seconds = r->saved_at - r->round_at;
	r->saved_step = t->state.step;
	snprintf(name, sizeof name, "checkpoint-%lld", (long long) t->state.step);
	return ft_events_send(
		r->setup.events, "checkpoint",
		json_pack("{s:I, s:s}", "step", (json_int_t) t->state.step, "path", name));
}

static ft_status
one_step(run *r)
{
	ft_trainer *t = r->trainer;
	double before = ft_monotonic_seconds();
	ft_step_report report;

	FT_TRY(ft_setup_tick(&r->setup));
	FT_TRY(ft_trainer_step(t, &report));
	r->step_seconds += ft_monotonic_seconds() - before;
	r->step_tokens += report.tokens;
	count_elapsed(r);
	FT_TRY(send_step(r, &report));
	if (ft_evaluation_due(t->options, t->state.step, t->total_steps))
		FT_TRY(evaluate(r));
	if (ft_checkpoint_due(t->options, t->state.step, t->total_steps) ||
		ft_monotonic_seconds() - r->saved_at >= ft_checkpoint_interval(r->save_seconds))
		FT_TRY(save(r));
	return FT_OK;
}

/* A signal is not looked for: the work is done, and told of in a moment. */
static ft_status
write_result(run *r)
{
	const ft_trainer *t = r->trainer;
	char path[FT_PATH_SIZE];

	if (t->full != NULL)
		return ft_full_write(t->full, t->transformer->stream, r->setup.file, r->setup.directory,
							 NULL, NULL);
	FT_TRY(ft_path_join(path, r->setup.directory, "adapter"));
	return ft_peft_save(t->adapter, &r->setup.model->config, r->setup.job->base_name, path);
}

static ft_status
train(run *r)
{
	ft_trainer *t = r->trainer;

	r->saved_at = r->round_at = ft_monotonic_seconds();
	if (t->state.step == 0)
	{
		FT_TRY(make_reference(r));
		FT_TRY(evaluate(r));
	}
	while (t->state.step < t->total_steps && !ft_early_stopping_due(t))
		FT_TRY(one_step(r));
	if (t->state.step < t->total_steps)
		FT_TRY(send_stopped_early(r));
	FT_TRY(ft_early_stopping_take_best(t));
	ft_events_long_call(r->setup.events, FT_LONG_CALL_SECONDS);
	FT_TRY(write_result(r));
	return send_completed(r);
}

/* Asked to end: the work since the last checkpoint need not be done again.  A step that was under
 * way has changed nothing yet; of an evaluation nothing is kept, so its step is taken again. */
static ft_status
save_at_end(run *r)
{
	if (!ft_setup_terminated() || r->evaluating || r->trainer->state.step == r->saved_step)
		return FT_CANCELLED;
	FT_TRY(save(r));
	return FT_CANCELLED;
}

static ft_status
run_job(run *r)
{
	ft_status status;

	FT_TRY(ft_setup_lock(&r->setup));
	FT_TRY(prepare(r));
	FT_TRY(send_start(r));
	status = train(r);
	return status == FT_CANCELLED ? save_at_end(r) : status;
}

int
ft_train_main(int argc, char **argv)
{
	run r = {0};
	ft_status status;
	int code;

	if (!ft_setup_arguments(&r.setup, argc, argv))
		return FT_EXIT_USAGE;
	status = ft_setup_start(&r.setup);
	if (status == FT_OK)
		status = run_job(&r);
	code = ft_setup_end(&r.setup, status);
	ft_metric_log_close(r.metrics);
	ft_trainer_free(r.trainer);
	ft_setup_close(&r.setup);
	return code;
}
