/*
 * cpu.h: what the files of the CPU backend share.
 *
 * Operations run to their end before they return, so a stream is no queue: it
 * owns the scratch memory of the operations called on it.  One thread uses a
 * stream at a time; different streams may be used by different threads.
 */
#ifndef FT_CPU_H
#define FT_CPU_H

#include "kernels.h"
#include "threads.h"

struct ft_device
{
	ft_pool *pool;
	const ft_kernels *kernels;
	ft_numerics numerics;
	ft_dtype compute_dtype;
	char features[128];
};

/* Scratch memory that only grows. */
typedef struct ft_scratch
{
	void *memory;
	size_t bytes;
} ft_scratch;

struct ft_stream
{
	ft_device *device;
	ft_scratch shared;  /* one operation's, seen by all its threads */
	ft_scratch *worker; /* [threads] */
};

/* One stored matrix inside a stacked weight, packed for serving. */
typedef struct ft_part
{
	ft_dtype dtype;
	int64_t first_row; /* in the weight */
	int64_t rows;
	int64_t first_group;
	int64_t group_bytes;
	uint8_t *groups; /* [ceil(rows / 16)][group_bytes]; of NF4 its bytes, which are not packed */
} ft_part;

struct ft_weight
{
	ft_device *device;
	unsigned use;
	int64_t rows;
	int64_t cols;
	uint16_t *dense; /* bf16 [rows, cols] row-major for library products, or NULL */
	ft_mat view;     /* the caller's own matrix, in place of all else; data NULL: none */
	int n_parts;     /* 0 when not packed */
	int64_t n_groups;
	ft_part *parts;
	int64_t bytes;
};

/* At least `bytes` of 64-byte aligned scratch, contents undefined. */
ft_status ft_scratch_get(ft_scratch *scratch, size_t bytes, void **memory);
/* The same for every worker of the stream; read with ft_worker_scratch(). */
ft_status ft_worker_scratch_reserve(ft_stream *s, size_t bytes);

static inline void *
ft_worker_scratch(const ft_stream *s, int worker)
{
	return s->worker[worker].memory;
}

/* ft_pool_run() on the stream's device, with a grain that makes a piece worth handing to another
 * thread: `cost` is the number of elements (of a cheap loop) that one item touches. */
void ft_run(ft_stream *s, int64_t n, int64_t cost, ft_task task, void *context);

static inline int64_t
ft_divide_up(int64_t a, int64_t b)
{
	return (a + b - 1) / b;
}

static inline int64_t
ft_min(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static inline bool
ft_is_float(ft_dtype dtype)
{
	return dtype == FT_F32 || dtype == FT_BF16;
}

/* Address of element (row, column) of a plain-typed matrix. */
static inline void *
ft_at(ft_mat m, int64_t row, int64_t column)
{
	size_t size = m.dtype == FT_F32 || m.dtype == FT_I32 ? 4 : 2;

	return (char *) m.data + (size_t) (row * m.ld + column) * size;
}

/* Errors in the operations' common words. */
ft_status
ft_bad_shape(const char *operation, const char *what, ft_mat m, int64_t rows, int64_t cols);
ft_status ft_bad_types(const char *operation, ft_dtype a, ft_dtype b);
/* FT_OK when m is [rows, cols] with a sound ld. */
ft_status
ft_check_shape(const char *operation, const char *what, ft_mat m, int64_t rows, int64_t cols);
/* FT_OK when m is f32 or bf16. */
ft_status ft_check_float(const char *operation, ft_mat m);
ft_status ft_check_f32(const char *operation, ft_mat m);

/* c = alpha · op(a) · op(b) + beta · c by our own kernel; any combination of f32 and bf16. */
ft_status ft_own_matmul(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha,
						float beta);
/* dx = dy · W + beta · dx of a plain matrix, summed in parts (product.h). */
ft_status ft_own_grad_input(ft_stream *s, ft_mat dx, ft_mat dy, ft_mat matrix, float beta);
/* ft_own_matmul of bf16 by oneDNN, on a device that computes in bf16; *done is false where a or b
 * is f32 or the library cannot be had. */
ft_status ft_onednn_matmul(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb,
						   float alpha, float beta, bool *done);
/* y = x · Wᵀ + beta · y and dx = dy · W + beta · dx of a packed weight; row-fixed. */
ft_status ft_packed_linear(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta);
ft_status ft_packed_grad_input(ft_stream *s, ft_mat dx, ft_mat dy, const ft_weight *w, float beta);

/* The operations (ops.h). */
ft_status ft_cpu_mem_alloc(ft_device *device, ft_mem_space space, size_t bytes, void **memory);
void ft_cpu_mem_free(ft_device *device, ft_mem_space space, void *memory);
ft_status ft_cpu_copy(ft_stream *s, void *to, const void *from, size_t bytes);
ft_status ft_cpu_zero(ft_stream *s, void *memory, size_t bytes);
ft_status ft_cpu_weight_create(ft_device *device, const ft_mat *parts, int n_parts, unsigned use,
							   ft_weight **weight);
ft_status ft_cpu_weight_view(ft_device *device, ft_mat matrix, ft_weight **weight);
void ft_cpu_weight_free(ft_weight *weight);
int64_t ft_cpu_weight_bytes(const ft_weight *weight);
ft_status ft_cpu_dequantise(ft_stream *s, ft_mat y, const ft_weight *w);
ft_status
ft_cpu_linear(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta, bool row_fixed);
ft_status
ft_cpu_linear_grad_input(ft_stream *s, ft_mat dx, ft_mat dy, const ft_weight *w, float beta);
ft_status ft_cpu_matmul(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha,
						float beta);
ft_status ft_cpu_lora(ft_stream *s, ft_mat y, ft_mat x, const ft_lora_segment *segments, int n);
ft_status ft_cpu_embed(ft_stream *s, ft_mat y, const ft_weight *w, const int32_t *ids);
ft_status ft_cpu_gather_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *index);
ft_status ft_cpu_scatter_add_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *index);
ft_status ft_cpu_convert(ft_stream *s, ft_mat y, ft_mat x);
ft_status ft_cpu_add(ft_stream *s, ft_mat y, ft_mat x, float alpha);
ft_status ft_cpu_add_bias(ft_stream *s, ft_mat y, const float *bias);
ft_status ft_cpu_sum_rows(ft_stream *s, float *sum, ft_mat x);
ft_status ft_cpu_embed_grad(ft_stream *s, ft_mat dw, ft_mat dy, const int32_t *ids);
ft_status ft_cpu_rmsnorm(ft_stream *s, ft_mat y, ft_mat h, float *rstd, ft_mat x, ft_mat branch,
						 const float *weight, float eps);
ft_status ft_cpu_rmsnorm_grad(ft_stream *s, ft_mat dx, float *dweight, ft_mat dy, ft_mat x,
							  const float *weight, const float *rstd);
ft_status
ft_cpu_head_norm(ft_stream *s, ft_mat y, ft_mat x, int head_dim, const float *weight, float eps);
ft_status ft_cpu_head_norm_grad(ft_stream *s, ft_mat d, float *dweight, ft_mat x, int head_dim,
								const float *weight, float eps);
ft_status ft_cpu_rope(ft_stream *s, ft_mat x, int head_dim, const int32_t *positions,
					  const float *cos_table, const float *sin_table, bool inverse);
ft_status ft_cpu_swiglu(ft_stream *s, ft_mat y, ft_mat gate_up);
ft_status ft_cpu_swiglu_grad(ft_stream *s, ft_mat dgate_up, ft_mat dy, ft_mat gate_up);
ft_status ft_cpu_dropout(ft_stream *s, ft_mat y, ft_mat x, const ft_dropout *settings, float beta);
ft_status ft_cpu_attention(ft_stream *s, const ft_attention *a, ft_mat out, float *lse, ft_mat q,
						   ft_mat k, ft_mat v);
ft_status
ft_cpu_attention_grad(ft_stream *s, const ft_attention *a, ft_mat dq, ft_mat dk, ft_mat dv,
					  ft_mat dout, ft_mat q, ft_mat k, ft_mat v, ft_mat out, const float *lse);
ft_status ft_cpu_kv_store(ft_stream *s, const ft_kv_layer *cache, const ft_paged_batch *batch,
						  ft_mat k, ft_mat v);
ft_status ft_cpu_attention_paged(ft_stream *s, ft_mat out, ft_mat q, const ft_kv_layer *cache,
								 const ft_paged_batch *batch, int heads, int window, float scale);
ft_status ft_cpu_route(ft_stream *s, int32_t *experts, float *weights, ft_mat logits, int k);
ft_status ft_cpu_route_grad(ft_stream *s, ft_mat dlogits, const float *dweights,
							const float *weights, const int32_t *experts, int k);
ft_status ft_cpu_group_rows(ft_stream *s, int32_t *starts, int32_t *place, int32_t *row,
							const int32_t *experts, int64_t rows, int k, int n_experts);
ft_status ft_cpu_linear_experts(ft_stream *s, ft_mat y, ft_mat x, ft_weight *const *weights, int n,
								const int32_t *starts);
ft_status ft_cpu_combine_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *place,
							  const float *weights, int k);
ft_status ft_cpu_weigh_rows_grad(ft_stream *s, float *dweights, ft_mat dx, ft_mat weighted,
								 ft_mat x, const int32_t *place, const float *weights);
ft_status ft_cpu_cross_entropy(ft_stream *s, ft_mat logits, const int32_t *targets,
							   const float *weights, float grad_scale, float *loss, float *correct);
ft_status ft_cpu_sum_squares(ft_stream *s, double *result, const float *x, int64_t n);
ft_status ft_cpu_adamw(ft_stream *s, float *param, float *m, float *v, const float *grad, int64_t n,
					   const ft_adamw *settings);
ft_status
ft_cpu_adamw_8bit(ft_stream *s, ft_mat param, uint8_t *m, uint8_t *v, uint8_t *m_exponents,
				  uint8_t *v_exponents, const float *grad, const ft_adamw *settings);
ft_status
ft_cpu_sample(ft_stream *s, ft_mat logits, const ft_sample *params, int32_t *ids, float *logprobs);

#endif
