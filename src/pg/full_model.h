/*
 * full_model.h: full models whose weights are kept as files (option "storage" of
 * a job), and what a catalog must have for any.
 */
#ifndef PGFT_FULL_MODEL_H
#define PGFT_FULL_MODEL_H

#include "model.h"
#include "weights.h"

/* The model's directory, relative to pg_finetune.model_directory (palloc'd). */
extern char *pgft_full_directory(const char *digest);

/*
 * The absolute path of a model's directory.  58P01 when it is not there; with
 * `missing_ok` returns NULL instead.
 */
extern char *pgft_full_path(const PgftModel *model, bool missing_ok);

/*
 * May a full model be made here, and kept as files if `files`?  55000 where the
 * extension's tables are those of version 1.0, or pg_finetune.model_directory is
 * not set; 42501 where the server may not write there.
 */
extern void pgft_full_check_create(bool files);

/*
 * Copy the directory that a job's engine has written to where it is kept, under
 * the name of its digest, which is returned (palloc'd).  A directory that is
 * there already is the model's, or an error (55000), and is never changed.
 */
extern char *pgft_full_keep(const pg_uuid_t *job, const char *written, PgftGoOn go_on);

/*
 * A copy of an error's message that says where the folder of these directories is
 * no more exactly than every user may know.
 */
extern char *pgft_full_words(const char *message);

/* Remove what a copy of that job that was killed has left. */
extern void pgft_full_clean(const pg_uuid_t *job);

#endif
