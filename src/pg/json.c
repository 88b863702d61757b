/*
 * json.c: reading and writing JSON by PostgreSQL's own functions.
 */
#include "postgres.h"

#include <math.h>

#include "fmgr.h"
#include "json.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

/*
 * What jsonb_in has to say of bad input quotes it, and what comes from the
 * engine may hold text of a prompt, so its error is replaced.
 */
Jsonb *
pgft_json_parse(const char *text, int length, const char *what)
{
	MemoryContext context = CurrentMemoryContext;
	Jsonb *volatile result = NULL;

	PG_TRY();
	{
		char *converted = pg_any_to_server(text, length, PG_UTF8);

		/* pg_any_to_server returns its argument when there is nothing to convert */
		if (converted == text)
			converted = pnstrdup(text, length);
		result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(converted)));
	}
	PG_CATCH();
	{
		int code = geterrcode();

		MemoryContextSwitchTo(context);
		if (code == ERRCODE_QUERY_CANCELED || code == ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		FlushErrorState();
		ereport(ERROR, (errcode(code == ERRCODE_CHARACTER_NOT_IN_REPERTOIRE ||
										code == ERRCODE_UNTRANSLATABLE_CHARACTER
									? code
									: ERRCODE_INTERNAL_ERROR),
						errmsg("%s is not valid JSON that this database can hold", what)));
	}
	PG_END_TRY();
	return result;
}

JsonbValue *
pgft_json_member(JsonbContainer *object, const char *name)
{
	if (object == NULL || !JsonContainerIsObject(object))
		return NULL;
	return getKeyJsonValueFromContainer(object, name, strlen(name), NULL);
}

static JsonbContainer *
container_member(JsonbContainer *object, const char *name, bool want_object)
{
	JsonbValue *value = pgft_json_member(object, name);

	if (value == NULL || value->type != jbvBinary)
		return NULL;
	if (want_object ? !JsonContainerIsObject(value->val.binary.data)
					: !JsonContainerIsArray(value->val.binary.data))
		return NULL;
	return value->val.binary.data;
}

JsonbContainer *
pgft_json_object(JsonbContainer *object, const char *name)
{
	return container_member(object, name, true);
}

JsonbContainer *
pgft_json_array(JsonbContainer *object, const char *name)
{
	return container_member(object, name, false);
}

char *
pgft_json_string(JsonbContainer *object, const char *name)
{
	JsonbValue *value = pgft_json_member(object, name);

	if (value == NULL || value->type != jbvString)
		return NULL;
	return pnstrdup(value->val.string.val, value->val.string.len);
}

bool
pgft_json_double(JsonbContainer *object, const char *name, double *result)
{
	JsonbValue *value = pgft_json_member(object, name);

	if (value == NULL || value->type != jbvNumeric)
		return false;
	*result = DatumGetFloat8(
		DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(value->val.numeric)));
	return true;
}

bool
pgft_json_int64(JsonbContainer *object, const char *name, int64 *result)
{
	double value;

	if (!pgft_json_double(object, name, &value) || value != rint(value) ||
		fabs(value) > 9007199254740992.0)
		return false;
	*result = (int64) value;
	return true;
}

Jsonb *
pgft_json_any(JsonbContainer *object, const char *name)
{
	JsonbValue *value = pgft_json_member(object, name);

	return value == NULL ? NULL : JsonbValueToJsonb(value);
}

JsonbContainer *
pgft_json_element(JsonbContainer *array, int index)
{
	JsonbValue *value;

	if (array == NULL || !JsonContainerIsArray(array) || index < 0)
		return NULL;
	value = getIthJsonbValueFromContainer(array, index);
	if (value == NULL || value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
		return NULL;
	return value->val.binary.data;
}

static void
add_name(StringInfo buf, const char *name)
{
	if (buf->len > 0 && buf->data[buf->len - 1] != '{')
		appendStringInfoString(buf, ", ");
	escape_json(buf, name);
	appendStringInfoString(buf, ": ");
}

void
pgft_json_add_string(StringInfo buf, const char *name, const char *value)
{
	add_name(buf, name);
	escape_json(buf, value);
}

void
pgft_json_add_int64(StringInfo buf, const char *name, int64 value)
{
	add_name(buf, name);
	appendStringInfo(buf, INT64_FORMAT, value);
}

void
pgft_json_add_double(StringInfo buf, const char *name, double value)
{
	add_name(buf, name);
	if (isfinite(value))
		appendStringInfoString(buf, float8out_internal(value));
	else
		appendStringInfoString(buf, "null");
}

void
pgft_json_add_bool(StringInfo buf, const char *name, bool value)
{
	add_name(buf, name);
	appendStringInfoString(buf, value ? "true" : "false");
}

void
pgft_json_add_raw(StringInfo buf, const char *name, const char *json)
{
	add_name(buf, name);
	appendStringInfoString(buf, json);
}
