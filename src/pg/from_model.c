/*
 * from_model.c: jobs that continue from a tuned model, with option "from_model".
 *
 * Rights are those at CREATE, as for the base.  What is continued from is known
 * by the digest of its weights, and the engine keeps a copy in the job's
 * directory: the model may be renamed or dropped while the job waits or trains.
 *
 * A full model that is continued from is the base of the job, as if it had been
 * named so: all that there is to be known of it is its weights.
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "from_model.h"
#include "options.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

/* An adapter is continued as an adapter, a full model as a full model. */
static void
check_kind(const PgftModel *model, bool full)
{
	if (full && model->kind == PGFT_MODEL_LORA)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("model \"%s\" is an adapter, from which method \"full\" cannot continue",
						model->name),
				 errhint("Merge it by finetune_export(..., 'safetensors'), and make that a base "
						 "model.")));
	if (full && model->kind != PGFT_MODEL_FULL)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("model \"%s\" is not a full model that could be continued from",
							   model->name)));
	if (!full && model->kind != PGFT_MODEL_LORA)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("model \"%s\" is not an adapter that could be continued from", model->name),
				 model->kind == PGFT_MODEL_FULL
					 ? errhint("It is a full model: name it as the base model of the job.")
					 : 0));
}

static void
check(const PgftModel *model, const PgftModel *base, const char *expected)
{
	pgft_model_require_ready(model);
	if (model->base == NULL || memcmp(&model->base->id, &base->id, sizeof(base->id)) != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("model \"%s\" is not tuned from base model \"%s\"", model->name,
							   base->name)));
	if (expected != NULL && strcmp(expected, model->weights_digest) != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("the weights of model \"%s\" are not those of option "
							   "\"from_weights\"",
							   model->name),
						errdetail("They have the digest %s.", model->weights_digest)));
}

static Jsonb *
with_digest(Jsonb *options, const char *digest)
{
	StringInfoData added;

	initStringInfo(&added);
	appendStringInfo(&added, "{\"from_weights\": \"%s\"}", digest);
	return DatumGetJsonbP(
		DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(options),
							DirectFunctionCall1(jsonb_in, CStringGetDatum(added.data))));
}

PgftModel *
pgft_from_model(const PgftModel *base, Jsonb **options)
{
	char *name = pgft_options_string(*options, "from_model");
	char *expected = pgft_options_string(*options, "from_weights");
	PgftModel *model;

	if (name == NULL)
	{
		if (expected != NULL)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("option \"from_weights\" is given without \"from_model\"")));
		return NULL;
	}
	model = pgft_model_lookup(name, false);
	check_kind(model, pgft_options_full(*options));
	check(model, base, expected);
	*options = with_digest(*options, model->weights_digest);
	return model;
}

PgftModel *
pgft_from_model_root(PgftModel *base, PgftModel *from)
{
	return from != NULL && from->kind == PGFT_MODEL_FULL ? from : base;
}

PgftModel *
pgft_from_model_of(Jsonb *options)
{
	char *digest = pgft_options_string(options, "from_weights");
	Oid types[] = {TEXTOID};
	Datum values[1];
	PgftCatalog catalog;
	pg_uuid_t id;
	bool found;

	if (digest == NULL)
		return NULL;
	values[0] = CStringGetTextDatum(digest);
	pgft_catalog_enter(&catalog, false);
	found = pgft_select("SELECT id FROM finetune.model WHERE weights_digest = $1 AND kind = 'lora'"
						" LIMIT 1",
						1, types, values) > 0;
	if (found)
	{
		bool isnull;

		id =
			*DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}
	pgft_catalog_leave(&catalog);
	return found ? pgft_model_by_id(&id) : NULL;
}
