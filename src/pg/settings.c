/*
 * settings.c: the pg_finetune.* settings.
 *
 * Settings that a reload may change are defined in every process that loads
 * the library; those of the postmaster only while it loads it, for they cannot
 * be defined later.
 */
#include "postgres.h"

#include <limits.h>
#include <unistd.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "settings.h"
#include "shmem.h"
#include "utils/guc.h"

char *pgft_model_directory;
char *pgft_work_directory;
char *pgft_engine_path;
char *pgft_device;
int pgft_threads;
int pgft_numerics = PGFT_NUMERICS_FAST;
int pgft_max_running_jobs = 1;
int pgft_max_jobs_per_role = 0;
int pgft_reserve_disk = 512;
bool pgft_serve = true;
int pgft_request_timeout = 600000;
int pgft_max_concurrent_requests = 1024;
int pgft_engine_memory = 0;
int pgft_keep_alive = 300;
int pgft_batch_rows = 32;
int pgft_engine_silence = 60000;

static const struct config_enum_entry numerics_options[] = {
	{"fast", PGFT_NUMERICS_FAST, false},
	{"reference", PGFT_NUMERICS_REFERENCE, false},
	{NULL, 0, false},
};

const char *
pgft_numerics_name(void)
{
	return numerics_options[pgft_numerics].name;
}

/* auto, cpu, cuda, cuda:N */
static bool
check_device(char **newval, void **extra, GucSource source)
{
	const char *value = *newval;

	if (strcmp(value, "auto") == 0 || strcmp(value, "cpu") == 0 || strcmp(value, "cuda") == 0)
		return true;
	if (strncmp(value, "cuda:", 5) == 0)
	{
		size_t digits = strspn(value + 5, "0123456789");

		if (digits > 0 && digits <= 3 && value[5 + digits] == '\0')
			return true;
	}
	GUC_check_errdetail("Available values: auto, cpu, cuda, cuda:N.");
	return false;
}

static int
default_threads(void)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	return cores >= 4 ? Min(cores / 2, 1024) : 1;
}

static void
define_reloadable_settings(void)
{
	DefineCustomStringVariable(
		"pg_finetune.model_directory", "Directory that holds the files of base models.",
		"A base model's option \"file\" is relative to it.", &pgft_model_directory, "", PGC_SIGHUP,
		GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomStringVariable("pg_finetune.device", "Device on which models are trained and run.",
							   NULL, &pgft_device, "auto", PGC_SIGHUP, 0, check_device, NULL, NULL);
	DefineCustomIntVariable("pg_finetune.threads", "Threads that an engine computes with.", NULL,
							&pgft_threads, default_threads(), 1, 1024, PGC_SIGHUP, 0, NULL, NULL,
							NULL);
	DefineCustomEnumVariable("pg_finetune.numerics", "How exactly an engine computes.",
							 "\"reference\" computes in single precision throughout; \"fast\" uses "
							 "shorter formats where the machine has them.",
							 &pgft_numerics, PGFT_NUMERICS_FAST, numerics_options, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("pg_finetune.max_running_jobs",
							"Fine-tuning jobs that run at the same time.", "0 lets none start.",
							&pgft_max_running_jobs, 1, 0, PGFT_MAX_JOBS, PGC_SIGHUP, 0, NULL, NULL,
							NULL);
	DefineCustomIntVariable("pg_finetune.max_jobs_per_role",
							"Unfinished fine-tuning jobs that a role may have in a database.",
							"0 means no limit.", &pgft_max_jobs_per_role, 0, 0, INT_MAX, PGC_SUSET,
							0, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"pg_finetune.reserve_disk", "Space that is left free on the disk of the work directory.",
		"Jobs are paused, and nothing is written, when less is free.", &pgft_reserve_disk, 512, 0,
		INT_MAX, PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomBoolVariable("pg_finetune.serve", "Run an engine that answers complete().", NULL,
							 &pgft_serve, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"pg_finetune.request_timeout", "Time after which a request to the engine is given up.",
		"Waiting for an engine that is starting is included. 0 means no limit.",
		&pgft_request_timeout, 600000, 0, INT_MAX, PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomIntVariable("pg_finetune.max_concurrent_requests",
							"Requests that wait or are answered at the same time, of all sessions.",
							"One more is refused. A role may have seven eighths of them.",
							&pgft_max_concurrent_requests, 1024, 1, 65536, PGC_SIGHUP, 0, NULL,
							NULL, NULL);
	DefineCustomIntVariable("pg_finetune.engine_memory",
							"Memory that the models of the serving engine may hold together.",
							"Room for another one is made by unloading those not in use. 0 means "
							"four fifths of what the device has free when the engine starts.",
							&pgft_engine_memory, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL,
							NULL);
	DefineCustomIntVariable("pg_finetune.keep_alive",
							"Time after which the serving engine unloads a model not in use.",
							"0 means never.", &pgft_keep_alive, 300, 0, INT_MAX / 1000, PGC_SIGHUP,
							GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_finetune.batch_rows",
							"Rows whose answers a query waits for at the same time.",
							"0 and 1 have complete() called for one row after the other.",
							&pgft_batch_rows, 32, 0, 256, PGC_USERSET, 0, NULL, NULL, NULL);

	/* for tests of what hangs: nobody else has a reason to change it, so it is not shown */
	DefineCustomIntVariable("pg_finetune.engine_silence",
							"Time after which an engine that says nothing is taken to hang.", NULL,
							&pgft_engine_silence, 60000, 1000, 3600000, PGC_SIGHUP,
							GUC_UNIT_MS | GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE, NULL, NULL, NULL);
}

static void
define_postmaster_settings(void)
{
	DefineCustomStringVariable("pg_finetune.work_directory",
							   "Directory for jobs, checkpoints and the cache of weights.",
							   "A name that begins with \"pgsql_tmp\" in the data directory keeps "
							   "it out of base backups.",
							   &pgft_work_directory, "pgsql_tmp_finetune", PGC_POSTMASTER,
							   GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomStringVariable("pg_finetune.engine_path", "The engine program.",
							   "Empty means pg_finetune_engine in PostgreSQL's library directory.",
							   &pgft_engine_path, "", PGC_POSTMASTER, GUC_SUPERUSER_ONLY, NULL,
							   NULL, NULL);
}

void
pgft_define_settings(void)
{
	define_reloadable_settings();
	if (!process_shared_preload_libraries_in_progress)
		return;
	define_postmaster_settings();
	MarkGUCPrefixReserved("pg_finetune");
}
