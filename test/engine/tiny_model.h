/*
 * tiny_model.h: a small random Llama model, written as a GGUF file, so that the
 * tests of loading, decoding and serving need no download.
 */
#ifndef TINY_MODEL_H
#define TINY_MODEL_H

#include <stdbool.h>
#include <stdint.h>

typedef struct tiny_model
{
	int hidden; /* multiples of 32 where a quantised type is to be written */
	int ffn;
	int layers;
	int heads;
	int kv_heads;
	int head_dim;
	int context;
	bool tied;
	bool q4_1; /* matrices in Q4_1, else f32 */
	bool rope_freqs;
	uint64_t seed;
} tiny_model;

extern const tiny_model tiny_default; /* odd sizes, two layers, grouped heads */

/* 256 byte tokens, a few merges, and the special tokens <|im_start|>, <|im_end|>, <|endoftext|>. */
#define TINY_VOCABULARY 264
#define TINY_END 257   /* <|im_end|> */
#define TINY_START 256 /* <|im_start|> */

/* Write the file; the process ends with a message where that fails. */
void tiny_model_write(const char *path, const tiny_model *model);

/* A directory of its own below the temporary directory; the caller removes it with tiny_remove. */
char *tiny_directory(void);
void tiny_remove(const char *directory);

/* A PEFT adapter of rank 4 on every linear layer, with random A and B, in the directory (made if
 * missing). */
void tiny_adapter_write(const char *directory, const tiny_model *model, uint64_t seed);

#endif
