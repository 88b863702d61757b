/*
 * test_gguf.c: opening model files: right ones, wrong ones, and the real one.
 */
#include "digest.h"
#include "gguf_build.h"
#include "inspect.h"
#include "model_file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* What the header of gguf_build_llama does not exceed, nor fall below by much. */
#define HEADER_BYTES 2000

#define REAL_MODEL "cache/SmolLM2-135M-Instruct.Q4_1.gguf"

/* Finish the file, open it; *file may be NULL where it fails.  The descriptor is closed. */
/* It must be refused with this code, in words that contain these. */
static void
refused(gguf_build *b, ft_status code, const char *words)
{
	gguf_build_refused(b, code, words);
	assert_non_null(strstr(ft_error_message(), "/proc/self/fd/"));
}

static void
test_opens(void **state)
{
	static const char *const tokens[] = {"a", "b", "<|im_end|>", "<|endoftext|>"};
	static const int32_t types[] = {1, 1, 3, 3};
	gguf_build b = {0};
	ft_model_file *file;
	const ft_config *c;
	const ft_vocabulary *v;

	(void) state;
	gguf_build_string(&b, "tokenizer.ggml.model", "gpt2");
	gguf_build_string(&b, "tokenizer.ggml.pre", "smollm");
	gguf_build_strings(&b, "tokenizer.ggml.tokens", tokens, 4);
	gguf_build_i32s(&b, "tokenizer.ggml.token_type", types, 4);
	gguf_build_u32(&b, "tokenizer.ggml.eos_token_id", 2);
	gguf_build_u32(&b, "tokenizer.ggml.bos_token_id", 1);
	gguf_build_u32(&b, "tokenizer.ggml.padding_token_id", UINT32_MAX);
	gguf_build_string(&b, "tokenizer.chat_template", "{{ x }}");
	gguf_build_f32(&b, "llama.rope.freq_base", 500000);
	gguf_build_llama(&b);
	assert_int_equal(gguf_build_open_model(&b, &file), FT_OK);
	c = ft_model_file_config(file);
	v = ft_model_file_vocabulary(file);
	assert_string_equal(c->architecture, "llama");
	assert_int_equal(c->layers, 2);
	assert_int_equal(c->hidden, 32);
	assert_int_equal(c->ffn, 64);
	assert_int_equal(c->heads, 4);
	assert_int_equal(c->kv_heads, 2);
	assert_int_equal(c->head_dim, 8);
	assert_int_equal(c->vocab, 16);
	assert_int_equal(c->max_positions, 128);
	assert_int_equal(c->window, 0);
	assert_true(c->rms_eps == 1e-5f && c->rope_theta == 500000);
	assert_int_equal(c->rope_scaling, FT_ROPE_PLAIN);
	assert_true(c->tied_embeddings);
	assert_int_equal(c->bos, 1);
	assert_int_equal(c->pad, -1);
	assert_int_equal(c->n_eos, 2);
	assert_int_equal(c->eos[0], 2);
	assert_int_equal(c->eos[1], 3);
	assert_int_equal(v->n_tokens, 4);
	assert_memory_equal(v->tokens[2].data, "<|im_end|>", 10);
	assert_int_equal(v->types[2], FT_TOKEN_CONTROL);
	assert_false(v->add_bos);
	assert_string_equal(ft_model_file_template(file), "{{ x }}");
	assert_int_equal(ft_model_file_tensors(file), 20);
	assert_null(ft_model_file_find(file, "lm_head.weight"));
	assert_int_equal(ft_model_file_find(file, "model.layers.1.mlp.down_proj.weight")->cols, 64);
	/* 16·32 + 32 + 2·(2·32 + 2·32·32 + 2·16·32 + 3·64·32) */
	assert_int_equal(ft_model_file_parameters(file), 19104);
	ft_model_file_close(file);
}

/* Row r of q or k in the file is filled with r; Hugging Face's row order must come out, within each
 * head of 8 rows. */
static void
check_permutation(const char *name, const char *ours, uint64_t rows, uint32_t type,
				  size_t row_bytes)
{
	static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
	uint64_t dims[2] = {32, rows};
	unsigned char bytes[32 * 128];
	unsigned char read[sizeof bytes];
	gguf_build b = {0};
	ft_model_file *file;
	const ft_model_tensor *t;

	for (size_t i = 0; i < rows * row_bytes; i++)
		bytes[i] = (unsigned char) (i / row_bytes);
	gguf_build_tensor(&b, name, type, dims, 2, bytes, rows * row_bytes);
	gguf_build_llama(&b);
	assert_int_equal(gguf_build_open_model(&b, &file), FT_OK);
	t = ft_model_file_find(file, ours);
	assert_int_equal(t->bytes, rows * row_bytes);
	assert_int_equal(ft_model_file_read(file, t, read), FT_OK);
	for (size_t i = 0; i < t->bytes; i++)
	{
		size_t row = i / row_bytes;

		assert_int_equal(read[i], row / 8 * 8 + (size_t) order[row % 8]);
	}
	ft_model_file_close(file);
}

static void
test_permutation(void **state)
{
	static const char q[] = "model.layers.0.self_attn.q_proj.weight";
	static const char k[] = "model.layers.0.self_attn.k_proj.weight";

	(void) state;
	check_permutation("blk.0.attn_q.weight", q, 32, 0, 128);
	check_permutation("blk.0.attn_q.weight", q, 32, 8, 34);
	check_permutation("blk.0.attn_k.weight", k, 16, 3, 20);
}

/* Every proper beginning of a file is refused as truncated. */
static void
test_truncated(void **state)
{
	gguf_build b = {0};
	ft_text bytes = {0};

	(void) state;
	gguf_build_llama(&b);
	gguf_build_finish(&b, &bytes);
	for (size_t n = 0; n < bytes.length; n += n + 256 < bytes.length ? 16 : 1)
	{
		char path[64];
		int fd = gguf_build_open(bytes.data, n, path);
		ft_model_file *file;

		assert_int_equal(ft_model_file_open(path, &file), FT_CORRUPT);
		assert_non_null(strstr(ft_error_message(), path));
		if (n > HEADER_BYTES)
			assert_non_null(strstr(ft_error_message(), "truncated: tensor \""));
		close(fd);
	}
	ft_text_free(&bytes);
}

static void
test_shrinks_later(void **state)
{
	gguf_build b = {0};
	ft_text bytes = {0};
	ft_model_file *file;
	const ft_model_tensor *t;
	char path[64];
	char *memory;
	int fd;

	(void) state;
	gguf_build_llama(&b);
	gguf_build_finish(&b, &bytes);
	fd = gguf_build_open(bytes.data, bytes.length, path);
	assert_int_equal(ft_model_file_open(path, &file), FT_OK);
	t = ft_model_file_find(file, "model.layers.1.mlp.down_proj.weight");
	memory = malloc(t->bytes);
	assert_int_equal(ftruncate(fd, (off_t) t->offset + 100), 0);
	assert_int_equal(ft_model_file_read(file, t, memory), FT_CORRUPT);
	assert_non_null(strstr(ft_error_message(), t->name));
	assert_non_null(strstr(ft_error_message(), "100 bytes"));
	free(memory);
	close(fd);
	ft_model_file_close(file);
	ft_text_free(&bytes);
}

/* Eight bytes of the header at a time are made huge, then zero: whatever becomes of it, nothing
 * breaks and the machine's memory is not asked for. */
static void
test_flipped(void **state)
{
	gguf_build b = {0};
	ft_text bytes = {0};
	int refusals = 0;

	(void) state;
	gguf_build_llama(&b);
	gguf_build_finish(&b, &bytes);
	for (size_t at = 0; at < 1600; at++)
	{
		for (int fill = 0; fill < 3; fill++)
		{
			static const int fills[] = {0xff, 0x00, 0x7f};
			char path[64];
			char saved[8];
			ft_model_file *file;
			int fd;

			memcpy(saved, bytes.data + at, 8);
			memset(bytes.data + at, fills[fill], 8);
			fd = gguf_build_open(bytes.data, bytes.length, path);
			if (ft_model_file_open(path, &file) == FT_OK)
				ft_model_file_close(file);
			else
				refusals++;
			close(fd);
			memcpy(bytes.data + at, saved, 8);
		}
	}
	/* nearly everything in a header is checked by something */
	assert_in_range(refusals, 4400, 4800);
	ft_text_free(&bytes);
}

/* A file whose 64-bit number at an offset is another. */
static void
refused_with(size_t at, uint64_t value, const char *words)
{
	gguf_build b = {0};
	ft_text bytes = {0};
	ft_model_file *file;
	char path[64];
	int fd;

	gguf_build_string(&b, "general.name", "first");
	gguf_build_llama(&b);
	gguf_build_finish(&b, &bytes);
	memcpy(bytes.data + at, &value, sizeof value);
	fd = gguf_build_open(bytes.data, bytes.length, path);
	assert_int_equal(ft_model_file_open(path, &file), FT_CORRUPT);
	if (strstr(ft_error_message(), words) == NULL)
		fail_msg("\"%s\", expected \"…%s…\"", ft_error_message(), words);
	close(fd);
	ft_text_free(&bytes);
}

static void
test_counts(void **state)
{
	(void) state;
	refused_with(8, (uint64_t) 1 << 60, "claims 1152921504606846976 tensors");
	refused_with(8, 500, "a tensor's name");
	refused_with(16, (uint64_t) 1 << 60, "claims 1152921504606846976 keys");
	refused_with(16, UINT64_MAX, "keys");
	refused_with(24, UINT64_MAX, "length");                 /* of the first key */
	refused_with(24 + 8 + 12 + 4, UINT64_MAX, "truncated"); /* of its string */
	refused_with(24 + 8 + 12 + 4, (uint64_t) 1 << 63, "truncated");
}

static void
test_arrays(void **state)
{
	const struct
	{
		uint32_t type;
		uint64_t count;
		ft_status code;
		const char *words;
	} cases[] = {
		{FT_GGUF_U8, UINT64_MAX, FT_CORRUPT, "array of 18446744073709551615"},
		{FT_GGUF_F64, (uint64_t) 1 << 61, FT_CORRUPT, "array of"},
		{FT_GGUF_STRING, (uint64_t) 1 << 61, FT_CORRUPT, "array of"},
		{FT_GGUF_ARRAY, 1, FT_UNSUPPORTED, "array of arrays"},
		{13, 1, FT_CORRUPT, "unknown type 13"},
		{UINT32_MAX, 1, FT_CORRUPT, "unknown type"},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		gguf_build b = {0};
		char bytes[12];

		memcpy(bytes, &cases[i].type, 4);
		memcpy(bytes + 4, &cases[i].count, 8);
		gguf_build_raw(&b, "some.array", FT_GGUF_ARRAY, bytes, sizeof bytes);
		gguf_build_llama(&b);
		refused(&b, cases[i].code, cases[i].words);
	}
}

static void
test_containers(void **state)
{
	static const uint64_t dims[5] = {32, 16, 1, 1, 1};
	static const uint64_t zero[2] = {32, 0};
	static const uint64_t huge[2] = {(uint64_t) 1 << 40, (uint64_t) 1 << 40};
	static const uint64_t odd[2] = {33, 16};
	gguf_build b = {.duplicates = true};

	(void) state;
	gguf_build_string(&b, "general.architecture", "llama");
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "key \"general.architecture\" stands twice");
	b = (gguf_build){.duplicates = true};
	gguf_build_tensor(&b, "token_embd.weight", 0, dims, 2, NULL, 2048);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "tensor \"token_embd.weight\" stands twice");
	gguf_build_info(&b, "token_embd.weight", 0, dims, 2, 32);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "overlap");
	gguf_build_info(&b, "token_embd.weight", 0, dims, 2, 8);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "no multiple of 32");
	gguf_build_info(&b, "token_embd.weight", 0, dims, 2, UINT64_MAX - 31);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "beyond any file's end");
	gguf_build_info(&b, "token_embd.weight", 0, dims, 2, (uint64_t) 1 << 40);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "tensor \"token_embd.weight\" needs 2048 bytes");
	gguf_build_info(&b, "token_embd.weight", 0, dims, 5, 0);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "has 5 dimensions");
	gguf_build_info(&b, "token_embd.weight", 0, zero, 2, 0);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "dimension of 0");
	gguf_build_info(&b, "token_embd.weight", 0, huge, 2, 0);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "impossible dimensions");
	gguf_build_info(&b, "token_embd.weight", 3, odd, 2, 0);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "rows of 33 values, which q4_1");
	gguf_build_u32(&b, "general.alignment", 48);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "no power of two");
	gguf_build_u32(&b, "general.alignment", 0);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "general.alignment");
	gguf_build_u32(&b, "bad\x01key", 0);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "byte 0x01");
}

static void
test_alignment(void **state)
{
	gguf_build b = {.alignment = 128};
	ft_model_file *file;

	(void) state;
	gguf_build_u32(&b, "general.alignment", 128);
	gguf_build_llama(&b);
	assert_int_equal(gguf_build_open_model(&b, &file), FT_OK);
	assert_int_equal(ft_model_file_tensor(file, 3)->offset % 128, 0);
	ft_model_file_close(file);
}

static void
test_versions(void **state)
{
	static const struct
	{
		const char *magic;
		uint32_t version;
		ft_status code;
		const char *words;
	} cases[] = {
		{"GGUF", 1, FT_UNSUPPORTED, "version 1"},
		{"GGUF", 4, FT_UNSUPPORTED, "version 4"},
		{"GGUF", 0x03000000, FT_UNSUPPORTED, "big-endian"},
		{"GGML", 3, FT_CORRUPT, "not a GGUF file"},
		{"GGUF", 2, FT_OK, ""},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		gguf_build b = {0};
		ft_text bytes = {0};
		ft_model_file *file;
		char path[64];
		int fd;

		gguf_build_llama(&b);
		gguf_build_finish(&b, &bytes);
		memcpy(bytes.data, cases[i].magic, 4);
		memcpy(bytes.data + 4, &cases[i].version, 4);
		fd = gguf_build_open(bytes.data, bytes.length, path);
		assert_int_equal(ft_model_file_open(path, &file), cases[i].code);
		if (cases[i].code == FT_OK)
			ft_model_file_close(file);
		else
			assert_non_null(strstr(ft_error_message(), cases[i].words));
		close(fd);
		ft_text_free(&bytes);
	}
}

static void
test_no_files(void **state)
{
	char folder[] = "/tmp/test_gguf.XXXXXX";
	char fifo[64];
	ft_model_file *file;

	(void) state;
	assert_int_equal(ft_model_file_open("/nonexistent/model.gguf", &file), FT_NOT_FOUND);
	assert_non_null(strstr(ft_error_message(), "/nonexistent/model.gguf"));
	assert_non_null(mkdtemp(folder));
	/* one in the layout of Hugging Face would have a config.json */
	assert_int_equal(ft_model_file_open(folder, &file), FT_CORRUPT);
	snprintf(fifo, sizeof fifo, "%s/fifo", folder);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	/* must not wait for a writer */
	assert_int_equal(ft_model_file_open(fifo, &file), FT_UNSUPPORTED);
	unlink(fifo);
	rmdir(folder);
}

static void
test_unsupported(void **state)
{
	static const uint64_t embedding[2] = {256, 16};
	static const uint64_t bias[1] = {32};
	gguf_build b = {0};

	(void) state;
	gguf_build_string(&b, "general.architecture", "mamba");
	gguf_build_llama(&b);
	refused(&b, FT_UNSUPPORTED, "architecture \"mamba\" is not supported");
	assert_non_null(strstr(ft_error_hint(), "llama"));
	gguf_build_string(&b, "general.type", "adapter");
	gguf_build_llama(&b);
	refused(&b, FT_UNSUPPORTED, "\"adapter\"");
	gguf_build_u32(&b, "split.count", 3);
	gguf_build_llama(&b);
	refused(&b, FT_UNSUPPORTED, "one of 3 parts");
	gguf_build_u32(&b, "llama.expert_shared_count", 1);
	gguf_build_llama(&b);
	refused(&b, FT_UNSUPPORTED, "llama.expert_shared_count");
	gguf_build_tensor(&b, "blk.0.attn_q.bias", 0, bias, 1, NULL, 128);
	gguf_build_llama(&b);
	refused(&b, FT_UNSUPPORTED, "\"blk.0.attn_q.bias\"");
	gguf_build_tensor(&b, "token_embd.weight", 23, embedding, 2, NULL, 16 * 144);
	gguf_build_llama(&b);
	refused(&b, FT_UNSUPPORTED, "type iq4_xs (23)");
	gguf_build_tensor(&b, "token_embd.weight", 77, embedding, 2, NULL, 100);
	gguf_build_llama(&b);
	refused(&b, FT_UNSUPPORTED, "type unknown (77)");
	gguf_build_string(&b, "llama.rope.scaling.type", "yarn");
	gguf_build_llama(&b);
	refused(&b, FT_UNSUPPORTED, "\"yarn\"");
	gguf_build_u32(&b, "llama.rope.dimension_count", 4);
	gguf_build_llama(&b);
	refused(&b, FT_UNSUPPORTED, "turns 4 of 8");
	gguf_build_u32(&b, "llama.attention.value_length", 16);
	gguf_build_llama(&b);
	refused(&b, FT_UNSUPPORTED, "values 16");
}

static void
test_configurations(void **state)
{
	static const struct
	{
		const char *key;
		uint32_t value;
		const char *words;
	} cases[] = {
		{"llama.block_count", 0, "number of layers is 0"},
		{"llama.block_count", 100000, "number of layers is 100000"},
		{"llama.block_count", 3, "tensor \"model.layers.2.input_layernorm.weight\" is missing"},
		{"llama.block_count", 1, "\"blk.1."},
		{"llama.embedding_length", 64, "has shape [16, 32], expected [16, 64]"},
		{"llama.embedding_length", UINT32_MAX, "embedding_length"},
		{"llama.feed_forward_length", 96, "has shape [64, 32], expected [96, 32]"},
		{"llama.attention.head_count", 0, "heads is 0"},
		{"llama.attention.head_count", 3, "3 attention heads cannot share 2"},
		{"llama.attention.head_count_kv", 8, "key/value heads is 8"},
		{"llama.attention.key_length", 7, "RoPE"},
		{"llama.context_length", 0, "context length is 0"},
		{"tokenizer.ggml.eos_token_id", 5, "vocabulary has 0 tokens"},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		gguf_build b = {0};
		ft_model_file *file;
		ft_status status;

		gguf_build_u32(&b, cases[i].key, cases[i].value);
		if (strcmp(cases[i].key, "llama.attention.key_length") == 0)
		{
			gguf_build_u32(&b, "llama.attention.value_length", 7);
			gguf_build_u32(&b, "llama.rope.dimension_count", 8);
		}
		gguf_build_llama(&b);
		status = gguf_build_open_model(&b, &file);
		assert_true(status == FT_CORRUPT || status == FT_UNSUPPORTED);
		if (strstr(ft_error_message(), cases[i].words) == NULL)
			fail_msg("\"%s\", expected \"…%s…\"", ft_error_message(), cases[i].words);
	}
}

static void
test_missing(void **state)
{
	static const struct
	{
		const char *name;
		const char *words;
	} cases[] = {
		{"general.architecture", "key \"general.architecture\" is missing"},
		{"llama.block_count", "key \"llama.block_count\" is missing"},
		{"llama.attention.layer_norm_rms_epsilon", "layer_norm_rms_epsilon\" is missing"},
		{"token_embd.weight", "tensor \"token_embd.weight\" is missing"},
		{"output_norm.weight", "tensor \"model.norm.weight\" is missing"},
		{"blk.1.ffn_up.weight", "tensor \"model.layers.1.mlp.up_proj.weight\" is missing"},
	};
	gguf_build b = {0};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		gguf_build_skip(&b, cases[i].name);
		gguf_build_llama(&b);
		refused(&b, FT_CORRUPT, cases[i].words);
	}
	gguf_build_string(&b, "llama.block_count", "two");
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "key \"llama.block_count\" is no integer");
	gguf_build_f32(&b, "llama.rope.freq_base", __builtin_nanf(""));
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "not finite");
}

static void
test_rope(void **state)
{
	static const uint64_t dims[1] = {4};
	static const float factors[4] = {1, 2, 8, 8};
	static const float wrong[4] = {1, 0, 8, 8};
	gguf_build b = {0};
	ft_model_file *file;
	float read[4];

	(void) state;
	gguf_build_tensor(&b, "rope_freqs.weight", 0, dims, 1, factors, sizeof factors);
	gguf_build_u32(&b, "llama.attention.sliding_window", 64);
	gguf_build_llama(&b);
	assert_int_equal(gguf_build_open_model(&b, &file), FT_OK);
	assert_int_equal(ft_model_file_read(file, ft_model_file_find(file, "rope_freqs.weight"), read),
					 FT_OK);
	assert_memory_equal(read, factors, sizeof factors);
	assert_int_equal(ft_model_file_parameters(file), 19104);
	assert_int_equal(ft_model_file_config(file)->window, 64);
	ft_model_file_close(file);

	gguf_build_tensor(&b, "rope_freqs.weight", 0, dims, 1, wrong, sizeof wrong);
	gguf_build_llama(&b);
	refused(&b, FT_CORRUPT, "has the factor 0");

	gguf_build_string(&b, "llama.rope.scaling.type", "linear");
	gguf_build_f32(&b, "llama.rope.scaling.factor", 4);
	gguf_build_llama(&b);
	assert_int_equal(gguf_build_open_model(&b, &file), FT_OK);
	assert_int_equal(ft_model_file_config(file)->rope_scaling, FT_ROPE_LINEAR);
	assert_true(ft_model_file_config(file)->rope_factor == 4);
	ft_model_file_close(file);
}

static void
test_digest(void **state)
{
	gguf_build b = {0};
	ft_text bytes = {0};
	ft_model_file *file;
	char hex[FT_DIGEST_HEX];
	char expected[FT_DIGEST_HEX];
	char path[64];
	int fd;

	(void) state;
	/* FIPS 180-2, appendix B.1 */
	assert_int_equal(ft_digest_bytes("abc", 3, hex), FT_OK);
	assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	gguf_build_llama(&b);
	gguf_build_finish(&b, &bytes);
	fd = gguf_build_open(bytes.data, bytes.length, path);
	assert_int_equal(ft_digest_bytes(bytes.data, bytes.length, expected), FT_OK);
	assert_int_equal(ft_digest_file(path, hex), FT_OK);
	assert_string_equal(hex, expected);
	assert_int_equal(ft_model_file_open(path, &file), FT_OK);
	assert_int_equal(ft_model_file_digest(file, hex), FT_OK);
	assert_string_equal(hex, expected);
	assert_int_equal(ft_model_file_bytes(file), bytes.length);
	assert_int_equal(ft_digest_file("/nonexistent", hex), FT_NOT_FOUND);
	ft_model_file_close(file);
	close(fd);
	ft_text_free(&bytes);
}

static json_t *
inspect_built(gguf_build *b, const char *template_name)
{
	ft_text bytes = {0};
	json_t *description = NULL;
	char path[64];
	int fd;

	gguf_build_finish(b, &bytes);
	fd = gguf_build_open(bytes.data, bytes.length, path);
	if (ft_inspect(path, template_name, &description) != FT_OK)
		fail_msg("%s", ft_error_message());
	close(fd);
	ft_text_free(&bytes);
	return description;
}

static void
test_inspect(void **state)
{
	static const uint64_t embedding[2] = {256, 16};
	gguf_build b = {0};
	json_t *d;

	(void) state;
	gguf_build_string(&b, "tokenizer.ggml.model", "gpt2");
	gguf_build_string(&b, "tokenizer.ggml.pre", "smollm");
	gguf_build_llama(&b);
	d = inspect_built(&b, NULL);
	assert_string_equal(json_string_value(json_object_get(d, "architecture")), "llama");
	assert_int_equal(json_integer_value(json_object_get(d, "parameters")), 19104);
	assert_int_equal(json_integer_value(json_object_get(d, "head_dim")), 8);
	assert_int_equal(json_integer_value(json_object_get(d, "vocab")), 16);
	assert_int_equal(json_integer_value(json_object_get(json_object_get(d, "tensor_types"), "f32")),
					 20);
	assert_string_equal(json_string_value(json_object_get(d, "chat_template")), "plain");
	assert_int_equal(json_array_size(json_object_get(d, "unsupported")), 0);
	json_decref(d);

	gguf_build_string(&b, "general.architecture", "gemma9");
	gguf_build_tensor(&b, "token_embd.weight", 23, embedding, 2, NULL, 16 * 144);
	gguf_build_string(&b, "tokenizer.chat_template", "{{ messages }}");
	gguf_build_llama(&b);
	d = inspect_built(&b, NULL);
	assert_string_equal(json_string_value(json_object_get(d, "architecture")), "gemma9");
	assert_int_equal(json_array_size(json_object_get(d, "unsupported")), 2);
	assert_true(json_is_null(json_object_get(d, "chat_template")));
	assert_true(json_is_string(json_object_get(d, "chat_template_reason")));
	json_decref(d);

	gguf_build_string(&b, "tokenizer.chat_template", "{{ messages }}");
	gguf_build_llama(&b);
	d = inspect_built(&b, "chatml");
	assert_string_equal(json_string_value(json_object_get(d, "chat_template")), "chatml");
	/* no tokenizer */
	assert_int_equal(json_array_size(json_object_get(d, "unsupported")), 1);
	json_decref(d);
}

static void
test_real_model(void **state)
{
	ft_model_file *file;
	const ft_config *c;
	json_t *d;
	char hex[FT_DIGEST_HEX];

	(void) state;
	if (access(REAL_MODEL, R_OK) != 0)
	{
		print_message("skip: %s is not there\n", REAL_MODEL);
		skip();
	}
	assert_int_equal(ft_model_file_open(REAL_MODEL, &file), FT_OK);
	c = ft_model_file_config(file);
	assert_int_equal(c->layers, 30);
	assert_int_equal(c->hidden, 576);
	assert_int_equal(c->ffn, 1536);
	assert_int_equal(c->heads, 9);
	assert_int_equal(c->kv_heads, 3);
	assert_int_equal(c->head_dim, 64);
	assert_int_equal(c->vocab, 49152);
	assert_int_equal(c->max_positions, 8192);
	assert_true(c->rope_theta == 100000 && c->tied_embeddings);
	assert_int_equal(c->n_eos, 2);
	assert_int_equal(c->eos[0], 2);
	assert_int_equal(ft_model_file_parameters(file), 134515008);
	assert_int_equal(ft_model_file_digest(file, hex), FT_OK);
	assert_string_equal(hex, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
	ft_model_file_close(file);
	assert_int_equal(ft_inspect(REAL_MODEL, NULL, &d), FT_OK);
	assert_string_equal(json_string_value(json_object_get(d, "chat_template")), "smollm2");
	assert_int_equal(json_array_size(json_object_get(d, "unsupported")), 0);
	json_decref(d);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_opens),          cmocka_unit_test(test_permutation),
		cmocka_unit_test(test_truncated),      cmocka_unit_test(test_shrinks_later),
		cmocka_unit_test(test_flipped),        cmocka_unit_test(test_counts),
		cmocka_unit_test(test_arrays),         cmocka_unit_test(test_containers),
		cmocka_unit_test(test_alignment),      cmocka_unit_test(test_versions),
		cmocka_unit_test(test_no_files),       cmocka_unit_test(test_unsupported),
		cmocka_unit_test(test_configurations), cmocka_unit_test(test_missing),
		cmocka_unit_test(test_rope),           cmocka_unit_test(test_digest),
		cmocka_unit_test(test_inspect),        cmocka_unit_test(test_real_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
