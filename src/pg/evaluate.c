/*
 * evaluate.c: the SQL function finetune_evaluate(): how well a model knows the
 * rows of a query.
 *
 * The arithmetic is training's, in an engine of its own, not the serving one:
 * so the figures are those that a job shows for the same rows, and rows by the
 * thousand hold up no answer.  What a greedy answer would be need not be
 * generated either: see evaluator.h of the engine.
 */
#include "postgres.h"

#include <math.h>

#include "arguments.h"
#include "fmgr.h"
#include "json.h"
#include "model.h"
#include "pg_finetune.h"
#include "query_check.h"
#include "session_engine.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "weights.h"

/* What the engine needs of a model. */
static void
describe_model(PgftModel *model, PgftJobFile *file)
{
	PgftModel *base = pgft_model_root(model);

	pgft_model_require_ready(model);
	pgft_model_resolve(base);
	file->base = base;
	file->replay_from = -1;
	if (model == base)
		return;
	file->base_digest = model->base_digest;
	file->adapter = pgft_weights_to_cache(&model->id, model->weights_digest);
}

/* Plain text, as words or as tokens, has no question that something is the answer to. */
static bool
has_answers(const PgftColumns *columns)
{
	for (int i = 0; i < columns->count; i++)
	{
		if (strcmp(columns->name[i], "labels") == 0)
			return true;
	}
	return columns->set != PGFT_TEXT && columns->set != PGFT_TOKENS;
}

/* Share of the rows whose answer is right. */
static void
add_exact_match(StringInfo buf, const PgftSessionTask *task, JsonbContainer *dataset,
				JsonbContainer *evaluated)
{
	JsonbContainer *rows = pgft_json_object(dataset, "rows");
	int64 used = 0;
	int64 exact = 0;

	if (has_answers(&task->columns) && pgft_json_int64(rows, "used", &used) && used > 0 &&
		pgft_json_int64(evaluated, "exact", &exact))
		pgft_json_add_double(buf, "exact_match", (double) exact / (double) used);
	else
		pgft_json_add_raw(buf, "exact_match", "null");
}

static Datum
write_evaluation(const PgftSessionTask *task, const char *model)
{
	static const char *const of_dataset[] = {"rows", "tokens", "trained_tokens", NULL};
	static const char *const of_started[] = {"device", NULL};
	JsonbContainer *dataset = pgft_session_event(task, "dataset");
	JsonbContainer *evaluated = pgft_session_event(task, "evaluated");
	double loss = NAN;
	double accuracy = NAN;
	StringInfoData buf;

	pgft_json_double(evaluated, "loss", &loss);
	pgft_json_double(evaluated, "token_accuracy", &accuracy);
	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	pgft_json_add_string(&buf, "model", model);
	pgft_session_copy(&buf, dataset, of_dataset);
	pgft_json_add_double(&buf, "loss", loss);
	pgft_json_add_double(&buf, "perplexity", exp(loss));
	pgft_json_add_double(&buf, "token_accuracy", accuracy);
	add_exact_match(&buf, task, dataset, evaluated);
	pgft_session_copy(&buf, pgft_session_event(task, "started"), of_started);
	appendStringInfoChar(&buf, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(buf.data));
}

/* What a model makes of a pair, only the reference that it was trained beside could say. */
static void
refuse_pairs(const PgftColumns *columns)
{
	if (columns->set == PGFT_PREFERENCE)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("preference pairs (\"chosen\", \"rejected\") cannot be evaluated"),
						errhint("Yield an answer as \"completion\".")));
}

/* SQL: finetune_evaluate(model text, query text) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_finetune_evaluate);
Datum
pgft_finetune_evaluate(PG_FUNCTION_ARGS)
{
	PgftSessionTask task = {
		.program = "evaluate", .name = "evaluating engine", .query_name = "query"};
	PgftColumns columns;
	PgftModel *model;
	char *name;

	pgft_require_preload();
	name = pgft_text_argument(fcinfo, 0, "finetune_evaluate", "model");
	task.query = pgft_text_argument(fcinfo, 1, "finetune_evaluate", "query");
	model = pgft_model_lookup(name, false);
	pgft_query_check_now(task.query, task.query_name, &columns);
	refuse_pairs(&columns);
	describe_model(model, &task.file);
	pgft_session_engine_run(&task);
	return write_evaluation(&task, name);
}
