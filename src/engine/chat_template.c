/*
 * chat_template.c: the chat templates we know, and their rendering to token ids.
 */
#include "chat_template.h"

#include "chat_template_text.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TEXTS 3

/* A turn is role_open role role_close after_role content turn_end after_turn; names of special
 * tokens may be NULL for none. */
struct ft_chat_template
{
	const char *name;
	bool framed; /* has turns; else texts stand one after the other, and an answer ends with the EOS
				  */
	bool bos;    /* the template writes the model's BOS itself */
	const char *role_open;
	const char *role_close;
	const char *after_role;
	const char *turn_end;
	const char *after_turn;
	bool trim;                    /* white space around contents is dropped */
	bool always_system;           /* a system turn even where the conversation has none */
	const char *default_system;   /* its content then; NULL: none */
	const char *system_prefix;    /* before the content of the first system turn */
	const char *texts[MAX_TEXTS]; /* Jinja that is this template */
	const char *parts[MAX_TEXTS]; /* or: all of these occur in it (for long ones with tools) */
};

#define CHATML_TURNS                                                                         \
	"{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}" \
	"{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
#define LLAMA3_TURNS                                                                            \
	"{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "     \
	"'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | " \
	"trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"    \
	"{% endif %}{{ content }}{% endfor %}"
#define LLAMA3_ANSWER "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
#define SMOLLM_SYSTEM "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

static const ft_chat_template templates[] = {
	{
		.name = "smollm2",
		.framed = true,
		.role_open = "<|im_start|>",
		.after_role = "\n",
		.turn_end = "<|im_end|>",
		.after_turn = "\n",
		.always_system = true,
		.default_system = SMOLLM_SYSTEM,
		.texts = {"{% for message in messages %}"
				  "{% if loop.first and messages[0]['role'] != 'system' %}"
				  "{{ '<|im_start|>system\n" SMOLLM_SYSTEM "<|im_end|>\n' }}"
				  "{% endif %}" CHATML_TURNS},
	},
	{
		.name = "chatml",
		.framed = true,
		.role_open = "<|im_start|>",
		.after_role = "\n",
		.turn_end = "<|im_end|>",
		.after_turn = "\n",
		.texts = {"{% for message in messages %}" CHATML_TURNS,
				  "{% if not add_generation_prompt is defined %}"
				  "{% set add_generation_prompt = false %}{% endif %}"
				  "{% for message in messages %}" CHATML_TURNS},
	},
	{
		.name = "llama3",
		.framed = true,
		.bos = true,
		.role_open = "<|start_header_id|>",
		.role_close = "<|end_header_id|>",
		.after_role = "\n\n",
		.turn_end = "<|eot_id|>",
		.after_turn = "",
		.trim = true,
		/* the first release's always opens an answer; a conversation to train on has none */
		.texts = {LLAMA3_TURNS "{% if add_generation_prompt %}" LLAMA3_ANSWER "{% endif %}",
				  LLAMA3_TURNS LLAMA3_ANSWER},
	},
	{
		.name = "llama3.1",
		.framed = true,
		.bos = true,
		.role_open = "<|start_header_id|>",
		.role_close = "<|end_header_id|>",
		.after_role = "\n\n",
		.turn_end = "<|eot_id|>",
		.after_turn = "",
		.trim = true,
		.always_system = true,
		.default_system = "",
		/* the date that the template has for callers who give none: an answer must not depend on
		   the day */
		.system_prefix = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
		.parts = {"<|start_header_id|>", "Cutting Knowledge Date: December 2023", "26 Jul 2024"},
	},
	{.name = "plain"},
};

#define N_TEMPLATES (sizeof templates / sizeof templates[0])

static ft_status
hint_names(ft_status code)
{
	return ft_hint(code, "Name the template to use with the option \"template\": smollm2, chatml, "
						 "llama3, llama3.1 or plain.");
}

static const ft_chat_template *
find_name(const char *name)
{
	for (size_t i = 0; i < N_TEMPLATES; i++)
	{
		if (strcmp(templates[i].name, name) == 0)
			return &templates[i];
	}
	return NULL;
}

static ft_status
has_text(const ft_chat_template *t, const char *jinja, bool *has)
{
	*has = t->parts[0] != NULL;
	for (int i = 0; i < MAX_TEXTS && t->parts[i] != NULL; i++)
		*has = *has && strstr(jinja, t->parts[i]) != NULL;
	for (int i = 0; i < MAX_TEXTS && t->texts[i] != NULL && !*has; i++)
		FT_TRY(ft_template_equal(jinja, t->texts[i], has));
	return FT_OK;
}

ft_status
ft_chat_template_find(const char *name, const char *jinja, const ft_chat_template **chat_template)
{
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
	for (size_t i = 0; i < N_TEMPLATES; i++)
	{
		bool has;

		FT_TRY(has_text(&templates[i], jinja, &has));
		if (has)
		{
			*chat_template = &templates[i];
			return FT_OK;
		}
	}
	return hint_names(
		ft_fail(FT_UNSUPPORTED, "the model's chat template is not one that is known"));
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
	ft_text text; /* since the last special token or cut */
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

	FT_TRY(ft_tokenizer_encode(r->tokenizer, r->text.data, r->text.length, false, r->ids));
	ft_text_clear(&r->text);
	return weigh(r, since, weight);
}

static ft_status
add_id(renderer *r, int32_t id, float weight)
{
	size_t since = r->ids->length;

	FT_TRY(ft_ids_push(r->ids, id));
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

static ft_status
open_turn(renderer *r, const char *role)
{
	const ft_chat_template *t = r->template;

	FT_TRY(add_special(r, t->role_open, 0, 0));
	FT_TRY(add_text(r, role));
	FT_TRY(add_special(r, t->role_close, 0, 0));
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

static ft_status
add_turn(renderer *r, const ft_message *message, bool first)
{
	const ft_chat_template *t = r->template;
	bool answer = strcmp(message->role, "assistant") == 0;
	float weight = answer ? message->weight : 0;
	const char *content = message->content;
	size_t n = message->content_length;

	if (t->framed)
		FT_TRY(open_turn(r, message->role));
	if (first && strcmp(message->role, "system") == 0)
		FT_TRY(add_text(r, t->system_prefix));
	if (answer)
		FT_TRY(cut(r, 0));
	if (t->trim)
		trim(&content, &n);
	FT_TRY(ft_text_append(&r->text, content, n));
	if (t->framed)
	{
		FT_TRY(add_special(r, t->turn_end, weight, weight));
		return add_text(r, t->after_turn);
	}
	if (!answer)
		return FT_OK;
	FT_TRY(cut(r, weight));
	if (ft_tokenizer_eos(r->tokenizer) >= 0)
		FT_TRY(add_id(r, ft_tokenizer_eos(r->tokenizer), weight));
	return FT_OK;
}

static ft_status
render(renderer *r, const ft_message *messages, size_t n, bool add_generation_prompt)
{
	const ft_chat_template *t = r->template;

	/* so that text is never NULL */
	FT_TRY(add_text(r, ""));
	if (t->framed ? t->bos : ft_tokenizer_adds_bos(r->tokenizer))
	{
		if (ft_tokenizer_bos(r->tokenizer) < 0)
			return ft_fail(FT_MISMATCH,
						   "chat template \"%s\" needs a BOS token, which the "
						   "vocabulary lacks",
						   t->name);
		FT_TRY(add_id(r, ft_tokenizer_bos(r->tokenizer), 0));
	}
	if (t->always_system && strcmp(messages[0].role, "system") != 0)
	{
		ft_message system = {"system", t->default_system, strlen(t->default_system), 0};

		FT_TRY(add_turn(r, &system, true));
	}
	for (size_t i = 0; i < n; i++)
		FT_TRY(add_turn(r, &messages[i], i == 0));
	if (add_generation_prompt && t->framed)
		FT_TRY(open_turn(r, "assistant"));
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
