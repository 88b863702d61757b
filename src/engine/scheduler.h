/*
 * scheduler.h: continuous batching.
 *
 * One thread owns the device and steps through batches: at each step every
 * sequence that is being answered gains a token, prompts of new ones are read
 * in pieces beside them, and whoever has ended, or whose client has gone,
 * leaves.  When the cache runs out of blocks, the youngest sequence gives its
 * own back and is computed again later; because the arithmetic does not depend
 * on batch or pieces, that changes no answer.
 */
#ifndef FT_SCHEDULER_H
#define FT_SCHEDULER_H

#include "registry.h"
#include "sampler.h"
#include "sequence.h"

#include <stdatomic.h>

typedef struct ft_scheduler ft_scheduler;
typedef struct ft_request ft_request;

/* Called in the scheduler's thread, once for each request that was accepted, when it has ended. */
typedef void (*ft_request_done)(ft_request *request);

/* One completion.  The caller makes it (ft_request_create), fills in the first part, submits it,
 * and from `done` on owns it again. */
struct ft_request
{
	/* what is wanted */
	ft_model_ref model; /* the request's own reference; given back by the caller */
	ft_ids prompt;
	ft_sampling sampling;
	ft_constraint *constraint; /* of the model's base; the caller's, NULL: none */
	char *cache_salt;          /* owned: who asks, and may share cache blocks; NULL means "" */
	ft_request_done done;
	ft_request_done progress; /* NULL, or called likewise after each token but the last */
	void *context;            /* the caller's */

	/* what came of it; message and hint where status is not FT_OK */
	ft_status status;
	char message[512];
	char hint[256];
	ft_generation generation;
	size_t cached_tokens; /* of the prompt, that were in the cache when it was let in */

	/* private */
	atomic_bool cancelled;
	ft_sequence sequence;
	bool admitted;          /* has run before */
	ft_request *next;       /* in the queue */
	struct ft_share *share; /* of the queue (fair_queue.h) */
	uint64_t number;        /* in order of arrival there */
};

typedef struct ft_scheduler_stats
{
	int waiting;
	int running;
	uint64_t steps;
	uint64_t rows;   /* computed: tokens of prompts and answers, repeated ones included */
	uint64_t tokens; /* drawn */
	uint64_t preemptions;
	uint64_t prompt_tokens; /* of requests that were let in */
	uint64_t cached_tokens; /* of them, found in the cache */
} ft_scheduler_stats;

/* max_requests bounds those waiting and running together; one caller (one cache_salt) may have
 * seven eighths of these. */
ft_status
ft_scheduler_create(const ft_registry_config *config, int max_requests, ft_scheduler **scheduler);
/* Ends all requests with FT_CANCELLED, within a step, and waits for the thread. */
void ft_scheduler_stop(ft_scheduler *scheduler);
void ft_scheduler_free(ft_scheduler *scheduler);

ft_status ft_request_create(ft_request **request);
/* Everything but the model's reference. */
void ft_request_free(ft_request *request);

/* Take the request into the queue.  FT_BUSY when that is full, FT_INVALID when the prompt leaves no
 * room in the context (both numbers in the message); then `done` is not called. */
ft_status ft_scheduler_submit(ft_scheduler *scheduler, ft_request *request);

/* The client has gone: end the request with FT_CANCELLED at the next step.  Safe until `done`
 * returns. */
void ft_request_cancel(ft_request *request);

void ft_scheduler_get_stats(ft_scheduler *scheduler, ft_scheduler_stats *stats);

#endif
