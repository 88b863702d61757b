/*
 * merge.c: the tensors of a base with a LoRA adapter added to them.
 *
 * The arithmetic is the CPU backend's, in reference numerics, whose memory is
 * the host's: so what it works on is not copied.
 */
#include "merge.h"

#include "buffer.h"
#include "device.h"
#include "files.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Values in f32 that are worked on at a time: 32 MiB */
#define PIECE_VALUES ((int64_t) 8 << 20)

#define PREFIX "base_model.model."
#define SUFFIX_A ".lora_A.weight"
#define SUFFIX_B ".lora_B.weight"
#define NAME_SIZE 192

/* --- the adapter --- */

/* "model.layers.0.self_attn.q_proj.weight" → "base_model.model.model.layers.0.self_attn.q_proj" and
 * the suffix; false where the tensor is no module's weight. */
static bool
adapter_name(const char *tensor, const char *suffix, char name[NAME_SIZE])
{
	static const char weight[] = ".weight";
	size_t n = strlen(tensor);

	if (n < sizeof weight || strcmp(tensor + n - (sizeof weight - 1), weight) != 0)
		return false;
	snprintf(name, NAME_SIZE, PREFIX "%.*s%s", (int) (n - (sizeof weight - 1)), tensor, suffix);
	return true;
}

ft_merge_pair
ft_merge_find(const ft_merge *merge, const ft_model_tensor *tensor)
{
	ft_merge_pair pair = {.tensor = tensor};
	char name[NAME_SIZE];

	if (merge->adapter != NULL && adapter_name(tensor->name, SUFFIX_A, name))
	{
		pair.a = ft_safetensors_find(merge->adapter, name);
		adapter_name(tensor->name, SUFFIX_B, name);
		pair.b = ft_safetensors_find(merge->adapter, name);
	}
	return pair;
}

static ft_status
check_shape(const ft_safetensor *t, int64_t rows, int64_t cols)
{
	if (t->n_dims != 2 || t->dims[0] != rows || t->dims[1] != cols)
		return ft_fail(FT_MISMATCH, "tensor \"%s\" has shape [%lld, %lld], expected [%lld, %lld]",
					   t->name, (long long) (t->n_dims > 0 ? t->dims[0] : 0),
					   (long long) (t->n_dims > 1 ? t->dims[1] : 0), (long long) rows,
					   (long long) cols);
	return FT_OK;
}

/* Every matrix of the adapter belongs to a tensor of the base, and none stands alone. */
static ft_status
check_adapter(const ft_merge *merge)
{
	size_t found = 0;

	for (int i = 0; i < ft_model_file_tensors(merge->file); i++)
	{
		const ft_model_tensor *t = ft_model_file_tensor(merge->file, i);
		ft_merge_pair pair = ft_merge_find(merge, t);

		if (pair.a == NULL && pair.b == NULL)
			continue;
		if (pair.a == NULL || pair.b == NULL)
			return ft_fail(FT_MISMATCH, "tensor \"%s\" of the adapter stands alone",
						   pair.a != NULL ? pair.a->name : pair.b->name);
		FT_TRY(check_shape(pair.a, merge->config.rank, t->cols));
		FT_TRY(check_shape(pair.b, t->rows, merge->config.rank));
		found += 2;
	}
	if (found == 0 || found != ft_safetensors_count(merge->adapter))
		return ft_fail(FT_MISMATCH, "%zu of the adapter's %zu tensors belong to the base", found,
					   ft_safetensors_count(merge->adapter));
	return FT_OK;
}

static ft_status
open_adapter(ft_merge *merge, const char *directory)
{
	char path[FT_PATH_SIZE];

	FT_TRY(ft_peft_read_config(directory, &merge->config));
	merge->scale = merge->config.use_rslora
					   ? merge->config.alpha / sqrtf((float) merge->config.rank)
					   : merge->config.alpha / (float) merge->config.rank;
	FT_TRY(ft_path_join(path, directory, FT_PEFT_TENSORS));
	FT_TRY(ft_safetensors_open(path, &merge->adapter));
	return check_adapter(merge);
}

/* --- opening --- */

ft_status
ft_merge_open(const ft_model_file *file, const char *adapter, int threads, ft_merge **result)
{
	ft_merge *merge;
	void *memory;
	ft_status status;

	FT_TRY(ft_alloc(&memory, 1, sizeof *merge));
	merge = memory;
	merge->file = file;
	status =
		ft_device_open_named("cpu", threads, FT_NUMERICS_REFERENCE, &merge->ops, &merge->device);
	if (status == FT_OK)
		status = merge->ops->stream_create(merge->device, &merge->stream);
	if (status == FT_OK && adapter != NULL)
		status = open_adapter(merge, adapter);
	if (status != FT_OK)
	{
		ft_merge_close(merge);
		return status;
	}
	*result = merge;
	return FT_OK;
}

void
ft_merge_close(ft_merge *merge)
{
	if (merge == NULL)
		return;
	if (merge->adapter != NULL)
		ft_safetensors_close(merge->adapter);
	if (merge->stream != NULL)
		merge->ops->stream_destroy(merge->stream);
	if (merge->device != NULL)
		merge->ops->device_close(merge->device);
	free(merge);
}

/* --- values --- */

void
ft_interleave_rows(void *to, const void *from, int64_t rows, size_t row_bytes, int64_t heads)
{
	int64_t dim = rows / heads;

	for (int64_t row = 0; row < rows; row++)
	{
		int64_t in_head = row % dim;
		int64_t target = row - in_head + in_head % (dim / 2) * 2 + in_head / (dim / 2);

		memcpy((char *) to + (size_t) target * row_bytes,
			   (const char *) from + (size_t) row * row_bytes, row_bytes);
	}
}

/* d = max |x| / 127, q = x / d rounded half away from zero; d is stored in f16, but q is taken by
 * what it was before. */
void
ft_q8_0_blocks(uint8_t *to, const float *from, int64_t n)
{
	for (int64_t block = 0; block < n / 32; block++, from += 32, to += 34)
	{
		float largest = 0;
		float d;
		float inverse;
		uint16_t stored;

		for (int i = 0; i < 32; i++)
			largest = fabsf(from[i]) > largest ? fabsf(from[i]) : largest;
		d = largest / 127;
		inverse = d != 0 ? 1 / d : 0;
		stored = ft_f32_to_f16(d);
		memcpy(to, &stored, sizeof stored);
		for (int i = 0; i < 32; i++)
			to[2 + i] = (uint8_t) (int8_t) roundf(from[i] * inverse);
	}
}

/* A tensor on its way. */
typedef struct passage
{
	ft_merge *merge;
	const ft_model_tensor *tensor;
	ft_dtype to;
	int permuted_heads;
	bool as_stored; /* nothing to compute */
	char *stored;   /* all of it */
	int64_t row_bytes;
	int64_t piece_rows;
	float *a; /* [rank, cols], NULL: not adapted */
	float *b; /* [rows, rank] */
	float *values;
	char *rounded;
	char *turned;
} passage;

static void
passage_free(passage *p)
{
	free(p->stored);
	free(p->a);
	free(p->b);
	free(p->values);
	free(p->rounded);
	free(p->turned);
}

static ft_status
read_factor(const ft_merge *merge, const ft_safetensor *from, float **to)
{
	int64_t n = from->dims[0] * from->dims[1];

	FT_TRY(ft_alloc((void **) to, (size_t) n, sizeof(float)));
	return ft_safetensors_read_f32(merge->adapter, from, *to, n);
}

static ft_status
prepare(passage *p)
{
	const ft_model_tensor *t = p->tensor;
	ft_merge_pair pair = ft_merge_find(p->merge, t);
	int64_t unit = p->permuted_heads > 0 ? t->rows / p->permuted_heads : 1;
	int64_t out_bytes = ft_row_bytes(p->to, t->cols);
	size_t values;

	if (out_bytes < 0)
		return ft_fail(FT_INTERNAL, "rows of %lld values cannot be stored as %s",
					   (long long) t->cols, ft_dtype_get(p->to)->name);
	p->row_bytes = ft_row_bytes(t->dtype, t->cols);
	p->piece_rows = PIECE_VALUES / t->cols / unit * unit;
	if (p->piece_rows < unit)
		p->piece_rows = unit;
	if (p->piece_rows > t->rows)
		p->piece_rows = t->rows;
	p->as_stored = pair.a == NULL && t->dtype == p->to;
	values = (size_t) p->piece_rows * (size_t) t->cols;
	FT_TRY(ft_alloc((void **) &p->stored, t->bytes, 1));
	if (p->permuted_heads > 0)
		FT_TRY(ft_alloc((void **) &p->turned, (size_t) p->piece_rows, (size_t) out_bytes));
	if (!p->as_stored)
	{
		FT_TRY(ft_alloc((void **) &p->values, values, sizeof(float)));
		FT_TRY(ft_alloc((void **) &p->rounded, (size_t) p->piece_rows, (size_t) out_bytes));
	}
	if (pair.a != NULL)
	{
		FT_TRY(read_factor(p->merge, pair.a, &p->a));
		FT_TRY(read_factor(p->merge, pair.b, &p->b));
	}
	return ft_model_file_read(p->merge->file, t, p->stored);
}

static ft_status
check_finite(const passage *p, int64_t n)
{
	for (int64_t i = 0; i < n; i++)
	{
		if (!isfinite(p->values[i]))
			return ft_fail(FT_NON_FINITE, "tensor \"%s\" has a value that is not finite",
						   p->tensor->name);
		if (p->to == FT_F16 && fabsf(p->values[i]) >= 65520)
			return ft_hint(ft_fail(FT_UNSUPPORTED,
								   "tensor \"%s\" has the value %g, too large for f16",
								   p->tensor->name, (double) p->values[i]),
						   "Export with f32 or bf16 values.");
	}
	return FT_OK;
}

/* Rows [first, first + rows) in the type wanted, at *bytes. */
static ft_status
compute(passage *p, int64_t first, int64_t rows, const char **bytes)
{
	const ft_ops *ops = p->merge->ops;
	ft_stream *s = p->merge->stream;
	int64_t cols = p->tensor->cols;
	int rank = p->merge->config.rank;
	char *from = p->stored + first * p->row_bytes;
	ft_mat values = ft_mat_make(p->values, FT_F32, rows, cols);

	*bytes = from;
	if (p->as_stored)
		return FT_OK;
	FT_TRY(ops->convert(s, values, ft_mat_make(from, p->tensor->dtype, rows, cols)));
	if (p->a != NULL)
		FT_TRY(ops->matmul(s, values, ft_mat_make(p->b + first * rank, FT_F32, rows, rank), false,
						   ft_mat_make(p->a, FT_F32, rank, cols), false, p->merge->scale, 1));
	FT_TRY(ops->stream_synchronize(s));
	FT_TRY(check_finite(p, rows * cols));
	*bytes = (char *) p->values;
	if (p->to == FT_F32)
		return FT_OK;
	*bytes = p->rounded;
	if (p->to == FT_Q8_0)
	{
		ft_q8_0_blocks((uint8_t *) p->rounded, p->values, rows * cols);
		return FT_OK;
	}
	FT_TRY(ops->convert(s, ft_mat_make(p->rounded, p->to, rows, cols), values));
	return ops->stream_synchronize(s);
}

static ft_status
pass(passage *p, ft_sink sink, void *context)
{
	size_t out_bytes = (size_t) ft_row_bytes(p->to, p->tensor->cols);
	int64_t rows;

	for (int64_t first = 0; first < p->tensor->rows; first += rows)
	{
		const char *bytes;

		rows = p->tensor->rows - first;
		if (rows > p->piece_rows)
			rows = p->piece_rows;
		FT_TRY(compute(p, first, rows, &bytes));
		if (p->permuted_heads > 0)
		{
			int64_t dim = p->tensor->rows / p->permuted_heads;

			ft_interleave_rows(p->turned, bytes, rows, out_bytes, rows / dim);
			bytes = p->turned;
		}
		FT_TRY(sink(context, bytes, (size_t) rows * out_bytes));
		if (p->merge->tick != NULL)
			FT_TRY(p->merge->tick(p->merge->tick_context));
	}
	return FT_OK;
}

/* --- trained values --- */

/* Where the parameters have a tensor of the file. */
static ft_mat
trained_values(const ft_merge *merge, const ft_model_tensor *tensor)
{
	int64_t n;
	int64_t at = ft_weight_layout_find(merge->trained->layout, tensor->name, &n);

	return ft_parameters_at(merge->trained, at, tensor->rows, tensor->cols);
}

ft_dtype
ft_merge_type(const ft_merge *merge, const ft_model_tensor *tensor, ft_dtype to)
{
	return merge->trained != NULL ? trained_values(merge, tensor).dtype : to;
}

static ft_status
pass_trained(ft_merge *merge, const ft_model_tensor *tensor, ft_sink sink, void *context)
{
	ft_mat values = trained_values(merge, tensor);
	int64_t row_bytes = ft_row_bytes(values.dtype, values.cols);
	int64_t piece = PIECE_VALUES / values.cols > 0 ? PIECE_VALUES / values.cols : 1;
	int64_t rows;
	void *buffer;
	ft_status status = FT_OK;

	piece = piece < values.rows ? piece : values.rows;
	FT_TRY(ft_alloc(&buffer, (size_t) piece, (size_t) row_bytes));
	for (int64_t first = 0; status == FT_OK && first < values.rows; first += rows)
	{
		size_t n;

		rows = values.rows - first < piece ? values.rows - first : piece;
		n = (size_t) (rows * row_bytes);
		status = merge->trained->ops->copy_to_host(
			merge->stream, buffer, (const char *) values.data + first * row_bytes, n);
		if (status == FT_OK)
			status = sink(context, buffer, n);
		if (status == FT_OK && merge->tick != NULL)
			status = merge->tick(merge->tick_context);
	}
	free(buffer);
	return status;
}

ft_status
ft_merge_tensor(ft_merge *merge, const ft_model_tensor *tensor, ft_dtype to, int permuted_heads,
				ft_sink sink, void *context)
{
	passage p = {.merge = merge, .tensor = tensor, .to = to, .permuted_heads = permuted_heads};
	ft_status status;

	if (merge->trained != NULL)
		return pass_trained(merge, tensor, sink, context);
	status = prepare(&p);
	if (status == FT_OK)
		status = pass(&p, sink, context);
	passage_free(&p);
	return status;
}
