/*
 * test_json_schema.c: which texts fit a schema, which schemas are refused, and which tokens may
 * come.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "constraint.h"
#include "grammar_json.h"
#include "json_schema.h"
#include "response_format.h"

#define OBJECT(properties, rest) "{\"type\": \"object\", \"properties\": {" properties "}" rest "}"
#define CLOSED ", \"additionalProperties\": false"

/* --- texts --- */

static ft_grammar *
grammar_of(const char *schema)
{
	json_t *json = json_loads(schema, JSON_DECODE_ANY, NULL);
	ft_grammar *grammar = NULL;

	assert_non_null(json);
	if (ft_json_schema_grammar(json, false, &grammar) != FT_OK)
		fail_msg("%s: %s", schema, ft_error_message());
	json_decref(json);
	return grammar;
}

static bool
fits(ft_automaton *a, const char *text, size_t n)
{
	int32_t state;

	assert_int_equal(ft_automaton_start(a, &state), FT_OK);
	for (size_t i = 0; i < n && state != FT_STATE_NONE; i++)
		assert_int_equal(ft_automaton_next(a, state, (unsigned char) text[i], &state), FT_OK);
	return state != FT_STATE_NONE && ft_automaton_accepts(a, state);
}

/* good and bad: texts, NULL at their ends */
static void
check_texts(const char *schema, const char *const *good, const char *const *bad)
{
	ft_grammar *grammar = grammar_of(schema);
	ft_automaton *a;

	assert_int_equal(ft_automaton_create(grammar, &a), FT_OK);
	for (; *good; good++)
		if (!fits(a, *good, strlen(*good)))
			fail_msg("%s: %s does not fit", schema, *good);
	for (; *bad; bad++)
		if (fits(a, *bad, strlen(*bad)))
			fail_msg("%s: %s fits", schema, *bad);
	ft_automaton_free(a);
	ft_grammar_free(grammar);
}

#define TEXTS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void
test_scalars(void **state)
{
	(void) state;
	check_texts("{\"type\": \"boolean\"}", TEXTS("true", "false", " true"),
				TEXTS("", "tru", "truefalse", "null", "  true", "true ", "1"));
	check_texts("{\"type\": \"null\"}", TEXTS("null"), TEXTS("nul", "0"));
	check_texts("{\"type\": \"integer\"}", TEXTS("0", "-7", "123456789012345678"),
				TEXTS("01", "-", "1.0", "1e3", "+1", "1234567890123456789", "\"1\""));
	check_texts("{\"type\": \"number\"}", TEXTS("0", "-0.5", "1e9", "1.25E-07", "12.0", "3e+1"),
				TEXTS(".5", "1.", "1e", "1e100", "0x1", "NaN", "00.5"));
	check_texts("{\"type\": [\"integer\", \"null\"]}", TEXTS("1", "null"), TEXTS("true", "1.5"));
}

static void
test_strings(void **state)
{
	(void) state;
	check_texts("{\"type\": \"string\"}",
				TEXTS("\"\"", "\"a b\"", "\"\\n\\\\\\\"\\/\"", "\"\\u00e9\\uD83D\\ude00\"",
					  "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"", "\"\\u0001\"", "\"\\u0010\""),
				TEXTS("\"", "a", "\"a\nb\"", "\"\\x\"", "\"\\u12g4\"", "\"\\u0000\"", "\"\\ud83d\"",
					  "\"\\ude00\"", "\"\\ud83dx\"", "\"\\ud83d\\u0041\"", "\"\xff\"",
					  "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xe2\x82\""));
}

static void
test_objects(void **state)
{
	(void) state;
	check_texts(OBJECT("\"a\": {\"type\": \"integer\"}, \"b\": {\"type\": \"null\"}",
					   ", \"required\": [\"a\", \"b\"]" CLOSED),
				TEXTS("{\"a\":1,\"b\":null}", "{\"a\": 1, \"b\": null}",
					  "{\n  \"a\": 1,\n  \"b\": null\n}", "{ \"a\": 1, \"b\": null }"),
				TEXTS("{}", "{\"a\":1}", "{\"b\":null,\"a\":1}", "{\"a\":1,\"b\":null,}",
					  "{\"a\":1,\"b\":null,\"c\":2}", "{\"a\" :1,\"b\":null}",
					  "{\"a\":  1,\"b\":null}", "{\"a\":1 ,\"b\":null}", "{\"a\":1\"b\":null}"));
	/* all that is optional may be left out, in any combination */
	check_texts(
		OBJECT("\"a\": {\"const\": 1}, \"b\": {\"const\": 2}, \"c\": {\"const\": 3}", CLOSED),
		TEXTS("{}", "{ }", "{\"a\":1}", "{\"b\":2}", "{\"c\":3}", "{\"a\":1,\"b\":2}",
			  "{\"a\":1,\"c\":3}", "{\"b\":2,\"c\":3}", "{\"a\":1,\"b\":2,\"c\":3}"),
		TEXTS("{,\"a\":1}", "{\"a\":1,}", "{\"c\":3,\"a\":1}", "{\"a\":1,\"a\":1}"));
	check_texts(
		OBJECT("\"a\": {\"const\": 1}, \"b\": {\"const\": 2}, \"c\": {\"const\": 3}",
			   ", \"required\": [\"b\"]"),
		TEXTS("{\"b\":2}", "{\"a\":1,\"b\":2}", "{\"b\":2,\"c\":3}", "{\"a\":1,\"b\":2,\"c\":3}"),
		TEXTS("{}", "{\"a\":1}", "{\"a\":1,\"c\":3}"));
	check_texts("{\"type\": \"object\", \"additionalProperties\": false}", TEXTS("{}"),
				TEXTS("{\"a\":1}"));
	check_texts(OBJECT("\"a \\\"q\\\" \xc3\xa9/~\": {\"type\": \"null\"}", ""),
				TEXTS("{}", "{\"a \\\"q\\\" \xc3\xa9/~\":null}"), TEXTS("{\"a\":null}"));
}

static void
test_arrays(void **state)
{
	(void) state;
	check_texts("{\"type\": \"array\", \"items\": {\"type\": \"integer\"}}",
				TEXTS("[]", "[1]", "[1,2, 3]", "[\n  1,\n  2\n]"),
				TEXTS("[,]", "[1,]", "[1 2]", "[\"a\"]", "[1", "[[1]]"));
	check_texts(
		"{\"type\": \"array\", \"items\": {\"const\": 1}, \"minItems\": 2, \"maxItems\": 3}",
		TEXTS("[1,1]", "[1,1,1]"), TEXTS("[]", "[1]", "[1,1,1,1]"));
	check_texts("{\"type\": \"array\", \"items\": {\"const\": 1}, \"minItems\": 2}",
				TEXTS("[1,1]", "[1,1,1,1,1]"), TEXTS("[]", "[1]"));
	check_texts("{\"type\": \"array\", \"items\": {\"const\": 1}, \"maxItems\": 0}", TEXTS("[]"),
				TEXTS("[1]"));
	check_texts("{\"items\": {\"items\": {\"type\": \"null\"}}}",
				TEXTS("[]", "[[]]", "[[null],[null,null]]"), TEXTS("[null]"));
}

static void
test_values(void **state)
{
	(void) state;
	check_texts("{\"enum\": [\"a\", \"ab\", \"abc\", 1, 12, null, 0.1, [1, {\"x\": true}]]}",
				TEXTS("\"a\"", "\"ab\"", "\"abc\"", "1", "12", "null", "0.1", "[1,{\"x\":true}]"),
				TEXTS("\"\"", "\"abcd\"", "2", "123", "0.10", "[]"));
	check_texts("{\"type\": \"string\", \"enum\": [\"x\", 1]}", TEXTS("\"x\""), TEXTS("1"));
	check_texts("{\"type\": [\"string\", \"null\"], \"enum\": [\"x\", null]}",
				TEXTS("\"x\"", "null"), TEXTS("\"null\""));
	check_texts("{\"const\": {\"a\": [1.5, \"\xc3\xa9\"]}}", TEXTS("{\"a\":[1.5,\"\xc3\xa9\"]}"),
				TEXTS("{}"));
}

static void
test_any_of_and_refs(void **state)
{
	(void) state;
	/* alternatives that begin alike */
	check_texts(
		"{\"anyOf\": [" OBJECT(
			"\"t\": {\"const\": \"aa\"}, \"x\": {\"type\": \"integer\"}",
			", \"required\": [\"t\", \"x\"]") ", " OBJECT("\"t\": {\"const\": \"ab\"}, \"y\": "
														  "{\"type\": \"null\"}",
														  ", \"required\": [\"t\", \"y\"]") ", "
																							"{\"typ"
																							"e\": "
																							"\"stri"
																							"ng\"}]"
																							"}",
		TEXTS("{\"t\":\"aa\",\"x\":5}", "{\"t\":\"ab\",\"y\":null}", "\"t\""),
		TEXTS("{\"t\":\"aa\",\"y\":null}", "{\"t\":\"ab\",\"x\":5}", "{\"t\":\"ac\"}"));
	/* a tree, and a list that may end */
	check_texts(OBJECT("\"v\": {\"type\": \"integer\"}, \"sub\": {\"type\": \"array\", \"items\": "
					   "{\"$ref\": \"#\"}}",
					   ", \"required\": [\"v\", \"sub\"]"),
				TEXTS("{\"v\":1,\"sub\":[]}", "{\"v\":1,\"sub\":[{\"v\":2,\"sub\":[]},"
											  "{\"v\":3,\"sub\":[{\"v\":4,\"sub\":[]}]}]}"),
				TEXTS("{\"v\":1}", "{\"v\":1,\"sub\":[1]}", "{\"v\":1,\"sub\":[{\"v\":2}]}"));
	check_texts("{\"$ref\": \"#/$defs/a~1b~0c\", \"$defs\": {\"a/b~c\": " OBJECT(
					"\"next\": {\"anyOf\": [{\"type\": \"null\"}, {\"$ref\": "
					"\"#/$defs/a~1b~0c\"}]}",
					", \"required\": [\"next\"]") "}}",
				TEXTS("{\"next\":null}", "{\"next\":{\"next\":{\"next\":null}}}"),
				TEXTS("null", "{\"next\":{}}"));
	/* what cannot end is no alternative */
	check_texts("{\"anyOf\": [{\"const\": 1}, " OBJECT("\"a\": {\"$ref\": \"#/anyOf/1\"}",
													   ", \"required\": [\"a\"]") "]}",
				TEXTS("1"), TEXTS("{", "{\"a\":1}"));
}

static void
test_required_first(void **state)
{
	json_t *json = json_loads(OBJECT("\"a\": {\"const\": 1}, \"b\": {\"const\": 2}, \"c\": "
									 "{\"const\": 3}, \"d\": {\"const\": 4}",
									 ", \"required\": [\"d\", \"b\", \"d\"]"),
							  0, NULL);
	ft_grammar *grammar;
	ft_automaton *a;

	(void) state;
	assert_int_equal(ft_json_schema_grammar(json, true, &grammar), FT_OK);
	assert_int_equal(ft_automaton_create(grammar, &a), FT_OK);
	assert_true(fits(a, "{\"d\":4,\"b\":2}", 13));
	assert_true(fits(a, "{\"d\":4,\"b\":2,\"a\":1,\"c\":3}", 25));
	assert_true(fits(a, "{\"d\":4,\"b\":2,\"c\":3}", 19));
	assert_false(fits(a, "{\"b\":2,\"d\":4}", 13));
	assert_false(fits(a, "{\"d\":4}", 7));
	ft_automaton_free(a);
	ft_grammar_free(grammar);
	json_decref(json);
}

static void
test_any_object(void **state)
{
	ft_grammar *grammar;
	ft_automaton *a;
	const char *good[] = {"{}", "{\"a\": [1, {\"b\": null}], \"c\": \"d\", \"e\": -1.5e3}",
						  "{\n\t\"a\": {}\n}"};
	const char *bad[] = {"[]", "1", "{a: 1}", "{\"a\": 1", "{\"a\": [1}]", "{\"a\" 1}"};

	(void) state;
	assert_int_equal(ft_json_object_grammar(&grammar), FT_OK);
	assert_int_equal(ft_automaton_create(grammar, &a), FT_OK);
	for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
		assert_true(fits(a, good[i], strlen(good[i])));
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
		assert_false(fits(a, bad[i], strlen(bad[i])));
	ft_automaton_free(a);
	ft_grammar_free(grammar);
}

/* --- schemas that are refused --- */

static void
check_refused(const char *schema, ft_status code, const char *words)
{
	json_t *json = json_loads(schema, JSON_DECODE_ANY, NULL);
	ft_grammar *grammar = NULL;

	assert_non_null(json);
	assert_int_equal(ft_json_schema_grammar(json, false, &grammar), code);
	if (!strstr(ft_error_message(), words))
		fail_msg("%s: \"%s\" does not say \"%s\"", schema, ft_error_message(), words);
	assert_null(grammar);
	json_decref(json);
}

static void
test_refused(void **state)
{
	(void) state;
	check_refused("{\"type\": \"string\", \"pattern\": \"a\"}", FT_UNSUPPORTED,
				  "schema at \"#\": \"pattern\" is not supported");
	check_refused(OBJECT("\"a/b\": {\"oneOf\": []}", ""), FT_UNSUPPORTED,
				  "schema at \"#/properties/a~1b\": \"oneOf\" is not supported");
	check_refused("{\"items\": {\"anyOf\": [{\"type\": \"null\"}, {\"not\": {}}]}}", FT_UNSUPPORTED,
				  "schema at \"#/items/anyOf/1\": \"not\" is not supported");
	check_refused("true", FT_UNSUPPORTED, "must be an object");
	check_refused("[]", FT_INVALID, "must be an object");
	check_refused("{}", FT_UNSUPPORTED, "must have \"type\"");
	check_refused("{\"type\": \"date\"}", FT_INVALID, "\"type\" must be object");
	check_refused("{\"type\": []}", FT_INVALID, "empty list");
	check_refused("{\"type\": \"object\"}", FT_UNSUPPORTED, "\"additionalProperties\": false");
	check_refused(OBJECT("", ", \"additionalProperties\": {\"type\": \"string\"}"), FT_UNSUPPORTED,
				  "must be false");
	check_refused(OBJECT("", ", \"required\": [\"a\"]"), FT_INVALID, "\"required\" names");
	check_refused(OBJECT("", ", \"required\": [1]"), FT_INVALID, "list of names");
	check_refused("{\"type\": \"object\", \"properties\": []}", FT_INVALID, "\"properties\" must");
	check_refused("{\"type\": \"array\"}", FT_UNSUPPORTED, "must have \"items\"");
	check_refused("{\"items\": {\"type\": \"null\"}, \"minItems\": 2, \"maxItems\": 1}", FT_INVALID,
				  "\"minItems\" 2 is above \"maxItems\" 1");
	check_refused("{\"items\": {\"type\": \"null\"}, \"minItems\": -1}", FT_INVALID, "minItems");
	check_refused("{\"items\": {\"type\": \"null\"}, \"maxItems\": 1000000}", FT_INVALID,
				  "1000000, the limit is 10000");
	check_refused("{\"enum\": []}", FT_INVALID, "at least one value");
	check_refused("{\"type\": \"null\", \"enum\": [1, \"a\"]}", FT_INVALID, "of the type");
	check_refused("{\"enum\": [1], \"properties\": {}}", FT_UNSUPPORTED,
				  "\"properties\" beside \"enum\"");
	check_refused("{\"anyOf\": [], \"title\": \"x\"}", FT_INVALID, "at least one schema");
	check_refused("{\"anyOf\": [{\"type\": \"null\"}], \"type\": \"null\"}", FT_UNSUPPORTED,
				  "\"type\" beside \"anyOf\"");
	check_refused("{\"$ref\": \"http://example.com/a\"}", FT_UNSUPPORTED, "part of the schema");
	check_refused("{\"$ref\": \"#/$defs/a\"}", FT_INVALID, "leads to nothing");
	check_refused("{\"$ref\": 1}", FT_INVALID, "must be a string");
}

static void
test_refused_circles(void **state)
{
	(void) state;
	check_refused("{\"$ref\": \"#\"}", FT_INVALID, "no value of finite size");
	check_refused("{\"anyOf\": [{\"$ref\": \"#\"}, {\"type\": \"null\"}]}", FT_INVALID,
				  "refers to itself with nothing between");
	check_refused(OBJECT("\"a\": {\"$ref\": \"#\"}", ", \"required\": [\"a\"]"), FT_INVALID,
				  "no value of finite size");
	check_refused("{\"items\": {\"$ref\": \"#\"}, \"minItems\": 1}", FT_INVALID,
				  "no value of finite size");
}

/* n times `open`, something, n times `close` */
static char *
nested(const char *open, const char *inside, const char *close, size_t n)
{
	ft_text text = {0};

	for (size_t i = 0; i < n; i++)
		assert_int_equal(ft_text_append(&text, open, strlen(open)), FT_OK);
	assert_int_equal(ft_text_append(&text, inside, strlen(inside)), FT_OK);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(ft_text_append(&text, close, strlen(close)), FT_OK);
	return text.data;
}

static void
test_refused_sizes(void **state)
{
	char *deep = nested("{\"anyOf\": [", "{\"type\": \"null\"}", "]}", 100);
	/* items of items of items, each counted: a rule each, so no product */
	char *counted = nested("{\"maxItems\": 10000, \"items\": ", "{\"type\": \"null\"}", "}", 30);
	ft_text list = {0};

	(void) state;
	check_refused(deep, FT_INVALID, "nested more than 64 deep");
	check_refused(counted, FT_INVALID, "the schema is too large");
	assert_int_equal(ft_text_printf(&list, "{\"enum\": ["), FT_OK);
	for (int i = 0; i < 10001; i++)
		assert_int_equal(ft_text_printf(&list, "%s%d", i ? "," : "", i), FT_OK);
	assert_int_equal(ft_text_printf(&list, "]}"), FT_OK);
	check_refused(list.data, FT_INVALID, "\"enum\" has 10001 values, the limit is 10000");
	ft_text_free(&list);
	free(deep);
	free(counted);
}

/* --- tokens --- */

static const char *const words[] = {
	"{",      "}",     "[",      "]",      ":",         ",",       "\"",       "{\"",
	"\":",    "\",",   "\"}",    "\"]",    "}}",        "]}",      "\",\"",    "\": \"",
	"\":\"",  "\"},",  "\"}]}",  " \"",    ", \"",      ": ",      "abc",      "ab",
	"a",      "name",  "true",   "false",  "null",      "tru",     "e,",       "12",
	"1",      "0",     "-",      "1.5",    "e1",        "\n  ",    "\n",       " ",
	"  ",     "\\",    "\\n",    "\\u00",  "\\\"",      "u0041\"", "\xc3\xa9", "\xe2\x82",
	"\x82",   "{\"a",  "\"a\":", "\"b\":", "{\"a\":1,", "[1,",     "]]",       "1]",
	"\"}}]}", "[[[[[", "{}",     "{}}",    "x\"}",      "\"x\"",   "ab\":",    "\":1",
};

#define N_WORDS (sizeof words / sizeof words[0])
#define N_TOKENS (256 + N_WORDS + 1)
#define END_TOKEN ((int32_t) (256 + N_WORDS))

static ft_tokenizer *
make_tokenizer(void)
{
	static char bytes[256][8];
	static ft_string tokens[N_TOKENS];
	static int32_t types[N_TOKENS];
	static float scores[N_TOKENS];
	ft_vocabulary v = {.model = "llama",
					   .n_tokens = N_TOKENS,
					   .tokens = tokens,
					   .types = types,
					   .scores = scores,
					   .bos = -1,
					   .eos = END_TOKEN,
					   .unknown = -1,
					   .pad = -1,
					   .byte_fallback = true};
	ft_tokenizer *tokenizer;

	for (int i = 0; i < 256; i++)
	{
		snprintf(bytes[i], sizeof bytes[i], "<0x%02X>", i);
		tokens[i] = (ft_string){bytes[i], 6};
		types[i] = FT_TOKEN_BYTE;
	}
	for (size_t i = 0; i < N_WORDS; i++)
	{
		tokens[256 + i] = (ft_string){words[i], strlen(words[i])};
		types[256 + i] = FT_TOKEN_NORMAL;
	}
	tokens[END_TOKEN] = (ft_string){"</s>", 4};
	types[END_TOKEN] = FT_TOKEN_CONTROL;
	assert_int_equal(ft_tokenizer_create(&v, &tokenizer), FT_OK);
	return tokenizer;
}

/* May the token come after the text? */
static bool
may_come(ft_automaton *a, const ft_text *text, const char *token, size_t n)
{
	int32_t state;

	assert_int_equal(ft_automaton_start(a, &state), FT_OK);
	for (size_t i = 0; i < text->length + n && state != FT_STATE_NONE; i++)
		assert_int_equal(
			ft_automaton_next(
				a, state,
				(unsigned char) (i < text->length ? text->data[i] : token[i - text->length]),
				&state),
			FT_OK);
	return state != FT_STATE_NONE;
}

static uint64_t
next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* One of the tokens that are set, -1: none but the end.  Beyond some length the closing ones. */
static int32_t
choose(const uint64_t *set, uint64_t *seed, bool closing)
{
	int32_t chosen = -1;
	uint64_t n = 0;

	for (int32_t id = 0; id < END_TOKEN; id++)
	{
		bool closes = id == '"' || id == '}' || id == ']' || id == '0' || id == 'n';

		if (!(set[id / 64] >> id % 64 & 1) || (closing && chosen >= 0 && !closes))
			continue;
		if (closing && closes && next_random(seed) % 4 != 0)
			return id;
		if (next_random(seed) % ++n == 0)
			chosen = id;
	}
	return chosen;
}

/* Every set that a random answer comes by has the tokens that one by one may come, and what it
 * ends with is JSON that the schema's automaton accepts. */
static void
walk_randomly(const ft_tokenizer *tokenizer, ft_constraint *constraint, ft_automaton *judge,
			  uint64_t seed)
{
	ft_text text = {0};
	ft_match match;
	bool may_end = false;
	json_t *json;

	assert_int_equal(ft_text_append(&text, "", 0), FT_OK);
	assert_int_equal(ft_match_begin(constraint, &match), FT_OK);
	for (int step = 0; !ft_match_is_whole(&match); step++)
	{
		size_t before = text.length;
		const uint64_t *set;
		int32_t id;

		assert_in_range(step, 0, 2000);
		assert_int_equal(ft_match_tokens(&match, INT32_MAX, &set, &may_end), FT_OK);
		for (int32_t i = 0; i < (int32_t) N_TOKENS; i++)
		{
			ft_text token = {0};
			bool expected;

			assert_int_equal(ft_tokenizer_decode_part(tokenizer, &i, 1, true, &token), FT_OK);
			expected = token.length > 0 && may_come(judge, &text, token.data, token.length);
			if ((set[i / 64] >> i % 64 & 1) != expected)
				fail_msg("token %d after %s: %s", i, text.data, expected ? "missing" : "wrong");
			ft_text_free(&token);
		}
		id = choose(set, &seed, step > 20);
		if (id < 0 || (may_end && next_random(&seed) % 3 == 0))
			break;
		assert_int_equal(ft_tokenizer_decode_part(tokenizer, &id, 1, true, &text), FT_OK);
		assert_int_equal(ft_match_push(&match, text.data + before, text.length - before), FT_OK);
	}
	assert_true(fits(judge, text.data, text.length));
	json = json_loadb(text.data, text.length, JSON_DECODE_ANY, NULL);
	if (!json)
		fail_msg("not JSON: %s", text.data);
	json_decref(json);
	ft_match_end(&match);
	ft_text_free(&text);
}

static const char *const walked[] = {
	OBJECT("\"a\": {\"type\": \"integer\"}, \"name\": {\"type\": \"string\"}, \"b\": {\"type\": "
		   "\"array\", \"items\": {\"type\": \"string\"}}",
		   ", \"required\": [\"name\"]"),
	"{\"anyOf\": [{\"type\": \"string\"}, {\"enum\": [\"abc\", \"abcd\", 12, 1]}, {\"type\": "
	"\"array\", \"items\": {\"$ref\": \"#\"}}]}",
	"{\"type\": [\"number\", \"null\", \"boolean\"]}",
	"{\"type\": \"array\", \"items\": {\"anyOf\": [" OBJECT(
		"\"a\": {\"const\": 1}, \"b\": {\"type\": \"string\"}",
		", \"required\": [\"a\", \"b\"]") ", " OBJECT("\"a\": {\"type\": \"string\"}",
													  "") "]}, \"minItems\": 1}",
};

static void
test_tokens(void **state)
{
	ft_tokenizer *tokenizer = make_tokenizer();
	ft_constraint_vocabulary *vocabulary;

	(void) state;
	assert_int_equal(ft_constraint_vocabulary_create(tokenizer, N_TOKENS + 5, &vocabulary), FT_OK);
	for (size_t i = 0; i <= sizeof walked / sizeof walked[0]; i++)
	{
		bool any = i == sizeof walked / sizeof walked[0];
		ft_grammar *grammar = NULL, *again = NULL;
		ft_constraint *constraint;
		ft_automaton *judge;

		if (any)
			assert_int_equal(ft_json_object_grammar(&grammar), FT_OK);
		else
			grammar = grammar_of(walked[i]);
		if (any)
			assert_int_equal(ft_json_object_grammar(&again), FT_OK);
		else
			again = grammar_of(walked[i]);
		assert_int_equal(ft_automaton_create(again, &judge), FT_OK);
		assert_int_equal(ft_constraint_create(grammar, vocabulary, &constraint), FT_OK);
		for (uint64_t seed = 1; seed <= 5; seed++)
			walk_randomly(tokenizer, constraint, judge, seed * 7919);
		ft_constraint_free(constraint);
		ft_automaton_free(judge);
		ft_grammar_free(again);
	}
	ft_constraint_vocabulary_free(vocabulary);
	ft_tokenizer_free(tokenizer);
}

/* A random answer of at most `left` tokens; true when it has ended by itself. */
static bool
ends_in_time(const ft_tokenizer *tokenizer, ft_constraint *constraint, const ft_automaton *judge,
			 int32_t left, uint64_t seed)
{
	ft_text text = {0};
	ft_match match;
	bool may_end = false;

	assert_int_equal(ft_match_begin(constraint, &match), FT_OK);
	for (; left > 0 && !ft_match_is_whole(&match); left--)
	{
		size_t before = text.length;
		const uint64_t *set;
		int32_t id;

		assert_int_equal(ft_match_tokens(&match, left, &set, &may_end), FT_OK);
		id = choose(set, &seed, false);
		if (id < 0)
		{
			assert_true(may_end);
			break;
		}
		assert_int_equal(ft_tokenizer_decode_part(tokenizer, &id, 1, true, &text), FT_OK);
		assert_int_equal(ft_match_push(&match, text.data + before, text.length - before), FT_OK);
	}
	may_end = fits((ft_automaton *) judge, text.data, text.length);
	ft_match_end(&match);
	ft_text_free(&text);
	return may_end;
}

/* However many tokens an answer may have, as long as they are as many as the shortest answer has
 * bytes, it comes to its end. */
static void
test_ends_in_time(void **state)
{
	static const char *const endless[] = {
		OBJECT("\"value\": {\"type\": \"integer\"}, \"next\": {\"anyOf\": [{\"$ref\": \"#\"}, "
			   "{\"type\": \"null\"}]}",
			   ", \"required\": [\"value\", \"next\"]"),
		"{\"type\": \"array\", \"items\": {\"$ref\": \"#\"}}",
	};
	const size_t n_endless = sizeof endless / sizeof endless[0];
	ft_tokenizer *tokenizer = make_tokenizer();
	ft_constraint_vocabulary *vocabulary;

	(void) state;
	assert_int_equal(ft_constraint_vocabulary_create(tokenizer, N_TOKENS + 5, &vocabulary), FT_OK);
	for (size_t i = 0; i < n_endless + sizeof walked / sizeof walked[0]; i++)
	{
		const char *schema = i < n_endless ? endless[i] : walked[i - n_endless];
		ft_grammar *grammar = grammar_of(schema), *again = grammar_of(schema);
		ft_constraint *constraint;
		ft_automaton *judge;
		int32_t start, shortest;

		assert_int_equal(ft_automaton_create(again, &judge), FT_OK);
		assert_int_equal(ft_automaton_start(judge, &start), FT_OK);
		shortest = ft_automaton_rest(judge, start);
		assert_int_equal(ft_constraint_create(grammar, vocabulary, &constraint), FT_OK);
		for (int32_t left = shortest; left < shortest + 60; left += 7)
			for (uint64_t seed = 1; seed <= 10; seed++)
				if (!ends_in_time(tokenizer, constraint, judge, left, seed * 7919))
					fail_msg("%s: no end within %d tokens, seed %d", schema, left, (int) seed);
		/* fewer do where tokens have several bytes; too few do not */
		assert_false(ends_in_time(tokenizer, constraint, judge, 0, 1));
		ft_constraint_free(constraint);
		ft_automaton_free(judge);
		ft_grammar_free(again);
	}
	ft_constraint_vocabulary_free(vocabulary);
	ft_tokenizer_free(tokenizer);
}

/* The shortest answers, by hand. */
static void
test_shortest(void **state)
{
	static const struct
	{
		const char *schema;
		const char *answer;
	} cases[] = {
		{"{\"type\": \"boolean\"}", "true"},
		{"{\"type\": \"string\"}", "\"\""},
		{"{\"enum\": [\"red\", 4711, [1]]}", "[1]"},
		{"{\"type\": \"array\", \"items\": {\"type\": \"number\"}, \"minItems\": 3}", "[0,0,0]"},
		{OBJECT("\"a\": {\"$ref\": \"#/$defs/b\"}, \"c\": {\"type\": \"string\"}",
				", \"required\": [\"a\"], \"$defs\": {\"b\": {\"anyOf\": [{\"type\": \"boolean\"}, "
				"{\"const\": 1}]}}"),
		 "{\"a\":1}"},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		ft_grammar *grammar = grammar_of(cases[i].schema);
		ft_automaton *a;
		int32_t at;

		assert_int_equal(ft_automaton_create(grammar, &a), FT_OK);
		assert_int_equal(ft_automaton_start(a, &at), FT_OK);
		for (const char *byte = cases[i].answer; *byte; byte++)
		{
			assert_int_equal(ft_automaton_rest(a, at), strlen(byte));
			assert_int_equal(ft_automaton_next(a, at, (unsigned char) *byte, &at), FT_OK);
			assert_int_not_equal(at, FT_STATE_NONE);
		}
		assert_int_equal(ft_automaton_rest(a, at), 0);
		ft_automaton_free(a);
		ft_grammar_free(grammar);
	}
}

static void
test_mask(void **state)
{
	ft_tokenizer *tokenizer = make_tokenizer();
	ft_constraint_vocabulary *vocabulary;
	ft_constraint *constraint;
	const int32_t ends[] = {END_TOKEN};
	float logits[N_TOKENS + 5];
	ft_match match;

	(void) state;
	assert_int_equal(ft_constraint_vocabulary_create(tokenizer, N_TOKENS + 5, &vocabulary), FT_OK);
	assert_int_equal(
		ft_constraint_create(grammar_of("{\"enum\": [1, 12]}"), vocabulary, &constraint), FT_OK);
	assert_int_equal(ft_match_begin(constraint, &match), FT_OK);
	for (int i = 0; i < (int) N_TOKENS + 5; i++)
		logits[i] = (float) i;
	assert_int_equal(ft_match_mask(&match, INT32_MAX, ends, 1, logits), FT_OK);
	for (int i = 0; i < (int) N_TOKENS + 5; i++)
	{
		bool fit = i == '1' || i == ' ' ||
				   (i >= 256 && i < END_TOKEN &&
					(strcmp(words[i - 256], "1") == 0 || strcmp(words[i - 256], "12") == 0 ||
					 strcmp(words[i - 256], " ") == 0));

		assert_true(fit ? logits[i] == (float) i : logits[i] == -INFINITY);
	}
	assert_int_equal(ft_match_push(&match, "1", 1), FT_OK);
	assert_false(ft_match_is_whole(&match));
	memset(logits, 0, sizeof logits);
	assert_int_equal(ft_match_mask(&match, INT32_MAX, ends, 1, logits), FT_OK);
	assert_true(logits[END_TOKEN] == 0 && logits['2'] == 0 && logits['1'] == -INFINITY);
	assert_int_equal(ft_match_push(&match, "x", 1), FT_INTERNAL);
	assert_int_equal(ft_match_push(&match, "2", 1), FT_OK);
	assert_true(ft_match_is_whole(&match));
	ft_match_end(&match);
	ft_match_end(&match);
	ft_constraint_free(constraint);

	/* a vocabulary that cannot go on */
	ft_constraint_vocabulary_free(vocabulary);
	assert_int_equal(ft_constraint_vocabulary_create(tokenizer, 'n', &vocabulary), FT_OK);
	assert_int_equal(
		ft_constraint_create(grammar_of("{\"enum\": [null, 1]}"), vocabulary, &constraint), FT_OK);
	assert_int_equal(ft_match_begin(constraint, &match), FT_OK);
	assert_int_equal(ft_match_push(&match, "nul", 3), FT_OK);
	assert_int_equal(ft_match_mask(&match, INT32_MAX, ends, 0, logits), FT_OK);
	ft_match_end(&match);
	assert_int_equal(ft_match_begin(constraint, &match), FT_OK);
	assert_int_equal(ft_match_push(&match, "n", 1), FT_OK);
	assert_int_equal(ft_match_mask(&match, INT32_MAX, ends, 0, logits), FT_UNSUPPORTED);
	ft_match_end(&match);
	ft_constraint_free(constraint);
	ft_constraint_vocabulary_free(vocabulary);
	ft_tokenizer_free(tokenizer);
}

/* States that are forgotten in the middle of a text lead on as they did. */
static void
test_forgetting(void **state)
{
	static const char text[] = "{\"a\": [[], [1, {\"b\": \"x\"}]], \"c\": {\"d\": [true]}}";
	ft_grammar *grammar;
	ft_automaton *a;
	int32_t at, other, early;
	int32_t *states[] = {&at, &early};

	(void) state;
	assert_int_equal(ft_json_object_grammar(&grammar), FT_OK);
	assert_int_equal(ft_automaton_create(grammar, &a), FT_OK);
	assert_int_equal(ft_automaton_start(a, &at), FT_OK);
	early = at;
	for (size_t i = 0; text[i]; i++)
	{
		assert_int_equal(ft_automaton_next(a, at, (unsigned char) text[i], &at), FT_OK);
		assert_int_not_equal(at, FT_STATE_NONE);
		assert_int_equal(ft_automaton_forget(a, states, 2), FT_OK);
		assert_in_range(ft_automaton_states(a), 1, 2);
		assert_int_equal(ft_automaton_next(a, early, '{', &other), FT_OK);
		assert_int_not_equal(other, FT_STATE_NONE);
		assert_int_equal(ft_automaton_next(a, early, '[', &other), FT_OK);
		assert_int_equal(other, FT_STATE_NONE);
	}
	assert_true(ft_automaton_accepts(a, at));
	assert_false(ft_automaton_goes_on(a, at));
	ft_automaton_free(a);
	ft_grammar_free(grammar);
}

/* Each bracket doubles the ways: an error, not a machine that stands still. */
static void
test_too_many_ways(void **state)
{
	ft_grammar *grammar = grammar_of(
		"{\"anyOf\": [{\"type\": \"null\"}, {\"type\": \"array\", \"items\": {\"$ref\": \"#\"}}, "
		"{\"type\": \"array\", \"maxItems\": 2, \"items\": {\"$ref\": \"#\"}}]}");
	ft_automaton *a;
	ft_status status = FT_OK;
	int32_t at;

	(void) state;
	assert_int_equal(ft_automaton_create(grammar, &a), FT_OK);
	assert_int_equal(ft_automaton_start(a, &at), FT_OK);
	for (int i = 0; i < 64 && status == FT_OK; i++)
		status = ft_automaton_next(a, at, '[', &at);
	assert_int_equal(status, FT_INVALID);
	assert_non_null(strstr(ft_error_message(), "leaves more than 2048 ways open"));
	ft_automaton_free(a);
	ft_grammar_free(grammar);
}

/* --- formats --- */

static void
test_formats(void **state)
{
	static const struct
	{
		const char *format;
		ft_status status;
		const char *words;
	} cases[] = {
		{"{\"type\": \"text\"}", FT_OK, NULL},
		{"{\"type\": \"json_object\"}", FT_OK, NULL},
		{"{\"type\": \"json_schema\", \"json_schema\": {\"name\": \"x\", \"strict\": true, "
		 "\"schema\": {\"type\": \"null\"}}}",
		 FT_OK, NULL},
		{"[]", FT_INVALID, "with a \"type\""},
		{"{\"type\": \"xml\"}", FT_UNSUPPORTED, "text, json_object or json_schema"},
		{"{\"type\": \"text\", \"schema\": {}}", FT_INVALID, "not known"},
		{"{\"type\": \"json_schema\"}", FT_INVALID, "no object \"json_schema\""},
		{"{\"type\": \"json_schema\", \"json_schema\": {}}", FT_INVALID, "no \"schema\""},
		{"{\"type\": \"json_schema\", \"json_schema\": {\"shema\": {}}}", FT_INVALID, "not known"},
		{"{\"type\": \"json_schema\", \"json_schema\": {\"schema\": {\"allOf\": []}}}",
		 FT_UNSUPPORTED, "\"allOf\" is not supported"},
	};
	ft_tokenizer *tokenizer = make_tokenizer();
	ft_constraint_cache *cache;

	(void) state;
	assert_int_equal(ft_constraint_cache_create(tokenizer, N_TOKENS, &cache), FT_OK);
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		json_t *format = json_loads(cases[i].format, 0, NULL);
		ft_constraint *first = NULL, *again = NULL;

		assert_int_equal(ft_constraint_cache_get(cache, format, &first), cases[i].status);
		if (cases[i].words && !strstr(ft_error_message(), cases[i].words))
			fail_msg("%s: %s", cases[i].format, ft_error_message());
		if (first)
		{
			assert_int_equal(ft_constraint_cache_get(cache, format, &again), FT_OK);
			assert_ptr_equal(first, again);
		}
		ft_constraint_cache_put(cache, first);
		ft_constraint_cache_put(cache, again);
		json_decref(format);
	}
	ft_constraint_cache_free(cache);
	ft_tokenizer_free(tokenizer);
}

/* Those in use stay, however many others come. */
static void
test_kept_constraints(void **state)
{
	ft_tokenizer *tokenizer = make_tokenizer();
	ft_constraint_cache *cache;
	ft_constraint *used = NULL, *other = NULL;
	json_t *format = json_pack("{s:s}", "type", "json_object");

	(void) state;
	assert_int_equal(ft_constraint_cache_create(tokenizer, N_TOKENS, &cache), FT_OK);
	assert_int_equal(ft_constraint_cache_get(cache, format, &used), FT_OK);
	for (int i = 0; i < 200; i++)
	{
		json_t *schema = json_pack("{s:s, s:{s:{s:i}}}", "type", "json_schema", "json_schema",
								   "schema", "const", i);

		assert_int_equal(ft_constraint_cache_get(cache, schema, &other), FT_OK);
		ft_constraint_cache_put(cache, other);
		json_decref(schema);
	}
	assert_int_equal(ft_constraint_cache_get(cache, format, &other), FT_OK);
	assert_ptr_equal(used, other);
	ft_constraint_cache_put(cache, used);
	ft_constraint_cache_put(cache, other);
	json_decref(format);
	ft_constraint_cache_free(cache);
	ft_tokenizer_free(tokenizer);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_scalars),
		cmocka_unit_test(test_strings),
		cmocka_unit_test(test_objects),
		cmocka_unit_test(test_arrays),
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_any_of_and_refs),
		cmocka_unit_test(test_required_first),
		cmocka_unit_test(test_any_object),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_refused_circles),
		cmocka_unit_test(test_refused_sizes),
		cmocka_unit_test(test_tokens),
		cmocka_unit_test(test_ends_in_time),
		cmocka_unit_test(test_shortest),
		cmocka_unit_test(test_mask),
		cmocka_unit_test(test_forgetting),
		cmocka_unit_test(test_too_many_ways),
		cmocka_unit_test(test_formats),
		cmocka_unit_test(test_kept_constraints),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
