/*
 * integer.h: products of quantised weights with activations that are rounded to
 * eight bits, for serving where FT_NUMERICS_FAST allows it.
 *
 * A row of activations is rounded in blocks of 32 columns, each with a scale of
 * its own: x ≈ scale · q, q from -127 to 127.  With a stored block's values
 * w = d · (u - c) + m (u unsigned, c the type's constant) the block's part of
 * the product is
 *
 *     d · scale · Σ (u - c) q  +  m · scale · Σ q
 *
 * where the sums are exact; types with a scale for every 16 columns have two
 * such parts.  They are added in ascending order in f32, whatever the number of
 * rows is: row-fixed (ops.h).  Every instruction set computes the same; with
 * fused multiply-adds (all but portable) in the same bits.
 */
#ifndef FT_CPU_INTEGER_H
#define FT_CPU_INTEGER_H

#include "cpu.h"

/* Columns of a block. */
#define FT_INTEGER_BLOCK 32

/* Rounded rows, in tiles of n rows that stand side by side in every block; a block of a tile takes
 * n · row_bytes (below). */
typedef struct ft_rounded
{
	int64_t k;
	int64_t rows;
	int64_t tiles; /* of equal numbers of rows, but for one */
	uint8_t *blocks;
	const struct ft_integer_kernels *kernels;
} ft_rounded;

typedef struct ft_integer_kernels
{
	const char *name;
	int tile_rows;       /* at most, */
	int few_rows;        /* and where there are at most so many rows, */
	int few_tile_rows;   /* so many */
	int groups;          /* that multiply() takes at a time, at most */
	int64_t row_bytes;   /* of a row's block, rounded */
	int64_t panel_bytes; /* of scratch for each block of multiply() */

	/* Round x as row i of a tile of n. */
	void (*round)(uint8_t *tile, int n, int i, const float *x, int64_t k);
	/* y[i · ldy + 16 g + j] = row i of x times row j of packed group g, of which the next begins
	 * group_bytes later; NULL for types that have no such kernel.  panel: scratch, 64-byte aligned.
	 */
	void (*multiply[FT_DTYPE_COUNT])(float *y, int64_t ldy, const uint8_t *group,
									 int64_t group_bytes, int64_t groups, const ft_rounded *x,
									 uint8_t *panel);
} ft_integer_kernels;

extern const ft_integer_kernels ft_integer_portable;
#if defined(__x86_64__)
extern const ft_integer_kernels ft_integer_avx2;
extern const ft_integer_kernels ft_integer_avxvnni;
extern const ft_integer_kernels ft_integer_avx512;
extern const ft_integer_kernels ft_integer_avx512vnni;
#endif

/* Tiles that so many rows are cut into. */
static inline int64_t
ft_tiles_of(const ft_integer_kernels *kernels, int64_t rows)
{
	int64_t n = rows <= kernels->few_rows ? kernels->few_tile_rows : kernels->tile_rows;

	return ft_divide_up(rows, n);
}

/* First row of a tile; of x->tiles the number of rows. */
static inline int64_t
ft_tile_row(const ft_rounded *x, int64_t tile)
{
	return tile * x->rows / x->tiles;
}

static inline uint8_t *
ft_tile_blocks(const ft_rounded *x, int64_t tile)
{
	return x->blocks + ft_tile_row(x, tile) * x->kernels->row_bytes * (x->k / FT_INTEGER_BLOCK);
}

/* Whether linear() of this weight can be done so on its device. */
bool ft_integer_suits(const ft_weight *w);

/* y = x · Wᵀ + beta · y; row-fixed. */
ft_status ft_integer_linear(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta);

#endif
