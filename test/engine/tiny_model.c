/*
 * tiny_model.c: writes a small random Llama model as a GGUF file.
 */
#include "tiny_model.h"

#include "files.h"
#include "random.h"
#include "safetensors.h"
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

const tiny_model tiny_default = {
	.hidden = 48,
	.ffn = 80,
	.layers = 2,
	.heads = 6,
	.kv_heads = 2,
	.head_dim = 8,
	.context = 256,
	.tied = true,
	.seed = 1,
};

enum
{
	GGUF_U32 = 4,
	GGUF_I32 = 5,
	GGUF_F32 = 6,
	GGUF_STRING = 8,
	GGUF_ARRAY = 9,
	GGML_F32 = 0,
	GGML_Q4_1 = 3,
};

typedef struct writer
{
	const tiny_model *model;
	ft_text keys;
	ft_text tensors;
	ft_text data;
	uint64_t n_keys;
	uint64_t n_tensors;
} writer;

static void
must(ft_status status)
{
	if (status == FT_OK)
		return;
	fprintf(stderr, "tiny model: %s\n", ft_error_message());
	exit(1);
}

static void
put(ft_text *to, const void *bytes, size_t n)
{
	must(ft_text_append(to, bytes, n));
}

static void
put_u32(ft_text *to, uint32_t value)
{
	put(to, &value, sizeof value);
}

static void
put_u64(ft_text *to, uint64_t value)
{
	put(to, &value, sizeof value);
}

static void
put_string(ft_text *to, const char *text)
{
	put_u64(to, strlen(text));
	put(to, text, strlen(text));
}

static void
key(writer *w, const char *name, uint32_t type)
{
	put_string(&w->keys, name);
	put_u32(&w->keys, type);
	w->n_keys++;
}

static void
key_u32(writer *w, const char *name, int value)
{
	key(w, name, GGUF_U32);
	put_u32(&w->keys, (uint32_t) value);
}

static void
key_f32(writer *w, const char *name, float value)
{
	key(w, name, GGUF_F32);
	put(&w->keys, &value, sizeof value);
}

static void
key_string(writer *w, const char *name, const char *value)
{
	key(w, name, GGUF_STRING);
	put_string(&w->keys, value);
}

static void
key_array(writer *w, const char *name, uint32_t type, uint64_t n)
{
	key(w, name, GGUF_ARRAY);
	put_u32(&w->keys, type);
	put_u64(&w->keys, n);
}

/* A byte in GPT-2's printable alphabet, as UTF-8. */
static void
printable_byte(int byte, char text[4])
{
	int n = 256;
	int code = byte;

	if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174))
	{
		for (int b = 0; b < byte; b++)
			n += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
		code = n;
	}
	if (code < 128)
		snprintf(text, 4, "%c", code);
	else
		snprintf(text, 4, "%c%c", 0xC0 | code >> 6, 0x80 | (code & 63));
}

static void
write_vocabulary(writer *w)
{
	static const char *const more[TINY_VOCABULARY - 256] = {
		"<|im_start|>", "<|im_end|>", "<|endoftext|>", "he", "ll", "er", "in", "on"};
	static const char *const merges[] = {"h e", "l l", "e r", "i n", "o n"};
	char text[4];

	key_string(w, "tokenizer.ggml.model", "gpt2");
	key_string(w, "tokenizer.ggml.pre", "smollm");
	key_array(w, "tokenizer.ggml.tokens", GGUF_STRING, TINY_VOCABULARY);
	for (int i = 0; i < TINY_VOCABULARY; i++)
	{
		printable_byte(i & 255, text);
		put_string(&w->keys, i < 256 ? text : more[i - 256]);
	}
	key_array(w, "tokenizer.ggml.token_type", GGUF_I32, TINY_VOCABULARY);
	for (int i = 0; i < TINY_VOCABULARY; i++)
		put_u32(&w->keys, i >= 256 && i < 259 ? FT_TOKEN_CONTROL : FT_TOKEN_NORMAL);
	key_array(w, "tokenizer.ggml.merges", GGUF_STRING, sizeof merges / sizeof merges[0]);
	for (size_t i = 0; i < sizeof merges / sizeof merges[0]; i++)
		put_string(&w->keys, merges[i]);
	key_u32(w, "tokenizer.ggml.eos_token_id", TINY_END);
	key_u32(w, "tokenizer.ggml.bos_token_id", TINY_START);
	key_string(w, "tokenizer.chat_template",
			   "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
			   "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if "
			   "add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}");
}

static float
noise(writer *w, uint64_t i)
{
	return 2 * ft_random_uniform(w->model->seed, w->n_tensors, i) - 1;
}

/* Blocks of 32 with d = m = ±a power of two: exact, and easy to make. */
static void
put_q4_1(writer *w, int64_t n)
{
	for (int64_t block = 0; block < n / 32; block++)
	{
		uint16_t d = 0x2000; /* 2^-7 */
		uint16_t m = 0xAC00; /* -2^-4 */
		uint32_t words[4];

		put(&w->data, &d, 2);
		put(&w->data, &m, 2);
		ft_philox(w->model->seed, w->n_tensors, (uint64_t) block, words);
		put(&w->data, words, 16);
	}
}

static void
tensor(writer *w, const char *name, int64_t rows, int64_t cols, float centre, float spread)
{
	bool quantised = w->model->q4_1 && rows > 1;

	put_string(&w->tensors, name);
	put_u32(&w->tensors, rows > 1 ? 2 : 1);
	put_u64(&w->tensors, (uint64_t) cols);
	if (rows > 1)
		put_u64(&w->tensors, (uint64_t) rows);
	put_u32(&w->tensors, quantised ? GGML_Q4_1 : GGML_F32);
	put_u64(&w->tensors, w->data.length);
	if (quantised)
		put_q4_1(w, rows * cols);
	else
		for (int64_t i = 0; i < rows * cols; i++)
		{
			float value = centre + spread * noise(w, (uint64_t) i);

			put(&w->data, &value, sizeof value);
		}
	while (w->data.length % 32 != 0)
		put(&w->data, "", 1);
	w->n_tensors++;
}

static void
write_tensors(writer *w)
{
	const tiny_model *m = w->model;
	char name[64];

	tensor(w, "token_embd.weight", TINY_VOCABULARY, m->hidden, 0, 1);
	for (int i = 0; i < m->layers; i++)
	{
		struct
		{
			const char *name;
			int rows;
			int cols;
		} parts[] = {
			{"attn_norm", 1, m->hidden},
			{"attn_q", m->heads * m->head_dim, m->hidden},
			{"attn_k", m->kv_heads * m->head_dim, m->hidden},
			{"attn_v", m->kv_heads * m->head_dim, m->hidden},
			{"attn_output", m->hidden, m->heads * m->head_dim},
			{"ffn_norm", 1, m->hidden},
			{"ffn_gate", m->ffn, m->hidden},
			{"ffn_up", m->ffn, m->hidden},
			{"ffn_down", m->hidden, m->ffn},
		};

		for (size_t p = 0; p < sizeof parts / sizeof parts[0]; p++)
		{
			snprintf(name, sizeof name, "blk.%d.%s.weight", i, parts[p].name);
			tensor(w, name, parts[p].rows, parts[p].cols, parts[p].rows == 1, 0.3f);
		}
	}
	tensor(w, "output_norm.weight", 1, m->hidden, 1, 0.3f);
	if (!m->tied)
		tensor(w, "output.weight", TINY_VOCABULARY, m->hidden, 0, 1);
	if (m->rope_freqs)
		tensor(w, "rope_freqs.weight", 1, m->head_dim / 2, 4, 3);
}

void
tiny_model_write(const char *path, const tiny_model *model)
{
	writer w = {.model = model};
	ft_text file = {0};

	key_string(&w, "general.architecture", "llama");
	key_u32(&w, "llama.block_count", model->layers);
	key_u32(&w, "llama.embedding_length", model->hidden);
	key_u32(&w, "llama.feed_forward_length", model->ffn);
	key_u32(&w, "llama.context_length", model->context);
	key_u32(&w, "llama.attention.head_count", model->heads);
	key_u32(&w, "llama.attention.head_count_kv", model->kv_heads);
	key_u32(&w, "llama.attention.key_length", model->head_dim);
	key_u32(&w, "llama.attention.value_length", model->head_dim);
	key_u32(&w, "llama.rope.dimension_count", model->head_dim);
	key_f32(&w, "llama.rope.freq_base", 10000);
	key_f32(&w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
	write_vocabulary(&w);
	write_tensors(&w);
	put(&file, "GGUF", 4);
	put_u32(&file, 3);
	put_u64(&file, w.n_tensors);
	put_u64(&file, w.n_keys);
	put(&file, w.keys.data, w.keys.length);
	put(&file, w.tensors.data, w.tensors.length);
	while (file.length % 32 != 0)
		put(&file, "", 1);
	put(&file, w.data.data, w.data.length);
	must(ft_replace_file(path, file.data, file.length));
	ft_text_free(&file);
	ft_text_free(&w.keys);
	ft_text_free(&w.tensors);
	ft_text_free(&w.data);
}

char *
tiny_directory(void)
{
	const char *root = getenv("TMPDIR");
	char path[FT_PATH_SIZE];
	char *directory;

	snprintf(path, sizeof path, "%s/tiny-XXXXXX", root ? root : "/tmp");
	directory = mkdtemp(path) ? strdup(path) : NULL;
	if (!directory)
	{
		perror("tiny model: mkdtemp");
		exit(1);
	}
	return directory;
}

void
tiny_remove(const char *directory)
{
	must(ft_remove_tree(directory));
}

void
tiny_adapter_write(const char *directory, const tiny_model *m, uint64_t seed)
{
	enum
	{
		RANK = 4,
		TARGETS = 7
	};
	const int q = m->heads * m->head_dim;
	const int kv = m->kv_heads * m->head_dim;
	const struct
	{
		const char *name;
		int in;
		int out;
	} targets[TARGETS] = {
		{"self_attn.q_proj", m->hidden, q},   {"self_attn.k_proj", m->hidden, kv},
		{"self_attn.v_proj", m->hidden, kv},  {"self_attn.o_proj", q, m->hidden},
		{"mlp.gate_proj", m->hidden, m->ffn}, {"mlp.up_proj", m->hidden, m->ffn},
		{"mlp.down_proj", m->ffn, m->hidden},
	};
	static const char config[] =
		"{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"lora_dropout\": 0.0, \"bias\": "
		"\"none\", \"fan_in_fan_out\": false, \"use_rslora\": false, \"use_dora\": false, "
		"\"target_modules\": [\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", "
		"\"up_proj\", \"down_proj\"], \"task_type\": \"CAUSAL_LM\"}\n";
	size_t n = (size_t) m->layers * TARGETS * 2;
	ft_safetensor_out *out;
	char path[FT_PATH_SIZE];

	mkdir(directory, 0700);
	must(ft_alloc((void **) &out, n, sizeof *out));
	for (size_t i = 0; i < n; i++)
	{
		size_t t = i / 2 % TARGETS;
		bool is_b = i & 1;
		int64_t rows = is_b ? targets[t].out : RANK;
		int64_t cols = is_b ? RANK : targets[t].in;
		float *values;
		char *name;

		must(ft_alloc((void **) &values, (size_t) (rows * cols), sizeof *values));
		for (int64_t k = 0; k < rows * cols; k++)
			values[k] = 0.4f * ft_random_uniform(seed, i, (uint64_t) k) - 0.2f;
		if (asprintf(&name, "base_model.model.model.layers.%zu.%s.lora_%c.weight",
					 i / (2 * TARGETS), targets[t].name, is_b ? 'B' : 'A') < 0)
			exit(1);
		out[i] = (ft_safetensor_out){.name = name, .rows = rows, .cols = cols, .values = values};
	}
	must(ft_path_join(path, directory, "adapter_model.safetensors"));
	must(ft_safetensors_write(path, out, n));
	must(ft_path_join(path, directory, "adapter_config.json"));
	must(ft_replace_file(path, config, sizeof config - 1));
	for (size_t i = 0; i < n; i++)
	{
		free((char *) out[i].name);
		free((float *) out[i].values);
	}
	free(out);
}
