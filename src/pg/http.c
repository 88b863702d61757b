/*
 * http.c: reading one HTTP/1.1 reply, as it comes in (RFC 9112), and the events of one.
 *
 * A backend cannot use an HTTP library: they bring event loops, threads or
 * signal handling of their own, which PostgreSQL's interrupts do not reach.
 */
#include "postgres.h"

#include <ctype.h>

#include "http.h"

void
http_reply_init(HttpReply *reply)
{
	memset(reply, 0, sizeof(*reply));
	reply->content_length = -1;
	initStringInfo(&reply->in);
	initStringInfo(&reply->body);
}

/* The line that begins at `position`, without its CRLF, zero-terminated; NULL when incomplete. */
static char *
next_line(HttpReply *reply)
{
	char *start = reply->in.data + reply->position;
	char *end = memchr(start, '\n', reply->in.len - reply->position);

	if (end == NULL)
		return NULL;
	reply->position += end - start + 1;
	if (end > start && end[-1] == '\r')
		end--;
	*end = '\0';
	return start;
}

/* A count in the given base; false when it is none, or above the bound. */
static bool
parse_count(const char *text, int base, int64 *value)
{
	char *end;

	if (!isxdigit((unsigned char) text[0]))
		return false;
	errno = 0;
	*value = strtol(text, &end, base);
	if (errno != 0 || end == text || *value < 0 || *value > HTTP_MAX_BODY)
		return false;
	end += strspn(end, " \t");

	/* A chunk's size may be followed by extensions */
	return *end == '\0' || (base == 16 && *end == ';');
}

static HttpResult
parse_header(HttpReply *reply, char *line)
{
	char *value = strchr(line, ':');

	if (value == NULL)
		return HTTP_BROKEN;
	*value++ = '\0';
	value += strspn(value, " \t");
	if (pg_strcasecmp(line, "content-length") == 0)
		return parse_count(value, 10, &reply->content_length) ? HTTP_MORE : HTTP_BROKEN;
	if (pg_strcasecmp(line, "transfer-encoding") == 0)
	{
		if (pg_strcasecmp(value, "chunked") != 0)
			return HTTP_BROKEN;
		reply->chunked = true;
	}
	else if (pg_strcasecmp(line, "connection") == 0)
		reply->keep_alive = pg_strcasecmp(value, "close") != 0;
	return HTTP_MORE;
}

/* Status line and headers, once all of them are there. */
static HttpResult
parse_head(HttpReply *reply)
{
	char *line;
	const char *end = memmem(reply->in.data, reply->in.len, "\r\n\r\n", 4);

	if (end == NULL)
		return reply->in.len > HTTP_MAX_HEAD ? HTTP_BROKEN : HTTP_MORE;
	if (end - reply->in.data > HTTP_MAX_HEAD)
		return HTTP_BROKEN;

	line = next_line(reply);
	if (strncmp(line, "HTTP/1.", 7) != 0 || strlen(line) < 12 || line[8] != ' ')
		return HTTP_BROKEN;
	reply->keep_alive = line[7] != '0';
	reply->status = atoi(line + 9);
	if (reply->status < 100 || reply->status > 599)
		return HTTP_BROKEN;
	while ((line = next_line(reply)) != NULL && line[0] != '\0')
		if (parse_header(reply, line) == HTTP_BROKEN)
			return HTTP_BROKEN;

	/* An end of the connection as the end of the body is indistinguishable from a crash */
	if (!reply->chunked && reply->content_length < 0 && reply->status != 204)
		return HTTP_BROKEN;
	reply->head_done = true;
	return HTTP_DONE;
}

/* A stream may go on for long: forget what has been parsed of it. */
static void
forget_parsed(HttpReply *reply)
{
	StringInfo in = &reply->in;

	if (reply->position == 0)
		return;
	memmove(in->data, in->data + reply->position, in->len - reply->position + 1);
	in->len -= reply->position;
	reply->position = 0;
}

/* Chunks, as many as are complete. */
static HttpResult
parse_chunks(HttpReply *reply)
{
	for (;;)
	{
		char *line;

		if (reply->chunk_size > 0)
		{
			if (reply->in.len - reply->position < reply->chunk_size + 2)
				return HTTP_MORE;
			appendBinaryStringInfo(&reply->body, reply->in.data + reply->position,
								   reply->chunk_size);
			reply->position += reply->chunk_size;
			if (memcmp(reply->in.data + reply->position, "\r\n", 2) != 0)
				return HTTP_BROKEN;
			reply->position += 2;
			reply->chunk_size = 0;
		}
		line = next_line(reply);
		if (line == NULL)
			return reply->in.len - reply->position > HTTP_MAX_HEAD ? HTTP_BROKEN : HTTP_MORE;
		if (reply->last_chunk)
		{
			/* Trailers, up to an empty line */
			if (line[0] == '\0')
				return HTTP_DONE;
			continue;
		}
		if (!parse_count(line, 16, &reply->chunk_size) ||
			reply->body.len + reply->chunk_size > HTTP_MAX_BODY)
			return HTTP_BROKEN;
		reply->last_chunk = reply->chunk_size == 0;
	}
}

HttpResult
http_reply_parse(HttpReply *reply)
{
	if (!reply->head_done)
	{
		HttpResult result = parse_head(reply);

		if (result != HTTP_DONE)
			return result;
	}
	if (reply->chunked)
	{
		HttpResult result = parse_chunks(reply);

		if (result == HTTP_MORE)
			forget_parsed(reply);
		return result;
	}
	if (reply->content_length > 0)
	{
		if (reply->in.len - reply->position < reply->content_length)
			return HTTP_MORE;
		appendBinaryStringInfo(&reply->body, reply->in.data + reply->position,
							   reply->content_length);
		reply->position += reply->content_length;
	}
	return HTTP_DONE;
}

static const char *
event_end(const HttpReply *reply)
{
	return memmem(reply->body.data + reply->taken, reply->body.len - reply->taken, "\n\n", 2);
}

bool
http_reply_has_event(const HttpReply *reply)
{
	return event_end(reply) != NULL;
}

HttpResult
http_reply_event(HttpReply *reply, char **data)
{
	static const char field[] = "data: ";
	const char *start = reply->body.data + reply->taken;
	const char *end = event_end(reply);

	if (end == NULL)
		return HTTP_MORE;
	if (strncmp(start, field, strlen(field)) != 0)
		return HTTP_BROKEN;
	start += strlen(field);
	*data = pnstrdup(start, end - start);
	reply->taken = end + 2 - reply->body.data;
	if (reply->taken == reply->body.len)
	{
		resetStringInfo(&reply->body);
		reply->taken = 0;
	}
	return HTTP_DONE;
}
