/*
 * validator.c: the options of the wrapper's servers.
 *
 * Syntax only: a restore creates servers before any file or row is there.
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "endpoint.h"
#include "fmgr.h"
#include "nodes/parsenodes.h"
#include "paths.h"

#define MAX_CONTEXT_LENGTH (1 << 24)

static void
invalid_value(const char *option, const char *wrong)
{
	ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					errmsg("invalid value for option \"%s\": it %s", option, wrong)));
}

static void
check_context_length(const char *value)
{
	char *end;
	long length;

	errno = 0;
	length = strtol(value, &end, 10);
	if (errno != 0 || end == value || *end != '\0' || length < 1 || length > MAX_CONTEXT_LENGTH)
		invalid_value("context_length",
					  psprintf("must be a number between 1 and %d", MAX_CONTEXT_LENGTH));
}

static void
check_server_option(const DefElem *option)
{
	const char *name = option->defname;
	const char *value = defGetString((DefElem *) option);

	if (strcmp(name, "file") == 0)
	{
		const char *wrong = pgft_check_model_file(value);

		if (wrong != NULL)
			invalid_value(name, wrong);
	}
	else if (strcmp(name, "template") == 0)
	{
		if (value[0] == '\0')
			invalid_value(name, "must not be empty");
	}
	else if (strcmp(name, "context_length") == 0)
		check_context_length(value);
	else if (strcmp(name, "storage") == 0)
	{
		if (strcmp(value, "file") != 0 && strcmp(value, "database") != 0)
			invalid_value(name, "must be \"file\" or \"database\"");
	}
	else if (strcmp(name, "remote_model") == 0)
	{
		if (value[0] == '\0')
			invalid_value(name, "must not be empty");
	}
	else if (strcmp(name, "sslrootcert") == 0)
	{
		const char *wrong = is_absolute_path(value) ? "must be relative to the data directory"
													: pgft_check_model_file(value);

		if (wrong != NULL)
			invalid_value(name, wrong);
	}
	else if (strcmp(name, "allow_http") == 0)
		(void) defGetBoolean((DefElem *) option);
	else if (strcmp(name, "endpoint") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME), errmsg("invalid option \"%s\"", name),
				 errhint("Valid options are: file, template, context_length, storage, endpoint, "
						 "remote_model, sslrootcert, allow_http.")));
}

/* SQL: finetune.validator(options text[], catalog oid) */
PG_FUNCTION_INFO_V1(pgft_validator);
Datum
pgft_validator(PG_FUNCTION_ARGS)
{
	List *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid catalog = PG_GETARG_OID(1);
	ListCell *cell;

	if (catalog == ForeignTableRelationId)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("a model has no foreign tables"),
				 errhint("Use complete() to ask a model.")));
	foreach (cell, options)
	{
		DefElem *option = lfirst_node(DefElem, cell);

		if (catalog == ForeignServerRelationId)
			check_server_option(option);
		else if (catalog == UserMappingRelationId && strcmp(option->defname, "api_key") == 0)
			pgft_endpoint_check_key(defGetString(option));
		else
			ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
							errmsg("invalid option \"%s\"", option->defname),
							catalog == UserMappingRelationId
								? errhint("The only valid option is: api_key.")
								: errhint("There are no valid options in this context.")));
	}
	if (catalog == ForeignServerRelationId)
		pgft_endpoint_check_options(options);
	PG_RETURN_VOID();
}
