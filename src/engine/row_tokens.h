/*
 * row_tokens.h: a row that its owner has tokenised: input_ids, labels and
 * attention_mask, as Hugging Face's trainers take them.
 */
#ifndef FT_ROW_TOKENS_H
#define FT_ROW_TOKENS_H

#include "row.h"

#include <jansson.h>

/* Encode the row's three columns (the last two may be missing) into the encoder's ids, targets and
 * weights: weight 1 where a token is trained, 0 elsewhere; the first token still has a weight.
 * *truncated: it had to be cut at its end.  FT_INVALID names column and element (from 1), no
 * value. */
ft_status ft_row_encode_tokens(ft_row_encoder *encoder, const json_t *row, bool *truncated);

#endif
