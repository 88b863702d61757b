/*
 * options.c: checks and fills in the options of a fine-tuning job.
 *
 * One table says of every option its type, what it may hold, its default and
 * whether the engine wants to know it.  A mistake is always an error that
 * names the option and lists what is allowed: a misspelt option that is
 * silently ignored costs its user an afternoon of training.
 *
 * Defaults are filled in here, at CREATE, so that a job keeps the ones that
 * were documented when it was made, whichever engine resumes it.
 */
#include "postgres.h"

#include <math.h>

#include "json.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "options.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

typedef enum OptionType
{
	OPTION_INTEGER,
	OPTION_NUMBER,
	OPTION_BOOLEAN,
	OPTION_CHOICE,
	OPTION_MODULES,
	OPTION_TEMPLATE,
	OPTION_STRING
} OptionType;

#define OPTION_AUTO 0x01       /* "auto" and null mean: let the engine choose */
#define OPTION_ABOVE_MIN 0x02  /* the lower bound itself is not allowed */
#define OPTION_BELOW_MAX 0x04  /* nor the upper one */
#define OPTION_QUEUE_ONLY 0x08 /* not the engine's business */
#define OPTION_ADAPTER 0x20    /* no default where another model's adapter is continued */
#define OPTION_DPO 0x40        /* of method dpo only */

typedef struct OptionSpec
{
	const char *name;
	OptionType type;
	int flags;
	double min;
	double max;
	const char *const *choices; /* of OPTION_CHOICE; the first is the default */
	const char *fallback;       /* default as JSON text, NULL when it depends on model or data */
} OptionSpec;

static const char *const methods[] = {"lora", "qlora", "full", "dpo", NULL};
static const char *const schedulers[] = {"cosine", "linear", "constant", NULL};
static const char *const storages[] = {"database", "file", NULL};

/* The linear layers of a decoder's block, under PEFT's names. */
static const char *const modules[] = {"q_proj",    "k_proj",  "v_proj",    "o_proj",
									  "gate_proj", "up_proj", "down_proj", NULL};

/* Of a prompt template, as the engine has it: in UTF-8, and a NUL behind it. */
#define TEMPLATE_LIMIT 4095

#define INT_LIMIT 2147483647.0
/* The largest integer that every JSON reader keeps exactly. */
#define SEED_LIMIT 9007199254740991.0

static const OptionSpec option_specs[] = {
	{"max_epochs", OPTION_INTEGER, OPTION_AUTO, 1, 50},
	{"max_steps", OPTION_INTEGER, OPTION_AUTO, 1, INT_LIMIT},
	{"method", OPTION_CHOICE, 0, 0, 0, methods, "\"lora\""},
	{"lora_r", OPTION_INTEGER, OPTION_ADAPTER, 1, 512, NULL, "16"},
	{"lora_alpha", OPTION_NUMBER, OPTION_AUTO | OPTION_ABOVE_MIN | OPTION_ADAPTER, 0, 65536},
	{"lora_dropout", OPTION_NUMBER, OPTION_BELOW_MAX, 0, 1, NULL, "0"},
	{"lora_target_modules", OPTION_MODULES, OPTION_ADAPTER, 0, 0, NULL, "\"all-linear\""},
	{"use_rslora", OPTION_BOOLEAN, OPTION_ADAPTER, 0, 0, NULL, "false"},
	{"learning_rate", OPTION_NUMBER, OPTION_AUTO | OPTION_ABOVE_MIN, 0, 1},
	{"lr_scheduler", OPTION_CHOICE, 0, 0, 0, schedulers, "\"cosine\""},
	{"min_lr_ratio", OPTION_NUMBER, OPTION_AUTO, 0, 1},
	{"warmup_ratio", OPTION_NUMBER, 0, 0, 1, NULL, "0.03"},
	{"weight_decay", OPTION_NUMBER, 0, 0, 1, NULL, "0"},
	{"max_grad_norm", OPTION_NUMBER, OPTION_ABOVE_MIN, 0, 1e6, NULL, "1.0"},
	{"batch_size", OPTION_INTEGER, OPTION_AUTO, 1, INT_LIMIT},
	{"gradient_accumulation_steps", OPTION_INTEGER, OPTION_AUTO, 1, 4096},
	{"max_seq_length", OPTION_INTEGER, OPTION_AUTO, 16, 1048576},
	{"packing", OPTION_BOOLEAN, 0, 0, 0, NULL, "true"},
	{"train_on_inputs", OPTION_BOOLEAN, 0, 0, 0, NULL, "false"},
	{"n_evals", OPTION_INTEGER, 0, 0, 10000, NULL, "0"},
	{"validation_fraction", OPTION_NUMBER, 0, 0, 0.9, NULL, "0.1"},
	{"seed", OPTION_INTEGER, 0, 0, SEED_LIMIT, NULL, "42"},
	{"priority", OPTION_INTEGER, OPTION_QUEUE_ONLY, -1000, 1000, NULL, "0"},
	{"storage", OPTION_CHOICE, OPTION_QUEUE_ONLY, 0, 0, storages, "\"database\""},
	{"n_checkpoints", OPTION_INTEGER, 0, 1, 10000},
	{"early_stopping_patience", OPTION_INTEGER, 0, 1, 10000},
	{"from_model", OPTION_STRING, OPTION_QUEUE_ONLY},
	{"from_weights", OPTION_STRING, OPTION_QUEUE_ONLY},
	{"prompt_template", OPTION_TEMPLATE},
	{"dpo_beta", OPTION_NUMBER, OPTION_DPO, 1e-6, 100, NULL, "0.1"},
};

/* The names in a NULL-terminated list as "a, b, c". */
static char *
join_names(const char *const *names)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; names[i]; i++)
		appendStringInfo(&buf, "%s%s", i ? ", " : "", names[i]);
	return buf.data;
}

static const OptionSpec *
find_option(const char *name)
{
	for (int i = 0; i < lengthof(option_specs); i++)
	{
		if (strcmp(option_specs[i].name, name) == 0)
			return &option_specs[i];
	}
	return NULL;
}

static void
unknown_option(const char *name)
{
	const char *names[lengthof(option_specs) + 1];

	for (int i = 0; i < lengthof(option_specs); i++)
		names[i] = option_specs[i].name;
	names[lengthof(option_specs)] = NULL;
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("unknown option \"%s\"", name),
					errhint("The options are %s.", join_names(names))));
}

/* A JSON value for an error message, cut when it is long. */
static char *
show_value(JsonbValue *value)
{
	char *text;

	if (value->type == jbvBinary)
		return JsonContainerIsArray(value->val.binary.data) ? "an array" : "an object";
	text = JsonbToCString(NULL, &JsonbValueToJsonb(value)->root, 64);
	if (strlen(text) > 64)
		strcpy(text + pg_mbcliplen(text, strlen(text), 61), "...");
	return text;
}

/* What an option may hold, for an error message. */
static char *
allowed_values(const OptionSpec *spec)
{
	const char *or_auto = (spec->flags & OPTION_AUTO) ? " or \"auto\"" : "";

	switch (spec->type)
	{
		case OPTION_INTEGER:
			return psprintf("an integer from %.0f to %.0f%s", spec->min, spec->max, or_auto);
		case OPTION_NUMBER:
			return psprintf("a number %s %g and %s %g%s",
							(spec->flags & OPTION_ABOVE_MIN) ? "greater than" : "of at least",
							spec->min, (spec->flags & OPTION_BELOW_MAX) ? "less than" : "at most",
							spec->max, or_auto);
		case OPTION_BOOLEAN:
			return "true or false";
		case OPTION_CHOICE:
			return psprintf("one of %s", join_names(spec->choices));
		case OPTION_MODULES:
			return psprintf("\"all-linear\" or a non-empty array of %s", join_names(modules));
		case OPTION_TEMPLATE:
			return psprintf("a string of at most %d bytes in which {prompt} stands once",
							TEMPLATE_LIMIT);
		case OPTION_STRING:
			return "a string";
	}
	return "";
}

static void
bad_value(const OptionSpec *spec, JsonbValue *value)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("option \"%s\" must be %s, not %s", spec->name, allowed_values(spec),
						   show_value(value))));
}

/* Does a JSON string equal one of the names?  Its position, or -1. */
static int
string_among(JsonbValue *value, const char *const *names)
{
	for (int i = 0; names[i]; i++)
	{
		if (value->type == jbvString && value->val.string.len == strlen(names[i]) &&
			memcmp(value->val.string.val, names[i], value->val.string.len) == 0)
			return i;
	}
	return -1;
}

static bool
is_auto(JsonbValue *value)
{
	static const char *const autos[] = {"auto", NULL};

	return value->type == jbvNull || string_among(value, autos) >= 0;
}

/* Is an option as if it were not there?  A model may be called "auto". */
static bool
is_unset(const OptionSpec *spec, JsonbValue *value)
{
	return value == NULL || value->type == jbvNull ||
		   ((spec->flags & OPTION_AUTO) && is_auto(value));
}

static double
get_number(JsonbValue *value)
{
	return DatumGetFloat8(
		DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(value->val.numeric)));
}

static void
check_number(const OptionSpec *spec, JsonbValue *value)
{
	double number;

	if (value->type != jbvNumeric)
		bad_value(spec, value);
	number = get_number(value);
	if (number < spec->min || number > spec->max ||
		((spec->flags & OPTION_ABOVE_MIN) && number <= spec->min) ||
		((spec->flags & OPTION_BELOW_MAX) && number >= spec->max) ||
		(spec->type == OPTION_INTEGER && number != floor(number)))
		bad_value(spec, value);
}

/* "all-linear", or an array of module names, none of them twice. */
static void
check_modules(const OptionSpec *spec, JsonbValue *value)
{
	static const char *const all_linear[] = {"all-linear", NULL};
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue item;
	unsigned seen = 0;

	if (string_among(value, all_linear) >= 0)
		return;
	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
		bad_value(spec, value);
	it = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &item, true)) != WJB_DONE)
	{
		int module;

		if (token != WJB_ELEM)
			continue;
		module = string_among(&item, modules);
		if (module < 0 || (seen & (1u << module)))
			bad_value(spec, &item);
		seen |= 1u << module;
	}
	if (seen == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" must be %s, not []", spec->name, allowed_values(spec))));
}

static void
bad_brace(const OptionSpec *spec, const char *text, const char *at)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("option \"%s\" has a brace that means nothing at character %d",
						   spec->name, pg_mbstrlen_with_len(text, at - text) + 1),
					errhint("{prompt} stands for the prompt, {{ and }} for braces.")));
}

/* {prompt} once, and no other brace that is not doubled. */
static void
check_template(const OptionSpec *spec, JsonbValue *value)
{
	static const char placeholder[] = "{prompt}";
	char *text;
	int prompts = 0;

	if (value->type != jbvString)
		bad_value(spec, value);
	text = pnstrdup(value->val.string.val, value->val.string.len);
	for (const char *at = text; *at != '\0'; at += pg_mblen(at))
	{
		if (*at != '{' && *at != '}')
			continue;
		if (at[1] == at[0])
			at++;
		else if (strncmp(at, placeholder, strlen(placeholder)) == 0)
		{
			prompts++;
			at += strlen(placeholder) - 1;
		}
		else
			bad_brace(spec, text, at);
	}
	if (prompts != 1 || strlen(pg_server_to_any(text, strlen(text), PG_UTF8)) > TEMPLATE_LIMIT)
		bad_value(spec, value);
}

static void
check_value(const OptionSpec *spec, JsonbValue *value)
{
	switch (spec->type)
	{
		case OPTION_INTEGER:
		case OPTION_NUMBER:
			check_number(spec, value);
			break;
		case OPTION_BOOLEAN:
			if (value->type != jbvBool)
				bad_value(spec, value);
			break;
		case OPTION_CHOICE:
			if (string_among(value, spec->choices) < 0)
				bad_value(spec, value);
			break;
		case OPTION_MODULES:
			check_modules(spec, value);
			break;
		case OPTION_TEMPLATE:
			check_template(spec, value);
			break;
		case OPTION_STRING:
			if (value->type != jbvString)
				bad_value(spec, value);
			break;
	}
}

static void
push_option(JsonbParseState **state, const char *name, JsonbValue *value)
{
	JsonbValue key = {.type = jbvString};

	key.val.string.val = (char *) name;
	key.val.string.len = strlen(name);
	pushJsonbValue(state, WJB_KEY, &key);
	if (value->type == jbvBinary && JsonContainerIsArray(value->val.binary.data))
	{
		/* the elements were checked: names only */
		JsonbIterator *it = JsonbIteratorInit(value->val.binary.data);
		JsonbIteratorToken token;
		JsonbValue item;

		while ((token = JsonbIteratorNext(&it, &item, true)) != WJB_DONE)
			pushJsonbValue(state, token, token == WJB_ELEM ? &item : NULL);
	}
	else
		pushJsonbValue(state, WJB_VALUE, value);
}

/* A scalar from JSON text of our own. */
static JsonbValue
parse_default(const char *text)
{
	Jsonb *jsonb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
	JsonbValue value;

	if (!JsonbExtractScalar(&jsonb->root, &value))
		elog(ERROR, "default \"%s\" is not a scalar", text);
	return value;
}

static JsonbValue *
get_option(Jsonb *options, const char *name)
{
	return getKeyJsonValueFromContainer(&options->root, name, strlen(name), NULL);
}

/* PEFT's habit: alpha is twice the rank. */
static JsonbValue
default_alpha(Jsonb *given)
{
	JsonbValue *rank = get_option(given, "lora_r");
	JsonbValue value = {.type = jbvNumeric};

	value.val.numeric = rank && rank->type == jbvNumeric
							? numeric_add_opt_error(rank->val.numeric, rank->val.numeric, NULL)
							: int64_to_numeric(32);
	return value;
}

static void
check_keys(Jsonb *given)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue key;

	if (!JB_ROOT_IS_OBJECT(given))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("options must be a JSON object, not %s",
							   JB_ROOT_IS_SCALAR(given) ? "a scalar" : "an array")));
	it = JsonbIteratorInit(&given->root);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		char *name;

		if (token != WJB_KEY)
			continue;
		name = pnstrdup(key.val.string.val, key.val.string.len);
		if (find_option(name) == NULL)
			unknown_option(name);
	}
}

/* Is the option about an adapter? */
static bool
is_of_adapter(const OptionSpec *spec)
{
	return strncmp(spec->name, "lora_", 5) == 0 || strcmp(spec->name, "use_rslora") == 0 ||
		   spec->type == OPTION_TEMPLATE;
}

/* Options that contradict the method. */
static void
check_method(Jsonb *given)
{
	if (!pgft_options_full(given))
	{
		if (pgft_options_as_files(given))
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("option \"storage\" can be file only with method \"full\""),
							errhint("Adapters are small, and are kept in the database.")));
		return;
	}
	for (int i = 0; i < lengthof(option_specs); i++)
	{
		JsonbValue *value = get_option(given, option_specs[i].name);

		if (is_of_adapter(&option_specs[i]) && value != NULL && value->type != jbvNull)
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" cannot be given with method \"full\"", option_specs[i].name),
				 errhint("That method trains the model's own weights, not an adapter.")));
	}
}

static Jsonb *
resolve(Jsonb *given)
{
	JsonbParseState *state = NULL;
	bool continued;
	bool full;
	bool pairs;

	check_keys(given);
	for (int i = 0; i < lengthof(option_specs); i++)
	{
		JsonbValue *value = get_option(given, option_specs[i].name);

		if (!is_unset(&option_specs[i], value))
			check_value(&option_specs[i], value);
	}

	check_method(given);
	full = pgft_options_full(given);
	continued = pgft_options_string(given, "from_model") != NULL;
	pairs = pgft_options_pairs(given);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < lengthof(option_specs); i++)
	{
		const OptionSpec *spec = &option_specs[i];
		JsonbValue *value = get_option(given, spec->name);

		if (!is_unset(spec, value))
		{
			/* 16.0 is an integer here, but not to every reader of JSON */
			if (spec->type == OPTION_INTEGER)
				value->val.numeric = int64_to_numeric((int64) get_number(value));
			push_option(&state, spec->name, value);
		}
		else if ((continued && (spec->flags & OPTION_ADAPTER)) || (full && is_of_adapter(spec)) ||
				 (!pairs && (spec->flags & OPTION_DPO)))
			;
		else if (strcmp(spec->name, "lora_alpha") == 0)
		{
			JsonbValue alpha = default_alpha(given);

			push_option(&state, spec->name, &alpha);
		}
		else if (spec->fallback)
		{
			JsonbValue fallback = parse_default(spec->fallback);

			push_option(&state, spec->name, &fallback);
		}
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* Without validation rows nobody knows when to stop. */
static void
check_early_stopping(Jsonb *options, bool validation_query)
{
	JsonbValue *fraction = get_option(options, "validation_fraction");

	if (get_option(options, "early_stopping_patience") == NULL || validation_query ||
		get_number(fraction) > 0)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("option \"early_stopping_patience\" needs validation rows, there are none"),
			 errhint("Give a validation query, or a \"validation_fraction\" above 0.")));
}

/* What goes with method dpo, and what does not. */
static void
check_dpo(Jsonb *options)
{
	bool pairs = pgft_options_pairs(options);

	if (!pairs && get_option(options, "dpo_beta") != NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"dpo_beta\" is of method dpo only"),
						errhint("Leave it out, or give the option \"method\": \"dpo\".")));
	if (pairs && get_option(options, "train_on_inputs")->val.boolean)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"train_on_inputs\" does not go with method dpo"),
						errhint("Method dpo compares two answers: their prompt is the same.")));
}

Jsonb *
pgft_options_argument(FunctionCallInfo fcinfo, int argno)
{
	Jsonb *given = PG_ARGISNULL(argno)
					   ? DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")))
					   : PG_GETARG_JSONB_P(argno);
	Jsonb *options = resolve(given);

	check_early_stopping(options, !PG_ARGISNULL(argno - 1));
	check_dpo(options);
	return options;
}

void
pgft_options_check_columns(Jsonb *options, const PgftColumns *columns, const char *what)
{
	if (get_option(options, "prompt_template") == NULL || columns->set == PGFT_PROMPT_COMPLETION ||
		columns->set == PGFT_PREFERENCE)
		return;
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("option \"prompt_template\" needs rows with a prompt, but the %s "
						   "yields \"%s\"",
						   what, columns->name[0])));
}

Jsonb *
pgft_options_for_engine(Jsonb *resolved)
{
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < lengthof(option_specs); i++)
	{
		const OptionSpec *spec = &option_specs[i];
		JsonbValue *value = get_option(resolved, spec->name);

		if (value && !(spec->flags & OPTION_QUEUE_ONLY))
			push_option(&state, spec->name, value);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

char *
pgft_options_string(Jsonb *options, const char *name)
{
	return pgft_json_string(&options->root, name);
}

static bool
option_is(Jsonb *options, const char *name, const char *expected)
{
	char *value = pgft_options_string(options, name);

	return value != NULL && strcmp(value, expected) == 0;
}

bool
pgft_options_full(Jsonb *resolved)
{
	return option_is(resolved, "method", "full");
}

bool
pgft_options_as_files(Jsonb *resolved)
{
	return option_is(resolved, "storage", "file");
}

bool
pgft_options_pairs(Jsonb *options)
{
	return option_is(options, "method", "dpo");
}

int
pgft_options_priority(Jsonb *resolved)
{
	JsonbValue *value = get_option(resolved, "priority");

	if (value == NULL || value->type != jbvNumeric)
		return 0;
	return DatumGetInt32(DirectFunctionCall1(numeric_int4, NumericGetDatum(value->val.numeric)));
}
