/*
 * http.c: an HTTP/1.1 server over libevent's evhttp.
 *
 * evhttp stops reading from a connection while its request is being answered,
 * so it does not notice that the client goes.  An event of our own on the same
 * descriptor does: EV_CLOSED (epoll's EPOLLRDHUP), and EV_READ, because a reset
 * connection is reported as readable only.
 */
#include "http.h"

#include "buffer.h"
#include "process.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/keyvalq_struct.h>
#include <event2/listener.h>
#include <event2/thread.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A connection that is kept alive may be silent for so long; also the limit of a slow client. */
#define CONNECTION_TIMEOUT_S 600
#define MAX_HEADERS 65536

/* evhttp answers a body over its own limit with a page of HTML; up to this much more, we answer. */
#define BODY_SLACK ((size_t) 1 << 20)

#define MAX_SIGNALS 2

typedef struct call
{
	void (*function)(void *argument);
	void *argument;
	struct call *next;
} call;

#define MAX_DOORS 2

/* A socket that connections come in by. */
typedef struct door
{
	ft_http *http;
	struct evhttp *evhttp;
	struct evconnlistener *listener; /* evhttp's, until that is freed */
	bool remote;
} door;

struct ft_http
{
	struct event_base *base;
	door doors[MAX_DOORS];
	int n_doors;
	struct event *wake; /* activated when calls are posted */
	struct event *signals[MAX_SIGNALS];
	int n_signals;
	ft_http_handler handler;
	void *context;
	void (*stopping)(void *context);
	void *stopping_context;
	int n_open; /* exchanges */
	bool ending;

	pthread_mutex_t mutex; /* over what follows */
	call *calls;
	call **calls_end;
	bool stop;
};

struct ft_http_exchange
{
	ft_http *http;
	struct evhttp_request *request;
	struct event *watch;
	void (*closed)(void *argument);
	void *closed_argument;
};

static ft_status
fail_libevent(const char *what)
{
	return ft_fail(FT_NO_MEMORY, "libevent: could not make %s", what);
}

/* --- exchanges --- */

static void
exchange_watched(evutil_socket_t fd, short events, void *argument)
{
	ft_http_exchange *exchange = argument;
	char byte;
	void (*closed)(void *) = exchange->closed;

	/* bytes of a next request are no farewell: from now on only the close itself is of interest */
	if (!(events & EV_CLOSED) && recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0)
	{
		event_assign(exchange->watch, exchange->http->base, fd, EV_CLOSED, exchange_watched,
					 exchange);
		event_add(exchange->watch, NULL);
		return;
	}
	exchange->closed = NULL;
	if (closed)
		closed(exchange->closed_argument);
}

void
ft_http_on_close(ft_http_exchange *exchange, void (*closed)(void *argument), void *argument)
{
	struct evhttp_connection *connection = evhttp_request_get_connection(exchange->request);
	evutil_socket_t fd = bufferevent_getfd(evhttp_connection_get_bufferevent(connection));

	exchange->closed = closed;
	exchange->closed_argument = argument;
	exchange->watch =
		event_new(exchange->http->base, fd, EV_READ | EV_CLOSED, exchange_watched, exchange);
	if (exchange->watch)
		event_add(exchange->watch, NULL);
}

static void
exchange_end(ft_http_exchange *exchange)
{
	ft_http *http = exchange->http;

	free(exchange);
	http->n_open--;
	if (http->ending && http->n_open == 0)
	{
		/* a moment for the last replies to leave */
		struct timeval moment = {0, 100000};

		event_base_loopexit(http->base, &moment);
	}
}

/* What a reply begins with. */
static void
add_headers(ft_http_exchange *exchange, const char *content_type)
{
	struct evkeyvalq *headers = evhttp_request_get_output_headers(exchange->request);

	evhttp_add_header(headers, "Content-Type", content_type);
	if (exchange->http->ending)
		evhttp_add_header(headers, "Connection", "close");
}

void
ft_http_reply(ft_http_exchange *exchange, int code, const char *json, size_t n)
{
	ft_http_reply_text(exchange, code, "application/json", json, n);
}

void
ft_http_reply_text(ft_http_exchange *exchange, int code, const char *content_type, const char *text,
				   size_t n)
{
	if (exchange->watch)
		event_free(exchange->watch);
	add_headers(exchange, content_type);
	evbuffer_add(evhttp_request_get_output_buffer(exchange->request), text, n);
	evhttp_send_reply(exchange->request, code, NULL, NULL);
	exchange_end(exchange);
}

/* evhttp gives the connection up: its descriptor may be another's soon. */
static void
stream_broken(struct evhttp_connection *connection, void *argument)
{
	ft_http_exchange *exchange = argument;
	void (*closed)(void *) = exchange->closed;

	(void) connection;
	if (exchange->watch)
		event_free(exchange->watch);
	exchange->watch = NULL;
	exchange->closed = NULL;
	if (closed)
		closed(exchange->closed_argument);
}

void
ft_http_stream_begin(ft_http_exchange *exchange, const char *content_type)
{
	struct evkeyvalq *headers = evhttp_request_get_output_headers(exchange->request);
	struct evhttp_connection *connection = evhttp_request_get_connection(exchange->request);

	add_headers(exchange, content_type);
	evhttp_add_header(headers, "Cache-Control", "no-cache");
	if (connection)
		evhttp_connection_set_closecb(connection, stream_broken, exchange);
	evhttp_send_reply_start(exchange->request, 200, "OK");
}

void
ft_http_stream_send(ft_http_exchange *exchange, const char *text, size_t n)
{
	struct evbuffer *piece = evbuffer_new();

	/* without memory the client lacks a piece, which it can tell by the end that then lacks, too */
	if (!piece)
		return;
	if (evbuffer_add(piece, text, n) == 0)
		evhttp_send_reply_chunk(exchange->request, piece);
	evbuffer_free(piece);
}

void
ft_http_stream_end(ft_http_exchange *exchange)
{
	struct evhttp_connection *connection = evhttp_request_get_connection(exchange->request);

	if (exchange->watch)
		event_free(exchange->watch);
	if (connection)
		evhttp_connection_set_closecb(connection, NULL, NULL);
	evhttp_send_reply_end(exchange->request);
	exchange_end(exchange);
}

static void
request_arrived(struct evhttp_request *request, void *argument)
{
	static const char too_large[] = "{\"error\": {\"message\": \"the body is larger than 16 MiB\", "
									"\"type\": \"invalid_request_error\", \"code\": \"invalid\"}}";
	const door *by = argument;
	ft_http *http = by->http;
	struct evbuffer *body = evhttp_request_get_input_buffer(request);
	const char *path = evhttp_uri_get_path(evhttp_request_get_evhttp_uri(request));
	ft_http_request r = {.method = "", .path = path ? path : "", .remote = by->remote};
	ft_http_exchange *exchange;

	if (ft_alloc((void **) &exchange, 1, sizeof *exchange) != FT_OK)
	{
		evhttp_send_error(request, HTTP_INTERNAL, NULL);
		return;
	}
	exchange->http = http;
	exchange->request = request;
	http->n_open++;
	r.body_length = evbuffer_get_length(body);
	if (r.body_length > FT_HTTP_MAX_BODY)
	{
		ft_http_reply(exchange, HTTP_ENTITYTOOLARGE, too_large, sizeof too_large - 1);
		return;
	}
	r.body = r.body_length > 0 ? (const char *) evbuffer_pullup(body, -1) : "";
	if (evhttp_request_get_command(request) == EVHTTP_REQ_GET)
		r.method = "GET";
	else if (evhttp_request_get_command(request) == EVHTTP_REQ_POST)
		r.method = "POST";
	r.authorization =
		evhttp_find_header(evhttp_request_get_input_headers(request), "Authorization");
	http->handler(http->context, exchange, &r);
}

/* --- calls from other threads --- */

static void
begin_to_stop(ft_http *http)
{
	/* a model that is being loaded cannot be interrupted; its exchange is then left behind */
	static const struct timeval patience = {2, 0};
	bool idle = http->n_open == 0;

	http->ending = true;
	for (int i = 0; i < http->n_doors; i++)
		evconnlistener_disable(http->doors[i].listener);
	if (http->stopping)
		http->stopping(http->stopping_context);
	/* where the last of them was answered just now, exchange_end has seen to it */
	if (idle)
		event_base_loopexit(http->base, NULL);
	else if (http->n_open > 0)
		event_base_loopexit(http->base, &patience);
}

static void
run_calls(evutil_socket_t fd, short events, void *argument)
{
	ft_http *http = argument;
	call *calls;
	bool stop;

	(void) fd;
	(void) events;
	pthread_mutex_lock(&http->mutex);
	calls = http->calls;
	http->calls = NULL;
	http->calls_end = &http->calls;
	stop = http->stop;
	pthread_mutex_unlock(&http->mutex);
	while (calls)
	{
		call *next = calls->next;

		calls->function(calls->argument);
		free(calls);
		calls = next;
	}
	if (stop && !http->ending)
		begin_to_stop(http);
}

ft_status
ft_http_post(ft_http *http, void (*function)(void *argument), void *argument)
{
	call *c;

	FT_TRY(ft_alloc((void **) &c, 1, sizeof *c));
	c->function = function;
	c->argument = argument;
	pthread_mutex_lock(&http->mutex);
	*http->calls_end = c;
	http->calls_end = &c->next;
	pthread_mutex_unlock(&http->mutex);
	event_active(http->wake, EV_READ, 0);
	return FT_OK;
}

void
ft_http_stop(ft_http *http)
{
	pthread_mutex_lock(&http->mutex);
	http->stop = true;
	pthread_mutex_unlock(&http->mutex);
	event_active(http->wake, EV_READ, 0);
}

void
ft_http_on_stop(ft_http *http, void (*stopping)(void *context), void *context)
{
	http->stopping = stopping;
	http->stopping_context = context;
}

static void
signal_arrived(evutil_socket_t signal, short events, void *argument)
{
	(void) signal;
	(void) events;
	ft_http_stop(argument);
}

ft_status
ft_http_stop_on_signal(ft_http *http, int signal)
{
	struct event *event;

	if (http->n_signals == MAX_SIGNALS)
		return ft_fail(FT_INTERNAL, "more than %d signals", MAX_SIGNALS);
	event = evsignal_new(http->base, signal, signal_arrived, http);
	if (!event)
		return fail_libevent("an event");
	http->signals[http->n_signals++] = event;
	if (event_add(event, NULL) != 0)
		return fail_libevent("an event");
	return FT_OK;
}

/* --- life --- */

static void
listen_again(evutil_socket_t fd, short events, void *listener)
{
	(void) fd;
	(void) events;
	evconnlistener_enable(listener);
}

/* Out of descriptors, say: the connection stays in the queue, and asking again at once would only
 * spin. The argument is evhttp's, which has the listener. */
static void
accept_failed(struct evconnlistener *listener, void *argument)
{
	static const struct timeval pause = {0, 100000};

	(void) argument;
	ft_log("warning", "could not accept a connection: %s", strerror(EVUTIL_SOCKET_ERROR()));
	if (event_base_once(evconnlistener_get_base(listener), -1, EV_TIMEOUT, listen_again, listener,
						&pause) == 0)
		evconnlistener_disable(listener);
}

static void
log_libevent(int severity, const char *message)
{
	if (severity >= EVENT_LOG_WARN)
		ft_log("warning", "libevent: %s", message);
}

/* An event base that can report EV_CLOSED. */
static struct event_base *
create_base(void)
{
	struct event_config *config = event_config_new();
	struct event_base *base = NULL;

	if (config && event_config_require_features(config, EV_FEATURE_EARLY_CLOSE) == 0)
		base = event_base_new_with_config(config);
	if (config)
		event_config_free(config);
	return base;
}

static ft_status
open_door(ft_http *http, int listening, bool remote)
{
	door *d = &http->doors[http->n_doors];
	struct evconnlistener *listener;

	if (http->n_doors == MAX_DOORS)
		return ft_fail(FT_INTERNAL, "more than %d sockets to listen on", MAX_DOORS);
	*d = (door){.http = http, .remote = remote, .evhttp = evhttp_new(http->base)};
	if (!d->evhttp)
		return fail_libevent("a server");
	evhttp_set_max_body_size(d->evhttp, (ev_ssize_t) (FT_HTTP_MAX_BODY + BODY_SLACK));
	evhttp_set_max_headers_size(d->evhttp, MAX_HEADERS);
	evhttp_set_timeout(d->evhttp, CONNECTION_TIMEOUT_S);
	evhttp_set_allowed_methods(d->evhttp, EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_PUT |
											  EVHTTP_REQ_DELETE);
	evhttp_set_gencb(d->evhttp, request_arrived, d);
	listener = evconnlistener_new(http->base, NULL, NULL,
								  LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, listening);
	if (listener)
		evconnlistener_set_error_cb(listener, accept_failed);
	if (!listener || !evhttp_bind_listener(d->evhttp, listener))
	{
		if (listener)
			evconnlistener_free(listener);
		evhttp_free(d->evhttp);
		return fail_libevent("a listener");
	}
	d->listener = listener;
	http->n_doors++;
	return FT_OK;
}

ft_status
ft_http_listen_remote(ft_http *http, int listening)
{
	return open_door(http, listening, true);
}

static ft_status
open_server(ft_http *http, int listening)
{
	http->base = create_base();
	if (!http->base)
		return fail_libevent("an event base");
	http->wake = event_new(http->base, -1, EV_READ | EV_PERSIST, run_calls, http);
	if (!http->wake)
		return fail_libevent("an event");
	return open_door(http, listening, false);
}

ft_status
ft_http_create(int listening, ft_http_handler handler, void *context, ft_http **result)
{
	ft_http *http;
	ft_status status;

	event_set_log_callback(log_libevent);
	if (evthread_use_pthreads() != 0)
		return fail_libevent("its locks");
	FT_TRY(ft_alloc((void **) &http, 1, sizeof *http));
	pthread_mutex_init(&http->mutex, NULL);
	http->calls_end = &http->calls;
	http->handler = handler;
	http->context = context;
	status = open_server(http, listening);
	if (status != FT_OK)
	{
		ft_http_free(http);
		return status;
	}
	*result = http;
	return FT_OK;
}

struct event_base *
ft_http_base(const ft_http *http)
{
	return http->base;
}

void
ft_http_free(ft_http *http)
{
	if (!http)
		return;
	for (int i = 0; i < http->n_signals; i++)
		event_free(http->signals[i]);
	for (int i = 0; i < http->n_doors; i++)
		evhttp_free(http->doors[i].evhttp);
	if (http->wake)
		event_free(http->wake);
	if (http->base)
		event_base_free(http->base);
	while (http->calls)
	{
		call *next = http->calls->next;

		free(http->calls);
		http->calls = next;
	}
	pthread_mutex_destroy(&http->mutex);
	free(http);
}

ft_status
ft_http_run(ft_http *http)
{
	if (event_base_loop(http->base, EVLOOP_NO_EXIT_ON_EMPTY) < 0)
		return ft_fail(FT_IO, "the event loop failed");
	return FT_OK;
}
