/*
 * response_format.c: formats taken apart, and the constraints of a base.
 */
#include "response_format.h"

#include "buffer.h"
#include "digest.h"
#include "json_schema.h"

#include <stdlib.h>
#include <string.h>

/* Constraints that nobody uses are kept up to so many. */
#define KEPT 64

typedef struct entry
{
	char digest[FT_DIGEST_HEX]; /* of the format's text */
	ft_constraint *constraint;
	int users;
	struct entry *next;
} entry;

struct ft_constraint_cache
{
	ft_constraint_vocabulary *vocabulary;
	entry *first; /* the one asked for last */
};

/* --- formats --- */

static ft_status
check_members(const json_t *object, const char *where, const char *const *names)
{
	const char *key;
	json_t *value;

	json_object_foreach ((json_t *) object, key, value)
	{
		const char *const *name = names;

		while (*name && strcmp(*name, key) != 0)
			name++;
		if (!*name)
			return ft_fail(FT_INVALID, "\"%s\" has a member that is not known", where);
	}
	return FT_OK;
}

static ft_status
schema_grammar(const json_t *format, ft_grammar **grammar)
{
	static const char *const names[] = {"type", "json_schema", NULL};
	static const char *const inner_names[] = {"name",   "description",    "schema",
											  "strict", "required_first", NULL};
	const json_t *inner = json_object_get(format, "json_schema");
	const json_t *schema = json_object_get(inner, "schema");

	FT_TRY(check_members(format, "response_format", names));
	if (!json_is_object(inner))
		return ft_fail(FT_INVALID, "\"response_format\" has no object \"json_schema\"");
	FT_TRY(check_members(inner, "json_schema", inner_names));
	if (!schema)
		return ft_fail(FT_INVALID, "\"json_schema\" has no \"schema\"");
	return ft_json_schema_grammar(schema, json_is_true(json_object_get(inner, "required_first")),
								  grammar);
}

ft_status
ft_response_format_grammar(const json_t *format, ft_grammar **grammar)
{
	static const char *const type_only[] = {"type", NULL};
	const char *type = json_string_value(json_object_get(format, "type"));

	*grammar = NULL;
	if (!format || json_is_null(format))
		return FT_OK;
	if (!type)
		return ft_fail(FT_INVALID, "\"response_format\" must be an object with a \"type\"");
	if (strcmp(type, "json_schema") == 0)
		return schema_grammar(format, grammar);
	if (strcmp(type, "text") != 0 && strcmp(type, "json_object") != 0)
		return ft_fail(FT_UNSUPPORTED,
					   "the type of \"response_format\" must be text, json_object or json_schema");
	FT_TRY(check_members(format, "response_format", type_only));
	return strcmp(type, "text") == 0 ? FT_OK : ft_json_object_grammar(grammar);
}

/* --- the cache --- */

ft_status
ft_constraint_cache_create(const ft_tokenizer *tokenizer, size_t vocabulary,
						   ft_constraint_cache **result)
{
	ft_constraint_cache *cache;
	ft_status status;

	FT_TRY(ft_alloc((void **) &cache, 1, sizeof *cache));
	status = ft_constraint_vocabulary_create(tokenizer, vocabulary, &cache->vocabulary);
	if (status != FT_OK)
	{
		free(cache);
		return status;
	}
	*result = cache;
	return FT_OK;
}

static void
free_entry(entry *e)
{
	ft_constraint_free(e->constraint);
	free(e);
}

void
ft_constraint_cache_free(ft_constraint_cache *cache)
{
	if (!cache)
		return;
	while (cache->first)
	{
		entry *e = cache->first;

		cache->first = e->next;
		free_entry(e);
	}
	ft_constraint_vocabulary_free(cache->vocabulary);
	free(cache);
}

/* Free those that nobody uses and that were not asked for lately. */
static void
evict(ft_constraint_cache *cache)
{
	int n = 0;

	for (entry **at = &cache->first; *at;)
	{
		entry *e = *at;

		if (e->users > 0 || n++ < KEPT)
		{
			at = &e->next;
			continue;
		}
		*at = e->next;
		free_entry(e);
	}
}

/* The entry of a digest, moved to the front; NULL for none. */
static entry *
find(ft_constraint_cache *cache, const char *digest)
{
	for (entry **at = &cache->first; *at; at = &(*at)->next)
	{
		entry *e = *at;

		if (strcmp(e->digest, digest) != 0)
			continue;
		*at = e->next;
		e->next = cache->first;
		cache->first = e;
		return e;
	}
	return NULL;
}

static ft_status
digest_of(const json_t *format, char digest[FT_DIGEST_HEX])
{
	char *text = json_dumps(format, JSON_COMPACT | JSON_ENCODE_ANY);
	ft_status status;

	if (!text)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	status = ft_digest_bytes(text, strlen(text), digest);
	free(text);
	return status;
}

/* A new entry, at the front. */
static ft_status
add(ft_constraint_cache *cache, ft_grammar *grammar, const char *digest, entry **result)
{
	entry *e;
	ft_status status = ft_alloc((void **) &e, 1, sizeof *e);

	if (status != FT_OK)
	{
		ft_grammar_free(grammar);
		return status;
	}
	status = ft_constraint_create(grammar, cache->vocabulary, &e->constraint);
	if (status != FT_OK)
	{
		free(e);
		return status;
	}
	memcpy(e->digest, digest, FT_DIGEST_HEX);
	e->next = cache->first;
	cache->first = e;
	*result = e;
	return FT_OK;
}

ft_status
ft_constraint_cache_get(ft_constraint_cache *cache, const json_t *format,
						ft_constraint **constraint)
{
	char digest[FT_DIGEST_HEX];
	ft_grammar *grammar;
	entry *e;

	*constraint = NULL;
	if (!format || json_is_null(format))
		return FT_OK;
	FT_TRY(digest_of(format, digest));
	e = find(cache, digest);
	if (!e)
	{
		FT_TRY(ft_response_format_grammar(format, &grammar));
		if (!grammar)
			return FT_OK;
		FT_TRY(add(cache, grammar, digest, &e));
	}
	e->users++;
	*constraint = e->constraint;
	evict(cache);
	return FT_OK;
}

void
ft_constraint_cache_put(ft_constraint_cache *cache, ft_constraint *constraint)
{
	if (!constraint)
		return;
	for (entry *e = cache->first; e; e = e->next)
		if (e->constraint == constraint)
			e->users--;
	evict(cache);
}
