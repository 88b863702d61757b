/*
 * http.h: an HTTP/1.1 server on a Unix socket, and perhaps on TCP, for one event loop.
 *
 * A handler is called in the loop's thread for each request and answers it
 * then or later; until it is answered the client's disappearance is watched.
 */
#ifndef FT_HTTP_H
#define FT_HTTP_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>

#define FT_HTTP_MAX_BODY ((size_t) 16 << 20)

typedef struct ft_http ft_http;
typedef struct ft_http_exchange ft_http_exchange;

typedef struct ft_http_request
{
	const char *method; /* "GET", "POST", "" for any other */
	const char *path;   /* without the query */
	const char *body;   /* not terminated; valid during the handler's call */
	size_t body_length;
	const char *authorization; /* the header, NULL: none */
	bool remote;               /* came in by ft_http_listen_remote's socket */
} ft_http_request;

/* Every exchange must be answered once, by ft_http_reply or by a stream that ends. */
typedef void (*ft_http_handler)(void *context, ft_http_exchange *exchange,
								const ft_http_request *request);

/* Serve the listening socket, which then belongs to the server. */
ft_status ft_http_create(int listening, ft_http_handler handler, void *context, ft_http **http);
/* Serve another one, which need not be the owner's own; before ft_http_run. */
ft_status ft_http_listen_remote(ft_http *http, int listening);
/* After ft_http_run has returned. */
void ft_http_free(ft_http *http);

/* Run the loop until ft_http_stop, and then until every exchange is answered, 2 s at most. */
ft_status ft_http_run(ft_http *http);
/* Take no new connections and end the loop; `stopping` is called once, in the loop's thread, to
 * have the open exchanges answered.  From any thread, not from a signal handler. */
void ft_http_stop(ft_http *http);
void ft_http_on_stop(ft_http *http, void (*stopping)(void *context), void *context);
/* Stop when the signal comes; for good, so before ft_http_run. */
ft_status ft_http_stop_on_signal(ft_http *http, int signal);

/* Have `call` run in the loop's thread.  From any thread. */
ft_status ft_http_post(ft_http *http, void (*call)(void *argument), void *argument);

/* --- in the loop's thread --- */

/* The loop itself, for events of others. */
struct event_base *ft_http_base(const ft_http *http);

/* Answer with a JSON text, and end the exchange; a client that has gone is not minded. */
void ft_http_reply(ft_http_exchange *exchange, int code, const char *json, size_t n);

/* The same with a text of another type. */
void ft_http_reply_text(ft_http_exchange *exchange, int code, const char *content_type,
						const char *text, size_t n);

/* Answer with a text that comes in pieces: begin it, send them, and end the exchange. */
void ft_http_stream_begin(ft_http_exchange *exchange, const char *content_type);
void ft_http_stream_send(ft_http_exchange *exchange, const char *text, size_t n);
void ft_http_stream_end(ft_http_exchange *exchange);

/* Call `closed` when the client goes before it is answered. */
void ft_http_on_close(ft_http_exchange *exchange, void (*closed)(void *argument), void *argument);

#endif
