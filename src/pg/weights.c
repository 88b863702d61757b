/*
 * weights.c: weights between disk and finetune.weights.
 *
 * Files of any size go through one buffer of a part's size, and a cancel is
 * heard between parts.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base_directory.h"
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

/* Parts fetched at a time when weights are written to disk */
#define FETCH_PARTS 4

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
read_part(int fd, char *buffer, const char *shown)
{
	int filled = 0;

	while (filled < PGFT_WEIGHTS_PART_SIZE)
	{
		ssize_t got = read(fd, buffer + filled, PGFT_WEIGHTS_PART_SIZE - filled);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			ereport(ERROR,
					(errcode_for_file_access(), errmsg("could not read file \"%s\": %m", shown)));
		if (got == 0)
			break;
		filled += got;
	}
	return filled;
}

/* Open a plain file; a named pipe is not waited for. */
static int
open_file(const char *path, const char *shown, int64 *size)
{
	int fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not open file \"%s\": %m", shown)));
	if (!S_ISREG(st.st_mode))
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("\"%s\" is not a regular file", shown)));
	*size = st.st_size;
	return fd;
}

typedef void (*PartFunction)(const char *file, const char *data, int length, void *arg);

/*
 * Go through a file part by part, adding it to the digest: the contents only,
 * or with its name and length if `name` is given.  `store` may be NULL.
 */
static void
walk_file(const char *path, const char *shown, const char *name, pg_cryptohash_ctx *digest,
		  PartFunction store, void *arg)
{
	char *buffer = palloc(PGFT_WEIGHTS_PART_SIZE);
	int64 left;
	int fd = open_file(path, shown, &left);

	if (name != NULL)
		digest_add_file(digest, name, left);

	/* An empty file is one part of no bytes, for its name must be stored too */
	do
	{
		int length = read_part(fd, buffer, shown);

		CHECK_FOR_INTERRUPTS();
		left -= length;
		digest_add(digest, buffer, length);
		if (store != NULL)
			store(name != NULL ? name : PGFT_BASE_FILE, buffer, length, arg);
		if (left < 0 || (left > 0 && length < PGFT_WEIGHTS_PART_SIZE))
			ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
							errmsg("file \"%s\" changed while it was read", shown)));
	} while (left > 0);
	CloseTransientFile(fd);
	pfree(buffer);
}

static char *
walk_directory(const char *directory, const char *shown, List *names, PartFunction store, void *arg)
{
	pg_cryptohash_ctx *digest = digest_start();
	ListCell *cell;

	foreach (cell, names)
	{
		char *name = lfirst(cell);
		char *path = psprintf("%s/%s", directory, name);

		walk_file(path, psprintf("%s/%s", shown, name), name, digest, store, arg);
	}
	return digest_finish(digest);
}

char *
pgft_weights_file_digest(const char *path, const char *shown)
{
	pg_cryptohash_ctx *digest = digest_start();

	walk_file(path, shown, NULL, digest, NULL, NULL);
	return digest_finish(digest);
}

char *
pgft_weights_base_digest(const char *path, const char *shown)
{
	if (pgft_is_directory(path))
		return walk_directory(path, shown, pgft_base_parts(path, shown), NULL, NULL);
	return pgft_weights_file_digest(path, shown);
}

/* ---- Into the table ---- */

typedef struct Storing
{
	const pg_uuid_t *model;
	SPIPlanPtr plan;
	int part;
	PgftGoOn go_on;
} Storing;

static void
check_go_on(PgftGoOn go_on)
{
	if (go_on != NULL && !go_on())
		ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED),
						errmsg("the storing of weights was interrupted")));
}

static void
store_part(const char *file, const char *data, int length, void *arg)
{
	Storing *storing = arg;
	text *name = cstring_to_text(file);
	bytea *value = (bytea *) cstring_to_text_with_len(data, length);
	Datum values[] = {UUIDPGetDatum(storing->model), Int32GetDatum(storing->part++),
					  PointerGetDatum(name), Int64GetDatum(part_crc(data, length)),
					  PointerGetDatum(value)};

	check_go_on(storing->go_on);
	if (SPI_execute_plan(storing->plan, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not store weights");
	pfree(name);
	pfree(value);
}

static void
begin_storing(Storing *storing)
{
	Oid types[] = {UUIDOID, INT4OID, TEXTOID, INT8OID, BYTEAOID};

	storing->plan = SPI_prepare("INSERT INTO finetune.weights (model_id, part, file, crc, data) "
								"VALUES ($1, $2, $3, $4, $5)",
								lengthof(types), types);
	if (storing->plan == NULL)
		elog(ERROR, "could not prepare the storing of weights");
}

static char *
store_files(const pg_uuid_t *model, const char *directory, List *names, PgftGoOn go_on)
{
	MemoryContext context = CurrentMemoryContext;
	Storing storing = {.model = model, .go_on = go_on};
	PgftCatalog catalog;
	char *digest;

	pgft_catalog_enter(&catalog, false);
	begin_storing(&storing);
	digest = MemoryContextStrdup(context,
								 walk_directory(directory, directory, names, store_part, &storing));
	pgft_catalog_leave(&catalog);
	return digest;
}

char *
pgft_weights_store(const pg_uuid_t *model, const char *directory)
{
	List *names = list_files(directory, false);

	if (names == NIL)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("directory \"%s\" holds no weights", directory)));
	return store_files(model, directory, names, NULL);
}

char *
pgft_weights_store_full(const pg_uuid_t *model, const char *directory, PgftGoOn go_on)
{
	return store_files(model, directory, pgft_written_parts(directory), go_on);
}

static void
delete_parts(const pg_uuid_t *model)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(model)};

	pgft_execute("DELETE FROM finetune.weights WHERE model_id = $1", 1, types, values, NULL,
				 SPI_OK_DELETE);
}

char *
pgft_weights_store_base(const pg_uuid_t *model, const char *path, const char *shown)
{
	MemoryContext context = CurrentMemoryContext;
	Storing storing = {.model = model};
	PgftCatalog catalog;
	char *hex;

	pgft_catalog_enter(&catalog, false);
	delete_parts(model);
	begin_storing(&storing);
	if (pgft_is_directory(path))
		hex = walk_directory(path, shown, pgft_base_parts(path, shown), store_part, &storing);
	else
	{
		pg_cryptohash_ctx *digest = digest_start();

		walk_file(path, shown, NULL, digest, store_part, &storing);
		hex = digest_finish(digest);
	}
	hex = MemoryContextStrdup(context, hex);
	pgft_catalog_leave(&catalog);
	return hex;
}

void
pgft_weights_remove(const pg_uuid_t *model)
{
	PgftCatalog catalog;

	pgft_catalog_enter(&catalog, false);
	delete_parts(model);
	pgft_catalog_leave(&catalog);
}

/* ---- Out of the table ---- */

/* A directory in the making */
typedef struct Writing
{
	const char *directory;
	bool base; /* only of files that a base may have */
	pg_cryptohash_ctx *digest;
	char *file; /* the file that is open, NULL if none */
	int fd;
	int next_part;
	PgftGoOn go_on; /* of copies */
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
	if (name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL ||
		(writing->base && strcmp(name, PGFT_BASE_FILE) != 0 && !pgft_is_base_part(name)))
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

static void
write_part(Writing *writing, int part, const char *name, const char *data, int length)
{
	if (writing->file == NULL || strcmp(strrchr(writing->file, '/') + 1, name) != 0)
		begin_file(writing, part, name);
	write_data(writing, data, length);
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
	if (writing->base)
		pgft_require_disk();
	if (length > PGFT_WEIGHTS_PART_SIZE || part_crc(VARDATA_ANY(data), length) != crc)
		bad_part(part, "is damaged");
	write_part(writing, part, name, VARDATA_ANY(data), length);
	digest_add(writing->digest, VARDATA_ANY(data), length);

	/* A small part stands in the row itself */
	if (data != (bytea *) DatumGetPointer(stored))
		pfree(data);
}

/*
 * Write the rows that were fetched, or finish if there were none; the error
 * that this ends with, or NULL.
 * What is wrong with a part, or with the disk, is not to be raised while the
 * catalog is open: who catches it, as try_complete() does, could not go on.
 */
static ErrorData *
write_rows(Writing *writing, MemoryContext context)
{
	ErrorData *volatile error = NULL;
	MemoryContext old_context = CurrentMemoryContext;

	PG_TRY();
	{
		for (uint64 i = 0; i < SPI_processed; i++)
			write_row(writing, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
		if (SPI_processed == 0)
			finish_file(writing);
	}
	PG_CATCH();
	{
		if (geterrcode() == ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		MemoryContextSwitchTo(old_context);
		if (writing->file != NULL && writing->fd >= 0)
			CloseTransientFile(writing->fd);
		writing->file = NULL;
	}
	PG_END_TRY();
	return error;
}

char *
pgft_weights_write(const pg_uuid_t *model, const char *directory, bool base)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(model)};
	Writing writing = {.directory = directory, .base = base};
	MemoryContext context = CurrentMemoryContext;
	PgftCatalog catalog;
	ErrorData *error;
	Portal portal;
	uint64 rows;

	pgft_catalog_enter(&catalog, true);
	writing.digest = digest_start();
	portal = SPI_cursor_open_with_args(NULL,
									   "SELECT part, file, crc, data FROM finetune.weights "
									   "WHERE model_id = $1 ORDER BY part",
									   1, types, values, NULL, true, 0);
	do
	{
		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, FETCH_PARTS);
		rows = SPI_processed;
		error = write_rows(&writing, context);
		SPI_freetuptable(SPI_tuptable);
	} while (rows > 0 && error == NULL);
	SPI_cursor_close(portal);
	pgft_catalog_leave(&catalog);
	if (error != NULL)
	{
		pg_cryptohash_free(writing.digest);
		ReThrowError(error);
	}
	return digest_finish(writing.digest);
}

static void
copy_part(const char *file, const char *data, int length, void *arg)
{
	Writing *writing = arg;

	check_go_on(writing->go_on);
	pgft_require_model_disk(length);
	write_part(writing, writing->next_part++, file, data, length);
}

char *
pgft_weights_copy_full(const char *from, const char *to, PgftGoOn go_on)
{
	Writing writing = {.directory = to, .base = true, .go_on = go_on};
	char *digest = walk_directory(from, from, pgft_written_parts(from), copy_part, &writing);

	finish_file(&writing);
	return digest;
}

bool
pgft_weights_are_in(const char *directory, const char *digest)
{
	List *names = list_files(directory, true);

	return names != NIL &&
		   strcmp(walk_directory(directory, directory, names, NULL, NULL), digest) == 0;
}

void
pgft_weights_differ(void)
{
	ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
					errmsg("the model's weights are not those that were stored"),
					errdetail("Their digest differs, although every part is sound.")));
}

void
pgft_weights_write_adapter(const pg_uuid_t *model, const char *digest, const char *directory)
{
	pgft_weights_write(model, directory, false);
	if (!pgft_weights_are_in(directory, digest))
		pgft_weights_differ();
	pgft_sync_directory(directory);
}
