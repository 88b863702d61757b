/*
 * pg_finetune.h: what every file of the in-database half shares.
 *
 * Names that the install script and the C code must agree on, and the two
 * checks that most entry points begin with.
 */
#ifndef PG_FINETUNE_H
#define PG_FINETUNE_H

#include "portability/instr_time.h"

/* Names fixed by the install script (the extension is not relocatable) */
#define PGFT_EXTENSION "pg_finetune"
#define PGFT_LIBRARY "pg_finetune"
#define PGFT_WRAPPER "pg_finetune"
#define PGFT_SCHEMA "finetune"
#define PGFT_CHANNEL "finetune"

/* Entry points of background workers, and their names in pg_stat_activity */
#define PGFT_LAUNCHER_NAME "pg_finetune launcher"
#define PGFT_SERVER_WORKER_NAME "pg_finetune server"
#define PGFT_JOB_WORKER_NAME "pg_finetune job"
#define PGFT_READER_NAME "pg_finetune reader"

/* A clock that nobody sets, in milliseconds */
static inline int64
pgft_monotonic_ms(void)
{
	instr_time now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MILLISEC(now);
}

/* Was the library loaded by shared_preload_libraries? */
extern bool pgft_is_preloaded(void);

/*
 * Raise 55000, saying what to set, unless the library was loaded by
 * shared_preload_libraries.
 */
extern void pgft_require_preload(void);

#endif
