/*
 * job.h: rows of finetune.job.
 *
 * The row is the queue, the state and the history of a job.  Sessions create,
 * show, cancel and delete; a worker claims a job and moves it on.  Every write
 * of a worker names its attempt, and changes nothing once the job is
 * somebody else's or has ended.
 */
#ifndef PGFT_JOB_H
#define PGFT_JOB_H

#include "catalog.h"
#include "model.h"
#include "pg_finetune.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"
#include "weights.h"

/* Attempts without a new checkpoint after which a job has failed. */
#define PGFT_JOB_MAX_ATTEMPTS 3

/* In SQL: a job that a worker may work on; a job that has not ended. */
#define PGFT_JOB_RUNNABLE "phase IN ('pending', 'queued', 'running', 'uploading')"
#define PGFT_JOB_UNFINISHED "phase NOT IN ('completed', 'failed', 'cancelled')"

/*
 * In SQL, for a job j: who owns its model, or owned it when last asked.  Jobs
 * follow their models' owners; the history keeps the last.
 */
#define PGFT_JOB_OWNER                                                           \
	"coalesce((SELECT s.srvowner FROM finetune.model m JOIN pg_foreign_server s" \
	" ON s.srvname = m.name::name JOIN pg_foreign_data_wrapper w"                \
	" ON w.oid = s.srvfdw AND w.fdwname = '" PGFT_WRAPPER                        \
	"' WHERE m.id = j.model_id), j.owner::oid)::regrole"

/* What a session asks for. */
typedef struct PgftJobRequest
{
	pg_uuid_t id;
	pg_uuid_t model_id;
	const char *model_name;
	const PgftModel *base;
	const char *training_query;
	const char *validation_query; /* NULL: none */
	Jsonb *options;               /* resolved */
} PgftJobRequest;

/* A job as its worker and its reader know it. */
typedef struct PgftJob
{
	pg_uuid_t id;
	char *name; /* "ft_" and the id, as users know it */
	pg_uuid_t model_id;
	pg_uuid_t base_id;
	Oid owner; /* of the model now */
	char *search_path;
	char *training_query;
	char *validation_query; /* NULL: none */
	Jsonb *options;
	const char *phase; /* as it was found, or as this worker left it */
	int attempt;
	int fruitless;         /* attempts since the last checkpoint, this one included */
	char *base_digest;     /* of the base's file at the first attempt, NULL before it */
	int64 checkpoint_step; /* of the last checkpoint that was written down; 0: none */
} PgftJob;

/* "ft_<uuid>" (palloc'd). */
extern char *pgft_job_name(const pg_uuid_t *id);

/* The reverse; 22023 when the text is no job id. */
extern void pgft_job_parse_name(const char *name, pg_uuid_t *id);

/*
 * A job runs only where it was created: a copy of its row, by a restore, by
 * pg_upgrade, in a copied database or in a subscriber, is paused.  at_home is a
 * condition on a job j for the end of a WHERE (palloc'd): is this where it was
 * created?  A catalog of version 1.0 does not know; then it is.
 */
extern const char *pgft_job_at_home(void);

/* The same of one job; between pgft_catalog_enter and leave. */
extern bool pgft_job_is_at_home(const pg_uuid_t *id);

/* ---- Sessions; the rights are those of the current user ---- */

/* Insert the row; the launcher hears of it when the transaction commits. */
extern void pgft_job_create(const PgftJobRequest *request);

/* The caller's jobs, newest first, as an array. */
extern Jsonb *pgft_job_show(void);

/*
 * One job.  42704 when there is none of this id; 42501 when it is neither the
 * caller's nor that of a role the caller is a member of.  The same for the
 * others.
 */
extern Jsonb *pgft_job_describe(const pg_uuid_t *id);

/* Cancel a job that has not ended, and drop its model; returns what describe does. */
extern Jsonb *pgft_job_cancel(const pg_uuid_t *id);

/*
 * Pause a job; it gives its place up and keeps what it has.  Resume one: it
 * waits for a place again.  55000 when it has ended; nothing happens to one
 * that is paused already, or is not.  Both return what describe does.
 */
extern Jsonb *pgft_job_pause(const pg_uuid_t *id);
extern Jsonb *pgft_job_resume(const pg_uuid_t *id);

/* Delete the history of a job that has ended (55000 else); returns what describe did. */
extern Jsonb *pgft_job_delete(const pg_uuid_t *id);

/*
 * A model of this owner is being dropped: its unfinished job is cancelled with
 * it, and the job's history stays the owner's.  For the event trigger, after
 * the row of finetune.model is gone.
 */
extern void pgft_job_model_dropped(const pg_uuid_t *model, Oid owner);

/* Who owns a job now; InvalidOid when there is none of this id. */
extern Oid pgft_job_owner(const pg_uuid_t *id);

/* ---- Workers; each call is a transaction of its own ---- */

/*
 * Begin and end a transaction on the extension's tables.  finish also reports
 * to the statistics.
 */
extern void pgft_job_begin(PgftCatalog *catalog);
extern void pgft_job_finish(PgftCatalog *catalog);

/*
 * What to do with unfinished jobs of this database that another cluster
 * created: a standby that was promoted goes on with them, everybody else
 * pauses them.
 */
extern void pgft_job_settle_foreign(void);

/*
 * Claim the next job of this database, by priority and age, that nobody works
 * on, and count the attempt.  The claim lasts as long as this process.  The
 * job is allocated in `context`.  NULL when there is none, or when there is one
 * and `may_claim`, which is asked then, says no: *refused tells.
 */
extern PgftJob *pgft_job_claim(MemoryContext context, bool (*may_claim)(void), bool *refused);

/* Read a job that somebody else has claimed (the reader does so); NULL when it is gone. */
extern PgftJob *pgft_job_read(const pg_uuid_t *id, MemoryContext context);

/*
 * The functions from here on return false when the job has ended or is
 * another's; nothing is changed then.
 */

/* Count another attempt by the same worker. */
extern bool pgft_job_next_attempt(PgftJob *job);

/* Take the current attempt back: it ended through no fault of the job. */
extern bool pgft_job_release_attempt(PgftJob *job, const char *message);

/* Move on to another phase (a literal), with an event of the same name. */
extern bool pgft_job_set_phase(PgftJob *job, const char *phase, const char *message);

/* End it by an error. */
extern bool pgft_job_fail(PgftJob *job, int sqlstate, const char *message, const char *hint);

/* Pause it for an error that somebody has to put right. */
extern bool
pgft_job_pause_by_error(PgftJob *job, int sqlstate, const char *message, const char *hint);

/*
 * Store the weights that the engine has left in a directory, make the model
 * ready, and end the job: all in one transaction.  `go_on` is asked while much is
 * stored; 57014 is raised where it says no.
 */
extern bool pgft_job_complete(PgftJob *job, const char *directory, PgftGoOn go_on);

/* Whose a job is that this worker has claimed, or was. */
typedef enum PgftJobHold
{
	PGFT_JOB_MINE,
	PGFT_JOB_PAUSED, /* by somebody, in this attempt */
	PGFT_JOB_GONE    /* ended, or another's */
} PgftJobHold;
extern PgftJobHold pgft_job_hold(const PgftJob *job);

/* Note something without changing the job. */
extern void pgft_job_note(PgftJob *job, const char *level, const char *type, const char *message);

/*
 * After a job's end: drop a model that never got weights (unless something
 * depends on it), and remove the job directory.  pgft_job_clean_all does so
 * for all whose worker could not.
 */
extern void pgft_job_clean(const pg_uuid_t *id);
extern void pgft_job_clean_all(void);

/* ---- Inside a transaction begun by pgft_job_begin ---- */

/* Is the job still this attempt's?  Locks its row. */
extern bool pgft_job_is_mine(const PgftJob *job);

/*
 * UPDATE finetune.job SET <set>, if it is still this attempt's; $3 and on, at
 * most PGFT_JOB_UPDATE_ARGS, are the caller's.
 */
#define PGFT_JOB_UPDATE_ARGS 10
extern bool pgft_job_update(const PgftJob *job, const char *set, int nargs, const Oid *types,
							const Datum *values, const char *nulls);

/* Add a row to the job's events; data may be NULL. */
extern void pgft_job_add_event(const pg_uuid_t *id, const char *level, const char *type,
							   const char *message, Jsonb *data);

/* Tell listeners, when the transaction commits, that the job has changed. */
extern void pgft_job_notify(const pg_uuid_t *id);

/* The job's directory (palloc'd; not created). */
extern char *pgft_job_directory(const pg_uuid_t *id);

#endif
