/*
 * rows_demand.c: how many rows a node of a running plan will be asked for.
 *
 * Reading a row ahead that nobody asks for is not only a waste: its expressions
 * may have side effects and errors.  So we look at what stands above the node:
 * a LIMIT (which has computed its count by the time it asks for a first row),
 * how many rows a cursor fetches, a sort that reads everything.  Where the path
 * to the top has something else on it, a join say, only the row that is asked
 * for now is certain.
 */
#include "postgres.h"

#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "rows.h"

/* Runs of the executor, the innermost first */
typedef struct Run
{
	QueryDesc *query;
	uint64 count; /* rows to be fetched; 0: all */
	uint64 number;
	struct Run *outer;
} Run;

static Run *current_run = NULL;
static uint64 runs = 0;
static ExecutorRun_hook_type previous_hook = NULL;

typedef struct Search
{
	PlanState *node;
	PlanState *top;
	PgftDemand top_demand;
	PgftDemand demand; /* of the node that is looked at */
	PgftDemand found;
} Search;

static const PgftDemand all = {PGFT_DEMAND_ALL, PGFT_DEMAND_ALL};
static const PgftDemand unknown = {1, PGFT_DEMAND_ALL};

static void
run_hook(QueryDesc *query, ScanDirection direction, uint64 count, bool execute_once)
{
	Run run = {query, count, ++runs, current_run};

	current_run = &run;
	PG_TRY();
	{
		if (previous_hook != NULL)
			previous_hook(query, direction, count, execute_once);
		else
			standard_ExecutorRun(query, direction, count, execute_once);
	}
	PG_FINALLY();
	{
		current_run = run.outer;
	}
	PG_END_TRY();
}

uint64
pgft_rows_run(void)
{
	return current_run == NULL ? 0 : current_run->number;
}

/* All of it if all of the parent is asked for. */
static PgftDemand
all_or_unknown(PgftDemand demand)
{
	return demand.certain == PGFT_DEMAND_ALL ? all : unknown;
}

static PgftDemand
below_limit(const LimitState *limit, PgftDemand demand)
{
	int64 to_skip = Max(limit->offset - limit->position, 0);
	int64 left;

	if (demand.certain != PGFT_DEMAND_ALL)
		demand.certain += to_skip;
	if (demand.most != PGFT_DEMAND_ALL)
		demand.most += to_skip;
	if (limit->noCount)
		return demand;
	left = Max(limit->offset + limit->count - limit->position, 1);
	if (left < 0) /* overflow: there is no such limit */
		return demand;
	demand.certain = Min(demand.certain, left);

	/* WITH TIES goes on until a row is no tie */
	if (limit->limitOption == LIMIT_OPTION_COUNT)
		demand.most = Min(demand.most, left);
	return demand;
}

/* What a node that is asked for this asks of its left child */
static PgftDemand
below(PlanState *node, PgftDemand demand)
{
	switch (nodeTag(node))
	{
		case T_LimitState:
			return below_limit((LimitState *) node, demand);
		case T_ResultState:
		case T_MaterialState:
			return demand;
		case T_SubqueryScanState:
			/* A filter needs as many rows, and maybe more */
			if (node->qual != NULL)
				demand.most = PGFT_DEMAND_ALL;
			return demand;
		case T_SortState:
		case T_HashState:
			return all;
		case T_AggState:
			if (((Agg *) node->plan)->aggstrategy == AGG_SORTED)
				return all_or_unknown(demand);
			return all;
		case T_IncrementalSortState:
		case T_GroupState:
		case T_UniqueState:
		case T_SetOpState:
		case T_ProjectSetState:
		case T_LockRowsState:
		case T_ModifyTableState:
		case T_NestLoopState: /* its outer side */
			return all_or_unknown(demand);
		default:
			return unknown;
	}
}

static bool search_node(PlanState *node, Search *search);

static bool
search_below(PlanState *node, Search *search, PgftDemand demand)
{
	PgftDemand saved = search->demand;
	bool found;

	search->demand = demand;
	found = node != NULL && search_node(node, search);
	search->demand = saved;
	return found;
}

static bool
search_members(PlanState **members, int count, Search *search, PgftDemand demand)
{
	for (int i = 0; i < count; i++)
		if (search_below(members[i], search, demand))
			return true;
	return false;
}

/* Those who read a CTE */
typedef struct Readers
{
	PlanState *cte;
	PlanState *last;
	int count;
} Readers;

static bool
find_readers(PlanState *node, Readers *readers)
{
	if (IsA(node, CteScanState) && ((CteScanState *) node)->cteplanstate == readers->cte)
	{
		readers->last = node;
		readers->count++;
	}
	return planstate_tree_walker(node, find_readers, readers);
}

/*
 * What its only reader is asked for; of several it is not known which one asks
 * now.  A reader that starts again, with another LIMIT, may ask for more.
 */
static PgftDemand
of_cte(PlanState *cte, const Search *search)
{
	Readers readers = {.cte = cte};
	Search above;

	(void) find_readers(search->top, &readers);
	if (readers.count != 1)
		return unknown;
	above = (Search){readers.last, search->top, search->top_demand, search->top_demand, unknown};
	(void) search_node(search->top, &above);
	return (PgftDemand){above.found.certain, PGFT_DEMAND_ALL};
}

static PgftDemand
of_subplan(const SubPlanState *state, const Search *search)
{
	const SubPlan *subplan = state->subplan;

	switch (subplan->subLinkType)
	{
		case CTE_SUBLINK:
			return of_cte(state->planstate, search);
		case ARRAY_SUBLINK:
			return all;
		case EXISTS_SUBLINK:
			return (PgftDemand){1, 1};
		case EXPR_SUBLINK:
		case MULTIEXPR_SUBLINK:
			/* The second one is the error that there are two */
			return (PgftDemand){2, 2};
		default:
			return subplan->useHashTable ? all : unknown;
	}
}

static bool
search_subplans(List *subplans, Search *search)
{
	ListCell *cell;

	foreach (cell, subplans)
	{
		SubPlanState *state = lfirst_node(SubPlanState, cell);

		/* Who looks for a reader of this one must not come here for its demand again */
		if (state->subplan->subLinkType == CTE_SUBLINK &&
			!search_below(state->planstate, search, unknown))
			continue;
		if (search_below(state->planstate, search, of_subplan(state, search)))
			return true;
	}
	return false;
}

/* Anything else: members of bitmap scans, children of custom scans … */
static bool
search_other(PlanState *node, Search *search)
{
	return search_below(node, search, unknown);
}

static bool
search_node(PlanState *node, Search *search)
{
	if (node == search->node)
	{
		search->found = search->demand;
		return true;
	}
	if (search_subplans(node->initPlan, search) || search_subplans(node->subPlan, search))
		return true;
	switch (nodeTag(node))
	{
		case T_AppendState:
			return search_members(((AppendState *) node)->appendplans,
								  ((AppendState *) node)->as_nplans, search, search->demand);
		case T_MergeAppendState:
		{
			PgftDemand demand = all_or_unknown(search->demand);

			demand.most = search->demand.most;
			return search_members(((MergeAppendState *) node)->mergeplans,
								  ((MergeAppendState *) node)->ms_nplans, search, demand);
		}
		case T_SubqueryScanState:
			return search_below(((SubqueryScanState *) node)->subplan, search,
								below(node, search->demand));
		case T_CustomScanState:
			if (((CustomScanState *) node)->custom_ps != NIL)
				return planstate_tree_walker(node, search_other, search);
			/* fall through */
		default:
			return search_below(outerPlanState(node), search, below(node, search->demand)) ||
				   search_below(innerPlanState(node), search,
								IsA(node, HashJoinState) ? all : unknown);
	}
}

PgftDemand
pgft_rows_demand(PlanState *node, int64 *limit)
{
	Search search = {.node = node, .top_demand = all, .demand = all, .found = unknown};
	int64 count;

	*limit = PGFT_DEMAND_ALL;
	if (current_run == NULL || current_run->query->estate != node->state ||
		current_run->query->planstate == NULL)
		return unknown;
	search.top = current_run->query->planstate;
	if (!search_node(search.top, &search))
		return unknown;
	*limit = search.found.most;
	if (current_run->count == 0)
		return search.found;

	/* More may be fetched later */
	count = (int64) Min(current_run->count, (uint64) PG_INT64_MAX);
	search.top_demand = search.demand = (PgftDemand){count, PGFT_DEMAND_ALL};
	(void) search_node(search.top, &search);
	return search.found;
}

void
pgft_rows_demand_init(void)
{
	previous_hook = ExecutorRun_hook;
	ExecutorRun_hook = run_hook;
}
