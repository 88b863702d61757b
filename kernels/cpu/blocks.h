/*
 * blocks.h: the blocks of stored types, value by value (tensor.h names the
 * formats).  For packing and converting; the loops that run for every token are
 * in unpack_kernel.h.
 */
#ifndef FT_CPU_BLOCKS_H
#define FT_CPU_BLOCKS_H

#include "tensor.h"

/* 32 columns of a row of a quantised type. */
typedef struct ft_block
{
	uint8_t q[32]; /* as stored, before an offset is taken off; q8_0: i8 */
	uint16_t d;    /* f16 */
	uint16_t m;    /* f16, where the type has minima */
	/* q3_k, q6_k: i8 of each half of 16 columns; q2_k: of each half, the scale in the low nibble,
	 * the minimum in the high one; q4_k, q5_k: the scale, the minimum. */
	uint8_t scale[2];
} ft_block;

/* Columns [32 · block, + 32) of a stored row. */
void ft_block_read(ft_block *b, ft_dtype dtype, const uint8_t *row, int64_t block);
/* Its 32 values. */
void ft_block_values(float *y, ft_dtype dtype, const ft_block *b);

/* Values of one stored row, of any type. */
void ft_stored_row(float *y, ft_dtype dtype, const void *row, int64_t cols);

uint16_t ft_block_u16(const uint8_t *p); /* little-endian */

#endif
