/*
 * reference.c: what the reference model gives the sides of preference pairs.
 */
#include "reference.h"

#include "events.h"
#include "files.h"
#include "preference.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#define MAGIC "FTREFS1"

typedef struct file_header
{
	char magic[8];
	char identity[FT_DIGEST_HEX + 7];
} file_header;

typedef struct references
{
	ft_trainer *trainer;
	char path[FT_PATH_SIZE];
	file_header header;
	int fd;
	uint64_t at; /* byte that the next window begins at */
} references;

/* Documents whose values stand together in the file. */
typedef struct window
{
	const ft_document *documents;
	uint32_t n;
	double *values; /* [2 · n] of the dataset's */
} window;

/* Window number `index`; n is 0 when there are no more. */
static window
window_of(ft_dataset *d, uint32_t index)
{
	uint32_t before = (d->n_train + FT_WINDOW - 1) / FT_WINDOW; /* of training documents */
	bool train = index < before;
	uint32_t n = train ? d->n_train : d->n_validation;
	uint64_t first = (uint64_t) (train ? index : index - before) * FT_WINDOW;
	window w = {0};

	if (first >= n)
		return w;
	w.documents = (train ? d->train : d->validation) + first;
	w.n = n - first < FT_WINDOW ? (uint32_t) (n - first) : FT_WINDOW;
	w.values = d->reference + 2 * ft_dataset_index(d, w.documents);
	return w;
}

/* --- the file --- */

/* Is the file there, and this run's? */
static ft_status
read_header(references *r, bool *known)
{
	file_header found;

	*known = false;
	r->fd = open(r->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (r->fd < 0)
		return ft_fail_errno("could not open \"%s\"", r->path);
	r->at = sizeof found;
	if (ft_read_at(r->fd, &found, sizeof found, 0, r->path) == FT_OK)
		*known = memcmp(&found, &r->header, sizeof found) == 0;
	return FT_OK;
}

/* Take a window from the file; false when it does not stand there as it was written. */
static bool
read_window(references *r, window w)
{
	size_t bytes = 2 * w.n * sizeof(double);
	char stored[FT_DIGEST_HEX];
	char digest[FT_DIGEST_HEX];

	if (ft_read_at(r->fd, w.values, bytes, r->at, r->path) != FT_OK ||
		ft_read_at(r->fd, stored, sizeof stored, r->at + bytes, r->path) != FT_OK ||
		ft_digest_bytes(w.values, bytes, digest) != FT_OK ||
		memcmp(stored, digest, sizeof stored) != 0)
		return false;
	r->at += bytes + sizeof stored;
	return true;
}

/* Cut off what is no good, and begin a file that was not this run's. */
static ft_status
begin_writing(references *r, bool known)
{
	if (ftruncate(r->fd, known ? (off_t) r->at : 0) < 0 || lseek(r->fd, 0, SEEK_END) < 0)
		return ft_fail_errno("could not truncate \"%s\"", r->path);
	return known ? FT_OK : ft_write_all(r->fd, &r->header, sizeof r->header, r->path);
}

static ft_status
write_window(references *r, window w)
{
	size_t bytes = 2 * w.n * sizeof(double);
	char digest[FT_DIGEST_HEX];

	FT_TRY(ft_digest_bytes(w.values, bytes, digest));
	FT_TRY(ft_write_all(r->fd, w.values, bytes, r->path));
	FT_TRY(ft_write_all(r->fd, digest, sizeof digest, r->path));
	if (fsync(r->fd) < 0)
		return ft_fail_errno("could not fsync \"%s\"", r->path);
	return FT_OK;
}

/* --- the values --- */

/* The batch that was filled last: to the places of its documents. */
static ft_status
run_batch(ft_trainer *t, const uint32_t *documents, double *values)
{
	double *logprobs = t->transformer->host_logprobs;

	FT_TRY(ft_transformer_load(t->transformer, &t->batch));
	FT_TRY(ft_transformer_forward(t->transformer, &t->batch));
	FT_TRY(ft_preference_logprobs(t->transformer, &t->batch, logprobs));
	for (int i = 0; i < t->batch.n_documents; i++)
	{
		if (!isfinite(logprobs[i]))
			return ft_fail(FT_NON_FINITE, "a log-probability of the reference model is %g",
						   logprobs[i]);
		values[2 * documents[i / 2] + (uint32_t) i % 2] = logprobs[i];
	}
	return FT_OK;
}

static ft_status
compute_window(ft_trainer *t, window w)
{
	ft_packing packing;
	ft_status status = FT_OK;

	FT_TRY(ft_pack_window(w.documents, w.n, t->capacity, &packing));
	for (uint32_t i = 0; status == FT_OK && i < packing.n_batches; i++)
	{
		status = ft_microbatch_fill(&t->batch, t->dataset, w.documents, &packing, i);
		if (status == FT_OK)
			status = run_batch(t, packing.documents + packing.first[i], w.values);
	}
	ft_packing_free(&packing);
	return status;
}

static ft_status
prepare(references *r)
{
	ft_dataset *d = r->trainer->dataset;
	uint32_t index = 0;
	bool known;
	window w;

	FT_TRY(read_header(r, &known));
	for (; known && (w = window_of(d, index)).n > 0 && read_window(r, w); index++)
		;
	if (window_of(d, index).n == 0)
		return FT_OK;
	FT_TRY(begin_writing(r, known));
	for (; (w = window_of(d, index)).n > 0; index++)
	{
		FT_TRY(compute_window(r->trainer, w));
		FT_TRY(write_window(r, w));
	}
	return FT_OK;
}

ft_status
ft_reference_prepare(const char *directory, const char *identity, ft_trainer *trainer)
{
	references r = {.trainer = trainer, .header = {.magic = MAGIC}, .fd = -1};
	ft_status status;

	if (!trainer->dataset->pairs)
		return FT_OK;
	snprintf(r.header.identity, sizeof r.header.identity, "%s", identity);
	FT_TRY(ft_path_join(r.path, directory, "reference.bin"));
	status = prepare(&r);
	if (r.fd >= 0)
		close(r.fd);
	return status;
}
