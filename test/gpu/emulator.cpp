/*
 * emulator.cpp: emulator.h.
 */
#include "cuda.cuh"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#define MOST_THREADS 1024
#define WARP 32
#define STACK_BYTES (128 * 1024)
#define SHARED_BYTES (227 * 1024) /* what a block may have on sm_90 */
#define GUARD_BYTES 256
#define GUARD_BYTE 0xa5
#define DEVICE_MEMORY ((size_t) 8 << 30)

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

static void
fatal(const char *what)
{
	fprintf(stderr, "emulator: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y,
			blockIdx.z, threadIdx.x);
	abort();
}

static void open_memory(void);
static void close_memory(void);

/* --- threads of a block --- */

/* Those that wait for each other: a block or a warp. */
struct meeting
{
	int alive;
	int arrived;
	unsigned generation;
};

struct thread
{
	bool ended;
	const meeting *waits_for; /* NULL: runs */
	unsigned generation;      /* until it differs from this */
	unsigned exchanges;
	jmp_buf at;
	ucontext_t begin;
	unsigned char *stack; /* NULL: not yet entered */
};

struct warp
{
	meeting together;
	emulator_words words[2][WARP];
};

static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER;
static thread threads[MOST_THREADS];
static warp warps[MOST_THREADS / WARP];
static meeting block_together;
static int current;
static jmp_buf scheduler;
static void (*kernel_body)(void *);
static void *kernel_argument;
static unsigned char *shared_memory;

static void
release_if_complete(meeting *m)
{
	if (m->arrived > 0 && m->arrived == m->alive)
	{
		m->arrived = 0;
		m->generation++;
	}
}

static void
wait_at(meeting *m)
{
	thread *t = &threads[current];

	t->waits_for = m;
	t->generation = m->generation;
	m->arrived++;
	release_if_complete(m);
	if (m->generation == t->generation && _setjmp(t->at) == 0)
		_longjmp(scheduler, 1);
	threads[current].waits_for = NULL;
}

/* A stack is entered once and then runs one thread of a block after the other. */
static void
thread_main(void)
{
	for (;;)
	{
		kernel_body(kernel_argument);
		threads[current].ended = true;
		block_together.alive--;
		warps[current / WARP].together.alive--;
		release_if_complete(&block_together);
		release_if_complete(&warps[current / WARP].together);
		if (_setjmp(threads[current].at) == 0)
			_longjmp(scheduler, 1);
	}
}

static void
resume(int i)
{
	static ucontext_t unused;
	thread *t = &threads[i];

	current = i;
	threadIdx = uint3{(unsigned) i, 0, 0};
	if (_setjmp(scheduler) != 0)
		return;
	if (t->stack != NULL)
		_longjmp(t->at, 1);
	t->stack = (unsigned char *) malloc(STACK_BYTES);
	getcontext(&t->begin);
	t->begin.uc_stack.ss_sp = t->stack;
	t->begin.uc_stack.ss_size = STACK_BYTES;
	t->begin.uc_link = NULL;
	makecontext(&t->begin, thread_main, 0);
	swapcontext(&unused, &t->begin);
}

static void
run_block(int n, bool reverse)
{
	block_together = meeting{n, 0, 0};
	for (int w = 0; w < n / WARP; w++)
		warps[w].together = meeting{WARP, 0, 0};
	for (int i = 0; i < n; i++)
	{
		threads[i].ended = false;
		threads[i].waits_for = NULL;
		threads[i].exchanges = 0;
	}
	while (block_together.alive > 0)
	{
		bool moved = false;

		for (int i = 0; i < n; i++)
		{
			int at = reverse ? n - 1 - i : i;
			thread *t = &threads[at];

			if (t->ended || (t->waits_for != NULL && t->waits_for->generation == t->generation))
				continue;
			moved = true;
			resume(at);
		}
		if (!moved)
			fatal("the threads wait for each other for ever");
	}
}

void
emulator_run(dim3 grid, dim3 block, size_t shared, void (*body)(void *), void *argument)
{
	const char *reverse = getenv("PG_FINETUNE_EMULATOR_REVERSE");

	pthread_mutex_lock(&running);
	if (block.x % WARP != 0 || block.x > MOST_THREADS || block.y != 1 || block.z != 1)
		fatal("a block is not some whole warps");
	if (shared > SHARED_BYTES || grid.y > 65535 || grid.z > 65535 || grid.x == 0 || grid.y == 0 ||
		grid.z == 0)
		fatal("the launch is outside of the device's limits");
	if (shared_memory == NULL)
		shared_memory = (unsigned char *) aligned_alloc(256, SHARED_BYTES + GUARD_BYTES);
	open_memory();
	kernel_body = body;
	kernel_argument = argument;
	blockDim = block;
	gridDim = grid;
	for (unsigned z = 0; z < grid.z; z++)
	{
		for (unsigned y = 0; y < grid.y; y++)
		{
			for (unsigned x = 0; x < grid.x; x++)
			{
				blockIdx = uint3{x, y, z};
				memset(shared_memory, 0xff, shared);
				memset(shared_memory + shared, GUARD_BYTE, GUARD_BYTES);
				run_block((int) block.x, reverse != NULL && *reverse == '1');
				for (int i = 0; i < GUARD_BYTES; i++)
				{
					if (shared_memory[shared + i] != GUARD_BYTE)
						fatal("a write behind shared memory");
				}
			}
		}
	}
	close_memory();
	pthread_mutex_unlock(&running);
}

unsigned char *
emulator_shared_memory(void)
{
	return shared_memory;
}

void
__syncthreads(void)
{
	wait_at(&block_together);
}

const emulator_words *
emulator_exchange(const uint64_t *words, int n)
{
	warp *w = &warps[current / WARP];
	unsigned turn = threads[current].exchanges++ % 2;

	memcpy(w->words[turn][current % WARP], words, (size_t) n * sizeof *words);
	wait_at(&w->together);
	return w->words[turn];
}

/* --- instructions --- */

static float
half_of(uint64_t word, int i)
{
	return ft_bf16_to_f32((uint16_t) (word >> (i * 16)));
}

void
mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
	uint64_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
	const emulator_words *all = emulator_exchange(mine, 6);
	int lane = current % WARP;

	for (int i = 0; i < 4; i++)
	{
		int row = lane / 4 + i / 2 * 8;
		int column = lane % 4 * 2 + i % 2;
		double sum = 0;

		for (int k = 0; k < 16; k++)
		{
			uint64_t left = all[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
			uint64_t right = all[column * 4 + k % 8 / 2][4 + k / 8];

			sum += (double) half_of(left, k % 2) * half_of(right, k % 2);
		}
		d[i] = (float) (d[i] + sum);
	}
}

static const emulator_words *
matrix_rows(const bf16 *row)
{
	uint64_t address = (uint64_t) (uintptr_t) row;

	if (address % 16 != 0)
		fatal("a row of a matrix is not aligned to 16 bytes");
	return emulator_exchange(&address, 1);
}

static uint32_t
matrix_value(const emulator_words *rows, int matrix, int row, int column)
{
	return ((const bf16 *) (uintptr_t) rows[matrix * 8 + row][0])[column].bits;
}

void
load_matrices(uint32_t (&r)[4], const bf16 *row)
{
	const emulator_words *rows = matrix_rows(row);
	int g = current % WARP / 4;
	int c = current % 4;

	for (int i = 0; i < 4; i++)
		r[i] = matrix_value(rows, i, g, 2 * c) | matrix_value(rows, i, g, 2 * c + 1) << 16;
}

void
load_matrices_transposed(uint32_t (&r)[4], const bf16 *row)
{
	const emulator_words *rows = matrix_rows(row);
	int g = current % WARP / 4;
	int c = current % 4;

	for (int i = 0; i < 4; i++)
		r[i] = matrix_value(rows, i, 2 * c, g) | matrix_value(rows, i, 2 * c + 1, g) << 16;
}

float
f16_to_f32(uint16_t bits)
{
	int exponent = bits >> 10 & 31;
	int fraction = bits & 1023;
	float x;

	if (exponent == 31)
		x = fraction != 0 ? NAN : INFINITY;
	else if (exponent == 0)
		x = ldexpf((float) fraction, -24);
	else
		x = ldexpf((float) (fraction | 1024), exponent - 25);
	return bits & 0x8000 ? -x : x;
}

uint16_t
f32_to_f16(float x)
{
	uint16_t sign = signbit(x) ? 0x8000 : 0;
	float size = fabsf(x);
	int exponent;
	int steps;

	if (isnan(x))
		return 0x7fff;
	if (size >= 65520.0f)
		return sign | 0x7c00;
	if (size == 0)
		return sign;
	frexpf(size, &exponent);
	/* One step is the last bit of the result; rintf goes to the even one on a tie. */
	exponent = exponent < -13 ? -13 : exponent;
	steps = (int) rintf(ldexpf(size, 11 - exponent));
	return sign | (uint16_t) (steps + ((exponent + 13) << 10));
}

/* --- the runtime --- */

/*
 * Device memory is one range of addresses that may be touched only while a kernel or a copy runs,
 * so that host code which reads it directly crashes here as it would on a GPU.  Allocations have
 * guards behind them.
 */
struct allocation
{
	size_t at; /* in the range */
	size_t bytes;
};

static pthread_mutex_t allocating = PTHREAD_MUTEX_INITIALIZER;
static unsigned char *device_memory;
static allocation *allocations; /* by address */
static size_t n_allocations;
static size_t allocated;
static int users; /* kernels and copies that run */

/* A change of protection costs most of a small test's time, so it is made only when asked for. */
static bool
protects(void)
{
	static int wanted = -1;

	if (wanted < 0)
	{
		const char *value = getenv("PG_FINETUNE_EMULATOR_PROTECT");

		wanted = value != NULL && *value == '1';
	}
	return wanted == 1 && device_memory != NULL;
}

static void
open_memory(void)
{
	pthread_mutex_lock(&allocating);
	if (users++ == 0 && protects() &&
		mprotect(device_memory, DEVICE_MEMORY, PROT_READ | PROT_WRITE) != 0)
		fatal("mprotect");
	pthread_mutex_unlock(&allocating);
}

static void
close_memory(void)
{
	pthread_mutex_lock(&allocating);
	if (--users == 0 && protects() && mprotect(device_memory, DEVICE_MEMORY, PROT_NONE) != 0)
		fatal("mprotect");
	pthread_mutex_unlock(&allocating);
}

static size_t
space_of(size_t bytes)
{
	return (bytes + GUARD_BYTES + 255) / 256 * 256;
}

/* The first gap that is large enough, as the index before which the new allocation stands. */
static bool
find_gap(size_t bytes, size_t *index, size_t *at)
{
	*at = 0;
	for (*index = 0; *index < n_allocations; (*index)++)
	{
		if (allocations[*index].at - *at >= space_of(bytes))
			return true;
		*at = allocations[*index].at + space_of(allocations[*index].bytes);
	}
	return bytes < DEVICE_MEMORY && DEVICE_MEMORY - *at >= space_of(bytes);
}

static bool
allocate(size_t bytes, void **memory)
{
	size_t index;
	size_t at;

	if (device_memory == NULL)
	{
		device_memory = (unsigned char *) mmap(NULL, DEVICE_MEMORY, PROT_READ | PROT_WRITE,
											   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (device_memory == MAP_FAILED)
			fatal("mmap");
	}
	if (!find_gap(bytes, &index, &at))
		return false;
	allocations = (allocation *) realloc(allocations, (n_allocations + 1) * sizeof *allocations);
	memmove(allocations + index + 1, allocations + index,
			(n_allocations - index) * sizeof *allocations);
	allocations[index] = allocation{at, bytes};
	n_allocations++;
	allocated += bytes;
	*memory = device_memory + at;
	return true;
}

cudaError_t
cudaMalloc(void **memory, size_t bytes)
{
	bool fits;

	pthread_mutex_lock(&allocating);
	fits = allocate(bytes, memory);
	pthread_mutex_unlock(&allocating);
	open_memory();
	if (fits)
	{
		memset(*memory, 0xff, bytes);
		memset((unsigned char *) *memory + bytes, GUARD_BYTE, GUARD_BYTES);
	}
	close_memory();
	return fits ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t
cudaFree(void *memory)
{
	size_t i = 0;

	if (memory == NULL)
		return cudaSuccess;
	open_memory();
	pthread_mutex_lock(&allocating);
	while (i < n_allocations && device_memory + allocations[i].at != memory)
		i++;
	if (i == n_allocations)
		fatal("free of what was not allocated");
	for (size_t j = 0; j < GUARD_BYTES; j++)
	{
		if (((unsigned char *) memory)[allocations[i].bytes + j] != GUARD_BYTE)
			fatal("a write behind device memory");
	}
	allocated -= allocations[i].bytes;
	n_allocations--;
	memmove(allocations + i, allocations + i + 1, (n_allocations - i) * sizeof *allocations);
	pthread_mutex_unlock(&allocating);
	close_memory();
	return cudaSuccess;
}

cudaError_t
cudaMemGetInfo(size_t *available, size_t *total)
{
	*total = DEVICE_MEMORY;
	*available = DEVICE_MEMORY - allocated;
	return cudaSuccess;
}

cudaError_t
cudaHostAlloc(void **memory, size_t bytes, unsigned)
{
	*memory = malloc(bytes);
	return *memory != NULL ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t
cudaFreeHost(void *memory)
{
	free(memory);
	return cudaSuccess;
}

cudaError_t
cudaMemset(void *memory, int byte, size_t bytes)
{
	open_memory();
	memset(memory, byte, bytes);
	close_memory();
	return cudaSuccess;
}

cudaError_t
cudaMemsetAsync(void *memory, int byte, size_t bytes, cudaStream_t)
{
	return cudaMemset(memory, byte, bytes);
}

cudaError_t
cudaMemset2DAsync(void *memory, size_t pitch, int byte, size_t width, size_t height, cudaStream_t)
{
	open_memory();
	for (size_t i = 0; i < height; i++)
		memset((char *) memory + i * pitch, byte, width);
	close_memory();
	return cudaSuccess;
}

cudaError_t
cudaMemcpyAsync(void *to, const void *from, size_t bytes, int, cudaStream_t)
{
	open_memory();
	memcpy(to, from, bytes);
	close_memory();
	return cudaSuccess;
}

cudaError_t
cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
				  size_t height, int, cudaStream_t)
{
	open_memory();
	for (size_t i = 0; i < height; i++)
		memcpy((char *) to + i * to_pitch, (const char *) from + i * from_pitch, width);
	close_memory();
	return cudaSuccess;
}

cudaError_t
cudaGetLastError(void)
{
	return cudaSuccess;
}

const char *
cudaGetErrorString(cudaError_t)
{
	return "emulated error";
}

const char *
cudaGetErrorName(cudaError_t)
{
	return "emulatedError";
}

cudaError_t
cudaDriverGetVersion(int *version)
{
	*version = CUDART_VERSION;
	return cudaSuccess;
}

cudaError_t
cudaGetDeviceCount(int *n)
{
	*n = 1;
	return cudaSuccess;
}

cudaError_t
cudaSetDevice(int)
{
	return cudaSuccess;
}

cudaError_t
cudaGetDeviceProperties(cudaDeviceProp *properties, int)
{
	*properties = cudaDeviceProp{"emulated on the CPU", 9, 0, 1};
	return cudaSuccess;
}

cudaError_t
cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
	*stream = NULL;
	return cudaSuccess;
}

cudaError_t
cudaStreamDestroy(cudaStream_t)
{
	return cudaSuccess;
}

cudaError_t
cudaStreamSynchronize(cudaStream_t)
{
	return cudaSuccess;
}

cudaError_t
cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
	*event = NULL;
	return cudaSuccess;
}

cudaError_t
cudaEventDestroy(cudaEvent_t)
{
	return cudaSuccess;
}

cudaError_t
cudaEventRecord(cudaEvent_t, cudaStream_t)
{
	return cudaSuccess;
}

cudaError_t
cudaEventSynchronize(cudaEvent_t)
{
	return cudaSuccess;
}

cudaError_t
cudaFuncSetAttribute(const void *, int, int value)
{
	return value <= SHARED_BYTES ? cudaSuccess : cudaErrorInvalidValue;
}

/* --- cuBLASLt has nothing here, so the own kernel does all products --- */

ft_status
ft_lt_open(ft_device *)
{
	return FT_OK;
}

void
ft_lt_close(ft_device *)
{
}

ft_status
ft_lt_gemm(ft_stream *, ft_mat, ft_mat, bool, ft_mat, bool, float, float, bool *done)
{
	*done = false;
	return FT_OK;
}
