/*
 * instance.h: which cluster this is.
 *
 * A job runs in the cluster that created it.  Its row travels further: into
 * base backups, dumps and clones, where it must not start on its own.  So each
 * cluster has an identity outside of what is copied with the rows, in a file
 * of the work directory.
 */
#ifndef PGFT_INSTANCE_H
#define PGFT_INSTANCE_H

#include "utils/uuid.h"

/*
 * In the postmaster: the identity that the work directory holds, or a new one
 * where there is none, or one that came with a copy.  Never fails: what cannot
 * be kept is new at each start, and said in the log.
 */
extern void pgft_instance_load(pg_uuid_t *id);

/* In the postmaster: does this start follow another server? */
extern bool pgft_instance_is_standby(void);

#endif
