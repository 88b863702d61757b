/*
 * experts.c: mixture of experts: routing, sorting rows by expert, their
 * products, and the weighted sum of what comes back.
 */
#include "cpu.h"

#include <math.h>
#include <string.h>

typedef struct experts_job
{
	ft_stream *s;
	ft_mat y;
	ft_mat x;
	ft_mat weighted;
	int32_t *experts;
	const int32_t *chosen;
	const int32_t *place;
	float *weights;
	const float *given; /* weights that are read */
	const float *dweights;
	int k;
} experts_job;

static ft_status
check_choice(const char *operation, ft_mat logits, int k)
{
	FT_TRY(ft_check_f32(operation, logits));
	FT_TRY(ft_check_shape(operation, "logits", logits, logits.rows, logits.cols));
	if (logits.cols < 1 || logits.cols > FT_MAX_EXPERTS || k < 1 || k > logits.cols)
		return ft_fail(FT_INVALID, "%s: %d of %lld experts, at most all of %d", operation, k,
					   (long long) logits.cols, FT_MAX_EXPERTS);
	return FT_OK;
}

/* --- routing --- */

static void
softmax(float *x, int64_t n)
{
	float max = x[0];
	float sum = 0;

	for (int64_t e = 1; e < n; e++)
		if (x[e] > max)
			max = x[e];
	for (int64_t e = 0; e < n; e++)
	{
		x[e] = expf(x[e] - max);
		sum += x[e];
	}
	for (int64_t e = 0; e < n; e++)
		x[e] /= sum;
}

/* The largest that is not taken; with nothing but NaN left, the first. */
static int32_t
take_largest(const float *x, int64_t n, bool *taken)
{
	int32_t best = -1;

	for (int32_t e = 0; e < n; e++)
		if (!taken[e] && (best < 0 || x[e] > x[best]))
			best = e;
	taken[best] = true;
	return best;
}

static void
route_task(void *context, int worker, int64_t begin, int64_t end)
{
	experts_job *job = context;
	int64_t n = job->x.cols;

	(void) worker;
	for (int64_t t = begin; t < end; t++)
	{
		bool taken[FT_MAX_EXPERTS] = {false};
		float *row = ft_at(job->x, t, 0);
		float *weights = job->weights + t * job->k;
		float sum = 0;

		softmax(row, n);
		for (int j = 0; j < job->k; j++)
		{
			int32_t e = take_largest(row, n, taken);

			job->experts[t * job->k + j] = e;
			weights[j] = row[e];
			sum += row[e];
		}
		for (int j = 0; j < job->k; j++)
			weights[j] /= sum;
	}
}

ft_status
ft_cpu_route(ft_stream *s, int32_t *experts, float *weights, ft_mat logits, int k)
{
	experts_job job = {.s = s, .x = logits, .experts = experts, .weights = weights, .k = k};

	FT_TRY(check_choice("route", logits, k));
	ft_run(s, logits.rows, (16 + 2 * k) * logits.cols, route_task, &job);
	return FT_OK;
}

static void
route_grad_task(void *context, int worker, int64_t begin, int64_t end)
{
	experts_job *job = context;

	(void) worker;
	for (int64_t t = begin; t < end; t++)
	{
		float *row = ft_at(job->y, t, 0);
		int64_t first = t * job->k;
		float mean = 0;

		memset(row, 0, (size_t) job->y.cols * sizeof *row);
		for (int j = 0; j < job->k; j++)
			mean += job->given[first + j] * job->dweights[first + j];
		for (int j = 0; j < job->k; j++)
			row[job->chosen[first + j]] = job->given[first + j] * (job->dweights[first + j] - mean);
	}
}

/* Of values from outside of the table a bug of the caller would write anywhere. */
static ft_status
check_experts(const char *operation, const int32_t *experts, int64_t slots, int64_t n)
{
	for (int64_t i = 0; i < slots; i++)
		if (experts[i] < 0 || experts[i] >= n)
			return ft_fail(FT_INVALID, "%s: expert %d at %lld is outside of %lld", operation,
						   experts[i], (long long) i, (long long) n);
	return FT_OK;
}

ft_status
ft_cpu_route_grad(ft_stream *s, ft_mat dlogits, const float *dweights, const float *weights,
				  const int32_t *experts, int k)
{
	experts_job job = {
		.s = s, .y = dlogits, .chosen = experts, .given = weights, .dweights = dweights, .k = k};

	FT_TRY(check_choice("route_grad", dlogits, k));
	FT_TRY(check_experts("route_grad", experts, dlogits.rows * k, dlogits.cols));
	ft_run(s, dlogits.rows, dlogits.cols + 4 * k, route_grad_task, &job);
	return FT_OK;
}

/* --- places --- */

ft_status
ft_cpu_group_rows(ft_stream *s, int32_t *starts, int32_t *place, int32_t *row,
				  const int32_t *experts, int64_t rows, int k, int n_experts)
{
	int32_t next[FT_MAX_EXPERTS];
	int64_t slots = rows * k;

	(void) s;
	if (n_experts < 1 || n_experts > FT_MAX_EXPERTS || k < 1 || rows < 0 || slots > INT32_MAX)
		return ft_fail(FT_INVALID, "group_rows: %lld rows of %d experts each, of %d",
					   (long long) rows, k, n_experts);
	FT_TRY(check_experts("group_rows", experts, slots, n_experts));
	memset(starts, 0, ((size_t) n_experts + 1) * sizeof *starts);
	for (int64_t i = 0; i < slots; i++)
		starts[experts[i] + 1]++;
	for (int e = 0; e < n_experts; e++)
	{
		starts[e + 1] += starts[e];
		next[e] = starts[e];
	}
	for (int64_t i = 0; i < slots; i++)
	{
		int32_t p = next[experts[i]]++;

		place[i] = p;
		row[p] = (int32_t) (i / k);
	}
	return FT_OK;
}

/* --- products --- */

static ft_status
check_starts(const int32_t *starts, int n, int64_t rows)
{
	for (int e = 0; e < n; e++)
		if (starts[e + 1] < starts[e])
			return ft_fail(FT_INVALID, "linear_experts: places %d to %d of expert %d", starts[e],
						   starts[e + 1], e);
	if (starts[0] != 0 || starts[n] != rows)
		return ft_fail(FT_INVALID, "linear_experts: places %d to %d of %lld rows", starts[0],
					   starts[n], (long long) rows);
	return FT_OK;
}

ft_status
ft_cpu_linear_experts(ft_stream *s, ft_mat y, ft_mat x, ft_weight *const *weights, int n,
					  const int32_t *starts)
{
	FT_TRY(check_starts(starts, n, y.rows));
	for (int e = 0; e < n; e++)
	{
		int64_t rows = starts[e + 1] - starts[e];

		FT_TRY(ft_cpu_linear(s, ft_mat_rows(y, starts[e], rows), ft_mat_rows(x, starts[e], rows),
							 weights[e], 0, true));
	}
	return FT_OK;
}

/* --- the sum of a row's experts, and its gradient --- */

static ft_status
check_places(const char *operation, const int32_t *place, int64_t slots, int64_t rows)
{
	for (int64_t i = 0; i < slots; i++)
		if (place[i] < 0 || place[i] >= rows)
			return ft_fail(FT_INVALID, "%s: place %d at %lld is outside of %lld rows", operation,
						   place[i], (long long) i, (long long) rows);
	return FT_OK;
}

/* Row `p` of x as f32: as it lies, or converted into the scratch. */
static const float *
row_as_f32(const experts_job *job, ft_mat x, int64_t p, float *scratch)
{
	if (x.dtype == FT_F32)
		return ft_at(x, p, 0);
	job->s->device->kernels->to_f32(scratch, ft_at(x, p, 0), x.cols);
	return scratch;
}

static void
combine_task(void *context, int worker, int64_t begin, int64_t end)
{
	experts_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t n = job->y.cols;
	float *scratch = ft_worker_scratch(job->s, worker);
	float *sum = scratch + n;

	for (int64_t t = begin; t < end; t++)
	{
		float *to = job->y.dtype == FT_F32 ? ft_at(job->y, t, 0) : sum;

		memset(to, 0, (size_t) n * sizeof *to);
		for (int j = 0; j < job->k; j++)
		{
			int64_t slot = t * job->k + j;

			kernels->axpy(to, row_as_f32(job, job->x, job->place[slot], scratch),
						  job->given != NULL ? job->given[slot] : 1, n);
		}
		if (to == sum)
			kernels->to_bf16(ft_at(job->y, t, 0), sum, n);
	}
}

ft_status
ft_cpu_combine_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *place, const float *weights,
					int k)
{
	experts_job job = {.s = s, .y = y, .x = x, .place = place, .given = weights, .k = k};

	FT_TRY(ft_check_float("combine_rows", y));
	FT_TRY(ft_check_float("combine_rows", x));
	FT_TRY(ft_check_shape("combine_rows", "input", x, x.rows, y.cols));
	FT_TRY(ft_check_shape("combine_rows", "output", y, y.rows, x.cols));
	FT_TRY(check_places("combine_rows", place, y.rows * k, x.rows));
	FT_TRY(ft_worker_scratch_reserve(s, (size_t) (2 * y.cols) * sizeof(float)));
	ft_run(s, y.rows, 2 * k * y.cols, combine_task, &job);
	return FT_OK;
}

static void
weigh_grad_task(void *context, int worker, int64_t begin, int64_t end)
{
	experts_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t n = job->y.cols;
	float *scratch = ft_worker_scratch(job->s, worker);

	for (int64_t i = begin; i < end; i++)
	{
		int64_t p = job->place[i];
		float weight = job->given[i];
		float *dx = ft_at(job->y, p, 0);
		const float *x = row_as_f32(job, job->x, p, scratch);
		float *product = scratch;

		kernels->dots(job->weights + i, x, dx, n, 1, n);
		for (int64_t j = 0; j < n; j++)
			dx[j] *= weight;
		if (job->weighted.data == NULL)
			continue;
		if (job->x.dtype == FT_F32)
			product = ft_at(job->weighted, p, 0);
		for (int64_t j = 0; j < n; j++)
			product[j] = weight * x[j];
		if (product == scratch)
			kernels->to_bf16(ft_at(job->weighted, p, 0), scratch, n);
	}
}

ft_status
ft_cpu_weigh_rows_grad(ft_stream *s, float *dweights, ft_mat dx, ft_mat weighted, ft_mat x,
					   const int32_t *place, const float *weights)
{
	experts_job job = {.s = s,
					   .y = dx,
					   .x = x,
					   .weighted = weighted,
					   .place = place,
					   .weights = dweights,
					   .given = weights};

	FT_TRY(ft_check_f32("weigh_rows_grad", dx));
	FT_TRY(ft_check_float("weigh_rows_grad", x));
	FT_TRY(ft_check_shape("weigh_rows_grad", "input", x, dx.rows, dx.cols));
	FT_TRY(ft_check_shape("weigh_rows_grad", "gradient", dx, x.rows, x.cols));
	if (weighted.data != NULL)
	{
		FT_TRY(ft_check_shape("weigh_rows_grad", "weighted input", weighted, x.rows, x.cols));
		if (weighted.dtype != x.dtype)
			return ft_bad_types("weigh_rows_grad", x.dtype, weighted.dtype);
	}
	FT_TRY(check_places("weigh_rows_grad", place, x.rows, x.rows));
	FT_TRY(ft_worker_scratch_reserve(s, (size_t) x.cols * sizeof(float)));
	ft_run(s, x.rows, 4 * x.cols, weigh_grad_task, &job);
	return FT_OK;
}
