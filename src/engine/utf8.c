/*
 * utf8.c: characters in bytes.
 */
#include "utf8.h"

#include "tokenizer.h"

static bool
continues(unsigned char c)
{
	return (c & 0xc0) == 0x80;
}

size_t
ft_utf8_decode(const char *text, size_t n, uint32_t *code)
{
	const unsigned char *t = (const unsigned char *) text;

	if (n == 0)
		return 0;
	if (t[0] < 0x80)
	{
		*code = t[0];
		return 1;
	}
	if (t[0] < 0xe0)
	{
		if (t[0] < 0xc2 || n < 2 || !continues(t[1]))
			return 0;
		*code = (uint32_t) (t[0] & 0x1f) << 6 | (t[1] & 0x3f);
		return 2;
	}
	if (t[0] < 0xf0)
	{
		if (n < 3 || !continues(t[1]) || !continues(t[2]))
			return 0;
		*code = (uint32_t) (t[0] & 0x0f) << 12 | (uint32_t) (t[1] & 0x3f) << 6 | (t[2] & 0x3f);
		return *code < 0x800 || (*code >= 0xd800 && *code < 0xe000) ? 0 : 3;
	}
	if (t[0] > 0xf4 || n < 4 || !continues(t[1]) || !continues(t[2]) || !continues(t[3]))
		return 0;
	*code = (uint32_t) (t[0] & 0x07) << 18 | (uint32_t) (t[1] & 0x3f) << 12 |
			(uint32_t) (t[2] & 0x3f) << 6 | (t[3] & 0x3f);
	return *code < 0x10000 || *code > 0x10ffff ? 0 : 4;
}

size_t
ft_utf8_encode(uint32_t code, char to[4])
{
	if (code < 0x80)
	{
		to[0] = (char) code;
		return 1;
	}
	if (code < 0x800)
	{
		to[0] = (char) (0xc0 | code >> 6);
		to[1] = (char) (0x80 | (code & 0x3f));
		return 2;
	}
	if (code < 0x10000)
	{
		to[0] = (char) (0xe0 | code >> 12);
		to[1] = (char) (0x80 | (code >> 6 & 0x3f));
		to[2] = (char) (0x80 | (code & 0x3f));
		return 3;
	}
	to[0] = (char) (0xf0 | code >> 18);
	to[1] = (char) (0x80 | (code >> 12 & 0x3f));
	to[2] = (char) (0x80 | (code >> 6 & 0x3f));
	to[3] = (char) (0x80 | (code & 0x3f));
	return 4;
}

size_t
ft_utf8_valid(const char *text, size_t n)
{
	size_t at = 0;

	while (at < n)
	{
		uint32_t code;
		size_t length = ft_utf8_decode(text + at, n - at, &code);

		if (length == 0)
			break;
		at += length;
	}
	return at;
}

bool
ft_utf8_is_space(uint32_t code)
{
	return (code >= 0x09 && code <= 0x0d) || (code >= 0x1c && code <= 0x20) || code == 0x85 ||
		   code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 ||
		   code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

size_t
ft_utf8_incomplete(const char *text, size_t n)
{
	const unsigned char *t = (const unsigned char *) text;

	for (size_t back = 1; back <= 3 && back <= n; back++)
	{
		unsigned char c = t[n - back];
		size_t length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
		unsigned char second;

		if (continues(c))
			continue;
		if (c < 0xc2 || c > 0xf4 || back >= length)
			return 0;
		/* what no further byte can complete is not held back */
		second = back > 1 ? t[n - back + 1] : 0xbf;
		if ((c == 0xed && back > 1 && second > 0x9f) || (c == 0xe0 && second < 0xa0) ||
			(c == 0xf0 && second < 0x90) || (c == 0xf4 && back > 1 && second > 0x8f))
			return 0;
		return back;
	}
	return 0;
}
