/*
 * experts.cu: mixture of experts: routing, sorting rows by expert, their
 * products, and the weighted sum of what comes back.
 *
 * How many rows an expert has stays on the device: the products' blocks look it
 * up themselves (linear_serve.cu, gemm_own.cu).
 */
#include "intrinsics.cuh"

#define THREADS 256
#define CHUNK 1024 /* columns that a block handles */

static dim3
grid_of(ft_mat m)
{
	return dim3((unsigned) ft_divide_up(m.cols, CHUNK), (unsigned) ft_min64(m.rows, FT_MAX_GRID_Y));
}

static ft_status
check_choice(const char *op, ft_mat logits, int k)
{
	FT_TRY(ft_cuda_type(op, "logits", logits, FT_F32));
	if (logits.cols < 1 || logits.cols > FT_MAX_EXPERTS || k < 1 || k > logits.cols)
		return ft_fail(FT_INVALID, "%s: %d of %lld experts, at most all of %d", op, k,
					   (long long) logits.cols, FT_MAX_EXPERTS);
	return FT_OK;
}

/* --- routing --- */

/* A thread a row: there are few experts. */
static __global__ void
route_row(int32_t *experts, float *weights, view<float> logits, int k)
{
	int64_t t = blockIdx.x * (int64_t) THREADS + threadIdx.x;
	uint32_t taken[FT_MAX_EXPERTS / 32] = {};
	int n = (int) logits.cols;
	float *x;
	float max;
	float sum = 0;
	float chosen = 0;

	if (t >= logits.rows)
		return;
	x = logits.row(t);
	max = x[0];
	for (int e = 1; e < n; e++)
		max = x[e] > max ? x[e] : max;
	for (int e = 0; e < n; e++)
	{
		x[e] = expf(x[e] - max);
		sum += x[e];
	}
	for (int e = 0; e < n; e++)
		x[e] /= sum;
	for (int j = 0; j < k; j++)
	{
		int best = -1;

		/* with nothing but NaN left, the first */
		for (int e = 0; e < n; e++)
		{
			if ((taken[e / 32] >> e % 32 & 1) == 0 && (best < 0 || x[e] > x[best]))
				best = e;
		}
		taken[best / 32] |= 1u << best % 32;
		experts[t * k + j] = best;
		weights[t * k + j] = x[best];
		chosen += x[best];
	}
	for (int j = 0; j < k; j++)
		weights[t * k + j] /= chosen;
}

ft_status
ft_cuda_route(ft_stream *s, int32_t *experts, float *weights, ft_mat logits, int k)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(check_choice("route", logits, k));
	if (logits.rows == 0)
		return FT_OK;
	FT_LAUNCH(route_row, (unsigned) ft_divide_up(logits.rows, THREADS), THREADS, 0, s->stream,
			  experts, weights, view_of<float>(logits), k);
	return ft_cuda_launched("route");
}

static __global__ void
route_grad_row(view<float> dlogits, const float *dweights, const float *weights,
			   const int32_t *experts, int k)
{
	int64_t t = blockIdx.x * (int64_t) THREADS + threadIdx.x;
	float mean = 0;
	float *row;

	if (t >= dlogits.rows)
		return;
	row = dlogits.row(t);
	for (int e = 0; e < dlogits.cols; e++)
		row[e] = 0;
	for (int j = 0; j < k; j++)
		mean += weights[t * k + j] * dweights[t * k + j];
	for (int j = 0; j < k; j++)
		row[experts[t * k + j]] = weights[t * k + j] * (dweights[t * k + j] - mean);
}

ft_status
ft_cuda_route_grad(ft_stream *s, ft_mat dlogits, const float *dweights, const float *weights,
				   const int32_t *experts, int k)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(check_choice("route_grad", dlogits, k));
	if (dlogits.rows == 0)
		return FT_OK;
	FT_LAUNCH(route_grad_row, (unsigned) ft_divide_up(dlogits.rows, THREADS), THREADS, 0, s->stream,
			  view_of<float>(dlogits), dweights, weights, experts, k);
	return ft_cuda_launched("route_grad");
}

/* --- places --- */

/* A block an expert, which looks at all slots; a thread takes neighbouring ones, so that places
 * follow the slots' order. */
static __global__ void
group_slots(int32_t *starts, int32_t *place, int32_t *row, const int32_t *experts, int64_t slots,
			int k, int n_experts)
{
	__shared__ int own[THREADS];
	__shared__ int sums[THREADS / FT_WARP];
	int expert = blockIdx.x;
	int64_t each = ft_divide_up(slots, THREADS);
	int64_t first = ft_min64(threadIdx.x * each, slots);
	int64_t end = ft_min64(first + each, slots);
	int below = 0;
	int count = 0;

	for (int64_t i = first; i < end; i++)
	{
		below += experts[i] < expert;
		count += experts[i] == expert;
	}
	own[threadIdx.x] = count;
	below = block_sum(below, sums);
	if (threadIdx.x == 0)
	{
		starts[expert] = below;
		if (expert == n_experts - 1)
			starts[n_experts] = (int32_t) slots;
	}
	for (unsigned i = 0; i < threadIdx.x; i++)
		below += own[i];
	for (int64_t i = first; i < end; i++)
	{
		if (experts[i] != expert)
			continue;
		place[i] = below;
		row[below++] = (int32_t) (i / k);
	}
}

ft_status
ft_cuda_group_rows(ft_stream *s, int32_t *starts, int32_t *place, int32_t *row,
				   const int32_t *experts, int64_t rows, int k, int n_experts)
{
	FT_TRY(ft_cuda_enter(s));
	if (n_experts < 1 || n_experts > FT_MAX_EXPERTS || k < 1 || rows < 0 || rows * k > INT32_MAX)
		return ft_fail(FT_INVALID, "group_rows: %lld rows of %d experts each, of %d",
					   (long long) rows, k, n_experts);
	FT_LAUNCH(group_slots, (unsigned) n_experts, THREADS, 0, s->stream, starts, place, row, experts,
			  rows * k, k, n_experts);
	return ft_cuda_launched("group_rows");
}

/* --- products --- */

static ft_status
check_experts(ft_mat y, ft_mat x, ft_weight *const *weights, int n)
{
	if ((x.dtype != FT_F32 && x.dtype != FT_BF16) || (y.dtype != FT_F32 && y.dtype != FT_BF16))
		return ft_cuda_unsupported("linear_experts", x.dtype, y.dtype);
	if (n < 1 || n > FT_MAX_EXPERTS)
		return ft_fail(FT_INVALID, "linear_experts: %d experts, at most %d", n, FT_MAX_EXPERTS);
	for (int e = 0; e < n; e++)
	{
		FT_TRY(ft_cuda_shape("linear_experts", "x", x, y.rows, weights[e]->cols));
		FT_TRY(ft_cuda_shape("linear_experts", "y", y, x.rows, weights[e]->rows));
		if (!(weights[e]->use & FT_USE_SERVE))
			return ft_fail(FT_UNSUPPORTED, "linear_experts: the weight was not made for serving");
	}
	return FT_OK;
}

/* A launch for all parts of a stored type, or as many as it handles. */
static ft_status
launch_parts(ft_stream *s, ft_mat y, ft_mat x, const ft_expert_parts *parts, int n,
			 const int32_t *starts)
{
	if (s->device->numerics == FT_NUMERICS_FAST && x.dtype == FT_BF16)
		return ft_cuda_experts_bf16(s, y, x, parts, n, starts);
	return ft_cuda_experts_f32(s, y, x, parts, n, starts);
}

static ft_status
launch_type(ft_stream *s, ft_mat y, ft_mat x, ft_weight *const *weights, int n,
			const int32_t *starts, ft_dtype type)
{
	ft_expert_parts parts = {};

	for (int e = 0; e < n; e++)
	{
		for (int i = 0; i < weights[e]->n_parts; i++)
		{
			const ft_packed *part = &weights[e]->parts[i];

			if (part->dtype != type)
				continue;
			parts.part[parts.n].packed = *part;
			parts.part[parts.n++].expert = e;
			parts.rows = part->rows > parts.rows ? part->rows : parts.rows;
			if (parts.n < FT_EXPERT_PARTS)
				continue;
			FT_TRY(launch_parts(s, y, x, &parts, n, starts));
			parts.n = 0;
			parts.rows = 0;
		}
	}
	return parts.n > 0 ? launch_parts(s, y, x, &parts, n, starts) : FT_OK;
}

ft_status
ft_cuda_linear_experts(ft_stream *s, ft_mat y, ft_mat x, ft_weight *const *weights, int n,
					   const int32_t *starts)
{
	bool done[FT_DTYPE_COUNT] = {};

	FT_TRY(ft_cuda_enter(s));
	FT_TRY(check_experts(y, x, weights, n));
	if (y.rows == 0)
		return FT_OK;
	for (int e = 0; e < n; e++)
	{
		for (int i = 0; i < weights[e]->n_parts; i++)
		{
			ft_dtype type = weights[e]->parts[i].dtype;

			if (done[type])
				continue;
			done[type] = true;
			FT_TRY(launch_type(s, y, x, weights, n, starts, type));
		}
	}
	return FT_OK;
}

/* --- the sum of a row's experts, and its gradient --- */

template <typename Y, typename X>
static __global__ void
combine(view<Y> y, view<const X> x, const int32_t *place, const float *weights, int k)
{
	int64_t end = ft_min64((blockIdx.x + 1) * (int64_t) CHUNK, y.cols);

	for (int64_t t = blockIdx.y; t < y.rows; t += gridDim.y)
	{
		for (int64_t c = blockIdx.x * (int64_t) CHUNK + threadIdx.x; c < end; c += THREADS)
		{
			float sum = 0;

			for (int j = 0; j < k; j++)
			{
				float v = value(x.row(place[t * k + j])[c]);

				sum += weights != NULL ? weights[t * k + j] * v : v;
			}
			set_value(y.row(t)[c], sum);
		}
	}
}

ft_status
ft_cuda_combine_rows(ft_stream *s, ft_mat y, ft_mat x, const int32_t *place, const float *weights,
					 int k)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("combine_rows", "x", x, x.rows, y.cols));
	FT_TRY(ft_cuda_shape("combine_rows", "y", y, y.rows, x.cols));
	if (y.rows == 0 || y.cols == 0)
		return FT_OK;
	return with_types("combine_rows", y.dtype, x.dtype,
					  [&](auto ty, auto tx)
					  {
						  typedef typename decltype(ty)::type Y;
						  typedef typename decltype(tx)::type X;

						  FT_LAUNCH((combine<Y, X>), grid_of(y), THREADS, 0, s->stream,
									view_of<Y>(y), view_of<const X>(x), place, weights, k);
						  return ft_cuda_launched("combine_rows");
					  });
}

/* A block a slot. */
template <typename X>
static __global__ void
weigh_grad(float *dweights, view<float> dx, view<X> weighted, view<const X> x, const int32_t *place,
		   const float *weights)
{
	__shared__ float shared[THREADS / FT_WARP];
	int64_t i = blockIdx.x;
	const X *row = x.row(place[i]);
	float *drow = dx.row(place[i]);
	float weight = weights[i];
	float sum = 0;

	for (int64_t c = threadIdx.x; c < dx.cols; c += THREADS)
	{
		sum += value(row[c]) * drow[c];
		drow[c] *= weight;
		if (weighted.data != NULL)
			set_value(weighted.row(place[i])[c], weight * value(row[c]));
	}
	sum = block_sum(sum, shared);
	if (threadIdx.x == 0)
		dweights[i] = sum;
}

ft_status
ft_cuda_weigh_rows_grad(ft_stream *s, float *dweights, ft_mat dx, ft_mat weighted, ft_mat x,
						const int32_t *place, const float *weights)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_type("weigh_rows_grad", "dx", dx, FT_F32));
	FT_TRY(ft_cuda_shape("weigh_rows_grad", "x", x, dx.rows, dx.cols));
	FT_TRY(ft_cuda_shape("weigh_rows_grad", "dx", dx, x.rows, x.cols));
	if (weighted.data != NULL)
	{
		FT_TRY(ft_cuda_shape("weigh_rows_grad", "weighted", weighted, x.rows, x.cols));
		FT_TRY(ft_cuda_type("weigh_rows_grad", "weighted", weighted, x.dtype));
	}
	if (x.rows == 0)
		return FT_OK;
	return with_type("weigh_rows_grad", x.dtype,
					 [&](auto type)
					 {
						 typedef typename decltype(type)::type X;

						 FT_LAUNCH((weigh_grad<X>), (unsigned) x.rows, THREADS, 0, s->stream,
								   dweights, view_of<float>(dx), view_of<X>(weighted),
								   view_of<const X>(x), place, weights);
						 return ft_cuda_launched("weigh_rows_grad");
					 });
}
