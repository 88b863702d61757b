/*
 * fuzz_endpoint.c: what other servers answer, and the URLs that they are found by.
 *
 * The first byte chooses between an answer, a refusal, a request to be passed on
 * and a URL; the second what was asked for.  Whatever comes in, a failure's words
 * are those that the engine has, and hold nothing of it.
 */
#include "api_json.h"
#include "endpoint_json.h"
#include "endpoint_url.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Stands in no message of ours: an input that has it must not get it into one. */
#define CANARY "kanarie"

static void
check_words(const char *words)
{
	for (const char *c = words; *c; c++)
		if (*c < ' ' || *c > '~')
			abort();
	if (strstr(words, CANARY))
		abort();
}

static void
check_failure(ft_status status)
{
	if (status == FT_OK || strlen(ft_error_message()) == 0)
		abort();
	check_words(ft_error_message());
	check_words(ft_error_hint());
}

static void
try_answer(const char *body, size_t n, uint8_t bits)
{
	ft_endpoint_asked asked = {.n = 1 + (bits & 3), .logprobs = bits & 4, .json = bits & 8};
	json_t *reply = NULL;
	ft_status status = ft_endpoint_answer(body, n, &asked, "model", &reply);
	char *text;

	if (status != FT_OK)
	{
		check_failure(status);
		return;
	}
	if (json_array_size(json_object_get(reply, "choices")) != (size_t) asked.n)
		abort();
	text = json_dumps(reply, JSON_COMPACT);
	if (!text)
		abort();
	free(text);
	json_decref(reply);
}

static void
try_refusal(const char *body, size_t n, uint8_t bits)
{
	static const long codes[] = {400, 401, 403, 404, 402, 408, 422, 429, 500, 503, 307, 204};
	ft_endpoint_refusal refusal = {codes[bits % 12], body, n, bits % 3 * 1000};
	json_t *request = json_pack("{s:i, s:f, s:s}", "top_k", 1, "temperature", 0.5, "model", "m");

	(void) ft_endpoint_passes(&refusal);
	check_failure(ft_endpoint_refused(&refusal, request, bits & 16));
	json_decref(request);
}

static void
try_request(const char *body, size_t n)
{
	json_t *request = json_loadb(body, n, JSON_ALLOW_NUL, NULL);
	ft_endpoint_asked asked;
	json_t *others;
	char *text;

	if (ft_endpoint_request(request, &others, &asked) == FT_OK)
	{
		text = json_dumps(others, JSON_COMPACT);
		if (!text || asked.n < 1 || asked.n > 128)
			abort();
		free(text);
		json_decref(others);
	}
	json_decref(request);
}

static void
try_url(const char *body, size_t n, uint8_t bits)
{
	char *endpoint = strndup(body, n);
	ft_text url = {0};
	ft_status status = ft_endpoint_url(endpoint, bits & 1, &url);

	if (status != FT_OK)
		check_failure(status);
	else if (strpbrk(url.data, "@?# \r\n\t\\"))
		abort();
	ft_text_free(&url);
	free(endpoint);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *body = (const char *) data + 2;

	if (size < 2)
		return 0;
	size -= 2;
	switch (data[0] % 4)
	{
		case 0:
			try_answer(body, size, data[1]);
			break;
		case 1:
			try_refusal(body, size, data[1]);
			break;
		case 2:
			try_request(body, size);
			break;
		default:
			try_url(body, size, data[1]);
			break;
	}
	return 0;
}
