/*
 * chat_template_text.c: a normal form of Jinja templates.
 */
#include "chat_template_text.h"

#include <ctype.h>
#include <string.h>

/* What is known of the tag before a stretch of literal text. */
typedef enum tag_end
{
	TAG_NONE,
	TAG_BLOCK,    /* "%}", after which Jinja drops one newline */
	TAG_PRINT,    /* "}}" */
	TAG_TRIMMING, /* "-%}" or "-}}", after which it drops all white space */
} tag_end;

static bool
is_blank(char c)
{
	return c == ' ' || c == '\t';
}

static bool
is_white(char c)
{
	return is_blank(c) || c == '\n' || c == '\r';
}

static const char *
skip_white(const char *p)
{
	while (is_white(*p))
		p++;
	return p;
}

/* The literal text between two tags that is rendered: a part of [start, end). */
static ft_status
add_literal(ft_text *to, const char *start, const char *end, tag_end before)
{
	bool at_block = strncmp(end, "{%", 2) == 0;
	bool trimming = (at_block || strncmp(end, "{{", 2) == 0) && end[2] == '-';
	const char *line;

	if (before == TAG_BLOCK && start < end && *start == '\n')
		start++;
	else if (before == TAG_TRIMMING)
		while (start < end && is_white(*start))
			start++;
	if (trimming)
		while (end > start && is_white(end[-1]))
			end--;
	else if (at_block)
	{
		/* the indentation of a block that stands alone on its line */
		for (line = end; line > start && is_blank(line[-1]);)
			line--;
		if (line > start ? line[-1] == '\n' : before == TAG_NONE || start[-1] == '\n')
			end = line;
	}
	return ft_text_append(to, start, (size_t) (end - start));
}

/* The literal whose opening quote is at p, and those joined to it by +.  Returns where it ends;
 * NULL when it does not. */
static const char *
add_string(ft_text *to, const char *p, ft_status *status)
{
	char quote = *p++;

	*status = ft_text_append(to, "'", 1);
	while (*status == FT_OK)
	{
		const char *next;
		char c = *p;

		if (c == '\0')
			return NULL;
		p++;
		if (c == '\\' && *p != '\0')
		{
			c = *p++;
			if (c == 'n')
				*status = ft_text_append(to, "\n", 1);
			else if (c == '\'')
				*status = ft_text_append(to, "\\'", 2);
			else if (c == '"')
				*status = ft_text_append(to, "\"", 1);
			else
				*status = ft_text_printf(to, "\\%c", c);
			continue;
		}
		if (c != quote)
		{
			/* so that a quote of the other kind cannot be taken for the end */
			*status = c == '\'' ? ft_text_append(to, "\\'", 2) : ft_text_append(to, &c, 1);
			continue;
		}
		next = skip_white(p);
		if (*next == '+')
			next = skip_white(next + 1);
		if (next == skip_white(p) || (*next != '\'' && *next != '"'))
			break;
		quote = *next;
		p = next + 1;
	}
	if (*status == FT_OK)
		*status = ft_text_append(to, "'", 1);
	return p;
}

/* ['name'] at p: append .name and return where it ends; NULL when it is something else. */
static const char *
add_member(ft_text *to, const char *p, ft_status *status)
{
	const char *name = p + 2;
	const char *end = name;

	if (p[0] != '[' || (p[1] != '\'' && p[1] != '"'))
		return NULL;
	while (isalpha((unsigned char) *end) || *end == '_')
		end++;
	if (end == name || *end != p[1] || end[1] != ']')
		return NULL;
	*status = ft_text_printf(to, ".%.*s", (int) (end - name), name);
	return end + 2;
}

/* A tag, from its opening braces at p; returns what follows its closing ones. */
static const char *
add_tag(ft_text *to, const char *p, tag_end *kind, ft_status *status)
{
	bool print = p[1] == '{';
	const char *close = print ? "}}" : "%}";
	char last = '\0';

	*status = ft_text_append(to, p, 2);
	p += p[2] == '-' ? 3 : 2;
	while (*status == FT_OK && *p != '\0')
	{
		const char *member;
		bool trimming = *p == '-' && strncmp(p + 1, close, 2) == 0;

		if (trimming || strncmp(p, close, 2) == 0)
		{
			*kind = trimming ? TAG_TRIMMING : print ? TAG_PRINT : TAG_BLOCK;
			*status = ft_text_append(to, close, 2);
			return p + (trimming ? 3 : 2);
		}
		if (*p == '\'' || *p == '"')
		{
			p = add_string(to, p, status);
			if (p == NULL)
				return NULL;
			last = '\'';
			continue;
		}
		member = *p == '[' ? add_member(to, p, status) : NULL;
		if (member != NULL)
		{
			p = member;
			last = '.';
			continue;
		}
		if (is_white(*p))
		{
			p = skip_white(p);
			/* words must not run together */
			if ((isalnum((unsigned char) last) || last == '_') &&
				(isalnum((unsigned char) *p) || *p == '_'))
				*status = ft_text_append(to, " ", 1);
			continue;
		}
		last = *p;
		*status = ft_text_append(to, p++, 1);
	}
	return NULL;
}

ft_status
ft_template_normalise(const char *jinja, ft_text *normal)
{
	tag_end before = TAG_NONE;
	const char *p = jinja;
	ft_status status = FT_OK;

	while (p != NULL && *p != '\0' && status == FT_OK)
	{
		const char *start = p;

		while (*p != '\0' && strncmp(p, "{%", 2) != 0 && strncmp(p, "{{", 2) != 0)
			p++;
		status = add_literal(normal, start, p, before);
		if (status == FT_OK && *p != '\0')
			p = add_tag(normal, p, &before, &status);
	}
	/* an unfinished tag makes it like no other */
	if (p == NULL && status == FT_OK)
		status = ft_text_append(normal, "\1", 1);
	return status;
}

ft_status
ft_template_equal(const char *a, const char *b, bool *equal)
{
	ft_text x = {0};
	ft_text y = {0};
	ft_status status = ft_template_normalise(a, &x);

	if (status == FT_OK)
		status = ft_template_normalise(b, &y);
	if (status == FT_OK)
		*equal = x.length == y.length && (x.length == 0 || memcmp(x.data, y.data, x.length) == 0);
	ft_text_free(&x);
	ft_text_free(&y);
	return status;
}
