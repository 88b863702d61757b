/*
 * chat_template_internal.h: what a known chat template is made of.
 */
#ifndef FT_CHAT_TEMPLATE_INTERNAL_H
#define FT_CHAT_TEMPLATE_INTERNAL_H

#include "chat_template.h"

#define FT_TEMPLATE_TEXTS 6

typedef enum ft_template_kind
{
	FT_TEMPLATE_PLAIN,  /* no turns: texts stand one after the other, an answer ends with the EOS */
	FT_TEMPLATE_FRAMED, /* each turn is framed alike and names its role */
	FT_TEMPLATE_INST    /* [INST] question [/INST] answer EOS */
} ft_template_kind;

/* Where a template of kind INST has the content of a system message. */
typedef enum ft_template_system
{
	FT_SYSTEM_REFUSED,
	FT_SYSTEM_FIRST, /* before the first question, and an empty line between */
	FT_SYSTEM_LAST,  /* before the last question */
	FT_SYSTEM_LLAMA2 /* before the first question, between marks of its own */
} ft_template_system;

/*
 * A framed turn is role_open role role_close after_role content turn_end
 * after_turn.  The marks are special tokens, or NULL for none; with plain_marks
 * role_open and role_close are text.
 *
 * A turn of kind INST is open content close, the answer to it answer_open
 * content answer_close EOS answer_end; "[INST]" and "[/INST]" in open and close
 * are the vocabulary's special tokens where it has them, else text.
 */
struct ft_chat_template
{
	const char *name;
	ft_template_kind kind;
	bool bos; /* the template writes the model's BOS itself */
	const char *role_open;
	const char *role_close;
	const char *after_role;
	const char *turn_end;
	const char *after_turn;
	bool plain_marks;
	bool eos_end;               /* turn_end is the model's EOS */
	bool trim;                  /* white space around contents is dropped */
	bool always_system;         /* a system turn even where the conversation has none */
	bool think;                 /* what an answer begins with, as Qwen3 has it */
	const char *default_system; /* its content then; NULL: none */
	const char *system_prefix;  /* before the content of the first system turn */

	const char *open;
	const char *close;
	const char *answer_open;
	const char *answer_close;
	const char *answer_end;
	bool trim_answer;
	bool bos_each; /* before each question, not only the first */
	ft_template_system system;

	/* Jinja that is this template; or all of parts occur in it; or the SHA-256 of its normal form,
	 * for long texts whose other branches (tools) are not ours */
	const char *texts[FT_TEMPLATE_TEXTS];
	const char *parts[FT_TEMPLATE_TEXTS];
	const char *digests[FT_TEMPLATE_TEXTS];
};

extern const ft_chat_template ft_chat_templates[];
extern const size_t ft_n_chat_templates;
/* "smollm2, chatml, … or plain", for hints. */
extern const char ft_chat_template_names[];

/* Append the content of answer i of n messages as a template with `think` has it. */
ft_status ft_append_thought(ft_text *text, const ft_message *messages, size_t n, size_t i);

#endif
