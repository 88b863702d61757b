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
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "lib/stringinfo.h"
#include "nodes/nodeFuncs.h"
#include "query_check.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

typedef enum ColumnKind
{
	COLUMN_STRING, /* text and what is like it */
	COLUMN_JSON    /* jsonb or json */
} ColumnKind;

typedef struct SetSpec
{
	PgftColumnSet set;
	int count;
	const char *name[PGFT_MAX_COLUMNS];
	ColumnKind kind;
} SetSpec;

static const SetSpec sets[] = {
	{PGFT_PROMPT_COMPLETION, 2, {"prompt", "completion"}, COLUMN_STRING},
	{PGFT_MESSAGES, 1, {"messages"}, COLUMN_JSON},
	{PGFT_TEXT, 1, {"text"}, COLUMN_STRING},
};

typedef struct QueryText
{
	const char *query;
	const char *what;
	bool later; /* it is run by another process */
} QueryText;

/* Columns that mean something, and would be wrong to ignore, but cannot be had yet. */
static const char *const later_columns[] = {"input_ids", "labels",   "attention_mask",
											"chosen",    "rejected", "weight"};

#define SETS_HINT "A query yields the columns prompt and completion, or messages, or text."

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

/* The position of a column, 0 when it is missing; an error when it is there twice. */
static int
find_column(TupleDesc desc, const char *name, const char *what)
{
	int found = 0;

	for (int i = 0; i < desc->natts; i++)
	{
		if (strcmp(NameStr(TupleDescAttr(desc, i)->attname), name) != 0)
			continue;
		if (found)
			ereport(ERROR, (errcode(ERRCODE_DUPLICATE_COLUMN),
							errmsg("%s yields two columns \"%s\"", what, name)));
		found = i + 1;
	}
	return found;
}

static bool
type_fits(Oid type, ColumnKind kind)
{
	Oid base = getBaseType(type);
	char category;
	bool preferred;

	if (kind == COLUMN_JSON)
		return base == JSONBOID || base == JSONOID;
	get_type_category_preferred(base, &category, &preferred);
	return category == TYPCATEGORY_STRING;
}

static char *
list_columns(TupleDesc desc)
{
	StringInfoData buf;

	if (desc->natts == 0)
		return "no columns";
	initStringInfo(&buf);
	for (int i = 0; i < desc->natts; i++)
		appendStringInfo(&buf, "%s%s %s", i ? ", " : "", NameStr(TupleDescAttr(desc, i)->attname),
						 format_type_be(TupleDescAttr(desc, i)->atttypid));
	return buf.data;
}

/* The one set that is there, if only in part; an error for none and for two. */
static const SetSpec *
find_set(TupleDesc desc, const char *what)
{
	const SetSpec *found = NULL;
	const char *found_by = NULL;

	for (int s = 0; s < lengthof(sets); s++)
	{
		for (int c = 0; c < sets[s].count; c++)
		{
			if (find_column(desc, sets[s].name[c], what) == 0)
				continue;
			if (found && found != &sets[s])
				ereport(ERROR, (errcode(ERRCODE_AMBIGUOUS_COLUMN),
								errmsg("%s yields both \"%s\" and \"%s\"", what, found_by,
									   sets[s].name[c]),
								errhint(SETS_HINT)));
			found = &sets[s];
			found_by = sets[s].name[c];
		}
	}
	if (found == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("%s yields no column \"prompt\", \"messages\" or \"text\"", what),
						errdetail("It yields %s.", list_columns(desc)), errhint(SETS_HINT)));
	return found;
}

void
pgft_columns_find(TupleDesc desc, const char *what, PgftColumns *columns)
{
	const SetSpec *spec;

	for (int i = 0; i < lengthof(later_columns); i++)
	{
		if (find_column(desc, later_columns[i], what))
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							errmsg("column \"%s\" of the %s is not supported yet", later_columns[i],
								   what)));
	}

	spec = find_set(desc, what);
	columns->set = spec->set;
	columns->count = spec->count;
	for (int c = 0; c < spec->count; c++)
	{
		int attno = find_column(desc, spec->name[c], what);
		Oid type;

		if (attno == 0)
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
							errmsg("%s yields no column \"%s\"", what, spec->name[c]),
							errdetail("It yields %s.", list_columns(desc)), errhint(SETS_HINT)));
		type = TupleDescAttr(desc, attno - 1)->atttypid;
		if (!type_fits(type, spec->kind))
			ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
							errmsg("column \"%s\" of the %s is of type %s, expected %s",
								   spec->name[c], what, format_type_be(type),
								   spec->kind == COLUMN_JSON ? "jsonb" : "text"),
							errhint("Cast it: %s::%s AS %s.", spec->name[c],
									spec->kind == COLUMN_JSON ? "jsonb" : "text", spec->name[c])));
		columns->name[c] = spec->name[c];
		columns->attno[c] = attno;
		columns->type[c] = type;
	}
}
