/*
 * bench_peak.c: what the machine could do at most, as a yardstick for the rest.
 *
 * Independent multiply-adds in registers give the arithmetic peak, summing a
 * buffer far beyond the caches gives what memory delivers.  Both run on all
 * cores at once, in the same run as what they are compared with: a shared
 * machine is not equally fast every minute.
 *
 * Prints "metric<TAB>value<TAB>unit".
 */
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 7              /* the median counts */
#define CHAINS 12             /* enough to cover the latency of two units */
#define MULTIPLY_ADDS 4000000 /* per chain and round */
#define BUFFER_BYTES ((size_t) 256 << 20)
#define MAX_THREADS 256

typedef double (*kernel)(const float *buffer, size_t n);

typedef struct worker
{
	pthread_t thread;
	pthread_barrier_t *start;
	kernel run;
	const float *buffer;
	size_t n;
	double begin, end;
	volatile double result; /* keeps the work from being optimised away */
} worker;

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

/* Multiply-adds with vectors of WIDTH floats, on CHAINS independent sums. */
#define DEFINE_MULTIPLY_ADD(name, isa, type, set1, fmadd, add, first)              \
	__attribute__((target(isa))) static double name(const float *buffer, size_t n) \
	{                                                                              \
		type sum[CHAINS], x = set1(buffer[0]), y = set1(buffer[1]);                \
		for (int i = 0; i < CHAINS; i++)                                           \
			sum[i] = set1((float) i);                                              \
		for (size_t k = 0; k < n; k++)                                             \
			for (int i = 0; i < CHAINS; i++)                                       \
				sum[i] = fmadd(x, y, sum[i]);                                      \
		for (int i = 1; i < CHAINS; i++)                                           \
			sum[0] = add(sum[0], sum[i]);                                          \
		return first(sum[0]);                                                      \
	}

DEFINE_MULTIPLY_ADD(multiply_add_avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps,
					_mm512_add_ps, _mm512_cvtss_f32)
DEFINE_MULTIPLY_ADD(multiply_add_avx2, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps,
					_mm256_add_ps, _mm256_cvtss_f32)

static double
multiply_add_portable(const float *buffer, size_t n)
{
	float sum[CHAINS];

	for (int i = 0; i < CHAINS; i++)
		sum[i] = (float) i;
	for (size_t k = 0; k < n; k++)
		for (int i = 0; i < CHAINS; i++)
			sum[i] += buffer[0] * buffer[1];
	for (int i = 1; i < CHAINS; i++)
		sum[0] += sum[i];
	return sum[0];
}

static double
sum_buffer(const float *buffer, size_t n)
{
	__m128 sum[8];
	float total[4];

	for (int i = 0; i < 8; i++)
		sum[i] = _mm_setzero_ps();
	for (size_t k = 0; k + 32 <= n; k += 32)
		for (int i = 0; i < 8; i++)
			sum[i] = _mm_add_ps(sum[i], _mm_load_ps(buffer + k + 4 * i));
	for (int i = 1; i < 8; i++)
		sum[0] = _mm_add_ps(sum[0], sum[i]);
	_mm_storeu_ps(total, sum[0]);
	return total[0] + total[1] + total[2] + total[3];
}

static void *
work(void *arg)
{
	worker *self = arg;

	pthread_barrier_wait(self->start);
	self->begin = now();
	self->result = self->run(self->buffer, self->n);
	self->end = now();
	return NULL;
}

/* Seconds from the first thread's begin to the last one's end. */
static double
run_on_all(worker *workers, int threads)
{
	pthread_barrier_t start;
	double begin, end;

	pthread_barrier_init(&start, NULL, (unsigned) threads);
	for (int i = 0; i < threads; i++)
	{
		workers[i].start = &start;
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
		{
			fprintf(stderr, "bench_peak: could not start a thread\n");
			exit(1);
		}
	}
	for (int i = 0; i < threads; i++)
		pthread_join(workers[i].thread, NULL);
	pthread_barrier_destroy(&start);
	begin = workers[0].begin;
	end = workers[0].end;
	for (int i = 1; i < threads; i++)
	{
		begin = workers[i].begin < begin ? workers[i].begin : begin;
		end = workers[i].end > end ? workers[i].end : end;
	}
	return end - begin;
}

static int
compare_doubles(const void *a, const void *b)
{
	double x = *(const double *) a, y = *(const double *) b;

	return (x > y) - (x < y);
}

/* The median over ROUNDS of `amount` of work a thread, per second, on all threads. */
static double
rate(worker *workers, int threads, kernel run, size_t n, double amount)
{
	double rates[ROUNDS];

	for (int i = 0; i < threads; i++)
	{
		workers[i].run = run;
		workers[i].n = n;
	}
	for (int i = 0; i < ROUNDS; i++)
		rates[i] = amount * threads / run_on_all(workers, threads);
	qsort(rates, ROUNDS, sizeof(double), compare_doubles);
	return rates[ROUNDS / 2];
}

int
main(void)
{
	int cores = (int) sysconf(_SC_NPROCESSORS_ONLN);
	int threads = cores < MAX_THREADS ? cores : MAX_THREADS;
	worker *workers = calloc((size_t) threads, sizeof(worker));
	kernel multiply_add = multiply_add_portable;
	int width = 1;

	if (workers == NULL)
		return 1;
	if (__builtin_cpu_supports("avx512f"))
	{
		multiply_add = multiply_add_avx512;
		width = 16;
	}
	else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
	{
		multiply_add = multiply_add_avx2;
		width = 8;
	}
	for (int i = 0; i < threads; i++)
	{
		float *buffer = aligned_alloc(64, BUFFER_BYTES);

		if (buffer == NULL)
		{
			fprintf(stderr, "bench_peak: out of memory\n");
			return 1;
		}
		memset(buffer, 0, BUFFER_BYTES);
		workers[i].buffer = buffer;
	}
	printf("peak_f32\t%.1f\tGFLOP/s\n", 1e-9 * rate(workers, threads, multiply_add, MULTIPLY_ADDS,
													2.0 * MULTIPLY_ADDS * CHAINS * width));
	printf("peak_memory_read\t%.1f\tGB/s\n",
		   1e-9 * rate(workers, threads, sum_buffer, BUFFER_BYTES / sizeof(float),
					   (double) BUFFER_BYTES));
	for (int i = 0; i < threads; i++)
		free((void *) workers[i].buffer);
	free(workers);
	return 0;
}
