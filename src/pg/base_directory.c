/*
 * base_directory.c: a base model that is a Hugging Face directory, as files.
 *
 * Directories that were downloaded are often full of links, into a store of
 * files beside them.  They are followed as far as pg_finetune.model_directory
 * reaches, and no further.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "base_directory.h"
#include "lib/stringinfo.h"
#include "paths.h"
#include "storage/fd.h"

bool
pgft_is_base_part(const char *name)
{
	static const char *const names[] = {
		"config.json",
		"generation_config.json",
		"tokenizer.json",
		"tokenizer.model",
		"tokenizer_config.json",
		"chat_template.jinja",
		"model.safetensors.index.json",
	};
	static const char suffix[] = ".safetensors";
	size_t length = strlen(name);

	for (size_t i = 0; i < lengthof(names); i++)
	{
		if (strcmp(name, names[i]) == 0)
			return true;
	}
	return strncmp(name, "model", 5) == 0 && length >= 5 + sizeof(suffix) - 1 &&
		   strcmp(name + length - (sizeof(suffix) - 1), suffix) == 0 && strchr(name, '/') == NULL;
}

bool
pgft_is_directory(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static int
compare_names(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

static void
check_part(const char *path, const char *shown, const char *name, bool anywhere)
{
	struct stat st;

	if (stat(path, &st) < 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not find model file \"%s/%s\": %m", shown, name)));
	if (!S_ISREG(st.st_mode))
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("model file \"%s/%s\" is not a regular file", shown, name)));
	if (!anywhere && !pgft_inside_model_directory(path))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("model file \"%s/%s\" is outside of pg_finetune.model_directory",
							   shown, name)));
}

static List *
list_parts(const char *directory, const char *shown, bool anywhere)
{
	DIR *dir = AllocateDir(directory);
	struct dirent *entry;
	List *names = NIL;
	bool has_config = false;

	if (dir == NULL)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not open model directory \"%s\": %m", shown)));
	while ((entry = ReadDir(dir, directory)) != NULL)
	{
		if (!pgft_is_base_part(entry->d_name))
			continue;
		check_part(psprintf("%s/%s", directory, entry->d_name), shown, entry->d_name, anywhere);
		has_config |= strcmp(entry->d_name, "config.json") == 0;
		names = lappend(names, pstrdup(entry->d_name));
	}
	FreeDir(dir);
	if (!has_config)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("model directory \"%s\" has no config.json", shown),
						errhint("Name a GGUF file, or a directory in Hugging Face's layout.")));
	list_sort(names, compare_names);
	return names;
}

List *
pgft_base_parts(const char *directory, const char *shown)
{
	return list_parts(directory, shown, false);
}

List *
pgft_written_parts(const char *directory)
{
	return list_parts(directory, directory, true);
}

char *
pgft_base_parts_identity(const char *directory, const char *shown)
{
	StringInfoData identity;
	ListCell *cell;

	initStringInfo(&identity);
	appendStringInfo(&identity, "%s\n", directory);
	foreach (cell, pgft_base_parts(directory, shown))
	{
		const char *name = lfirst(cell);
		struct stat st;

		if (stat(psprintf("%s/%s", directory, name), &st) < 0)
			ereport(ERROR, (errcode_for_file_access(),
							errmsg("could not find model file \"%s/%s\": %m", shown, name)));
		appendStringInfo(&identity, "%s\n%lld\n%lld.%09ld\n", name, (long long) st.st_size,
						 (long long) st.st_mtim.tv_sec, (long) st.st_mtim.tv_nsec);
	}
	return identity.data;
}

int64
pgft_base_bytes(const char *path)
{
	struct stat st;
	struct dirent *entry;
	int64 bytes = 0;
	DIR *dir;

	if (stat(path, &st) < 0)
		return -1;
	if (!S_ISDIR(st.st_mode))
		return st.st_size;
	dir = AllocateDir(path);
	if (dir == NULL)
		return -1;
	while ((entry = ReadDirExtended(dir, path, DEBUG1)) != NULL)
	{
		char *name = psprintf("%s/%s", path, entry->d_name);

		if (pgft_is_base_part(entry->d_name) && stat(name, &st) == 0)
			bytes += st.st_size;
		pfree(name);
	}
	FreeDir(dir);
	return bytes;
}
