/*
 * peft_directory.c: finetune_export() and finetune_import(), models to and from
 * directories that users name.
 *
 * A directory that is written appears whole, under its name, or not at all; it
 * is no part of the transaction, as a file of COPY TO is none.  PEFT's files
 * (adapter_config.json, adapter_model.safetensors) are what is stored; other
 * formats are the engine's to write (export.c).  One that is read, PEFT's too,
 * is copied first, so that what the engine has checked is what is stored.
 */
#include "postgres.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "arguments.h"
#include "base.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_collation.h"
#include "engine_client.h"
#include "export.h"
#include "fmgr.h"
#include "json.h"
#include "miscadmin.h"
#include "model.h"
#include "paths.h"
#include "pg_finetune.h"
#include "serving.h"
#include "storage/copydir.h"
#include "storage/fd.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "weights.h"

/* How often an adapter is checked anew because the engine has gone meanwhile */
#define MAX_CHECKS 3

static const char *const adapter_files[] = {"adapter_config.json", "adapter_model.safetensors"};

/* ---- Arguments ---- */

/* As a file's name in COPY. */
static char *
get_directory(FunctionCallInfo fcinfo, int argno, const char *function)
{
	char *directory = pgft_text_argument(fcinfo, argno, function, "directory");

	canonicalize_path(directory);
	if (!is_absolute_path(directory))
		ereport(ERROR, (errcode(ERRCODE_INVALID_NAME),
						errmsg("directory \"%s\" is not an absolute path", directory)));
	if (strlen(directory) >= MAXPGPATH - 64)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME), errmsg("the path of the directory is too long")));
	return directory;
}

static void
check_role(Oid role, const char *function, const char *role_name)
{
	if (!has_privs_of_role(GetUserId(), role))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for %s", function),
						errdetail("Only roles with privileges of %s may use it.", role_name)));
}

/* ---- Export ---- */

/* The model, which the caller must own: its weights are more than its use. */
static PgftModel *
get_own_model(const char *name)
{
	PgftModel *model = pgft_model_by_name(name);

	if (model == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("model \"%s\" does not exist", name)));
	if (!pg_foreign_server_ownercheck(model->server, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FOREIGN_SERVER, name);
	return model;
}

static void
check_exportable(const PgftModel *model, const char *format)
{
	if (model->kind == PGFT_MODEL_BASE)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("model \"%s\" is a base model", model->name),
						errhint("Only tuned models are exported.")));
	if (model->kind == PGFT_MODEL_FULL && pgft_export_is_adapter(format))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("model \"%s\" cannot be exported in format \"%s\"", model->name, format),
				 errdetail("It is a full model and has no adapter."),
				 errhint("Name a format such as \"safetensors\" or \"gguf\".")));
	pgft_model_require_ready(model);
}

static void
check_free(const char *directory)
{
	struct stat st;

	if (lstat(directory, &st) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_FILE), errmsg("\"%s\" already exists", directory)));
	if (pgft_inside_data_directory(directory))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("directory \"%s\" is inside the data directory", directory)));
}

/* Write the adapter beside its destination, then rename it. */
static void
write_directory(const PgftModel *model, const char *directory)
{
	char *temporary = psprintf("%s.tmp.XXXXXX", directory);
	char *parent = pstrdup(directory);
	volatile bool renamed = false;

	get_parent_directory(parent);
	if (mkdtemp(temporary) == NULL)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not create directory \"%s\": %m", directory)));
	PG_TRY();
	{
		pgft_weights_write_adapter(&model->id, model->weights_digest, temporary);
		pgft_export_set_modes(temporary);
		if (rename(temporary, directory) < 0)
			ereport(ERROR, (errcode_for_file_access(),
							errmsg("could not rename directory \"%s\" to \"%s\": %m", temporary,
								   directory)));
		renamed = true;
		pgft_sync_directory(parent);
	}
	PG_CATCH();
	{
		/* what was there before us is not ours to remove */
		pgft_remove_tree(renamed ? directory : temporary);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* SQL: finetune_export(model text, directory text, format text) returns text */
PG_FUNCTION_INFO_V1(pgft_export);
Datum
pgft_export(PG_FUNCTION_ARGS)
{
	static const char function[] = "finetune_export";
	char *name = pgft_text_argument(fcinfo, 0, function, "model");
	char *directory = get_directory(fcinfo, 1, function);
	char *format = pgft_text_argument(fcinfo, 2, function, "format");
	PgftModel *model;

	pgft_export_check_format(format);
	model = get_own_model(name);
	check_role(ROLE_PG_WRITE_SERVER_FILES, function, "pg_write_server_files");
	check_exportable(model, format);
	check_free(directory);
	if (strcmp(format, PGFT_FORMAT_PEFT) == 0)
		write_directory(model, directory);
	else
		pgft_export_by_engine(model, directory, format);
	PG_RETURN_TEXT_P(cstring_to_text(directory));
}

/* ---- Import ---- */

/* One of the adapter's files, if it is one; false when there is none. */
static bool
is_there(const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0)
	{
		if (errno == ENOENT)
			return false;
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not stat file \"%s\": %m", path)));
	}
	if (!S_ISREG(st.st_mode))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("\"%s\" is not a regular file", path)));
	return true;
}

static void
check_directory(const char *directory)
{
	struct stat st;

	if (stat(directory, &st) < 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not open directory \"%s\": %m", directory)));
	if (!S_ISDIR(st.st_mode))
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("\"%s\" is not a directory", directory)));
	for (int i = 0; i < lengthof(adapter_files); i++)
	{
		if (is_there(psprintf("%s/%s", directory, adapter_files[i])))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FILE),
				 errmsg("directory \"%s\" has no file \"%s\"", directory, adapter_files[i]),
				 is_there(psprintf("%s/adapter_model.bin", directory))
					 ? errhint("Pickled weights are not read: save the adapter anew, with "
							   "safe_serialization=True.")
					 : errhint("It is to hold an adapter as PEFT's save_pretrained() writes it.")));
	}
}

static void
copy_adapter(const char *directory, const char *copy)
{
	pgft_make_work_directory();
	pgft_remove_tree(copy);
	pgft_make_directory(copy);
	for (int i = 0; i < lengthof(adapter_files); i++)
		copy_file(psprintf("%s/%s", directory, adapter_files[i]),
				  psprintf("%s/%s", copy, adapter_files[i]));
}

/* The engine speaks of the copy, whose place is no user's business. */
static char *
in_words_of_user(char *words, const char *copy, const char *directory)
{
	Datum result = DirectFunctionCall3Coll(
		replace_text, C_COLLATION_OID, CStringGetTextDatum(words),
		CStringGetTextDatum(pgft_absolute_path(copy)), CStringGetTextDatum(directory));

	return TextDatumGetCString(result);
}

/* Raise why the engine does not take the adapter. */
static void
refuse_adapter(const PgftReply *reply, const PgftModel *base, const char *copy,
			   const char *directory)
{
	char *message;
	char *hint;
	int sqlstate = pgft_reply_words(reply, &message, &hint);

	/* of another base: nothing is wrong with the state of any object */
	if (strcmp(pgft_reply_code(reply), "mismatch") == 0)
		sqlstate = ERRCODE_INVALID_PARAMETER_VALUE;
	ereport(ERROR, (errcode(sqlstate),
					errmsg("the adapter in \"%s\" cannot be used with base model \"%s\"", directory,
						   base->name),
					errdetail_internal("%s", in_words_of_user(message, copy, directory)),
					hint != NULL ? errhint("%s", hint) : 0));
}

/* What the engine says of the base that the adapter is for. */
static void
read_facts(PgftModelFacts *facts, Jsonb *loaded)
{
	int64 context_length = 0;

	facts->base_digest = pgft_json_string(&loaded->root, "digest");
	facts->architecture = pgft_json_string(&loaded->root, "architecture");
	pgft_json_int64(&loaded->root, "parameters", &facts->parameters);
	pgft_json_int64(&loaded->root, "context_length", &context_length);
	facts->context_length = (int) context_length;
	facts->training_loss = get_float8_nan();
	facts->validation_loss = get_float8_nan();
	facts->validation_token_accuracy = get_float8_nan();
}

/* Have the engine load the copy over the base, to see whether it can. */
static void
check_adapter(PgftModel *base, const char *copy, const char *directory, PgftModelFacts *facts)
{
	char *name;
	StringInfoData load, unload;
	PgftReply *reply = NULL;

	pgft_model_resolve(base);
	name = psprintf("import-%d-%s", MyProcPid, base->engine_id);
	initStringInfo(&load);
	appendStringInfoChar(&load, '{');
	pgft_json_add_string(&load, "lora_name", name);
	pgft_json_add_string(&load, "lora_path", pgft_absolute_path(copy));
	pgft_json_add_string(&load, "base_model_name", base->engine_id);
	appendStringInfoChar(&load, '}');
	initStringInfo(&unload);
	appendStringInfoChar(&unload, '{');
	pgft_json_add_string(&unload, "lora_name", name);
	appendStringInfoChar(&unload, '}');

	for (int i = 0; i < MAX_CHECKS; i++)
	{
		read_facts(facts, pgft_serving_load_base(base));
		reply = pgft_engine_request("POST", "/v1/load_lora_adapter", load.data, -1);
		if (reply->status == 200 || strcmp(pgft_reply_code(reply), "not_found") != 0)
			break;
	}
	if (reply->status != 200)
		refuse_adapter(reply, base, copy, directory);
	(void) pgft_engine_request("POST", "/v1/unload_lora_adapter", unload.data, -1);
}

/* SQL: finetune_import(model text, base_model text, directory text) */
PG_FUNCTION_INFO_V1(pgft_import);
Datum
pgft_import(PG_FUNCTION_ARGS)
{
	static const char function[] = "finetune_import";
	char *name = pgft_text_argument(fcinfo, 0, function, "model");
	char *base_name = pgft_text_argument(fcinfo, 1, function, "base_model");
	char *directory = get_directory(fcinfo, 2, function);
	PgftModelFacts facts = {0};
	PgftModel *base;
	pg_uuid_t id;
	char *copy;

	pgft_require_preload();
	PreventCommandIfReadOnly("finetune_import()");
	PreventCommandDuringRecovery("finetune_import()");
	pgft_model_check_create(name);
	base = pgft_base_lookup(base_name);
	check_role(ROLE_PG_READ_SERVER_FILES, function, "pg_read_server_files");
	check_directory(directory);

	copy = pgft_weights_temporary("import");
	PG_TRY();
	{
		copy_adapter(directory, copy);
		check_adapter(base, copy, directory, &facts);
		pgft_model_create_tuned(name, PGFT_MODEL_LORA, base, NULL, &id);
		facts.weights_digest = pgft_weights_store(&id, copy);
		if (!pgft_model_set_ready(&id, &facts))
			elog(ERROR, "model \"%s\" vanished while it was created", name);
	}
	PG_FINALLY();
	{
		pgft_remove_tree(copy);
	}
	PG_END_TRY();
	PG_RETURN_VOID();
}
