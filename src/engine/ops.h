/*
 * ops.h: the table of operations behind which all arithmetic stands.
 *
 * The engine above this table is the same code for every device; a backend
 * (kernels/cpu, kernels/cuda) fills every entry, and ft_ops_check() refuses one
 * that does not.  There is no graph and no autograd: the architecture is known,
 * so forward and backward are written out once in terms of these calls.
 *
 * Rules for every operation:
 *
 * - Pointers are device memory unless the comment says "host".  On the CPU the
 *   two are the same memory, but callers still copy, so that the same code runs
 *   on a GPU.
 * - Work is queued on a stream, in order, and may be asynchronous: a caller
 *   reads a result only after copy_to_host() or stream_synchronize().  A host
 *   array given to an operation may be reused when the call returns.
 * - Nothing is allocated inside an operation, save what a backend caches once
 *   for a shape that it sees for the first time.
 * - Sums are in f32 or wider, in an order fixed by the shapes and the number of
 *   threads, never by which thread came first: the same call gives the same
 *   bits.  Operations marked "row-fixed" promise more: a row of the result does
 *   not depend on how many other rows are in the call (serving relies on it).
 * - Views may be strided (ld > cols) unless said otherwise.  Outputs must not
 *   overlap inputs unless "in place" is said.
 * - Empty matrices (rows = 0) are legal and do nothing.
 * - An unsupported combination of types gives FT_UNSUPPORTED with both names.
 *
 * Letters in shapes: T rows (tokens), C model width, H query heads, G key/value
 * heads, D head size, F feed-forward width, V vocabulary, R LoRA rank, E
 * experts, K of them for a row.
 */
#ifndef FT_OPS_H
#define FT_OPS_H

#include "small_moments.h"
#include "status.h"
#include "tensor.h"

#define FT_OPS_VERSION 3
#define FT_KV_BLOCK 16    /* tokens in a block of the paged KV cache */
#define FT_MAX_EXPERTS 64 /* so that no product of a model's sizes overflows 64 bits */

typedef struct ft_device ft_device; /* private to the backend */
typedef struct ft_stream ft_stream;
typedef struct ft_weight ft_weight;

typedef enum ft_mem_space
{
	FT_MEM_DEVICE, /* where operations read and write; 64-byte aligned, zeroed */
	FT_MEM_HOST    /* staging memory that copies reach at full speed (pinned on a GPU) */
} ft_mem_space;

typedef enum ft_numerics
{
	FT_NUMERICS_FAST,     /* 16-bit products where the hardware has them */
	FT_NUMERICS_REFERENCE /* f32 activations and sums, weights exactly as stored */
} ft_numerics;

typedef struct ft_device_config
{
	const char *name; /* "cpu", "cuda", "cuda:1" */
	int threads;      /* CPU: threads to use, at least 1 */
	ft_numerics numerics;
} ft_device_config;

typedef struct ft_device_info
{
	char name[64];      /* "cpu", "cuda:0 (NVIDIA H200)" */
	char features[128]; /* "avx512 vnni", "sm_90" */
	int threads;        /* that operations run on; 0 on a GPU */
	ft_numerics numerics;
	ft_dtype compute_dtype; /* of activations that enter matrix products, for this numerics */
	int64_t memory_total;   /* bytes */
	int64_t memory_free;
} ft_device_info;

/* What a weight will be used for decides how a backend lays it out; bits may be or-ed. */
enum
{
	FT_USE_TRAIN = 1, /* linear() and linear_grad_input() for many rows */
	FT_USE_SERVE = 2, /* linear() row-fixed, from 1 row on, stored type kept packed */
	FT_USE_EMBED = 4, /* embed() */
	/* dequantise(), and alone nothing else: parts are kept as they are stored; only so may they be
	 * in NF4 */
	FT_USE_DEQUANTISE = 8
};

/* Sequences of a serving batch: row_start[n + 1] and context[n] say that sequence i's rows are
 * [row_start[i], row_start[i + 1]) and that its first row stands at position context[i].
 * blocks[i * max_blocks + j] is the cache block of its positions [16 j, 16 j + 16). All device. */
typedef struct ft_paged_batch
{
	int n;
	int max_blocks;
	int max_rows;    /* largest row count of a sequence */
	int max_context; /* largest position in the batch, plus 1 */
	const int32_t *row_start;
	const int32_t *context;
	const int32_t *blocks;
} ft_paged_batch;

/* One layer's cache: [blocks][G][16 · D] each, f32 or bf16.  The order of a head's 16 · D values
 * inside a block is the backend's own; whole blocks may be copied. */
typedef struct ft_kv_layer
{
	void *k;
	void *v;
	ft_dtype dtype;
	int kv_heads;
	int head_dim;
} ft_kv_layer;

/* Packed sequences of a training batch (block-diagonal causal attention). */
typedef struct ft_attention
{
	int heads;                  /* H */
	int kv_heads;               /* G, divides H */
	int head_dim;               /* D */
	int window;                 /* 0: none; else a row sees itself and window - 1 rows before */
	float scale;                /* usually 1/√D */
	int n_sequences;            /* documents in the batch */
	int max_length;             /* of the longest */
	const int32_t *starts;      /* [n_sequences + 1], starts[0] = 0, last = T (device) */
	const int32_t *starts_host; /* the same on the host */
} ft_attention;

/* A run of rows that share an adapter, for one linear layer (host array, device a and b). */
typedef struct ft_lora_segment
{
	int64_t row; /* first row */
	int64_t rows;
	int64_t column; /* first column of y that b writes */
	int64_t out;    /* columns written */
	int rank;
	float scale;
	ft_dtype dtype; /* of a and b: f32 or bf16 */
	const void *a;  /* [rank, in] */
	const void *b;  /* [out, rank] */
} ft_lora_segment;

/*
 * Which elements a dropout keeps: column j of row i where its random word is at
 * least p · 2^32.  That is word j / 16 % 4 of the block of Philox4x32-10 whose
 * counter is (j / 64 · 16 + j % 16, positions[i], documents[i], slot), low word
 * first, and whose key is the seed.
 */
typedef struct ft_dropout
{
	double p; /* share that is dropped, in [0, 1) */
	uint64_t seed;
	uint32_t slot;            /* which of many masks */
	const int32_t *positions; /* [T] device */
	const int32_t *documents; /* [T] device */
} ft_dropout;

static inline uint32_t
ft_dropout_threshold(double p)
{
	return (uint32_t) (p * 4294967296.0);
}

typedef struct ft_adamw
{
	float learning_rate;
	float beta1;
	float beta2;
	float eps;
	float weight_decay; /* decoupled */
	float grad_scale;   /* gradients are multiplied by this first (clipping) */
	int64_t step;       /* 1 for the first update */
	uint32_t noise[4];  /* of this step, for adamw_8bit */
} ft_adamw;

typedef struct ft_sample
{
	float temperature; /* 0: greedy, lowest id wins a tie */
	float top_p;       /* 1: off */
	float min_p;       /* 0: off */
	int32_t top_k;     /* 0: off */
	float uniform;     /* in [0, 1): the random number of this draw */
} ft_sample;

typedef struct ft_ops
{
	int version; /* FT_OPS_VERSION */
	const char *name;

	/* --- device and memory --- */

	ft_status (*device_open)(const ft_device_config *config, ft_device **device);
	void (*device_close)(ft_device *device); /* everything made with it must be freed before */
	ft_status (*device_info)(ft_device *device, ft_device_info *info);
	ft_status (*mem_alloc)(ft_device *device, ft_mem_space space, size_t bytes, void **memory);
	void (*mem_free)(ft_device *device, ft_mem_space space, void *memory);
	ft_status (*stream_create)(ft_device *device, ft_stream **stream);
	void (*stream_destroy)(ft_stream *stream);
	/* Wait for all queued work; an error of any earlier operation surfaces here at the latest. */
	ft_status (*stream_synchronize)(ft_stream *stream);
	ft_status (*copy_to_device)(ft_stream *s, void *to, const void *from_host, size_t bytes);
	/* Waits for the stream up to and including this copy. */
	ft_status (*copy_to_host)(ft_stream *s, void *to_host, const void *from, size_t bytes);
	ft_status (*copy)(ft_stream *s, void *to, const void *from, size_t bytes);
	ft_status (*zero)(ft_stream *s, void *memory, size_t bytes);

	/* --- weights: immutable matrices in the layout that the backend likes best --- */

	/* Stack `n_parts` host matrices [rows_i, cols], each of its own stored type, into one weight
	 * [Σ rows_i, cols].  The parts may be freed afterwards. */
	ft_status (*weight_create)(ft_device *device, const ft_mat *parts, int n_parts, unsigned use,
							   ft_weight **weight);
	/* A weight that is the caller's own matrix (device, f32 or bf16, ld = cols), which must outlive
	 * it and may change between operations.  For linear(), row_fixed too, linear_grad_input() and
	 * embed(). */
	ft_status (*weight_view)(ft_device *device, ft_mat matrix, ft_weight **weight);
	void (*weight_free)(ft_weight *weight);
	int64_t (*weight_bytes)(const ft_weight *weight); /* device memory held */

	/* y = the values of w (FT_USE_DEQUANTISE), in f32 or, rounded, in bf16.  y [rows, cols] of w,
	 * ld = cols. */
	ft_status (*dequantise)(ft_stream *s, ft_mat y, const ft_weight *w);

	/* --- matrix products --- */

	/* y[T, N] = x[T, K] · Wᵀ + beta · y.  x f32 or bf16, y f32 or bf16, beta 0 or 1 (1: y f32).
	 * row_fixed needs FT_USE_SERVE, else FT_USE_TRAIN. */
	ft_status (*linear)(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta,
						bool row_fixed);
	/* dx[T, K] = dy[T, N] · W + beta · dx. */
	ft_status (*linear_grad_input)(ft_stream *s, ft_mat dx, ft_mat dy, const ft_weight *w,
								   float beta);
	/* c[M, N] = alpha · op(a) · op(b) + beta · c, op = transpose where ta / tb is set.  a and b of
	 * one type, f32 or bf16; c f32, or bf16 with beta 0. */
	ft_status (*matmul)(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha,
						float beta);
	/* y[row, column..] += scale · (x[row] · aᵀ) · bᵀ for every segment.  y f32 or bf16, x f32 or
	 * bf16. Row-fixed. */
	ft_status (*lora)(ft_stream *s, ft_mat y, ft_mat x, const ft_lora_segment *segments, int n);

	/* --- rows --- */

	/* y[i] = row ids[i] of w (FT_USE_EMBED). y f32 or bf16. An id out of range gives a zero row. */
	ft_status (*embed)(ft_stream *s, ft_mat y, const ft_weight *w, const int32_t *ids);
	/* y[i] = x[index[i]]; y and x of one type, f32 or bf16. */
	ft_status (*gather_rows)(ft_stream *s, ft_mat y, ft_mat x, const int32_t *index);
	/* y[index[i]] += x[i] (f32); indexes are distinct. */
	ft_status (*scatter_add_rows)(ft_stream *s, ft_mat y, ft_mat x, const int32_t *index);
	/* y = x for any pair of f32, bf16, f16, and from any quantised type to f32 or bf16. */
	ft_status (*convert)(ft_stream *s, ft_mat y, ft_mat x);
	/* y += alpha · x (f32). */
	ft_status (*add)(ft_stream *s, ft_mat y, ft_mat x, float alpha);
	/* y[i] += bias[C] for every row; y f32 or bf16.  Row-fixed. */
	ft_status (*add_bias)(ft_stream *s, ft_mat y, const float *bias);
	/* sum[C] += Σ over rows of x (f32 or bf16): the gradient of a bias. */
	ft_status (*sum_rows)(ft_stream *s, float *sum, ft_mat x);
	/* dw[ids[i]] += dy[i], the gradient of embed(): ids may be equal, one out of range is left out.
	 * dw, dy f32. */
	ft_status (*embed_grad)(ft_stream *s, ft_mat dw, ft_mat dy, const int32_t *ids);

	/* --- the transformer's own --- */

	/* h = x (+ branch, where its data is not NULL), y = h / rms(h) · weight, rstd[T] = 1 / rms(h).
	 * x, h f32 (h may be x: in place; h.data NULL: not stored); branch, y f32 or bf16;
	 * rstd may be NULL. */
	ft_status (*rmsnorm)(ft_stream *s, ft_mat y, ft_mat h, float *rstd, ft_mat x, ft_mat branch,
						 const float *weight, float eps);
	/* dx += gradient of y's loss through the norm; x is what was normalised (h above); dy f32 or
	 * bf16. dweight[C] (f32, added to) may be NULL. */
	ft_status (*rmsnorm_grad)(ft_stream *s, ft_mat dx, float *dweight, ft_mat dy, ft_mat x,
							  const float *weight, const float *rstd);
	/* RMSNorm of each head on its own: for the D = head_dim columns of each head of x [T, n·D],
	 * y = x / rms(x) · weight[D].  y may be x (in place); f32 or bf16 both, of one type.
	 * Row-fixed. */
	ft_status (*head_norm)(ft_stream *s, ft_mat y, ft_mat x, int head_dim, const float *weight,
						   float eps);
	/* dx from dy through that norm, in place of dy (both are `d`); x is what was normalised, of d's
	 * type.  dweight[D] (f32, added to) may be NULL. */
	ft_status (*head_norm_grad)(ft_stream *s, ft_mat d, float *dweight, ft_mat x, int head_dim,
								const float *weight, float eps);
	/* Rotate, in place, each head's halves (x1, x2) of x[T, n·D] by the angle of positions[t]:
	 * (x1 cos − x2 sin, x2 cos + x1 sin), tables [max_position, D/2] f32.  inverse: by the negative
	 * angle, which is the gradient.  x f32 or bf16. */
	ft_status (*rope)(ft_stream *s, ft_mat x, int head_dim, const int32_t *positions,
					  const float *cos_table, const float *sin_table, bool inverse);
	/* y[T, F] = silu(gate) · up, gate_up [T, 2F] = gate | up. */
	ft_status (*swiglu)(ft_stream *s, ft_mat y, ft_mat gate_up);
	/* dgate_up from dy and gate_up; dgate_up may be gate_up (in place). */
	ft_status (*swiglu_grad)(ft_stream *s, ft_mat dgate_up, ft_mat dy, ft_mat gate_up);
	/* y = beta · y + x / (1 − p) where x is kept, + 0 where it is dropped; beta 0 (y may be x) or 1
	 * (y f32).  x, y f32 or bf16. */
	ft_status (*dropout)(ft_stream *s, ft_mat y, ft_mat x, const ft_dropout *settings, float beta);
	/* Causal attention inside each sequence: q [T, H·D], k, v [T, G·D] (views of one QKV matrix),
	 * out [T, H·D], lse [T, H] f32 = log of the softmax sum.  One type, f32 or bf16. */
	ft_status (*attention)(ft_stream *s, const ft_attention *a, ft_mat out, float *lse, ft_mat q,
						   ft_mat k, ft_mat v);
	/* dq, dk, dv (overwritten, views of one matrix) from dout. */
	ft_status (*attention_grad)(ft_stream *s, const ft_attention *a, ft_mat dq, ft_mat dk,
								ft_mat dv, ft_mat dout, ft_mat q, ft_mat k, ft_mat v, ft_mat out,
								const float *lse);
	/* Store the rows' k and v [T, G·D] (rotated) at their places in the cache. */
	ft_status (*kv_store)(ft_stream *s, const ft_kv_layer *cache, const ft_paged_batch *batch,
						  ft_mat k, ft_mat v);
	/* out[T, H·D] = attention of q [T, H·D] over the cache, each row over the positions up to its
	 * own (and inside the window).  Row-fixed. */
	ft_status (*attention_paged)(ft_stream *s, ft_mat out, ft_mat q, const ft_kv_layer *cache,
								 const ft_paged_batch *batch, int heads, int window, float scale);

	/* --- mixture of experts: E experts, of which each row has K (experts.h) ---
	 *
	 * Slot t · K + j is row t's j-th choice.  The slots of an expert stand together, in places;
	 * place[T · K] says where a slot stands, and starts[E + 1] where an expert's places begin. */

	/* Choose as Mixtral does: softmax of the row's logits over all experts, the K largest
	 * (experts[T, K] in falling order; the lowest id wins a tie), and these divided by their sum
	 * (weights[T, K]).  logits [T, E] f32 become the softmax.  Row-fixed. */
	ft_status (*route)(ft_stream *s, int32_t *experts, float *weights, ft_mat logits, int k);
	/* dlogits [T, E] (f32, overwritten) from dweights[T, K], with weights and experts as route()
	 * gave them: w_j · (dw_j − Σ w · dw) at the chosen ones, else 0. */
	ft_status (*route_grad)(ft_stream *s, ft_mat dlogits, const float *dweights,
							const float *weights, const int32_t *experts, int k);
	/* Sort `rows` · k slots by expert, those of one expert in the order of the slots: starts,
	 * place, and row[T · K], the row whose slot stands at a place.  experts in [0, n_experts). */
	ft_status (*group_rows)(ft_stream *s, int32_t *starts, int32_t *place, int32_t *row,
							const int32_t *experts, int64_t rows, int k, int n_experts);
	/* y[p] = x[p] · W_eᵀ for the places p of each expert e.  weights: host array [n], of one shape,
	 * made with FT_USE_SERVE; the host need not know `starts`.  x, y f32 or bf16.  Row-fixed. */
	ft_status (*linear_experts)(ft_stream *s, ft_mat y, ft_mat x, ft_weight *const *weights, int n,
								const int32_t *starts);
	/* y[t] = Σ_j weights[t, j] · x[place[t, j]], j ascending (weights NULL: 1).  x, y f32 or bf16.
	 * Row-fixed. */
	ft_status (*combine_rows)(ft_stream *s, ft_mat y, ft_mat x, const int32_t *place,
							  const float *weights, int k);
	/* Backward through a weight that a place's row was multiplied by, where the product that
	 * follows has been undone: for each of n slots i and its place p, dweights[i] = Σ x[p] · dx[p],
	 * then dx[p] *= weights[i].  weighted[p] = weights[i] · x[p], of x's type (may be x; data NULL:
	 * not wanted).  x f32 or bf16, dx f32. */
	ft_status (*weigh_rows_grad)(ft_stream *s, float *dweights, ft_mat dx, ft_mat weighted,
								 ft_mat x, const int32_t *place, const float *weights);

	/* --- loss, optimizer, sampling --------------------------------------------------------------
	 */

	/* For each row of logits [n, V] (f32): loss[i] = −log softmax at targets[i] (unweighted),
	 * correct[i] = 1.0 when the arg-max (lowest id on a tie) is targets[i].  With grad_scale ≠ 0
	 * the logits are replaced by their gradient, weights[i] · grad_scale · (softmax − one-hot).
	 * Weights may be negative: then a target is made less likely (preference.h). */
	ft_status (*cross_entropy)(ft_stream *s, ft_mat logits, const int32_t *targets,
							   const float *weights, float grad_scale, float *loss, float *correct);
	/* *result (device, f64) = Σ x². */
	ft_status (*sum_squares)(ft_stream *s, double *result, const float *x, int64_t n);
	ft_status (*adamw)(ft_stream *s, float *param, float *m, float *v, const float *grad, int64_t n,
					   const ft_adamw *settings);
	/* The same for param [1, n] f32 or bf16, with moments of 8 bits (small_moments.h): m and v [n],
	 * and an exponent for each block of FT_MOMENT_BLOCK.  These, and bf16 values, are rounded by
	 * chance. */
	ft_status (*adamw_8bit)(ft_stream *s, ft_mat param, uint8_t *m, uint8_t *v,
							uint8_t *m_exponents, uint8_t *v_exponents, const float *grad,
							const ft_adamw *settings);
	/* ids[i] (device) drawn from row i of logits [n, V] (f32, may be overwritten) by params[i]
	 * (host); logprobs[i] (device, may be NULL): log softmax of the untouched logits at ids[i]. */
	ft_status (*sample)(ft_stream *s, ft_mat logits, const ft_sample *params, int32_t *ids,
						float *logprobs);
} ft_ops;

/* The CPU's table (kernels/cpu/backend.c). */
const ft_ops *ft_cpu_ops(void);

/* A backend in a shared object records failures through what the program that opened it hands over,
 * so the program need not export symbols.  The object exports one function, FT_CUDA_ENTRY, of type
 * ft_backend_entry; it returns NULL when it cannot work with that host. */
#define FT_BACKEND_HOST_VERSION 1
#define FT_CUDA_ENTRY "ft_cuda_ops"

typedef struct ft_backend_host
{
	int version; /* FT_BACKEND_HOST_VERSION */
	ft_status (*fail)(ft_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
	ft_status (*hint)(ft_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
} ft_backend_host;

typedef const ft_ops *(*ft_backend_entry)(const ft_backend_host *host);

/* FT_INTERNAL, naming the entry, when one is missing or the version is another. */
ft_status ft_ops_check(const ft_ops *ops);

#endif
