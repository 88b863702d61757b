/*
 * rows.h: rows in flight: a plan node that asks for the answers of many rows at
 * once, where a query's result has calls of complete() in it.
 *
 *   rows_plan.c     which queries: puts the node over the plan that makes the rows
 *   rows_scan.c     the node: rows ahead, their requests, answers in order
 *   rows_demand.c   how many rows it will be asked for
 */
#ifndef PGFT_ROWS_H
#define PGFT_ROWS_H

#include "nodes/execnodes.h"
#include "nodes/extensible.h"

/* As EXPLAIN shows it */
#define PGFT_ROWS_NAME "Rows in Flight"

/*
 * The plan node.  Its only child, lefttree, gives the columns that are made when
 * a row is read, the arguments of the calls among them.  custom_scan_tlist is
 * these columns, and then the calls, whose arguments are columns of the child
 * (OUTER_VAR).  custom_private is a list of integers for each call: the index of
 * the target entry that it stands in.  Then comes one more list with one
 * integer: may rows be read that nobody will ask for?
 */

/* How many more rows a node will be asked for, the one that it is asked for now included */
typedef struct PgftDemand
{
	int64 certain; /* at least so many, or all that it has, in this run */
	int64 most;    /* in this run and later ones */
} PgftDemand;

#define PGFT_DEMAND_ALL PG_INT64_MAX

/* Number of the run of the executor that is under way; no two have the same */
extern uint64 pgft_rows_run(void);

/* What is asked of a node; *limit is what LIMIT clauses leave it. */
extern PgftDemand pgft_rows_demand(PlanState *node, int64 *limit);

extern Node *pgft_rows_create_state(CustomScan *scan);

extern void pgft_rows_plan_init(void);
extern void pgft_rows_demand_init(void);

#endif
