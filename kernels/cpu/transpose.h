/*
 * transpose.h: rows of f32 into a panel of 16 columns.
 */
#ifndef FT_CPU_TRANSPOSE_H
#define FT_CPU_TRANSPOSE_H

#include "kernels.h"

typedef float ft_quad __attribute__((vector_size(16), aligned(4), may_alias));

/* Four rows of four values, as four columns. */
static inline void
ft_transpose_4x4(float *to, int64_t to_ld, const float *from, int64_t from_ld)
{
	ft_quad a = *(const ft_quad *) from;
	ft_quad b = *(const ft_quad *) (from + from_ld);
	ft_quad c = *(const ft_quad *) (from + 2 * from_ld);
	ft_quad d = *(const ft_quad *) (from + 3 * from_ld);
	ft_quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
	ft_quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
	ft_quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
	ft_quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);

	*(ft_quad *) to = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
	*(ft_quad *) (to + to_ld) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
	*(ft_quad *) (to + 2 * to_ld) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
	*(ft_quad *) (to + 3 * to_ld) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

/* panel[k][16] = rows[j][k] for j < n <= 16, zero for the other columns. */
static inline void
ft_transpose_panel(float *panel, const float *rows, int64_t ld, int64_t n, int64_t k)
{
	int64_t j = 0;

	for (; j + 4 <= n; j += 4)
	{
		int64_t t = 0;

		for (; t + 4 <= k; t += 4)
			ft_transpose_4x4(panel + t * FT_GROUP + j, FT_GROUP, rows + j * ld + t, ld);
		for (; t < k; t++)
			for (int i = 0; i < 4; i++)
				panel[t * FT_GROUP + j + i] = rows[(j + i) * ld + t];
	}
	for (; j < FT_GROUP; j++)
		for (int64_t t = 0; t < k; t++)
			panel[t * FT_GROUP + j] = j < n ? rows[j * ld + t] : 0;
}

#endif
