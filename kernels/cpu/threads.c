/*
 * threads.c: the pool of threads that operations run on.
 *
 * The state of a job is one word: a flag "open" and the number of workers that
 * have joined.  A worker joins by compare-and-swap while the flag is set, so
 * once the caller has cleared it, nobody else can touch the job, and the
 * caller waits only for those that did join.
 */
#include "threads.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Nanoseconds for which a worker looks for the next job before it goes to sleep.  The most spans
 * what the caller does alone between two operations of a step: a thread that is woken may come to
 * run on the core of the one that has woken it, and wait there for its end, so that sleeping
 * between operations can cost half of the speed.  Where a core has other work to do, though, who
 * has slept is let in sooner than who has kept the core busy. */
#define MOST_SPIN 50000
#define LEAST_SPIN 5000
/* The same for the caller, who waits for the last pieces: other than the worker it has nothing to
 * gain from sleep.  What lasts longer is a worker whose core is taken. */
#define CALLER_SPIN 200000
#define SPIN_ROUNDS 16 /* between looks at the clock */

#define JOB_OPEN 0x80000000u

typedef struct ft_worker
{
	ft_pool *pool;
	int index;
	pthread_t thread;
} ft_worker;

struct ft_pool
{
	int threads;
	int started;
	ft_worker *workers;
	pthread_mutex_t turn; /* one job at a time */

	/* the job */
	ft_task task;
	void *context;
	int64_t n;
	int64_t grain;
	_Alignas(64) _Atomic int64_t next;
	_Alignas(64) _Atomic uint32_t state;      /* JOB_OPEN | workers that joined */
	_Alignas(64) _Atomic uint32_t generation; /* workers sleep on it */
	_Atomic uint32_t sleepers;
	_Atomic uint32_t caller_sleeps;
	_Atomic int64_t worker_spin; /* nanoseconds */
	_Atomic bool stop;
};

static void
futex_wait(_Atomic uint32_t *word, uint32_t value)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void
futex_wake(_Atomic uint32_t *word, int count)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static inline void
relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

static int64_t
nanoseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Wait for the word to be, or to be no more, the value; false when that takes longer. */
static bool
spin(_Atomic uint32_t *word, uint32_t value, bool equal, int64_t duration)
{
	int64_t end = 0;

	for (;;)
	{
		int64_t now;

		for (int i = 0; i < SPIN_ROUNDS; i++)
		{
			if ((atomic_load_explicit(word, memory_order_acquire) == value) == equal)
				return true;
			relax();
		}
		now = nanoseconds();
		if (end == 0)
			end = now + duration;
		else if (now >= end)
			return false;
	}
}

static void
take_pieces(ft_pool *pool, int worker)
{
	for (;;)
	{
		int64_t begin = atomic_fetch_add_explicit(&pool->next, pool->grain, memory_order_relaxed);
		int64_t end;

		if (begin >= pool->n)
			return;
		end = begin + pool->grain < pool->n ? begin + pool->grain : pool->n;
		pool->task(pool->context, worker, begin, end);
	}
}

static bool
join_job(ft_pool *pool)
{
	uint32_t state = atomic_load_explicit(&pool->state, memory_order_relaxed);

	while (state & JOB_OPEN)
		if (atomic_compare_exchange_weak_explicit(&pool->state, &state, state + 1,
												  memory_order_acquire, memory_order_relaxed))
			return true;
	return false;
}

static void
leave_job(ft_pool *pool)
{
	uint32_t before = atomic_fetch_sub(&pool->state, 1);

	if (before == 1 && atomic_load(&pool->caller_sleeps))
		futex_wake(&pool->state, 1);
}

/* Wait until the generation differs from the one seen last. */
static uint32_t
next_generation(ft_pool *pool, uint32_t seen)
{
	uint32_t now;

	if (spin(&pool->generation, seen, false,
			 atomic_load_explicit(&pool->worker_spin, memory_order_relaxed)))
		return atomic_load_explicit(&pool->generation, memory_order_acquire);
	atomic_fetch_add(&pool->sleepers, 1);
	while ((now = atomic_load(&pool->generation)) == seen)
		futex_wait(&pool->generation, seen);
	atomic_fetch_sub(&pool->sleepers, 1);
	return now;
}

static void *
worker_main(void *arg)
{
	ft_worker *worker = arg;
	ft_pool *pool = worker->pool;
	uint32_t seen = 0;

	for (;;)
	{
		seen = next_generation(pool, seen);
		if (atomic_load(&pool->stop))
			return NULL;
		if (join_job(pool))
		{
			take_pieces(pool, worker->index);
			leave_job(pool);
		}
	}
}

static void
wait_for_workers(ft_pool *pool)
{
	int64_t workers = atomic_load_explicit(&pool->worker_spin, memory_order_relaxed);

	if (spin(&pool->state, 0, true, CALLER_SPIN))
	{
		workers += workers / 256;
		atomic_store_explicit(&pool->worker_spin, workers < MOST_SPIN ? workers : MOST_SPIN,
							  memory_order_relaxed);
		return;
	}
	atomic_store_explicit(&pool->worker_spin, workers / 2 > LEAST_SPIN ? workers / 2 : LEAST_SPIN,
						  memory_order_relaxed);
	atomic_store(&pool->caller_sleeps, 1);
	for (;;)
	{
		uint32_t state = atomic_load(&pool->state);

		if (state == 0)
			break;
		futex_wait(&pool->state, state);
	}
	atomic_store(&pool->caller_sleeps, 0);
}

void
ft_pool_run(ft_pool *pool, int64_t n, int64_t grain, ft_task task, void *context)
{
	int64_t pieces;

	if (n <= 0)
		return;
	if (grain < 1)
		grain = 1;
	pieces = (n + grain - 1) / grain;
	pthread_mutex_lock(&pool->turn);
	if (pool->threads == 1 || pieces == 1)
	{
		task(context, 0, 0, n);
		pthread_mutex_unlock(&pool->turn);
		return;
	}
	pool->task = task;
	pool->context = context;
	pool->n = n;
	pool->grain = grain;
	atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
	atomic_store(&pool->state, JOB_OPEN);
	atomic_fetch_add(&pool->generation, 1);
	if (atomic_load(&pool->sleepers) > 0)
		futex_wake(&pool->generation, pieces - 1 < INT_MAX ? (int) (pieces - 1) : INT_MAX);

	take_pieces(pool, 0);
	atomic_fetch_and(&pool->state, ~JOB_OPEN);
	wait_for_workers(pool);
	pthread_mutex_unlock(&pool->turn);
}

ft_status
ft_pool_create(int threads, ft_pool **result)
{
	ft_pool *pool;
	sigset_t all;
	sigset_t before;

	if (posix_memalign((void **) &pool, 64, sizeof *pool) != 0)
		return ft_fail(FT_NO_MEMORY, "out of memory for a pool of %d threads", threads);
	memset(pool, 0, sizeof *pool);
	pool->threads = threads;
	pool->worker_spin = MOST_SPIN;
	pool->workers = calloc((size_t) threads, sizeof *pool->workers);
	if (pool->workers == NULL)
	{
		free(pool);
		return ft_fail(FT_NO_MEMORY, "out of memory for a pool of %d threads", threads);
	}
	pthread_mutex_init(&pool->turn, NULL);

	/* signals are for the threads of the program, not for ours */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	for (int i = 1; i < threads; i++)
	{
		pool->workers[i] = (ft_worker){.pool = pool, .index = i};
		errno = pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i]);
		if (errno != 0)
		{
			ft_status status = ft_fail_errno("could not start thread %d of %d", i + 1, threads);

			pthread_sigmask(SIG_SETMASK, &before, NULL);
			ft_pool_destroy(pool);
			return status;
		}
		pool->started++;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	*result = pool;
	return FT_OK;
}

void
ft_pool_destroy(ft_pool *pool)
{
	if (pool == NULL)
		return;
	atomic_store(&pool->stop, true);
	atomic_fetch_add(&pool->generation, 1);
	futex_wake(&pool->generation, INT_MAX);
	for (int i = 1; i <= pool->started; i++)
		pthread_join(pool->workers[i].thread, NULL);
	pthread_mutex_destroy(&pool->turn);
	free(pool->workers);
	free(pool);
}

int
ft_pool_threads(const ft_pool *pool)
{
	return pool->threads;
}
