/*
 * query_check.c: checks a training query without running it.
 *
 * The query runs later, in a process of its own and with nobody there to read
 * an error message.  So all that can be known from its text is said at once to
 * the session that typed it: by parse analysis and rewriting in that session,
 * as for a view, and by the privilege checks that the executor would start
 * with.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "query_check.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"

typedef struct QueryText
{
	const char *query;
	const char *what;
	bool later; /* it is run by another process */
} QueryText;

/*
 * The statement in the text, or an error when it is not exactly one that reads.
 */
static RawStmt *
parse_single_select(const char *query, const char *what)
{
	List *statements = pg_parse_query(query);
	RawStmt *raw;
	SelectStmt *leftmost;

	if (list_length(statements) != 1)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("%s must be a single SELECT, not %d statements", what,
							   list_length(statements))));
	raw = linitial_node(RawStmt, statements);
	if (!IsA(raw->stmt, SelectStmt))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("%s must be a SELECT, VALUES or TABLE, not %s", what,
							   CreateCommandName(raw->stmt))));

	/* INTO stands in the leftmost branch of a set operation */
	leftmost = (SelectStmt *) raw->stmt;
	while (leftmost->op != SETOP_NONE)
		leftmost = leftmost->larg;
	if (leftmost->intoClause)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("%s must not contain INTO", what)));
	return raw;
}

/* Nobody but this session sees its temporary tables. */
static void
refuse_temporary(List *rtable, const char *what)
{
	ListCell *cell;

	foreach (cell, rtable)
	{
		RangeTblEntry *entry = lfirst_node(RangeTblEntry, cell);

		if (OidIsValid(entry->relid) && get_rel_persistence(entry->relid) == RELPERSISTENCE_TEMP)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("%s must not read temporary table \"%s\"", what,
								   get_rel_name(entry->relid)),
							errhint("The query is run later, by another process.")));
	}
}

/* The right to call a function, which the executor would ask for when it starts. */
static void
check_function(FuncExpr *call)
{
	AclResult result = pg_proc_aclcheck(call->funcid, GetUserId(), ACL_EXECUTE);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FUNCTION, get_func_name(call->funcid));
}

/*
 * Refuse what a READ ONLY transaction would refuse, at any depth, and check
 * what the executor checks before it starts.
 */
static bool
check_query_walker(Node *node, void *context)
{
	QueryText *text = context;
	const char *what = text->what;

	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		Query *query = castNode(Query, node);

		if (query->commandType != CMD_SELECT || query->hasModifyingCTE)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("%s must not modify data", what)));
		if (query->rowMarks != NIL)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("%s must not contain FOR UPDATE or FOR SHARE", what)));
		if (text->later)
			refuse_temporary(query->rtable, what);
		ExecCheckRTPerms(query->rtable, true);
		return query_tree_walker(query, check_query_walker, context, 0);
	}
	if (IsA(node, FuncExpr))
		check_function(castNode(FuncExpr, node));
	return expression_tree_walker(node, check_query_walker, context);
}

/* A place in the query is not one in the statement that the user typed. */
static void
query_error(void *arg)
{
	QueryText *text = arg;
	int position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(text->query);
	}
	errcontext("%s", text->what);
}

/*
 * Rules on a table may make several queries of one, but not of a SELECT: a
 * rewritten SELECT is always one.
 */
static void
check_query(QueryText text, PgftColumns *columns)
{
	ErrorContextCallback callback = {
		.previous = error_context_stack, .callback = query_error, .arg = &text};
	RawStmt *raw;
	Query *select;

	error_context_stack = &callback;
	raw = parse_single_select(text.query, text.what);
	select =
		linitial_node(Query, pg_analyze_and_rewrite_fixedparams(raw, text.query, NULL, 0, NULL));
	error_context_stack = callback.previous;

	check_query_walker((Node *) select, &text);
	pgft_columns_find(ExecCleanTypeFromTL(select->targetList), text.what, columns);
}

void
pgft_query_check(const char *query, const char *what, PgftColumns *columns)
{
	check_query((QueryText){.query = query, .what = what, .later = true}, columns);
}

void
pgft_query_check_now(const char *query, const char *what, PgftColumns *columns)
{
	check_query((QueryText){.query = query, .what = what}, columns);
}
