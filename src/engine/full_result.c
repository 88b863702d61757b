/*
 * full_result.c: the model that training all weights leaves behind, as a
 * directory that transformers and this engine load (export.h).
 *
 * Matrices are written as they were trained, norms and biases always in f32: so
 * that who loads the directory has the very model that was evaluated last.
 */
#include "full.h"

#include "export.h"
#include "files.h"

#include <string.h>
#include <sys/stat.h>

/* More in one file than transformers writes by default would be no use to anybody. */
#define SHARD_BYTES UINT64_C(5000000000)

/* An own name beside the result's, so that a result is never half there. */
static ft_status
make_temporary(const char *directory, char path[FT_PATH_SIZE])
{
	FT_TRY(ft_path_join(path, directory, FT_FULL_RESULT ".tmp"));
	FT_TRY(ft_remove_tree(path));
	return mkdir(path, 0700) == 0 ? FT_OK
								  : ft_fail_errno("could not create directory \"%s\"", path);
}

/* Remove it, and say again what went wrong. */
static ft_status
give_up(ft_status status, const char *temporary)
{
	char message[512];
	char hint[512];

	snprintf(message, sizeof message, "%s", ft_error_message());
	snprintf(hint, sizeof hint, "%s", ft_error_hint());
	ft_remove_tree(temporary);
	ft_fail(status, "%s", message);
	return hint[0] != '\0' ? ft_hint(status, "%s", hint) : status;
}

ft_status
ft_full_check(const ft_model_file *file, const char *directory)
{
	ft_merge merge = {.file = file};
	char temporary[FT_PATH_SIZE];
	ft_status status;

	FT_TRY(make_temporary(directory, temporary));
	status = ft_export_small_files(&merge, FT_F32, temporary);
	if (status != FT_OK)
		return give_up(status, temporary);
	return ft_remove_tree(temporary);
}

ft_status
ft_full_write(const ft_full *full, ft_stream *stream, const ft_model_file *file,
			  const char *directory, ft_tick tick, void *tick_context)
{
	ft_merge merge = {.file = file,
					  .trained = full->model->parameters,
					  .stream = stream,
					  .tick = tick,
					  .tick_context = tick_context};
	char temporary[FT_PATH_SIZE];
	char path[FT_PATH_SIZE];
	ft_status status;

	FT_TRY(ft_path_join(path, directory, FT_FULL_RESULT));
	FT_TRY(make_temporary(directory, temporary));
	status = ft_export_safetensors(&merge, full->model->parameters->dtype, SHARD_BYTES, temporary);
	/* one that is there is of an attempt that was killed before it could say so */
	if (status == FT_OK)
		status = ft_remove_tree(path);
	if (status == FT_OK)
		status = ft_rename_durably(temporary, path);
	return status == FT_OK ? FT_OK : give_up(status, temporary);
}
