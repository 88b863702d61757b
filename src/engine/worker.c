/*
 * worker.c: a thread with a queue of tasks.
 */
#include "worker.h"

#include "buffer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

typedef struct task
{
	void (*function)(void *argument);
	void *argument;
	struct task *next;
} task;

struct ft_worker_thread
{
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	task *tasks;
	task **tasks_end;
	pthread_cond_t end; /* on the clock that never jumps */
	bool stop;
	bool ended;
};

static void *
worker_main(void *argument)
{
	ft_worker_thread *w = argument;

	pthread_mutex_lock(&w->mutex);
	for (;;)
	{
		task *t;

		while (!w->tasks && !w->stop)
			pthread_cond_wait(&w->wake, &w->mutex);
		if (w->stop)
			break;
		t = w->tasks;
		w->tasks = t->next;
		if (!w->tasks)
			w->tasks_end = &w->tasks;
		pthread_mutex_unlock(&w->mutex);
		t->function(t->argument);
		free(t);
		pthread_mutex_lock(&w->mutex);
	}
	w->ended = true;
	pthread_cond_signal(&w->end);
	pthread_mutex_unlock(&w->mutex);
	return NULL;
}

ft_status
ft_worker_create(ft_worker_thread **worker)
{
	ft_worker_thread *w;
	pthread_condattr_t attributes;
	sigset_t all, before;

	FT_TRY(ft_alloc((void **) &w, 1, sizeof *w));
	w->tasks_end = &w->tasks;
	pthread_mutex_init(&w->mutex, NULL);
	pthread_cond_init(&w->wake, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&w->end, &attributes);
	pthread_condattr_destroy(&attributes);
	/* signals are the main thread's */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	errno = pthread_create(&w->thread, NULL, worker_main, w);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (errno != 0)
	{
		ft_status status = ft_fail_errno("could not start a thread");

		free(w);
		return status;
	}
	*worker = w;
	return FT_OK;
}

bool
ft_worker_free(ft_worker_thread *w, int milliseconds)
{
	struct timespec until;
	bool ended;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += milliseconds / 1000;
	until.tv_nsec += milliseconds % 1000 * 1000000L;
	if (until.tv_nsec >= 1000000000L)
	{
		until.tv_sec++;
		until.tv_nsec -= 1000000000L;
	}
	pthread_mutex_lock(&w->mutex);
	w->stop = true;
	pthread_cond_signal(&w->wake);
	while (!w->ended && pthread_cond_timedwait(&w->end, &w->mutex, &until) == 0)
		;
	ended = w->ended;
	pthread_mutex_unlock(&w->mutex);
	if (!ended)
		return false;
	pthread_join(w->thread, NULL);
	while (w->tasks)
	{
		task *next = w->tasks->next;

		free(w->tasks);
		w->tasks = next;
	}
	pthread_cond_destroy(&w->end);
	pthread_cond_destroy(&w->wake);
	pthread_mutex_destroy(&w->mutex);
	free(w);
	return true;
}

ft_status
ft_worker_do(ft_worker_thread *w, void (*function)(void *argument), void *argument)
{
	task *t;

	FT_TRY(ft_alloc((void **) &t, 1, sizeof *t));
	t->function = function;
	t->argument = argument;
	pthread_mutex_lock(&w->mutex);
	*w->tasks_end = t;
	w->tasks_end = &t->next;
	pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->mutex);
	return FT_OK;
}
