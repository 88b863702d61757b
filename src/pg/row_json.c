/*
 * row_json.c: a row of training data as a line of JSON.
 *
 * What a line may hold is the engine's business (src/engine/README.md); here is
 * checked what JSON cannot say, and what can be said better of a column of SQL
 * than of a list.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "row_json.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"

void
pgft_row_writer_init(PgftRowWriter *writer, TupleDesc desc, const char *what)
{
	writer->what = what;
	writer->rows = 0;
	pgft_columns_find(desc, what, &writer->columns);
	for (int c = 0; c < writer->columns.count; c++)
	{
		Oid function;
		bool varlena;

		getTypeOutputInfo(writer->columns.type[c], &function, &varlena);
		fmgr_info(function, &writer->output[c]);
	}
}

/* The row being written, for an error message. */
static char *
name_row(PgftRowWriter *writer)
{
	return psprintf("row " INT64_FORMAT " of the %s", writer->rows + 1, writer->what);
}

static void
append_json(PgftRowWriter *writer, StringInfo line, int column, Datum value)
{
	char *text = OutputFunctionCall(&writer->output[column], value);

	/* json may hold line breaks between its tokens, jsonb's text does not */
	if (getBaseType(writer->columns.type[column]) == JSONOID)
		text = JsonbToCString(
			NULL, &DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)))->root, 0);
	appendStringInfoString(line, text);
}

static void
check_array(PgftRowWriter *writer, int column, ArrayType *array)
{
	const char *name = writer->columns.name[column];

	if (ARR_NDIM(array) == 0)
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("%s: column \"%s\" is an empty array", name_row(writer), name)));
	if (ARR_NDIM(array) != 1)
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("%s: column \"%s\" has %d dimensions, expected 1", name_row(writer),
							   name, ARR_NDIM(array))));
	if (array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s: column \"%s\" has an element that is NULL", name_row(writer), name)));
}

/* *length: of input_ids, which comes first; 0 while it is not known. */
static void
append_integers(PgftRowWriter *writer, StringInfo line, int column, Datum value, int *length)
{
	ArrayType *array = DatumGetArrayTypeP(value);
	Oid type = ARR_ELEMTYPE(array);
	Datum *elements;
	int n;

	check_array(writer, column, array);
	deconstruct_array(array, type,
					  type == INT8OID   ? 8
					  : type == INT4OID ? 4
										: 2,
					  true,
					  type == INT8OID   ? TYPALIGN_DOUBLE
					  : type == INT4OID ? TYPALIGN_INT
										: TYPALIGN_SHORT,
					  &elements, NULL, &n);
	if (*length > 0 && n != *length)
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("%s: column \"%s\" has %d elements, \"%s\" has %d", name_row(writer),
							   writer->columns.name[column], n, writer->columns.name[0], *length)));
	/* where input_ids is NULL the row is skipped, whatever the others are */
	if (column == 0)
		*length = n;
	for (int i = 0; i < n; i++)
	{
		int64 element = type == INT8OID   ? DatumGetInt64(elements[i])
						: type == INT4OID ? DatumGetInt32(elements[i])
										  : DatumGetInt16(elements[i]);

		appendStringInfo(line, "%s" INT64_FORMAT, i ? ", " : "[", element);
	}
	appendStringInfoChar(line, ']');
}

static double
get_number(Oid type, Datum value)
{
	switch (getBaseType(type))
	{
		case FLOAT4OID:
			return DatumGetFloat4(value);
		case FLOAT8OID:
			return DatumGetFloat8(value);
		case NUMERICOID:
			return DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, value));
		case INT2OID:
			return DatumGetInt16(value);
		case INT4OID:
			return DatumGetInt32(value);
		default:
			return (double) DatumGetInt64(value);
	}
}

static void
append_number(PgftRowWriter *writer, StringInfo line, int column, Datum value)
{
	double number = get_number(writer->columns.type[column], value);

	if (isnan(number) || isinf(number) || number < 0)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("%s: column \"%s\" is %s", name_row(writer), writer->columns.name[column],
						isnan(number)   ? "NaN"
						: isinf(number) ? "infinite"
										: "negative")));
	appendStringInfo(line, "%.17g", number);
}

static void
append_value(PgftRowWriter *writer, StringInfo line, int column, Datum value, int *length)
{
	switch (writer->columns.kind[column])
	{
		case PGFT_COLUMN_STRING:
			escape_json(line, OutputFunctionCall(&writer->output[column], value));
			break;
		case PGFT_COLUMN_JSON:
			append_json(writer, line, column, value);
			break;
		case PGFT_COLUMN_INTEGERS:
			append_integers(writer, line, column, value, length);
			break;
		case PGFT_COLUMN_NUMBER:
			append_number(writer, line, column, value);
			break;
	}
}

void
pgft_row_write(PgftRowWriter *writer, StringInfo line, HeapTuple row, TupleDesc desc)
{
	int length = 0;

	for (int c = 0; c < writer->columns.count; c++)
	{
		bool isnull;
		Datum value = heap_getattr(row, writer->columns.attno[c], desc, &isnull);

		appendStringInfo(line, "%s\"%s\": ", c ? ", " : "{", writer->columns.name[c]);
		if (isnull)
			appendStringInfoString(line, "null");
		else
			append_value(writer, line, c, value, &length);
	}
	appendStringInfoString(line, "}\n");
	writer->rows++;
}
