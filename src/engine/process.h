/*
 * process.h: what the engine owes to the process that started it.
 */
#ifndef FT_PROCESS_H
#define FT_PROCESS_H

#include "status.h"

/* One line on standard error, written at once and whole: "level: text".  Levels as PostgreSQL's:
 * "log", "warning", "error".  Never text of a prompt, a completion or a row. */
void ft_log(const char *level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* End this process at once when the descriptor (a pipe from the parent) reads end-of-file.  A
 * thread of its own waits for that, so that nothing else the process does can delay it. */
ft_status ft_process_watch_control(int fd);

#endif
