/*
 * model.c: a model by name.
 *
 * Who may use a model is asked of its foreign server at every call; which
 * weights it has is asked of its row, for a server's options are its owner's
 * to rewrite.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "base_directory.h"
#include "catalog.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "commands/defrem.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "endpoint.h"
#include "engine_client.h"
#include "foreign/foreign.h"
#include "full_model.h"
#include "json.h"
#include "miscadmin.h"
#include "model.h"
#include "paths.h"
#include "pg_finetune.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/uuid.h"
#include "weights.h"

/* Hexadecimal digits of a digest that make an engine id */
#define ENGINE_ID_DIGITS 32

/* Columns of the query below */
enum
{
	COLUMN_ID = 1,
	COLUMN_NAME,
	COLUMN_KIND,
	COLUMN_WEIGHTS_DIGEST,
	COLUMN_BASE_DIGEST,
	COLUMN_JOB,
	COLUMN_BASE_ID,
	COLUMN_BASE_NAME,
	COLUMN_BASE_WEIGHTS_DIGEST,
	COLUMN_BASE_FILE_DIGEST,
	COLUMN_SERVER,
	COLUMN_BASE_SERVER,
	COLUMN_BASE_KIND,
	COLUMN_STORAGE,
	COLUMN_TEMPLATE,
	COLUMN_CONTEXT_LENGTH,
	COLUMN_BASE_STORAGE,
	COLUMN_BASE_TEMPLATE,
	COLUMN_BASE_CONTEXT_LENGTH
};

/*
 * Rows and servers in one snapshot: while names are swapped, the rights of one
 * model never go with the weights of the other.
 */
#define SELECT_MODEL                                                                      \
	"SELECT m.id, m.name, m.kind, m.weights_digest, m.base_digest, m.job, b.id, b.name, " \
	"b.weights_digest, b.base_digest, "                                                   \
	"(SELECT s.oid FROM pg_foreign_server s WHERE s.srvname = m.name::name), "            \
	"(SELECT s.oid FROM pg_foreign_server s WHERE s.srvname = b.name::name), b.kind, %s " \
	"FROM finetune.model m LEFT JOIN finetune.model b ON b.id = m.base_id WHERE m.%s = $1"
#define FULL_COLUMNS \
	"m.storage, m.template, m.context_length, b.storage, b.template, b.context_length"
#define FULL_COLUMNS_OF_1_0 "NULL, NULL, NULL, NULL, NULL, NULL"

Oid
pgft_wrapper_oid(bool missing_ok)
{
	Oid wrapper = get_foreign_data_wrapper_oid(PGFT_WRAPPER, true);

	if (!OidIsValid(wrapper) && !missing_ok)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("extension pg_finetune is not installed in this database"),
						errhint("Run CREATE EXTENSION pg_finetune.")));
	return wrapper;
}

static const char *const kind_names[] = {"base", "lora", "full"};

const char *
pgft_model_kind_name(PgftModelKind kind)
{
	return kind_names[kind];
}

bool
pgft_model_kind_by_name(const char *name, PgftModelKind *kind)
{
	for (int i = 0; name != NULL && i < lengthof(kind_names); i++)
		if (strcmp(name, kind_names[i]) == 0)
		{
			*kind = (PgftModelKind) i;
			return true;
		}
	return false;
}

/* ---- Lookup ---- */

/* What a base's server says of its file. */
static void
read_options(PgftModel *model, List *options)
{
	ListCell *cell;

	foreach (cell, options)
	{
		DefElem *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, "file") == 0)
			model->file = pstrdup(defGetString(option));
		else if (strcmp(option->defname, "template") == 0)
			model->chat_template = pstrdup(defGetString(option));
		else if (strcmp(option->defname, "context_length") == 0)
			model->context_length = pg_strtoint32(defGetString(option));
		else if (strcmp(option->defname, "storage") == 0)
			model->in_database = strcmp(defGetString(option), "database") == 0;
		else if (strcmp(option->defname, "endpoint") == 0)
			model->endpoint = pstrdup(defGetString(option));
		else if (strcmp(option->defname, "remote_model") == 0)
			model->remote_model = pstrdup(defGetString(option));
		else if (strcmp(option->defname, "sslrootcert") == 0)
			model->sslrootcert = pstrdup(defGetString(option));
		else if (strcmp(option->defname, "allow_http") == 0)
			model->allow_http = defGetBoolean(option);
	}
}

/* The server's half of a model; false when there is no such server of ours. */
static bool
read_server(PgftModel *model)
{
	ForeignServer *server = model->has_row ? GetForeignServerExtended(model->server, FSV_MISSING_OK)
										   : GetForeignServerByName(model->name, true);

	model->server = InvalidOid;
	if (server == NULL || server->fdwid != pgft_wrapper_oid(true))
		return false;
	model->server = server->serverid;
	model->owner = server->owner;
	if (!model->has_row && !pgft_model_kind_by_name(server->servertype, &model->kind))
		return false;
	if (model->kind == PGFT_MODEL_BASE)
		read_options(model, server->options);
	return true;
}

bool
pgft_model_full_is_known(void)
{
	return pgft_has_column("model", "template");
}

/* A column of the first row as text or uuid in the caller's context. */
static char *
text_column(MemoryContext context, int column)
{
	char *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column);

	return value == NULL ? NULL : MemoryContextStrdup(context, value);
}

static bool
uuid_column(int column, pg_uuid_t *value)
{
	bool is_null;
	Datum datum = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, &is_null);

	if (!is_null)
		*value = *DatumGetUUIDP(datum);
	return !is_null;
}

static Oid
oid_column(int column)
{
	bool is_null;
	Datum datum = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, &is_null);

	return is_null ? InvalidOid : DatumGetObjectId(datum);
}

static PgftModelKind
kind_column(int column)
{
	PgftModelKind kind;

	if (!pgft_model_kind_by_name(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column),
								 &kind))
		elog(ERROR, "unexpected kind of model");
	return kind;
}

/* What a base's server would say in its options; columns of a full model's row. */
static void
read_full(MemoryContext context, PgftModel *model, int storage, int chat_template,
		  int context_length)
{
	char *where = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, storage);
	char *length = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, context_length);

	if (model->kind != PGFT_MODEL_FULL)
		return;
	model->in_database = where == NULL || strcmp(where, "file") != 0;
	model->chat_template = text_column(context, chat_template);
	model->context_length = length == NULL ? 0 : pg_strtoint32(length);
	if (model->in_database)
		model->file = model->name;
	else if (model->weights_digest != NULL)
		model->file = MemoryContextStrdup(context, pgft_full_directory(model->weights_digest));
}

/* The base of the model in the first row; NULL when there is none. */
static PgftModel *
read_base(MemoryContext context)
{
	char *name = text_column(context, COLUMN_BASE_NAME);
	PgftModel *base;

	if (name == NULL)
		return NULL;
	base = MemoryContextAllocZero(context, sizeof(PgftModel));
	base->has_row = true;
	base->name = name;
	base->kind = kind_column(COLUMN_BASE_KIND);
	uuid_column(COLUMN_BASE_ID, &base->id);
	base->weights_digest = text_column(context, COLUMN_BASE_WEIGHTS_DIGEST);
	base->base_digest = text_column(context, COLUMN_BASE_FILE_DIGEST);
	base->server = oid_column(COLUMN_BASE_SERVER);
	read_full(context, base, COLUMN_BASE_STORAGE, COLUMN_BASE_TEMPLATE, COLUMN_BASE_CONTEXT_LENGTH);
	return base;
}

/* The row's half of a model, by name or by id, and which server it has; or NULL. */
static PgftModel *
read_row(const char *name, const pg_uuid_t *id)
{
	static SPIPlanPtr plans[2][2]; /* by name, by id; with a catalog of 1.0, with a later one */
	Oid types[] = {name != NULL ? TEXTOID : UUIDOID};
	Datum values[] = {name != NULL ? CStringGetTextDatum(name) : UUIDPGetDatum(id)};
	bool full_is_known = pgft_model_full_is_known();
	SPIPlanPtr *plan = &plans[name == NULL][full_is_known];
	MemoryContext context = CurrentMemoryContext;
	PgftModel *model = NULL;
	PgftCatalog catalog;

	pgft_catalog_enter(&catalog, true);
	if (*plan == NULL)
	{
		const char *query =
			psprintf(SELECT_MODEL, full_is_known ? FULL_COLUMNS : FULL_COLUMNS_OF_1_0,
					 name != NULL ? "name" : "id");
		SPIPlanPtr prepared = SPI_prepare(query, 1, types);

		if (prepared == NULL || SPI_keepplan(prepared) != 0)
			elog(ERROR, "could not prepare the lookup of a model");
		*plan = prepared;
	}
	if (SPI_execute_plan(*plan, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look a model up");
	if (SPI_processed > 0)
	{
		model = MemoryContextAllocZero(context, sizeof(PgftModel));
		model->has_row = true;
		uuid_column(COLUMN_ID, &model->id);
		model->name = text_column(context, COLUMN_NAME);
		model->kind = kind_column(COLUMN_KIND);
		model->weights_digest = text_column(context, COLUMN_WEIGHTS_DIGEST);
		model->base_digest = text_column(context, COLUMN_BASE_DIGEST);
		model->has_job = uuid_column(COLUMN_JOB, &model->job);
		model->server = oid_column(COLUMN_SERVER);
		read_full(context, model, COLUMN_STORAGE, COLUMN_TEMPLATE, COLUMN_CONTEXT_LENGTH);
		model->base = read_base(context);
	}
	pgft_catalog_leave(&catalog);
	return model;
}

typedef enum Lookup
{
	LOOKUP_FOUND,
	LOOKUP_NO_MODEL,
	LOOKUP_NO_USAGE,
	LOOKUP_NO_BASE
} Lookup;

static PgftModel *
find_by_name(const char *name)
{
	PgftModel *model;

	/* Rights that another session has just taken away count, also later in one transaction */
	AcceptInvalidationMessages();
	model = read_row(name, NULL);
	if (model == NULL)
	{
		model = palloc0(sizeof(PgftModel));
		model->name = pstrdup(name);
	}
	return read_server(model) ? model : NULL;
}

/* *model is NULL when there is none. */
static Lookup
look_up(const char *name, PgftModel **model)
{
	PgftModel *found = find_by_name(name);

	*model = found;
	if (found == NULL)
		return LOOKUP_NO_MODEL;
	if (pg_foreign_server_aclcheck(found->server, GetUserId(), ACL_USAGE) != ACLCHECK_OK)
		return LOOKUP_NO_USAGE;
	if (found->base != NULL && !read_server(found->base) && found->kind == PGFT_MODEL_LORA)
		return LOOKUP_NO_BASE;
	return LOOKUP_FOUND;
}

PgftModel *
pgft_model_by_name(const char *name)
{
	pgft_wrapper_oid(false);
	return find_by_name(name);
}

PgftModel *
pgft_model_lookup(const char *name, bool missing_ok)
{
	PgftModel *model;

	pgft_wrapper_oid(false);
	switch (look_up(name, &model))
	{
		case LOOKUP_FOUND:
			break;
		case LOOKUP_NO_MODEL:
			if (!missing_ok)
				ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
								errmsg("model \"%s\" does not exist", name)));
			return NULL;
		case LOOKUP_NO_USAGE:
			aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FOREIGN_SERVER, name);
			break;
		case LOOKUP_NO_BASE:
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
							errmsg("the base model of \"%s\" is missing", name)));
	}
	return model;
}

PgftModel *
pgft_model_find(const char *name)
{
	PgftModel *model;

	if (!OidIsValid(pgft_wrapper_oid(true)) || look_up(name, &model) != LOOKUP_FOUND)
		return NULL;
	return model;
}

PgftModel *
pgft_model_by_id(const pg_uuid_t *id)
{
	PgftModel *model = read_row(NULL, id);

	if (model == NULL)
		return NULL;
	read_server(model);
	if (model->base != NULL)
		read_server(model->base);
	return model;
}

PgftModel *
pgft_model_root(PgftModel *model)
{
	return model->kind == PGFT_MODEL_LORA ? model->base : model;
}

const char *
pgft_model_root_digest(const PgftModel *root)
{
	return root->kind == PGFT_MODEL_FULL ? root->weights_digest : root->base_digest;
}

/* The phase of a model's job; NULL when its row is not here, for it is run elsewhere. */
static char *
job_phase(const PgftModel *model)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(&model->job)};
	MemoryContext context = CurrentMemoryContext;
	PgftCatalog catalog;
	char *phase = NULL;

	if (!model->has_row || !model->has_job)
		return NULL;
	pgft_catalog_enter(&catalog, true);
	pgft_execute("SELECT phase FROM finetune.job_detail WHERE id = $1", 1, types, values, NULL,
				 SPI_OK_SELECT);
	if (SPI_processed > 0)
		phase = text_column(context, 1);
	pgft_catalog_leave(&catalog);
	return phase;
}

void
pgft_model_require_ready(const PgftModel *model)
{
	char *phase;
	bool paused, over;

	if (model->kind == PGFT_MODEL_BASE || (model->has_row && model->weights_digest != NULL))
		return;
	phase = job_phase(model);
	paused = phase != NULL && strcmp(phase, "paused") == 0;
	over = phase != NULL && (strcmp(phase, "failed") == 0 || strcmp(phase, "cancelled") == 0);
	if (model->has_row && model->has_job && !paused && !over)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("model \"%s\" is still being trained", model->name)));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("model \"%s\" has no weights", model->name),
			 paused ? errhint("Its job had not finished when this database was copied. Cancel the "
							  "job and create it again.")
					: 0));
}

/* ---- The file of a base ---- */

/* What the engine knows a base by: another file or other options give another id. */
static char *
engine_id(const PgftModel *base, const char *file_identity)
{
	uint8 digest[PG_SHA256_DIGEST_LENGTH];
	char hex[2 * PG_SHA256_DIGEST_LENGTH + 1];
	char *identity = psprintf("%s\n%d\n%s", file_identity, base->context_length,
							  base->chat_template == NULL ? "" : base->chat_template);
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);

	if (context == NULL || pg_cryptohash_init(context) < 0 ||
		pg_cryptohash_update(context, (uint8 *) identity, strlen(identity)) < 0 ||
		pg_cryptohash_final(context, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not compute SHA-256: %s", pg_cryptohash_error(context));
	pg_cryptohash_free(context);
	hex_encode((char *) digest, sizeof(digest), hex);
	return psprintf("base-%.*s", ENGINE_ID_DIGITS, hex);
}

/* A base whose file is in the database: out of there, its digest says what it is. */
static void
resolve_stored(PgftModel *base)
{
	if (base->weights_digest == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the file of base model \"%s\" is not in the database", base->name),
				 errhint("Put it into pg_finetune.model_directory, and run ALTER SERVER %s OPTIONS "
						 "(SET storage 'database').",
						 quote_identifier(base->name))));
	pgft_require_preload();
	base->path = pgft_absolute_path(
		pgft_weights_base_to_cache(&base->id, base->weights_digest, false, NULL));
	base->engine_id = engine_id(base, base->weights_digest);
}

void
pgft_model_resolve(PgftModel *base)
{
	pgft_model_require_ready(base);
	if (base->in_database)
		resolve_stored(base);
	else
		pgft_model_resolve_file(base);
}

void
pgft_model_resolve_file(PgftModel *base)
{
	struct stat st;

	if (base->endpoint != NULL)
		pgft_endpoint_only_answers(base);
	if (base->file == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("base model \"%s\" has no file", base->name)));
	base->path = base->kind == PGFT_MODEL_FULL ? pgft_full_path(base, false)
											   : pgft_model_path(base->file, false);
	if (pgft_is_directory(base->path))
	{
		base->engine_id = engine_id(base, pgft_base_parts_identity(base->path, base->file));
		return;
	}
	if (stat(base->path, &st) < 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not find model file \"%s\": %m", base->file)));
	base->engine_id =
		engine_id(base, psprintf("%s\n%lld\n%lld.%09ld", base->path, (long long) st.st_size,
								 (long long) st.st_mtim.tv_sec, (long) st.st_mtim.tv_nsec));
}

/*
 * The engine names files by their absolute paths, users by their server's
 * option.
 */
static char *
without_path(const PgftModel *base, char *words)
{
	Datum result;

	if (words == NULL || base == NULL || base->path == NULL)
		return words;
	result =
		DirectFunctionCall3Coll(replace_text, C_COLLATION_OID, CStringGetTextDatum(words),
								CStringGetTextDatum(base->path), CStringGetTextDatum(base->file));
	return TextDatumGetCString(result);
}

void
pgft_model_error(const PgftModel *base, const PgftReply *reply)
{
	char *message;
	char *hint;
	int sqlstate;

	if (base != NULL && base->endpoint != NULL)
		pgft_endpoint_error(base, reply);
	sqlstate = pgft_reply_words(reply, &message, &hint);
	message = without_path(base, message);
	hint = without_path(base, hint);
	ereport(ERROR, (errcode(sqlstate), errmsg_internal("%s", message),
					hint != NULL ? errhint("%s", hint) : 0));
}

Jsonb *
pgft_model_inspect(PgftModel *base, int timeout_ms)
{
	StringInfoData body;
	PgftReply *reply;

	if (base->path == NULL)
		pgft_model_resolve(base);
	initStringInfo(&body);
	appendStringInfoChar(&body, '{');
	pgft_json_add_string(&body, "path", base->path);
	if (base->chat_template != NULL)
		pgft_json_add_string(&body, "template", base->chat_template);
	appendStringInfoChar(&body, '}');
	reply = pgft_engine_request("POST", "/inspect", body.data, timeout_ms);
	if (reply->status != 200 || reply->body == NULL)
		pgft_model_error(base, reply);
	return reply->body;
}

/*
 * Bytes of the file of a base, or of a full model that is kept as files, for who
 * may use the model; null when it cannot be seen.
 */
PG_FUNCTION_INFO_V1(pgft_base_size);
Datum
pgft_base_size(PG_FUNCTION_ARGS)
{
	Oid serverid = PG_GETARG_OID(0);
	ForeignServer *server = GetForeignServerExtended(serverid, FSV_MISSING_OK);
	PgftModel model = {0};
	int64 bytes;
	char *path;

	if (server == NULL || server->fdwid != pgft_wrapper_oid(true) ||
		pg_foreign_server_aclcheck(serverid, GetUserId(), ACL_USAGE) != ACLCHECK_OK)
		PG_RETURN_NULL();
	if (pgft_model_kind_by_name(server->servertype, &model.kind) && model.kind == PGFT_MODEL_FULL)
	{
		PgftModel *full = find_by_name(server->servername);

		path = full == NULL || full->in_database || full->file == NULL ? NULL
																	   : pgft_full_path(full, true);
	}
	else
	{
		read_options(&model, server->options);
		path = model.file == NULL ? NULL : pgft_model_path(model.file, true);
	}
	bytes = path == NULL ? -1 : pgft_base_bytes(path);
	if (bytes < 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(bytes);
}
