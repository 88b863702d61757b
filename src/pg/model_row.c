/*
 * model_row.c: rows of finetune.model, and what keeps them in step with their
 * servers: created, made ready, renamed, dropped.
 *
 * A row's name is taken by its unique index, so of two sessions that want one
 * name the second waits for the first, and then hears that it is in use.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/dependency.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "commands/trigger.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "model.h"
#include "pg_finetune.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include <math.h>

/* Set while a row is inserted by the functions below, not by a restore */
static bool own_insert = false;

/* The model whose server pgft_model_create_tuned is creating */
static const char *creating = NULL;

static Oid
server_oid(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, true);

	return server != NULL && server->fdwid == pgft_wrapper_oid(true) ? server->serverid
																	 : InvalidOid;
}

/* Insert a row; false when the name is taken. */
static bool
insert_row(const char *name, PgftModelKind kind, const pg_uuid_t *base, const pg_uuid_t *job,
		   pg_uuid_t *id)
{
	Oid types[] = {TEXTOID, TEXTOID, UUIDOID, UUIDOID};
	Datum values[] = {CStringGetTextDatum(name), CStringGetTextDatum(pgft_model_kind_name(kind)),
					  UUIDPGetDatum(base), UUIDPGetDatum(job)};
	char nulls[] = {' ', ' ', base == NULL ? 'n' : ' ', job == NULL ? 'n' : ' '};
	PgftCatalog catalog;
	bool inserted;

	own_insert = true;
	PG_TRY();
	{
		pgft_catalog_enter(&catalog, false);
		if (SPI_execute_with_args("INSERT INTO finetune.model (id, name, kind, base_id, job) "
								  "VALUES (pg_catalog.gen_random_uuid(), $1, $2, $3, $4) "
								  "ON CONFLICT (name) DO NOTHING RETURNING id",
								  lengthof(types), types, values, nulls, false,
								  0) != SPI_OK_INSERT_RETURNING)
			elog(ERROR, "could not insert the row of a model");
		inserted = SPI_processed > 0;
		if (inserted)
		{
			bool is_null;

			*id = *DatumGetUUIDP(
				SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &is_null));
		}
		pgft_catalog_leave(&catalog);
	}
	PG_FINALLY();
	{
		own_insert = false;
	}
	PG_END_TRY();
	return inserted;
}

/* The kind of a row's model and the name of the base that it needs; false when there is none. */
static bool
find_row(const char *name, PgftModelKind *kind, char **base_name)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(name)};
	MemoryContext context = CurrentMemoryContext;
	PgftCatalog catalog;
	bool found;

	pgft_catalog_enter(&catalog, true);
	pgft_execute("SELECT m.kind, b.name FROM finetune.model m "
				 "LEFT JOIN finetune.model b ON b.id = m.base_id AND " PGFT_MODEL_NEEDS_BASE
				 " WHERE m.name = $1",
				 1, types, values, NULL, SPI_OK_SELECT);
	found = SPI_processed > 0;
	*base_name = NULL;
	if (found)
	{
		HeapTuple row = SPI_tuptable->vals[0];
		char *base = SPI_getvalue(row, SPI_tuptable->tupdesc, 2);

		if (!pgft_model_kind_by_name(SPI_getvalue(row, SPI_tuptable->tupdesc, 1), kind))
			elog(ERROR, "unexpected kind of model");
		if (base != NULL)
			*base_name = MemoryContextStrdup(context, base);
	}
	pgft_catalog_leave(&catalog);
	return found;
}

void
pgft_model_depend(const char *name, const char *base_name)
{
	ObjectAddress model = {ForeignServerRelationId, server_oid(name), 0};
	ObjectAddress base = {ForeignServerRelationId, server_oid(base_name), 0};

	if (!OidIsValid(model.objectId) || !OidIsValid(base.objectId))
		return;
	deleteDependencyRecordsForSpecific(ForeignServerRelationId, model.objectId, DEPENDENCY_NORMAL,
									   ForeignServerRelationId, base.objectId);
	recordDependencyOn(&model, &base, DEPENDENCY_NORMAL);
}

/* Record one dependency, found missing, unless either server goes meanwhile. */
static void
depend_if_there(Oid model, Oid base)
{
	ObjectAddress from = {ForeignServerRelationId, model, 0};
	ObjectAddress to = {ForeignServerRelationId, base, 0};

	LockDatabaseObject(ForeignServerRelationId, base, 0, AccessShareLock);
	LockDatabaseObject(ForeignServerRelationId, model, 0, AccessShareLock);
	if (SearchSysCacheExists1(FOREIGNSERVEROID, ObjectIdGetDatum(base)) &&
		SearchSysCacheExists1(FOREIGNSERVEROID, ObjectIdGetDatum(model)))
		recordDependencyOn(&from, &to, DEPENDENCY_NORMAL);
}

void
pgft_model_depend_all(void)
{
	PgftCatalog catalog;
	bool is_null;

	pgft_catalog_enter(&catalog, false);
	pgft_select("SELECT s.oid, t.oid FROM finetune.model m"
				" JOIN finetune.model b ON b.id = m.base_id"
				" JOIN pg_foreign_server s ON s.srvname::text = m.name"
				" JOIN pg_foreign_server t ON t.srvname::text = b.name"
				" JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw AND w.oid = t.srvfdw"
				" WHERE w.fdwname = '" PGFT_WRAPPER "' AND " PGFT_MODEL_NEEDS_BASE
				" AND NOT EXISTS (SELECT 1 FROM pg_depend d"
				" WHERE d.classid = 'pg_foreign_server'::regclass AND d.objid = s.oid"
				" AND d.refclassid = 'pg_foreign_server'::regclass AND d.refobjid = t.oid)",
				0, NULL, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;

		depend_if_there(DatumGetObjectId(SPI_getbinval(row, desc, 1, &is_null)),
						DatumGetObjectId(SPI_getbinval(row, desc, 2, &is_null)));
	}
	pgft_catalog_leave(&catalog);
}

/* ---- CREATE ---- */

static void
check_new_name(const char *name)
{
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME), errmsg("the name of a model must not be empty")));
	if (strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG), errmsg("model name \"%s\" is too long", name),
				 errdetail("A name has at most %d bytes.", NAMEDATALEN - 1)));
	if (GetForeignServerByName(name, true) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT), errmsg("model \"%s\" already exists", name)));
}

/* Keep a base from being dropped until this transaction has ended. */
static void
lock_base(const PgftModel *base)
{
	LockDatabaseObject(ForeignServerRelationId, base->server, 0, AccessShareLock);
	if (!SearchSysCacheExists1(FOREIGNSERVEROID, ObjectIdGetDatum(base->server)))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("model \"%s\" does not exist", base->name)));
}

void
pgft_model_check_create(const char *name)
{
	Oid wrapper = pgft_wrapper_oid(false);
	AclResult result = pg_foreign_data_wrapper_aclcheck(wrapper, GetUserId(), ACL_USAGE);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FDW, PGFT_WRAPPER);
	check_new_name(name);
}

void
pgft_model_create_tuned(const char *name, PgftModelKind kind, const PgftModel *base,
						const pg_uuid_t *job, pg_uuid_t *id)
{
	char *command;

	pgft_model_check_create(name);
	lock_base(base);
	if (!insert_row(name, kind, &base->id, job, id))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT), errmsg("model \"%s\" already exists", name)));

	/* By the command, as the user would: so other extensions and event triggers see it too */
	command = psprintf("CREATE SERVER %s TYPE %s FOREIGN DATA WRAPPER %s", quote_identifier(name),
					   quote_literal_cstr(pgft_model_kind_name(kind)), PGFT_WRAPPER);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	creating = name;
	PG_TRY();
	{
		if (SPI_execute(command, false, 0) != SPI_OK_UTILITY)
			elog(ERROR, "could not create the server of a model");
	}
	PG_FINALLY();
	{
		creating = NULL;
	}
	PG_END_TRY();
	SPI_finish();
	CommandCounterIncrement();
	pgft_model_depend(name, base->name);
}

/* A row that a restore or a subscription has brought gets its server from a superuser. */
static void
check_may_join(const char *name)
{
	if (!superuser())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied to give model \"%s\" its server", name),
						errdetail("Its row is there already, as after a replication."),
						errhint("Must be superuser to do this.")));
}

void
pgft_model_row_create(const char *name, PgftModelKind kind)
{
	PgftModelKind row_kind;
	char *base_name;
	pg_uuid_t id;

	if (!find_row(name, &row_kind, &base_name))
	{
		/* A tuned model's row comes with its job, from a restore, or from a subscription */
		if (kind != PGFT_MODEL_BASE)
		{
			if (!superuser())
				ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
								errmsg("a server of type \"%s\" cannot be created by hand",
									   pgft_model_kind_name(kind)),
								errhint("Use finetune('CREATE', ...) to create a tuned model.")));
			return;
		}
		if (!insert_row(name, kind, NULL, NULL, &id))
			ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
							errmsg("model \"%s\" already exists", name)));
		return;
	}
	if (row_kind != kind)
		ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
						errmsg("model \"%s\" already exists, of type \"%s\"", name,
							   pgft_model_kind_name(row_kind))));

	/* Whoever owns the server owns the weights that came with the row */
	if (creating == NULL || strcmp(creating, name) != 0)
		check_may_join(name);
	if (base_name != NULL)
		pgft_model_depend(name, base_name);
	if (kind != PGFT_MODEL_LORA)
		pgft_model_depend_all();
}

void
pgft_model_check_free(const char *name)
{
	PgftModelKind kind;
	char *base_name;

	if (find_row(name, &kind, &base_name))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT), errmsg("model \"%s\" already exists", name)));
}

/* A server whose row a subscription has renamed before follows it, and joins it. */
void
pgft_model_row_rename(const char *old_name, const char *new_name)
{
	Oid types[] = {TEXTOID, TEXTOID};
	Datum values[] = {CStringGetTextDatum(old_name), CStringGetTextDatum(new_name)};
	PgftCatalog catalog;
	PgftModelKind kind;
	char *base_name;

	if (find_row(old_name, &kind, &base_name))
		pgft_model_check_free(new_name);
	else if (find_row(new_name, &kind, &base_name))
	{
		/* the server of a row that was renamed elsewhere follows it */
		check_may_join(new_name);
		pgft_model_depend_all();
		return;
	}
	pgft_catalog_enter(&catalog, false);
	pgft_follow("UPDATE finetune.model SET name = $2 WHERE name = $1", 2, types, values, NULL,
				SPI_OK_UPDATE);
	pgft_catalog_leave(&catalog);
}

void
pgft_model_keep_as_files(const pg_uuid_t *id)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};
	PgftCatalog catalog;

	pgft_catalog_enter(&catalog, false);
	pgft_execute("UPDATE finetune.model SET storage = 'file' WHERE id = $1", 1, types, values, NULL,
				 SPI_OK_UPDATE);
	pgft_catalog_leave(&catalog);
}

/* ---- Weights are there, or will never be ---- */

static Datum
text_or_null(const char *value, char *is_null)
{
	*is_null = value == NULL ? 'n' : ' ';
	return value == NULL ? (Datum) 0 : CStringGetTextDatum(value);
}

static Datum
float8_or_null(double value, char *is_null)
{
	*is_null = isnan(value) ? 'n' : ' ';
	return Float8GetDatum(value);
}

bool
pgft_model_set_ready(const pg_uuid_t *id, const PgftModelFacts *facts)
{
	Oid types[] = {UUIDOID, TEXTOID,   TEXTOID,   TEXTOID,  INT8OID,
				   INT4OID, FLOAT8OID, FLOAT8OID, FLOAT8OID};
	char nulls[lengthof(types)];
	Datum values[lengthof(types)];
	PgftCatalog catalog;
	bool found;

	memset(nulls, ' ', sizeof(nulls));
	values[0] = UUIDPGetDatum(id);
	values[1] = text_or_null(facts->weights_digest, &nulls[1]);
	values[2] = text_or_null(facts->base_digest, &nulls[2]);
	values[3] = text_or_null(facts->architecture, &nulls[3]);
	values[4] = Int64GetDatum(facts->parameters);
	nulls[4] = facts->parameters == 0 ? 'n' : ' ';
	values[5] = Int32GetDatum(facts->context_length);
	nulls[5] = facts->context_length == 0 ? 'n' : ' ';
	values[6] = float8_or_null(facts->training_loss, &nulls[6]);
	values[7] = float8_or_null(facts->validation_loss, &nulls[7]);
	values[8] = float8_or_null(facts->validation_token_accuracy, &nulls[8]);

	pgft_catalog_enter(&catalog, false);
	pgft_execute("UPDATE finetune.model SET weights_digest = $2, base_digest = $3, "
				 "architecture = $4, parameters = $5, context_length = $6, training_loss = $7, "
				 "validation_loss = $8, validation_token_accuracy = $9 WHERE id = $1",
				 lengthof(types), types, values, nulls, SPI_OK_UPDATE);
	found = SPI_processed > 0;
	if (facts->chat_template != NULL)
	{
		values[1] = CStringGetTextDatum(facts->chat_template);
		pgft_execute("UPDATE finetune.model SET template = $2 WHERE id = $1", 2, types, values,
					 NULL, SPI_OK_UPDATE);
	}
	pgft_catalog_leave(&catalog);
	return found;
}

void
pgft_model_forget_base(const pg_uuid_t *id)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};
	PgftCatalog catalog;

	pgft_catalog_enter(&catalog, false);
	pgft_execute("UPDATE finetune.model SET base_digest = NULL, "
				 "architecture = NULL, parameters = NULL, context_length = NULL WHERE id = $1",
				 1, types, values, NULL, SPI_OK_UPDATE);
	pgft_catalog_leave(&catalog);
}

void
pgft_model_record_base(const pg_uuid_t *id, const char *digest, bool stored)
{
	Oid types[] = {UUIDOID, TEXTOID, BOOLOID};
	Datum values[] = {UUIDPGetDatum(id), CStringGetTextDatum(digest), BoolGetDatum(stored)};
	PgftCatalog catalog;

	pgft_catalog_enter(&catalog, false);
	pgft_execute("UPDATE finetune.model SET base_digest = $2, "
				 "weights_digest = CASE WHEN $3 THEN $2 END WHERE id = $1",
				 lengthof(types), types, values, NULL, SPI_OK_UPDATE);
	pgft_catalog_leave(&catalog);
}

void
pgft_model_describe_base(const char *name, const char *architecture, int64 parameters,
						 int context_length)
{
	Oid types[] = {TEXTOID, TEXTOID, INT8OID, INT4OID};
	char nulls[lengthof(types)] = {' ', ' ', ' ', ' '};
	Datum values[] = {CStringGetTextDatum(name), text_or_null(architecture, &nulls[1]),
					  Int64GetDatum(parameters), Int32GetDatum(context_length)};
	PgftCatalog catalog;

	pgft_catalog_enter(&catalog, false);
	pgft_execute("UPDATE finetune.model SET architecture = $2, parameters = $3, "
				 "context_length = $4 WHERE name = $1",
				 lengthof(types), types, values, nulls, SPI_OK_UPDATE);
	pgft_catalog_leave(&catalog);
}

/* Drop a server unless something depends on it. */
static bool
drop_server(Oid server)
{
	ObjectAddress address = {ForeignServerRelationId, server, 0};
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool dropped = true;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		performDeletion(&address, DROP_RESTRICT, 0);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (geterrcode() != ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		dropped = false;
	}
	PG_END_TRY();
	return dropped;
}

bool
pgft_model_drop_unready(const pg_uuid_t *id)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};
	PgftModel *model = pgft_model_by_id(id);
	PgftCatalog catalog;

	if (model == NULL || model->kind == PGFT_MODEL_BASE || model->weights_digest != NULL)
		return false;
	if (OidIsValid(model->server) && !drop_server(model->server))
		return false;
	pgft_catalog_enter(&catalog, false);
	pgft_execute("DELETE FROM finetune.model WHERE id = $1", 1, types, values, NULL, SPI_OK_DELETE);
	pgft_catalog_leave(&catalog);
	return true;
}

/* ---- Rows that come from elsewhere ---- */

/* The base of this name that CREATE SERVER made, if nothing has come to depend on it yet. */
static void
delete_placeholder(Datum name)
{
	Oid types[] = {TEXTOID};
	PgftCatalog catalog;

	pgft_catalog_enter(&catalog, false);
	pgft_execute("DELETE FROM finetune.model m WHERE m.name = $1 AND m.kind = 'base' AND NOT "
				 "EXISTS (SELECT 1 FROM finetune.model t WHERE t.base_id = m.id)",
				 1, types, &name, NULL, SPI_OK_DELETE);
	pgft_catalog_leave(&catalog);
}

/* Have a full model's server depend on no base. */
static void
release(const char *name, const pg_uuid_t *base_id)
{
	PgftModel *base = pgft_model_by_id(base_id);
	Oid server = server_oid(name);

	if (base != NULL && OidIsValid(base->server) && OidIsValid(server))
		deleteDependencyRecordsForSpecific(ForeignServerRelationId, server, DEPENDENCY_NORMAL,
										   ForeignServerRelationId, base->server);
}

static Datum
column_of(Relation relation, HeapTuple row, const char *name, bool *is_null)
{
	TupleDesc descriptor = RelationGetDescr(relation);

	return heap_getattr(row, SPI_fnumber(descriptor, name), descriptor, is_null);
}

/*
 * A row has come or has changed.  A base's may come after those of the models
 * that are tuned from it, and a full model may be both.
 */
static void
follow_row(Relation relation, HeapTuple row)
{
	bool no_name, no_base, not_ready, no_kind;
	Datum name = column_of(relation, row, "name", &no_name);
	Datum base_id = column_of(relation, row, "base_id", &no_base);
	Datum kind = column_of(relation, row, "kind", &no_kind);
	PgftModel *base;

	(void) column_of(relation, row, "weights_digest", &not_ready);
	if (no_base)
	{
		pgft_model_depend_all();
		return;
	}
	if (strcmp(TextDatumGetCString(kind), pgft_model_kind_name(PGFT_MODEL_FULL)) == 0)
	{
		if (!not_ready)
			release(TextDatumGetCString(name), DatumGetUUIDP(base_id));
		pgft_model_depend_all();
		return;
	}
	base = pgft_model_by_id(DatumGetUUIDP(base_id));
	if (base != NULL)
		pgft_model_depend(TextDatumGetCString(name), base->name);
}

/*
 * Trigger on finetune.model: before and after the insertion of a row, after a
 * rename, and after a full model has got its weights.  Whoever has a table may
 * put the function on it, so it looks where it was called.
 */
PG_FUNCTION_INFO_V1(pgft_model_row);
Datum
pgft_model_row(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool is_null;
	Datum name;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		RelationGetRelid(trigger->tg_relation) != pgft_relation_oid("model") ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!(TRIGGER_FIRED_BY_INSERT(trigger->tg_event) || TRIGGER_FIRED_BY_UPDATE(trigger->tg_event)))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("not called by its trigger on finetune.model")));
	if (own_insert)
		return PointerGetDatum(trigger->tg_trigtuple);
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		if (strcmp(trigger->tg_trigger->tgname, "release_base") == 0)
			follow_row(trigger->tg_relation, trigger->tg_newtuple);
		else
			pgft_model_depend_all();
		return PointerGetDatum(trigger->tg_newtuple);
	}
	name = column_of(trigger->tg_relation, trigger->tg_trigtuple, "name", &is_null);
	if (is_null)
		return PointerGetDatum(trigger->tg_trigtuple);
	if (TRIGGER_FIRED_BEFORE(trigger->tg_event))
		delete_placeholder(name);
	else
		follow_row(trigger->tg_relation, trigger->tg_trigtuple);
	return PointerGetDatum(trigger->tg_trigtuple);
}
