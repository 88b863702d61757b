/*
 * job_file.c: reading job.json.
 */
#include "job_file.h"

#include "buffer.h"
#include "files.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define MAX_JOB_FILE (1 << 20)
#define JOB_VERSION 1

/* A string, or NULL where the key is absent or null. */
static ft_status
take_string(const json_t *object, const char *key, const char *path, char **value)
{
	const json_t *item = json_object_get(object, key);

	*value = NULL;
	if (item == NULL || json_is_null(item))
		return FT_OK;
	if (!json_is_string(item))
		return ft_fail(FT_INVALID, "\"%s%s\" is no string", path, key);
	*value = strdup(json_string_value(item));
	return *value != NULL ? FT_OK : ft_fail(FT_NO_MEMORY, "out of memory");
}

static ft_status
take_int(const json_t *object, const char *key, const char *path, int low, int otherwise,
		 int *value)
{
	const json_t *item = json_object_get(object, key);

	*value = otherwise;
	if (item == NULL || json_is_null(item))
		return FT_OK;
	if (!json_is_integer(item) || json_integer_value(item) < low ||
		json_integer_value(item) > INT_MAX)
		return ft_fail(FT_INVALID, "\"%s%s\" is no integer of at least %d", path, key, low);
	*value = (int) json_integer_value(item);
	return FT_OK;
}

static ft_status
refuse_unknown(const json_t *object, const char *path, const char *const *known)
{
	const char *key;
	json_t *value;

	json_object_foreach ((json_t *) object, key, value)
	{
		bool found = false;

		for (int i = 0; known[i] != NULL; i++)
			found |= strcmp(key, known[i]) == 0;
		if (!found)
			return ft_fail(FT_INVALID, "unknown key \"%s%.60s\"", path, key);
	}
	return FT_OK;
}

static ft_status
read_base(const json_t *base, ft_job *job)
{
	static const char *const known[] = {"path",           "name",   "template",
										"context_length", "digest", NULL};

	if (!json_is_object(base))
		return ft_fail(FT_INVALID, "\"base\" is no object");
	FT_TRY(refuse_unknown(base, "base.", known));
	FT_TRY(take_string(base, "path", "base.", &job->base_path));
	FT_TRY(take_string(base, "name", "base.", &job->base_name));
	FT_TRY(take_string(base, "template", "base.", &job->base_template));
	FT_TRY(take_string(base, "digest", "base.", &job->base_digest));
	FT_TRY(take_int(base, "context_length", "base.", 1, 0, &job->context_length));
	if (job->base_path == NULL || job->base_path[0] == '\0')
		return ft_fail(FT_INVALID, "\"base.path\" is missing");
	if (job->base_name == NULL)
	{
		const char *slash = strrchr(job->base_path, '/');

		job->base_name = strdup(slash != NULL ? slash + 1 : job->base_path);
		if (job->base_name == NULL)
			return ft_fail(FT_NO_MEMORY, "out of memory");
	}
	return FT_OK;
}

static ft_status
read_numerics(const json_t *object, ft_job *job)
{
	char *name;
	ft_status status = FT_OK;

	FT_TRY(take_string(object, "numerics", "", &name));
	if (name == NULL || strcmp(name, "fast") == 0)
		job->numerics = FT_NUMERICS_FAST;
	else if (strcmp(name, "reference") == 0)
		job->numerics = FT_NUMERICS_REFERENCE;
	else
		status = ft_fail(FT_INVALID, "\"numerics\" is \"%.40s\", expected fast or reference", name);
	free(name);
	return status;
}

static ft_status
read_export(const json_t *object, ft_job *job)
{
	static const char *const known[] = {"path", "format", NULL};

	if (object == NULL || json_is_null(object))
		return FT_OK;
	if (!json_is_object(object))
		return ft_fail(FT_INVALID, "\"export\" is no object");
	FT_TRY(refuse_unknown(object, "export.", known));
	FT_TRY(take_string(object, "path", "export.", &job->export_path));
	FT_TRY(take_string(object, "format", "export.", &job->export_format));
	if (job->export_path == NULL || job->export_path[0] == '\0')
		return ft_fail(FT_INVALID, "\"export.path\" is missing");
	return job->export_format != NULL ? FT_OK : ft_fail(FT_INVALID, "\"export.format\" is missing");
}

static ft_status
read_job(const json_t *object, ft_job *job)
{
	static const char *const known[] = {"version", "base",        "device",  "threads", "numerics",
										"options", "replay_from", "adapter", "export",  NULL};
	const json_t *options = json_object_get(object, "options");
	int version;

	if (!json_is_object(object))
		return ft_fail(FT_INVALID, "not a JSON object");
	FT_TRY(refuse_unknown(object, "", known));
	FT_TRY(take_int(object, "version", "", 0, -1, &version));
	if (version != JOB_VERSION)
		return ft_fail(FT_UNSUPPORTED, "\"version\" is %d, expected %d", version, JOB_VERSION);
	FT_TRY(read_base(json_object_get(object, "base"), job));
	FT_TRY(take_string(object, "adapter", "", &job->adapter));
	FT_TRY(read_export(json_object_get(object, "export"), job));
	FT_TRY(take_string(object, "device", "", &job->device));
	if (job->device == NULL && (job->device = strdup("auto")) == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	FT_TRY(take_int(object, "threads", "", 1, 0, &job->threads));
	FT_TRY(read_numerics(object, job));
	FT_TRY(take_int(object, "replay_from", "", 0, -1, &job->replay_from));
	return ft_options_read(options, &job->options);
}

ft_status
ft_job_read(const char *directory, ft_job **result)
{
	char path[FT_PATH_SIZE];
	ft_text text = {0};
	json_error_t error;
	json_t *object = NULL;
	ft_job *job;
	ft_status status;

	*result = NULL;
	FT_TRY(ft_path_join(path, directory, "job.json"));
	FT_TRY(ft_alloc((void **) &job, 1, sizeof *job));
	status = ft_read_file(path, MAX_JOB_FILE, &text);
	if (status == FT_OK)
	{
		object = json_loadb(text.data, text.length, JSON_REJECT_DUPLICATES, &error);
		status = object != NULL ? read_job(object, job)
								: ft_fail(FT_INVALID, "not valid JSON at line %d", error.line);
		if (status != FT_OK)
			status = ft_context(status, "job.json: ");
	}
	json_decref(object);
	ft_text_free(&text);
	if (status != FT_OK)
	{
		ft_job_free(job);
		return status;
	}
	*result = job;
	return FT_OK;
}

void
ft_job_free(ft_job *job)
{
	if (job == NULL)
		return;
	free(job->base_path);
	free(job->base_name);
	free(job->base_template);
	free(job->base_digest);
	free(job->adapter);
	free(job->export_path);
	free(job->export_format);
	free(job->device);
	free(job);
}
