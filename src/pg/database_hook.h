/*
 * database_hook.h: have workers leave a database that a command wants alone.
 */
#ifndef PGFT_DATABASE_HOOK_H
#define PGFT_DATABASE_HOOK_H

extern void pgft_database_hook_init(void);

#endif
