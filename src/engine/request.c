/*
 * request.c: bodies of HTTP requests, checked and taken apart.
 */
#include "request.h"

#include "prompt_template.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STOPS 64
#define MAX_STOP_BYTES 4096
#define MAX_SALT_BYTES 256
#define MAX_ANSWERS 128 /* OpenAI's bound */
#define MAX_TEMPERATURE 100.0
#define MAX_PENALTY 2.0 /* OpenAI's bound */
#define MAX_REPETITION_PENALTY 100.0
#define MIN_REPETITION_PENALTY 0.01

/* --- members --- */

ft_status
ft_body_parse(const char *body, size_t n, json_t **object)
{
	json_error_t error;
	json_t *root = json_loadb(body, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);

	/* jansson's own words quote the text */
	if (!root)
		return ft_fail(FT_INVALID, "the body is not valid JSON (line %d, column %d)", error.line,
					   error.column);
	if (!json_is_object(root))
	{
		json_decref(root);
		return ft_fail(FT_INVALID, "the body is not a JSON object");
	}
	*object = root;
	return FT_OK;
}

ft_status
ft_body_optional_string(const json_t *object, const char *name, const char **value)
{
	const json_t *member = json_object_get(object, name);

	*value = NULL;
	if (!member || json_is_null(member))
		return FT_OK;
	if (!json_is_string(member) || strlen(json_string_value(member)) != json_string_length(member))
		return ft_fail(FT_INVALID, "\"%s\" must be a string", name);
	*value = json_string_value(member);
	return FT_OK;
}

ft_status
ft_body_string(const json_t *object, const char *name, const char **value)
{
	FT_TRY(ft_body_optional_string(object, name, value));
	if (!*value || !**value)
		return ft_fail(FT_INVALID, "\"%s\" is missing", name);
	return FT_OK;
}

ft_status
ft_body_optional_integer(const json_t *object, const char *name, json_int_t least, json_int_t most,
						 json_int_t missing, json_int_t *value)
{
	const json_t *member = json_object_get(object, name);

	*value = missing;
	if (!member || json_is_null(member))
		return FT_OK;
	if (!json_is_integer(member))
		return ft_fail(FT_INVALID, "\"%s\" must be an integer", name);
	*value = json_integer_value(member);
	if (*value < least || *value > most)
		return ft_fail(FT_INVALID, "\"%s\" is %lld, which is not between %lld and %lld", name,
					   (long long) *value, (long long) least, (long long) most);
	return FT_OK;
}

static ft_status
optional_number(const json_t *object, const char *name, double least, double most, float *value)
{
	const json_t *member = json_object_get(object, name);
	double number;

	if (!member || json_is_null(member))
		return FT_OK;
	if (!json_is_number(member))
		return ft_fail(FT_INVALID, "\"%s\" must be a number", name);
	number = json_number_value(member);
	if (!(number >= least && number <= most))
		return ft_fail(FT_INVALID, "\"%s\" is %g, which is not between %g and %g", name, number,
					   least, most);
	*value = (float) number;
	return FT_OK;
}

static ft_status
optional_bool(const json_t *object, const char *name, bool *value)
{
	const json_t *member = json_object_get(object, name);

	if (!member || json_is_null(member))
		return FT_OK;
	if (!json_is_boolean(member))
		return ft_fail(FT_INVALID, "\"%s\" must be true or false", name);
	*value = json_is_true(member);
	return FT_OK;
}

/* A member's name as it may stand in a message: it is the client's text, so cut and cleaned. */
static ft_status
fail_unknown(const char *name)
{
	char clean[64];
	size_t n = 0;

	for (; name[n] && n < sizeof clean - 1; n++)
		clean[n] = name[n];
	clean[n] = '\0';
	for (size_t i = 0; i < n; i++)
		if ((unsigned char) clean[i] < ' ' || (unsigned char) clean[i] > '~')
			clean[i] = '?';
	return ft_fail(FT_INVALID, "unknown field \"%s\"", clean);
}

ft_status
ft_body_only(const json_t *object, const char *const *names)
{
	const char *key;
	json_t *value;

	json_object_foreach ((json_t *) object, key, value)
	{
		const char *const *name = names;

		while (*name && strcmp(*name, key) != 0)
			name++;
		if (!*name)
			return fail_unknown(key);
	}
	return FT_OK;
}

ft_status
ft_body_token_ids(const json_t *value, const char *name, size_t vocabulary, ft_ids *ids)
{
	size_t i;
	json_t *item;

	if (!json_is_array(value))
		return ft_fail(FT_INVALID, "\"%s\" must be a list of token ids", name);
	json_array_foreach (value, i, item)
	{
		json_int_t id = json_integer_value(item);

		if (!json_is_integer(item))
			return ft_fail(FT_INVALID, "\"%s\"[%zu] is not an integer", name, i);
		if (id < 0 || (uint64_t) id >= vocabulary)
			return ft_fail(FT_INVALID, "\"%s\" has the token id %lld, the model's are 0 to %zu",
						   name, (long long) id, vocabulary - 1);
		FT_TRY(ft_ids_push(ids, (int32_t) id));
	}
	return FT_OK;
}

/* --- fields that are only accepted when they ask for nothing --- */

/* What a field must say beside null. */
typedef enum off_value
{
	OFF_FALSE,
	OFF_ONE,
	OFF_EMPTY,   /* [], {} or "" */
	OFF_NONE,    /* "none" */
	OFF_ANYTHING /* it changes nothing about the answer */
} off_value;

static const struct
{
	const char *name;
	off_value off;
} off_fields[] = {
	{"best_of", OFF_ONE},           {"echo", OFF_FALSE},        {"suffix", OFF_EMPTY},
	{"logit_bias", OFF_EMPTY},      {"tools", OFF_EMPTY},       {"tool_choice", OFF_NONE},
	{"user", OFF_ANYTHING},         {"metadata", OFF_ANYTHING}, {"store", OFF_FALSE},
	{"service_tier", OFF_ANYTHING},
};

static bool
says_off(const json_t *value, off_value off)
{
	switch (off)
	{
		case OFF_FALSE:
			return json_is_false(value);
		case OFF_ONE:
			return json_is_number(value) && json_number_value(value) == 1;
		case OFF_EMPTY:
			return (json_is_array(value) && json_array_size(value) == 0) ||
				   (json_is_object(value) && json_object_size(value) == 0) ||
				   (json_is_string(value) && json_string_length(value) == 0);
		case OFF_NONE:
			return json_is_string(value) && strcmp(json_string_value(value), "none") == 0;
		case OFF_ANYTHING:
			break;
	}
	return true;
}

/* Every member must be one of the names, or an off field that is off. */
static ft_status
check_fields(const json_t *object, const char *const *names)
{
	const size_t n = sizeof off_fields / sizeof off_fields[0];
	const char *key;
	json_t *value;

	json_object_foreach ((json_t *) object, key, value)
	{
		const char *const *name = names;
		size_t i = 0;

		while (*name && strcmp(*name, key) != 0)
			name++;
		if (*name)
			continue;
		while (i < n && strcmp(off_fields[i].name, key) != 0)
			i++;
		if (i == n)
			return fail_unknown(key);
		if (!json_is_null(value) && !says_off(value, off_fields[i].off))
			return ft_fail(FT_UNSUPPORTED, "this value of \"%s\" is not supported", key);
	}
	return FT_OK;
}

/* --- sampling --- */

static ft_status
add_stop(ft_sampling *sampling, const json_t *value)
{
	size_t n = json_string_length(value);

	if (!json_is_string(value) || n == 0 || n > MAX_STOP_BYTES)
		return ft_fail(FT_INVALID, "\"stop\" must be strings of 1 to %d bytes", MAX_STOP_BYTES);
	return ft_text_append(&sampling->stops[sampling->n_stops++], json_string_value(value), n);
}

static ft_status
parse_stops(const json_t *object, ft_sampling *sampling)
{
	const json_t *stop = json_object_get(object, "stop");
	size_t n = json_is_array(stop) ? json_array_size(stop) : 1;

	if (!stop || json_is_null(stop))
		return FT_OK;
	if (n > MAX_STOPS)
		return ft_fail(FT_INVALID, "\"stop\" has %zu strings, the limit is %d", n, MAX_STOPS);
	FT_TRY(ft_alloc((void **) &sampling->stops, n, sizeof sampling->stops[0]));
	if (!json_is_array(stop))
		return add_stop(sampling, stop);
	for (size_t i = 0; i < n; i++)
		FT_TRY(add_stop(sampling, json_array_get(stop, i)));
	return FT_OK;
}

static ft_status
parse_sampling(const json_t *object, ft_sampling *sampling)
{
	json_int_t max_tokens, max_completion_tokens, top_k, seed;

	FT_TRY(optional_number(object, "temperature", 0, MAX_TEMPERATURE, &sampling->temperature));
	FT_TRY(optional_number(object, "top_p", 0, 1, &sampling->top_p));
	FT_TRY(optional_number(object, "min_p", 0, 1, &sampling->min_p));
	FT_TRY(optional_number(object, "presence_penalty", -MAX_PENALTY, MAX_PENALTY,
						   &sampling->presence_penalty));
	FT_TRY(optional_number(object, "frequency_penalty", -MAX_PENALTY, MAX_PENALTY,
						   &sampling->frequency_penalty));
	FT_TRY(optional_number(object, "repetition_penalty", MIN_REPETITION_PENALTY,
						   MAX_REPETITION_PENALTY, &sampling->repetition_penalty));
	if (sampling->top_p <= 0)
		return ft_fail(FT_INVALID, "\"top_p\" is %g, which is not above 0", sampling->top_p);
	/* vLLM writes -1 for "off" */
	FT_TRY(ft_body_optional_integer(object, "top_k", -1, INT32_MAX, 0, &top_k));
	sampling->top_k = top_k < 0 ? 0 : (int32_t) top_k;
	FT_TRY(ft_body_optional_integer(object, "seed", INT64_MIN, INT64_MAX,
									(json_int_t) sampling->seed, &seed));
	sampling->seed = (uint64_t) seed;
	FT_TRY(ft_body_optional_integer(object, "max_tokens", 1, INT32_MAX, FT_DEFAULT_MAX_TOKENS,
									&max_tokens));
	FT_TRY(ft_body_optional_integer(object, "max_completion_tokens", 1, INT32_MAX, max_tokens,
									&max_completion_tokens));
	sampling->max_tokens = (int) max_completion_tokens;
	FT_TRY(optional_bool(object, "ignore_eos", &sampling->ignore_eos));
	return parse_stops(object, sampling);
}

/* --- input --- */

void
ft_input_free(ft_input *input)
{
	for (size_t i = 0; input->owned && i < input->n_messages; i++)
		ft_text_free(&input->owned[i]);
	free(input->owned);
	free(input->messages);
	*input = (ft_input){0};
}

/* Content is a string, or a list of parts of type text. */
static ft_status
parse_content(const json_t *content, size_t index, ft_message *message, ft_text *owned)
{
	size_t i;
	json_t *part;

	if (json_is_string(content))
	{
		message->content = json_string_value(content);
		message->content_length = json_string_length(content);
		return FT_OK;
	}
	if (!json_is_array(content))
		return ft_fail(FT_INVALID, "message %zu has no content", index);
	FT_TRY(ft_text_append(owned, "", 0));
	json_array_foreach (content, i, part)
	{
		const char *type = json_string_value(json_object_get(part, "type"));
		const json_t *text = json_object_get(part, "text");

		if (!type || strcmp(type, "text") != 0 || !json_is_string(text))
			return ft_fail(FT_UNSUPPORTED, "part %zu of message %zu is not text", i, index);
		FT_TRY(ft_text_append(owned, json_string_value(text), json_string_length(text)));
	}
	message->content = owned->data;
	message->content_length = owned->length;
	return FT_OK;
}

static ft_status
parse_messages(const json_t *list, ft_input *input)
{
	static const char *const names[] = {"role", "content", "name", "weight", NULL};
	size_t i;
	json_t *item;

	if (!json_is_array(list) || json_array_size(list) == 0)
		return ft_fail(FT_INVALID, "\"messages\" must be a list of at least one message");
	FT_TRY(ft_alloc((void **) &input->messages, json_array_size(list), sizeof(ft_message)));
	FT_TRY(ft_alloc((void **) &input->owned, json_array_size(list), sizeof(ft_text)));
	input->n_messages = json_array_size(list);
	json_array_foreach (list, i, item)
	{
		if (!json_is_object(item))
			return ft_fail(FT_INVALID, "message %zu is not an object", i);
		FT_TRY(ft_body_only(item, names));
		FT_TRY(ft_body_string(item, "role", &input->messages[i].role));
		input->messages[i].weight = 1;
		FT_TRY(parse_content(json_object_get(item, "content"), i, &input->messages[i],
							 &input->owned[i]));
	}
	return FT_OK;
}

static ft_status
parse_input(const json_t *object, ft_input_kind kind, ft_input *input)
{
	const json_t *prompt = json_object_get(object, "prompt");
	const json_t *messages = json_object_get(object, "messages");

	input->add_generation_prompt = true;
	input->add_special_tokens = true;
	FT_TRY(optional_bool(object, "add_special_tokens", &input->add_special_tokens));
	FT_TRY(optional_bool(object, "add_generation_prompt", &input->add_generation_prompt));
	if (prompt && messages)
		return ft_fail(FT_INVALID, "\"prompt\" and \"messages\" exclude each other");
	if (messages && kind != FT_INPUT_COMPLETION)
		return parse_messages(messages, input);
	if (kind == FT_INPUT_CHAT)
		return ft_fail(FT_INVALID, "\"messages\" is missing");
	if (!json_is_string(prompt) && !json_is_array(prompt))
		return ft_fail(FT_INVALID, "\"prompt\" must be a string or a list of token ids");
	input->prompt = prompt;
	return FT_OK;
}

/* A chat says with a boolean whether and with top_logprobs how many; a completion, how many. */
static ft_status
parse_logprobs(const json_t *object, ft_input_kind kind, ft_sampling *sampling)
{
	json_int_t top;

	if (kind == FT_INPUT_COMPLETION && json_is_false(json_object_get(object, "logprobs")))
		return FT_OK;
	if (kind == FT_INPUT_COMPLETION)
	{
		if (json_object_get(object, "top_logprobs"))
			return ft_fail(FT_INVALID, "\"top_logprobs\" is for chats, here it is \"logprobs\"");
		FT_TRY(ft_body_optional_integer(object, "logprobs", 0, FT_MAX_TOP_LOGPROBS, -1, &top));
		sampling->logprobs = top >= 0;
		sampling->top_logprobs = top < 0 ? 0 : (int) top;
		return FT_OK;
	}
	FT_TRY(optional_bool(object, "logprobs", &sampling->logprobs));
	FT_TRY(ft_body_optional_integer(object, "top_logprobs", 0, FT_MAX_TOP_LOGPROBS, 0, &top));
	if (top > 0 && !sampling->logprobs)
		return ft_fail(FT_INVALID, "\"top_logprobs\" is given without \"logprobs\"");
	sampling->top_logprobs = (int) top;
	return FT_OK;
}

static ft_status
parse_stream(const json_t *object, const ft_sampling *sampling, ft_answer_options *options)
{
	static const char *const names[] = {"include_usage", "continuous_usage_stats",
										"include_obfuscation", NULL};
	const json_t *more = json_object_get(object, "stream_options");

	FT_TRY(optional_bool(object, "stream", &options->stream));
	if (more && !json_is_null(more))
	{
		if (!json_is_object(more))
			return ft_fail(FT_INVALID, "\"stream_options\" must be an object");
		FT_TRY(ft_body_only(more, names));
		if (!options->stream && json_object_size(more) > 0)
			return ft_fail(FT_INVALID, "\"stream_options\" is given without \"stream\"");
		FT_TRY(optional_bool(more, "include_usage", &options->include_usage));
		FT_TRY(optional_bool(more, "continuous_usage_stats", &options->continuous_usage));
		if (options->continuous_usage && !options->include_usage)
			return ft_fail(FT_INVALID,
						   "\"continuous_usage_stats\" is given without \"include_usage\"");
	}
	if (options->stream && sampling->logprobs)
		return ft_fail(FT_UNSUPPORTED, "\"logprobs\" with \"stream\" is not supported");
	return FT_OK;
}

static ft_status
parse_options(const json_t *object, ft_input_kind kind, ft_sampling *sampling,
			  ft_answer_options *options)
{
	json_int_t n;

	*options = (ft_answer_options){0};
	FT_TRY(ft_body_optional_string(object, "cache_salt", &options->cache_salt));
	if (options->cache_salt && strlen(options->cache_salt) > MAX_SALT_BYTES)
		return ft_fail(FT_INVALID, "\"cache_salt\" has %zu bytes, the limit is %d",
					   strlen(options->cache_salt), MAX_SALT_BYTES);
	options->response_format = json_object_get(object, "response_format");
	FT_TRY(ft_body_optional_integer(object, "n", 1, MAX_ANSWERS, 1, &n));
	options->n = (int) n;
	FT_TRY(parse_logprobs(object, kind, sampling));
	return parse_stream(object, sampling, options);
}

ft_status
ft_request_parse(const json_t *object, ft_input_kind kind, ft_input *input, ft_sampling *sampling,
				 ft_answer_options *options)
{
	static const char *const tokenize_names[] = {
		"model", "prompt", "messages", "add_generation_prompt", "add_special_tokens", NULL};
	static const char *const names[] = {"model",
										"prompt",
										"messages",
										"add_generation_prompt",
										"add_special_tokens",
										"temperature",
										"top_p",
										"min_p",
										"top_k",
										"seed",
										"presence_penalty",
										"frequency_penalty",
										"repetition_penalty",
										"max_tokens",
										"max_completion_tokens",
										"stop",
										"ignore_eos",
										"cache_salt",
										"response_format",
										"n",
										"logprobs",
										"top_logprobs",
										"stream",
										"stream_options",
										NULL};

	if (kind == FT_INPUT_TOKENIZE)
	{
		FT_TRY(ft_body_only(object, tokenize_names));
		return parse_input(object, kind, input);
	}
	FT_TRY(check_fields(object, names));
	FT_TRY(parse_sampling(object, sampling));
	FT_TRY(parse_options(object, kind, sampling, options));
	return parse_input(object, kind, input);
}

size_t
ft_input_bytes(const ft_input *input)
{
	size_t n = 0;

	if (json_is_string(input->prompt))
		return json_string_length(input->prompt);
	for (size_t i = 0; i < input->n_messages; i++)
		n += input->messages[i].content_length;
	return n;
}

ft_status
ft_input_encode(const ft_input *input, const ft_tokenizer *tokenizer,
				const ft_chat_template *chat_template, const char *prompt_template, int bos,
				size_t vocabulary, ft_ids *ids)
{
	if (!input->prompt)
		return ft_prompt_encode(prompt_template, chat_template, tokenizer, input->messages,
								input->n_messages, input->add_generation_prompt, ids, NULL);
	if (json_is_array(input->prompt))
		return ft_body_token_ids(input->prompt, "prompt", vocabulary, ids);
	if (input->add_special_tokens && bos >= 0)
		FT_TRY(ft_ids_push(ids, bos));
	return ft_tokenizer_encode(tokenizer, json_string_value(input->prompt),
							   json_string_length(input->prompt), false, ids);
}
