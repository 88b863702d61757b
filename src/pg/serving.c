/*
 * serving.c: requests about a model to the serving engine.
 *
 * The engine keeps no state that matters: asked for a model that it does not
 * know, because it has just started or has unloaded it, it says so, and is
 * told where the base's file or the adapter's directory is.  So a model works
 * the same after a crash, after a restore, and on a standby.
 *
 * A base is known by its file's path, size and time, or by its digest where the
 * database holds it, an adapter by its digest and its base: nothing that was
 * loaded from other bytes can be taken for it.  The engine checks digests as it
 * loads.  A full model is to the engine what a base is.
 */
#include "postgres.h"

#include "endpoint.h"
#include "json.h"
#include "lib/stringinfo.h"
#include "paths.h"
#include "pg_finetune.h"
#include "serving.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "weights.h"

/* How often a model is loaded for one request, should the engine die or forget meanwhile */
#define MAX_LOADS 3

static const char *
serving_id(const PgftModel *model)
{
	if (model->kind != PGFT_MODEL_LORA)
		return model->engine_id;
	return psprintf("lora-%s-%s", model->weights_digest, model->base->engine_id);
}

const char *
pgft_serving_prepare(PgftModel *model)
{
	pgft_require_preload();
	if (model->endpoint != NULL)
		return model->remote_model;
	pgft_model_require_ready(model);
	pgft_model_resolve(pgft_model_root(model));
	return serving_id(model);
}

static bool
is_unknown_model(const PgftReply *reply)
{
	return reply->status == 404 && strcmp(pgft_reply_code(reply), "not_found") == 0;
}

static PgftReply *
post_load_model(const PgftModel *base)
{
	const char *digest = pgft_model_root_digest(base);
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoChar(&body, '{');
	pgft_json_add_string(&body, "model", base->engine_id);
	pgft_json_add_string(&body, "path", base->path);
	if (base->chat_template != NULL)
		pgft_json_add_string(&body, "template", base->chat_template);
	if (base->context_length > 0)
		pgft_json_add_int64(&body, "context_length", base->context_length);
	if (digest != NULL)
		pgft_json_add_string(&body, "digest", digest);
	appendStringInfoChar(&body, '}');
	return pgft_engine_request("POST", "/v1/load_model", body.data, -1);
}

static void
base_has_changed(const PgftModel *base)
{
	if (base->kind == PGFT_MODEL_FULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("the files of model \"%s\" have changed", base->name),
						errdetail("They are in directory \"%s\".", base->file),
						errhint("Bring back the original ones.")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("base model \"%s\" has changed", base->name),
			 errdetail("Its file \"%s\" is not the one that was recorded.", base->file),
			 errhint("Bring back the original file, or accept this one by ALTER SERVER %s OPTIONS "
					 "(SET file %s).",
					 quote_identifier(base->name), quote_literal_cstr(base->file))));
}

Jsonb *
pgft_serving_load_base(const PgftModel *base)
{
	PgftReply *reply = post_load_model(base);

	/* What was once copied out of the database may have been damaged since */
	if (reply->status != 200 && base->in_database)
	{
		bool written;

		pgft_weights_base_to_cache(&base->id, base->weights_digest, true, &written);
		if (written)
			reply = post_load_model(base);
	}
	if (strcmp(pgft_reply_code(reply), "mismatch") == 0)
		base_has_changed(base);
	if (reply->status != 200 || reply->body == NULL)
		pgft_model_error(base, reply);
	return reply->body;
}

static void
load_adapter(const PgftModel *model)
{
	char *directory = pgft_weights_to_cache(&model->id, model->weights_digest);
	StringInfoData body;
	PgftReply *reply;

	initStringInfo(&body);
	appendStringInfoChar(&body, '{');
	pgft_json_add_string(&body, "lora_name", serving_id(model));
	pgft_json_add_string(&body, "lora_path", pgft_absolute_path(directory));
	pgft_json_add_string(&body, "base_model_name", model->base->engine_id);
	if (model->base_digest != NULL)
		pgft_json_add_string(&body, "base_digest", model->base_digest);
	appendStringInfoChar(&body, '}');

	reply = pgft_engine_request("POST", "/v1/load_lora_adapter", body.data, -1);
	if (is_unknown_model(reply))
	{
		pgft_serving_load_base(model->base);
		reply = pgft_engine_request("POST", "/v1/load_lora_adapter", body.data, -1);
	}
	if (strcmp(pgft_reply_code(reply), "mismatch") == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("base model \"%s\" has changed since \"%s\" was trained",
							   model->base->name, model->name),
						errhint("Bring back the base's original file, or train the model again.")));
	if (reply->status != 200)
		pgft_model_error(model->base, reply);
}

/* ---- What this session has taught ---- */

/*
 * Many requests may be under way when the first of them is told that the model
 * is unknown.  The others are told so, too, and need only be sent again.
 */
#define TAUGHT_SIZE 16
#define TAUGHT_ID_SIZE 160

static struct
{
	char id[TAUGHT_ID_SIZE];
	uint64 at; /* how many lessons there had been with it */
} taught[TAUGHT_SIZE];
static uint64 lessons = 0;

/* Was the engine taught this model since that many lessons? */
static bool
was_taught_since(const char *id, uint64 since)
{
	for (int i = 0; i < TAUGHT_SIZE; i++)
		if (taught[i].at > since && strcmp(taught[i].id, id) == 0)
			return true;
	return false;
}

static void
teach(PgftModel *model)
{
	const char *id = serving_id(model);

	if (model == pgft_model_root(model))
		pgft_serving_load_base(model);
	else
		load_adapter(model);
	lessons++;
	if (strlen(id) < TAUGHT_ID_SIZE)
	{
		strlcpy(taught[lessons % TAUGHT_SIZE].id, id, TAUGHT_ID_SIZE);
		taught[lessons % TAUGHT_SIZE].at = lessons;
	}
}

/* ---- Calls ---- */

struct PgftServingCall
{
	MemoryContext context; /* that it was started in */
	PgftModel *model;
	const char *path;
	const char *body;
	PgftRequest *request; /* NULL when none is under way */
	uint64 lessons;       /* had been given when it was sent */
	int sent;             /* how often */
	bool busy;
	bool events; /* the reply is a stream of them */
};

static void
send_call(PgftServingCall *call)
{
	MemoryContext old_context = MemoryContextSwitchTo(call->context);

	call->lessons = lessons;
	call->sent++;
	call->request = pgft_request_start("POST", call->path, call->body, -1);
	if (call->events)
		pgft_request_expect_events(call->request);
	MemoryContextSwitchTo(old_context);
}

static PgftServingCall *
start_call(PgftModel *model, const char *path, const char *body, bool events)
{
	PgftServingCall *call = palloc0(sizeof(PgftServingCall));

	if (model->endpoint != NULL)
	{
		if (strcmp(path, "/v1/chat/completions") != 0)
			pgft_endpoint_only_answers(model);
		path = PGFT_ENDPOINT_ROUTE;
		body = pgft_endpoint_request(model, body);
	}

	call->context = CurrentMemoryContext;
	call->model = model;
	call->path = path;
	call->body = body;
	call->events = events;
	send_call(call);
	return call;
}

PgftServingCall *
pgft_serving_start(PgftModel *model, const char *path, const char *body)
{
	return start_call(model, path, body, false);
}

PgftServingCall *
pgft_serving_start_stream(PgftModel *model, const char *path, const char *body)
{
	return start_call(model, path, body, true);
}

PgftRequest *
pgft_serving_request(const PgftServingCall *call)
{
	return call->request;
}

int
pgft_serving_requests(const PgftServingCall *call)
{
	return call->sent;
}

bool
pgft_serving_was_busy(const PgftServingCall *call)
{
	return call->busy;
}

/*
 * The reply of a request that is over, whatever its status; NULL when the engine
 * did not know the model, and was taught it and asked again.
 */
static PgftReply *
take_reply(PgftServingCall *call)
{
	PgftRequest *request = call->request;
	PgftReply *reply;

	call->request = NULL;
	reply = pgft_request_finish(request);
	if (!is_unknown_model(reply) || call->sent > MAX_LOADS)
		return reply;
	if (!was_taught_since(serving_id(call->model), call->lessons))
		teach(call->model);
	send_call(call);
	return NULL;
}

Jsonb *
pgft_serving_poll(PgftServingCall *call)
{
	while (pgft_request_poll(call->request))
	{
		PgftReply *reply = take_reply(call);

		if (reply == NULL)
			continue;
		call->busy = strcmp(pgft_reply_code(reply), "busy") == 0;
		if (reply->status != 200 || reply->body == NULL)
			pgft_model_error(pgft_model_root(call->model), reply);
		return reply->body;
	}
	return NULL;
}

char *
pgft_serving_event(PgftServingCall *call, bool *ended)
{
	*ended = false;
	while (call->request != NULL)
	{
		bool over = pgft_request_poll(call->request);
		char *data = pgft_request_event(call->request);
		PgftReply *reply;

		if (data != NULL || !over)
			return data;
		reply = take_reply(call);
		if (reply != NULL && reply->status != 200)
			pgft_model_error(pgft_model_root(call->model), reply);
	}
	*ended = true;
	return NULL;
}

Jsonb *
pgft_serving_call(PgftModel *model, const char *path, const char *body)
{
	PgftServingCall *call = pgft_serving_start(model, path, body);
	Jsonb *reply;

	while ((reply = pgft_serving_poll(call)) == NULL)
		pgft_request_wait(call->request);
	return reply;
}
