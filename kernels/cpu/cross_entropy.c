/*
 * cross_entropy.c: cross-entropy of rows of logits, with the gradient formed in place.
 */
#include "cpu.h"

#include <math.h>
#include <string.h>

typedef struct loss_job
{
	ft_stream *s;
	ft_mat logits;
	const int32_t *targets;
	const float *weights;
	float grad_scale;
	float *loss;
	float *correct;
} loss_job;

static void
loss_task(void *context, int worker, int64_t begin, int64_t end)
{
	loss_job *job = context;
	const ft_kernels *kernels = job->s->device->kernels;
	int64_t n = job->logits.cols;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
	{
		float *row = ft_at(job->logits, i, 0);
		int32_t target = job->targets[i];
		bool known = target >= 0 && target < n;
		float factor = known ? job->grad_scale * job->weights[i] : 0;
		int64_t best = kernels->argmax(row, n);
		float max = row[best];
		double sum = kernels->sum_exp(row, max, 1, n);
		double at_target;

		/* a target outside of the vocabulary is no target: no loss, no gradient */
		job->loss[i] = known ? (float) (log(sum) + max - row[target]) : 0;
		job->correct[i] = known && best == target ? 1 : 0;
		if (job->grad_scale == 0)
			continue;
		if (factor == 0)
		{
			memset(row, 0, (size_t) n * sizeof *row);
			continue;
		}
		/* softmax − 1 loses digits where the target is nearly certain, so in f64 */
		at_target = factor * (exp((double) row[target] - max) / sum - 1);
		kernels->exp_scale(row, max, (float) (factor / sum), n);
		row[target] = (float) at_target;
	}
}

ft_status
ft_cpu_cross_entropy(ft_stream *s, ft_mat logits, const int32_t *targets, const float *weights,
					 float grad_scale, float *loss, float *correct)
{
	loss_job job = {.s = s,
					.logits = logits,
					.targets = targets,
					.weights = weights,
					.grad_scale = grad_scale,
					.loss = loss,
					.correct = correct};

	FT_TRY(ft_check_f32("cross_entropy", logits));
	FT_TRY(ft_check_shape("cross_entropy", "logits", logits, logits.rows, logits.cols));
	if (logits.cols < 1)
		return ft_fail(FT_INVALID, "cross_entropy: logits have no columns");
	ft_run(s, logits.rows, 8 * logits.cols, loss_task, &job);
	return FT_OK;
}
