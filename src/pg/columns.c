/*
 * columns.c: finds the training data among the columns of a query.
 *
 * A set is chosen by the names that are there, so that a query says what it is
 * by its select list alone.  What would have to be guessed is an error: columns
 * of two sets, or half of one.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "columns.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#define SET(s) (1 << PGFT_##s)
#define EVERY_SET ((1 << (PGFT_PREFERENCE + 1)) - 1)

typedef struct ColumnSpec
{
	const char *name;
	PgftColumnKind kind;
	int needed_by; /* sets that are nothing without it */
	int sets;      /* sets that it may be part of */
} ColumnSpec;

static const ColumnSpec specs[] = {
	{"prompt", PGFT_COLUMN_STRING, SET(PROMPT_COMPLETION) | SET(PREFERENCE),
	 SET(PROMPT_COMPLETION) | SET(PREFERENCE)},
	{"completion", PGFT_COLUMN_STRING, SET(PROMPT_COMPLETION), SET(PROMPT_COMPLETION)},
	{"messages", PGFT_COLUMN_JSON, SET(MESSAGES), SET(MESSAGES)},
	{"text", PGFT_COLUMN_STRING, SET(TEXT), SET(TEXT)},
	{"input_ids", PGFT_COLUMN_INTEGERS, SET(TOKENS), SET(TOKENS)},
	{"labels", PGFT_COLUMN_INTEGERS, 0, SET(TOKENS)},
	{"attention_mask", PGFT_COLUMN_INTEGERS, 0, SET(TOKENS)},
	{"chosen", PGFT_COLUMN_STRING, SET(PREFERENCE), SET(PREFERENCE)},
	{"rejected", PGFT_COLUMN_STRING, SET(PREFERENCE), SET(PREFERENCE)},
	{"weight", PGFT_COLUMN_NUMBER, 0, EVERY_SET},
};

/* What each kind is called in an error */
static const char *const kind_names[] = {
	[PGFT_COLUMN_STRING] = "text",
	[PGFT_COLUMN_JSON] = "jsonb",
	[PGFT_COLUMN_INTEGERS] = "integer[]",
	[PGFT_COLUMN_NUMBER] = "real",
};

/* What each set is called in an error */
static const char *const set_names[] = {
	[PGFT_PROMPT_COMPLETION] = "prompt, completion",
	[PGFT_MESSAGES] = "messages",
	[PGFT_TEXT] = "text",
	[PGFT_TOKENS] = "input_ids, labels, attention_mask",
	[PGFT_PREFERENCE] = "prompt, chosen, rejected",
};

#define SETS_HINT \
	"A query yields the columns prompt and completion, or messages, or text, or input_ids."
#define PAIRS_HINT "Method dpo trains on prompt, chosen and rejected."

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
type_fits(Oid type, PgftColumnKind kind)
{
	Oid base = getBaseType(type);
	char category;
	bool preferred;

	switch (kind)
	{
		case PGFT_COLUMN_STRING:
			get_type_category_preferred(base, &category, &preferred);
			return category == TYPCATEGORY_STRING;
		case PGFT_COLUMN_JSON:
			return base == JSONBOID || base == JSONOID;
		case PGFT_COLUMN_INTEGERS:
			return base == INT4ARRAYOID || base == INT8ARRAYOID || base == INT2ARRAYOID;
		case PGFT_COLUMN_NUMBER:
			return base == FLOAT4OID || base == FLOAT8OID || base == NUMERICOID ||
				   base == INT2OID || base == INT4OID || base == INT8OID;
	}
	return false;
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

static PgftColumnSet
first_set(int sets)
{
	PgftColumnSet set = 0;

	while ((sets & (1 << set)) == 0)
		set++;
	return set;
}

/*
 * The one set that is there, if only in part; an error for none and for two.
 * Where only a prompt is there, the set with a completion is meant.
 */
static PgftColumnSet
find_set(TupleDesc desc, const char *what)
{
	int possible = EVERY_SET;
	const char *found_by = NULL;

	for (int i = 0; i < lengthof(specs); i++)
	{
		if (specs[i].sets == EVERY_SET || find_column(desc, specs[i].name, what) == 0)
			continue;
		if ((possible & specs[i].sets) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_AMBIGUOUS_COLUMN),
					 errmsg("%s yields both \"%s\" and \"%s\"", what, found_by, specs[i].name),
					 errdetail("These are of two column sets: (%s) and (%s).",
							   set_names[first_set(possible)], set_names[first_set(specs[i].sets)]),
					 errhint("Leave out the columns of one of them.")));
		possible &= specs[i].sets;
		found_by = specs[i].name;
	}
	if (found_by == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("%s yields no column \"prompt\", \"messages\", \"text\" or \"input_ids\"",
						what),
				 errdetail("It yields %s.", list_columns(desc)), errhint(SETS_HINT)));
	return first_set(possible);
}

static void
add_column(PgftColumns *columns, const ColumnSpec *spec, TupleDesc desc, int attno,
		   const char *what)
{
	Oid type = TupleDescAttr(desc, attno - 1)->atttypid;
	const char *expected = kind_names[spec->kind];
	int c = columns->count++;

	if (!type_fits(type, spec->kind))
		ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
						errmsg("column \"%s\" of the %s is of type %s, expected %s", spec->name,
							   what, format_type_be(type), expected),
						errhint("Cast it: %s::%s AS %s.", spec->name, expected, spec->name)));
	columns->name[c] = spec->name;
	columns->kind[c] = spec->kind;
	columns->attno[c] = attno;
	columns->type[c] = type;
}

void
pgft_columns_find(TupleDesc desc, const char *what, PgftColumns *columns)
{
	columns->set = find_set(desc, what);
	columns->count = 0;
	for (int i = 0; i < lengthof(specs); i++)
	{
		int attno = find_column(desc, specs[i].name, what);

		if (attno > 0 && (specs[i].sets & (1 << columns->set)))
			add_column(columns, &specs[i], desc, attno, what);
		else if (specs[i].needed_by & (1 << columns->set))
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
							errmsg("%s yields no column \"%s\"", what, specs[i].name),
							errdetail("It yields %s.", list_columns(desc)),
							errhint(columns->set == PGFT_PREFERENCE ? PAIRS_HINT : SETS_HINT)));
	}
}

void
pgft_columns_check_pairs(const PgftColumns *columns, bool wanted, const char *what)
{
	bool pairs = columns->set == PGFT_PREFERENCE;

	if (wanted && !pairs)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("%s yields no columns \"chosen\" and \"rejected\"", what),
						errdetail("It yields training data as (%s).", set_names[columns->set]),
						errhint(PAIRS_HINT)));
	if (pairs && !wanted)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("%s yields preference pairs (\"chosen\", \"rejected\"), which only "
							   "method dpo trains on",
							   what),
						errhint("Give the option \"method\": \"dpo\", or yield an answer as "
								"\"completion\".")));
}
