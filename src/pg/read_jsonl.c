/*
 * read_jsonl.c: the SQL function finetune.read_jsonl(): the lines of a file on
 * the server as rows.
 *
 * Who may read what follows pg_read_file.  The file goes by line into a
 * tuplestore, so that neither it nor its rows have to fit into memory.
 *
 * PostgreSQL's own errors about text and JSON quote what they do not like; a
 * file may hold what its reader's log must not, so a line's errors are told by
 * its number.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "catalog/pg_authid.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "postmaster/syslogger.h"
#include "storage/fd.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

#define READ_SIZE 65536

typedef struct LineReader
{
	const char *path;
	FILE *file;
	StringInfoData line; /* without its line feed */
	int64 number;        /* of the line, from 1 */
	char buffer[READ_SIZE];
	size_t length; /* of what is in the buffer */
	size_t at;     /* of what is not used yet */
} LineReader;

/* Where one may look who may only call the function. */
static bool
is_common_path(const char *path)
{
	if (!is_absolute_path(path))
		return path_is_relative_and_below_cwd(path);
	if (path_contains_parent_reference(path))
		return false;
	return path_is_prefix_of_path(DataDir, path) ||
		   (is_absolute_path(Log_directory) && path_is_prefix_of_path(Log_directory, path));
}

/*
 * The path as it is to be opened, from the data directory.  Members of
 * pg_read_server_files read any file; others who were granted EXECUTE read below
 * the data directory, and the directory of logs.
 */
static char *
check_path(text *given)
{
	char *path = text_to_cstring(given);

	canonicalize_path(path);
	if (!has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES) && !is_common_path(path))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied to read file \"%s\"", path),
						errhint("Only members of pg_read_server_files may read files outside of "
								"the data directory.")));
	return path;
}

static void
open_file(LineReader *reader, const char *path)
{
	struct stat st;

	/* to open a pipe would wait for its writer, out of reach of a cancel */
	if (stat(path, &st) < 0)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not stat file \"%s\": %m", path)));
	if (!S_ISREG(st.st_mode))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("\"%s\" is not a regular file", path)));
	reader->path = path;
	reader->file = AllocateFile(path, PG_BINARY_R);
	if (reader->file == NULL)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not open file \"%s\": %m", path)));
	initStringInfo(&reader->line);
}

static bool
fill_buffer(LineReader *reader)
{
	CHECK_FOR_INTERRUPTS();
	reader->at = 0;
	reader->length = fread(reader->buffer, 1, READ_SIZE, reader->file);
	if (ferror(reader->file))
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not read file \"%s\": %m", reader->path)));
	return reader->length > 0;
}

/* Add to the line what belongs to it; a string is at most MaxAllocSize long. */
static void
add_to_line(LineReader *reader, const char *data, size_t n)
{
	if (n >= MaxAllocSize - reader->line.len)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("line " INT64_FORMAT " of file \"%s\" is longer than %zu bytes",
							   reader->number, reader->path, (size_t) MaxAllocSize)));
	appendBinaryStringInfo(&reader->line, data, (int) n);
}

/* The next line; false at the end of the file, whose last line may lack its line feed. */
static bool
next_line(LineReader *reader)
{
	bool any = false;

	resetStringInfo(&reader->line);
	reader->number++;
	for (;;)
	{
		const char *data = reader->buffer + reader->at;
		const char *end;

		if (reader->at == reader->length)
		{
			if (!fill_buffer(reader))
				return any;
			data = reader->buffer;
		}
		any = true;
		end = memchr(data, '\n', reader->length - reader->at);
		if (end != NULL)
		{
			add_to_line(reader, data, end - data);
			reader->at += end - data + 1;
			return true;
		}
		add_to_line(reader, data, reader->length - reader->at);
		reader->at = reader->length;
	}
}

static bool
is_blank(const StringInfoData *line)
{
	return strspn(line->data, " \t\r") == line->len;
}

/* What is wrong with the line, without what stands in it. */
static void
line_failed(LineReader *reader, const ErrorData *error)
{
	const char *wrong = "cannot be read as jsonb";

	if (error->sqlerrcode == ERRCODE_INVALID_TEXT_REPRESENTATION)
		wrong = "is not valid JSON";
	else if (error->sqlerrcode == ERRCODE_CHARACTER_NOT_IN_REPERTOIRE)
		wrong = "is not valid UTF-8";
	else if (error->sqlerrcode == ERRCODE_UNTRANSLATABLE_CHARACTER)
		wrong = "has a character that jsonb cannot hold in this database's encoding";
	ereport(ERROR, (errcode(error->sqlerrcode), errmsg("line " INT64_FORMAT " of file \"%s\" %s",
													   reader->number, reader->path, wrong)));
}

/* The line as jsonb, in the server's encoding. */
static Datum
parse_line(const LineReader *reader)
{
	const char *data = reader->line.data;
	int length = reader->line.len;

	/* an editor's mark that this is UTF-8 */
	if (reader->number == 1 && length >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0)
	{
		data += 3;
		length -= 3;
	}
	/* in an SQL_ASCII database, too, a zero byte must not end a line */
	(void) pg_verify_mbstr(PG_UTF8, data, length, false);
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(pg_any_to_server(data, length, PG_UTF8)));
}

/* The same, with errors that say where the line is and quote nothing. */
static Datum
parse_line_quietly(LineReader *reader)
{
	MemoryContext context = CurrentMemoryContext;
	Datum value = (Datum) 0;

	PG_TRY();
	{
		value = parse_line(reader);
	}
	PG_CATCH();
	{
		ErrorData *error;
		int category;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		category = ERRCODE_TO_CATEGORY(error->sqlerrcode);
		if (category != ERRCODE_DATA_EXCEPTION && category != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			PG_RE_THROW();
		FlushErrorState();
		line_failed(reader, error);
	}
	PG_END_TRY();
	return value;
}

static void
read_lines(LineReader *reader, ReturnSetInfo *result)
{
	MemoryContext of_line =
		AllocSetContextCreate(CurrentMemoryContext, "line of JSON", ALLOCSET_DEFAULT_SIZES);

	while (next_line(reader))
	{
		MemoryContext old = MemoryContextSwitchTo(of_line);
		bool isnull = false;
		Datum value;

		if (!is_blank(&reader->line))
		{
			value = parse_line_quietly(reader);
			tuplestore_putvalues(result->setResult, result->setDesc, &value, &isnull);
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(of_line);
	}
	MemoryContextDelete(of_line);
}

PG_FUNCTION_INFO_V1(pgft_read_jsonl);

Datum
pgft_read_jsonl(PG_FUNCTION_ARGS)
{
	LineReader *reader = palloc0(sizeof(LineReader));

	open_file(reader, check_path(PG_GETARG_TEXT_PP(0)));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	read_lines(reader, (ReturnSetInfo *) fcinfo->resultinfo);
	if (FreeFile(reader->file) != 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not close file \"%s\": %m", reader->path)));
	pfree(reader->line.data);
	pfree(reader);
	return (Datum) 0;
}
