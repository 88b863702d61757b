/*
 * endpoint.c: chats that a server elsewhere answers.
 *
 * A request ends once: with the endpoint's answer, with its refusal after a few
 * attempts, with its client's going, or with the program.  Each of these takes it
 * off the list and replies.
 */
#include "endpoint.h"

#include "completion.h"
#include "endpoint_json.h"
#include "endpoint_url.h"
#include "request.h"
#include "transfer.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define MAX_ANSWER_BYTES ((size_t) 16 << 20)
#define DEFAULT_TIMEOUT_MS 600000
#define MAX_TIMEOUT_MS INT32_MAX
#define MAX_KEY_BYTES 4096

/* How often, and how long, one that has no room is asked again */
#define MAX_RETRIES 3
#define FIRST_WAIT_MS 500
#define MAX_WAIT_MS 30000

typedef struct call
{
	ft_endpoints *endpoints;
	struct call *next;
	struct call **at; /* what points to it */

	ft_http_exchange *exchange;
	json_t *body;        /* holds all strings */
	const char *api_key; /* NULL: none */
	const char *ca_file; /* NULL: the system's */
	int64_t deadline_ms; /* 0: none */
	ft_text url;
	char *text; /* of the request */
	ft_endpoint_asked asked;

	ft_transfer *transfer; /* NULL while it waits */
	struct event *timer;   /* to be sent again */
	int retries;
} call;

struct ft_endpoints
{
	struct event_base *base;
	ft_transfers *transfers;
	call *calls;
	int max_requests;
	ft_endpoint_stats stats;
};

/* --- ends --- */

static int64_t
now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Without a reply. */
static void
call_free(call *c)
{
	if (c->transfer)
		ft_transfer_cancel(c->transfer);
	if (c->timer)
		event_free(c->timer);
	if (c->at)
	{
		*c->at = c->next;
		if (c->next)
			c->next->at = c->at;
		c->endpoints->stats.running--;
	}
	ft_text_free(&c->url);
	free(c->text);
	json_decref(c->body);
	free(c);
}

/* With the failure that this thread recorded last. */
static void
end_failed(call *c, ft_status status)
{
	c->endpoints->stats.failures++;
	ft_api_reply_failure(c->exchange, status);
	call_free(c);
}

static void
end_answered(call *c, json_t *reply)
{
	ft_text events = {0};
	ft_status status = FT_OK;

	if (c->asked.stream)
		status = ft_endpoint_events(reply, c->asked.usage, &events);
	if (status != FT_OK)
	{
		json_decref(reply);
		end_failed(c, status);
		return;
	}
	c->endpoints->stats.answers++;
	if (c->asked.stream)
	{
		ft_http_stream_begin(c->exchange, "text/event-stream");
		ft_http_stream_send(c->exchange, events.data, events.length);
		ft_http_stream_end(c->exchange);
		json_decref(reply);
	}
	else
		ft_api_reply(c->exchange, 200, reply);
	ft_text_free(&events);
	call_free(c);
}

static void
client_gone(void *argument)
{
	end_failed(argument, ft_fail(FT_CANCELLED, "request was cancelled"));
}

/* --- attempts --- */

static ft_status attempt(call *c);

static void
attempt_again(evutil_socket_t fd, short events, void *argument)
{
	call *c = argument;
	ft_status status = attempt(c);

	(void) fd;
	(void) events;
	if (status != FT_OK)
		end_failed(c, status);
}

/* How long to wait before the next attempt; a quarter of it by chance, so that those that were
 * refused together do not come together. */
static int64_t
wait_of(const call *c, int64_t asked_ms)
{
	int64_t wait = asked_ms > 0 ? asked_ms : (int64_t) FIRST_WAIT_MS << c->retries;
	uint16_t chance = 0;

	if (getrandom(&chance, sizeof chance, GRND_NONBLOCK) < 0)
		chance = 0;
	return wait + wait * chance / (4 * UINT16_MAX);
}

/* Is it to be sent again, and has that been arranged? */
static bool
arrange_retry(call *c, const ft_endpoint_refusal *refusal)
{
	int64_t wait = wait_of(c, refusal->retry_after_ms);
	struct timeval after = {wait / 1000, wait % 1000 * 1000};

	if (!ft_endpoint_passes(refusal) || c->retries == MAX_RETRIES ||
		refusal->retry_after_ms > MAX_WAIT_MS ||
		(c->deadline_ms > 0 && now_ms() + wait >= c->deadline_ms))
		return false;
	if (!c->timer)
		c->timer = evtimer_new(c->endpoints->base, attempt_again, c);
	if (!c->timer || event_add(c->timer, &after) != 0)
		return false;
	c->retries++;
	c->endpoints->stats.retries++;
	return true;
}

static void
transfer_done(void *context, ft_status status, const ft_transfer_answer *answer)
{
	call *c = context;
	const json_t *request = json_object_get(c->body, "request");
	json_t *reply;

	c->transfer = NULL;
	if (status != FT_OK)
		end_failed(c, status);
	else if (answer->code != 200)
	{
		ft_endpoint_refusal refusal = {answer->code, answer->body, answer->length,
									   answer->retry_after_ms};

		if (!arrange_retry(c, &refusal))
			end_failed(c, ft_endpoint_refused(&refusal, request, c->api_key != NULL));
	}
	else
	{
		status = ft_endpoint_answer(answer->body, answer->length, &c->asked,
									json_string_value(json_object_get(request, "model")), &reply);
		if (status == FT_OK)
			end_answered(c, reply);
		else
			end_failed(c, status);
	}
}

static ft_status
attempt(call *c)
{
	int64_t left = c->deadline_ms > 0 ? c->deadline_ms - now_ms() : 0;
	ft_transfer_request request = {.url = c->url.data,
								   .body = c->text,
								   .length = strlen(c->text),
								   .bearer = c->api_key,
								   .ca_file = c->ca_file,
								   .timeout_ms = left,
								   .max_answer = MAX_ANSWER_BYTES};

	if (c->deadline_ms > 0 && left <= 0)
		return ft_fail(FT_TIMEOUT, "the endpoint did not answer in time");
	return ft_transfer_start(c->endpoints->transfers, &request, transfer_done, c, &c->transfer);
}

/* --- requests --- */

/* A key that ends the header that it stands in could write others. */
static ft_status
check_key(const char *key)
{
	size_t n = strlen(key);

	if (n == 0 || n > MAX_KEY_BYTES)
		return ft_fail(FT_INVALID, "the API key has %zu characters, expected 1 to %d", n,
					   MAX_KEY_BYTES);
	for (; *key; key++)
		if (*key <= ' ' || *key > '~')
			return ft_fail(FT_INVALID, "the API key has a character that does not belong there");
	return FT_OK;
}

/* libcurl's own words for this do not say why. */
static ft_status
check_ca_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return ft_fail(FT_IO, "could not open the file that \"sslrootcert\" names: %s",
					   strerror(errno));
	close(fd);
	return FT_OK;
}

static ft_status
read_endpoint(call *c, const json_t *endpoint)
{
	static const char *const names[] = {"url",        "api_key",    "sslrootcert",
										"allow_http", "timeout_ms", NULL};
	const json_t *allow_http = json_object_get(endpoint, "allow_http");
	const char *url;
	json_int_t timeout_ms;

	if (!json_is_object(endpoint))
		return ft_fail(FT_INVALID, "\"endpoint\" must be an object");
	FT_TRY(ft_body_only(endpoint, names));
	FT_TRY(ft_body_string(endpoint, "url", &url));
	FT_TRY(ft_body_optional_string(endpoint, "api_key", &c->api_key));
	FT_TRY(ft_body_optional_string(endpoint, "sslrootcert", &c->ca_file));
	FT_TRY(ft_body_optional_integer(endpoint, "timeout_ms", 0, MAX_TIMEOUT_MS, DEFAULT_TIMEOUT_MS,
									&timeout_ms));
	if (allow_http && !json_is_boolean(allow_http))
		return ft_fail(FT_INVALID, "\"allow_http\" must be true or false");
	if (timeout_ms > 0)
		c->deadline_ms = now_ms() + timeout_ms;
	if (c->api_key)
		FT_TRY(check_key(c->api_key));
	if (c->ca_file)
		FT_TRY(check_ca_file(c->ca_file));
	return ft_endpoint_url(url, json_is_true(allow_http), &c->url);
}

static ft_status
read_call(call *c)
{
	static const char *const names[] = {"endpoint", "request", NULL};
	json_t *others;

	FT_TRY(ft_body_only(c->body, names));
	FT_TRY(read_endpoint(c, json_object_get(c->body, "endpoint")));
	FT_TRY(ft_endpoint_request(json_object_get(c->body, "request"), &others, &c->asked));
	c->text = json_dumps(others, JSON_COMPACT);
	json_decref(others);
	return c->text ? FT_OK : ft_fail(FT_NO_MEMORY, "out of memory");
}

static ft_status
begin(call *c)
{
	ft_endpoints *endpoints = c->endpoints;

	if (endpoints->stats.running > endpoints->max_requests)
		return ft_hint(ft_fail(FT_BUSY,
							   "%d requests to endpoints are under way, which is the limit",
							   endpoints->max_requests),
					   "Try again later.");
	FT_TRY(read_call(c));
	FT_TRY(attempt(c));
	ft_http_on_close(c->exchange, client_gone, c);
	return FT_OK;
}

void
ft_endpoint_start(ft_endpoints *endpoints, ft_http_exchange *exchange, json_t *body)
{
	call *c = NULL;
	ft_status status = ft_alloc((void **) &c, 1, sizeof *c);

	if (status != FT_OK)
	{
		endpoints->stats.failures++;
		ft_api_reply_failure(exchange, status);
		json_decref(body);
		return;
	}
	*c = (call){.endpoints = endpoints,
				.exchange = exchange,
				.body = body,
				.next = endpoints->calls,
				.at = &endpoints->calls};
	if (c->next)
		c->next->at = &c->next;
	endpoints->calls = c;
	endpoints->stats.running++;
	status = begin(c);
	if (status != FT_OK)
		end_failed(c, status);
}

/* --- life --- */

void
ft_endpoints_get_stats(const ft_endpoints *endpoints, ft_endpoint_stats *stats)
{
	*stats = endpoints->stats;
}

ft_status
ft_endpoints_create(ft_http *http, int max_requests, ft_endpoints **result)
{
	ft_endpoints *endpoints;
	ft_status status;

	FT_TRY(ft_alloc((void **) &endpoints, 1, sizeof *endpoints));
	endpoints->base = ft_http_base(http);
	endpoints->max_requests = max_requests;
	status = ft_transfers_create(endpoints->base, &endpoints->transfers);
	if (status != FT_OK)
	{
		free(endpoints);
		return status;
	}
	*result = endpoints;
	return FT_OK;
}

void
ft_endpoints_stop(ft_endpoints *endpoints)
{
	while (endpoints->calls)
		end_failed(endpoints->calls, ft_fail(FT_CANCELLED, "the engine is shutting down"));
}

void
ft_endpoints_free(ft_endpoints *endpoints)
{
	if (!endpoints)
		return;
	while (endpoints->calls)
		call_free(endpoints->calls);
	ft_transfers_free(endpoints->transfers);
	free(endpoints);
}
