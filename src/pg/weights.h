/*
 * weights.h: adapters between disk and finetune.weights.
 *
 * An adapter is a directory of plain files.  In the table it is a sequence of
 * parts, numbered from 0, of at most 1 MiB each, file by file in the order of
 * their names, each with its CRC-32C.  Its digest is the SHA-256, over all
 * files in that order, of: length of the name (8 bytes, big-endian), name,
 * length of the contents (8 bytes, big-endian), contents.
 */
#ifndef PGFT_WEIGHTS_H
#define PGFT_WEIGHTS_H

#include "utils/uuid.h"

#define PGFT_WEIGHTS_PART_SIZE (1024 * 1024)

/*
 * Store the files of a directory as the weights of a model, in the current
 * transaction.  Returns their digest in hex (palloc'd).
 */
extern char *pgft_weights_store(const pg_uuid_t *model, const char *directory);

/*
 * Make sure that cache/<digest>/ holds the weights of a model, whole and
 * verified, and return its path.  Raises XX001, with the part's number, when
 * what stands in the table is not what was stored.
 */
extern char *pgft_weights_to_cache(const pg_uuid_t *model, const char *digest);

/*
 * Remove what nobody has used for a week from the cache, and what a session
 * that was killed left unfinished.  For the server worker, between engines.
 */
extern void pgft_weights_prune_cache(void);

#endif
