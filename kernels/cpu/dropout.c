/*
 * dropout.c: dropout, whose mask is made anew by whoever needs it.
 */
#include "cpu.h"

typedef struct dropout_job
{
	ft_stream *s;
	ft_mat y;
	ft_mat x;
	const ft_dropout *settings;
	bool add;
	uint32_t threshold;
	float scale;
} dropout_job;

static void
dropout_task(void *context, int worker, int64_t begin, int64_t end)
{
	dropout_job *job = context;
	const ft_dropout *d = job->settings;

	(void) worker;
	for (int64_t i = begin; i < end; i++)
	{
		uint32_t place[3] = {(uint32_t) d->positions[i], (uint32_t) d->documents[i], d->slot};

		job->s->device->kernels->dropout(ft_at(job->y, i, 0), job->y.dtype == FT_BF16,
										 ft_at(job->x, i, 0), job->x.dtype == FT_BF16, job->add,
										 place, d->seed, job->threshold, job->scale, job->x.cols);
	}
}

ft_status
ft_cpu_dropout(ft_stream *s, ft_mat y, ft_mat x, const ft_dropout *settings, float beta)
{
	dropout_job job = {.s = s, .y = y, .x = x, .settings = settings, .add = beta != 0};

	FT_TRY(ft_check_float("dropout", x));
	FT_TRY(ft_check_float("dropout", y));
	if (job.add)
		FT_TRY(ft_check_f32("dropout", y));
	FT_TRY(ft_check_shape("dropout", "output", y, x.rows, x.cols));
	job.threshold = ft_dropout_threshold(settings->p);
	job.scale = (float) (1 / (1 - settings->p));
	ft_run(s, x.rows, 16 * x.cols, dropout_task, &job);
	return FT_OK;
}
