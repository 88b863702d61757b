/*
 * files.h: durable files.  Write under a temporary name, fsync, rename, fsync
 * the directory: after a crash at any point there is the old file or the new
 * one, never a part.
 */
#ifndef FT_FILES_H
#define FT_FILES_H

#include "buffer.h"

#include <stdbool.h>

/* "<directory>/<name>", FT_INVALID when longer than a path may be. */
#define FT_PATH_SIZE 4096
ft_status ft_path_join(char path[FT_PATH_SIZE], const char *directory, const char *name);

/* write(2) until all is written. */
ft_status ft_write_all(int fd, const void *bytes, size_t n, const char *path);
/* pread(2) exactly n bytes; FT_CORRUPT when the file ends before. */
ft_status ft_read_at(int fd, void *bytes, size_t n, uint64_t offset, const char *path);

/* The whole file (at most limit bytes, else FT_INVALID). */
ft_status ft_read_file(const char *path, size_t limit, ft_text *text);
/* Replace a file: `path`.tmp, fsync, rename, fsync of the directory. */
ft_status ft_replace_file(const char *path, const void *bytes, size_t n);

ft_status ft_fsync_directory(const char *path);
/* Rename a file or directory whose contents are already on disk, and make the rename durable: fsync
 * of from (when it is a directory) and of the directory that holds `to`. */
ft_status ft_rename_durably(const char *from, const char *to);

/* Remove a file, or a directory with all below it; a missing one is no error. */
ft_status ft_remove_tree(const char *path);
bool ft_file_exists(const char *path);

#endif
