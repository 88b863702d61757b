/*
 * test_export_tokenizer.c: SentencePiece-style tokenisers, from a directory to a
 * GGUF file and on to a tokenizer.json: the ids stay what tokenizers and
 * sentencepiece give; and what neither format can say.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "export.h"
#include "gguf_build.h"
#include "tiny_model.h"

#define FILES "test/golden/tokenizer_files/"
#define HIDDEN 4

static char *directory;
static json_t *texts;

static void
must(ft_status status)
{
	if (status != FT_OK)
		fail_msg("%s: %s", ft_status_name(status), ft_error_message());
}

static int
set_up(void **state)
{
	json_t *small = json_load_file("test/golden/tokenizer_small.json", JSON_ALLOW_NUL, NULL);

	(void) state;
	texts = json_incref(json_object_get(small, "texts"));
	json_decref(small);
	directory = tiny_directory();
	return json_array_size(texts) > 300 ? 0 : -1;
}

static int
tear_down(void **state)
{
	(void) state;
	json_decref(texts);
	tiny_remove(directory);
	free(directory);
	return 0;
}

/* --- a directory with a tokeniser and a model of zeros --- */

/* Until the call after the next. */
static const char *
path_in(const char *folder, const char *name)
{
	static char path[2][1024];
	static int turn;

	turn = !turn;
	snprintf(path[turn], sizeof path[turn], "%s/%s/%s", directory, folder, name);
	return path[turn];
}

static const char *
fresh(const char *folder)
{
	static char path[512];

	snprintf(path, sizeof path, "%s/%s", directory, folder);
	must(ft_remove_tree(path));
	assert_int_equal(mkdir(path, 0700), 0);
	return path;
}

static void
write_weights(const char *folder, int64_t vocabulary)
{
	static const char *const names[] = {
		"input_layernorm",  "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
		"self_attn.v_proj", "self_attn.o_proj",         "mlp.gate_proj",    "mlp.up_proj",
		"mlp.down_proj"};
	enum
	{
		N = sizeof names / sizeof names[0]
	};
	float *zeros = calloc((size_t) vocabulary * HIDDEN, sizeof *zeros);
	char full[N][128];
	ft_safetensor_out out[N + 2] = {
		{"model.embed_tokens.weight", vocabulary, HIDDEN, zeros},
		{"model.norm.weight", -1, HIDDEN, zeros},
	};

	for (int i = 0; i < N; i++)
	{
		snprintf(full[i], sizeof full[i], "model.layers.0.%s.weight", names[i]);
		out[2 + i] = (ft_safetensor_out){full[i], i < 2 ? -1 : HIDDEN, HIDDEN, zeros};
	}
	must(ft_safetensors_write(path_in(folder, "model.safetensors"), out, N + 2));
	free(zeros);
}

static void
write_model(const char *folder, int vocabulary)
{
	char config[512];

	snprintf(config, sizeof config,
			 "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
			 "\"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": 1, "
			 "\"num_attention_heads\": 2, \"vocab_size\": %d, \"max_position_embeddings\": 8, "
			 "\"rms_norm_eps\": 1e-5, \"tie_word_embeddings\": true}",
			 HIDDEN, HIDDEN, vocabulary);
	must(ft_replace_file(path_in(folder, "config.json"), config, strlen(config)));
	write_weights(folder, vocabulary);
}

static void
copy_fixture(const char *fixture, const char *folder)
{
	static const char *const names[] = {"tokenizer.json", "tokenizer_config.json",
										"tokenizer.model"};

	fresh(folder);
	for (int i = 0; i < 3; i++)
	{
		char from[256];
		ft_text text = {0};

		snprintf(from, sizeof from, FILES "%s/%s", fixture, names[i]);
		if (!ft_file_exists(from))
			continue;
		must(ft_read_file(from, 1 << 20, &text));
		must(ft_replace_file(path_in(folder, names[i]), text.data, text.length));
		ft_text_free(&text);
	}
}

/* --- exports --- */

static ft_status
export_to(const char *from, const char *to, bool gguf)
{
	ft_model_file *file;
	ft_merge *merge;
	ft_status status;

	must(ft_model_file_open(from, &file));
	must(ft_merge_open(file, NULL, 1, &merge));
	status = gguf ? ft_export_gguf(merge, FT_F32, fresh(to))
				  : ft_export_safetensors(merge, FT_F32, 1 << 30, fresh(to));
	ft_merge_close(merge);
	ft_model_file_close(file);
	return status;
}

static ft_tokenizer *
tokenizer_of(const char *path)
{
	ft_model_file *file;
	ft_tokenizer *tokenizer;

	must(ft_model_file_open(path, &file));
	must(ft_tokenizer_create(ft_model_file_vocabulary(file), &tokenizer));
	ft_model_file_close(file);
	return tokenizer;
}

/* Ids of every text, as a user's and with special tokens, behind another one as well, and the text
 * that they become.  Symbols of a SentencePiece model are added tokens in a GGUF file, which no
 * space comes before: texts with them are left out. */
static void
check_same(const char *path, const char *other, bool symbols)
{
	ft_tokenizer *a = tokenizer_of(path);
	ft_tokenizer *b = tokenizer_of(other);
	const json_t *value;
	size_t i;
	ft_ids ids[2] = {0};
	ft_text back[2] = {0};

	json_array_foreach (texts, i, value)
	{
		if (symbols && memmem(json_string_value(value), json_string_length(value), "<tool>", 6))
			continue;
		for (int mode = 0; mode < 4; mode++)
		{
			const char *text = json_string_value(value);
			size_t n = json_string_length(value);
			ft_text_start start = mode / 2 == 0 ? FT_START_TEXT : FT_START_SPECIAL;

			for (int k = 0; k < 2; k++)
			{
				ft_ids_clear(&ids[k]);
				ft_text_clear(&back[k]);
				must(ft_tokenizer_encode_part(k == 0 ? a : b, text, n, mode % 2, start, &ids[k]));
				must(ft_tokenizer_decode(k == 0 ? a : b, ids[k].data, ids[k].length, false,
										 &back[k]));
			}
			if (ids[0].length != ids[1].length ||
				memcmp(ids[0].data, ids[1].data, ids[0].length * sizeof(int32_t)) != 0)
				fail_msg("%s: text %zu has other ids (%d)", other, i, mode);
			assert_int_equal(back[0].length, back[1].length);
			assert_memory_equal(back[0].data, back[1].data, back[0].length);
		}
	}
	for (int k = 0; k < 2; k++)
	{
		ft_ids_free(&ids[k]);
		ft_text_free(&back[k]);
	}
	ft_tokenizer_free(a);
	ft_tokenizer_free(b);
}

static int
vocabulary_of(const char *fixture)
{
	char path[256];
	json_t *json;
	int n;

	/* the models have the same pieces */
	snprintf(path, sizeof path, FILES "%.3s%s/tokenizer.json", fixture,
			 fixture[0] == 's' ? "_json" : "t_json");
	json = json_load_file(path, JSON_ALLOW_NUL, NULL);
	assert_non_null(json);
	n = (int) json_object_size(json_object_get(json_object_get(json, "model"), "vocab"));
	json_decref(json);
	return n;
}

/* --- there and back --- */

static void
test_round_trip(void **state)
{
	static const char *const fixtures[] = {"spm_json", "inst_json", "spm_model", "inst_model"};

	(void) state;
	for (size_t i = 0; i < sizeof fixtures / sizeof fixtures[0]; i++)
	{
		bool json = strstr(fixtures[i], "json") != NULL;
		char base[1024];
		char gguf[1024];
		ft_model_file *file;
		const ft_vocabulary *v;

		copy_fixture(fixtures[i], "base");
		write_model("base", vocabulary_of(fixtures[i]));
		snprintf(base, sizeof base, "%s", path_in("base", ""));
		must(export_to(base, "gguf", true));
		snprintf(gguf, sizeof gguf, "%s", path_in("gguf", "model.gguf"));
		check_same(base, gguf, !json);

		/* as llama.cpp wants them told apart */
		must(ft_model_file_open(gguf, &file));
		v = ft_model_file_vocabulary(file);
		assert_string_equal(v->model, "llama");
		assert_int_equal(v->n_merges, 0);
		assert_non_null(v->scores);
		assert_int_equal(v->types[v->unknown], FT_TOKEN_UNKNOWN);
		assert_int_equal(v->types[v->bos], FT_TOKEN_CONTROL);
		for (size_t t = 0, bytes = 0; t <= v->n_tokens; t++)
		{
			if (t == v->n_tokens)
				assert_int_equal(bytes, 256);
			else
				bytes += v->types[t] == FT_TOKEN_BYTE;
		}
		ft_model_file_close(file);

		if (!json)
		{
			assert_int_equal(export_to(gguf, "again", false), FT_UNSUPPORTED);
			assert_non_null(strstr(ft_error_message(),
								   "a space before text behind a special token, "
								   "unless there is one"));
			continue;
		}
		must(export_to(gguf, "again", false));
		check_same(base, path_in("again", ""), false);
		/* a GGUF file of that one is the same again */
		must(export_to(path_in("again", ""), "more", true));
		check_same(base, path_in("more", "model.gguf"), false);
	}
}

/* --- what a GGUF file's scores cannot say --- */

/* <unk>, bytes, these pieces and <|x|>, which is added and not special, with these merges. */
static void
write_tokenizer(const char *folder, const char *const *pieces, size_t n_pieces,
				const char *const *merges, size_t n_merges, bool byte_fallback)
{
	json_t *vocab = json_object();
	json_t *list = json_array();
	json_t *json;
	char name[16];
	int id = 0;

	json_object_set_new(vocab, "<unk>", json_integer(id++));
	for (int byte = 0; byte < 256; byte++)
	{
		snprintf(name, sizeof name, "<0x%02X>", byte);
		json_object_set_new(vocab, name, json_integer(id++));
	}
	for (size_t i = 0; i < n_pieces; i++)
		json_object_set_new(vocab, pieces[i], json_integer(id++));
	json_object_set_new(vocab, "<|x|>", json_integer(id));
	for (size_t i = 0; i < n_merges; i++)
		json_array_append_new(list, json_string(merges[i]));
	json = json_pack("{s:[{s:i, s:s, s:b}, {s:i, s:s, s:b}], s:{s:s, s:{s:s}, s:s}, s:{s:s, "
					 "s:{s:s}, s:s}, s:{s:s, s:b, s:s, "
					 "s:b, s:o, s:o}}",
					 "added_tokens", "id", 0, "content", "<unk>", "special", 1, "id", id, "content",
					 "<|x|>", "special", 0, "normalizer", "type", "Replace", "pattern", "String",
					 " ", "content", "\xe2\x96\x81", "decoder", "type", "Replace", "pattern",
					 "String", "\xe2\x96\x81", "content", " ", "model", "type", "BPE",
					 "byte_fallback", (int) byte_fallback, "unk_token", "<unk>", "fuse_unk", 1,
					 "vocab", vocab, "merges", list);
	fresh(folder);
	assert_int_equal(json_dump_file(json, path_in(folder, "tokenizer.json"), 0), 0);
	json_decref(json);
	write_model(folder, id + 1);
}

/* A user's text may have a token that only looks like a chat template's. */
static void
check_added(const char *path)
{
	ft_tokenizer *t = tokenizer_of(path);
	ft_ids ids = {0};

	must(ft_tokenizer_encode(t, "a<|x|>", 6, false, &ids));
	assert_int_equal(ids.data[ids.length - 1], ft_tokenizer_find(t, "<|x|>"));
	ft_ids_free(&ids);
	ft_tokenizer_free(t);
}

static void
test_merges(void **state)
{
	static const char *const pieces[] = {"a", "b", "c", "ab", "bc", "abc"};
	static const struct
	{
		const char *merges[4];
		size_t n;
		ft_status status;
	} cases[] = {
		{{"a b", "b c", "a bc", "ab c"}, 4, FT_OK},
		{{"a bc", "ab c", "b c", "a b"}, 4, FT_OK},
		/* a way to make a token is not listed, or all of them */
		{{"a b", "ab c", "a bc"}, 3, FT_UNSUPPORTED},
		{{"a b", "b c", "ab c"}, 3, FT_UNSUPPORTED},
		/* tokens of one score, by ids and by lengths */
		{{"a b", "a bc", "b c", "ab c"}, 4, FT_OK},
		{{"ab c", "a bc", "a b", "b c"}, 4, FT_OK},
		{{"ab c", "a b", "b c", "a bc"}, 4, FT_UNSUPPORTED},
		/* another token comes between */
		{{"a b", "ab c", "b c", "a bc"}, 4, FT_UNSUPPORTED},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		ft_status status;

		write_tokenizer("base", pieces, 6, cases[i].merges, cases[i].n, true);
		status = export_to(path_in("base", ""), "gguf", true);
		if (status != cases[i].status)
			fail_msg("case %zu: %s, %s", i, ft_status_name(status), ft_error_message());
		if (status == FT_OK)
		{
			check_same(path_in("base", ""), path_in("gguf", "model.gguf"), false);
			check_added(path_in("base", ""));
			check_added(path_in("gguf", "model.gguf"));
		}
		else
		{
			assert_non_null(strstr(ft_error_message(), "are not those of any scores"));
			assert_non_null(
				strstr(ft_error_message(), cases[i].n == 4 ? "the 4 merges" : "the 3 merges"));
		}
	}
	write_tokenizer("base", pieces, 6, cases[0].merges, 4, false);
	assert_int_equal(export_to(path_in("base", ""), "gguf", true), FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "does not fall back to bytes"));
}

/* --- of GGUF files --- */

/* A file of these tokens, with falling scores. */
static void
build(gguf_build *b, const char *const *tokens, const int32_t *types, size_t n)
{
	struct __attribute__((packed))
	{
		uint32_t type;
		uint64_t n;
		float values[16];
	} scores = {6, n, {0}};

	assert_true(n <= 16);
	for (size_t i = 0; i < n; i++)
		scores.values[i] = -(float) i;
	gguf_build_string(b, "tokenizer.ggml.model", "llama");
	gguf_build_strings(b, "tokenizer.ggml.tokens", tokens, n);
	gguf_build_i32s(b, "tokenizer.ggml.token_type", types, n);
	gguf_build_raw(b, "tokenizer.ggml.scores", 9, &scores, 12 + 4 * n);
	gguf_build_llama(b);
}

static ft_status
export_built(gguf_build *b)
{
	ft_model_file *file;
	ft_merge *merge;
	ft_status status;

	must(gguf_build_open_model(b, &file));
	must(ft_merge_open(file, NULL, 1, &merge));
	status = ft_export_safetensors(merge, FT_F32, 1 << 30, fresh("out"));
	ft_merge_close(merge);
	ft_model_file_close(file);
	return status;
}

/* What looks like a chat template's token is one in tokenizer.json, too; merges go by the scores,
 * and of one score by what is merged. */
static void
test_json(void **state)
{
	static const char *const tokens[] = {"<unk>", "<s>", "<|x|>", "<t>", "abc",
										 "ab",    "bc",  "a",     "b",   "c"};
	static const int32_t types[] = {2, 3, 4, 4, 1, 1, 1, 1, 1, 1};
	static const char *const merges[] = {"ab c", "a bc", "a b", "b c"};
	gguf_build b = {0};
	json_t *json;
	json_t *added;
	json_t *model;

	(void) state;
	build(&b, tokens, types, 10);
	must(export_built(&b));
	json = json_load_file(path_in("out", "tokenizer.json"), 0, NULL);
	added = json_object_get(json, "added_tokens");
	assert_int_equal(json_array_size(added), 4);
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(json_is_true(json_object_get(json_array_get(added, i), "special")), i < 3);
	model = json_object_get(json, "model");
	assert_true(json_is_true(json_object_get(model, "byte_fallback")));
	assert_int_equal(json_array_size(json_object_get(model, "merges")), 4);
	for (size_t i = 0; i < 4; i++)
		assert_string_equal(json_string_value(json_array_get(json_object_get(model, "merges"), i)),
							merges[i]);
	json_decref(json);
}

static void
test_refusals(void **state)
{
	static const char *const spaced[] = {"<unk>", "a", " ", "a "};
	static const char *const broken[] = {"<unk>", "a", "\xff"};
	static const char *const twice[] = {"<unk>", "a", "a"};
	static const int32_t types[] = {2, 1, 1, 1};
	gguf_build b = {0};

	(void) state;
	build(&b, spaced, types, 4);
	assert_int_equal(export_built(&b), FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "tokens 1 and 2 have a space that is not U+2581"));
	build(&b, broken, types, 3);
	assert_int_equal(export_built(&b), FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "token 2 of the vocabulary is no UTF-8"));
	build(&b, twice, types, 3);
	assert_int_equal(export_built(&b), FT_UNSUPPORTED);
	assert_non_null(strstr(ft_error_message(), "3 tokens of the vocabulary have only 2 texts"));

	gguf_build_string(&b, "pg_finetune.space_prefix", "second");
	build(&b, twice, types, 3);
	gguf_build_refused(&b, FT_UNSUPPORTED,
					   "key \"pg_finetune.space_prefix\" is \"second\", which is not supported");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_merges),
		cmocka_unit_test(test_json),
		cmocka_unit_test(test_refusals),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
