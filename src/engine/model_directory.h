/*
 * model_directory.h: a Hugging Face model directory as files.
 *
 * Of a directory only these files make the model; whatever else lies there
 * (a README, weights in other formats, folders) is never looked at:
 *
 *     config.json  generation_config.json
 *     tokenizer.json  tokenizer.model  tokenizer_config.json  chat_template.jinja
 *     model*.safetensors  model.safetensors.index.json
 *
 * They are opened once, together: what is read later, and the digest, are of
 * the same files, whatever happens to their names meanwhile.
 */
#ifndef FT_MODEL_DIRECTORY_H
#define FT_MODEL_DIRECTORY_H

#include "buffer.h"
#include "model_file_internal.h"

/* Is a file of this name one of the model's? */
bool ft_directory_part(const char *name);

/* Open all of them, in the order of their names, as file->parts.  FT_CORRUPT when there is no
 * config.json; FT_UNSUPPORTED when one is no regular file. */
ft_status ft_directory_open(ft_model_file *file);

/* The part of that name, or NULL.  Of a part's path its name is what comes after the directory. */
const ft_model_part *ft_directory_find(const ft_model_file *file, const char *name);
const char *ft_directory_part_name(const ft_model_file *file, const ft_model_part *part);

/* The whole of a part, which is text of at most `limit` bytes; messages name the part. */
ft_status ft_directory_read(const ft_model_part *part, size_t limit, ft_text *text);

/* Their digest (ft_model_file_digest). */
ft_status ft_directory_digest(const ft_model_file *file, char hex[65]);

#endif
