/*
 * endpoint.c: base models that another server answers for.
 *
 * Where prompts go is a superuser's to say: the engine reaches whatever the
 * server's machine reaches.  So none of these options can be changed by anybody
 * else, not even by the server's owner, who could otherwise have other users'
 * keys sent to himself.
 *
 * A key stands in a user mapping, as postgres_fdw's password does, and is shown
 * to whom PostgreSQL shows that.  It leaves this process only within a request
 * on the engine's socket.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "access/reloptions.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "endpoint.h"
#include "json.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "settings.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#define MAX_URL 2048
#define MAX_KEY 4096

/* The engine, which knows more of an endpoint that is late, gives up so much before us */
#define ENGINE_HASTE_MS 1000

/* ---- Options ---- */

static const char *const endpoint_options[] = {"endpoint", "remote_model", "sslrootcert",
											   "allow_http"};

static DefElem *
find_option(List *options, const char *name)
{
	ListCell *cell;

	foreach (cell, options)
		if (strcmp(lfirst_node(DefElem, cell)->defname, name) == 0)
			return lfirst_node(DefElem, cell);
	return NULL;
}

/* Does this name or address stand for the machine itself, whatever a resolver says? */
static bool
is_loopback(const char *host)
{
	struct in_addr v4;
	struct in6_addr v6;

	if (pg_strcasecmp(host, "localhost") == 0)
		return true;
	if (inet_pton(AF_INET, host, &v4) == 1)
		return ntohl(v4.s_addr) >> 24 == 127;
	return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

/* The host of a URL behind its "//", without brackets. */
static char *
host_of(const char *authority)
{
	if (authority[0] == '[')
		return pnstrdup(authority + 1, strcspn(authority + 1, "]/"));
	return pnstrdup(authority, strcspn(authority, ":/"));
}

static void
invalid_endpoint(const char *wrong)
{
	ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					errmsg("invalid value for option \"%s\": it %s", "endpoint", wrong)));
}

/* The engine is stricter; this is said before anybody asks the model. */
static void
check_url(const char *url, bool allow_http)
{
	bool tls = pg_strncasecmp(url, "https://", 8) == 0;
	char *host;

	if (!tls && pg_strncasecmp(url, "http://", 7) != 0)
		invalid_endpoint("must begin with https:// or http://");
	if (strlen(url) > MAX_URL)
		invalid_endpoint("is too long");
	for (const char *c = url; *c != '\0'; c++)
		if (*c <= ' ' || *c > '~')
			invalid_endpoint("must have no spaces and no characters beyond ASCII");

	/* everybody can read a server's options */
	if (strchr(url, '@') != NULL)
		invalid_endpoint("must not have a user or a password");
	if (strpbrk(url, "?#") != NULL)
		invalid_endpoint("must not have a query or a fragment");
	host = host_of(url + (tls ? 8 : 7));
	if (host[0] == '\0')
		invalid_endpoint("has no host");
	if (!tls && !allow_http && !is_loopback(host))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("option \"%s\" must be https for host \"%s\"", "endpoint", host),
				 errhint("Prompts and API keys would travel as plain text. Where the network is "
						 "trusted, say so by option \"allow_http\".")));
}

void
pgft_endpoint_check_options(List *options)
{
	static const char *const of_files[] = {"file", "template", "context_length", "storage"};
	DefElem *endpoint = find_option(options, "endpoint");
	DefElem *allow_http = find_option(options, "allow_http");

	for (int i = 0; endpoint == NULL && i < lengthof(endpoint_options); i++)
		if (find_option(options, endpoint_options[i]) != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("option \"%s\" needs option \"%s\"", endpoint_options[i], "endpoint")));
	if (endpoint == NULL)
		return;
	if (!superuser())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be superuser to create or alter a model behind an endpoint")));
	for (int i = 0; i < lengthof(of_files); i++)
		if (find_option(options, of_files[i]) != NULL)
			ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
							errmsg("option \"%s\" does not go with option \"%s\"", of_files[i],
								   "endpoint")));
	if (find_option(options, "remote_model") == NULL)
		ereport(ERROR, (errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
						errmsg("option \"%s\" is required for a model behind an endpoint",
							   "remote_model")));
	check_url(defGetString(endpoint), allow_http != NULL && defGetBoolean(allow_http));
}

void
pgft_endpoint_check_key(const char *key)
{
	bool valid = key[0] != '\0' && strlen(key) <= MAX_KEY;

	for (; *key != '\0'; key++)
		valid = valid && *key > ' ' && *key <= '~';
	if (!valid)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("invalid value for option \"%s\": it must be 1 to %d ASCII characters "
						"without spaces",
						"api_key", MAX_KEY)));
}

/* ---- Requests ---- */

/* The key of the current user, else of everybody; NULL when there is none. */
static char *
find_key(const PgftModel *base)
{
	HeapTuple tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(GetUserId()),
									  ObjectIdGetDatum(base->server));
	DefElem *option = NULL;
	Datum options;
	bool is_null;

	if (!HeapTupleIsValid(tuple))
		tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
								ObjectIdGetDatum(base->server));
	if (!HeapTupleIsValid(tuple))
		return NULL;
	options =
		SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple, Anum_pg_user_mapping_umoptions, &is_null);
	if (!is_null)
		option = find_option(untransformRelOptions(options), "api_key");
	ReleaseSysCache(tuple);
	return option == NULL ? NULL : pstrdup(defGetString(option));
}

char *
pgft_endpoint_request(const PgftModel *base, const char *chat)
{
	char *key = find_key(base);
	int timeout_ms = pgft_request_timeout;
	StringInfoData body;

	timeout_ms -= Min(timeout_ms / 10, ENGINE_HASTE_MS);
	initStringInfo(&body);
	appendStringInfoString(&body, "{\"endpoint\": {");
	pgft_json_add_string(&body, "url", base->endpoint);
	if (key != NULL)
		pgft_json_add_string(&body, "api_key", key);
	if (base->sslrootcert != NULL)
		pgft_json_add_string(&body, "sslrootcert", psprintf("%s/%s", DataDir, base->sslrootcert));
	pgft_json_add_bool(&body, "allow_http", base->allow_http);
	pgft_json_add_int64(&body, "timeout_ms", timeout_ms);
	appendStringInfo(&body, "}, \"request\": %s}", chat);
	return body.data;
}

/* ---- Errors ---- */

void
pgft_endpoint_only_answers(const PgftModel *base)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("model \"%s\" is behind an endpoint: its weights are not here", base->name),
			 errhint("It can only be asked, by complete() and try_complete().")));
}

void
pgft_endpoint_error(const PgftModel *base, const PgftReply *reply)
{
	char *message;
	char *hint;
	int sqlstate = pgft_reply_words(reply, &message, &hint);

	if (sqlstate == ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION)
		hint = psprintf("The key is option \"api_key\" of the user mapping of role \"%s\", or of "
						"PUBLIC, for server \"%s\".",
						GetUserNameFromId(GetUserId(), false), base->name);
	ereport(ERROR, (errcode(sqlstate), errmsg_internal("model \"%s\": %s", base->name, message),
					hint != NULL ? errhint("%s", hint) : 0));
}
