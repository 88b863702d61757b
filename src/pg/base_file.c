/*
 * base_file.c: what is kept of a base's file.
 *
 * Of a file in the model directory its SHA-256 is recorded, so that other bytes
 * under its name are refused rather than taken for it; ALTER SERVER ... OPTIONS
 * (SET file ...) is how the owner says that it was replaced on purpose.  Nothing
 * that is wrong with such a file fails the command, for it may come later, but
 * it is said at once.
 *
 * A base may also be a directory; then its files are what is said of the file
 * here.
 *
 * With storage 'database' the file itself is stored, in the command's
 * transaction: then the base is there, whole, if and only if its server is.
 * That takes as long as a COPY of so much data, can be cancelled at every part,
 * and locks nothing but the base's own rows.
 *
 * A dump brings rows and weights of its own, after the servers: while one is
 * loaded no file is read.  pg_dump's scripts say so by check_function_bodies,
 * which is there to tell that objects are loaded before what they refer to.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base.h"
#include "base_file.h"
#include "engine_client.h"
#include "json.h"
#include "model.h"
#include "pg_finetune.h"
#include "storage/fd.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "weights.h"

/* How long an engine may take to read the header of a file */
#define INSPECT_TIMEOUT_MS 5000

static bool
loading_dump(void)
{
	return !check_function_bodies;
}

/* Note what the engine reads in the file's header. */
static void
describe(PgftModel *base, int timeout_ms)
{
	Jsonb *facts = pgft_model_inspect(base, timeout_ms);
	int64 parameters = 0, context_length = 0;

	pgft_json_int64(&facts->root, "parameters", &parameters);
	pgft_json_int64(&facts->root, "context_length", &context_length);
	if (base->context_length > 0)
		context_length = base->context_length;
	pgft_model_describe_base(base->name, pgft_json_string(&facts->root, "architecture"), parameters,
							 context_length);
}

/* ---- Files in the model directory ---- */

static void
record_digest(PgftModel *base)
{
	pgft_model_record_base(&base->id, pgft_weights_base_digest(base->path, base->file), false);
}

/* If there is an engine to ask. */
static void
try_describe(PgftModel *base)
{
	if (pgft_engine_is_ready())
		describe(base, INSPECT_TIMEOUT_MS);
}

/* Do something in a subtransaction; an error becomes a warning, and false. */
static bool
attempt(void (*work)(PgftModel *base), PgftModel *base)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = true;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		work(base);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		ereport(WARNING, (errcode(error->sqlerrcode), errmsg_internal("%s", error->message),
						  error->hint != NULL ? errhint("%s", error->hint) : 0));
		FreeErrorData(error);
		done = false;
	}
	PG_END_TRY();
	return done;
}

static void
look_at_file(PgftModel *base, bool record)
{
	if (pgft_is_preloaded() && attempt(pgft_model_resolve_file, base) &&
		(!record || attempt(record_digest, base)))
		(void) attempt(try_describe, base);
}

/* ---- Files in the database ---- */

static void
store(PgftModel *base)
{
	char *digest;

	pgft_require_preload();
	pgft_model_resolve_file(base);
	if (pgft_engine_is_ready())
		describe(base, -1);
	else
		pgft_base_check_header(base);
	digest = pgft_weights_store_base(&base->id, base->path, base->file);
	pgft_model_record_base(&base->id, digest, true);
}

/* Remove the file from the database: not before there is one outside to go on with. */
static void
leave_database(PgftModel *base, bool other_file)
{
	char *digest;

	pgft_require_preload();
	pgft_model_resolve_file(base);
	digest = pgft_weights_base_digest(base->path, base->file);
	if (!other_file && strcmp(digest, base->weights_digest) != 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("model file \"%s\" is not the one that base model \"%s\" keeps in "
							   "the database",
							   base->file, base->name),
						errhint("Name the option \"file\" too if the base is to become another.")));
	pgft_weights_remove(&base->id);
	pgft_model_record_base(&base->id, digest, false);
}

/* ---- Commands ---- */

void
pgft_base_created(const char *name)
{
	PgftModel *base = pgft_model_by_name(name);

	if (base == NULL || !base->has_row || base->endpoint != NULL)
		return;
	if (!base->in_database)
		look_at_file(base, base->base_digest == NULL && !loading_dump());
	else if (base->weights_digest == NULL && !loading_dump())
		store(base);
}

void
pgft_base_altered(const char *name, bool file, bool storage)
{
	PgftModel *base = pgft_model_by_name(name);

	if (base == NULL || !base->has_row || base->endpoint != NULL)
		return;
	if (base->in_database)
	{
		if (file || storage)
			store(base);
		return;
	}
	if (base->weights_digest != NULL)
	{
		leave_database(base, file);
		look_at_file(base, false);
		return;
	}
	if (file)
		pgft_model_forget_base(&base->id);
	look_at_file(base, file || base->base_digest == NULL);
}
