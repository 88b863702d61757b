/*
 * row_tokens.c: a row that its owner has tokenised.
 *
 * Labels stand where Hugging Face's models want them: labels[i] is what is to
 * be predicted in the place of input_ids[i], by a model that has read what is
 * before it, and -100 is nothing.
 *
 * A hidden token (attention_mask 0) is neither attended to nor trained, which
 * for padding is the same as if it were not there: what a model computes
 * depends on distances only.  Hidden tokens between visible ones would have to
 * keep their distance though they are gone, and nothing could be said of what
 * predicts the token behind them; no trainer's data has them, so they are an
 * error.
 */
#include "row_tokens.h"

#define IGNORED_LABEL (-100)

/* One column of a row; list is NULL when it is missing. */
typedef struct token_list
{
	const char *name;
	const json_t *list;
} token_list;

typedef struct token_row
{
	token_list ids;
	token_list labels;
	token_list mask;
	size_t n;
	size_t first; /* the visible tokens are first … end - 1 */
	size_t end;
} token_row;

static json_int_t
element(const token_list *column, size_t i)
{
	return json_integer_value(json_array_get(column->list, i));
}

static ft_status
check_list(const token_list *column, size_t n)
{
	if (column->list == NULL)
		return FT_OK;
	if (!json_is_array(column->list))
		return ft_fail(FT_INVALID, "column \"%s\" is no list of integers", column->name);
	if (json_array_size(column->list) == 0)
		return ft_fail(FT_INVALID, "column \"%s\" is empty", column->name);
	if (json_array_size(column->list) != n)
		return ft_fail(FT_INVALID, "column \"%s\" has %zu elements, \"input_ids\" has %zu",
					   column->name, json_array_size(column->list), n);
	for (size_t i = 0; i < n; i++)
	{
		if (!json_is_integer(json_array_get(column->list, i)))
			return ft_fail(FT_INVALID, "element %zu of column \"%s\" is no integer", i + 1,
						   column->name);
	}
	return FT_OK;
}

/* The one run of visible tokens, empty when there is none. */
static ft_status
find_visible(token_row *r)
{
	r->first = 0;
	r->end = r->n;
	if (r->mask.list == NULL)
		return FT_OK;
	for (size_t i = 0; i < r->n; i++)
	{
		if (element(&r->mask, i) != 0 && element(&r->mask, i) != 1)
			return ft_fail(FT_INVALID,
						   "element %zu of column \"attention_mask\" is neither 0 nor 1", i + 1);
	}
	while (r->first < r->n && element(&r->mask, r->first) == 0)
		r->first++;
	while (r->end > r->first && element(&r->mask, r->end - 1) == 0)
		r->end--;
	for (size_t i = r->first; i < r->end; i++)
	{
		if (element(&r->mask, i) == 0)
			return ft_hint(
				ft_fail(FT_INVALID,
						"element %zu of column \"attention_mask\" is 0 between elements that are 1",
						i + 1),
				"Only padding can be hidden: tokens before the first and behind the last "
				"visible one.");
	}
	return FT_OK;
}

static ft_status
read_row(const json_t *row, token_row *r)
{
	*r = (token_row){.ids = {"input_ids", json_object_get(row, "input_ids")},
					 .labels = {"labels", json_object_get(row, "labels")},
					 .mask = {"attention_mask", json_object_get(row, "attention_mask")}};
	r->n = json_array_size(r->ids.list);
	FT_TRY(check_list(&r->ids, r->n));
	FT_TRY(check_list(&r->labels, r->n));
	FT_TRY(check_list(&r->mask, r->n));
	return find_visible(r);
}

static ft_status
add_token(ft_row_encoder *e, const token_row *r, size_t i)
{
	json_int_t id = element(&r->ids, i);
	json_int_t label = r->labels.list != NULL ? element(&r->labels, i) : id;
	bool trained = label != IGNORED_LABEL;

	if (id < 0 || id >= e->config->vocab)
		return ft_fail(FT_INVALID,
					   "element %zu of column \"input_ids\" is outside of the vocabulary of %d "
					   "tokens",
					   i + 1, e->config->vocab);
	if (trained && (label < 0 || label >= e->config->vocab))
		return ft_fail(FT_INVALID,
					   "element %zu of column \"labels\" is neither -100 nor in the vocabulary of "
					   "%d tokens",
					   i + 1, e->config->vocab);
	FT_TRY(ft_ids_push(&e->ids, (int32_t) id));
	FT_TRY(ft_ids_push(&e->targets, (int32_t) (trained ? label : id)));
	FT_TRY(ft_grow((void **) &e->weights.data, &e->weights.capacity, e->ids.length, sizeof(float)));
	e->weights.data[e->weights.length++] = trained ? 1.0f : 0.0f;
	return FT_OK;
}

ft_status
ft_row_encode_tokens(ft_row_encoder *e, const json_t *row, bool *truncated)
{
	size_t limit = (size_t) e->max_length;
	size_t length;
	token_row r;

	ft_ids_clear(&e->ids);
	ft_ids_clear(&e->targets);
	e->weights.length = 0;
	FT_TRY(read_row(row, &r));
	for (size_t i = r.first; i < r.end; i++)
		FT_TRY(add_token(e, &r, i));
	/* what stands behind the last trained token teaches nothing */
	length = e->ids.length;
	while (length > 0 && e->weights.data[length - 1] == 0.0f)
		length--;
	*truncated = length > limit;
	e->ids.length = e->targets.length = e->weights.length = length > limit ? limit : length;
	return FT_OK;
}
