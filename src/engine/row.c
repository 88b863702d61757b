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
	SET_ANY, /* stands beside each of them */
	SET_PAIR,
	SET_MESSAGES,
	SET_TEXT,
	SET_TOKENS,
	SET_COUNT
} column_set;

typedef struct column
{
	const char *name;
	column_set set;
	bool required; /* where its set is */
} column;

static const column columns[] = {
	{"prompt", SET_PAIR, true},
	{"completion", SET_PAIR, true},
	{"messages", SET_MESSAGES, true},
	{"text", SET_TEXT, true},
	{"input_ids", SET_TOKENS, true},
	{"labels", SET_TOKENS, false},
	{"attention_mask", SET_TOKENS, false},
	{"weight", SET_ANY, false},
};

#define N_COLUMNS (sizeof columns / sizeof columns[0])
#define SETS_HINT "A row has prompt and completion, or messages, or text, or input_ids."

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

/* Exactly one set of columns, and all of it; a null anywhere makes the row FT_ROW_NULL. */
static ft_status
check_columns(const json_t *row, column_set *set, ft_row_kind *kind)
{
	bool there[SET_COUNT] = {false};
	int sets = 0;
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
		there[columns[i].set] |= json_object_get(row, columns[i].name) != NULL;
	for (column_set s = SET_PAIR; s < SET_COUNT; s++)
	{
		if (there[s])
			*set = s;
		sets += there[s];
	}
	if (sets != 1)
		return ft_hint(ft_fail(FT_INVALID, "row has %d column sets, expected 1", sets), SETS_HINT);
	for (size_t i = 0; i < N_COLUMNS; i++)
	{
		if (columns[i].set == *set && columns[i].required &&
			json_object_get(row, columns[i].name) == NULL)
			return ft_fail(FT_INVALID, "column \"%s\" is missing", columns[i].name);
	}
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

static ft_status
read_pair(const json_t *row, conversation *c)
{
	static const char *const names[2] = {"prompt", "completion"};
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

/*
 * Shorten a conversation that is `excess` tokens too long.  Old exchanges go
 * first; of the last one the prompt loses its beginning, and the completion its
 * end where it takes more than half of the room.
 */
static ft_status
cut_conversation(ft_row_encoder *e, conversation *c, size_t excess, bool *cut)
{
	size_t head = c->n > 0 && strcmp(c->messages[0].role, "system") == 0 ? 1 : 0;
	ft_message *prompt;
	ft_message *completion;
	size_t prompt_tokens;
	size_t completion_tokens;
	size_t room;
	size_t keep;

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
	prompt = &c->messages[c->n - 2];
	completion = &c->messages[c->n - 1];
	FT_TRY(content_tokens(e, prompt, &prompt_tokens));
	FT_TRY(content_tokens(e, completion, &completion_tokens));
	if (prompt_tokens + completion_tokens <= excess)
		return FT_OK;
	room = prompt_tokens + completion_tokens - excess;
	keep = room - (prompt_tokens < room ? prompt_tokens : room);
	if (keep < room / 2)
		keep = room / 2;
	if (keep > completion_tokens)
		keep = completion_tokens;
	if (keep < completion_tokens)
		FT_TRY(cut_content(e, completion, keep, false, &c->cut_completion));
	if (room - keep < prompt_tokens)
		FT_TRY(cut_content(e, prompt, room - keep, true, &c->cut_prompt));
	*cut = true;
	return FT_OK;
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
		FT_TRY(ft_prompt_encode(e->prompt_template, e->chat_template, e->tokenizer, c->messages,
								c->n, false, &e->ids, &e->weights));
		/* what stands behind the last trained token teaches nothing */
		while (!e->train_on_inputs && e->ids.length > 0 &&
			   e->weights.data[e->ids.length - 1] == 0.0f)
			e->ids.length--;
		e->weights.length = e->ids.length;
		if (e->ids.length <= limit)
			return FT_OK;
		*truncated = true;
		FT_TRY(cut_conversation(e, c, e->ids.length - limit, &cut));
		if (!cut)
			break;
	}
	return ft_hint(ft_fail(FT_INVALID,
						   "row needs more than %d tokens for its roles alone, or has %zu messages",
						   e->max_length, c->n),
				   "Raise max_seq_length.");
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
	ft_status status = list != NULL ? read_messages(list, &c) : read_pair(row, &c);

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
	else
		FT_TRY(encode_turns(e, row, truncated));
	return copy_targets(e);
}

static ft_status
encode_row(ft_row_encoder *e, const json_t *row, ft_row_kind *kind, bool *truncated)
{
	column_set set = SET_ANY;
	bool trained = false;
	float weight;

	if (!json_is_object(row))
		return ft_fail(FT_INVALID, "row is no JSON object");
	FT_TRY(check_columns(row, &set, kind));
	if (*kind == FT_ROW_NULL)
		return FT_OK;
	FT_TRY(read_weight(row, "column \"weight\"", &weight));
	FT_TRY(encode_set(e, row, set, truncated));
	for (size_t i = 0; i < e->ids.length; i++)
	{
		e->weights.data[i] *= weight;
		/* nothing stands before the first token that could predict it */
		if (i == 0)
			e->weights.data[i] = 0.0f;
		trained |= e->weights.data[i] > 0.0f;
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
