/*
 * complete_cost.c: what the planner takes a call of complete(), or one of its kin, to cost.
 *
 * Time goes into the answer's tokens, one after the other, so a call costs what a
 * constant option "max_tokens" leaves of a usual answer.  Such an answer stands for
 * the functions' COST in the catalog, and is assumed without that option.  The planner then makes a
 * call that answers "yes" or "no" before one that writes a text.  Rows in flight make calls
 * shorter, not cheaper: they are not looked at.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "json.h"
#include "nodes/nodeFuncs.h"
#include "nodes/supportnodes.h"
#include "optimizer/optimizer.h"
#include "utils/syscache.h"

/* Tokens after which an answer ends by itself, more or less */
#define USUAL_TOKENS 100

/* Tokens of a usual answer that a call's options leave, where they are known */
static double
tokens_allowed(const FuncExpr *call)
{
	Node *options = llast(call->args);
	double tokens;

	if (list_length(call->args) < 3 || !IsA(options, Const) || exprType(options) != JSONBOID ||
		((Const *) options)->constisnull)
		return USUAL_TOKENS;
	if (!pgft_json_double(&DatumGetJsonbP(((Const *) options)->constvalue)->root, "max_tokens",
						  &tokens))
		return USUAL_TOKENS;
	return Min(Max(tokens, 1), USUAL_TOKENS);
}

/* SQL: finetune.complete_support(internal) returns internal */
PG_FUNCTION_INFO_V1(pgft_complete_support);
Datum
pgft_complete_support(PG_FUNCTION_ARGS)
{
	Node *node = (Node *) PG_GETARG_POINTER(0);
	SupportRequestCost *request = (SupportRequestCost *) node;
	HeapTuple tuple;

	if (!IsA(node, SupportRequestCost) || request->node == NULL || !IsA(request->node, FuncExpr) ||
		((FuncExpr *) request->node)->funcid != request->funcid)
		PG_RETURN_POINTER(NULL);
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(request->funcid));
	if (!HeapTupleIsValid(tuple))
		PG_RETURN_POINTER(NULL);

	/* COST of CREATE FUNCTION, which may have been altered */
	request->startup = 0;
	request->per_tuple = ((Form_pg_proc) GETSTRUCT(tuple))->procost * cpu_operator_cost *
						 tokens_allowed((FuncExpr *) request->node) / USUAL_TOKENS;
	ReleaseSysCache(tuple);
	PG_RETURN_POINTER(request);
}
