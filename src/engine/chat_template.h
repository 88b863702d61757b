/*
 * chat_template.h: from messages to token ids.
 *
 * A file's Jinja template is not executed: it is recognised, and one of the
 * known templates is rendered by code.  Rendering goes straight to ids because
 * only then is it certain which tokens are the template's own (special tokens)
 * and which are a user's text (never special), and which are to be trained.
 *
 * Text between two special tokens is tokenised in one piece, as the reference
 * does with a rendered string, but for one cut: where an assistant's answer
 * begins, so that training sees the prompt tokenised as generation will.
 */
#ifndef FT_CHAT_TEMPLATE_H
#define FT_CHAT_TEMPLATE_H

#include "tokenizer.h"

typedef struct ft_message
{
	const char *role; /* "system", "user", "assistant" */
	const char *content;
	size_t content_length;
	float weight; /* of its tokens in the loss, where it is trained; 1 by default */
} ft_message;

typedef struct ft_chat_template ft_chat_template;

/* By name ("smollm2", "llama3", "plain" …; NULL: the file's own text decides, and a file without
 * one gets "plain").  FT_UNSUPPORTED with a hint that names the option `template` and the known
 * names when the text is not recognised.  The template is static; nothing to free. */
ft_status
ft_chat_template_find(const char *name, const char *jinja, const ft_chat_template **chat_template);
const char *ft_chat_template_name(const ft_chat_template *chat_template);
/* Models of the template begin an answer with a space that is not the answer's. */
bool ft_chat_template_answers_space(const ft_chat_template *chat_template);

/* Append the ids of the conversation.  With add_generation_prompt the ids end where an assistant's
 * answer begins.  weights (NULL, or grown alongside ids, one f32 each): 0 for everything but the
 * contents and end tokens of assistant messages, which have their message's weight.  FT_INVALID
 * names a bad role or order ("message 3 has role "tool", expected system, user or assistant"). */
typedef struct ft_weights
{
	float *data;
	size_t length;
	size_t capacity;
} ft_weights;

ft_status ft_chat_encode(const ft_chat_template *chat_template, const ft_tokenizer *tokenizer,
						 const ft_message *messages, size_t n, bool add_generation_prompt,
						 ft_ids *ids, ft_weights *weights);
void ft_weights_free(ft_weights *weights);

#endif
