/*
 * model_file.h: one view of a base model on disk, whatever its format.
 *
 * A reader (gguf.c; safetensors.c with hf_model.c and hf_config.c) fills this structure from
 * the file's header after checking every count against the bytes that are
 * left.  Tensors are known by their Hugging Face names and have the Hugging
 * Face layout: a reader that finds another one (GGUF stores the rows of q and k
 * permuted) undoes it in ft_model_file_read.  Contents are read with pread,
 * never mapped, so a file that shrinks under us gives an error and no SIGBUS.
 */
#ifndef FT_MODEL_FILE_H
#define FT_MODEL_FILE_H

#include "status.h"
#include "tensor.h"
#include "tokenizer.h"

#define FT_MAX_EOS 8

/* A file may also bring factors that RoPE's inverse frequencies are divided by, as GGUF files of
 * Llama 3.1 do: the tensor "rope_freqs.weight", f32 [1, head_dim / 2], all positive. */
typedef enum ft_rope_scaling
{
	FT_ROPE_PLAIN,
	FT_ROPE_LINEAR,
	FT_ROPE_LLAMA3
} ft_rope_scaling;

/* Everything that decides the arithmetic of a decoder. */
typedef struct ft_config
{
	char architecture[32]; /* "llama", "qwen2", "qwen3" … */
	int hidden;            /* C */
	int ffn;               /* F; of each expert, where there are some */
	int layers;
	int heads;    /* H */
	int kv_heads; /* G */
	int head_dim; /* D */
	int experts;  /* E: of a layer's feed-forward part; 0: it is one dense part */
	int experts_per_token;
	int vocab; /* V: rows of the embedding */
	int max_positions;
	int window;      /* sliding window: a token sees itself and window - 1 before; 0 = none */
	int window_from; /* first layer that has it; those before see everything */
	bool qkv_bias;   /* q, k and v have biases (Qwen2): "…self_attn.q_proj.bias" [1, H·D] … */
	bool qk_norm;    /* RMSNorm of each head's q and k before RoPE, with rms_eps (Qwen3):
					  * "…self_attn.q_norm.weight" and "…k_norm.weight" [1, D] */
	float rms_eps;
	double rope_theta;
	ft_rope_scaling rope_scaling;
	double rope_factor; /* linear, llama3 */
	double rope_low_freq;
	double rope_high_freq;
	int rope_original_positions;
	bool tied_embeddings; /* the head is the embedding */
	int bos;              /* -1: none */
	int pad;              /* -1: none */
	int n_eos;
	int eos[FT_MAX_EOS]; /* generation stops at any of them */
} ft_config;

/* The window of a layer, 0 = none. */
static inline int
ft_config_window(const ft_config *config, int layer)
{
	return layer >= config->window_from ? config->window : 0;
}

typedef struct ft_model_tensor
{
	char name[128]; /* "model.layers.0.self_attn.q_proj.weight" */
	ft_dtype dtype;
	int64_t rows; /* 1 for a vector */
	int64_t cols;
	int file;        /* index of the file that holds it */
	uint64_t offset; /* absolute, in that file */
	uint64_t bytes;
	int permuted_heads; /* 0, or the number of heads whose rows GGUF interleaved */
} ft_model_tensor;

typedef struct ft_model_file ft_model_file;

/* Open a GGUF file or a Hugging Face directory, read its headers, check all of them.  Errors name
 * the file: FT_NOT_FOUND, FT_CORRUPT (truncated, contradictory), FT_UNSUPPORTED (architecture,
 * type). Links in a directory are followed: who takes its name from somebody else checks first
 * where they lead. */
ft_status ft_model_file_open(const char *path, ft_model_file **file);
void ft_model_file_close(ft_model_file *file);

const char *ft_model_file_path(const ft_model_file *file);
const ft_config *ft_model_file_config(const ft_model_file *file);
/* What ft_tokenizer_create needs; owned by the file. */
const ft_vocabulary *ft_model_file_vocabulary(const ft_model_file *file);
/* The chat template's text (Jinja), or NULL. */
const char *ft_model_file_template(const ft_model_file *file);
/* What a model of method full was trained with (prompt_template.h), or NULL. */
const char *ft_model_file_prompt_template(const ft_model_file *file);

int ft_model_file_tensors(const ft_model_file *file);
const ft_model_tensor *ft_model_file_tensor(const ft_model_file *file, int i);
/* NULL when there is none of that name. */
const ft_model_tensor *ft_model_file_find(const ft_model_file *file, const char *name);
/* Read a tensor's bytes (stored type, Hugging Face row order) into memory of tensor->bytes. */
ft_status ft_model_file_read(const ft_model_file *file, const ft_model_tensor *tensor, void *to);

int64_t ft_model_file_parameters(const ft_model_file *file);
int64_t ft_model_file_bytes(const ft_model_file *file);
/* SHA-256, 64 hex digits and NUL: of the file's bytes; of a directory, for each of its model's
 * files (ft_directory_part) in the order of their names: length of the name as 8 bytes, big-endian,
 * name, length of the contents, contents.  Reads everything. */
ft_status ft_model_file_digest(const ft_model_file *file, char hex[65]);

#endif
