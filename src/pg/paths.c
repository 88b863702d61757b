/*
 * paths.c: where things are on disk.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "paths.h"
#include "settings.h"
#include "storage/fd.h"

char *
pgft_work_path(const char *fmt, ...)
{
	StringInfoData buf;
	va_list args;
	int needed;

	initStringInfo(&buf);
	appendStringInfo(&buf, "%s/", pgft_work_directory);
	for (;;)
	{
		va_start(args, fmt);
		needed = appendStringInfoVA(&buf, fmt, args);
		va_end(args);
		if (needed == 0)
			return buf.data;
		enlargeStringInfo(&buf, needed);
	}
}

char *
pgft_absolute_path(const char *path)
{
	if (is_absolute_path(path))
		return pstrdup(path);
	return psprintf("%s/%s", DataDir, path);
}

void
pgft_make_directory(const char *path)
{
	if (mkdir(path, S_IRWXU) < 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not create directory \"%s\": %m", path)));
}

/* fsync_fname() would end the whole server: here is nothing that it needs to recover. */
void
pgft_sync_directory(const char *path)
{
	(void) fsync_fname_ext(path, true, false, ERROR);
}

void
pgft_make_work_directory(void)
{
	pgft_make_directory(pgft_work_directory);
	pgft_make_directory(pgft_work_path("jobs"));
	pgft_make_directory(pgft_work_path("cache"));
}

/* Free megabytes of a directory's disk; as many as anybody may want when nobody asks or can tell.
 */
static uint64
free_megabytes(const char *directory)
{
	struct statvfs fs;

	if (pgft_reserve_disk == 0 || statvfs(directory, &fs) != 0)
		return PG_UINT64_MAX;
	return (uint64) fs.f_bavail * fs.f_frsize >> 20;
}

char *
pgft_disk_is_low(void)
{
	uint64 free_mb = free_megabytes(pgft_work_directory);

	if (free_mb >= (uint64) pgft_reserve_disk)
		return NULL;
	return psprintf("the disk of pg_finetune.work_directory has " UINT64_FORMAT
					" MB free, less than"
					" pg_finetune.reserve_disk (%d MB)",
					free_mb, pgft_reserve_disk);
}

void
pgft_require_model_disk(int64 bytes)
{
	uint64 free_mb = free_megabytes(pgft_model_directory);
	uint64 needed_mb = (uint64) bytes >> 20;

	if (free_mb < needed_mb + pgft_reserve_disk)
		ereport(ERROR, (errcode(ERRCODE_DISK_FULL),
						errmsg("the disk of pg_finetune.model_directory has " UINT64_FORMAT
							   " MB free, and would have less than pg_finetune.reserve_disk (%d MB)"
							   " with a model of " UINT64_FORMAT " MB",
							   free_mb, pgft_reserve_disk, needed_mb),
						errhint("Make room there.")));
}

void
pgft_require_disk(void)
{
	char *message = pgft_disk_is_low();

	if (message)
		ereport(ERROR,
				(errcode(ERRCODE_DISK_FULL), errmsg("%s", message), errhint("Make room there.")));
}

char *
pgft_socket_path(void)
{
	char *path = pgft_work_path("engine.sock");

	if (strlen(path) >= sizeof(((struct sockaddr_un *) NULL)->sun_path))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("the path of the engine's socket is too long"),
						errhint("Choose a shorter pg_finetune.work_directory.")));
	return path;
}

const char *
pgft_engine_program(void)
{
	if (pgft_engine_path[0] != '\0')
		return pgft_engine_path;
	return psprintf("%s/pg_finetune_engine", pkglib_path);
}

const char *
pgft_check_model_file(const char *file)
{
	const char *component = file;

	if (file[0] == '\0')
		return "must not be empty";
	if (is_absolute_path(file))
		return "must be relative to pg_finetune.model_directory";
	for (;;)
	{
		size_t length = strcspn(component, "/");

		if (length == 0)
			return "must not have an empty component";
		if (length == 2 && strncmp(component, "..", 2) == 0)
			return "must not contain \"..\"";
		if (component[length] == '\0')
			return NULL;
		component += length + 1;
	}
}

/* realpath as palloc'd text; NULL with errno set. */
static char *
real_path(const char *path)
{
	char *found = realpath(path, NULL);
	char *result;

	if (found == NULL)
		return NULL;
	result = pstrdup(found);
	free(found);
	return result;
}

/* Is `path` below `directory`, both free of links? */
static bool
is_below(const char *path, const char *directory)
{
	size_t length = strlen(directory);

	return strcmp(directory, "/") == 0 ||
		   (strncmp(path, directory, length) == 0 && path[length] == '/');
}

bool
pgft_inside_data_directory(const char *path)
{
	char *data = real_path(DataDir);
	char *parent = pstrdup(path);

	get_parent_directory(parent);
	parent = real_path(parent);
	return data != NULL && parent != NULL && (strcmp(parent, data) == 0 || is_below(parent, data));
}

bool
pgft_inside_model_directory(const char *path)
{
	char *directory = real_path(pgft_model_directory);
	char *file = real_path(path);

	return directory != NULL && file != NULL && is_below(file, directory);
}

char *
pgft_full_folder_path(const char *name)
{
	char *directory = pgft_model_directory[0] == '\0' ? NULL : real_path(pgft_model_directory);

	if (directory == NULL)
		return NULL;
	return psprintf("%s/" PGFT_FULL_FOLDER "%s%s", directory, name[0] == '\0' ? "" : "/", name);
}

/* Is this path one of a full model's, which is used by its name, by who has the right to? */
static bool
is_full_model(const char *path)
{
	char *folder = real_path(pgft_full_folder_path(""));

	return folder != NULL && is_below(path, folder);
}

/*
 * Messages name the file as its server's option does; where the directory is
 * on disk is nothing that every user may know.
 */
char *
pgft_model_path(const char *file, bool missing_ok)
{
	int level = missing_ok ? DEBUG1 : ERROR;
	const char *wrong = pgft_check_model_file(file);
	char *directory;
	char *path;

	if (wrong != NULL)
	{
		ereport(level, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("model file \"%s\" %s", file, wrong)));
		return NULL;
	}
	if (pgft_model_directory[0] == '\0')
	{
		ereport(level, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("pg_finetune.model_directory is not set"),
						errhint("Set it to the directory that holds the files of base models.")));
		return NULL;
	}
	directory = real_path(pgft_model_directory);
	if (directory == NULL)
	{
		ereport(level, (errcode_for_file_access(),
						errmsg("could not open the directory of model files: %m"),
						errhint("Check pg_finetune.model_directory.")));
		return NULL;
	}
	path = real_path(psprintf("%s/%s", directory, file));
	if (path == NULL)
	{
		ereport(level,
				(errcode_for_file_access(), errmsg("could not find model file \"%s\": %m", file),
				 errhint("It is looked for in pg_finetune.model_directory.")));
		return NULL;
	}
	if (!is_below(path, directory))
	{
		ereport(level,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("model file \"%s\" is outside of pg_finetune.model_directory", file)));
		return NULL;
	}
	if (is_full_model(path))
	{
		ereport(level, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("model file \"%s\" belongs to a full model", file),
						errhint("Use that model by its name.")));
		return NULL;
	}
	return path;
}

/* Write all of it, whatever the system takes at a time. */
static bool
write_all(int fd, const char *data, Size length)
{
	while (length > 0)
	{
		ssize_t written = write(fd, data, length);

		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
		{
			if (written == 0)
				errno = ENOSPC;
			return false;
		}
		data += written;
		length -= written;
	}
	return true;
}

void
pgft_write_file(const char *path, const char *data, Size length)
{
	int fd = OpenTransientFile(path, O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY);

	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not create file \"%s\": %m", path)));
	if (!write_all(fd, data, length) || pg_fsync(fd) != 0)
	{
		int save_errno = errno;

		CloseTransientFile(fd);
		unlink(path);
		errno = save_errno;
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not write file \"%s\": %m", path)));
	}
	if (CloseTransientFile(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not close file \"%s\": %m", path)));
}

void
pgft_remove_tree(const char *path)
{
	struct stat st;

	if (lstat(path, &st) == 0)
		rmtree(path, true);
}
