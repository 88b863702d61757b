/*
 * tokenizer_pre.c: pre-tokenisers, run by PCRE2.
 *
 * The patterns cut exactly where the reference's do, but are written for one pass by PCRE2:
 * repetitions that nothing can follow are possessive, so that no input makes the matcher go back
 * over a long run, and white space is spelt out, because \s differs between engines (U+180E).
 */
#define PCRE2_CODE_UNIT_WIDTH 8

#include "tokenizer_pre.h"

#include "buffer.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#define SPACE                                                                                    \
	"\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{" \
	"3000}"

/* Letters and numbers are Unicode 16's, as in the reference's matcher; PCRE2 10.42 has the tables
 * of Unicode 14, so what came later is added. */
#define LETTER                                                                             \
	"\\p{L}"                                                                               \
	"\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"       \
	"\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}" \
	"\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}"   \
	"\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}"  \
	"\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}"            \
	"\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}"             \
	"\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"  \
	"\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"
#define NUMBER                                                                             \
	"\\p{N}"                                                                               \
	"\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}" \
	"\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}" \
	"\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"

/* GPT-2's: contractions, then words, numbers and other characters with a space before them, then
 * white space, whose last character is left to the word that follows. */
#define GPT2                                                                                \
	"'(?:[stmd]|re|ve|ll)| ?[" LETTER "]++| ?[" NUMBER "]++| ?[^" SPACE LETTER NUMBER "]++" \
	"|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

/* Digits(individual_digits), then GPT-2's inside of what lies between: a digit ends the text there,
 * so white space before it stays whole.  What a digit is, another library decides, with Unicode 17.
 */
#define DIGIT NUMBER "\\x{11de0}-\\x{11de9}\\x{16ff4}-\\x{16ff6}"
#define SMOLLM                                                                        \
	"'(?:[stmd]|re|ve|ll)|[" DIGIT "]| ?[" LETTER "]++| ?[^" SPACE LETTER DIGIT "]++" \
	"|[" SPACE "]+(?![^" SPACE DIGIT "])|[" SPACE "]+"

/* Llama 3's and its relatives', which differ in how many digits stand together. */
#define LLAMA3(count)                                                                           \
	"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n" LETTER NUMBER "]?[" LETTER "]++|[" NUMBER "]" count \
	"| ?[^" SPACE LETTER NUMBER "]++[\\r\\n]*+|[" SPACE "]*[\\r\\n]++"                          \
	"|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

typedef struct pre_kind
{
	const char *name;
	const char *pattern;
	bool ignore_merges;
	bool adds_bos;
	bool normalises;
	const char *regex; /* the pattern as tokenizer.json files write it */
	bool split_digits; /* behind another step there, which cuts off single digits */
} pre_kind;

/* As tokenizer.json writes them; GPT-2's is what its step ByteLevel stands for. */
#define GPT2_REGEX \
	"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA3_REGEX(count)                                                   \
	"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" count \
	"| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* The first of those with one pattern is the name that tokenizer.json's text gets. */
static const pre_kind kinds[] = {
	{"gpt-2", GPT2, false, false, false, GPT2_REGEX, false},
	{"default", GPT2, false, false, false, NULL, false},
	{"smollm", SMOLLM, false, false, false, GPT2_REGEX, true},
	{"llama-bpe", LLAMA3("{1,3}+"), true, true, false, LLAMA3_REGEX("{1,3}"), false},
	{"llama3", LLAMA3("{1,3}+"), true, true, false, NULL, false},
	{"llama-v3", LLAMA3("{1,3}+"), true, true, false, NULL, false},
	{"qwen2", LLAMA3(""), false, false, true, LLAMA3_REGEX(""), false},
	{"deepseek-r1-qwen", LLAMA3(""), false, true, false, NULL, false},
};

struct ft_pre
{
	const pre_kind *kind;
	pcre2_code *code;
	/* pcre2_jit_match or pcre2_match */
	int (*match)(const pcre2_code *, PCRE2_SPTR, PCRE2_SIZE, PCRE2_SIZE, uint32_t,
				 pcre2_match_data *, pcre2_match_context *);
	pcre2_match_context *context;
};

struct ft_pre_scan
{
	const ft_pre *pre;
	pcre2_match_data *match;
};

static const pre_kind *
find_kind(const char *name)
{
	for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
	{
		if (strcmp(kinds[i].name, name) == 0)
			return &kinds[i];
	}
	return NULL;
}

bool
ft_pre_known(const char *name)
{
	return find_kind(name) != NULL;
}

const char *
ft_pre_by_pattern(const char *pattern, size_t n, bool split_digits)
{
	for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
	{
		const char *regex = kinds[i].regex;

		if (regex != NULL && kinds[i].split_digits == split_digits && strlen(regex) == n &&
			memcmp(regex, pattern, n) == 0)
			return kinds[i].name;
	}
	return NULL;
}

bool
ft_pre_ignores_merges(const char *name)
{
	const pre_kind *kind = find_kind(name);

	return kind != NULL && kind->ignore_merges;
}

bool
ft_pre_adds_bos(const char *name)
{
	const pre_kind *kind = find_kind(name);

	return kind != NULL && kind->adds_bos;
}

bool
ft_pre_normalises(const char *name)
{
	const pre_kind *kind = find_kind(name);

	return kind != NULL && kind->normalises;
}

static ft_status
compile(ft_pre *pre)
{
	int error;
	size_t at;

	pre->code = pcre2_compile((PCRE2_SPTR) pre->kind->pattern, PCRE2_ZERO_TERMINATED,
							  PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &at, NULL);
	if (pre->code == NULL)
		return ft_fail(FT_INTERNAL, "pre-tokeniser \"%s\": PCRE2 error %d at %zu", pre->kind->name,
					   error, at);
	/* where JIT is not to be had (no executable memory), matching is interpreted */
	if (pcre2_jit_compile(pre->code, PCRE2_JIT_COMPLETE) == 0)
		pre->match = pcre2_jit_match;
	else
		pre->match = pcre2_match;
	pre->context = pcre2_match_context_create(NULL);
	if (pre->context == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory: a match context wanted");
	/* nothing backtracks without bound, so a long run of white space must not hit a limit */
	pcre2_set_match_limit(pre->context, UINT32_MAX);
	return FT_OK;
}

ft_status
ft_pre_create(const char *name, ft_pre **pre)
{
	const pre_kind *kind = find_kind(name);
	void *memory;
	ft_status status;

	if (kind == NULL)
		return ft_fail(FT_UNSUPPORTED, "pre-tokeniser \"%s\" is not supported", name);
	FT_TRY(ft_alloc(&memory, 1, sizeof(ft_pre)));
	*pre = memory;
	(*pre)->kind = kind;
	status = compile(*pre);
	if (status != FT_OK)
	{
		ft_pre_free(*pre);
		*pre = NULL;
	}
	return status;
}

void
ft_pre_free(ft_pre *pre)
{
	if (pre == NULL)
		return;
	pcre2_match_context_free(pre->context);
	pcre2_code_free(pre->code);
	free(pre);
}

ft_status
ft_pre_scan_create(const ft_pre *pre, ft_pre_scan **scan)
{
	void *memory;

	FT_TRY(ft_alloc(&memory, 1, sizeof(ft_pre_scan)));
	*scan = memory;
	(*scan)->pre = pre;
	(*scan)->match = pcre2_match_data_create(1, NULL);
	if ((*scan)->match == NULL)
	{
		free(memory);
		return ft_fail(FT_NO_MEMORY, "out of memory: match data wanted");
	}
	return FT_OK;
}

void
ft_pre_scan_free(ft_pre_scan *scan)
{
	if (scan == NULL)
		return;
	pcre2_match_data_free(scan->match);
	free(scan);
}

ft_status
ft_pre_next(ft_pre_scan *scan, const char *text, size_t n, size_t at, size_t *length)
{
	const ft_pre *pre = scan->pre;
	/* the caller has checked the encoding; PCRE2 would do so for all of the text at every piece */
	int rc = pre->match(pre->code, (PCRE2_SPTR) text, n, at, PCRE2_NO_UTF_CHECK, scan->match,
						pre->context);
	const PCRE2_SIZE *span;

	if (rc < 0)
		return ft_fail(rc == PCRE2_ERROR_NOMEMORY ? FT_NO_MEMORY : FT_INTERNAL,
					   "pre-tokeniser \"%s\": PCRE2 error %d at byte %zu", pre->kind->name, rc, at);
	span = pcre2_get_ovector_pointer(scan->match);
	if (span[0] != at || span[1] <= at || span[1] > n)
		return ft_fail(FT_INTERNAL, "pre-tokeniser \"%s\" found nothing at byte %zu",
					   pre->kind->name, at);
	*length = span[1] - at;
	return FT_OK;
}
