/*
 * transfer.c: libcurl's multi interface, driven by libevent.
 *
 * libcurl says which descriptors and which time it waits for, and is called when
 * one of them is there.  HTTP/1.1 only: a transfer that is cancelled then closes
 * a connection, which is what servers watch for.
 */
#include "transfer.h"

#include "buffer.h"

#include <curl/curl.h>
#include <event2/event.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_TIMEOUT_MS 10000L
#define MAX_IDLE_CONNECTIONS 64L

struct ft_transfers
{
	struct event_base *base;
	struct event *timer;
	CURLM *multi;
};

struct ft_transfer
{
	ft_transfers *transfers;
	CURL *easy;
	struct curl_slist *headers;
	ft_text answer;
	size_t max_answer;
	ft_status status; /* of taking the answer in */
	ft_transfer_done done;
	void *context;
	char *url;
	char words[CURL_ERROR_SIZE];
};

/* --- ends --- */

static void
transfer_free(ft_transfer *transfer)
{
	if (transfer->easy)
		curl_easy_cleanup(transfer->easy);
	curl_slist_free_all(transfer->headers);
	ft_text_free(&transfer->answer);
	free(transfer->url);
	free(transfer);
}

/* What libcurl says of a connection that it could not make; printable, for it may quote names that
 * others have chosen. */
static const char *
detail(ft_transfer *transfer, CURLcode code)
{
	char *c = transfer->words;

	if (!*c)
		return curl_easy_strerror(code);
	for (; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	return transfer->words;
}

/* scheme://host:port of a URL. */
static int
origin_length(const char *url)
{
	const char *authority = strstr(url, "://");

	return authority ? (int) (authority + 3 - url + (long) strcspn(authority + 3, "/"))
					 : (int) strlen(url);
}

static ft_status
fail_connect(ft_transfer *transfer, CURLcode code)
{
	return ft_fail(FT_UNREACHABLE, "could not connect to the endpoint \"%.*s\": %s",
				   origin_length(transfer->url), transfer->url, detail(transfer, code));
}

static ft_status
fail_timeout(ft_transfer *transfer, CURLcode code)
{
	curl_off_t ready = 0;

	curl_easy_getinfo(transfer->easy, CURLINFO_PRETRANSFER_TIME_T, &ready);
	if (ready == 0)
		return fail_connect(transfer, code);
	return ft_fail(FT_TIMEOUT, "the endpoint did not answer in time");
}

/* Words beyond those of a connection that fails are libcurl's fixed ones: the rest may be the
 * answer's. */
static ft_status
failure_of(ft_transfer *transfer, CURLcode code)
{
	switch (code)
	{
		case CURLE_OUT_OF_MEMORY:
			return ft_fail(FT_NO_MEMORY, "out of memory");
		case CURLE_OPERATION_TIMEDOUT:
			return fail_timeout(transfer, code);
		case CURLE_SSL_CACERT_BADFILE:
			return ft_fail(FT_INVALID, "the file that \"sslrootcert\" names holds no certificates");
		case CURLE_PEER_FAILED_VERIFICATION:
			return ft_hint(fail_connect(transfer, code),
						   "The endpoint's certificate must be for this host, and by an authority "
						   "that the system trusts or that \"sslrootcert\" names.");
		case CURLE_COULDNT_RESOLVE_HOST:
		case CURLE_COULDNT_CONNECT:
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_CIPHER:
		case CURLE_SSL_ISSUER_ERROR:
			return fail_connect(transfer, code);
		case CURLE_WRITE_ERROR:
			if (transfer->status == FT_NO_MEMORY)
				return ft_fail(FT_NO_MEMORY, "out of memory for the endpoint's answer");
			return ft_fail(FT_PROTOCOL, "the endpoint's answer is longer than %zu bytes",
						   transfer->max_answer);
		default:
			return ft_fail(FT_PROTOCOL, "the endpoint's answer is broken: %s",
						   curl_easy_strerror(code));
	}
}

static void
end_transfer(ft_transfer *transfer, CURLcode code)
{
	ft_transfer_answer answer = {.body = transfer->answer.data ? transfer->answer.data : "",
								 .length = transfer->answer.length};
	curl_off_t retry_after = 0;

	curl_multi_remove_handle(transfer->transfers->multi, transfer->easy);
	if (code == CURLE_OK)
	{
		curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &answer.code);
		curl_easy_getinfo(transfer->easy, CURLINFO_RETRY_AFTER, &retry_after);
		answer.retry_after_ms =
			retry_after > INT32_MAX ? (int64_t) INT32_MAX * 1000 : (int64_t) retry_after * 1000;
		transfer->done(transfer->context, FT_OK, &answer);
	}
	else
		transfer->done(transfer->context, failure_of(transfer, code), NULL);
	transfer_free(transfer);
}

static void
reap(ft_transfers *transfers)
{
	CURLMsg *message;
	int left;

	while ((message = curl_multi_info_read(transfers->multi, &left)) != NULL)
	{
		CURLcode code = message->data.result;
		char *transfer = NULL;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
		end_transfer((ft_transfer *) transfer, code);
	}
}

/* --- libcurl and libevent --- */

static void
socket_ready(evutil_socket_t fd, short events, void *argument)
{
	ft_transfers *transfers = argument;
	int running;

	curl_multi_socket_action(transfers->multi, fd,
							 (events & EV_READ ? CURL_CSELECT_IN : 0) |
								 (events & EV_WRITE ? CURL_CSELECT_OUT : 0),
							 &running);
	reap(transfers);
}

static void
time_passed(evutil_socket_t fd, short events, void *argument)
{
	ft_transfers *transfers = argument;
	int running;

	(void) fd;
	(void) events;
	curl_multi_socket_action(transfers->multi, CURL_SOCKET_TIMEOUT, 0, &running);
	reap(transfers);
}

static int
watch_socket(CURL *easy, curl_socket_t fd, int what, void *argument, void *of_socket)
{
	ft_transfers *transfers = argument;
	struct event *event = of_socket;
	short events = EV_PERSIST;

	(void) easy;
	if (event)
		event_free(event);
	event = NULL;
	if (what != CURL_POLL_REMOVE)
	{
		if (what != CURL_POLL_OUT)
			events |= EV_READ;
		if (what != CURL_POLL_IN)
			events |= EV_WRITE;
		event = event_new(transfers->base, fd, events, socket_ready, transfers);
		if (!event || event_add(event, NULL) != 0)
		{
			if (event)
				event_free(event);
			curl_multi_assign(transfers->multi, fd, NULL);
			return -1; /* libcurl ends the transfers */
		}
	}
	curl_multi_assign(transfers->multi, fd, event);
	return 0;
}

static int
set_timer(CURLM *multi, long timeout_ms, void *argument)
{
	ft_transfers *transfers = argument;
	struct timeval wait = {timeout_ms / 1000, timeout_ms % 1000 * 1000};

	(void) multi;
	if (timeout_ms < 0)
		event_del(transfers->timer);
	else if (event_add(transfers->timer, &wait) != 0)
		return -1;
	return 0;
}

static size_t
take_in(char *bytes, size_t size, size_t n, void *argument)
{
	ft_transfer *transfer = argument;

	n *= size;
	if (n > transfer->max_answer - transfer->answer.length)
		transfer->status = FT_PROTOCOL;
	else
		transfer->status = ft_text_append(&transfer->answer, bytes, n);
	return transfer->status == FT_OK ? n : 0;
}

/* --- transfers --- */

static ft_status
add_header(ft_transfer *transfer, const char *line)
{
	struct curl_slist *longer = curl_slist_append(transfer->headers, line);

	if (!longer)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	transfer->headers = longer;
	return FT_OK;
}

static ft_status
add_headers(ft_transfer *transfer, const char *bearer)
{
	ft_text line = {0};
	ft_status status;

	FT_TRY(add_header(transfer, "Content-Type: application/json"));
	FT_TRY(add_header(transfer, "Accept: application/json"));
	FT_TRY(add_header(transfer, "Expect:"));
	if (!bearer)
		return FT_OK;
	status = ft_text_printf(&line, "Authorization: Bearer %s", bearer);
	if (status == FT_OK)
		status = add_header(transfer, line.data);
	ft_text_free(&line);
	return status;
}

static CURLcode
allow_http_only(CURL *easy)
{
#if LIBCURL_VERSION_NUM >= 0x075500
	return curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
#else
	return curl_easy_setopt(easy, CURLOPT_PROTOCOLS, (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
}

/* Only this file's authorities: the system's do not count beside it. */
static CURLcode
trust_only(CURL *easy, const char *ca_file)
{
	CURLcode code = curl_easy_setopt(easy, CURLOPT_CAINFO, ca_file);

	return code != CURLE_OK ? code : curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
}

static ft_status
set_options(ft_transfer *transfer, const ft_transfer_request *r)
{
	CURL *easy = transfer->easy;
	CURLcode code = allow_http_only(easy);

#define SET(option, value)                                \
	do                                                    \
	{                                                     \
		if (code == CURLE_OK)                             \
			code = curl_easy_setopt(easy, option, value); \
	} while (0)

	SET(CURLOPT_URL, r->url);
	SET(CURLOPT_POSTFIELDS, r->body);
	SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) r->length);
	SET(CURLOPT_HTTPHEADER, transfer->headers);
	SET(CURLOPT_USERAGENT, "pg_finetune");
	SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_PROXY, "");
	SET(CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_CONNECTTIMEOUT_MS, CONNECT_TIMEOUT_MS);
	SET(CURLOPT_TIMEOUT_MS, (long) r->timeout_ms);
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_ERRORBUFFER, transfer->words);
	SET(CURLOPT_PRIVATE, (char *) transfer);
	SET(CURLOPT_WRITEFUNCTION, take_in);
	SET(CURLOPT_WRITEDATA, transfer);
#undef SET
	if (code == CURLE_OK && r->ca_file)
		code = trust_only(easy, r->ca_file);
	if (code != CURLE_OK)
		return ft_fail(code == CURLE_OUT_OF_MEMORY ? FT_NO_MEMORY : FT_INTERNAL, "libcurl: %s",
					   curl_easy_strerror(code));
	return FT_OK;
}

ft_status
ft_transfer_start(ft_transfers *transfers, const ft_transfer_request *request,
				  ft_transfer_done done, void *context, ft_transfer **result)
{
	ft_transfer *transfer;
	ft_status status;

	FT_TRY(ft_alloc((void **) &transfer, 1, sizeof *transfer));
	transfer->transfers = transfers;
	transfer->done = done;
	transfer->context = context;
	transfer->max_answer = request->max_answer;
	transfer->url = strdup(request->url);
	transfer->easy = curl_easy_init();
	status = transfer->url && transfer->easy ? add_headers(transfer, request->bearer)
											 : ft_fail(FT_NO_MEMORY, "out of memory");
	if (status == FT_OK)
		status = set_options(transfer, request);
	if (status == FT_OK && curl_multi_add_handle(transfers->multi, transfer->easy) != CURLM_OK)
		status = ft_fail(FT_NO_MEMORY, "libcurl could not begin a transfer");
	if (status != FT_OK)
	{
		transfer_free(transfer);
		return status;
	}
	*result = transfer;
	return FT_OK;
}

void
ft_transfer_cancel(ft_transfer *transfer)
{
	curl_multi_remove_handle(transfer->transfers->multi, transfer->easy);
	transfer_free(transfer);
}

/* --- life --- */

static ft_status
open_multi(ft_transfers *transfers)
{
	transfers->timer = evtimer_new(transfers->base, time_passed, transfers);
	transfers->multi = curl_multi_init();
	if (!transfers->timer || !transfers->multi)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	if (curl_multi_setopt(transfers->multi, CURLMOPT_SOCKETFUNCTION, watch_socket) != CURLM_OK ||
		curl_multi_setopt(transfers->multi, CURLMOPT_SOCKETDATA, transfers) != CURLM_OK ||
		curl_multi_setopt(transfers->multi, CURLMOPT_TIMERFUNCTION, set_timer) != CURLM_OK ||
		curl_multi_setopt(transfers->multi, CURLMOPT_TIMERDATA, transfers) != CURLM_OK ||
		curl_multi_setopt(transfers->multi, CURLMOPT_MAXCONNECTS, MAX_IDLE_CONNECTIONS) != CURLM_OK)
		return ft_fail(FT_INTERNAL, "libcurl lacks what is needed of it");
	return FT_OK;
}

ft_status
ft_transfers_create(struct event_base *base, ft_transfers **result)
{
	ft_transfers *transfers;
	ft_status status;

	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		return ft_fail(FT_NO_MEMORY, "libcurl could not be set up");
	FT_TRY(ft_alloc((void **) &transfers, 1, sizeof *transfers));
	transfers->base = base;
	status = open_multi(transfers);
	if (status != FT_OK)
	{
		ft_transfers_free(transfers);
		return status;
	}
	*result = transfers;
	return FT_OK;
}

void
ft_transfers_free(ft_transfers *transfers)
{
	if (!transfers)
		return;
	/* closes idle connections, whose events go by watch_socket */
	if (transfers->multi)
		curl_multi_cleanup(transfers->multi);
	if (transfers->timer)
		event_free(transfers->timer);
	free(transfers);
	curl_global_cleanup();
}
