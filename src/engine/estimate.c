/*
 * estimate.c: the program `estimate JOBDIR`: what `train` would do with the
 * same directory, how long it would take, and what memory (README.md).
 *
 * Everything up to the first step is training's own; then some of the work is
 * done and timed, and the trainer is thrown away.  What is counted is exact,
 * the time is an estimate.
 */
#include "evaluator.h"
#include "files.h"
#include "programs.h"
#include "setup.h"

#include <math.h>
#include <stdio.h>

#define PROBE_TOKENS 256    /* of the first looks at the device's speed */
#define MEASURE_SECONDS 1.5 /* of the measurement after it, where the model is that quick */
#define LONGEST_SECONDS 8.0 /* of a batch that is measured */
#define MAX_MEASURED_STEPS 8

typedef struct estimate
{
	ft_setup setup;
	ft_trainer *trainer;
	double started_at;
	double setup_seconds;   /* until the first step */
	double training_rate;   /* seconds of a training token */
	double evaluation_rate; /* seconds of a token that is only looked at */
	double checkpoint_seconds;
	int64_t tokens;  /* of the whole job */
	int64_t trained; /* of them, those with a loss */
} estimate;

/* --- counting --- */

/* Whole epochs, and the steps of one that max_steps cuts short. */
static void
count_tokens(estimate *e)
{
	ft_trainer *t = e->trainer;
	int64_t epochs = t->total_steps / t->steps_per_epoch;
	int64_t rest = t->total_steps % t->steps_per_epoch;

	e->tokens = epochs * t->dataset->tokens;
	e->trained = epochs * t->dataset->trained;
	if (rest == 0)
		return;
	ft_epoch_shuffle(&t->epoch, t->dataset->train, t->options->seed, (uint32_t) epochs);
	for (uint32_t i = 0; i < t->epoch.first[rest]; i++)
	{
		e->tokens += t->dataset->train[t->epoch.order[i]].length;
		e->trained += t->dataset->train[t->epoch.order[i]].trained;
	}
}

static int64_t
count_evaluations(const ft_trainer *t)
{
	int64_t n = 1; /* the untouched base */

	if (t->dataset->n_validation == 0)
		return 0;
	for (int64_t step = 1; step <= t->total_steps; step++)
		n += ft_evaluation_due(t->options, step, t->total_steps);
	return n;
}

static int64_t
validation_tokens(const ft_dataset *d)
{
	int64_t tokens = 0;

	for (uint32_t i = 0; i < d->n_validation; i++)
		tokens += d->validation[i].length;
	return tokens;
}

/* Tokens that are looked at and not trained on: in the evaluations, and by the reference of pairs.
 */
static int64_t
tokens_looked_at(const ft_dataset *d, int64_t evaluations)
{
	int64_t validation = validation_tokens(d);

	return evaluations * validation + (d->pairs ? d->tokens + validation : 0);
}

/* --- measuring --- */

/* How many of n documents, chosen or in their order, have at most `tokens` tokens; at least 1. */
static uint32_t
take_documents(const ft_document *documents, const uint32_t *chosen, uint32_t n, int64_t tokens,
			   int64_t *taken)
{
	uint32_t i = 0;

	*taken = 0;
	do
	{
		*taken += documents[chosen != NULL ? chosen[i] : i].length;
		i++;
	} while (i < n && *taken + documents[chosen != NULL ? chosen[i] : i].length <= tokens);
	return i;
}

/* The gradient of some documents of the first step; its seconds a token. */
static ft_status
time_gradient(estimate *e, int64_t tokens, double *rate)
{
	ft_trainer *t = e->trainer;
	double before = ft_monotonic_seconds();
	ft_loss_sums sums = {0};
	int64_t taken;
	uint32_t n =
		take_documents(t->dataset->train, t->epoch.order, t->epoch.first[1], tokens, &taken);

	FT_TRY(ft_trainer_gradient(t, t->epoch.order, n, 1.0, &sums));
	*rate = (ft_monotonic_seconds() - before) / (double) taken;
	return FT_OK;
}

/* Tokens that are computed together in a step: products of fewer rows are slower, by the token. */
static int64_t
batch_tokens(const ft_trainer *t)
{
	int64_t step = t->dataset->tokens / t->steps_per_epoch;

	/* a part of a step would be cut into as many batches as the whole one */
	if (t->options->gradient_accumulation_steps > 1)
		return step;
	return step < t->capacity ? step : t->capacity;
}

/* Whole steps, where they are quick; else a whole batch, or as much of one as the time allows.  The
 * first pass meets memory that was never touched and is not counted. */
static ft_status
measure_training(estimate *e)
{
	ft_trainer *t = e->trainer;
	int64_t batch = batch_tokens(t);
	double begun;
	int64_t tokens = 0;
	double seconds = 0;

	ft_epoch_shuffle(&t->epoch, t->dataset->train, t->options->seed, 0);
	FT_TRY(time_gradient(e, PROBE_TOKENS, &e->training_rate));
	FT_TRY(time_gradient(e, PROBE_TOKENS, &e->training_rate));
	if (e->training_rate * (double) t->dataset->tokens / (double) t->steps_per_epoch >
		MEASURE_SECONDS)
	{
		double room = LONGEST_SECONDS / e->training_rate;

		if (room > (double) batch)
			room = (double) batch;
		return room > PROBE_TOKENS ? time_gradient(e, (int64_t) room, &e->training_rate) : FT_OK;
	}
	begun = ft_monotonic_seconds();
	for (int i = 0; i < MAX_MEASURED_STEPS && i < t->total_steps && seconds < MEASURE_SECONDS; i++)
	{
		ft_step_report report;

		FT_TRY(ft_trainer_step(t, &report));
		tokens += report.tokens;
		seconds = ft_monotonic_seconds() - begun;
	}
	e->training_rate = seconds / (double) tokens;
	return FT_OK;
}

/* One is written to the directory, which is the estimate's own, and removed. */
static ft_status
measure_checkpoint(estimate *e)
{
	const ft_setup *s = &e->setup;
	ft_trainer *t = e->trainer;
	double before = ft_monotonic_seconds();
	char name[64];
	char path[FT_PATH_SIZE];

	FT_TRY(ft_setup_save_checkpoint(s, t, "estimate"));
	e->checkpoint_seconds = ft_monotonic_seconds() - before;
	snprintf(name, sizeof name, "checkpoint-%lld", (long long) t->state.step);
	FT_TRY(ft_path_join(path, s->directory, name));
	return ft_remove_tree(path);
}

/* As train.c writes them: after some steps, and whenever so much work has been done since; and the
 * result. */
static double
checkpoints_seconds(const estimate *e, double work)
{
	const ft_trainer *t = e->trainer;
	double due = 0;

	for (int64_t step = 1; step <= t->total_steps; step++)
		due += ft_checkpoint_due(t->options, step, t->total_steps);
	return e->checkpoint_seconds *
		   (1 + due * (1 + floor(work / due / ft_checkpoint_interval(e->checkpoint_seconds))));
}

static ft_status
measure_evaluation(estimate *e)
{
	ft_trainer *t = e->trainer;
	const ft_dataset *d = t->dataset;
	double room = fmax(MEASURE_SECONDS / e->training_rate, PROBE_TOKENS);
	ft_evaluation evaluation = {0};
	double before = ft_monotonic_seconds();
	const ft_document *documents = d->n_validation > 0 ? d->validation : d->train;
	int64_t taken;
	uint32_t n;

	if (d->n_validation == 0 && !d->pairs)
		return FT_OK;
	n = take_documents(documents, NULL, d->n_validation > 0 ? d->n_validation : d->n_train,
					   (int64_t) fmin(room, (double) t->capacity), &taken);
	FT_TRY(ft_evaluate(t->transformer, d, documents, n, t->capacity, &t->batch, &evaluation));
	e->evaluation_rate = (ft_monotonic_seconds() - before) / (double) taken;
	return FT_OK;
}

/* --- memory --- */

/* The most that this process has had in memory so far; 0 where the kernel does not say. */
static int64_t
peak_memory(void)
{
	FILE *file = fopen("/proc/self/status", "re");
	char line[256];
	long long kilobytes = 0;

	if (file == NULL)
		return 0;
	while (fgets(line, sizeof line, file) != NULL)
	{
		if (sscanf(line, "VmHWM: %lld", &kilobytes) == 1)
			break;
	}
	fclose(file);
	return (int64_t) kilobytes * 1024;
}

/* Of the adapter; or of the gradient and the moments of all weights, which are the model's. */
static int64_t
trained_bytes(const ft_trainer *t)
{
	if (t->full != NULL)
		return t->full->arena.bytes + t->full->gradients->arena.bytes;
	return t->adapter->n * (int64_t) sizeof(float);
}

/* What is planned, or more where this process has already had more. */
static json_t *
memory_json(const estimate *e, bool host_is_device)
{
	const ft_trainer *t = e->trainer;
	int64_t device =
		t->model->bytes + trained_bytes(t) + t->transformer->arena.bytes + t->arena.bytes;
	int64_t documents = (int64_t) t->dataset->n_train + t->dataset->n_validation;
	size_t reference = t->dataset->pairs ? 2 * sizeof(double) : 0;
	/* moments for checkpoints, index of the documents, order of an epoch */
	int64_t host = t->moments.n * 2 * (int64_t) sizeof(float) +
				   documents * (int64_t) (sizeof(ft_document) + reference + sizeof(uint32_t));
	int64_t peak = peak_memory();

	if (t->full != NULL && t->full->best != NULL)
		host += t->model->parameters->arena.bytes;
	if (host_is_device)
	{
		host += device;
		device = 0;
	}
	return json_pack("{s:I, s:I}", "host", (json_int_t) (host > peak ? host : peak), "device",
					 (json_int_t) device);
}

/* --- the program --- */

static ft_status
prepare(estimate *e)
{
	ft_setup *s = &e->setup;
	ft_adapter *adapter;
	int64_t capacity;
	ft_status status;

	s->trains = true;
	FT_TRY(ft_setup_lock(s));
	FT_TRY(ft_setup_open_base(s));
	FT_TRY(ft_setup_open_dataset(s));
	FT_TRY(ft_setup_open_device(s));
	ft_setup_resolve_options(s);
	ft_events_long_call(s->events, FT_LONG_CALL_SECONDS);
	FT_TRY(ft_setup_new_adapter(s, &adapter));
	status = ft_trainer_choose_capacity(s->model, adapter, s->dataset, &s->job->options, &capacity);
	if (status == FT_OK)
		status = ft_trainer_create(s->model, s->dataset, &s->job->options, adapter, capacity,
								   &e->trainer);
	if (status != FT_OK)
	{
		ft_adapter_free(adapter);
		return status;
	}
	ft_trainer_set_tick(e->trainer, ft_setup_tick, s);
	e->setup_seconds = ft_monotonic_seconds() - e->started_at;
	return ft_setup_tick(s);
}

static ft_status
send_estimate(estimate *e)
{
	ft_setup *s = &e->setup;
	int64_t evaluations = count_evaluations(e->trainer);
	double work = e->training_rate * (double) e->tokens +
				  e->evaluation_rate * (double) tokens_looked_at(s->dataset, evaluations);
	double seconds = e->setup_seconds + work + checkpoints_seconds(e, work);
	ft_device_info info;

	FT_TRY(s->ops->device_info(s->device, &info));
	return ft_events_send(
		s->events, "estimate",
		json_pack("{s:I, s:I, s:I, s:i, s:f, s:f, s:o}", "total_tokens", (json_int_t) e->tokens,
				  "trained_tokens", (json_int_t) e->trained, "evaluations",
				  (json_int_t) evaluations, "max_tokens_per_row", (int) s->dataset->max_length,
				  "seconds", seconds, "tokens_per_second", 1.0 / e->training_rate, "memory",
				  memory_json(e, info.threads > 0)));
}

static ft_status
run(estimate *e)
{
	ft_setup *s = &e->setup;

	e->started_at = ft_monotonic_seconds();
	FT_TRY(prepare(e));
	FT_TRY(ft_setup_send_started(s, 0));
	FT_TRY(ft_setup_send_dataset(s));
	FT_TRY(ft_setup_send_plan(s, e->trainer));
	FT_TRY(measure_training(e));
	FT_TRY(measure_evaluation(e));
	FT_TRY(measure_checkpoint(e));
	count_tokens(e);
	return send_estimate(e);
}

int
ft_estimate_main(int argc, char **argv)
{
	estimate e = {0};
	ft_status status;
	int code;

	if (!ft_setup_arguments(&e.setup, argc, argv))
		return FT_EXIT_USAGE;
	status = ft_setup_start(&e.setup);
	if (status == FT_OK)
		status = run(&e);
	code = ft_setup_end(&e.setup, status);
	ft_trainer_free(e.trainer);
	ft_setup_close(&e.setup);
	return code;
}
