/*
 * chat_template_text.h: recognising a Jinja chat template by its text.
 */
#ifndef FT_CHAT_TEMPLATE_TEXT_H
#define FT_CHAT_TEMPLATE_TEXT_H

#include "buffer.h"

#include <stdbool.h>

/* Append a form of the template that is the same for spellings that render the same: white space
 * and trim marks that Jinja (with trim_blocks and lstrip_blocks, as chat templates are run) drops,
 * the kind of quotes, m['role'] for m.role, 'a' + 'b' for 'ab'.  Never the same for two that may
 * render differently. */
ft_status ft_template_normalise(const char *jinja, ft_text *normal);

/* Do two templates render the same, as far as the above tells? */
ft_status ft_template_equal(const char *a, const char *b, bool *equal);

#endif
