/*
 * job_events.c: the training engine's events, one JSON object a line, into
 * rows of finetune.metric and finetune.event, columns of finetune.job, and the
 * job's slot in shared memory.
 *
 * A handler for each kind of event; what this version does not know it
 * ignores, so that an engine may say more.  Lines that arrive together share a
 * transaction, which begins by making sure that the job is still this
 * attempt's.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "job_events.h"
#include "json.h"
#include "options.h"
#include "shmem.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/memutils.h"

typedef void (*EventHandler)(PgftJobEvents *events, Jsonb *event);

/* A row of SPI parameters that is filled from an event's members. */
typedef struct Parameters
{
	int count;
	Oid types[PGFT_JOB_UPDATE_ARGS];
	Datum values[PGFT_JOB_UPDATE_ARGS];
	char nulls[PGFT_JOB_UPDATE_ARGS];
} Parameters;

static void
add_parameter(Parameters *parameters, Oid type, Datum value, bool isnull)
{
	Assert(parameters->count < PGFT_JOB_UPDATE_ARGS);
	parameters->types[parameters->count] = type;
	parameters->values[parameters->count] = value;
	parameters->nulls[parameters->count] = isnull ? 'n' : ' ';
	parameters->count++;
}

static void
add_text(Parameters *parameters, Jsonb *event, const char *name)
{
	char *text = pgft_json_string(&event->root, name);

	add_parameter(parameters, TEXTOID, text ? CStringGetTextDatum(text) : (Datum) 0, text == NULL);
}

static void
add_double(Parameters *parameters, Jsonb *event, const char *name)
{
	double number = 0;
	bool found = pgft_json_double(&event->root, name, &number);

	add_parameter(parameters, FLOAT8OID, Float8GetDatum(number), !found);
}

static void
add_int64(Parameters *parameters, Jsonb *event, const char *name)
{
	int64 number = 0;
	bool found = pgft_json_int64(&event->root, name, &number);

	add_parameter(parameters, INT8OID, Int64GetDatum(number), !found);
}

static void
add_jsonb(Parameters *parameters, Jsonb *event, const char *name)
{
	Jsonb *jsonb = pgft_json_any(&event->root, name);

	add_parameter(parameters, JSONBOID, PointerGetDatum(jsonb), jsonb == NULL);
}

static void
update_job(PgftJobEvents *events, const char *set, Parameters *parameters)
{
	pgft_job_update(events->job, set, parameters->count, parameters->types, parameters->values,
					parameters->nulls);
}

static char *
keep_string(PgftJobEvents *events, Jsonb *event, const char *name)
{
	char *text = pgft_json_string(&event->root, name);

	return text ? MemoryContextStrdup(events->context, text) : NULL;
}

static int64
get_int64(Jsonb *event, const char *name)
{
	int64 number = 0;

	pgft_json_int64(&event->root, name, &number);
	return number;
}

/* A new checkpoint is what makes an attempt worth while; `fruitless` counts those after it. */
static void
note_checkpoint(PgftJobEvents *events, int64 step, int fruitless)
{
	Parameters parameters = {0};

	add_parameter(&parameters, INT8OID, Int64GetDatum(step), false);
	add_parameter(&parameters, INT4OID, Int32GetDatum(fruitless), false);
	update_job(events, "checkpoint_step = $3, fruitless = $4", &parameters);
	events->job->checkpoint_step = step;
	events->job->fruitless = fruitless;
	pgft_job_add_event(&events->job->id, "info", "checkpoint",
					   psprintf("checkpoint at step " INT64_FORMAT, step), NULL);
}

static void
on_checkpoint(PgftJobEvents *events, Jsonb *event)
{
	note_checkpoint(events, get_int64(event, "step"), 0);
}

/*
 * The base's file was not there when its server was created: this is the first
 * look at it.  Nothing is waited for, as DROP SERVER locks models before jobs.
 */
static void
record_base(PgftJobEvents *events, const char *digest)
{
	Oid types[] = {UUIDOID, TEXTOID};
	Datum values[] = {UUIDPGetDatum(&events->job->base_id), CStringGetTextDatum(digest)};

	pgft_execute("UPDATE finetune.model SET base_digest = $2 WHERE id IN "
				 "(SELECT id FROM finetune.model WHERE id = $1 AND kind = 'base' "
				 "AND base_digest IS NULL FOR NO KEY UPDATE SKIP LOCKED)",
				 2, types, values, NULL, SPI_OK_UPDATE);
}

/* The engine is at work.  What an earlier attempt did after its last checkpoint is done again. */
static void
on_started(PgftJobEvents *events, Jsonb *event)
{
	Parameters parameters = {0};
	Oid types[] = {UUIDOID, INT8OID};
	Datum values[2];
	char *device = pgft_json_string(&event->root, "device");

	events->resumed_from = events->step = get_int64(event, "resumed_from");
	add_text(&parameters, event, "device");
	add_text(&parameters, event, "base_digest");
	add_text(&parameters, event, "architecture");
	add_int64(&parameters, event, "parameters");
	update_job(events,
			   "phase = 'running', device = $3, base_digest = coalesce(base_digest, $4),"
			   " architecture = $5, parameters = $6",
			   &parameters);

	/* one that an earlier worker did not live to write down */
	if (events->resumed_from > events->job->checkpoint_step)
		note_checkpoint(events, events->resumed_from, 1);
	values[0] = UUIDPGetDatum(&events->job->id);
	values[1] = Int64GetDatum(events->resumed_from);
	pgft_execute("DELETE FROM finetune.metric WHERE job_id = $1 AND step > $2", 2, types, values,
				 NULL, SPI_OK_DELETE);
	pgft_job_add_event(&events->job->id, "info", "running",
					   events->resumed_from > 0
						   ? psprintf("training resumed at step " INT64_FORMAT " on %s",
									  events->resumed_from, device ? device : "?")
						   : psprintf("training on %s", device ? device : "?"),
					   event);
	pgft_job_notify(&events->job->id);
	events->job->phase = "running";
	if (events->job->base_digest == NULL)
	{
		char *digest = pgft_json_string(&event->root, "base_digest");

		if (digest)
		{
			events->job->base_digest =
				MemoryContextStrdup(GetMemoryChunkContext(events->job), digest);
			record_base(events, digest);
		}
	}
	pgft_slot_set_phase(PGFT_PHASE_RUNNING);
}

static void
on_dataset(PgftJobEvents *events, Jsonb *event)
{
	Parameters parameters = {0};
	JsonbContainer *rows = pgft_json_object(&event->root, "rows");
	int64 used = 0;

	pgft_json_int64(rows, "used", &used);
	add_jsonb(&parameters, event, "rows");
	add_text(&parameters, event, "data_hash");
	update_job(events, "rows = $3, data_hash = $4", &parameters);
	pgft_job_add_event(
		&events->job->id, "info", "dataset",
		psprintf(INT64_FORMAT " rows, " INT64_FORMAT " tokens", used, get_int64(event, "tokens")),
		event);
}

static void
on_plan(PgftJobEvents *events, Jsonb *event)
{
	Parameters parameters = {0};

	events->total_steps = get_int64(event, "total_steps");
	add_int64(&parameters, event, "total_steps");
	add_jsonb(&parameters, event, "options");
	update_job(events, "total_steps = $3, resolved_options = $4", &parameters);
	pgft_job_add_event(&events->job->id, "info", "plan",
					   psprintf(INT64_FORMAT " steps", events->total_steps), event);
}

/* Method dpo looks at every pair with its reference model first. */
static void
on_reference(PgftJobEvents *events, Jsonb *event)
{
	pgft_job_add_event(
		&events->job->id, "info", "reference",
		psprintf("computing the reference of " INT64_FORMAT " pairs", get_int64(event, "pairs")),
		event);
}

/* A row of metrics; a step and an evaluation after it share one. */
static void
write_metric(PgftJobEvents *events, Jsonb *event)
{
	Parameters parameters = {0};

	add_parameter(&parameters, UUIDOID, UUIDPGetDatum(&events->job->id), false);
	add_parameter(&parameters, INT8OID, Int64GetDatum(get_int64(event, "step")), false);
	add_double(&parameters, event, "epoch");
	add_double(&parameters, event, "training_loss");
	add_double(&parameters, event, "validation_loss");
	add_double(&parameters, event, "validation_token_accuracy");
	add_double(&parameters, event, "learning_rate");
	add_double(&parameters, event, "grad_norm");
	add_int64(&parameters, event, "tokens");
	add_double(&parameters, event, "elapsed");
	pgft_execute(
		"INSERT INTO finetune.metric AS t VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
		" ON CONFLICT (job_id, step) DO UPDATE SET epoch = coalesce(excluded.epoch, t.epoch),"
		" training_loss = coalesce(excluded.training_loss, t.training_loss),"
		" validation_loss = coalesce(excluded.validation_loss, t.validation_loss),"
		" validation_token_accuracy ="
		" coalesce(excluded.validation_token_accuracy, t.validation_token_accuracy),"
		" learning_rate = coalesce(excluded.learning_rate, t.learning_rate),"
		" grad_norm = coalesce(excluded.grad_norm, t.grad_norm),"
		" tokens = coalesce(excluded.tokens, t.tokens),"
		" elapsed = coalesce(excluded.elapsed, t.elapsed)",
		parameters.count, parameters.types, parameters.values, parameters.nulls, SPI_OK_INSERT);
}

static void
on_step(PgftJobEvents *events, Jsonb *event)
{
	Parameters parameters = {0};
	double elapsed = 0;
	double tokens_per_second = 0;
	double loss = get_float8_nan();
	double seconds_left = -1;

	write_metric(events, event);
	events->step = get_int64(event, "step");
	if (get_int64(event, "total_steps") > 0)
		events->total_steps = get_int64(event, "total_steps");
	pgft_json_double(&event->root, "training_loss", &loss);
	pgft_json_double(&event->root, "tokens_per_second", &tokens_per_second);
	if (pgft_json_double(&event->root, "elapsed", &elapsed) && events->step > events->resumed_from)
		seconds_left = elapsed / (events->step - events->resumed_from) *
					   Max(events->total_steps - events->step, 0);
	pgft_slot_set_progress(events->step, events->total_steps, loss, tokens_per_second,
						   seconds_left);

	add_parameter(&parameters, INT8OID, Int64GetDatum(events->step), false);
	add_double(&parameters, event, "training_loss");
	add_int64(&parameters, event, "trained_tokens");
	add_double(&parameters, event, "tokens_per_second");
	add_parameter(&parameters, FLOAT8OID, Float8GetDatum(seconds_left), seconds_left < 0);
	update_job(events,
			   "step = $3, training_loss = $4, trained_tokens = $5, tokens_per_second = $6,"
			   " estimated_finish = clock_timestamp() + make_interval(secs => $7)",
			   &parameters);
}

static void
on_evaluation(PgftJobEvents *events, Jsonb *event)
{
	Parameters parameters = {0};

	write_metric(events, event);
	add_double(&parameters, event, "validation_loss");
	add_double(&parameters, event, "validation_token_accuracy");
	update_job(events, "validation_loss = $3, validation_token_accuracy = $4", &parameters);
}

static void
on_stopped_early(PgftJobEvents *events, Jsonb *event)
{
	pgft_job_add_event(&events->job->id, "info", "stopped_early",
					   psprintf("stopped at step " INT64_FORMAT " of " INT64_FORMAT
								", as the validation loss falls no more: step " INT64_FORMAT
								" is kept",
								get_int64(event, "step"), get_int64(event, "total_steps"),
								get_int64(event, "best_step")),
					   event);
}

static void
on_completed(PgftJobEvents *events, Jsonb *event)
{
	Parameters parameters = {0};

	add_int64(&parameters, event, "steps");
	add_double(&parameters, event, "training_loss");
	add_double(&parameters, event, "validation_loss");
	add_double(&parameters, event, "validation_token_accuracy");
	add_int64(&parameters, event, "trained_tokens");
	add_double(&parameters, event, "tokens_per_second");
	update_job(events,
			   "phase = 'uploading', step = coalesce($3, step),"
			   " training_loss = coalesce($4, training_loss),"
			   " validation_loss = coalesce($5, validation_loss),"
			   " validation_token_accuracy = coalesce($6, validation_token_accuracy),"
			   " trained_tokens = coalesce($7, trained_tokens),"
			   " tokens_per_second = coalesce($8, tokens_per_second)",
			   &parameters);
	pgft_job_add_event(&events->job->id, "info", "uploading", "training done, storing weights",
					   event);
	pgft_job_notify(&events->job->id);
	events->job->phase = "uploading";
	pgft_slot_set_phase(PGFT_PHASE_UPLOADING);
	events->result =
		keep_string(events, event, pgft_options_full(events->job->options) ? "model" : "adapter");
	events->completed = true;
}

static void
on_failed(PgftJobEvents *events, Jsonb *event)
{
	events->code = keep_string(events, event, "code");
	events->message = keep_string(events, event, "message");
	events->hint = keep_string(events, event, "hint");
	events->failed = true;
}

static const struct
{
	const char *name;
	EventHandler handler;
} handlers[] = {
	{"started", on_started},
	{"dataset", on_dataset},
	{"plan", on_plan},
	{"reference", on_reference},
	{"step", on_step},
	{"evaluation", on_evaluation},
	{"checkpoint", on_checkpoint},
	{"stopped_early", on_stopped_early},
	{"completed", on_completed},
	{"failed", on_failed},
};

void
pgft_job_events_apply(PgftJobEvents *events, List *lines)
{
	PgftCatalog catalog;
	ListCell *cell;

	pgft_job_begin(&catalog);
	/* Once lines were refused none may follow: a job that is resumed meanwhile would miss them. */
	events->lost = events->lost || !pgft_job_is_mine(events->job);
	if (!events->lost)
	{
		foreach (cell, lines)
		{
			char *line = lfirst(cell);
			Jsonb *event = pgft_json_parse(line, strlen(line), "event of the training engine");
			char *kind = pgft_json_string(&event->root, "event");

			for (int i = 0; kind && i < lengthof(handlers); i++)
			{
				if (strcmp(handlers[i].name, kind) == 0)
					handlers[i].handler(events, event);
			}
		}
	}
	pgft_job_finish(&catalog);
}

/*
 * Steps come fast on a small model, heartbeats say nothing; the rest is rare.
 * A look at the text is enough to tell, as the answer only decides how soon
 * the line is parsed.
 */
bool
pgft_job_event_can_wait(const char *line)
{
	return strstr(line, "\"event\"") != NULL &&
		   (strstr(line, "\"heartbeat\"") != NULL || strstr(line, "\"training_loss\"") != NULL) &&
		   strstr(line, "\"completed\"") == NULL && strstr(line, "\"failed\"") == NULL;
}
