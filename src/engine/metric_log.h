/*
 * metric_log.h: the events that carry metrics, kept in JOBDIR/metrics.jsonl.
 *
 * Whoever reads a run's events may die with some of them unread, and a resume
 * starts at a checkpoint: it would never tell of the steps before it.  So each
 * such event is written here first, all of them are on disk before a
 * checkpoint of their step is, and a resume can say them again.
 */
#ifndef FT_METRIC_LOG_H
#define FT_METRIC_LOG_H

#include "events.h"

#include <stdint.h>

typedef struct ft_metric_log ft_metric_log;

/* Open the log of a run that goes on after `step` steps (0: from the start): lines of later steps,
 * which will be taken again, are removed. */
ft_status ft_metric_log_open(const char *directory, int64_t step, ft_metric_log **log);
/* Does not wait for the disk.  log may be NULL. */
void ft_metric_log_close(ft_metric_log *log);

/* Append a line of n bytes as ft_event_line() makes it, of an event with a "step". */
ft_status ft_metric_log_append(ft_metric_log *log, const char *line, size_t n);
/* Wait until all of it is on disk. */
ft_status ft_metric_log_sync(ft_metric_log *log);

/* Send the lines of step `from` and later again, in their order. */
ft_status ft_metric_log_replay(const ft_metric_log *log, int64_t from, ft_events *events);

#endif
