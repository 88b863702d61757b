/*
 * test_golden_smollm2.c: the real model says what transformers says.
 *
 * The files test/golden/smollm2_*.json were made by test/golden/make_smollm2.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "chat_template.h"
#include "serving.h"

#define MODEL "cache/SmolLM2-135M-Instruct.Q4_1.gguf"
#define MAX_TOKENS 1024

/* The plain build judges the numbers; what sanitizers look for shows in a part of them. */
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifdef SANITIZED
#define PROMPTS 1
#define TOKENS 10
#define ROWS 2
#define FAST_ROWS 2
/* of fast numerics: few tokens, whose differences do not cancel */
#define MAX_DIVERGENCE 2e-2
#define MAX_NLL 1e-1
#else
#define PROMPTS 5
#define TOKENS 200
#define ROWS 30
#define FAST_ROWS 40
#define MAX_DIVERGENCE 5e-3
#define MAX_NLL 1e-2
#endif

#define MAX_RELATIVE 1e-4 /* of a logit, by the root mean square of its row */

static serving model;
static json_t *greedy;
static json_t *logits;

static int
set_up(void **state)
{
	(void) state;
	greedy = json_load_file("test/golden/smollm2_greedy.json", 0, NULL);
	logits = json_load_file("test/golden/smollm2_logits.json", 0, NULL);
	if (!greedy || !logits)
		return -1;
	serving_open(&model, MODEL, FT_NUMERICS_REFERENCE, 2, MAX_TOKENS);
	return 0;
}

static int
tear_down(void **state)
{
	(void) state;
	serving_close(&model);
	json_decref(greedy);
	json_decref(logits);
	return 0;
}

static int
ids_of(const json_t *list, int32_t *ids)
{
	int n = (int) json_array_size(list);

	assert_in_range(n, 1, MAX_TOKENS);
	for (int i = 0; i < n; i++)
		ids[i] = (int32_t) json_integer_value(json_array_get(list, (size_t) i));
	return n;
}

static void
test_file_is_the_one_of_the_fixture(void **state)
{
	char hex[65];

	(void) state;
	assert_int_equal(ft_model_file_digest(model.file, hex), FT_OK);
	assert_string_equal(hex, json_string_value(json_object_get(greedy, "sha256")));
}

static void
test_prompts_have_the_reference_tokens(void **state)
{
	const ft_chat_template *chat;
	ft_tokenizer *tokenizer;
	size_t i;
	json_t *prompt;

	(void) state;
	assert_int_equal(ft_tokenizer_create(ft_model_file_vocabulary(model.file), &tokenizer), FT_OK);
	assert_int_equal(ft_chat_template_find(NULL, ft_model_file_template(model.file), &chat), FT_OK);
	json_array_foreach (json_object_get(greedy, "prompts"), i, prompt)
	{
		const json_t *text = json_object_get(prompt, "prompt");
		ft_message message = {"user", json_string_value(text), json_string_length(text), 1};
		int32_t expected[MAX_TOKENS];
		int n = ids_of(json_object_get(prompt, "prompt_ids"), expected);
		ft_ids ids = {0};

		assert_int_equal(ft_chat_encode(chat, tokenizer, &message, 1, true, &ids, NULL), FT_OK);
		assert_int_equal(ids.length, n);
		assert_memory_equal(ids.data, expected, (size_t) n * sizeof(int32_t));
		ft_ids_free(&ids);
	}
	ft_tokenizer_free(tokenizer);
}

static void
test_greedy_tokens(void **state)
{
	const json_t *prompts = json_object_get(greedy, "prompts");

	(void) state;
	assert_int_equal(json_array_size(prompts), 5);
	for (size_t i = 0; i < PROMPTS; i++)
	{
		const json_t *prompt = json_array_get(prompts, i);
		int32_t ids[MAX_TOKENS], expected[MAX_TOKENS], tokens[MAX_TOKENS];
		int n_prompt = ids_of(json_object_get(prompt, "prompt_ids"), ids);
		int n = ids_of(json_object_get(prompt, "tokens"), expected);

		assert_int_equal(n, 200);
		serving_greedy(&model, NULL, ids, n_prompt, TOKENS, tokens);
		for (int t = 0; t < TOKENS; t++)
			if (tokens[t] != expected[t])
				fail_msg("prompt %zu: token %d is %d, the reference has %d", i, t, tokens[t],
						 expected[t]);
	}
}

/* The largest difference between listed logits and ours. */
static double
largest_difference(const json_t *row, const char *ids, const char *values, const float *ours)
{
	double largest = 0;
	size_t i;
	json_t *id;

	json_array_foreach (json_object_get(row, ids), i, id)
	{
		double expected = json_number_value(json_array_get(json_object_get(row, values), i));
		double difference = fabs(expected - (double) ours[json_integer_value(id)]);

		if (!(difference <= largest))
			largest = difference;
	}
	return largest;
}

static void
test_logits(void **state)
{
	int vocab = model.model->config.vocab;
	float *ours = malloc((size_t) vocab * sizeof *ours);
	const json_t *rows = json_object_get(logits, "rows");
	double worst = 0;

	(void) state;
	assert_non_null(ours);
	assert_int_equal(json_array_size(rows), 30);
	for (size_t i = 0; i < ROWS; i++)
	{
		const json_t *row = json_array_get(rows, i);
		size_t index = (size_t) json_integer_value(json_object_get(row, "prompt"));
		int position = (int) json_integer_value(json_object_get(row, "position"));
		double rms = json_number_value(json_object_get(row, "rms"));
		const json_t *prompt = json_array_get(json_object_get(greedy, "prompts"), index);
		int32_t ids[MAX_TOKENS];
		int n = ids_of(json_object_get(prompt, "prompt_ids"), ids);
		double squares = 0, sum = 0, top, every;

		ids_of(json_object_get(prompt, "tokens"), ids + n);
		serving_feed(&model, NULL, ids, position + 1, position + 1, ours);
		for (int k = 0; k < vocab; k++)
		{
			squares += (double) ours[k] * ours[k];
			sum += ours[k];
		}
		top = largest_difference(row, "top_ids", "top", ours) / rms;
		every = largest_difference(row, "every_ids", "every", ours) / rms;
		worst = fmax(worst, fmax(top, every));
		assert_true(top <= MAX_RELATIVE);
		assert_true(every <= MAX_RELATIVE);
		assert_true(fabs(sqrt(squares / vocab) / rms - 1) <= MAX_RELATIVE);
		assert_true(fabs(sum - json_number_value(json_object_get(row, "sum"))) / vocab / rms <=
					MAX_RELATIVE);
	}
	print_message("largest difference of a logit, relative: %.2g\n", worst);
	free(ours);
}

/* --- the other numerics --- */

/* log Σ exp */
static double
log_sum(const float *x, int n)
{
	double largest = x[0], sum = 0;

	for (int i = 1; i < n; i++)
		largest = fmax(largest, x[i]);
	for (int i = 0; i < n; i++)
		sum += exp(x[i] - largest);
	return largest + log(sum);
}

/* Σ p log(p / q) of the distributions after two rows of logits. */
static double
divergence(const float *reference, const float *other, int n)
{
	double p_sum = log_sum(reference, n), q_sum = log_sum(other, n), kl = 0;

	for (int i = 0; i < n; i++)
	{
		double p = reference[i] - p_sum;

		kl += exp(p) * (p - (other[i] - q_sum));
	}
	return kl;
}

/* Fast numerics may round activations to 8 bits where the weights are quantised, as others do with
 * such files: the next token's distribution stays near, and so does what a text is thought of. */
static void
test_fast_numerics(void **state)
{
	int vocab = model.model->config.vocab;
	double kl = 0, nll = 0, fast_nll = 0;
	int rows = 0;
	serving fast;

	(void) state;
	serving_open(&fast, MODEL, FT_NUMERICS_FAST, 2, MAX_TOKENS);
	for (size_t i = 0; i < PROMPTS; i++)
	{
		const json_t *prompt = json_array_get(json_object_get(greedy, "prompts"), i);
		int32_t ids[MAX_TOKENS];
		int n = ids_of(json_object_get(prompt, "prompt_ids"), ids);
		float *reference, *other;

		n += ids_of(json_object_get(prompt, "tokens"), ids + n);
		n = n < 4 * FAST_ROWS ? n : 4 * FAST_ROWS;
		reference = malloc((size_t) n * (size_t) vocab * sizeof *reference);
		other = malloc((size_t) n * (size_t) vocab * sizeof *other);
		assert_non_null(reference);
		assert_non_null(other);
		serving_feed(&model, NULL, ids, n, 1, reference);
		serving_feed(&fast, NULL, ids, n, 1, other);
		for (int t = 0; t + 1 < n; t++, rows++)
		{
			const float *a = reference + (size_t) t * (size_t) vocab;
			const float *b = other + (size_t) t * (size_t) vocab;

			kl += divergence(a, b, vocab);
			nll += log_sum(a, vocab) - a[ids[t + 1]];
			fast_nll += log_sum(b, vocab) - b[ids[t + 1]];
		}
		free(reference);
		free(other);
	}
	print_message("fast numerics: mean divergence %.2g, perplexity %+.3f %%\n", kl / rows,
				  100 * (exp((fast_nll - nll) / rows) - 1));
	assert_true(kl / rows < MAX_DIVERGENCE);
	assert_true(fabs(fast_nll - nll) / rows < MAX_NLL);
	serving_close(&fast);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_file_is_the_one_of_the_fixture),
		cmocka_unit_test(test_prompts_have_the_reference_tokens),
		cmocka_unit_test(test_greedy_tokens),
		cmocka_unit_test(test_logits),
		cmocka_unit_test(test_fast_numerics),
	};

	if (access(MODEL, R_OK) != 0)
	{
		printf("skip: %s is not there\n", MODEL);
		return 0;
	}
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
