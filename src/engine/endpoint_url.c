/*
 * endpoint_url.c: where the requests to an endpoint go.
 *
 * Strict on purpose: what is let through means the same to libcurl, so that a
 * host that passes for this one here is this one there.
 */
#include "endpoint_url.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_URL 2048
#define MAX_HOST 253

typedef struct parts
{
	bool tls;
	char host[MAX_HOST + 1]; /* of IPv6 without brackets */
	const char *path;        /* "" or from its slash on */
	size_t path_length;      /* without slashes at its end */
} parts;

static ft_status
fail_url(const char *what)
{
	return ft_fail(FT_INVALID, "the endpoint's URL %s", what);
}

static ft_status
check_characters(const char *url)
{
	static const char other[] = "-._~:/[]%!$&'()*+,;=";
	size_t n = strlen(url);

	if (n > MAX_URL)
		return ft_fail(FT_INVALID, "the endpoint's URL has %zu bytes, the limit is %d", n, MAX_URL);
	if (strpbrk(url, "?#"))
		return fail_url("must not have a query or a fragment");
	if (strchr(url, '@'))
		return fail_url("must not have a user or a password");
	for (; *url; url++)
		if (!((*url >= 'a' && *url <= 'z') || (*url >= 'A' && *url <= 'Z') ||
			  (*url >= '0' && *url <= '9') || strchr(other, *url)))
			return fail_url("has a character that does not belong there");
	return FT_OK;
}

static ft_status
take_port(const char *port, const char *end)
{
	long number = 0;

	if (port == end)
		return fail_url("has no number behind the host's colon");
	for (; port < end; port++)
	{
		if (*port < '0' || *port > '9' || number > 65535)
			return fail_url("has a port that is no number from 1 to 65535");
		number = number * 10 + (*port - '0');
	}
	if (number < 1 || number > 65535)
		return fail_url("has a port that is no number from 1 to 65535");
	return FT_OK;
}

static ft_status
take_host(const char *authority, size_t n, parts *p)
{
	const char *end = authority + n;
	const char *host_end = memchr(authority, ':', n);
	struct in6_addr address;

	if (n > 0 && *authority == '[')
	{
		authority++;
		host_end = memchr(authority, ']', (size_t) (end - authority));
		if (!host_end || host_end - authority > MAX_HOST)
			return fail_url("has a host that is no address");
		memcpy(p->host, authority, (size_t) (host_end - authority));
		if (inet_pton(AF_INET6, p->host, &address) != 1)
			return fail_url("has a host that is no address");
		host_end++;
		if (host_end == end)
			return FT_OK;
		if (*host_end != ':')
			return fail_url("has a host that is no address");
		return take_port(host_end + 1, end);
	}
	if (!host_end)
		host_end = end;
	if (host_end == authority)
		return fail_url("has no host");
	if (host_end - authority > MAX_HOST)
		return fail_url("has a host of more than 253 characters");
	memcpy(p->host, authority, (size_t) (host_end - authority));
	if (strspn(p->host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") !=
		strlen(p->host))
		return fail_url("has a host that is no name");
	return host_end == end ? FT_OK : take_port(host_end + 1, end);
}

static ft_status
take_apart(const char *url, parts *p)
{
	const char *authority;
	size_t n;

	*p = (parts){0};
	FT_TRY(check_characters(url));
	if (strncasecmp(url, "https://", 8) == 0)
		p->tls = true;
	else if (strncasecmp(url, "http://", 7) != 0)
		return fail_url("must begin with https:// or http://");
	authority = url + (p->tls ? 8 : 7);
	n = strcspn(authority, "/");
	FT_TRY(take_host(authority, n, p));
	p->path = authority + n;
	p->path_length = strlen(p->path);
	while (p->path_length > 0 && p->path[p->path_length - 1] == '/')
		p->path_length--;
	return FT_OK;
}

/* Does this name or address stand for the machine itself, whatever a resolver says? */
static bool
is_loopback(const char *host)
{
	struct in_addr v4;
	struct in6_addr v6;

	/* libcurl does not ask for this name */
	if (strcasecmp(host, "localhost") == 0)
		return true;
	if (inet_pton(AF_INET, host, &v4) == 1)
		return ntohl(v4.s_addr) >> 24 == 127;
	return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

ft_status
ft_endpoint_url(const char *endpoint, bool allow_http, ft_text *url)
{
	parts p;

	FT_TRY(take_apart(endpoint, &p));
	if (!p.tls && !allow_http && !is_loopback(p.host))
		return ft_hint(ft_fail(FT_INVALID,
							   "the endpoint's URL is http, which only this machine may be "
							   "asked by"),
					   "Prompts and the API key would travel as plain text.  Use https, or set "
					   "\"allow_http\" where the network is trusted.");
	FT_TRY(ft_text_append(url, endpoint, (size_t) (p.path - endpoint) + p.path_length));
	if (p.path_length == 0)
		FT_TRY(ft_text_append(url, "/v1", 3));
	return ft_text_append(url, "/chat/completions", strlen("/chat/completions"));
}
