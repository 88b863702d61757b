/*
 * fair_queue.h: requests that wait, by whose they are.
 *
 * Those who give one cache_salt are one caller (each role of each database is).
 * Who has a thousand requests waiting must not keep another one's single request
 * waiting behind them all.  So of the callers whose requests wait, the one with
 * the fewest running ones is next, of several the one whose request came first;
 * a caller's own requests are let in as they came.  And no caller takes all
 * places of the queue, as long as there are several.
 *
 * Two threads use it: what is accepted is counted under the scheduler's mutex,
 * what waits and runs is the scheduler's thread's own.
 */
#ifndef FT_FAIR_QUEUE_H
#define FT_FAIR_QUEUE_H

#include "scheduler.h"

typedef struct ft_share ft_share;

/* Zero-initialise it; empty again, it holds nothing. */
typedef struct ft_fair_queue
{
	/* private */
	ft_share *shares;    /* of callers with accepted requests */
	ft_share *waiting;   /* of those with waiting ones */
	uint64_t n_appended; /* ever */
} ft_fair_queue;

/* --- under the mutex --- */

/* A request is accepted: FT_BUSY when its caller has `limit` others that have not left. */
ft_status ft_fair_enter(ft_fair_queue *queue, ft_request *request, int limit);
/* It has ended, and neither waits nor runs. */
void ft_fair_leave(ft_fair_queue *queue, ft_request *request);

/* --- the scheduler's thread --- */

/* It waits, behind the caller's others. */
void ft_fair_append(ft_fair_queue *queue, ft_request *request);
/* It ran, and waits again, before the caller's others. */
void ft_fair_put_back(ft_fair_queue *queue, ft_request *request);
/* What is to be let in next, over a base whose `full` is not `round`; NULL: nothing. */
ft_request *ft_fair_next(const ft_fair_queue *queue, uint64_t round);
/* It, or another one that waits, runs from now on; */
void ft_fair_run(ft_fair_queue *queue, ft_request *request);
/* and no longer. */
void ft_fair_stop(ft_request *request);
/* Take out those that wait and are cancelled (or everybody): a list, by their `next`. */
ft_request *ft_fair_take_cancelled(ft_fair_queue *queue, bool everybody);
int ft_fair_waiting(const ft_fair_queue *queue);

#endif
