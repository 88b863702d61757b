/*
 * tokenizer.h: text to token ids and back.
 */
#ifndef FT_TOKENIZER_H
#define FT_TOKENIZER_H

#include "buffer.h"
#include "status.h"

#include <stdbool.h>

/* GGUF's tokenizer.ggml.token_type */
typedef enum ft_token_type
{
	FT_TOKEN_NORMAL = 1,
	FT_TOKEN_UNKNOWN = 2,
	FT_TOKEN_CONTROL = 3,
	FT_TOKEN_USER_DEFINED = 4,
	FT_TOKEN_UNUSED = 5,
	FT_TOKEN_BYTE = 6
} ft_token_type;

/* A vocabulary as files store it.  Strings are length-counted: a token may hold any byte. */
typedef struct ft_string
{
	const char *data;
	size_t length;
} ft_string;

/* How an added token is found in text; tokenizer.json's words.  A control token or a user-defined
 * one is an added token. */
enum
{
	FT_ADDED_LSTRIP = 1,      /* takes the white space before it */
	FT_ADDED_RSTRIP = 2,      /* and after it */
	FT_ADDED_SINGLE_WORD = 4, /* only where no letter, digit or underscore is next to it */
	FT_ADDED_NORMALIZED = 8,  /* looked for in normalised text, as normalised */
	FT_ADDED_SYMBOL = 16      /* a piece that is never merged, inside the text: no cut there, and no
							   * space comes after it (SentencePiece's user-defined symbols) */
};

/* Where a SentencePiece-style tokeniser puts a space that the text does not have. */
typedef enum ft_space_prefix
{
	FT_SPACE_NONE,
	FT_SPACE_FIRST,  /* before the text, not after an added token */
	FT_SPACE_ALWAYS, /* also after each added token */
	FT_SPACE_TEXTS   /* also after a special token, where the text there does not begin with one */
} ft_space_prefix;

/* Does a whole piece that is a token become that token, whatever the merges say? */
typedef enum ft_ignore_merges
{
	FT_MERGES_BY_PRE, /* as the models of this pre-tokeniser do */
	FT_MERGES_COUNT,
	FT_MERGES_IGNORED
} ft_ignore_merges;

/* A zeroed one, with its members up to bos filled, is what most files mean. */
typedef struct ft_vocabulary
{
	char model[16]; /* "gpt2" (byte-level BPE) or "llama" (SentencePiece style) */
	char pre[32];   /* of "gpt2": pre-tokeniser, "smollm", "llama-bpe", "qwen2", "default" … */
	size_t n_tokens;
	ft_string *tokens; /* byte-level ones in GPT-2's printable alphabet, as stored */
	int32_t *types;    /* ft_token_type; NULL: all normal */
	float *scores;     /* of "llama" without merges: the highest is merged first; else NULL */
	size_t n_merges;
	ft_string *merges; /* "left right", by rank; a space inside of a token is not possible here */
	int bos, eos, unknown, pad; /* -1: none */
	bool add_bos;               /* a text that no template frames begins with bos */
	/* FT_ADDED_ flags by token; NULL: none, and user-defined tokens that look like a template's own
	 * are taken for control tokens */
	uint8_t *added;
	ft_space_prefix space_prefix;
	bool space_prefix_once; /* no space is put before one that the text has already */
	bool
		byte_fallback; /* of "llama": what has no token becomes tokens of its bytes; else unknown */
	bool nfc;          /* text is normalised to Unicode's form C */
	ft_ignore_merges ignore_merges;
} ft_vocabulary;

typedef struct ft_tokenizer ft_tokenizer;

/* Builds its own tables; the vocabulary may go away afterwards.  Thread-safe once made (const). */
ft_status ft_tokenizer_create(const ft_vocabulary *vocabulary, ft_tokenizer **tokenizer);
void ft_tokenizer_free(ft_tokenizer *tokenizer);

/* What stands before a text that is encoded: SentencePiece-style tokenisers put a space at some of
 * these places. */
typedef enum ft_text_start
{
	FT_START_TEXT,    /* nothing */
	FT_START_SPECIAL, /* a special token */
	FT_START_INSIDE   /* other text, which ends here for another reason */
} ft_text_start;

/* Append the ids of text[0, n) to ids.  Nothing is added (no BOS).  parse_special: special tokens
 * written in the text become their ids, as in a chat template; without it they are plain text, as
 * everything that comes from a user must be.  The text may be any bytes. */
ft_status ft_tokenizer_encode(const ft_tokenizer *tokenizer, const char *text, size_t n,
							  bool parse_special, ft_ids *ids);
ft_status ft_tokenizer_encode_part(const ft_tokenizer *tokenizer, const char *text, size_t n,
								   bool parse_special, ft_text_start start, ft_ids *ids);

/* Append the bytes of the ids to text.  skip_special drops control tokens.  _part: of ids that
 * stand behind others; otherwise a space is left out that encoding the text would put before it. */
ft_status ft_tokenizer_decode(const ft_tokenizer *tokenizer, const int32_t *ids, size_t n,
							  bool skip_special, ft_text *text);
ft_status ft_tokenizer_decode_part(const ft_tokenizer *tokenizer, const int32_t *ids, size_t n,
								   bool skip_special, ft_text *text);

/* The id of a token by its text as a user would write it ("<|im_end|>"); -1 when there is none. */
int32_t ft_tokenizer_find(const ft_tokenizer *tokenizer, const char *token);
size_t ft_tokenizer_size(const ft_tokenizer *tokenizer);
bool ft_tokenizer_is_special(const ft_tokenizer *tokenizer, int32_t id);

/* What the file names, -1 where it names none; adds_bos: a text that no template frames begins with
 * bos. */
int32_t ft_tokenizer_bos(const ft_tokenizer *tokenizer);
int32_t ft_tokenizer_eos(const ft_tokenizer *tokenizer);
bool ft_tokenizer_adds_bos(const ft_tokenizer *tokenizer);

/* FT_UNSUPPORTED, by name and with a hint, when ft_tokenizer_create would refuse the vocabulary's
 * kind. */
ft_status ft_tokenizer_check_kind(const char *model, const char *pre);

/* How many bytes at the end of text[0, n) begin a UTF-8 character that is not complete (0 to 3): a
 * stream holds them back. */
size_t ft_utf8_incomplete(const char *text, size_t n);

#endif
