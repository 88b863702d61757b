/*
 * settings.h: the pg_finetune.* settings.
 */
#ifndef PGFT_SETTINGS_H
#define PGFT_SETTINGS_H

typedef enum PgftNumerics
{
	PGFT_NUMERICS_FAST,
	PGFT_NUMERICS_REFERENCE
} PgftNumerics;

/* Directories and paths are relative to the data directory, or absolute */
extern char *pgft_model_directory; /* "" when not set */
extern char *pgft_work_directory;
extern char *pgft_engine_path; /* "" means <pkglibdir>/pg_finetune_engine */
extern char *pgft_device;      /* auto, cpu, cuda or cuda:N */
extern int pgft_threads;
extern int pgft_numerics; /* PgftNumerics */
extern int pgft_max_running_jobs;
extern int pgft_max_jobs_per_role; /* 0: no limit */
extern int pgft_reserve_disk;      /* MB */
extern bool pgft_serve;
extern int pgft_request_timeout; /* milliseconds, 0 = none */
extern int pgft_max_concurrent_requests;
extern int pgft_engine_memory; /* MB, 0 = four fifths of what the device has free */
extern int pgft_keep_alive;    /* seconds, 0 = for ever */
extern int pgft_batch_rows;    /* rows in flight of a query; 0 and 1: one after the other */

/* An engine says something at least every 5 s; one that is silent this long (ms) hangs */
extern int pgft_engine_silence;

/*
 * Define the settings.  Those that only the postmaster may set are defined
 * only while it loads the library.
 */
extern void pgft_define_settings(void);

/* The value of pg_finetune.numerics as the engine spells it. */
extern const char *pgft_numerics_name(void);

#endif
