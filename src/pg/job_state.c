/*
 * job_state.c: a job's way through its phases, as its worker writes it.
 *
 * Who works on a job holds a lock for it, so that "nobody does" is exact and
 * no time-out is needed: a lock of the advisory class with a fourth field that
 * the SQL functions for advisory locks cannot set, held by the session, gone
 * with the process.  The claim counts the attempt in a transaction of its own,
 * before any work, so that a job that takes its worker down cannot do so for
 * ever.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "full_model.h"
#include "job.h"
#include "miscadmin.h"
#include "options.h"
#include "paths.h"
#include "pgstat.h"
#include "shmem.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "weights.h"

/* 1 and 2 are taken by pg_advisory_lock(bigint) and (int, int) */
#define JOB_LOCK_CLASS 0x4654

/* Is it this attempt's? For WHERE, with the id in $1 and the attempt in $2. */
#define MINE "id = $1 AND attempt = $2 AND " PGFT_JOB_RUNNABLE

/* Columns of a job j for read_row; its owner is its model's, while there is one. */
#define JOB_COLUMNS                                                                        \
	"j.id, j.model_id, j.base_id, (" PGFT_JOB_OWNER ")::oid,"                              \
	" j.search_path, j.training_query, j.validation_query, j.options, j.phase, j.attempt," \
	" j.fruitless, j.base_digest, coalesce(j.checkpoint_step, 0)"

void
pgft_job_begin(PgftCatalog *catalog)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgft_catalog_enter(catalog, false);
}

void
pgft_job_finish(PgftCatalog *catalog)
{
	pgft_catalog_leave(catalog);
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(true);
}

/* In a transaction, though the lock outlives it. */
static bool
lock_job(const pg_uuid_t *id)
{
	LOCKTAG tag;
	uint32 key[2];

	/* the first half of a random UUID is unique enough: a collision would only delay a job */
	memcpy(key, id->data, sizeof(key));
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, key[0], key[1], JOB_LOCK_CLASS);
	return LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
}

static void
unlock_job(const pg_uuid_t *id)
{
	LOCKTAG tag;
	uint32 key[2];

	memcpy(key, id->data, sizeof(key));
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, key[0], key[1], JOB_LOCK_CLASS);
	LockRelease(&tag, ExclusiveLock, true);
}

/* The first row of the last query, JOB_COLUMNS, as a job in `context`. */
static PgftJob *
read_row(MemoryContext context)
{
	HeapTuple row = SPI_tuptable->vals[0];
	TupleDesc desc = SPI_tuptable->tupdesc;
	MemoryContext old = MemoryContextSwitchTo(context);
	PgftJob *job = palloc0(sizeof(PgftJob));
	bool isnull;

	job->id = *DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull));
	job->name = pgft_job_name(&job->id);
	job->model_id = *DatumGetUUIDP(SPI_getbinval(row, desc, 2, &isnull));
	job->base_id = *DatumGetUUIDP(SPI_getbinval(row, desc, 3, &isnull));
	job->owner = DatumGetObjectId(SPI_getbinval(row, desc, 4, &isnull));
	job->search_path = TextDatumGetCString(SPI_getbinval(row, desc, 5, &isnull));
	job->training_query = TextDatumGetCString(SPI_getbinval(row, desc, 6, &isnull));
	job->validation_query = SPI_getvalue(row, desc, 7);
	job->options = DatumGetJsonbPCopy(SPI_getbinval(row, desc, 8, &isnull));
	job->phase = TextDatumGetCString(SPI_getbinval(row, desc, 9, &isnull));
	job->attempt = DatumGetInt32(SPI_getbinval(row, desc, 10, &isnull));
	job->fruitless = DatumGetInt32(SPI_getbinval(row, desc, 11, &isnull));
	job->base_digest = SPI_getvalue(row, desc, 12);
	job->checkpoint_step = DatumGetInt64(SPI_getbinval(row, desc, 13, &isnull));
	MemoryContextSwitchTo(old);
	return job;
}

PgftJob *
pgft_job_read(const pg_uuid_t *id, MemoryContext context)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};
	PgftCatalog catalog;
	PgftJob *job = NULL;

	pgft_job_begin(&catalog);
	pgft_select("SELECT " JOB_COLUMNS " FROM finetune.job j WHERE j.id = $1", 1, types, values);
	if (SPI_processed > 0)
		job = read_row(context);
	pgft_job_finish(&catalog);
	return job;
}

/* Lock the first job in the queue that nobody works on; false when there is none. */
static bool
find_job(pg_uuid_t *id)
{
	Portal portal;
	bool found = false;
	char *query = psprintf("SELECT id FROM finetune.job j WHERE " PGFT_JOB_RUNNABLE
						   "%s ORDER BY priority DESC, created_at, id FOR UPDATE SKIP LOCKED",
						   pgft_job_at_home());
	SPIPlanPtr plan = SPI_prepare_cursor(query, 0, NULL, CURSOR_OPT_FAST_PLAN);

	if (plan == NULL)
		elog(ERROR, "could not prepare the search for a job: %s",
			 SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, false);
	while (!found)
	{
		bool isnull;

		SPI_cursor_fetch(portal, true, 1);
		if (SPI_processed == 0)
			break;
		*id =
			*DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		found = lock_job(id);
	}
	SPI_cursor_close(portal);
	return found;
}

PgftJob *
pgft_job_claim(MemoryContext context, bool (*may_claim)(void), bool *refused)
{
	PgftCatalog catalog;
	PgftJob *job = NULL;
	pg_uuid_t id;

	*refused = false;
	pgft_job_begin(&catalog);
	if (!find_job(&id))
		;
	else if (!may_claim())
	{
		unlock_job(&id);
		*refused = true;
	}
	else
	{
		Oid types[] = {UUIDOID};
		Datum values[] = {UUIDPGetDatum(&id)};
		char *message;

		pgft_execute("UPDATE finetune.job j SET attempt = attempt + 1, fruitless = fruitless + 1,"
					 " owner = " PGFT_JOB_OWNER
					 ", has_directory = true, started_at = coalesce(started_at, clock_timestamp())"
					 " WHERE id = $1",
					 1, types, values, NULL, SPI_OK_UPDATE);
		pgft_select("SELECT " JOB_COLUMNS " FROM finetune.job j WHERE j.id = $1", 1, types, values);
		job = read_row(context);
		message = psprintf("attempt %d started", job->attempt);
		pgft_job_add_event(&id, "info", "started", message, NULL);
	}
	pgft_job_finish(&catalog);
	return job;
}

bool
pgft_job_update(const PgftJob *job, const char *set, int nargs, const Oid *types,
				const Datum *values, const char *nulls)
{
	Oid all_types[PGFT_JOB_UPDATE_ARGS + 2] = {UUIDOID, INT4OID};
	Datum all_values[PGFT_JOB_UPDATE_ARGS + 2] = {UUIDPGetDatum(&job->id),
												  Int32GetDatum(job->attempt)};
	char all_nulls[PGFT_JOB_UPDATE_ARGS + 2];

	Assert(nargs <= PGFT_JOB_UPDATE_ARGS);
	memset(all_nulls, ' ', sizeof(all_nulls));
	for (int i = 0; i < nargs; i++)
	{
		all_types[i + 2] = types[i];
		all_values[i + 2] = values[i];
		if (nulls)
			all_nulls[i + 2] = nulls[i];
	}
	pgft_execute(psprintf("UPDATE finetune.job j SET %s WHERE " MINE, set), nargs + 2, all_types,
				 all_values, all_nulls, SPI_OK_UPDATE);
	return SPI_processed > 0;
}

bool
pgft_job_is_mine(const PgftJob *job)
{
	Oid types[] = {UUIDOID, INT4OID};
	Datum values[] = {UUIDPGetDatum(&job->id), Int32GetDatum(job->attempt)};

	pgft_select("SELECT FROM finetune.job WHERE " MINE " FOR NO KEY UPDATE", 2, types, values);
	return SPI_processed > 0;
}

PgftJobHold
pgft_job_hold(const PgftJob *job)
{
	Oid types[] = {UUIDOID, INT4OID};
	Datum values[] = {UUIDPGetDatum(&job->id), Int32GetDatum(job->attempt)};
	PgftJobHold hold = PGFT_JOB_GONE;
	PgftCatalog catalog;

	pgft_job_begin(&catalog);
	if (pgft_job_is_mine(job))
		hold = PGFT_JOB_MINE;
	else if (pgft_select("SELECT FROM finetune.job"
						 " WHERE id = $1 AND attempt = $2 AND phase = 'paused'",
						 2, types, values) > 0)
		hold = PGFT_JOB_PAUSED;
	pgft_job_finish(&catalog);
	return hold;
}

bool
pgft_job_next_attempt(PgftJob *job)
{
	PgftCatalog catalog;
	bool mine;

	pgft_job_begin(&catalog);
	mine = pgft_job_update(job, "attempt = attempt + 1, fruitless = fruitless + 1", 0, NULL, NULL,
						   NULL);
	if (mine)
	{
		job->attempt++;
		job->fruitless++;
		pgft_job_add_event(&job->id, "info", "started",
						   psprintf("attempt %d started", job->attempt), NULL);
	}
	pgft_job_finish(&catalog);
	return mine;
}

bool
pgft_job_release_attempt(PgftJob *job, const char *message)
{
	PgftCatalog catalog;
	bool mine;

	pgft_job_begin(&catalog);
	mine = pgft_job_update(job, "fruitless = greatest(fruitless - 1, 0)", 0, NULL, NULL, NULL);
	if (mine)
	{
		job->fruitless = Max(job->fruitless - 1, 0);
		pgft_job_add_event(&job->id, "info", "interrupted", message, NULL);
	}
	pgft_job_finish(&catalog);
	return mine;
}

bool
pgft_job_set_phase(PgftJob *job, const char *phase, const char *message)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(phase)};
	PgftCatalog catalog;
	bool mine;

	pgft_job_begin(&catalog);
	mine = pgft_job_update(job, "phase = $3", 1, types, values, NULL);
	if (mine)
	{
		job->phase = phase;
		pgft_job_add_event(&job->id, "info", phase, message, NULL);
		pgft_job_notify(&job->id);
	}
	pgft_job_finish(&catalog);
	return mine;
}

/* Set what an error makes of the job, with the error: $3 code, $4 message, $5 hint. */
static bool
stop_by_error(PgftJob *job, const char *set, const char *level, const char *type, int sqlstate,
			  const char *message, const char *hint)
{
	Oid types[] = {TEXTOID, TEXTOID, TEXTOID};
	PgftCatalog catalog;
	bool mine;

	pgft_job_begin(&catalog);
	{
		Datum values[] = {CStringGetTextDatum(unpack_sql_state(sqlstate)),
						  CStringGetTextDatum(message), CStringGetTextDatum(hint ? hint : "")};

		mine = pgft_job_update(job,
							   psprintf("%s, error = jsonb_build_object('code', $3, 'message', $4,"
										" 'hint', nullif($5, ''))",
										set),
							   3, types, values, NULL);
	}
	if (mine)
	{
		pgft_job_add_event(&job->id, level, type, message, NULL);
		pgft_job_notify(&job->id);
	}
	pgft_job_finish(&catalog);
	return mine;
}

bool
pgft_job_fail(PgftJob *job, int sqlstate, const char *message, const char *hint)
{
	return stop_by_error(
		job, "phase = 'failed', finished_at = clock_timestamp(), owner = " PGFT_JOB_OWNER, "error",
		"failed", sqlstate, message, hint);
}

bool
pgft_job_pause_by_error(PgftJob *job, int sqlstate, const char *message, const char *hint)
{
	return stop_by_error(job, "phase = 'paused'", "warning", "paused", sqlstate, message, hint);
}

void
pgft_job_note(PgftJob *job, const char *level, const char *type, const char *message)
{
	PgftCatalog catalog;

	pgft_job_begin(&catalog);
	if (pgft_job_is_mine(job))
		pgft_job_add_event(&job->id, level, type, message, NULL);
	pgft_job_finish(&catalog);
}

/* What the row has gathered about the trained model. */
static void
read_facts(const PgftJob *job, PgftModelFacts *facts)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(&job->id)};
	HeapTuple row;
	TupleDesc desc;
	double *numbers[] = {&facts->training_loss, &facts->validation_loss,
						 &facts->validation_token_accuracy};
	bool isnull;
	Datum datum;

	pgft_select("SELECT base_digest, architecture, parameters, training_loss, validation_loss,"
				" validation_token_accuracy FROM finetune.job WHERE id = $1",
				1, types, values);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	facts->base_digest = SPI_getvalue(row, desc, 1);
	facts->architecture = SPI_getvalue(row, desc, 2);
	datum = SPI_getbinval(row, desc, 3, &isnull);
	facts->parameters = isnull ? 0 : DatumGetInt64(datum);
	for (int i = 0; i < lengthof(numbers); i++)
	{
		datum = SPI_getbinval(row, desc, i + 4, &isnull);
		*numbers[i] = isnull ? get_float8_nan() : DatumGetFloat8(datum);
	}
}

/* What a full model takes over from its base's server, which may be another's tomorrow. */
static void
add_base_facts(const PgftJob *job, PgftModelFacts *facts)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(&job->base_id)};
	PgftModel *base = pgft_model_by_id(&job->base_id);

	if (base == NULL)
		return;
	facts->chat_template = base->chat_template;
	facts->context_length = base->context_length;
	if (facts->context_length == 0 &&
		pgft_select("SELECT context_length FROM finetune.model WHERE id = $1", 1, types, values) >
			0)
	{
		bool isnull;
		Datum datum = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);

		facts->context_length = isnull ? 0 : DatumGetInt32(datum);
	}
}

/* Keep the weights as files, in a transaction that has no snapshot to hold; their digest. */
static char *
keep_as_files(PgftJob *job, const char *directory, PgftGoOn go_on)
{
	MemoryContext context = CurrentMemoryContext;
	char *digest;

	StartTransactionCommand();
	digest = MemoryContextStrdup(context, pgft_full_keep(&job->id, directory, go_on));
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return digest;
}

/* Begin the transaction, and store the weights; their digest. */
static char *
begin_with_weights(PgftJob *job, const char *directory, PgftGoOn go_on, PgftCatalog *catalog)
{
	bool full = pgft_options_full(job->options);
	char *digest = NULL;

	/* files come before the row that names them */
	if (full && pgft_options_as_files(job->options))
		digest = keep_as_files(job, directory, go_on);
	pgft_job_begin(catalog);
	if (digest != NULL)
		return digest;
	return full ? pgft_weights_store_full(&job->model_id, directory, go_on)
				: pgft_weights_store(&job->model_id, directory);
}

/*
 * The weights come first, for they may take long, and who drops the model or
 * cancels the job meanwhile must not wait for them.  Then the model's row is
 * locked before the job's, as by DROP SERVER and CANCEL, so that whoever comes
 * second waits, and then finds the job ended.  Where that is us, nothing of the
 * transaction stays.
 */
bool
pgft_job_complete(PgftJob *job, const char *directory, PgftGoOn go_on)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(&job->model_id)};
	PgftModelFacts facts = {0};
	PgftCatalog catalog;

	facts.weights_digest = begin_with_weights(job, directory, go_on, &catalog);
	pgft_select("SELECT FROM finetune.model WHERE id = $1 FOR UPDATE", 1, types, values);
	if (SPI_processed == 0 || !pgft_job_is_mine(job))
	{
		pgft_catalog_leave(&catalog);
		PopActiveSnapshot();
		AbortCurrentTransaction();
		return false;
	}
	read_facts(job, &facts);
	if (pgft_options_full(job->options))
		add_base_facts(job, &facts);
	if (!pgft_model_set_ready(&job->model_id, &facts))
		elog(ERROR, "model of job \"%s\" vanished while locked", job->name);
	pgft_job_update(job,
					"phase = 'completed', finished_at = clock_timestamp(),"
					" owner = " PGFT_JOB_OWNER,
					0, NULL, NULL, NULL);
	pgft_job_add_event(&job->id, "info", "completed", "weights stored, model ready", NULL);
	pgft_job_notify(&job->id);
	pgft_job_finish(&catalog);
	return true;
}

/* The model of an ended job that has none of the weights it was made for. */
static bool
find_leftover_model(const pg_uuid_t *id, pg_uuid_t *model)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};
	PgftCatalog catalog;
	bool found;

	pgft_job_begin(&catalog);
	pgft_select("SELECT m.id FROM finetune.job j JOIN finetune.model m ON m.id = j.model_id"
				" WHERE j.id = $1 AND j.phase IN ('failed', 'cancelled')"
				" AND m.weights_digest IS NULL",
				1, types, values);
	found = SPI_processed > 0;
	if (found)
	{
		bool isnull;

		*model =
			*DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}
	pgft_job_finish(&catalog);
	return found;
}

void
pgft_job_clean(const pg_uuid_t *id)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};
	PgftCatalog catalog;
	pg_uuid_t model;

	if (find_leftover_model(id, &model))
	{
		pgft_job_begin(&catalog);
		pgft_model_drop_unready(&model);
		pgft_job_finish(&catalog);
	}
	pgft_remove_tree(pgft_job_directory(id));
	pgft_full_clean(id);

	pgft_job_begin(&catalog);
	pgft_execute("UPDATE finetune.job SET has_directory = false"
				 " WHERE id = $1 AND NOT (" PGFT_JOB_UNFINISHED ") RETURNING phase",
				 1, types, values, NULL, SPI_OK_UPDATE_RETURNING);
	/* the session that cancelled it could not say so */
	if (SPI_processed > 0 &&
		strcmp(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1), "cancelled") == 0)
		pgft_job_notify(id);
	pgft_job_finish(&catalog);
}

void
pgft_job_clean_all(void)
{
	PgftCatalog catalog;
	pg_uuid_t *ids = NULL;
	uint64 count;

	pgft_job_begin(&catalog);
	pgft_select(
		psprintf("SELECT id FROM finetune.job j WHERE has_directory AND NOT (" PGFT_JOB_UNFINISHED
				 ")%s",
				 pgft_job_at_home()),
		0, NULL, NULL);
	count = SPI_processed;
	if (count > 0)
		ids = MemoryContextAlloc(TopMemoryContext, count * sizeof(pg_uuid_t));
	for (uint64 i = 0; i < count; i++)
	{
		bool isnull;

		ids[i] =
			*DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	}
	pgft_job_finish(&catalog);

	for (uint64 i = 0; i < count; i++)
	{
		bool locked;

		/* one that its own worker still holds is that worker's to clean */
		StartTransactionCommand();
		locked = lock_job(&ids[i]);
		CommitTransactionCommand();
		if (!locked)
			continue;
		pgft_job_clean(&ids[i]);
		unlock_job(&ids[i]);
	}
	if (ids)
		pfree(ids);
}
