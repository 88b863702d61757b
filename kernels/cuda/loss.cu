/*
 * loss.cu: cross-entropy and its gradient, in place, one block a row of logits.
 */
#include "intrinsics.cuh"

#define THREADS 512

static __global__ void
cross_entropy_row(view<float> logits, const int32_t *targets, const float *weights,
				  float grad_scale, float *loss, float *correct)
{
	__shared__ ranked best_shared[THREADS / FT_WARP];
	__shared__ double sum_shared[THREADS / FT_WARP];
	int64_t i = blockIdx.x;
	float *row = logits.row(i);
	int target = targets[i];
	bool known = target >= 0 && target < logits.cols;
	ranked best = {-INFINITY, 0};
	float at_target = known ? row[target] : 0.0f;
	double sum = 0;
	double factor;
	float scaled;

	for (int j = threadIdx.x; j < logits.cols; j += THREADS)
		best = better(best, ranked{row[j], j});
	best = block_best(best, best_shared);
	/* A NaN among the logits is in the sum, and so in the loss and the gradient. */
	for (int j = threadIdx.x; j < logits.cols; j += THREADS)
		sum += expf(row[j] - best.value);
	sum = block_sum(sum, sum_shared);
	if (threadIdx.x == 0)
	{
		/* A target outside of the vocabulary is no target: no loss, no gradient. */
		loss[i] = known ? (float) (log(sum) + best.value - at_target) : 0.0f;
		correct[i] = known && best.index == target ? 1.0f : 0.0f;
	}
	if (grad_scale == 0.0f)
		return;
	factor = known ? (double) weights[i] * grad_scale : 0.0;
	scaled = (float) (factor / sum);
	for (int j = threadIdx.x; j < logits.cols; j += THREADS)
	{
		float e = expf(row[j] - best.value);

		/* p − 1 has no digits left where p is near 1. */
		if (j == target)
			row[j] = factor == 0.0 ? 0.0f : (float) (factor * ((e - sum) / sum));
		else
			row[j] = factor == 0.0 ? 0.0f : scaled * e;
	}
}

ft_status
ft_cuda_cross_entropy(ft_stream *s, ft_mat logits, const int32_t *targets, const float *weights,
					  float grad_scale, float *loss, float *correct)
{
	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_type("cross_entropy", "logits", logits, FT_F32));
	if (logits.rows == 0)
		return FT_OK;
	FT_LAUNCH(cross_entropy_row, (unsigned) logits.rows, THREADS, 0, s->stream,
			  view_of<float>(logits), targets, weights, grad_scale, loss, correct);
	return ft_cuda_launched("cross_entropy");
}
