/*
 * random.h: random numbers that are a pure function of (seed, stream, counter).
 *
 * There is no generator state to save or to share between threads: the draw
 * with a given counter is the same whoever makes it and whenever, so a resumed
 * training run and a batched request see exactly the numbers that an unbroken
 * run and a lonely request would see.
 *
 * Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy
 * as 1, 2, 3", SC 2011.
 */
#ifndef FT_RANDOM_H
#define FT_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* Uses of one seed that must not share numbers.  A use that needs more than one stream (a matrix
 * each, an epoch each) adds its index to the first one: they stand 2^32 apart. */
#define FT_STREAM_SAMPLE ((uint64_t) 1 << 32)    /* serving: counter = tokens drawn so far */
#define FT_STREAM_LORA_INIT ((uint64_t) 2 << 32) /* + index of the matrix */
#define FT_STREAM_SPLIT ((uint64_t) 3 << 32)     /* validation rows */
#define FT_STREAM_EPOCH ((uint64_t) 4 << 32)     /* + epoch: order of the documents */
#define FT_STREAM_DROPOUT ((uint64_t) 5 << 32)   /* counter = step */
#define FT_STREAM_ROUNDING ((uint64_t) 7 << 32)  /* of weights and moments: counter = step */

/* Four 32-bit words of the block with this counter. */
void ft_philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]);

/* A multiple of 2^-24 in [0, 1). */
float ft_random_uniform(uint64_t seed, uint64_t stream, uint64_t counter);

/* An integer in [0, n), n > 0; the bias is below n / 2^64. */
uint64_t ft_random_below(uint64_t seed, uint64_t stream, uint64_t counter, uint64_t n);

/* Fisher-Yates over the items. */
void ft_random_shuffle(uint64_t seed, uint64_t stream, uint32_t *items, size_t n);

#endif
