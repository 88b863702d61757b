/*
 * sample.c: drawing tokens from rows of logits.
 *
 * The order of the filters is that of transformers: temperature, top_k, top_p,
 * min_p.  Candidates stand in a heap by logit (lower id first on a tie), from
 * which as many are popped as the filters keep: no full sort of a vocabulary
 * for a nucleus of a few tokens.
 */
#include "cpu.h"

#include <math.h>

typedef struct candidate
{
	float logit;
	int32_t id;
} candidate;

typedef struct sample_job
{
	ft_stream *s;
	ft_mat logits;
	const ft_sample *params;
	int32_t *ids;
	float *logprobs;
} sample_job;

/* Does a come before b? */
static bool
before(candidate a, candidate b)
{
	return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void
sift_down(candidate *heap, int64_t n, int64_t i)
{
	candidate moving = heap[i];

	for (;;)
	{
		int64_t child = 2 * i + 1;

		if (child >= n)
			break;
		if (child + 1 < n && before(heap[child + 1], heap[child]))
			child++;
		if (!before(heap[child], moving))
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = moving;
}

/* Move the first of a heap of n behind its end. */
static candidate
pop(candidate *heap, int64_t n)
{
	candidate first = heap[0];

	heap[0] = heap[n - 1];
	heap[n - 1] = first;
	sift_down(heap, n - 1, 0);
	return first;
}

/* The number of candidates, in falling order at the end of heap[0 .. n), that top_k and top_p keep.
 */
static int64_t
keep_best(candidate *heap, int64_t n, const ft_sample *p, float max)
{
	int64_t limit = p->top_k > 0 && p->top_k < n ? p->top_k : n;
	double inverse = 1.0 / p->temperature;
	double total = 0;
	double sum = 0;
	int64_t kept = 0;

	for (int64_t i = n / 2 - 1; i >= 0; i--)
		sift_down(heap, n, i);
	if (limit < n)
	{
		/* the mass that top_p is a share of is that of the k best */
		for (; kept < limit; kept++)
			total += exp((pop(heap, n - kept).logit - max) * inverse);
		if (p->top_p >= 1)
			return kept;
		for (int64_t i = 0; i < limit; i++)
		{
			sum += exp((heap[n - 1 - i].logit - max) * inverse);
			if (sum >= p->top_p * total)
				return i + 1;
		}
		return limit;
	}
	for (int64_t i = 0; i < n; i++)
		total += exp((heap[i].logit - max) * inverse);
	do
		sum += exp((pop(heap, n - kept++).logit - max) * inverse);
	while (kept < n && sum < p->top_p * total);
	return kept;
}

/* Draw from list[0 .. n) by weights exp((logit − max) / temperature). */
static int32_t
draw(const candidate *list, int64_t n, const ft_sample *p, float max)
{
	double inverse = 1.0 / p->temperature;
	double total = 0;
	double sum = 0;

	for (int64_t i = 0; i < n; i++)
		total += exp((list[i].logit - max) * inverse);
	for (int64_t i = 0; i < n; i++)
	{
		sum += exp((list[i].logit - max) * inverse);
		if (sum > p->uniform * total)
			return list[i].id;
	}
	return list[n - 1].id;
}

static int32_t
sample_row(const float *row, int64_t n, int64_t best, const ft_sample *p, candidate *list)
{
	float max = row[best];
	float floor = -INFINITY;
	int64_t count = 0;
	bool sorted = (p->top_k > 0 && p->top_k < n) || p->top_p < 1;

	/* p_i >= min_p · p_max, in logits */
	if (p->min_p > 0)
		floor = max + p->temperature * logf(p->min_p);
	for (int64_t i = 0; i < n; i++)
		if (row[i] > -INFINITY && (sorted || row[i] >= floor))
			list[count++] = (candidate){row[i], (int32_t) i};
	if (count == 0)
		return (int32_t) best;
	if (sorted)
	{
		int64_t kept = keep_best(list, count, p, max);

		/* they stand at the end in rising order: turn them round, then cut the lowest off */
		list += count - kept;
		count = kept;
		for (int64_t i = 0; i < kept / 2; i++)
		{
			candidate swap = list[i];

			list[i] = list[kept - 1 - i];
			list[kept - 1 - i] = swap;
		}
		while (count > 1 && list[count - 1].logit < floor)
			count--;
	}
	return draw(list, count, p, max);
}

static void
sample_task(void *context, int worker, int64_t begin, int64_t end)
{
	sample_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t n = job->logits.cols;

	for (int64_t i = begin; i < end; i++)
	{
		const float *row = ft_at(job->logits, i, 0);
		int64_t best = kernels->argmax(row, n);
		const ft_sample *p = &job->params[i];

		job->ids[i] = p->temperature > 0
						  ? sample_row(row, n, best, p, ft_worker_scratch(job->s, worker))
						  : (int32_t) best;
		if (job->logprobs != NULL)
			job->logprobs[i] =
				(float) (row[job->ids[i]] - row[best] - log(kernels->sum_exp(row, row[best], n)));
	}
}

ft_status
ft_cpu_sample(ft_stream *s, ft_mat logits, const ft_sample *params, int32_t *ids, float *logprobs)
{
	sample_job job = {.s = s, .logits = logits, .params = params, .ids = ids, .logprobs = logprobs};

	FT_TRY(ft_check_f32("sample", logits));
	FT_TRY(ft_check_shape("sample", "logits", logits, logits.rows, logits.cols));
	if (logits.cols < 1)
		return ft_fail(FT_INVALID, "sample: logits have no columns");
	FT_TRY(ft_worker_scratch_reserve(s, (size_t) logits.cols * sizeof(candidate)));
	ft_run(s, logits.rows, 2 * logits.cols, sample_task, &job);
	return FT_OK;
}
