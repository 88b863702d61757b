/*
 * full_model.c: full models whose weights are kept as files.
 *
 * With option "storage" of a job a full model is a directory below
 * pg_finetune.model_directory, named by the digest of its files.  It is written
 * beside its place, synced and renamed before the transaction that makes the
 * model ready, so that a row that says "ready" has its files; what a job that
 * fails afterwards has left is taken up by its next attempt.
 *
 * Nobody removes such a directory but the operator.  It may be needed where
 * nothing here can see it: by a copy of the row in another database, by a
 * standby that has the same directory, by a backup that is restored to a time
 * before DROP SERVER.  finetune.model_files() says what there is, and which of
 * it this database needs.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <unistd.h>

#include "base_directory.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "full_model.h"
#include "funcapi.h"
#include "job_file.h"
#include "paths.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

char *
pgft_full_directory(const char *digest)
{
	return psprintf(PGFT_FULL_FOLDER "/%s", digest);
}

char *
pgft_full_path(const PgftModel *model, bool missing_ok)
{
	const char *digest = model->weights_digest;
	char *path = NULL;

	/* it becomes a file's name */
	if (digest != NULL && digest[0] != '\0' && strspn(digest, "0123456789abcdef") == strlen(digest))
		path = pgft_full_folder_path(digest);
	if (path != NULL && pgft_is_directory(path))
		return path;
	if (!missing_ok)
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_FILE),
			 errmsg("directory \"%s\" of model \"%s\" is missing", model->file, model->name),
			 errhint("The model is kept as files. Copy them to pg_finetune.model_directory, from "
					 "the server that has trained it or from a backup.")));
	return NULL;
}

/* ---- Making one ---- */

/* The folder of all of them, created if need be. */
static char *
make_folder(void)
{
	char *folder = pgft_full_folder_path("");

	if (folder == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("a model cannot be kept as files without a directory for them"),
						errhint("Set pg_finetune.model_directory.")));
	if (mkdir(folder, S_IRWXU) < 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not create directory \"" PGFT_FULL_FOLDER
												   "\" in pg_finetune.model_directory: %m")));
	return folder;
}

void
pgft_full_check_create(bool files)
{
	char *folder;

	if (!pgft_model_full_is_known())
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("full models cannot be made before the extension is updated"),
						errhint("ALTER EXTENSION pg_finetune UPDATE.")));
	if (!files)
		return;
	folder = make_folder();
	if (access(folder, W_OK | X_OK) < 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not write to directory \"" PGFT_FULL_FOLDER
							   "\" in pg_finetune.model_directory: %m")));
}

/* Where a job's copy is in the making. */
static char *
temporary_path(const pg_uuid_t *job)
{
	char *uuid = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(job)));

	return pgft_full_folder_path(psprintf("tmp.%s", uuid));
}

/* Give a copy its name, unless there is the same under it already. */
static void
take_place(const char *temporary, const char *digest)
{
	char *path = pgft_full_folder_path(digest);
	char *shown = pgft_full_directory(digest);

	if (rename(temporary, path) == 0)
		return;
	if (errno != EEXIST && errno != ENOTEMPTY)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not rename a directory to \"%s\": %m", path)));
	if (strcmp(pgft_weights_base_digest(path, shown), digest) != 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("directory \"%s\" is there already, with other files", shown),
						errhint("Move it out of pg_finetune.model_directory.")));
}

char *
pgft_full_keep(const pg_uuid_t *job, const char *written, PgftGoOn go_on)
{
	char *folder = make_folder();
	char *temporary = temporary_path(job);
	char *volatile digest = NULL;

	pgft_remove_tree(temporary);
	pgft_require_model_disk(pgft_base_bytes(written));
	pgft_make_directory(temporary);
	PG_TRY();
	{
		digest = pgft_weights_copy_full(written, temporary, go_on);
		pgft_sync_directory(temporary);
		take_place(temporary, digest);
	}
	PG_FINALLY();
	{
		pgft_remove_tree(temporary);
	}
	PG_END_TRY();
	pgft_sync_directory(folder);
	return digest;
}

char *
pgft_full_words(const char *message)
{
	char *folder = pgft_full_folder_path("");

	return folder == NULL ? pstrdup(message) : pgft_replace_text(message, folder, PGFT_FULL_FOLDER);
}

void
pgft_full_clean(const pg_uuid_t *job)
{
	char *temporary = temporary_path(job);

	if (temporary != NULL)
		pgft_remove_tree(temporary);
}

/* ---- What there is ---- */

/* A model of this database that has these files (palloc'd); NULL when there is none. */
static char *
model_with_digest(const char *digest)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(digest)};
	MemoryContext context = CurrentMemoryContext;
	PgftCatalog catalog;
	char *name = NULL;

	pgft_catalog_enter(&catalog, true);
	pgft_execute("SELECT name FROM finetune.model WHERE weights_digest = $1 AND kind = 'full'"
				 " AND storage = 'file' ORDER BY name LIMIT 1",
				 1, types, values, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
		name = MemoryContextStrdup(context,
								   SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
	pgft_catalog_leave(&catalog);
	return name;
}

static void
put_directory(ReturnSetInfo *result, const char *name)
{
	char *path = pgft_full_folder_path(name);
	char *model = model_with_digest(name);
	Datum values[4] = {CStringGetTextDatum(pgft_full_directory(name)),
					   Int64GetDatum(pgft_base_bytes(path))};
	bool nulls[4] = {false, false, false, model == NULL};
	struct stat st;

	if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
		return;
	values[2] = TimestampTzGetDatum(time_t_to_timestamptz(st.st_mtime));
	if (model != NULL)
		values[3] = CStringGetTextDatum(model);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* SQL: finetune.model_files(), the directories of full models, whoever needs them */
PG_FUNCTION_INFO_V1(pgft_model_files);
Datum
pgft_model_files(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char *folder = pgft_full_folder_path("");
	DIR *dir = folder == NULL ? NULL : AllocateDir(folder);
	struct dirent *entry;

	InitMaterializedSRF(fcinfo, 0);
	while (dir != NULL && (entry = ReadDir(dir, folder)) != NULL)
	{
		if (entry->d_name[0] != '.')
			put_directory(result, entry->d_name);
	}
	if (dir != NULL)
		FreeDir(dir);
	return (Datum) 0;
}
