/*
 * job_file.h: job.json, which tells an engine what to do with a job directory.
 */
#ifndef PGFT_JOB_FILE_H
#define PGFT_JOB_FILE_H

#include "model.h"

typedef struct PgftJobFile
{
	const PgftModel *base;   /* resolved */
	const char *base_digest; /* that its file must have, hex; NULL: any */
	const char *adapter;     /* directory, relative to the data directory; NULL: none */
	int64 replay_from;       /* see src/engine/README.md; -1: nothing */
	Jsonb *options;          /* of pgft_options_for_engine; NULL: none */
	const char *export_path; /* directory that is to be made, absolute; NULL: none */
	const char *export_format;
} PgftJobFile;

/* Write directory/job.json, durably and in UTF-8.  Needs a transaction. */
extern void pgft_job_file_write(const PgftJobFile *file, const char *directory);

/* A copy of the text in which every `from`, which is not empty, is `to`. */
extern char *pgft_replace_text(const char *text, const char *from, const char *to);

#endif
