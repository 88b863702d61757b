/*
 * decode.h: the forward pass of a serving batch over the paged cache.
 *
 * A batch holds any mixture of sequences, each with the next rows of its
 * tokens: one row where it is decoding, many where its prompt is read in.
 * Every operation on this path is row-fixed, so the numbers of a sequence do
 * not depend on what shares its batch nor on how its prompt was cut.
 */
#ifndef FT_DECODE_H
#define FT_DECODE_H

#include "adapter.h"
#include "kv_cache.h"

typedef struct ft_decoder ft_decoder;

/* The next rows of one sequence. */
typedef struct ft_decode_item
{
	const int32_t *tokens; /* [rows] */
	int rows;              /* at least 1 */
	int context;           /* position of the first: tokens that are in the cache already */
	const int32_t *blocks; /* cache blocks of positions 0 … context + rows - 1; any numbers for
							* those that no layer's window reaches */
	const ft_adapter *adapter; /* NULL: the base */
	bool wants_logits;         /* of the last row */
} ft_decode_item;

/* Work memory for batches of at most max_rows rows in max_sequences sequences, planned here once.
 */
ft_status
ft_decoder_create(const ft_model *model, int max_rows, int max_sequences, ft_decoder **decoder);
void ft_decoder_free(ft_decoder *decoder);

int64_t ft_decoder_bytes(const ft_decoder *decoder);

/* Run the items through the model, storing their keys and values.  Items of one adapter should
 * stand together: each change of adapter costs a segment in every linear layer.  Blocks, rows and
 * positions must be in range (FT_INTERNAL). */
ft_status
ft_decoder_run(ft_decoder *decoder, const ft_kv_cache *cache, const ft_decode_item *items, int n);

/* After a run: draw the next token of each item that wants_logits, in the items' order, by
 * params[i] (host).  ids [number of them] (host).  Consumes the logits. */
ft_status ft_decoder_sample(ft_decoder *decoder, const ft_sample *params, int32_t *ids);

/* After a run, before ft_decoder_sample: the logits [V] of the i-th item that wants them, to host.
 */
ft_status ft_decoder_logits(ft_decoder *decoder, int i, float *logits);

/* After a run, before ft_decoder_sample: have a function change the logits [V] of the i-th item
 * that wants them.  It is given a copy on the host: what is done to a few of them is not worth a
 * kernel. */
ft_status ft_decoder_edit_logits(ft_decoder *decoder, int i,
								 void (*edit)(void *context, float *logits), void *context);

#endif
