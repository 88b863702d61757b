/*
 * export.h: what finetune_export() has the engine write.
 */
#ifndef PGFT_EXPORT_H
#define PGFT_EXPORT_H

#include "model.h"

#define PGFT_FORMAT_PEFT "peft"

/* 22023, with a list of what there is, for a format that nobody writes. */
extern void pgft_export_check_format(const char *format);

/* Is the format an adapter's, which a full model does not have? */
extern bool pgft_export_is_adapter(const char *format);

/*
 * Write a tuned model that is ready into a directory that is not there yet, in
 * any format but PEFT's.  The directory appears whole or not at all, whatever
 * ends the statement.  A NOTICE where the base is quantised and the adapter is
 * merged into it.
 *
 * Errors: those of pgft_session_engine_run; of the file system; 42704 and kin
 * where the base cannot be had.
 */
extern void pgft_export_by_engine(PgftModel *model, const char *directory, const char *format);

/* Make a directory and the files in it as readable as what COPY writes. */
extern void pgft_export_set_modes(const char *directory);

#endif
