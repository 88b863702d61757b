/*
 * rows_scan.c: the plan node that asks for the answers of many rows at once.
 *
 * Rows are read ahead and held in a ring, each with its requests under way, and
 * returned in order.  How far ahead: as far as rows are certain to be asked for
 * (rows_demand.c), and beyond that a few, more as rows are taken; never more
 * than pg_finetune.batch_rows with requests under way, and four times that in
 * all, so that one long answer does not hold the others up.  Requests of rows
 * ahead take places that all sessions share: where there is none, the scan goes
 * on one row at a time.
 *
 * An error of a request belongs to its row and is raised when that row is
 * returned.  One that comes up while a row is read cannot wait as long, for what
 * is evaluated there may be anything, and nothing may run after its error; so
 * only the answers to the rows before are waited for, and the first error of
 * them, if there is one, is raised instead, as it would have been.
 *
 * Rows that are not certain to be asked for are read only where that can neither
 * fail nor have a side effect.  When the scan ends, by an error too, connections
 * are closed, and the engine drops the requests.
 */
#include "postgres.h"

#include "commands/explain.h"
#include "completion.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "pg_finetune.h"
#include "rows.h"
#include "settings.h"
#include "shmem.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* Rows that are read ahead at first where none is certain to be asked for */
#define FIRST_WINDOW 4

/* Rows held for each that may have requests under way */
#define HELD_ROWS 4

/* A call in the target list */
typedef struct Call
{
	const PgftCompletionForm *form;
	int entry;                             /* index of its target entry */
	int columns[PGFT_COMPLETION_MAX_ARGS]; /* attribute numbers of its arguments */
} Call;

/* A row that is held */
typedef struct Row
{
	MinimalTuple tuple;           /* of the plan below */
	PgftCompletion **completions; /* one for each call; NULL: an argument is null */
	bool alone;                   /* none other of ours was under way beside its one request */
	bool busy;                    /* the engine had no room: one of them is to be sent again */
	bool again;                   /* one was, and nothing else is sent before its answer is there */
	int places;                   /* taken for its requests among those of all sessions */
} Row;

typedef struct RowsScan
{
	CustomScanState css;
	MemoryContext context; /* holds what follows, and what is under way */
	MemoryContextCallback on_reset;
	int reserved; /* connections */
	int places;   /* taken by rows, and by the one that is being read */
	Call *calls;
	int ncalls;
	int ncolumns;         /* of the plan below */
	TupleTableSlot *held; /* the row that is returned */
	bool harmless;        /* rows may be read that nobody will ask for */

	/* The ring */
	Row *rows;
	int size;
	int head;
	int count;
	int flying; /* rows with requests under way, when last looked */
	int busy;   /* rows whose requests wait for others to end, or have them wait */

	bool exhausted;
	int max_flying;
	int window;     /* how many rows may be held that are not certain to be asked for */
	uint64 run;     /* that what follows is for; 0: none */
	int64 returned; /* since the start of the scan */
	int64 certain;  /* that number of rows will be returned */
	int64 most;

	/* For EXPLAIN ANALYZE */
	int64 requests;
	int64 prompt_tokens;
	int64 cached_tokens;
	int64 completion_tokens;
	int most_flying;
	instr_time waited;
} RowsScan;

static TupleTableSlot *exec_scan(CustomScanState *node);
static void begin_scan(CustomScanState *node, EState *estate, int eflags);
static void end_scan(CustomScanState *node);
static void rescan(CustomScanState *node);
static void explain_scan(CustomScanState *node, List *ancestors, ExplainState *es);

static const CustomExecMethods exec_methods = {
	.CustomName = PGFT_ROWS_NAME,
	.BeginCustomScan = begin_scan,
	.ExecCustomScan = exec_scan,
	.EndCustomScan = end_scan,
	.ReScanCustomScan = rescan,
	.ExplainCustomScan = explain_scan,
};

Node *
pgft_rows_create_state(CustomScan *plan)
{
	RowsScan *scan = (RowsScan *) newNode(sizeof(RowsScan), T_CustomScanState);

	scan->css.methods = &exec_methods;
	return (Node *) scan;
}

/* ---- Begin and end ---- */

/* As for a function that is called: may the current user? */
static void
check_right_to_call(Oid function)
{
	AclResult result = pg_proc_aclcheck(function, GetUserId(), ACL_EXECUTE);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FUNCTION, get_func_name(function));
}

/* The calls are the last columns of the custom_scan_tlist. */
static void
read_calls(RowsScan *scan, CustomScan *plan)
{
	List *entries = linitial(plan->custom_private);

	scan->ncalls = list_length(entries);
	scan->ncolumns = list_length(plan->custom_scan_tlist) - scan->ncalls;
	scan->calls = palloc0(scan->ncalls * sizeof(Call));
	for (int i = 0; i < scan->ncalls; i++)
	{
		TargetEntry *entry =
			list_nth_node(TargetEntry, plan->custom_scan_tlist, scan->ncolumns + i);
		FuncExpr *function = castNode(FuncExpr, entry->expr);
		ListCell *cell;

		check_right_to_call(function->funcid);
		scan->calls[i].form = pgft_completion_form(function->funcid);
		scan->calls[i].entry = list_nth_int(entries, i);
		if (scan->calls[i].form == NULL ||
			list_length(function->args) != scan->calls[i].form->nargs)
			elog(ERROR, "unexpected call in a node of rows in flight");
		foreach (cell, function->args)
			scan->calls[i].columns[foreach_current_index(cell)] = lfirst_node(Var, cell)->varattno;
	}
}

static void
give_places(RowsScan *scan, int count)
{
	if (count > 0)
		pgft_ahead_give(count);
	scan->places -= count;
}

static void
release_all(void *arg)
{
	RowsScan *scan = arg;

	pgft_connections_reserve(-scan->reserved);
	scan->reserved = 0;
	give_places(scan, scan->places);
}

static void
begin_scan(CustomScanState *node, EState *estate, int eflags)
{
	RowsScan *scan = (RowsScan *) node;
	CustomScan *plan = (CustomScan *) node->ss.ps.plan;
	MemoryContext old_context;

	outerPlanState(node) = ExecInitNode(outerPlan(plan), estate, eflags);
	read_calls(scan, plan);
	scan->harmless = linitial_int(lsecond(plan->custom_private)) != 0;
	scan->max_flying = Max(pgft_batch_rows, 1);
	scan->window = Min(FIRST_WINDOW, scan->max_flying);
	scan->held = ExecInitExtraTupleSlot(estate, ExecGetResultType(outerPlanState(node)),
										&TTSOpsMinimalTuple);
	if (eflags & EXEC_FLAG_EXPLAIN_ONLY)
		return;

	scan->context =
		AllocSetContextCreate(estate->es_query_cxt, "pg_finetune rows", ALLOCSET_DEFAULT_SIZES);
	scan->size = HELD_ROWS * scan->max_flying;
	scan->rows = MemoryContextAllocZero(estate->es_query_cxt, scan->size * sizeof(Row));
	for (int i = 0; i < scan->size; i++)
		scan->rows[i].completions =
			MemoryContextAllocZero(estate->es_query_cxt, scan->ncalls * sizeof(PgftCompletion *));

	old_context = MemoryContextSwitchTo(scan->context);
	scan->on_reset.func = release_all;
	scan->on_reset.arg = scan;
	MemoryContextRegisterResetCallback(scan->context, &scan->on_reset);
	scan->reserved = scan->max_flying * scan->ncalls;
	pgft_connections_reserve(scan->reserved);
	MemoryContextSwitchTo(old_context);
}

static Row *
row_at(RowsScan *scan, int index)
{
	return &scan->rows[(scan->head + index) % scan->size];
}

static void
give_places_of(RowsScan *scan, Row *row)
{
	give_places(scan, row->places);
	row->places = 0;
}

static void
drop_row(RowsScan *scan, Row *row)
{
	give_places_of(scan, row);
	for (int i = 0; i < scan->ncalls; i++)
		if (row->completions[i] != NULL)
		{
			const PgftCompletionUsage *usage = pgft_completion_usage(row->completions[i]);

			scan->requests += usage->requests;
			scan->prompt_tokens += usage->prompt_tokens;
			scan->cached_tokens += usage->cached_tokens;
			scan->completion_tokens += usage->completion_tokens;
			pgft_completion_free(row->completions[i]);
			row->completions[i] = NULL;
		}
}

/* Give up what is under way. */
static void
drop_rows(RowsScan *scan)
{
	for (; scan->count > 0; scan->count--)
	{
		Row *row = row_at(scan, scan->count - 1);

		drop_row(scan, row);
		heap_free_minimal_tuple(row->tuple);
		row->tuple = NULL;
	}
	scan->flying = 0;
	scan->busy = 0;
	give_places(scan, scan->places);
}

static void
end_scan(CustomScanState *node)
{
	RowsScan *scan = (RowsScan *) node;

	if (scan->context != NULL)
	{
		drop_rows(scan);
		ExecClearTuple(scan->held);
		MemoryContextDelete(scan->context);
		scan->context = NULL;
	}
	ExecEndNode(outerPlanState(node));
}

static void
rescan(CustomScanState *node)
{
	RowsScan *scan = (RowsScan *) node;

	drop_rows(scan);
	ExecClearTuple(scan->held);
	scan->exhausted = false;
	scan->window = Min(FIRST_WINDOW, scan->max_flying);
	scan->run = 0;
	scan->returned = 0;
	if (outerPlanState(node)->chgParam == NULL)
		ExecReScan(outerPlanState(node));
}

/* ---- Requests ---- */

/* Has every call of a row its answer?  Goes on with those that have not. */
static bool
poll_row(RowsScan *scan, Row *row)
{
	bool over = true;

	for (int i = 0; i < scan->ncalls; i++)
	{
		PgftCompletion *completion = row->completions[i];

		if (completion != NULL && !pgft_completion_poll(completion))
			over = false;
	}
	if (over)
		give_places_of(scan, row);
	return over;
}

static bool
row_was_busy(RowsScan *scan, Row *row)
{
	for (int i = 0; i < scan->ncalls; i++)
		if (row->completions[i] != NULL && pgft_completion_was_busy(row->completions[i]))
			return true;
	return false;
}

/*
 * Go on with everything that is under way.  A request that the engine had no room
 * for beside our own others would not have been sent before those had ended, so
 * it is sent again then.
 */
static void
poll_rows(RowsScan *scan)
{
	scan->flying = 0;
	scan->busy = 0;
	for (int i = 0; i < scan->count; i++)
	{
		Row *row = row_at(scan, i);

		if (!poll_row(scan, row))
		{
			scan->flying++;
			scan->busy += row->again;
		}
		else
		{
			row->busy = !row->alone && row_was_busy(scan, row);
			if (row->busy)
				scan->busy++;
		}
	}
	scan->most_flying = Max(scan->most_flying, scan->flying);
}

/*
 * Send a request again, once nothing else is under way.  Until all such requests
 * have their answer, no more rows are read.
 */
static void
ask_busy_again(RowsScan *scan)
{
	if (scan->busy == 0 || scan->flying > 0)
		return;
	for (int i = 0; i < scan->count; i++)
	{
		Row *row = row_at(scan, i);

		for (int j = 0; row->busy && j < scan->ncalls; j++)
			if (row->completions[j] != NULL && pgft_completion_was_busy(row->completions[j]))
			{
				pgft_completion_again(row->completions[j]);
				row->again = true;
				return;
			}
	}
}

/* Wait until one of the requests under way has ended. */
static void
wait_for_any(RowsScan *scan)
{
	PgftRequest **requests = palloc(scan->count * scan->ncalls * sizeof(PgftRequest *));
	int count = 0;
	instr_time start, now;

	for (int i = 0; i < scan->count; i++)
		for (int j = 0; j < scan->ncalls; j++)
		{
			PgftCompletion *completion = row_at(scan, i)->completions[j];
			PgftRequest *request = completion == NULL ? NULL : pgft_completion_request(completion);

			if (request != NULL)
				requests[count++] = request;
		}
	if (count > 0)
	{
		INSTR_TIME_SET_CURRENT(start);
		(void) pgft_request_wait_any(requests, count);
		INSTR_TIME_SET_CURRENT(now);
		INSTR_TIME_ACCUM_DIFF(scan->waited, now, start);
	}
	pfree(requests);
}

/* ---- Rows ---- */

/*
 * Can anything go on after an error of this kind?  Only waiting, for the
 * statement will end with it; but not while the server is in trouble.
 */
static bool
is_error_of_data(int sqlstate)
{
	int category = ERRCODE_TO_CATEGORY(sqlstate);

	return category == ERRCODE_DATA_EXCEPTION ||
		   category == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION ||
		   category == ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION ||
		   category == ERRCODE_PLPGSQL_ERROR || category == ERRCODE_FEATURE_NOT_SUPPORTED ||
		   category == ERRCODE_PROGRAM_LIMIT_EXCEEDED ||
		   category == ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE ||
		   category == ERRCODE_CARDINALITY_VIOLATION;
}

/* Raise the error of the first row that has one, if any. */
static void
raise_held_error(RowsScan *scan)
{
	for (int i = 0; i < scan->count; i++)
		for (int j = 0; j < scan->ncalls; j++)
		{
			PgftCompletion *completion = row_at(scan, i)->completions[j];
			Datum ignored;

			if (completion == NULL)
				continue;
			while (!pgft_completion_poll(completion))
			{
				PgftRequest *request = pgft_completion_request(completion);

				pgft_request_wait_any(&request, 1);
			}
			if (pgft_completion_has_error(completion))
				(void) pgft_completion_take(completion, &ignored);
		}
}

/* The next row of the plan below; an error of a row that is held goes first. */
static TupleTableSlot *
read_below(RowsScan *scan)
{
	MemoryContext context = CurrentMemoryContext;
	TupleTableSlot *volatile slot = NULL;

	PG_TRY();
	{
		slot = ExecProcNode(outerPlanState(&scan->css));
	}
	PG_CATCH();
	{
		ErrorData *error;

		if (scan->count == 0 || !is_error_of_data(geterrcode()))
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		raise_held_error(scan);
		ReThrowError(error);
	}
	PG_END_TRY();
	return slot;
}

/* Send the requests of a row that has just been read into `slot`. */
static void
ask(RowsScan *scan, Row *row, TupleTableSlot *slot)
{
	for (int i = 0; i < scan->ncalls; i++)
	{
		const Call *call = &scan->calls[i];
		Datum args[PGFT_COMPLETION_MAX_ARGS];
		bool has_null = false;

		for (int j = 0; j < call->form->nargs; j++)
		{
			bool is_null;

			args[j] = slot_getattr(slot, call->columns[j], &is_null);
			has_null = has_null || is_null;
		}
		if (!has_null)
			row->completions[i] = pgft_completion_start(call->form, args);
	}
}

/* Read a row, for which places have been taken, and ask for its answers. */
static void
read_row(RowsScan *scan)
{
	TupleTableSlot *slot = read_below(scan);
	MemoryContext old_context;
	int places = scan->count > 0 ? scan->ncalls : 0;
	Row *row;

	if (TupIsNull(slot))
	{
		give_places(scan, places);
		scan->exhausted = true;
		return;
	}
	old_context = MemoryContextSwitchTo(scan->context);
	row = row_at(scan, scan->count);
	row->places = places;
	row->tuple = ExecCopySlotMinimalTuple(slot);
	scan->count++;
	row->alone = scan->flying == 0 && scan->ncalls == 1;
	row->again = false;
	if (scan->flying > 0)
		for (int i = 0; i < scan->count; i++)
			row_at(scan, i)->alone = false; /* the engine may read that one's request later */
	ask(scan, row, slot);
	if (!poll_row(scan, row))
		scan->flying++;
	scan->most_flying = Max(scan->most_flying, scan->flying);
	MemoryContextSwitchTo(old_context);
}

/* What is asked of us in this run; at the first row of a scan also tell a sort below. */
static void
look_at_demand(RowsScan *scan)
{
	int64 limit;
	PgftDemand demand;

	if (scan->run != 0 && scan->run == pgft_rows_run())
		return;

	/* Who comes again for more rows may well come once more */
	if (scan->run != 0)
		scan->window = Min(2 * scan->window, scan->max_flying);
	demand = pgft_rows_demand(&scan->css.ss.ps, &limit);
	scan->certain =
		demand.certain == PGFT_DEMAND_ALL ? PGFT_DEMAND_ALL : scan->returned + demand.certain;
	scan->most = demand.most == PGFT_DEMAND_ALL ? PGFT_DEMAND_ALL : scan->returned + demand.most;
	if (scan->returned == 0 && scan->count == 0 && scan->run == 0)
		ExecSetTupleBound(limit == PGFT_DEMAND_ALL ? -1 : limit, outerPlanState(&scan->css));
	scan->run = pgft_rows_run();
}

static bool
wants_row(const RowsScan *scan)
{
	int64 read = scan->returned + scan->count;

	if (scan->exhausted)
		return false;
	if (scan->count == 0)
		return true;
	if (scan->busy > 0 || scan->flying >= scan->max_flying || scan->count >= scan->size ||
		read >= scan->most)
		return false;
	if (read < scan->certain)
		return true;
	return scan->harmless && scan->count < scan->window;
}

/* May its requests be sent?  Those of the row that is waited for may. */
static bool
take_places(RowsScan *scan)
{
	if (scan->count == 0)
		return true;
	if (!pgft_ahead_take(scan->ncalls))
		return false;
	scan->places += scan->ncalls;
	return true;
}

/* Have the first row and its answers in the ring; false when there is no more row. */
static bool
prepare_row(RowsScan *scan)
{
	look_at_demand(scan);
	for (;;)
	{
		Row *row;

		CHECK_FOR_INTERRUPTS();
		poll_rows(scan);
		while (wants_row(scan) && take_places(scan))
			read_row(scan);
		if (scan->count == 0)
			return false;
		ask_busy_again(scan);
		row = row_at(scan, 0);
		if (poll_row(scan, row) && (row->alone || !row_was_busy(scan, row)))
			return true;
		wait_for_any(scan);
	}
}

/* Evaluate what stands before a target entry, for its errors come first. */
static void
evaluate_before(RowsScan *scan, int entry)
{
	ExprContext *context = scan->css.ss.ps.ps_ExprContext;
	List *targets = scan->css.ss.ps.plan->targetlist;
	ListCell *cell;

	ExecStoreVirtualTuple(scan->css.ss.ss_ScanTupleSlot);
	context->ecxt_scantuple = scan->css.ss.ss_ScanTupleSlot;
	foreach (cell, targets)
	{
		TargetEntry *target = lfirst_node(TargetEntry, cell);
		ExprState *state;
		bool is_null;

		if (foreach_current_index(cell) >= entry)
			break;
		state = ExecInitExpr(target->expr, &scan->css.ss.ps);
		(void) ExecEvalExprSwitchContext(state, context, &is_null);
	}
}

/* The first row's columns and answers as a tuple. */
static TupleTableSlot *
take_row(RowsScan *scan)
{
	TupleTableSlot *slot = scan->css.ss.ss_ScanTupleSlot;
	Row *row = row_at(scan, 0);
	MemoryContext old_context;

	ExecClearTuple(slot);
	ExecStoreMinimalTuple(row->tuple, scan->held, true);
	row->tuple = NULL;
	scan->head = (scan->head + 1) % scan->size;
	scan->count--;
	scan->returned++;
	if (scan->returned >= scan->certain)
		scan->window = Min(scan->window + 1, scan->max_flying);

	slot_getallattrs(scan->held);
	memcpy(slot->tts_values, scan->held->tts_values, scan->ncolumns * sizeof(Datum));
	memcpy(slot->tts_isnull, scan->held->tts_isnull, scan->ncolumns * sizeof(bool));
	for (int i = 0; i < scan->ncalls; i++)
	{
		slot->tts_values[scan->ncolumns + i] = (Datum) 0;
		slot->tts_isnull[scan->ncolumns + i] = true;
	}
	old_context = MemoryContextSwitchTo(scan->css.ss.ps.ps_ExprContext->ecxt_per_tuple_memory);
	for (int i = 0; i < scan->ncalls; i++)
	{
		if (row->completions[i] == NULL)
			continue;
		if (pgft_completion_has_error(row->completions[i]))
			evaluate_before(scan, scan->calls[i].entry);
		slot->tts_isnull[scan->ncolumns + i] =
			!pgft_completion_take(row->completions[i], &slot->tts_values[scan->ncolumns + i]);
	}
	MemoryContextSwitchTo(old_context);
	drop_row(scan, row);
	return ExecStoreVirtualTuple(slot);
}

static TupleTableSlot *
exec_scan(CustomScanState *node)
{
	RowsScan *scan = (RowsScan *) node;
	ExprContext *context = node->ss.ps.ps_ExprContext;
	ProjectionInfo *projection = node->ss.ps.ps_ProjInfo;
	TupleTableSlot *volatile slot = NULL;

	ResetExprContext(context);
	PG_TRY();
	{
		if (prepare_row(scan))
			slot = take_row(scan);
	}
	PG_CATCH();
	{
		/* Now, not when the memory goes: the engine shall stop at once */
		drop_rows(scan);
		PG_RE_THROW();
	}
	PG_END_TRY();

	if (slot == NULL)
		return ExecClearTuple(projection != NULL ? projection->pi_state.resultslot
												 : node->ss.ss_ScanTupleSlot);
	context->ecxt_scantuple = slot;
	return projection != NULL ? ExecProject(projection) : slot;
}

/* ---- EXPLAIN ---- */

static void
explain_scan(CustomScanState *node, List *ancestors, ExplainState *es)
{
	RowsScan *scan = (RowsScan *) node;

	ExplainPropertyInteger("Batch Rows", NULL, scan->max_flying, es);
	if (!es->analyze)
		return;
	for (int i = 0; i < scan->count; i++)
		drop_row(scan, row_at(scan, i));
	ExplainPropertyInteger("Requests", NULL, scan->requests, es);
	ExplainPropertyInteger("Prompt Tokens", NULL, scan->prompt_tokens, es);
	ExplainPropertyInteger("Cached Tokens", NULL, scan->cached_tokens, es);
	ExplainPropertyInteger("Completion Tokens", NULL, scan->completion_tokens, es);
	ExplainPropertyInteger("Most Rows in Flight", NULL, scan->most_flying, es);
	if (es->timing)
		ExplainPropertyFloat("Time Waited", "ms", INSTR_TIME_GET_MILLISEC(scan->waited), 3, es);
}
