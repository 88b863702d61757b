/*
 * bench_tokenizer.c: text to token ids on one core.
 *
 *   bench_tokenizer [TOKENIZER TEXT [BYTES [ask]]]
 *
 * TOKENIZER is a directory with a tokeniser's files or a GGUF file, TEXT a file, which is tokenised
 * in documents of about BYTES (0: in one), cut at line ends.  Printed is the median of five runs.
 * With `ask` there is a run, and a line with its seconds and tokens, for each line of standard
 * input, so that whoever calls can alternate with another program.
 */
#include "bench.h"
#include "files.h"
#include "model_file.h"
#include "tokenizer_files.h"

#include <fcntl.h>
#include <string.h>
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
run(const ft_tokenizer *tokenizer, const ft_text *text, size_t bytes, size_t *tokens)
{
	ft_ids ids = {0};
	double start = ft_monotonic_seconds();

	*tokens = 0;
	for (size_t at = 0, n; at < text->length; at += n)
	{
		n = document(text->data + at, text->length - at, bytes);
		ft_ids_clear(&ids);
		must(ft_tokenizer_encode(tokenizer, text->data + at, n, false, &ids));
		*tokens += ids.length;
	}
	ft_ids_free(&ids);
	return ft_monotonic_seconds() - start;
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
