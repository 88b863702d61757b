/*
 * fuzz_template.c: chat templates that others wrote: recognised or not, and equal to themselves.
 */
#include "chat_template.h"
#include "chat_template_text.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const ft_chat_template *chat_template;
	char *jinja = malloc(size + 1);
	bool equal;

	memcpy(jinja, data, size);
	jinja[size] = '\0';
	(void) ft_chat_template_find(NULL, jinja, &chat_template);
	if (ft_template_equal(jinja, jinja, &equal) != FT_OK || !equal)
		abort();
	free(jinja);
	return 0;
}
