/*
 * base_directory.h: a base model that is a Hugging Face directory, as files.
 *
 * Which of its files are the model's is the engine's business too, for both
 * compute the digest of just these (src/engine/model_directory.h); anything
 * else in the directory does not count.
 */
#ifndef PGFT_BASE_DIRECTORY_H
#define PGFT_BASE_DIRECTORY_H

#include "nodes/pg_list.h"

/* Is a file of this name one of the model's? */
extern bool pgft_is_base_part(const char *name);

extern bool pgft_is_directory(const char *path);

/*
 * The names of the model's files in a directory below
 * pg_finetune.model_directory, in order (palloc'd strings).  Errors call the
 * directory `shown`: XX001 when it has no config.json, 42501 when a link leads
 * out of pg_finetune.model_directory, 42809 when a name is no regular file's.
 */
extern List *pgft_base_parts(const char *directory, const char *shown);

/*
 * The same for a directory that an engine of ours has written, wherever it is
 * (its files must be regular ones).
 */
extern List *pgft_written_parts(const char *directory);

/* What changes when one of these files does: names, sizes and times (palloc'd). */
extern char *pgft_base_parts_identity(const char *directory, const char *shown);

/* Bytes of a base's file, or of all files of its directory; -1 when they cannot be seen. */
extern int64 pgft_base_bytes(const char *path);

#endif
