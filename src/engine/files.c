/*
 * files.c: durable files.
 */
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

ft_status
ft_path_join(char path[FT_PATH_SIZE], const char *directory, const char *name)
{
	int n = snprintf(path, FT_PATH_SIZE, "%s/%s", directory, name);

	if (n < 0 || n >= FT_PATH_SIZE)
		return ft_fail(FT_INVALID, "path of %d bytes is longer than %d", n, FT_PATH_SIZE - 1);
	return FT_OK;
}

ft_status
ft_write_all(int fd, const void *bytes, size_t n, const char *path)
{
	const char *at = bytes;

	while (n > 0)
	{
		ssize_t written = write(fd, at, n);

		if (written < 0)
		{
			if (errno == EINTR)
				continue;
			return ft_fail_errno("could not write \"%s\"", path);
		}
		at += written;
		n -= (size_t) written;
	}
	return FT_OK;
}

ft_status
ft_read_at(int fd, void *bytes, size_t n, uint64_t offset, const char *path)
{
	char *at = bytes;

	while (n > 0)
	{
		ssize_t got = pread(fd, at, n, (off_t) offset);

		if (got < 0)
		{
			if (errno == EINTR)
				continue;
			return ft_fail_errno("could not read \"%s\"", path);
		}
		if (got == 0)
			return ft_fail(FT_CORRUPT, "\"%s\" ends at byte %llu, %zu bytes too early", path,
						   (unsigned long long) offset, n);
		at += got;
		offset += (uint64_t) got;
		n -= (size_t) got;
	}
	return FT_OK;
}

static ft_status
read_open_file(int fd, const char *path, size_t limit, ft_text *text)
{
	struct stat st;
	char chunk[65536];
	ssize_t got;

	if (fstat(fd, &st) < 0)
		return ft_fail_errno("could not stat \"%s\"", path);
	if (!S_ISREG(st.st_mode))
		return ft_fail(FT_INVALID, "\"%s\" is not a regular file", path);
	ft_text_clear(text);
	while ((got = read(fd, chunk, sizeof chunk)) != 0)
	{
		if (got < 0)
		{
			if (errno == EINTR)
				continue;
			return ft_fail_errno("could not read \"%s\"", path);
		}
		if ((size_t) got > limit - text->length)
			return ft_fail(FT_INVALID, "\"%s\" has more than %zu bytes", path, limit);
		FT_TRY(ft_text_append(text, chunk, (size_t) got));
	}
	return FT_OK;
}

ft_status
ft_read_file(const char *path, size_t limit, ft_text *text)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ft_status status;

	if (fd < 0)
		return ft_fail_errno("could not open \"%s\"", path);
	status = read_open_file(fd, path, limit, text);
	close(fd);
	return status;
}

static ft_status
write_new_file(const char *path, const void *bytes, size_t n)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	ft_status status;

	if (fd < 0)
		return ft_fail_errno("could not create \"%s\"", path);
	status = ft_write_all(fd, bytes, n, path);
	if (status == FT_OK && fsync(fd) < 0)
		status = ft_fail_errno("could not fsync \"%s\"", path);
	close(fd);
	return status;
}

ft_status
ft_replace_file(const char *path, const void *bytes, size_t n)
{
	char temporary[FT_PATH_SIZE];
	ft_status status;

	if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= (int) sizeof temporary)
		return ft_fail(FT_INVALID, "path is longer than %d", FT_PATH_SIZE - 1);
	status = write_new_file(temporary, bytes, n);
	if (status == FT_OK)
		status = ft_rename_durably(temporary, path);
	if (status != FT_OK)
		unlink(temporary);
	return status;
}

ft_status
ft_fsync_directory(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ft_status status = FT_OK;

	if (fd < 0)
		return ft_fail_errno("could not open directory \"%s\"", path);
	if (fsync(fd) < 0)
		status = ft_fail_errno("could not fsync directory \"%s\"", path);
	close(fd);
	return status;
}

static ft_status
fsync_parent(const char *path)
{
	char parent[FT_PATH_SIZE];
	const char *slash = strrchr(path, '/');

	if (slash == NULL)
		return ft_fsync_directory(".");
	if (slash == path)
		return ft_fsync_directory("/");
	if ((size_t) (slash - path) >= sizeof parent)
		return ft_fail(FT_INVALID, "path is longer than %d", FT_PATH_SIZE - 1);
	memcpy(parent, path, (size_t) (slash - path));
	parent[slash - path] = '\0';
	return ft_fsync_directory(parent);
}

ft_status
ft_rename_durably(const char *from, const char *to)
{
	struct stat st;

	if (stat(from, &st) < 0)
		return ft_fail_errno("could not stat \"%s\"", from);
	if (S_ISDIR(st.st_mode))
		FT_TRY(ft_fsync_directory(from));
	if (rename(from, to) < 0)
		return ft_fail_errno("could not rename \"%s\" to \"%s\"", from, to);
	return fsync_parent(to);
}

static ft_status
remove_directory(const char *path)
{
	DIR *directory = opendir(path);
	struct dirent *entry;
	ft_status status = FT_OK;

	if (directory == NULL)
		return ft_fail_errno("could not open directory \"%s\"", path);
	while (status == FT_OK && (entry = readdir(directory)) != NULL)
	{
		char child[FT_PATH_SIZE];

		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		status = ft_path_join(child, path, entry->d_name);
		if (status == FT_OK)
			status = ft_remove_tree(child);
	}
	closedir(directory);
	if (status == FT_OK && rmdir(path) < 0 && errno != ENOENT)
		status = ft_fail_errno("could not remove directory \"%s\"", path);
	return status;
}

ft_status
ft_remove_tree(const char *path)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return errno == ENOENT ? FT_OK : ft_fail_errno("could not stat \"%s\"", path);
	if (S_ISDIR(st.st_mode))
		return remove_directory(path);
	if (unlink(path) < 0 && errno != ENOENT)
		return ft_fail_errno("could not remove \"%s\"", path);
	return FT_OK;
}

bool
ft_file_exists(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0;
}
