/*
 * gguf_build.h: GGUF files made key by key, so that tests can make wrong ones.
 */
#ifndef GGUF_BUILD_H
#define GGUF_BUILD_H

#include "buffer.h"
#include "gguf.h"
#include "model_file.h"

#define GGUF_BUILD_NAMES 128

/* Zero-initialise.  What is added first counts: a second key or tensor of a name is left out,
 * unless duplicates is set; so a test adds what is special to it and then calls gguf_build_llama.
 */
typedef struct gguf_build
{
	ft_text values;
	ft_text infos;
	ft_text data;
	uint64_t n_values;
	uint64_t n_tensors;
	const char *names[GGUF_BUILD_NAMES];
	int n_names;
	bool duplicates;
	uint32_t alignment; /* 0: the default, 32 */
} gguf_build;

/* Keep a key or a tensor out of what follows. */
void gguf_build_skip(gguf_build *b, const char *name);

void gguf_build_u32(gguf_build *b, const char *key, uint32_t value);
void gguf_build_f32(gguf_build *b, const char *key, float value);
void gguf_build_bool(gguf_build *b, const char *key, bool value);
void gguf_build_string(gguf_build *b, const char *key, const char *value);
void gguf_build_strings(gguf_build *b, const char *key, const char *const *values, size_t n);
void gguf_build_i32s(gguf_build *b, const char *key, const int32_t *values, size_t n);
/* Any bytes as a key's type and value. */
void gguf_build_raw(gguf_build *b, const char *key, uint32_t type, const void *bytes, size_t n);

/* dims innermost first; the bytes may be NULL for zeros. */
void gguf_build_tensor(gguf_build *b, const char *name, uint32_t type, const uint64_t *dims,
					   uint32_t n_dims, const void *bytes, size_t n);
/* The description alone, with an offset of its own. */
void gguf_build_info(gguf_build *b, const char *name, uint32_t type, const uint64_t *dims,
					 uint32_t n_dims, uint64_t offset);

/* The rest of a small Llama: 2 layers, hidden 32, 4 heads of 8, 2 key/value heads, ffn 64, 16
 * tokens, f32 zeros, head tied. */
void gguf_build_llama(gguf_build *b);
/* The same of another architecture, with the biases or norms that it has: "qwen2", "qwen3". */
void gguf_build_family(gguf_build *b, const char *architecture);

/* The file's bytes; the builder is emptied. */
void gguf_build_finish(gguf_build *b, ft_text *file);

/* A file in memory with these bytes: its descriptor, and a name to open it by. */
int gguf_build_open(const void *bytes, size_t n, char path[64]);

/* Finish the file and open it as a model; *model is NULL where that fails. */
ft_status gguf_build_open_model(gguf_build *b, ft_model_file **model);
/* It must be refused with this code, in words that contain these; else the test ends. */
void gguf_build_refused(gguf_build *b, ft_status code, const char *words);

#endif
