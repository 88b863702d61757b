/*
 * gemm_key.h: what tells one matrix product from another for the library: all
 * that its choice of an algorithm depends on, and nothing else.
 *
 * Plain C, so that it is tested without CUDA.
 */
#ifndef FT_CUDA_GEMM_KEY_H
#define FT_CUDA_GEMM_KEY_H

#include "tensor.h"

#include <string.h>

#define FT_GEMM_MOST_ALIGNMENT 256

typedef struct ft_gemm_key
{
	int64_t m; /* of the row-major c [m, n] */
	int64_t n;
	int64_t k;
	int64_t lda;
	int64_t ldb;
	int64_t ldc;
	int32_t in;  /* ft_dtype of a and b */
	int32_t out; /* of c */
	int32_t ta;
	int32_t tb;
	int32_t adds;    /* beta is not 0 */
	int32_t align_a; /* bytes */
	int32_t align_b;
	int32_t align_c;
} ft_gemm_key;

/* The largest power of two, up to 256, that an address is a multiple of. */
static inline int32_t
ft_gemm_alignment(const void *memory)
{
	uintptr_t bits = (uintptr_t) memory | FT_GEMM_MOST_ALIGNMENT;

	return (int32_t) (bits & (~bits + 1));
}

static inline ft_gemm_key
ft_gemm_key_of(ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float beta)
{
	ft_gemm_key key;

	/* Keys are compared as bytes. */
	memset(&key, 0, sizeof key);
	key.m = c.rows;
	key.n = c.cols;
	key.k = ta ? a.rows : a.cols;
	/* The step of a single row means nothing, but the library checks it. */
	key.lda = a.ld;
	key.ldb = b.ld;
	key.ldc = c.ld;
	key.in = (int32_t) a.dtype;
	key.out = (int32_t) c.dtype;
	key.ta = ta;
	key.tb = tb;
	key.adds = beta != 0.0f;
	key.align_a = ft_gemm_alignment(a.data);
	key.align_b = ft_gemm_alignment(b.data);
	key.align_c = ft_gemm_alignment(c.data);
	return key;
}

/* FNV-1a. */
static inline uint64_t
ft_gemm_key_hash(const ft_gemm_key *key)
{
	const unsigned char *bytes = (const unsigned char *) key;
	uint64_t hash = 14695981039346656037u;

	for (size_t i = 0; i < sizeof *key; i++)
		hash = (hash ^ bytes[i]) * 1099511628211u;
	return hash;
}

static inline bool
ft_gemm_key_equal(const ft_gemm_key *x, const ft_gemm_key *y)
{
	return memcmp(x, y, sizeof *x) == 0;
}

#endif
