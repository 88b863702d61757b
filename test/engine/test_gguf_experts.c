/*
 * test_gguf_experts.c: experts in GGUF files: stacked, one tensor each, and what
 * is refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gguf_build.h"
#include "model_file.h"

#define EXPERTS 3
#define HIDDEN 32 /* as gguf_build_llama() has them */
#define FFN 64
#define F32 0
#define Q8_0 8

static const struct
{
	const char *gguf; /* "ffn_gate" */
	const char *ours;
	uint64_t cols;
	uint64_t rows;
} matrices[] = {
	{"ffn_gate", "w1", HIDDEN, FFN},
	{"ffn_down", "w2", FFN, HIDDEN},
	{"ffn_up", "w3", HIDDEN, FFN},
};

/* A matrix of the fixtures: every byte tells layer, matrix and expert. */
static unsigned char
mark(int layer, int matrix, int expert)
{
	return (unsigned char) (1 + layer * 16 + matrix * 4 + expert);
}

static size_t
matrix_bytes(int matrix, uint32_t type)
{
	size_t values = (size_t) (matrices[matrix].cols * matrices[matrix].rows);

	return type == Q8_0 ? values / 32 * 34 : values * 4;
}

static void
stacked(gguf_build *b, int layer, int matrix, uint32_t type, uint64_t experts)
{
	const uint64_t dims[3] = {matrices[matrix].cols, matrices[matrix].rows, experts};
	size_t each = matrix_bytes(matrix, type);
	unsigned char *bytes = malloc(each * experts);
	char name[64];

	assert_non_null(bytes);
	for (uint64_t e = 0; e < experts; e++)
		memset(bytes + e * each, mark(layer, matrix, (int) e), each);
	snprintf(name, sizeof name, "blk.%d.%s_exps.weight", layer, matrices[matrix].gguf);
	gguf_build_tensor(b, name, type, dims, 3, bytes, each * experts);
	free(bytes);
}

static void
single(gguf_build *b, int layer, int matrix, int expert)
{
	const uint64_t dims[2] = {matrices[matrix].cols, matrices[matrix].rows};
	size_t each = matrix_bytes(matrix, F32);
	unsigned char *bytes = malloc(each);
	char name[64];

	assert_non_null(bytes);
	memset(bytes, mark(layer, matrix, expert), each);
	snprintf(name, sizeof name, "blk.%d.%s.%d.weight", layer, matrices[matrix].gguf, expert);
	gguf_build_tensor(b, name, F32, dims, 2, bytes, each);
	free(bytes);
}

/* The keys, the routers, and what there is beside experts. */
static void
frame(gguf_build *b)
{
	const uint64_t router[2] = {HIDDEN, EXPERTS};
	char name[64];

	for (int layer = 0; layer < 2; layer++)
	{
		for (int m = 0; m < 3; m++)
		{
			snprintf(name, sizeof name, "blk.%d.%s.weight", layer, matrices[m].gguf);
			gguf_build_skip(b, name);
		}
		snprintf(name, sizeof name, "blk.%d.ffn_gate_inp.weight", layer);
		gguf_build_tensor(b, name, F32, router, 2, NULL, HIDDEN * EXPERTS * 4);
	}
	gguf_build_u32(b, "llama.expert_count", EXPERTS);
	gguf_build_u32(b, "llama.expert_used_count", 2);
	gguf_build_llama(b);
}

static void
check_experts(const ft_model_file *file, ft_dtype down)
{
	const ft_config *c = ft_model_file_config(file);
	unsigned char *bytes = malloc(FFN * HIDDEN * 4);

	assert_non_null(bytes);
	assert_int_equal(c->experts, EXPERTS);
	assert_int_equal(c->experts_per_token, 2);
	for (int layer = 0; layer < 2; layer++)
	{
		for (int i = 0; i < EXPERTS * 3; i++)
		{
			int m = i % 3;
			char name[128];
			const ft_model_tensor *t;

			snprintf(name, sizeof name, "model.layers.%d.block_sparse_moe.experts.%d.%s.weight",
					 layer, i / 3, matrices[m].ours);
			t = ft_model_file_find(file, name);
			assert_non_null(t);
			assert_int_equal(t->rows, matrices[m].rows);
			assert_int_equal(t->cols, matrices[m].cols);
			assert_int_equal(t->dtype, m == 1 ? down : FT_F32);
			assert_int_equal(t->bytes, matrix_bytes(m, t->dtype == FT_Q8_0 ? Q8_0 : F32));
			assert_int_equal(ft_model_file_read(file, t, bytes), FT_OK);
			for (uint64_t j = 0; j < t->bytes; j++)
				assert_int_equal(bytes[j], mark(layer, m, i / 3));
		}
	}
	assert_non_null(ft_model_file_find(file, "model.layers.1.block_sparse_moe.gate.weight"));
	free(bytes);
	/* embedding, final norm; norms, attention, router and experts of each layer */
	assert_int_equal(
		ft_model_file_parameters(file),
		16 * 32 + 32 +
			2 * (2 * 32 + 2 * 32 * 32 + 2 * 32 * 16 + EXPERTS * 32 + EXPERTS * 3 * HIDDEN * FFN));
}

static void
test_stacked(void **state)
{
	static const uint32_t types[] = {F32, Q8_0};

	(void) state;
	for (int i = 0; i < 2; i++)
	{
		gguf_build b = {0};
		ft_model_file *file;

		for (int layer = 0; layer < 2; layer++)
			for (int m = 0; m < 3; m++)
				stacked(&b, layer, m, m == 1 ? types[i] : F32, EXPERTS);
		frame(&b);
		if (gguf_build_open_model(&b, &file) != FT_OK)
			fail_msg("%s", ft_error_message());
		check_experts(file, i == 0 ? FT_F32 : FT_Q8_0);
		ft_model_file_close(file);
	}
}

static void
test_one_tensor_each(void **state)
{
	gguf_build b = {0};
	ft_model_file *file;

	(void) state;
	for (int layer = 0; layer < 2; layer++)
		for (int i = 0; i < 3 * EXPERTS; i++)
			single(&b, layer, i % 3, i / 3);
	frame(&b);
	if (gguf_build_open_model(&b, &file) != FT_OK)
		fail_msg("%s", ft_error_message());
	check_experts(file, FT_F32);
	ft_model_file_close(file);
}

/* All experts, and then what the test has put there before. */
static void
complete(gguf_build *b)
{
	for (int layer = 0; layer < 2; layer++)
		for (int m = 0; m < 3; m++)
			stacked(b, layer, m, F32, EXPERTS);
	frame(b);
}

static void
test_keys_refused(void **state)
{
	static const struct
	{
		const char *key;
		uint32_t value;
		ft_status code;
		const char *words;
	} keys[] = {
		{"llama.expert_used_count", 0, FT_CORRUPT, "0 of 3 experts"},
		{"llama.expert_used_count", 4, FT_CORRUPT, "4 of 3 experts"},
		{"llama.expert_count", 0, FT_CORRUPT, "2 of 0 experts"},
		{"llama.expert_count", 65, FT_UNSUPPORTED, "65 experts are over the limit of 64"},
		{"llama.expert_count", 2, FT_CORRUPT, "holds 3 experts, expected 2"},
		{"llama.expert_gating_func", 2, FT_UNSUPPORTED, "\"llama.expert_gating_func\""},
		{"llama.expert_feed_forward_length", 32, FT_UNSUPPORTED,
		 "\"llama.expert_feed_forward_length\""},
		{"llama.expert_shared_count", 1, FT_UNSUPPORTED, "\"llama.expert_shared_count\""},
		{"llama.expert_group_count", 1, FT_UNSUPPORTED, "\"llama.expert_group_count\""},
		{"llama.leading_dense_block_count", 1, FT_UNSUPPORTED,
		 "\"llama.leading_dense_block_count\""},
	};
	gguf_build b = {0};

	(void) state;
	for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
	{
		gguf_build_u32(&b, keys[i].key, keys[i].value);
		complete(&b);
		gguf_build_refused(&b, keys[i].code, keys[i].words);
	}
	gguf_build_bool(&b, "llama.expert_weights_norm", false);
	complete(&b);
	gguf_build_refused(&b, FT_UNSUPPORTED, "\"llama.expert_weights_norm\"");
	gguf_build_f32(&b, "llama.expert_weights_scale", 2.5f);
	complete(&b);
	gguf_build_refused(&b, FT_UNSUPPORTED, "\"llama.expert_weights_scale\"");
}

static void
test_tensors_refused(void **state)
{
	static const uint64_t wide[3] = {HIDDEN, FFN + 1, EXPERTS};
	static const uint64_t flat[2] = {HIDDEN, FFN};
	static const uint64_t router[2] = {HIDDEN, EXPERTS + 1};
	gguf_build b = {0};

	(void) state;
	stacked(&b, 0, 0, F32, EXPERTS - 1);
	complete(&b);
	gguf_build_refused(&b, FT_CORRUPT,
					   "\"blk.0.ffn_gate_exps.weight\" holds 2 experts, expected 3");
	gguf_build_tensor(&b, "blk.1.ffn_up_exps.weight", F32, wide, 3, NULL,
					  HIDDEN * (FFN + 1) * EXPERTS * 4);
	complete(&b);
	gguf_build_refused(&b, FT_CORRUPT,
					   "experts.0.w3.weight\" has shape [65, 32], expected [64, 32]");
	gguf_build_tensor(&b, "blk.1.ffn_up_exps.weight", 77, wide, 3, NULL, 64);
	complete(&b);
	gguf_build_refused(&b, FT_UNSUPPORTED, "type unknown (77)");
	gguf_build_tensor(&b, "blk.0.ffn_gate_inp.weight", F32, router, 2, NULL,
					  HIDDEN * (EXPERTS + 1) * 4);
	complete(&b);
	gguf_build_refused(&b, FT_CORRUPT, "block_sparse_moe.gate.weight\" has shape [4, 32]");
	/* both forms of one matrix, an expert too many, what only relatives have */
	single(&b, 0, 2, 1);
	complete(&b);
	gguf_build_refused(&b, FT_CORRUPT, "experts.1.w3.weight\" stands twice");
	single(&b, 0, 2, EXPERTS);
	complete(&b);
	gguf_build_refused(&b, FT_UNSUPPORTED, "\"blk.0.ffn_up.3.weight\"");
	gguf_build_tensor(&b, "blk.0.ffn_gate_shexp.weight", F32, flat, 2, NULL, HIDDEN * FFN * 4);
	complete(&b);
	gguf_build_refused(&b, FT_UNSUPPORTED, "\"blk.0.ffn_gate_shexp.weight\"");
	/* experts that the keys do not know of */
	stacked(&b, 0, 0, F32, EXPERTS);
	gguf_build_llama(&b);
	gguf_build_refused(&b, FT_UNSUPPORTED, "\"blk.0.ffn_gate_exps.weight\"");
	gguf_build_skip(&b, "blk.1.ffn_down_exps.weight");
	complete(&b);
	gguf_build_refused(&b, FT_CORRUPT,
					   "model.layers.1.block_sparse_moe.experts.0.w2.weight\" is missing");
}

/* A file that was cut anywhere is an error that names it. */
static void
test_truncated(void **state)
{
	gguf_build b = {0};
	ft_text bytes = {0};

	(void) state;
	complete(&b);
	gguf_build_finish(&b, &bytes);
	for (size_t n = 0; n < bytes.length; n += 64)
	{
		ft_model_file *file;
		char path[64];
		int fd = gguf_build_open(bytes.data, n, path);

		assert_int_equal(ft_model_file_open(path, &file), FT_CORRUPT);
		assert_non_null(strstr(ft_error_message(), path));
		close(fd);
	}
	ft_text_free(&bytes);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stacked),      cmocka_unit_test(test_one_tensor_each),
		cmocka_unit_test(test_keys_refused), cmocka_unit_test(test_tensors_refused),
		cmocka_unit_test(test_truncated),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
