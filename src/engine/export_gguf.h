/*
 * export_gguf.h: what the parts of the GGUF exports share.
 */
#ifndef FT_EXPORT_GGUF_H
#define FT_EXPORT_GGUF_H

#include "gguf_write.h"
#include "model_file_internal.h"

/* The keys of a directory's tokeniser (export_gguf_tokenizer.c), with a token for each of the
 * configuration's rows of the embedding.  FT_UNSUPPORTED where keys cannot say what it does. */
ft_status ft_export_gguf_tokenizer(ft_gguf_writer *w, const ft_config *config,
								   const ft_vocabulary *vocabulary, const char *chat_template);

#endif
