/*
 * integer_kernel.h: the kernels of integer.h for one instruction set; included
 * after INTEGER_NAME and INTEGER_LABEL are defined.
 *
 * Lane r of a vector is row r of the packed group, its four bytes are columns
 * of that row, and the activations' four bytes are the same for all lanes.  The
 * eight vectors of a block (pack.h) are either made from the packed words where
 * they are used, for a few rows, or once into a panel that all rows read.
 *
 * What multiplies bytes differs.  With VNNI it is vpdpbusd, which takes any
 * unsigned byte.  Without, sums of products stay in 16 bits as long as they
 * fit, which depends on how large the type's u is; u of 8 bits is made signed.
 */
#include "simd.h"

#include "integer.h"
#include "pack.h"

#define LANE_VECTORS (FT_GROUP / VW)
#define VECTORS 8 /* of bytes in a block */

/* Rows of a tile and vectors of lanes beside each other, so that their sums fit the registers; the
 * least rows that a tile has where there are several; rows that the packed words are multiplied
 * with at a time, and up to how many rows making a panel does not pay. */
#define TILE_ROWS 6
#define LEAST_ROWS 3
#if VW == 16
#define TILE_VECTORS 2
#define PACKED_ROWS 8
#define PACKED_MOST 16
#else
#define TILE_VECTORS 1
#define PACKED_ROWS 2
#define PACKED_MOST 2
#endif
#define MOST_ROWS (TILE_ROWS > PACKED_ROWS ? TILE_ROWS : PACKED_ROWS)
/* Vectors of lanes in a panel, at most. */
#define PANEL_VECTORS (TILE_VECTORS > LANE_VECTORS ? TILE_VECTORS : LANE_VECTORS)

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define DOT 1
#else
#define DOT 0
#endif

/* A stored type. */
typedef struct shape
{
	int low;        /* bits of u in the low words */
	int high;       /* and above them */
	int halves;     /* scales of a block */
	bool minimum;   /* m is stored; else c, */
	int offset;     /* as 1 << offset: a bit less than u has */
	int scales;     /* bytes of a row */
	bool is_signed; /* u - c is stored */
} shape;

/* --- rounded rows --- */

typedef int16_t pair __attribute__((may_alias));

#if VW == 4
#define WORDS 2 /* that hold four columns of a row: 16 bits each, 0 and 2 before 1 and 3 */
#else
#define WORDS 1 /* 8 bits each */
#endif
#define ROW_BYTES (WORDS * VECTORS * 4 + 7 * 4)

/* Places in a tile's block. */
#define QUANTS_AT(n, s, i) (((s) * (n) + (i)) * WORDS * 4)
#define SCALE_AT(n, i) ((n) *WORDS * VECTORS * 4 + (i) *4)
/* scale · Σ q of a half, or of the block: part 2 */
#define SUM_AT(n, part, i) (SCALE_AT(n, (part + 1) * (n)) + (i) *4)
/* -128 · Σ q */
#define OFFSET_AT(n, part, i) (SCALE_AT(n, (part + 4) * (n)) + (i) *4)

INLINE vf
v_absolute(vf x)
{
	return (vf) ((vu) x & 0x7fffffff);
}

#if VW >= 8
/* 32 bytes in the order of the columns, in that of the vectors; the sums of both halves. */
INLINE void
store_bytes(int8_t *q, int32_t sum[2], __m256i natural)
{
	const __m256i order = _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15, 0,
										   2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
	__m256i sums =
		_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), natural), _mm256_set1_epi16(1));

	sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
	sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
	sum[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(sums));
	sum[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1));
	_mm256_storeu_si256((__m256i *) q, _mm256_shuffle_epi8(natural, order));
}
#endif

/* 32 rounded values as bytes, in the order of the vectors, and the sums of both halves. */
INLINE void
to_bytes(int8_t *q, int32_t sum[2], const vi *wide)
{
#if VW == 16
	store_bytes(q, sum,
				_mm256_set_m128i(_mm512_cvtepi32_epi8((__m512i) wide[1]),
								 _mm512_cvtepi32_epi8((__m512i) wide[0])));
#elif VW == 8
	__m256i packed = _mm256_packs_epi16(_mm256_packs_epi32((__m256i) wide[0], (__m256i) wide[1]),
										_mm256_packs_epi32((__m256i) wide[2], (__m256i) wide[3]));

	store_bytes(q, sum,
				_mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
#else
	sum[0] = sum[1] = 0;
	for (int i = 0; i < FT_INTEGER_BLOCK; i++)
	{
		/* what was no number is any byte: its row's scale says so (round_row) */
		int8_t value = (int8_t) wide[i / VW][i % VW];

		sum[i / 16] += value;
		q[FT_PACK_VECTOR(i) * 4 + i % 8 / 2] = value;
	}
#endif
}

INLINE float
largest_lane(vf v)
{
#if VW == 16
	return _mm512_reduce_max_ps((__m512) v);
#else
	return v_sum_max(v);
#endif
}

INLINE void
put(uint8_t *to, const void *value)
{
	memcpy(to, value, 4);
}

INLINE void
round_block(uint8_t *block, int n, int i, const float *x)
{
	const vf magic = v_set1(12582912.0f); /* 1.5 · 2^23: adding it rounds to an integer */
	vf largest = v_zero();
	vi wide[FT_INTEGER_BLOCK / VW];
	int8_t q[FT_INTEGER_BLOCK];
	float most, scale;
	vf inverse;
	int32_t sum[3];

	UNROLL(8)
	for (int j = 0; j < FT_INTEGER_BLOCK; j += VW)
		largest = v_max(largest, v_absolute(v_load(x + j)));
	most = largest_lane(largest);
	scale = most * (1.0f / 127);
	inverse = v_set1(most > 1e-30f ? 127 / most : 0);
	UNROLL(8)
	for (int j = 0; j < FT_INTEGER_BLOCK; j += VW)
	{
		vf shifted = v_load(x + j) * inverse + magic;

		wide[j / VW] = (vi) shifted - (vi) magic;
	}
	to_bytes(q, sum, wide);
	sum[2] = sum[0] + sum[1];
	for (int s = 0; s < VECTORS; s++)
	{
		uint8_t *to = block + QUANTS_AT(n, s, i);

#if WORDS == 1
		put(to, q + 4 * s);
#else
		((pair *) to)[0] = q[4 * s];
		((pair *) to)[1] = q[4 * s + 2];
		((pair *) to)[2] = q[4 * s + 1];
		((pair *) to)[3] = q[4 * s + 3];
#endif
	}
	put(block + SCALE_AT(n, i), &scale);
	for (int part = 0; part < 3; part++)
	{
		float scaled = scale * (float) sum[part];
		int32_t offset = -128 * sum[part];

		put(block + SUM_AT(n, part, i), &scaled);
		put(block + OFFSET_AT(n, part, i), &offset);
	}
}

static void
round_row(uint8_t *tile, int n, int i, const float *x, int64_t k)
{
	uint8_t *block = tile;
	vf poison = v_zero();
	float scale;

	for (int64_t t = 0; t < k; t += FT_INTEGER_BLOCK, block += n * ROW_BYTES)
	{
		round_block(block, n, i, x + t);
		for (int j = 0; j < FT_INTEGER_BLOCK; j += VW)
			poison += v_load(x + t + j) - v_load(x + t + j);
	}
	/* what is no number must not be rounded to one */
	scale = v_sum(poison);
	if (scale != 0)
		put(tile + SCALE_AT(n, i), &scale);
}

/* --- vectors of bytes --- */

/* How far u is shifted to the left so that c is 128. */
INLINE int
lift_of(const shape t)
{
	return DOT && !t.minimum ? 7 - t.offset : 0;
}

/* Whether what is multiplied is u - c, for want of an instruction that takes all of u. */
INLINE bool
takes_signed(const shape t)
{
	return !DOT && t.low == 8;
}

INLINE vu
shifted(vu v, const int by, const int mask)
{
	v = by >= 0 ? v << (by >= 0 ? by : 0) : v >> (by < 0 ? -by : 0);
	return v & (uint32_t) mask * 0x01010101u;
}

/* Vector s of the packed words, lanes [lane, lane + VW). */
INLINE vu
read_vector(const uint8_t *words, const int s, const int lane, const shape t)
{
	const uint8_t *low = words + 64 * t.high + 64 * (s * t.low / 8) + 4 * lane;
	const int lift = lift_of(t);
	const int low_mask = ((1 << t.low) - 1) << lift;
	vu u;

	if (t.low == 8)
		return takes_signed(t) == t.is_signed ? v_words(low) : v_words(low) ^ 0x80808080u;
	u = shifted(v_words(low), lift - s * t.low % 8, low_mask);
	if (t.high > 0)
	{
		const uint8_t *high = words + 64 * (s * t.high / 8) + 4 * lane;

		u |= shifted(v_words(high), lift + t.low - s * t.high % 8,
					 ((1 << t.high) - 1) << (t.low + lift));
	}
	return u;
}

/* --- scales --- */

typedef struct scales
{
	vf d[2];
	vf m[2];
} scales;

INLINE scales
read_scales(const uint8_t *block, const int lane, const shape t)
{
	const uint8_t *bytes = block + (t.minimum ? 64 : 32) + lane;
	vf d = v_from_f16((const uint16_t *) block + lane);
	vf m = t.minimum ? v_from_f16((const uint16_t *) (block + 32) + lane) : v_zero();
	scales of = {{d, d}, {m, m}};

	if (lift_of(t) > 0)
		d *= v_set1(1.0f / (float) (1 << lift_of(t)));
	for (int h = 0; h < t.halves; h++)
	{
		if (t.halves == 2 && t.minimum)
		{
			of.d[h] = d * v_from_low_nibbles(bytes + FT_GROUP * h);
			of.m[h] = m * -v_from_high_nibbles(bytes + FT_GROUP * h);
		}
		else if (t.halves == 2)
			of.d[h] = d * v_from_i8((const int8_t *) bytes + FT_GROUP * h);
		else if (t.scales == 2)
		{
			of.d[h] = d * v_from_u8(bytes);
			of.m[h] = m * -v_from_u8(bytes + FT_GROUP);
		}
		else
			of.d[h] = d;
	}
	return of;
}

/* --- products --- */

INLINE vu
same_word(const uint8_t *p)
{
	uint32_t word;

	memcpy(&word, p, sizeof word);
	return (vu){0} + word;
}

INLINE vf
same_float(const uint8_t *p)
{
	float value;

	memcpy(&value, p, sizeof value);
	return v_set1(value);
}

/* Vectors whose products a sum of 16 bits holds. */
INLINE int
vectors_in_16_bits(const shape t)
{
	const int most = takes_signed(t) ? 128 : (1 << (t.low + t.high)) - 1;
	const int n = 32767 / (2 * 127 * most);

	return n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
}

#if VW == 4
typedef int16_t v16 __attribute__((vector_size(VW * 4)));
#endif

/* sum + the products of a vector and the activations: in 32 bits with VNNI, else in 16. */
INLINE vi
add_products(vi sum, vu u, const uint8_t *q, const shape t)
{
#if DOT && VW == 16
	(void) t;
	return (vi) _mm512_dpbusd_epi32((__m512i) sum, (__m512i) u, (__m512i) same_word(q));
#elif DOT
	(void) t;
	return (vi) _mm256_dpbusd_avx_epi32((__m256i) sum, (__m256i) u, (__m256i) same_word(q));
#elif VW == 16
	__m512i x = (__m512i) same_word(q);

	if (takes_signed(t))
	{
		x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask((__m512i) u), _mm512_setzero_si512(), x);
		u = (vu) _mm512_abs_epi8((__m512i) u);
	}
	return (vi) _mm512_add_epi16((__m512i) sum, _mm512_maddubs_epi16((__m512i) u, x));
#elif VW == 8
	__m256i x = (__m256i) same_word(q);

	if (takes_signed(t))
	{
		x = _mm256_sign_epi8(x, (__m256i) u);
		u = (vu) _mm256_abs_epi8((__m256i) u);
	}
	return (vi) _mm256_add_epi16((__m256i) sum, _mm256_maddubs_epi16((__m256i) u, x));
#else
	v16 even = (v16) (takes_signed(t) ? u << 8 : u & 0x00ff00ff);
	v16 odd = (v16) (takes_signed(t) ? u : (u >> 8) & 0x00ff00ff);

	if (takes_signed(t))
	{
		even >>= 8;
		odd >>= 8;
	}
	return (vi) ((v16) sum + even * (v16) same_word(q) + odd * (v16) same_word(q + 4));
#endif
}

/* Sums of 16 bits added up to 32. */
INLINE vi
widen(vi sum)
{
#if VW == 16
	return (vi) _mm512_madd_epi16((__m512i) sum, _mm512_set1_epi16(1));
#elif VW == 8
	return (vi) _mm256_madd_epi16((__m256i) sum, _mm256_set1_epi16(1));
#else
	return ((vi) ((vu) sum << 16) >> 16) + (sum >> 16);
#endif
}

/* Bytes of the weight that meet a tile's block at a time: the vectors of one or more packed groups
 * side by side, and their scales. */
typedef struct panel_block
{
	vu u[VECTORS];
	scales of;
} panel_block;

/* total[j][i] += the block's part of row i of the tile, for `width` panel blocks p[j · stride]. */
INLINE void
add_block(vf (*total)[MOST_ROWS], const int n, const panel_block *p, int64_t stride,
		  const int width, const uint8_t *tile, const shape t)
{
	const int vectors = VECTORS / t.halves;
	const int room = DOT                               ? vectors
					 : vectors_in_16_bits(t) < vectors ? vectors_in_16_bits(t)
													   : vectors;

	UNROLL(2)
	for (int h = 0; h < t.halves; h++)
	{
		const int part = t.halves == 1 ? 2 : h;
		vi sum[TILE_VECTORS][MOST_ROWS];
		vi narrow[TILE_VECTORS][MOST_ROWS];

		UNROLL(2)
		for (int j = 0; j < width; j++)
			UNROLL(8)
		for (int i = 0; i < n; i++)
		{
			narrow[j][i] = (vi){0};
			sum[j][i] = (vi){0};
			if (!t.minimum && !takes_signed(t))
				sum[j][i] =
					(vi) same_word(tile + OFFSET_AT(n, part, i)) >> (7 - t.offset - lift_of(t));
		}
		UNROLL(8)
		for (int s = 0; s < vectors; s++)
			UNROLL(8)
		for (int i = 0; i < n; i++)
		{
			const uint8_t *q = tile + QUANTS_AT(n, h * vectors + s, i);

			UNROLL(2)
			for (int j = 0; j < width; j++)
			{
				vu v = p[j * stride].u[h * vectors + s];

				if (DOT)
					sum[j][i] = add_products(sum[j][i], v, q, t);
				else
					narrow[j][i] = add_products(narrow[j][i], v, q, t);
				if (!DOT && (s + 1) % room == 0)
				{
					sum[j][i] += widen(narrow[j][i]);
					narrow[j][i] = (vi){0};
				}
			}
		}
		UNROLL(8)
		for (int i = 0; i < n; i++)
			UNROLL(2)
		for (int j = 0; j < width; j++)
		{
			const scales *of = &p[j * stride].of;
			total[j][i] = v_fma(of->d[h] * same_float(tile + SCALE_AT(n, i)),
								v_to_float((vu) sum[j][i]), total[j][i]);
			if (t.minimum)
				total[j][i] = v_fma(of->m[h], same_float(tile + SUM_AT(n, part, i)), total[j][i]);
		}
	}
}

INLINE int
block_bytes(const shape t)
{
	return (t.minimum ? 64 : 32) + FT_GROUP * t.scales + 64 * (t.high + t.low);
}

/* The vectors and scales of a packed block, lanes [lane, lane + VW). */
INLINE void
read_block(panel_block *to, const uint8_t *block, const int lane, const shape t)
{
	const uint8_t *words = block + block_bytes(t) - 64 * (t.high + t.low);

	to->of = read_scales(block, lane, t);
	UNROLL(8)
	for (int s = 0; s < VECTORS; s++)
		to->u[s] = read_vector(words, s, lane, t);
}

/* Ask for what comes some blocks later. */
INLINE void
prefetch_blocks(const uint8_t *block, const shape t)
{
	const int bytes = block_bytes(t);

	UNROLL(9)
	for (int line = 0; line < bytes; line += 64)
		__builtin_prefetch(block + 8 * bytes + line);
}

/* y[i · ldy + lane ..] of the rows of a tile. */
INLINE void
store_tile(float *y, int64_t ldy, vf (*total)[MOST_ROWS], const int n, const int width)
{
	UNROLL(8)
	for (int i = 0; i < n; i++)
		UNROLL(2)
	for (int j = 0; j < width; j++)
		v_store(y + i * ldy + j * VW, total[j][i]);
}

/* A tile of n rows with a packed group. */
INLINE void
multiply_packed(float *y, int64_t ldy, const uint8_t *group, const uint8_t *tile, int64_t k,
				const int n, const shape t)
{
	for (int lane = 0; lane < FT_GROUP; lane += VW)
	{
		const uint8_t *block = group;
		const uint8_t *x = tile;
		vf total[1][MOST_ROWS];

		UNROLL(8)
		for (int i = 0; i < n; i++)
			total[0][i] = v_zero();
		for (int64_t left = k; left > 0; left -= FT_INTEGER_BLOCK)
		{
			panel_block now;

			if (lane == 0)
				prefetch_blocks(block, t);
			read_block(&now, block, lane, t);
			add_block(total, n, &now, 0, 1, x, t);
			block += block_bytes(t);
			x += n * ROW_BYTES;
		}
		store_tile(y + lane, ldy, total, n, 1);
	}
}

/* --- panels: vectors of lanes, one after the other, or TILE_VECTORS of them block by block --- */

/* Vectors of lanes of so many groups that stand side by side in a panel. */
INLINE int
panel_width(int64_t groups)
{
	return groups * LANE_VECTORS >= TILE_VECTORS ? TILE_VECTORS : 1;
}

INLINE void
fill_blocks(panel_block *panel, const uint8_t *group, int64_t group_bytes, int64_t groups,
			int64_t k, const shape t)
{
	const int64_t blocks = k / FT_INTEGER_BLOCK;
	const int width = panel_width(groups);

	for (int64_t g = 0; g < groups; g++)
	{
		const uint8_t *block = group + g * group_bytes;

		for (int64_t b = 0; b < blocks; b++, block += block_bytes(t))
		{
			prefetch_blocks(block, t);
			for (int64_t v = 0; v < LANE_VECTORS; v++)
			{
				int64_t at = g * LANE_VECTORS + v;

				read_block(&panel[at / width * width * blocks + b * width + at % width], block,
						   (int) v * VW, t);
			}
		}
	}
}

/* A tile of n rows with `width` vectors of a panel. */
INLINE void
multiply_tile(float *y, int64_t ldy, const panel_block *panel, const uint8_t *tile, int64_t k,
			  const int n, const int width, const shape t)
{
	vf total[TILE_VECTORS][MOST_ROWS];

	UNROLL(2)
	for (int j = 0; j < width; j++)
		UNROLL(8)
	for (int i = 0; i < n; i++)
		total[j][i] = v_zero();
	for (int64_t left = k; left > 0; left -= FT_INTEGER_BLOCK)
	{
		add_block(total, n, panel, 1, width, tile, t);
		panel += width;
		tile += n * ROW_BYTES;
	}
	store_tile(y, ldy, total, n, width);
}

typedef void (*tile_fn)(float *y, int64_t ldy, const panel_block *panel, const uint8_t *tile,
						int64_t k);
typedef void (*packed_fn)(float *y, int64_t ldy, const uint8_t *group, const uint8_t *tile,
						  int64_t k);

/* All rows with the panel of so many groups; tiles[width - 1][rows - LEAST_ROWS]. */
static void
multiply_tiles(float *y, int64_t ldy, const panel_block *panel, int64_t groups, const ft_rounded *x,
			   const tile_fn (*tiles)[TILE_ROWS - LEAST_ROWS + 1])
{
	const int width = panel_width(groups);
	const int64_t blocks = x->k / FT_INTEGER_BLOCK;

	for (int64_t i = 0; i < x->tiles; i++)
	{
		int64_t row = ft_tile_row(x, i);
		int64_t n = ft_tile_row(x, i + 1) - row;

		for (int64_t v = 0; v < groups * LANE_VECTORS; v += width)
			tiles[width - 1][n - LEAST_ROWS](y + row * ldy + v * VW, ldy, panel + v * blocks,
											 ft_tile_blocks(x, i), x->k);
	}
}

/* All rows with the packed words of so many groups. */
static void
multiply_few(float *y, int64_t ldy, const uint8_t *group, int64_t group_bytes, int64_t groups,
			 const ft_rounded *x, const packed_fn *packed)
{
	for (int64_t g = 0; g < groups; g++)
		for (int64_t i = 0; i < x->tiles; i++)
		{
			int64_t row = ft_tile_row(x, i);
			int64_t n = ft_tile_row(x, i + 1) - row;

			packed[n - 1](y + row * ldy + g * FT_GROUP, ldy, group + g * group_bytes,
						  ft_tile_blocks(x, i), x->k);
		}
}

/* --- one function for a number of rows and a type --- */

#define TILE(name, n, width)                                                                 \
	static void tile_##name##_##n##x##width(float *y, int64_t ldy, const panel_block *panel, \
											const uint8_t *tile, int64_t k)                  \
	{                                                                                        \
		multiply_tile(y, ldy, panel, tile, k, n, width, shape_##name);                       \
	}
#define PACKED(name, n)                                                          \
	static void packed_##name##_##n(float *y, int64_t ldy, const uint8_t *group, \
									const uint8_t *tile, int64_t k)              \
	{                                                                            \
		multiply_packed(y, ldy, group, tile, k, n, shape_##name);                \
	}

/* The formatter takes a macro that defines a function for the beginning of a declaration. */
/* clang-format off */
#define TILES_OF(name, width) \
	TILE(name, 3, width) TILE(name, 4, width) TILE(name, 5, width) TILE(name, 6, width)
#define TILE_NAMES(name, width) \
	{tile_##name##_3x##width, tile_##name##_4x##width, tile_##name##_5x##width, \
	 tile_##name##_6x##width}
#if VW == 16
#define TILES(name) \
	TILES_OF(name, 1) TILES_OF(name, 2) \
	static const tile_fn tiles_##name[][4] = {TILE_NAMES(name, 1), TILE_NAMES(name, 2)};
#define PACKED_ALL(name) \
	PACKED(name, 1) PACKED(name, 2) PACKED(name, 3) PACKED(name, 4) \
	PACKED(name, 5) PACKED(name, 6) PACKED(name, 7) PACKED(name, 8) \
	static const packed_fn packed_##name[] = {packed_##name##_1, packed_##name##_2, \
											  packed_##name##_3, packed_##name##_4, \
											  packed_##name##_5, packed_##name##_6, \
											  packed_##name##_7, packed_##name##_8};
#else
#define TILES(name) \
	TILES_OF(name, 1) \
	static const tile_fn tiles_##name[][4] = {TILE_NAMES(name, 1)};
#define PACKED_ALL(name) \
	PACKED(name, 1) PACKED(name, 2) \
	static const packed_fn packed_##name[] = {packed_##name##_1, packed_##name##_2};
#endif

/* A type, and what multiplies its panels: a type's whose panels look the same. */
#define TYPE(name, alike) \
	static void \
	multiply_##name(float *y, int64_t ldy, const uint8_t *group, int64_t group_bytes, \
					int64_t groups, const ft_rounded *x, uint8_t *panel) \
	{ \
		if (x->rows <= PACKED_MOST) \
		{ \
			multiply_few(y, ldy, group, group_bytes, groups, x, packed_##name); \
			return; \
		} \
		fill_blocks((panel_block *) panel, group, group_bytes, groups, x->k, shape_##name); \
		multiply_tiles(y, ldy, (const panel_block *) panel, groups, x, tiles_##alike); \
	}

static const shape shape_q4_0 = {.low = 4, .halves = 1, .offset = 3};
static const shape shape_q4_1 = {.low = 4, .halves = 1, .minimum = true};
static const shape shape_q5_0 = {.low = 4, .high = 1, .halves = 1, .offset = 4};
static const shape shape_q5_1 = {.low = 4, .high = 1, .halves = 1, .minimum = true};
static const shape shape_q8_0 = {.low = 8, .halves = 1, .offset = 7, .is_signed = true};
static const shape shape_q2_k = {.low = 2, .halves = 2, .minimum = true, .scales = 2};
static const shape shape_q3_k = {.low = 2, .high = 1, .halves = 2, .offset = 2, .scales = 2};
static const shape shape_q4_k = {.low = 4, .halves = 1, .minimum = true, .scales = 2};
static const shape shape_q5_k = {.low = 4, .high = 1, .halves = 1, .minimum = true, .scales = 2};
static const shape shape_q6_k = {.low = 4, .high = 2, .halves = 2, .offset = 5, .scales = 2};

PACKED_ALL(q4_0) PACKED_ALL(q4_1) PACKED_ALL(q5_0) PACKED_ALL(q5_1) PACKED_ALL(q8_0)
PACKED_ALL(q2_k) PACKED_ALL(q3_k) PACKED_ALL(q4_k) PACKED_ALL(q5_k) PACKED_ALL(q6_k)
TILES(q4_0) TILES(q4_1) TILES(q2_k) TILES(q3_k)
#if DOT
#define tiles_q5_0 tiles_q4_0
#define tiles_q5_1 tiles_q4_1
#define tiles_q8_0 tiles_q4_0
#define tiles_q6_k tiles_q3_k
#else
TILES(q5_0) TILES(q5_1) TILES(q8_0) TILES(q6_k)
#endif
TYPE(q4_0, q4_0)
TYPE(q4_1, q4_1)
TYPE(q5_0, q5_0)
TYPE(q5_1, q5_1)
TYPE(q8_0, q8_0)
TYPE(q2_k, q2_k)
TYPE(q3_k, q3_k)
TYPE(q4_k, q4_1)
TYPE(q5_k, q5_1)
TYPE(q6_k, q6_k)
	/* clang-format on */

	const ft_integer_kernels INTEGER_NAME = {
		.name = INTEGER_LABEL,
		.tile_rows = TILE_ROWS,
		.few_rows = PACKED_MOST,
		.few_tile_rows = PACKED_ROWS,
		.groups = PANEL_VECTORS / LANE_VECTORS,
		.row_bytes = ROW_BYTES,
		.panel_bytes = PANEL_VECTORS * sizeof(panel_block),
		.round = round_row,
		.multiply = {[FT_Q4_0] = multiply_q4_0,
					 [FT_Q4_1] = multiply_q4_1,
					 [FT_Q5_0] = multiply_q5_0,
					 [FT_Q5_1] = multiply_q5_1,
					 [FT_Q8_0] = multiply_q8_0,
					 [FT_Q2_K] = multiply_q2_k,
					 [FT_Q3_K] = multiply_q3_k,
					 [FT_Q4_K] = multiply_q4_k,
					 [FT_Q5_K] = multiply_q5_k,
					 [FT_Q6_K] = multiply_q6_k},
};
