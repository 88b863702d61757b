/*
 * sample.cu: drawing tokens from rows of logits, one block a row.
 *
 * The filters apply in the order of transformers: temperature, top_k, top_p,
 * min_p.  Candidates need not be sorted for that: "the id at which the k best
 * end", "… at which the share p of the mass ends" and "… at which the random
 * number falls" are each found by descending through the bits of the logit, eight
 * at a time, with a histogram of counts or of mass.  Of equal logits the lower id
 * comes first.  Masses are fixed-point numbers, so that it does not matter which
 * thread adds first.
 */
#include "intrinsics.cuh"

#define THREADS 512
#define MAX_ROWS 128         /* whose parameters fit into a launch's arguments */
#define ONE 1099511627776.0f /* 2⁴⁰: the mass of the best candidate */

typedef unsigned long long mass_t;

struct sample_batch
{
	ft_sample params[MAX_ROWS];
};

static_assert(sizeof(sample_batch) <= 3584, "a launch's arguments are limited to 4 KiB");

struct sample_shared
{
	ranked best[THREADS / FT_WARP];
	float sums[THREADS / FT_WARP];
	mass_t masses[THREADS / FT_WARP];
	mass_t histogram[256];
	mass_t segments[THREADS];
	mass_t above;
	uint32_t key;
	int found;
};

struct sample_row
{
	const float *logits;
	int n;
	float max;
	float inverse_temperature;
	float floor; /* logits below are no candidates, by min_p */
};

/* Rises with the logit. */
__device__ __forceinline__ uint32_t
key_of(float logit)
{
	uint32_t bits = __float_as_uint(logit + 0.0f); /* −0 becomes 0 */

	return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* −∞ and NaN are never candidates. */
__device__ __forceinline__ bool
is_candidate(float logit)
{
	return logit > -INFINITY;
}

__device__ __forceinline__ mass_t
mass_of(const sample_row &row, float logit)
{
	return (mass_t) (expf((logit - row.max) * row.inverse_temperature) * ONE);
}

/* The weights that descend() and find_in_order() may go by. */
struct by_count
{
	__device__ mass_t operator()(const sample_row &, float logit) const
	{
		return is_candidate(logit) ? 1 : 0;
	}
};

struct by_mass
{
	__device__ mass_t operator()(const sample_row &row, float logit) const
	{
		return is_candidate(logit) ? mass_of(row, logit) : 0;
	}
};

struct by_mass_over_floor
{
	__device__ mass_t operator()(const sample_row &row, float logit) const
	{
		return is_candidate(logit) && logit >= row.floor ? mass_of(row, logit) : 0;
	}
};

struct by_key
{
	uint32_t key;

	__device__ mass_t operator()(const sample_row &, float logit) const
	{
		return is_candidate(logit) && key_of(logit) == key ? 1 : 0;
	}
};

template <typename W>
__device__ __noinline__ static mass_t
total_of(const sample_row &row, W weight, sample_shared *shared)
{
	mass_t sum = 0;

	for (int j = threadIdx.x; j < row.n; j += THREADS)
		sum += weight(row, row.logits[j]);
	return block_sum(sum, shared->masses);
}

/* The key at which the running total in falling order of logits reaches target (at least 1, at most
 * the total); *above is the total of all candidates with a larger key. */
template <typename W>
__device__ __noinline__ static uint32_t
descend(const sample_row &row, W weight, mass_t target, mass_t *above, sample_shared *shared)
{
	uint32_t prefix = 0;
	mass_t before = 0;

	for (int shift = 24; shift >= 0; shift -= 8)
	{
		__syncthreads();
		for (int j = threadIdx.x; j < 256; j += THREADS)
			shared->histogram[j] = 0;
		__syncthreads();
		for (int j = threadIdx.x; j < row.n; j += THREADS)
		{
			uint32_t key = key_of(row.logits[j]);
			mass_t w = weight(row, row.logits[j]);

			if (w > 0 && (shift == 24 || key >> (shift + 8) == prefix))
				atomicAdd(&shared->histogram[key >> shift & 255], w);
		}
		__syncthreads();
		if (threadIdx.x == 0)
		{
			int bin = 255;

			while (bin > 0 && before + shared->histogram[bin] < target)
				before += shared->histogram[bin--];
			shared->above = before;
			shared->key = prefix << 8 | (uint32_t) bin;
		}
		__syncthreads();
		prefix = shared->key;
		before = shared->above;
	}
	*above = before;
	return prefix;
}

/* The first id at which the running total in the order of ids reaches target, -1 when it never
 * does. A thread adds up a run of ids. */
template <typename W>
__device__ __noinline__ static int
find_in_order(const sample_row &row, W weight, mass_t target, sample_shared *shared)
{
	int length = (row.n + THREADS - 1) / THREADS;
	int first = threadIdx.x * length;
	int end = first + length < row.n ? first + length : row.n;
	mass_t sum = 0;

	for (int j = first; j < end; j++)
		sum += weight(row, row.logits[j]);
	__syncthreads();
	shared->segments[threadIdx.x] = sum;
	if (threadIdx.x == 0)
		shared->found = -1;
	__syncthreads();
	if (threadIdx.x == 0)
	{
		mass_t before = 0;
		int segment = 0;

		while (segment < THREADS && before + shared->segments[segment] < target)
			before += shared->segments[segment++];
		for (int j = segment * length; segment < THREADS && j < row.n; j++)
		{
			before += weight(row, row.logits[j]);
			if (before >= target)
			{
				shared->found = j;
				break;
			}
		}
	}
	__syncthreads();
	return shared->found;
}

/* Where top_k and top_p cut the candidates in falling order: all with a larger key than *key, and
 * the first *ties of those with that key, with that total mass. */
__device__ __noinline__ static mass_t
cut(const sample_row &row, const ft_sample &p, mass_t candidates, uint32_t *key, mass_t *ties,
	sample_shared *shared)
{
	mass_t above = 0;
	mass_t total;
	mass_t target;
	float logit;

	if (p.top_k > 0 && (mass_t) p.top_k < candidates)
	{
		mass_t above_mass = 0;

		*key = descend(row, by_count(), (mass_t) p.top_k, &above, shared);
		*ties = (mass_t) p.top_k - above;
		for (int j = threadIdx.x; j < row.n; j += THREADS)
		{
			logit = row.logits[j];
			if (is_candidate(logit) && key_of(logit) > *key)
				above_mass += mass_of(row, logit);
		}
		above_mass = block_sum(above_mass, shared->masses);
		logit = row.logits[find_in_order(row, by_key{*key}, 1, shared)];
		total = above_mass + *ties * mass_of(row, logit);
	}
	else
	{
		*key = 0;
		*ties = 0;
		total = total_of(row, by_mass(), shared);
	}
	if (p.top_p >= 1.0f)
		return total;
	target = (mass_t) ceil((double) p.top_p * (double) total);
	target = target < 1 ? 1 : target < total ? target : total;
	*key = descend(row, by_mass(), target, &above, shared);
	logit = row.logits[find_in_order(row, by_key{*key}, 1, shared)];
	*ties = (target - above + mass_of(row, logit) - 1) / mass_of(row, logit);
	return above + *ties * mass_of(row, logit);
}

/* The id drawn; `best` when the filters leave nothing else. */
__device__ static int
draw(sample_row &row, const ft_sample &p, int best, sample_shared *shared)
{
	mass_t candidates = total_of(row, by_count(), shared);
	mass_t above = 0;
	mass_t ties = 0;
	mass_t total;
	mass_t target;
	uint32_t key = 0;
	int id;

	row.floor = p.min_p > 0.0f ? row.max + p.temperature * logf(p.min_p) : -INFINITY;
	if (candidates == 0 || !(fabsf(row.max) < INFINITY))
		return best;
	if ((p.top_k <= 0 || (mass_t) p.top_k >= (mass_t) row.n) && p.top_p >= 1.0f)
	{
		total = total_of(row, by_mass_over_floor(), shared);
		target = (mass_t) ((double) p.uniform * (double) total);
		id = find_in_order(row, by_mass_over_floor(), (target < total ? target : total - 1) + 1,
						   shared);
		return total == 0 || id < 0 ? best : id;
	}
	total = cut(row, p, candidates, &key, &ties, shared);
	/* A floor above the last kept logit cuts deeper, and then all above the floor are kept. */
	if (p.min_p > 0.0f && (key == 0 || key < key_of(row.floor)))
		total = total_of(row, by_mass_over_floor(), shared);
	if (total == 0)
		return best;
	target = (mass_t) ((double) p.uniform * (double) total);
	target = (target < total ? target : total - 1) + 1;
	key = descend(row, by_mass(), target, &above, shared);
	id = find_in_order(row, by_key{key}, 1, shared);
	if (id < 0)
		return best;
	ties = (target - above + mass_of(row, row.logits[id]) - 1) / mass_of(row, row.logits[id]);
	id = find_in_order(row, by_key{key}, ties, shared);
	return id < 0 ? best : id;
}

static __global__ void
sample_rows(view<const float> logits, sample_batch batch, int32_t *ids, float *logprobs)
{
	__shared__ sample_shared shared;
	const ft_sample &p = batch.params[blockIdx.x];
	sample_row row = {logits.row(blockIdx.x), (int) logits.cols, 0, 0, 0};
	ranked best = {-INFINITY, 0};
	int id;

	for (int j = threadIdx.x; j < row.n; j += THREADS)
		best = better(best, ranked{row.logits[j], j});
	best = block_best(best, shared.best);
	id = best.index;
	row.max = best.value;
	if (p.temperature > 0.0f)
	{
		row.inverse_temperature = 1.0f / p.temperature;
		id = draw(row, p, id, &shared);
	}
	if (threadIdx.x == 0)
		ids[blockIdx.x] = id;
	if (logprobs != NULL)
	{
		float sum = 0;

		for (int j = threadIdx.x; j < row.n; j += THREADS)
			sum += expf(row.logits[j] - row.max);
		sum = block_sum(sum, shared.sums);
		if (threadIdx.x == 0)
			logprobs[blockIdx.x] = row.logits[id] - row.max - logf(sum);
	}
}

ft_status
ft_cuda_sample(ft_stream *s, ft_mat logits, const ft_sample *params, int32_t *ids, float *logprobs)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_type("sample", "logits", logits, FT_F32));
	if (logits.cols < 1 || logits.cols > INT32_MAX)
		return ft_fail(FT_INVALID, "sample: logits have %lld columns", (long long) logits.cols);
	for (int64_t first = 0; first < logits.rows; first += MAX_ROWS)
	{
		int64_t n = ft_min64(MAX_ROWS, logits.rows - first);
		sample_batch batch = {};

		memcpy(batch.params, params + first, (size_t) n * sizeof *params);
		FT_LAUNCH(sample_rows, (unsigned) n, THREADS, 0, s->stream,
				  view_of<const float>(ft_mat_rows(logits, first, n)), batch, ids + first,
				  logprobs != NULL ? logprobs + first : NULL);
		FT_TRY(ft_cuda_launched("sample"));
	}
	return FT_OK;
}
