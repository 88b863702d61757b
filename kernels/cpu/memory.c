/*
 * memory.c: device memory of the CPU backend, copies and zeroing.
 *
 * Large blocks are mappings of their own on huge pages: the kernel hands out
 * zeroed pages when they are first touched, so an arena that is planned for the
 * longest batch costs only what the batches use, and once touched it is never
 * given back before it is freed.
 *
 * Blocks below a megabyte (the matrices of a small quantised model) share such
 * mappings, "chunks", one after the other: reading weights through pages of four
 * kilobytes is markedly slower.  A chunk goes when its last block is freed.
 */
#include "cpu.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LARGE ((size_t) 1 << 20)
#define SHARED ((size_t) 64 << 10) /* blocks from this size on come from chunks */
#define CHUNK ((size_t) 16 << 20)
#define HUGE_PAGE ((size_t) 2 << 20)
#define ALIGNMENT 64

/* Stands at the beginning of its memory. */
typedef struct chunk
{
	size_t used;
	int64_t blocks; /* that are not freed */
} chunk;

/* Stands in the 64 bytes before a block. */
typedef struct block_header
{
	void *mapping; /* NULL: from malloc(), or a chunk's */
	size_t bytes;  /* of the mapping */
	chunk *chunk;  /* NULL: none */
} block_header;

static pthread_mutex_t chunk_lock = PTHREAD_MUTEX_INITIALIZER;
static chunk *open_chunk; /* that has room, or NULL */

static ft_status
map_large(size_t bytes, void **memory)
{
	size_t mapped = bytes + HUGE_PAGE + ALIGNMENT;
	char *mapping = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *start;
	block_header *header;

	if (mapping == MAP_FAILED)
		return ft_fail(FT_NO_MEMORY, "out of memory for %zu bytes", bytes);
	/* the header ends a page, so that the block begins a huge one */
	start = mapping + HUGE_PAGE - (uintptr_t) mapping % HUGE_PAGE;
	/* a wish only: without huge pages everything works as well */
	(void) madvise(mapping, mapped, MADV_HUGEPAGE);
	header = (block_header *) (start - ALIGNMENT);
	header->mapping = mapping;
	header->bytes = mapped;
	*memory = start;
	return FT_OK;
}

static void
unmap_large(void *memory)
{
	block_header *header = (block_header *) ((char *) memory - ALIGNMENT);

	(void) munmap(header->mapping, header->bytes);
}

/* A block of `rounded` bytes, header included, in the open chunk or a new one. */
static ft_status
share_chunk(size_t rounded, void **memory)
{
	block_header *header;

	pthread_mutex_lock(&chunk_lock);
	if (open_chunk == NULL || open_chunk->used + rounded > CHUNK)
	{
		void *mapping;
		ft_status status = map_large(CHUNK, &mapping);

		if (status != FT_OK)
		{
			pthread_mutex_unlock(&chunk_lock);
			return status;
		}
		open_chunk = mapping;
		open_chunk->used = ALIGNMENT;
	}
	header = (block_header *) ((char *) open_chunk + open_chunk->used);
	header->chunk = open_chunk;
	open_chunk->used += rounded;
	open_chunk->blocks++;
	pthread_mutex_unlock(&chunk_lock);
	*memory = (char *) header + ALIGNMENT;
	return FT_OK;
}

static void
leave_chunk(chunk *c)
{
	bool last;

	pthread_mutex_lock(&chunk_lock);
	last = --c->blocks == 0;
	if (last && c == open_chunk)
		open_chunk = NULL;
	pthread_mutex_unlock(&chunk_lock);
	if (last)
		unmap_large(c);
}

ft_status
ft_cpu_mem_alloc(ft_device *device, ft_mem_space space, size_t bytes, void **memory)
{
	size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + ALIGNMENT;
	char *block;

	(void) device;
	(void) space;
	if (bytes > SIZE_MAX - HUGE_PAGE - 2 * ALIGNMENT)
		return ft_fail(FT_NO_MEMORY, "cannot allocate %zu bytes", bytes);
	if (bytes >= LARGE)
		return map_large(bytes, memory);
	if (bytes >= SHARED)
		return share_chunk(rounded, memory);
	block = aligned_alloc(ALIGNMENT, rounded);
	if (block == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory for %zu bytes", bytes);
	memset(block, 0, rounded);
	*memory = block + ALIGNMENT;
	return FT_OK;
}

void
ft_cpu_mem_free(ft_device *device, ft_mem_space space, void *memory)
{
	block_header *header;

	(void) device;
	(void) space;
	if (memory == NULL)
		return;
	header = (block_header *) ((char *) memory - ALIGNMENT);
	if (header->chunk != NULL)
		leave_chunk(header->chunk);
	else if (header->mapping != NULL)
		unmap_large(memory);
	else
		free(header);
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
