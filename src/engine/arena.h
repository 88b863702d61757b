/*
 * arena.h: device memory planned from one table before a run.
 *
 * Users say what they will need and where the pointer goes; then the sum is
 * known, can be checked against what is free, and is allocated in one piece.
 */
#ifndef FT_ARENA_H
#define FT_ARENA_H

#include "ops.h"

typedef struct ft_arena
{
	struct ft_arena_part *parts; /* private */
	size_t n;
	size_t capacity;
	int64_t bytes; /* wanted so far */
	const ft_ops *ops;
	ft_device *device;
	void *memory;
} ft_arena;

/* *where will point to n values of dtype (64-byte aligned, zeroed) once the arena is allocated.
 * `where` must stay valid until then. */
ft_status ft_arena_want(ft_arena *arena, void *where, int64_t n, ft_dtype dtype);
/* Allocate all that is wanted.  FT_NO_MEMORY with both sizes when the device has not that much. */
ft_status ft_arena_allocate(ft_arena *arena, const ft_ops *ops, ft_device *device);
void ft_arena_free(ft_arena *arena);

#endif
