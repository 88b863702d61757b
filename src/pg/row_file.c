/*
 * row_file.c: the rows of a query as JSON lines in a file.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "row_file.h"
#include "row_json.h"
#include "storage/fd.h"
#include "utils/memutils.h"

/* Rows that are fetched at once */
#define FETCH_ROWS 256

/* One JSON line being made, and where it goes */
typedef struct LineWriter
{
	FILE *file;
	char *path;          /* final name */
	char *temporary;     /* name until all is written */
	StringInfoData line; /* in the server's encoding */
	PgftRowWriter rows;
} LineWriter;

static void
open_writer(LineWriter *writer, const char *directory, const char *name)
{
	memset(writer, 0, sizeof(*writer));
	writer->path = psprintf("%s/%s", directory, name);
	writer->temporary = psprintf("%s.tmp", writer->path);
	initStringInfo(&writer->line);
	writer->file = AllocateFile(writer->temporary, "w");
	if (writer->file == NULL)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not create file \"%s\": %m", writer->temporary)));
}

static void
write_failed(LineWriter *writer)
{
	/* a full disk may show itself by a short write only */
	if (errno == 0)
		errno = ENOSPC;
	ereport(ERROR, (errcode_for_file_access(),
					errmsg("could not write to file \"%s\": %m", writer->temporary)));
}

static void
close_writer(LineWriter *writer)
{
	errno = 0;
	if (fflush(writer->file) != 0 || pg_fsync(fileno(writer->file)) != 0)
		write_failed(writer);
	if (FreeFile(writer->file) != 0)
		write_failed(writer);
	(void) durable_rename(writer->temporary, writer->path, ERROR);
}

static void
write_row(LineWriter *writer, HeapTuple row, TupleDesc desc)
{
	char *converted;
	size_t length;

	resetStringInfo(&writer->line);
	pgft_row_write(&writer->rows, &writer->line, row, desc);
	converted = pg_server_to_any(writer->line.data, writer->line.len, PG_UTF8);
	length = converted == writer->line.data ? writer->line.len : strlen(converted);
	errno = 0;
	if (fwrite(converted, 1, length, writer->file) != length)
		write_failed(writer);
}

int64
pgft_rows_write(const char *query, const char *what, const char *directory, const char *name,
				PgftColumns *columns)
{
	LineWriter writer;
	SPIPlanPtr plan;
	Portal portal;
	MemoryContext batch =
		AllocSetContextCreate(CurrentMemoryContext, "rows of a query", ALLOCSET_DEFAULT_SIZES);

	plan = SPI_prepare(query, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);

	open_writer(&writer, directory, name);
	pgft_row_writer_init(&writer.rows, portal->tupDesc, what);
	for (;;)
	{
		MemoryContext old;
		SPITupleTable *table;
		uint64 count;

		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		table = SPI_tuptable;
		count = SPI_processed;
		if (count == 0)
			break;
		old = MemoryContextSwitchTo(batch);
		for (uint64 i = 0; i < count; i++)
		{
			write_row(&writer, table->vals[i], table->tupdesc);
			CHECK_FOR_INTERRUPTS();
			if (i % 16 == 15)
				MemoryContextReset(batch);
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(batch);
		SPI_freetuptable(table);
	}
	SPI_cursor_close(portal);
	close_writer(&writer);
	MemoryContextDelete(batch);
	*columns = writer.rows.columns;
	return writer.rows.rows;
}
