/*
 * model_file_internal.h: what model_file.c and the readers of the formats share.
 */
#ifndef FT_MODEL_FILE_INTERNAL_H
#define FT_MODEL_FILE_INTERNAL_H

#include "gguf.h"
#include "model_file.h"

/* A file of the model, open for reading. */
typedef struct ft_model_part
{
	char *path;
	int fd;
	uint64_t size;
} ft_model_part;

struct ft_model_file
{
	char *path;
	ft_model_part *parts;
	int n_parts;
	ft_gguf *gguf; /* owns the strings of the vocabulary; NULL for a directory */
	int directory; /* its descriptor; -1 for a GGUF file */
	struct ft_tokenizer_files *tokenizer_files; /* of a directory: owns the whole vocabulary */
	ft_config config;
	bool config_known;        /* it has been read, and its sizes are within bounds */
	ft_vocabulary vocabulary; /* its arrays are owned here, but for a directory */
	char *chat_template;
	ft_model_tensor *tensors;
	int n_tensors;
	int *by_name; /* indexes of tensors, sorted by name */
};

/* ft_model_file_open in two steps, for who wants to look at a file that cannot be used: the
 * container's header, then what it means.  Messages of the second do not name the file. */
ft_status ft_model_file_open_container(const char *path, ft_model_file **file);
ft_status ft_model_file_read_header(ft_model_file *file);

/* Are the sizes of a configuration within bounds that make every product of them fit 64 bits?
 * FT_CORRUPT says which is not. */
ft_status ft_model_config_check(const ft_config *config);
/* Of these, how many experts there are, and how many a token has; FT_UNSUPPORTED when too many. */
ft_status ft_model_experts_check(const ft_config *config);

/* Parts of the second step, for a directory that is not whole: its configuration, checked; and the
 * checks of what has been read since. */
ft_status ft_model_file_read_config(ft_model_file *file);
ft_status ft_model_file_check_tensors(ft_model_file *file);
ft_status ft_model_file_check_vocabulary(ft_model_file *file);

/* From the GGUF header (gguf_model.c): first config, then, once it has been checked, tensors,
 * vocabulary and template. */
ft_status ft_gguf_read_config(ft_model_file *file);
ft_status ft_gguf_read_contents(ft_model_file *file);

/* A key of our own: types of tokens are those of a tokenizer.json, where a user-defined one that
 * looks like a chat template's is none. */
#define FT_GGUF_EXACT_TYPES "pg_finetune.exact_token_types"

/* Where a SentencePiece-style tokeniser puts a space beyond what the keys of others say, as a key
 * of our own. */
#define FT_GGUF_SPACE_PREFIX "pg_finetune.space_prefix"
/* Its value, NULL where the others say enough (gguf_model.c). */
const char *ft_gguf_space_prefix_name(ft_space_prefix prefix, bool once);

/* Experts (gguf_experts.c).  Of the keys, into the configuration. */
ft_status ft_gguf_read_experts(ft_model_file *file);
/* Give the tensor "blk.<layer>.<gguf>" its Hugging Face name, if it is the router's or a single
 * expert's. */
bool ft_gguf_expert_tensor(const ft_config *c, const char *gguf, int layer, ft_model_tensor *t);
/* Tensors that one of the file's holds: more than 1 where experts are stacked. */
int ft_gguf_tensor_slices(const ft_config *c, const ft_gguf_tensor *tensor);
/* Describe a stacked tensor's slices; *stacked is false for any other. */
ft_status ft_gguf_expert_slices(const ft_config *c, const ft_gguf_tensor *from,
								ft_model_tensor *slices, bool *stacked);
/* The type of its values, FT_UNSUPPORTED when we have none for it (gguf_model.c). */
ft_status ft_gguf_known_type(const ft_gguf_tensor *from, ft_dtype *dtype);
/* What GGUF calls an architecture: Mistral and Mixtral are llamas there. */
const char *ft_gguf_architecture_of(const ft_config *config);

/* Where a tensor of ours lies in a GGUF file. */
typedef struct ft_gguf_place
{
	char name[128];
	int permuted_heads; /* its rows are permuted by so many heads; 0: as they are */
	int expert;         /* it is this slice of a stacked tensor; -1: all of it */
	bool router;        /* it chooses among experts */
} ft_gguf_place;

/* FT_UNSUPPORTED when it has none. */
ft_status ft_gguf_place_of(const ft_config *config, const char *ours, ft_gguf_place *place);
/* The same of experts and router, by the name that they have in a layer; false for all others.
 * *name: in the layer there. */
bool ft_gguf_expert_place(const ft_config *config, const char *ours, const char **name,
						  ft_gguf_place *place);

/* The same from the files of a directory (hf_model.c); contents also one by one.  Weights that are
 * not there are FT_NOT_FOUND, as is a tokenizer. */
ft_status ft_hf_read_config(ft_model_file *file);
ft_status ft_hf_read_contents(ft_model_file *file);
bool ft_hf_has_weights(const ft_model_file *file);
ft_status ft_hf_read_weights(ft_model_file *file);
ft_status ft_hf_read_vocabulary(ft_model_file *file);
ft_status ft_hf_read_template(ft_model_file *file);

/* Is this a value of general.architecture that can be trained and served? (gguf_model.c) */
bool ft_gguf_architecture_known(const char *architecture, size_t n);
/* The known ones, for a hint. */
#define FT_ARCHITECTURES "llama, qwen2, qwen3"

#endif
