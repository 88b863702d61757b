/*
 * launcher.h: the processes that run without anybody having asked for them.
 */
#ifndef PGFT_LAUNCHER_H
#define PGFT_LAUNCHER_H

/* In the postmaster: register the launcher and the server worker. */
extern void pgft_launcher_register(void);

extern PGDLLEXPORT void pgft_launcher_main(Datum arg);
extern PGDLLEXPORT void pgft_server_worker_main(Datum arg);

/* In job_worker.c: runs one job of the database that its slot names, then ends. */
extern PGDLLEXPORT void pgft_job_worker_main(Datum arg);

#endif
