/*
 * chat_template_think.c: answers as Qwen3's template has them.
 *
 * What an answer thought, between <think> and </think> at its beginning, is kept in answers behind
 * the last question only, and the conversation's last answer has the two tags even when it thought
 * nothing.  The tags are text that the vocabulary may have tokens for.
 */
#include "chat_template_internal.h"

#include <string.h>

#define OPEN "<think>"
#define CLOSE "</think>"

typedef struct part
{
	const char *data;
	size_t n;
} part;

static part
without_newlines(part p, bool left, bool right)
{
	while (left && p.n > 0 && p.data[0] == '\n')
		p = (part){p.data + 1, p.n - 1};
	while (right && p.n > 0 && p.data[p.n - 1] == '\n')
		p.n--;
	return p;
}

static part
before_first(part p, const char *tag)
{
	const char *at = memmem(p.data, p.n, tag, strlen(tag));

	return at != NULL ? (part){p.data, (size_t) (at - p.data)} : p;
}

static part
behind_last(part p, const char *tag)
{
	size_t length = strlen(tag);
	const char *at;

	while ((at = memmem(p.data, p.n, tag, length)) != NULL)
	{
		p.n -= (size_t) (at - p.data) + length;
		p.data = at + length;
	}
	return p;
}

static bool
is_tool_response(const ft_message *m)
{
	static const char open[] = "<tool_response>";
	static const char close[] = "</tool_response>";
	size_t n = m->content_length;

	return n >= strlen(open) && memcmp(m->content, open, strlen(open)) == 0 && n >= strlen(close) &&
		   memcmp(m->content + n - strlen(close), close, strlen(close)) == 0;
}

/* Where the last question stands; the last message where there is none. */
static size_t
last_question(const ft_message *messages, size_t n)
{
	for (size_t i = n; i > 0; i--)
	{
		if (strcmp(messages[i - 1].role, "user") == 0 && !is_tool_response(&messages[i - 1]))
			return i - 1;
	}
	return n - 1;
}

ft_status
ft_append_thought(ft_text *text, const ft_message *messages, size_t n, size_t i)
{
	part content = {messages[i].content, messages[i].content_length};
	part thought = {"", 0};

	if (memmem(content.data, content.n, CLOSE, strlen(CLOSE)) != NULL)
	{
		thought = without_newlines(before_first(content, CLOSE), false, true);
		thought = without_newlines(behind_last(thought, OPEN), true, false);
		content = without_newlines(behind_last(content, CLOSE), true, false);
	}
	if (i > last_question(messages, n) && (i + 1 == n || thought.n > 0))
	{
		thought = without_newlines(thought, true, true);
		content = without_newlines(content, true, false);
		FT_TRY(ft_text_append(text, OPEN "\n", strlen(OPEN "\n")));
		FT_TRY(ft_text_append(text, thought.data, thought.n));
		FT_TRY(ft_text_append(text, "\n" CLOSE "\n\n", strlen("\n" CLOSE "\n\n")));
	}
	return ft_text_append(text, content.data, content.n);
}
