/*
 * tokenizer_json.c: tokenizer.json, as Hugging Face's tokenizers library writes it.
 *
 * The file describes a pipeline of any steps.  Of the model type BPE the pipelines of two kinds are
 * known: byte-level ones with a known pattern, and SentencePiece's, in which U+2581 stands for a
 * space.  Every step that is neither is refused by its name: to leave it out would give other ids.
 */
#include "tokenizer_files_internal.h"
#include "tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* What the steps say, to be brought together. */
typedef struct pipeline
{
	bool nfc;
	bool prepends; /* the normaliser puts U+2581 before */
	bool replaces; /* and has it for spaces */
	bool metaspace;
	bool byte_level;
	bool default_pattern; /* ByteLevel cuts by its own pattern */
	bool split_digits;
	const char *pre;
	ft_space_prefix prefix;
	bool strips; /* the decoder leaves a space at the start out */
	bool decodes_bytes;
	bool decodes_spaces;
} pipeline;

static const char *
type_of(const json_t *step)
{
	const char *type = json_string_value(json_object_get(step, "type"));

	return type != NULL ? type : "";
}

static bool
is_type(const json_t *step, const char *type)
{
	return strcmp(type_of(step), type) == 0;
}

static bool
string_is(const json_t *value, const char *text)
{
	return json_is_string(value) && json_string_length(value) == strlen(text) &&
		   memcmp(json_string_value(value), text, strlen(text)) == 0;
}

static ft_status
refuse(const char *part, const json_t *step, const char *what)
{
	char name[64] = "";
	const char *type = type_of(step);

	for (size_t i = 0; type[i] != '\0' && i < sizeof name - 1; i++)
	{
		name[i] = type[i] >= 0x20 && type[i] < 0x7f ? type[i] : '?';
		name[i + 1] = '\0';
	}
	return ft_fail(FT_UNSUPPORTED, "%s \"%s\"%s%s is not supported", part, name,
				   what[0] != '\0' ? " with " : "", what);
}

/* A list of steps, where one step may stand for itself. */
typedef ft_status (*step_reader)(const json_t *step, pipeline *p);

static ft_status
read_steps(const json_t *steps, const char *list, const char *part, step_reader read, pipeline *p)
{
	const json_t *array;

	if (steps == NULL || json_is_null(steps))
		return FT_OK;
	if (!json_is_object(steps))
		return ft_fail(FT_CORRUPT, "the %s is no object", part);
	if (!is_type(steps, "Sequence"))
		return read(steps, p);
	array = json_object_get(steps, list);
	if (!json_is_array(array))
		return ft_fail(FT_CORRUPT, "the %s is a sequence without steps", part);
	for (size_t i = 0; i < json_array_size(array); i++)
		FT_TRY(read(json_array_get(array, i), p));
	return FT_OK;
}

static bool
replaces(const json_t *step, const char *from, const char *to)
{
	return is_type(step, "Replace") &&
		   string_is(json_object_get(json_object_get(step, "pattern"), "String"), from) &&
		   string_is(json_object_get(step, "content"), to);
}

static ft_status
read_normalizer(const json_t *step, pipeline *p)
{
	if (is_type(step, "NFC"))
		p->nfc = true;
	else if (is_type(step, "Prepend") && !p->replaces &&
			 string_is(json_object_get(step, "prepend"), FT_SPACE_MARK))
		p->prepends = true;
	else if (replaces(step, " ", FT_SPACE_MARK))
		p->replaces = true;
	else
		return refuse("normalizer", step,
					  is_type(step, "Prepend") || is_type(step, "Replace") ? "these texts" : "");
	return FT_OK;
}

static ft_status
read_metaspace(const json_t *step, pipeline *p)
{
	const json_t *scheme = json_object_get(step, "prepend_scheme");
	const json_t *space = json_object_get(step, "add_prefix_space");

	if (!string_is(json_object_get(step, "replacement"), FT_SPACE_MARK))
		return refuse("pre_tokenizer", step, "this replacement");
	if (!json_is_false(json_object_get(step, "split")))
		return refuse("pre_tokenizer", step, "splits");
	p->metaspace = true;
	if (string_is(scheme, "first"))
		p->prefix = FT_SPACE_FIRST;
	else if (string_is(scheme, "never") || (scheme == NULL && json_is_false(space)))
		p->prefix = FT_SPACE_NONE;
	else if (string_is(scheme, "always") || scheme == NULL)
		p->prefix = FT_SPACE_ALWAYS;
	else
		return refuse("pre_tokenizer", step, "this prepend_scheme");
	return FT_OK;
}

static ft_status
read_split(const json_t *step, pipeline *p)
{
	const json_t *regex = json_object_get(json_object_get(step, "pattern"), "Regex");

	if (!string_is(json_object_get(step, "behavior"), "Isolated") ||
		json_is_true(json_object_get(step, "invert")) || p->pre != NULL)
		return refuse("pre_tokenizer", step, "this behavior");
	if (json_is_string(regex))
		p->pre =
			ft_pre_by_pattern(json_string_value(regex), json_string_length(regex), p->split_digits);
	if (p->pre == NULL)
		return ft_hint(refuse("pre_tokenizer", step, "this pattern"),
					   "Known are the patterns of GPT-2, Llama 3 and Qwen2.");
	return FT_OK;
}

static ft_status
read_pre_tokenizer(const json_t *step, pipeline *p)
{
	if (p->byte_level || p->metaspace)
		return refuse("pre_tokenizer", step, "another before it");
	if (is_type(step, "Metaspace"))
		return read_metaspace(step, p);
	if (is_type(step, "Split"))
		return read_split(step, p);
	if (is_type(step, "Digits") && json_is_true(json_object_get(step, "individual_digits")) &&
		p->pre == NULL)
	{
		p->split_digits = true;
		return FT_OK;
	}
	if (!is_type(step, "ByteLevel"))
		return refuse("pre_tokenizer", step, "");
	if (json_is_true(json_object_get(step, "add_prefix_space")))
		return refuse("pre_tokenizer", step, "add_prefix_space");
	p->byte_level = true;
	p->default_pattern = !json_is_false(json_object_get(step, "use_regex"));
	return FT_OK;
}

static ft_status
read_decoder(const json_t *step, pipeline *p)
{
	if (is_type(step, "ByteLevel"))
		p->decodes_bytes = true;
	else if (is_type(step, "Metaspace"))
	{
		p->decodes_spaces = true;
		p->strips = !string_is(json_object_get(step, "prepend_scheme"), "never") &&
					!json_is_false(json_object_get(step, "add_prefix_space"));
	}
	else if (replaces(step, FT_SPACE_MARK, " "))
		p->decodes_spaces = true;
	else if (is_type(step, "Strip") && string_is(json_object_get(step, "content"), " ") &&
			 json_integer_value(json_object_get(step, "start")) == 1 &&
			 json_integer_value(json_object_get(step, "stop")) == 0)
		p->strips = true;
	else if (!is_type(step, "ByteFallback") && !is_type(step, "Fuse"))
		return refuse("decoder", step, "");
	return FT_OK;
}

/* What stands around a single text: at most one token before it. */
static ft_status
read_template(const json_t *step, ft_vocabulary *v)
{
	const json_t *single = json_object_get(step, "single");
	bool text = false;

	for (size_t i = 0; i < json_array_size(single); i++)
	{
		const json_t *part = json_array_get(single, i);
		const json_t *id = json_object_get(json_object_get(part, "SpecialToken"), "id");

		if (json_object_get(part, "Sequence") != NULL)
		{
			text = true;
			continue;
		}
		if (!json_is_string(id) || text || i > 0)
			return refuse("post_processor", step, "a token that is not before the text");
		v->bos = ft_files_find(v, json_string_value(id), json_string_length(id));
		if (v->bos < 0)
			return ft_fail(FT_CORRUPT,
						   "the post_processor names a token that the vocabulary lacks");
		v->add_bos = true;
	}
	return FT_OK;
}

static ft_status
read_post_processor(const json_t *steps, ft_vocabulary *v)
{
	const json_t *array = json_object_get(steps, "processors");
	size_t n = array != NULL ? json_array_size(array) : 1;

	if (steps == NULL || json_is_null(steps))
		return FT_OK;
	for (size_t i = 0; i < n; i++)
	{
		const json_t *step = array != NULL ? json_array_get(array, i) : steps;

		if (is_type(step, "TemplateProcessing"))
			FT_TRY(read_template(step, v));
		else if (!is_type(step, "ByteLevel"))
			return refuse("post_processor", step, "");
	}
	return FT_OK;
}

/* Do the steps make one of the two kinds? */
static ft_status
apply_pipeline(const pipeline *p, ft_vocabulary *v)
{
	bool prefix = p->prepends || p->prefix != FT_SPACE_NONE;

	v->nfc = p->nfc;
	strcpy(v->model, p->byte_level ? "gpt2" : "llama");
	if (p->byte_level)
	{
		const char *pre = p->pre;

		if (p->prepends || p->replaces)
			return ft_fail(FT_UNSUPPORTED, "a normalizer with U+2581 before the pre_tokenizer "
										   "\"ByteLevel\" is not supported");
		if (!p->decodes_bytes)
			return ft_fail(FT_UNSUPPORTED,
						   "the pre_tokenizer \"ByteLevel\" with another decoder is not supported");
		if (p->default_pattern && pre == NULL)
			pre = p->split_digits ? "smollm" : "gpt-2";
		else if (p->default_pattern || pre == NULL)
			return ft_fail(FT_UNSUPPORTED,
						   "the pre_tokenizer \"ByteLevel\" with %s pattern is not "
						   "supported",
						   pre == NULL ? "no" : "a second");
		strcpy(v->pre, pre);
		return FT_OK;
	}
	if (p->pre != NULL || p->split_digits || p->decodes_bytes)
		return ft_fail(FT_UNSUPPORTED, "a pre_tokenizer that cuts text into pieces, without "
									   "\"ByteLevel\", is not supported");
	if (p->metaspace ? p->prepends || p->replaces : !p->replaces)
		return ft_fail(FT_UNSUPPORTED, "a vocabulary that has neither \"ByteLevel\" nor one step "
									   "that puts U+2581 for spaces is not supported");
	if (!p->decodes_spaces || p->strips != prefix)
		return ft_fail(FT_UNSUPPORTED, "a decoder that does not undo the spaces of the normalizer "
									   "and pre_tokenizer is not supported");
	v->space_prefix = p->prepends ? FT_SPACE_ALWAYS : p->prefix;
	v->space_prefix_once = p->metaspace;
	return FT_OK;
}

/* --- the model --- */

static ft_status
check_model(const json_t *model)
{
	static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
	const json_t *type = json_object_get(model, "type");
	const json_t *dropout = json_object_get(model, "dropout");

	if (!json_is_object(model))
		return ft_fail(FT_CORRUPT, "there is no model");
	if (type != NULL && !is_type(model, "BPE"))
		return ft_hint(refuse("model", model, ""), "Supported is BPE.");
	if (dropout != NULL && !json_is_null(dropout) && json_number_value(dropout) != 0)
		return refuse("model", model, "dropout");
	for (size_t i = 0; i < 2; i++)
	{
		const json_t *affix = json_object_get(model, affixes[i]);

		if (affix != NULL && !json_is_null(affix) && !string_is(affix, ""))
			return refuse("model", model, affixes[i]);
	}
	return FT_OK;
}

static ft_status
read_vocab(json_t *vocab, const json_t *added, ft_vocabulary *v)
{
	size_t limit = 2 * (json_object_size(vocab) + json_array_size(added)) + FT_ID_SLACK;
	size_t n = 0;
	const char *key;
	size_t length;
	json_t *id;

	if (!json_is_object(vocab))
		return ft_fail(FT_CORRUPT, "the model has no vocabulary");
	if (added != NULL && !json_is_array(added))
		return ft_fail(FT_CORRUPT, "\"added_tokens\" is no list");
	json_object_keylen_foreach(vocab, key, length, id) FT_TRY(ft_files_highest(id, limit, &n));
	for (size_t i = 0; i < json_array_size(added); i++)
		FT_TRY(ft_files_highest(json_object_get(json_array_get(added, i), "id"), limit, &n));
	FT_TRY(ft_files_allocate(v, n));
	json_object_keylen_foreach(vocab, key, length, id) FT_TRY(ft_files_set(
		v, (size_t) json_integer_value(id), (ft_string){key, length}, FT_TOKEN_NORMAL));
	for (size_t i = 0; i < json_array_size(added); i++)
	{
		const json_t *token = json_array_get(added, i);
		const json_t *content = json_object_get(token, "content");
		const json_t *other =
			json_is_string(content)
				? json_object_getn(vocab, json_string_value(content), json_string_length(content))
				: NULL;
		json_int_t at = json_integer_value(json_object_get(token, "id"));

		if (other != NULL && json_integer_value(other) != at)
			return ft_fail(FT_CORRUPT, "added token %lld is token %lld of the vocabulary",
						   (long long) at, (long long) json_integer_value(other));
		FT_TRY(ft_files_set_added(v, (size_t) at, token));
	}
	return FT_OK;
}

/* Bytes of a merge written as a pair, 0 for one that is a string. */
static ft_status
measure_merge(const json_t *merge, size_t rank, size_t *bytes)
{
	const char *text = json_string_value(merge);
	const json_t *left = json_array_get(merge, 0);
	const json_t *right = json_array_get(merge, 1);

	*bytes = 0;
	if (text != NULL)
	{
		const char *space = memchr(text, ' ', json_string_length(merge));

		if (space == NULL || strchr(space + 1, ' ') != NULL)
			return ft_fail(FT_CORRUPT, "merge %zu does not name two tokens", rank);
		return FT_OK;
	}
	if (!json_is_string(left) || !json_is_string(right) || json_array_size(merge) != 2 ||
		json_string_length(left) == 0 || json_string_length(right) == 0)
		return ft_fail(FT_CORRUPT, "merge %zu does not name two tokens", rank);
	if (memchr(json_string_value(left), ' ', json_string_length(left)) != NULL ||
		memchr(json_string_value(right), ' ', json_string_length(right)) != NULL)
		return ft_fail(FT_UNSUPPORTED, "merge %zu has a space in it, which is not supported", rank);
	*bytes = json_string_length(left) + json_string_length(right) + 1;
	return FT_OK;
}

static ft_status
read_merges(const json_t *merges, ft_tokenizer_files *files)
{
	ft_vocabulary *v = &files->vocabulary;
	size_t total = 0;
	void *memory;

	if (!json_is_array(merges))
		return ft_fail(FT_CORRUPT, "the model has no merges");
	v->n_merges = json_array_size(merges);
	FT_TRY(ft_alloc(&memory, v->n_merges, sizeof(ft_string)));
	v->merges = memory;
	for (size_t i = 0; i < v->n_merges; i++)
	{
		const json_t *merge = json_array_get(merges, i);
		size_t bytes;

		FT_TRY(measure_merge(merge, i, &bytes));
		total += bytes;
	}
	/* all at once, so that nothing moves */
	FT_TRY(ft_alloc(&memory, total + 1, 1));
	files->merges = (ft_text){memory, 0, total + 1};
	for (size_t i = 0; i < v->n_merges; i++)
	{
		const json_t *merge = json_array_get(merges, i);
		char *to = files->merges.data + files->merges.length;
		size_t left = json_string_length(json_array_get(merge, 0));
		size_t right = json_string_length(json_array_get(merge, 1));

		if (json_is_string(merge))
		{
			v->merges[i] = (ft_string){json_string_value(merge), json_string_length(merge)};
			continue;
		}
		memcpy(to, json_string_value(json_array_get(merge, 0)), left);
		to[left] = ' ';
		memcpy(to + left + 1, json_string_value(json_array_get(merge, 1)), right);
		v->merges[i] = (ft_string){to, left + 1 + right};
		files->merges.length += left + 1 + right;
	}
	return FT_OK;
}

/* Is there a token of every byte?  Then nothing is ever unknown. */
static bool
has_all_bytes(const json_t *vocab, bool byte_level)
{
	int16_t byte_of[FT_ALPHABET_END];
	int found = 0;

	ft_make_alphabet(byte_of);
	for (unsigned code = 0; code < FT_ALPHABET_END; code++)
	{
		char name[8];
		int length;

		if (byte_level ? byte_of[code] < 0 : code > 255)
			continue;
		if (!byte_level)
			length = snprintf(name, sizeof name, "<0x%02X>", code);
		else if (code < 0x80)
			length = snprintf(name, sizeof name, "%c", (char) code);
		else
			length = snprintf(name, sizeof name, "%c%c", (char) (0xc0 | code >> 6),
							  (char) (0x80 | (code & 0x3f)));
		found += json_object_getn(vocab, name, (size_t) length) != NULL;
	}
	return found == 256;
}

static ft_status
read_unknown(const json_t *model, ft_vocabulary *v)
{
	const json_t *unknown = json_object_get(model, "unk_token");
	bool byte_level = strcmp(v->model, "gpt2") == 0;
	bool reached = !has_all_bytes(json_object_get(model, "vocab"), byte_level) ||
				   (!byte_level && !v->byte_fallback);

	if (unknown == NULL || json_is_null(unknown))
		return FT_OK;
	if (!json_is_string(unknown))
		return ft_fail(FT_CORRUPT, "\"unk_token\" is no token");
	v->unknown = ft_files_find(v, json_string_value(unknown), json_string_length(unknown));
	if (v->unknown < 0)
		return ft_fail(FT_CORRUPT, "\"unk_token\" is a token that the vocabulary lacks");
	if (reached && byte_level)
		return refuse("model", model, "unk_token and a vocabulary that lacks bytes");
	if (reached && !json_is_true(json_object_get(model, "fuse_unk")))
		return refuse("model", model, "unk_token that is not fused");
	return FT_OK;
}

ft_status
ft_files_from_json(ft_tokenizer_files *files)
{
	const json_t *root = files->json;
	const json_t *model = json_object_get(root, "model");
	const json_t *ignore = json_object_get(model, "ignore_merges");
	ft_vocabulary *v = &files->vocabulary;
	pipeline p = {0};

	v->bos = v->eos = v->unknown = v->pad = -1;
	FT_TRY(check_model(model));
	FT_TRY(read_steps(json_object_get(root, "normalizer"), "normalizers", "normalizer",
					  read_normalizer, &p));
	FT_TRY(read_steps(json_object_get(root, "pre_tokenizer"), "pretokenizers", "pre_tokenizer",
					  read_pre_tokenizer, &p));
	FT_TRY(read_steps(json_object_get(root, "decoder"), "decoders", "decoder", read_decoder, &p));
	FT_TRY(apply_pipeline(&p, v));
	FT_TRY(read_vocab(json_object_get(model, "vocab"), json_object_get(root, "added_tokens"), v));
	FT_TRY(read_merges(json_object_get(model, "merges"), files));
	v->byte_fallback = !p.byte_level && json_is_true(json_object_get(model, "byte_fallback"));
	v->ignore_merges = json_is_true(ignore) ? FT_MERGES_IGNORED : FT_MERGES_COUNT;
	FT_TRY(read_unknown(model, v));
	return read_post_processor(json_object_get(root, "post_processor"), v);
}
