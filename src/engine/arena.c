/*
 * arena.c: device memory planned from one table before a run.
 */
#include "arena.h"

#include "buffer.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64

struct ft_arena_part
{
	void *where; /* a pointer's address; its type is the caller's */
	int64_t offset;
};

ft_status
ft_arena_want(ft_arena *arena, void *where, int64_t n, ft_dtype dtype)
{
	int64_t bytes = ft_row_bytes(dtype, n);

	if (bytes < 0 || __builtin_add_overflow(bytes, ALIGNMENT - 1, &bytes))
		return ft_fail(FT_NO_MEMORY, "%lld values of %s are too many for an arena", (long long) n,
					   ft_dtype_get(dtype)->name);
	FT_TRY(
		ft_grow((void **) &arena->parts, &arena->capacity, arena->n + 1, sizeof arena->parts[0]));
	arena->parts[arena->n++] = (struct ft_arena_part){where, arena->bytes};
	if (__builtin_add_overflow(arena->bytes, bytes / ALIGNMENT * ALIGNMENT, &arena->bytes))
		return ft_fail(FT_NO_MEMORY, "size of an arena overflows");
	return FT_OK;
}

ft_status
ft_arena_allocate(ft_arena *arena, const ft_ops *ops, ft_device *device)
{
	ft_device_info info;

	FT_TRY(ops->device_info(device, &info));
	if (arena->bytes > info.memory_free)
		return ft_fail(FT_NO_MEMORY, "%lld MiB are needed, %lld MiB are free on %s",
					   (long long) (arena->bytes >> 20), (long long) (info.memory_free >> 20),
					   info.name);
	FT_TRY(ops->mem_alloc(device, FT_MEM_DEVICE, (size_t) arena->bytes, &arena->memory));
	arena->ops = ops;
	arena->device = device;
	for (size_t i = 0; i < arena->n; i++)
	{
		void *at = (char *) arena->memory + arena->parts[i].offset;

		memcpy(arena->parts[i].where, &at, sizeof at);
	}
	return FT_OK;
}

void
ft_arena_free(ft_arena *arena)
{
	if (arena->memory != NULL)
		arena->ops->mem_free(arena->device, FT_MEM_DEVICE, arena->memory);
	free(arena->parts);
	memset(arena, 0, sizeof *arena);
}
