/*
 * engine_client.h: requests to the serving engine, HTTP/1.1 over its Unix
 * socket.
 *
 * Nothing here blocks without listening to interrupts, and a backend may have
 * several requests under way.  A request that is freed before its end (also by
 * the reset of the memory context it was started in, so at every error) closes
 * its connection, which is how the engine learns to drop it.
 */
#ifndef PGFT_ENGINE_CLIENT_H
#define PGFT_ENGINE_CLIENT_H

#include "utils/jsonb.h"

typedef struct PgftRequest PgftRequest;

typedef struct PgftReply
{
	int status;  /* HTTP status */
	Jsonb *body; /* an object; NULL when the body was empty */
} PgftReply;

/*
 * Start a request.  `body` is JSON text in the server encoding, NULL for GET; it
 * may have 16 MiB (54000).
 * `timeout_ms` is for the whole of it, waiting for an engine that is not up
 * yet included; 0 is no limit, -1 stands for pg_finetune.request_timeout.
 */
extern PgftRequest *
pgft_request_start(const char *method, const char *path, const char *body, int timeout_ms);

/* Do what can be done without waiting; true when the request has ended. */
extern bool pgft_request_poll(PgftRequest *request);

/* Wait until one of these requests has ended; returns its index. */
extern int pgft_request_wait_any(PgftRequest **requests, int count);

/* Wait for this one, and cancel it at an error, so that the engine stops at once. */
extern void pgft_request_wait(PgftRequest *request);

/*
 * Keep so many more (or fewer) connections when they are idle: for who is about
 * to have as many requests under way, again and again.
 */
extern void pgft_connections_reserve(int change);

/*
 * The reply of a request that has ended, in the caller's memory context; frees
 * the request.  Raises 57P03 when the engine is not there, died meanwhile or
 * took too long.
 */
extern PgftReply *pgft_request_finish(PgftRequest *request);

/*
 * A request whose reply, when all is well (status 200), is a stream of
 * server-sent events: pgft_request_wait_any returns for each of them.  To be said
 * right after the start.  The timeout is then for each event, counted from
 * pgft_request_renew.
 */
extern void pgft_request_expect_events(PgftRequest *request);
extern void pgft_request_renew(PgftRequest *request);

/*
 * The data of the next event, as it came (palloc'd), NULL when none is there;
 * such a reply has no body when it is finished.
 */
extern char *pgft_request_event(PgftRequest *request);

/* Give a request up. */
extern void pgft_request_cancel(PgftRequest *request);

/* Start, wait, finish. */
extern PgftReply *
pgft_engine_request(const char *method, const char *path, const char *body, int timeout_ms);

/* The same, with any status but 200 raised as an error. */
extern Jsonb *
pgft_engine_call(const char *method, const char *path, const char *body, int timeout_ms);

/*
 * Notice a client that has gone away, also where client_connection_check_interval
 * is off: the next CHECK_FOR_INTERRUPTS ends the session then.  To be called at
 * every turn of a loop that waits; *checked_at, which begins with
 * pgft_monotonic_ms(), keeps it from looking more than once a second.
 */
extern void pgft_check_client(int64 *checked_at);

/* Is there an engine that would answer at once? */
extern bool pgft_engine_is_ready(void);

/* The same within so many milliseconds; false at once where none is to serve. */
extern bool pgft_engine_wait_ready(int timeout_ms);

/* Raise the error that a reply carries. */
extern void pgft_reply_error(const PgftReply *reply) pg_attribute_noreturn();

/*
 * What such an error says: message and hint (NULL if none); returns its
 * SQLSTATE.
 */
extern int pgft_reply_words(const PgftReply *reply, char **message, char **hint);

/* The code in a reply ("not_found", "mismatch" …; "" if none). */
extern char *pgft_reply_code(const PgftReply *reply);

/*
 * SQLSTATE for a code of the engine (ft_status_name): invalid 22023,
 * no_space 53100, no_memory 53200, busy 53000, corrupt XX001 …
 */
extern int pgft_engine_sqlstate(const char *code);

#endif
