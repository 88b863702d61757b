/*
 * device.h: from a device's name to its operations.
 */
#ifndef FT_DEVICE_H
#define FT_DEVICE_H

#include "ops.h"

/* Open "auto" (or NULL: the best there is), "cpu", "cuda", "cuda:N".  threads < 1: half of the
 * cores, at least 1.  FT_DEVICE when there is no such device. */
ft_status ft_device_open_named(const char *name, int threads, ft_numerics numerics,
							   const ft_ops **ops, ft_device **device);

/* "fast", "reference"; FT_INVALID for any other (NULL is fast). */
ft_status ft_numerics_parse(const char *name, ft_numerics *numerics);

#endif
