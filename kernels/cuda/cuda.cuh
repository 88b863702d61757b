/*
 * cuda.cuh: what all files of the CUDA backend share on the host's side:
 * device, stream, weight, error handling, launching and choosing by type.
 *
 * The same sources are also compiled by an ordinary compiler against
 * test/gpu/emulator.h, which runs a block's threads one after the other on the
 * CPU: so every kernel's indexing and barriers are tested on machines without
 * a GPU.  What is not C++ but CUDA's own (the launch syntax, dynamic shared
 * memory, inline assembly) therefore stands behind FT_LAUNCH,
 * FT_DYNAMIC_SHARED and intrinsics.cuh.
 */
#ifndef FT_CUDA_CUH
#define FT_CUDA_CUH

extern "C"
{
#include "ops.h"
}

#include <pthread.h>
#include <string.h>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define FT_LAUNCH(kernel, grid, block, shared, stream, ...)               \
	do                                                                    \
	{                                                                     \
		auto ft_kernel_ = kernel;                                         \
		ft_kernel_<<<(grid), (block), (shared), (stream)>>>(__VA_ARGS__); \
	} while (0)
#define FT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include "emulator.h"
#endif

#define FT_WARP 32
#define FT_UNIT 32                   /* columns of a packed weight that are handled together */
#define FT_LT_WORKSPACE (32 << 20)   /* bytes, what cuBLASLt's fastest kernels for Hopper ask for */
#define FT_UPLOAD_SLOTS 8            /* pinned buffers of a stream for copies to the device */
#define FT_UPLOAD_BYTES (256 * 1024) /* of each */
#define FT_PARTIAL_SUMS 1024         /* f64 partial sums of sum_squares() */
#define FT_MAX_GRID_Y 65535

struct ft_gemm_cache;

struct ft_device
{
	int ordinal;
	ft_numerics numerics;
	int multiprocessors;
	int major;
	int minor;
	char name[64];
	ft_gemm_cache *gemm; /* gemm_lt.cu */
};

struct ft_upload_slot
{
	void *memory; /* pinned */
	cudaEvent_t done;
	bool used;
};

struct ft_stream
{
	ft_device *device;
	cudaStream_t stream;
	void *workspace;  /* FT_LT_WORKSPACE bytes for cuBLASLt */
	double *partials; /* [FT_PARTIAL_SUMS] */
	void *scratch;    /* grows to the largest need seen, scratch_memory() */
	size_t scratch_bytes;
	ft_upload_slot slots[FT_UPLOAD_SLOTS];
	int next_slot;
};

/* One part of a weight as it is stored, made ready for the device: rows padded to whole units of 32
 * columns, quants and scales in arrays of their own so that every load is aligned (packed.cuh). */
struct ft_packed
{
	ft_dtype dtype;
	int64_t first; /* its first row in the weight */
	int64_t rows;
	int64_t units; /* of a row */
	void *quants;
	void *high;
	void *scales;
	void *blocks; /* of 256 columns */
};

struct ft_weight
{
	ft_device *device;
	int64_t rows;
	int64_t cols;
	int64_t pitch; /* values from one row of dense to the next */
	unsigned use;
	void *dense; /* [rows, pitch] bf16 or f32, with FT_USE_TRAIN */
	bool is_view; /* dense is the caller's own, and all there is */
	ft_dtype dense_type;
	int n_parts;
	ft_packed *parts; /* with FT_USE_SERVE or FT_USE_EMBED */
	void *packed;     /* memory of all parts that are not views of dense */
	ft_mat *stored;   /* [n_parts] as they came, with FT_USE_DEQUANTISE */
	void *raw;        /* their memory */
	int64_t bytes;
};

/* --- status --- */

/* FT_OK, or a failure that names the call: FT_NO_MEMORY when memory ran out, else FT_DEVICE. */
ft_status ft_cuda_check(cudaError_t error, const char *what);
/* The same for the launch just made. */
ft_status ft_cuda_launched(const char *what);
/* FT_UNSUPPORTED with the names of both types. */
ft_status ft_cuda_unsupported(const char *op, ft_dtype a, ft_dtype b);
/* FT_INVALID or FT_UNSUPPORTED when a view is not what the operation needs. */
ft_status ft_cuda_shape(const char *op, const char *what, ft_mat m, int64_t rows, int64_t cols);
ft_status ft_cuda_type(const char *op, const char *what, ft_mat m, ft_dtype expected);
/* Make the stream's device the calling thread's current one. */
ft_status ft_cuda_enter(const ft_stream *s);
ft_status ft_cuda_enter_device(const ft_device *device);
/* Device memory of the stream, at least that large, its contents undefined. */
ft_status ft_cuda_scratch(ft_stream *s, size_t bytes, void **memory);

/* --- element types --- */

struct bf16
{
	uint16_t bits;
};

struct f16
{
	uint16_t bits;
};

template <typename T> struct type_tag
{
	typedef T type;
};

template <typename T> struct dtype_of;
template <> struct dtype_of<float>
{
	static constexpr ft_dtype value = FT_F32;
};
template <> struct dtype_of<bf16>
{
	static constexpr ft_dtype value = FT_BF16;
};
template <> struct dtype_of<f16>
{
	static constexpr ft_dtype value = FT_F16;
};

/* Call f with the tag of an activation's type, f32 or bf16. */
template <typename F>
static ft_status
with_type(const char *op, ft_dtype type, F f)
{
	if (type == FT_F32)
		return f(type_tag<float>());
	if (type == FT_BF16)
		return f(type_tag<bf16>());
	return ft_cuda_unsupported(op, type, type);
}

template <typename F>
static ft_status
with_types(const char *op, ft_dtype a, ft_dtype b, F f)
{
	if ((a != FT_F32 && a != FT_BF16) || (b != FT_F32 && b != FT_BF16))
		return ft_cuda_unsupported(op, a, b);
	return with_type(op, a,
					 [&](auto ta) { return with_type(op, b, [&](auto tb) { return f(ta, tb); }); });
}

/* A view as a kernel takes it. */
template <typename T> struct view
{
	T *data;
	int64_t rows;
	int64_t cols;
	int64_t ld;

	__host__ __device__ T *row(int64_t i) const
	{
		return data + i * ld;
	}
};

template <typename T>
static inline view<T>
view_of(ft_mat m)
{
	return view<T>{(T *) m.data, m.rows, m.cols, m.ld};
}

__host__ __device__ static inline int64_t
ft_divide_up(int64_t a, int64_t b)
{
	return (a + b - 1) / b;
}

__host__ __device__ static inline int64_t
ft_min64(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static inline size_t
ft_type_size(ft_dtype type)
{
	return type == FT_F32 || type == FT_I32 ? 4 : 2;
}

/* --- parts of the backend that other parts use --- */

/* c = alpha · op(a) · op(b) + beta · c for any pair of f32 and bf16 (gemm_own.cu). */
ft_status ft_cuda_gemm_own(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb,
						   float alpha, float beta);
/* y = x · partᵀ + beta · y in f32, row-fixed (gemm_own.cu). */
ft_status ft_cuda_linear_f32(ft_stream *s, ft_mat y, ft_mat x, const ft_packed *part, float beta);
/* The same by bf16 matrix instructions, x bf16, row-fixed (linear_serve.cu). */
ft_status ft_cuda_linear_bf16(ft_stream *s, ft_mat y, ft_mat x, const ft_packed *part, float beta);

/* A part of an expert's weight, and which expert's it is. */
#define FT_EXPERT_PARTS 32

struct ft_expert_part
{
	ft_packed packed;
	int expert;
};

/* As many as one launch handles: handed to the kernel by value. */
struct ft_expert_parts
{
	int n;
	int64_t rows; /* of the largest */
	ft_expert_part part[FT_EXPERT_PARTS];
};

/* The same of many experts: part p's columns of y are made from rows [starts[e], starts[e + 1]) of
 * x, where e is its expert.  All parts are of one stored type. */
ft_status ft_cuda_experts_f32(ft_stream *s, ft_mat y, ft_mat x, const ft_expert_parts *parts,
							  int n_experts, const int32_t *starts);
ft_status ft_cuda_experts_bf16(ft_stream *s, ft_mat y, ft_mat x, const ft_expert_parts *parts,
							   int n_experts, const int32_t *starts);

/* cuBLASLt (gemm_lt.cu).  *done is false when the library has nothing for that shape. */
ft_status ft_lt_open(ft_device *device);
void ft_lt_close(ft_device *device);
ft_status ft_lt_gemm(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha,
					 float beta, bool *done);

/* Attention of any head size up to 256 in f32 (attention_plain.cu). */
ft_status ft_cuda_attention_plain(ft_stream *s, const ft_attention *a, ft_mat out, float *lse,
								  ft_mat q, ft_mat k, ft_mat v);
ft_status ft_cuda_attention_grad_plain(ft_stream *s, const ft_attention *a, ft_mat dq, ft_mat dk,
									   ft_mat dv, ft_mat dout, ft_mat q, ft_mat k, ft_mat v,
									   const float *delta, const float *lse);
/* delta[t, h] = Σ dout · out over a head (attention_plain.cu). */
ft_status
ft_cuda_attention_delta(ft_stream *s, const ft_attention *a, float *delta, ft_mat dout, ft_mat out);

/* --- the operations, as ops.h documents them --- */

ft_status ft_cuda_device_open(const ft_device_config *config, ft_device **device);
void ft_cuda_device_close(ft_device *device);
ft_status ft_cuda_device_info(ft_device *device, ft_device_info *info);
ft_status ft_cuda_mem_alloc(ft_device *device, ft_mem_space space, size_t bytes, void **memory);
void ft_cuda_mem_free(ft_device *device, ft_mem_space space, void *memory);
ft_status ft_cuda_stream_create(ft_device *device, ft_stream **stream);
void ft_cuda_stream_destroy(ft_stream *stream);
ft_status ft_cuda_stream_synchronize(ft_stream *stream);
ft_status ft_cuda_copy_to_device(ft_stream *s, void *to, const void *from_host, size_t bytes);
ft_status ft_cuda_copy_to_host(ft_stream *s, void *to_host, const void *from, size_t bytes);
ft_status ft_cuda_copy(ft_stream *s, void *to, const void *from, size_t bytes);
ft_status ft_cuda_zero(ft_stream *s, void *memory, size_t bytes);
ft_status ft_cuda_weight_create(ft_device *device, const ft_mat *parts, int n_parts, unsigned use,
								ft_weight **weight);
ft_status ft_cuda_weight_view(ft_device *device, ft_mat matrix, ft_weight **weight);
void ft_cuda_weight_free(ft_weight *weight);
int64_t ft_cuda_weight_bytes(const ft_weight *weight);
ft_status ft_cuda_dequantise(ft_stream *s, ft_mat y, const ft_weight *w);
ft_status
ft_cuda_linear(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta, bool row_fixed);
ft_status
ft_cuda_linear_grad_input(ft_stream *s, ft_mat dx, ft_mat dy, const ft_weight *w, float beta);
ft_status ft_cuda_matmul(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha,
						 float beta);
ft_status ft_cuda_lora(ft_stream *s, ft_mat y, ft_mat x, const ft_lora_segment *segments, int n);
ft_status ft_cuda_embed(ft_stream *s, ft_mat y, const ft_weight *w, const int32_t *ids);
ft_status ft_cuda_gather_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *index);
ft_status ft_cuda_scatter_add_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *index);
ft_status ft_cuda_convert(ft_stream *s, ft_mat y, ft_mat x);
ft_status ft_cuda_add(ft_stream *s, ft_mat y, ft_mat x, float alpha);
ft_status ft_cuda_add_bias(ft_stream *s, ft_mat y, const float *bias);
ft_status ft_cuda_sum_rows(ft_stream *s, float *sum, ft_mat x);
ft_status ft_cuda_embed_grad(ft_stream *s, ft_mat dw, ft_mat dy, const int32_t *ids);
ft_status ft_cuda_rmsnorm(ft_stream *s, ft_mat y, ft_mat h, float *rstd, ft_mat x, ft_mat branch,
						  const float *weight, float eps);
ft_status ft_cuda_rmsnorm_grad(ft_stream *s, ft_mat dx, float *dweight, ft_mat dy, ft_mat x,
							   const float *weight, const float *rstd);
ft_status
ft_cuda_head_norm(ft_stream *s, ft_mat y, ft_mat x, int head_dim, const float *weight, float eps);
ft_status ft_cuda_head_norm_grad(ft_stream *s, ft_mat d, float *dweight, ft_mat x, int head_dim,
								 const float *weight, float eps);
ft_status ft_cuda_rope(ft_stream *s, ft_mat x, int head_dim, const int32_t *positions,
					   const float *cos_table, const float *sin_table, bool inverse);
ft_status ft_cuda_swiglu(ft_stream *s, ft_mat y, ft_mat gate_up);
ft_status ft_cuda_swiglu_grad(ft_stream *s, ft_mat dgate_up, ft_mat dy, ft_mat gate_up);
ft_status
ft_cuda_dropout(ft_stream *s, ft_mat y, ft_mat x, const ft_dropout *settings, float beta);
ft_status ft_cuda_attention(ft_stream *s, const ft_attention *a, ft_mat out, float *lse, ft_mat q,
							ft_mat k, ft_mat v);
ft_status
ft_cuda_attention_grad(ft_stream *s, const ft_attention *a, ft_mat dq, ft_mat dk, ft_mat dv,
					   ft_mat dout, ft_mat q, ft_mat k, ft_mat v, ft_mat out, const float *lse);
ft_status ft_cuda_kv_store(ft_stream *s, const ft_kv_layer *cache, const ft_paged_batch *batch,
						   ft_mat k, ft_mat v);
ft_status ft_cuda_attention_paged(ft_stream *s, ft_mat out, ft_mat q, const ft_kv_layer *cache,
								  const ft_paged_batch *batch, int heads, int window, float scale);
ft_status ft_cuda_route(ft_stream *s, int32_t *experts, float *weights, ft_mat logits, int k);
ft_status ft_cuda_route_grad(ft_stream *s, ft_mat dlogits, const float *dweights,
							 const float *weights, const int32_t *experts, int k);
ft_status ft_cuda_group_rows(ft_stream *s, int32_t *starts, int32_t *place, int32_t *row,
							 const int32_t *experts, int64_t rows, int k, int n_experts);
ft_status ft_cuda_linear_experts(ft_stream *s, ft_mat y, ft_mat x, ft_weight *const *weights, int n,
								 const int32_t *starts);
ft_status ft_cuda_combine_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *place,
							   const float *weights, int k);
ft_status ft_cuda_weigh_rows_grad(ft_stream *s, float *dweights, ft_mat dx, ft_mat weighted,
								  ft_mat x, const int32_t *place, const float *weights);
ft_status
ft_cuda_cross_entropy(ft_stream *s, ft_mat logits, const int32_t *targets, const float *weights,
					  float grad_scale, float *loss, float *correct);
ft_status ft_cuda_sum_squares(ft_stream *s, double *result, const float *x, int64_t n);
ft_status ft_cuda_adamw(ft_stream *s, float *param, float *m, float *v, const float *grad,
						int64_t n, const ft_adamw *settings);
ft_status ft_cuda_adamw_8bit(ft_stream *s, ft_mat param, uint8_t *m, uint8_t *v,
							 uint8_t *m_exponents, uint8_t *v_exponents, const float *grad,
							 const ft_adamw *settings);
ft_status
ft_cuda_sample(ft_stream *s, ft_mat logits, const ft_sample *params, int32_t *ids, float *logprobs);

#endif
