/*
 * arguments.c: arguments of the SQL functions.
 */
#include "postgres.h"

#include "arguments.h"
#include "utils/builtins.h"

char *
pgft_text_argument(FunctionCallInfo fcinfo, int argno, const char *function, const char *name)
{
	if (PG_ARGISNULL(argno))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("argument \"%s\" of %s must not be null", name, function)));
	return text_to_cstring(PG_GETARG_TEXT_PP(argno));
}
