/*
 * paged_kernel.h: the two products of attention over a paged cache, with the
 * blocks of keys or values where they lie.
 *
 * As in gemm_kernel.h every element is one chain of multiply-adds, whatever the
 * rows and blocks beside it are.  Blocks of bf16 are widened as they are read,
 * which is exact.  A block is no longer than a page, too short for the processor
 * to see a pattern in, so the blocks that come next are asked for here.
 */
#include "simd.h"

#include "kernels.h"

/* Vectors of a block of the result, and its rows. */
#define PAGED_VECTORS 4
#if VW == 16
#define PAGED_ROWS 6
#else
#define PAGED_ROWS 3
#endif
/* Cache blocks whose scores are made at a time. */
#define PAGED_BLOCKS (PAGED_VECTORS * VW / FT_GROUP)
/* How many blocks ahead values are asked for. */
#define PAGED_AHEAD 2
_Static_assert(PAGED_BLOCKS <= FT_PAGED_AHEAD && PAGED_AHEAD <= FT_PAGED_AHEAD,
			   "panels have no such entry");

INLINE void
scores_block(const int MR, const int NB, const bool bf16, float *scores, int64_t ld, const float *q,
			 int64_t ldq, const void *const *panels, int64_t k)
{
	const int NV = NB * (FT_GROUP / VW);
	vf c[PAGED_ROWS][PAGED_VECTORS];

	UNROLL(6)
	for (int i = 0; i < MR; i++)
		UNROLL(4)
	for (int j = 0; j < NV; j++)
		c[i][j] = v_zero();
	for (int64_t t = 0; t < k; t++)
	{
		vf w[PAGED_VECTORS];

		UNROLL(4)
		for (int j = 0; j < NV; j++)
			w[j] = v_load_as(panels[j / (FT_GROUP / VW)], t * FT_GROUP + j % (FT_GROUP / VW) * VW,
							 bf16);
		if (!bf16 || t % 2 == 0)
		{
			UNROLL(4)
			for (int j = 0; j < NB; j++)
				__builtin_prefetch((const char *) panels[NB + j] + t * FT_GROUP * (bf16 ? 2 : 4));
		}
		UNROLL(6)
		for (int i = 0; i < MR; i++)
		{
			vf a = v_set1(q[i * ldq + t]);

			UNROLL(4)
			for (int j = 0; j < NV; j++)
				c[i][j] = v_fma(a, w[j], c[i][j]);
		}
	}
	UNROLL(6)
	for (int i = 0; i < MR; i++)
		UNROLL(4)
	for (int j = 0; j < NV; j++)
		v_store(scores + i * ld + j * VW, c[i][j]);
}

INLINE void
mix_block(const int MR, const int NV, const bool bf16, float *acc, int64_t lda, const float *scores,
		  int64_t ld, const void *const *panels, int64_t pk, int64_t column, int64_t positions)
{
	vf c[PAGED_ROWS][PAGED_VECTORS];

	UNROLL(6)
	for (int i = 0; i < MR; i++)
		UNROLL(4)
	for (int j = 0; j < NV; j++)
		c[i][j] = v_load(acc + i * lda + j * VW);
	for (int64_t first = 0; first < positions; first += FT_GROUP, scores += FT_GROUP, panels++)
	{
		int64_t n = positions - first < FT_GROUP ? positions - first : FT_GROUP;

		for (int64_t t = 0, at = column; t < n; t++, at += pk)
		{
			vf w[PAGED_VECTORS];

			UNROLL(4)
			for (int j = 0; j < NV; j++)
				w[j] = v_load_as(*panels, at + j * VW, bf16);
			for (int byte = 0; byte < NV * VW * (bf16 ? 2 : 4); byte += 64)
				__builtin_prefetch((const char *) panels[PAGED_AHEAD] + at * (bf16 ? 2 : 4) + byte);
			UNROLL(6)
			for (int i = 0; i < MR; i++)
			{
				vf a = v_set1(scores[i * ld + t]);

				UNROLL(4)
				for (int j = 0; j < NV; j++)
					c[i][j] = v_fma(a, w[j], c[i][j]);
			}
		}
	}
	UNROLL(6)
	for (int i = 0; i < MR; i++)
		UNROLL(4)
	for (int j = 0; j < NV; j++)
		v_store(acc + i * lda + j * VW, c[i][j]);
}

/* A call with a constant number of rows. */
#if VW == 16
#define FOR_ROWS(rows, call) \
	switch (rows)            \
	{                        \
		case 1:              \
			call(1);         \
			break;           \
		case 2:              \
			call(2);         \
			break;           \
		case 3:              \
			call(3);         \
			break;           \
		case 4:              \
			call(4);         \
			break;           \
		case 5:              \
			call(5);         \
			break;           \
		default:             \
			call(6);         \
			break;           \
	}
#else
#define FOR_ROWS(rows, call) \
	switch (rows)            \
	{                        \
		case 1:              \
			call(1);         \
			break;           \
		case 2:              \
			call(2);         \
			break;           \
		default:             \
			call(3);         \
			break;           \
	}
#endif

INLINE void
scores_of(const bool bf16, float *scores, int64_t ld, const float *q, int64_t ldq,
		  const void *const *panels, int64_t blocks, int64_t m, int64_t k)
{
#define WIDE(rows) scores_block(rows, PAGED_BLOCKS, bf16, to, ld, from, ldq, panels + b, k)
#define NARROW(rows) scores_block(rows, 1, bf16, to, ld, from, ldq, panels + b, k)
	for (int64_t i = 0; i < m; i += PAGED_ROWS)
	{
		const float *from = q + i * ldq;
		int64_t rows = m - i;
		int64_t b = 0;

		for (; b + PAGED_BLOCKS <= blocks; b += PAGED_BLOCKS)
		{
			float *to = scores + i * ld + b * FT_GROUP;

			FOR_ROWS(rows, WIDE)
		}
		for (; b < blocks; b++)
		{
			float *to = scores + i * ld + b * FT_GROUP;

			FOR_ROWS(rows, NARROW)
		}
	}
#undef WIDE
#undef NARROW
}

static void
paged_scores(float *scores, int64_t ld, const float *q, int64_t ldq, const void *const *panels,
			 bool bf16, int64_t blocks, int64_t m, int64_t k)
{
	if (bf16)
		scores_of(true, scores, ld, q, ldq, panels, blocks, m, k);
	else
		scores_of(false, scores, ld, q, ldq, panels, blocks, m, k);
}

INLINE void
mix_of(const bool bf16, float *acc, int64_t lda, const float *scores, int64_t ld,
	   const void *const *panels, int64_t pk, int64_t positions, int64_t m, int64_t width)
{
#define WIDE(rows) mix_block(rows, PAGED_VECTORS, bf16, to, lda, from, ld, panels, pk, c, positions)
#define NARROW(rows) \
	mix_block(rows, FT_GROUP / VW, bf16, to, lda, from, ld, panels, pk, c, positions)
	for (int64_t i = 0; i < m; i += PAGED_ROWS)
	{
		const float *from = scores + i * ld;
		int64_t rows = m - i;
		int64_t c = 0;

		for (; c + PAGED_VECTORS * VW <= width; c += PAGED_VECTORS * VW)
		{
			float *to = acc + i * lda + c;

			FOR_ROWS(rows, WIDE)
		}
		for (; c < width; c += FT_GROUP)
		{
			float *to = acc + i * lda + c;

			FOR_ROWS(rows, NARROW)
		}
	}
#undef WIDE
#undef NARROW
}

static void
paged_mix(float *acc, int64_t lda, const float *scores, int64_t ld, const void *const *panels,
		  bool bf16, int64_t pk, int64_t positions, int64_t m, int64_t width)
{
	if (bf16)
		mix_of(true, acc, lda, scores, ld, panels, pk, positions, m, width);
	else
		mix_of(false, acc, lda, scores, ld, panels, pk, positions, m, width);
}
