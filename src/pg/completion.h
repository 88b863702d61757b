/*
 * completion.h: an answer of complete() or try_complete() that is asked for.
 *
 * What the SQL functions do for one row, in steps that do not wait, so that
 * many answers may be on their way at once.  An error of the request is kept
 * until the answer is taken; one of the statement (a cancel, a failure of the
 * catalog) is raised at once.
 */
#ifndef PGFT_COMPLETION_H
#define PGFT_COMPLETION_H

#include "engine_client.h"
#include "fmgr.h"

#define PGFT_COMPLETION_MAX_ARGS 3

/* Which of the SQL functions it is: complete() and try_complete() have three forms each */
typedef struct PgftCompletionForm
{
	PGFunction function;
	int nargs;
	bool messages;      /* the second argument is a conversation, else a prompt */
	bool as_jsonb;      /* the result, with options in the third argument */
	bool null_on_error; /* try_complete() */
} PgftCompletionForm;

/* The form of a function by OID; NULL when it is none of ours, or is wrapped (ALTER FUNCTION …
 * SET). */
extern const PgftCompletionForm *pgft_completion_form(Oid function);

/* The form that has this C function, which is one of ours. */
extern const PgftCompletionForm *pgft_completion_form_by_address(PGFunction function);

/*
 * Is an error of this kind the statement's and not the request's?  Cancelled by
 * the user, a timeout, a conflict with recovery, a shutdown.
 */
extern bool pgft_completion_ends_statement(int sqlstate);

typedef struct PgftCompletion PgftCompletion;

typedef struct PgftCompletionUsage
{
	int requests; /* sent to the engine */
	int64 prompt_tokens;
	int64 cached_tokens; /* of these: the engine had them from earlier prompts */
	int64 completion_tokens;
} PgftCompletionUsage;

/*
 * Ask: looks the model up with the rights of the current user, checks options
 * and messages, sends the request.  `args` are the function's arguments, none
 * null, and are needed only during the call.  All of it lives in a new child of
 * the current memory context; when that goes, the engine drops the request.
 */
extern PgftCompletion *pgft_completion_start(const PgftCompletionForm *form, const Datum *args);

/* Go on without waiting for the answer; true when it (or an error) is there. */
extern bool pgft_completion_poll(PgftCompletion *completion);

/* The request to wait for while there is no answer. */
extern PgftRequest *pgft_completion_request(const PgftCompletion *completion);

/* Once it is over: had the engine too many requests?  Then it can be asked again, once. */
extern bool pgft_completion_was_busy(const PgftCompletion *completion);
extern void pgft_completion_again(PgftCompletion *completion);

/* Once it is over: does taking it raise an error? */
extern bool pgft_completion_has_error(const PgftCompletion *completion);

extern const PgftCompletionUsage *pgft_completion_usage(const PgftCompletion *completion);

/*
 * Take the answer once it is over, in the caller's memory context; false for
 * null.  Raises the error that was kept.
 */
extern bool pgft_completion_take(PgftCompletion *completion, Datum *result);

/* Free it; a request under way is given up. */
extern void pgft_completion_free(PgftCompletion *completion);

#endif
