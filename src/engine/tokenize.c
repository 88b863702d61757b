/*
 * tokenize.c: the program `tokenize`: text on standard input to ids, or ids to text.
 *
 * With --lines each line is a text of its own, as a JSON string, or a JSON list of ids.
 */
#include "model_file.h"
#include "programs.h"
#include "sampler.h"
#include "tokenizer.h"
#include "tokenizer_files.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct settings
{
	const char *path;
	bool special;
	bool decode;
	bool lines;
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

/* --- a line, a text --- */

static ft_status
encode_line(const ft_tokenizer *tokenizer, const settings *s, const json_t *value, ft_text *out)
{
	ft_ids ids = {0};
	ft_status status;

	if (!json_is_string(value))
		return ft_fail(FT_INVALID, "is no JSON string");
	status = ft_tokenizer_encode(tokenizer, json_string_value(value), json_string_length(value),
								 s->special, &ids);
	for (size_t i = 0; i < ids.length && status == FT_OK; i++)
		status = ft_text_printf(out, "%s%d", i > 0 ? " " : "", ids.data[i]);
	ft_ids_free(&ids);
	return status;
}

/* Valid text of any bytes; a NUL is a character like others here. */
static ft_status
append_valid(const ft_text *bytes, ft_text *text)
{
	for (size_t at = 0; at < bytes->length;)
	{
		size_t n = strnlen(bytes->data + at, bytes->length - at);

		FT_TRY(ft_text_make_valid(bytes->data + at, n, text));
		at += n;
		if (at < bytes->length)
			FT_TRY(ft_text_append(text, bytes->data + at++, 1));
	}
	return ft_text_append(text, "", 0);
}

static ft_status
append_json_string(const ft_text *text, ft_text *out)
{
	json_t *value = json_stringn(text->data, text->length);
	char *dump = value != NULL ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
	ft_status status = dump != NULL ? ft_text_append(out, dump, strlen(dump))
									: ft_fail(FT_NO_MEMORY, "out of memory: a line wanted");

	free(dump);
	json_decref(value);
	return status;
}

static ft_status
decode_line(const ft_tokenizer *tokenizer, const json_t *value, ft_text *out)
{
	ft_ids ids = {0};
	ft_text bytes = {0};
	ft_text text = {0};
	ft_status status =
		json_is_array(value) ? FT_OK : ft_fail(FT_INVALID, "is no list of token ids");

	for (size_t i = 0; i < json_array_size(value) && status == FT_OK; i++)
	{
		json_int_t id = json_integer_value(json_array_get(value, i));

		status = json_is_integer(json_array_get(value, i)) && id >= 0 && id <= INT32_MAX
					 ? ft_ids_push(&ids, (int32_t) id)
					 : ft_fail(FT_INVALID, "is no list of token ids");
	}
	if (status == FT_OK)
		status = ft_tokenizer_decode(tokenizer, ids.data, ids.length, false, &bytes);
	if (status == FT_OK)
		status = append_valid(&bytes, &text);
	if (status == FT_OK)
		status = append_json_string(&text, out);
	ft_ids_free(&ids);
	ft_text_free(&bytes);
	ft_text_free(&text);
	return status;
}

static ft_status
translate_line(const ft_tokenizer *tokenizer, const settings *s, const char *line, size_t n,
			   ft_text *out)
{
	json_t *value = json_loadb(line, n, JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
	ft_status status;

	if (value == NULL)
		return ft_fail(FT_INVALID, "is no JSON");
	status = s->decode ? decode_line(tokenizer, value, out) : encode_line(tokenizer, s, value, out);
	json_decref(value);
	return status == FT_OK ? ft_text_append(out, "\n", 1) : status;
}

static ft_status
translate_lines(const ft_tokenizer *tokenizer, const settings *s, const ft_text *in, ft_text *out)
{
	const char *line = in->data;
	const char *end = in->data + in->length;

	for (size_t number = 1; line < end; number++)
	{
		const char *newline = memchr(line, '\n', (size_t) (end - line));
		size_t n = (size_t) ((newline != NULL ? newline : end) - line);
		ft_status status = translate_line(tokenizer, s, line, n, out);

		if (status != FT_OK)
			return ft_context(status, "line %zu of standard input: ", number);
		line += newline != NULL ? n + 1 : n;
	}
	return FT_OK;
}

/* --- the program --- */

/* A directory's tokeniser needs no weights and no configuration of a model. */
static ft_status
open_directory(int fd, const char *path, ft_tokenizer **tokenizer)
{
	ft_tokenizer_files *files;
	ft_status status;

	FT_TRY(ft_tokenizer_files_read(fd, path, &files));
	status = ft_tokenizer_create(ft_tokenizer_files_vocabulary(files), tokenizer);
	if (status != FT_OK)
		status = ft_context(status, "tokenizer file \"%s/%s\": ", path,
							ft_tokenizer_files_source(files));
	ft_tokenizer_files_free(files);
	return status;
}

static ft_status
open_tokenizer(const char *path, ft_tokenizer **tokenizer)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	ft_model_file *file;
	ft_status status;

	if (fd >= 0)
	{
		status = open_directory(fd, path, tokenizer);
		close(fd);
		return status;
	}
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
	if (status == FT_OK && s->lines)
		status = translate_lines(tokenizer, s, &in, &out);
	else if (status == FT_OK)
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
	static const struct option options[] = {{"special", no_argument, NULL, 's'},
											{"decode", no_argument, NULL, 'd'},
											{"lines", no_argument, NULL, 'l'},
											{0}};
	settings s = {0};
	bool usage = false;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		if (c == 's')
			s.special = true;
		else if (c == 'd')
			s.decode = true;
		else if (c == 'l')
			s.lines = true;
		else
			usage = true;
	}
	if (usage || argc - optind != 1)
	{
		fprintf(stderr,
				"usage: pg_finetune_engine tokenize FILE [--special] [--decode] [--lines]\n");
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
