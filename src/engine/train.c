/*
 * train.c: the program `train JOBDIR`: from job.json to an adapter (README.md).
 *
 * Whatever decides the result is fixed before the first step, in plan.json, so
 * that an attempt on a machine with less free memory goes on as the first one
 * did.  Clocks decide only when a checkpoint is written, which changes nothing.
 */
#include "device.h"
#include "events.h"
#include "files.h"
#include "metric_log.h"
#include "process.h"
#include "programs.h"
#include "trainer.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define CHECKPOINT_SECONDS 30.0  /* of work that a killed run may lose */
#define LONG_CALL_SECONDS 1800.0 /* a large base or checkpoint, and a slow disk */
#define MAX_PLAN (1 << 20)

typedef struct run
{
	const char *directory;
	int lock;
	ft_events *events;
	ft_job *job;
	ft_model_file *file;
	char base_digest[FT_DIGEST_HEX];
	ft_tokenizer *tokenizer;
	const ft_chat_template *chat_template;
	ft_dataset *dataset;
	const ft_ops *ops;
	ft_device *device;
	ft_model *model;
	int64_t capacity; /* tokens of a batch, as planned */
	char identity[FT_DIGEST_HEX];
	ft_trainer *trainer;
	int64_t resumed_from;
	ft_metric_log *metrics;
	double step_seconds; /* spent in steps by this attempt */
	int64_t step_tokens; /* trained on by this attempt */
	double saved_at;     /* when the last checkpoint was written */
	int64_t saved_step;  /* and of which step; as one that was resumed from */
	bool evaluating;     /* the state is between a step and its evaluation */
	double round_at;     /* up to when state.elapsed is counted */
} run;

static volatile sig_atomic_t terminated;

static void
on_terminate(int signal_number)
{
	(void) signal_number;
	terminated = 1;
}

/* Between layers and rows: progress for the heartbeat, and the end where one is asked for. */
static ft_status
tick(void *context)
{
	run *r = context;

	ft_events_progress(r->events);
	return terminated ? ft_fail(FT_CANCELLED, "terminated by a signal") : FT_OK;
}

/* --- before the device is taken -----------------------------------------------------------------
 */

static ft_status
lock_directory(run *r)
{
	char path[FT_PATH_SIZE];

	FT_TRY(ft_path_join(path, r->directory, "lock"));
	r->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (r->lock < 0)
		return ft_fail_errno("could not open \"%s\"", path);
	if (flock(r->lock, LOCK_EX | LOCK_NB) == 0)
		return FT_OK;
	if (errno == EWOULDBLOCK)
		return ft_fail(FT_BUSY, "another engine works in \"%s\"", r->directory);
	return ft_fail_errno("could not lock \"%s\"", path);
}

static ft_status
open_base(run *r)
{
	const ft_job *job = r->job;

	FT_TRY(ft_model_file_open(job->base_path, &r->file));
	ft_events_long_call(r->events, LONG_CALL_SECONDS);
	FT_TRY(ft_model_file_digest(r->file, r->base_digest));
	if (job->base_digest != NULL && strcmp(job->base_digest, r->base_digest) != 0)
		return ft_hint(ft_fail(FT_MISMATCH, "\"%s\" has digest %s, expected %s", job->base_path,
							   r->base_digest, job->base_digest),
					   "The base model's file has changed.");
	FT_TRY(tick(r));
	FT_TRY(ft_tokenizer_create(ft_model_file_vocabulary(r->file), &r->tokenizer));
	return ft_chat_template_find(job->base_template, ft_model_file_template(r->file),
								 &r->chat_template);
}

/* The rows' text is gone once it is tokenised. */
static ft_status
remove_rows(run *r)
{
	static const char *const names[] = {"train.jsonl", "validation.jsonl"};

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
	{
		char path[FT_PATH_SIZE];

		FT_TRY(ft_path_join(path, r->directory, names[i]));
		FT_TRY(ft_remove_tree(path));
	}
	return FT_OK;
}

static ft_status
open_dataset(run *r)
{
	const ft_options *o = &r->job->options;
	const ft_config *config = ft_model_file_config(r->file);
	ft_dataset_options options = {.max_length =
									  ft_options_max_length(o, config, r->job->context_length),
								  .train_on_inputs = o->train_on_inputs,
								  .validation_fraction = o->validation_fraction,
								  .seed = o->seed};
	char path[FT_PATH_SIZE];

	FT_TRY(ft_path_join(path, r->directory, "dataset.bin"));
	if (!ft_file_exists(path))
		FT_TRY(ft_dataset_build(r->directory, &options, config, ft_model_file_vocabulary(r->file),
								r->tokenizer, r->chat_template, tick, r));
	FT_TRY(remove_rows(r));
	return ft_dataset_open(r->directory, &r->dataset);
}

/* --- the plan
 * ------------------------------------------------------------------------------------- */

static ft_status
write_plan(run *r, const char *path)
{
	json_t *plan = json_pack("{s:o, s:I}", "options", ft_options_json(&r->job->options), "capacity",
							 (json_int_t) r->capacity);
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
		status = ft_options_read(json_object_get(plan, "options"), &r->job->options);
	if (status == FT_OK)
	{
		r->capacity = json_integer_value(json_object_get(plan, "capacity"));
		if (r->capacity < r->dataset->max_length)
			status = ft_fail(FT_CORRUPT, "\"%s\" has capacity %lld, documents have up to %d tokens",
							 path, (long long) r->capacity, r->dataset->max_length);
	}
	json_decref(plan);
	ft_text_free(&text);
	return status;
}

/* A checkpoint goes on only with the same base, data and plan. */
static ft_status
make_identity(run *r)
{
	json_t *options = ft_options_json(&r->job->options);
	char *dump = json_dumps(options, JSON_COMPACT | JSON_SORT_KEYS);
	ft_text text = {0};
	ft_status status;

	json_decref(options);
	if (dump == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	status = ft_text_printf(&text, "%s %s %lld %s", r->base_digest, r->dataset->data_hash,
							(long long) r->capacity, dump);
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
	ft_data_size size = {r->dataset->n_train, r->dataset->tokens, r->dataset->max_length};

	if (ft_file_exists(path))
		return read_plan(r, path);
	ft_options_resolve(&r->job->options, &r->model->config, r->job->context_length, &size);
	return FT_OK;
}

/* --- the device
 * ----------------------------------------------------------------------------------- */

static ft_status
open_device(run *r)
{
	const ft_job *job = r->job;

	FT_TRY(ft_device_open_named(job->device, job->threads, job->numerics, &r->ops, &r->device));
	ft_events_long_call(r->events, LONG_CALL_SECONDS);
	FT_TRY(ft_model_load(
		r->file, r->ops, r->device, FT_USE_TRAIN,
		ft_options_max_length(&job->options, ft_model_file_config(r->file), job->context_length),
		&r->model));
	return tick(r);
}

/* A new adapter, the batch size that the memory allows, and the trainer over both. */
static ft_status
create_trainer(run *r, const char *plan)
{
	const ft_options *o = &r->job->options;
	bool planned = ft_file_exists(plan);
	ft_adapter *adapter;
	ft_status status;

	FT_TRY(ft_adapter_create(r->model, o->lora_r, (float) o->lora_alpha, o->use_rslora,
							 o->lora_target_modules, &adapter));
	status = ft_adapter_init(adapter, &r->model->config, o->seed);
	if (status == FT_OK && !planned)
		status = ft_trainer_choose_capacity(r->model, adapter, r->dataset, o, &r->capacity);
	if (status == FT_OK && !planned)
		status = write_plan(r, plan);
	if (status == FT_OK)
		status = ft_trainer_create(r->model, r->dataset, o, adapter, r->capacity, &r->trainer);
	if (status != FT_OK)
	{
		ft_adapter_free(adapter);
		return status;
	}
	ft_trainer_set_tick(r->trainer, tick, r);
	return FT_OK;
}

/* Put the newest checkpoint's values into the trainer. */
static ft_status
resume(run *r)
{
	ft_trainer *t = r->trainer;
	ft_run_state state;
	ft_adapter *saved;
	ft_status status;

	FT_TRY(ft_checkpoint_load(r->directory, r->identity, r->model, &state, &saved, &t->moments));
	if (saved == NULL)
		return FT_OK;
	status = r->ops->copy(t->transformer->stream, t->adapter->values, saved->values,
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

	FT_TRY(ft_checkpoint_clean(r->directory));
	FT_TRY(ft_job_read(r->directory, &r->job));
	FT_TRY(open_base(r));
	FT_TRY(open_dataset(r));
	FT_TRY(open_device(r));
	FT_TRY(ft_path_join(plan, r->directory, "plan.json"));
	FT_TRY(resolve_options(r, plan));
	ft_events_long_call(r->events, LONG_CALL_SECONDS);
	FT_TRY(create_trainer(r, plan));
	FT_TRY(make_identity(r));
	FT_TRY(resume(r));
	FT_TRY(ft_metric_log_open(r->directory, r->resumed_from, &r->metrics));
	return tick(r);
}

/* --- events
 * --------------------------------------------------------------------------------------- */

static json_t *
real_or_null(double value)
{
	return isfinite(value) ? json_real(value) : json_null();
}

static ft_status
send_dataset(run *r)
{
	const ft_dataset *d = r->dataset;

	return ft_events_send(
		r->events, "dataset",
		json_pack("{s:{s:I, s:I, s:I, s:I}, s:I, s:I, s:I, s:s}", "rows", "read",
				  (json_int_t) d->rows_read, "used", (json_int_t) d->rows_used, "skipped_null",
				  (json_int_t) d->rows_skipped_null, "truncated", (json_int_t) d->rows_truncated,
				  "validation_rows", (json_int_t) d->n_validation, "tokens", (json_int_t) d->tokens,
				  "trained_tokens", (json_int_t) d->trained, "data_hash", d->data_hash));
}

static int64_t
trainable_parameters(const ft_adapter *adapter, const ft_config *config)
{
	int64_t n = 0;

	for (int t = 0; t < FT_TARGET_COUNT; t++)
	{
		int in;
		int out;

		ft_target_shape(config, (ft_target) t, &in, &out);
		if (adapter->targets & (1u << t))
			n += (int64_t) adapter->rank * (in + out) * adapter->layers;
	}
	return n;
}

static ft_status
send_started(run *r)
{
	ft_device_info info;

	FT_TRY(r->ops->device_info(r->device, &info));
	return ft_events_send(r->events, "started",
						  json_pack("{s:s, s:i, s:s, s:s, s:I, s:I}", "device", info.name,
									"threads", info.threads, "base_digest", r->base_digest,
									"architecture", r->model->config.architecture, "parameters",
									(json_int_t) ft_model_file_parameters(r->file), "resumed_from",
									(json_int_t) r->resumed_from));
}

static ft_status
send_plan(run *r)
{
	const ft_trainer *t = r->trainer;

	return ft_events_send(
		r->events, "plan",
		json_pack("{s:I, s:i, s:o, s:I}", "total_steps", (json_int_t) t->total_steps, "epochs",
				  (int) ((t->total_steps + t->steps_per_epoch - 1) / t->steps_per_epoch), "options",
				  ft_options_json(t->options), "trainable_parameters",
				  (json_int_t) trainable_parameters(t->adapter, &r->model->config)));
}

static ft_status
send_start(run *r)
{
	FT_TRY(send_started(r));
	FT_TRY(send_dataset(r));
	FT_TRY(send_plan(r));
	if (r->job->replay_from < 0)
		return FT_OK;
	return ft_metric_log_replay(r->metrics, r->job->replay_from, r->events);
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
		status = ft_events_send_line(r->events, line, n);
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

static ft_status
send_step(run *r, const ft_step_report *report)
{
	const ft_trainer *t = r->trainer;

	return send_metrics(
		r, "step",
		json_pack("{s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:f, s:f}", "step",
				  (json_int_t) t->state.step, "total_steps", (json_int_t) t->total_steps, "epoch",
				  epochs_done(t), "training_loss", report->loss, "learning_rate",
				  report->learning_rate, "grad_norm", report->grad_norm, "tokens",
				  (json_int_t) t->state.tokens, "trained_tokens", (json_int_t) t->state.trained,
				  "tokens_per_second", tokens_per_second(r), "elapsed", t->state.elapsed));
}

static ft_status
send_evaluation(run *r)
{
	const ft_trainer *t = r->trainer;

	return send_metrics(
		r, "evaluation",
		json_pack("{s:I, s:f, s:o, s:o}", "step", (json_int_t) t->state.step, "epoch",
				  epochs_done(t), "validation_loss", real_or_null(t->state.validation_loss),
				  "validation_token_accuracy", real_or_null(t->state.validation_accuracy)));
}

static ft_status
send_completed(run *r)
{
	const ft_trainer *t = r->trainer;

	return ft_events_send(
		r->events, "completed",
		json_pack("{s:s, s:o, s:o, s:o, s:I, s:I, s:f}", "adapter", "adapter", "training_loss",
				  real_or_null(t->state.training_loss), "validation_loss",
				  real_or_null(t->state.validation_loss), "validation_token_accuracy",
				  real_or_null(t->state.validation_accuracy), "steps", (json_int_t) t->state.step,
				  "trained_tokens", (json_int_t) t->state.trained, "tokens_per_second",
				  tokens_per_second(r)));
}

/* --- training
 * ------------------------------------------------------------------------------------- */

static void
count_elapsed(run *r)
{
	double now = ft_monotonic_seconds();

	r->trainer->state.elapsed += now - r->round_at;
	r->round_at = now;
}

static ft_status
evaluate(run *r)
{
	r->evaluating = true;
	FT_TRY(ft_trainer_evaluate(r->trainer));
	r->evaluating = false;
	if (r->dataset->n_validation == 0)
		return FT_OK;
	return send_evaluation(r);
}

static ft_status
save(run *r)
{
	ft_trainer *t = r->trainer;
	char name[64];

	count_elapsed(r);
	ft_events_long_call(r->events, LONG_CALL_SECONDS);
	FT_TRY(ft_metric_log_sync(r->metrics));
	FT_TRY(ft_trainer_read_moments(t));
	FT_TRY(ft_checkpoint_save(r->directory, r->identity, &t->state, t->adapter, &r->model->config,
							  r->job->base_name, &t->moments));
	r->saved_at = ft_monotonic_seconds();
	r->saved_step = t->state.step;
	snprintf(name, sizeof name, "checkpoint-%lld", (long long) t->state.step);
	return ft_events_send(
		r->events, "checkpoint",
		json_pack("{s:I, s:s}", "step", (json_int_t) t->state.step, "path", name));
}

static ft_status
one_step(run *r)
{
	ft_trainer *t = r->trainer;
	double before = ft_monotonic_seconds();
	ft_step_report report;
	bool due;

	FT_TRY(tick(r));
	FT_TRY(ft_trainer_step(t, &report));
	r->step_seconds += ft_monotonic_seconds() - before;
	r->step_tokens += report.tokens;
	count_elapsed(r);
	FT_TRY(send_step(r, &report));
	due = ft_evaluation_due(t->options, t->state.step, t->total_steps);
	if (due)
		FT_TRY(evaluate(r));
	if (due || ft_monotonic_seconds() - r->saved_at >= CHECKPOINT_SECONDS)
		FT_TRY(save(r));
	return FT_OK;
}

static ft_status
train(run *r)
{
	ft_trainer *t = r->trainer;
	char path[FT_PATH_SIZE];

	r->saved_at = r->round_at = ft_monotonic_seconds();
	if (t->state.step == 0)
		FT_TRY(evaluate(r));
	while (t->state.step < t->total_steps)
		FT_TRY(one_step(r));
	ft_events_long_call(r->events, LONG_CALL_SECONDS);
	FT_TRY(ft_path_join(path, r->directory, "adapter"));
	FT_TRY(ft_peft_save(t->adapter, &r->model->config, r->job->base_name, path));
	return send_completed(r);
}

/* Asked to end: the work since the last checkpoint need not be done again.  A step that was under
 * way has changed nothing yet; of an evaluation nothing is kept, so its step is taken again. */
static ft_status
save_at_end(run *r)
{
	if (!terminated || r->evaluating || r->trainer->state.step == r->saved_step)
		return FT_CANCELLED;
	FT_TRY(save(r));
	return FT_CANCELLED;
}

static ft_status
run_job(run *r)
{
	ft_status status;

	FT_TRY(lock_directory(r));
	FT_TRY(prepare(r));
	FT_TRY(send_start(r));
	status = train(r);
	return status == FT_CANCELLED ? save_at_end(r) : status;
}

static void
release(run *r)
{
	ft_metric_log_close(r->metrics);
	ft_trainer_free(r->trainer);
	ft_model_free(r->model);
	if (r->device != NULL)
		r->ops->device_close(r->device);
	ft_dataset_close(r->dataset);
	ft_tokenizer_free(r->tokenizer);
	ft_model_file_close(r->file);
	ft_job_free(r->job);
	ft_events_close(r->events);
	if (r->lock >= 0)
		close(r->lock);
}

/* --- the program
 * ---------------------------------------------------------------------------------- */

static int
usage(void)
{
	fputs("usage: pg_finetune_engine train JOBDIR [--control-fd N]\n", stderr);
	return FT_EXIT_USAGE;
}

static bool
parse_arguments(int argc, char **argv, const char **directory, int *control_fd)
{
	*directory = NULL;
	*control_fd = -1;
	for (int i = 1; i < argc; i++)
	{
		if (strcmp(argv[i], "--control-fd") == 0 && i + 1 < argc)
		{
			char *end;
			long fd = strtol(argv[++i], &end, 10);

			if (*end != '\0' || end == argv[i] || fd < 0 || fd > 1 << 20)
				return false;
			*control_fd = (int) fd;
		}
		else if (argv[i][0] != '-' && *directory == NULL)
			*directory = argv[i];
		else
			return false;
	}
	return *directory != NULL;
}

static void
set_signals(void)
{
	struct sigaction action = {.sa_handler = on_terminate};

	terminated = 0;
	sigaction(SIGTERM, &action, NULL);
	action.sa_handler = SIG_IGN;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGPIPE, &action, NULL);
}

int
ft_train_main(int argc, char **argv)
{
	run r = {.lock = -1};
	int control_fd;
	ft_status status;

	if (!parse_arguments(argc, argv, &r.directory, &control_fd))
		return usage();
	set_signals();
	status = ft_events_open(STDOUT_FILENO, &r.events);
	if (status != FT_OK)
	{
		ft_log("error", "%s", ft_error_message());
		return FT_EXIT_FAILED;
	}
	if (control_fd >= 0)
		status = ft_process_watch_control(control_fd);
	if (status == FT_OK)
		status = run_job(&r);
	if (status != FT_OK && status != FT_CANCELLED)
	{
		ft_log("error", "%s", ft_error_message());
		ft_events_failed(r.events, status);
	}
	release(&r);
	return status == FT_OK          ? FT_EXIT_DONE
		   : status == FT_CANCELLED ? FT_EXIT_CANCELLED
									: FT_EXIT_FAILED;
}
