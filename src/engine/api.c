/*
 * api.c: the routes.
 *
 * A route is answered in the loop's thread at once, or becomes a job of the
 * loader or reader thread, or a request of the scheduler; the latter two post
 * their replies back to the loop.
 */
#include "api.h"

#include "api_json.h"
#include "completion.h"
#include "inspect.h"
#include "metrics.h"
#include "process.h"
#include "request.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define HTTP_OK 200
#define HTTP_UNAUTHORIZED 401
#define HTTP_NOT_FOUND 404
#define HTTP_METHOD_NOT_ALLOWED 405

/* --- replies --- */

void
ft_api_reply(ft_http_exchange *exchange, int code, json_t *json)
{
	static const char failure[] = "{\"error\": {\"message\": \"out of memory\", "
								  "\"type\": \"server_error\", \"code\": \"no_memory\"}}";
	char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;

	if (text)
		ft_http_reply(exchange, code, text, strlen(text));
	else
		ft_http_reply(exchange, 500, failure, sizeof failure - 1);
	free(text);
	json_decref(json);
}

/* The failure that this thread recorded last. */
void
ft_api_reply_failure(ft_http_exchange *exchange, ft_status status)
{
	ft_api_reply(exchange, ft_api_http_code(status),
				 ft_api_error(status, ft_error_message(), ft_error_hint()));
}

/* --- jobs of the loader and reader threads --- */

typedef struct job
{
	ft_api *api;
	ft_http_exchange *exchange;
	json_t *body;
	ft_model_ref model; /* where the route has resolved one */
	ft_status (*work)(struct job *job, json_t **reply);
	int code;
	json_t *reply;
} job;

static void
job_end(job *j)
{
	if (j->model.base)
		ft_registry_put(j->api->registry, &j->model);
	json_decref(j->body);
	free(j);
}

static void
job_reply(void *argument)
{
	job *j = argument;

	ft_api_reply(j->exchange, j->code, j->reply);
	job_end(j);
}

static void
job_work(void *argument)
{
	job *j = argument;
	ft_status status = j->work(j, &j->reply);

	j->code = HTTP_OK;
	if (status != FT_OK)
	{
		j->code = ft_api_http_code(status);
		j->reply = ft_api_error(status, ft_error_message(), ft_error_hint());
	}
	/* without memory for a list cell the exchange stays open; its client's patience ends it */
	if (ft_http_post(j->api->http, job_reply, j) != FT_OK)
		ft_log("error", "%s", ft_error_message());
}

/* Takes over body and, from *model, the reference. */
static void
start_job(ft_api *api, ft_worker_thread *worker, ft_http_exchange *exchange, json_t *body,
		  ft_model_ref *model, ft_status (*work)(job *, json_t **))
{
	job *j;
	ft_status status = ft_alloc((void **) &j, 1, sizeof *j);

	if (status != FT_OK)
	{
		json_decref(body);
		if (model)
			ft_registry_put(api->registry, model);
		ft_api_reply_failure(exchange, status);
		return;
	}
	*j = (job){.api = api, .exchange = exchange, .body = body, .work = work};
	if (model)
		j->model = *model;
	status = ft_worker_do(worker, job_work, j);
	if (status != FT_OK)
	{
		ft_api_reply_failure(exchange, status);
		job_end(j);
	}
}

static ft_status
load_model_work(job *j, json_t **reply)
{
	static const char *const names[] = {"model",          "path",   "template",
										"context_length", "digest", NULL};
	const char *id, *path, *template_name, *digest;
	json_int_t context_length;
	ft_model_ref ref;
	ft_base *b;

	FT_TRY(ft_body_only(j->body, names));
	FT_TRY(ft_body_string(j->body, "model", &id));
	FT_TRY(ft_body_string(j->body, "path", &path));
	FT_TRY(ft_body_optional_string(j->body, "template", &template_name));
	FT_TRY(ft_body_optional_integer(j->body, "context_length", 1, INT32_MAX, 0, &context_length));
	FT_TRY(ft_body_optional_string(j->body, "digest", &digest));
	FT_TRY(ft_registry_load_base(j->api->registry, id, path, template_name, (int) context_length,
								 digest, &ref));
	b = ref.base;
	*reply = json_pack("{s:s, s:s, s:I, s:i, s:s, s:I}", "model", b->id, "architecture",
					   b->model->config.architecture, "parameters", (json_int_t) b->parameters,
					   "context_length", b->context, "digest", b->digest, "bytes",
					   (json_int_t) b->file_bytes);
	ft_registry_put(j->api->registry, &ref);
	return FT_OK;
}

static ft_status
load_lora_work(job *j, json_t **reply)
{
	static const char *const names[] = {"lora_name", "lora_path", "base_model_name", "base_digest",
										NULL};
	const char *id, *path, *base, *digest;

	FT_TRY(ft_body_only(j->body, names));
	FT_TRY(ft_body_string(j->body, "lora_name", &id));
	FT_TRY(ft_body_string(j->body, "lora_path", &path));
	FT_TRY(ft_body_string(j->body, "base_model_name", &base));
	FT_TRY(ft_body_optional_string(j->body, "base_digest", &digest));
	FT_TRY(ft_registry_load_lora(j->api->registry, id, path, base, digest));
	*reply = json_pack("{s:s, s:s}", "lora_name", id, "base_model_name", base);
	return FT_OK;
}

static ft_status
inspect_work(job *j, json_t **reply)
{
	static const char *const names[] = {"path", "template", NULL};
	const char *path, *template_name;

	FT_TRY(ft_body_only(j->body, names));
	FT_TRY(ft_body_string(j->body, "path", &path));
	FT_TRY(ft_body_optional_string(j->body, "template", &template_name));
	return ft_inspect(path, template_name, reply);
}

static ft_status
tokenize_work(job *j, json_t **reply)
{
	const ft_base *base = j->model.base;
	ft_input input = {0};
	ft_ids ids = {0};
	ft_status status = ft_request_parse(j->body, FT_INPUT_TOKENIZE, &input, NULL, NULL);

	if (status == FT_OK)
		status = ft_input_encode(&input, base->tokenizer, base->chat_template,
								 ft_prompt_template_of(&j->model), base->bos,
								 (size_t) base->model->config.vocab, &ids);
	if (status == FT_OK)
		*reply = ft_api_tokens(&ids, base->context);
	ft_ids_free(&ids);
	ft_input_free(&input);
	return status;
}

/* --- routes --- */

typedef struct exchange_in
{
	ft_api *api;
	ft_http_exchange *exchange;
	json_t *body;       /* the route's to keep or free; NULL for GET */
	ft_model_ref model; /* likewise; set for routes that name a model */
} exchange_in;

static void
route_health(exchange_in *in)
{
	ft_api_reply(in->exchange, HTTP_OK, json_pack("{s:s}", "status", "ok"));
}

static void
route_stats(exchange_in *in)
{
	ft_scheduler_stats stats;
	ft_endpoint_stats endpoints;
	json_t *reply;

	ft_scheduler_get_stats(in->api->scheduler, &stats);
	ft_endpoints_get_stats(in->api->endpoints, &endpoints);
	reply = ft_api_stats(in->api->registry, &stats);
	if (reply)
		json_object_set_new(reply, "endpoints", ft_api_endpoint_stats(&endpoints));
	ft_api_reply(in->exchange, HTTP_OK, reply);
}

static void
route_metrics(exchange_in *in)
{
	ft_scheduler_stats stats;
	ft_endpoint_stats endpoints;
	ft_text text = {0};
	ft_status status;

	ft_scheduler_get_stats(in->api->scheduler, &stats);
	ft_endpoints_get_stats(in->api->endpoints, &endpoints);
	status = ft_metrics_write(in->api->registry, &stats, &text);
	if (status == FT_OK)
		status = ft_metrics_write_endpoints(&endpoints, &text);
	if (status == FT_OK)
		ft_http_reply_text(in->exchange, HTTP_OK, FT_METRICS_TYPE, text.data, text.length);
	else
		ft_api_reply_failure(in->exchange, status);
	ft_text_free(&text);
}

static void
route_models(exchange_in *in)
{
	ft_api_reply(in->exchange, HTTP_OK, ft_api_models(in->api->registry));
}

static void
route_load_model(exchange_in *in)
{
	start_job(in->api, in->api->loader, in->exchange, in->body, NULL, load_model_work);
}

static void
route_load_lora(exchange_in *in)
{
	start_job(in->api, in->api->loader, in->exchange, in->body, NULL, load_lora_work);
}

static void
route_inspect(exchange_in *in)
{
	start_job(in->api, in->api->reader, in->exchange, in->body, NULL, inspect_work);
}

static void
route_tokenize(exchange_in *in)
{
	start_job(in->api, in->api->reader, in->exchange, in->body, &in->model, tokenize_work);
}

static void
route_completions(exchange_in *in)
{
	ft_completion_start(in->api, in->exchange, in->body, &in->model, false);
}

static void
route_chat_completions(exchange_in *in)
{
	ft_completion_start(in->api, in->exchange, in->body, &in->model, true);
}

static void
route_endpoint(exchange_in *in)
{
	ft_endpoint_start(in->api->endpoints, in->exchange, in->body);
}

static ft_status
unload_lora(exchange_in *in, json_t **reply)
{
	static const char *const names[] = {"lora_name", NULL};
	const char *id;

	FT_TRY(ft_body_only(in->body, names));
	FT_TRY(ft_body_string(in->body, "lora_name", &id));
	FT_TRY(ft_registry_unload_lora(in->api->registry, id));
	*reply = json_pack("{s:s}", "lora_name", id);
	return FT_OK;
}

static ft_status
detokenize(exchange_in *in, json_t **reply)
{
	static const char *const names[] = {"model", "tokens", NULL};
	const ft_base *base = in->model.base;
	ft_ids ids = {0};
	ft_text text = {0};
	ft_status status = ft_body_only(in->body, names);

	if (status == FT_OK)
		status = ft_body_token_ids(json_object_get(in->body, "tokens"), "tokens",
								   (size_t) base->model->config.vocab, &ids);
	if (status == FT_OK)
		status = ft_tokenizer_decode(base->tokenizer, ids.data, ids.length, false, &text);
	if (status == FT_OK)
		*reply = ft_api_text("prompt", &text);
	ft_text_free(&text);
	ft_ids_free(&ids);
	return status;
}

/* A route that is done at once. */
static void
answer_now(exchange_in *in, ft_status (*work)(exchange_in *, json_t **))
{
	json_t *reply = NULL;
	ft_status status = work(in, &reply);

	if (status == FT_OK)
		ft_api_reply(in->exchange, HTTP_OK, reply);
	else
		ft_api_reply_failure(in->exchange, status);
	if (in->model.base)
		ft_registry_put(in->api->registry, &in->model);
	json_decref(in->body);
}

static void
route_unload_lora(exchange_in *in)
{
	answer_now(in, unload_lora);
}

static void
route_detokenize(exchange_in *in)
{
	answer_now(in, detokenize);
}

/* Who may ask for a route: what names files is the owner's, on the Unix socket, alone. */
typedef enum admitted
{
	OWNER,
	WITH_KEY,
	ANYBODY
} admitted;

static const struct
{
	const char *method;
	const char *path;
	admitted admitted;
	bool names_model; /* in "model"; one that is not loaded is answered before all else */
	void (*handle)(exchange_in *in);
} routes[] = {
	{"GET", "/health", ANYBODY, false, route_health},
	{"GET", "/stats", WITH_KEY, false, route_stats},
	{"GET", "/metrics", WITH_KEY, false, route_metrics},
	{"GET", "/v1/models", WITH_KEY, false, route_models},
	{"POST", "/v1/load_model", OWNER, false, route_load_model},
	{"POST", "/v1/load_lora_adapter", OWNER, false, route_load_lora},
	{"POST", "/v1/unload_lora_adapter", OWNER, false, route_unload_lora},
	{"POST", "/inspect", OWNER, false, route_inspect},
	{"POST", "/v1/completions", WITH_KEY, true, route_completions},
	{"POST", "/v1/chat/completions", WITH_KEY, true, route_chat_completions},
	{"POST", "/v1/endpoint/chat/completions", OWNER, false, route_endpoint},
	{"POST", "/tokenize", WITH_KEY, true, route_tokenize},
	{"POST", "/detokenize", WITH_KEY, true, route_detokenize},
};

static ft_status
find_model(exchange_in *in)
{
	const char *id;

	FT_TRY(ft_body_string(in->body, "model", &id));
	return ft_registry_get(in->api->registry, id, &in->model);
}

void
ft_api_handle(void *context, ft_http_exchange *exchange, const ft_http_request *request)
{
	exchange_in in = {.api = context, .exchange = exchange};
	bool key_shown = request->remote && ft_api_key_shown(&in.api->key, request->authorization);
	bool path_known = false;
	ft_status status = FT_OK;

	for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++)
	{
		if (strcmp(routes[i].path, request->path) != 0 ||
			(request->remote && routes[i].admitted == OWNER))
			continue;
		if (request->remote && routes[i].admitted == WITH_KEY && !key_shown)
		{
			ft_api_reply(exchange, HTTP_UNAUTHORIZED,
						 json_pack("{s:{s:s, s:s, s:s}}", "error", "message",
								   "the request does not show the right key", "type",
								   "invalid_request_error", "code", "invalid_api_key"));
			return;
		}
		path_known = true;
		if (strcmp(routes[i].method, request->method) != 0)
			continue;
		if (strcmp(request->method, "POST") == 0)
			status = ft_body_parse(request->body, request->body_length, &in.body);
		if (status == FT_OK && routes[i].names_model)
			status = find_model(&in);
		if (status == FT_OK)
			routes[i].handle(&in);
		else
		{
			ft_api_reply_failure(exchange, status);
			json_decref(in.body);
		}
		return;
	}
	if (path_known)
		ft_api_reply(exchange, HTTP_METHOD_NOT_ALLOWED,
					 ft_api_error(FT_INVALID, "this path does not take that method", ""));
	else
		ft_api_reply(exchange, HTTP_NOT_FOUND,
					 ft_api_error(FT_INVALID, "there is no such path", ""));
}
