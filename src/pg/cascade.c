/*
 * cascade.c: what goes with a model or a job when its row is deleted.
 *
 * Foreign keys would do it, but pg_restore loads the tables of an extension in
 * any order, several at a time, with their constraints in place: then the rows
 * of one table come before those that they refer to.
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "pg_finetune.h"
#include "utils/rel.h"

static const char *const from_model[] = {"DELETE FROM finetune.weights WHERE model_id = $1", NULL};

static const char *const from_job[] = {"DELETE FROM finetune.metric WHERE job_id = $1",
									   "DELETE FROM finetune.event WHERE job_id = $1", NULL};

/* What to run for this table; NULL for any but ours, as anybody may have a trigger of his call us.
 */
static const char *const *
queries_for(Relation relation)
{
	Oid table = RelationGetRelid(relation);

	if (table == pgft_relation_oid("model"))
		return from_model;
	return table == pgft_relation_oid("job") ? from_job : NULL;
}

/* Trigger on finetune.model and finetune.job, after the deletion of a row. */
PG_FUNCTION_INFO_V1(pgft_row_deleted);
Datum
pgft_row_deleted(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Oid types[] = {UUIDOID};
	const char *const *queries;
	TupleDesc descriptor;
	PgftCatalog catalog;
	bool is_null;
	Datum id;

	if (!CALLED_AS_TRIGGER(fcinfo) || (queries = queries_for(trigger->tg_relation)) == NULL ||
		!TRIGGER_FIRED_BY_DELETE(trigger->tg_event) || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!TRIGGER_FIRED_AFTER(trigger->tg_event))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("not called by its trigger on finetune.model or finetune.job")));

	descriptor = RelationGetDescr(trigger->tg_relation);
	id = heap_getattr(trigger->tg_trigtuple, SPI_fnumber(descriptor, "id"), descriptor, &is_null);
	pgft_catalog_enter(&catalog, false);
	for (; *queries != NULL; queries++)
		pgft_follow(*queries, 1, types, &id, NULL, SPI_OK_DELETE);
	pgft_catalog_leave(&catalog);
	return PointerGetDatum(NULL);
}
