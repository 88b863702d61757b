/*
 * kernels.h: the inner loops, one set of them for each instruction set.
 *
 * Kernels run on one thread, never fail and know nothing of views: the
 * operations (linear.c, norm.c, …) check, split and call them.  "bf16" flags
 * tell the type of the pointer before them: f32 or bf16.
 */
#ifndef FT_CPU_KERNELS_H
#define FT_CPU_KERNELS_H

#include "ops.h"

/* Values of a column group: packed weights and panels stand in groups of 16 columns of the result.
 */
#define FT_GROUP 16

/* The k-range that is unpacked at a time: 8 KiB of f32 for a group. */
#define FT_PANEL_K 128

/* Entries behind the panels of a paged cache's blocks. */
#define FT_PAGED_AHEAD 4

/* Rows that blocks of bf16 are multiplied with as they lie; for more they are widened first. */
#define FT_PAGED_FEW 6

typedef struct ft_kernels
{
	const char *name;

	/* acc[i · lda + 16 g + j] += Σ_k x[i · xm + k · xk] · panel[g · pg + k · pk + j], for i < m,
	 * g < groups, j < 16; k ascending, each term one multiply-add, whatever m and groups are. */
	void (*gemm)(float *acc, int64_t lda, const float *x, int64_t xm, int64_t xk,
				 const float *panel, int64_t pk, int64_t pg, int64_t m, int groups, int64_t k);

	/* panel[k][16] = columns [first, first + k) of one packed group of 16 rows, first and k whole
	 * blocks (pack.h); entries for stored types only.  As many bytes are prefetched from `ahead`,
	 * which may be any address. */
	void (*unpack[FT_DTYPE_COUNT])(float *panel, const uint8_t *group, int64_t first, int64_t k,
								   const uint8_t *ahead);

	/* 64 values a block of NF4 codes, each times its block's scale. */
	void (*nf4)(float *y, const uint8_t *codes, const float *scales, int64_t blocks);

	/* panel[t][16] = rows[j · ld + t], for j < n <= 16 and t < k, zero for the other columns. */
	void (*fill_panel)(float *panel, const float *rows, int64_t ld, int64_t n, int64_t k);

	void (*to_f32)(float *y, const uint16_t *x, int64_t n);
	void (*to_bf16)(uint16_t *y, const float *x, int64_t n);
	void (*axpy)(float *y, const float *x, float alpha, int64_t n); /* y += alpha x */
	double (*sum_squares)(const float *x, int64_t n);
	/* out[j] = x · rows[j], for j < n; each summed in the same order. */
	void (*dots)(float *out, const float *x, const float *rows, int64_t ld, int64_t n, int64_t k);

	/* One row.  h may be NULL (not stored) or x; branch may be NULL. */
	float (*rmsnorm)(void *y, bool y_bf16, float *h, const float *x, const void *branch,
					 bool branch_bf16, const float *weight, float eps, int64_t n);
	/* One row; dweight may be NULL. */
	void (*rmsnorm_grad)(float *dx, float *dweight, const void *dy, bool dy_bf16, const float *x,
						 const float *weight, float rstd, int64_t n);
	/* y += x. */
	void (*accumulate)(void *y, bool y_bf16, const void *x, bool x_bf16, int64_t n);
	/* One head.  y may be x. */
	void (*head_norm)(void *y, const void *x, bool bf16, const float *weight, float eps, int64_t n);
	/* One head; dy is replaced by dx.  dweight may be NULL. */
	void (*head_norm_grad)(void *d, float *dweight, const void *x, bool bf16, const float *weight,
						   float eps, int64_t n);
	void (*rope)(void *x, bool bf16, const float *cos, const float *sin, float sign, int64_t half);
	void (*swiglu)(void *y, bool y_bf16, const void *gate, const void *up, bool bf16, int64_t n);
	void (*swiglu_grad)(void *dgate, void *dup, bool d_bf16, const void *dy, bool dy_bf16,
						const void *gate, const void *up, bool bf16, int64_t n);
	/* One row, at place {position, document, slot} (ops.h); add: y (f32) += the result. */
	void (*dropout)(void *y, bool y_bf16, const void *x, bool x_bf16, bool add,
					const uint32_t place[3], uint64_t seed, uint32_t threshold, float scale,
					int64_t n);

	/* scores[i · ld + 16 b + j] = Σ_t q[i · ldq + t] · panels[b][16 t + j], for i < m, b < blocks,
	 * j < 16, t < k ascending.  Panels are f32 or bf16; the FT_PAGED_AHEAD addresses behind those
	 * of the blocks, which may be any, are prefetched. */
	void (*paged_scores)(float *scores, int64_t ld, const float *q, int64_t ldq,
						 const void *const *panels, bool bf16, int64_t blocks, int64_t m,
						 int64_t k);
	/* acc[i · lda + j] += Σ_t scores[i · ld + t] · panels[t / 16][t % 16 · pk + j], for i < m,
	 * t < positions ascending, j < width, a multiple of 16.  Panels as before. */
	void (*paged_mix)(float *acc, int64_t lda, const float *scores, int64_t ld,
					  const void *const *panels, bool bf16, int64_t pk, int64_t positions,
					  int64_t m, int64_t width);
	/* x = exp(scale · x - shift) for n values; returns their sum. */
	float (*exp_row)(float *x, float scale, float shift, int64_t n);
	float (*max_row)(const float *x, int64_t n);
	/* dp = p · (dp - delta) · scale. */
	void (*softmax_grad)(float *dp, const float *p, float delta, float scale, int64_t n);
	/* Lowest index of the largest value. */
	int64_t (*argmax)(const float *x, int64_t n);
	/* Σ exp(scale · (x - max)) with a wide sum. */
	double (*sum_exp)(const float *x, float max, float scale, int64_t n);
	/* Positions of the values >= floor, in order, until `room` are found; returns how many. */
	int64_t (*find_above)(int32_t *index, const float *x, float floor, int64_t n, int64_t room);
	/* x = exp(x - max) · factor. */
	void (*exp_scale)(float *x, float max, float factor, int64_t n);

	void (*adamw)(float *param, float *m, float *v, const float *grad, int64_t n,
				  const ft_adamw *settings);
	/* Whole blocks of moments of 8 bits, [first, first + blocks), the last one up to value n. */
	void (*adamw_8bit)(void *param, bool bf16, uint8_t *m, uint8_t *v, uint8_t *m_exponents,
					   uint8_t *v_exponents, const float *grad, int64_t first, int64_t blocks,
					   int64_t n, const ft_adamw *settings);
} ft_kernels;

extern const ft_kernels ft_kernels_portable;
#if defined(__x86_64__)
extern const ft_kernels ft_kernels_avx2;
extern const ft_kernels ft_kernels_avx512;
#endif

#endif
