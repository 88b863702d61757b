/*
 * weight.c: weights in the layouts that products like.
 *
 * The stored types are kept, packed (pack.h), for all uses; where products are
 * in bf16, FT_USE_TRAIN keeps a dense row-major bf16 matrix for the library
 * instead.  embed() prefers the packed form, which is exact.  NF4, which is only
 * dequantised, is kept as it comes.
 */
#include "cpu.h"

#include "pack.h"

#include <stdlib.h>
#include <string.h>

typedef struct fill_job
{
	ft_weight *weight;
	const ft_mat *source;
	int64_t first_row;
	ft_part *part;
	float *rows; /* [threads][cols] */
} fill_job;

static const uint8_t *
stored_row(const ft_mat *m, int64_t row)
{
	int block = ft_dtype_get(m->dtype)->block_values;

	return (const uint8_t *) m->data + row * (block == 1
												  ? m->ld * ft_dtype_get(m->dtype)->block_bytes
												  : ft_row_bytes(m->dtype, m->cols));
}

static void
fill_dense_task(void *context, int worker, int64_t begin, int64_t end)
{
	fill_job *job = context;
	ft_weight *w = job->weight;
	float *row = job->rows + worker * w->cols;

	for (int64_t i = begin; i < end; i++)
	{
		ft_stored_row(row, job->source->dtype, stored_row(job->source, i), w->cols);
		w->device->kernels->to_bf16(w->dense + (job->first_row + i) * w->cols, row, w->cols);
	}
}

static void
pack_task(void *context, int worker, int64_t begin, int64_t end)
{
	fill_job *job = context;
	const ft_mat *m = job->source;
	int64_t row_bytes = ft_dtype_get(m->dtype)->block_values == 1
							? m->ld * ft_dtype_get(m->dtype)->block_bytes
							: ft_row_bytes(m->dtype, m->cols);

	(void) worker;
	for (int64_t g = begin; g < end; g++)
		ft_pack_group(job->part->groups + g * job->part->group_bytes, m->dtype,
					  stored_row(m, g * FT_GROUP), row_bytes,
					  (int) ft_min(FT_GROUP, m->rows - g * FT_GROUP), m->cols);
}

static ft_status
fill_dense(ft_weight *w, const ft_mat *parts, int n_parts)
{
	int64_t bytes = w->rows * w->cols * (int64_t) sizeof *w->dense;
	fill_job job = {.weight = w};
	void *memory;

	FT_TRY(ft_cpu_mem_alloc(w->device, FT_MEM_DEVICE, (size_t) bytes, &memory));
	w->dense = memory;
	w->bytes += bytes;
	job.rows = malloc((size_t) ft_pool_threads(w->device->pool) * (size_t) w->cols * sizeof(float));
	if (job.rows == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory for rows of %lld values", (long long) w->cols);
	for (int i = 0; i < n_parts; i++)
	{
		job.source = &parts[i];
		ft_pool_run(w->device->pool, parts[i].rows, 64, fill_dense_task, &job);
		job.first_row += parts[i].rows;
	}
	free(job.rows);
	return FT_OK;
}

static ft_status
fill_part(ft_weight *w, ft_part *part, const ft_mat *source)
{
	bool packed = source->dtype != FT_NF4;
	int64_t groups = packed ? ft_divide_up(source->rows, FT_GROUP) : 0;
	fill_job job = {.weight = w, .source = source, .part = part};
	int64_t bytes;
	void *memory;

	part->first_group = w->n_groups;
	part->group_bytes = packed ? ft_pack_group_bytes(part->dtype, w->cols) : 0;
	bytes = packed ? groups * part->group_bytes : ft_nf4_bytes(source->rows * source->cols);
	FT_TRY(ft_cpu_mem_alloc(w->device, FT_MEM_DEVICE, (size_t) bytes, &memory));
	part->groups = memory;
	w->n_parts++;
	w->bytes += bytes;
	w->n_groups += groups;
	if (packed)
		ft_pool_run(w->device->pool, groups, 4, pack_task, &job);
	else
		memcpy(memory, source->data, (size_t) bytes);
	return FT_OK;
}

static ft_status
fill_packed(ft_weight *w, const ft_mat *parts, int n_parts)
{
	int64_t first_row = 0;

	w->parts = calloc((size_t) n_parts, sizeof *w->parts);
	if (w->parts == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory for a weight of %d parts", n_parts);
	for (int i = 0; i < n_parts; i++)
	{
		ft_part *part = &w->parts[i];

		part->dtype = parts[i].dtype;
		part->first_row = first_row;
		part->rows = parts[i].rows;
		FT_TRY(fill_part(w, part, &parts[i]));
		first_row += part->rows;
	}
	return FT_OK;
}

static ft_status
check_parts(const ft_mat *parts, int n_parts, unsigned use, int64_t *rows)
{
	*rows = 0;
	if (n_parts < 1)
		return ft_fail(FT_INVALID, "weight has %d parts", n_parts);
	for (int i = 0; i < n_parts; i++)
	{
		const ft_mat *m = &parts[i];

		if (m->cols != parts[0].cols || m->rows < 0 || m->cols < 1 || m->ld < m->cols)
			return ft_bad_shape("weight", "a part", *m, m->rows, parts[0].cols);
		*rows += m->rows;
		if (m->dtype == FT_NF4 && use == FT_USE_DEQUANTISE && m->ld == m->cols)
			continue;
		if (ft_pack_block_bytes(m->dtype) < 0)
			return ft_fail(FT_UNSUPPORTED, "weight of type %s is not supported",
						   ft_dtype_get(m->dtype)->name);
		if (ft_row_bytes(m->dtype, m->cols) < 0)
			return ft_fail(FT_INVALID, "a row of %lld values is no whole number of %s blocks",
						   (long long) m->cols, ft_dtype_get(m->dtype)->name);
		if (ft_dtype_get(m->dtype)->block_values > 1 && m->ld != m->cols)
			return ft_bad_shape("weight", "a quantised part", *m, m->rows, m->cols);
	}
	return FT_OK;
}

ft_status
ft_cpu_weight_create(ft_device *device, const ft_mat *parts, int n_parts, unsigned use,
					 ft_weight **result)
{
	int64_t rows;
	ft_weight *w;
	bool dense;
	ft_status status = FT_OK;

	FT_TRY(check_parts(parts, n_parts, use, &rows));
	if ((use & (FT_USE_TRAIN | FT_USE_SERVE | FT_USE_EMBED | FT_USE_DEQUANTISE)) == 0)
		return ft_fail(FT_INVALID, "weight has no use (%u)", use);
	w = calloc(1, sizeof *w);
	if (w == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory for a weight");
	w->device = device;
	w->use = use;
	w->rows = rows;
	w->cols = parts[0].cols;
	dense = use & FT_USE_TRAIN && device->compute_dtype == FT_BF16;
	if (dense)
		status = fill_dense(w, parts, n_parts);
	if (status == FT_OK && (use & (FT_USE_SERVE | FT_USE_DEQUANTISE) || !dense))
		status = fill_packed(w, parts, n_parts);
	if (status != FT_OK)
	{
		ft_cpu_weight_free(w);
		return status;
	}
	*result = w;
	return FT_OK;
}

ft_status
ft_cpu_weight_view(ft_device *device, ft_mat matrix, ft_weight **result)
{
	ft_weight *w;

	FT_TRY(ft_check_float("weight_view", matrix));
	if (matrix.rows < 0 || matrix.cols < 1 || matrix.ld != matrix.cols)
		return ft_bad_shape("weight_view", "the matrix", matrix, matrix.rows, matrix.cols);
	w = calloc(1, sizeof *w);
	if (w == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory for a weight");
	w->device = device;
	w->use = FT_USE_TRAIN | FT_USE_EMBED;
	w->rows = matrix.rows;
	w->cols = matrix.cols;
	w->view = matrix;
	*result = w;
	return FT_OK;
}

void
ft_cpu_weight_free(ft_weight *w)
{
	if (w == NULL)
		return;
	for (int i = 0; i < w->n_parts; i++)
		ft_cpu_mem_free(w->device, FT_MEM_DEVICE, w->parts[i].groups);
	ft_cpu_mem_free(w->device, FT_MEM_DEVICE, w->dense);
	free(w->parts);
	free(w);
}

int64_t
ft_cpu_weight_bytes(const ft_weight *w)
{
	return w->bytes;
}
