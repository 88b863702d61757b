/*
 * peak.c: what the device reaches at best: a large product and a large copy,
 * through the same table as all else, on random data (zeros run faster).
 *
 * Prints metric, value and unit, as the programs of bench/ do.
 */
#include "../../bench/bench.h"
#include "device.h"

#include <stdio.h>
#include <stdlib.h>

#define SIZE 8192               /* of the square matrices */
#define COPY ((size_t) 4 << 30) /* bytes */
#define ROUNDS 20

/* bf16 in (-1, 1), by a linear congruential generator. */
static void
fill(const ft_ops *ops, ft_stream *stream, void *to, size_t values)
{
	uint16_t *host = malloc(values * sizeof *host);
	uint64_t state = 1;

	if (!host)
		abort();
	for (size_t i = 0; i < values; i++)
	{
		state = state * 6364136223846793005u + 1442695040888963407u;
		host[i] = ft_f32_to_bf16((float) (int32_t) (state >> 32) / 2147483648.0f);
	}
	must(ops->copy_to_device(stream, to, host, values * sizeof *host));
	free(host);
}

/* Median of the seconds that a round takes. */
static double
seconds(const ft_ops *ops, ft_stream *stream, ft_mat c, ft_mat a, ft_mat b)
{
	double times[ROUNDS];

	for (int i = -3; i < ROUNDS; i++) /* three to warm up */
	{
		double begin = ft_monotonic_seconds();

		if (c.data)
			must(ops->matmul(stream, c, a, false, b, true, 1.0f, 0.0f));
		else
			must(ops->copy(stream, a.data, b.data, COPY));
		must(ops->stream_synchronize(stream));
		times[i < 0 ? 0 : i] = ft_monotonic_seconds() - begin;
	}
	qsort(times, ROUNDS, sizeof(double), ascending);
	return times[ROUNDS / 2];
}

int
main(void)
{
	const ft_mat none = {0};
	ft_device_info info;
	ft_device *device;
	ft_stream *stream;
	const ft_ops *ops;
	ft_mat m[3];
	void *memory[2];

	must(ft_device_open_named("cuda", 1, FT_NUMERICS_FAST, &ops, &device));
	must(ops->device_info(device, &info));
	must(ops->stream_create(device, &stream));
	fprintf(stderr, "%s, %s\n", info.name, info.features);
	for (int i = 0; i < 2; i++)
		must(ops->mem_alloc(device, FT_MEM_DEVICE, COPY, &memory[i]));
	fill(ops, stream, memory[0], (size_t) 2 * SIZE * SIZE);
	m[0] = ft_mat_make(memory[1], FT_BF16, SIZE, SIZE);
	m[1] = ft_mat_make(memory[0], FT_BF16, SIZE, SIZE);
	m[2] = ft_mat_make((uint16_t *) memory[0] + (size_t) SIZE * SIZE, FT_BF16, SIZE, SIZE);
	printf("gpu_peak_bf16\t%.1f\tGFLOP/s\n",
		   2e-9 * SIZE * SIZE * SIZE / seconds(ops, stream, m[0], m[1], m[2]));
	printf("gpu_peak_copy\t%.1f\tGB/s\n",
		   2e-9 * (double) COPY /
			   seconds(ops, stream, none, ft_mat_make(memory[1], FT_BF16, 1, 1),
					   ft_mat_make(memory[0], FT_BF16, 1, 1)));
	for (int i = 0; i < 2; i++)
		ops->mem_free(device, FT_MEM_DEVICE, memory[i]);
	ops->stream_destroy(stream);
	ops->device_close(device);
	return 0;
}
