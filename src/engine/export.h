/*
 * export.h: tuned models as files for other programs.
 *
 * Each writes into a directory that is there, and syncs what it writes; export.c
 * gives the directory its name once all is written.
 */
#ifndef FT_EXPORT_H
#define FT_EXPORT_H

#include "files.h"
#include "merge.h"

/* A file being written. */
typedef struct ft_out
{
	int fd;
	char path[FT_PATH_SIZE];
	uint64_t bytes;
} ft_out;

ft_status ft_out_create(const char *directory, const char *name, ft_out *out);
/* An ft_sink; context is an ft_out. */
ft_status ft_out_write(void *out, const void *bytes, size_t n);
/* Sync (when status is FT_OK) and close; status, or what went wrong now. */
ft_status ft_out_finish(ft_out *out, ft_status status);

/* A whole small file. */
ft_status ft_out_file(const char *directory, const char *name, const char *text, size_t n);

/* directory/model.gguf: the merged model, matrices as `to` (f32, f16, bf16, q8_0). */
ft_status ft_export_gguf(ft_merge *merge, ft_dtype to, const char *directory);
/* directory/adapter.gguf: the adapter alone. */
ft_status ft_export_gguf_adapter(ft_merge *merge, const char *directory);

/* What transformers loads: config.json, generation_config.json, the tokenizer and the merged model
 * in files of at most shard_bytes of tensors (or one tensor), all as `to` (f32, f16, bf16). */
ft_status
ft_export_safetensors(ft_merge *merge, ft_dtype to, uint64_t shard_bytes, const char *directory);

/* All of it but the model's values. */
ft_status ft_export_small_files(const ft_merge *merge, ft_dtype to, const char *directory);

/* tokenizer.json and tokenizer_config.json from the vocabulary of a GGUF file (export_tokenizer.c).
 * FT_UNSUPPORTED for a kind that tokenizer.json cannot say, or that is not known. */
ft_status ft_export_tokenizer(const ft_vocabulary *vocabulary, const ft_config *config,
							  const char *chat_template, const char *directory);

/* --- RoPE's frequencies (export_rope.c) --- */

/* What Llama 3.1's scaling divides the inverse frequencies by: factors[head_dim / 2], by the
 * configuration's rope_theta, rope_factor, rope_low_freq, rope_high_freq, rope_original_positions.
 */
void ft_rope_factors(const ft_config *config, float *factors);

/* The configuration with the scaling that these factors are made by; FT_UNSUPPORTED when they are
 * not Llama 3.1's. */
ft_status ft_rope_from_factors(ft_config *config, const float *factors);

#endif
