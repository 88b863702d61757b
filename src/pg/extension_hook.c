/*
 * extension_hook.c: DROP EXTENSION beside workers and sessions at work.
 *
 * The command locks the extension's tables one after the other, in an order
 * that is not ours, and would meet transactions that use them in another one:
 * a deadlock, of which it may be the victim.  So its locks are taken before it,
 * without holding any of them while waiting for another.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "extension_hook.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pg_finetune.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

static ProcessUtility_hook_type prev_ProcessUtility = NULL;

/* Does the command drop our extension? */
static bool
drops_extension(const Node *statement)
{
	const DropStmt *drop = (const DropStmt *) statement;
	ListCell *cell;

	if (!IsA(statement, DropStmt) || drop->removeType != OBJECT_EXTENSION)
		return false;
	foreach (cell, drop->objects)
	{
		if (strcmp(strVal(lfirst(cell)), PGFT_EXTENSION) == 0)
			return true;
	}
	return false;
}

/* Tables and views of the extension. */
static List *
relations_of(Oid extension)
{
	Relation depend = table_open(DependRelationId, AccessShareLock);
	List *relations = NIL;
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(ExtensionRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(depend, DependReferenceIndexId, true, NULL, 2, key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend entry = (Form_pg_depend) GETSTRUCT(tuple);
		char kind;

		if (entry->classid != RelationRelationId || entry->deptype != DEPENDENCY_EXTENSION)
			continue;
		kind = get_rel_relkind(entry->objid);
		if (kind == RELKIND_RELATION || kind == RELKIND_VIEW)
			relations = lappend_oid(relations, entry->objid);
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
	return relations;
}

/* Lock all of them, or none but the one that is being waited for. */
static void
lock_relations(List *relations)
{
	Oid waited_for = InvalidOid;
	int locked = 0;

	while (locked < list_length(relations))
	{
		Oid relation = list_nth_oid(relations, locked);

		if (relation == waited_for || ConditionalLockRelationOid(relation, AccessExclusiveLock))
		{
			locked++;
			continue;
		}
		while (locked > 0)
		{
			Oid held = list_nth_oid(relations, --locked);

			if (held != waited_for)
				UnlockRelationOid(held, AccessExclusiveLock);
		}
		if (OidIsValid(waited_for))
			UnlockRelationOid(waited_for, AccessExclusiveLock);
		LockRelationOid(relation, AccessExclusiveLock);
		waited_for = relation;
	}
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *queryEnv,
				DestReceiver *dest, QueryCompletion *qc)
{
	if (drops_extension(pstmt->utilityStmt))
	{
		Oid extension = get_extension_oid(PGFT_EXTENSION, true);

		/* a stranger's command is refused */
		if (OidIsValid(extension) && pg_extension_ownercheck(extension, GetUserId()))
			lock_relations(relations_of(extension));
	}
	if (prev_ProcessUtility)
		prev_ProcessUtility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest,
								qc);
}

void
pgft_extension_hook_init(void)
{
	prev_ProcessUtility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
