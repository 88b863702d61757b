/*
 * completion_json.c: the JSON of answers, whole and in pieces, as OpenAI has it.
 */
#include "api_json.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>

static json_t *
usage_json(const ft_api_usage *usage)
{
	return json_pack("{s:I, s:I, s:I, s:{s:I}}", "prompt_tokens", (json_int_t) usage->prompt,
					 "completion_tokens", (json_int_t) usage->completion, "total_tokens",
					 (json_int_t) (usage->prompt + usage->completion), "prompt_tokens_details",
					 "cached_tokens", (json_int_t) usage->cached);
}

void
ft_api_head_make(ft_api_head *head, bool chat, const char *model, int64_t created)
{
	static atomic_uint_fast64_t last;

	*head = (ft_api_head){.chat = chat, .model = model, .created = created};
	snprintf(head->id, sizeof head->id, "%s-%08" PRIx64 "%08" PRIx64, chat ? "chatcmpl" : "cmpl",
			 (uint64_t) created, (uint64_t) atomic_fetch_add(&last, 1));
}

json_t *
ft_api_choice(bool chat, int index, const ft_text *text, const char *finish, json_t *logprobs)
{
	json_t *content = json_stringn(text->data, text->length);
	json_t *choice;

	if (chat)
		choice = json_pack("{s:i, s:{s:s, s:o}, s:s}", "index", index, "message", "role",
						   "assistant", "content", content, "finish_reason", finish);
	else
		choice =
			json_pack("{s:i, s:o, s:s}", "index", index, "text", content, "finish_reason", finish);
	if (logprobs)
		json_object_set_new(choice, "logprobs", logprobs);
	return choice;
}

json_t *
ft_api_piece(bool chat, int index, const ft_text *text, bool begins, const char *finish)
{
	json_t *content = text ? json_stringn(text->data, text->length) : json_string("");
	json_t *delta;

	if (!chat)
		return json_pack("{s:i, s:o, s:s?}", "index", index, "text", content, "finish_reason",
						 finish);
	delta = json_object();
	if (begins)
		json_object_set_new(delta, "role", json_string("assistant"));
	if (begins || text)
		json_object_set_new(delta, "content", content);
	else
		json_decref(content);
	return json_pack("{s:i, s:o, s:s?}", "index", index, "delta", delta, "finish_reason", finish);
}

static json_t *
reply(const ft_api_head *head, const char *object, json_t *choices)
{
	return json_pack("{s:s, s:s, s:I, s:s, s:o}", "id", head->id, "object", object, "created",
					 (json_int_t) head->created, "model", head->model, "choices", choices);
}

json_t *
ft_api_completion(const ft_api_head *head, json_t *choices, const ft_api_usage *usage)
{
	json_t *json = reply(head, head->chat ? "chat.completion" : "text_completion", choices);

	json_object_set_new(json, "usage", usage_json(usage));
	return json;
}

json_t *
ft_api_chunk(const ft_api_head *head, json_t *choices, bool with_usage, const ft_api_usage *usage)
{
	json_t *json = reply(head, head->chat ? "chat.completion.chunk" : "text_completion", choices);

	if (with_usage)
		json_object_set_new(json, "usage", usage ? usage_json(usage) : json_null());
	return json;
}

/* --- log-probabilities --- */

/* A token's bytes; special ones have a text here. */
static json_t *
token_text(const ft_tokenizer *tokenizer, int32_t id, json_t *bytes)
{
	ft_text text = {0}, valid = {0};
	json_t *json = NULL;

	if (ft_tokenizer_decode_part(tokenizer, &id, 1, false, &text) == FT_OK &&
		ft_text_make_valid(text.data, text.length, &valid) == FT_OK)
		json = json_stringn(valid.data, valid.length);
	for (size_t i = 0; bytes && i < text.length; i++)
		json_array_append_new(bytes, json_integer((unsigned char) text.data[i]));
	ft_text_free(&text);
	ft_text_free(&valid);
	return json;
}

/* Minus infinity is no JSON. */
static double
bounded(float logprob)
{
	return logprob > -9999 ? logprob : -9999;
}

static json_t *
chat_token(const ft_tokenizer *tokenizer, const ft_token_logprob *token)
{
	json_t *bytes = json_array();
	json_t *text = token_text(tokenizer, token->id, bytes);

	return json_pack("{s:o, s:f, s:o}", "token", text, "logprob", bounded(token->logprob), "bytes",
					 bytes);
}

static json_t *
chat_logprobs(const ft_tokenizer *tokenizer, const ft_logprobs *l, size_t n)
{
	json_t *content = json_array();

	for (size_t i = 0; i < n; i++)
	{
		json_t *token = chat_token(tokenizer, &l->list[i].drawn);
		json_t *top = json_array();

		for (int k = 0; k < l->n_top; k++)
			json_array_append_new(top, chat_token(tokenizer, &l->list[i].top[k]));
		json_object_set_new(token, "top_logprobs", top);
		json_array_append_new(content, token);
	}
	return json_pack("{s:o, s:n}", "content", content, "refusal");
}

static json_t *
completion_logprobs(const ft_tokenizer *tokenizer, const ft_logprobs *l, size_t n)
{
	json_t *tokens = json_array(), *values = json_array(), *tops = json_array();
	json_t *offsets = json_array();

	for (size_t i = 0; i < n; i++)
	{
		json_t *top = json_object();

		for (int k = 0; k < l->n_top; k++)
		{
			json_t *text = token_text(tokenizer, l->list[i].top[k].id, NULL);

			json_object_setn_new(top, json_string_value(text), json_string_length(text),
								 json_real(bounded(l->list[i].top[k].logprob)));
			json_decref(text);
		}
		json_array_append_new(tokens, token_text(tokenizer, l->list[i].drawn.id, NULL));
		json_array_append_new(values, json_real(bounded(l->list[i].drawn.logprob)));
		json_array_append_new(tops, top);
		json_array_append_new(offsets, json_integer((json_int_t) l->list[i].text_at));
	}
	return json_pack("{s:o, s:o, s:o, s:o}", "tokens", tokens, "token_logprobs", values,
					 "top_logprobs", tops, "text_offset", offsets);
}

json_t *
ft_api_logprobs(bool chat, const ft_tokenizer *tokenizer, const ft_logprobs *l, size_t end)
{
	size_t n = 0;

	while (n < l->n && l->list[n].text_at < end)
		n++;
	return chat ? chat_logprobs(tokenizer, l, n) : completion_logprobs(tokenizer, l, n);
}
