/*
 * test_k_quants.c: a model in a mixture of K-quants answers as the
 * same model with its weights dequantised.
 */
#include "test_ops_common.h"

#include "gguf_build.h"
#include "serving.h"
#include "test_ops_quant.h"

#include <unistd.h>

enum
{
	HIDDEN = 256,
	FFN = 512,
	KV = 64,
	VOCABULARY = 40,
	TOKENS = 30
};

/* GGUF's number of a type. */
static uint32_t
gguf_type(ft_dtype dtype)
{
	uint32_t type = 0;

	while (ft_gguf_tensor_dtype(type) != dtype)
		type++;
	return type;
}

/* The same matrix for both files. */
static void
add_matrix(gguf_build *quantised, gguf_build *plain, const char *name, ft_dtype dtype, int rows,
		   int cols)
{
	stored m = stored_random(dtype, rows, cols);
	uint64_t dims[2] = {(uint64_t) cols, (uint64_t) rows};
	size_t n = (size_t) rows * (size_t) cols;
	float *values = malloc(n * sizeof *values);

	for (size_t i = 0; i < n; i++)
		values[i] = (float) m.value[i];
	gguf_build_tensor(quantised, name, gguf_type(dtype), dims, 2, m.mat.data,
					  (size_t) (rows * ft_row_bytes(dtype, cols)));
	gguf_build_tensor(plain, name, gguf_type(FT_F32), dims, 2, values, n * sizeof *values);
	free(values);
	stored_free(&m);
}

static void
add_norm(gguf_build *quantised, gguf_build *plain, const char *name)
{
	uint64_t dims[1] = {HIDDEN};
	float values[HIDDEN];

	for (int i = 0; i < HIDDEN; i++)
		values[i] = (float) (1 + 0.3 * random_normal());
	gguf_build_tensor(quantised, name, gguf_type(FT_F32), dims, 1, values, sizeof values);
	gguf_build_tensor(plain, name, gguf_type(FT_F32), dims, 1, values, sizeof values);
}

/* As llama.cpp mixes them: more bits for values and for the way down. */
static void
add_layer(gguf_build *quantised, gguf_build *plain, int layer)
{
	const struct
	{
		const char *name;
		ft_dtype dtype;
		int rows;
		int cols;
	} matrices[] = {
		{"attn_q", FT_Q2_K, HIDDEN, HIDDEN},
		{"attn_k", layer == 0 ? FT_Q3_K : FT_Q4_K, KV, HIDDEN},
		{"attn_v", layer == 0 ? FT_Q6_K : FT_Q8_0, KV, HIDDEN},
		{"attn_output", FT_Q4_K, HIDDEN, HIDDEN},
		{"ffn_gate", FT_Q3_K, FFN, HIDDEN},
		{"ffn_up", layer == 0 ? FT_Q4_K : FT_Q2_K, FFN, HIDDEN},
		{"ffn_down", FT_Q5_K, HIDDEN, FFN},
	};
	char name[64];

	snprintf(name, sizeof name, "blk.%d.attn_norm.weight", layer);
	add_norm(quantised, plain, name);
	snprintf(name, sizeof name, "blk.%d.ffn_norm.weight", layer);
	add_norm(quantised, plain, name);
	for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++)
	{
		snprintf(name, sizeof name, "blk.%d.%s.weight", layer, matrices[i].name);
		add_matrix(quantised, plain, name, matrices[i].dtype, matrices[i].rows, matrices[i].cols);
	}
}

static void
build_models(gguf_build *quantised, gguf_build *plain)
{
	add_matrix(quantised, plain, "token_embd.weight", FT_Q4_K, VOCABULARY, HIDDEN);
	add_matrix(quantised, plain, "output.weight", FT_Q6_K, VOCABULARY, HIDDEN);
	add_norm(quantised, plain, "output_norm.weight");
	add_layer(quantised, plain, 0);
	add_layer(quantised, plain, 1);
	for (int i = 0; i < 2; i++)
	{
		gguf_build *b = i == 0 ? quantised : plain;

		gguf_build_u32(b, "llama.embedding_length", HIDDEN);
		gguf_build_u32(b, "llama.feed_forward_length", FFN);
		gguf_build_u32(b, "llama.attention.head_count", 8);
		gguf_build_u32(b, "llama.attention.head_count_kv", 2);
		gguf_build_llama(b);
	}
}

/* Logits after a text, fed whole and a token at a time. */
static void
answer(gguf_build *b, ft_numerics numerics, float *logits, float *by_token)
{
	ft_text file = {0};
	int32_t tokens[TOKENS];
	char path[64];
	serving s;
	int fd;

	for (int i = 0; i < TOKENS; i++)
		tokens[i] = i * 7 % VOCABULARY;
	gguf_build_finish(b, &file);
	fd = gguf_build_open(file.data, file.length, path);
	serving_open(&s, path, numerics, 2, 64);
	serving_feed(&s, NULL, tokens, TOKENS, TOKENS, logits);
	serving_feed(&s, NULL, tokens, TOKENS, 1, by_token);
	serving_close(&s);
	close(fd);
	ft_text_free(&file);
}

static void
check_numerics(ft_numerics numerics, double limit)
{
	static float got[VOCABULARY], expected[VOCABULARY];
	static float got_by_token[TOKENS * VOCABULARY], by_token[TOKENS * VOCABULARY];
	gguf_build quantised = {0};
	gguf_build plain = {0};
	double error = 0;
	double norm = 0;

	random_state = 1;
	build_models(&quantised, &plain);
	answer(&quantised, numerics, got, got_by_token);
	answer(&plain, numerics, expected, by_token);
	for (int i = 0; i < VOCABULARY; i++)
	{
		double difference = (double) got[i] - expected[i];

		assert_true(isfinite(got[i]));
		error += difference * difference;
		norm += (double) expected[i] * expected[i];
	}
	if (!(norm > 0 && error / norm <= limit))
		fail_msg("normalised error %.3g, at most %.3g expected", error / norm, limit);
	/* row-fixed: a token alone as in company */
	assert_memory_equal(got, got_by_token + (TOKENS - 1) * VOCABULARY, sizeof got);
}

static void
test_reference(void **state)
{
	(void) state;
	check_numerics(FT_NUMERICS_REFERENCE, 1e-10);
}

static void
test_fast(void **state)
{
	(void) state;
	/* activations of 8 bits, and weights without the structure that makes up for it */
	check_numerics(FT_NUMERICS_FAST, 5e-4);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reference),
		cmocka_unit_test(test_fast),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
