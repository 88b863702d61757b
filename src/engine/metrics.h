/*
 * metrics.h: what the scheduler does, as Prometheus reads it.
 */
#ifndef FT_METRICS_H
#define FT_METRICS_H

#include "endpoint.h"
#include "scheduler.h"

#define FT_METRICS_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* Append it in the text format. */
ft_status ft_metrics_write(ft_registry *registry, const ft_scheduler_stats *stats, ft_text *text);
/* The same of requests to endpoints. */
ft_status ft_metrics_write_endpoints(const ft_endpoint_stats *stats, ft_text *text);

#endif
