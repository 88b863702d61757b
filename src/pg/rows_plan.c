/*
 * rows_plan.c: which queries get a node that asks for many rows' answers at once.
 *
 * When the planner has its paths for a whole query (UPPERREL_FINAL), and calls of
 * complete() stand in what the query returns, a custom path takes the place of
 * each of them: the same path without the calls, with their arguments as columns
 * instead, and over it the node.
 *
 * An expression is taken apart so that nothing is evaluated that would not have
 * been, nothing twice, and what is volatile in the order in which it was:
 *
 *   - a call is taken out only of where it is always evaluated, never of CASE,
 *     COALESCE, AND, OR and the like;
 *   - arguments, and whatever is volatile (with it subqueries, into which we do
 *     not look), are columns of the plan below, in the order of the target list:
 *     evaluated when a row is read;
 *   - all else is evaluated when the row is returned, as is what takes a call's
 *     answer, calls that were not taken out among it; an error belongs to its row.
 *
 * Where that cannot be had (a volatile function of an answer, a call below a sort,
 * a group or a DISTINCT), the path stays as it is.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "completion.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/appendinfo.h"
#include "optimizer/clauses.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/planmain.h"
#include "optimizer/planner.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "rows.h"
#include "settings.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

static create_upper_paths_hook_type previous_hook = NULL;

static Plan *plan_path(PlannerInfo *root, RelOptInfo *rel, CustomPath *best_path, List *tlist,
					   List *clauses, List *custom_plans);

static const CustomPathMethods path_methods = {
	.CustomName = PGFT_ROWS_NAME,
	.PlanCustomPath = plan_path,
};

static const CustomScanMethods scan_methods = {
	.CustomName = PGFT_ROWS_NAME,
	.CreateCustomScanState = pgft_rows_create_state,
};

/* A target list that is taken apart */
typedef struct Parts
{
	List *available; /* expressions that the plan below has computed, for a sort */
	List *columns;   /* of the plan below */
	List *refs;      /* for each column the sortgroupref of what is sorted by, or 0 (integers) */
	List *calls;     /* FuncExpr, whose arguments are columns */
	List *entries;   /* for each call the index of its target entry (integers) */
	List *exprs;     /* the target list anew, of columns and calls */
	int entry;       /* that is taken apart */
	bool harmless;   /* what is evaluated when a row is read cannot fail and has no side effect */
	List *shared;    /* which columns anybody may use (integers) */
	bool ordered;    /* something is volatile, so subqueries, which may be too, are columns */
} Parts;

/* ---- Calls ---- */

static bool
is_completion(Node *node)
{
	return IsA(node, FuncExpr) && pgft_completion_form(((FuncExpr *) node)->funcid) != NULL;
}

static bool
has_completion(Node *node, void *context)
{
	if (node == NULL)
		return false;
	return is_completion(node) || expression_tree_walker(node, has_completion, context);
}

/* One that can be taken out: of calls inside of calls only the innermost */
static bool
is_call(Node *node)
{
	return is_completion(node) && !has_completion((Node *) ((FuncExpr *) node)->args, NULL);
}

/*
 * Are all of this node's children evaluated, once, whenever it is?  (A strict
 * function evaluates all of its arguments before it looks for a null.)
 */
static bool
evaluates_children(Node *node)
{
	switch (nodeTag(node))
	{
		case T_List:
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_ScalarArrayOpExpr:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_ConvertRowtypeExpr:
		case T_ArrayExpr:
		case T_RowExpr:
		case T_FieldSelect:
		case T_NullTest:
		case T_BooleanTest:
		case T_CollateExpr:
		case T_MinMaxExpr:
			return true;
		case T_BoolExpr:
			return ((BoolExpr *) node)->boolop == NOT_EXPR;
		case T_SubscriptingRef:
		{
			SubscriptingRef *ref = (SubscriptingRef *) node;

			/* Subscripts are not evaluated when the container is null */
			return !contain_volatile_functions((Node *) ref->refupperindexpr) &&
				   !contain_subplans((Node *) ref->refupperindexpr) &&
				   !contain_volatile_functions((Node *) ref->reflowerindexpr) &&
				   !contain_subplans((Node *) ref->reflowerindexpr) && ref->refassgnexpr == NULL;
		}
		default:
			return false;
	}
}

/* Is there a call that is evaluated whenever the expression is? */
static bool
has_call(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (is_call(node))
		return true;
	if (!evaluates_children(node))
		return false;
	return expression_tree_walker(node, has_call, context);
}

static bool
is_volatile_function(Oid function, void *context)
{
	return func_volatile(function) == PROVOLATILE_VOLATILE &&
		   pgft_completion_form(function) == NULL;
}

/*
 * Is there a volatile function beside ours?  Of ours it does not matter when they
 * are called.
 */
static bool
has_volatile(Node *node, void *context)
{
	if (node == NULL)
		return false;
	return check_functions_in_node(node, is_volatile_function, NULL) ||
		   expression_tree_walker(node, has_volatile, context);
}

/*
 * Functions that have no error for any argument: those that are leakproof, and
 * some of which prompts are made.
 */
static bool
function_can_fail(Oid function, void *context)
{
	switch (function)
	{
		case F_TEXTCAT:
		case F_REPLACE:
		case F_BTRIM_TEXT:
		case F_UPPER_TEXT:
		case F_LOWER_TEXT:
		case F_LEFT:
		case F_RIGHT:
			return false;
		default:
			return !get_func_leakproof(function) || func_volatile(function) == PROVOLATILE_VOLATILE;
	}
}

/* Might an expression fail, or do anything beside being computed? */
static bool
can_fail(Node *node, void *context)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_CoerceViaIO:
		{
			/* Text of what is built in */
			Oid from = exprType((Node *) ((CoerceViaIO *) node)->arg);
			Oid to = ((CoerceViaIO *) node)->resulttype;

			if (from >= FirstNormalObjectId || to != TEXTOID)
				return true;
			break;
		}
		case T_List:
		case T_FromExpr:
		case T_JoinExpr:
		case T_RangeTblRef:
		case T_Var:
		case T_Const:
		case T_Param:
		case T_RelabelType:
		case T_CollateExpr:
		case T_CaseExpr:
		case T_CaseWhen:
		case T_CaseTestExpr:
		case T_CoalesceExpr:
		case T_BoolExpr:
		case T_NullTest:
		case T_BooleanTest:
		case T_ArrayExpr:
			break;
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_ScalarArrayOpExpr:
			if (check_functions_in_node(node, function_can_fail, NULL))
				return true;
			break;
		default:
			return true;
	}
	return expression_tree_walker(node, can_fail, context);
}

/* The same for what a query reads. */
static bool
from_can_fail(Node *node, Query *query)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblRef))
	{
		RangeTblEntry *entry = rt_fetch(((RangeTblRef *) node)->rtindex, query->rtable);

		return (entry->rtekind != RTE_RELATION && entry->rtekind != RTE_RESULT) ||
			   entry->securityQuals != NIL || entry->tablesample != NULL;
	}
	if (IsA(node, FromExpr) || IsA(node, JoinExpr) || IsA(node, List))
		return expression_tree_walker(node, from_can_fail, query);
	return can_fail(node, NULL);
}

/* ---- Taking a target list apart ---- */

static Node *
column_at(Parts *parts, int index)
{
	Node *expr = list_nth(parts->columns, index);

	return (Node *) makeVar(OUTER_VAR, index + 1, exprType(expr), exprTypmod(expr),
							exprCollation(expr), 0);
}

/* Have an expression evaluated when a row is read; `ref` as in Parts.refs. */
static Node *
add_column(Parts *parts, Node *expr, Index ref)
{
	if (can_fail(expr, NULL))
		parts->harmless = false;
	parts->columns = lappend(parts->columns, expr);
	parts->refs = lappend_int(parts->refs, ref);
	return column_at(parts, list_length(parts->columns) - 1);
}

/* What comes from below, as it does. */
static Node *
add_variable(Parts *parts, Node *variable)
{
	ListCell *cell;

	foreach (cell, parts->shared)
		if (equal(list_nth(parts->columns, lfirst_int(cell)), variable))
			return column_at(parts, lfirst_int(cell));
	parts->shared = lappend_int(parts->shared, list_length(parts->columns));
	return add_column(parts, variable, 0);
}

/* Is it computed below, so that what it is made of may not be there? */
static bool
is_available(const Parts *parts, Node *node)
{
	return !IsA(node, List) && list_member(parts->available, node) &&
		   !contain_volatile_functions(node);
}

static Node *
replace_variables(Node *node, Parts *parts)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Var) || IsA(node, PlaceHolderVar) || is_available(parts, node))
		return add_variable(parts, node);
	return expression_tree_mutator(node, replace_variables, parts);
}

/* The new expression, NULL when it cannot be taken apart. */
static Node *
take_apart(Node *node, Parts *parts)
{
	if (node == NULL)
		return NULL;
	if (is_call(node))
	{
		FuncExpr *call = copyObject((FuncExpr *) node);
		ListCell *cell;

		/* Columns of its own, so that no two calls are alike */
		foreach (cell, call->args)
			lfirst(cell) = add_column(parts, lfirst(cell), 0);
		parts->calls = lappend(parts->calls, call);
		parts->entries = lappend_int(parts->entries, parts->entry);
		return (Node *) call;
	}
	if (is_available(parts, node))
		return add_variable(parts, node);
	if (has_call(node, NULL))
		return expression_tree_mutator(node, take_apart, parts);
	if (IsA(node, List))
		return expression_tree_mutator(node, take_apart, parts);
	if (has_volatile(node, NULL) || (parts->ordered && contain_subplans(node)))
		return add_column(parts, node, 0);
	return replace_variables(node, parts);
}

/* Is an argument of a call a subquery? */
static bool
asks_subquery(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (is_call(node))
		return contain_subplans(node);
	return expression_tree_walker(node, asks_subquery, context);
}

/* Is a volatile function called on the way from an answer to the result? */
static bool
is_volatile_above(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (check_functions_in_node(node, is_volatile_function, NULL))
		return true;
	return expression_tree_walker(node, is_volatile_above, context);
}

/* False when the calls have to stay where they are, or when there are none. */
static bool
take_target_apart(Parts *parts, const PathTarget *target, List *available)
{
	ListCell *cell;

	memset(parts, 0, sizeof(*parts));
	parts->available = available;
	parts->ordered =
		has_volatile((Node *) target->exprs, NULL) || asks_subquery((Node *) target->exprs, NULL);
	parts->harmless = true;
	foreach (cell, target->exprs)
	{
		Node *expr = lfirst(cell);
		Index ref = get_pathtarget_sortgroupref(target, foreach_current_index(cell));

		parts->entry = foreach_current_index(cell);
		if (ref != 0 && has_volatile(expr, NULL))
			expr = add_column(parts, expr, ref); /* was computed for the sort */
		else
			expr = take_apart(expr, parts);
		if (is_volatile_above(expr, NULL))
			return false;
		parts->exprs = lappend(parts->exprs, expr);
	}
	return parts->calls != NIL;
}

/* Is there a call that stays where it is? */
static bool
keeps_call(Node *node, Parts *parts)
{
	if (node == NULL || list_member_ptr(parts->calls, node))
		return false;
	return is_completion(node) || expression_tree_walker(node, keeps_call, parts);
}

/* ---- Paths ---- */

static bool
target_has_call(const PathTarget *target)
{
	return has_call((Node *) target->exprs, NULL);
}

static PathTarget *
make_target(PlannerInfo *root, List *columns, List *refs)
{
	PathTarget *target = create_empty_pathtarget();
	ListCell *cell, *ref_cell;

	forboth(cell, columns, ref_cell, refs)
		add_column_to_pathtarget(target, lfirst(cell), lfirst_int(ref_cell));
	return set_pathtarget_cost_width(root, target);
}

static Path *path_without_calls(PlannerInfo *root, Path *path, List *columns, List *refs);

/*
 * The partitions of a table compute the target list each for itself: let each
 * give the columns instead.
 */
static Path *
append_without_calls(PlannerInfo *root, AppendPath *append, List *columns, List *refs)
{
	List *subpaths = NIL;
	AppendPath *result;
	ListCell *cell;

	if (append->path.parallel_aware || append->first_partial_path < list_length(append->subpaths))
		return NULL;
	foreach (cell, append->subpaths)
	{
		Path *subpath = lfirst(cell);
		int count;
		AppendRelInfo **infos;
		List *translated;

		if (bms_equal(subpath->parent->relids, append->path.parent->relids))
			translated = columns;
		else
		{
			infos = find_appinfos_by_relids(root, subpath->parent->relids, &count);
			translated = (List *) adjust_appendrel_attrs(root, (Node *) columns, count, infos);
			pfree(infos);
		}
		subpath = path_without_calls(root, subpath, translated, refs);
		if (subpath == NULL)
			return NULL;
		subpaths = lappend(subpaths, subpath);
	}
	if (subpaths == NIL)
		return NULL;
	result = create_append_path(root, append->path.parent, subpaths, NIL, append->path.pathkeys,
								NULL, 0, false, append->path.rows);
	result->path.pathtarget = make_target(root, columns, refs);
	return &result->path;
}

/* The path with these columns as its result, NULL when it has no such form. */
static Path *
path_without_calls(PlannerInfo *root, Path *path, List *columns, List *refs)
{
	if (path->param_info != NULL)
		return NULL;
	if (IsA(path, ProjectionPath))
	{
		if (target_has_call(((ProjectionPath *) path)->subpath->pathtarget) &&
			!is_projection_capable_path(((ProjectionPath *) path)->subpath))
			return NULL;
		return (Path *) create_projection_path(root, path->parent, path,
											   make_target(root, columns, refs));
	}
	if (IsA(path, AppendPath) && target_has_call(path->pathtarget))
		return append_without_calls(root, (AppendPath *) path, columns, refs);
	if (!is_projection_capable_path(path))
		return NULL;
	return (Path *) create_projection_path(root, path->parent, path,
										   make_target(root, columns, refs));
}

/*
 * A call without a FROM: it is alone, and PL/pgSQL knows only one plan for such an
 * expression.
 */
static bool
is_single_call(const Query *query, const Parts *parts)
{
	Node *from;

	if (list_length(query->jointree->fromlist) != 1)
		return query->jointree->fromlist == NIL;
	from = linitial(query->jointree->fromlist);
	return IsA(from, RangeTblRef) &&
		   rt_fetch(((RangeTblRef *) from)->rtindex, query->rtable)->rtekind == RTE_RESULT &&
		   (list_length(parts->calls) < 2 || list_length(query->targetList) < 2);
}

static Path *
make_path(PlannerInfo *root, RelOptInfo *rel, Path *path)
{
	CustomPath *result;
	Path *child;
	Parts parts;
	List *available = NIL;
	bool harmless;

	if (!target_has_call(path->pathtarget))
		return NULL;
	if (IsA(path, ProjectionPath))
		available = ((ProjectionPath *) path)->subpath->pathtarget->exprs;
	if (!take_target_apart(&parts, path->pathtarget, available) ||
		is_single_call(root->parse, &parts))
		return NULL;
	child = path_without_calls(root, path, parts.columns, parts.refs);
	if (child == NULL)
		return NULL;

	harmless = parts.harmless && !from_can_fail((Node *) root->parse->jointree, root->parse);

	/* Or an error of a row that is read might come before that of such a call for an earlier row */
	if (!harmless && keeps_call((Node *) parts.exprs, &parts))
		return NULL;

	/*
	 * It does not project: what needs another target list gets a node for it, and
	 * ours stays the one that was taken apart.
	 */
	result = makeNode(CustomPath);
	result->path.pathtype = T_CustomScan;
	result->path.parent = rel;
	result->path.pathtarget = path->pathtarget;
	result->path.rows = path->rows;
	result->path.pathkeys = path->pathkeys;

	/* The same, so that no other plan is chosen above it because of it */
	result->path.startup_cost = path->startup_cost;
	result->path.total_cost = path->total_cost;
	result->methods = &path_methods;
	result->custom_paths = list_make1(child);
	result->custom_private =
		list_make4(parts.exprs, parts.calls, parts.entries, list_make1_int(harmless));
	return &result->path;
}

/* Is there something that computes its results before the query's end, or twice? */
static bool
computes_below(const Query *query)
{
	return query->commandType != CMD_SELECT || query->rowMarks != NIL || query->hasTargetSRFs ||
		   query->hasAggs || query->groupClause != NIL || query->groupingSets != NIL ||
		   query->havingQual != NULL || query->hasWindowFuncs || query->distinctClause != NIL ||
		   query->setOperations != NULL;
}

/* Is the result sorted by a call? */
static bool
sorts_by_call(PlannerInfo *root)
{
	ListCell *cell;

	foreach (cell, root->parse->sortClause)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, cell);

		if (has_completion(get_sortgroupclause_expr(clause, root->processed_tlist), NULL))
			return true;
	}
	return false;
}

static void
upper_paths_hook(PlannerInfo *root, UpperRelationKind stage, RelOptInfo *input_rel,
				 RelOptInfo *output_rel, void *extra)
{
	FinalPathExtraData *final = extra;
	Query *query = root->parse;
	ListCell *cell;

	if (previous_hook != NULL)
		previous_hook(root, stage, input_rel, output_rel, extra);
	if (stage != UPPERREL_FINAL || pgft_batch_rows < 2 || computes_below(query) ||
		sorts_by_call(root))
		return;

	/*
	 * The paths of input_rel are not looked at: add_path has freed those that were
	 * not as good as others.  Nor is it used here, for it would free paths that ours
	 * are made of.
	 */
	foreach (cell, output_rel->pathlist)
	{
		Path *path = lfirst(cell);

		if (IsA(path, LimitPath))
			path = ((LimitPath *) path)->subpath;
		path = make_path(root, output_rel, path);
		if (path != NULL && IsA(lfirst(cell), LimitPath))
			path = (Path *) create_limit_path(root, output_rel, path, query->limitOffset,
											  query->limitCount, query->limitOption,
											  final->offset_est, final->count_est);
		if (path != NULL)
			lfirst(cell) = path;
	}
}

/* ---- Plan ---- */

static Plan *
plan_path(PlannerInfo *root, RelOptInfo *rel, CustomPath *best_path, List *tlist, List *clauses,
		  List *custom_plans)
{
	CustomScan *scan = makeNode(CustomScan);
	Plan *child = linitial(custom_plans);
	List *exprs = linitial(best_path->custom_private);
	List *calls = lsecond(best_path->custom_private);
	ListCell *cell, *expr_cell;

	if (list_length(tlist) != list_length(exprs))
		elog(ERROR, "unexpected target list of a node of rows in flight");
	forboth(cell, tlist, expr_cell, exprs)
	{
		TargetEntry *entry = copyObject(lfirst_node(TargetEntry, cell));

		entry->expr = copyObject(lfirst(expr_cell));
		scan->scan.plan.targetlist = lappend(scan->scan.plan.targetlist, entry);
	}
	foreach (cell, child->targetlist)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, cell);
		Var *column =
			makeVar(OUTER_VAR, entry->resno, exprType((Node *) entry->expr),
					exprTypmod((Node *) entry->expr), exprCollation((Node *) entry->expr), 0);

		scan->custom_scan_tlist = lappend(
			scan->custom_scan_tlist, makeTargetEntry((Expr *) column, entry->resno, NULL, false));
	}
	foreach (cell, calls)
		scan->custom_scan_tlist =
			lappend(scan->custom_scan_tlist,
					makeTargetEntry(copyObject(lfirst(cell)),
									list_length(scan->custom_scan_tlist) + 1, NULL, false));

	/* The child as other nodes have theirs, so that EXPLAIN finds its columns */
	scan->scan.plan.lefttree = child;
	scan->flags = best_path->flags;
	scan->methods = &scan_methods;
	scan->custom_private =
		list_make2(lthird(best_path->custom_private), lfourth(best_path->custom_private));
	return &scan->scan.plan;
}

void
pgft_rows_plan_init(void)
{
	RegisterCustomScanMethods(&scan_methods);
	previous_hook = create_upper_paths_hook;
	create_upper_paths_hook = upper_paths_hook;
}
