/*
 * packing.h: which documents make an optimizer step, and how a step is cut into
 * packed batches that fit the memory.
 *
 * The documents of a step depend on the data, the batch size and the seed
 * alone; only how they are computed depends on memory and on accumulation.  So
 * the same rows give the same gradient whatever the micro-batches are, and the
 * place of a run in its data is just the number of steps done.
 */
#ifndef FT_PACKING_H
#define FT_PACKING_H

#include "dataset.h"
#include "transformer.h"

/* The steps of one epoch: documents order[first[i]] … order[first[i + 1] - 1] are step i's. */
typedef struct ft_epoch
{
	uint32_t index; /* epoch, from 0; UINT32_MAX before the first shuffle */
	uint32_t n_documents;
	uint32_t n_steps;
	uint32_t *order; /* [n_documents] */
	uint32_t *first; /* [n_steps + 1] */
} ft_epoch;

/* Steps of an epoch: as many as make `batch_tokens` each, at least 1, at most one a document. */
uint32_t ft_epoch_steps(const ft_document *documents, uint32_t n, int64_t batch_tokens);

/* Zero-initialise, set n_documents and n_steps by this; free with ft_epoch_free. */
ft_status ft_epoch_create(ft_epoch *epoch, uint32_t n_documents, uint32_t n_steps);
void ft_epoch_free(ft_epoch *epoch);
/* Shuffle for epoch `index` and cut into steps of about equal numbers of tokens, none empty. */
void ft_epoch_shuffle(ft_epoch *epoch, const ft_document *documents, uint64_t seed, uint32_t index);

/* Documents divided among batches. */
typedef struct ft_packing
{
	uint32_t n_batches;
	uint32_t *first;     /* [n_batches + 1] into documents */
	uint32_t *documents; /* indexes of documents, batch by batch */
} ft_packing;

/* Divide documents[chosen[0 … n)] into at least `batches` batches (0: as few as can be) of at most
 * `capacity` tokens and about equal size, longest documents first; within a batch they stand in the
 * order of `chosen`.  No document may be longer than the capacity (FT_INTERNAL). */
ft_status ft_pack(const ft_document *documents, const uint32_t *chosen, uint32_t n,
				  int64_t capacity, uint32_t batches, ft_packing *packing);
void ft_packing_free(ft_packing *packing);

/* How many documents that are only looked at, in their order, are divided into batches at a time;
 * and as few batches as can be of n of them, at most so many. */
#define FT_WINDOW 1024
ft_status
ft_pack_window(const ft_document *documents, uint32_t n, int64_t capacity, ft_packing *packing);

/* Host arrays for batches of at most `capacity` tokens. */
ft_status ft_microbatch_create(int64_t capacity, ft_microbatch *batch);
void ft_microbatch_free(ft_microbatch *batch);
/* Read one of the packing's batches. */
ft_status
ft_microbatch_fill(ft_microbatch *batch, const ft_dataset *dataset, const ft_document *documents,
				   const ft_packing *packing, uint32_t index);
/* From all, n_documents, numbers, apart, starts, max_length, all_ids, all_targets and all_weights
 * to everything else.  A beginning that all documents share is computed once when it has at least
 * `least_shared` tokens; it never reaches into the trained ones. */
void ft_microbatch_arrange(ft_microbatch *batch, int least_shared);

#endif
