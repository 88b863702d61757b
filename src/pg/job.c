/*
 * job.c: what sessions do with jobs: create, show, describe, cancel, delete.
 *
 * All of it happens in the session's own transaction, with the rights of the
 * tables' owner once the caller's right to the job is checked.  Workers learn
 * of it when that transaction commits, through shared memory: a NOTIFY would
 * keep the transaction from being prepared.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "job.h"
#include "miscadmin.h"
#include "options.h"
#include "paths.h"
#include "pg_finetune.h"
#include "settings.h"
#include "shmem.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"

#define JOB_PREFIX "ft_"

/* What SHOW lists of a job d (a row of finetune.job_detail). */
#define SHOW_OBJECT                                                                              \
	"jsonb_build_object('id', d.job_id, 'status', d.status, 'phase', d.phase, 'model', d.model," \
	" 'base_model', d.base_model, 'created_on', d.created_at, 'progress', d.progress)"

/* What DESCRIBE adds. */
#define DESCRIBE_OBJECT                                                                          \
	SHOW_OBJECT                                                                                  \
	" || jsonb_build_object('finished_on', d.finished_at, 'owner', pg_get_userbyid(d.owner),"    \
	" 'training_data', d.training_query, 'validation_data', d.validation_query,"                 \
	" 'options', d.options, 'rows', d.rows, 'trained_tokens', d.trained_tokens,"                 \
	" 'training_result', CASE WHEN d.training_loss IS NOT NULL OR d.validation_loss IS NOT NULL" \
	" THEN jsonb_build_object('training_loss', d.training_loss,"                                 \
	" 'validation_loss', d.validation_loss,"                                                     \
	" 'validation_token_accuracy', d.validation_token_accuracy) END,"                            \
	" 'tokens_per_second', d.tokens_per_second, 'estimated_finish', d.estimated_finish,"         \
	" 'queue_position', d.queue_position, 'attempts', d.attempts, 'device', d.device,"           \
	" 'data_hash', d.data_hash)"                                                                 \
	" || CASE WHEN d.error IS NOT NULL THEN jsonb_build_object('error', d.error) ELSE '{}' END"

char *
pgft_job_name(const pg_uuid_t *id)
{
	char *uuid = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));

	return psprintf(JOB_PREFIX "%s", uuid);
}

void
pgft_job_parse_name(const char *name, pg_uuid_t *id)
{
	static const char hex[] = "0123456789abcdefABCDEF";
	const char *uuid = name + strlen(JOB_PREFIX);
	bool good = strncmp(name, JOB_PREFIX, strlen(JOB_PREFIX)) == 0 && strlen(uuid) == 36;

	for (int i = 0; good && i < 36; i++)
	{
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;

		good = dash ? uuid[i] == '-' : strchr(hex, uuid[i]) != NULL;
	}
	if (!good)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("\"%s\" is not the id of a job", name),
						errhint("finetune('CREATE', ...) returns it; finetune('SHOW') lists the "
								"jobs there are.")));
	*id = *DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(uuid)));
}

char *
pgft_job_directory(const pg_uuid_t *id)
{
	char *uuid = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));

	return pgft_work_path("jobs/%u-%s", MyDatabaseId, uuid);
}

/* ---- Where a job is at home ---- */

/*
 * A copy of this table has another of the three: instance in a copy of the
 * cluster, database after CREATE DATABASE ... TEMPLATE, table after a restore.
 * NULL where nothing is at home: no job is run on a standby, nor without the
 * library preloaded.
 */
static char *
here(void)
{
	const pg_uuid_t *instance = pgft_instance();

	if (instance == NULL || RecoveryInProgress())
		return NULL;
	return psprintf("%s/%u/%u",
					DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(instance))),
					MyDatabaseId, pgft_relation_oid("job"));
}

PG_FUNCTION_INFO_V1(pgft_here);
Datum
pgft_here(PG_FUNCTION_ARGS)
{
	char *home = here();

	if (home == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(home));
}

const char *
pgft_job_at_home(void)
{
	return pgft_has_column("job", "home") ? psprintf(" AND j.home = %s", quote_literal_cstr(here()))
										  : "";
}

bool
pgft_job_is_at_home(const pg_uuid_t *id)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};

	return pgft_select(psprintf("SELECT FROM finetune.job j WHERE j.id = $1%s", pgft_job_at_home()),
					   1, types, values) > 0;
}

void
pgft_job_settle_foreign(void)
{
	Oid types[] = {TEXTOID, TEXTOID};
	bool adopt = pgft_was_standby();
	PgftCatalog catalog;
	SPITupleTable *rows;
	uint64 count;

	pgft_job_begin(&catalog);
	if (!pgft_has_column("job", "home"))
	{
		pgft_job_finish(&catalog);
		return;
	}
	{
		char *home = here();
		/* adopted: of the same database and table, in the cluster that this one followed */
		Datum values[] = {CStringGetTextDatum(home), CStringGetTextDatum(strchr(home, '/'))};

		/* "Another home" as an index can find it: this is asked each time a worker starts */
		if (adopt)
			pgft_execute("UPDATE finetune.job SET home = $1, fruitless = 0"
						 " WHERE " PGFT_JOB_RUNNABLE " AND (home < $1 OR home > $1)"
						 " AND substr(home, strpos(home, '/')) = $2 RETURNING id",
						 2, types, values, NULL, SPI_OK_UPDATE_RETURNING);
		else
			pgft_execute("UPDATE finetune.job SET phase = 'paused'"
						 " WHERE " PGFT_JOB_RUNNABLE
						 " AND (home < $1 OR home > $1 OR home IS NULL) RETURNING id",
						 1, types, values, NULL, SPI_OK_UPDATE_RETURNING);
	}
	rows = SPI_tuptable;
	count = SPI_processed;
	for (uint64 i = 0; i < count; i++)
	{
		bool isnull;
		pg_uuid_t *id = DatumGetUUIDP(SPI_getbinval(rows->vals[i], rows->tupdesc, 1, &isnull));

		if (adopt)
			pgft_job_add_event(id, "info", "taken_over",
							   "this server was promoted, the job begins again", NULL);
		else
			pgft_job_add_event(id, "warning", "paused",
							   "job paused: it was created in another cluster or database", NULL);
		pgft_job_notify(id);
	}
	pgft_job_finish(&catalog);
}

void
pgft_job_notify(const pg_uuid_t *id)
{
	Async_Notify(PGFT_CHANNEL, pgft_job_name(id));
}

void
pgft_job_add_event(const pg_uuid_t *id, const char *level, const char *type, const char *message,
				   Jsonb *data)
{
	Oid types[] = {UUIDOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID};
	Datum values[] = {UUIDPGetDatum(id), CStringGetTextDatum(level), CStringGetTextDatum(type),
					  CStringGetTextDatum(message), PointerGetDatum(data)};

	pgft_follow("INSERT INTO finetune.event (job_id, number, level, type, message, data)"
				" SELECT $1, coalesce(max(number), 0) + 1, $2, $3, $4, $5"
				" FROM finetune.event WHERE job_id = $1",
				5, types, values, data ? "     " : "    n", SPI_OK_INSERT);
}

/*
 * One more job for this role?  Two sessions of a role ask in turn, the second
 * when the first's transaction has ended.
 */
static void
check_limit(Oid role)
{
	Oid types[] = {OIDOID};
	Datum values[] = {ObjectIdGetDatum(role)};
	int64 count;
	bool isnull;

	if (pgft_max_jobs_per_role == 0)
		return;
	LockSharedObject(AuthIdRelationId, role, 0, ShareUpdateExclusiveLock);
	pgft_select("SELECT count(*) FROM finetune.job j WHERE " PGFT_JOB_UNFINISHED
				" AND " PGFT_JOB_OWNER " = $1::regrole",
				1, types, values);
	count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (count >= pgft_max_jobs_per_role)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("role \"%s\" has " INT64_FORMAT " unfinished jobs, and may have %d",
						GetUserNameFromId(role, false), count, pgft_max_jobs_per_role),
				 errhint("Wait for one to end, or cancel one; pg_finetune.max_jobs_per_role is the "
						 "limit.")));
}

void
pgft_job_create(const PgftJobRequest *request)
{
	Oid owner = GetUserId();
	Oid types[] = {UUIDOID, UUIDOID, TEXTOID, UUIDOID,  TEXTOID, OIDOID,
				   TEXTOID, TEXTOID, TEXTOID, JSONBOID, INT4OID, TEXTOID};
	Datum values[12];
	char nulls[] = "            ";
	bool has_home;
	PgftCatalog catalog;

	/* The caller's user and search_path, before they are changed for SPI */
	values[5] = ObjectIdGetDatum(owner);
	values[6] = CStringGetTextDatum(GetConfigOption("search_path", false, false));

	pgft_catalog_enter(&catalog, false);
	check_limit(owner);
	values[0] = UUIDPGetDatum(&request->id);
	values[1] = UUIDPGetDatum(&request->model_id);
	values[2] = CStringGetTextDatum(request->model_name);
	values[3] = UUIDPGetDatum(&request->base->id);
	values[4] = CStringGetTextDatum(request->base->name);
	values[7] = CStringGetTextDatum(request->training_query);
	if (request->validation_query)
		values[8] = CStringGetTextDatum(request->validation_query);
	else
		nulls[8] = 'n';
	values[9] = PointerGetDatum(request->options);
	values[10] = Int32GetDatum(pgft_options_priority(request->options));
	values[11] = CStringGetTextDatum(here());
	has_home = pgft_has_column("job", "home");
	pgft_execute(psprintf("INSERT INTO finetune.job (id, model_id, model_name, base_id, base_name,"
						  " owner, search_path, training_query, validation_query, options,"
						  " priority%s) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11%s)",
						  has_home ? ", home" : "", has_home ? ", $12" : ""),
				 has_home ? 12 : 11, types, values, nulls, SPI_OK_INSERT);
	pgft_job_add_event(&request->id, "info", "created", "job created", NULL);
	pgft_catalog_leave(&catalog);

	pgft_look_for_jobs_at_commit();
}

/* The one value of the result of the last query, in the caller's memory context. */
static Jsonb *
take_jsonb(void)
{
	bool isnull;
	Datum datum = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);

	Assert(!isnull);
	return DatumGetJsonbP(SPI_datumTransfer(PointerGetDatum(DatumGetJsonbP(datum)), false, -1));
}

Jsonb *
pgft_job_show(void)
{
	Oid types[] = {OIDOID};
	Datum values[] = {ObjectIdGetDatum(GetUserId())};
	PgftCatalog catalog;
	Jsonb *jobs;

	AcceptInvalidationMessages();
	pgft_catalog_enter(&catalog, false);
	pgft_select("SELECT coalesce(jsonb_agg(" SHOW_OBJECT " ORDER BY d.created_at DESC, d.id),"
				" '[]') FROM finetune.job_detail d JOIN finetune.job j ON j.id = d.id"
				" WHERE pg_has_role($1, (" PGFT_JOB_OWNER ")::oid, 'USAGE')",
				1, types, values);
	jobs = take_jsonb();
	pgft_catalog_leave(&catalog);
	return jobs;
}

static void
no_such_job(const pg_uuid_t *id)
{
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
					errmsg("job \"%s\" does not exist", pgft_job_name(id))));
}

/* The object of one job, within SPI; another session may just have deleted it. */
static Jsonb *
select_description(const pg_uuid_t *id)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};

	if (pgft_select("SELECT " DESCRIBE_OBJECT " FROM finetune.job_detail d WHERE d.id = $1", 1,
					types, values) == 0)
		no_such_job(id);
	return take_jsonb();
}

Oid
pgft_job_owner(const pg_uuid_t *id)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};
	PgftCatalog catalog;
	Oid owner = InvalidOid;

	pgft_catalog_enter(&catalog, true);
	pgft_execute("SELECT (" PGFT_JOB_OWNER ")::oid FROM finetune.job j WHERE j.id = $1", 1, types,
				 values, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		bool isnull;

		owner = DatumGetObjectId(
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}
	pgft_catalog_leave(&catalog);
	return owner;
}

/* May the caller see and end this job?  An error if not. */
static void
check_right(const pg_uuid_t *id)
{
	Oid owner;

	/* Roles and servers as they are now, also later in one transaction */
	AcceptInvalidationMessages();
	owner = pgft_job_owner(id);
	if (!OidIsValid(owner))
		no_such_job(id);
	if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for job \"%s\"", pgft_job_name(id))));
}

Jsonb *
pgft_job_describe(const pg_uuid_t *id)
{
	PgftCatalog catalog;
	Jsonb *job;

	check_right(id);
	pgft_catalog_enter(&catalog, false);
	job = select_description(id);
	pgft_catalog_leave(&catalog);
	return job;
}

/*
 * Lock a job's model as DROP SERVER would: the server first, then the row, and
 * the job's row after them.  Everybody who ends a job keeps this order.
 */
static void
lock_model(const pg_uuid_t *model)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(model)};

	if (pgft_select("SELECT s.oid FROM finetune.model m"
					" JOIN pg_foreign_server s ON s.srvname = m.name WHERE m.id = $1",
					1, types, values) > 0)
	{
		bool isnull;
		Oid server = DatumGetObjectId(
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));

		LockDatabaseObject(ForeignServerRelationId, server, 0, AccessExclusiveLock);
	}
	pgft_select("SELECT FROM finetune.model WHERE id = $1 FOR UPDATE", 1, types, values);
}

Jsonb *
pgft_job_cancel(const pg_uuid_t *id)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};
	PgftCatalog catalog;
	pg_uuid_t model;
	Jsonb *job;
	bool isnull;

	check_right(id);
	pgft_catalog_enter(&catalog, false);
	if (pgft_select("SELECT model_id FROM finetune.job WHERE id = $1", 1, types, values) == 0)
		no_such_job(id);
	model = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	lock_model(&model);
	pgft_execute("UPDATE finetune.job j SET phase = 'cancelled',"
				 " finished_at = clock_timestamp(), owner = " PGFT_JOB_OWNER
				 " WHERE id = $1 AND " PGFT_JOB_UNFINISHED,
				 1, types, values, NULL, SPI_OK_UPDATE);
	if (SPI_processed > 0)
	{
		pgft_job_add_event(id, "info", "cancelled", "job cancelled", NULL);
		pgft_model_drop_unready(&model);
		pgft_cancel_job_at_commit(id);

		/* what a worker may have left is for another to clean */
		pgft_look_for_jobs_at_commit();
	}
	job = select_description(id);
	pgft_catalog_leave(&catalog);
	return job;
}

/* A change that an ended job cannot have; says whether it made any. */
static bool
change_unfinished(const pg_uuid_t *id, const char *update, int nargs, Oid *types, Datum *values)
{
	bool changed;

	pgft_execute(update, nargs, types, values, NULL, SPI_OK_UPDATE);
	changed = SPI_processed > 0;
	if (!changed && pgft_select("SELECT FROM finetune.job WHERE id = $1 AND " PGFT_JOB_UNFINISHED,
								1, types, values) == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("job \"%s\" has ended", pgft_job_name(id))));
	return changed;
}

/* Tables that version 1.0 made know of no pause. */
static void
require_pauses(void)
{
	if (!pgft_has_column("job", "home"))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("jobs cannot be paused before the extension is updated"),
						errhint("ALTER EXTENSION pg_finetune UPDATE.")));
}

Jsonb *
pgft_job_pause(const pg_uuid_t *id)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};
	PgftCatalog catalog;
	Jsonb *job;

	require_pauses();
	check_right(id);
	pgft_catalog_enter(&catalog, false);
	if (change_unfinished(
			id, "UPDATE finetune.job SET phase = 'paused' WHERE id = $1 AND " PGFT_JOB_RUNNABLE, 1,
			types, values))
	{
		pgft_job_add_event(id, "info", "paused", "job paused", NULL);
		pgft_cancel_job_at_commit(id);
	}
	job = select_description(id);
	pgft_catalog_leave(&catalog);
	return job;
}

/* Whoever resumes a job that came from elsewhere wants it to run here, from the start. */
Jsonb *
pgft_job_resume(const pg_uuid_t *id)
{
	Oid types[] = {UUIDOID, TEXTOID};
	Datum values[] = {UUIDPGetDatum(id), CStringGetTextDatum(here())};
	PgftCatalog catalog;
	Jsonb *job;

	require_pauses();
	check_right(id);
	pgft_catalog_enter(&catalog, false);
	if (change_unfinished(id,
						  "UPDATE finetune.job SET error = NULL, fruitless = 0, home = $2,"
						  " phase = CASE WHEN rows IS NOT NULL AND home = $2 THEN 'queued'"
						  " ELSE 'pending' END"
						  " WHERE id = $1 AND (phase = 'paused'"
						  " OR (" PGFT_JOB_RUNNABLE " AND home IS DISTINCT FROM $2))",
						  2, types, values))
	{
		pgft_job_add_event(id, "info", "resumed", "job waits to go on", NULL);
		pgft_look_for_jobs_at_commit();
	}
	job = select_description(id);
	pgft_catalog_leave(&catalog);
	return job;
}

Jsonb *
pgft_job_delete(const pg_uuid_t *id)
{
	Oid types[] = {UUIDOID};
	Datum values[] = {UUIDPGetDatum(id)};
	PgftCatalog catalog;
	Jsonb *job;
	bool at_home;

	check_right(id);
	pgft_catalog_enter(&catalog, false);
	pgft_select("SELECT FROM finetune.job WHERE id = $1 FOR UPDATE", 1, types, values);
	job = select_description(id);
	at_home = pgft_job_is_at_home(id);
	pgft_execute("DELETE FROM finetune.job WHERE id = $1 AND NOT (" PGFT_JOB_UNFINISHED ")", 1,
				 types, values, NULL, SPI_OK_DELETE);
	if (SPI_processed == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("job \"%s\" has not ended", pgft_job_name(id)),
						errhint("Cancel it first: finetune('CANCEL', '%s').", pgft_job_name(id))));
	/*
	 * its worker has done so, or died before it could; nobody needs it, whatever becomes of us,
	 * but for the job that this one is a copy of
	 */
	if (at_home)
		pgft_remove_tree(pgft_job_directory(id));
	pgft_catalog_leave(&catalog);
	return job;
}

void
pgft_job_model_dropped(const pg_uuid_t *model, Oid owner)
{
	Oid types[] = {UUIDOID, OIDOID};
	Datum values[] = {UUIDPGetDatum(model), ObjectIdGetDatum(owner)};
	PgftCatalog catalog;

	pgft_catalog_enter(&catalog, false);
	pgft_follow("UPDATE finetune.job SET owner = $2::regrole WHERE model_id = $1", 2, types, values,
				NULL, SPI_OK_UPDATE);
	pgft_follow("UPDATE finetune.job SET phase = 'cancelled', finished_at = clock_timestamp()"
				" WHERE model_id = $1 AND " PGFT_JOB_UNFINISHED " RETURNING id",
				1, types, values, NULL, SPI_OK_UPDATE_RETURNING);
	if (SPI_processed > 0)
	{
		bool isnull;
		pg_uuid_t id =
			*DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));

		pgft_job_add_event(&id, "info", "cancelled", "job cancelled: its model was dropped", NULL);
		pgft_cancel_job_at_commit(&id);
		pgft_look_for_jobs_at_commit();
	}
	pgft_catalog_leave(&catalog);
}
