/*
 * inspect.h: what a model file says of itself.
 */
#ifndef FT_INSPECT_H
#define FT_INSPECT_H

#include "status.h"

#include <jansson.h>

/* Describe a base model by its header alone (a new reference): architecture, shape, parameters,
 * context, chat template and so on, as the program `inspect` prints it.  template_name: NULL, or
 * the chat template to use instead of the file's own. */
ft_status ft_inspect(const char *path, const char *template_name, json_t **description);

#endif
