/*
 * product.h: one dense product, c = alpha · op(a) · b + beta · c, by our own kernel.
 *
 * What b is is the caller's (a packed weight, one read across, a plain matrix):
 * it fills panels of 16 columns.  Every element of the product is one chain of
 * multiply-adds over k, or a sum of chains that are cut by k alone, whatever the
 * number of rows is and however the tiles are cut ("row-fixed", ops.h).
 */
#ifndef FT_CPU_PRODUCT_H
#define FT_CPU_PRODUCT_H

#include "cpu.h"

/* Columns of a tile, at most. */
#define FT_TILE_COLUMNS (4 * FT_GROUP)

/* The head's gradient is a sum over the vocabulary whose terms nearly cancel: one chain of f32 over
 * tens of thousands of words would leave it four digits. */
#define FT_GRADIENT_CHAIN 1024

typedef struct ft_product
{
	int64_t rows;    /* of op(a) */
	int64_t columns; /* of b */
	int64_t k;
	ft_mat a; /* f32 or bf16 */
	bool ta;
	ft_mat c; /* f32, or bf16 with beta 0 */
	bool tc;  /* c is the transpose of the product */
	float alpha;
	float beta;
	int64_t chain; /* a multiple of FT_PANEL_K: so long chains, added up; 0: one chain */
	const ft_kernels *kernels; /* set by ft_product_run() */
	const void *context;       /* the caller's */

	/* panel[g · FT_PANEL_K · 16 + t · 16 + j] = b[k0 + t, column + 16 g + j], for t < k <=
	 * FT_PANEL_K and columns [column, column + n), n <= FT_TILE_COLUMNS; column is a multiple of
	 * 16 and k0 one of 32.  Columns beyond n, up to a multiple of 16, may hold anything finite. */
	void (*fill)(const struct ft_product *p, float *panel, int64_t column, int64_t n, int64_t k0,
				 int64_t k);
	/* Where b can be read as it lies, f32 [k, columns] with columns a multiple of 16: b[t, j] =
	 * plain[t · plain_ld + j]; else NULL. */
	const float *plain;
	int64_t plain_ld;
	/* Instead of c, alpha and beta: do with the product's [row + i, column + j] =
	 * tile[i · FT_TILE_COLUMNS + j] what is to be done, for i < rows and j < columns.  May be NULL.
	 */
	void (*store)(const struct ft_product *p, const float *tile, int64_t row, int64_t rows,
				  int64_t column, int64_t columns);
} ft_product;

ft_status ft_product_run(ft_stream *s, ft_product *p);

/* to = alpha · from + beta · to for n values of a row of c. */
void ft_product_store_row(const ft_product *p, void *to, const float *from, float alpha, int64_t n);

#endif
