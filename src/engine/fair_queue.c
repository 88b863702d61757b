/*
 * fair_queue.c: requests that wait, by whose they are.
 */
#include "fair_queue.h"

#include <stdlib.h>
#include <string.h>

struct ft_share
{
	char *salt;
	ft_share *next; /* of all shares */
	int accepted;   /* requests that have not left */

	/* the scheduler's thread's */
	int running;
	ft_request *first; /* that waits */
	ft_request **end;
	ft_share *next_waiting; /* where first is not NULL */
};

/* --- under the mutex --- */

static const char *
salt_of(const ft_request *request)
{
	return request->cache_salt ? request->cache_salt : "";
}

static ft_status
create(ft_fair_queue *queue, const char *salt, ft_share **share)
{
	FT_TRY(ft_alloc((void **) share, 1, sizeof **share));
	(*share)->salt = strdup(salt);
	if (!(*share)->salt)
	{
		free(*share);
		return ft_fail(FT_NO_MEMORY, "out of memory");
	}
	(*share)->end = &(*share)->first;
	(*share)->next = queue->shares;
	queue->shares = *share;
	return FT_OK;
}

ft_status
ft_fair_enter(ft_fair_queue *queue, ft_request *request, int limit)
{
	const char *salt = salt_of(request);
	ft_share *share = queue->shares;

	while (share && strcmp(share->salt, salt) != 0)
		share = share->next;
	if (share && share->accepted >= limit)
		return ft_hint(ft_fail(FT_BUSY,
							   "%d requests of this caller are waiting or running, the limit is %d",
							   share->accepted, limit),
					   "Try again later, or ask for less at a time.");
	if (!share)
		FT_TRY(create(queue, salt, &share));
	share->accepted++;
	request->share = share;
	return FT_OK;
}

void
ft_fair_leave(ft_fair_queue *queue, ft_request *request)
{
	ft_share *share = request->share;
	ft_share **at = &queue->shares;

	request->share = NULL;
	if (--share->accepted > 0)
		return;
	while (*at != share)
		at = &(*at)->next;
	*at = share->next;
	free(share->salt);
	free(share);
}

/* --- the scheduler's thread --- */

/* Its first request waits now. */
static void
link_share(ft_fair_queue *queue, ft_share *share)
{
	share->next_waiting = queue->waiting;
	queue->waiting = share;
}

/* Its last one waits no longer. */
static void
unlink_share(ft_fair_queue *queue, ft_share *share)
{
	ft_share **at = &queue->waiting;

	while (*at != share)
		at = &(*at)->next_waiting;
	*at = share->next_waiting;
}

void
ft_fair_append(ft_fair_queue *queue, ft_request *request)
{
	ft_share *share = request->share;

	if (!share->first)
		link_share(queue, share);
	request->number = queue->n_appended++;
	request->next = NULL;
	*share->end = request;
	share->end = &request->next;
}

void
ft_fair_put_back(ft_fair_queue *queue, ft_request *request)
{
	ft_share *share = request->share;

	if (!share->first)
	{
		link_share(queue, share);
		share->end = &request->next;
	}
	request->next = share->first;
	share->first = request;
}

/* Take a request out of its share, where `at` points to it. */
static void
take_out(ft_share *share, ft_request **at)
{
	ft_request *request = *at;

	*at = request->next;
	if (!*at)
		share->end = at;
	request->next = NULL;
}

ft_request *
ft_fair_next(const ft_fair_queue *queue, uint64_t round)
{
	ft_request *best = NULL;

	for (const ft_share *share = queue->waiting; share; share = share->next_waiting)
	{
		ft_request *first = share->first;

		while (first && first->model.base->full == round)
			first = first->next;
		if (!first)
			continue;
		if (!best || share->running < best->share->running ||
			(share->running == best->share->running && first->number < best->number))
			best = first;
	}
	return best;
}

void
ft_fair_run(ft_fair_queue *queue, ft_request *request)
{
	ft_share *share = request->share;
	ft_request **at = &share->first;

	while (*at != request)
		at = &(*at)->next;
	take_out(share, at);
	if (!share->first)
		unlink_share(queue, share);
	share->running++;
}

void
ft_fair_stop(ft_request *request)
{
	request->share->running--;
}

ft_request *
ft_fair_take_cancelled(ft_fair_queue *queue, bool everybody)
{
	ft_request *taken = NULL;
	ft_request **end = &taken;

	for (ft_share **share = &queue->waiting; *share;)
	{
		ft_share *s = *share;

		for (ft_request **at = &s->first; *at;)
		{
			ft_request *request = *at;

			if (!everybody && !atomic_load(&request->cancelled))
			{
				at = &request->next;
				continue;
			}
			take_out(s, at);
			*end = request;
			end = &request->next;
		}
		if (s->first)
			share = &s->next_waiting;
		else
			*share = s->next_waiting;
	}
	return taken;
}

int
ft_fair_waiting(const ft_fair_queue *queue)
{
	int n = 0;

	for (const ft_share *share = queue->waiting; share; share = share->next_waiting)
		for (const ft_request *request = share->first; request; request = request->next)
			n++;
	return n;
}
