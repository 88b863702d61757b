/*
 * weights.h: weights between disk and finetune.weights, and the cache of them.
 *
 * In the table the weights of a model are a sequence of parts, numbered from
 * 0, of at most 1 MiB each, file by file in the order of their names, each with
 * its CRC-32C.
 *
 * An adapter is a directory of plain files.  Its digest is the SHA-256, over
 * all files in that order, of: length of the name (8 bytes, big-endian), name,
 * length of the contents (8 bytes, big-endian), contents.
 *
 * A base is one file, PGFT_BASE_FILE, whose digest is the SHA-256 of its
 * contents alone, wherever it lies; or the files of a directory
 * (base_directory.h), whose digest is made as an adapter's.  The engine
 * computes the same.  A full model is such a directory, too.
 *
 * All digests are in hex (palloc'd).
 */
#ifndef PGFT_WEIGHTS_H
#define PGFT_WEIGHTS_H

#include "utils/uuid.h"

#define PGFT_WEIGHTS_PART_SIZE (1024 * 1024)

/* What a base's file is called in finetune.weights and in the cache */
#define PGFT_BASE_FILE "model.gguf"

/*
 * Asked before each part, where that may take long: to go on?  57014 is raised
 * when not.  NULL: always.
 */
typedef bool (*PgftGoOn)(void);

/*
 * Store the files of an adapter's directory as the weights of a model, in the
 * current transaction.  Returns their digest.
 */
extern char *pgft_weights_store(const pg_uuid_t *model, const char *directory);

/* The same with a full model's directory, which an engine has written. */
extern char *pgft_weights_store_full(const pg_uuid_t *model, const char *directory, PgftGoOn go_on);

/*
 * Copy the files of a full model from a directory that an engine has written to
 * another one, which must be empty, and fsync them.  Returns their digest.
 */
extern char *pgft_weights_copy_full(const char *from, const char *to, PgftGoOn go_on);

/*
 * The same with a base's file or directory, in place of what the base had before.  Errors
 * call the file `shown`.
 */
extern char *pgft_weights_store_base(const pg_uuid_t *model, const char *path, const char *shown);

/* Remove a model's weights, in the current transaction. */
extern void pgft_weights_remove(const pg_uuid_t *model);

/* The SHA-256 of a file, which errors call `shown`. */
extern char *pgft_weights_file_digest(const char *path, const char *shown);

/* The digest of a base's file or directory. */
extern char *pgft_weights_base_digest(const char *path, const char *shown);

/*
 * Write a model's weights into a directory, which must be empty, and fsync
 * them.  XX001, with the part's number, when a part is damaged, missing, or,
 * of a `base`, of a file that no base has.  Returns the SHA-256 of all
 * contents, in order.
 */
extern char *pgft_weights_write(const pg_uuid_t *model, const char *directory, bool base);

/* Does a directory hold just the adapter of this digest? */
extern bool pgft_weights_are_in(const char *directory, const char *digest);

/* Raise XX001: every part is sound, but together they are not what was stored. */
extern void pgft_weights_differ(void) pg_attribute_noreturn();

/*
 * Write an adapter into a directory, which must be empty, verified and synced.
 */
extern void
pgft_weights_write_adapter(const pg_uuid_t *model, const char *digest, const char *directory);

/* ---- The cache, in weights_cache.c ---- */

/*
 * Make sure that cache/<digest>/ holds the adapter of a model, whole and
 * verified, and return its path.  Raises XX001 when what stands in the table
 * is not what was stored.
 */
extern char *pgft_weights_to_cache(const pg_uuid_t *model, const char *digest);

/*
 * Make sure that cache/<digest>/ holds the file or the files of a base that is
 * stored in the database, and return the path of the file, or of the directory.  One that is there
 * is taken as it is (what is written was verified) unless `verify` asks for its digest; sets
 * *written (unless NULL) when it had to be written.
 */
extern char *
pgft_weights_base_to_cache(const pg_uuid_t *model, const char *digest, bool verify, bool *written);

/* A name in the work directory's cache for what is in the making (palloc'd). */
extern char *pgft_weights_temporary(const char *name);

/*
 * Remove what nobody has used for a week from the cache, and what a session
 * that was killed left unfinished.  For the server worker, between engines.
 */
extern void pgft_weights_prune_cache(void);

#endif
