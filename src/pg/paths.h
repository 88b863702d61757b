/*
 * paths.h: where things are on disk.
 *
 * Paths in the work directory are relative to the data directory, which is
 * every server process's working directory, unless the setting is absolute.
 *
 *     engine.sock, engine.sock.lock   the serving engine
 *     jobs/<database>-<job id>/       a job directory
 *     cache/<digest>/                 an adapter or a base, copied out of finetune.weights
 *     sessions/<pid>-<number>/        a job directory of a session's own, while it is at work
 *     usage                           the counters of finetune.usage
 */
#ifndef PGFT_PATHS_H
#define PGFT_PATHS_H

/* Folder of pg_finetune.model_directory that holds full models, and no base's file */
#define PGFT_FULL_FOLDER "pg_finetune_full"

/* Folder of the sessions' directories, emptied when the server starts */
#define PGFT_SESSIONS "sessions"

/* A path below the work directory (palloc'd). */
extern char *pgft_work_path(const char *fmt, ...) pg_attribute_printf(1, 2);

/* The same as an absolute path, for the engine's configuration files. */
extern char *pgft_absolute_path(const char *path);

/* Create the work directory and its folders where they are missing (0700). */
extern void pgft_make_work_directory(void);

/*
 * Is there less room on the work directory's disk than pg_finetune.reserve_disk
 * keeps free?  Returns a message that says so (palloc'd), NULL when there is
 * enough; pgft_require_disk raises it (53100).
 */
extern char *pgft_disk_is_low(void);
extern void pgft_require_disk(void);

/* The same for pg_finetune.model_directory, once it has taken so many bytes more; raised. */
extern void pgft_require_model_disk(int64 bytes);

/* Create one directory, 0700; it may exist already. */
extern void pgft_make_directory(const char *path);

/* Make names in a directory durable; an error when that fails, and no more than an error. */
extern void pgft_sync_directory(const char *path);

/* The serving engine's socket; an error when the path is too long for one. */
extern char *pgft_socket_path(void);

/* The engine program. */
extern const char *pgft_engine_program(void);

/*
 * Syntax of the option `file`: relative, no empty component, no "..".
 * Returns NULL when it is good, else what is wrong with it.
 */
extern const char *pgft_check_model_file(const char *file);

/*
 * The absolute path, free of links, of a base model's file below
 * pg_finetune.model_directory.  Raises 55000 when the directory is not set,
 * 58P01 when the file is not there, 42501 when a link leads out of it, or the
 * file is in PGFT_FULL_FOLDER; with `missing_ok` returns NULL instead.
 */
extern char *pgft_model_path(const char *file, bool missing_ok);

/*
 * The absolute path of what is called so in PGFT_FULL_FOLDER, or of the folder if
 * it is called "", whether it is there or not; NULL where there is no
 * pg_finetune.model_directory.
 */
extern char *pgft_full_folder_path(const char *name);

/* Does a path, its links followed, lead into pg_finetune.model_directory? */
extern bool pgft_inside_model_directory(const char *path);

/*
 * Does a path that need not exist yet lead into the data directory?  Links on
 * the way to it are followed.
 */
extern bool pgft_inside_data_directory(const char *path);

/* Write a whole file and fsync it; an error (53100 when the disk is full) removes it. */
extern void pgft_write_file(const char *path, const char *data, Size length);

/* Remove a directory tree, quietly if it is not there. */
extern void pgft_remove_tree(const char *path);

#endif
