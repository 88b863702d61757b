/*
 * pg_finetune.c: the library's entry point.
 *
 * Everything that computes or waits runs in background workers and their
 * engines, so the library must be preloaded.  Loaded in another way (pg_upgrade
 * and a plain CREATE EXTENSION do so) it defines its settings, starts nothing,
 * and its functions say what to set.
 */
#include "postgres.h"

#include "database_hook.h"
#include "extension_hook.h"
#include "fmgr.h"
#include "launcher.h"
#include "miscadmin.h"
#include "pg_finetune.h"
#include "rows.h"
#include "settings.h"
#include "shmem.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

static bool preloaded = false;

void
_PG_init(void)
{
	pgft_define_settings();

	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;

	preloaded = true;
	pgft_shmem_init();
	pgft_launcher_register();
	pgft_database_hook_init();
	pgft_extension_hook_init();
	pgft_rows_plan_init();
	pgft_rows_demand_init();
}

bool
pgft_is_preloaded(void)
{
	return preloaded;
}

void
pgft_require_preload(void)
{
	if (!preloaded)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_finetune must be loaded via shared_preload_libraries"),
				 errhint("Add pg_finetune to shared_preload_libraries and restart the server.")));
}
