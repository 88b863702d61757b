/*
 * row.h: one line of JSONL to the tokens of a document.
 */
#ifndef FT_ROW_H
#define FT_ROW_H

#include "model_file.h"
#include "prompt_template.h"

typedef struct ft_row_encoder
{
	const ft_config *config;
	const ft_vocabulary *vocabulary;
	const ft_tokenizer *tokenizer;
	const ft_chat_template *chat_template;
	const char *prompt_template; /* of pairs, in place of the chat template; NULL: none */
	int max_length;
	bool train_on_inputs; /* not with pairs */
	bool pairs;           /* rows are a chosen and a rejected answer, and nothing else */
	ft_ids ids;           /* of the last row; targets and weights alongside */
	ft_ids targets; /* what is to be predicted at a token: itself, but for labels of its own */
	ft_weights weights;
	float weight;  /* of the row; that of a pair is not in weights, which are then 0 and 1 */
	size_t chosen; /* tokens of a pair's chosen side, those of the other follow; 0: no pair */
	ft_ids piece;  /* scratch */
	ft_text text;  /* scratch */
} ft_row_encoder;

typedef enum ft_row_kind
{
	FT_ROW_USED,
	FT_ROW_NULL,     /* a column is null */
	FT_ROW_UNTRAINED /* no token of it is trained; of a pair, of one of its sides */
} ft_row_kind;

/* Encode a line into encoder->ids, ->targets and ->weights.  FT_INVALID says what is wrong, without
 * the line's text. *truncated: it had to be cut to max_length, which holds for each side of a
 * pair. */
ft_status ft_row_encode(ft_row_encoder *encoder, const char *line, size_t n, ft_row_kind *kind,
						bool *truncated);
/* Frees what the encoder has grown. */
void ft_row_encoder_clear(ft_row_encoder *encoder);

#endif
