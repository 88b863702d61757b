/*
 * tensor.h: element types and matrix views, shared by engine and kernels.
 *
 * All matrices are row-major.  Quantised types store whole blocks along a row,
 * so that a row is always a whole number of bytes and rows can be moved, cut
 * and stacked without touching the blocks.
 */
#ifndef FT_TENSOR_H
#define FT_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum ft_dtype
{
	FT_F32,
	FT_F16,
	FT_BF16,
	FT_Q4_0, /* 32 values: f16 d, 16 B of nibbles; x = (q - 8)·d */
	FT_Q4_1, /* 32 values: f16 d, f16 m, 16 B of nibbles; x = q·d + m */
	FT_Q5_0, /* 32 values: f16 d, u32 high bits, 16 B; x = (q - 16)·d */
	FT_Q5_1, /* 32 values: f16 d, f16 m, u32 high bits, 16 B; x = q·d + m */
	FT_Q8_0, /* 32 values: f16 d, 32 × i8; x = q·d */
	FT_Q2_K, /* 256 values, 84 B; x = d·scale·q - m·min, 2 bits, 16 scales and mins of 4 bits */
	FT_Q3_K, /* 256 values, 110 B; x = d·scale·(q - 4), 3 bits, 16 scales of 6 bits */
	FT_Q4_K, /* 256 values, 144 B; x = d·scale·q - m·min, 4 bits, 8 scales and mins of 6 bits */
	FT_Q5_K, /* 256 values, 176 B; as q4_k, 5 bits */
	FT_Q6_K, /* 256 values, 210 B; x = d·scale·(q - 32), 6 bits, 16 scales of 8 bits */
	FT_I32,
	FT_NF4, /* a whole matrix rather than rows: ft_nf4, below; made at load, in no file */
	FT_DTYPE_COUNT
} ft_dtype;

typedef struct ft_dtype_info
{
	const char *name;
	int block_values; /* values in a block; 1 for plain types, 0 where rows are no unit */
	int block_bytes;
} ft_dtype_info;

/* Never NULL; the entry of an unknown dtype has block_values 0. */
const ft_dtype_info *ft_dtype_get(ft_dtype dtype);

/* Bytes of a row of `cols` values, or -1 when cols is no multiple of the block or the size
 * overflows. */
int64_t ft_row_bytes(ft_dtype dtype, int64_t cols);

/* A view of a matrix that somebody else owns. */
typedef struct ft_mat
{
	void *data;
	ft_dtype dtype;
	int64_t rows;
	int64_t cols;
	int64_t ld; /* values from one row to the next; = cols for quantised types */
} ft_mat;

static inline ft_mat
ft_mat_make(void *data, ft_dtype dtype, int64_t rows, int64_t cols)
{
	return (ft_mat){data, dtype, rows, cols, cols};
}

/* Columns [first, first + count) of a plain-typed matrix. */
static inline ft_mat
ft_mat_cols(ft_mat m, int64_t first, int64_t count)
{
	size_t size = m.dtype == FT_F32 || m.dtype == FT_I32 ? 4 : 2;

	m.data = (char *) m.data + (size_t) first * size;
	m.cols = count;
	return m;
}

/* Rows [first, first + count) of a plain-typed matrix. */
static inline ft_mat
ft_mat_rows(ft_mat m, int64_t first, int64_t count)
{
	size_t size = m.dtype == FT_F32 || m.dtype == FT_I32 ? 4 : 2;

	m.data = (char *) m.data + (size_t) (first * m.ld) * size;
	m.rows = count;
	return m;
}

static inline float
ft_bf16_to_f32(uint16_t b)
{
	union
	{
		uint32_t u;
		float f;
	} x = {(uint32_t) b << 16};

	return x.f;
}

/* Round to nearest, ties to even; NaN stays NaN. */
static inline uint16_t
ft_f32_to_bf16(float f)
{
	union
	{
		float f;
		uint32_t u;
	} x = {f};

	if ((x.u & 0x7fffffff) > 0x7f800000)
		return (uint16_t) ((x.u >> 16) | 0x40);
	return (uint16_t) ((x.u + 0x7fff + ((x.u >> 16) & 1)) >> 16);
}

/*
 * A matrix in NF4 with double quantisation, as bitsandbytes makes it (nf4.h): its n values stand
 * in one row, whatever the matrix's rows are.  A block of 64 has codes of 4 bits, the first one in
 * the high nibble, and a scale; a scale is 8 bits, of which a group of 256 has a scale in f32.
 *
 *     scale of a block = map[absmax[block]] · group[block / 256] + *offset
 *     value            = FT_NF4_VALUES[code] · scale
 *
 * with each operation rounded to f32.
 */
#define FT_NF4_BLOCK 64
#define FT_NF4_GROUP 256 /* blocks */

#define FT_NF4_VALUES                                                                             \
	{                                                                                             \
		-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,                 \
			-0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,            \
			0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f,                     \
			0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, \
			1.0f                                                                                  \
	}

typedef struct ft_nf4
{
	int64_t blocks; /* of which the last may have fewer than 64 values */
	int64_t groups;
	float *map;      /* [256] what the 8 bits mean */
	float *offset;   /* [1] mean of the scales */
	float *group;    /* [groups] */
	uint8_t *absmax; /* [blocks] */
	uint8_t *codes;  /* [32 · blocks] */
} ft_nf4;

/* Bytes that n values take; they are aligned to 4. */
int64_t ft_nf4_bytes(int64_t n);
/* Where the parts lie in these bytes; the data of an ft_mat of the type are such bytes. */
ft_nf4 ft_nf4_parts(void *data, int64_t n);

float ft_f16_to_f32(uint16_t h);
uint16_t ft_f32_to_f16(float f); /* to nearest, ties to even */

#endif
