/*
 * engine_client.c: requests to the serving engine.
 *
 * A request walks through a few states, each of which only ever does what is
 * possible without waiting; pgft_request_wait_any sleeps for all of them at
 * once, on their sockets, this process's latch, and the condition variable
 * that tells of a new engine.
 *
 * Connections are kept for the next request, and thrown away when the engine
 * has changed.  One that the engine closed while it lay idle costs a second
 * try; one that breaks in the middle of a reply is the engine's death.
 */
#include "postgres.h"

/* Nothing here looks into a Port, and its header would want Kerberos' */
#undef ENABLE_GSS

#include <sys/socket.h>
#include <unistd.h>

#include "engine_client.h"
#include "health.h"
#include "http.h"
#include "json.h"
#include "libpq/libpq.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pg_finetune.h"
#include "pgstat.h"
#include "settings.h"
#include "shmem.h"
#include "storage/condition_variable.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

/* Connections that an idle session keeps, and the most that it ever keeps idle */
#define KEPT_IDLE 8
#define MAX_IDLE 512
#define RECEIVE_SIZE 16384

/* What the engine takes; it would end a longer request in the middle */
#define MAX_REQUEST_BYTES (16 * 1024 * 1024)

/* How long to wait before connecting again to an engine that says it is there */
#define RECONNECT_MS 50

/* How often it is checked that the client still listens */
#define CLIENT_CHECK_MS 1000

typedef enum RequestState
{
	REQUEST_WAITING, /* for an engine, or for a place in its queue */
	REQUEST_SENDING,
	REQUEST_RECEIVING,
	REQUEST_DONE,
	REQUEST_FAILED
} RequestState;

typedef enum Failure
{
	FAILURE_NONE,
	FAILURE_NOT_SERVING, /* pg_finetune.serve is off */
	FAILURE_NO_ENGINE,   /* none came up in time */
	FAILURE_TIMEOUT,
	FAILURE_DIED,
	FAILURE_BAD_REPLY
} Failure;

struct PgftRequest
{
	MemoryContext context; /* holds all of the request */
	MemoryContextCallback on_reset;
	RequestState state;
	Failure failure;

	int fd;
	uint64 generation; /* of the engine that fd leads to */
	bool reused;       /* fd served another request before */
	bool retried; /* a reused one broke: the engine of `generation`, and no other, is tried again */

	char *out;
	int out_length;
	int sent;
	HttpReply reply;

	bool events; /* the reply may be a stream of them */
	int timeout_ms;
	int64 deadline; /* -1: none */
	int64 retry_at; /* while waiting */
};

/* Connections without a request, all to the engine of one generation */
static int idle[MAX_IDLE];
static int idle_count = 0;
static int idle_limit = KEPT_IDLE;
static uint64 idle_generation = 0;

/* ---- Connections ---- */

static void
close_socket(int fd)
{
	close(fd);
	ReleaseExternalFD();
}

static void
close_idle(void)
{
	while (idle_count > 0)
		close_socket(idle[--idle_count]);
}

/* An idle connection to this engine that is still open, or -1. */
static int
take_idle(uint64 generation)
{
	if (idle_generation != generation)
		close_idle();
	while (idle_count > 0)
	{
		int fd = idle[--idle_count];
		char byte;

		/* Anything to read, an end of file above all, means that it is of no use */
		if (recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
			(errno == EAGAIN || errno == EWOULDBLOCK))
			return fd;
		close_socket(fd);
	}
	return -1;
}

static void
keep_idle(int fd, uint64 generation)
{
	if (idle_generation != generation)
		close_idle();
	idle_generation = generation;
	if (idle_count >= Min(idle_limit, MAX_IDLE))
		close_socket(fd);
	else
		idle[idle_count++] = fd;
}

void
pgft_connections_reserve(int change)
{
	idle_limit += change;
	while (idle_count > Max(idle_limit, 0))
		close_socket(idle[--idle_count]);
}

/* A new connection; -1 when there is none to be had now. */
static int
open_socket(void)
{
	int fd;

	if (!AcquireExternalFD())
		return -1;
	fd = pgft_engine_connect();
	if (fd < 0)
		ReleaseExternalFD();
	return fd;
}

/* ---- A request's steps ---- */

static void
drop_connection(PgftRequest *request)
{
	if (request->fd >= 0)
		close_socket(request->fd);
	request->fd = -1;
}

static void
fail(PgftRequest *request, Failure failure)
{
	drop_connection(request);
	request->state = REQUEST_FAILED;
	request->failure = failure;
}

/*
 * The connection broke: try anew if it had only been left over, else the engine
 * is gone.  Were another engine asked, a request that kills engines would kill
 * one after the other.
 */
static void
connection_broke(PgftRequest *request)
{
	if (request->reused && request->reply.in.len == 0 && !request->reply.head_done)
	{
		close_idle();
		drop_connection(request);
		request->retried = true;
		request->state = REQUEST_WAITING;
		request->retry_at = 0;
	}
	else
		fail(request, FAILURE_DIED);
}

/* Returns false when nothing more can be done for now; so do the two below. */
static bool
try_connect(PgftRequest *request)
{
	PgftServerState server;
	int64 now = pgft_monotonic_ms();

	if (!pgft_serve)
	{
		fail(request, FAILURE_NOT_SERVING);
		return true;
	}
	pgft_server_state(&server);
	if (request->retried && (!server.ready || server.generation != request->generation))
	{
		fail(request, FAILURE_DIED);
		return true;
	}
	if (!server.ready || now < request->retry_at)
		return false;

	request->fd = take_idle(server.generation);
	request->reused = request->fd >= 0;
	if (request->fd < 0)
		request->fd = open_socket();
	if (request->fd < 0)
	{
		/* Dead but not known to be, or its queue is full */
		request->retry_at = now + RECONNECT_MS;
		return false;
	}
	request->generation = server.generation;
	request->sent = 0;
	request->state = REQUEST_SENDING;
	return true;
}

static bool
try_send(PgftRequest *request)
{
	while (request->sent < request->out_length)
	{
		ssize_t sent = send(request->fd, request->out + request->sent,
							request->out_length - request->sent, MSG_NOSIGNAL);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return false;
		if (sent < 0)
			break; /* it may have been refused half-way: read why */
		request->sent += sent;
	}
	request->state = REQUEST_RECEIVING;
	return true;
}

static bool
try_receive(PgftRequest *request)
{
	StringInfo in = &request->reply.in;
	ssize_t got;

	enlargeStringInfo(in, RECEIVE_SIZE);
	got = recv(request->fd, in->data + in->len, RECEIVE_SIZE, 0);
	if (got < 0 && errno == EINTR)
		return true;
	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return false;
	if (got <= 0)
	{
		connection_broke(request);
		return true;
	}
	in->len += got;
	in->data[in->len] = '\0';
	switch (http_reply_parse(&request->reply))
	{
		case HTTP_MORE:
			if (in->len > HTTP_MAX_BODY + HTTP_MAX_HEAD)
				fail(request, FAILURE_BAD_REPLY);
			break;
		case HTTP_DONE:
			request->state = REQUEST_DONE;
			break;
		case HTTP_BROKEN:
			fail(request, FAILURE_BAD_REPLY);
			break;
	}
	return true;
}

static bool
is_over(const PgftRequest *request)
{
	return request->state == REQUEST_DONE || request->state == REQUEST_FAILED;
}

bool
pgft_request_poll(PgftRequest *request)
{
	MemoryContext old_context = MemoryContextSwitchTo(request->context);
	bool progress = true;

	while (progress && !is_over(request))
		switch (request->state)
		{
			case REQUEST_WAITING:
				progress = try_connect(request);
				break;
			case REQUEST_SENDING:
				progress = try_send(request);
				break;
			case REQUEST_RECEIVING:
				progress = try_receive(request);
				break;
			default:
				progress = false;
		}
	if (!is_over(request) && request->deadline >= 0 && pgft_monotonic_ms() >= request->deadline)
		fail(request, request->state == REQUEST_WAITING ? FAILURE_NO_ENGINE : FAILURE_TIMEOUT);
	MemoryContextSwitchTo(old_context);
	return is_over(request);
}

/* ---- Start ---- */

static void
on_reset(void *arg)
{
	drop_connection(arg);
}

/* The request as it goes over the wire. */
static void
write_request(PgftRequest *request, const char *method, const char *path, const char *body)
{
	StringInfoData out;
	int body_length = body == NULL ? 0 : strlen(body);

	if (body != NULL)
	{
		char *utf8 = pg_server_to_any(body, body_length, PG_UTF8);

		if (utf8 != body)
			body_length = strlen(utf8);
		body = utf8;
		if (body_length > MAX_REQUEST_BYTES)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("a request of %d bytes is too long for the engine, which takes %d",
							body_length, MAX_REQUEST_BYTES)));
	}
	initStringInfo(&out);
	appendStringInfo(&out, "%s %s HTTP/1.1\r\nHost: localhost\r\n", method, path);
	if (body != NULL)
		appendStringInfo(&out, "Content-Type: application/json\r\nContent-Length: %d\r\n",
						 body_length);
	appendStringInfoString(&out, "\r\n");
	if (body != NULL)
		appendBinaryStringInfo(&out, body, body_length);
	request->out = out.data;
	request->out_length = out.len;
}

PgftRequest *
pgft_request_start(const char *method, const char *path, const char *body, int timeout_ms)
{
	MemoryContext context;
	MemoryContext old_context;
	PgftRequest *request;

	pgft_require_preload();
	if (timeout_ms < 0)
		timeout_ms = pgft_request_timeout;

	context =
		AllocSetContextCreate(CurrentMemoryContext, "pg_finetune request", ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(context);
	request = palloc0(sizeof(PgftRequest));
	request->context = context;
	request->fd = -1;
	request->timeout_ms = timeout_ms;
	pgft_request_renew(request);
	request->on_reset.func = on_reset;
	request->on_reset.arg = request;
	MemoryContextRegisterResetCallback(context, &request->on_reset);
	http_reply_init(&request->reply);
	write_request(request, method, path, body);
	MemoryContextSwitchTo(old_context);

	pgft_request_poll(request);
	return request;
}

/* ---- Wait ---- */

/* Milliseconds until something is to be done by the clock. */
static long
time_to_sleep(PgftRequest **requests, int count)
{
	int64 now = pgft_monotonic_ms();
	int64 until = now + CLIENT_CHECK_MS;

	for (int i = 0; i < count; i++)
	{
		if (requests[i]->deadline >= 0)
			until = Min(until, requests[i]->deadline);
		if (requests[i]->state == REQUEST_WAITING && requests[i]->retry_at > now)
			until = Min(until, requests[i]->retry_at);
	}
	return Max(until - now, 0);
}

static void
sleep_for(PgftRequest **requests, int count)
{
	WaitEventSet *set = CreateWaitEventSet(CurrentMemoryContext, count + 2);
	WaitEvent event;

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < count; i++)
	{
		if (requests[i]->fd < 0)
			continue;
		AddWaitEventToSet(set,
						  requests[i]->state == REQUEST_SENDING
							  ? WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE
							  : WL_SOCKET_READABLE,
						  requests[i]->fd, NULL, NULL);
	}
	WaitEventSetWait(set, time_to_sleep(requests, count), &event, 1, PG_WAIT_EXTENSION);
	FreeWaitEventSet(set);
}

void
pgft_check_client(int64 *checked_at)
{
	int64 now = pgft_monotonic_ms();

	if (now - *checked_at < CLIENT_CHECK_MS)
		return;
	*checked_at = now;
	if (MyProcPort != NULL && !pq_check_connection())
	{
		ClientConnectionLost = true;
		InterruptPending = true;
	}
}

/* Those of an error's reply are none. */
static bool
has_event(const PgftRequest *request)
{
	return request->events && request->reply.head_done && request->reply.status == 200 &&
		   http_reply_has_event(&request->reply);
}

int
pgft_request_wait_any(PgftRequest **requests, int count)
{
	int64 checked_at = pgft_monotonic_ms();

	/* Be told of a new engine from before the first look on */
	ConditionVariablePrepareToSleep(pgft_server_state_changed());
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < count; i++)
			if (pgft_request_poll(requests[i]) || has_event(requests[i]))
			{
				ConditionVariableCancelSleep();
				return i;
			}
		sleep_for(requests, count);
		ResetLatch(MyLatch);
		pgft_check_client(&checked_at);
	}
}

/* ---- Failures ---- */

static const struct
{
	int sqlstate;
	const char *message;
	const char *hint;
} failures[] = {
	[FAILURE_NOT_SERVING] = {ERRCODE_CANNOT_CONNECT_NOW, "the engine is turned off",
							 "Set pg_finetune.serve to on and reload the configuration."},
	[FAILURE_NO_ENGINE] = {ERRCODE_CANNOT_CONNECT_NOW, "the engine did not come up in time",
						   "See the server log, or increase pg_finetune.request_timeout."},
	[FAILURE_TIMEOUT] = {ERRCODE_CANNOT_CONNECT_NOW, "the engine did not answer in time",
						 "Increase pg_finetune.request_timeout."},
	[FAILURE_DIED] = {ERRCODE_CANNOT_CONNECT_NOW, "the engine ended while it worked on a request",
					  "It is started again by itself. See the server log for why it ended."},
	[FAILURE_BAD_REPLY] = {ERRCODE_INTERNAL_ERROR, "the engine's reply is malformed or too long",
						   NULL},
};

static void
raise_failure(Failure failure)
{
	const char *hint = failures[failure].hint;

	ereport(ERROR, (errcode(failures[failure].sqlstate), errmsg("%s", failures[failure].message),
					hint != NULL ? errhint("%s", hint) : 0));
}

/* ---- Events ---- */

void
pgft_request_expect_events(PgftRequest *request)
{
	request->events = true;
}

void
pgft_request_renew(PgftRequest *request)
{
	request->deadline = request->timeout_ms == 0 ? -1 : pgft_monotonic_ms() + request->timeout_ms;
}

char *
pgft_request_event(PgftRequest *request)
{
	char *data;

	if (!has_event(request))
		return NULL;
	if (http_reply_event(&request->reply, &data) == HTTP_DONE)
		return data;
	raise_failure(FAILURE_BAD_REPLY);
	return NULL; /* keep compiler quiet */
}

/* ---- End ---- */

void
pgft_request_cancel(PgftRequest *request)
{
	MemoryContextDelete(request->context);
}

PgftReply *
pgft_request_finish(PgftRequest *request)
{
	HttpReply *http = &request->reply;
	PgftReply *reply;

	Assert(is_over(request));
	if (request->state == REQUEST_FAILED)
	{
		Failure failure = request->failure;

		pgft_request_cancel(request);
		raise_failure(failure);
	}
	if (http->keep_alive && http->position == http->in.len && request->sent == request->out_length)
	{
		keep_idle(request->fd, request->generation);
		request->fd = -1;
	}

	reply = palloc0(sizeof(PgftReply));
	reply->status = http->status;

	/* An error that the HTTP library answers by itself comes as HTML */
	if (http->body.len > 0 &&
		((http->status == 200 && !request->events) || http->body.data[0] == '{'))
		reply->body = pgft_json_parse(http->body.data, http->body.len, "the engine's reply");
	pgft_request_cancel(request);
	return reply;
}

void
pgft_request_wait(PgftRequest *request)
{
	PG_TRY();
	{
		PgftRequest *waiting = request;

		pgft_request_wait_any(&waiting, 1);
	}
	PG_CATCH();
	{
		/* Now, not when the memory goes: the engine shall stop at once */
		pgft_request_cancel(request);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

PgftReply *
pgft_engine_request(const char *method, const char *path, const char *body, int timeout_ms)
{
	PgftRequest *request = pgft_request_start(method, path, body, timeout_ms);

	pgft_request_wait(request);
	return pgft_request_finish(request);
}

Jsonb *
pgft_engine_call(const char *method, const char *path, const char *body, int timeout_ms)
{
	PgftReply *reply = pgft_engine_request(method, path, body, timeout_ms);

	if (reply->status != 200)
		pgft_reply_error(reply);
	if (reply->body == NULL)
		raise_failure(FAILURE_BAD_REPLY);
	return reply->body;
}

bool
pgft_engine_is_ready(void)
{
	PgftServerState server;

	if (!pgft_is_preloaded() || !pgft_serve)
		return false;
	pgft_server_state(&server);
	return server.ready;
}

bool
pgft_engine_wait_ready(int timeout_ms)
{
	int64 started_at = pgft_monotonic_ms();
	int64 checked_at = started_at;
	bool ready;

	if (pgft_engine_is_ready())
		return true;
	if (!pgft_is_preloaded() || !pgft_serve)
		return false;
	ConditionVariablePrepareToSleep(pgft_server_state_changed());
	while (!(ready = pgft_engine_is_ready()))
	{
		int64 left = timeout_ms - (pgft_monotonic_ms() - started_at);

		if (left <= 0)
			break;
		/* it looks after interrupts */
		(void) ConditionVariableTimedSleep(pgft_server_state_changed(), Min(left, CLIENT_CHECK_MS),
										   PG_WAIT_EXTENSION);
		pgft_check_client(&checked_at);
	}
	ConditionVariableCancelSleep();
	return ready;
}

/* ---- Errors of the engine ---- */

static JsonbContainer *
reply_error(const PgftReply *reply)
{
	return reply->body == NULL ? NULL : pgft_json_object(&reply->body->root, "error");
}

char *
pgft_reply_code(const PgftReply *reply)
{
	char *code = pgft_json_string(reply_error(reply), "code");

	return code == NULL ? pstrdup("") : code;
}

int
pgft_engine_sqlstate(const char *code)
{
	static const struct
	{
		const char *code;
		int sqlstate;
	} map[] = {
		{"invalid", ERRCODE_INVALID_PARAMETER_VALUE},
		{"not_found", ERRCODE_UNDEFINED_FILE},
		{"io", ERRCODE_IO_ERROR},
		{"no_space", ERRCODE_DISK_FULL},
		{"no_memory", ERRCODE_OUT_OF_MEMORY},
		{"corrupt", ERRCODE_DATA_CORRUPTED},
		{"unsupported", ERRCODE_FEATURE_NOT_SUPPORTED},
		{"mismatch", ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE},
		{"non_finite", ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE},
		{"device", ERRCODE_SYSTEM_ERROR},
		{"busy", ERRCODE_INSUFFICIENT_RESOURCES},
		/* going down: who gives a request up closes its connection */
		{"cancelled", ERRCODE_CANNOT_CONNECT_NOW},
		/* what endpoints do */
		{"unreachable", ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION},
		{"denied", ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION},
		{"protocol", ERRCODE_PROTOCOL_VIOLATION},
		{"timeout", ERRCODE_CANNOT_CONNECT_NOW},
		{"remote", ERRCODE_SYSTEM_ERROR},
	};

	for (int i = 0; i < lengthof(map); i++)
		if (strcmp(map[i].code, code) == 0)
			return map[i].sqlstate;
	return ERRCODE_INTERNAL_ERROR;
}

int
pgft_reply_words(const PgftReply *reply, char **message, char **hint)
{
	JsonbContainer *error = reply_error(reply);

	*message = pgft_json_string(error, "message");
	*hint = pgft_json_string(error, "hint");
	if (*hint == NULL && reply->body != NULL)
		*hint = pgft_json_string(&reply->body->root, "hint");
	if (*message == NULL)
		*message = psprintf("the engine answered with HTTP status %d", reply->status);
	return pgft_engine_sqlstate(pgft_reply_code(reply));
}

void
pgft_reply_error(const PgftReply *reply)
{
	char *message;
	char *hint;
	int sqlstate = pgft_reply_words(reply, &message, &hint);

	ereport(ERROR, (errcode(sqlstate), errmsg_internal("%s", message),
					hint != NULL ? errhint("%s", hint) : 0));
}
