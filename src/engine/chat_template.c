/*
 * chat_template.c: recognising a chat template, and rendering a conversation to token ids.
 */
#include "chat_template.h"

#include "chat_template_internal.h"
#include "chat_template_text.h"
#include "digest.h"
#include "utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ft_status
hint_names(ft_status code)
{
	return ft_hint(code, "Name the template to use with the option \"template\": %s.",
				   ft_chat_template_names);
}

static const ft_chat_template *
find_name(const char *name)
{
	for (size_t i = 0; i < ft_n_chat_templates; i++)
	{
		if (strcmp(ft_chat_templates[i].name, name) == 0)
			return &ft_chat_templates[i];
	}
	return NULL;
}

/* The SHA-256 of a template's normal form. */
static ft_status
digest_template(const char *jinja, char hex[FT_DIGEST_HEX])
{
	ft_text normal = {0};
	ft_status status = ft_template_normalise(jinja, &normal);

	if (status == FT_OK)
		status = ft_digest_bytes(normal.data, normal.length, hex);
	ft_text_free(&normal);
	return status;
}

static ft_status
has_text(const ft_chat_template *t, const char *jinja, const char *digest, bool *has)
{
	*has = t->parts[0] != NULL;
	for (int i = 0; i < FT_TEMPLATE_TEXTS && t->parts[i] != NULL; i++)
		*has = *has && strstr(jinja, t->parts[i]) != NULL;
	for (int i = 0; i < FT_TEMPLATE_TEXTS && t->digests[i] != NULL && !*has; i++)
		*has = strcmp(t->digests[i], digest) == 0;
	for (int i = 0; i < FT_TEMPLATE_TEXTS && t->texts[i] != NULL && !*has; i++)
		FT_TRY(ft_template_equal(jinja, t->texts[i], has));
	return FT_OK;
}

ft_status
ft_chat_template_find(const char *name, const char *jinja, const ft_chat_template **chat_template)
{
	char digest[FT_DIGEST_HEX];

	if (name != NULL)
	{
		*chat_template = find_name(name);
		if (*chat_template == NULL)
			return hint_names(ft_fail(FT_INVALID, "chat template \"%s\" is not known", name));
		return FT_OK;
	}
	if (jinja == NULL || jinja[0] == '\0')
	{
		*chat_template = find_name("plain");
		return FT_OK;
	}
	FT_TRY(digest_template(jinja, digest));
	for (size_t i = 0; i < ft_n_chat_templates; i++)
	{
		bool has;

		FT_TRY(has_text(&ft_chat_templates[i], jinja, digest, &has));
		if (has)
		{
			*chat_template = &ft_chat_templates[i];
			return FT_OK;
		}
	}
	return hint_names(
		ft_fail(FT_UNSUPPORTED, "the model's chat template is not one that is known"));
}

bool
ft_chat_template_answers_space(const ft_chat_template *chat_template)
{
	return chat_template->kind == FT_TEMPLATE_INST;
}

const char *
ft_chat_template_name(const ft_chat_template *chat_template)
{
	return chat_template->name;
}

/* --- rendering --- */

typedef struct renderer
{
	const ft_chat_template *template;
	const ft_tokenizer *tokenizer;
	ft_text text;        /* since the last special token or cut */
	ft_text_start start; /* of text */
	ft_ids *ids;
	ft_weights *weights; /* may be NULL */
} renderer;

/* Give the ids that have come since the last call their weight. */
static ft_status
weigh(renderer *r, size_t since, float weight)
{
	size_t more = r->ids->length - since;
	void *memory;

	if (r->weights == NULL)
		return FT_OK;
	memory = r->weights->data;
	FT_TRY(ft_grow(&memory, &r->weights->capacity, r->weights->length + more, sizeof(float)));
	r->weights->data = memory;
	for (size_t i = 0; i < more; i++)
		r->weights->data[r->weights->length++] = weight;
	return FT_OK;
}

static ft_status
add_text(renderer *r, const char *text)
{
	return text == NULL ? FT_OK : ft_text_append(&r->text, text, strlen(text));
}

/* Tokenise what has been written so far: never as anything but plain text. */
static ft_status
cut(renderer *r, float weight)
{
	size_t since = r->ids->length;

	FT_TRY(ft_tokenizer_encode_part(r->tokenizer, r->text.data, r->text.length, false, r->start,
									r->ids));
	/* where nothing was written, what stood before still does */
	if (r->text.length > 0)
		r->start = FT_START_INSIDE;
	ft_text_clear(&r->text);
	return weigh(r, since, weight);
}

static ft_status
add_id(renderer *r, int32_t id, float weight)
{
	size_t since = r->ids->length;

	FT_TRY(ft_ids_push(r->ids, id));
	r->start = FT_START_SPECIAL;
	return weigh(r, since, weight);
}

static ft_status
add_special(renderer *r, const char *token, float text_weight, float weight)
{
	int32_t id;

	if (token == NULL)
		return FT_OK;
	FT_TRY(cut(r, text_weight));
	id = ft_tokenizer_find(r->tokenizer, token);
	if (!ft_tokenizer_is_special(r->tokenizer, id))
		return hint_names(ft_fail(FT_MISMATCH,
								  "chat template \"%s\" needs the special token \"%s\", which the "
								  "vocabulary lacks",
								  r->template->name, token));
	return add_id(r, id, weight);
}

/* The model's own end or beginning. */
static ft_status
add_model_id(renderer *r, int32_t id, const char *what, float text_weight, float weight)
{
	if (id < 0)
		return ft_fail(FT_MISMATCH,
					   "chat template \"%s\" needs %s token, which the vocabulary lacks",
					   r->template->name, what);
	FT_TRY(cut(r, text_weight));
	return add_id(r, id, weight);
}

static ft_status
open_turn(renderer *r, const char *role)
{
	const ft_chat_template *t = r->template;

	FT_TRY(t->plain_marks ? add_text(r, t->role_open) : add_special(r, t->role_open, 0, 0));
	FT_TRY(add_text(r, role));
	FT_TRY(t->plain_marks ? add_text(r, t->role_close) : add_special(r, t->role_close, 0, 0));
	return add_text(r, t->after_role);
}

/* Content without the white space around it. */
static void
trim(const char **text, size_t *n)
{
	uint32_t code;
	size_t length;

	while ((length = ft_utf8_decode(*text, *n, &code)) > 0 && ft_utf8_is_space(code))
	{
		*text += length;
		*n -= length;
	}
	while (*n > 0)
	{
		size_t back = 1;

		while (back < 4 && back < *n && ((unsigned char) (*text)[*n - back] & 0xc0) == 0x80)
			back++;
		length = ft_utf8_decode(*text + *n - back, back, &code);
		if (length != back || !ft_utf8_is_space(code))
			return;
		*n -= back;
	}
}

static bool
is_role(const ft_message *message, const char *role)
{
	return strcmp(message->role, role) == 0;
}

static ft_status
add_content(renderer *r, const ft_message *message, bool trimmed)
{
	const char *content = message->content;
	size_t n = message->content_length;

	if (trimmed)
		trim(&content, &n);
	return ft_text_append(&r->text, content, n);
}

/* --- framed turns --- */

static ft_status
add_turn(renderer *r, const ft_message *messages, size_t n, size_t i)
{
	const ft_chat_template *t = r->template;
	const ft_message *message = &messages[i];
	bool answer = is_role(message, "assistant");
	float weight = answer ? message->weight : 0;

	FT_TRY(open_turn(r, message->role));
	if (i == 0 && is_role(message, "system"))
		FT_TRY(add_text(r, t->system_prefix));
	if (answer)
		FT_TRY(cut(r, 0));
	if (answer && t->think)
		FT_TRY(ft_append_thought(&r->text, messages, n, i));
	else
		FT_TRY(add_content(r, message, t->trim));
	if (t->eos_end)
		FT_TRY(add_model_id(r, ft_tokenizer_eos(r->tokenizer), "an EOS", weight, weight));
	else
		FT_TRY(add_special(r, t->turn_end, weight, weight));
	return add_text(r, t->after_turn);
}

static ft_status
render_framed(renderer *r, const ft_message *messages, size_t n, bool add_generation_prompt)
{
	const ft_chat_template *t = r->template;

	if (t->bos)
		FT_TRY(add_model_id(r, ft_tokenizer_bos(r->tokenizer), "a BOS", 0, 0));
	if (t->always_system && !is_role(&messages[0], "system"))
	{
		ft_message system = {"system", t->default_system, strlen(t->default_system), 0};

		FT_TRY(add_turn(r, &system, 1, 0));
	}
	for (size_t i = 0; i < n; i++)
		FT_TRY(add_turn(r, messages, n, i));
	return add_generation_prompt ? open_turn(r, "assistant") : FT_OK;
}

/* --- [INST] --- */

/* Text of the template's, in which the two marks are special tokens where the vocabulary has them.
 */
static ft_status
add_marked(renderer *r, const char *text)
{
	const char *mark = strchr(text, '[');
	size_t n = strchr(mark, ']') - mark + 1;
	char name[16];

	snprintf(name, sizeof name, "%.*s", (int) n, mark);
	FT_TRY(ft_text_append(&r->text, text, (size_t) (mark - text)));
	if (ft_tokenizer_is_special(r->tokenizer, ft_tokenizer_find(r->tokenizer, name)))
		FT_TRY(add_special(r, name, 0, 0));
	else
		FT_TRY(add_text(r, name));
	return add_text(r, mark + n);
}

/* A question; system: the content of the system message that stands with it, or NULL. */
static ft_status
add_question(renderer *r, const ft_message *message, const ft_message *system)
{
	const ft_chat_template *t = r->template;
	bool marked = t->system == FT_SYSTEM_LLAMA2;
	size_t start;

	if (t->bos_each)
		FT_TRY(add_model_id(r, ft_tokenizer_bos(r->tokenizer), "a BOS", 0, 0));
	FT_TRY(add_marked(r, t->open));
	start = r->text.length;
	if (system != NULL)
	{
		FT_TRY(add_text(r, marked ? "<<SYS>>\n" : ""));
		FT_TRY(add_content(r, system, false));
		FT_TRY(add_text(r, marked ? "\n<</SYS>>\n\n" : "\n\n"));
	}
	FT_TRY(add_content(r, message, false));
	/* both together, as the template does */
	if (t->trim)
	{
		const char *text = r->text.data + start;
		size_t n = r->text.length - start;

		trim(&text, &n);
		memmove(r->text.data + start, text, n);
		r->text.length = start + n;
		r->text.data[r->text.length] = '\0';
	}
	return add_marked(r, t->close);
}

static ft_status
add_answer(renderer *r, const ft_message *message)
{
	const ft_chat_template *t = r->template;
	float weight = message->weight;

	FT_TRY(cut(r, 0));
	FT_TRY(add_text(r, t->answer_open));
	FT_TRY(add_content(r, message, t->trim_answer));
	FT_TRY(add_text(r, t->answer_close));
	FT_TRY(add_model_id(r, ft_tokenizer_eos(r->tokenizer), "an EOS", weight, weight));
	return add_text(r, t->answer_end);
}

static ft_status
check_turns(const ft_chat_template *t, const ft_message *messages, size_t first, size_t n)
{
	if (first > 0 && t->system == FT_SYSTEM_REFUSED)
		return ft_fail(FT_INVALID, "chat template \"%s\" has no place for a system message",
					   t->name);
	if (first == n)
		return ft_fail(FT_INVALID, "chat template \"%s\" needs a message with role \"user\"",
					   t->name);
	for (size_t i = first; i < n; i++)
	{
		const char *expected = (i - first) % 2 == 0 ? "user" : "assistant";

		if (!is_role(&messages[i], expected))
			return ft_fail(FT_INVALID,
						   "message %zu has role \"%s\", but chat template \"%s\" expects \"%s\" "
						   "there",
						   i + 1, messages[i].role, t->name, expected);
	}
	return FT_OK;
}

static ft_status
render_inst(renderer *r, const ft_message *messages, size_t n)
{
	const ft_chat_template *t = r->template;
	size_t first = is_role(&messages[0], "system") ? 1 : 0;
	size_t with_system = first;

	FT_TRY(check_turns(t, messages, first, n));
	if (t->system == FT_SYSTEM_LAST)
		with_system = n - 1 - (n - 1 - first) % 2;
	if (t->bos)
		FT_TRY(add_model_id(r, ft_tokenizer_bos(r->tokenizer), "a BOS", 0, 0));
	for (size_t i = first; i < n; i++)
	{
		if (is_role(&messages[i], "assistant"))
			FT_TRY(add_answer(r, &messages[i]));
		else
			FT_TRY(
				add_question(r, &messages[i], first > 0 && i == with_system ? &messages[0] : NULL));
	}
	return FT_OK;
}

/* --- no frame --- */

static ft_status
render_plain(renderer *r, const ft_message *messages, size_t n)
{
	if (ft_tokenizer_adds_bos(r->tokenizer))
		FT_TRY(add_id(r, ft_tokenizer_bos(r->tokenizer), 0));
	/* what follows is a text, as one that no template frames */
	r->start = FT_START_TEXT;
	for (size_t i = 0; i < n; i++)
	{
		bool answer = is_role(&messages[i], "assistant");

		if (answer)
			FT_TRY(cut(r, 0));
		FT_TRY(add_content(r, &messages[i], false));
		if (!answer)
			continue;
		FT_TRY(cut(r, messages[i].weight));
		if (ft_tokenizer_eos(r->tokenizer) >= 0)
			FT_TRY(add_id(r, ft_tokenizer_eos(r->tokenizer), messages[i].weight));
	}
	return FT_OK;
}

static ft_status
render(renderer *r, const ft_message *messages, size_t n, bool add_generation_prompt)
{
	/* so that text is never NULL */
	FT_TRY(add_text(r, ""));
	switch (r->template->kind)
	{
		case FT_TEMPLATE_PLAIN:
			FT_TRY(render_plain(r, messages, n));
			break;
		case FT_TEMPLATE_FRAMED:
			FT_TRY(render_framed(r, messages, n, add_generation_prompt));
			break;
		case FT_TEMPLATE_INST:
			FT_TRY(render_inst(r, messages, n));
			break;
	}
	return cut(r, 0);
}

/* A role stands in a row or a request, so only what looks like the name of a role may be repeated.
 */
static bool
is_name(const char *role)
{
	size_t n = strspn(role, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_");

	return n > 0 && n <= 20 && role[n] == '\0';
}

static ft_status
check_messages(const ft_message *messages, size_t n)
{
	if (n == 0)
		return ft_fail(FT_INVALID, "a conversation needs at least one message");
	for (size_t i = 0; i < n; i++)
	{
		const char *role = messages[i].role;

		if (strcmp(role, "system") == 0 || strcmp(role, "user") == 0 ||
			strcmp(role, "assistant") == 0)
			continue;
		if (is_name(role))
			return ft_fail(FT_INVALID,
						   "message %zu has role \"%s\", expected system, user or assistant", i + 1,
						   role);
		return ft_fail(FT_INVALID,
					   "message %zu has no known role, expected system, user or assistant", i + 1);
	}
	return FT_OK;
}

ft_status
ft_chat_encode(const ft_chat_template *chat_template, const ft_tokenizer *tokenizer,
			   const ft_message *messages, size_t n, bool add_generation_prompt, ft_ids *ids,
			   ft_weights *weights)
{
	renderer r = {
		.template = chat_template, .tokenizer = tokenizer, .ids = ids, .weights = weights};
	ft_status status;

	FT_TRY(check_messages(messages, n));
	status = render(&r, messages, n, add_generation_prompt);
	ft_text_free(&r.text);
	return status;
}

void
ft_weights_free(ft_weights *weights)
{
	free(weights->data);
	*weights = (ft_weights){0};
}
