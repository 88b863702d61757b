/*
 * merge.h: the tensors of a base with a LoRA adapter added to them, one after
 * the other, in the element type that a file is to have.
 *
 * W + s · B · A in f32, rounded once.  Tensors and adapter are matched by name,
 * so this knows no architecture.  One tensor as it is stored and some rows of it
 * in f32 are all that is in memory.
 */
#ifndef FT_MERGE_H
#define FT_MERGE_H

#include "adapter.h"
#include "model_file.h"
#include "parameters.h"
#include "safetensors.h"

typedef struct ft_merge
{
	const ft_model_file *file;
	ft_peft_config config; /* of the adapter */
	float scale;           /* alpha / rank, with rslora alpha / √rank; 0: no adapter */
	ft_safetensors *adapter;
	const ft_parameters *trained; /* values in place of the file's, on their device; NULL: none */
	const ft_ops *ops;            /* the CPU's */
	ft_device *device;
	ft_stream *stream;                /* of the CPU's, or where the trained values are */
	ft_status (*tick)(void *context); /* between pieces; may be NULL */
	void *tick_context;
} ft_merge;

/* Takes bytes as they come. */
typedef ft_status (*ft_sink)(void *context, const void *bytes, size_t n);

/* `adapter` is a PEFT directory, NULL for none.  FT_MISMATCH when it is not of this base.  threads
 * 0: half of the cores.  The file must outlive the merge. */
ft_status
ft_merge_open(const ft_model_file *file, const char *adapter, int threads, ft_merge **merge);
void ft_merge_close(ft_merge *merge);

/* All of a tensor, row by row in Hugging Face's order, as f32, f16, bf16 or q8_0 (whole blocks).
 * With permuted_heads > 0 the rows of each so many heads are interleaved as GGUF wants them for
 * architecture llama.  FT_UNSUPPORTED when a value is too large for f16; FT_NON_FINITE when one is
 * not finite. */
/* Trained values are given as they are: ft_merge_type says in which type. */
ft_status ft_merge_tensor(ft_merge *merge, const ft_model_tensor *tensor, ft_dtype to,
						  int permuted_heads, ft_sink sink, void *context);

/* The type that a tensor is written in where `to` is asked for. */
ft_dtype ft_merge_type(const ft_merge *merge, const ft_model_tensor *tensor, ft_dtype to);

/* A tensor of the base and what the adapter has for it. */
typedef struct ft_merge_pair
{
	const ft_model_tensor *tensor;
	const ft_safetensor *a; /* [rank, cols] */
	const ft_safetensor *b; /* [rows, rank] */
} ft_merge_pair;

/* The tensor's A and B; both NULL when it is not adapted. */
ft_merge_pair ft_merge_find(const ft_merge *merge, const ft_model_tensor *tensor);

/* Rows of GGUF's order from Hugging Face's: within each head, row i·D/2 + j becomes 2j + i. */
void ft_interleave_rows(void *to, const void *from, int64_t rows, size_t row_bytes, int64_t heads);

/* n values (a multiple of 32) in blocks of q8_0, as the package gguf makes them. */
void ft_q8_0_blocks(uint8_t *to, const float *from, int64_t n);

#endif
