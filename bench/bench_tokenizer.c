/*
 * bench_tokenizer.c: text to token ids on one core.
 *
 *   bench_tokenizer [TOKENIZER TEXT [BYTES [ask]]]
 *   bench_tokenizer TOKENIZER inputs
 *
 * TOKENIZER is a directory with a tokeniser's files or a GGUF file, TEXT a file, which is tokenised
 * in documents of about BYTES (0: in one), cut at line ends.  Printed is the median of five runs.
 * With `ask` there is a run, and a line with its seconds and tokens, for each line of standard
 * input, so that whoever calls can alternate with another program.  Time is the processor's.
 *
 * `inputs`: 1 MB of each of many kinds of text, the faster of two runs each; and how many times
 * the slowest takes as long as the fastest.
 */
#include "bench.h"
#include "files.h"
#include "model_file.h"
#include "random.h"
#include "tokenizer_files.h"

#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define RUNS 5
#define MODEL "cache/SmolLM2-135M-Instruct.Q4_1.gguf"

static ft_tokenizer *
open_tokenizer(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY);
	ft_tokenizer *tokenizer;

	if (fd >= 0)
	{
		ft_tokenizer_files *files;

		must(ft_tokenizer_files_read(fd, path, &files));
		must(ft_tokenizer_create(ft_tokenizer_files_vocabulary(files), &tokenizer));
		ft_tokenizer_files_free(files);
		close(fd);
	}
	else
	{
		ft_model_file *file;

		must(ft_model_file_open(path, &file));
		must(ft_tokenizer_create(ft_model_file_vocabulary(file), &tokenizer));
		ft_model_file_close(file);
	}
	return tokenizer;
}

/* Bytes of the document that text[0, n) begins with. */
static size_t
document(const char *text, size_t n, size_t bytes)
{
	const char *end;

	if (bytes == 0 || bytes >= n)
		return n;
	end = memchr(text + bytes, '\n', n - bytes);
	return end != NULL ? (size_t) (end - text) + 1 : n;
}

static double
cpu_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (double) now.tv_sec + 1e-9 * (double) now.tv_nsec;
}

static double
run(const ft_tokenizer *tokenizer, const ft_text *text, size_t bytes, size_t *tokens)
{
	ft_ids ids = {0};
	double start = cpu_seconds();

	*tokens = 0;
	for (size_t at = 0, n; at < text->length; at += n)
	{
		n = document(text->data + at, text->length - at, bytes);
		ft_ids_clear(&ids);
		must(ft_tokenizer_encode(tokenizer, text->data + at, n, false, &ids));
		*tokens += ids.length;
	}
	ft_ids_free(&ids);
	return cpu_seconds() - start;
}

/* --- many kinds of text --- */

#define INPUT_BYTES (1 << 20)

typedef struct input
{
	const char *name;
	const char *unit; /* repeated */
	const char *set;  /* or: drawn from these characters */
	size_t set_bytes; /* of each character; 0: one */
} input;

static const input inputs[] = {
	{"letter", "a", NULL, 0},
	{"two letters", "ab", NULL, 0},
	{"space", " ", NULL, 0},
	{"newline", "\n", NULL, 0},
	{"tab", "\t", NULL, 0},
	{"NUL", NULL, "\0", 0},
	{"digit", "1", NULL, 0},
	{"digits", "1234567890", NULL, 0},
	{"minus", "-", NULL, 0},
	{"quote", "'", NULL, 0},
	{"space and letter", " a", NULL, 0},
	{"letter and newline", "a\n", NULL, 0},
	{"words", "the quick brown fox jumps over the lazy dog ", NULL, 0},
	{"one word", "thequickbrownfoxjumpsoverthelazydog", NULL, 0},
	{"accented", "\xc3\xa9", NULL, 0},
	{"Chinese", "\xe4\xb8\xad", NULL, 0},
	{"Chinese text", "\xe4\xbb\x8a\xe5\xa4\xa9\xe5\xa4\xa9\xe6\xb0\x94\xe5\xbe\x88\xe5\xa5\xbd",
	 NULL, 0},
	{"marks", "\xcc\xa3\xcc\x80", NULL, 0},
	{"Hangul", "\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", NULL, 0},
	{"emoji", "\xf0\x9f\x91\x8d", NULL, 0},
	{"joined emoji", "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9\xe2\x80\x8d", NULL, 0},
	{"U+2581", "\xe2\x96\x81", NULL, 0},
	{"no UTF-8", "\xff", NULL, 0},
	{"half a character", "\xe4\xb8", NULL, 0},
	{"begun special token", "<|im_", NULL, 0},
	{"less-than", "<", NULL, 0},
	{"special token", "<|im_end|>", NULL, 0},
	{"drawn letters", NULL, "abcdefghijklmnopqrstuvwxyz", 0},
	{"drawn letters and spaces", NULL, "abcdefghijklmnopqrstuvwxyz      ", 0},
	{"drawn capitals and digits", NULL, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/", 0},
	{"two drawn letters", NULL, "ab", 0},
	{"drawn signs", NULL, "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~", 0},
	{"drawn space", NULL, " \t\n\r", 0},
	{"drawn Chinese", NULL,
	 "\xe4\xbb\x8a\xe5\xa4\xa9\xe6\xb0\x94\xe5\xbe\x88\xe5\xa5\xbd\xe9\xbe\x98", 3},
	{"any bytes", NULL, NULL, 0},
};

#define N_INPUTS (sizeof inputs / sizeof inputs[0])

static void
fill(const input *in, char *to, size_t n)
{
	size_t each = in->set_bytes > 0 ? in->set_bytes : 1;
	/* a NUL is a character as well */
	size_t set = in->set != NULL && in->set[0] != '\0' ? strlen(in->set) / each : 1;
	size_t unit = in->unit != NULL ? strlen(in->unit) : 0;

	for (size_t i = 0; i < n; i++)
	{
		if (in->unit != NULL)
			to[i] = in->unit[i % unit];
		else if (in->set != NULL)
			to[i] = in->set[ft_random_below(1, 0, i / each, set) * each + i % each];
		else
			to[i] = (char) ft_random_below(1, 0, i, 256);
	}
}

static void
compare_inputs(const ft_tokenizer *tokenizer)
{
	ft_text text = {malloc(INPUT_BYTES), INPUT_BYTES, INPUT_BYTES};
	double fastest = 0;
	double slowest = 0;

	for (size_t i = 0; i < N_INPUTS; i++)
	{
		double best = 0;
		size_t tokens;

		fill(&inputs[i], text.data, text.length);
		for (int k = 0; k < RUNS / 2; k++)
		{
			double s = run(tokenizer, &text, 0, &tokens);

			best = k == 0 || s < best ? s : best;
		}
		printf("%s\t%.1f\tms\n", inputs[i].name, 1e3 * best);
		fflush(stdout);
		fastest = i == 0 || best < fastest ? best : fastest;
		slowest = best > slowest ? best : slowest;
	}
	printf("slowest/fastest\t%.2f\n", slowest / fastest);
	ft_text_free(&text);
}

int
main(int argc, char **argv)
{
	ft_text text = {0};
	ft_tokenizer *tokenizer = open_tokenizer(argc > 1 ? argv[1] : MODEL);
	size_t bytes = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;
	double seconds[RUNS];
	size_t tokens;
	char line[64];

	if (argc > 2 && strcmp(argv[2], "inputs") == 0)
	{
		compare_inputs(tokenizer);
		ft_tokenizer_free(tokenizer);
		return 0;
	}
	must(ft_read_file(argc > 2 ? argv[2] : "README.md", 1 << 30, &text));
	while (argc > 4 && fgets(line, sizeof line, stdin) != NULL)
	{
		double s = run(tokenizer, &text, bytes, &tokens);

		printf("%.6f %zu\n", s, tokens);
		fflush(stdout);
	}
	for (int i = 0; i < RUNS && argc <= 4; i++)
		seconds[i] = run(tokenizer, &text, bytes, &tokens);
	if (argc <= 4)
	{
		qsort(seconds, RUNS, sizeof seconds[0], ascending);
		printf("tokenize\t%.1f\tMB/s\n", (double) text.length / 1e6 / seconds[RUNS / 2]);
	}
	ft_text_free(&text);
	ft_tokenizer_free(tokenizer);
	return 0;
}
