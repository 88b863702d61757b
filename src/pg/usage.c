/*
 * usage.c: the view finetune.usage: what the answers to each role by each model
 * have taken.
 *
 * Cumulative counters, as those of pg_stat_user_functions are: a hash table in
 * shared memory, of a fixed size, with an entry for each database, role and
 * model.  To count a request is to find its entry under a shared lock and to add
 * to atomic numbers, so it costs next to nothing, writes no row, and works in a
 * read-only transaction and on a standby, which counts its own.
 *
 * A request is counted when the memory that holds it goes, which happens however
 * it ends: an error, a cancelled statement, a cursor that is closed, the end of
 * the session.
 *
 * Models are known by their id, so a rename changes nothing; the name is kept
 * beside it for models that are dropped later.  When the table is full, the
 * entry that was longest unused makes room, and what it has counted goes to its
 * database's entry without role and model: sums stay right.
 *
 * The server worker saves the counters now and then, and the postmaster when it
 * ends, into a file of the work directory.  So they survive a restart, and a
 * crash but for the last minute, and are in no base backup.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "paths.h"
#include "pg_finetune.h"
#include "port/atomics.h"
#include "port/pg_crc32c.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "usage.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#define TRANCHE PGFT_LIBRARY "_usage"
#define MAX_ENTRIES 4096
#define FILE_NAME "usage"

/* Of the file; another number when what is in it changes */
#define FILE_MAGIC 0x50465531

typedef enum Counter
{
	REQUESTS,
	FAILED,
	CANCELLED,
	PROMPT_TOKENS,
	CACHED_TOKENS,
	COMPLETION_TOKENS,
	MICROSECONDS,
	COUNTERS
} Counter;

/* Without padding: it is hashed as bytes */
typedef struct UsageKey
{
	Oid database;
	Oid role; /* InvalidOid: of entries that made room; then model is zero, too */
	pg_uuid_t model;
} UsageKey;

/* Also the form in the file, where atomics are plain numbers */
typedef struct UsageEntry
{
	UsageKey key;
	NameData name; /* of the model, when it was asked last; written under the exclusive lock */
	TimestampTz since;
	pg_atomic_uint64 last; /* TimestampTz */
	pg_atomic_uint64 counters[COUNTERS];
} UsageEntry;

typedef struct UsageShared
{
	LWLock *lock;             /* over the table: exclusive to add, remove and rename entries */
	LWLock *save_lock;        /* who writes the file; taken before the other one */
	pg_atomic_uint32 unsaved; /* 1: there is something new */
} UsageShared;

typedef struct FileHead
{
	uint32 magic;
	uint32 count;
	pg_crc32c crc; /* of the entries */
} FileHead;

struct PgftUsage
{
	MemoryContextCallback on_reset;
	UsageKey key;
	NameData name;
	instr_time started;
	instr_time ended; /* zero: it has not */
	PgftUsageOutcome outcome;
	int64 prompt_tokens;
	int64 cached_tokens;
	int64 completion_tokens;
	bool counted;
};

static UsageShared *shared = NULL;
static HTAB *table = NULL;

/* ---- The table; all of these need the exclusive lock ---- */

static void
start_entry(UsageEntry *entry, const char *name, TimestampTz since)
{
	namestrcpy(&entry->name, name);
	entry->since = since;
	pg_atomic_init_u64(&entry->last, since);
	for (int i = 0; i < COUNTERS; i++)
		pg_atomic_init_u64(&entry->counters[i], 0);
}

/* Have the entry that was longest unused make room; false when there is none to do so. */
static bool
fold_oldest(void)
{
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;
	UsageEntry *rest;
	UsageEntry oldest = {0};
	UsageKey key = {0};
	bool found;

	hash_seq_init(&scan, table);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (OidIsValid(entry->key.role) &&
			(!OidIsValid(oldest.key.role) ||
			 pg_atomic_read_u64(&entry->last) < pg_atomic_read_u64(&oldest.last)))
			oldest = *entry;
	if (!OidIsValid(oldest.key.role))
		return false;

	hash_search(table, &oldest.key, HASH_REMOVE, NULL);
	key.database = oldest.key.database;
	rest = hash_search(table, &key, HASH_ENTER, &found);
	if (!found)
		start_entry(rest, "", oldest.since);
	rest->since = Min(rest->since, oldest.since);
	pg_atomic_write_u64(&rest->last,
						Max(pg_atomic_read_u64(&rest->last), pg_atomic_read_u64(&oldest.last)));
	for (int i = 0; i < COUNTERS; i++)
		pg_atomic_fetch_add_u64(&rest->counters[i], pg_atomic_read_u64(&oldest.counters[i]));
	return true;
}

/* The entry of a key, made if need be; NULL when there is no room to be had. */
static UsageEntry *
enter(const UsageKey *key, const char *name, TimestampTz now)
{
	UsageEntry *entry = hash_search(table, key, HASH_FIND, NULL);

	if (entry != NULL)
		return entry;
	while (hash_get_num_entries(table) >= MAX_ENTRIES)
		if (!fold_oldest())
			return NULL;
	entry = hash_search(table, key, HASH_ENTER, NULL);
	start_entry(entry, name, now);
	return entry;
}

/* ---- Counting ---- */

static void
add_to_entry(UsageEntry *entry, const PgftUsage *usage, TimestampTz now)
{
	instr_time elapsed = usage->ended;
	uint64 add[COUNTERS] = {
		[REQUESTS] = 1,
		[FAILED] = usage->outcome == PGFT_USAGE_FAILED,
		[CANCELLED] = usage->outcome == PGFT_USAGE_CANCELLED,
		[PROMPT_TOKENS] = usage->prompt_tokens,
		[CACHED_TOKENS] = usage->cached_tokens,
		[COMPLETION_TOKENS] = usage->completion_tokens,
	};

	INSTR_TIME_SUBTRACT(elapsed, usage->started);
	add[MICROSECONDS] = INSTR_TIME_GET_MICROSEC(elapsed);
	for (int i = 0; i < COUNTERS; i++)
		if (add[i] > 0)
			pg_atomic_fetch_add_u64(&entry->counters[i], add[i]);
	pg_atomic_write_u64(&entry->last, now);
}

void
pgft_usage_count(PgftUsage *usage)
{
	TimestampTz now;
	UsageEntry *entry;

	if (usage->counted)
		return;
	usage->counted = true;
	if (INSTR_TIME_IS_ZERO(usage->ended))
		INSTR_TIME_SET_CURRENT(usage->ended);
	now = GetCurrentTimestamp();

	LWLockAcquire(shared->lock, LW_SHARED);
	entry = hash_search(table, &usage->key, HASH_FIND, NULL);
	if (entry == NULL || strcmp(NameStr(entry->name), NameStr(usage->name)) != 0)
	{
		LWLockRelease(shared->lock);
		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		entry = enter(&usage->key, NameStr(usage->name), now);
		if (entry != NULL)
			entry->name = usage->name;
	}
	if (entry != NULL)
		add_to_entry(entry, usage, now);
	LWLockRelease(shared->lock);
	if (pg_atomic_read_u32(&shared->unsaved) == 0)
		pg_atomic_write_u32(&shared->unsaved, 1);
}

static void
on_reset(void *arg)
{
	pgft_usage_count(arg);
}

PgftUsage *
pgft_usage_begin(const PgftModel *model)
{
	PgftUsage *usage;

	pgft_require_preload();
	usage = palloc0(sizeof(PgftUsage));
	usage->key.database = MyDatabaseId;
	usage->key.role = GetUserId();
	usage->key.model = model->id;
	namestrcpy(&usage->name, model->name);
	INSTR_TIME_SET_CURRENT(usage->started);
	usage->outcome = PGFT_USAGE_CANCELLED;
	usage->on_reset.func = on_reset;
	usage->on_reset.arg = usage;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &usage->on_reset);
	return usage;
}

void
pgft_usage_tokens(PgftUsage *usage, int64 prompt, int64 cached, int64 completion)
{
	usage->prompt_tokens = Max(prompt, 0);
	usage->cached_tokens = Max(cached, 0);
	usage->completion_tokens = Max(completion, 0);
}

void
pgft_usage_end(PgftUsage *usage, PgftUsageOutcome outcome)
{
	usage->outcome = outcome;
	if (INSTR_TIME_IS_ZERO(usage->ended))
		INSTR_TIME_SET_CURRENT(usage->ended);
}

void
pgft_usage_again(PgftUsage *usage)
{
	usage->outcome = PGFT_USAGE_CANCELLED;
	INSTR_TIME_SET_ZERO(usage->ended);
}

/* ---- The file ---- */

/* Copies of all entries; returns their number.  `entries` has room for MAX_ENTRIES. */
static uint32
copy_entries(UsageEntry *entries)
{
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;
	uint32 count = 0;

	hash_seq_init(&scan, table);
	while ((entry = hash_seq_search(&scan)) != NULL)
		entries[count++] = *entry;
	return count;
}

static pg_crc32c
crc_of(const UsageEntry *entries, uint32 count)
{
	pg_crc32c crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, entries, count * sizeof(UsageEntry));
	FIN_CRC32C(crc);
	return crc;
}

/* Under a temporary name first, so that there is never half of it. */
static bool
write_file(const char *path, const UsageEntry *entries, uint32 count)
{
	char *temporary = psprintf("%s.tmp", path);
	FileHead head = {.magic = FILE_MAGIC, .count = count, .crc = crc_of(entries, count)};
	FILE *file = AllocateFile(temporary, PG_BINARY_W);
	bool written;

	if (file == NULL)
		return false;
	written = fwrite(&head, sizeof(head), 1, file) == 1 &&
			  fwrite(entries, sizeof(UsageEntry), count, file) == count;
	if (FreeFile(file) == 0 && written)
		return durable_rename(temporary, path, LOG) == 0;
	unlink(temporary);
	return false;
}

static void
save_entries(const UsageEntry *entries, uint32 count)
{
	char *path = pgft_work_path(FILE_NAME);

	if (!write_file(path, entries, count))
		ereport(LOG, (errcode_for_file_access(), errmsg("could not write file \"%s\": %m", path)));
}

void
pgft_usage_save(void)
{
	UsageEntry *entries;
	uint32 count;

	if (shared == NULL || pg_atomic_read_u32(&shared->unsaved) == 0)
		return;
	entries = palloc(MAX_ENTRIES * sizeof(UsageEntry));
	LWLockAcquire(shared->save_lock, LW_EXCLUSIVE);
	pg_atomic_write_u32(&shared->unsaved, 0);
	LWLockAcquire(shared->lock, LW_SHARED);
	count = copy_entries(entries);
	LWLockRelease(shared->lock);
	save_entries(entries, count);
	LWLockRelease(shared->save_lock);
	pfree(entries);
}

/* In the postmaster, when all others have ended: without locks, which need a process. */
static void
save_at_exit(int code, Datum arg)
{
	UsageEntry *entries;

	/* After a crash the table may be anything */
	if (code != 0 || pg_atomic_read_u32(&shared->unsaved) == 0)
		return;
	entries = malloc(MAX_ENTRIES * sizeof(UsageEntry));
	if (entries == NULL)
		return;
	save_entries(entries, copy_entries(entries));
	free(entries);
}

/* The entries of the file; NULL, with why in *wrong, when they cannot be had. */
static UsageEntry *
read_file(FILE *file, uint32 *count, const char **wrong)
{
	FileHead head;
	UsageEntry *entries;

	if (fread(&head, sizeof(head), 1, file) != 1 || head.magic != FILE_MAGIC ||
		head.count > MAX_ENTRIES)
	{
		*wrong = "it was not written by this version";
		return NULL;
	}
	entries = palloc(MAX_ENTRIES * sizeof(UsageEntry));
	*count = head.count;
	if (fread(entries, sizeof(UsageEntry), head.count, file) == head.count && fgetc(file) == EOF &&
		EQ_CRC32C(head.crc, crc_of(entries, head.count)))
		return entries;
	*wrong = "it is damaged";
	pfree(entries);
	return NULL;
}

/* Counters are of no use to who starts the server: what cannot be read is left out. */
static void
load_entries(void)
{
	char *path = pgft_work_path(FILE_NAME);
	FILE *file = AllocateFile(path, PG_BINARY_R);
	UsageEntry *entries;
	uint32 count;
	const char *wrong = "";

	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(), errmsg("could not open file \"%s\": %m", path)));
		return;
	}
	entries = read_file(file, &count, &wrong);
	FreeFile(file);
	if (entries == NULL)
	{
		ereport(LOG, (errmsg("ignoring file \"%s\": %s", path, wrong),
					  errdetail("The counters of finetune.usage begin anew.")));
		return;
	}
	for (uint32 i = 0; i < count; i++)
	{
		UsageEntry *entry = hash_search(table, &entries[i].key, HASH_ENTER, NULL);

		start_entry(entry, NameStr(entries[i].name), entries[i].since);
		pg_atomic_write_u64(&entry->last, pg_atomic_read_u64(&entries[i].last));
		for (int j = 0; j < COUNTERS; j++)
			pg_atomic_write_u64(&entry->counters[j], pg_atomic_read_u64(&entries[i].counters[j]));
	}
	pfree(entries);
}

/* ---- Shared memory ---- */

void
pgft_usage_shmem_request(void)
{
	RequestAddinShmemSpace(MAXALIGN(sizeof(UsageShared)));
	RequestAddinShmemSpace(hash_estimate_size(MAX_ENTRIES, sizeof(UsageEntry)));
	RequestNamedLWLockTranche(TRANCHE, 2);
}

/* AddinShmemInitLock is held. */
void
pgft_usage_shmem_startup(void)
{
	HASHCTL control = {.keysize = sizeof(UsageKey), .entrysize = sizeof(UsageEntry)};
	bool found;

	shared = ShmemInitStruct(PGFT_LIBRARY " usage", sizeof(UsageShared), &found);
	table = ShmemInitHash(PGFT_LIBRARY " usage table", MAX_ENTRIES, MAX_ENTRIES, &control,
						  HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	if (!found)
	{
		LWLockPadded *locks = GetNamedLWLockTranche(TRANCHE);

		shared->lock = &locks[0].lock;
		shared->save_lock = &locks[1].lock;
		pg_atomic_init_u32(&shared->unsaved, 0);
		load_entries();
	}
	if (!IsUnderPostmaster)
		on_shmem_exit(save_at_exit, (Datum) 0);
}

/* ---- SQL ---- */

/* May the current user see it?  What has no role is for those who may see all. */
static bool
may_see(const UsageEntry *entry)
{
	return (OidIsValid(entry->key.role) && has_privs_of_role(GetUserId(), entry->key.role)) ||
		   has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
}

static void
put_entry(ReturnSetInfo *result, UsageEntry *entry)
{
	bool whole = OidIsValid(entry->key.role);
	Datum values[] = {
		ObjectIdGetDatum(entry->key.role),
		UUIDPGetDatum(&entry->key.model),
		CStringGetTextDatum(NameStr(entry->name)),
		Int64GetDatum(pg_atomic_read_u64(&entry->counters[REQUESTS])),
		Int64GetDatum(pg_atomic_read_u64(&entry->counters[FAILED])),
		Int64GetDatum(pg_atomic_read_u64(&entry->counters[CANCELLED])),
		Int64GetDatum(pg_atomic_read_u64(&entry->counters[PROMPT_TOKENS])),
		Int64GetDatum(pg_atomic_read_u64(&entry->counters[CACHED_TOKENS])),
		Int64GetDatum(pg_atomic_read_u64(&entry->counters[COMPLETION_TOKENS])),
		Float8GetDatum(pg_atomic_read_u64(&entry->counters[MICROSECONDS]) / 1000.0),
		TimestampTzGetDatum(entry->since),
		TimestampTzGetDatum((TimestampTz) pg_atomic_read_u64(&entry->last)),
	};
	bool nulls[lengthof(values)] = {!whole, !whole, !whole};

	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* SQL: finetune.usage_counters() returns setof record */
PG_FUNCTION_INFO_V1(pgft_usage_counters);
Datum
pgft_usage_counters(PG_FUNCTION_ARGS)
{
	UsageEntry *entries;
	uint32 count;

	InitMaterializedSRF(fcinfo, 0);
	if (shared == NULL)
		return (Datum) 0;
	entries = palloc(MAX_ENTRIES * sizeof(UsageEntry));
	LWLockAcquire(shared->lock, LW_SHARED);
	count = copy_entries(entries);
	LWLockRelease(shared->lock);
	for (uint32 i = 0; i < count; i++)
		if (entries[i].key.database == MyDatabaseId && may_see(&entries[i]))
			put_entry((ReturnSetInfo *) fcinfo->resultinfo, &entries[i]);
	return (Datum) 0;
}

/* SQL: finetune.usage_reset() returns void */
PG_FUNCTION_INFO_V1(pgft_usage_reset);
Datum
pgft_usage_reset(PG_FUNCTION_ARGS)
{
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;

	if (shared == NULL)
		PG_RETURN_VOID();
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	hash_seq_init(&scan, table);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (entry->key.database == MyDatabaseId)
			hash_search(table, &entry->key, HASH_REMOVE, NULL);
	LWLockRelease(shared->lock);

	/* At once: a crash must not bring the old numbers back */
	pg_atomic_write_u32(&shared->unsaved, 1);
	pgft_usage_save();
	PG_RETURN_VOID();
}
