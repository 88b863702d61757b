/*
 * tokenizer_model.c: tokenizer.model, a SentencePiece model.
 *
 * The file is a message of Protocol Buffers: fields with a number and one of four wire types.  The
 * fields are sentencepiece_model.proto's; those that change no id are passed over.
 */
#include "tokenizer_files_internal.h"

#include <stdlib.h>
#include <string.h>

/* --- the wire format --- */

typedef enum wire_type
{
	WIRE_VARINT = 0,
	WIRE_FIXED64 = 1,
	WIRE_BYTES = 2,
	WIRE_FIXED32 = 5
} wire_type;

typedef struct message
{
	const unsigned char *at;
	const unsigned char *end;
} message;

typedef struct field
{
	uint64_t number;
	wire_type type;
	uint64_t value; /* of a number */
	message bytes;
} field;

static ft_status
read_varint(message *m, uint64_t *value)
{
	*value = 0;
	for (int shift = 0; shift < 64; shift += 7)
	{
		unsigned char byte;

		if (m->at == m->end)
			return ft_fail(FT_CORRUPT, "is truncated");
		byte = *m->at++;
		*value |= (uint64_t) (byte & 0x7f) << shift;
		if (byte < 0x80)
			return FT_OK;
	}
	return ft_fail(FT_CORRUPT, "is no SentencePiece model: a number has more than 64 bits");
}

static ft_status
read_fixed(message *m, size_t n, uint64_t *value)
{
	if ((size_t) (m->end - m->at) < n)
		return ft_fail(FT_CORRUPT, "is truncated");
	*value = 0;
	for (size_t i = 0; i < n; i++)
		*value |= (uint64_t) *m->at++ << 8 * i;
	return FT_OK;
}

/* m is not at its end. */
static ft_status
read_field(message *m, field *f)
{
	uint64_t key;
	uint64_t length;

	FT_TRY(read_varint(m, &key));
	*f = (field){.number = key >> 3, .type = (wire_type) (key & 7)};
	switch (f->type)
	{
		case WIRE_VARINT:
			return read_varint(m, &f->value);
		case WIRE_FIXED64:
			return read_fixed(m, 8, &f->value);
		case WIRE_FIXED32:
			return read_fixed(m, 4, &f->value);
		case WIRE_BYTES:
			FT_TRY(read_varint(m, &length));
			if (length > (uint64_t) (m->end - m->at))
				return ft_fail(FT_CORRUPT, "is truncated");
			f->bytes = (message){m->at, m->at + length};
			m->at += length;
			return FT_OK;
	}
	return ft_fail(FT_CORRUPT, "is no SentencePiece model: wire type %d", (int) (key & 7));
}

static ft_status
expect(const field *f, wire_type type, const char *name)
{
	if (f->type != type)
		return ft_fail(FT_CORRUPT, "is no SentencePiece model: field \"%s\" has wire type %d", name,
					   (int) f->type);
	return FT_OK;
}

/* --- the model --- */

enum
{
	MODEL_PIECES = 1,
	MODEL_TRAINER = 2,
	MODEL_NORMALIZER = 3,
	PIECE_TEXT = 1,
	PIECE_SCORE = 2,
	PIECE_TYPE = 3,
	TRAINER_MODEL_TYPE = 3,
	TRAINER_SUFFIX = 24,
	TRAINER_BYTE_FALLBACK = 35,
	TRAINER_UNK = 40,
	TRAINER_BOS = 41,
	TRAINER_EOS = 42,
	TRAINER_PAD = 43,
	NORMALIZER_CHARSMAP = 2,
	NORMALIZER_PREFIX = 3,
	NORMALIZER_REMOVE = 4,
	NORMALIZER_ESCAPE = 5,
	TYPE_BPE = 2
};

/* With the defaults of the fields that are missing. */
typedef struct settings
{
	uint64_t model_type;
	uint64_t suffix;
	uint64_t byte_fallback;
	uint64_t unk;
	uint64_t bos;
	uint64_t eos;
	uint64_t pad;
	size_t charsmap;
	uint64_t prefix;
	uint64_t remove;
	uint64_t escape;
} settings;

typedef struct number_field
{
	uint64_t number;
	const char *name;
	uint64_t *to;
} number_field;

static ft_status
read_numbers(message m, const number_field *wanted, size_t n, size_t *charsmap)
{
	while (m.at < m.end)
	{
		field f;

		FT_TRY(read_field(&m, &f));
		if (charsmap != NULL && f.number == NORMALIZER_CHARSMAP)
		{
			FT_TRY(expect(&f, WIRE_BYTES, "precompiled_charsmap"));
			*charsmap = (size_t) (f.bytes.end - f.bytes.at);
		}
		for (size_t i = 0; i < n; i++)
		{
			if (f.number != wanted[i].number)
				continue;
			FT_TRY(expect(&f, WIRE_VARINT, wanted[i].name));
			*wanted[i].to = f.value;
		}
	}
	return FT_OK;
}

static ft_status
read_settings(message m, settings *s, size_t *pieces)
{
	const number_field trainer[] = {{TRAINER_MODEL_TYPE, "model_type", &s->model_type},
									{TRAINER_SUFFIX, "treat_whitespace_as_suffix", &s->suffix},
									{TRAINER_BYTE_FALLBACK, "byte_fallback", &s->byte_fallback},
									{TRAINER_UNK, "unk_id", &s->unk},
									{TRAINER_BOS, "bos_id", &s->bos},
									{TRAINER_EOS, "eos_id", &s->eos},
									{TRAINER_PAD, "pad_id", &s->pad}};
	const number_field normalizer[] = {{NORMALIZER_PREFIX, "add_dummy_prefix", &s->prefix},
									   {NORMALIZER_REMOVE, "remove_extra_whitespaces", &s->remove},
									   {NORMALIZER_ESCAPE, "escape_whitespaces", &s->escape}};

	*s = (settings){.model_type = 1,
					.unk = 0,
					.bos = 1,
					.eos = 2,
					.pad = UINT64_MAX,
					.prefix = 1,
					.remove = 1,
					.escape = 1};
	*pieces = 0;
	while (m.at < m.end)
	{
		field f;

		FT_TRY(read_field(&m, &f));
		if (f.number != MODEL_PIECES && f.number != MODEL_TRAINER && f.number != MODEL_NORMALIZER)
			continue;
		FT_TRY(expect(&f, WIRE_BYTES, "pieces, trainer_spec or normalizer_spec"));
		if (f.number == MODEL_PIECES)
			(*pieces)++;
		else if (f.number == MODEL_TRAINER)
			FT_TRY(read_numbers(f.bytes, trainer, sizeof trainer / sizeof trainer[0], NULL));
		else
			FT_TRY(read_numbers(f.bytes, normalizer, sizeof normalizer / sizeof normalizer[0],
								&s->charsmap));
	}
	return FT_OK;
}

static ft_status
check_settings(const settings *s, size_t pieces)
{
	static const char *const types[] = {"unigram", "BPE", "word", "character"};
	const char *refused = NULL;

	if (pieces == 0)
		return ft_fail(FT_CORRUPT, "is no SentencePiece model: it has no pieces");
	if (s->model_type != TYPE_BPE)
		return ft_hint(ft_fail(FT_UNSUPPORTED, "a SentencePiece model of type %s is not supported",
							   s->model_type >= 1 && s->model_type <= 4 ? types[s->model_type - 1]
																		: "unknown"),
					   "Supported is BPE.");
	if (s->suffix)
		refused = "treat_whitespace_as_suffix";
	else if (s->charsmap > 0)
		refused = "a normalizer (precompiled_charsmap)";
	else if (s->remove)
		refused = "remove_extra_whitespaces";
	else if (!s->escape)
		refused = "spaces that are not escaped";
	if (refused != NULL)
		return ft_fail(FT_UNSUPPORTED, "a SentencePiece model with %s is not supported", refused);
	return FT_OK;
}

static ft_status
read_piece(message m, ft_vocabulary *v, size_t id)
{
	ft_string text = {"", 0};
	uint64_t type = FT_TOKEN_NORMAL;

	while (m.at < m.end)
	{
		field f;
		uint32_t bits;

		FT_TRY(read_field(&m, &f));
		if (f.number == PIECE_TEXT)
		{
			FT_TRY(expect(&f, WIRE_BYTES, "piece"));
			text = (ft_string){(const char *) f.bytes.at, (size_t) (f.bytes.end - f.bytes.at)};
		}
		else if (f.number == PIECE_SCORE)
		{
			FT_TRY(expect(&f, WIRE_FIXED32, "score"));
			bits = (uint32_t) f.value;
			memcpy(&v->scores[id], &bits, sizeof bits);
		}
		else if (f.number == PIECE_TYPE)
		{
			FT_TRY(expect(&f, WIRE_VARINT, "type"));
			type = f.value;
		}
	}
	if (type < FT_TOKEN_NORMAL || type > FT_TOKEN_BYTE)
		return ft_fail(FT_CORRUPT, "piece %zu is of type %llu", id, (unsigned long long) type);
	if (text.length == 0)
		return ft_fail(FT_CORRUPT, "piece %zu is empty", id);
	/* merging would go on to cut such a piece up again */
	if (type == FT_TOKEN_UNUSED)
		return ft_fail(FT_UNSUPPORTED, "piece %zu is of type unused, which is not supported", id);
	v->tokens[id] = text;
	v->types[id] = (int32_t) type;
	if (type == FT_TOKEN_USER_DEFINED)
		v->added[id] = FT_ADDED_SYMBOL;
	return FT_OK;
}

static ft_status
read_pieces(message m, ft_vocabulary *v)
{
	size_t id = 0;

	while (m.at < m.end)
	{
		field f;

		FT_TRY(read_field(&m, &f));
		if (f.number == MODEL_PIECES)
			FT_TRY(read_piece(f.bytes, v, id++));
	}
	return FT_OK;
}

/* Ids are 32 bits with a sign in the file; what is negative, or no piece, is none. */
static int
id_of(uint64_t value, const ft_vocabulary *v)
{
	return value < v->n_tokens ? (int) value : -1;
}

/* --- tokens that tokenizer_config.json adds --- */

static ft_status
parse_id(const char *key, size_t limit, size_t *id)
{
	char *end;
	unsigned long value = strtoul(key, &end, 10);

	if (key[0] < '0' || key[0] > '9' || *end != '\0' || value >= limit)
		return ft_fail(FT_CORRUPT,
					   "\"added_tokens_decoder\" of tokenizer_config.json has a key "
					   "that is no id below %zu",
					   limit);
	*id = value;
	return FT_OK;
}

static ft_status
add_config_tokens(const json_t *added, size_t pieces, ft_vocabulary *v)
{
	const char *key;
	json_t *token;

	json_object_foreach ((json_t *) added, key, token)
	{
		size_t id;
		const json_t *content = json_object_get(token, "content");

		FT_TRY(parse_id(key, v->n_tokens, &id));
		/* pieces keep the model's type: special ones are told from the others there */
		if (id >= pieces)
		{
			FT_TRY(ft_files_set_added(v, id, token));
			continue;
		}
		if (!json_is_string(content) || json_string_length(content) != v->tokens[id].length ||
			memcmp(json_string_value(content), v->tokens[id].data, v->tokens[id].length) != 0)
			return ft_fail(FT_CORRUPT,
						   "\"added_tokens_decoder\" of tokenizer_config.json has "
						   "another text for piece %zu",
						   id);
	}
	return FT_OK;
}

/* Tokens in all: pieces and what stands behind them. */
static ft_status
count_tokens(const json_t *added, size_t pieces, size_t *n)
{
	size_t limit = pieces + 2 * json_object_size(added) + FT_ID_SLACK;
	const char *key;
	json_t *token;

	*n = pieces;
	json_object_foreach ((json_t *) added, key, token)
	{
		size_t id;

		FT_TRY(parse_id(key, limit, &id));
		if (id >= *n)
			*n = id + 1;
	}
	return FT_OK;
}

ft_status
ft_files_from_model(ft_tokenizer_files *files)
{
	ft_vocabulary *v = &files->vocabulary;
	const json_t *added = json_object_get(files->config, "added_tokens_decoder");
	const unsigned char *bytes = (const unsigned char *) files->file.data;
	message m = {bytes, bytes + files->file.length};
	settings s;
	size_t pieces;
	size_t n;
	void *memory;

	FT_TRY(read_settings(m, &s, &pieces));
	FT_TRY(check_settings(&s, pieces));
	FT_TRY(count_tokens(added, pieces, &n));
	FT_TRY(ft_files_allocate(v, n));
	FT_TRY(ft_alloc(&memory, n, sizeof(float)));
	v->scores = memory;
	FT_TRY(read_pieces(m, v));
	FT_TRY(add_config_tokens(added, pieces, v));
	strcpy(v->model, "llama");
	v->bos = id_of(s.bos, v);
	v->eos = id_of(s.eos, v);
	v->pad = id_of(s.pad, v);
	v->unknown = id_of(s.unk, v);
	v->add_bos = true;
	v->byte_fallback = s.byte_fallback;
	v->space_prefix = s.prefix ? FT_SPACE_TEXTS : FT_SPACE_NONE;
	return FT_OK;
}
