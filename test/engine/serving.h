/*
 * serving.h: a model opened for tests of loading and decoding.
 */
#ifndef SERVING_H
#define SERVING_H

#include "decode.h"

typedef struct serving
{
	const ft_ops *ops;
	ft_device *device;
	ft_model_file *file;
	ft_model *model;
	ft_kv_cache *cache;
	ft_decoder *decoder;
} serving;

/* Open a file on the CPU with a cache of so many tokens; the test ends where that fails. */
void serving_open(serving *s, const char *path, ft_numerics numerics, int threads, int tokens);
void serving_close(serving *s);

/* Feed tokens[0, n) of one sequence in pieces of `chunk` rows, and get the logits [V] of every
 * piece's last row: logits [number of pieces, V]. */
void serving_feed(serving *s, const ft_adapter *adapter, const int32_t *tokens, int n, int chunk,
				  float *logits);

/* Extend the prompt by n greedy tokens. */
void serving_greedy(serving *s, const ft_adapter *adapter, const int32_t *prompt, int prompt_length,
					int n, int32_t *tokens);

#endif
