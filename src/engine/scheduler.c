/*
 * scheduler.c: which sequences run in the next step, and what follows from it.
 *
 * A request goes queue → waiting → running → done.  The queue is shared with
 * other threads, under the mutex; waiting (fair_queue.h) and running belong to
 * the scheduler's thread.  The running list is in order of admission, so its last
 * one over a base is the youngest, which is the one to give way.
 */
#include "scheduler.h"

#include "fair_queue.h"
#include "process.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Prompt rows beside decoding sequences, at most: more would hold up their next token. */
#define PREFILL_ROWS_SHARED 128

struct ft_scheduler
{
	ft_registry_config config;
	int max_requests;
	pthread_t thread;
	bool started;

	pthread_mutex_t mutex; /* over the queue, the count, stop and stats */
	pthread_cond_t wake;
	ft_request *queue_first;
	ft_request **queue_end;
	int n_requests; /* accepted and not done */
	ft_fair_queue waiting;
	bool stop;
	ft_scheduler_stats stats;

	/* the scheduler's thread's own */
	ft_request **running;
	size_t n_running;
	uint64_t round; /* of admission and steps, marks the bases seen in it */
	ft_scheduler_stats now;

	/* one step */
	ft_request **batch; /* [max_sequences] */
	int n_batch;
	ft_decode_item *items;
	ft_sample *samples;
	int32_t *drawn;
};

/* --- requests --- */

ft_status
ft_request_create(ft_request **request)
{
	FT_TRY(ft_alloc((void **) request, 1, sizeof **request));
	ft_sampling_default(&(*request)->sampling);
	return FT_OK;
}

void
ft_request_free(ft_request *request)
{
	if (!request)
		return;
	ft_ids_free(&request->prompt);
	ft_sequence_free(&request->sequence);
	ft_sampling_free(&request->sampling);
	ft_generation_free(&request->generation);
	free(request->cache_salt);
	free(request);
}

/* Keep the words of the failure recorded last. */
static void
record_failure(ft_request *request, ft_status status)
{
	request->status = status;
	snprintf(request->message, sizeof request->message, "%s", ft_error_message());
	snprintf(request->hint, sizeof request->hint, "%s", ft_error_hint());
}

/* Hand a request, no longer in any list, back to its caller. */
static void
finish(ft_scheduler *s, ft_request *request)
{
	ft_sequence_give_back(&request->sequence);
	ft_generation_end(&request->generation);
	pthread_mutex_lock(&s->mutex);
	s->n_requests--;
	ft_fair_leave(&s->waiting, request);
	pthread_mutex_unlock(&s->mutex);
	request->done(request);
}

static void
finish_cancelled(ft_scheduler *s, ft_request *request)
{
	record_failure(request, ft_fail(FT_CANCELLED, "request was cancelled"));
	finish(s, request);
}

/* NULL: the request shares no cache blocks. */
static const char *
salt_of(const ft_scheduler *s, const ft_request *request)
{
	if (s->config.no_prefix_cache)
		return NULL;
	return request->cache_salt ? request->cache_salt : "";
}

ft_status
ft_scheduler_submit(ft_scheduler *s, ft_request *request)
{
	const ft_base *base = request->model.base;
	size_t prompt = request->prompt.length;
	int limit = request->sampling.max_tokens;
	ft_status status = FT_OK;

	if (prompt == 0)
		return ft_fail(FT_INVALID, "the prompt has no tokens");
	if (prompt >= (size_t) base->context)
		return ft_fail(FT_INVALID, "the prompt has %zu tokens, the context of the model is %d",
					   prompt, base->context);
	if (limit > base->context - (int) prompt)
		limit = base->context - (int) prompt;
	ft_generation_start(&request->generation, base->tokenizer, &base->model->config,
						&request->sampling, request->constraint, limit);
	FT_TRY(ft_generation_read_prompt(&request->generation, request->prompt.data, prompt));
	FT_TRY(ft_sequence_begin(&request->sequence, base->model, base->cache, request->prompt.data,
							 prompt, (size_t) limit, salt_of(s, request),
							 request->model.lora ? request->model.lora->serial : 0));
	request->next = NULL;

	pthread_mutex_lock(&s->mutex);
	if (s->stop)
		status = ft_fail(FT_CANCELLED, "the engine is shutting down");
	else if (s->n_requests >= s->max_requests)
		status = ft_hint(ft_fail(FT_BUSY, "%d requests are waiting or running, the limit is %d",
								 s->n_requests, s->max_requests),
						 "Try again later.");
	else
		status = ft_fair_enter(&s->waiting, request, s->max_requests - s->max_requests / 8);
	if (status == FT_OK)
	{
		s->n_requests++;
		*s->queue_end = request;
		s->queue_end = &request->next;
		pthread_cond_signal(&s->wake);
	}
	pthread_mutex_unlock(&s->mutex);
	return status;
}

void
ft_request_cancel(ft_request *request)
{
	atomic_store(&request->cancelled, true);
}

/* --- admission --- */

/* Take over what was submitted; without work, wait for some.  False when it is time to end. */
static bool
collect(ft_scheduler *s)
{
	ft_request *arrived;
	bool go_on;

	pthread_mutex_lock(&s->mutex);
	while (!s->stop && !s->queue_first && !s->waiting.waiting && s->n_running == 0)
		pthread_cond_wait(&s->wake, &s->mutex);
	arrived = s->queue_first;
	s->queue_first = NULL;
	s->queue_end = &s->queue_first;
	go_on = !s->stop;
	pthread_mutex_unlock(&s->mutex);
	while (arrived)
	{
		ft_request *request = arrived;

		arrived = request->next;
		ft_fair_append(&s->waiting, request);
	}
	return go_on;
}

static void
remove_running(ft_scheduler *s, size_t index)
{
	ft_fair_stop(s->running[index]);
	s->n_running--;
	memmove(&s->running[index], &s->running[index + 1],
			(s->n_running - index) * sizeof s->running[0]);
}

static void
end_running(ft_scheduler *s, ft_request *request)
{
	for (size_t i = 0; i < s->n_running; i++)
		if (s->running[i] == request)
		{
			remove_running(s, i);
			break;
		}
	finish(s, request);
}

/* Drop those whose client has gone (or everybody). */
static void
drop_cancelled(ft_scheduler *s, bool everybody)
{
	ft_request *waiting;

	for (size_t i = s->n_running; i-- > 0;)
	{
		ft_request *request = s->running[i];

		if (everybody || atomic_load(&request->cancelled))
		{
			remove_running(s, i);
			finish_cancelled(s, request);
		}
	}
	waiting = ft_fair_take_cancelled(&s->waiting, everybody);
	while (waiting)
	{
		ft_request *request = waiting;

		waiting = request->next;
		finish_cancelled(s, request);
	}
}

static int
running_over(const ft_scheduler *s, const ft_base *base)
{
	int n = 0;

	for (size_t i = 0; i < s->n_running; i++)
		n += s->running[i]->model.base == base;
	return n;
}

/* Find the request's beginning in the cache and blocks for the rest; false, with nothing held, when
 * fewer are free. */
static bool
let_in(ft_scheduler *s, ft_request *request)
{
	ft_sequence *sequence = &request->sequence;

	ft_sequence_find(sequence);
	if (!ft_sequence_reserve(sequence, sequence->tokens.length + 1))
	{
		ft_sequence_give_back(sequence);
		return false;
	}
	if (!request->admitted)
	{
		request->admitted = true;
		request->cached_tokens = sequence->computed;
		s->now.prompt_tokens += request->prompt.length;
		s->now.cached_tokens += request->cached_tokens;
	}
	return true;
}

/*
 * Let waiting requests in, in fair order, as long as their base has a place and
 * blocks for all of their tokens so far.  Nobody overtakes one over the same base
 * that is next, or a long prompt would wait for ever.
 */
static void
admit(ft_scheduler *s)
{
	ft_request *request;

	s->round++;
	while ((request = ft_fair_next(&s->waiting, s->round)))
	{
		ft_base *base = request->model.base;

		if (running_over(s, base) >= s->config.max_sequences || !let_in(s, request))
		{
			base->full = s->round;
			continue;
		}
		ft_fair_run(&s->waiting, request);
		s->running[s->n_running++] = request;
	}
}

/* Send the youngest over the base back to the head of the queue; false when `keep` is the only one.
 */
static bool
preempt_youngest(ft_scheduler *s, const ft_request *keep, ft_request **victim)
{
	for (size_t i = s->n_running; i-- > 0;)
	{
		ft_request *request = s->running[i];

		if (request->model.base != keep->model.base)
			continue;
		if (request == keep && running_over(s, keep->model.base) == 1)
			return false;
		remove_running(s, i);
		ft_sequence_give_back(&request->sequence);
		ft_fair_put_back(&s->waiting, request);
		s->now.preemptions++;
		*victim = request;
		return true;
	}
	return false;
}

/* --- one step --- */

static size_t
rows_left(const ft_request *request)
{
	return request->sequence.tokens.length - request->sequence.computed;
}

static void
add_to_batch(ft_scheduler *s, ft_request *request, size_t rows)
{
	const ft_sequence *sequence = &request->sequence;

	s->batch[s->n_batch] = request;
	s->items[s->n_batch++] = (ft_decode_item){
		.tokens = sequence->tokens.data + sequence->computed,
		.rows = (int) rows,
		.context = (int) sequence->computed,
		.blocks = sequence->blocks,
		.adapter = request->model.lora ? request->model.lora->adapter : NULL,
		.wants_logits = rows == rows_left(request),
	};
}

/* Make sure that all that decode over the base have a block for their next token.  Oldest first:
 * they are the last to give way. */
static void
extend_blocks(ft_scheduler *s, const ft_base *base)
{
	for (size_t i = 0; i < s->n_running; i++)
	{
		ft_request *request = s->running[i];

		if (request->model.base != base)
			continue;
		while (!ft_sequence_reserve(&request->sequence, request->sequence.tokens.length))
		{
			ft_request *victim = NULL;

			if (!preempt_youngest(s, request, &victim))
			{
				record_failure(request, ft_fail(FT_INTERNAL, "a cache of %d blocks is too small",
												base->cache->n_blocks));
				end_running(s, request);
				return;
			}
			if (victim == request)
				return; /* it was the youngest: all before it have theirs */
		}
	}
}

/* Choose the rows of the next step over a base: a row of everyone who decodes, then prompts. */
static void
choose_batch(ft_scheduler *s, const ft_base *base)
{
	int room = s->config.max_rows;

	s->n_batch = 0;
	for (size_t i = 0; i < s->n_running; i++)
	{
		ft_request *request = s->running[i];

		if (request->model.base == base && rows_left(request) == 1)
		{
			add_to_batch(s, request, 1);
			room--;
		}
	}
	if (s->n_batch > 0 && room > PREFILL_ROWS_SHARED)
		room = PREFILL_ROWS_SHARED;
	for (size_t i = 0; i < s->n_running && room > 0; i++)
	{
		ft_request *request = s->running[i];
		size_t rows = rows_left(request);

		if (request->model.base != base || rows == 1)
			continue;
		if (rows > (size_t) room)
			rows = (size_t) room;
		if (s->config.prefill_rows > 0 && rows > (size_t) s->config.prefill_rows)
			rows = (size_t) s->config.prefill_rows;
		add_to_batch(s, request, rows);
		room -= (int) rows;
	}
}

/* Bring items of one adapter together, in the order of their first ones. */
static void
group_by_adapter(ft_scheduler *s)
{
	int done = 0;

	while (done < s->n_batch)
	{
		const ft_adapter *adapter = s->items[done].adapter;

		for (int i = done; i < s->n_batch; i++)
		{
			ft_decode_item item = s->items[i];
			ft_request *request = s->batch[i];

			if (item.adapter != adapter)
				continue;
			memmove(&s->items[done + 1], &s->items[done], (size_t) (i - done) * sizeof s->items[0]);
			memmove(&s->batch[done + 1], &s->batch[done], (size_t) (i - done) * sizeof s->batch[0]);
			s->items[done] = item;
			s->batch[done++] = request;
		}
	}
}

/* A request's logits.  What fails here is this request's alone. */
static void
edit_logits(void *context, float *logits)
{
	ft_request *request = context;
	ft_status status = ft_generation_edit(&request->generation, logits);

	if (status != FT_OK)
		record_failure(request, status);
}

/* Run the batch and draw a token for each sequence that has all of its tokens in the cache now. */
static ft_status
compute(ft_scheduler *s, const ft_base *base)
{
	int wanted = 0;

	FT_TRY(ft_decoder_run(base->decoder, base->cache, s->items, s->n_batch));
	for (int i = 0; i < s->n_batch; i++)
	{
		ft_request *request = s->batch[i];

		if (!s->items[i].wants_logits)
			continue;
		if (ft_generation_edits(&request->generation))
			FT_TRY(ft_decoder_edit_logits(base->decoder, wanted, edit_logits, request));
		s->samples[wanted++] = ft_generation_draw(&request->generation);
	}
	if (wanted == 0)
		return FT_OK;
	return ft_decoder_sample(base->decoder, s->samples, s->drawn);
}

/* Logits that are not finite (of a damaged model, say) may draw anything. */
static ft_status
check_drawn(const ft_request *request, int32_t id)
{
	int vocab = request->model.base->model->config.vocab;

	if (id < 0 || id >= vocab)
		return ft_fail(FT_NON_FINITE, "token %d was drawn from a vocabulary of %d", id, vocab);
	return FT_OK;
}

/* The token drawn for a request becomes part of its answer. */
static ft_status
take_drawn(ft_scheduler *s, ft_request *request, int32_t id)
{
	s->now.tokens++;
	FT_TRY(check_drawn(request, id));
	FT_TRY(ft_generation_push(&request->generation, id));
	return ft_ids_push(&request->sequence.tokens, id);
}

/* What the step means for each of the batch. */
static void
account(ft_scheduler *s, ft_status status)
{
	int drawn = 0;

	if (status != FT_OK)
		ft_log("error", "a step of %d sequences failed: %s", s->n_batch, ft_error_message());
	for (int i = 0; i < s->n_batch; i++)
	{
		ft_request *request = s->batch[i];
		const ft_decode_item *item = &s->items[i];
		ft_status own = status;

		if (own == FT_OK)
		{
			own = ft_sequence_computed(&request->sequence, (size_t) item->rows);
			s->now.rows += (uint64_t) item->rows;
		}
		if (own == FT_OK && request->status == FT_OK && item->wants_logits)
			own = take_drawn(s, request, s->drawn[drawn]);
		drawn += item->wants_logits;
		if (own != FT_OK)
			record_failure(request, own);
		if (request->status != FT_OK || request->generation.finish != FT_FINISH_NONE)
			end_running(s, request);
		else if (item->wants_logits && request->progress)
			request->progress(request);
	}
}

static void
step(ft_scheduler *s, ft_base *base)
{
	extend_blocks(s, base);
	choose_batch(s, base);
	if (s->n_batch == 0)
		return;
	group_by_adapter(s);
	account(s, compute(s, base));
	s->now.steps++;
}

/* A step over every base that has running sequences. */
static void
step_all(ft_scheduler *s)
{
	s->round++;
	for (size_t i = 0; i < s->n_running;)
	{
		ft_base *base = s->running[i]->model.base;

		if (base->stepped == s->round)
		{
			i++;
			continue;
		}
		base->stepped = s->round;
		step(s, base); /* may end sequences: look again from the first */
		i = 0;
	}
}

static void
publish_stats(ft_scheduler *s)
{
	int waiting = ft_fair_waiting(&s->waiting);

	pthread_mutex_lock(&s->mutex);
	s->stats = s->now;
	s->stats.running = (int) s->n_running;
	s->stats.waiting = waiting;
	pthread_mutex_unlock(&s->mutex);
}

static void *
scheduler_main(void *arg)
{
	ft_scheduler *s = arg;

	while (collect(s))
	{
		drop_cancelled(s, false);
		admit(s);
		publish_stats(s);
		step_all(s);
		publish_stats(s);
	}
	drop_cancelled(s, true);
	publish_stats(s);
	return NULL;
}

/* --- life --- */

ft_status
ft_scheduler_create(const ft_registry_config *config, int max_requests, ft_scheduler **scheduler)
{
	size_t sequences = (size_t) config->max_sequences;
	sigset_t all, before;
	ft_scheduler *s;
	ft_status status;

	FT_TRY(ft_alloc((void **) &s, 1, sizeof *s));
	s->config = *config;
	s->max_requests = max_requests;
	s->queue_end = &s->queue_first;
	pthread_mutex_init(&s->mutex, NULL);
	pthread_cond_init(&s->wake, NULL);
	status = ft_alloc((void **) &s->running, (size_t) max_requests, sizeof *s->running);
	if (status == FT_OK)
		status = ft_alloc((void **) &s->batch, sequences, sizeof *s->batch);
	if (status == FT_OK)
		status = ft_alloc((void **) &s->items, sequences, sizeof *s->items);
	if (status == FT_OK)
		status = ft_alloc((void **) &s->samples, sequences, sizeof *s->samples);
	if (status == FT_OK)
		status = ft_alloc((void **) &s->drawn, sequences, sizeof *s->drawn);
	if (status == FT_OK)
	{
		/* signals are the main thread's */
		sigfillset(&all);
		pthread_sigmask(SIG_BLOCK, &all, &before);
		errno = pthread_create(&s->thread, NULL, scheduler_main, s);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
		s->started = errno == 0;
		if (!s->started)
			status = ft_fail_errno("could not start the scheduler's thread");
	}
	if (status != FT_OK)
	{
		ft_scheduler_free(s);
		return status;
	}
	*scheduler = s;
	return FT_OK;
}

void
ft_scheduler_stop(ft_scheduler *s)
{
	if (!s->started)
		return;
	pthread_mutex_lock(&s->mutex);
	s->stop = true;
	pthread_cond_signal(&s->wake);
	pthread_mutex_unlock(&s->mutex);
	pthread_join(s->thread, NULL);
	s->started = false;
}

void
ft_scheduler_free(ft_scheduler *s)
{
	if (!s)
		return;
	ft_scheduler_stop(s);
	pthread_cond_destroy(&s->wake);
	pthread_mutex_destroy(&s->mutex);
	free(s->running);
	free(s->batch);
	free(s->items);
	free(s->samples);
	free(s->drawn);
	free(s);
}

void
ft_scheduler_get_stats(ft_scheduler *s, ft_scheduler_stats *stats)
{
	pthread_mutex_lock(&s->mutex);
	*stats = s->stats;
	pthread_mutex_unlock(&s->mutex);
}
