/*
 * attention.h: what training's attention and its gradient share.
 *
 * One task works on the query heads of one key/value head, for one sequence.
 * Scores are products with panels of 16 keys, results products with panels of
 * 16 dimensions (kernels.h), so both run in the blocked kernel of the matrix
 * products.
 */
#ifndef FT_CPU_ATTENTION_H
#define FT_CPU_ATTENTION_H

#include "cpu.h"

/* Query rows whose scores are held at a time. */
#define FT_QUERY_BLOCK 32

ft_status ft_attention_check(const char *operation, const ft_attention *a, ft_mat q, ft_mat k,
							 ft_mat v, ft_mat out);

/* Rows of f32, or panels of 16 columns of them: element (i, 16 g + j) is data[i · ld + g · pg + j].
 */
typedef struct ft_rows
{
	const float *data;
	int64_t ld;
	int64_t pg;
} ft_rows;

/* m[row .., column ..] as f32: as it lies, or converted into scratch of [rows][cols]. */
ft_rows ft_attention_rows(const ft_kernels *kernels, float *scratch, ft_mat m, int64_t row,
						  int64_t column, int64_t rows, int64_t cols);
/* The same as panels of 16 columns, zero beyond cols; scratch of [cols rounded up][rows]. */
ft_rows ft_attention_dims(float *scratch, ft_mat m, int64_t row, int64_t column, int64_t rows,
						  int64_t cols);
/* panel[key / 16][d][key % 16] = m[row + key, column + d]; zero beyond `rows`. */
void ft_attention_pack_keys(const ft_kernels *kernels, float *panel, ft_mat m, int64_t row,
							int64_t column, int64_t rows, int64_t d);

/* Keys [first, last] that the query at position `at` of its sequence sees. */
static inline int64_t
ft_attention_first_key(const ft_attention *a, int64_t at)
{
	return a->window > 0 && at >= a->window ? at - a->window + 1 : 0;
}

static inline int64_t
ft_round_up(int64_t n, int64_t to)
{
	return (n + to - 1) / to * to;
}

#endif
