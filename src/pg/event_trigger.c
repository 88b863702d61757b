/*
 * event_trigger.c: what follows CREATE, ALTER and DROP SERVER.
 *
 * The triggers are ENABLE ALWAYS, so that rows and servers stay in step under
 * any session_replication_role, and they must do no harm in a restore, where
 * servers come before rows.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "base_file.h"
#include "catalog.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "commands/event_trigger.h"
#include "foreign/foreign.h"
#include "job.h"
#include "miscadmin.h"
#include "model.h"
#include "nodes/parsenodes.h"
#include "pg_finetune.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

static EventTriggerData *
trigger_data(FunctionCallInfo fcinfo)
{
	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("not fired by event trigger manager")));
	return (EventTriggerData *) fcinfo->context;
}

/* ---- CREATE and ALTER SERVER ---- */

static bool
has_option(List *options, const char *name)
{
	ListCell *cell;

	foreach (cell, options)
		if (strcmp(lfirst_node(DefElem, cell)->defname, name) == 0)
			return true;
	return false;
}

/* What the validator cannot check, for it is not told the server's type. */
static PgftModelKind
check_server(const ForeignServer *server)
{
	PgftModelKind kind;

	if (!pgft_model_kind_by_name(server->servertype, &kind))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 server->servertype == NULL
					 ? errmsg("server \"%s\" has no type", server->servername)
					 : errmsg("invalid type \"%s\" of server \"%s\"", server->servertype,
							  server->servername),
				 errhint("A base model is created by CREATE SERVER ... TYPE 'base' FOREIGN DATA "
						 "WRAPPER pg_finetune OPTIONS (file '...').")));
	if (kind == PGFT_MODEL_BASE && !has_option(server->options, "file") &&
		!has_option(server->options, "endpoint"))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("option \"file\" is required for base model \"%s\"", server->servername)));
	if (kind != PGFT_MODEL_BASE && server->options != NIL)
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
						errmsg("a server of type \"%s\" has no options", server->servertype)));
	return kind;
}

/* Models that are tuned from a base have its digest: one without weights cannot take its place. */
static void
refuse_move(const char *name, List *changes)
{
	ListCell *cell;

	foreach (cell, changes)
	{
		DefElem *change = lfirst_node(DefElem, cell);

		if (strcmp(change->defname, "endpoint") == 0 && change->defaction != DEFELEM_SET)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("base model \"%s\" cannot change between a file and an endpoint", name),
					 errhint("Create another server.")));
	}
}

/* The server of this name, if it is one of ours. */
static ForeignServer *
our_server(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, true);

	return server != NULL && server->fdwid == pgft_wrapper_oid(true) ? server : NULL;
}

/* Has the command that just ended created anything? One with IF NOT EXISTS may not have. */
static bool
has_created(void)
{
	PgftCatalog catalog;
	bool created;

	pgft_catalog_enter(&catalog, false);
	pgft_execute("SELECT FROM pg_catalog.pg_event_trigger_ddl_commands()", 0, NULL, NULL, NULL,
				 SPI_OK_SELECT);
	created = SPI_processed > 0;
	pgft_catalog_leave(&catalog);
	return created;
}

PG_FUNCTION_INFO_V1(pgft_server_changed);
Datum
pgft_server_changed(PG_FUNCTION_ARGS)
{
	Node *parsetree = trigger_data(fcinfo)->parsetree;
	ForeignServer *server;

	/* pg_upgrade brings the tables over as they are */
	if (IsBinaryUpgrade)
		PG_RETURN_NULL();
	if (IsA(parsetree, CreateForeignServerStmt) && has_created())
	{
		const char *name = castNode(CreateForeignServerStmt, parsetree)->servername;

		server = our_server(name);
		if (server == NULL)
			pgft_model_check_free(name);
		else
		{
			PgftModelKind kind = check_server(server);

			pgft_model_row_create(server->servername, kind);

			/* IF NOT EXISTS lets anybody come here, with anybody's server */
			if (kind == PGFT_MODEL_BASE &&
				pg_foreign_server_ownercheck(server->serverid, GetUserId()))
				pgft_base_created(server->servername);
		}
	}
	else if (IsA(parsetree, AlterForeignServerStmt))
	{
		AlterForeignServerStmt *alter = castNode(AlterForeignServerStmt, parsetree);

		/* an option that is named is meant, also where it stays what it was */
		server = our_server(alter->servername);
		if (server != NULL && check_server(server) == PGFT_MODEL_BASE)
		{
			refuse_move(server->servername, alter->options);
			pgft_base_altered(server->servername, has_option(alter->options, "file"),
							  has_option(alter->options, "storage"));
		}
	}
	else if (IsA(parsetree, RenameStmt) &&
			 castNode(RenameStmt, parsetree)->renameType == OBJECT_FOREIGN_SERVER)
	{
		RenameStmt *rename = castNode(RenameStmt, parsetree);

		if (our_server(rename->newname) != NULL)
			pgft_model_row_rename(strVal(rename->object), rename->newname);
		else
			pgft_model_check_free(rename->newname);
	}
	PG_RETURN_NULL();
}

/* ---- DROP ---- */

/* A server of ours that the command has dropped */
typedef struct DroppedServer
{
	char *name;
	Oid owner;
} DroppedServer;

/*
 * What a server was that this transaction has dropped: the last version of its
 * tuple is still there for who looks at all of them.  NULL when it was another
 * wrapper's.
 */
static DroppedServer *
dropped_server(Relation servers, Oid server)
{
	DroppedServer *dropped = NULL;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple tuple;

	ScanKeyInit(&key, Anum_pg_foreign_server_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(server));
	scan = systable_beginscan(servers, ForeignServerOidIndexId, true, SnapshotAny, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_foreign_server form = (Form_pg_foreign_server) GETSTRUCT(tuple);
		HeapTupleHeader header = tuple->t_data;

		/* deleted by us, rather than replaced by another version */
		if ((header->t_infomask & HEAP_XMAX_INVALID) != 0 ||
			!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetUpdateXid(header)) ||
			!ItemPointerEquals(&tuple->t_self, &header->t_ctid))
			continue;
		if (form->srvfdw == pgft_wrapper_oid(true))
		{
			dropped = palloc(sizeof(DroppedServer));
			dropped->name = pstrdup(NameStr(form->srvname));
			dropped->owner = form->srvowner;
		}
	}
	systable_endscan(scan);
	return dropped;
}

/* All servers of ours that the command has dropped. */
static List *
dropped_servers(void)
{
	Relation servers = table_open(ForeignServerRelationId, AccessShareLock);
	List *dropped = NIL;

	pgft_execute("SELECT objid FROM pg_catalog.pg_event_trigger_dropped_objects() "
				 "WHERE classid = 'pg_catalog.pg_foreign_server'::pg_catalog.regclass",
				 0, NULL, NULL, NULL, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool is_null;
		Datum oid = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &is_null);
		DroppedServer *server = dropped_server(servers, DatumGetObjectId(oid));

		if (server != NULL)
			dropped = lappend(dropped, server);
	}
	table_close(servers, AccessShareLock);
	return dropped;
}

static Datum
server_names(List *servers)
{
	Datum *names = palloc(list_length(servers) * sizeof(Datum));
	ListCell *cell;

	foreach (cell, servers)
		names[foreach_current_index(cell)] =
			CStringGetTextDatum(((DroppedServer *) lfirst(cell))->name);
	return PointerGetDatum(
		construct_array(names, list_length(servers), TEXTOID, -1, false, TYPALIGN_INT));
}

/* The dependency between servers says so first, unless a restore has not recorded it. */
static void
refuse_needed_base(List *servers)
{
	Oid types[] = {TEXTARRAYOID};
	Datum names = server_names(servers);

	pgft_follow("SELECT b.name, m.name FROM finetune.model m "
				"JOIN finetune.model b ON b.id = m.base_id "
				"WHERE b.name = ANY ($1) AND NOT m.name = ANY ($1) AND " PGFT_MODEL_NEEDS_BASE
				" LIMIT 1",
				1, types, &names, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		HeapTuple row = SPI_tuptable->vals[0];

		ereport(ERROR, (errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
						errmsg("cannot drop server %s because other objects depend on it",
							   SPI_getvalue(row, SPI_tuptable->tupdesc, 1)),
						errdetail("Model %s is tuned from it.",
								  SPI_getvalue(row, SPI_tuptable->tupdesc, 2))));
	}
}

/* Weights go with their model by a trigger, but in a catalog of 1.0, where a replica's do not. */
static void
delete_weights(List *servers)
{
	Oid types[] = {TEXTARRAYOID};
	Datum names = server_names(servers);

	pgft_follow("DELETE FROM finetune.weights WHERE model_id IN "
				"(SELECT id FROM finetune.model WHERE name = ANY ($1))",
				1, types, &names, NULL, SPI_OK_DELETE);
}

/* Their jobs end with them, and stay in the history of who owned them last. */
static void
delete_rows(List *servers)
{
	Oid types[] = {TEXTARRAYOID};
	Datum names = server_names(servers);
	SPITupleTable *deleted;
	uint64 count;

	pgft_follow("DELETE FROM finetune.model WHERE name = ANY ($1) RETURNING id, name", 1, types,
				&names, NULL, SPI_OK_DELETE_RETURNING);
	deleted = SPI_tuptable;
	count = SPI_processed;
	for (uint64 i = 0; i < count; i++)
	{
		char *name = SPI_getvalue(deleted->vals[i], deleted->tupdesc, 2);
		bool is_null;
		pg_uuid_t *id =
			DatumGetUUIDP(SPI_getbinval(deleted->vals[i], deleted->tupdesc, 1, &is_null));
		ListCell *cell;

		foreach (cell, servers)
		{
			DroppedServer *server = lfirst(cell);

			if (strcmp(server->name, name) == 0)
				pgft_job_model_dropped(id, server->owner);
		}
	}
}

PG_FUNCTION_INFO_V1(pgft_server_dropped);
Datum
pgft_server_dropped(PG_FUNCTION_ARGS)
{
	PgftCatalog catalog;
	List *servers;

	trigger_data(fcinfo);

	/* The extension itself may have been dropped */
	if (IsBinaryUpgrade || !OidIsValid(pgft_relation_oid("model")))
		PG_RETURN_NULL();
	pgft_catalog_enter(&catalog, false);
	servers = dropped_servers();
	if (servers != NIL)
	{
		refuse_needed_base(servers);
		delete_weights(servers);
		delete_rows(servers);
	}
	pgft_catalog_leave(&catalog);
	PG_RETURN_NULL();
}
