/*
 * events.c: JSON events and heartbeats.
 */
#include "events.h"

#include "buffer.h"
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define HEARTBEAT_SECONDS 3.0 /* of silence; readers are promised one every 5 s */
#define HANG_SECONDS 60.0     /* without progress: a layer of a large model may take many */
#define WATCH_MILLISECONDS 500

struct ft_events
{
	int fd;
	int wake[2]; /* written to end the thread */
	pthread_t thread;
	pthread_mutex_t lock; /* of what follows, and of writing */
	double last_sent;
	bool broken;                /* nobody reads */
	_Atomic double alive_until; /* when a run that does not move is taken to hang */
};

double
ft_monotonic_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double) now.tv_sec + (double) now.tv_nsec * 1e-9;
}

/* The lock is held. */
static void
write_line(ft_events *events, const char *line, size_t n)
{
	if (!events->broken && ft_write_all(events->fd, line, n, "standard output") != FT_OK)
		events->broken = true;
	events->last_sent = ft_monotonic_seconds();
}

static void
maybe_heartbeat(ft_events *events)
{
	static const char line[] = "{\"event\":\"heartbeat\"}\n";
	double now = ft_monotonic_seconds();

	pthread_mutex_lock(&events->lock);
	if (now - events->last_sent >= HEARTBEAT_SECONDS && now < atomic_load(&events->alive_until))
		write_line(events, line, sizeof line - 1);
	pthread_mutex_unlock(&events->lock);
}

static void *
watch(void *argument)
{
	ft_events *events = argument;
	struct pollfd wake = {.fd = events->wake[0], .events = POLLIN};

	for (;;)
	{
		int n = poll(&wake, 1, WATCH_MILLISECONDS);

		if (n > 0 || (n < 0 && errno != EINTR))
			return NULL;
		maybe_heartbeat(events);
	}
}

/* Signals are for the main thread. */
static int
start_thread(ft_events *events)
{
	sigset_t all;
	sigset_t before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	error = pthread_create(&events->thread, NULL, watch, events);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error;
}

ft_status
ft_events_open(int fd, ft_events **result)
{
	ft_events *events;
	int error;

	FT_TRY(ft_alloc((void **) &events, 1, sizeof *events));
	events->fd = fd;
	events->last_sent = ft_monotonic_seconds();
	ft_events_progress(events);
	pthread_mutex_init(&events->lock, NULL);
	if (pipe2(events->wake, O_CLOEXEC) < 0)
	{
		free(events);
		return ft_fail_errno("could not create a pipe");
	}
	error = start_thread(events);
	if (error != 0)
	{
		close(events->wake[0]);
		close(events->wake[1]);
		free(events);
		errno = error;
		return ft_fail_errno("could not start a thread");
	}
	*result = events;
	return FT_OK;
}

void
ft_events_close(ft_events *events)
{
	if (events == NULL)
		return;
	/* end-of-file wakes the thread as well as a byte would, and cannot fail */
	close(events->wake[1]);
	pthread_join(events->thread, NULL);
	close(events->wake[0]);
	pthread_mutex_destroy(&events->lock);
	free(events);
}

ft_status
ft_event_line(const char *name, json_t *fields, char **line, size_t *n)
{
	json_t *event = json_pack("{s:s}", "event", name);

	if (fields != NULL)
		json_object_update(event, fields);
	json_decref(fields);
	*line = json_dumps(event, JSON_COMPACT | JSON_REAL_PRECISION(9));
	json_decref(event);
	if (*line == NULL)
		return ft_fail(FT_INTERNAL, "event \"%s\" cannot be written as JSON", name);
	*n = strlen(*line) + 1;
	(*line)[*n - 1] = '\n'; /* in place of the NUL */
	return FT_OK;
}

/* One write a line: a reader of a pipe never sees parts of two. */
ft_status
ft_events_send_line(ft_events *events, const char *line, size_t n)
{
	bool broken;

	pthread_mutex_lock(&events->lock);
	write_line(events, line, n);
	broken = events->broken;
	pthread_mutex_unlock(&events->lock);
	ft_events_progress(events);
	return broken ? ft_fail(FT_CANCELLED, "nobody reads the events any more") : FT_OK;
}

ft_status
ft_events_send(ft_events *events, const char *name, json_t *fields)
{
	char *line;
	size_t n;
	ft_status status;

	FT_TRY(ft_event_line(name, fields, &line, &n));
	status = ft_events_send_line(events, line, n);
	free(line);
	return status;
}

void
ft_events_failed(ft_events *events, ft_status code)
{
	json_t *fields =
		json_pack("{s:s, s:s}", "code", ft_status_name(code), "message", ft_error_message());

	/* a message that is no UTF-8 (a path) must not keep the code from being told */
	if (fields == NULL)
		fields = json_pack("{s:s, s:s}", "code", ft_status_name(code), "message",
						   "the message is not valid UTF-8");
	if (ft_error_hint()[0] != '\0')
		json_object_set_new(fields, "hint", json_string(ft_error_hint()));
	ft_events_send(events, "failed", fields);
}

void
ft_events_progress(ft_events *events)
{
	atomic_store(&events->alive_until, ft_monotonic_seconds() + HANG_SECONDS);
}

void
ft_events_long_call(ft_events *events, double seconds)
{
	atomic_store(&events->alive_until, ft_monotonic_seconds() + seconds);
}
