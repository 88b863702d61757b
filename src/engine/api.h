/*
 * api.h: the routes of the serving program, as README.md lists them.
 */
#ifndef FT_API_H
#define FT_API_H

#include "api_key.h"
#include "endpoint.h"
#include "http.h"
#include "scheduler.h"
#include "worker.h"

typedef struct ft_api
{
	ft_registry *registry;
	ft_scheduler *scheduler;
	ft_worker_thread *loader; /* loads models and adapters, one at a time */
	ft_worker_thread *reader; /* tokenises, and reads headers */
	ft_http *http;
	ft_endpoints *endpoints; /* servers elsewhere that answer */
	ft_api_key key;          /* that remote requests must show */
} ft_api;

/* The handler to give to ft_http_create; the context is the ft_api. */
void ft_api_handle(void *context, ft_http_exchange *exchange, const ft_http_request *request);

#endif
