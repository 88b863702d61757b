/*
 * memory.c: device memory of the CPU backend, copies and zeroing.
 *
 * First touch is slow on virtual machines, so large blocks are put on huge
 * pages and faulted in by all threads when they are allocated, not in the first
 * training step.
 */
#include "cpu.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LARGE ((size_t) 4 << 20)
#define HUGE_PAGE ((size_t) 2 << 20)

static void
touch_task(void *context, int worker, int64_t begin, int64_t end)
{
	char *memory = context;

	(void) worker;
	memset(memory + (size_t) begin * HUGE_PAGE, 0, (size_t) (end - begin) * HUGE_PAGE);
}

ft_status
ft_cpu_mem_alloc(ft_device *device, ft_mem_space space, size_t bytes, void **memory)
{
	size_t alignment = bytes >= LARGE ? HUGE_PAGE : 64;
	size_t rounded = (bytes + alignment - 1) / alignment * alignment;
	void *p;

	(void) space;
	if (rounded < bytes)
		return ft_fail(FT_NO_MEMORY, "cannot allocate %zu bytes", bytes);
	p = aligned_alloc(alignment, rounded > 0 ? rounded : alignment);
	if (p == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory for %zu bytes", bytes);
	if (bytes >= LARGE)
	{
		/* a wish only: without huge pages everything works as well */
		(void) madvise(p, rounded, MADV_HUGEPAGE);
		ft_pool_run(device->pool, (int64_t) (rounded / HUGE_PAGE), 1, touch_task, p);
	}
	else
		memset(p, 0, rounded);
	*memory = p;
	return FT_OK;
}

void
ft_cpu_mem_free(ft_device *device, ft_mem_space space, void *memory)
{
	(void) device;
	(void) space;
	free(memory);
}

ft_status
ft_cpu_copy(ft_stream *s, void *to, const void *from, size_t bytes)
{
	(void) s;
	if (bytes > 0)
		memmove(to, from, bytes);
	return FT_OK;
}

ft_status
ft_cpu_zero(ft_stream *s, void *memory, size_t bytes)
{
	(void) s;
	if (bytes > 0)
		memset(memory, 0, bytes);
	return FT_OK;
}
