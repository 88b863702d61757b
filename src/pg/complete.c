/*
 * complete.c: the SQL functions complete() and count_tokens().
 *
 * Options are checked here, so that a mistake is found before anything is
 * loaded, and says what is allowed.  No message holds any of a prompt.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>
#include <time.h>

#include "fmgr.h"
#include "json.h"
#include "lib/stringinfo.h"
#include "model.h"
#include "serving.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/numeric.h"

#define DEFAULT_MAX_TOKENS 4096
#define MAX_TEMPERATURE 2.0
#define MAX_STOP_STRINGS 16

/* Integers that JSON carries exactly */
#define MAX_EXACT_INTEGER 9007199254740991.0

/* What a request says beside its messages */
typedef struct CompleteOptions
{
	char *system;        /* NULL: none */
	StringInfoData body; /* members of the request, without the braces */
	bool has_temperature;
	bool has_max_tokens;
} CompleteOptions;

typedef void (*OptionFunction)(CompleteOptions *options, const char *name, const JsonbValue *value);

/* ---- Options ---- */

static void
wrong_type(const char *name, const char *wanted)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("option \"%s\" must be %s", name, wanted)));
}

static double
number_value(const char *name, const JsonbValue *value)
{
	if (value->type != jbvNumeric)
		wrong_type(name, "a number");
	return DatumGetFloat8(
		DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(value->val.numeric)));
}

static double
number_between(const char *name, const JsonbValue *value, double low, double high)
{
	double number = number_value(name, value);

	if (!(number >= low && number <= high))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"%s\" must be between %g and %g, not %g", name, low, high,
							   number)));
	return number;
}

static int64
integer_between(const char *name, const JsonbValue *value, double low, double high)
{
	double number = number_value(name, value);

	if (number != rint(number))
		wrong_type(name, "an integer");
	if (number < low || number > high)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"%s\" must be between %.0f and %.0f, not %.0f", name, low,
							   high, number)));
	return (int64) number;
}

static void
temperature_option(CompleteOptions *options, const char *name, const JsonbValue *value)
{
	options->has_temperature = true;
	pgft_json_add_double(&options->body, name, number_between(name, value, 0, MAX_TEMPERATURE));
}

static void
top_p_option(CompleteOptions *options, const char *name, const JsonbValue *value)
{
	double number = number_between(name, value, 0, 1);

	if (number == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"%s\" must be greater than 0", name)));
	pgft_json_add_double(&options->body, name, number);
}

static void
min_p_option(CompleteOptions *options, const char *name, const JsonbValue *value)
{
	pgft_json_add_double(&options->body, name, number_between(name, value, 0, 1));
}

static void
top_k_option(CompleteOptions *options, const char *name, const JsonbValue *value)
{
	pgft_json_add_int64(&options->body, name, integer_between(name, value, 0, PG_INT32_MAX));
}

static void
max_tokens_option(CompleteOptions *options, const char *name, const JsonbValue *value)
{
	options->has_max_tokens = true;
	pgft_json_add_int64(&options->body, name, integer_between(name, value, 1, PG_INT32_MAX));
}

static void
seed_option(CompleteOptions *options, const char *name, const JsonbValue *value)
{
	pgft_json_add_int64(&options->body, name,
						integer_between(name, value, -MAX_EXACT_INTEGER, MAX_EXACT_INTEGER));
}

static void
system_option(CompleteOptions *options, const char *name, const JsonbValue *value)
{
	if (value->type != jbvString)
		wrong_type(name, "a string");
	options->system = pnstrdup(value->val.string.val, value->val.string.len);
}

static void
add_stop(StringInfo list, const JsonbValue *value)
{
	if (value == NULL || value->type != jbvString || value->val.string.len == 0)
		wrong_type("stop", "a string that is not empty, or an array of such");
	if (list->len > 1)
		appendStringInfoString(list, ", ");
	escape_json(list, pnstrdup(value->val.string.val, value->val.string.len));
}

static void
stop_option(CompleteOptions *options, const char *name, const JsonbValue *value)
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
set_option(CompleteOptions *options, const JsonbValue *key, const JsonbValue *value)
{
	char *name = pnstrdup(key->val.string.val, key->val.string.len);

	for (int i = 0; i < lengthof(option_table); i++)
		if (strcmp(option_table[i].name, name) == 0)
		{
			option_table[i].set(options, name, value);
			return;
		}
	unrecognized_option(name);
}

/* Options as given, NULL for none, with the defaults filled in. */
static void
read_options(CompleteOptions *options, Jsonb *given)
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
							errmsg("options must be a JSON object")));
		while ((token = JsonbIteratorNext(&iterator, &key, true)) == WJB_KEY)
		{
			JsonbIteratorNext(&iterator, &value, true);
			set_option(options, &key, &value);
		}
	}
	if (!options->has_temperature)
		pgft_json_add_double(&options->body, "temperature", 0);
	if (!options->has_max_tokens)
		pgft_json_add_int64(&options->body, "max_tokens", DEFAULT_MAX_TOKENS);
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

/* One element of the array of messages. */
static void
copy_message(StringInfo list, JsonbContainer *message, int number, const char *system)
{
	char *role = pgft_json_string(message, "role");
	char *content = pgft_json_string(message, "content");

	if (message == NULL || JsonContainerSize(message) != 2 || role == NULL || content == NULL)
		bad_message(number, "must be an object with the strings \"role\" and \"content\"");
	if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0)
		bad_message(number, "must have the role \"system\", \"user\" or \"assistant\"");
	if (system != NULL && strcmp(role, "system") == 0)
		bad_message(number, "has the role \"system\", and there is an option \"system\" too");
	add_message(list, role, content);
}

/* The array of messages of a request: of a prompt, or of the messages given. */
static char *
chat_messages(const CompleteOptions *options, const char *prompt, Jsonb *messages)
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
			copy_message(&list, pgft_json_element(&messages->root, i), i + 1, options->system);
	}
	appendStringInfoChar(&list, ']');
	return list.data;
}

/* ---- Completions ---- */

typedef struct Completion
{
	char *model;
	char *content;
	char *finish_reason;
	int64 created;
	int64 prompt_tokens;
	int64 completion_tokens;
} Completion;

static void
read_completion(Completion *completion, Jsonb *reply)
{
	JsonbContainer *choice = pgft_json_element(pgft_json_array(&reply->root, "choices"), 0);
	JsonbContainer *usage = pgft_json_object(&reply->root, "usage");

	completion->content = pgft_json_string(pgft_json_object(choice, "message"), "content");
	completion->finish_reason = pgft_json_string(choice, "finish_reason");
	if (completion->content == NULL || completion->finish_reason == NULL ||
		!pgft_json_int64(usage, "prompt_tokens", &completion->prompt_tokens) ||
		!pgft_json_int64(usage, "completion_tokens", &completion->completion_tokens))
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("the engine's reply is not a chat completion")));
	if (!pgft_json_int64(&reply->root, "created", &completion->created))
		completion->created = time(NULL);
}

/* Ask the model; either of prompt and messages is NULL, and `given` may be. */
static void
ask(Completion *completion, text *model_name, text *prompt, Jsonb *messages, Jsonb *given)
{
	CompleteOptions options;
	PgftModel *model;
	StringInfoData body;
	char *chat;

	completion->model = text_to_cstring(model_name);
	model = pgft_model_lookup(completion->model, false);
	read_options(&options, given);
	chat = chat_messages(&options, prompt == NULL ? NULL : text_to_cstring(prompt), messages);

	initStringInfo(&body);
	appendStringInfoChar(&body, '{');
	pgft_json_add_string(&body, "model", pgft_serving_prepare(model));
	pgft_json_add_raw(&body, "messages", chat);
	appendStringInfo(&body, ", %s}", options.body.data);
	read_completion(completion, pgft_serving_call(model, "/v1/chat/completions", body.data));
}

/* In the shape of Snowflake's COMPLETE. */
static Datum
completion_as_jsonb(const Completion *completion)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"choices\": [{");
	pgft_json_add_string(&json, "messages", completion->content);
	pgft_json_add_string(&json, "finish_reason", completion->finish_reason);
	appendStringInfoString(&json, "}]");
	pgft_json_add_int64(&json, "created", completion->created);
	pgft_json_add_string(&json, "model", completion->model);
	appendStringInfoString(&json, ", \"usage\": {");
	pgft_json_add_int64(&json, "prompt_tokens", completion->prompt_tokens);
	pgft_json_add_int64(&json, "completion_tokens", completion->completion_tokens);
	pgft_json_add_int64(&json, "total_tokens",
						completion->prompt_tokens + completion->completion_tokens);
	appendStringInfoString(&json, "}}");
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

/* SQL: complete(model text, prompt text) returns text */
PG_FUNCTION_INFO_V1(pgft_complete);
Datum
pgft_complete(PG_FUNCTION_ARGS)
{
	Completion completion;

	ask(&completion, PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1), NULL, NULL);
	PG_RETURN_TEXT_P(cstring_to_text(completion.content));
}

/* SQL: complete(model text, prompt text, options jsonb) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_complete_options);
Datum
pgft_complete_options(PG_FUNCTION_ARGS)
{
	Completion completion;

	ask(&completion, PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1), NULL, PG_GETARG_JSONB_P(2));
	return completion_as_jsonb(&completion);
}

/* SQL: complete(model text, messages jsonb, options jsonb) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_complete_messages);
Datum
pgft_complete_messages(PG_FUNCTION_ARGS)
{
	Completion completion;

	ask(&completion, PG_GETARG_TEXT_PP(0), NULL, PG_GETARG_JSONB_P(1), PG_GETARG_JSONB_P(2));
	return completion_as_jsonb(&completion);
}

/* SQL: count_tokens(model text, input text) returns int */
PG_FUNCTION_INFO_V1(pgft_count_tokens);
Datum
pgft_count_tokens(PG_FUNCTION_ARGS)
{
	PgftModel *model = pgft_model_lookup(text_to_cstring(PG_GETARG_TEXT_PP(0)), false);
	StringInfoData body;
	Jsonb *reply;
	int64 count;

	initStringInfo(&body);
	appendStringInfoChar(&body, '{');
	pgft_json_add_string(&body, "model", pgft_serving_prepare(model));
	pgft_json_add_string(&body, "prompt", text_to_cstring(PG_GETARG_TEXT_PP(1)));
	pgft_json_add_bool(&body, "add_special_tokens", false);
	appendStringInfoChar(&body, '}');
	reply = pgft_serving_call(model, "/tokenize", body.data);
	if (!pgft_json_int64(&reply->root, "count", &count))
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("the engine's reply is not a count of tokens")));
	PG_RETURN_INT32(count);
}
