/*
 * weights.c: adapters between disk and finetune.weights.
 *
 * Weights are immutable, so their digest names them: what lies in the cache
 * under a digest was verified when it was written, and is again when it is
 * handed to the engine.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "catalog.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "miscadmin.h"
#include "paths.h"
#include "port/pg_bswap.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "weights.h"

#define HEX_DIGEST_LENGTH (2 * PG_SHA256_DIGEST_LENGTH)

/* Parts fetched at a time when weights are written to the cache */
#define FETCH_PARTS 4

/* A directory in the making has this in its name */
#define TEMPORARY_MARK ".tmp."

/* How long directories stay in the cache, in seconds since they were used or begun */
#define KEEP_UNUSED_S (7 * 24 * 3600)
#define KEEP_UNFINISHED_S 3600

/* ---- The digest ---- */

static pg_cryptohash_ctx *
digest_start(void)
{
	pg_cryptohash_ctx *digest = pg_cryptohash_create(PG_SHA256);

	if (digest == NULL || pg_cryptohash_init(digest) < 0)
		elog(ERROR, "could not start SHA-256: %s", pg_cryptohash_error(digest));
	return digest;
}

static void
digest_add(pg_cryptohash_ctx *digest, const void *data, size_t length)
{
	if (pg_cryptohash_update(digest, data, length) < 0)
		elog(ERROR, "could not compute SHA-256: %s", pg_cryptohash_error(digest));
}

static void
digest_add_length(pg_cryptohash_ctx *digest, uint64 length)
{
	uint64 big_endian = pg_hton64(length);

	digest_add(digest, &big_endian, sizeof(big_endian));
}

/* A file's name and length; its contents follow. */
static void
digest_add_file(pg_cryptohash_ctx *digest, const char *name, uint64 length)
{
	digest_add_length(digest, strlen(name));
	digest_add(digest, name, strlen(name));
	digest_add_length(digest, length);
}

static char *
digest_finish(pg_cryptohash_ctx *digest)
{
	uint8 bytes[PG_SHA256_DIGEST_LENGTH];
	char *hex = palloc0(HEX_DIGEST_LENGTH + 1);

	if (pg_cryptohash_final(digest, bytes, sizeof(bytes)) < 0)
		elog(ERROR, "could not compute SHA-256: %s", pg_cryptohash_error(digest));
	pg_cryptohash_free(digest);
	hex_encode((char *) bytes, sizeof(bytes), hex);
	return hex;
}

static uint32
part_crc(const void *data, size_t length)
{
	pg_crc32c crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, data, length);
	FIN_CRC32C(crc);
	return crc;
}

/* ---- Directories ---- */

static int
compare_names(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

/* The names of the files of a directory, in order; NIL when it is not there. */
static List *
list_files(const char *directory, bool missing_ok)
{
	DIR *dir = AllocateDir(directory);
	struct dirent *entry;
	List *names = NIL;

	if (dir == NULL && errno == ENOENT && missing_ok)
		return NIL;
	while ((entry = ReadDir(dir, directory)) != NULL)
	{
		struct stat st;

		if (stat(psprintf("%s/%s", directory, entry->d_name), &st) == 0 && S_ISREG(st.st_mode))
			names = lappend(names, pstrdup(entry->d_name));
	}
	FreeDir(dir);
	list_sort(names, compare_names);
	return names;
}

/* Read up to a part; an error when that fails. */
static int
read_part(int fd, char *buffer, const char *path)
{
	int filled = 0;

	while (filled < PGFT_WEIGHTS_PART_SIZE)
	{
		ssize_t got = read(fd, buffer + filled, PGFT_WEIGHTS_PART_SIZE - filled);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			ereport(ERROR,
					(errcode_for_file_access(), errmsg("could not read file \"%s\": %m", path)));
		if (got == 0)
			break;
		filled += got;
	}
	return filled;
}

/*
 * Go through a directory's files part by part, adding them to the digest.
 * `store` may be NULL.
 */
typedef void (*PartFunction)(const char *file, const char *data, int length, void *arg);

static char *
walk_directory(const char *directory, List *names, PartFunction store, void *arg)
{
	pg_cryptohash_ctx *digest = digest_start();
	char *buffer = palloc(PGFT_WEIGHTS_PART_SIZE);
	ListCell *cell;

	foreach (cell, names)
	{
		char *name = lfirst(cell);
		char *path = psprintf("%s/%s", directory, name);
		int fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
		struct stat st;
		int64 left;

		if (fd < 0 || fstat(fd, &st) < 0)
			ereport(ERROR,
					(errcode_for_file_access(), errmsg("could not open file \"%s\": %m", path)));
		digest_add_file(digest, name, st.st_size);
		left = st.st_size;

		/* An empty file is one part of no bytes, for its name must be stored too */
		do
		{
			int length = read_part(fd, buffer, path);

			CHECK_FOR_INTERRUPTS();
			left -= length;
			digest_add(digest, buffer, length);
			if (store != NULL)
				store(name, buffer, length, arg);
			if (left > 0 && length < PGFT_WEIGHTS_PART_SIZE)
				ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
								errmsg("file \"%s\" changed while it was read", path)));
		} while (left > 0);
		CloseTransientFile(fd);
	}
	pfree(buffer);
	return digest_finish(digest);
}

/* ---- Into the table ---- */

typedef struct Storing
{
	const pg_uuid_t *model;
	SPIPlanPtr plan;
	int part;
} Storing;

static void
store_part(const char *file, const char *data, int length, void *arg)
{
	Storing *storing = arg;
	text *name = cstring_to_text(file);
	bytea *value = (bytea *) cstring_to_text_with_len(data, length);
	Datum values[] = {UUIDPGetDatum(storing->model), Int32GetDatum(storing->part++),
					  PointerGetDatum(name), Int64GetDatum(part_crc(data, length)),
					  PointerGetDatum(value)};

	if (SPI_execute_plan(storing->plan, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not store weights");
	pfree(name);
	pfree(value);
}

char *
pgft_weights_store(const pg_uuid_t *model, const char *directory)
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[] = {UUIDOID, INT4OID, TEXTOID, INT8OID, BYTEAOID};
	Storing storing = {.model = model};
	PgftCatalog catalog;
	List *names;
	char *digest;

	pgft_catalog_enter(&catalog, false);
	names = list_files(directory, false);
	if (names == NIL)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("directory \"%s\" holds no weights", directory)));
	storing.plan = SPI_prepare("INSERT INTO finetune.weights (model_id, part, file, crc, data) "
							   "VALUES ($1, $2, $3, $4, $5)",
							   lengthof(types), types);
	if (storing.plan == NULL)
		elog(ERROR, "could not prepare the storing of weights");
	digest = MemoryContextStrdup(context, walk_directory(directory, names, store_part, &storing));
	pgft_catalog_leave(&catalog);
	return digest;
}

/* ---- Out of the table ---- */

/* A directory in the making */
typedef struct Writing
{
	const char *directory;
	char *file; /* the file that is open, NULL if none */
	int fd;
	int next_part;
} Writing;

static void
bad_part(int part, const char *wrong)
{
	ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
					errmsg("part %d of the model's weights %s", part, wrong)));
}

static void
finish_file(Writing *writing)
{
	if (writing->file == NULL)
		return;
	if (pg_fsync(writing->fd) != 0 || CloseTransientFile(writing->fd) != 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not write file \"%s\": %m", writing->file)));
	writing->file = NULL;
}

static void
begin_file(Writing *writing, int part, const char *name)
{
	finish_file(writing);
	if (name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL)
		bad_part(part, "has a bad file name");
	writing->file = psprintf("%s/%s", writing->directory, name);
	writing->fd = OpenTransientFile(writing->file, O_WRONLY | O_CREAT | O_EXCL | PG_BINARY);
	if (writing->fd < 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not create file \"%s\": %m", writing->file)));
}

static void
write_data(Writing *writing, const char *data, int length)
{
	while (length > 0)
	{
		ssize_t written;

		errno = 0;
		written = write(writing->fd, data, length);
		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
		{
			/* A short write without an error means a full disk */
			if (errno == 0)
				errno = ENOSPC;
			ereport(ERROR, (errcode_for_file_access(),
							errmsg("could not write file \"%s\": %m", writing->file)));
		}
		data += written;
		length -= written;
	}
}

/* One row: part, file, crc, data. */
static void
write_row(Writing *writing, HeapTuple row, TupleDesc descriptor)
{
	bool is_null;
	int part = DatumGetInt32(SPI_getbinval(row, descriptor, 1, &is_null));
	char *name = SPI_getvalue(row, descriptor, 2);
	int64 crc = DatumGetInt64(SPI_getbinval(row, descriptor, 3, &is_null));
	Datum stored = SPI_getbinval(row, descriptor, 4, &is_null);
	bytea *data = DatumGetByteaPP(stored);
	int length = VARSIZE_ANY_EXHDR(data);

	if (part != writing->next_part)
		bad_part(writing->next_part, "is missing");
	writing->next_part++;
	if (length > PGFT_WEIGHTS_PART_SIZE || part_crc(VARDATA_ANY(data), length) != crc)
		bad_part(part, "is damaged");
	if (writing->file == NULL || strcmp(strrchr(writing->file, '/') + 1, name) != 0)
		begin_file(writing, part, name);
	write_data(writing, VARDATA_ANY(data), length);

	/* A small part stands in the row itself */
	if (data != (bytea *) DatumGetPointer(stored))
		pfree(data);
}

/* Write all parts of a model into a directory, which must be empty. */
static void
write_parts(const pg_uuid_t *model, const char *directory)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(model)};
	Writing writing = {.directory = directory};
	PgftCatalog catalog;
	Portal portal;

	pgft_catalog_enter(&catalog, true);
	portal = SPI_cursor_open_with_args(NULL,
									   "SELECT part, file, crc, data FROM finetune.weights "
									   "WHERE model_id = $1 ORDER BY part",
									   1, types, values, NULL, true, 0);
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, FETCH_PARTS);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
			write_row(&writing, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	finish_file(&writing);
	pgft_catalog_leave(&catalog);
}

/* Does this directory hold just these weights? */
static bool
verify_directory(const char *directory, const char *digest)
{
	List *names = list_files(directory, true);

	return names != NIL && strcmp(walk_directory(directory, names, NULL, NULL), digest) == 0;
}

/*
 * Write the weights to a temporary directory, verify them, and rename it.
 * Another session may do the same at the same time: either's result will do.
 */
static void
fill_cache(const pg_uuid_t *model, const char *digest, const char *path)
{
	char *temporary = psprintf("%s" TEMPORARY_MARK "%d", path, MyProcPid);

	pgft_remove_tree(temporary);
	pgft_require_disk();
	pgft_make_directory(temporary);
	PG_TRY();
	{
		write_parts(model, temporary);
		if (!verify_directory(temporary, digest))
			ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
							errmsg("the model's weights are not those that were stored"),
							errdetail("Their digest differs, although every part is sound.")));
		fsync_fname(temporary, true);
		if (rename(temporary, path) < 0 && errno != ENOTEMPTY && errno != EEXIST)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not rename directory \"%s\" to \"%s\": %m", temporary, path)));
	}
	PG_FINALLY();
	{
		pgft_remove_tree(temporary);
	}
	PG_END_TRY();
	fsync_fname(pgft_work_path("cache"), true);
}

char *
pgft_weights_to_cache(const pg_uuid_t *model, const char *digest)
{
	char *path;

	/* It becomes a file's name */
	if (strlen(digest) != HEX_DIGEST_LENGTH ||
		strspn(digest, "0123456789abcdef") != HEX_DIGEST_LENGTH)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("the digest of the model's weights is damaged")));
	path = pgft_work_path("cache/%s", digest);
	if (verify_directory(path, digest))
	{
		/* Its time says when it was used last */
		(void) utimes(path, NULL);
		return path;
	}
	pgft_make_work_directory();
	pgft_remove_tree(path);
	fill_cache(model, digest, path);
	return path;
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
