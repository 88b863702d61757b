/*
 * catalog.c: SPI on the extension's own tables.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "pg_finetune.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

static int depth = 0;

Oid
pgft_relation_oid(const char *name)
{
	Oid namespace = get_namespace_oid(PGFT_SCHEMA, true);

	return OidIsValid(namespace) ? get_relname_relid(name, namespace) : InvalidOid;
}

bool
pgft_has_column(const char *table, const char *column)
{
	Oid relation = pgft_relation_oid(table);

	return OidIsValid(relation) && get_attnum(relation, column) != InvalidAttrNumber;
}

static Oid
tables_owner(void)
{
	Oid relation = pgft_relation_oid("model");
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("extension pg_finetune is not installed in this database"),
						errhint("Run CREATE EXTENSION pg_finetune.")));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

void
pgft_catalog_enter(PgftCatalog *catalog, bool latest)
{
	Oid owner = tables_owner();

	depth++;
	GetUserIdAndSecContext(&catalog->save_user, &catalog->save_context);
	catalog->save_nest_level = NewGUCNestLevel();
	SetUserIdAndSecContext(owner, catalog->save_context | SECURITY_LOCAL_USERID_CHANGE);
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);

	/* While workers of a parallel query run there is but the query's snapshot to be had */
	catalog->pushed_snapshot = latest && !IsInParallelMode();
	if (catalog->pushed_snapshot)
		PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
pgft_catalog_leave(PgftCatalog *catalog)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	if (catalog->pushed_snapshot)
		PopActiveSnapshot();
	AtEOXact_GUC(false, catalog->save_nest_level);
	SetUserIdAndSecContext(catalog->save_user, catalog->save_context);
	depth--;
}

int
pgft_catalog_depth(void)
{
	return depth;
}

void
pgft_execute(const char *query, int nargs, Oid *types, Datum *values, const char *nulls,
			 int expected)
{
	bool read_only = expected == SPI_OK_SELECT;
	int result = SPI_execute_with_args(query, nargs, types, values, nulls, read_only, 0);

	if (result != expected)
		elog(ERROR, "SPI_execute_with_args returned %d, not %d", result, expected);
}

void
pgft_follow(const char *query, int nargs, Oid *types, Datum *values, const char *nulls,
			int expected)
{
	SPIPlanPtr plan = SPI_prepare(query, nargs, types);
	int result;

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	result = SPI_execute_snapshot(plan, values, nulls, GetLatestSnapshot(), InvalidSnapshot, false,
								  true, 0);
	if (result != expected)
		elog(ERROR, "SPI_execute_snapshot returned %d, not %d", result, expected);
}

uint64
pgft_select(const char *query, int nargs, Oid *types, Datum *values)
{
	int result = SPI_execute_with_args(query, nargs, types, values, NULL, false, 0);

	if (result != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args returned %d, not %d", result, SPI_OK_SELECT);
	return SPI_processed;
}
