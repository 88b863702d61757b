/*
 * base.c: what a base model must be for somebody to tune it.
 */
#include "postgres.h"

#include "base.h"
#include "base_directory.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "engine_client.h"
#include "foreign/foreign.h"
#include "json.h"
#include "miscadmin.h"
#include "pg_finetune.h"
#include "settings.h"
#include "storage/fd.h"
#include "utils/acl.h"

/* How long a serving engine that is not there is waited for */
#define ENGINE_PATIENCE_MS 5000

void
pgft_base_check_wrapper(void)
{
	Oid wrapper = pgft_wrapper_oid(false);
	AclResult result = pg_foreign_data_wrapper_aclcheck(wrapper, GetUserId(), ACL_USAGE);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FDW, PGFT_WRAPPER);
}

void
pgft_base_check_header(const PgftModel *base)
{
	char magic[4] = {0};
	FILE *file;

	/* that it has a config.json has been seen as it was found */
	if (pgft_is_directory(base->path))
		return;
	file = AllocateFile(base->path, PG_BINARY_R);
	if (file == NULL)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not open model file \"%s\": %m", base->file)));
	if (fread(magic, 1, sizeof(magic), file) != sizeof(magic) ||
		memcmp(magic, "GGUF", sizeof(magic)) != 0)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("model file \"%s\" is not a GGUF file", base->file)));
	FreeFile(file);
}

PgftModel *
pgft_base_lookup(const char *name)
{
	PgftModel *base = pgft_model_lookup(name, false);

	if (base->kind == PGFT_MODEL_LORA)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("model \"%s\" is not a base model", name)));
	if (base->endpoint != NULL)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("model \"%s\" is behind an endpoint and cannot be tuned here", name),
						errhint("A base that is tuned needs its weights as a file.")));
	pgft_model_require_ready(base);
	return base;
}

/*
 * The engine knows best.  One that cannot start must not keep anybody from
 * creating a job, whose own engine looks at the file again.
 */
void
pgft_base_check_file(PgftModel *base)
{
	Jsonb *file;
	JsonbContainer *unsupported;

	if (!pgft_engine_wait_ready(ENGINE_PATIENCE_MS))
	{
		pgft_model_resolve(base);
		pgft_base_check_header(base);
		return;
	}
	file = pgft_model_inspect(base, -1);
	unsupported = pgft_json_array(&file->root, "unsupported");
	if (unsupported && JsonContainerSize(unsupported) > 0)
	{
		JsonbValue *what = getIthJsonbValueFromContainer(unsupported, 0);

		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("model file \"%s\": %.*s", base->file,
							   what->type == jbvString ? what->val.string.len : 0,
							   what->type == jbvString ? what->val.string.val : "")));
	}
}
