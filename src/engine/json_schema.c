/*
 * json_schema.c: JSON Schema to grammar.
 *
 * A schema becomes nodes between the two that its caller names.  What can be
 * come to more than once, by $ref or as an array's items, becomes a rule, made
 * when it is first asked for and filled in later, out of a list: so schemas
 * that refer to themselves need no recursion here.
 */
#include "json_schema.h"

#include "buffer.h"
#include "grammar_json.h"
#include "json_values.h"

#include <math.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 64 /* of schemas in schemas */
#define MAX_ENUM 10000
#define MAX_ITEMS 10000
#define MAX_PLACE 160 /* bytes of a place in messages */

/* A schema that is a rule. */
typedef struct rule
{
	const json_t *schema;
	int32_t number;
	char *place;
	struct rule *next; /* to be filled in */
} rule;

typedef struct compiler
{
	ft_grammar *g;
	ft_json_rules json;
	const json_t *root;
	void *rules; /* a tree (tsearch) by schema */
	rule *first, **end;
	ft_text place; /* as a JSON pointer */
	int depth;
	bool required_first;
} compiler;

static ft_status compile(compiler *c, const json_t *schema, int32_t from, int32_t to);

/* --- places, for messages --- */

/* The place as it may stand in a message: it has the client's text in it, so cut and cleaned. */
static const char *
place_of(const compiler *c)
{
	static _Thread_local char clean[MAX_PLACE + 8];
	size_t n = c->place.length;
	size_t cut = n > MAX_PLACE ? MAX_PLACE : n;

	for (size_t i = 0; i < cut; i++)
	{
		unsigned char byte = (unsigned char) c->place.data[i];

		clean[i] = byte < ' ' || byte > '~' || byte == '"' ? '?' : (char) byte;
	}
	strcpy(clean + cut, n > cut ? "..." : "");
	return clean;
}

#define fail_at(c, code, fmt, ...) \
	ft_fail(code, "schema at \"%s\": " fmt, place_of(c), ##__VA_ARGS__)

/* A keyword as it may stand in a message. */
static const char *
keyword_of(const char *keyword)
{
	static _Thread_local char clean[48];
	size_t n = 0;

	for (; keyword[n] && n < sizeof clean - 1; n++)
		clean[n] = keyword[n] < ' ' || keyword[n] > '~' || keyword[n] == '"' ? '?' : keyword[n];
	clean[n] = '\0';
	return clean;
}

/* Go on to a member's place; returns what to go back to. */
static ft_status
enter(compiler *c, const char *member, size_t *before)
{
	*before = c->place.length;
	FT_TRY(ft_text_append(&c->place, "/", 1));
	for (; *member; member++)
	{
		if (*member == '~')
			FT_TRY(ft_text_append(&c->place, "~0", 2));
		else if (*member == '/')
			FT_TRY(ft_text_append(&c->place, "~1", 2));
		else
			FT_TRY(ft_text_append(&c->place, member, 1));
	}
	return FT_OK;
}

static ft_status
enter_index(compiler *c, size_t index, size_t *before)
{
	*before = c->place.length;
	return ft_text_printf(&c->place, "/%zu", index);
}

static void
leave(compiler *c, size_t before)
{
	c->place.length = before;
	c->place.data[before] = '\0';
}

/* --- keywords --- */

enum
{
	TYPE = 1,
	PROPERTIES = 2,
	REQUIRED = 4,
	ADDITIONAL = 8,
	ITEMS = 16,
	MIN_ITEMS = 32,
	MAX_ITEMS_WORD = 64,
	ENUM = 128,
	CONST = 256,
	ANY_OF = 512,
	REF = 1024,
	NOTHING = 0
};

static const struct
{
	const char *name;
	int bit;
} keywords[] = {
	{"type", TYPE},
	{"properties", PROPERTIES},
	{"required", REQUIRED},
	{"additionalProperties", ADDITIONAL},
	{"items", ITEMS},
	{"minItems", MIN_ITEMS},
	{"maxItems", MAX_ITEMS_WORD},
	{"enum", ENUM},
	{"const", CONST},
	{"anyOf", ANY_OF},
	{"$ref", REF},
	{"$defs", NOTHING},
	{"definitions", NOTHING},
	{"$schema", NOTHING},
	{"$id", NOTHING},
	{"$comment", NOTHING},
	{"title", NOTHING},
	{"description", NOTHING},
	{"default", NOTHING},
	{"examples", NOTHING},
	{"deprecated", NOTHING},
	{"readOnly", NOTHING},
	{"writeOnly", NOTHING},
};

/* Which keywords a schema has. */
static ft_status
read_keywords(const compiler *c, const json_t *schema, int *set)
{
	const char *key;
	json_t *value;

	*set = 0;
	if (!json_is_object(schema))
		return fail_at(c, json_is_boolean(schema) ? FT_UNSUPPORTED : FT_INVALID,
					   "a schema must be an object");
	json_object_foreach ((json_t *) schema, key, value)
	{
		size_t i = 0;

		while (i < sizeof keywords / sizeof keywords[0] && strcmp(keywords[i].name, key) != 0)
			i++;
		if (i == sizeof keywords / sizeof keywords[0])
			return fail_at(c, FT_UNSUPPORTED, "\"%s\" is not supported", keyword_of(key));
		*set |= keywords[i].bit;
	}
	return FT_OK;
}

/* Keywords that say more beside one that says all. */
static ft_status
check_alone(const compiler *c, int set, int allowed, const char *keyword)
{
	for (size_t i = 0; i < sizeof keywords / sizeof keywords[0]; i++)
		if (set & keywords[i].bit & ~allowed)
			return fail_at(c, FT_UNSUPPORTED, "\"%s\" beside \"%s\" is not supported",
						   keywords[i].name, keyword);
	return FT_OK;
}

/* --- types --- */

enum
{
	OBJECT = 1,
	ARRAY = 2,
	STRING = 4,
	NUMBER = 8,
	INTEGER = 16,
	BOOLEAN = 32,
	NULL_TYPE = 64,
	ANY_TYPE = 127
};

static ft_status
type_named(const compiler *c, const json_t *name, int *types)
{
	static const char *const names[] = {"object",  "array",   "string", "number",
										"integer", "boolean", "null"};

	for (int i = 0; i < 7; i++)
		if (json_is_string(name) && strcmp(json_string_value(name), names[i]) == 0)
		{
			*types |= 1 << i;
			return FT_OK;
		}
	return fail_at(c, FT_INVALID,
				   "\"type\" must be object, array, string, number, integer, boolean or null, "
				   "or a list of these");
}

static ft_status
read_types(const compiler *c, const json_t *type, int *types)
{
	size_t i;
	json_t *item;

	*types = 0;
	if (!json_is_array(type))
		return type_named(c, type, types);
	json_array_foreach (type, i, item)
		FT_TRY(type_named(c, item, types));
	if (*types == 0)
		return fail_at(c, FT_INVALID, "\"type\" is an empty list");
	return FT_OK;
}

static int
types_of_value(const json_t *value)
{
	switch (json_typeof(value))
	{
		case JSON_OBJECT:
			return OBJECT;
		case JSON_ARRAY:
			return ARRAY;
		case JSON_STRING:
			return STRING;
		case JSON_INTEGER:
			return NUMBER | INTEGER;
		case JSON_REAL:
			return json_real_value(value) == floor(json_real_value(value)) ? NUMBER | INTEGER
																		   : NUMBER;
		case JSON_TRUE:
		case JSON_FALSE:
			return BOOLEAN;
		case JSON_NULL:
			break;
	}
	return NULL_TYPE;
}

/* --- rules --- */

static int
compare_rules(const void *a, const void *b)
{
	const json_t *x = ((const rule *) a)->schema, *y = ((const rule *) b)->schema;

	return (x > y) - (x < y);
}

static void
free_rule(void *argument)
{
	free(((rule *) argument)->place);
	free(argument);
}

/* The rule of a schema at the current place. */
static ft_status
rule_of(compiler *c, const json_t *schema, int32_t *number)
{
	rule wanted = {.schema = schema};
	rule **known = tfind(&wanted, &c->rules, compare_rules);
	rule *made;

	if (known)
	{
		*number = (*known)->number;
		return FT_OK;
	}
	FT_TRY(ft_alloc((void **) &made, 1, sizeof *made));
	made->schema = schema;
	made->place = strdup(c->place.data);
	if (!made->place || !tsearch(made, &c->rules, compare_rules))
	{
		free_rule(made);
		return ft_fail(FT_NO_MEMORY, "out of memory");
	}
	made->number = *number = ft_grammar_rule_new(c->g);
	*c->end = made;
	c->end = &made->next;
	return c->g->status;
}

/* --- $ref --- */

/* The next part of a JSON pointer, its escapes undone; *pointer is moved behind it. */
static ft_status
pointer_part(const char **pointer, ft_text *part)
{
	const char *at = *pointer + 1;

	ft_text_clear(part);
	FT_TRY(ft_text_append(part, "", 0));
	for (; *at && *at != '/'; at++)
	{
		char byte = *at;

		if (byte == '~' && (at[1] == '0' || at[1] == '1'))
			byte = *++at == '0' ? '~' : '/';
		FT_TRY(ft_text_append(part, &byte, 1));
	}
	*pointer = at;
	return FT_OK;
}

static ft_status
find_target(const compiler *c, const char *pointer, ft_text *part, const json_t **target)
{
	*target = c->root;
	while (*pointer && *target)
	{
		FT_TRY(pointer_part(&pointer, part));
		if (json_is_array(*target))
		{
			char *end;
			unsigned long index = strtoul(part->data, &end, 10);

			*target = *end || end == part->data ? NULL : json_array_get(*target, index);
		}
		else
			*target = json_object_get(*target, part->data);
	}
	return FT_OK;
}

static ft_status
compile_ref(compiler *c, const json_t *schema, int32_t from, int32_t to)
{
	const char *ref = json_string_value(json_object_get(schema, "$ref"));
	const json_t *target = NULL;
	ft_text part = {0};
	ft_text before = c->place;
	int32_t number = 0;
	ft_status status;

	if (!ref)
		return fail_at(c, FT_INVALID, "\"$ref\" must be a string");
	if (ref[0] != '#' || (ref[1] != '\0' && ref[1] != '/'))
		return fail_at(c, FT_UNSUPPORTED,
					   "only a \"$ref\" to a part of the schema is supported, like \"#/$defs/x\"");
	status = find_target(c, ref + 1, &part, &target);
	ft_text_free(&part);
	FT_TRY(status);
	if (!target)
		return fail_at(c, FT_INVALID, "\"$ref\" leads to nothing");
	c->place = (ft_text){0};
	status = ft_text_append(&c->place, ref, strlen(ref));
	if (status == FT_OK)
		status = rule_of(c, target, &number);
	ft_text_free(&c->place);
	c->place = before;
	FT_TRY(status);
	ft_grammar_call(c->g, from, number, to);
	return FT_OK;
}

/* --- enum and const --- */

/* Of values[n] those of the types. */
static ft_status
compile_values(compiler *c, const json_t **values, size_t n, int types, int32_t from, int32_t to)
{
	size_t n_fit = 0;

	for (size_t i = 0; i < n; i++)
		if (types_of_value(values[i]) & types)
			values[n_fit++] = values[i];
	if (n_fit == 0)
		return fail_at(c, FT_INVALID, "none of the values is of the type");
	return ft_json_values_grammar(values, n_fit, c->g, from, to);
}

static ft_status
compile_enum(compiler *c, const json_t *schema, int types, int32_t from, int32_t to)
{
	const json_t *list = json_object_get(schema, "enum");
	const json_t **values;
	size_t n = json_array_size(list);
	ft_status status;

	if (n == 0)
		return fail_at(c, FT_INVALID, "\"enum\" must be a list with at least one value");
	if (n > MAX_ENUM)
		return fail_at(c, FT_INVALID, "\"enum\" has %zu values, the limit is %d", n, MAX_ENUM);
	FT_TRY(ft_alloc((void **) &values, n, sizeof *values));
	for (size_t i = 0; i < n; i++)
		values[i] = json_array_get(list, i);
	status = compile_values(c, values, n, types, from, to);
	free(values);
	return status;
}

/* --- anyOf --- */

static ft_status
compile_any_of(compiler *c, const json_t *schema, int32_t from, int32_t to)
{
	const json_t *list = json_object_get(schema, "anyOf");
	size_t i, outer, inner;
	json_t *item;

	if (json_array_size(list) == 0)
		return fail_at(c, FT_INVALID, "\"anyOf\" must be a list with at least one schema");
	FT_TRY(enter(c, "anyOf", &outer));
	json_array_foreach (list, i, item)
	{
		int32_t begin = ft_grammar_node_new(c->g);

		ft_grammar_empty(c->g, from, begin);
		FT_TRY(enter_index(c, i, &inner));
		FT_TRY(compile(c, item, begin, to));
		leave(c, inner);
	}
	leave(c, outer);
	return FT_OK;
}

/* --- objects --- */

typedef struct property
{
	const char *key;
	const json_t *schema;
	bool required;
} property;

typedef struct properties
{
	property *list; /* [n] in the order in which they are written */
	size_t n;
} properties;

/* First in the order of "required", where that is asked for, then in their own. */
static ft_status
order_properties(const compiler *c, const json_t *schemas, const json_t *required, properties *p)
{
	json_t *rest = json_object();
	const char *key;
	json_t *value;
	size_t i;
	ft_status status = rest && (!schemas || json_object_update(rest, (json_t *) schemas) == 0)
						   ? FT_OK
						   : ft_fail(FT_NO_MEMORY, "out of memory");

	json_array_foreach (required, i, value)
	{
		key = json_string_value(value);
		if (status != FT_OK || !c->required_first || json_object_del(rest, key) != 0)
			continue;
		/* the key as its object has it: the copy goes away */
		p->list[p->n++] = (property){key, json_object_get(schemas, key), true};
	}
	json_object_foreach ((json_t *) schemas, key, value)
		if (status == FT_OK && json_object_get(rest, key))
			p->list[p->n++] = (property){key, value, false};
	json_decref(rest);
	return status;
}

static int
compare_keys(const void *a, const void *b)
{
	return strcmp(*(const char *const *) a, *(const char *const *) b);
}

/* Mark those that names[n], sorted, has; every name must be one of them. */
static ft_status
mark_required(const compiler *c, const char **names, size_t n, properties *p)
{
	size_t distinct = 0, found = 0;

	for (size_t i = 0; i < n; i++)
		distinct += i == 0 || strcmp(names[i], names[i - 1]) != 0;
	for (size_t i = 0; i < p->n; i++)
	{
		p->list[i].required =
			bsearch(&p->list[i].key, names, n, sizeof *names, compare_keys) != NULL;
		found += p->list[i].required;
	}
	if (found != distinct)
		return fail_at(c, FT_INVALID, "\"required\" names what \"properties\" has not");
	return FT_OK;
}

static ft_status
read_required(const compiler *c, const json_t *required, properties *p)
{
	const char **names;
	size_t n = json_array_size(required);
	ft_status status;

	FT_TRY(ft_alloc((void **) &names, n, sizeof *names));
	for (size_t i = 0; i < n; i++)
		names[i] = json_string_value(json_array_get(required, i));
	qsort(names, n, sizeof *names, compare_keys);
	status = mark_required(c, names, n, p);
	free(names);
	return status;
}

static ft_status
read_properties(const compiler *c, const json_t *schema, int set, properties *p)
{
	const json_t *additional = json_object_get(schema, "additionalProperties");
	const json_t *required = json_object_get(schema, "required");
	const json_t *schemas = json_object_get(schema, "properties");

	if (additional && !json_is_false(additional))
		return fail_at(c, FT_UNSUPPORTED, "\"additionalProperties\" must be false");
	if (!(set & PROPERTIES) && !additional)
		return fail_at(c, FT_UNSUPPORTED,
					   "an object without \"properties\" must say "
					   "\"additionalProperties\": false");
	if (schemas && !json_is_object(schemas))
		return fail_at(c, FT_INVALID, "\"properties\" must be an object");
	for (size_t i = 0; i < json_array_size(required); i++)
		if (!json_is_string(json_array_get(required, i)))
			return fail_at(c, FT_INVALID, "\"required\" must be a list of names");
	if (required && !json_is_array(required))
		return fail_at(c, FT_INVALID, "\"required\" must be a list of names");
	FT_TRY(ft_alloc((void **) &p->list, json_object_size(schemas), sizeof *p->list));
	FT_TRY(order_properties(c, schemas, required, p));
	return read_required(c, required, p);
}

/* "key": value */
static ft_status
compile_property(compiler *c, const char *key, const json_t *schema, int32_t from, int32_t to)
{
	int32_t named = ft_grammar_node_new(c->g);
	int32_t colon = ft_grammar_node_new(c->g);
	int32_t value = ft_grammar_node_new(c->g);
	json_t *name = json_string(key);
	char *text = json_dumps(name, JSON_ENCODE_ANY);
	size_t before;

	json_decref(name);
	if (!text)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	ft_grammar_literal(c->g, from, text, strlen(text), named);
	free(text);
	ft_grammar_bytes(c->g, named, ':', ':', colon);
	ft_grammar_empty(c->g, colon, value);
	ft_grammar_bytes(c->g, colon, ' ', ' ', value);
	FT_TRY(enter(c, key, &before));
	FT_TRY(compile(c, schema, value, to));
	leave(c, before);
	return FT_OK;
}

/*
 * Node key[i] is where property i or a later one may come next, done[i] behind
 * property i − 1.  A property may be passed over when it is optional; the
 * object may end where no required one is to come.
 */
static ft_status
compile_properties(compiler *c, const properties *p, int32_t from, int32_t to)
{
	ft_grammar *g = c->g;
	int32_t first = ft_grammar_node_new(g);
	int32_t close = ft_grammar_node_new(g);
	int32_t key_node = ft_grammar_node_new(g);
	size_t last_required = 0;

	for (size_t i = 0; i < p->n; i++)
		if (p->list[i].required)
			last_required = i + 1;
	ft_grammar_call(g, from, c->json.space, first);
	ft_grammar_empty(g, first, key_node);
	if (last_required == 0)
		ft_grammar_bytes(g, first, '}', '}', to);
	ft_grammar_bytes(g, close, '}', '}', to);
	for (size_t i = 0; i < p->n; i++)
	{
		int32_t done = ft_grammar_node_new(g);
		int32_t next = ft_grammar_node_new(g);
		int32_t comma = ft_grammar_node_new(g);

		FT_TRY(compile_property(c, p->list[i].key, p->list[i].schema, key_node, done));
		if (!p->list[i].required)
			ft_grammar_empty(g, key_node, next);
		if (i + 1 < p->n)
		{
			ft_grammar_bytes(g, done, ',', ',', comma);
			ft_grammar_call(g, comma, c->json.space, next);
		}
		if (i + 1 >= last_required)
			ft_grammar_call(g, done, c->json.space, close);
		key_node = next;
	}
	return g->status;
}

static ft_status
compile_object(compiler *c, const json_t *schema, int set, int32_t from, int32_t to)
{
	properties p = {0};
	int32_t open = ft_grammar_node_new(c->g);
	size_t before;
	ft_status status = read_properties(c, schema, set, &p);

	ft_grammar_bytes(c->g, from, '{', '{', open);
	if (status == FT_OK)
		status = enter(c, "properties", &before);
	if (status == FT_OK)
		status = compile_properties(c, &p, open, to);
	if (status == FT_OK)
		leave(c, before);
	free(p.list);
	return status;
}

/* --- arrays --- */

/* -1: not given */
static ft_status
read_count(const compiler *c, const json_t *schema, const char *keyword, json_int_t *count)
{
	const json_t *value = json_object_get(schema, keyword);

	*count = -1;
	if (!value)
		return FT_OK;
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return fail_at(c, FT_INVALID, "\"%s\" must be an integer of at least 0", keyword);
	*count = json_integer_value(value);
	if (*count > MAX_ITEMS)
		return fail_at(c, FT_INVALID, "\"%s\" is %lld, the limit is %d", keyword,
					   (long long) *count, MAX_ITEMS);
	return FT_OK;
}

/* Items by their count: behind the last one that is counted the array goes on as it likes, or ends.
 */
static ft_status
compile_items(compiler *c, int32_t item, json_int_t least, json_int_t most, int32_t from,
			  int32_t to)
{
	ft_grammar *g = c->g;
	int32_t first = ft_grammar_node_new(g);
	int32_t close = ft_grammar_node_new(g);
	int32_t value = ft_grammar_node_new(g);
	json_int_t counted = most >= 0 ? most : least > 1 ? least : 1;

	ft_grammar_call(g, from, c->json.space, first);
	if (least <= 0)
		ft_grammar_bytes(g, first, ']', ']', to);
	ft_grammar_bytes(g, close, ']', ']', to);
	ft_grammar_empty(g, first, value);
	for (json_int_t n = 1; n <= counted && g->status == FT_OK; n++)
	{
		int32_t done = ft_grammar_node_new(g);
		int32_t comma = ft_grammar_node_new(g);
		int32_t next = n == counted && most < 0 ? value : ft_grammar_node_new(g);

		ft_grammar_call(g, value, item, done);
		if (n >= least)
			ft_grammar_call(g, done, c->json.space, close);
		if (n < counted || most < 0)
		{
			ft_grammar_bytes(g, done, ',', ',', comma);
			ft_grammar_call(g, comma, c->json.space, next);
		}
		value = next;
	}
	return g->status;
}

static ft_status
compile_array(compiler *c, const json_t *schema, int32_t from, int32_t to)
{
	const json_t *items = json_object_get(schema, "items");
	json_int_t least, most;
	int32_t open = ft_grammar_node_new(c->g);
	int32_t item = 0;
	size_t before;

	if (!items)
		return fail_at(c, FT_UNSUPPORTED, "an array must have \"items\"");
	FT_TRY(read_count(c, schema, "minItems", &least));
	FT_TRY(read_count(c, schema, "maxItems", &most));
	if (most >= 0 && least > most)
		return fail_at(c, FT_INVALID, "\"minItems\" %lld is above \"maxItems\" %lld",
					   (long long) least, (long long) most);
	FT_TRY(enter(c, "items", &before));
	FT_TRY(rule_of(c, items, &item));
	leave(c, before);
	ft_grammar_bytes(c->g, from, '[', '[', open);
	return compile_items(c, item, least, most, open, to);
}

/* --- schemas --- */

static ft_status
compile_types(compiler *c, const json_t *schema, int set, int types, int32_t from, int32_t to)
{
	ft_grammar *g = c->g;

	if (types & OBJECT)
		FT_TRY(compile_object(c, schema, set, from, to));
	if (types & ARRAY)
		FT_TRY(compile_array(c, schema, from, to));
	if (types & STRING)
		ft_grammar_json_string(g, from, to);
	if (types & NUMBER)
		ft_grammar_call(g, from, c->json.number, to);
	else if (types & INTEGER)
		ft_grammar_call(g, from, c->json.integer, to);
	if (types & BOOLEAN)
	{
		ft_grammar_literal(g, from, "true", 4, to);
		ft_grammar_literal(g, from, "false", 5, to);
	}
	if (types & NULL_TYPE)
		ft_grammar_literal(g, from, "null", 4, to);
	return g->status;
}

static ft_status
compile_keywords(compiler *c, const json_t *schema, int set, int32_t from, int32_t to)
{
	int types = ANY_TYPE;

	if (set & REF)
	{
		FT_TRY(check_alone(c, set, REF, "$ref"));
		return compile_ref(c, schema, from, to);
	}
	if (set & ANY_OF)
	{
		FT_TRY(check_alone(c, set, ANY_OF, "anyOf"));
		return compile_any_of(c, schema, from, to);
	}
	if (set & TYPE)
		FT_TRY(read_types(c, json_object_get(schema, "type"), &types));
	if (set & CONST)
	{
		const json_t *value = json_object_get(schema, "const");

		FT_TRY(check_alone(c, set, CONST | TYPE, "const"));
		return compile_values(c, &value, 1, types, from, to);
	}
	if (set & ENUM)
	{
		FT_TRY(check_alone(c, set, ENUM | TYPE, "enum"));
		return compile_enum(c, schema, types, from, to);
	}
	if (!(set & TYPE))
		types = (set & PROPERTIES ? OBJECT : 0) | (set & ITEMS ? ARRAY : 0);
	if (types == 0)
		return fail_at(c, FT_UNSUPPORTED,
					   "a schema must have \"type\", \"enum\", \"const\", \"anyOf\" or \"$ref\"");
	return compile_types(c, schema, set, types, from, to);
}

static ft_status
compile(compiler *c, const json_t *schema, int32_t from, int32_t to)
{
	int set;

	if (c->g->status != FT_OK)
		return c->g->status;
	if (c->depth == MAX_DEPTH)
		return fail_at(c, FT_INVALID, "schemas are nested more than %d deep", MAX_DEPTH);
	FT_TRY(read_keywords(c, schema, &set));
	c->depth++;
	FT_TRY(compile_keywords(c, schema, set, from, to));
	c->depth--;
	return c->g->status;
}

/* Fill in the rules that have been asked for, and those that these ask for. */
static ft_status
compile_rules(compiler *c)
{
	for (rule *r = c->first; r; r = r->next)
	{
		c->depth = 0;
		ft_text_clear(&c->place);
		FT_TRY(ft_text_append(&c->place, r->place, strlen(r->place)));
		FT_TRY(compile(c, r->schema, ft_grammar_entry(c->g, r->number),
					   ft_grammar_exit(c->g, r->number)));
	}
	return FT_OK;
}

/* The root: a space before it is what some tokenisers begin every text with. */
static int32_t
root_rule(compiler *c, int32_t value)
{
	int32_t root = ft_grammar_rule_new(c->g);
	int32_t entry = ft_grammar_entry(c->g, root);
	int32_t begin = ft_grammar_node_new(c->g);

	ft_grammar_empty(c->g, entry, begin);
	ft_grammar_bytes(c->g, entry, ' ', ' ', begin);
	ft_grammar_call(c->g, begin, value, ft_grammar_exit(c->g, root));
	return root;
}

static ft_status
make_grammar(compiler *c)
{
	int32_t value = 0;

	FT_TRY(ft_grammar_create(&c->g));
	ft_grammar_json_begin(c->g, &c->json);
	if (c->root)
	{
		FT_TRY(ft_text_append(&c->place, "#", 1));
		FT_TRY(rule_of(c, c->root, &value));
		FT_TRY(compile_rules(c));
	}
	else
	{
		ft_grammar_json_any(c->g, &c->json);
		value = c->json.object;
	}
	return ft_grammar_finish(c->g, root_rule(c, value));
}

static ft_status
compile_root(const json_t *schema, bool required_first, ft_grammar **grammar)
{
	compiler c = {.root = schema, .required_first = required_first};
	ft_status status;

	c.end = &c.first;
	status = make_grammar(&c);
	tdestroy(c.rules, free_rule);
	ft_text_free(&c.place);
	if (status != FT_OK)
		ft_grammar_free(c.g);
	else
		*grammar = c.g;
	return status;
}

ft_status
ft_json_schema_grammar(const json_t *schema, bool required_first, ft_grammar **grammar)
{
	return compile_root(schema, required_first, grammar);
}

ft_status
ft_json_object_grammar(ft_grammar **grammar)
{
	return compile_root(NULL, false, grammar);
}
