/*
 * endpoint_json.c: what is sent to an endpoint, and what its answers mean.
 */
#include "endpoint_json.h"

#include "request.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_ANSWERS 128
#define MAX_TOKENS ((json_int_t) 1 << 53)
#define SCHEMA_NAME "answer" /* OpenAI's want one, and do nothing with it but say it */

/* --- requests --- */

/* What a request may have: first what is not an option of the answer, then the options, as OpenAI
 * or, of some, only vLLM and others know them. */
static const char *const members[] = {
	"model",
	"messages",
	"stream",
	"stream_options",
	"cache_salt",
	"temperature",
	"top_p",
	"top_k",
	"min_p",
	"max_tokens",
	"stop",
	"seed",
	"presence_penalty",
	"frequency_penalty",
	"repetition_penalty",
	"n",
	"top_logprobs",
	"logprobs",
	"response_format",
	NULL,
};

#define FIRST_OPTION 5
#define N_OPTIONS (sizeof members / sizeof members[0] - FIRST_OPTION - 1)
static const char *const *const options = members + FIRST_OPTION;

/* A schema as OpenAI wants it. */
static json_t *
format_of(const json_t *format)
{
	json_t *schema = json_object_get(json_object_get(format, "json_schema"), "schema");

	if (!schema)
		return json_deep_copy(format);
	return json_pack("{s:s, s:{s:s, s:b, s:o}}", "type", "json_schema", "json_schema", "name",
					 SCHEMA_NAME, "strict", 1, "schema", json_deep_copy(schema));
}

static bool
asks_for_json(const json_t *format)
{
	const char *type = json_string_value(json_object_get(format, "type"));

	return type && (strcmp(type, "json_object") == 0 || strcmp(type, "json_schema") == 0);
}

static ft_status
add_member(json_t *to, const char *name, json_t *value)
{
	if (json_object_set_new(to, name, value) != 0)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	return FT_OK;
}

static ft_status
add_members(const json_t *request, json_t *others)
{
	const json_t *format = json_object_get(request, "response_format");

	FT_TRY(add_member(others, "model", json_incref(json_object_get(request, "model"))));
	FT_TRY(add_member(others, "messages", json_incref(json_object_get(request, "messages"))));
	for (size_t i = 0; i < N_OPTIONS; i++)
	{
		json_t *value = json_object_get(request, options[i]);

		if (value && !json_is_null(value) && value != format)
			FT_TRY(add_member(others, options[i], json_incref(value)));
	}
	if (asks_for_json(format))
		FT_TRY(add_member(others, "response_format", format_of(format)));
	return FT_OK;
}

static ft_status
check_request(const json_t *request)
{
	const json_t *more = json_object_get(request, "stream_options");
	const char *model;

	if (!json_is_object(request))
		return ft_fail(FT_INVALID, "\"request\" must be an object");
	FT_TRY(ft_body_only(request, members));
	FT_TRY(ft_body_string(request, "model", &model));
	if (!json_is_array(json_object_get(request, "messages")))
		return ft_fail(FT_INVALID, "\"messages\" must be a list of at least one message");
	if (more && !json_is_object(more))
		return ft_fail(FT_INVALID, "\"stream_options\" must be an object");
	if (json_is_true(json_object_get(request, "stream")) &&
		json_is_true(json_object_get(request, "logprobs")))
		return ft_fail(FT_UNSUPPORTED, "\"logprobs\" with \"stream\" is not supported");
	return FT_OK;
}

ft_status
ft_endpoint_request(const json_t *request, json_t **others, ft_endpoint_asked *asked)
{
	json_int_t n;
	ft_status status;

	FT_TRY(check_request(request));
	FT_TRY(ft_body_optional_integer(request, "n", 1, MAX_ANSWERS, 1, &n));
	*asked = (ft_endpoint_asked){
		.n = (int) n,
		.logprobs = json_is_true(json_object_get(request, "logprobs")),
		.json = asks_for_json(json_object_get(request, "response_format")),
		.stream = json_is_true(json_object_get(request, "stream")),
		.usage = json_is_true(
			json_object_get(json_object_get(request, "stream_options"), "include_usage")),
	};
	*others = json_object();
	status = *others ? add_members(request, *others) : ft_fail(FT_NO_MEMORY, "out of memory");
	if (status != FT_OK)
		json_decref(*others);
	return status;
}

/* --- answers --- */

static ft_status
fail_answer(const char *what)
{
	return ft_fail(FT_PROTOCOL, "the endpoint's answer is no chat completion: %s", what);
}

/* How others call the two ends that we know, and a third that we have not. */
static const char *
finish_of(const json_t *choice)
{
	static const struct
	{
		const char *theirs;
		const char *ours;
	} names[] = {
		{"stop", "stop"},         {"length", "length"}, {"content_filter", "content_filter"},
		{"eos_token", "stop"},    {"end_turn", "stop"}, {"stop_sequence", "stop"},
		{"max_tokens", "length"},
	};
	const char *finish = json_string_value(json_object_get(choice, "finish_reason"));

	for (size_t i = 0; finish && i < sizeof names / sizeof names[0]; i++)
		if (strcmp(names[i].theirs, finish) == 0)
			return names[i].ours;
	return NULL;
}

/* An answer's text; it belongs to the choice. */
typedef struct words
{
	const char *data; /* NULL: none */
	size_t length;
	bool refusal; /* instead of an answer */
} words;

static bool
is_json(const words *text)
{
	json_t *value = json_loadb(text->data, text->length,
							   JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, NULL);

	json_decref(value);
	return value != NULL;
}

/* "" where the endpoint's filter has kept it. */
static words
words_of(const json_t *choice, const char *finish)
{
	const json_t *message = json_object_get(choice, "message");
	const json_t *content = json_object_get(message, "content");
	const json_t *refusal = json_object_get(message, "refusal");

	if (json_is_string(content))
		return (words){json_string_value(content), json_string_length(content), false};
	if (json_is_string(refusal))
		return (words){json_string_value(refusal), json_string_length(refusal), true};
	if (message && strcmp(finish, "content_filter") == 0)
		return (words){"", 0, true};
	return (words){0};
}

static ft_status
read_choice(const json_t *choice, int index, const ft_endpoint_asked *asked, json_t **read)
{
	const char *finish = finish_of(choice);
	json_t *logprobs = json_object_get(choice, "logprobs");
	words text;

	if (!finish)
		return fail_answer("it does not say why it ended");
	text = words_of(choice, finish);
	if (!text.data)
		return fail_answer("it has no text");
	if (asked->json && strcmp(finish, "stop") == 0 && !text.refusal && !is_json(&text))
		return ft_fail(
			FT_UNSUPPORTED,
			"the endpoint ignores the option \"response_format\": its answer is no JSON");
	if (asked->logprobs && !json_is_array(json_object_get(logprobs, "content")))
		return ft_fail(FT_UNSUPPORTED, "the endpoint ignores the option \"logprobs\"");
	*read = json_pack("{s:i, s:{s:s, s:o}, s:s}", "index", index, "message", "role", "assistant",
					  "content", json_stringn(text.data, text.length), "finish_reason", finish);
	if (!*read || (asked->logprobs && json_object_set(*read, "logprobs", logprobs) != 0))
		return ft_fail(FT_NO_MEMORY, "out of memory");
	return FT_OK;
}

/* The choice of this index; they may come in any order, and of one index need not say it. */
static json_t *
choice_at(const json_t *choices, int index)
{
	size_t i;
	json_t *choice;

	json_array_foreach ((json_t *) choices, i, choice)
	{
		const json_t *said = json_object_get(choice, "index");

		if (json_is_integer(said) ? json_integer_value(said) == index : i == (size_t) index)
			return choice;
	}
	return NULL;
}

static ft_status
read_choices(const json_t *answer, const ft_endpoint_asked *asked, json_t *list)
{
	const json_t *choices = json_object_get(answer, "choices");
	size_t n = json_array_size(choices);

	if (n == 0)
		return fail_answer("it has no choices");
	if (n > (size_t) asked->n)
		return fail_answer("it has more choices than were asked for");
	if (n < (size_t) asked->n)
		return ft_fail(FT_UNSUPPORTED,
					   "the endpoint ignores the option \"n\": it gives %zu answers of %d", n,
					   asked->n);
	for (int i = 0; i < asked->n; i++)
	{
		json_t *choice = choice_at(choices, i);
		json_t *read;

		if (!choice)
			return fail_answer("its choices are not numbered");
		FT_TRY(read_choice(choice, i, asked, &read));
		if (json_array_append_new(list, read) != 0)
			return ft_fail(FT_NO_MEMORY, "out of memory");
	}
	return FT_OK;
}

/* A number of tokens; -1: none is said. */
static json_int_t
tokens_of(const json_t *object, const char *name)
{
	const json_t *value = json_object_get(object, name);

	if (!json_is_integer(value) || json_integer_value(value) < 0 ||
		json_integer_value(value) > MAX_TOKENS)
		return -1;
	return json_integer_value(value);
}

static ft_status
read_usage(const json_t *answer, json_t **read)
{
	const json_t *usage = json_object_get(answer, "usage");
	json_int_t prompt = tokens_of(usage, "prompt_tokens");
	json_int_t completion = tokens_of(usage, "completion_tokens");
	json_int_t cached = tokens_of(json_object_get(usage, "prompt_tokens_details"), "cached_tokens");

	if (prompt < 0 || completion < 0)
		return fail_answer("it does not say how many tokens it took");
	*read = json_pack("{s:I, s:I, s:I}", "prompt_tokens", prompt, "completion_tokens", completion,
					  "total_tokens", prompt + completion);
	if (*read && cached >= 0)
		json_object_set_new(*read, "prompt_tokens_details",
							json_pack("{s:I}", "cached_tokens", cached));
	return *read ? FT_OK : ft_fail(FT_NO_MEMORY, "out of memory");
}

static ft_status
read_answer(const json_t *answer, const ft_endpoint_asked *asked, const char *model,
			json_t *choices, json_t **reply)
{
	json_int_t created = tokens_of(answer, "created");
	json_t *usage;

	FT_TRY(read_choices(answer, asked, choices));
	FT_TRY(read_usage(answer, &usage));
	*reply =
		json_pack("{s:s, s:s, s:I, s:s, s:O, s:o}", "id", "chatcmpl-endpoint", "object",
				  "chat.completion", "created", created >= 0 ? created : (json_int_t) time(NULL),
				  "model", model, "choices", choices, "usage", usage);
	return *reply ? FT_OK : ft_fail(FT_NO_MEMORY, "out of memory");
}

ft_status
ft_endpoint_answer(const char *body, size_t n, const ft_endpoint_asked *asked, const char *model,
				   json_t **reply)
{
	/* a string with NUL, which no text of a database can hold, does not pass here */
	json_t *answer = json_loadb(body, n, 0, NULL);
	json_t *choices = json_array();
	ft_status status;

	if (!choices)
		status = ft_fail(FT_NO_MEMORY, "out of memory");
	else if (!json_is_object(answer))
		status = fail_answer("it is no JSON object");
	else
		status = read_answer(answer, asked, model, choices, reply);
	json_decref(choices);
	json_decref(answer);
	return status;
}

static ft_status
add_event(const json_t *json, ft_text *events)
{
	char *text = json_dumps(json, JSON_COMPACT);
	ft_status status = text ? ft_text_append(events, "data: ", strlen("data: "))
							: ft_fail(FT_NO_MEMORY, "out of memory");

	if (status == FT_OK)
		status = ft_text_append(events, text, strlen(text));
	if (status == FT_OK)
		status = ft_text_append(events, "\n\n", 2);
	free(text);
	return status;
}

ft_status
ft_endpoint_events(json_t *reply, bool with_usage, ft_text *events)
{
	json_t *usage = json_incref(json_object_get(reply, "usage"));
	size_t i;
	json_t *choice;
	ft_status status;

	json_array_foreach (json_object_get(reply, "choices"), i, choice)
	{
		json_object_set(choice, "delta", json_object_get(choice, "message"));
		json_object_del(choice, "message");
	}
	json_object_set_new(reply, "object", json_string("chat.completion.chunk"));
	if (with_usage)
		json_object_set_new(reply, "usage", json_null());
	else
		json_object_del(reply, "usage");
	status = add_event(reply, events);
	if (status == FT_OK && with_usage)
	{
		json_object_set(reply, "usage", usage);
		json_object_set_new(reply, "choices", json_array());
		status = add_event(reply, events);
	}
	json_decref(usage);
	FT_TRY(status);
	return ft_text_append(events, "data: [DONE]\n\n", strlen("data: [DONE]\n\n"));
}

/* --- refusals --- */

/* An answer's error, wherever it stands: OpenAI's, an older vLLM's, FastAPI's. */
static const json_t *
error_of(const json_t *answer)
{
	const json_t *error = json_object_get(answer, "error");

	return json_is_object(error) ? error : answer;
}

/* Codes that say more than the status; no other is repeated. */
static const char *
known_code(const json_t *error)
{
	static const char *const known[] = {
		"context_length_exceeded",
		"model_not_found",
		"insufficient_quota",
		"rate_limit_exceeded",
		"invalid_api_key",
		"content_policy_violation",
		"content_filter",
		"billing_hard_limit_reached",
		"unsupported_parameter",
		"unsupported_value",
		"unsupported_country_region_territory",
		"unsupported",
		"no_memory",
	};
	static const char *const where[] = {"code", "type"};

	for (size_t w = 0; w < 2; w++)
	{
		const char *said = json_string_value(json_object_get(error, where[w]));

		for (size_t i = 0; said && i < sizeof known / sizeof known[0]; i++)
			if (strcmp(said, known[i]) == 0)
				return known[i];
	}
	return NULL;
}

static bool
is_of_word(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static bool
has_word(const char *text, const char *word)
{
	size_t n = strlen(word);

	for (const char *at = text; at && (at = strstr(at, word)) != NULL; at += n)
		if ((at == text || !is_of_word(at[-1])) && !is_of_word(at[n]))
			return true;
	return false;
}

/* The first of the request's options that a text names. */
static const char *
option_in(const json_t *text, const json_t *request)
{
	for (size_t i = 0; json_is_string(text) && i < N_OPTIONS; i++)
		if (json_object_get(request, options[i]) && has_word(json_string_value(text), options[i]))
			return options[i];
	return NULL;
}

/* The option that a refusal is about, NULL where it does not say. */
static const char *
option_of(const json_t *answer, const json_t *request)
{
	const json_t *error = error_of(answer);
	const char *option = option_in(json_object_get(error, "param"), request);
	json_t *place = json_object_get(json_array_get(json_object_get(answer, "detail"), 0), "loc");
	size_t i;
	json_t *part;

	if (!option)
		option = option_in(json_object_get(error, "message"), request);
	json_array_foreach (place, i, part)
		if (!option)
			option = option_in(part, request);
	return option;
}

static bool
is_out_of_money(const json_t *answer)
{
	const char *code = known_code(error_of(answer));

	return code && (strcmp(code, "insufficient_quota") == 0 ||
					strcmp(code, "billing_hard_limit_reached") == 0);
}

bool
ft_endpoint_passes(const ft_endpoint_refusal *refusal)
{
	json_t *answer;
	bool passes;

	if (refusal->code != 429 && refusal->code != 503 && refusal->code != 529)
		return false;
	answer = json_loadb(refusal->body, refusal->length, 0, NULL);
	passes = !is_out_of_money(answer);
	json_decref(answer);
	return passes;
}

static ft_status
refused_busy(const ft_endpoint_refusal *refusal, const json_t *answer)
{
	ft_status status =
		ft_fail(FT_BUSY, "the endpoint takes no more requests (HTTP status %ld)", refusal->code);

	if (refusal->code == 402 || is_out_of_money(answer))
		return ft_hint(status, "What its key may spend is used up.");
	if (refusal->retry_after_ms > 0)
		return ft_hint(status, "Try again in %lld seconds, which is what it asks for.",
					   (long long) refusal->retry_after_ms / 1000);
	return ft_hint(status, "Try again later, or ask for fewer answers at once.");
}

static ft_status
refused_request(const ft_endpoint_refusal *refusal, const json_t *answer, const json_t *request)
{
	const char *code = known_code(error_of(answer));
	const char *option;

	if (code && strcmp(code, "context_length_exceeded") == 0)
		return ft_fail(FT_INVALID,
					   "the prompt, or it with \"max_tokens\", is longer than the context of the "
					   "endpoint's model (HTTP status %ld)",
					   refusal->code);
	if (refusal->code == 404 || (code && strcmp(code, "model_not_found") == 0))
		return ft_fail(FT_INVALID,
					   "the endpoint has no such model, or no chat completions at this "
					   "URL (HTTP status %ld)",
					   refusal->code);
	option = option_of(answer, request);
	if (option)
		return ft_fail(FT_INVALID, "the endpoint refuses the option \"%s\" (HTTP status %ld)",
					   option, refusal->code);
	return ft_fail(FT_INVALID, "the endpoint refuses the request (HTTP status %ld%s%s)",
				   refusal->code, code ? ", " : "", code ? code : "");
}

static ft_status
refused(const ft_endpoint_refusal *refusal, const json_t *answer, const json_t *request,
		bool has_key)
{
	long code = refusal->code;

	if (code == 401 && !has_key)
		return ft_fail(FT_DENIED, "the endpoint wants an API key (HTTP status 401)");
	if (code == 401)
		return ft_fail(FT_DENIED, "the endpoint does not accept the API key (HTTP status 401)");
	if (code == 403)
		return ft_fail(FT_DENIED, "the endpoint does not permit the request (HTTP status 403)");
	if (code == 402 || code == 429 || code == 503 || code == 529)
		return refused_busy(refusal, answer);
	if (code == 408 || code == 504)
		return ft_fail(FT_TIMEOUT, "the endpoint did not answer in time (HTTP status %ld)", code);
	if (code >= 500 && code <= 599)
		return ft_fail(FT_REMOTE, "the endpoint has failed (HTTP status %ld)", code);
	if (code >= 400 && code <= 499)
		return refused_request(refusal, answer, request);
	if (code >= 300 && code <= 399)
		return ft_hint(
			ft_fail(FT_PROTOCOL, "the endpoint answers with a redirection (HTTP status %ld)", code),
			"Redirections are not followed: name the URL that it leads to.");
	return ft_fail(FT_PROTOCOL, "the endpoint answers with HTTP status %ld", code);
}

ft_status
ft_endpoint_refused(const ft_endpoint_refusal *refusal, const json_t *request, bool has_key)
{
	json_t *answer = json_loadb(refusal->body, refusal->length, 0, NULL);
	ft_status status = refused(refusal, answer, request, has_key);

	json_decref(answer);
	return status;
}
