/*
 * json_values.c: texts of values, as a tree: those that begin alike share its nodes.
 */
#include "json_values.h"

#include "buffer.h"

#include <stdlib.h>
#include <string.h>

/* The shortest text of a value that means the same. */
static ft_status
value_text(const json_t *value, char **text)
{
	for (size_t precision = 15;; precision++)
	{
		json_t *again;
		bool same;

		*text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(precision));
		if (!*text)
			return ft_fail(FT_NO_MEMORY, "out of memory");
		if (precision == 17)
			return FT_OK;
		again = json_loads(*text, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
		same = again && json_equal(again, value);
		json_decref(again);
		if (same)
			return FT_OK;
		free(*text);
	}
}

static int
compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/* Sorted texts, from byte `at` on, as a tree: those that begin alike share its nodes. */
static void
add_texts(ft_grammar *g, char *const *texts, size_t n, size_t at, int32_t from, int32_t to)
{
	size_t i = 0;

	/* one that ends here: behind a number others may go on, 1 and 12 */
	for (; i < n && texts[i][at] == '\0'; i++)
		if (i == 0)
			ft_grammar_empty(g, from, to);
	while (i < n && g->status == FT_OK)
	{
		size_t same = i + 1, common = at;
		int32_t next;

		while (same < n && texts[same][at] == texts[i][at])
			same++;
		while (texts[i][common] != '\0' && texts[i][common] == texts[same - 1][common])
			common++;
		next = texts[i][common] == '\0' && same == i + 1 ? to : ft_grammar_node_new(g);
		ft_grammar_literal(g, from, texts[i] + at, common - at, next);
		if (next != to)
			add_texts(g, texts + i, same - i, common, next, to);
		i = same;
	}
}

ft_status
ft_json_values_grammar(const json_t *const *values, size_t n, ft_grammar *grammar, int32_t from,
					   int32_t to)
{
	char **texts;
	size_t n_texts = 0;
	ft_status status = ft_alloc((void **) &texts, n, sizeof *texts);

	for (; n_texts < n && status == FT_OK; n_texts += status == FT_OK)
		status = value_text(values[n_texts], &texts[n_texts]);
	if (status == FT_OK)
	{
		qsort(texts, n_texts, sizeof *texts, compare_texts);
		add_texts(grammar, texts, n_texts, 0, from, to);
		status = grammar->status;
	}
	for (size_t i = 0; i < n_texts; i++)
		free(texts[i]);
	free(texts);
	return status;
}
