/*
 * prompt_template.h: the text that a model's prompts are put into, where the
 * model was trained with the option prompt_template; it takes the place of the
 * chat template.
 *
 * It is plain text in which {prompt} stands once for the prompt, and {{ and }}
 * for braces; nothing in it is ever a special token.  What is read is the
 * model's BOS, where it adds one, and the text; an answer ends with its EOS.
 * The template stands in the metadata of the adapter's file (peft.c), so it is
 * wherever the weights are.
 */
#ifndef FT_PROMPT_TEMPLATE_H
#define FT_PROMPT_TEMPLATE_H

#include "chat_template.h"

#define FT_PROMPT_TEMPLATE_SIZE 4096 /* bytes, a NUL included */

/* FT_INVALID says what is wrong with a template. */
ft_status ft_prompt_template_check(const char *prompt_template);

/* Append the template (a checked one) with the prompt in it. */
ft_status
ft_prompt_template_fill(const char *prompt_template, const char *prompt, size_t n, ft_text *text);

/* ft_chat_encode for a model that has a prompt template, or none (NULL: its base's chat template
 * it is).  With one, the messages are a question (and its answer): FT_INVALID for any others. */
ft_status ft_prompt_encode(const char *prompt_template, const ft_chat_template *chat_template,
						   const ft_tokenizer *tokenizer, const ft_message *messages, size_t n,
						   bool add_generation_prompt, ft_ids *ids, ft_weights *weights);

#endif
