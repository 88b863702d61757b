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

#include "json.h"
#include "lib/stringinfo.h"
#include "paths.h"
#include "pg_finetune.h"
#include "serving.h"
#include "utils/builtins.h"
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

Jsonb *
pgft_serving_call(PgftModel *model, const char *path, const char *body)
{
	PgftModel *base = pgft_model_root(model);
	PgftReply *reply = pgft_engine_request("POST", path, body, -1);

	for (int loads = 0; is_unknown_model(reply) && loads < MAX_LOADS; loads++)
	{
		if (model == base)
			pgft_serving_load_base(model);
		else
			load_adapter(model);
		reply = pgft_engine_request("POST", path, body, -1);
	}
	if (reply->status != 200 || reply->body == NULL)
		pgft_model_error(base, reply);
	return reply->body;
}
