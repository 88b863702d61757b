/*
 * fuzz_request.c: bodies of HTTP requests.
 *
 * The first byte chooses the route's kind, the rest is the body.  What parses
 * is also turned into a reply's error, because that is where a client's bytes
 * could come back out.
 */
#include "api_json.h"
#include "request.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define VOCABULARY 1000

/* The failure becomes a reply, which must be JSON whatever was sent. */
static void
check_failure(ft_status status)
{
	json_t *error = ft_api_error(status, ft_error_message(), ft_error_hint());
	char *text = json_dumps(error, JSON_COMPACT);

	if (!text || strlen(ft_error_message()) == 0)
		abort();
	free(text);
	json_decref(error);
}

static ft_status
parse_completion(const json_t *body, ft_input_kind kind)
{
	ft_input input = {0};
	ft_sampling sampling;
	ft_answer_options options;
	ft_ids ids = {0};
	ft_status status;

	ft_sampling_default(&sampling);
	status = ft_request_parse(body, kind, &input, kind == FT_INPUT_TOKENIZE ? NULL : &sampling,
							  kind == FT_INPUT_TOKENIZE ? NULL : &options);
	if (status == FT_OK)
	{
		(void) ft_input_bytes(&input);
		if (input.prompt && json_is_array(input.prompt))
			status = ft_body_token_ids(input.prompt, "prompt", VOCABULARY, &ids);
		if (sampling.max_tokens < 1 || !(sampling.temperature >= 0) || !(sampling.top_p > 0) ||
			sampling.top_k < 0)
			abort();
		for (size_t i = 0; i < input.n_messages; i++)
			if (!input.messages[i].role || !input.messages[i].content)
				abort();
	}
	ft_ids_free(&ids);
	ft_input_free(&input);
	ft_sampling_free(&sampling);
	return status;
}

static ft_status
parse_members(const json_t *body)
{
	static const char *const names[] = {"model",          "path",   "template",
										"context_length", "tokens", NULL};
	const char *text;
	json_int_t number;
	ft_ids ids = {0};
	ft_status status;

	FT_TRY(ft_body_only(body, names));
	FT_TRY(ft_body_string(body, "model", &text));
	FT_TRY(ft_body_optional_string(body, "template", &text));
	FT_TRY(ft_body_optional_integer(body, "context_length", 1, INT32_MAX, 0, &number));
	status = ft_body_token_ids(json_object_get(body, "tokens"), "tokens", VOCABULARY, &ids);
	ft_ids_free(&ids);
	return status;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	json_t *body;
	ft_status status;

	if (size < 1)
		return 0;
	status = ft_body_parse((const char *) data + 1, size - 1, &body);
	if (status != FT_OK)
	{
		check_failure(status);
		return 0;
	}
	if (data[0] % 4 == 3)
		status = parse_members(body);
	else
		status = parse_completion(body, (ft_input_kind) (data[0] % 4));
	if (status != FT_OK)
		check_failure(status);
	json_decref(body);
	return 0;
}
