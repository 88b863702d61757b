/*
 * bench_ops.c: speed of the CPU backend's operations at SmolLM2-135M's shapes,
 * beside what the machine can do at best, measured in the same run.
 *
 *   bench_ops [-c] [-f part,part …] [threads]     lines as bench/README.md has them
 *
 * Every figure is the best of several runs: on a shared machine the others are
 * about its neighbours.  With -c time is the process's own processor time, for
 * a machine that is too busy for a clock to say anything (with one thread, then).
 * -f chooses among train, serve, attention and rows.
 */
#include "bench.h"
#include "ops.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum
{
	HIDDEN = 576,
	FFN = 1536,
	LAYERS = 30,
	HEADS = 9,
	KV_HEADS = 3,
	HEAD_DIM = 64,
	VOCAB = 49152,
	QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM,
	RANK = 16
};

static const ft_ops *ops;
static ft_device *device;
static ft_stream *stream;
static int threads;
static clockid_t clock_id = CLOCK_MONOTONIC;
static const char *parts = "train,serve,attention,rows";

static double
now(void)
{
	struct timespec t;

	clock_gettime(clock_id, &t);
	return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

/* A line of bench/README.md's form, with "ops/" before the names; reference is the metric to
 * compare with, or NULL. */
static void
report(const char *name, double value, const char *unit, const char *reference)
{
	printf("ops/%s\t%.4g\t%s%s%s\n", name, value, unit, reference != NULL ? "\tops/" : "",
		   reference != NULL ? reference : "");
	fflush(stdout);
}

/* Seconds of the best run, over at least 5 runs and 0.4 s; short runs are timed many at a time. */
static double
best_time(void (*run)(void *), void *context)
{
	double best = INFINITY;
	double start = now();
	int repeat = 1;

	for (int i = 0; i < 6 || now() - start < 0.4; i++)
	{
		double begin = now();
		double took;

		for (int j = 0; j < repeat; j++)
			run(context);
		took = (now() - begin) / repeat;
		if (i > 0 && took < best)
			best = took;
		if (took * repeat < 1e-3 && repeat < 1000000)
			repeat *= took * repeat < 1e-4 ? 10 : 2;
	}
	return best;
}

/* --- what the machine can do --- */

#if defined(__x86_64__)
#define PEAK_LOOPS 2000000L
#define CLOBBER_16                                                                           \
	"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
		"xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define FOR_12(op, r)                                                                         \
	op(r, 0) op(r, 1) op(r, 2) op(r, 3) op(r, 4) op(r, 5) op(r, 6) op(r, 7) op(r, 8) op(r, 9) \
		op(r, 10) op(r, 11)
#define ZERO(r, i) "vxorps %%" r #i ", %%" r #i ", %%" r #i "\n"
#define FMA(r, i) "vfmadd231ps %%" r "14, %%" r "15, %%" r #i "\n"
#define DOT_I8(r, i) "vpdpbusd %%" r "14, %%" r "15, %%" r #i "\n"
#define DOT_BF16(r, i) "vdpbf16ps %%" r "14, %%" r "15, %%" r #i "\n"
/* Twelve independent chains from zero, so that no denormal or NaN slows them down. */
#define PEAK(name, op, r)                                                                    \
	static void name(void)                                                                   \
	{                                                                                        \
		__asm__ volatile(FOR_12(ZERO, "ymm") ZERO("ymm", 14) ZERO("ymm", 15)::: CLOBBER_16); \
		for (long i = 0; i < PEAK_LOOPS; i++)                                                \
			__asm__ volatile(FOR_12(op, r)::: CLOBBER_16);                                   \
	}
PEAK(peak_fma_256, FMA, "ymm")
PEAK(peak_fma_512, FMA, "zmm")
PEAK(peak_i8_512, DOT_I8, "zmm")
PEAK(peak_bf16_512, DOT_BF16, "zmm")

static void *
peak_thread(void *kernel)
{
	(*(void (**)(void)) kernel)();
	return NULL;
}

/* Operations a second, in units of 1e9, when every thread runs the kernel. */
static double
peak(void (*kernel)(void), double operations_an_instruction)
{
	double best = 0;

	for (int round = 0; round < 5; round++)
	{
		pthread_t id[64];
		double begin = now();
		double rate;

		for (int i = 1; i < threads; i++)
			if (pthread_create(&id[i], NULL, peak_thread, &kernel) != 0)
				exit(1);
		kernel();
		for (int i = 1; i < threads; i++)
			pthread_join(id[i], NULL);
		rate = threads * 12.0 * PEAK_LOOPS * operations_an_instruction / (now() - begin) / 1e9;
		if (rate > best)
			best = rate;
	}
	return best;
}

static void
bench_peaks(void)
{
	bool avx512 = __builtin_cpu_supports("avx512f");

	if (!__builtin_cpu_supports("fma"))
		return;
	report("peak/f32", avx512 ? peak(peak_fma_512, 32) : peak(peak_fma_256, 16), "GFLOP/s", NULL);
	if (avx512 && __builtin_cpu_supports("avx512vnni"))
		report("peak/int8", peak(peak_i8_512, 128), "GOP/s", NULL);
	if (avx512 && __builtin_cpu_supports("avx512bf16"))
		report("peak/bf16", peak(peak_bf16_512, 64), "GFLOP/s", NULL);
}
#else
static void
bench_peaks(void)
{
}
#endif

static void
run_sum_squares(void *context)
{
	ft_mat *m = context;
	double sum;

	must(ops->sum_squares(stream, &sum, m->data, m->rows * m->cols));
}

/* --- operations --- */

static void *
memory_of(int64_t values)
{
	void *memory;

	must(ops->mem_alloc(device, FT_MEM_DEVICE, (size_t) values * sizeof(float), &memory));
	return memory;
}

static ft_mat
matrix(int64_t rows, int64_t cols)
{
	static uint32_t state = 1;
	ft_mat m = ft_mat_make(memory_of(rows * cols), FT_F32, rows, cols);

	for (int64_t i = 0; i < rows * cols; i++)
	{
		state = state * 1664525 + 1013904223;
		((float *) m.data)[i] = (float) (state >> 8) / 8388608.0f - 1;
	}
	return m;
}

static void
release(ft_mat m)
{
	ops->mem_free(device, FT_MEM_DEVICE, m.data);
}

/* A weight of random blocks whose bytes keep every number in them finite, and normal in the plain
 * types. */
static ft_weight *
weight_of(ft_dtype dtype, int64_t rows, int64_t cols, unsigned use)
{
	size_t bytes = (size_t) (rows * ft_row_bytes(dtype, cols));
	unsigned char *data = malloc(bytes);
	ft_mat part = ft_mat_make(data, dtype, rows, cols);
	ft_weight *w;

	for (size_t i = 0; i < bytes; i++)
		data[i] = dtype == FT_BF16 ? 0x3c : (unsigned char) (i * 2654435761u >> 13) % 0x2c;
	must(ops->weight_create(device, &part, 1, use, &w));
	free(data);
	return w;
}

static void
bench_memory(void)
{
	ft_mat m = matrix(64, 1 << 20);

	report("peak/memory_read",
		   (double) (m.rows * m.cols) * 4 / best_time(run_sum_squares, &m) / 1e9, "GB/s", NULL);
	release(m);
}

typedef struct product
{
	ft_mat c;
	ft_mat a;
	ft_mat b;
	bool ta;
	bool tb;
	const ft_weight *w;
	bool row_fixed;
	bool backward;
} product;

static void
run_product(void *context)
{
	product *p = context;

	if (p->w == NULL)
		must(ops->matmul(stream, p->c, p->a, p->ta, p->b, p->tb, 1, 0));
	else if (p->backward)
		must(ops->linear_grad_input(stream, p->c, p->a, p->w, 0));
	else
		must(ops->linear(stream, p->c, p->a, p->w, 0, p->row_fixed));
}

static void
report_product(const char *name, product *p, double flop)
{
	report(name, flop / best_time(run_product, p) / 1e9, "GFLOP/s", "peak/f32");
}

/* One linear layer in training: forward, input gradient, and LoRA's small products. */
static void
bench_training_layer(const char *name, int64_t rows, int64_t in, int64_t out)
{
	ft_weight *w = weight_of(FT_Q8_0, out, in, FT_USE_TRAIN);
	ft_mat x = matrix(rows, in);
	ft_mat y = matrix(rows, out);
	ft_mat low = matrix(rows, RANK);
	ft_mat a = matrix(RANK, in);
	ft_mat b = matrix(out, RANK);
	double flop = 2.0 * (double) (rows * in * out);
	product forward = {.c = y, .a = x, .w = w};
	product backward = {.c = x, .a = y, .w = w, .backward = true};
	product small[] = {{.c = low, .a = x, .b = a, .tb = true},
					   {.c = y, .a = low, .b = b, .tb = true},
					   {.c = low, .a = y, .b = b},
					   {.c = b, .a = y, .b = low, .ta = true},
					   {.c = a, .a = low, .b = x, .ta = true}};
	static const char *const small_names[] = {"x_at", "low_bt", "dy_b", "db", "da"};
	char text[128];

	snprintf(text, sizeof text, "train/%lld/%s/forward", (long long) rows, name);
	report_product(text, &forward, flop);
	snprintf(text, sizeof text, "train/%lld/%s/backward", (long long) rows, name);
	report_product(text, &backward, flop);
	for (int i = 0; i < 5; i++)
	{
		int64_t wide = i == 0 || i == 4 ? in : out;

		snprintf(text, sizeof text, "train/%lld/%s/lora_%s", (long long) rows, name,
				 small_names[i]);
		report_product(text, &small[i], 2.0 * (double) (rows * RANK * wide));
	}
	release(x);
	release(y);
	release(low);
	release(a);
	release(b);
	ops->weight_free(w);
}

static void
bench_training(void)
{
	for (int64_t rows = 512; rows <= 2048; rows *= 4)
	{
		bench_training_layer("qkv", rows, HIDDEN, QKV);
		bench_training_layer("out", rows, HIDDEN, HIDDEN);
		bench_training_layer("gate_up", rows, HIDDEN, 2 * FFN);
		bench_training_layer("down", rows, FFN, HIDDEN);
	}
	bench_training_layer("head", 256, HIDDEN, VOCAB);
}

/* A pass over the weights of the whole model, as one decode step or one prefill does. */
typedef struct model_pass
{
	ft_weight *layer[LAYERS][4];
	ft_weight *head;
	int64_t rows;
	ft_mat hidden;
	ft_mat wide; /* widest of QKV and 2 F */
	ft_mat logits;
} model_pass;

static void
run_pass(void *context)
{
	model_pass *p = context;
	ft_mat hidden = ft_mat_rows(p->hidden, 0, p->rows);
	ft_mat wide = ft_mat_rows(p->wide, 0, p->rows);

	for (int i = 0; i < LAYERS; i++)
	{
		must(ops->linear(stream, ft_mat_cols(wide, 0, QKV), hidden, p->layer[i][0], 0, true));
		must(ops->linear(stream, hidden, ft_mat_cols(wide, 0, HIDDEN), p->layer[i][1], 0, true));
		must(ops->linear(stream, wide, hidden, p->layer[i][2], 0, true));
		must(ops->linear(stream, hidden, ft_mat_cols(wide, 0, FFN), p->layer[i][3], 0, true));
	}
	/* of a prompt only the last row has logits */
	must(ops->linear(stream, ft_mat_rows(p->logits, 0, p->rows <= 64 ? p->rows : 1),
					 ft_mat_rows(hidden, 0, p->rows <= 64 ? p->rows : 1), p->head, 0, true));
}

static void
bench_serving(const char *name, ft_dtype dtype, ft_dtype head)
{
	static const int64_t shape[4][2] = {
		{QKV, HIDDEN}, {HIDDEN, HIDDEN}, {2 * FFN, HIDDEN}, {HIDDEN, FFN}};
	static const int64_t rows[] = {1, 4, 8, 16, 32, 64, 512};
	bool whole = dtype != FT_BF16;
	model_pass p;
	double bytes = 0;
	char text[128];

	for (int i = 0; i < LAYERS; i++)
		for (int j = 0; j < 4; j++)
		{
			p.layer[i][j] = weight_of(dtype, shape[j][0], shape[j][1], FT_USE_SERVE);
			bytes += (double) ops->weight_bytes(p.layer[i][j]);
		}
	p.head = weight_of(head, VOCAB, HIDDEN, FT_USE_SERVE);
	bytes += (double) ops->weight_bytes(p.head);
	p.hidden = matrix(512, HIDDEN);
	p.wide = matrix(512, 2 * FFN);
	p.logits = matrix(64, VOCAB);
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
	{
		double took;

		p.rows = rows[i];
		took = best_time(run_pass, &p);
		snprintf(text, sizeof text, "serve/%s/rows_%lld", name, (long long) rows[i]);
		report(text, (double) rows[i] / took, "tokens/s", NULL);
		if (i == 0)
		{
			snprintf(text, sizeof text, "serve/%s/rows_1/read", name);
			report(text, bytes / took / 1e9, "GB/s", "peak/memory_read");
		}
		if (rows[i] == 512)
		{
			double flop = 2.0 * 512 * LAYERS * HIDDEN * (QKV + HIDDEN + 3.0 * FFN);

			snprintf(text, sizeof text, "serve/%s/rows_512/rate", name);
			report(text, flop / took / 1e9, whole ? "GOP/s" : "GFLOP/s",
				   whole ? "peak/int8" : "peak/f32");
		}
	}
	for (int i = 0; i < LAYERS; i++)
		for (int j = 0; j < 4; j++)
			ops->weight_free(p.layer[i][j]);
	ops->weight_free(p.head);
	release(p.hidden);
	release(p.wide);
	release(p.logits);
}

typedef struct attention_run
{
	ft_attention a;
	ft_mat qkv;
	ft_mat dqkv;
	ft_mat out;
	ft_mat dout;
	float *lse;
	bool backward;
} attention_run;

static void
run_attention(void *context)
{
	attention_run *r = context;
	int64_t q = HEADS * HEAD_DIM;
	int64_t k = KV_HEADS * HEAD_DIM;

	if (r->backward)
		must(ops->attention_grad(stream, &r->a, ft_mat_cols(r->dqkv, 0, q),
								 ft_mat_cols(r->dqkv, q, k), ft_mat_cols(r->dqkv, q + k, k),
								 r->dout, ft_mat_cols(r->qkv, 0, q), ft_mat_cols(r->qkv, q, k),
								 ft_mat_cols(r->qkv, q + k, k), r->out, r->lse));
	else
		must(ops->attention(stream, &r->a, r->out, r->lse, ft_mat_cols(r->qkv, 0, q),
							ft_mat_cols(r->qkv, q, k), ft_mat_cols(r->qkv, q + k, k)));
}

/* 2,048 rows of documents of one length. */
static void
bench_attention(int32_t length)
{
	enum
	{
		ROWS = 2048
	};
	int32_t starts[ROWS + 1];
	attention_run r = {.a = {.heads = HEADS,
							 .kv_heads = KV_HEADS,
							 .head_dim = HEAD_DIM,
							 .scale = 0.125f,
							 .n_sequences = ROWS / length,
							 .max_length = length,
							 .starts = starts,
							 .starts_host = starts}};
	char text[64];

	for (int i = 0; i <= ROWS / length; i++)
		starts[i] = i * length;
	r.qkv = matrix(ROWS, QKV);
	r.dqkv = matrix(ROWS, QKV);
	r.out = matrix(ROWS, HEADS * HEAD_DIM);
	r.dout = matrix(ROWS, HEADS * HEAD_DIM);
	r.lse = memory_of(ROWS * HEADS);
	snprintf(text, sizeof text, "attention/%d/forward", length);
	report(text, 1e3 * best_time(run_attention, &r), "ms", NULL);
	r.backward = true;
	snprintf(text, sizeof text, "attention/%d/backward", length);
	report(text, 1e3 * best_time(run_attention, &r), "ms", NULL);
	release(r.qkv);
	release(r.dqkv);
	release(r.out);
	release(r.dout);
	ops->mem_free(device, FT_MEM_DEVICE, r.lse);
}

/* --- paged attention: one decode step, one layer --- */

typedef struct paged_run
{
	ft_kv_layer cache;
	ft_paged_batch batch;
	ft_mat q;
	ft_mat out;
} paged_run;

static void
run_paged(void *context)
{
	paged_run *r = context;

	must(ops->attention_paged(stream, r->out, r->q, &r->cache, &r->batch, HEADS, 0, 0.125f));
}

static void
bench_paged(int32_t rows, int32_t context)
{
	enum
	{
		BLOCKS = 128
	};
	int32_t blocks[BLOCKS];
	int32_t row_start[2] = {0, rows};
	int32_t first = context - rows;
	int64_t values = (int64_t) BLOCKS * KV_HEADS * FT_KV_BLOCK * HEAD_DIM;
	ft_mat k = matrix(1, values);
	ft_mat v = matrix(1, values);
	paged_run r = {.cache = {k.data, v.data, FT_F32, KV_HEADS, HEAD_DIM},
				   .batch = {1, BLOCKS, rows, context, row_start, &first, blocks},
				   .q = matrix(rows, HEADS * HEAD_DIM),
				   .out = matrix(rows, HEADS * HEAD_DIM)};
	char text[64];

	for (int i = 0; i < BLOCKS; i++)
		blocks[i] = i;
	snprintf(text, sizeof text, "attention_paged/rows_%d/context_%d", rows, context);
	report(text, 1e6 * best_time(run_paged, &r), "us", NULL);
	release(k);
	release(v);
	release(r.q);
	release(r.out);
}

/* --- the rest --- */

typedef struct row_run
{
	ft_mat x;
	ft_mat y;
	ft_mat z;
	float *vector;
	float *rstd;
	int32_t *index;
	ft_sample *samples;
} row_run;

static void
run_cross_entropy(void *context)
{
	row_run *r = context;

	must(ops->cross_entropy(stream, r->x, r->index, r->vector, 1e-3f, r->vector, r->rstd));
}

static void
run_sample(void *context)
{
	row_run *r = context;

	must(ops->sample(stream, r->x, r->samples, r->index, r->vector));
}

static void
run_rmsnorm(void *context)
{
	row_run *r = context;

	must(ops->rmsnorm(stream, r->y, r->x, r->rstd, r->x, r->z, r->vector, 1e-5f));
}

static void
run_swiglu(void *context)
{
	row_run *r = context;

	must(ops->swiglu(stream, r->y, r->x));
}

static void
run_swiglu_grad(void *context)
{
	row_run *r = context;

	must(ops->swiglu_grad(stream, r->z, r->y, r->x));
}

static void
run_adamw(void *context)
{
	row_run *r = context;
	ft_adamw settings = {1e-4f, 0.9f, 0.999f, 1e-8f, 0.01f, 1, 10, {0}};

	must(ops->adamw(stream, r->x.data, r->y.data, r->z.data, r->x.data, r->x.rows * r->x.cols,
					&settings));
}

static void
bench_rows(void)
{
	enum
	{
		ROWS = 2048
	};
	row_run r = {.vector = memory_of(VOCAB), .rstd = memory_of(ROWS), .index = memory_of(ROWS)};
	ft_sample sample = {.temperature = 0.8f, .top_p = 0.9f, .uniform = 0.5f};

	r.samples = &sample;
	r.x = matrix(256, VOCAB);
	report("cross_entropy/256x49152", 1e3 * best_time(run_cross_entropy, &r), "ms", NULL);
	release(r.x);
	r.x = matrix(1, VOCAB);
	/* a peak and a long tail, as a model's logits have them */
	for (int i = 0; i < VOCAB; i++)
		((float *) r.x.data)[i] = 12 * powf(((float *) r.x.data)[i], 9);
	report("sample/top_p_0.9", 1e6 * best_time(run_sample, &r), "us", NULL);
	release(r.x);

	r.x = matrix(ROWS, HIDDEN);
	r.y = matrix(ROWS, HIDDEN);
	r.z = matrix(ROWS, HIDDEN);
	report("rmsnorm/2048x576", 1e6 * best_time(run_rmsnorm, &r), "us", NULL);
	report("adamw/1.2M", 1e6 * best_time(run_adamw, &r), "us", NULL);
	release(r.x);
	release(r.y);
	release(r.z);

	r.x = matrix(ROWS, 2 * FFN);
	r.y = matrix(ROWS, FFN);
	r.z = matrix(ROWS, 2 * FFN);
	report("swiglu/2048x1536", 1e6 * best_time(run_swiglu, &r), "us", NULL);
	report("swiglu_grad/2048x1536", 1e6 * best_time(run_swiglu_grad, &r), "us", NULL);
	release(r.x);
	release(r.y);
	release(r.z);
	ops->mem_free(device, FT_MEM_DEVICE, r.vector);
	ops->mem_free(device, FT_MEM_DEVICE, r.rstd);
	ops->mem_free(device, FT_MEM_DEVICE, r.index);
}

int
main(int argc, char **argv)
{
	ft_device_config config = {"cpu", 0, FT_NUMERICS_FAST};
	ft_device_info info;

	int option;

	while ((option = getopt(argc, argv, "cf:")) != -1)
		if (option == 'c')
			clock_id = CLOCK_PROCESS_CPUTIME_ID;
		else if (option == 'f')
			parts = optarg;
		else
			return 2;
	threads = optind < argc ? atoi(argv[optind]) : (int) sysconf(_SC_NPROCESSORS_ONLN);
	if (threads < 1 || threads > 64)
	{
		fprintf(stderr, "usage: bench_ops [-c] [-f part,part] [threads, at most 64]\n");
		return 2;
	}
	config.threads = threads;
	ops = ft_cpu_ops();
	must(ops->device_open(&config, &device));
	must(ops->device_info(device, &info));
	must(ops->stream_create(device, &stream));
	fprintf(stderr, "%s %s, %d threads\n", info.name, info.features, info.threads);

	bench_peaks();
	bench_memory();
	if (strstr(parts, "train") != NULL)
		bench_training();
	if (strstr(parts, "serve") != NULL)
	{
		bench_serving("q4_1", FT_Q4_1, FT_Q8_0);
		bench_serving("q8_0", FT_Q8_0, FT_Q8_0);
		bench_serving("bf16", FT_BF16, FT_BF16);
	}
	if (strstr(parts, "attention") != NULL)
	{
		for (int32_t length = 32; length <= 512; length *= 4)
			bench_attention(length);
		bench_paged(1, 100);
		bench_paged(1, 1000);
		bench_paged(512, 512);
	}
	if (strstr(parts, "rows") != NULL)
		bench_rows();
	ops->stream_destroy(stream);
	ops->device_close(device);
	return 0;
}
