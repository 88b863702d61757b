/*
 * database_hook.c: a database that somebody wants for himself.
 *
 * DROP DATABASE, ALTER DATABASE … RENAME or SET TABLESPACE and CREATE DATABASE
 * … TEMPLATE need a database without other sessions, and wait but a few
 * seconds for them to go.  A job may take hours, so its workers are asked to
 * leave first, and none is started there until the command has ended.  The job
 * goes on from its checkpoint when the database is still there afterwards.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "database_hook.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pg_finetune.h"
#include "pgstat.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/acl.h"

/* How long the workers may take, and how often it is looked whether they have gone */
#define LEAVE_WITHIN_MS 10000
#define LOOK_MS 20

static ProcessUtility_hook_type prev_ProcessUtility = NULL;

static const char *
option_value(List *options, const char *name)
{
	ListCell *cell;

	foreach (cell, options)
	{
		DefElem *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, name) == 0)
			return defGetString(option);
	}
	return NULL;
}

/* The name of the database that a command wants for itself, NULL for most commands. */
static const char *
wanted_database(const Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			return ((const DropdbStmt *) statement)->dbname;
		case T_RenameStmt:
			if (((const RenameStmt *) statement)->renameType == OBJECT_DATABASE)
				return ((const RenameStmt *) statement)->subname;
			return NULL;
		case T_AlterDatabaseStmt:
			if (option_value(((const AlterDatabaseStmt *) statement)->options, "tablespace"))
				return ((const AlterDatabaseStmt *) statement)->dbname;
			return NULL;
		case T_CreatedbStmt:
			return option_value(((const CreatedbStmt *) statement)->options, "template");
		default:
			return NULL;
	}
}

/* Did workers have to leave for the command that this session runs? */
static bool workers_left = false;

/* Wait until our workers have left; those that do not are the command's to complain about. */
static void
wait_until_left(Oid database)
{
	int64 deadline = pgft_monotonic_ms() + LEAVE_WITHIN_MS;

	workers_left = false;
	while (!pgft_leave_database(database) && pgft_monotonic_ms() < deadline)
	{
		workers_left = true;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, LOOK_MS,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
unbar(int code, Datum database)
{
	pgft_bar_database(DatumGetObjectId(database), false);
	if (workers_left)
		pgft_look_for_jobs(DatumGetObjectId(database));
	workers_left = false;
}

static void
run_command(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
			ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *queryEnv,
			DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_ProcessUtility)
		prev_ProcessUtility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest,
								qc);
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *queryEnv,
				DestReceiver *dest, QueryCompletion *qc)
{
	const char *name = wanted_database(pstmt->utilityStmt);
	Oid database = InvalidOid;

	/* Within a transaction the command is refused; a stranger's too */
	if (name != NULL && context == PROCESS_UTILITY_TOPLEVEL && !IsTransactionBlock())
		database = get_database_oid(name, true);
	if (!OidIsValid(database) || !pg_database_ownercheck(database, GetUserId()))
	{
		run_command(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
		return;
	}

	pgft_bar_database(database, true);
	PG_ENSURE_ERROR_CLEANUP(unbar, ObjectIdGetDatum(database));
	{
		wait_until_left(database);
		run_command(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	}
	PG_END_ENSURE_ERROR_CLEANUP(unbar, ObjectIdGetDatum(database));
	unbar(0, ObjectIdGetDatum(database));
}

void
pgft_database_hook_init(void)
{
	prev_ProcessUtility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
