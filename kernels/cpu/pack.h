/*
 * pack.h: stored rows, and the packed groups of 16 rows that serving reads.
 *
 * A packed group holds 16 rows of a weight, block after block along k, with the
 * 16 rows side by side in every block, so that one vector load gives the same
 * k of 16 rows (the last group of a part is filled with zero rows).
 * A block of 32 columns of a quantised type is
 *
 *   d[16] f16                 of every type
 *   m[16] f16                 q4_1, q5_1, q2_k, q4_k, q5_k
 *   scale[2][16] bytes        q2_k (low nibble scale, high nibble minimum, of 16 columns each),
 * q3_k and q6_k (i8, of 16 columns each), q4_k and q5_k (scale, minimum) 1 or 2 words the bits
 * above the low ones: q5_0, q5_1, q5_k, q3_k; q6_k 2, 4 or 8 words           the low 2 (q2_k,
 * q3_k), 4 or 8 (q8_0) bits
 *
 * where "words" are 16 × u32, row r in word r.  Products in whole numbers take them as eight
 * vectors of bytes: byte k of vector s is column 8 (s / 2) + 2 k + s % 2.  With b bits of each
 * column in words, those of vector s are in word s · b / 8, from bit s · b % 8 of its bytes on: a
 * shift and a mask give the vector.
 *
 * Plain types: f32 and f16 k by k; bf16 in pairs of k, so that a word is two
 * neighbours of one row.
 */
#ifndef FT_CPU_PACK_H
#define FT_CPU_PACK_H

#include "blocks.h"
#include "kernels.h"

/* The vector of bytes that has column i of a block. */
#define FT_PACK_VECTOR(i) ((i) / 8 * 2 + (i) % 2)

/* Columns that a packed block covers: 32, or 1 (f32, f16), or 2 (bf16). */
int ft_pack_columns(ft_dtype dtype);
/* Bytes of a packed group of 16 rows of `cols` columns; -1 for a type that is not stored. */
int64_t ft_pack_group_bytes(ft_dtype dtype, int64_t cols);
/* Bytes of one packed block. */
int64_t ft_pack_block_bytes(ft_dtype dtype);

/* Pack n <= 16 stored rows, each row_bytes long, into a zeroed group. */
void ft_pack_group(uint8_t *group, ft_dtype dtype, const uint8_t *rows, int64_t row_bytes, int n,
				   int64_t cols);

/* Values of row `lane` of a packed group. */
void ft_unpack_row(float *y, ft_dtype dtype, const uint8_t *group, int lane, int64_t cols);

#endif
