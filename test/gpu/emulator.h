/*
 * emulator.h: enough of CUDA, on the CPU, to run the kernels of kernels/cuda
 * without a GPU.
 *
 * The threads of a block are run by one thread of the host, each on a stack of
 * its own, switching at barriers and at instructions of a whole warp; blocks run
 * one after the other.  So indexing, barriers, fragments' layouts and arithmetic
 * are the real ones, while speed, races between blocks and the memory model are
 * not.  PG_FINETUNE_EMULATOR_REVERSE=1 runs a block's threads in reverse order,
 * which shows most missing barriers; shared memory begins as NaN.
 *
 * Only what the kernels use is here.
 */
#ifndef FT_EMULATOR_H
#define FT_EMULATOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tensor.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

struct uint3
{
	unsigned x, y, z;
};

struct dim3
{
	unsigned x, y, z;

	dim3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz)
	{
	}
};

struct uint2
{
	unsigned x, y;
};

struct uint4
{
	unsigned x, y, z, w;
};

struct float4
{
	float x, y, z, w;
};

static inline uint4
make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
	return uint4{x, y, z, w};
}

/* --- running kernels --- */

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

/* Run body(argument) for every thread of every block. */
void emulator_run(dim3 grid, dim3 block, size_t shared, void (*body)(void *), void *argument);
unsigned char *emulator_shared_memory(void);

/* Wait for all threads of the block that have not ended. */
void __syncthreads(void);

/* Give n words and get those of all lanes, when every lane of the warp has given its own.  Valid
 * until this lane's next but one exchange. */
typedef uint64_t emulator_words[8];
const emulator_words *emulator_exchange(const uint64_t *words, int n);

template <typename F>
static inline void
emulator_launch(dim3 grid, dim3 block, size_t shared, F body)
{
	emulator_run(
		grid, block, shared, [](void *f) { (*(F *) f)(); }, &body);
}

#define FT_LAUNCH(kernel, grid, block, shared, stream, ...)                           \
	do                                                                                \
	{                                                                                 \
		auto ft_kernel_ = kernel;                                                     \
		(void) (stream);                                                              \
		emulator_launch((grid), (block), (shared), [&] { ft_kernel_(__VA_ARGS__); }); \
	} while (0)
#define FT_DYNAMIC_SHARED(name) unsigned char *name = emulator_shared_memory()

/* --- instructions --- */

template <typename T>
static inline T
__shfl_sync(unsigned, T x, int lane)
{
	uint64_t word = 0;

	memcpy(&word, &x, sizeof x);
	word = emulator_exchange(&word, 1)[lane][0];
	memcpy(&x, &word, sizeof x);
	return x;
}

template <typename T>
static inline T
__shfl_xor_sync(unsigned mask, T x, int with)
{
	return __shfl_sync(mask, x, (int) (threadIdx.x % 32) ^ with);
}

static inline void
__syncwarp(void)
{
	uint64_t word = 0;

	emulator_exchange(&word, 1);
}

static inline unsigned long long
atomicAdd(unsigned long long *to, unsigned long long x)
{
	unsigned long long before = *to;

	*to += x;
	return before;
}

static inline uint32_t
__float_as_uint(float x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof bits);
	return bits;
}

static inline float
bits_to_float(uint32_t bits)
{
	float x;

	memcpy(&x, &bits, sizeof x);
	return x;
}

/* Compiled for a processor without fused multiply-adds. */
static inline float
rounded_product(float a, float b)
{
	return a * b;
}

static inline uint16_t
f32_to_bf16(float x)
{
	return ft_f32_to_bf16(x);
}

uint16_t f32_to_f16(float x);
float f16_to_f32(uint16_t bits);

static inline uint32_t
pack_bf16(float low, float high)
{
	return ft_f32_to_bf16(low) | (uint32_t) ft_f32_to_bf16(high) << 16;
}

struct bf16;
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void load_matrices(uint32_t (&r)[4], const bf16 *row);
void load_matrices_transposed(uint32_t (&r)[4], const bf16 *row);

/* --- the runtime --- */

#define CUDART_VERSION 13000

enum cudaError_t
{
	cudaSuccess,
	cudaErrorMemoryAllocation,
	cudaErrorInsufficientDriver,
	cudaErrorNoDevice,
	cudaErrorInvalidValue
};

enum
{
	cudaMemcpyHostToDevice,
	cudaMemcpyDeviceToHost,
	cudaMemcpyDeviceToDevice,
	cudaHostAllocDefault,
	cudaStreamNonBlocking,
	cudaEventDisableTiming,
	cudaFuncAttributeMaxDynamicSharedMemorySize
};

typedef struct emulator_stream *cudaStream_t;
typedef struct emulator_event *cudaEvent_t;

struct cudaDeviceProp
{
	char name[256];
	int major;
	int minor;
	int multiProcessorCount;
};

cudaError_t cudaGetLastError(void);
const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaMalloc(void **memory, size_t bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaMemset(void *memory, int byte, size_t bytes);
cudaError_t cudaMemsetAsync(void *memory, int byte, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemset2DAsync(void *memory, size_t pitch, int byte, size_t width, size_t height,
							  cudaStream_t stream);
cudaError_t
cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
							  size_t width, size_t height, int kind, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaFuncSetAttribute(const void *kernel, int attribute, int value);

#endif
