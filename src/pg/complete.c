/*
 * complete.c: the SQL functions complete() and try_complete().
 *
 * A call asks, waits for the answer and returns it; completion.c does the work.
 * Where a query calls them for many rows, rows_plan.c may put a node into its
 * plan that asks for many at once, and these functions are not called at all.
 */
#include "postgres.h"

#include "completion.h"
#include "fmgr.h"

static Datum
complete(FunctionCallInfo fcinfo, PGFunction function)
{
	const PgftCompletionForm *form = pgft_completion_form_by_address(function);
	Datum args[PGFT_COMPLETION_MAX_ARGS];
	PgftCompletion *volatile completion = NULL;
	Datum result = (Datum) 0;
	bool is_null;

	for (int i = 0; i < form->nargs; i++)
		args[i] = PG_GETARG_DATUM(i);
	completion = pgft_completion_start(form, args);
	while (!pgft_completion_poll(completion))
	{
		PgftRequest *request = pgft_completion_request(completion);

		PG_TRY();
		{
			pgft_request_wait_any(&request, 1);
		}
		PG_CATCH();
		{
			/* Now, not when the memory goes: the engine shall stop at once */
			pgft_completion_free(completion);
			PG_RE_THROW();
		}
		PG_END_TRY();
	}
	is_null = !pgft_completion_take(completion, &result);
	pgft_completion_free(completion);
	if (is_null)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}

/* SQL: complete(model text, prompt text) returns text */
PG_FUNCTION_INFO_V1(pgft_complete);
Datum
pgft_complete(PG_FUNCTION_ARGS)
{
	return complete(fcinfo, pgft_complete);
}

/* SQL: complete(model text, prompt text, options jsonb) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_complete_options);
Datum
pgft_complete_options(PG_FUNCTION_ARGS)
{
	return complete(fcinfo, pgft_complete_options);
}

/* SQL: complete(model text, messages jsonb, options jsonb) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_complete_messages);
Datum
pgft_complete_messages(PG_FUNCTION_ARGS)
{
	return complete(fcinfo, pgft_complete_messages);
}

/* SQL: try_complete(model text, prompt text) returns text */
PG_FUNCTION_INFO_V1(pgft_try_complete);
Datum
pgft_try_complete(PG_FUNCTION_ARGS)
{
	return complete(fcinfo, pgft_try_complete);
}

/* SQL: try_complete(model text, prompt text, options jsonb) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_try_complete_options);
Datum
pgft_try_complete_options(PG_FUNCTION_ARGS)
{
	return complete(fcinfo, pgft_try_complete_options);
}

/* SQL: try_complete(model text, messages jsonb, options jsonb) returns jsonb */
PG_FUNCTION_INFO_V1(pgft_try_complete_messages);
Datum
pgft_try_complete_messages(PG_FUNCTION_ARGS)
{
	return complete(fcinfo, pgft_try_complete_messages);
}
