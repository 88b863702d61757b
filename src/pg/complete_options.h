/*
 * complete_options.h: what a call of complete() asks for, as a request's JSON.
 */
#ifndef PGFT_COMPLETE_OPTIONS_H
#define PGFT_COMPLETE_OPTIONS_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/* What a request says beside its messages */
typedef struct PgftCompleteOptions
{
	char *system;        /* NULL: none */
	StringInfoData body; /* members of the request, without the braces */
	bool has_temperature;
	int n; /* answers; 0: not given */
	bool logprobs;
	int top_logprobs;
} PgftCompleteOptions;

/*
 * Options as given, NULL for none, with the default temperature filled in.  Raises 22023
 * for an option that does not exist or has a value that it may not have, 0A000
 * for a value that cannot be had.
 */
extern void pgft_complete_options_read(PgftCompleteOptions *options, Jsonb *given);

/*
 * Raise 22023 for options that make no sense for an answer in pieces, which
 * `function` gives.
 */
extern void
pgft_complete_options_check_stream(const PgftCompleteOptions *options, const char *function);

/*
 * The array of messages of a request, of a prompt or of the messages given
 * (the other is NULL), with the option `system` in front.  Raises 22023 with
 * the number of the message that is wrong.
 */
extern char *pgft_complete_messages_json(const PgftCompleteOptions *options, const char *prompt,
										 Jsonb *messages);

#endif
