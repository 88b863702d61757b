/*
 * complete_options.c: what a call of complete() asks for, as a request's JSON.
 *
 * Options are checked here, so that a mistake is found before anything is
 * loaded, and says what is allowed.  No message holds any of a prompt.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "complete_options.h"
#include "fmgr.h"
#include "json.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/json.h"
#include "utils/numeric.h"

#define MAX_TEMPERATURE 2.0
#define MAX_PENALTY 2.0
#define MIN_REPETITION_PENALTY 0.01
#define MAX_REPETITION_PENALTY 100.0
#define MAX_STOP_STRINGS 16
#define MAX_ANSWERS 128
#define MAX_TOP_LOGPROBS 20

/* Integers that JSON carries exactly */
#define MAX_EXACT_INTEGER 9007199254740991.0

typedef void (*OptionFunction)(PgftCompleteOptions *options, const char *name,
							   const JsonbValue *value);

/* ---- Options ---- */

/* What a value is, for messages: it may be a prompt, so only a number is shown. */
static const char *
describe_value(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return "null";
		case jbvString:
			return "a string";
		case jbvBool:
			return "a boolean";
		case jbvNumeric:
			return float8out_internal(DatumGetFloat8(DirectFunctionCall1(
				numeric_float8_no_overflow, NumericGetDatum(value->val.numeric))));
		default:
			return value->type == jbvBinary && JsonContainerIsArray(value->val.binary.data)
					   ? "an array"
					   : "an object";
	}
}

static void
wrong_type(const char *name, const char *wanted, const JsonbValue *value)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("option \"%s\" must be %s, not %s", name, wanted, describe_value(value))));
}

static double
number_value(const char *name, const char *wanted, const JsonbValue *value)
{
	if (value->type != jbvNumeric)
		wrong_type(name, wanted, value);
	return DatumGetFloat8(
		DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(value->val.numeric)));
}

static double
number_between(const char *name, const JsonbValue *value, double low, double high)
{
	double number = number_value(name, "a number", value);

	if (!(number >= low && number <= high))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"%s\" must be between %g and %g, not %s", name, low, high,
							   describe_value(value))));
	return number;
}

static int64
integer_between(const char *name, const JsonbValue *value, double low, double high)
{
	double number = number_value(name, "an integer", value);

	if (number != rint(number))
		wrong_type(name, "an integer", value);
	if (number < low || number > high)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"%s\" must be between %.0f and %.0f, not %s", name, low,
							   high, describe_value(value))));
	return (int64) number;
}

static void
temperature_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	options->has_temperature = true;
	pgft_json_add_double(&options->body, name, number_between(name, value, 0, MAX_TEMPERATURE));
}

static void
top_p_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	double number = number_between(name, value, 0, 1);

	if (number == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"%s\" must be greater than 0 and at most 1, not 0", name)));
	pgft_json_add_double(&options->body, name, number);
}

static void
min_p_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	pgft_json_add_double(&options->body, name, number_between(name, value, 0, 1));
}

static void
top_k_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	pgft_json_add_int64(&options->body, name, integer_between(name, value, 0, PG_INT32_MAX));
}

static void
max_tokens_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	pgft_json_add_int64(&options->body, name, integer_between(name, value, 1, PG_INT32_MAX));
}

static void
seed_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	pgft_json_add_int64(&options->body, name,
						integer_between(name, value, -MAX_EXACT_INTEGER, MAX_EXACT_INTEGER));
}

static void
penalty_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	pgft_json_add_double(&options->body, name,
						 number_between(name, value, -MAX_PENALTY, MAX_PENALTY));
}

static void
repetition_penalty_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	pgft_json_add_double(
		&options->body, name,
		number_between(name, value, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY));
}

static void
n_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	options->n = (int) integer_between(name, value, 1, MAX_ANSWERS);
	pgft_json_add_int64(&options->body, name, options->n);
}

static void
logprobs_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	if (value->type != jbvBool)
		wrong_type(name, "a boolean", value);
	options->logprobs = value->val.boolean;
	pgft_json_add_bool(&options->body, name, value->val.boolean);
}

static void
top_logprobs_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	options->top_logprobs = (int) integer_between(name, value, 0, MAX_TOP_LOGPROBS);
	pgft_json_add_int64(&options->body, name, options->top_logprobs);
}

/* A member of response_format beside its type; the only other one. */
static JsonbValue *
format_member(const char *name, JsonbContainer *format, const char *type, const char *member)
{
	JsonbValue *value = member == NULL ? NULL : pgft_json_member(format, member);

	if (JsonContainerSize(format) != (value == NULL ? 1 : 2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 member == NULL
					 ? errmsg("option \"%s\" of type \"%s\" must have no other member", name, type)
					 : errmsg("option \"%s\" of type \"%s\" must have no member but \"%s\"", name,
							  type, member)));
	return value;
}

/*
 * The engine's request for a schema.  jsonb does not keep the order of keys, so
 * the answer's are in that of "required".
 */
static void
add_schema(StringInfo body, const char *name, JsonbValue *schema)
{
	Jsonb *jsonb = JsonbValueToJsonb(schema);

	pgft_json_add_raw(body, name,
					  psprintf("{\"type\": \"json_schema\", \"json_schema\": {\"required_first\": "
							   "true, \"schema\": %s}}",
							   JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb))));
}

/* OpenAI's forms, and Snowflake's, whose type is "json". */
static void
response_format_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	JsonbContainer *format = value->type == jbvBinary ? value->val.binary.data : NULL;
	char *type = format == NULL ? NULL : pgft_json_string(format, "type");
	JsonbValue *schema;

	if (type == NULL)
		wrong_type(name, "an object with the string \"type\"", value);
	if (strcmp(type, "text") == 0)
		format_member(name, format, type, NULL);
	else if (strcmp(type, "json_object") == 0)
	{
		format_member(name, format, type, NULL);
		pgft_json_add_raw(&options->body, name, "{\"type\": \"json_object\"}");
	}
	else if (strcmp(type, "json") == 0)
	{
		schema = format_member(name, format, type, "schema");
		if (schema == NULL)
			pgft_json_add_raw(&options->body, name, "{\"type\": \"json_object\"}");
		else
			add_schema(&options->body, name, schema);
	}
	else if (strcmp(type, "json_schema") == 0)
	{
		format_member(name, format, type, "json_schema");
		schema = pgft_json_object(format, "json_schema") == NULL
					 ? NULL
					 : pgft_json_member(pgft_json_object(format, "json_schema"), "schema");
		if (schema == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"%s\" must have a \"schema\" in \"json_schema\"", name)));
		add_schema(&options->body, name, schema);
	}
	else
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"%s\" must have the type \"text\", \"json_object\", "
							   "\"json_schema\" or \"json\"",
							   name)));
}

static void
system_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	if (value->type != jbvString)
		wrong_type(name, "a string", value);
	options->system = pnstrdup(value->val.string.val, value->val.string.len);
}

static void
add_stop(StringInfo list, const JsonbValue *value)
{
	static const char wanted[] = "a string that is not empty, or an array of such";

	if (value->type != jbvString)
		wrong_type("stop", wanted, value);
	if (value->val.string.len == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"%s\" must be %s", "stop", wanted)));
	if (list->len > 1)
		appendStringInfoString(list, ", ");
	escape_json(list, pnstrdup(value->val.string.val, value->val.string.len));
}

static void
stop_option(PgftCompleteOptions *options, const char *name, const JsonbValue *value)
{
	StringInfoData list;

	initStringInfo(&list);
	appendStringInfoChar(&list, '[');
	if (value->type == jbvBinary && JsonContainerIsArray(value->val.binary.data))
	{
		JsonbContainer *array = value->val.binary.data;

		if (JsonContainerSize(array) > MAX_STOP_STRINGS)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("option \"%s\" must have at most %d strings, not %d", name,
								   MAX_STOP_STRINGS, (int) JsonContainerSize(array))));
		for (uint32 i = 0; i < JsonContainerSize(array); i++)
			add_stop(&list, getIthJsonbValueFromContainer(array, i));
	}
	else
		add_stop(&list, value);
	appendStringInfoChar(&list, ']');
	if (list.len > 2)
		pgft_json_add_raw(&options->body, name, list.data);
}

static const struct
{
	const char *name;
	OptionFunction set;
} option_table[] = {
	{"temperature", temperature_option},
	{"top_p", top_p_option},
	{"top_k", top_k_option},
	{"min_p", min_p_option},
	{"max_tokens", max_tokens_option},
	{"stop", stop_option},
	{"seed", seed_option},
	{"presence_penalty", penalty_option},
	{"frequency_penalty", penalty_option},
	{"repetition_penalty", repetition_penalty_option},
	{"n", n_option},
	{"logprobs", logprobs_option},
	{"top_logprobs", top_logprobs_option},
	{"response_format", response_format_option},
	{"system", system_option},
};

static void
unrecognized_option(const char *name)
{
	StringInfoData allowed;

	initStringInfo(&allowed);
	for (int i = 0; i < lengthof(option_table); i++)
		appendStringInfo(&allowed, "%s%s", i == 0 ? "" : ", ", option_table[i].name);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("unrecognized option \"%s\"", name),
			 errhint("Valid options are: %s.", allowed.data)));
}

static void
set_option(PgftCompleteOptions *options, const JsonbValue *key, const JsonbValue *value)
{
	char *name = pnstrdup(key->val.string.val, key->val.string.len);

	for (int i = 0; i < lengthof(option_table); i++)
		if (strcmp(option_table[i].name, name) == 0)
		{
			/* null means unset, as in the options of finetune() */
			if (value->type != jbvNull)
				option_table[i].set(options, name, value);
			return;
		}
	unrecognized_option(name);
}

void
pgft_complete_options_read(PgftCompleteOptions *options, Jsonb *given)
{
	memset(options, 0, sizeof(*options));
	initStringInfo(&options->body);
	if (given != NULL)
	{
		JsonbIterator *iterator = JsonbIteratorInit(&given->root);
		JsonbValue key, value;
		JsonbIteratorToken token = JsonbIteratorNext(&iterator, &key, true);

		if (token != WJB_BEGIN_OBJECT)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("options must be a JSON object, not %s",
								   JB_ROOT_IS_SCALAR(given) ? "a scalar" : "an array")));
		while ((token = JsonbIteratorNext(&iterator, &key, true)) == WJB_KEY)
		{
			JsonbIteratorNext(&iterator, &value, true);
			set_option(options, &key, &value);
		}
	}
	if (options->top_logprobs > 0 && !options->logprobs)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"%s\" needs option \"%s\"", "top_logprobs", "logprobs")));
	/* The engine shows nobody what another role of another database has asked */
	pgft_json_add_string(&options->body, "cache_salt",
						 psprintf("%u/%u", MyDatabaseId, GetUserId()));
	if (!options->has_temperature)
		pgft_json_add_double(&options->body, "temperature", 0);
}

void
pgft_complete_options_check_stream(const PgftCompleteOptions *options, const char *function)
{
	if (options->n > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" must be 1 for %s(), not %d", "n", function, options->n),
				 errhint("Pieces of several answers cannot be told apart: use complete().")));
	if (options->logprobs)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"%s\" must be false for %s()", "logprobs", function),
						errhint("Use complete().")));
}

/* ---- Messages ---- */

static void
add_message(StringInfo list, const char *role, const char *content)
{
	if (list->len > 1)
		appendStringInfoString(list, ", ");
	appendStringInfoChar(list, '{');
	pgft_json_add_string(list, "role", role);
	pgft_json_add_string(list, "content", content);
	appendStringInfoChar(list, '}');
}

static void
bad_message(int number, const char *wrong)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("message %d %s", number, wrong)));
}

/* A role stands in the caller's data, so only one that other systems know is repeated. */
static void
unknown_role(const char *role, int number)
{
	static const char *const known[] = {"tool", "function", "developer", "model"};
	char *wrong = "";

	for (int i = 0; i < lengthof(known); i++)
		if (strcmp(role, known[i]) == 0)
			wrong = psprintf(", not \"%s\"", role);
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("message %d must have the role \"system\", \"user\" or \"assistant\"%s",
						   number, wrong)));
}

/* One element of the array of messages. */
static void
copy_message(StringInfo list, JsonbContainer *message, int number, bool last, const char *system)
{
	char *role = pgft_json_string(message, "role");
	char *content = pgft_json_string(message, "content");

	if (message == NULL || JsonContainerSize(message) != 2 || role == NULL || content == NULL)
		bad_message(number, "must be an object with the strings \"role\" and \"content\"");
	if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0)
		unknown_role(role, number);
	if (system != NULL && strcmp(role, "system") == 0)
		bad_message(number, "has the role \"system\", and there is an option \"system\" too");
	if (last && strcmp(role, "user") != 0)
		bad_message(number, "must have the role \"user\", because it is the last one");
	add_message(list, role, content);
}

char *
pgft_complete_messages_json(const PgftCompleteOptions *options, const char *prompt, Jsonb *messages)
{
	StringInfoData list;

	initStringInfo(&list);
	appendStringInfoChar(&list, '[');
	if (options->system != NULL)
		add_message(&list, "system", options->system);
	if (prompt != NULL)
		add_message(&list, "user", prompt);
	else
	{
		int count = JB_ROOT_IS_ARRAY(messages) && !JB_ROOT_IS_SCALAR(messages)
						? JB_ROOT_COUNT(messages)
						: 0;

		if (count == 0)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("messages must be a JSON array with at least one message"),
							errhint("A message is an object like {\"role\": \"user\", \"content\": "
									"\"...\"}.")));
		for (int i = 0; i < count; i++)
			copy_message(&list, pgft_json_element(&messages->root, i), i + 1, i == count - 1,
						 options->system);
	}
	appendStringInfoChar(&list, ']');
	return list.data;
}
