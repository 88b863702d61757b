/*
 * inspect_internal.h: what the descriptions of GGUF files and of directories
 * share (inspect.c, inspect_directory.c).
 */
#ifndef FT_INSPECT_INTERNAL_H
#define FT_INSPECT_INTERNAL_H

#include "memory_plan.h"
#include "model_file_internal.h"

#include <jansson.h>

/* FT_NO_MEMORY is all that can go wrong; the value is the object's from then on. */
ft_status ft_inspect_set(json_t *object, const char *key, json_t *value);
ft_status ft_inspect_set_int(json_t *object, const char *key, int64_t value);
ft_status ft_inspect_append(json_t *array, const char *words);

/* What the configuration makes of the header, defaults and derived sizes included. */
ft_status ft_inspect_config(json_t *object, const ft_config *config);
/* "chat_template", or null and "chat_template_reason".  Either argument may be NULL. */
ft_status ft_inspect_template(json_t *object, const char *jinja, const char *template_name);

/* All that can be said of a directory, which may have no more than a config.json. */
ft_status ft_inspect_directory(json_t *object, ft_model_file *file, const char *template_name);

#endif
