/*
 * metric_log.c: events that carry metrics, one JSON object a line.
 */
#include "metric_log.h"

#include "buffer.h"
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct ft_metric_log
{
	int fd;
	char path[FT_PATH_SIZE];
};

/* A walk over the lines of a log. */
typedef struct walk
{
	FILE *file;
	char *line; /* n bytes, with the newline */
	size_t capacity;
	size_t n;
	int64_t step; /* of the line */
} walk;

static ft_status
walk_start(walk *w, const char *path)
{
	*w = (walk){.file = fopen(path, "re")};
	return w->file != NULL ? FT_OK : ft_fail_errno("could not open \"%s\"", path);
}

/* To the next line; false at the end, or at a line that a killed run left half-written. */
static bool
walk_next(walk *w)
{
	ssize_t n = getline(&w->line, &w->capacity, w->file);
	json_t *event;
	const json_t *step;

	if (n <= 0 || w->line[n - 1] != '\n')
		return false;
	event = json_loadb(w->line, (size_t) n, 0, NULL);
	step = json_object_get(event, "step");
	w->n = (size_t) n;
	w->step = json_is_integer(step) ? json_integer_value(step) : -1;
	json_decref(event);
	return w->step >= 0;
}

static ft_status
walk_end(walk *w, ft_status status, const char *path)
{
	if (status == FT_OK && ferror(w->file))
		status = ft_fail_errno("could not read \"%s\"", path);
	free(w->line);
	fclose(w->file);
	return status;
}

/* Cut the log after its last line of a step up to `step`.  A run that starts afresh evaluates at
 * step 0 again. */
static ft_status
cut_after(const ft_metric_log *log, int64_t step)
{
	walk w;
	off_t end = 0;

	FT_TRY(walk_start(&w, log->path));
	while (step > 0 && walk_next(&w) && w.step <= step)
		end += (off_t) w.n;
	FT_TRY(walk_end(&w, FT_OK, log->path));
	return ftruncate(log->fd, end) == 0 ? FT_OK : ft_fail_errno("could not cut \"%s\"", log->path);
}

ft_status
ft_metric_log_open(const char *directory, int64_t step, ft_metric_log **result)
{
	ft_metric_log *log;
	ft_status status;

	FT_TRY(ft_alloc((void **) &log, 1, sizeof *log));
	log->fd = -1;
	status = ft_path_join(log->path, directory, "metrics.jsonl");
	if (status == FT_OK)
	{
		log->fd = open(log->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		status =
			log->fd >= 0 ? cut_after(log, step) : ft_fail_errno("could not open \"%s\"", log->path);
	}
	if (status != FT_OK)
	{
		ft_metric_log_close(log);
		return status;
	}
	*result = log;
	return FT_OK;
}

void
ft_metric_log_close(ft_metric_log *log)
{
	if (log == NULL)
		return;
	if (log->fd >= 0)
		close(log->fd);
	free(log);
}

ft_status
ft_metric_log_append(ft_metric_log *log, const char *line, size_t n)
{
	return ft_write_all(log->fd, line, n, log->path);
}

/* The name of a new log is synced with that of the checkpoint, which lies beside it. */
ft_status
ft_metric_log_sync(ft_metric_log *log)
{
	return fdatasync(log->fd) == 0 ? FT_OK : ft_fail_errno("could not fsync \"%s\"", log->path);
}

ft_status
ft_metric_log_replay(const ft_metric_log *log, int64_t from, ft_events *events)
{
	walk w;
	ft_status status = FT_OK;

	FT_TRY(walk_start(&w, log->path));
	while (status == FT_OK && walk_next(&w))
	{
		if (w.step >= from)
			status = ft_events_send_line(events, w.line, w.n);
	}
	return walk_end(&w, status, log->path);
}
