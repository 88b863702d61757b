/*
 * setup.c: what the programs that work on a job directory have in common.
 */
#include "setup.h"

#include "files.h"
#include "hf_config.h"
#include "process.h"
#include "programs.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static volatile sig_atomic_t terminated;

static void
on_terminate(int signal_number)
{
	(void) signal_number;
	terminated = 1;
}

bool
ft_setup_terminated(void)
{
	return terminated;
}

ft_status
ft_setup_tick(void *setup)
{
	ft_setup *s = setup;

	ft_events_progress(s->events);
	return terminated ? ft_fail(FT_CANCELLED, "terminated by a signal") : FT_OK;
}

/* --- the program --- */

static bool
parse_arguments(ft_setup *s, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
	{
		if (strcmp(argv[i], "--control-fd") == 0 && i + 1 < argc)
		{
			char *end;
			long fd = strtol(argv[++i], &end, 10);

			if (*end != '\0' || end == argv[i] || fd < 0 || fd > 1 << 20)
				return false;
			s->control_fd = (int) fd;
		}
		else if (argv[i][0] != '-' && s->directory == NULL)
			s->directory = argv[i];
		else
			return false;
	}
	return s->directory != NULL;
}

bool
ft_setup_arguments(ft_setup *s, int argc, char **argv)
{
	s->lock = -1;
	s->control_fd = -1;
	if (parse_arguments(s, argc, argv))
		return true;
	fprintf(stderr, "usage: pg_finetune_engine %s JOBDIR [--control-fd N]\n", argv[0]);
	return false;
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

ft_status
ft_setup_start(ft_setup *s)
{
	set_signals();
	FT_TRY(ft_events_open(STDOUT_FILENO, &s->events));
	if (s->control_fd >= 0)
		FT_TRY(ft_process_watch_control(s->control_fd));
	return FT_OK;
}

int
ft_setup_end(ft_setup *s, ft_status status)
{
	if (status == FT_OK)
		return FT_EXIT_DONE;
	if (status == FT_CANCELLED)
		return FT_EXIT_CANCELLED;
	ft_log("error", "%s", ft_error_message());
	if (s->events != NULL)
		ft_events_failed(s->events, status);
	return FT_EXIT_FAILED;
}

void
ft_setup_close(ft_setup *s)
{
	ft_model_free(s->model);
	if (s->device != NULL)
		s->ops->device_close(s->device);
	ft_dataset_close(s->dataset);
	ft_tokenizer_free(s->tokenizer);
	ft_model_file_close(s->file);
	ft_job_free(s->job);
	ft_events_close(s->events);
	if (s->lock >= 0)
		close(s->lock);
}

/* --- before the device is taken --- */

ft_status
ft_setup_lock(ft_setup *s)
{
	char path[FT_PATH_SIZE];

	FT_TRY(ft_path_join(path, s->directory, "lock"));
	s->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (s->lock < 0)
		return ft_fail_errno("could not open \"%s\"", path);
	if (flock(s->lock, LOCK_EX | LOCK_NB) == 0)
		return FT_OK;
	if (errno == EWOULDBLOCK)
		return ft_fail(FT_BUSY, "another engine works in \"%s\"", s->directory);
	return ft_fail_errno("could not lock \"%s\"", path);
}

ft_status
ft_setup_open_base(ft_setup *s)
{
	const ft_job *job;

	FT_TRY(ft_job_read(s->directory, &s->job));
	job = s->job;
	if (s->trains && job->options.full && job->adapter != NULL)
		return ft_hint(ft_fail(FT_INVALID, "method full does not continue from an adapter"),
					   "Method lora does; or export the model and continue from that.");
	FT_TRY(ft_model_file_open(job->base_path, &s->file));
	if (s->trains && job->options.full)
		FT_TRY(ft_full_check(s->file, s->directory));
	if (!job->options.all_linear)
		FT_TRY(ft_target_check(ft_model_file_config(s->file), job->options.lora_target_modules));
	ft_events_long_call(s->events, FT_LONG_CALL_SECONDS);
	FT_TRY(ft_model_file_digest(s->file, s->base_digest));
	if (job->base_digest != NULL && strcmp(job->base_digest, s->base_digest) != 0)
		return ft_hint(ft_fail(FT_MISMATCH, "\"%s\" has digest %s, expected %s", job->base_path,
							   s->base_digest, job->base_digest),
					   "The base model's file has changed.");
	FT_TRY(ft_setup_tick(s));
	FT_TRY(ft_tokenizer_create(ft_model_file_vocabulary(s->file), &s->tokenizer));
	return ft_chat_template_find(job->base_template, ft_model_file_template(s->file),
								 &s->chat_template);
}

/* The rows' text is gone once it is tokenised. */
static ft_status
remove_rows(ft_setup *s)
{
	static const char *const names[] = {"train.jsonl", "validation.jsonl"};

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
	{
		char path[FT_PATH_SIZE];

		FT_TRY(ft_path_join(path, s->directory, names[i]));
		FT_TRY(ft_remove_tree(path));
	}
	return FT_OK;
}

/* An adapter to continue from, or to be judged, has its rows in its own prompt template. */
static ft_status
adopt_prompt_template(ft_setup *s)
{
	char path[FT_PATH_SIZE];
	char *prompt_template;
	ft_status status;

	FT_TRY(ft_path_join(path, s->directory, "initial_adapter"));
	if (!ft_file_exists(path) && s->job->adapter == NULL)
		return FT_OK;
	FT_TRY(ft_peft_read_prompt_template(ft_file_exists(path) ? path : s->job->adapter,
										&prompt_template));
	status = ft_options_adopt_template(&s->job->options, prompt_template);
	free(prompt_template);
	return status;
}

ft_status
ft_setup_open_dataset(ft_setup *s)
{
	const ft_options *o = &s->job->options;
	const ft_config *config = ft_model_file_config(s->file);
	ft_dataset_options options = {.max_length =
									  ft_options_max_length(o, config, s->job->context_length),
								  .train_on_inputs = o->train_on_inputs,
								  .pairs = o->dpo,
								  .prompt_template = o->prompt_template,
								  .validation_fraction = o->validation_fraction,
								  .seed = o->seed};
	char path[FT_PATH_SIZE];

	FT_TRY(adopt_prompt_template(s));
	if (o->prompt_template[0] == '\0')
		options.prompt_template = NULL;
	FT_TRY(ft_path_join(path, s->directory, "dataset.bin"));
	if (!ft_file_exists(path))
		FT_TRY(ft_dataset_build(s->directory, &options, config, ft_model_file_vocabulary(s->file),
								s->tokenizer, s->chat_template, ft_setup_tick, s));
	FT_TRY(remove_rows(s));
	return ft_dataset_open(s->directory, &s->dataset);
}

/* --- the device --- */

ft_status
ft_setup_open_device(ft_setup *s)
{
	const ft_job *job = s->job;

	int length =
		ft_options_max_length(&job->options, ft_model_file_config(s->file), job->context_length);

	FT_TRY(ft_device_open_named(job->device, job->threads, job->numerics, &s->ops, &s->device));
	ft_events_long_call(s->events, FT_LONG_CALL_SECONDS);
	if (s->trains && job->options.full)
		FT_TRY(ft_model_load_trainable(s->file, s->ops, s->device, length, &s->model));
	else
		FT_TRY(ft_model_load(s->file, s->ops, s->device,
							 FT_USE_TRAIN | (job->options.qlora ? (unsigned) FT_USE_DEQUANTISE : 0),
							 length, &s->model));
	return ft_setup_tick(s);
}

void
ft_setup_resolve_options(ft_setup *s)
{
	ft_data_size size = {s->dataset->n_train, s->dataset->tokens, s->dataset->max_length};

	ft_options_resolve(&s->job->options, &s->model->config, s->job->context_length, &size);
}

/* The job's own copy of the adapter that it continues from, so that it no longer needs that; made
 * by the first attempt. */
static ft_status
copy_initial_adapter(const ft_setup *s, const char *path)
{
	ft_adapter *adapter;
	ft_status status;

	if (ft_file_exists(path))
		return FT_OK;
	FT_TRY(ft_peft_load(s->model, s->job->adapter, &adapter));
	status = ft_peft_save(adapter, &s->model->config, s->job->base_name, path);
	ft_adapter_free(adapter);
	return status;
}

static ft_status
continue_adapter(ft_setup *s, const char *path, ft_adapter **adapter)
{
	ft_status status;

	FT_TRY(ft_peft_load(s->model, path, adapter));
	status = ft_options_adopt(&s->job->options, *adapter);
	if (status != FT_OK)
	{
		ft_adapter_free(*adapter);
		*adapter = NULL;
	}
	return status;
}

static ft_status
begin_adapter(const ft_setup *s, ft_adapter **adapter)
{
	const ft_options *o = &s->job->options;
	ft_status status;

	FT_TRY(ft_adapter_create(s->model, o->lora_r, (float) o->lora_alpha, o->use_rslora,
							 o->lora_target_modules, adapter));
	status = ft_adapter_init(*adapter, &s->model->config, o->seed);
	if (status != FT_OK)
	{
		ft_adapter_free(*adapter);
		*adapter = NULL;
	}
	return status;
}

/* What is trained with a prompt template is asked with it. */
static ft_status
set_prompt_template(ft_adapter *adapter, const char *prompt_template)
{
	if (prompt_template[0] == '\0' || adapter->prompt_template != NULL)
		return FT_OK;
	adapter->prompt_template = strdup(prompt_template);
	return adapter->prompt_template != NULL ? FT_OK : ft_fail(FT_NO_MEMORY, "out of memory");
}

ft_status
ft_setup_new_adapter(ft_setup *s, ft_adapter **adapter)
{
	char path[FT_PATH_SIZE];
	ft_status status;

	*adapter = NULL;
	if (s->job->options.full)
		return FT_OK;
	FT_TRY(ft_path_join(path, s->directory, "initial_adapter"));
	if (s->job->adapter != NULL)
		FT_TRY(copy_initial_adapter(s, path));
	if (ft_file_exists(path))
		status = continue_adapter(s, path, adapter);
	else
		status = begin_adapter(s, adapter);
	if (status == FT_OK)
		(*adapter)->dropout = s->job->options.lora_dropout;
	if (status == FT_OK)
		status = set_prompt_template(*adapter, s->job->options.prompt_template);
	return status;
}

ft_status
ft_setup_save_checkpoint(const ft_setup *s, ft_trainer *t, const char *identity)
{
	if (t->full != NULL)
		return ft_full_save(s->directory, identity, &t->state, t->full, t->transformer->stream);
	FT_TRY(ft_trainer_read_moments(t));
	return ft_checkpoint_save(s->directory, identity, &t->state, t->adapter, t->best,
							  &s->model->config, s->job->base_name, &t->moments);
}

/* --- events --- */

json_t *
ft_real_or_null(double value)
{
	return isfinite(value) ? json_real(value) : json_null();
}

ft_status
ft_setup_send_dataset(ft_setup *s)
{
	const ft_dataset *d = s->dataset;

	return ft_events_send(
		s->events, "dataset",
		json_pack("{s:{s:I, s:I, s:I, s:I}, s:I, s:I, s:I, s:s}", "rows", "read",
				  (json_int_t) d->rows_read, "used", (json_int_t) d->rows_used, "skipped_null",
				  (json_int_t) d->rows_skipped_null, "truncated", (json_int_t) d->rows_truncated,
				  "validation_rows", (json_int_t) d->n_validation, "tokens", (json_int_t) d->tokens,
				  "trained_tokens", (json_int_t) d->trained, "data_hash", d->data_hash));
}

static int64_t
trainable_parameters(const ft_setup *s, const ft_adapter *adapter)
{
	const ft_config *config = &s->model->config;
	int64_t n = 0;

	if (adapter == NULL)
		return ft_config_parameters(config);
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

ft_status
ft_setup_send_started(ft_setup *s, int64_t resumed_from)
{
	ft_device_info info;

	FT_TRY(s->ops->device_info(s->device, &info));
	return ft_events_send(s->events, "started",
						  json_pack("{s:s, s:i, s:s, s:s, s:I, s:I}", "device", info.name,
									"threads", info.threads, "base_digest", s->base_digest,
									"architecture", s->model->config.architecture, "parameters",
									(json_int_t) ft_model_file_parameters(s->file), "resumed_from",
									(json_int_t) resumed_from));
}

ft_status
ft_setup_send_plan(ft_setup *s, const ft_trainer *t)
{
	return ft_events_send(
		s->events, "plan",
		json_pack("{s:I, s:i, s:o, s:I}", "total_steps", (json_int_t) t->total_steps, "epochs",
				  (int) ((t->total_steps + t->steps_per_epoch - 1) / t->steps_per_epoch), "options",
				  ft_options_json(t->options), "trainable_parameters",
				  (json_int_t) trainable_parameters(s, t->adapter)));
}
