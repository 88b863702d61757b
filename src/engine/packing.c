/*
 * packing.c: optimizer steps and packed batches.
 */
#include "packing.h"

#include "random.h"

#include <stdlib.h>
#include <string.h>

/* --- steps --- */

static int64_t
sum_tokens(const ft_document *documents, uint32_t n)
{
	int64_t tokens = 0;

	for (uint32_t i = 0; i < n; i++)
		tokens += documents[i].length;
	return tokens;
}

uint32_t
ft_epoch_steps(const ft_document *documents, uint32_t n, int64_t batch_tokens)
{
	int64_t steps = (sum_tokens(documents, n) + batch_tokens / 2) / batch_tokens;

	if (steps > n)
		steps = n;
	return steps < 1 ? 1 : (uint32_t) steps;
}

ft_status
ft_epoch_create(ft_epoch *epoch, uint32_t n_documents, uint32_t n_steps)
{
	memset(epoch, 0, sizeof *epoch);
	epoch->index = UINT32_MAX;
	epoch->n_documents = n_documents;
	epoch->n_steps = n_steps;
	FT_TRY(ft_alloc((void **) &epoch->order, n_documents, sizeof(uint32_t)));
	return ft_alloc((void **) &epoch->first, (size_t) n_steps + 1, sizeof(uint32_t));
}

void
ft_epoch_free(ft_epoch *epoch)
{
	free(epoch->order);
	free(epoch->first);
	memset(epoch, 0, sizeof *epoch);
}

/*
 * Each step takes documents until it has its share of the tokens that are left,
 * so that sizes even out, but leaves one for each step that follows.
 */
void
ft_epoch_shuffle(ft_epoch *epoch, const ft_document *documents, uint64_t seed, uint32_t index)
{
	int64_t left = sum_tokens(documents, epoch->n_documents);
	uint32_t at = 0;

	for (uint32_t i = 0; i < epoch->n_documents; i++)
		epoch->order[i] = i;
	ft_random_shuffle(seed, FT_STREAM_EPOCH + index, epoch->order, epoch->n_documents);
	for (uint32_t step = 0; step < epoch->n_steps; step++)
	{
		uint32_t steps_left = epoch->n_steps - step;
		int64_t share = left / steps_left;
		int64_t taken = 0;

		epoch->first[step] = at;
		while (epoch->n_documents - at >= steps_left)
		{
			int64_t length = documents[epoch->order[at]].length;

			/* the document over the border goes to the side where more of it lies */
			if (taken > 0 && steps_left > 1 && taken + length / 2 > share)
				break;
			taken += length;
			at++;
		}
		left -= taken;
	}
	epoch->first[epoch->n_steps] = epoch->n_documents;
	epoch->index = index;
}

/* --- batches --- */

typedef struct sized_document
{
	int32_t length;
	uint32_t place; /* in `chosen` */
	uint32_t batch;
} sized_document;

static int
longest_first(const void *a, const void *b)
{
	const sized_document *x = a;
	const sized_document *y = b;

	if (x->length != y->length)
		return x->length > y->length ? -1 : 1;
	return x->place < y->place ? -1 : 1;
}

/* Each document, longest first, to the emptiest batch (the longest-processing-time rule); false
 * when one does not fit. */
static bool
divide(sized_document *sized, uint32_t n, int64_t capacity, uint32_t n_batches, int64_t *filled)
{
	memset(filled, 0, n_batches * sizeof *filled);
	for (uint32_t i = 0; i < n; i++)
	{
		uint32_t best = 0;

		for (uint32_t j = 1; j < n_batches; j++)
		{
			if (filled[j] < filled[best])
				best = j;
		}
		if (filled[best] + sized[i].length > capacity)
			return false;
		filled[best] += sized[i].length;
		sized[i].batch = best;
	}
	return true;
}

/* Fill the packing: batch by batch, in the order of `chosen`. */
static void
order_batches(const sized_document *sized, const uint32_t *chosen, uint32_t n, ft_packing *packing,
			  uint32_t *batch_of)
{
	uint32_t at = 0;

	for (uint32_t i = 0; i < n; i++)
		batch_of[sized[i].place] = sized[i].batch;
	for (uint32_t j = 0; j < packing->n_batches; j++)
	{
		packing->first[j] = at;
		for (uint32_t i = 0; i < n; i++)
		{
			if (batch_of[i] == j)
				packing->documents[at++] = chosen[i];
		}
	}
	packing->first[packing->n_batches] = at;
}

static ft_status
divide_and_order(const ft_document *documents, const uint32_t *chosen, uint32_t n, int64_t capacity,
				 uint32_t batches, sized_document *sized, ft_packing *packing)
{
	uint32_t *batch_of = NULL;
	int64_t *filled = NULL;
	int64_t tokens = 0;
	ft_status status;

	for (uint32_t i = 0; i < n; i++)
	{
		sized[i] = (sized_document){.length = documents[chosen[i]].length, .place = i};
		tokens += sized[i].length;
	}
	qsort(sized, n, sizeof *sized, longest_first);
	if (n > 0 && sized[0].length > capacity)
		return ft_fail(FT_INTERNAL, "document of %d tokens is over the capacity of %lld",
					   sized[0].length, (long long) capacity);
	if (batches < (tokens + capacity - 1) / capacity)
		batches = (uint32_t) ((tokens + capacity - 1) / capacity);
	if (batches > n)
		batches = n;
	status = ft_alloc((void **) &filled, n, sizeof *filled);
	if (status == FT_OK)
		status = ft_alloc((void **) &batch_of, n, sizeof *batch_of);
	/* with a batch for each document all fit, so this ends */
	while (status == FT_OK && n > 0 && !divide(sized, n, capacity, batches, filled))
		batches++;
	packing->n_batches = batches;
	if (status == FT_OK)
		status = ft_alloc((void **) &packing->first, (size_t) batches + 1, sizeof(uint32_t));
	if (status == FT_OK)
		order_batches(sized, chosen, n, packing, batch_of);
	free(filled);
	free(batch_of);
	return status;
}

ft_status
ft_pack(const ft_document *documents, const uint32_t *chosen, uint32_t n, int64_t capacity,
		uint32_t batches, ft_packing *packing)
{
	sized_document *sized = NULL;
	ft_status status;

	memset(packing, 0, sizeof *packing);
	FT_TRY(ft_alloc((void **) &packing->documents, n, sizeof(uint32_t)));
	status = ft_alloc((void **) &sized, n, sizeof *sized);
	if (status == FT_OK)
		status = divide_and_order(documents, chosen, n, capacity, batches, sized, packing);
	free(sized);
	if (status != FT_OK)
		ft_packing_free(packing);
	return status;
}

void
ft_packing_free(ft_packing *packing)
{
	free(packing->first);
	free(packing->documents);
	memset(packing, 0, sizeof *packing);
}

ft_status
ft_pack_window(const ft_document *documents, uint32_t n, int64_t capacity, ft_packing *packing)
{
	uint32_t chosen[FT_WINDOW];

	for (uint32_t i = 0; i < n; i++)
		chosen[i] = i;
	return ft_pack(documents, chosen, n, capacity, 0, packing);
}

/* --- host arrays of a batch --- */

#define LEAST_SHARED 8 /* rows: below this the copying costs more than it saves */

ft_status
ft_microbatch_create(int64_t capacity, ft_microbatch *batch)
{
	size_t n = (size_t) capacity;

	memset(batch, 0, sizeof *batch);
	FT_TRY(ft_alloc((void **) &batch->ids, n, sizeof(int32_t)));
	FT_TRY(ft_alloc((void **) &batch->positions, n, sizeof(int32_t)));
	FT_TRY(ft_alloc((void **) &batch->numbers, n, sizeof(int32_t)));
	FT_TRY(ft_alloc((void **) &batch->document_of, n, sizeof(int32_t)));
	FT_TRY(ft_alloc((void **) &batch->rows, n, sizeof(int32_t)));
	FT_TRY(ft_alloc((void **) &batch->targets, n, sizeof(int32_t)));
	FT_TRY(ft_alloc((void **) &batch->weights, n, sizeof(float)));
	FT_TRY(ft_alloc((void **) &batch->starts, n + 1, sizeof(int32_t)));
	FT_TRY(ft_alloc((void **) &batch->row_of, n, sizeof(int32_t)));
	FT_TRY(ft_alloc((void **) &batch->all_of, n, sizeof(int32_t)));
	FT_TRY(ft_alloc((void **) &batch->all_ids, n, sizeof(int32_t)));
	FT_TRY(ft_alloc((void **) &batch->all_targets, n, sizeof(int32_t)));
	/* a side has two tokens at least */
	FT_TRY(ft_alloc((void **) &batch->pair_weights, n / 4 + 1, sizeof(double)));
	FT_TRY(ft_alloc((void **) &batch->reference, n / 2 + 2, sizeof(double)));
	return ft_alloc((void **) &batch->all_weights, n, sizeof(float));
}

void
ft_microbatch_free(ft_microbatch *batch)
{
	free(batch->ids);
	free(batch->positions);
	free(batch->numbers);
	free(batch->document_of);
	free(batch->rows);
	free(batch->targets);
	free(batch->weights);
	free(batch->starts);
	free(batch->row_of);
	free(batch->all_of);
	free(batch->all_ids);
	free(batch->all_targets);
	free(batch->all_weights);
	free(batch->pair_weights);
	free(batch->reference);
	memset(batch, 0, sizeof *batch);
}

/* Tokens that all documents begin with, none of them in a loss row. */
static int
shared_beginning(const ft_microbatch *batch)
{
	const int32_t *first = batch->all_ids;
	int shared = batch->starts[1];

	for (int d = 0; d < batch->n_documents; d++)
	{
		const int32_t *ids = batch->all_ids + batch->starts[d];
		const float *weights = batch->all_weights + batch->starts[d];
		int length = batch->starts[d + 1] - batch->starts[d];
		int same = 0;

		/* row i predicts token i + 1 */
		while (same < shared && same + 1 < length && ids[same] == first[same] &&
			   weights[same + 1] == 0.0f)
			same++;
		shared = same;
	}
	return shared;
}

/* Add token i of document d, which stands at `at` among whole documents, as a row of its own. */
static void
add_row(ft_microbatch *batch, int d, int64_t at, int i, int length)
{
	int64_t row = batch->tokens++;

	batch->ids[row] = batch->all_ids[at];
	batch->positions[row] = i;
	batch->document_of[row] = batch->numbers[d];
	batch->row_of[at] = (int32_t) row;
	batch->all_of[row] = (int32_t) at;
	/* the first token of a document is predicted by nobody, the last predicts nothing */
	if (i + 1 < length && batch->all_weights[at + 1] > 0.0f)
	{
		batch->rows[batch->trained] = (int32_t) row;
		batch->targets[batch->trained] = batch->all_targets[at + 1];
		batch->weights[batch->trained++] = batch->all_weights[at + 1];
	}
}

void
ft_microbatch_arrange(ft_microbatch *batch, int least_shared)
{
	batch->tokens = 0;
	batch->trained = 0;
	batch->shared = batch->n_documents > 1 ? shared_beginning(batch) : 0;
	if (batch->shared < least_shared || batch->apart)
		batch->shared = 0;
	for (int d = 0; d < batch->n_documents; d++)
	{
		int64_t start = batch->starts[d];
		int length = (int) (batch->starts[d + 1] - start);

		for (int i = 0; i < length; i++)
		{
			if (d > 0 && i < batch->shared)
				batch->row_of[start + i] = (int32_t) i;
			else
				add_row(batch, d, start + i, i, length);
		}
	}
}

/* The next `length` tokens are a document. */
static void
end_document(ft_microbatch *batch, int32_t length, int32_t number)
{
	batch->all += length;
	batch->numbers[batch->n_documents] = number;
	batch->starts[++batch->n_documents] = (int32_t) batch->all;
	if (length > batch->max_length)
		batch->max_length = length;
}

static void
end_pair(ft_microbatch *batch, const ft_dataset *dataset, const ft_document *pair, int32_t number)
{
	const double *reference = dataset->reference + 2 * ft_dataset_index(dataset, pair);

	end_document(batch, pair->chosen, 2 * number);
	end_document(batch, pair->length - pair->chosen, 2 * number + 1);
	batch->pair_weights[batch->n_pairs] = pair->weight;
	batch->reference[2 * batch->n_pairs] = reference[0];
	batch->reference[2 * batch->n_pairs + 1] = reference[1];
	batch->n_pairs++;
}

ft_status
ft_microbatch_fill(ft_microbatch *batch, const ft_dataset *dataset, const ft_document *documents,
				   const ft_packing *packing, uint32_t index)
{
	batch->all = 0;
	batch->n_documents = 0;
	batch->n_pairs = 0;
	batch->max_length = 0;
	batch->starts[0] = 0;
	for (uint32_t i = packing->first[index]; i < packing->first[index + 1]; i++)
	{
		const ft_document *document = &documents[packing->documents[i]];

		FT_TRY(ft_dataset_read(dataset, document, batch->all_ids + batch->all,
							   batch->all_targets + batch->all, batch->all_weights + batch->all));
		if (document->chosen > 0)
			end_pair(batch, dataset, document, (int32_t) packing->documents[i]);
		else
			end_document(batch, document->length, (int32_t) packing->documents[i]);
	}
	ft_microbatch_arrange(batch, LEAST_SHARED);
	return FT_OK;
}
