/*
 * tokens.c: the SQL functions count_tokens(), tokenize() and detokenize().
 *
 * Text is only ever text: what looks like a special token is not one, and the
 * model's begin token is not added.  So detokenize() gives back what
 * tokenize() was given.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "json.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "model.h"
#include "serving.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

static void
not_tokens(void)
{
	ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
					errmsg("the engine's reply does not hold the tokens of a text")));
}

/* What the engine makes of a text: its reply to /tokenize. */
static Jsonb *
ask_tokens(text *model_name, text *input)
{
	PgftModel *model = pgft_model_lookup(text_to_cstring(model_name), false);
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoChar(&body, '{');
	pgft_json_add_string(&body, "model", pgft_serving_prepare(model));
	pgft_json_add_string(&body, "prompt", text_to_cstring(input));
	pgft_json_add_bool(&body, "add_special_tokens", false);
	appendStringInfoChar(&body, '}');
	return pgft_serving_call(model, "/tokenize", body.data);
}

/* SQL: count_tokens(model text, input text) returns int */
PG_FUNCTION_INFO_V1(pgft_count_tokens);
Datum
pgft_count_tokens(PG_FUNCTION_ARGS)
{
	Jsonb *reply = ask_tokens(PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1));
	int64 count;

	if (!pgft_json_int64(&reply->root, "count", &count))
		not_tokens();
	PG_RETURN_INT32(count);
}

/* SQL: tokenize(model text, input text) returns int[] */
PG_FUNCTION_INFO_V1(pgft_tokenize);
Datum
pgft_tokenize(PG_FUNCTION_ARGS)
{
	Jsonb *reply = ask_tokens(PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1));
	JsonbContainer *tokens = pgft_json_array(&reply->root, "tokens");
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue value;
	Datum *ids;
	int n = 0;

	if (tokens == NULL)
		not_tokens();
	ids = palloc(JsonContainerSize(tokens) * sizeof(Datum));
	iterator = JsonbIteratorInit(tokens);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (value.type != jbvNumeric)
			not_tokens();
		ids[n++] = DirectFunctionCall1(numeric_int4, NumericGetDatum(value.val.numeric));
	}
	if (n == 0)
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(INT4OID));
	PG_RETURN_ARRAYTYPE_P(construct_array(ids, n, INT4OID, sizeof(int32), true, TYPALIGN_INT));
}

/* SQL: detokenize(model text, tokens int[]) returns text */
PG_FUNCTION_INFO_V1(pgft_detokenize);
Datum
pgft_detokenize(PG_FUNCTION_ARGS)
{
	PgftModel *model = pgft_model_lookup(text_to_cstring(PG_GETARG_TEXT_PP(0)), false);
	ArrayType *tokens = PG_GETARG_ARRAYTYPE_P(1);
	int n = ArrayGetNItems(ARR_NDIM(tokens), ARR_DIMS(tokens));
	int32 *ids = (int32 *) ARR_DATA_PTR(tokens);
	StringInfoData body;
	Jsonb *reply;
	char *prompt;

	if (ARR_NDIM(tokens) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("tokens must be an array of one dimension, not %d", ARR_NDIM(tokens))));
	if (array_contains_nulls(tokens))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("array of tokens must not contain nulls")));

	initStringInfo(&body);
	appendStringInfoChar(&body, '{');
	pgft_json_add_string(&body, "model", pgft_serving_prepare(model));
	pgft_json_add_raw(&body, "tokens", "[");
	for (int i = 0; i < n; i++)
		appendStringInfo(&body, "%s%d", i == 0 ? "" : ",", ids[i]);
	appendStringInfoString(&body, "]}");
	reply = pgft_serving_call(model, "/detokenize", body.data);
	prompt = pgft_json_string(&reply->root, "prompt");
	if (prompt == NULL)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("the engine's reply does not hold the text of the tokens")));
	PG_RETURN_TEXT_P(cstring_to_text(prompt));
}
