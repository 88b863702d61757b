/*
 * pack.h: stored rows, and the packed groups of 16 rows that serving reads.
 *
 * A packed group holds 16 rows of a weight, block after block along k, with the
 * 16 rows side by side in every block, so that one vector load gives the same
 * k of 16 rows (the last group of a part is filled with zero rows).
 * For a block of 32 columns of a quantised type, "words" being 16 × u32, row r
 * in word r:
 *
 *   q4_0  d[16] f16, 4 words                     word j: nibbles i = column 8 j + i
 *   q4_1  d[16], m[16] f16, 4 words
 *   q5_0  d[16] f16, 1 word of high bits, 4 words
 *   q5_1  d[16], m[16] f16, 1 word of high bits, 4 words
 *   q8_0  d[16] f16, 8 words                     word j: bytes i = column 4 j + i
 *   q2_k  d[16], m[16] f16, scale[2][16] u8 (low nibble scale, high nibble minimum, of 16 columns
 *         each), 2 words                             word j: pairs i = column 16 j + i
 *   q3_k  d[16] f16, scale[2][16] i8, 1 word of high bits, 2 words
 *   q4_k  d[16], m[16] f16, scale[16], minimum[16] u8, 4 words
 *   q5_k  d[16], m[16] f16, scale[16], minimum[16] u8, 1 word of high bits, 4 words
 *   q6_k  d[16] f16, scale[2][16] i8, 2 words of high bit pairs (columns 16 j ..), 4 words
 *
 * Plain types: f32 and f16 k by k; bf16 in pairs of k, so that a word is two
 * neighbours of one row.
 */
#ifndef FT_CPU_PACK_H
#define FT_CPU_PACK_H

#include "blocks.h"
#include "kernels.h"

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
