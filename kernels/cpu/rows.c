/*
 * rows.c: embedding, gathering, scattering, conversions and sums of rows.
 */
#include "cpu.h"

#include "pack.h"

#include <string.h>

typedef struct rows_job
{
	ft_stream *s;
	ft_mat y;
	ft_mat x;
	const ft_weight *weight;
	const int32_t *index;
	float alpha;
} rows_job;

/* Row `id` of a weight as f32. */
static void
weight_row(float *y, const ft_weight *w, int64_t id)
{
	int i = w->n_parts - 1;

	if (w->view.data != NULL)
	{
		ft_stored_row(y, w->view.dtype, ft_at(w->view, id, 0), w->cols);
		return;
	}
	if (w->n_parts == 0)
	{
		ft_stored_row(y, FT_BF16, w->dense + id * w->cols, w->cols);
		return;
	}
	while (id < w->parts[i].first_row)
		i--;
	id -= w->parts[i].first_row;
	ft_unpack_row(y, w->parts[i].dtype,
				  w->parts[i].groups + id / FT_GROUP * w->parts[i].group_bytes,
				  (int) (id % FT_GROUP), w->cols);
}

static void
embed_task(void *context, int worker, int64_t begin, int64_t end)
{
	rows_job *job = context;
	const ft_weight *w = job->weight;

	for (int64_t i = begin; i < end; i++)
	{
		bool known = job->index[i] >= 0 && job->index[i] < w->rows;
		bool f32 = job->y.dtype == FT_F32;
		float *row = f32 ? ft_at(job->y, i, 0) : ft_worker_scratch(job->s, worker);

		if (known)
			weight_row(row, w, job->index[i]);
		else
			memset(row, 0, (size_t) w->cols * sizeof *row);
		if (!f32)
			job->s->device->kernels->to_bf16(ft_at(job->y, i, 0), row, w->cols);
	}
}

ft_status
ft_cpu_embed(ft_stream *s, ft_mat y, const ft_weight *w, const int32_t *ids)
{
	rows_job job = {.s = s, .y = y, .weight = w, .index = ids};

	FT_TRY(ft_check_float("embed", y));
	FT_TRY(ft_check_shape("embed", "output", y, y.rows, w->cols));
	if (!(w->use & FT_USE_EMBED))
		return ft_fail(FT_UNSUPPORTED, "embed: weight was not made for embedding");
	FT_TRY(ft_worker_scratch_reserve(s, (size_t) w->cols * sizeof(float)));
	ft_run(s, y.rows, 4 * w->cols, embed_task, &job);
	return FT_OK;
}

/* Columns that a task of embed_grad takes through all rows, so that rows of one id are added in
 * their order. */
#define SLICE 256

static void
embed_grad_task(void *context, int worker, int64_t begin, int64_t end)
{
	rows_job *job = context;

	(void) worker;
	for (int64_t first = begin * SLICE; first < ft_min(end * SLICE, job->x.cols); first += SLICE)
	{
		int64_t n = ft_min(SLICE, job->x.cols - first);

		for (int64_t i = 0; i < job->x.rows; i++)
			if (job->index[i] >= 0 && job->index[i] < job->y.rows)
				job->s->device->kernels->axpy(ft_at(job->y, job->index[i], first),
											  ft_at(job->x, i, first), 1, n);
	}
}

ft_status
ft_cpu_embed_grad(ft_stream *s, ft_mat dw, ft_mat dy, const int32_t *ids)
{
	rows_job job = {.s = s, .y = dw, .x = dy, .index = ids};

	FT_TRY(ft_check_f32("embed_grad", dw));
	FT_TRY(ft_check_f32("embed_grad", dy));
	FT_TRY(ft_check_shape("embed_grad", "weight", dw, dw.rows, dy.cols));
	FT_TRY(ft_check_shape("embed_grad", "gradient", dy, dy.rows, dy.cols));
	ft_run(s, ft_divide_up(dy.cols, SLICE), dy.rows * SLICE, embed_grad_task, &job);
	return FT_OK;
}

static void
gather_task(void *context, int worker, int64_t begin, int64_t end)
{
	rows_job *job = context;
	size_t bytes = (size_t) job->y.cols * (job->y.dtype == FT_F32 ? 4 : 2);

	(void) worker;
	for (int64_t i = begin; i < end; i++)
		memcpy(ft_at(job->y, i, 0), ft_at(job->x, job->index[i], 0), bytes);
}

/* An index outside of x is a bug of the caller, and reading there would be worse. */
static ft_status
check_index(const char *operation, const int32_t *index, int64_t n, int64_t rows)
{
	for (int64_t i = 0; i < n; i++)
		if (index[i] < 0 || index[i] >= rows)
			return ft_fail(FT_INVALID, "%s: index %d at %lld is outside of %lld rows", operation,
						   index[i], (long long) i, (long long) rows);
	return FT_OK;
}

ft_status
ft_cpu_gather_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *index)
{
	rows_job job = {.s = s, .y = y, .x = x, .index = index};

	FT_TRY(ft_check_float("gather_rows", x));
	if (y.dtype != x.dtype)
		return ft_bad_types("gather_rows", x.dtype, y.dtype);
	FT_TRY(ft_check_shape("gather_rows", "output", y, y.rows, x.cols));
	FT_TRY(check_index("gather_rows", index, y.rows, x.rows));
	ft_run(s, y.rows, y.cols, gather_task, &job);
	return FT_OK;
}

static void
scatter_task(void *context, int worker, int64_t begin, int64_t end)
{
	rows_job *job = context;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
		job->s->device->kernels->axpy(ft_at(job->y, job->index[i], 0), ft_at(job->x, i, 0), 1,
									  job->x.cols);
}

ft_status
ft_cpu_scatter_add_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *index)
{
	rows_job job = {.s = s, .y = y, .x = x, .index = index};

	FT_TRY(ft_check_f32("scatter_add_rows", y));
	FT_TRY(ft_check_f32("scatter_add_rows", x));
	FT_TRY(ft_check_shape("scatter_add_rows", "input", x, x.rows, y.cols));
	FT_TRY(check_index("scatter_add_rows", index, x.rows, y.rows));
	ft_run(s, x.rows, x.cols, scatter_task, &job);
	return FT_OK;
}

static void
add_task(void *context, int worker, int64_t begin, int64_t end)
{
	rows_job *job = context;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
		job->s->device->kernels->axpy(ft_at(job->y, i, 0), ft_at(job->x, i, 0), job->alpha,
									  job->x.cols);
}

ft_status
ft_cpu_add(ft_stream *s, ft_mat y, ft_mat x, float alpha)
{
	rows_job job = {.s = s, .y = y, .x = x, .alpha = alpha};

	FT_TRY(ft_check_f32("add", y));
	FT_TRY(ft_check_f32("add", x));
	FT_TRY(ft_check_shape("add", "input", x, y.rows, y.cols));
	ft_run(s, y.rows, y.cols, add_task, &job);
	return FT_OK;
}

static void
convert_task(void *context, int worker, int64_t begin, int64_t end)
{
	rows_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;
	ft_dtype from = job->x.dtype;
	ft_dtype to = job->y.dtype;
	int64_t n = job->x.cols;
	int64_t quantised_bytes = ft_row_bytes(from, n);
	bool plain = ft_dtype_get(from)->block_values == 1;

	for (int64_t i = begin; i < end; i++)
	{
		const void *x =
			plain ? ft_at(job->x, i, 0) : (const char *) job->x.data + i * quantised_bytes;
		void *y = ft_at(job->y, i, 0);
		float *row = to == FT_F32 ? y : ft_worker_scratch(job->s, worker);

		if (from == to)
		{
			memcpy(y, x, (size_t) quantised_bytes);
			continue;
		}
		if (from == FT_BF16)
			kernels->to_f32(row, x, n);
		else
			ft_stored_row(row, from, x, n);
		if (to == FT_BF16)
			kernels->to_bf16(y, row, n);
		else if (to == FT_F16)
			for (int64_t j = 0; j < n; j++)
				((uint16_t *) y)[j] = ft_f32_to_f16(row[j]);
	}
}

ft_status
ft_cpu_convert(ft_stream *s, ft_mat y, ft_mat x)
{
	rows_job job = {.s = s, .y = y, .x = x};
	bool plain = x.dtype == FT_F32 || x.dtype == FT_BF16 || x.dtype == FT_F16;
	bool known = plain || ft_dtype_get(x.dtype)->block_values > 1;

	if (!known || !(ft_is_float(y.dtype) || (y.dtype == FT_F16 && plain)))
		return ft_bad_types("convert", x.dtype, y.dtype);
	FT_TRY(ft_check_shape("convert", "input", x, y.rows, y.cols));
	FT_TRY(ft_check_shape("convert", "output", y, y.rows, y.cols));
	if (!plain && (x.ld != x.cols || ft_row_bytes(x.dtype, x.cols) < 0))
		return ft_fail(FT_INVALID, "convert: a row of %lld values (stride %lld) of type %s",
					   (long long) x.cols, (long long) x.ld, ft_dtype_get(x.dtype)->name);
	FT_TRY(ft_worker_scratch_reserve(s, (size_t) x.cols * sizeof(float)));
	ft_run(s, y.rows, 2 * y.cols, convert_task, &job);
	return FT_OK;
}
