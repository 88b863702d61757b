/*
 * usage.h: what the answers to each role by each model have taken, as
 * finetune.usage shows it.
 */
#ifndef PGFT_USAGE_H
#define PGFT_USAGE_H

#include "model.h"

/* A request that is to be counted */
typedef struct PgftUsage PgftUsage;

typedef enum PgftUsageOutcome
{
	PGFT_USAGE_ANSWERED,
	PGFT_USAGE_FAILED,
	PGFT_USAGE_CANCELLED
} PgftUsageOutcome;

/*
 * The current user asks a model, which has a row.  The request lives in the
 * current memory context, and is counted when that goes, if not before: as
 * cancelled, unless it was said to have ended in another way.
 */
extern PgftUsage *pgft_usage_begin(const PgftModel *model);

/* What has been read and written so far. */
extern void pgft_usage_tokens(PgftUsage *usage, int64 prompt, int64 cached, int64 completion);

/* It has ended, and how; the first call says when. */
extern void pgft_usage_end(PgftUsage *usage, PgftUsageOutcome outcome);

/* It has not: it is asked once more. */
extern void pgft_usage_again(PgftUsage *usage);

/* Count it now. */
extern void pgft_usage_count(PgftUsage *usage);

/* In the postmaster: ask for shared memory and a lock, set them up, take in what was saved. */
extern void pgft_usage_shmem_request(void);
extern void pgft_usage_shmem_startup(void);

/* Save the counters if they have changed. */
extern void pgft_usage_save(void);

#endif
