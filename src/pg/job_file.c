/*
 * job_file.c: job.json, which tells an engine what to do with a job directory.
 */
#include "postgres.h"

#include "job_file.h"
#include "json.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "paths.h"
#include "settings.h"
#include "storage/fd.h"

static char *
describe_base(const PgftJobFile *file)
{
	const PgftModel *base = file->base;
	const char *digest = file->base_digest ? file->base_digest : pgft_model_root_digest(base);
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	pgft_json_add_string(&buf, "path", base->path);
	pgft_json_add_string(&buf, "name", base->name);
	if (base->chat_template)
		pgft_json_add_string(&buf, "template", base->chat_template);
	if (base->context_length > 0)
		pgft_json_add_int64(&buf, "context_length", base->context_length);
	if (digest)
		pgft_json_add_string(&buf, "digest", digest);
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

static char *
describe_export(const PgftJobFile *file)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	pgft_json_add_string(&buf, "path", file->export_path);
	pgft_json_add_string(&buf, "format", file->export_format);
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

void
pgft_job_file_write(const PgftJobFile *file, const char *directory)
{
	char *path = psprintf("%s/job.json", directory);
	char *temporary = psprintf("%s.tmp", path);
	StringInfoData buf;
	char *text;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	pgft_json_add_int64(&buf, "version", 1);
	pgft_json_add_raw(&buf, "base", describe_base(file));
	if (file->adapter)
		pgft_json_add_string(&buf, "adapter", pgft_absolute_path(file->adapter));
	if (file->export_path)
		pgft_json_add_raw(&buf, "export", describe_export(file));
	pgft_json_add_string(&buf, "device", pgft_device);
	pgft_json_add_int64(&buf, "threads", pgft_threads);
	pgft_json_add_string(&buf, "numerics", pgft_numerics_name());
	if (file->replay_from >= 0)
		pgft_json_add_int64(&buf, "replay_from", file->replay_from);
	if (file->options)
		pgft_json_add_raw(&buf, "options", JsonbToCString(NULL, &file->options->root, 0));
	appendStringInfoString(&buf, "}\n");
	text = pg_server_to_any(buf.data, buf.len, PG_UTF8);
	pgft_write_file(temporary, text, strlen(text));
	(void) durable_rename(temporary, path, ERROR);
}

char *
pgft_replace_text(const char *text, const char *from, const char *to)
{
	StringInfoData buf;
	const char *found;

	initStringInfo(&buf);
	while ((found = strstr(text, from)) != NULL)
	{
		appendBinaryStringInfo(&buf, text, found - text);
		appendStringInfoString(&buf, to);
		text = found + strlen(from);
	}
	appendStringInfoString(&buf, text);
	return buf.data;
}
