/*
 * transfer.h: requests to other HTTP servers, by libcurl, in an event loop.
 *
 * Any number may be under way; connections are kept and used again.  All of it
 * belongs to the loop's thread.  https is verified, always; nothing but http and
 * https is spoken, no redirection is followed, no proxy is used, and neither
 * .netrc nor the environment adds to a request.
 */
#ifndef FT_TRANSFER_H
#define FT_TRANSFER_H

#include "status.h"

#include <stddef.h>
#include <stdint.h>

struct event_base;
typedef struct ft_transfers ft_transfers;
typedef struct ft_transfer ft_transfer;

typedef struct ft_transfer_request
{
	const char *url;
	const char *body; /* of a POST; the caller's, and needed until the end */
	size_t length;
	const char *bearer;  /* the key in the Authorization header; NULL: none */
	const char *ca_file; /* whose certificates are trusted; NULL: the system's */
	int64_t timeout_ms;  /* for the whole; 0: none */
	size_t max_answer;   /* bytes of an answer's body */
} ft_transfer_request;

/* An answer, valid during the call of ft_transfer_done. */
typedef struct ft_transfer_answer
{
	long code; /* the HTTP status */
	const char *body;
	size_t length;
	int64_t retry_after_ms; /* 0: not said */
} ft_transfer_answer;

/*
 * Called once, unless the transfer is cancelled before; the transfer is gone
 * after it.  answer is NULL after a failure, which is then the thread's last
 * (ft_error_message): FT_UNREACHABLE, FT_TIMEOUT, FT_PROTOCOL, FT_INVALID for a
 * file of authorities that has none, FT_NO_MEMORY.
 */
typedef void (*ft_transfer_done)(void *context, ft_status status, const ft_transfer_answer *answer);

/* One for a process. */
ft_status ft_transfers_create(struct event_base *base, ft_transfers **transfers);
/* After the last transfer has ended or been cancelled, and before the event base. */
void ft_transfers_free(ft_transfers *transfers);

/* `done` comes later, never during the call. */
ft_status ft_transfer_start(ft_transfers *transfers, const ft_transfer_request *request,
							ft_transfer_done done, void *context, ft_transfer **transfer);
/* Close its connection; `done` is not called any more. */
void ft_transfer_cancel(ft_transfer *transfer);

#endif
