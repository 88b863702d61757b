/*
 * instance.c: the file "instance" of the work directory.
 *
 * A line: the identity, the cluster's system identifier, and the inode of its
 * data directory.  A base backup leaves the work directory out; a copy that
 * has it (cp, rsync) has another inode; a work directory that two clusters
 * were given by mistake has another system identifier.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "instance.h"
#include "miscadmin.h"
#include "paths.h"
#include "settings.h"
#include "storage/fd.h"
#include "utils/fmgrprotos.h"

#define LINE_SIZE 128
#define UUID_TEXT 36

static bool
parse_uuid(const char *text, pg_uuid_t *id)
{
	for (int i = 0; i < UUID_LEN; i++)
	{
		unsigned int byte;

		text += *text == '-';
		if (sscanf(text, "%2x", &byte) != 1)
			return false;
		id->data[i] = byte;
		text += 2;
	}
	return true;
}

/* What must follow the identity in the file for it to be ours. */
static void
format_place(char text[LINE_SIZE])
{
	struct stat st = {0};

	(void) stat(".", &st);
	snprintf(text, LINE_SIZE, " " UINT64_FORMAT " %llu\n", GetSystemIdentifier(),
			 (unsigned long long) st.st_ino);
}

static bool
read_instance(const char *path, const char *place, pg_uuid_t *id)
{
	char line[LINE_SIZE] = "";
	FILE *file = fopen(path, PG_BINARY_R);

	if (file == NULL)
		return false;
	if (fgets(line, sizeof(line), file) == NULL)
		line[0] = '\0';
	fclose(file);
	return strlen(line) > UUID_TEXT && strcmp(line + UUID_TEXT, place) == 0 && parse_uuid(line, id);
}

/* Under a temporary name first, so that there is never half of it. */
static bool
write_instance(const char *path, const char *place, const pg_uuid_t *id)
{
	char *temporary = psprintf("%s.tmp", path);
	char *text = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
	FILE *file = fopen(temporary, PG_BINARY_W);
	bool written;

	if (file == NULL)
		return false;
	written = fprintf(file, "%s%s", text, place) > 0;
	return fclose(file) == 0 && written && durable_rename(temporary, path, LOG) == 0;
}

void
pgft_instance_load(pg_uuid_t *id)
{
	char *path = pgft_work_path("instance");
	char place[LINE_SIZE];

	format_place(place);
	if (read_instance(path, place, id))
		return;
	*id = *DatumGetUUIDP(DirectFunctionCall1(gen_random_uuid, (Datum) 0));
	if ((MakePGDirectory(pgft_work_directory) != 0 && errno != EEXIST) ||
		!write_instance(path, place, id))
		ereport(LOG, (errcode_for_file_access(), errmsg("could not write file \"%s\": %m", path),
					  errdetail("Jobs that are unfinished at the next start will be paused.")));
}

bool
pgft_instance_is_standby(void)
{
	struct stat st;

	return stat(STANDBY_SIGNAL_FILE, &st) == 0;
}
