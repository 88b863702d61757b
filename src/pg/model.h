/*
 * model.h: a model by name.
 *
 * A model is a foreign server of the wrapper pg_finetune (name, owner, rights)
 * and a row of finetune.model (identity, weights).  A base model's weights are
 * a file, found by the server's options; a tuned model's stand in
 * finetune.weights, and so may a base's file.  A full model is both: made by a
 * job, its weights are all that an engine needs, as a base's are, and it may be
 * the base of other models.
 */
#ifndef PGFT_MODEL_H
#define PGFT_MODEL_H

#include "utils/jsonb.h"
#include "utils/uuid.h"

typedef enum PgftModelKind
{
	PGFT_MODEL_BASE,
	PGFT_MODEL_LORA,
	PGFT_MODEL_FULL
} PgftModelKind;

typedef struct PgftModel
{
	Oid server; /* InvalidOid when found by id and its server is gone */
	char *name;
	PgftModelKind kind;
	Oid owner;

	/* Row of finetune.model */
	bool has_row; /* always, but for a tuned model's server that was made by hand */
	pg_uuid_t id;
	bool has_job;
	pg_uuid_t job;
	char *weights_digest; /* SHA-256 in hex; NULL until the weights are stored */
	char *base_digest;    /* SHA-256 in hex of the base's file: that it was trained on, or, of a
						   * base, that is recorded; may be NULL */

	struct PgftModel *base; /* a tuned model's base, what it was trained on; NULL for a base, and
							 * for a full model whose base is gone */

	/* Options of a base's server; of a full model, they stand in its row */
	char *file;          /* as in the option; what messages call a full model's files */
	char *chat_template; /* NULL: the file's own */
	int context_length;  /* 0: the file's own */
	bool in_database;    /* the file is kept in finetune.weights */

	/* Of a base that another server answers for (endpoint.h), instead of those: */
	char *endpoint;     /* its URL; NULL: no such base */
	char *remote_model; /* what it is called there */
	char *sslrootcert;  /* relative to the data directory; NULL: the system's authorities */
	bool allow_http;

	/* Of a base or a full model, set by pgft_model_resolve: */
	char *path;      /* absolute path of the file */
	char *engine_id; /* what the engine knows it by: changes with the file */
} PgftModel;

/* OID of the wrapper; InvalidOid, or an error, when the extension is not in this database. */
extern Oid pgft_wrapper_oid(bool missing_ok);

extern const char *pgft_model_kind_name(PgftModelKind kind);
extern bool pgft_model_kind_by_name(const char *name, PgftModelKind *kind);

/*
 * The model of this name, for the current user: checks USAGE on its server
 * (42501).  A name that is no server of our wrapper raises 42704 or returns
 * NULL.  The base of a tuned model is filled in without a check of rights.
 */
extern PgftModel *pgft_model_lookup(const char *name, bool missing_ok);

/* The same without a check of rights: NULL when there is no such model. */
extern PgftModel *pgft_model_by_name(const char *name);

/* As pgft_model_lookup, with NULL for whatever would raise an error. */
extern PgftModel *pgft_model_find(const char *name);

/* The model with this id; no check of rights; NULL when there is none. */
extern PgftModel *pgft_model_by_id(const pg_uuid_t *id);

/*
 * The model whose files an engine reads before anything else: a base, or a full
 * model, itself, and what an adapter lies over.
 */
extern PgftModel *pgft_model_root(PgftModel *model);

/* SHA-256 in hex that the files of such a model must have; NULL when it is not known yet. */
extern const char *pgft_model_root_digest(const PgftModel *root);

/* Raise 55000 unless the model has weights: it is still being trained, or will never have any. */
extern void pgft_model_require_ready(const PgftModel *model);

/*
 * Find the file of a base or a full model and set path and engine_id: 58P01 when
 * it is not in the model directory.  One that is kept in the database is written
 * to the cache if it is not there; 55000 when it was never stored.
 */
extern void pgft_model_resolve(PgftModel *base);

/* The same in the model directory, wherever the base is kept. */
extern void pgft_model_resolve_file(PgftModel *base);

/*
 * Raise the error that the engine's reply carries, with the base's file named
 * as its server's option does.  `base` may be NULL.
 */
struct PgftReply;
extern void
pgft_model_error(const PgftModel *base, const struct PgftReply *reply) pg_attribute_noreturn();

/*
 * What the engine reads in the header of a base's file: architecture,
 * parameters, context_length, digest …  Raises what is wrong with the file.
 * `timeout_ms` as for pgft_engine_call.
 */
extern Jsonb *pgft_model_inspect(PgftModel *base, int timeout_ms);

/*
 * Create a tuned model without weights, as the current user and in his
 * transaction: the row of finetune.model and the foreign server.  Checks
 * USAGE on the wrapper; 42710 when the name is taken, also when another
 * session takes it at the same time.  `job` may be NULL.  *id is the new
 * model's.  pgft_model_check_create makes the checks alone.
 */
extern void pgft_model_check_create(const char *name);
extern void pgft_model_create_tuned(const char *name, PgftModelKind kind, const PgftModel *base,
									const pg_uuid_t *job, pg_uuid_t *id);

/* Note that the weights of a model that is being created will be kept as files. */
extern void pgft_model_keep_as_files(const pg_uuid_t *id);

/* Does the catalog know of full models?  One of version 1.0 does not. */
extern bool pgft_model_full_is_known(void);

/*
 * In SQL, of a row m of finetune.model: does it need its base?  Not a full model
 * that is trained.
 */
#define PGFT_MODEL_NEEDS_BASE "(m.kind <> 'full' OR m.weights_digest IS NULL)"

/* What is known of a model once it is trained; strings may be NULL. */
typedef struct PgftModelFacts
{
	const char *weights_digest;
	const char *base_digest;
	const char *architecture;
	const char *chat_template; /* of a full model's base's server */
	int64 parameters;          /* 0: unknown */
	int context_length;        /* 0: unknown */
	double training_loss;      /* NaN: unknown */
	double validation_loss;
	double validation_token_accuracy;
} PgftModelFacts;

/*
 * Make a model ready: to be called in the transaction that stores its weights.
 * Returns false when the model is gone (dropped meanwhile).
 */
extern bool pgft_model_set_ready(const pg_uuid_t *id, const PgftModelFacts *facts);

/*
 * Drop the server and row of a model that never got weights, unless something
 * depends on it.  To be called by a worker in a transaction of its own.
 */
extern bool pgft_model_drop_unready(const pg_uuid_t *id);

/*
 * Row of a server that was created by CREATE SERVER, and what follows a
 * rename; for the event triggers.
 */
extern void pgft_model_row_create(const char *name, PgftModelKind kind);
extern void pgft_model_row_rename(const char *old_name, const char *new_name);

/* Forget what is known of a base's file. */
extern void pgft_model_forget_base(const pg_uuid_t *id);

/*
 * Record the SHA-256 of a base's file; with `stored`, also that its weights
 * stand in finetune.weights.
 */
extern void pgft_model_record_base(const pg_uuid_t *id, const char *digest, bool stored);

/*
 * Raise 42710 when a row has this name.  A row whose server is yet to come (a
 * subscription brought it) keeps its name from servers of other wrappers.
 */
extern void pgft_model_check_free(const char *name);

/* What is known of a base's file. */
extern void pgft_model_describe_base(const char *name, const char *architecture, int64 parameters,
									 int context_length);

/* Have a tuned model's server depend on its base's, if both are there. */
extern void pgft_model_depend(const char *name, const char *base_name);

/*
 * The same for all models, where it is missing: pg_upgrade does not carry such
 * dependencies over, and a subscriber's servers come in any order.
 */
extern void pgft_model_depend_all(void);

#endif
