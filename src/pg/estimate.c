/*
 * estimate.c: the SQL function finetune_estimate(): what finetune('CREATE')
 * with the same arguments would do.
 *
 * Checked as CREATE checks, so that what can be estimated can be created.
 */
#include "postgres.h"

#include "arguments.h"
#include "base.h"
#include "fmgr.h"
#include "from_model.h"
#include "json.h"
#include "options.h"
#include "pg_finetune.h"
#include "query_check.h"
#include "session_engine.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "weights.h"

/* As DESCRIBE shows them: those of the queue, and what the engine chose for the others. */
static void
add_options(StringInfo buf, Jsonb *options, JsonbContainer *plan)
{
	Jsonb *chosen = pgft_json_any(plan, "options");

	if (chosen)
		options = DatumGetJsonbP(
			DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(options), JsonbPGetDatum(chosen)));
	pgft_json_add_raw(buf, "options", JsonbToCString(NULL, &options->root, 0));
}

static Datum
write_estimate(const PgftSessionTask *task, Jsonb *options)
{
	static const char *const of_started[] = {"device", "parameters", NULL};
	static const char *const of_dataset[] = {"rows", "validation_rows", "tokens", NULL};
	static const char *const of_plan[] = {"epochs", "total_steps", "trainable_parameters", NULL};
	static const char *const of_estimate[] = {"total_tokens",
											  "trained_tokens",
											  "max_tokens_per_row",
											  "evaluations",
											  "seconds",
											  "tokens_per_second",
											  "memory",
											  NULL};
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	pgft_json_add_string(&buf, "base_model", task->file.base->name);
	pgft_session_copy(&buf, pgft_session_event(task, "started"), of_started);
	pgft_session_copy(&buf, pgft_session_event(task, "dataset"), of_dataset);
	pgft_session_copy(&buf, pgft_session_event(task, "plan"), of_plan);
	add_options(&buf, options, pgft_session_event(task, "plan"));
	pgft_session_copy(&buf, pgft_session_event(task, "estimate"), of_estimate);
	appendStringInfoChar(&buf, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(buf.data));
}

/* SQL: finetune_estimate(base_model text, training_query text, validation_query text, options
 * jsonb) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_finetune_estimate);
Datum
pgft_finetune_estimate(PG_FUNCTION_ARGS)
{
	PgftSessionTask task = {.program = "estimate",
							.name = "estimating engine",
							.file = {.replay_from = -1},
							.query_name = "training query",
							.validation_name = "validation query"};
	PgftColumns columns;
	PgftModel *base;
	PgftModel *from;
	Jsonb *options;
	char *base_name;
	bool pairs;

	pgft_require_preload();
	base_name = pgft_text_argument(fcinfo, 0, "finetune_estimate", "base_model");
	task.query = pgft_text_argument(fcinfo, 1, "finetune_estimate", "training_query");
	task.validation_query =
		PG_ARGISNULL(2) ? NULL
						: pgft_text_argument(fcinfo, 2, "finetune_estimate", "validation_query");

	pgft_base_check_wrapper();
	base = pgft_base_lookup(base_name);
	options = pgft_options_argument(fcinfo, 3);
	from = pgft_from_model(base, &options);
	task.file.base = base = pgft_from_model_root(base, from);
	task.file.options = pgft_options_for_engine(options);
	pairs = pgft_options_pairs(options);
	pgft_query_check(task.query, task.query_name, &columns);
	pgft_columns_check_pairs(&columns, pairs, task.query_name);
	pgft_options_check_columns(options, &columns, task.query_name);
	if (task.validation_query)
	{
		pgft_query_check(task.validation_query, task.validation_name, &columns);
		pgft_columns_check_pairs(&columns, pairs, task.validation_name);
		pgft_options_check_columns(options, &columns, task.validation_name);
	}
	pgft_base_check_file(base);
	pgft_model_resolve(base);
	if (from != NULL && from != base)
	{
		task.file.base_digest = from->base_digest;
		task.file.adapter = pgft_weights_to_cache(&from->id, from->weights_digest);
	}
	pgft_session_engine_run(&task);
	return write_estimate(&task, options);
}
