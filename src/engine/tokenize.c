/*
 * tokenize.c: the program `tokenize`: text on standard input to ids, or ids to text.
 */
#include "model_file.h"
#include "programs.h"
#include "tokenizer.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct settings
{
	const char *path;
	bool special;
	bool decode;
} settings;

static ft_status
read_input(ft_text *text)
{
	char chunk[65536];
	size_t n;

	/* so that text is never NULL */
	FT_TRY(ft_text_append(text, "", 0));
	while ((n = fread(chunk, 1, sizeof chunk, stdin)) > 0)
		FT_TRY(ft_text_append(text, chunk, n));
	if (ferror(stdin))
		return ft_fail_errno("could not read standard input");
	return FT_OK;
}

static ft_status
write_output(const ft_text *text)
{
	if (fwrite(text->data, 1, text->length, stdout) != text->length || fflush(stdout) != 0)
		return ft_fail_errno("could not write standard output");
	return FT_OK;
}

static ft_status
parse_ids(const char *text, ft_ids *ids)
{
	for (;;)
	{
		char *end;
		long id;

		while (isspace((unsigned char) *text))
			text++;
		if (*text == '\0')
			return FT_OK;
		errno = 0;
		id = strtol(text, &end, 10);
		if (end == text || errno != 0 || id < 0 || id > INT32_MAX ||
			(*end != '\0' && !isspace((unsigned char) *end)))
			return ft_fail(FT_INVALID, "number %zu on standard input is no token id",
						   ids->length + 1);
		FT_TRY(ft_ids_push(ids, (int32_t) id));
		text = end;
	}
}

static ft_status
translate(const ft_tokenizer *tokenizer, const settings *s, const ft_text *in, ft_ids *ids,
		  ft_text *out)
{
	if (s->decode)
	{
		FT_TRY(parse_ids(in->data, ids));
		return ft_tokenizer_decode(tokenizer, ids->data, ids->length, false, out);
	}
	FT_TRY(ft_tokenizer_encode(tokenizer, in->data, in->length, s->special, ids));
	for (size_t i = 0; i < ids->length; i++)
		FT_TRY(ft_text_printf(out, "%s%d", i > 0 ? " " : "", ids->data[i]));
	return ft_text_append(out, "\n", 1);
}

static ft_status
open_tokenizer(const char *path, ft_tokenizer **tokenizer)
{
	ft_model_file *file;
	ft_status status;

	FT_TRY(ft_model_file_open(path, &file));
	status = ft_tokenizer_create(ft_model_file_vocabulary(file), tokenizer);
	if (status != FT_OK)
		status = ft_context(status, "model file \"%s\": ", path);
	ft_model_file_close(file);
	return status;
}

static ft_status
run(const settings *s)
{
	ft_tokenizer *tokenizer;
	ft_text in = {0};
	ft_text out = {0};
	ft_ids ids = {0};
	ft_status status;

	FT_TRY(open_tokenizer(s->path, &tokenizer));
	status = read_input(&in);
	if (status == FT_OK)
		status = translate(tokenizer, s, &in, &ids, &out);
	if (status == FT_OK && out.length > 0)
		status = write_output(&out);
	ft_text_free(&in);
	ft_text_free(&out);
	ft_ids_free(&ids);
	ft_tokenizer_free(tokenizer);
	return status;
}

int
ft_tokenize_main(int argc, char **argv)
{
	static const struct option options[] = {
		{"special", no_argument, NULL, 's'}, {"decode", no_argument, NULL, 'd'}, {0}};
	settings s = {0};
	bool usage = false;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		if (c == 's')
			s.special = true;
		else if (c == 'd')
			s.decode = true;
		else
			usage = true;
	}
	if (usage || argc - optind != 1)
	{
		fprintf(stderr, "usage: pg_finetune_engine tokenize FILE [--special] [--decode]\n");
		return FT_EXIT_USAGE;
	}
	s.path = argv[optind];
	if (run(&s) != FT_OK)
	{
		fprintf(stderr, "%s\n", ft_error_message());
		if (ft_error_hint()[0] != '\0')
			fprintf(stderr, "hint: %s\n", ft_error_hint());
		return FT_EXIT_FAILED;
	}
	return FT_EXIT_DONE;
}
