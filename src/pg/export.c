/*
 * export.c: models in the formats that the engine writes, for finetune_export().
 *
 * The engine works for the session, as for finetune_evaluate(), and writes into
 * a directory beside the one that is wanted, on the same file system, which the
 * end of the session's task removes with all that is still in it.
 */
#include "postgres.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "export.h"
#include "json.h"
#include "miscadmin.h"
#include "paths.h"
#include "pg_finetune.h"
#include "session_engine.h"
#include "storage/fd.h"
#include "weights.h"

static const char *const formats[] = {
	PGFT_FORMAT_PEFT,   "safetensors", "safetensors-f32", "safetensors-f16",
	"safetensors-bf16", "gguf",        "gguf-f32",        "gguf-f16",
	"gguf-bf16",        "gguf-q8_0",   "gguf-adapter",
};

void
pgft_export_check_format(const char *format)
{
	StringInfoData names;

	initStringInfo(&names);
	for (int i = 0; i < lengthof(formats); i++)
	{
		if (strcmp(formats[i], format) == 0)
			return;
		appendStringInfo(&names, "%s%s", i > 0 ? ", " : "", formats[i]);
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("unknown format \"%s\"", format),
			 errhint("Supported formats are: %s.", names.data)));
}

bool
pgft_export_is_adapter(const char *format)
{
	return strcmp(format, PGFT_FORMAT_PEFT) == 0 || strcmp(format, "gguf-adapter") == 0;
}

static void
set_mode(const char *path, mode_t mode)
{
	if (chmod(path, mode) < 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not set permissions of file \"%s\": %m", path)));
}

void
pgft_export_set_modes(const char *directory)
{
	DIR *dir = AllocateDir(directory);
	struct dirent *entry;

	while ((entry = ReadDir(dir, directory)) != NULL)
	{
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			set_mode(psprintf("%s/%s", directory, entry->d_name), 0644);
	}
	FreeDir(dir);
	set_mode(directory, 0755);
}

/* Give what the engine has written its name. */
static void
finish(PgftSessionTask *task)
{
	const char *written = task->file.export_path;
	const char *directory = task->temporary_name;
	char *parent = pstrdup(directory);

	get_parent_directory(parent);
	pgft_export_set_modes(written);
	if (rename(written, directory) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not rename directory \"%s\" to \"%s\": %m", written, directory)));
	PG_TRY();
	{
		pgft_sync_directory(parent);
	}
	PG_CATCH();
	{
		/* what was there before us is not ours to remove */
		pgft_remove_tree(directory);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* An adapter fits the weights that it was trained over, which are not those of the merged model. */
static void
tell_of_quantised_base(const PgftSessionTask *task, const PgftModel *model)
{
	int64 quantised = 0;

	if (model->kind == PGFT_MODEL_FULL || pgft_export_is_adapter(task->file.export_format))
		return;
	pgft_json_int64(pgft_session_event(task, "exported"), "quantised_tensors", &quantised);
	if (quantised > 0)
		ereport(NOTICE,
				(errmsg("answers of the merged model may differ from those of \"%s\"", model->name),
				 errdetail("It was trained over the quantised weights of base model \"%s\".",
						   model->base->name)));
}

/* Whoever asks the exported model must put prompts into it himself. */
static void
tell_of_prompt_template(const PgftSessionTask *task, const PgftModel *model)
{
	char *prompt_template =
		pgft_json_string(pgft_session_event(task, "exported"), "prompt_template");

	if (prompt_template != NULL)
		ereport(NOTICE, (errmsg("prompts to the exported model are to be put into the prompt "
								"template of \"%s\"",
								model->name),
						 errdetail("Other programs do not know of it: %s", prompt_template)));
}

/* The adapter, and the base below it. */
static void
describe_adapter(PgftModel *model, PgftJobFile *file)
{
	if (model->base)
		model->base = pgft_model_by_id(&model->base->id);
	if (model->base == NULL || !OidIsValid(model->base->server))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("the base model of \"%s\" is missing", model->name)));
	file->base_digest = model->base_digest;
	file->adapter = pgft_weights_to_cache(&model->id, model->weights_digest);
}

void
pgft_export_by_engine(PgftModel *model, const char *directory, const char *format)
{
	PgftSessionTask task = {.program = "export", .name = "exporting engine", .finish = finish};
	char *temporary = psprintf("%s.tmp.XXXXXX", directory);
	PgftModel *root;

	pgft_require_preload();
	if (model->kind == PGFT_MODEL_LORA)
		describe_adapter(model, &task.file);
	root = pgft_model_root(model);
	pgft_model_resolve(root);
	task.file.base = root;
	task.file.replay_from = -1;
	task.file.export_format = format;
	if (mkdtemp(temporary) == NULL)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not create directory \"%s\": %m", directory)));
	task.file.export_path = psprintf("%s/model", temporary);
	task.temporary = temporary;
	task.temporary_name = directory;
	pgft_session_engine_run(&task);
	tell_of_quantised_base(&task, model);
	tell_of_prompt_template(&task, model);
}
