/*
 * weights_cache.c: weights out of finetune.weights as files for an engine.
 *
 * Weights are immutable, so their digest names them: what lies in the cache
 * under a digest was verified when it was written, and came there by a rename.
 * Adapters are small and are verified again when they are handed to an engine;
 * of a base the engine computes the digest anyhow, and what is damaged is found
 * out and written again after it has said so; a full model is treated as a base.
 *
 * Who writes an entry holds its lock, so that of many sessions that want a base
 * of gigabytes one writes it.  The lock is of the advisory class, with a fourth
 * field that no SQL function can set.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "common/sha2.h"
#include "miscadmin.h"
#include "paths.h"
#include "storage/fd.h"
#include "storage/lock.h"
#include "weights.h"

#define HEX_DIGEST_LENGTH (2 * PG_SHA256_DIGEST_LENGTH)
#define CACHE_LOCK_CLASS 0x4656

/* A directory in the making has this in its name */
#define TEMPORARY_MARK ".tmp."

/* How long directories stay in the cache, in seconds since they were used or begun */
#define KEEP_UNUSED_S (7 * 24 * 3600)
#define KEEP_UNFINISHED_S 3600

/* How exactly the time of use is kept */
#define TOUCH_S 3600

char *
pgft_weights_temporary(const char *name)
{
	return pgft_work_path("cache/%s" TEMPORARY_MARK "%d", name, MyProcPid);
}

/* Where an entry is, or would be. */
static char *
entry_path(const char *digest)
{
	/* It becomes a file's name */
	if (strlen(digest) != HEX_DIGEST_LENGTH ||
		strspn(digest, "0123456789abcdef") != HEX_DIGEST_LENGTH)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("the digest of the model's weights is damaged")));
	return pgft_work_path("cache/%s", digest);
}

/* An entry's time says when it was used last. */
static void
touch(const char *path)
{
	struct stat st;

	if (stat(path, &st) == 0 && time(NULL) - st.st_mtime > TOUCH_S)
		(void) utimes(path, NULL);
}

static bool
is_regular(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

/* The file of an entry whose base is one file, whether it is there or not. */
static char *
file_of(const char *entry)
{
	return psprintf("%s/%s", entry, PGFT_BASE_FILE);
}

/* Write a base's file, or its directory's files, verified. */
static void
write_base(const pg_uuid_t *model, const char *digest, const char *directory)
{
	char *contents = pgft_weights_write(model, directory, true);
	bool same = is_regular(file_of(directory)) ? strcmp(contents, digest) == 0
											   : pgft_weights_are_in(directory, digest);

	if (!same)
		pgft_weights_differ();
}

/* Write the weights to a temporary directory, verify them, and rename it. */
static void
write_entry(const pg_uuid_t *model, const char *digest, const char *path, bool base)
{
	char *temporary = pgft_weights_temporary(digest);

	pgft_make_work_directory();
	pgft_remove_tree(path);
	pgft_remove_tree(temporary);
	pgft_require_disk();
	pgft_make_directory(temporary);
	PG_TRY();
	{
		if (base)
			write_base(model, digest, temporary);
		else
			pgft_weights_write_adapter(model, digest, temporary);
		pgft_sync_directory(temporary);
		if (rename(temporary, path) < 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not rename directory \"%s\" to \"%s\": %m", temporary, path)));
	}
	PG_FINALLY();
	{
		pgft_remove_tree(temporary);
	}
	PG_END_TRY();
	pgft_sync_directory(pgft_work_path("cache"));
}

static bool
base_is_there(const char *path, const char *digest, bool verify)
{
	char *file = file_of(path);

	if (is_regular(file))
		return !verify || strcmp(pgft_weights_file_digest(file, file), digest) == 0;
	if (!is_regular(psprintf("%s/config.json", path)))
		return false;
	return !verify || pgft_weights_are_in(path, digest);
}

static bool
is_there(const char *path, const char *digest, bool base, bool verify)
{
	if (base)
		return base_is_there(path, digest, verify);
	return pgft_weights_are_in(path, digest);
}

/* The entry's path; an entry that is not there is written, by one session at a time. */
static char *
find_or_write(const pg_uuid_t *model, const char *digest, bool base, bool verify, bool *written)
{
	char *path = entry_path(digest);
	uint64 key = strtoul(psprintf("%.16s", digest), NULL, 16);
	LOCKTAG tag;

	*written = false;
	if (!is_there(path, digest, base, verify))
	{
		/* for all databases: they share the cache */
		SET_LOCKTAG_ADVISORY(tag, InvalidOid, (uint32) (key >> 32), (uint32) key, CACHE_LOCK_CLASS);
		LockAcquire(&tag, ExclusiveLock, false, false);
		PG_TRY();
		{
			if (!is_there(path, digest, base, verify))
			{
				write_entry(model, digest, path, base);
				*written = true;
			}
		}
		PG_FINALLY();
		{
			/* also where the error is caught and the transaction goes on */
			LockRelease(&tag, ExclusiveLock, false);
		}
		PG_END_TRY();
	}
	touch(path);
	return path;
}

char *
pgft_weights_to_cache(const pg_uuid_t *model, const char *digest)
{
	bool written;

	return find_or_write(model, digest, false, true, &written);
}

char *
pgft_weights_base_to_cache(const pg_uuid_t *model, const char *digest, bool verify, bool *written)
{
	bool is_new;
	char *path = find_or_write(model, digest, true, verify, &is_new);

	if (written != NULL)
		*written = is_new;
	return is_regular(file_of(path)) ? file_of(path) : path;
}

void
pgft_weights_prune_cache(void)
{
	char *cache = pgft_work_path("cache");
	DIR *dir = AllocateDir(cache);
	struct dirent *entry;
	time_t now = time(NULL);

	while (dir != NULL && (entry = ReadDir(dir, cache)) != NULL)
	{
		char *path = psprintf("%s/%s", cache, entry->d_name);
		bool unfinished = strstr(entry->d_name, TEMPORARY_MARK) != NULL;
		struct stat st;

		if (entry->d_name[0] != '.' && stat(path, &st) == 0 && S_ISDIR(st.st_mode) &&
			now - st.st_mtime > (unfinished ? KEEP_UNFINISHED_S : KEEP_UNUSED_S))
			pgft_remove_tree(path);
	}
	if (dir != NULL)
		FreeDir(dir);
}
