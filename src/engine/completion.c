/*
 * completion.c: completions and chats.
 *
 * A body asks for one or more answers; each is a request of the scheduler.  When
 * all have ended they are the reply.  A stream sends what an answer's text
 * gains: the scheduler's thread copies it, as far as no later token can change
 * it, and posts it to the loop's.
 */
#include "completion.h"

#include "api_json.h"
#include "process.h"
#include "request.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

typedef struct completion completion;

/* One answer. */
typedef struct answer
{
	completion *c;
	int index;
	ft_request *request;
	size_t posted; /* bytes of its text; the scheduler's thread's until it has ended */
	size_t tokens; /* of what has been sent */
	bool begun;    /* something of it has been sent */
} answer;

struct completion
{
	ft_api *api;
	ft_http_exchange *exchange;
	ft_model_ref model;
	ft_constraint *constraint;
	char *model_id;
	ft_api_head head;
	answer *answers;
	int n;
	int n_under_way;
	bool stream;
	bool streaming; /* has begun to */
	bool include_usage;
	bool continuous_usage;

	ft_status status;
	json_t *error;
};

static void
completion_free(completion *c)
{
	for (int i = 0; c->answers && i < c->n; i++)
		ft_request_free(c->answers[i].request);
	free(c->answers);
	if (c->model.base)
	{
		ft_constraint_cache_put(c->model.base->constraints, c->constraint);
		ft_registry_put(c->api->registry, &c->model);
	}
	json_decref(c->error);
	free(c->model_id);
	free(c);
}

const char *
ft_prompt_template_of(const ft_model_ref *model)
{
	if (model->lora != NULL && model->lora->adapter->prompt_template != NULL)
		return model->lora->adapter->prompt_template;
	return model->base->prompt_template;
}

/* --- texts --- */

/* Is a space at the answer's beginning none of it? */
static bool
begins_with_space(const completion *c)
{
	if (c->constraint)
		return true;
	return c->head.chat && ft_prompt_template_of(&c->model) == NULL &&
		   ft_chat_template_answers_space(c->model.base->chat_template);
}

static void
drop_space(const completion *c, ft_text *text)
{
	if (text->length == 0 || text->data[0] != ' ' || !begins_with_space(c))
		return;
	text->length--;
	memmove(text->data, text->data + 1, text->length + 1);
}

static ft_api_usage
usage_of(const completion *c)
{
	ft_api_usage usage = {.prompt = c->answers[0].request->prompt.length,
						  .cached = c->answers[0].request->cached_tokens};

	for (int i = 0; i < c->n; i++)
		usage.completion += c->answers[i].request->generation.ids.length;
	return usage;
}

/* --- streams --- */

static void
send_event(completion *c, json_t *json)
{
	char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
	ft_text event = {0};

	if (!c->streaming)
		ft_http_stream_begin(c->exchange, "text/event-stream");
	c->streaming = true;
	if (text && ft_text_printf(&event, "data: %s\n\n", text) == FT_OK)
		ft_http_stream_send(c->exchange, event.data, event.length);
	ft_text_free(&event);
	free(text);
	json_decref(json);
}

/* What has been sent so far took; the request of a piece has been let in. */
static ft_api_usage
usage_so_far(const answer *a)
{
	ft_api_usage usage = {.prompt = a->request->prompt.length, .cached = a->request->cached_tokens};

	for (int i = 0; i < a->c->n; i++)
		usage.completion += a->c->answers[i].tokens;
	return usage;
}

/* A piece of an answer, with the tokens up to its end, and with `finish` the answer's end. */
static void
send_piece(answer *a, const ft_text *text, size_t tokens, const char *finish)
{
	completion *c = a->c;
	json_t *piece = ft_api_piece(c->head.chat, a->index, text, !a->begun, finish);
	ft_api_usage usage;

	a->begun = true;
	a->tokens = tokens;
	usage = usage_so_far(a);
	send_event(c, ft_api_chunk(&c->head, json_pack("[o]", piece), c->include_usage,
							   c->continuous_usage ? &usage : NULL));
}

typedef struct piece
{
	answer *answer;
	size_t from;
	size_t tokens; /* of the answer when it was posted */
	ft_text text;
} piece;

/* In the loop's thread. */
static void
piece_arrived(void *argument)
{
	piece *p = argument;

	if (p->from == 0)
		drop_space(p->answer->c, &p->text);
	if (p->text.length > 0 || !p->answer->begun)
		send_piece(p->answer, &p->text, p->tokens, NULL);
	ft_text_free(&p->text);
	free(p);
}

/* In the scheduler's thread: post what is settled. */
static ft_status
post_piece(answer *a)
{
	const ft_generation *generation = &a->request->generation;
	size_t settled = ft_generation_settled(generation);
	piece *p;
	ft_status status;

	if (settled <= a->posted)
		return FT_OK;
	FT_TRY(ft_alloc((void **) &p, 1, sizeof *p));
	p->answer = a;
	p->from = a->posted;
	p->tokens = generation->ids.length;
	status = ft_text_make_valid(generation->text.data + a->posted, settled - a->posted, &p->text);
	if (status == FT_OK)
		status = ft_http_post(a->c->api->http, piece_arrived, p);
	if (status != FT_OK)
	{
		ft_text_free(&p->text);
		free(p);
		return status;
	}
	a->posted = settled;
	return FT_OK;
}

static void
answer_progress(ft_request *request)
{
	/* what could not be posted now is posted with the next piece, or at the end */
	if (post_piece(request->context) != FT_OK)
		ft_log("warning", "%s", ft_error_message());
}

/* The rest of an answer that has ended well. */
static void
send_rest(answer *a)
{
	const ft_generation *generation = &a->request->generation;
	ft_text text = {0};

	if (ft_generation_text(generation, a->posted, &text) == FT_OK && text.length > 0)
	{
		if (a->posted == 0)
			drop_space(a->c, &text);
		send_piece(a, &text, generation->ids.length, NULL);
	}
	send_piece(a, NULL, generation->ids.length, ft_finish_name(generation->finish));
	ft_text_free(&text);
}

static void
end_stream(completion *c)
{
	ft_api_usage usage = usage_of(c);

	if (c->error)
		send_event(c, json_incref(c->error));
	else if (c->include_usage)
		send_event(c, ft_api_chunk(&c->head, json_array(), true, &usage));
	ft_http_stream_send(c->exchange, "data: [DONE]\n\n", strlen("data: [DONE]\n\n"));
	ft_http_stream_end(c->exchange);
}

/* --- replies --- */

static json_t *
choices_of(completion *c)
{
	json_t *choices = json_array();

	for (int i = 0; i < c->n; i++)
	{
		const ft_request *r = c->answers[i].request;
		const ft_generation *g = &r->generation;
		ft_text text = {0};
		json_t *logprobs = NULL;

		if (ft_generation_text(g, 0, &text) != FT_OK)
		{
			ft_text_free(&text);
			json_decref(choices);
			return NULL;
		}
		drop_space(c, &text);
		if (r->sampling.logprobs)
			logprobs = ft_api_logprobs(c->head.chat, c->model.base->tokenizer, &g->logprobs,
									   g->text.length);
		json_array_append_new(
			choices, ft_api_choice(c->head.chat, i, &text, ft_finish_name(g->finish), logprobs));
		ft_text_free(&text);
	}
	return choices;
}

static void
reply(completion *c)
{
	ft_api_usage usage;
	json_t *choices;

	if (c->streaming)
		end_stream(c);
	else if (c->error)
		ft_api_reply(c->exchange, ft_api_http_code(c->status), json_incref(c->error));
	else
	{
		usage = usage_of(c);
		choices = choices_of(c);
		ft_api_reply(c->exchange, 200,
					 choices ? ft_api_completion(&c->head, choices, &usage) : NULL);
	}
	completion_free(c);
}

/* The first failure is the reply's; the other answers are of no use then. */
static void
note_failure(completion *c, ft_status status, const char *message, const char *hint)
{
	if (c->error)
		return;
	c->status = status;
	c->error = ft_api_error(status, message, hint);
	for (int i = 0; i < c->n; i++)
		ft_request_cancel(c->answers[i].request);
}

/* In the loop's thread: an answer has ended. */
static void
answer_ended(void *argument)
{
	answer *a = argument;
	completion *c = a->c;
	const ft_request *r = a->request;

	if (r->status != FT_OK)
		note_failure(c, r->status, r->message, r->hint);
	else if (c->stream && !c->error)
		send_rest(a);
	if (--c->n_under_way == 0)
		reply(c);
}

/* In the scheduler's thread. */
static void
answer_done(ft_request *request)
{
	answer *a = request->context;

	if (ft_http_post(a->c->api->http, answer_ended, a) != FT_OK)
		ft_log("error", "%s", ft_error_message());
}

static void
client_gone(void *argument)
{
	completion *c = argument;

	for (int i = 0; i < c->n; i++)
		ft_request_cancel(c->answers[i].request);
}

/* --- requests --- */

/* Text so long that it cannot fit is refused before the time is spent to tokenise it. */
static ft_status
check_length(const ft_base *base, const ft_input *input)
{
	size_t least = ft_input_bytes(input) / base->longest_token;

	if (least >= (size_t) base->context)
		return ft_fail(FT_INVALID,
					   "the prompt has at least %zu tokens, the context of the model is %d", least,
					   base->context);
	return FT_OK;
}

static ft_status
copy_sampling(const ft_sampling *from, int index, ft_sampling *to)
{
	*to = *from;
	to->seed += (uint64_t) index;
	to->stops = NULL;
	to->n_stops = 0;
	FT_TRY(ft_alloc((void **) &to->stops, from->n_stops, sizeof *to->stops));
	for (; to->n_stops < from->n_stops; to->n_stops++)
		FT_TRY(ft_text_append(&to->stops[to->n_stops], from->stops[to->n_stops].data,
							  from->stops[to->n_stops].length));
	return FT_OK;
}

static ft_status
make_answer(completion *c, int index, const ft_sampling *sampling, const ft_answer_options *options,
			const ft_ids *prompt)
{
	answer *a = &c->answers[index];
	ft_request *r;

	FT_TRY(ft_request_create(&a->request));
	a->c = c;
	a->index = index;
	r = a->request;
	r->model = c->model;
	r->constraint = c->constraint;
	r->done = answer_done;
	r->progress = c->stream ? answer_progress : NULL;
	r->context = a;
	FT_TRY(copy_sampling(sampling, index, &r->sampling));
	FT_TRY(ft_ids_append(&r->prompt, prompt->data, prompt->length));
	if (options->cache_salt)
	{
		r->cache_salt = strdup(options->cache_salt);
		if (!r->cache_salt)
			return ft_fail(FT_NO_MEMORY, "out of memory");
	}
	return FT_OK;
}

static ft_status
make_answers(completion *c, const ft_input *input, const ft_sampling *sampling,
			 const ft_answer_options *options)
{
	const ft_base *base = c->model.base;
	ft_ids prompt = {0};
	ft_status status;

	FT_TRY(ft_constraint_cache_get(base->constraints, options->response_format, &c->constraint));
	if (c->constraint && sampling->ignore_eos)
		return ft_fail(FT_INVALID, "\"ignore_eos\" and \"response_format\" exclude each other");
	FT_TRY(check_length(base, input));
	FT_TRY(ft_alloc((void **) &c->answers, (size_t) options->n, sizeof *c->answers));
	status = ft_input_encode(input, base->tokenizer, base->chat_template,
							 ft_prompt_template_of(&c->model), base->bos,
							 (size_t) base->model->config.vocab, &prompt);
	while (status == FT_OK && c->n < options->n)
		status = make_answer(c, c->n++, sampling, options, &prompt);
	ft_ids_free(&prompt);
	return status;
}

/* Those that are submitted end at any time from then on, but in the loop's thread only later. */
static ft_status
submit(completion *c)
{
	ft_status status = FT_OK;

	ft_http_on_close(c->exchange, client_gone, c);
	for (int i = 0; i < c->n && status == FT_OK; i++)
	{
		status = ft_scheduler_submit(c->api->scheduler, c->answers[i].request);
		c->n_under_way += status == FT_OK;
	}
	/* those under way must end before the reply */
	if (status != FT_OK && c->n_under_way > 0)
	{
		note_failure(c, status, ft_error_message(), ft_error_hint());
		status = FT_OK;
	}
	return status;
}

static ft_status
prepare(completion *c, const json_t *body, bool chat)
{
	ft_input input = {0};
	ft_answer_options options = {0};
	ft_sampling sampling;
	int64_t created = (int64_t) time(NULL);
	ft_status status;

	c->model_id = strdup(c->model.lora ? c->model.lora->id : c->model.base->id);
	if (!c->model_id)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	ft_api_head_make(&c->head, chat, c->model_id, created);
	ft_sampling_default(&sampling);
	if (getrandom(&sampling.seed, sizeof sampling.seed, 0) < 0)
		sampling.seed = (uint64_t) created;
	status = ft_request_parse(body, chat ? FT_INPUT_CHAT : FT_INPUT_COMPLETION, &input, &sampling,
							  &options);
	c->stream = options.stream;
	c->include_usage = options.include_usage;
	c->continuous_usage = options.continuous_usage;
	if (status == FT_OK)
		status = make_answers(c, &input, &sampling, &options);
	ft_input_free(&input);
	ft_sampling_free(&sampling);
	FT_TRY(status);
	return submit(c);
}

void
ft_completion_start(ft_api *api, ft_http_exchange *exchange, json_t *body, ft_model_ref *model,
					bool chat)
{
	completion *c = NULL;
	ft_status status = ft_alloc((void **) &c, 1, sizeof *c);

	if (status == FT_OK)
	{
		*c = (completion){.api = api, .exchange = exchange, .model = *model};
		*model = (ft_model_ref){0};
		status = prepare(c, body, chat);
	}
	json_decref(body);
	if (status == FT_OK)
		return;
	ft_api_reply_failure(exchange, status);
	if (model->base)
		ft_registry_put(api->registry, model);
	if (c)
		completion_free(c);
}
