/*
 * row.c: one line of JSONL to the tokens of a document.
 *
 * A row too long for the limit is cut in its texts, not in its tokens, and then
 * rendered again: so the chat template, its roles and the end token stay whole
 * whatever the template is.
 */
#include "row.h"

#include "row_tokens.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROUNDS 10000 /* of cutting and rendering again; two do, nearly always */

/* A conversation as it will be rendered; contents point into the JSON or into cut copies. */
typedef struct conversation
{
	ft_message *messages;
	size_t n;
	char *cut_prompt; /* owned copies, NULL until cut */
	char *cut_completion;
} conversation;

void
ft_row_encoder_clear(ft_row_encoder *e)
{
	ft_ids_free(&e->ids);
	ft_ids_free(&e->targets);
	ft_weights_free(&e->weights);
	ft_ids_free(&e->piece);
	ft_text_free(&e->text);
}

/* --- columns --- */

typedef enum column_set
{
	SET_COMPLETION = 1,
	SET_MESSAGES = 2,
	SET_TEXT = 4,
	SET_TOKENS = 8,
	SET_PREFERENCE = 16,
	SET_ANY = 31
} column_set;

typedef struct column
{
	const char *name;
	unsigned sets;   /* that it may be part of */
	unsigned needed; /* by these */
} column;

static const column columns[] = {
	{"prompt", SET_COMPLETION | SET_PREFERENCE, SET_COMPLETION | SET_PREFERENCE},
	{"completion", SET_COMPLETION, SET_COMPLETION},
	{"chosen", SET_PREFERENCE, SET_PREFERENCE},
	{"rejected", SET_PREFERENCE, SET_PREFERENCE},
	{"messages", SET_MESSAGES, SET_MESSAGES},
	{"text", SET_TEXT, SET_TEXT},
	{"input_ids", SET_TOKENS, SET_TOKENS},
	{"labels", SET_TOKENS, 0},
	{"attention_mask", SET_TOKENS, 0},
	{"weight", SET_ANY, 0},
};

#define N_COLUMNS (sizeof columns / sizeof columns[0])
#define SETS_HINT "A row has prompt and completion, or messages, or text, or input_ids."
#define PAIRS_HINT "Method dpo trains on rows with prompt, chosen and rejected, and only it does."

static bool
known_column(const char *name)
{
	for (size_t i = 0; i < N_COLUMNS; i++)
	{
		if (strcmp(name, columns[i].name) == 0)
			return true;
	}
	return false;
}

/*
 * Exactly one set of columns, and all of it: the set of pairs for a method that
 * trains on them, another one for the others.  A null anywhere makes the row
 * FT_ROW_NULL.
 */
static ft_status
check_columns(const json_t *row, bool pairs, column_set *set, ft_row_kind *kind)
{
	unsigned allowed = pairs ? SET_PREFERENCE : SET_ANY & ~SET_PREFERENCE;
	unsigned possible = SET_ANY;
	bool found = false;
	const char *name;
	json_t *value;

	json_object_foreach ((json_t *) row, name, value)
	{
		if (!known_column(name))
			return ft_hint(ft_fail(FT_INVALID, "unknown column \"%.60s\"", name), SETS_HINT);
		if (json_is_null(value))
			*kind = FT_ROW_NULL;
	}
	for (size_t i = 0; i < N_COLUMNS; i++)
	{
		if (columns[i].sets == SET_ANY || json_object_get(row, columns[i].name) == NULL)
			continue;
		possible &= columns[i].sets;
		found = true;
	}
	if (!found || possible == 0)
		return ft_hint(ft_fail(FT_INVALID, "row has %d column sets, expected 1", found ? 2 : 0),
					   SETS_HINT);
	if ((possible & allowed) == 0)
		return ft_hint(ft_fail(FT_INVALID, pairs
											   ? "row is no pair of a chosen and a rejected answer"
											   : "row is a pair of a chosen and a rejected answer"),
					   PAIRS_HINT);
	possible &= allowed;
	for (size_t i = 0; i < N_COLUMNS; i++)
	{
		if ((columns[i].needed & possible) && json_object_get(row, columns[i].name) == NULL)
			return ft_fail(FT_INVALID, "column \"%s\" is missing", columns[i].name);
	}
	*set = (column_set) possible;
	return FT_OK;
}

/*
 * The member "weight" of a row or message; `of` names it in an error.  The
 * range is far wider than any use, and narrow enough that neither a product of
 * two weights nor one over a step's sum leaves single precision.
 */
#define LEAST_WEIGHT 1e-12
#define LARGEST_WEIGHT 1e12

static ft_status
read_weight(const json_t *object, const char *of, float *weight)
{
	const json_t *value = json_object_get(object, "weight");
	double number = json_number_value(value);

	*weight = 1.0f;
	if (value == NULL)
		return FT_OK;
	if (!json_is_number(value) ||
		(number != 0 && !(number >= LEAST_WEIGHT && number <= LARGEST_WEIGHT)))
		return ft_fail(FT_INVALID, "%s is neither 0 nor a number from %g to %g", of, LEAST_WEIGHT,
					   LARGEST_WEIGHT);
	*weight = (float) number;
	return FT_OK;
}

static ft_status
read_message(const json_t *item, size_t index, ft_message *message)
{
	const json_t *role = json_object_get(item, "role");
	const json_t *content = json_object_get(item, "content");
	char of[64];

	if (!json_is_object(item) || !json_is_string(role) || !json_is_string(content))
		return ft_fail(FT_INVALID, "message %zu has no role and content that are strings",
					   index + 1);
	message->role = json_string_value(role);
	message->content = json_string_value(content);
	message->content_length = json_string_length(content);
	snprintf(of, sizeof of, "\"weight\" of message %zu", index + 1);
	return read_weight(item, of, &message->weight);
}

static ft_status
read_messages(const json_t *list, conversation *c)
{
	if (!json_is_array(list) || json_array_size(list) == 0)
		return ft_fail(FT_INVALID, "\"messages\" is no list of messages");
	FT_TRY(ft_alloc((void **) &c->messages, json_array_size(list), sizeof c->messages[0]));
	c->n = json_array_size(list);
	for (size_t i = 0; i < c->n; i++)
		FT_TRY(read_message(json_array_get(list, i), i, &c->messages[i]));
	return FT_OK;
}

/* A question and the answer of the column of that name. */
static ft_status
read_answer(const json_t *row, const char *answer, conversation *c)
{
	const char *const names[2] = {"prompt", answer};
	static const char *const roles[2] = {"user", "assistant"};

	FT_TRY(ft_alloc((void **) &c->messages, 2, sizeof c->messages[0]));
	c->n = 2;
	for (int i = 0; i < 2; i++)
	{
		const json_t *value = json_object_get(row, names[i]);

		if (!json_is_string(value))
			return ft_fail(FT_INVALID, "column \"%s\" is no string", names[i]);
		c->messages[i] =
			(ft_message){roles[i], json_string_value(value), json_string_length(value), 1.0f};
	}
	return FT_OK;
}

/* --- cutting --- */

/* Bytes at the start that continue a character begun before. */
static size_t
leading_continuation(const char *text, size_t n)
{
	size_t i = 0;

	while (i < n && i < 3 && ((unsigned char) text[i] & 0xc0) == 0x80)
		i++;
	return i;
}

/* Keep `keep` tokens of a message's content, the last ones or the first ones, in *copy. */
static ft_status
cut_content(ft_row_encoder *e, ft_message *message, size_t keep, bool keep_last, char **copy)
{
	size_t first;
	size_t skip = 0;
	char *cut;

	ft_ids_clear(&e->piece);
	FT_TRY(ft_tokenizer_encode(e->tokenizer, message->content, message->content_length, false,
							   &e->piece));
	if (keep > e->piece.length)
		keep = e->piece.length;
	first = keep_last ? e->piece.length - keep : 0;
	ft_text_clear(&e->text);
	FT_TRY(ft_tokenizer_decode(e->tokenizer, e->piece.data + first, keep, false, &e->text));
	if (keep_last)
		skip = leading_continuation(e->text.data, e->text.length);
	else
		e->text.length -= ft_utf8_incomplete(e->text.data, e->text.length);
	FT_TRY(ft_alloc((void **) &cut, e->text.length - skip + 1, 1));
	if (e->text.length > skip)
		memcpy(cut, e->text.data + skip, e->text.length - skip);
	free(*copy);
	*copy = cut;
	message->content = cut;
	message->content_length = e->text.length - skip;
	return FT_OK;
}

static ft_status
content_tokens(ft_row_encoder *e, const ft_message *message, size_t *n)
{
	ft_ids_clear(&e->piece);
	FT_TRY(ft_tokenizer_encode(e->tokenizer, message->content, message->content_length, false,
							   &e->piece));
	*n = e->piece.length;
	return FT_OK;
}

/* What is kept of a prompt and its answer. */
typedef struct room
{
	size_t prompt; /* tokens */
	size_t answer;
} room;

/* Share what is left for an exchange that is `excess` tokens too long: an answer gives way where it
 * takes more than half of it.  *fits: something is left. */
static ft_status
share_room(ft_row_encoder *e, const ft_message *prompt, const ft_message *answer, size_t excess,
		   room *keep, bool *fits)
{
	size_t prompt_tokens;
	size_t answer_tokens;
	size_t left;

	FT_TRY(content_tokens(e, prompt, &prompt_tokens));
	FT_TRY(content_tokens(e, answer, &answer_tokens));
	*keep = (room){prompt_tokens, answer_tokens};
	*fits = excess == 0 || prompt_tokens + answer_tokens > excess;
	if (excess == 0 || !*fits)
		return FT_OK;
	left = prompt_tokens + answer_tokens - excess;
	keep->answer = left - (prompt_tokens < left ? prompt_tokens : left);
	if (keep->answer < left / 2)
		keep->answer = left / 2;
	if (keep->answer > answer_tokens)
		keep->answer = answer_tokens;
	keep->prompt = left - keep->answer;
	return FT_OK;
}

/* Cut the last exchange of a conversation to that: the prompt loses its beginning, the answer its
 * end. */
static ft_status
cut_exchange(ft_row_encoder *e, conversation *c, room keep)
{
	ft_message *prompt = &c->messages[c->n - 2];
	ft_message *answer = &c->messages[c->n - 1];
	size_t tokens;

	FT_TRY(content_tokens(e, answer, &tokens));
	if (keep.answer < tokens)
		FT_TRY(cut_content(e, answer, keep.answer, false, &c->cut_completion));
	FT_TRY(content_tokens(e, prompt, &tokens));
	if (keep.prompt < tokens)
		FT_TRY(cut_content(e, prompt, keep.prompt, true, &c->cut_prompt));
	return FT_OK;
}

/* Shorten a conversation that is `excess` tokens too long.  Old exchanges go first, then the last
 * one is cut. */
static ft_status
cut_conversation(ft_row_encoder *e, conversation *c, size_t excess, bool *cut)
{
	size_t head = c->n > 0 && strcmp(c->messages[0].role, "system") == 0 ? 1 : 0;
	room keep;

	*cut = false;
	if (c->n >= head + 4)
	{
		memmove(c->messages + head, c->messages + head + 2,
				(c->n - head - 2) * sizeof c->messages[0]);
		c->n -= 2;
		*cut = true;
		return FT_OK;
	}
	if (c->n < head + 2)
		return FT_OK;
	FT_TRY(share_room(e, &c->messages[c->n - 2], &c->messages[c->n - 1], excess, &keep, cut));
	return *cut ? cut_exchange(e, c, keep) : FT_OK;
}

/* Append the conversation, up to its last trained token: what stands behind that teaches nothing.
 */
static ft_status
append_conversation(ft_row_encoder *e, const conversation *c)
{
	size_t before = e->ids.length;

	FT_TRY(ft_prompt_encode(e->prompt_template, e->chat_template, e->tokenizer, c->messages, c->n,
							false, &e->ids, &e->weights));
	while (!e->train_on_inputs && e->ids.length > before &&
		   e->weights.data[e->ids.length - 1] == 0.0f)
		e->ids.length--;
	e->weights.length = e->ids.length;
	return FT_OK;
}

static ft_status
cannot_cut(const ft_row_encoder *e, size_t messages)
{
	return ft_hint(ft_fail(FT_INVALID,
						   "row needs more than %d tokens for its roles alone, or has %zu messages",
						   e->max_length, messages),
				   "Raise max_seq_length.");
}

static ft_status
encode_conversation(ft_row_encoder *e, conversation *c, bool *truncated)
{
	size_t limit = (size_t) e->max_length;

	for (int round = 0; round < MAX_ROUNDS; round++)
	{
		bool cut;

		ft_ids_clear(&e->ids);
		e->weights.length = 0;
		FT_TRY(append_conversation(e, c));
		if (e->ids.length <= limit)
			return FT_OK;
		*truncated = true;
		FT_TRY(cut_conversation(e, c, e->ids.length - limit, &cut));
		if (!cut)
			break;
	}
	return cannot_cut(e, c->n);
}

/* Cut both sides of a pair that is so much too long; they keep the same prompt. */
static ft_status
cut_pair(ft_row_encoder *e, conversation sides[2], const size_t excess[2], bool *cut)
{
	room keep[2];
	size_t prompt;

	for (int i = 0; i < 2; i++)
	{
		FT_TRY(
			share_room(e, &sides[i].messages[0], &sides[i].messages[1], excess[i], &keep[i], cut));
		if (!*cut)
			return FT_OK;
	}
	prompt = keep[0].prompt < keep[1].prompt ? keep[0].prompt : keep[1].prompt;
	for (int i = 0; i < 2; i++)
		FT_TRY(cut_exchange(e, &sides[i], (room){prompt, keep[i].answer}));
	return FT_OK;
}

/* Both sides of a pair, one after the other, each of at most max_length tokens. */
static ft_status
encode_sides(ft_row_encoder *e, conversation sides[2], bool *truncated)
{
	size_t limit = (size_t) e->max_length;

	for (int round = 0; round < MAX_ROUNDS; round++)
	{
		size_t excess[2];
		bool cut;

		ft_ids_clear(&e->ids);
		e->weights.length = 0;
		for (int i = 0; i < 2; i++)
		{
			size_t before = e->ids.length;

			FT_TRY(append_conversation(e, &sides[i]));
			excess[i] = e->ids.length - before > limit ? e->ids.length - before - limit : 0;
			if (i == 0)
				e->chosen = e->ids.length;
		}
		if (excess[0] == 0 && excess[1] == 0)
			return FT_OK;
		*truncated = true;
		FT_TRY(cut_pair(e, sides, excess, &cut));
		if (!cut)
			break;
	}
	return cannot_cut(e, 2);
}

/* --- rows --- */

static ft_status
push_weights(ft_row_encoder *e, float weight)
{
	FT_TRY(ft_grow((void **) &e->weights.data, &e->weights.capacity, e->ids.length, sizeof(float)));
	while (e->weights.length < e->ids.length)
		e->weights.data[e->weights.length++] = weight;
	return FT_OK;
}

/* Plain text between begin and end tokens, where the model has them; a text that is cut has no end.
 */
static ft_status
encode_text(ft_row_encoder *e, const json_t *value, bool *truncated)
{
	if (!json_is_string(value))
		return ft_fail(FT_INVALID, "column \"text\" is no string");
	ft_ids_clear(&e->ids);
	e->weights.length = 0;
	if (e->vocabulary->add_bos && e->config->bos >= 0)
		FT_TRY(ft_ids_push(&e->ids, e->config->bos));
	FT_TRY(ft_tokenizer_encode(e->tokenizer, json_string_value(value), json_string_length(value),
							   false, &e->ids));
	if (e->vocabulary->eos >= 0)
		FT_TRY(ft_ids_push(&e->ids, e->vocabulary->eos));
	if (e->ids.length > (size_t) e->max_length)
	{
		e->ids.length = (size_t) e->max_length;
		*truncated = true;
	}
	return push_weights(e, 1.0f);
}

/* An assistant's turn with weight 0 while train_on_inputs trains all that has no weight. */
#define SWITCHED_OFF -1.0f

static ft_status
encode_turns(ft_row_encoder *e, const json_t *row, bool *truncated)
{
	const json_t *list = json_object_get(row, "messages");
	conversation c = {0};
	ft_status status = list != NULL ? read_messages(list, &c) : read_answer(row, "completion", &c);

	if (e->train_on_inputs)
	{
		for (size_t i = 0; i < c.n; i++)
			c.messages[i].weight =
				c.messages[i].weight == 0.0f ? SWITCHED_OFF : c.messages[i].weight;
	}
	if (status == FT_OK)
		status = encode_conversation(e, &c, truncated);
	free(c.messages);
	free(c.cut_prompt);
	free(c.cut_completion);
	if (status == FT_OK && e->train_on_inputs)
	{
		for (size_t i = 0; i < e->weights.length; i++)
		{
			float weight = e->weights.data[i];

			e->weights.data[i] = weight == SWITCHED_OFF ? 0.0f : weight == 0.0f ? 1.0f : weight;
		}
	}
	return status;
}

static ft_status
encode_pair(ft_row_encoder *e, const json_t *row, bool *truncated)
{
	conversation sides[2] = {0};
	ft_status status = read_answer(row, "chosen", &sides[0]);

	if (status == FT_OK)
		status = read_answer(row, "rejected", &sides[1]);
	if (status == FT_OK)
		status = encode_sides(e, sides, truncated);
	for (int i = 0; i < 2; i++)
	{
		free(sides[i].messages);
		free(sides[i].cut_prompt);
		free(sides[i].cut_completion);
	}
	return status;
}

/* Text predicts itself: only tokens may come with labels of their own. */
static ft_status
copy_targets(ft_row_encoder *e)
{
	ft_ids_clear(&e->targets);
	for (size_t i = 0; i < e->ids.length; i++)
		FT_TRY(ft_ids_push(&e->targets, e->ids.data[i]));
	return FT_OK;
}

static ft_status
encode_set(ft_row_encoder *e, const json_t *row, column_set set, bool *truncated)
{
	if (set == SET_MESSAGES && e->prompt_template != NULL)
		return ft_hint(ft_fail(FT_INVALID, "row has messages, which a prompt template has no "
										   "place for"),
					   "With the option \"prompt_template\" a row has prompt and completion.");
	if (set == SET_TOKENS)
		return ft_row_encode_tokens(e, row, truncated);
	if (set == SET_TEXT)
		FT_TRY(encode_text(e, json_object_get(row, "text"), truncated));
	else if (set == SET_PREFERENCE)
		FT_TRY(encode_pair(e, row, truncated));
	else
		FT_TRY(encode_turns(e, row, truncated));
	return copy_targets(e);
}

/* Multiply the weights of the tokens from `first` to `end`; is one of them trained? */
static bool
weigh(ft_row_encoder *e, size_t first, size_t end, float weight)
{
	bool trained = false;

	/* nothing stands before the first token that could predict it */
	if (first < end)
		e->weights.data[first] = 0.0f;
	for (size_t i = first; i < end; i++)
	{
		e->weights.data[i] *= weight;
		trained |= e->weights.data[i] > 0.0f;
	}
	return trained;
}

static ft_status
encode_row(ft_row_encoder *e, const json_t *row, ft_row_kind *kind, bool *truncated)
{
	column_set set = SET_ANY;
	bool trained;

	if (!json_is_object(row))
		return ft_fail(FT_INVALID, "row is no JSON object");
	FT_TRY(check_columns(row, e->pairs, &set, kind));
	if (*kind == FT_ROW_NULL)
		return FT_OK;
	FT_TRY(read_weight(row, "column \"weight\"", &e->weight));
	e->chosen = 0;
	FT_TRY(encode_set(e, row, set, truncated));
	/* the weight of a pair is not its tokens': their log-probabilities are summed up first */
	trained = weigh(e, e->chosen, e->ids.length, e->pairs ? 1.0f : e->weight);
	if (e->pairs)
	{
		bool chosen = weigh(e, 0, e->chosen, 1.0f);

		trained = trained && chosen && e->weight > 0.0f;
	}
	*kind = trained ? FT_ROW_USED : FT_ROW_UNTRAINED;
	return FT_OK;
}

ft_status
ft_row_encode(ft_row_encoder *e, const char *line, size_t n, ft_row_kind *kind, bool *truncated)
{
	json_error_t error;
	json_t *row = json_loadb(line, n, JSON_REJECT_DUPLICATES, &error);
	ft_status status;

	*kind = FT_ROW_USED;
	*truncated = false;
	if (row == NULL)
		return ft_fail(FT_INVALID, "not valid JSON at byte %d", error.position);
	status = encode_row(e, row, kind, truncated);
	json_decref(row);
	return status;
}
