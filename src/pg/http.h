/*
 * http.h: reading one HTTP/1.1 reply, as it comes in.
 *
 * Only what the engine's own server sends: a status line, headers, a body of a
 * known length or in chunks.  Everything is bounded.
 */
#ifndef PGFT_HTTP_H
#define PGFT_HTTP_H

#include "lib/stringinfo.h"

/* Bounds of what is accepted, in bytes */
#define HTTP_MAX_HEAD (64 * 1024)
#define HTTP_MAX_BODY (64 * 1024 * 1024)

typedef enum HttpResult
{
	HTTP_MORE, /* the reply is not complete yet */
	HTTP_DONE,
	HTTP_BROKEN /* not a reply, or larger than allowed */
} HttpResult;

typedef struct HttpReply
{
	int status;
	bool keep_alive;     /* the connection may serve another request */
	StringInfoData body; /* always ends with a zero byte */

	/* private: */
	StringInfoData in; /* as received, from `position` on not looked at yet */
	int position;
	bool head_done;
	bool chunked;
	int64 content_length; /* -1: not said */
	int64 chunk_size;     /* of the chunk that comes next, 0: a line with its size */
	int taken;            /* of the body, as events */
	bool last_chunk;      /* only trailers are still to come */
} HttpReply;

/* Set up a reply in the current memory context. */
extern void http_reply_init(HttpReply *reply);

/* Take in what was received, at reply->in's end, since the last call. */
extern HttpResult http_reply_parse(HttpReply *reply);

/* Is there a whole event that has not been taken? */
extern bool http_reply_has_event(const HttpReply *reply);

/*
 * Take the next server-sent event (an event of one line of data, and nothing
 * else) from a body that may not be complete yet: HTTP_DONE with its data
 * (palloc'd), or HTTP_MORE.  What has been taken no longer counts in the body's
 * bound.
 */
extern HttpResult http_reply_event(HttpReply *reply, char **data);

#endif
