/*
 * model_directory.c: a Hugging Face model directory as files.
 */
#include "model_directory.h"

#include "digest.h"
#include "files.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The largest models that are published in one directory have less than 200; each stays open. */
#define MAX_PARTS 512

bool
ft_directory_part(const char *name)
{
	static const char *const names[] = {
		"config.json",
		"generation_config.json",
		"tokenizer.json",
		"tokenizer.model",
		"tokenizer_config.json",
		"chat_template.jinja",
		"model.safetensors.index.json",
	};
	static const char suffix[] = ".safetensors";
	size_t n = strlen(name);

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
	{
		if (strcmp(name, names[i]) == 0)
			return true;
	}
	return strncmp(name, "model", 5) == 0 && n >= 5 + sizeof suffix - 1 &&
		   strcmp(name + n - (sizeof suffix - 1), suffix) == 0 && strchr(name, '/') == NULL;
}

/* --- opening --- */

static ft_status
add_name(char ***names, size_t *n, size_t *capacity, const char *name)
{
	if (*n == MAX_PARTS)
		return ft_fail(FT_UNSUPPORTED, "has more than %d files of a model", MAX_PARTS);
	FT_TRY(ft_grow((void **) names, capacity, *n + 1, sizeof **names));
	(*names)[*n] = strdup(name);
	if ((*names)[*n] == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory: the name of a file");
	(*n)++;
	return FT_OK;
}

static ft_status
list_names(const char *path, char ***names, size_t *n)
{
	DIR *directory = opendir(path);
	size_t capacity = 0;
	struct dirent *entry;
	ft_status status = FT_OK;

	if (directory == NULL)
		return ft_fail_errno("could not open");
	while (status == FT_OK && (entry = readdir(directory)) != NULL)
	{
		if (ft_directory_part(entry->d_name))
			status = add_name(names, n, &capacity, entry->d_name);
	}
	closedir(directory);
	return status;
}

static int
compare_strings(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

static ft_status
open_part(int directory, const char *path, const char *name, ft_model_part *part)
{
	struct stat st;

	part->fd = -1;
	if (asprintf(&part->path, "%s/%s", path, name) < 0)
	{
		part->path = NULL;
		return ft_fail(FT_NO_MEMORY, "out of memory: the path of a file");
	}
	/* without O_NONBLOCK a FIFO would hold us up */
	part->fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (part->fd < 0)
		return ft_fail_errno("could not open \"%s\"", name);
	if (fstat(part->fd, &st) != 0)
		return ft_fail_errno("could not stat \"%s\"", name);
	if (!S_ISREG(st.st_mode))
		return ft_fail(FT_UNSUPPORTED, "\"%s\" is not a regular file", name);
	part->size = (uint64_t) st.st_size;
	return FT_OK;
}

static ft_status
open_parts(ft_model_file *file, char **names, size_t n)
{
	void *memory;

	FT_TRY(ft_alloc(&memory, n, sizeof(ft_model_part)));
	file->parts = memory;
	for (size_t i = 0; i < n; i++)
	{
		file->n_parts++;
		FT_TRY(open_part(file->directory, file->path, names[i], &file->parts[i]));
	}
	if (ft_directory_find(file, "config.json") == NULL)
		return ft_hint(ft_fail(FT_CORRUPT, "is a directory without a config.json"),
					   "Name a GGUF file, or a directory in Hugging Face's layout.");
	return FT_OK;
}

ft_status
ft_directory_open(ft_model_file *file)
{
	char **names = NULL;
	size_t n = 0;
	ft_status status;

	file->directory = open(file->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (file->directory < 0)
		return ft_fail_errno("could not open");
	status = list_names(file->path, &names, &n);
	if (status == FT_OK)
	{
		if (n > 1)
			qsort(names, n, sizeof names[0], compare_strings);
		status = open_parts(file, names, n);
	}
	for (size_t i = 0; i < n; i++)
		free(names[i]);
	free(names);
	return status;
}

/* --- parts --- */

const char *
ft_directory_part_name(const ft_model_file *file, const ft_model_part *part)
{
	return part->path + strlen(file->path) + 1;
}

const ft_model_part *
ft_directory_find(const ft_model_file *file, const char *name)
{
	for (int i = 0; i < file->n_parts; i++)
	{
		if (strcmp(ft_directory_part_name(file, &file->parts[i]), name) == 0)
			return &file->parts[i];
	}
	return NULL;
}

ft_status
ft_directory_read(const ft_model_part *part, size_t limit, ft_text *text)
{
	void *memory;
	ft_status status;

	if (part->size > limit)
		return ft_fail(FT_UNSUPPORTED, "\"%s\" has %llu bytes, at most %zu are read", part->path,
					   (unsigned long long) part->size, limit);
	FT_TRY(ft_alloc(&memory, part->size + 1, 1));
	status = ft_read_at(part->fd, memory, part->size, 0, part->path);
	if (status != FT_OK)
	{
		free(memory);
		return status;
	}
	*text = (ft_text){.data = memory, .length = part->size, .capacity = part->size + 1};
	return FT_OK;
}

ft_status
ft_directory_digest(const ft_model_file *file, char hex[65])
{
	ft_digest_file_entry *entries;
	ft_status status;

	FT_TRY(ft_alloc((void **) &entries, (size_t) file->n_parts, sizeof entries[0]));
	for (int i = 0; i < file->n_parts; i++)
		entries[i] = (ft_digest_file_entry){ft_directory_part_name(file, &file->parts[i]),
											file->parts[i].fd, file->parts[i].size};
	status = ft_digest_files(entries, (size_t) file->n_parts, hex);
	free(entries);
	return status;
}
