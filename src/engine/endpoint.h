/*
 * endpoint.h: chats that a server elsewhere answers.
 *
 * Nothing is kept of an endpoint but idle connections: each request says where
 * it goes and with which key, so that a changed key, or another role's, holds at
 * once.  All of it belongs to the event loop's thread.
 */
#ifndef FT_ENDPOINT_H
#define FT_ENDPOINT_H

#include "http.h"

#include <jansson.h>
#include <stdint.h>

typedef struct ft_endpoints ft_endpoints;

typedef struct ft_endpoint_stats
{
	int running;       /* requests, also those that wait to be sent again */
	uint64_t answers;  /* so far */
	uint64_t failures; /* requests that got none */
	uint64_t retries;  /* of requests that the endpoint had no room for */
} ft_endpoint_stats;

ft_status ft_endpoints_create(ft_http *http, int max_requests, ft_endpoints **endpoints);
/* Answer all that are open: the program ends. */
void ft_endpoints_stop(ft_endpoints *endpoints);
/* After ft_http_run has returned, and before ft_http_free. */
void ft_endpoints_free(ft_endpoints *endpoints);

/*
 * Have an endpoint answer: {"endpoint": {"url", "api_key", "sslrootcert",
 * "allow_http", "timeout_ms"}, "request": a chat's}, as README.md says.  Replies
 * to the exchange, now or later; takes over body.
 */
void ft_endpoint_start(ft_endpoints *endpoints, ft_http_exchange *exchange, json_t *body);

void ft_endpoints_get_stats(const ft_endpoints *endpoints, ft_endpoint_stats *stats);

#endif
