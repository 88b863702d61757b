/*
 * threads.h: the pool of threads that operations run on.
 *
 * A database host is busy, so workers sleep on a futex, the caller takes part
 * in its own job, and it never waits for a worker that has not begun: pieces
 * are taken from a counter, and a worker that wakes late finds none left.
 * Which thread takes a piece never decides the result; pieces are cut by shape.
 */
#ifndef FT_CPU_THREADS_H
#define FT_CPU_THREADS_H

#include "status.h"

#include <stdint.h>

typedef struct ft_pool ft_pool;

/* Do items [begin, end); worker is in [0, threads) and no two run with the same one at a time. */
typedef void (*ft_task)(void *context, int worker, int64_t begin, int64_t end);

/* threads - 1 threads are started; the caller of ft_pool_run() is the last one. */
ft_status ft_pool_create(int threads, ft_pool **pool);
void ft_pool_destroy(ft_pool *pool);
int ft_pool_threads(const ft_pool *pool);

/* Run task over [0, n) in pieces of `grain` items, and return when all are done.  Calls from
 * several threads take turns.  One piece, or one thread, runs on the caller alone. */
void ft_pool_run(ft_pool *pool, int64_t n, int64_t grain, ft_task task, void *context);

#endif
