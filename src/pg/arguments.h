/*
 * arguments.h: arguments of the SQL functions.
 */
#ifndef PGFT_ARGUMENTS_H
#define PGFT_ARGUMENTS_H

#include "fmgr.h"

/* A required text argument (palloc'd); 22004, naming it and the function, when it is null. */
extern char *
pgft_text_argument(FunctionCallInfo fcinfo, int argno, const char *function, const char *name);

#endif
