/*
 * intrinsics.cuh: what kernels share: conversions, reductions, and the few
 * instructions that C++ has no words for.
 *
 * Fragments of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with
 * g = lane / 4 and c = lane % 4:
 *
 *   a[0] row g, k 2c..   a[1] row g + 8, k 2c..   a[2] row g, k 2c + 8..   a[3] row g + 8, k 2c
 * + 8.. b[0] k 2c.., column g                         b[1] k 2c + 8.., column g d[0], d[1] row g,
 * columns 2c, 2c + 1          d[2], d[3] row g + 8, the same columns
 *
 * A sum over k may be taken in any order of k as long as a and b agree, which
 * the kernels that read operands straight from memory make use of.
 */
#ifndef FT_CUDA_INTRINSICS_CUH
#define FT_CUDA_INTRINSICS_CUH

#include "cuda.cuh"

#define FT_ALL_LANES 0xffffffffu

#ifdef __CUDACC__

__device__ __forceinline__ float
bits_to_float(uint32_t bits)
{
	return __uint_as_float(bits);
}

/* a · b, which is not fused with what is added to it. */
__device__ __forceinline__ float
rounded_product(float a, float b)
{
	return __fmul_rn(a, b);
}

__device__ __forceinline__ uint16_t
f32_to_bf16(float x)
{
	uint16_t bits;

	asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
	return bits;
}

__device__ __forceinline__ uint16_t
f32_to_f16(float x)
{
	uint16_t bits;

	asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
	return bits;
}

__device__ __forceinline__ float
f16_to_f32(uint16_t bits)
{
	float x;

	asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
	return x;
}

/* Two bf16, low in the low half. */
__device__ __forceinline__ uint32_t
pack_bf16(float low, float high)
{
	uint32_t bits;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
	return bits;
}

/* d += a · b. */
__device__ __forceinline__ void
mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
				 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
				 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
				 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8 × 8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8, and
 * gets values 2c, 2c + 1 of row g of each. */
__device__ __forceinline__ void
load_matrices(uint32_t (&r)[4], const bf16 *row)
{
	uint32_t address = (uint32_t) __cvta_generic_to_shared(row);

	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
				 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
				 : "r"(address)
				 : "memory");
}

/* The same, each matrix transposed. */
__device__ __forceinline__ void
load_matrices_transposed(uint32_t (&r)[4], const bf16 *row)
{
	uint32_t address = (uint32_t) __cvta_generic_to_shared(row);

	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
				 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
				 : "r"(address)
				 : "memory");
}

#endif

/* --- values --- */

__device__ __forceinline__ float
value(float x)
{
	return x;
}

__device__ __forceinline__ float
value(bf16 x)
{
	return bits_to_float((uint32_t) x.bits << 16);
}

__device__ __forceinline__ float
value(f16 x)
{
	return f16_to_f32(x.bits);
}

__device__ __forceinline__ void
set_value(float &to, float x)
{
	to = x;
}

__device__ __forceinline__ void
set_value(bf16 &to, float x)
{
	to.bits = f32_to_bf16(x);
}

__device__ __forceinline__ void
set_value(f16 &to, float x)
{
	to.bits = f32_to_f16(x);
}

/* --- reductions, in an order fixed by the number of threads --- */

template <typename T>
__device__ __forceinline__ T
warp_sum(T x)
{
#pragma unroll
	for (int offset = FT_WARP / 2; offset > 0; offset /= 2)
		x += __shfl_xor_sync(FT_ALL_LANES, x, offset);
	return x;
}

__device__ __forceinline__ float
warp_max(float x)
{
#pragma unroll
	for (int offset = FT_WARP / 2; offset > 0; offset /= 2)
		x = fmaxf(x, __shfl_xor_sync(FT_ALL_LANES, x, offset));
	return x;
}

/* The sum over the block, in every thread.  `shared` has a place for each warp. */
template <typename T>
__device__ T
block_sum(T x, T *shared)
{
	int warps = blockDim.x / FT_WARP;

	x = warp_sum(x);
	__syncthreads();
	if (threadIdx.x % FT_WARP == 0)
		shared[threadIdx.x / FT_WARP] = x;
	__syncthreads();
	x = shared[0];
	for (int i = 1; i < warps; i++)
		x += shared[i];
	return x;
}

/* A value and where it stands; of equal values the lowest index wins.  NaN never wins. */
struct ranked
{
	float value;
	int index;
};

__device__ __forceinline__ ranked
better(ranked a, ranked b)
{
	return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

__device__ inline ranked
block_best(ranked x, ranked *shared)
{
	int warps = blockDim.x / FT_WARP;

#pragma unroll
	for (int offset = FT_WARP / 2; offset > 0; offset /= 2)
	{
		ranked other;

		other.value = __shfl_xor_sync(FT_ALL_LANES, x.value, offset);
		other.index = __shfl_xor_sync(FT_ALL_LANES, x.index, offset);
		x = better(x, other);
	}
	__syncthreads();
	if (threadIdx.x % FT_WARP == 0)
		shared[threadIdx.x / FT_WARP] = x;
	__syncthreads();
	x = shared[0];
	for (int i = 1; i < warps; i++)
		x = better(x, shared[i]);
	return x;
}

/* --- eight neighbouring values --- */

/* Columns [8 c, 8 c + 8) of a 32-column unit that begins at column `first` of a row of `cols`
 * values; what lies beyond the row reads as zero.  `fast`: the row is 16-byte aligned. */
__device__ __forceinline__ void
load_eight(uint32_t (&packed)[4], const bf16 *row, int64_t first, int64_t cols, bool fast)
{
	if (fast && first + 8 <= cols)
	{
		uint4 x = *(const uint4 *) (row + first);

		packed[0] = x.x;
		packed[1] = x.y;
		packed[2] = x.z;
		packed[3] = x.w;
		return;
	}
#pragma unroll
	for (int i = 0; i < 4; i++)
	{
		uint32_t low = first + 2 * i < cols ? row[first + 2 * i].bits : 0;
		uint32_t high = first + 2 * i + 1 < cols ? row[first + 2 * i + 1].bits : 0;

		packed[i] = low | high << 16;
	}
}

#endif
