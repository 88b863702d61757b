/*
 * worker.h: a thread that does slow things one after the other, so that the
 * event loop need not.
 */
#ifndef FT_WORKER_H
#define FT_WORKER_H

#include "status.h"

#include <stdbool.h>

typedef struct ft_worker_thread ft_worker_thread;

ft_status ft_worker_create(ft_worker_thread **worker);
/* Ends the thread after the task that it is doing; tasks not begun are never done.  False, and
 * nothing is freed, when it has not ended after that many milliseconds. */
bool ft_worker_free(ft_worker_thread *worker, int milliseconds);

/* Queue a task.  From any thread. */
ft_status ft_worker_do(ft_worker_thread *worker, void (*task)(void *argument), void *argument);

#endif
