/*
 * dataset.h: training rows, tokenised once into dataset.bin.
 *
 * The file holds each document's tokens, what is to be predicted at each, and
 * the weight of that in the loss; in memory there are a few bytes a document.  Rows that make no
 * trained token are read but not used.
 */
#ifndef FT_DATASET_H
#define FT_DATASET_H

#include "chat_template.h"
#include "digest.h"
#include "model_file.h"

typedef struct ft_dataset_options
{
	int max_length; /* tokens of a document, or of each side of a pair; at least 16 */
	bool train_on_inputs;
	bool pairs; /* rows are a chosen and a rejected answer (method dpo), and nothing else */
	const char *prompt_template; /* prompt_template.h; NULL: none */
	double validation_fraction;  /* of the training rows, when there is no validation file */
	uint64_t seed;               /* of that split */
} ft_dataset_options;

/* A tokenised row.  A pair is one document, so that its sides, which stand one after the other, are
 * never parted: not by a split, a step or a batch. */
typedef struct ft_document
{
	uint64_t at;     /* byte of its ids in the file; targets and weights follow them */
	int32_t length;  /* tokens, of both sides where it is a pair */
	int32_t trained; /* tokens with a weight, the first token never being one */
	double weight;   /* their sum; of a pair the row's weight */
	int32_t chosen;  /* tokens of a pair's chosen side; 0: no pair */
	int32_t unused;
} ft_document;

typedef struct ft_dataset
{
	int fd;
	char *path;
	int64_t rows_read;
	int64_t rows_used;
	int64_t rows_skipped_null;
	int64_t rows_truncated;
	char data_hash[FT_DIGEST_HEX]; /* of the JSONL bytes: training rows, then validation rows */
	uint32_t n_train;
	uint32_t n_validation;
	ft_document *train;
	ft_document *validation;
	int64_t tokens;     /* of the training documents */
	int64_t trained;    /* trained tokens of the training documents */
	int32_t max_length; /* of the longest document */
	bool pairs;         /* the documents are pairs */
	/* [2 · (n_train + n_validation)] of pairs: what the reference model gives the chosen and the
	 * rejected side (reference.h), training documents first; 0 until it is known.  NULL: no pairs
	 */
	double *reference;
} ft_dataset;

/* Told of progress, once a row or so; anything but FT_OK ends the work with that status. */
typedef ft_status (*ft_dataset_tick)(void *context);

/* Tokenise `directory`/train.jsonl (and validation.jsonl, when it is there) into
 * `directory`/dataset.bin, written under a temporary name and renamed.  FT_INVALID names the row
 * (from 1) that is no JSON, has other columns or types, never its text; or says that there are no
 * usable rows. */
ft_status
ft_dataset_build(const char *directory, const ft_dataset_options *options, const ft_config *config,
				 const ft_vocabulary *vocabulary, const ft_tokenizer *tokenizer,
				 const ft_chat_template *chat_template, ft_dataset_tick tick, void *context);

/* FT_NOT_FOUND; FT_CORRUPT when the file contradicts itself. */
ft_status ft_dataset_open(const char *directory, ft_dataset **dataset);
void ft_dataset_close(ft_dataset *dataset);

/* Place of one of its documents among them all, training documents first. */
static inline size_t
ft_dataset_index(const ft_dataset *dataset, const ft_document *document)
{
	bool train = document >= dataset->train && document < dataset->train + dataset->n_train;

	return train ? (size_t) (document - dataset->train)
				 : dataset->n_train + (size_t) (document - dataset->validation);
}

/* ids, targets and weights of document->length tokens: the model that has read ids up to i - 1 is
 * to predict targets[i], which is ids[i] but where a row brought labels of its own. */
ft_status ft_dataset_read(const ft_dataset *dataset, const ft_document *document, int32_t *ids,
						  int32_t *targets, float *weights);

#endif
