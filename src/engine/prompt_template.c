/*
 * prompt_template.c: the text that a model's prompts are put into.
 */
#include "prompt_template.h"

#include <string.h>

static const char placeholder[] = "{prompt}";
#define PLACEHOLDER_LENGTH (sizeof placeholder - 1)

/* What stands at `text`: how many bytes of the template it takes. */
typedef enum piece
{
	PIECE_CHARACTER,
	PIECE_BRACE, /* a doubled one */
	PIECE_PROMPT,
	PIECE_WRONG
} piece;

static piece
next_piece(const char *text, size_t *length)
{
	*length = 1;
	if (*text != '{' && *text != '}')
		return PIECE_CHARACTER;
	if (text[1] == text[0])
	{
		*length = 2;
		return PIECE_BRACE;
	}
	if (strncmp(text, placeholder, PLACEHOLDER_LENGTH) != 0)
		return PIECE_WRONG;
	*length = PLACEHOLDER_LENGTH;
	return PIECE_PROMPT;
}

ft_status
ft_prompt_template_check(const char *prompt_template)
{
	static const char hint[] = "{prompt} stands for the prompt, {{ and }} for braces.";
	int prompts = 0;
	size_t length;

	if (strlen(prompt_template) >= FT_PROMPT_TEMPLATE_SIZE)
		return ft_fail(FT_INVALID, "prompt template has %zu bytes, at most %d are allowed",
					   strlen(prompt_template), FT_PROMPT_TEMPLATE_SIZE - 1);
	for (const char *at = prompt_template; *at != '\0'; at += length)
	{
		piece what = next_piece(at, &length);

		if (what == PIECE_WRONG)
			return ft_hint(ft_fail(FT_INVALID,
								   "prompt template has a brace that is neither doubled nor of "
								   "{prompt} at byte %zu",
								   (size_t) (at - prompt_template) + 1),
						   hint);
		prompts += what == PIECE_PROMPT;
	}
	if (prompts != 1)
		return ft_hint(
			ft_fail(FT_INVALID, "prompt template has {prompt} %d times, not once", prompts), hint);
	return FT_OK;
}

ft_status
ft_prompt_template_fill(const char *prompt_template, const char *prompt, size_t n, ft_text *text)
{
	size_t length;

	for (const char *at = prompt_template; *at != '\0'; at += length)
	{
		switch (next_piece(at, &length))
		{
			case PIECE_PROMPT:
				FT_TRY(ft_text_append(text, prompt, n));
				break;
			case PIECE_BRACE:
			case PIECE_CHARACTER:
				FT_TRY(ft_text_append(text, at, 1));
				break;
			case PIECE_WRONG:
				return ft_fail(FT_INTERNAL, "prompt template was not checked");
		}
	}
	return FT_OK;
}

static ft_status
check_messages(const ft_message *messages, size_t n)
{
	if (n >= 1 && n <= 2 && strcmp(messages[0].role, "user") == 0 &&
		(n == 1 || strcmp(messages[1].role, "assistant") == 0))
		return FT_OK;
	return ft_hint(ft_fail(FT_INVALID, "a model with a prompt template takes one prompt, neither "
									   "a system message nor a conversation"),
				   "It was trained with the option \"prompt_template\".");
}

ft_status
ft_prompt_encode(const char *prompt_template, const ft_chat_template *chat_template,
				 const ft_tokenizer *tokenizer, const ft_message *messages, size_t n,
				 bool add_generation_prompt, ft_ids *ids, ft_weights *weights)
{
	ft_message filled[2];
	ft_text text = {0};
	ft_status status;

	if (prompt_template == NULL)
		return ft_chat_encode(chat_template, tokenizer, messages, n, add_generation_prompt, ids,
							  weights);
	FT_TRY(check_messages(messages, n));
	memcpy(filled, messages, n * sizeof *filled);
	FT_TRY(ft_chat_template_find("plain", NULL, &chat_template));
	status = ft_prompt_template_fill(prompt_template, messages[0].content,
									 messages[0].content_length, &text);
	if (status == FT_OK)
	{
		filled[0].content = text.data;
		filled[0].content_length = text.length;
		status = ft_chat_encode(chat_template, tokenizer, filled, n, add_generation_prompt, ids,
								weights);
	}
	ft_text_free(&text);
	return status;
}
