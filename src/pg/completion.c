/*
 * completion.c: an answer of complete() or try_complete() that is asked for.
 *
 * Errors are caught without a subtransaction, as PL/pgSQL would have one: there
 * is none beside parallel workers, and on a standby it turns the end of a
 * statement into that of a session.  It needs none either.  An error is raised
 * either between pgft_catalog_enter and leave, where the database itself has
 * failed and the statement goes with it, or where nothing is held but memory
 * and connections, which end with their memory context.
 */
#include "postgres.h"

#include <time.h>

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "complete_options.h"
#include "completion.h"
#include "json.h"
#include "lib/stringinfo.h"
#include "model.h"
#include "serving.h"
#include "storage/condition_variable.h"
#include "usage.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

extern Datum pgft_complete(PG_FUNCTION_ARGS);
extern Datum pgft_complete_options(PG_FUNCTION_ARGS);
extern Datum pgft_complete_messages(PG_FUNCTION_ARGS);
extern Datum pgft_try_complete(PG_FUNCTION_ARGS);
extern Datum pgft_try_complete_options(PG_FUNCTION_ARGS);
extern Datum pgft_try_complete_messages(PG_FUNCTION_ARGS);

static const PgftCompletionForm forms[] = {
	{pgft_complete, 2, false, false, false},
	{pgft_complete_options, 3, false, true, false},
	{pgft_complete_messages, 3, true, true, false},
	{pgft_try_complete, 2, false, false, true},
	{pgft_try_complete_options, 3, false, true, true},
	{pgft_try_complete_messages, 3, true, true, true},
};

struct PgftCompletion
{
	MemoryContext context; /* holds all of it */
	const PgftCompletionForm *form;
	const Datum *args; /* during the start */
	char *model_name;
	PgftModel *model;
	char *body; /* of the request */
	PgftServingCall *call;
	int earlier_requests; /* of earlier calls, where it was asked again */
	PgftCompletionUsage usage;
	PgftUsage *counted; /* in finetune.usage; NULL before the model is known */

	bool over;
	bool busy;
	bool again;       /* asked once more */
	ErrorData *error; /* NULL: there is an answer */
	Datum result;
};

/* ---- Forms ---- */

const PgftCompletionForm *
pgft_completion_form_by_address(PGFunction function)
{
	for (int i = 0; i < lengthof(forms); i++)
		if (forms[i].function == function)
			return &forms[i];
	return NULL;
}

const PgftCompletionForm *
pgft_completion_form(Oid function)
{
	HeapTuple tuple;
	Form_pg_proc row;
	bool candidate;
	FmgrInfo info;

	if (function < FirstNormalObjectId)
		return NULL;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return NULL;
	row = (Form_pg_proc) GETSTRUCT(tuple);
	candidate = row->prolang == ClanguageId && row->proisstrict &&
				(strcmp(NameStr(row->proname), "complete") == 0 ||
				 strcmp(NameStr(row->proname), "try_complete") == 0);
	ReleaseSysCache(tuple);
	if (!candidate)
		return NULL;

	/* By its address: only what our own library defines is ours */
	fmgr_info(function, &info);
	return pgft_completion_form_by_address(info.fn_addr);
}

/* ---- Replies ---- */

typedef struct Answer
{
	char *model;
	JsonbContainer *choices; /* the reply's */
	char *content;           /* of the first */
	int64 created;
	int64 prompt_tokens;
	int64 cached_tokens; /* of the prompt; -1: the engine does not say */
	int64 completion_tokens;
} Answer;

static char *
choice_content(JsonbContainer *choice)
{
	return pgft_json_string(pgft_json_object(choice, "message"), "content");
}

static void
read_answer(Answer *answer, Jsonb *reply)
{
	JsonbContainer *usage = pgft_json_object(&reply->root, "usage");
	bool whole;

	answer->choices = pgft_json_array(&reply->root, "choices");
	answer->content = choice_content(pgft_json_element(answer->choices, 0));
	whole = answer->content != NULL;
	for (uint32 i = 0; whole && i < JsonContainerSize(answer->choices); i++)
	{
		JsonbContainer *choice = pgft_json_element(answer->choices, i);

		whole = choice_content(choice) != NULL && pgft_json_string(choice, "finish_reason") != NULL;
	}
	if (!whole || !pgft_json_int64(usage, "prompt_tokens", &answer->prompt_tokens) ||
		!pgft_json_int64(usage, "completion_tokens", &answer->completion_tokens))
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("the engine's reply is not a chat completion")));
	if (!pgft_json_int64(pgft_json_object(usage, "prompt_tokens_details"), "cached_tokens",
						 &answer->cached_tokens))
		answer->cached_tokens = -1;
	if (!pgft_json_int64(&reply->root, "created", &answer->created))
		answer->created = time(NULL);
}

static void
add_choice(StringInfo json, JsonbContainer *choice)
{
	Jsonb *logprobs = pgft_json_any(choice, "logprobs");

	appendStringInfoChar(json, '{');
	pgft_json_add_string(json, "messages", choice_content(choice));
	pgft_json_add_string(json, "finish_reason", pgft_json_string(choice, "finish_reason"));
	if (logprobs != NULL)
		pgft_json_add_raw(json, "logprobs",
						  JsonbToCString(NULL, &logprobs->root, VARSIZE(logprobs)));
	appendStringInfoChar(json, '}');
}

/* In the shape of Snowflake's COMPLETE. */
static Datum
answer_as_jsonb(const Answer *answer)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"choices\": [");
	for (uint32 i = 0; i < JsonContainerSize(answer->choices); i++)
	{
		if (i > 0)
			appendStringInfoString(&json, ", ");
		add_choice(&json, pgft_json_element(answer->choices, i));
	}
	appendStringInfoChar(&json, ']');
	pgft_json_add_int64(&json, "created", answer->created);
	pgft_json_add_string(&json, "model", answer->model);
	appendStringInfoString(&json, ", \"usage\": {");
	pgft_json_add_int64(&json, "prompt_tokens", answer->prompt_tokens);
	pgft_json_add_int64(&json, "completion_tokens", answer->completion_tokens);
	pgft_json_add_int64(&json, "total_tokens", answer->prompt_tokens + answer->completion_tokens);
	if (answer->cached_tokens >= 0)
		pgft_json_add_raw(&json, "prompt_tokens_details",
						  psprintf("{\"cached_tokens\": " INT64_FORMAT "}", answer->cached_tokens));
	appendStringInfoString(&json, "}}");
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

/* ---- Steps ---- */

bool
pgft_completion_ends_statement(int sqlstate)
{
	return sqlstate == ERRCODE_QUERY_CANCELED || sqlstate == ERRCODE_ADMIN_SHUTDOWN ||
		   sqlstate == ERRCODE_CRASH_SHUTDOWN ||
		   ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_TRANSACTION_ROLLBACK;
}

/* Take a step in the completion's memory context, and keep its error. */
static void
take_step(PgftCompletion *completion, void (*step)(PgftCompletion *completion))
{
	MemoryContext outer = CurrentMemoryContext;
	int catalog_depth = pgft_catalog_depth();

	MemoryContextSwitchTo(completion->context);
	PG_TRY();
	{
		step(completion);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(completion->context);
		if (pgft_catalog_depth() > catalog_depth || pgft_completion_ends_statement(geterrcode()))
			PG_RE_THROW();
		ConditionVariableCancelSleep();
		completion->error = CopyErrorData();
		FlushErrorState();
		completion->over = true;
		if (completion->counted != NULL)
			pgft_usage_end(completion->counted, PGFT_USAGE_FAILED);

		/* A request that was left in the middle */
		MemoryContextDeleteChildren(completion->context);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(outer);
}

/* Outside of catalog sections nothing is held but memory and connections. */
static void
step_start(PgftCompletion *completion)
{
	const PgftCompletionForm *form = completion->form;
	PgftCompleteOptions options;
	StringInfoData body;
	char *chat;

	completion->model_name = TextDatumGetCString(completion->args[0]);
	completion->model = pgft_model_lookup(completion->model_name, false);
	if (completion->model->has_row)
		completion->counted = pgft_usage_begin(completion->model);
	pgft_complete_options_read(&options,
							   form->nargs > 2 ? DatumGetJsonbP(completion->args[2]) : NULL);
	chat = pgft_complete_messages_json(
		&options, form->messages ? NULL : TextDatumGetCString(completion->args[1]),
		form->messages ? DatumGetJsonbP(completion->args[1]) : NULL);

	initStringInfo(&body);
	appendStringInfoChar(&body, '{');
	pgft_json_add_string(&body, "model", pgft_serving_prepare(completion->model));
	pgft_json_add_raw(&body, "messages", chat);
	appendStringInfo(&body, ", %s}", options.body.data);
	completion->body = body.data;
	completion->call =
		pgft_serving_start(completion->model, "/v1/chat/completions", completion->body);
}

static void
step_poll(PgftCompletion *completion)
{
	Jsonb *reply = pgft_serving_poll(completion->call);
	Answer answer;

	if (reply == NULL)
		return;
	answer.model = completion->model_name;
	read_answer(&answer, reply);
	completion->usage.prompt_tokens = answer.prompt_tokens;
	completion->usage.cached_tokens = Max(answer.cached_tokens, 0);
	completion->usage.completion_tokens = answer.completion_tokens;
	pgft_usage_tokens(completion->counted, answer.prompt_tokens, answer.cached_tokens,
					  answer.completion_tokens);
	completion->result =
		completion->form->as_jsonb ? answer_as_jsonb(&answer) : CStringGetTextDatum(answer.content);
	completion->over = true;
	pgft_usage_end(completion->counted, PGFT_USAGE_ANSWERED);
}

/* After a step */
static void
look_at_call(PgftCompletion *completion)
{
	if (completion->call == NULL)
		return;
	completion->usage.requests =
		completion->earlier_requests + pgft_serving_requests(completion->call);
	completion->busy = completion->error != NULL && pgft_serving_was_busy(completion->call);
}

PgftCompletion *
pgft_completion_start(const PgftCompletionForm *form, const Datum *args)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "pg_finetune completion",
												  ALLOCSET_DEFAULT_SIZES);
	PgftCompletion *completion = MemoryContextAllocZero(context, sizeof(PgftCompletion));

	completion->context = context;
	completion->form = form;
	completion->args = args;
	take_step(completion, step_start);
	look_at_call(completion);
	return completion;
}

bool
pgft_completion_poll(PgftCompletion *completion)
{
	if (completion->over)
		return true;
	take_step(completion, step_poll);
	look_at_call(completion);
	return completion->over;
}

PgftRequest *
pgft_completion_request(const PgftCompletion *completion)
{
	return completion->over ? NULL : pgft_serving_request(completion->call);
}

bool
pgft_completion_was_busy(const PgftCompletion *completion)
{
	return completion->over && completion->busy && !completion->again;
}

static void
step_again(PgftCompletion *completion)
{
	completion->call =
		pgft_serving_start(completion->model, "/v1/chat/completions", completion->body);
}

void
pgft_completion_again(PgftCompletion *completion)
{
	Assert(completion->busy && !completion->again);
	completion->again = true;
	pgft_usage_again(completion->counted);
	completion->earlier_requests = completion->usage.requests;
	FreeErrorData(completion->error);
	completion->error = NULL;
	completion->over = false;
	take_step(completion, step_again);
	look_at_call(completion);
}

bool
pgft_completion_has_error(const PgftCompletion *completion)
{
	return completion->error != NULL && !completion->form->null_on_error;
}

const PgftCompletionUsage *
pgft_completion_usage(const PgftCompletion *completion)
{
	return &completion->usage;
}

bool
pgft_completion_take(PgftCompletion *completion, Datum *result)
{
	Assert(completion->over);
	if (completion->counted != NULL)
		pgft_usage_count(completion->counted);
	if (completion->error == NULL)
	{
		*result = datumCopy(completion->result, false, -1);
		return true;
	}
	if (!completion->form->null_on_error)
		ReThrowError(completion->error);

	/* Errors of ours hold nothing of a prompt */
	ereport(DEBUG1,
			(errcode(completion->error->sqlerrcode),
			 errmsg_internal("try_complete() returns null: %s", completion->error->message)));
	return false;
}

void
pgft_completion_free(PgftCompletion *completion)
{
	MemoryContextDelete(completion->context);
}
