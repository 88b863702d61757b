/*
 * finetune.c: the SQL function finetune().
 *
 * Its forms differ in the number of their arguments.  What is wrong with a
 * call is said at once, with what would be right, in the session that made it;
 * nothing is put off to the job that can be known now.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "arguments.h"
#include "base.h"
#include "catalog/pg_foreign_server.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "from_model.h"
#include "full_model.h"
#include "funcapi.h"
#include "job.h"
#include "json.h"
#include "miscadmin.h"
#include "model.h"
#include "options.h"
#include "pg_finetune.h"
#include "query_check.h"
#include "shmem.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

/* ---- Actions ---- */

typedef enum Action
{
	ACTION_CREATE,
	ACTION_SHOW,
	ACTION_DESCRIBE,
	ACTION_CANCEL,
	ACTION_PAUSE,
	ACTION_RESUME,
	ACTION_DELETE
} Action;

static const struct
{
	const char *name;
	const char *usage;
} actions[] = {
	[ACTION_CREATE] = {"CREATE", "finetune('CREATE', model, base_model, training_query "
								 "[, validation_query [, options]])"},
	[ACTION_SHOW] = {"SHOW", "finetune('SHOW')"},
	[ACTION_DESCRIBE] = {"DESCRIBE", "finetune('DESCRIBE', job_id)"},
	[ACTION_CANCEL] = {"CANCEL", "finetune('CANCEL', job_id)"},
	[ACTION_PAUSE] = {"PAUSE", "finetune('PAUSE', job_id)"},
	[ACTION_RESUME] = {"RESUME", "finetune('RESUME', job_id)"},
	[ACTION_DELETE] = {"DELETE", "finetune('DELETE', job_id)"},
};

/* The first argument of every form; and what every form begins with. */
static Action
get_action(FunctionCallInfo fcinfo)
{
	char *name;

	pgft_require_preload();
	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("argument \"action\" of finetune must not be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	for (int i = 0; i < lengthof(actions); i++)
	{
		if (pg_strcasecmp(name, actions[i].name) == 0)
			return (Action) i;
	}
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("unknown action \"%s\"", name),
					errhint("The actions are CREATE, SHOW, DESCRIBE, CANCEL, PAUSE, RESUME and "
							"DELETE.")));
}

/* The action is known, but takes other arguments. */
static void
wrong_arguments(Action action)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("too many arguments for action %s", actions[action].name),
					errhint("Call it as %s.", actions[action].usage)));
}

PG_FUNCTION_INFO_V1(pgft_finetune_show);
Datum
pgft_finetune_show(PG_FUNCTION_ARGS)
{
	Action action = get_action(fcinfo);

	if (action == ACTION_CREATE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arguments \"model\", \"base_model\" and \"training_query\" are missing"),
				 errhint("Call it as %s.", actions[action].usage)));
	if (action != ACTION_SHOW)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("argument \"job_id\" is missing"),
				 errhint("Call it as %s.", actions[action].usage)));
	PG_RETURN_JSONB_P(pgft_job_show());
}

PG_FUNCTION_INFO_V1(pgft_finetune_job);
Datum
pgft_finetune_job(PG_FUNCTION_ARGS)
{
	Action action = get_action(fcinfo);
	pg_uuid_t id;

	if (action == ACTION_CREATE)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("arguments \"base_model\" and \"training_query\" are missing"),
						errhint("Call it as %s.", actions[action].usage)));
	if (action == ACTION_SHOW)
		wrong_arguments(action);
	pgft_job_parse_name(pgft_text_argument(fcinfo, 1, "finetune", "job_id"), &id);

	switch (action)
	{
		case ACTION_DESCRIBE:
			PG_RETURN_JSONB_P(pgft_job_describe(&id));
		case ACTION_CANCEL:
			PreventCommandIfReadOnly("finetune('CANCEL')");
			PG_RETURN_JSONB_P(pgft_job_cancel(&id));
		case ACTION_PAUSE:
			PreventCommandIfReadOnly("finetune('PAUSE')");
			PG_RETURN_JSONB_P(pgft_job_pause(&id));
		case ACTION_RESUME:
			PreventCommandIfReadOnly("finetune('RESUME')");
			PG_RETURN_JSONB_P(pgft_job_resume(&id));
		case ACTION_DELETE:
			PreventCommandIfReadOnly("finetune('DELETE')");
			PG_RETURN_JSONB_P(pgft_job_delete(&id));
		default:
			pg_unreachable();
	}
}

PG_FUNCTION_INFO_V1(pgft_finetune_incomplete);
Datum
pgft_finetune_incomplete(PG_FUNCTION_ARGS)
{
	Action action = get_action(fcinfo);

	if (action != ACTION_CREATE)
		wrong_arguments(action);
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("argument \"training_query\" is missing"),
					errhint("Call it as %s.", actions[action].usage)));
	PG_RETURN_NULL();
}

/* ---- CREATE ---- */

/*
 * Early, as the checks of the base and the queries take longer; two sessions
 * at once are told apart when the server is created.
 */
static void
check_name(const char *name)
{
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME), errmsg("the name of a model must not be empty")));
	if (strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG), errmsg("model name \"%s\" is too long", name),
				 errdetail("Names must be less than %d bytes.", NAMEDATALEN)));
	if (OidIsValid(get_foreign_server_oid(name, true)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT), errmsg("model \"%s\" already exists", name)));
}

PG_FUNCTION_INFO_V1(pgft_finetune_create);
Datum
pgft_finetune_create(PG_FUNCTION_ARGS)
{
	Action action = get_action(fcinfo);
	PgftJobRequest request = {0};
	PgftColumns columns;
	PgftModel *base;
	char *base_name;
	bool pairs;

	if (action != ACTION_CREATE)
		wrong_arguments(action);
	PreventCommandIfReadOnly("finetune('CREATE')");
	PreventCommandDuringRecovery("finetune('CREATE')");
	request.model_name = pgft_text_argument(fcinfo, 1, "finetune", "model");
	base_name = pgft_text_argument(fcinfo, 2, "finetune", "base_model");
	request.training_query = pgft_text_argument(fcinfo, 3, "finetune", "training_query");
	request.validation_query =
		PG_ARGISNULL(4) ? NULL : pgft_text_argument(fcinfo, 4, "finetune", "validation_query");

	/* What is quickly said first, what asks the engine last */
	pgft_base_check_wrapper();
	request.base = base = pgft_base_lookup(base_name);
	request.options = pgft_options_argument(fcinfo, 5);
	check_name(request.model_name);
	request.base = base = pgft_from_model_root(base, pgft_from_model(base, &request.options));
	if (pgft_options_full(request.options))
		pgft_full_check_create(pgft_options_as_files(request.options));
	pairs = pgft_options_pairs(request.options);
	pgft_query_check(request.training_query, "training query", &columns);
	pgft_columns_check_pairs(&columns, pairs, "training query");
	pgft_options_check_columns(request.options, &columns, "training query");
	if (request.validation_query)
	{
		pgft_query_check(request.validation_query, "validation query", &columns);
		pgft_columns_check_pairs(&columns, pairs, "validation query");
		pgft_options_check_columns(request.options, &columns, "validation query");
	}
	pgft_base_check_file(base);

	request.id = *DatumGetUUIDP(DirectFunctionCall1(gen_random_uuid, (Datum) 0));
	pgft_model_create_tuned(request.model_name,
							pgft_options_full(request.options) ? PGFT_MODEL_FULL : PGFT_MODEL_LORA,
							request.base, &request.id, &request.model_id);
	if (pgft_options_as_files(request.options))
		pgft_model_keep_as_files(&request.model_id);
	pgft_job_create(&request);
	PG_RETURN_TEXT_P(cstring_to_text(pgft_job_name(&request.id)));
}

/* ---- Progress ---- */

static void
put_slot(ReturnSetInfo *result, const PgftJobSlot *slot)
{
	Datum values[] = {Int32GetDatum(slot->worker_pid),
					  CStringGetTextDatum(pgft_job_name(&slot->job)),
					  CStringGetTextDatum(pgft_phase_name(slot->phase)),
					  Int64GetDatum(slot->step),
					  Int64GetDatum(slot->total_steps),
					  Float8GetDatum(slot->training_loss),
					  Float8GetDatum(slot->tokens_per_second),
					  Float8GetDatum(slot->eta_seconds)};
	bool planned = slot->total_steps > 0;
	bool nulls[] = {false,           false,
					false,           !planned,
					!planned,        isnan(slot->training_loss),
					slot->step == 0, slot->eta_seconds < 0};

	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* The slots of this database's jobs that the caller may see. */
PG_FUNCTION_INFO_V1(pgft_running_jobs_table);
Datum
pgft_running_jobs_table(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	PgftJobSlot slots[PGFT_MAX_JOBS];
	int count;

	InitMaterializedSRF(fcinfo, 0);
	count = pgft_running_jobs(slots);
	for (int i = 0; i < count; i++)
	{
		Oid owner;

		if (slots[i].database != MyDatabaseId)
			continue;
		owner = pgft_job_owner(&slots[i].job);
		if (OidIsValid(owner) && has_privs_of_role(GetUserId(), owner))
			put_slot(result, &slots[i]);
	}
	return (Datum) 0;
}
