/*
 * test_gguf_families.c: what GGUF files of each architecture must have, and what
 * of them would change the arithmetic and is refused by name.
 */
#include "gguf_build.h"
#include "model_file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const architectures[] = {"llama", "qwen2", "qwen3"};

static ft_status
open_built(gguf_build *b, const char *architecture, ft_model_file **file)
{
	gguf_build_family(b, architecture);
	return gguf_build_open_model(b, file);
}

static void
refused(gguf_build *b, const char *architecture, ft_status code, const char *words)
{
	gguf_build_family(b, architecture);
	gguf_build_refused(b, code, words);
}

static void
test_opens(void **state)
{
	(void) state;
	for (int i = 0; i < 3; i++)
	{
		gguf_build b = {0};
		ft_model_file *file;
		const ft_config *c;
		const ft_model_tensor *bias;
		const ft_model_tensor *norm;

		if (open_built(&b, architectures[i], &file) != FT_OK)
			fail_msg("%s: %s", architectures[i], ft_error_message());
		c = ft_model_file_config(file);
		assert_string_equal(c->architecture, architectures[i]);
		assert_int_equal(c->qkv_bias, i == 1);
		assert_int_equal(c->qk_norm, i == 2);
		assert_int_equal(c->head_dim, 8);
		bias = ft_model_file_find(file, "model.layers.1.self_attn.k_proj.bias");
		norm = ft_model_file_find(file, "model.layers.1.self_attn.q_norm.weight");
		assert_int_equal(bias != NULL, i == 1);
		assert_int_equal(norm != NULL, i == 2);
		if (i == 1)
			assert_true(bias->rows == 1 && bias->cols == 16);
		if (i == 2)
			assert_true(norm->rows == 1 && norm->cols == 8);
		/* the rows of q and k stand in another order in llama's files only */
		assert_int_equal(
			ft_model_file_find(file, "model.layers.0.self_attn.q_proj.weight")->permuted_heads,
			i == 0 ? 4 : 0);
		assert_int_equal(
			ft_model_file_find(file, "model.layers.0.self_attn.k_proj.weight")->permuted_heads,
			i == 0 ? 2 : 0);
		ft_model_file_close(file);
	}
}

/* Biases and norms belong to their family: neither too few nor too many. */
static void
test_biases_and_norms(void **state)
{
	static const uint64_t head[1] = {8};
	static const uint64_t q[1] = {32};
	static const uint64_t wide[1] = {16};
	gguf_build b = {0};

	(void) state;
	gguf_build_skip(&b, "blk.1.attn_v.bias");
	refused(&b, "qwen2", FT_CORRUPT, "\"model.layers.1.self_attn.v_proj.bias\" is missing");
	gguf_build_tensor(&b, "blk.0.attn_q.bias", 0, wide, 1, NULL, 64);
	refused(&b, "qwen2", FT_CORRUPT, "q_proj.bias\" has shape [1, 16], expected [1, 32]");
	gguf_build_tensor(&b, "blk.0.attn_q_norm.weight", 0, head, 1, NULL, 32);
	refused(&b, "qwen2", FT_UNSUPPORTED,
			"\"blk.0.attn_q_norm.weight\" is not one of architecture \"qwen2\"");
	gguf_build_skip(&b, "blk.0.attn_k_norm.weight");
	refused(&b, "qwen3", FT_CORRUPT, "\"model.layers.0.self_attn.k_norm.weight\" is missing");
	gguf_build_tensor(&b, "blk.0.attn_q.bias", 0, q, 1, NULL, 128);
	refused(&b, "qwen3", FT_UNSUPPORTED,
			"\"blk.0.attn_q.bias\" is not one of architecture \"qwen3\"");
	gguf_build_tensor(&b, "blk.0.attn_output.bias", 0, q, 1, NULL, 128);
	refused(&b, "qwen2", FT_UNSUPPORTED, "\"blk.0.attn_output.bias\"");
}

static void
test_window(void **state)
{
	gguf_build b = {0};
	ft_model_file *file;

	(void) state;
	gguf_build_u32(&b, "llama.attention.sliding_window", 16);
	assert_int_equal(open_built(&b, "llama", &file), FT_OK);
	assert_int_equal(ft_model_file_config(file)->window, 16);
	assert_int_equal(ft_config_window(ft_model_file_config(file), 0), 16);
	ft_model_file_close(file);

	/* as long as the context, it is none */
	gguf_build_u32(&b, "llama.attention.sliding_window", 128);
	assert_int_equal(open_built(&b, "llama", &file), FT_OK);
	assert_int_equal(ft_model_file_config(file)->window, 0);
	ft_model_file_close(file);
	gguf_build_u32(&b, "qwen2.attention.sliding_window", 4096);
	assert_int_equal(open_built(&b, "qwen2", &file), FT_OK);
	ft_model_file_close(file);

	for (int i = 1; i < 3; i++)
	{
		char key[64];

		snprintf(key, sizeof key, "%s.attention.sliding_window", architectures[i]);
		gguf_build_u32(&b, key, 16);
		refused(&b, architectures[i], FT_UNSUPPORTED,
				"has a sliding window of 16 tokens in a context of 128");
		assert_non_null(strstr(ft_error_hint(), architectures[i]));
	}
}

static void
test_features(void **state)
{
	static const char *const keys[] = {
		"attention.output_scale",       "attention.temperature_scale",
		"attention.temperature_length", "attention.sliding_window_pattern",
		"attention.shared_kv_layers",   "final_logit_softcapping",
		"use_parallel_residual",        "swin_norm",
		"nextn_predict_layers",         "n_deepstack_layers",
		"rope.scaling.alpha",
	};
	static const int32_t sections[] = {1, 1, 2};

	(void) state;
	for (int i = 0; i < 3; i++)
		for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++)
			for (uint32_t value = 0; value < 2; value++)
			{
				gguf_build b = {0};
				ft_model_file *file;
				char key[128];

				snprintf(key, sizeof key, "%s.%s", architectures[i], keys[k]);
				gguf_build_u32(&b, key, value);
				if (value != 0)
				{
					refused(&b, architectures[i], FT_UNSUPPORTED, key);
					continue;
				}
				assert_int_equal(open_built(&b, architectures[i], &file), FT_OK);
				ft_model_file_close(file);
			}
	for (int i = 0; i < 3; i++)
	{
		gguf_build b = {0};
		char key[128];

		snprintf(key, sizeof key, "%s.rope.dimension_sections", architectures[i]);
		gguf_build_i32s(&b, key, sections, 3);
		refused(&b, architectures[i], FT_UNSUPPORTED, key);
		snprintf(key, sizeof key, "%s.rope.scaling.type", architectures[i]);
		gguf_build_string(&b, key, "longrope");
		refused(&b, architectures[i], FT_UNSUPPORTED, "RoPE scaling \"longrope\"");
	}
}

/* Relatives whose arithmetic is another. */
static void
test_relatives(void **state)
{
	static const char *const relatives[] = {"mistral3", "qwen",    "qwen2moe", "qwen2vl",
											"qwen3moe", "smollm3", "llama4",   "qwen3next"};

	(void) state;
	for (size_t i = 0; i < sizeof relatives / sizeof relatives[0]; i++)
	{
		gguf_build b = {0};
		char words[64];

		snprintf(words, sizeof words, "architecture \"%s\" is not supported", relatives[i]);
		refused(&b, relatives[i], FT_UNSUPPORTED, words);
		assert_non_null(strstr(ft_error_hint(), "llama, qwen2, qwen3"));
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_opens),     cmocka_unit_test(test_biases_and_norms),
		cmocka_unit_test(test_window),    cmocka_unit_test(test_features),
		cmocka_unit_test(test_relatives),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
