/*
 * complete_stream.c: the SQL function complete_stream().
 *
 * A set-returning function that gives a value at each call: where the executor
 * calls it row by row (in a target list), a piece is returned as soon as the
 * engine has made it.  Whoever reads no further (LIMIT, a cursor that is closed)
 * ends the function, with it goes the memory that holds the request, and the
 * engine drops it.
 *
 * The engine goes on while a cursor waits to be read.  What it makes meanwhile
 * stays in the socket and with the engine, and is no more than one answer.
 */
#include "postgres.h"

/* Nothing here looks into a Port, and its header would want Kerberos' */
#undef ENABLE_GSS

#include "complete_options.h"
#include "completion.h"
#include "funcapi.h"
#include "json.h"
#include "lib/stringinfo.h"
#include "libpq/libpq.h"
#include "miscadmin.h"
#include "model.h"
#include "serving.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "usage.h"
#include "utils/builtins.h"

typedef struct Stream
{
	MemoryContext context; /* holds all of it */
	PgftModel *model;
	PgftServingCall *call;
	PgftUsage *usage;
	bool begun; /* a piece has been returned */
	bool whole; /* the engine has said that this was all */
} Stream;

/* What is asked for, and its request. */
static void
start(Stream *stream, text *model_name, text *prompt, Jsonb *given)
{
	PgftCompleteOptions options;
	StringInfoData body;

	stream->model = pgft_model_lookup(text_to_cstring(model_name), false);
	if (stream->model->has_row)
		stream->usage = pgft_usage_begin(stream->model);
	pgft_complete_options_read(&options, given);
	pgft_complete_options_check_stream(&options, "complete_stream");

	initStringInfo(&body);
	appendStringInfoChar(&body, '{');
	pgft_json_add_string(&body, "model", pgft_serving_prepare(stream->model));
	pgft_json_add_raw(&body, "messages",
					  pgft_complete_messages_json(&options, text_to_cstring(prompt), NULL));
	pgft_json_add_bool(&body, "stream", true);

	/* With each piece, so that an answer that is given up is counted as far as it came */
	pgft_json_add_raw(&body, "stream_options",
					  "{\"include_usage\": true, \"continuous_usage_stats\": true}");
	appendStringInfo(&body, ", %s}", options.body.data);
	stream->call = pgft_serving_start_stream(stream->model, "/v1/chat/completions", body.data);
}

/* Tokens so far, where an event says them. */
static void
take_usage(Stream *stream, JsonbContainer *event)
{
	JsonbContainer *usage = pgft_json_object(event, "usage");
	int64 prompt, completion;
	int64 cached = 0;

	if (!pgft_json_int64(usage, "prompt_tokens", &prompt) ||
		!pgft_json_int64(usage, "completion_tokens", &completion))
		return;
	(void) pgft_json_int64(pgft_json_object(usage, "prompt_tokens_details"), "cached_tokens",
						   &cached);
	pgft_usage_tokens(stream->usage, prompt, cached, completion);
}

/* The piece in an event, NULL where it has none. */
static char *
piece_of(Stream *stream, const char *data)
{
	PgftReply reply = {.status = 500};
	JsonbContainer *choice;
	char *piece;

	if (strcmp(data, "[DONE]") == 0)
	{
		stream->whole = true;
		return NULL;
	}
	reply.body = pgft_json_parse(data, strlen(data), "the engine's reply");
	if (pgft_json_object(&reply.body->root, "error") != NULL)
		pgft_model_error(pgft_model_root(stream->model), &reply);
	take_usage(stream, &reply.body->root);
	choice = pgft_json_element(pgft_json_array(&reply.body->root, "choices"), 0);
	piece = pgft_json_string(pgft_json_object(choice, "delta"), "content");
	return piece == NULL || piece[0] == '\0' ? NULL : piece;
}

/* The rows before this one are for the client to see, who may have asked without a cursor. */
static void
show_rows(void)
{
	if (whereToSendOutput == DestRemote && MyProcPort != NULL && pq_is_send_pending())
		(void) pq_flush_if_writable();
}

/* The next piece, once it is there; NULL at the end. */
static char *
next_piece(Stream *stream)
{
	PgftRequest *request = pgft_serving_request(stream->call);

	if (request != NULL)
		pgft_request_renew(request);
	for (;;)
	{
		bool ended;
		char *data = pgft_serving_event(stream->call, &ended);
		char *piece = data == NULL ? NULL : piece_of(stream, data);

		if (piece != NULL)
			return piece;
		if (ended)
			break;
		if (data != NULL)
		{
			pgft_request_renew(pgft_serving_request(stream->call));
			continue;
		}
		show_rows();
		request = pgft_serving_request(stream->call);
		(void) pgft_request_wait_any(&request, 1);
	}
	if (!stream->whole)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("the engine's reply is not a whole answer in pieces")));
	pgft_usage_end(stream->usage, PGFT_USAGE_ANSWERED);
	pgft_usage_count(stream->usage);

	/* An answer of no text is one piece, so that pieces always make up an answer */
	return stream->begun ? NULL : pstrdup("");
}

/* An error: the engine shall stop now, not when the memory goes. */
static void
give_up(Stream *stream)
{
	if (stream->usage != NULL && !pgft_completion_ends_statement(geterrcode()))
		pgft_usage_end(stream->usage, PGFT_USAGE_FAILED);
	MemoryContextDelete(stream->context);
}

static Stream *
new_stream(FunctionCallInfo fcinfo)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "pg_finetune stream", ALLOCSET_DEFAULT_SIZES);
	Stream *stream = MemoryContextAllocZero(context, sizeof(Stream));
	MemoryContext outer = MemoryContextSwitchTo(context);

	stream->context = context;
	PG_TRY();
	{
		start(stream, PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1), PG_GETARG_JSONB_P(2));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(outer);
		give_up(stream);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(outer);
	return stream;
}

/* SQL: complete_stream(model text, prompt text, options jsonb) returns setof text */
PG_FUNCTION_INFO_V1(pgft_complete_stream);
Datum
pgft_complete_stream(PG_FUNCTION_ARGS)
{
	FuncCallContext *calls;
	Stream *stream;
	char *volatile piece = NULL;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext outer;

		calls = SRF_FIRSTCALL_INIT();
		outer = MemoryContextSwitchTo(calls->multi_call_memory_ctx);
		calls->user_fctx = new_stream(fcinfo);
		MemoryContextSwitchTo(outer);
	}
	calls = SRF_PERCALL_SETUP();
	stream = calls->user_fctx;
	PG_TRY();
	{
		piece = next_piece(stream);
	}
	PG_CATCH();
	{
		give_up(stream);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (piece == NULL)
		SRF_RETURN_DONE(calls);
	stream->begun = true;
	SRF_RETURN_NEXT(calls, CStringGetTextDatum(piece));
}
