/*
 * events.h: what a training run tells its parent, one JSON object a line on
 * standard output (README.md), and the watch over its progress.
 *
 * Heartbeats mean progress, not merely life: the watching thread sends them
 * only while the run has moved lately, or is inside a call that was announced
 * to be long.  So a run that hangs falls silent.
 */
#ifndef FT_EVENTS_H
#define FT_EVENTS_H

#include "status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct ft_events ft_events;

/* Events go to `fd`.  Starts the watching thread. */
ft_status ft_events_open(int fd, ft_events **events);
/* Ends the thread.  Does not close the descriptor. */
void ft_events_close(ft_events *events);

/* Send {"event": name, …fields}; takes over the reference to fields (may be NULL).  FT_CANCELLED
 * when nobody reads any more. */
ft_status ft_events_send(ft_events *events, const char *name, json_t *fields);
/* The same in two steps: the line of n bytes, newline included (free it), and its sending. */
ft_status ft_event_line(const char *name, json_t *fields, char **line, size_t *n);
ft_status ft_events_send_line(ft_events *events, const char *line, size_t n);
/* "failed", with the words of this thread's last failure. */
void ft_events_failed(ft_events *events, ft_status code);

/* The run has moved on; cheap, called between layers and rows.  A minute without it is a hang. */
void ft_events_progress(ft_events *events);
/* Until the next progress, up to so many seconds without it are no hang. */
void ft_events_long_call(ft_events *events, double seconds);

/* Seconds on a clock that never jumps. */
double ft_monotonic_seconds(void);

#endif
