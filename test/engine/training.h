/*
 * training.h: what the tests of training share: the small models of
 * test/golden/tiny_llama on the CPU, and batches made by hand.
 */
#ifndef TEST_TRAINING_H
#define TEST_TRAINING_H

#include "model.h"
#include "packing.h"
#include "safetensors.h"
#include "trainer.h"

#define TINY_LLAMA "test/golden/tiny_llama"

typedef struct tiny_run
{
	ft_model_file *file;
	const ft_ops *ops;
	ft_device *device;
	ft_model *model;
	ft_tokenizer *tokenizer;
	const ft_chat_template *chat_template;
} tiny_run;

/* End the program with the message unless the status is FT_OK. */
void must(ft_status status);

/* Load the model ("tied" or "untied") for training in f32. */
void tiny_open(tiny_run *run, const char *which, int threads);
/* The same with 16-bit products, whether the processor has them or must emulate them. */
void tiny_open_bf16(tiny_run *run, const char *which, int threads);
void tiny_close(tiny_run *run);
/* The adapter of the fixtures. */
ft_adapter *tiny_adapter(const tiny_run *run, const char *which);

/* A document made by hand. */
typedef struct hand_document
{
	int length;
	int32_t ids[64];
	float weights[64]; /* of token i as a target */
} hand_document;

/* Those of a JSON file; *n of them, free. */
hand_document *read_documents(const char *path, int *n);
/* Those of test/golden/tiny_llama. */
hand_document *golden_documents(int *n);
/* Put the same tokens, which are not trained, before each of them; there are at least three. */
#define BEGINNING 10
void begin_alike(hand_document *documents, int n);
/* A tensor of a safetensors file, as floats; *n of them, free. */
float *read_tensor(const char *path, const char *name, int64_t *n);
/* Pack them into one batch; ft_microbatch_free.  A beginning that they share is computed once from
 * so many tokens on. */
#define NEVER_SHARED 1000
void pack_by_hand(ft_microbatch *batch, const hand_document *documents, int n, int least_shared);
double weight_by_hand(const hand_document *documents, int n);

/* √(Σ (a − b)² / Σ b²) */
double relative_error(const float *a, const float *b, int64_t n);

/* A dataset in a new directory from the lines of a JSONL text; the options as given. */
ft_dataset *dataset_of(const tiny_run *run, const char *directory, const char *train,
					   const char *validation, const ft_dataset_options *options);
void write_text(const char *directory, const char *name, const char *text);

#endif
