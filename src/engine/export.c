/*
 * export.c: the program `export JOBDIR`: a base with an adapter, as files for
 * other programs (README.md).
 *
 * All is written below a temporary name, synced, and then renamed: the directory
 * that was asked for is there whole or not at all.
 */
#include "export.h"

#include "programs.h"
#include "setup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* As transformers cuts models by default */
#define SHARD_BYTES UINT64_C(5000000000)

typedef enum kind
{
	SAFETENSORS,
	GGUF,
	GGUF_ADAPTER
} kind;

/* FT_DTYPE_COUNT: as the base has it. */
static const struct
{
	const char *name;
	kind kind;
	ft_dtype to;
} formats[] = {
	{"safetensors", SAFETENSORS, FT_DTYPE_COUNT},
	{"safetensors-f32", SAFETENSORS, FT_F32},
	{"safetensors-f16", SAFETENSORS, FT_F16},
	{"safetensors-bf16", SAFETENSORS, FT_BF16},
	{"gguf", GGUF, FT_F16},
	{"gguf-f32", GGUF, FT_F32},
	{"gguf-f16", GGUF, FT_F16},
	{"gguf-bf16", GGUF, FT_BF16},
	{"gguf-q8_0", GGUF, FT_Q8_0},
	{"gguf-adapter", GGUF_ADAPTER, FT_F32},
};

#define N_FORMATS (sizeof formats / sizeof formats[0])
#define FORMAT_NAMES                                                                    \
	"safetensors, safetensors-f32, safetensors-f16, safetensors-bf16, gguf, gguf-f32, " \
	"gguf-f16, gguf-bf16, gguf-q8_0, gguf-adapter"

/* --- files --- */

ft_status
ft_out_create(const char *directory, const char *name, ft_out *out)
{
	out->bytes = 0;
	FT_TRY(ft_path_join(out->path, directory, name));
	out->fd = open(out->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return out->fd >= 0 ? FT_OK : ft_fail_errno("could not create \"%s\"", out->path);
}

ft_status
ft_out_write(void *context, const void *bytes, size_t n)
{
	ft_out *out = context;

	out->bytes += n;
	return ft_write_all(out->fd, bytes, n, out->path);
}

ft_status
ft_out_finish(ft_out *out, ft_status status)
{
	if (status == FT_OK && fsync(out->fd) < 0)
		status = ft_fail_errno("could not fsync \"%s\"", out->path);
	/* what is synced cannot be lost by closing it */
	close(out->fd);
	return status;
}

ft_status
ft_out_file(const char *directory, const char *name, const char *text, size_t n)
{
	ft_out out;

	FT_TRY(ft_out_create(directory, name, &out));
	return ft_out_finish(&out, ft_out_write(&out, text, n));
}

/* --- the program --- */

typedef struct exporting
{
	ft_setup setup;
	ft_merge *merge;
	size_t format;
} exporting;

static ft_status
find_format(const char *name, size_t *format)
{
	for (*format = 0; *format < N_FORMATS; ++*format)
	{
		if (strcmp(formats[*format].name, name) == 0)
			return FT_OK;
	}
	return ft_hint(ft_fail(FT_INVALID, "unknown format \"%.40s\"", name),
				   "Formats are: " FORMAT_NAMES ".");
}

/* What nothing is lost by, or, of a quantised base, what is next to it. */
static ft_dtype
choose_type(const ft_model_file *file, ft_dtype wanted)
{
	bool f16 = true;

	for (int i = 0; wanted == FT_DTYPE_COUNT && i < ft_model_file_tensors(file); i++)
	{
		const ft_model_tensor *t = ft_model_file_tensor(file, i);

		if (t->rows > 1 && t->dtype == FT_F32)
			return FT_F32;
		if (t->rows > 1 && t->dtype != FT_F16)
			f16 = false;
	}
	return wanted != FT_DTYPE_COUNT ? wanted : f16 ? FT_F16 : FT_BF16;
}

static int
count_quantised(const ft_model_file *file)
{
	int n = 0;

	for (int i = 0; i < ft_model_file_tensors(file); i++)
		n += ft_dtype_get(ft_model_file_tensor(file, i)->dtype)->block_values > 1;
	return n;
}

static ft_status
write_files(exporting *e, const char *directory)
{
	ft_dtype to = choose_type(e->setup.file, formats[e->format].to);

	switch (formats[e->format].kind)
	{
		case SAFETENSORS:
			return ft_export_safetensors(e->merge, to, SHARD_BYTES, directory);
		case GGUF:
			return ft_export_gguf(e->merge, to, directory);
		default:
			return ft_export_gguf_adapter(e->merge, directory);
	}
}

static ft_status
write_directory(exporting *e)
{
	const char *path = e->setup.job->export_path;
	char temporary[FT_PATH_SIZE];
	struct stat st;
	ft_status status;

	if (lstat(path, &st) == 0)
		return ft_fail(FT_INVALID, "\"%s\" already exists", path);
	if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= (int) sizeof temporary)
		return ft_fail(FT_INVALID, "path is longer than %d", FT_PATH_SIZE - 1);
	FT_TRY(ft_remove_tree(temporary));
	if (mkdir(temporary, 0700) < 0)
		return ft_fail_errno("could not create directory \"%s\"", temporary);
	status = write_files(e, temporary);
	if (status == FT_OK)
		status = ft_rename_durably(temporary, path);
	if (status != FT_OK)
	{
		char message[512];
		char hint[512];

		/* the clean-up may fail too; what is told is the first failure */
		snprintf(message, sizeof message, "%s", ft_error_message());
		snprintf(hint, sizeof hint, "%s", ft_error_hint());
		ft_remove_tree(temporary);
		ft_fail(status, "%s", message);
		if (hint[0] != '\0')
			ft_hint(status, "%s", hint);
	}
	return status;
}

static ft_status
send_exported(const ft_setup *s)
{
	char *prompt_template = NULL;
	ft_status status = FT_OK;

	if (s->job->adapter != NULL)
		status = ft_peft_read_prompt_template(s->job->adapter, &prompt_template);
	if (status == FT_OK)
		status =
			ft_events_send(s->events, "exported",
						   json_pack("{s:i, s:s?}", "quantised_tensors", count_quantised(s->file),
									 "prompt_template", prompt_template));
	free(prompt_template);
	return status;
}

static ft_status
run(exporting *e)
{
	ft_setup *s = &e->setup;

	FT_TRY(ft_setup_lock(s));
	FT_TRY(ft_setup_open_base(s));
	if (s->job->export_path == NULL)
		return ft_fail(FT_INVALID, "\"export\" is missing");
	FT_TRY(find_format(s->job->export_format, &e->format));
	if (s->job->adapter == NULL && formats[e->format].kind == GGUF_ADAPTER)
		return ft_fail(FT_INVALID, "\"adapter\" is missing");
	ft_events_long_call(s->events, FT_LONG_CALL_SECONDS);
	FT_TRY(ft_merge_open(s->file, s->job->adapter, s->job->threads, &e->merge));
	e->merge->tick = ft_setup_tick;
	e->merge->tick_context = s;
	FT_TRY(write_directory(e));
	return send_exported(s);
}

int
ft_export_main(int argc, char **argv)
{
	exporting e = {0};
	ft_status status;
	int code;

	if (!ft_setup_arguments(&e.setup, argc, argv))
		return FT_EXIT_USAGE;
	status = ft_setup_start(&e.setup);
	if (status == FT_OK)
		status = run(&e);
	code = ft_setup_end(&e.setup, status);
	ft_merge_close(e.merge);
	ft_setup_close(&e.setup);
	return code;
}
