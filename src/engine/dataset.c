/*
 * dataset.c: training rows, tokenised once into dataset.bin.
 *
 * Layout: a header, each document's ids (i32), targets (i32) and weights (f32), then
 * the index of the documents, training before validation.  A pair is a document: the
 * chosen side, then the rejected one, each with its prompt.  Little-endian, as all
 * machines that the kernels run on.
 */
#include "dataset.h"

#include "files.h"
#include "random.h"
#include "row.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "FTDATA3"
#define TOKEN_BYTES 12 /* id, target, weight */
#define WRITE_BUFFER (1 << 20)

typedef struct file_header
{
	char magic[8];
	char data_hash[FT_DIGEST_HEX + 7];
	int64_t rows_read;
	int64_t rows_used;
	int64_t rows_skipped_null;
	int64_t rows_truncated;
	uint64_t pairs; /* 1: the documents are pairs */
	uint64_t n_train;
	uint64_t n_validation;
	uint64_t index_at;
	uint64_t file_bytes;
} file_header;

/* Documents gathered in memory until the index is written. */
typedef struct index_list
{
	ft_document *documents;
	size_t n;
	size_t capacity;
} index_list;

typedef struct builder
{
	const ft_dataset_options *options;
	ft_row_encoder encoder;
	ft_dataset_tick tick;
	void *context;
	EVP_MD_CTX *hash;
	char path[FT_PATH_SIZE];
	int fd;
	uint64_t at; /* byte that the next write to the file goes to */
	ft_text pending;
	file_header header;
	index_list train;
	index_list validation;
} builder;

/* --- writing --- */

static ft_status
flush_pending(builder *b)
{
	ft_status status = ft_write_all(b->fd, b->pending.data, b->pending.length, b->path);

	ft_text_clear(&b->pending);
	return status;
}

static ft_status
put(builder *b, const void *bytes, size_t n)
{
	FT_TRY(ft_text_append(&b->pending, bytes, n));
	b->at += n;
	return b->pending.length >= WRITE_BUFFER ? flush_pending(b) : FT_OK;
}

/* Write the row that the encoder holds. */
static ft_status
put_document(builder *b, index_list *list)
{
	const ft_row_encoder *e = &b->encoder;
	ft_document document = {
		.at = b->at, .length = (int32_t) e->ids.length, .chosen = (int32_t) e->chosen};

	for (size_t i = 0; i < e->ids.length; i++)
	{
		document.trained += e->weights.data[i] > 0.0f;
		document.weight += e->weights.data[i];
	}
	if (e->chosen > 0)
		document.weight = e->weight;
	FT_TRY(ft_grow((void **) &list->documents, &list->capacity, list->n + 1, sizeof document));
	list->documents[list->n++] = document;
	FT_TRY(put(b, e->ids.data, e->ids.length * sizeof(int32_t)));
	FT_TRY(put(b, e->targets.data, e->targets.length * sizeof(int32_t)));
	return put(b, e->weights.data, e->weights.length * sizeof(float));
}

static ft_status
put_row(builder *b, const char *line, size_t n, index_list *list)
{
	ft_row_kind kind;
	bool truncated;

	FT_TRY(ft_row_encode(&b->encoder, line, n, &kind, &truncated));
	/* the counts are of training rows; the validation file's are not told */
	if (list == &b->train)
	{
		b->header.rows_read++;
		b->header.rows_skipped_null += kind == FT_ROW_NULL;
		b->header.rows_used += kind == FT_ROW_USED;
		b->header.rows_truncated += kind == FT_ROW_USED && truncated;
	}
	return kind == FT_ROW_USED ? put_document(b, list) : FT_OK;
}

static ft_status
put_lines(builder *b, FILE *file, const char *path, index_list *list)
{
	char *line = NULL;
	size_t capacity = 0;
	long long row = 0;
	ssize_t n;
	ft_status status = FT_OK;

	while (status == FT_OK && (errno = 0, n = getline(&line, &capacity, file)) >= 0)
	{
		EVP_DigestUpdate(b->hash, line, (size_t) n);
		row++;
		status = put_row(b, line, (size_t) n, list);
		if (status != FT_OK)
			status = ft_context(status, "row %lld of %s: ", row, strrchr(path, '/') + 1);
		else if (b->tick != NULL)
			status = b->tick(b->context);
	}
	if (status == FT_OK && ferror(file))
		status = ft_fail_errno("could not read \"%s\"", path);
	free(line);
	return status;
}

static ft_status
put_file(builder *b, const char *directory, const char *name, index_list *list)
{
	char path[FT_PATH_SIZE];
	FILE *file;
	ft_status status;

	FT_TRY(ft_path_join(path, directory, name));
	file = fopen(path, "re");
	if (file == NULL)
		return ft_fail_errno("could not open \"%s\"", path);
	status = put_lines(b, file, path, list);
	fclose(file);
	return status;
}

/* Take a share of the training documents for validation, chosen by the seed, in their order. */
static ft_status
split(builder *b)
{
	double wanted = round(b->options->validation_fraction * (double) b->train.n);
	size_t take = wanted < 1.0 ? 1 : (size_t) wanted;
	uint32_t *order;
	bool *taken;
	size_t kept = 0;
	ft_status status;

	if (b->options->validation_fraction <= 0 || b->train.n < 2)
		return FT_OK;
	if (take > b->train.n - 1)
		take = b->train.n - 1;
	FT_TRY(ft_alloc((void **) &order, b->train.n, sizeof *order));
	status = ft_alloc((void **) &taken, b->train.n, sizeof *taken);
	if (status == FT_OK)
		status = ft_grow((void **) &b->validation.documents, &b->validation.capacity, take,
						 sizeof(ft_document));
	if (status == FT_OK)
	{
		for (size_t i = 0; i < b->train.n; i++)
			order[i] = (uint32_t) i;
		ft_random_shuffle(b->options->seed, FT_STREAM_SPLIT, order, b->train.n);
		for (size_t i = 0; i < take; i++)
			taken[order[i]] = true;
		for (size_t i = 0; i < b->train.n; i++)
		{
			if (taken[i])
				b->validation.documents[b->validation.n++] = b->train.documents[i];
			else
				b->train.documents[kept++] = b->train.documents[i];
		}
		b->train.n = kept;
	}
	free(order);
	free(taken);
	return status;
}

static ft_status
finish_hash(builder *b)
{
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned int n;

	if (EVP_DigestFinal_ex(b->hash, digest, &n) != 1 || n != 32)
		return ft_fail(FT_INTERNAL, "could not finish a SHA-256");
	for (unsigned int i = 0; i < n; i++)
		snprintf(b->header.data_hash + i * 2, 3, "%02x", digest[i]);
	return FT_OK;
}

static ft_status
put_index(builder *b)
{
	FT_TRY(finish_hash(b));
	memcpy(b->header.magic, MAGIC, sizeof b->header.magic);
	b->header.pairs = b->options->pairs;
	b->header.n_train = b->train.n;
	b->header.n_validation = b->validation.n;
	b->header.index_at = b->at;
	FT_TRY(put(b, b->train.documents, b->train.n * sizeof(ft_document)));
	FT_TRY(put(b, b->validation.documents, b->validation.n * sizeof(ft_document)));
	FT_TRY(flush_pending(b));
	b->header.file_bytes = b->at;
	if (pwrite(b->fd, &b->header, sizeof b->header, 0) != (ssize_t) sizeof b->header)
		return ft_fail_errno("could not write \"%s\"", b->path);
	if (fsync(b->fd) < 0)
		return ft_fail_errno("could not fsync \"%s\"", b->path);
	return FT_OK;
}

static ft_status
build(builder *b, const char *directory)
{
	char validation[FT_PATH_SIZE];

	FT_TRY(put(b, &b->header, sizeof b->header));
	FT_TRY(put_file(b, directory, "train.jsonl", &b->train));
	if (b->train.n == 0)
		return ft_hint(ft_fail(FT_INVALID, "no usable rows: %lld read, %lld with a null",
							   (long long) b->header.rows_read,
							   (long long) b->header.rows_skipped_null),
					   "The query must yield at least one row without nulls that has a token to "
					   "train.");
	FT_TRY(ft_path_join(validation, directory, "validation.jsonl"));
	if (ft_file_exists(validation))
		FT_TRY(put_file(b, directory, "validation.jsonl", &b->validation));
	else
		FT_TRY(split(b));
	return put_index(b);
}

ft_status
ft_dataset_build(const char *directory, const ft_dataset_options *options, const ft_config *config,
				 const ft_vocabulary *vocabulary, const ft_tokenizer *tokenizer,
				 const ft_chat_template *chat_template, ft_dataset_tick tick, void *context)
{
	builder b = {.options = options,
				 .encoder = {.config = config,
							 .vocabulary = vocabulary,
							 .tokenizer = tokenizer,
							 .chat_template = chat_template,
							 .prompt_template = options->prompt_template,
							 .max_length = options->max_length,
							 .train_on_inputs = options->train_on_inputs,
							 .pairs = options->pairs},
				 .tick = tick,
				 .context = context};
	char final[FT_PATH_SIZE];
	ft_status status;

	FT_TRY(ft_path_join(final, directory, "dataset.bin"));
	FT_TRY(ft_path_join(b.path, directory, "dataset.bin.tmp"));
	b.fd = open(b.path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (b.fd < 0)
		return ft_fail_errno("could not create \"%s\"", b.path);
	b.hash = EVP_MD_CTX_new();
	if (b.hash == NULL || EVP_DigestInit_ex(b.hash, EVP_sha256(), NULL) != 1)
		status = ft_fail(FT_INTERNAL, "could not start a SHA-256");
	else
		status = build(&b, directory);
	close(b.fd);
	if (status == FT_OK)
		status = ft_rename_durably(b.path, final);
	if (status != FT_OK)
		unlink(b.path);
	EVP_MD_CTX_free(b.hash);
	ft_row_encoder_clear(&b.encoder);
	ft_text_free(&b.pending);
	free(b.train.documents);
	free(b.validation.documents);
	return status;
}

/* --- reading --- */

/* Every document lies between header and index. */
static ft_status
check_documents(const ft_dataset *d, const ft_document *documents, uint32_t n, uint64_t end)
{
	for (uint32_t i = 0; i < n; i++)
	{
		const ft_document *document = &documents[i];

		if (document->length < 2 || document->trained < 1 ||
			document->trained >= document->length || document->at < sizeof(file_header) ||
			document->at > end || (uint64_t) document->length * TOKEN_BYTES > end - document->at ||
			!(d->pairs ? document->chosen >= 2 && document->chosen <= document->length - 2
					   : document->chosen == 0))
			return ft_fail(FT_CORRUPT, "\"%s\": document %u is out of bounds", d->path, i);
	}
	return FT_OK;
}

static ft_status
read_index(ft_dataset *d, const file_header *h)
{
	size_t n_train = (size_t) h->n_train;
	size_t n_validation = (size_t) h->n_validation;

	d->pairs = h->pairs != 0;
	FT_TRY(ft_alloc((void **) &d->train, n_train, sizeof(ft_document)));
	FT_TRY(ft_alloc((void **) &d->validation, n_validation, sizeof(ft_document)));
	FT_TRY(ft_read_at(d->fd, d->train, n_train * sizeof(ft_document), h->index_at, d->path));
	FT_TRY(ft_read_at(d->fd, d->validation, n_validation * sizeof(ft_document),
					  h->index_at + n_train * sizeof(ft_document), d->path));
	d->n_train = (uint32_t) n_train;
	d->n_validation = (uint32_t) n_validation;
	FT_TRY(check_documents(d, d->train, d->n_train, h->index_at));
	FT_TRY(check_documents(d, d->validation, d->n_validation, h->index_at));
	if (d->pairs)
		FT_TRY(ft_alloc((void **) &d->reference, 2 * (n_train + n_validation), sizeof(double)));
	for (size_t i = 0; i < n_train + n_validation; i++)
	{
		const ft_document *document = i < n_train ? &d->train[i] : &d->validation[i - n_train];

		if (document->length > d->max_length)
			d->max_length = document->length;
		if (i < n_train)
		{
			d->tokens += document->length;
			d->trained += document->trained;
		}
	}
	return FT_OK;
}

static ft_status
read_header(ft_dataset *d)
{
	file_header h;
	struct stat st;

	FT_TRY(ft_read_at(d->fd, &h, sizeof h, 0, d->path));
	if (fstat(d->fd, &st) < 0)
		return ft_fail_errno("could not stat \"%s\"", d->path);
	if (memcmp(h.magic, MAGIC, sizeof h.magic) != 0 || h.file_bytes != (uint64_t) st.st_size ||
		h.index_at > h.file_bytes || h.n_train > UINT32_MAX || h.n_validation > UINT32_MAX ||
		(h.n_train + h.n_validation) * sizeof(ft_document) != h.file_bytes - h.index_at ||
		h.n_train == 0)
		return ft_fail(FT_CORRUPT, "\"%s\" is no dataset, or not a whole one", d->path);
	d->rows_read = h.rows_read;
	d->rows_used = h.rows_used;
	d->rows_skipped_null = h.rows_skipped_null;
	d->rows_truncated = h.rows_truncated;
	memcpy(d->data_hash, h.data_hash, FT_DIGEST_HEX);
	d->data_hash[FT_DIGEST_HEX - 1] = '\0';
	return read_index(d, &h);
}

ft_status
ft_dataset_open(const char *directory, ft_dataset **result)
{
	char path[FT_PATH_SIZE];
	ft_dataset *d;
	ft_status status;

	*result = NULL;
	FT_TRY(ft_path_join(path, directory, "dataset.bin"));
	FT_TRY(ft_alloc((void **) &d, 1, sizeof *d));
	d->path = strdup(path);
	d->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (d->path == NULL)
		status = ft_fail(FT_NO_MEMORY, "out of memory");
	else if (d->fd < 0)
		status = ft_fail_errno("could not open \"%s\"", path);
	else
		status = read_header(d);
	if (status != FT_OK)
	{
		ft_dataset_close(d);
		return status;
	}
	*result = d;
	return FT_OK;
}

void
ft_dataset_close(ft_dataset *d)
{
	if (d == NULL)
		return;
	if (d->fd >= 0)
		close(d->fd);
	free(d->path);
	free(d->train);
	free(d->validation);
	free(d->reference);
	free(d);
}

ft_status
ft_dataset_read(const ft_dataset *d, const ft_document *document, int32_t *ids, int32_t *targets,
				float *weights)
{
	size_t n = (size_t) document->length * 4;

	FT_TRY(ft_read_at(d->fd, ids, n, document->at, d->path));
	FT_TRY(ft_read_at(d->fd, targets, n, document->at + n, d->path));
	return ft_read_at(d->fd, weights, n, document->at + 2 * n, d->path);
}
