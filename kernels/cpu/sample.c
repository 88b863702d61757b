/*
 * sample.c: drawing tokens from rows of logits.
 *
 * The order of the filters is that of transformers: temperature, top_k, top_p,
 * min_p.  What top_k and top_p keep is nearly always a few hundred tokens out
 * of a large vocabulary, so only the logits above a floor are looked at, in a
 * heap from which as many are taken as the filters keep; the floor is lowered
 * where that was too few.  The result is that of a full sort.
 */
#include "cpu.h"

#include <float.h>
#include <math.h>

/* The first floor, in units of the temperature below the largest logit. */
#define FIRST_DEPTH 6.0f
/* Logits whose weights are summed at a time when nothing is filtered. */
#define RUN 1024

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

/* A row to draw from. */
typedef struct sample_row
{
	const ft_kernels *kernels;
	const ft_sample *p;
	const float *logits;
	int64_t n;
	float max;
	int32_t best;
	candidate *list; /* room for n */
	int32_t *index;  /* room for n */
} sample_row;

/* Unnormalised probability. */
static double
weight(const sample_row *r, float logit)
{
	return exp(((double) logit - r->max) / r->p->temperature);
}

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

/* Make a heap of the logits >= floor in r->list; returns their number. */
static int64_t
collect(const sample_row *r, float floor)
{
	int64_t n = r->kernels->find_above(r->index, r->logits, floor, r->n, r->n);

	for (int64_t i = 0; i < n; i++)
		r->list[i] = (candidate){r->logits[r->index[i]], r->index[i]};
	for (int64_t i = n / 2 - 1; i >= 0; i--)
		sift_down(r->list, n, i);
	return n;
}

/* Of a heap of n, take what top_k and top_p keep: *kept candidates, in rising order, at the end of
 * the list.  False when the heap was too short to tell and is not all there is. */
static bool
keep_best(const sample_row *r, int64_t n, bool all, int64_t *kept)
{
	int64_t k = r->p->top_k > 0 && r->p->top_k < r->n ? r->p->top_k : r->n;
	double total = 0;
	double sum = 0;
	int64_t taken = 0;

	if (k < r->n)
	{
		if (n < k && !all)
			return false;
		/* the mass that top_p is a share of is that of the k best */
		for (k = ft_min(k, n); taken < k; taken++)
			total += weight(r, pop(r->list, n - taken).logit);
		for (*kept = 1; *kept <= k; ++*kept)
		{
			sum += weight(r, r->list[n - *kept].logit);
			if (sum >= r->p->top_p * total && r->p->top_p < 1)
				return true;
		}
		*kept = k;
		return true;
	}
	total = r->kernels->sum_exp(r->logits, r->max, 1 / r->p->temperature, r->n);
	while (taken < n && (taken == 0 || sum < r->p->top_p * total))
		sum += weight(r, pop(r->list, n - taken++).logit);
	*kept = taken;
	return all || sum >= r->p->top_p * total;
}

/* Draw from list[0 .. n) by weight. */
static int32_t
draw(const sample_row *r, const candidate *list, int64_t n)
{
	double total = 0;
	double sum = 0;

	for (int64_t i = 0; i < n; i++)
		total += weight(r, list[i].logit);
	for (int64_t i = 0; i < n; i++)
	{
		sum += weight(r, list[i].logit);
		if (sum > r->p->uniform * total)
			return list[i].id;
	}
	return list[n - 1].id;
}

/* With top_k or top_p: draw from the best, in falling order. */
static int32_t
draw_best(const sample_row *r, float floor)
{
	float depth = FIRST_DEPTH * r->p->temperature;
	candidate *first;
	int64_t kept;
	int64_t n;
	bool all;

	do
	{
		/* logits of minus infinity are forbidden, and never among the candidates */
		all = depth > 1e6f;
		n = collect(r, all ? -FLT_MAX : r->max - depth);
		depth *= 4;
	} while (!keep_best(r, n, all, &kept));

	first = r->list + n - kept;
	for (int64_t i = 0; i < kept / 2; i++)
	{
		candidate swap = first[i];

		first[i] = first[kept - 1 - i];
		first[kept - 1 - i] = swap;
	}
	while (kept > 1 && first[kept - 1].logit < floor)
		kept--;
	return draw(r, first, kept);
}

/* With min_p alone: draw from the logits above the floor, in the order of their ids. */
static int32_t
draw_above(const sample_row *r, float floor)
{
	int64_t n = r->kernels->find_above(r->index, r->logits, floor, r->n, r->n);

	for (int64_t i = 0; i < n; i++)
		r->list[i] = (candidate){r->logits[r->index[i]], r->index[i]};
	return n > 0 ? draw(r, r->list, n) : r->best;
}

/* Without filters: find the run of ids that the draw falls into, then the id in it. */
static int32_t
draw_any(const sample_row *r)
{
	float inverse = 1 / r->p->temperature;
	double total = r->kernels->sum_exp(r->logits, r->max, inverse, r->n);
	double wanted = r->p->uniform * total;
	double sum = 0;
	int32_t last = r->best;

	for (int64_t i = 0; i < r->n; i += RUN)
	{
		int64_t end = ft_min(i + RUN, r->n);
		double run = r->kernels->sum_exp(r->logits + i, r->max, inverse, end - i);

		if (sum + run <= wanted)
		{
			sum += run;
			continue;
		}
		for (int64_t j = i; j < end; j++)
		{
			double w = weight(r, r->logits[j]);

			if (w > 0)
				last = (int32_t) j;
			sum += w;
			if (sum > wanted)
				return last;
		}
	}
	return last;
}

static int32_t
sample_one(const sample_row *r)
{
	const ft_sample *p = r->p;
	/* p_i >= min_p · p_max, in logits */
	float floor = p->min_p > 0 ? r->max + p->temperature * logf(p->min_p) : -INFINITY;

	if (!(p->temperature > 0) || !(r->max > -FLT_MAX))
		return r->best;
	if ((p->top_k > 0 && p->top_k < r->n) || p->top_p < 1)
		return draw_best(r, floor);
	return p->min_p > 0 ? draw_above(r, floor) : draw_any(r);
}

static void
sample_task(void *context, int worker, int64_t begin, int64_t end)
{
	sample_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t n = job->logits.cols;

	for (int64_t i = begin; i < end; i++)
	{
		sample_row r = {.kernels = kernels,
						.p = &job->params[i],
						.logits = ft_at(job->logits, i, 0),
						.n = n,
						.list = ft_worker_scratch(job->s, worker)};

		r.index = (int32_t *) (r.list + n);
		r.best = (int32_t) kernels->argmax(r.logits, n);
		r.max = r.logits[r.best];
		job->ids[i] = sample_one(&r);
		if (job->logprobs != NULL)
			job->logprobs[i] = (float) (r.logits[job->ids[i]] - r.max -
										log(kernels->sum_exp(r.logits, r.max, 1, n)));
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
	FT_TRY(
		ft_worker_scratch_reserve(s, (size_t) logits.cols * (sizeof(candidate) + sizeof(int32_t))));
	ft_run(s, logits.rows, logits.cols, sample_task, &job);
	return FT_OK;
}
