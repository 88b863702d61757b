/*
 * panel_kernel.h: rows of f32 turned into a panel of 16 columns.
 */
#include "simd.h"

#include "transpose.h"

#if VW == 16
#define LOW_1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define HIGH_1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define LOW_2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH_2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define LOW_4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define HIGH_4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define LOW_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31

/* One step of a transposition: rows whose numbers differ by `distance` exchange halves of every
 * block of twice as many values. */
#define EXCHANGE(v, distance)                                                 \
	_Pragma("GCC unroll 16") for (int i = 0; i < VW; i++)                     \
	{                                                                         \
		vf a = (v)[i];                                                        \
		vf b = (v)[i | (distance)];                                           \
                                                                              \
		if (i & (distance))                                                   \
			continue;                                                         \
		(v)[i] = __builtin_shufflevector(a, b, LOW_##distance);               \
		(v)[i | (distance)] = __builtin_shufflevector(a, b, HIGH_##distance); \
	}

/* panel[t][16] = rows[j][t] for 16 rows and 16 t. */
INLINE void
turn_16(float *panel, const float *rows, int64_t ld)
{
	vf v[VW];

#pragma GCC unroll 16
	for (int i = 0; i < VW; i++)
		v[i] = v_load(rows + i * ld);
	EXCHANGE(v, 1)
	EXCHANGE(v, 2)
	EXCHANGE(v, 4)
	EXCHANGE(v, 8)
#pragma GCC unroll 16
	for (int i = 0; i < VW; i++)
		v_store(panel + i * FT_GROUP, v[i]);
}
#endif

static void
fill_panel(float *panel, const float *rows, int64_t ld, int64_t n, int64_t k)
{
	int64_t t = 0;

#if VW == 16
	if (n == FT_GROUP)
		for (; t + VW <= k; t += VW)
			turn_16(panel + t * FT_GROUP, rows + t, ld);
#endif
	if (t < k)
		ft_transpose_panel(panel + t * FT_GROUP, rows + t, ld, n, k - t);
}
