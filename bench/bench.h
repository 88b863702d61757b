/*
 * bench.h: what the benchmark programs share.
 */
#ifndef FT_BENCH_H
#define FT_BENCH_H

#include "events.h"
#include "status.h"

#include <stdio.h>
#include <stdlib.h>

/* End the program when something failed. */
static inline void
must(ft_status status)
{
	if (status == FT_OK)
		return;
	fprintf(stderr, "%s: %s\n", ft_status_name(status), ft_error_message());
	exit(1);
}

/* For qsort() of doubles. */
static inline int
ascending(const void *a, const void *b)
{
	double x = *(const double *) a;
	double y = *(const double *) b;

	return (x > y) - (x < y);
}

#endif
