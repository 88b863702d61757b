/*
 * json_text.c: JSON that others wrote, in the files of a model directory.
 */
#include "json_text.h"

#include <math.h>
#include <string.h>

static ft_status
parse(const char *text, size_t n, size_t flags, json_t **object)
{
	json_error_t error;

	*object = json_loadb(text, n, JSON_REJECT_DUPLICATES | flags, &error);
	if (*object == NULL)
	{
		if (json_error_code(&error) == json_error_out_of_memory)
			return ft_fail(FT_NO_MEMORY, "out of memory: %zu bytes of JSON", n);
		if (json_error_code(&error) == json_error_duplicate_key)
			return ft_fail(FT_CORRUPT, "a key stands twice in one object, at line %d", error.line);
		return ft_fail(FT_CORRUPT, "not valid JSON at line %d", error.line);
	}
	if (json_is_object(*object))
		return FT_OK;
	json_decref(*object);
	*object = NULL;
	return ft_fail(FT_CORRUPT, "not a JSON object");
}

ft_status
ft_json_parse(const char *text, size_t n, json_t **object)
{
	return parse(text, n, 0, object);
}

ft_status
ft_json_parse_words(const char *text, size_t n, json_t **object)
{
	return parse(text, n, JSON_DECODE_INT_AS_REAL, object);
}

const json_t *
ft_json_get(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	return json_is_null(value) ? NULL : value;
}

ft_status
ft_json_get_int(const json_t *object, const char *key, int64_t low, int64_t high, int64_t *to)
{
	const json_t *value = ft_json_get(object, key);

	if (value == NULL)
		return FT_OK;
	if (!json_is_integer(value))
		return ft_fail(FT_CORRUPT, "\"%s\" is no integer", key);
	if (json_integer_value(value) < low || json_integer_value(value) > high)
		return ft_fail(FT_CORRUPT, "\"%s\" is %lld, expected %lld to %lld", key,
					   (long long) json_integer_value(value), (long long) low, (long long) high);
	*to = json_integer_value(value);
	return FT_OK;
}

ft_status
ft_json_get_number(const json_t *object, const char *key, double *to)
{
	const json_t *value = ft_json_get(object, key);

	if (value == NULL)
		return FT_OK;
	if (!json_is_number(value) || !isfinite(json_number_value(value)))
		return ft_fail(FT_CORRUPT, "\"%s\" is no number", key);
	*to = json_number_value(value);
	return FT_OK;
}

ft_status
ft_json_get_flag(const json_t *object, const char *key, bool *to)
{
	const json_t *value = ft_json_get(object, key);

	if (value == NULL)
		return FT_OK;
	if (!json_is_boolean(value))
		return ft_fail(FT_CORRUPT, "\"%s\" is neither true nor false", key);
	*to = json_is_true(value);
	return FT_OK;
}

ft_status
ft_json_get_string(const json_t *object, const char *key, const char **to)
{
	const json_t *value = ft_json_get(object, key);

	if (value == NULL)
		return FT_OK;
	if (!json_is_string(value))
		return ft_fail(FT_CORRUPT, "\"%s\" is no string", key);
	*to = json_string_value(value);
	return FT_OK;
}

const char *
ft_json_printable(const char *text, char to[FT_PRINTABLE_SIZE])
{
	size_t n = strnlen(text, FT_PRINTABLE_SIZE - 1);

	for (size_t i = 0; i < n; i++)
		to[i] = text[i] >= 0x20 && text[i] < 0x7f ? text[i] : '?';
	to[n] = '\0';
	return to;
}
