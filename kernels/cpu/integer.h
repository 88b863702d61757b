/*
 * integer.h: products of quantised weights with activations that are rounded to
 * eight bits, for serving where FT_NUMERICS_FAST allows it.
 *
 * A row of activations is rounded in blocks of 32 columns, each with a scale of
 * its own: x ≈ scale · q, q from -127 to 127.  With a stored block's values
 * w = d · u + m (u unsigned) the block's part of the product is
 *
 *     d · scale · Σ u q  +  m · scale · Σ q
 *
 * where Σ u q is exact.  Blocks are added in ascending order in f32, whatever
 * the number of rows is: row-fixed (ops.h).
 */
#ifndef FT_CPU_INTEGER_H
#define FT_CPU_INTEGER_H

#include "cpu.h"

/* Columns of a block. */
#define FT_INTEGER_BLOCK 32

/* Rounded rows; k columns each, in whole blocks. */
typedef struct ft_rounded
{
	int64_t k;
	int8_t *natural; /* [rows][k] */
	/* [rows][k] every eight columns as 0 2 4 6, 1 3 5 7: in the order in which the low and the high
	 * nibbles of packed words (pack.h) meet them */
	int8_t *split;
	float *scale; /* [rows][k / 32] */
	float *sum;   /* [rows][k / 32] scale · Σ q */
} ft_rounded;

typedef struct ft_integer_kernels
{
	/* Round row `row` of x. */
	void (*round)(ft_rounded *rounded, int64_t row, const float *x);
	/* y[i · ldy + j] = row + i of x times row j of a packed group of 16, for i < rows; NULL for
	 * types that have no such kernel. */
	void (*multiply[FT_DTYPE_COUNT])(float *y, int64_t ldy, const uint8_t *group,
									 const ft_rounded *x, int64_t row, int64_t rows);
} ft_integer_kernels;

#if defined(__x86_64__)
extern const ft_integer_kernels ft_integer_avx512vnni;
#endif

/* Whether linear() of this weight can be done so on its device. */
bool ft_integer_suits(const ft_weight *w);

/* y = x · Wᵀ + beta · y; row-fixed. */
ft_status ft_integer_linear(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta);

#endif
