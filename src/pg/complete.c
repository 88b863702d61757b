/*
 * complete.c: the SQL functions complete() and try_complete().
 */
#include "postgres.h"

#include <time.h>

#include "catalog.h"
#include "complete_options.h"
#include "fmgr.h"
#include "json.h"
#include "lib/stringinfo.h"
#include "model.h"
#include "serving.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* ---- Completions ---- */

typedef struct Completion
{
	char *model;
	char *content;
	char *finish_reason;
	int64 created;
	int64 prompt_tokens;
	int64 cached_tokens; /* of the prompt; -1: the engine does not say */
	int64 completion_tokens;
} Completion;

static void
read_completion(Completion *completion, Jsonb *reply)
{
	JsonbContainer *choice = pgft_json_element(pgft_json_array(&reply->root, "choices"), 0);
	JsonbContainer *usage = pgft_json_object(&reply->root, "usage");

	completion->content = pgft_json_string(pgft_json_object(choice, "message"), "content");
	completion->finish_reason = pgft_json_string(choice, "finish_reason");
	if (completion->content == NULL || completion->finish_reason == NULL ||
		!pgft_json_int64(usage, "prompt_tokens", &completion->prompt_tokens) ||
		!pgft_json_int64(usage, "completion_tokens", &completion->completion_tokens))
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("the engine's reply is not a chat completion")));
	if (!pgft_json_int64(pgft_json_object(usage, "prompt_tokens_details"), "cached_tokens",
						 &completion->cached_tokens))
		completion->cached_tokens = -1;
	if (!pgft_json_int64(&reply->root, "created", &completion->created))
		completion->created = time(NULL);
}

/* What a call hands over, out of its datums; either of prompt and messages is NULL. */
typedef struct Question
{
	char *model;
	char *prompt;
	Jsonb *messages;
	Jsonb *options; /* NULL: none */
} Question;

/* Ask the model.  Outside of catalog sections nothing is held but memory and connections. */
static void
ask(Completion *completion, const Question *question, PgftModel *model)
{
	PgftCompleteOptions options;
	StringInfoData body;
	char *chat;

	completion->model = question->model;
	pgft_complete_options_read(&options, question->options);
	chat = pgft_complete_messages_json(&options, question->prompt, question->messages);

	initStringInfo(&body);
	appendStringInfoChar(&body, '{');
	pgft_json_add_string(&body, "model", pgft_serving_prepare(model));
	pgft_json_add_raw(&body, "messages", chat);
	appendStringInfo(&body, ", %s}", options.body.data);
	read_completion(completion, pgft_serving_call(model, "/v1/chat/completions", body.data));
}

/* In the shape of Snowflake's COMPLETE. */
static Datum
completion_as_jsonb(const Completion *completion)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"choices\": [{");
	pgft_json_add_string(&json, "messages", completion->content);
	pgft_json_add_string(&json, "finish_reason", completion->finish_reason);
	appendStringInfoString(&json, "}]");
	pgft_json_add_int64(&json, "created", completion->created);
	pgft_json_add_string(&json, "model", completion->model);
	appendStringInfoString(&json, ", \"usage\": {");
	pgft_json_add_int64(&json, "prompt_tokens", completion->prompt_tokens);
	pgft_json_add_int64(&json, "completion_tokens", completion->completion_tokens);
	pgft_json_add_int64(&json, "total_tokens",
						completion->prompt_tokens + completion->completion_tokens);
	if (completion->cached_tokens >= 0)
		pgft_json_add_raw(
			&json, "prompt_tokens_details",
			psprintf("{\"cached_tokens\": " INT64_FORMAT "}", completion->cached_tokens));
	appendStringInfoString(&json, "}}");
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

/* ---- complete() ---- */

/* The arguments of a call; those of the form that is called with. */
static void
read_question(Question *question, text *model, text *prompt, Jsonb *messages, Jsonb *options)
{
	question->model = text_to_cstring(model);
	question->prompt = prompt == NULL ? NULL : text_to_cstring(prompt);
	question->messages = messages;
	question->options = options;
}

static Datum
complete(const Question *question, bool as_jsonb)
{
	PgftModel *model = pgft_model_lookup(question->model, false);
	Completion completion;

	ask(&completion, question, model);
	return as_jsonb ? completion_as_jsonb(&completion) : CStringGetTextDatum(completion.content);
}

/* SQL: complete(model text, prompt text) returns text */
PG_FUNCTION_INFO_V1(pgft_complete);
Datum
pgft_complete(PG_FUNCTION_ARGS)
{
	Question question;

	read_question(&question, PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1), NULL, NULL);
	PG_RETURN_DATUM(complete(&question, false));
}

/* SQL: complete(model text, prompt text, options jsonb) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_complete_options);
Datum
pgft_complete_options(PG_FUNCTION_ARGS)
{
	Question question;

	read_question(&question, PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1), NULL,
				  PG_GETARG_JSONB_P(2));
	PG_RETURN_DATUM(complete(&question, true));
}

/* SQL: complete(model text, messages jsonb, options jsonb) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_complete_messages);
Datum
pgft_complete_messages(PG_FUNCTION_ARGS)
{
	Question question;

	read_question(&question, PG_GETARG_TEXT_PP(0), NULL, PG_GETARG_JSONB_P(1),
				  PG_GETARG_JSONB_P(2));
	PG_RETURN_DATUM(complete(&question, true));
}

/* ---- try_complete() ----
 *
 * Not by a subtransaction, as PL/pgSQL would: there is none beside parallel
 * workers, and on a standby it turns the end of a statement into that of a
 * session.  It needs none either.  Looking the model up returns a value for all
 * that is to be expected; after that an error is raised either between
 * pgft_catalog_enter and leave, where the database itself has failed and the
 * statement goes with it, or where nothing is held but memory and connections,
 * which end with their memory context.
 */

/*
 * Is this error the statement's and not the request's?  Cancelled by the user,
 * a timeout, a conflict with recovery, a shutdown.
 */
static bool
ends_statement(int sqlstate)
{
	return sqlstate == ERRCODE_QUERY_CANCELED || sqlstate == ERRCODE_ADMIN_SHUTDOWN ||
		   sqlstate == ERRCODE_CRASH_SHUTDOWN ||
		   ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_TRANSACTION_ROLLBACK;
}

/* Take the error that was caught, or pass it on; catalog_depth is the one before. */
static void
swallow_error(MemoryContext context, int catalog_depth)
{
	ErrorData *error;

	MemoryContextSwitchTo(context);
	if (pgft_catalog_depth() > catalog_depth || ends_statement(geterrcode()))
		PG_RE_THROW();
	ConditionVariableCancelSleep();
	error = CopyErrorData();
	FlushErrorState();

	/* Errors of ours hold nothing of a prompt */
	ereport(DEBUG1, (errcode(error->sqlerrcode),
					 errmsg_internal("try_complete() returns null: %s", error->message)));
}

/* Returns false for null. */
static bool
try_complete(const Question *question, bool as_jsonb, Datum *result)
{
	MemoryContext outer = CurrentMemoryContext;
	MemoryContext context =
		AllocSetContextCreate(outer, "pg_finetune try_complete", ALLOCSET_DEFAULT_SIZES);
	int catalog_depth = pgft_catalog_depth();
	volatile bool done = false;
	PgftModel *model;

	MemoryContextSwitchTo(context);
	model = pgft_model_find(question->model);
	if (model != NULL)
	{
		PG_TRY();
		{
			Completion completion;

			ask(&completion, question, model);
			MemoryContextSwitchTo(outer);
			*result = as_jsonb ? completion_as_jsonb(&completion)
							   : CStringGetTextDatum(completion.content);
			done = true;
		}
		PG_CATCH();
		{
			swallow_error(context, catalog_depth);
		}
		PG_END_TRY();
	}
	MemoryContextSwitchTo(outer);
	MemoryContextDelete(context);
	return done;
}

/* SQL: try_complete(model text, prompt text) returns text */
PG_FUNCTION_INFO_V1(pgft_try_complete);
Datum
pgft_try_complete(PG_FUNCTION_ARGS)
{
	Question question;
	Datum result;

	read_question(&question, PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1), NULL, NULL);
	if (!try_complete(&question, false, &result))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}

/* SQL: try_complete(model text, prompt text, options jsonb) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_try_complete_options);
Datum
pgft_try_complete_options(PG_FUNCTION_ARGS)
{
	Question question;
	Datum result;

	read_question(&question, PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1), NULL,
				  PG_GETARG_JSONB_P(2));
	if (!try_complete(&question, true, &result))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}

/* SQL: try_complete(model text, messages jsonb, options jsonb) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_try_complete_messages);
Datum
pgft_try_complete_messages(PG_FUNCTION_ARGS)
{
	Question question;
	Datum result;

	read_question(&question, PG_GETARG_TEXT_PP(0), NULL, PG_GETARG_JSONB_P(1),
				  PG_GETARG_JSONB_P(2));
	if (!try_complete(&question, true, &result))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}
