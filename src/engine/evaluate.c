/*
 * evaluate.c: the program `evaluate JOBDIR`: how well a base, or an adapter
 * over it, knows the rows of train.jsonl (README.md).
 *
 * Rows become tokens and loss by training's own code, so the figures are those
 * that a job's evaluation of the same rows gives.
 */
#include "evaluator.h"
#include "programs.h"
#include "setup.h"

#include <math.h>

typedef struct evaluation
{
	ft_setup setup;
	ft_adapter *adapter;
	ft_transformer *transformer;
	ft_microbatch batch;
	ft_evaluation result;
} evaluation;

/* The adapter, or for a bare base the smallest one, which as long as its B is zero changes nothing:
 * the transformer knows no other way to run. */
static ft_status
open_adapter(evaluation *e)
{
	ft_setup *s = &e->setup;

	if (s->job->adapter != NULL)
		return ft_peft_load(s->model, s->job->adapter, &e->adapter);
	return ft_adapter_create(s->model, 1, 1.0f, false, 1u << FT_V_PROJ, &e->adapter);
}

static ft_status
prepare(evaluation *e)
{
	ft_setup *s = &e->setup;
	int64_t capacity;

	FT_TRY(ft_setup_lock(s));
	FT_TRY(ft_setup_open_base(s));
	if (s->job->options.dpo)
		return ft_fail(FT_UNSUPPORTED, "preference pairs cannot be evaluated, only answers can");
	s->job->options.validation_fraction = 0; /* every row is judged */
	FT_TRY(ft_setup_open_dataset(s));
	FT_TRY(ft_setup_open_device(s));
	ft_events_long_call(s->events, FT_LONG_CALL_SECONDS);
	FT_TRY(open_adapter(e));
	FT_TRY(ft_evaluation_choose_capacity(s->model, e->adapter, s->dataset, &capacity));
	FT_TRY(ft_transformer_create_kept(s->model, e->adapter, capacity, 0, &e->transformer));
	e->transformer->tick = ft_setup_tick;
	e->transformer->tick_context = s;
	FT_TRY(ft_microbatch_create(capacity, &e->batch));
	return ft_setup_tick(s);
}

static ft_status
send_evaluated(evaluation *e)
{
	const ft_evaluation *r = &e->result;
	double loss = ft_evaluation_loss(r);

	if (!isfinite(loss))
		return ft_fail(FT_NON_FINITE, "loss is %g", loss);
	return ft_events_send(e->setup.events, "evaluated",
						  json_pack("{s:f, s:f, s:I, s:I}", "loss", loss, "token_accuracy",
									ft_evaluation_accuracy(r), "exact", (json_int_t) r->exact,
									"trained_tokens", (json_int_t) r->sums.trained));
}

static ft_status
run(evaluation *e)
{
	ft_setup *s = &e->setup;

	FT_TRY(prepare(e));
	FT_TRY(ft_setup_send_started(s, 0));
	FT_TRY(ft_setup_send_dataset(s));
	FT_TRY(ft_evaluate(e->transformer, s->dataset, s->dataset->train, s->dataset->n_train,
					   e->transformer->capacity, &e->batch, &e->result));
	return send_evaluated(e);
}

int
ft_evaluate_main(int argc, char **argv)
{
	evaluation e = {0};
	ft_status status;
	int code;

	if (!ft_setup_arguments(&e.setup, argc, argv))
		return FT_EXIT_USAGE;
	status = ft_setup_start(&e.setup);
	if (status == FT_OK)
		status = run(&e);
	code = ft_setup_end(&e.setup, status);
	ft_transformer_free(e.transformer);
	ft_microbatch_free(&e.batch);
	ft_adapter_free(e.adapter);
	ft_setup_close(&e.setup);
	return code;
}
