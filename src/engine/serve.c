/*
 * serve.c: the serving program.
 *
 * Threads: the main one runs the event loop; the scheduler's owns the device's
 * work; a loader and a reader do what is slow.  Who may listen on a path is
 * settled by a lock on PATH.lock, which the kernel releases with the process:
 * under it, a socket that lies there is a dead one's.
 */
#include "api.h"
#include "device.h"
#include "process.h"
#include "programs.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_ROWS 256
#define MAX_SEQUENCES 64
#define DEFAULT_MAX_REQUESTS 1024
#define BACKLOG 1024
#define LEAVE_MS 1000 /* for a load under way, when the program ends */

typedef struct serve_options
{
	const char *socket;
	const char *listen; /* NULL: not on TCP */
	const char *key_file;
	const char *device;
	ft_numerics numerics;
	int threads; /* 0: by the machine */
	int control_fd;
	int max_requests;
	int64_t cache_bytes;   /* 0: by the model */
	int64_t memory_bytes;  /* 0: four fifths of what the device has free */
	int64_t keep_alive_ms; /* 0: for ever */
	bool no_prefix_cache;
	int prefill_rows; /* 0: as many as there is room for */
} serve_options;

static ft_status
integer_option(const char *name, const char *text, long least, long most, long *value)
{
	char *end;

	errno = 0;
	*value = strtol(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || *value < least || *value > most)
		return ft_fail(FT_INVALID, "--%s is \"%s\", expected a number from %ld to %ld", name, text,
					   least, most);
	return FT_OK;
}

static ft_status
switch_option(const char *name, const char *text, long *value)
{
	*value = strcmp(text, "on") == 0;
	if (*value == 0 && strcmp(text, "off") != 0)
		return ft_fail(FT_INVALID, "--%s is \"%s\", expected on or off", name, text);
	return FT_OK;
}

static ft_status
parse_options(int argc, char **argv, serve_options *o)
{
	static const struct option options[] = {
		{"socket", required_argument, NULL, 's'},
		{"listen", required_argument, NULL, 'l'},
		{"api-key-file", required_argument, NULL, 'k'},
		{"threads", required_argument, NULL, 't'},
		{"device", required_argument, NULL, 'd'},
		{"numerics", required_argument, NULL, 'n'},
		{"control-fd", required_argument, NULL, 'c'},
		{"max-requests", required_argument, NULL, 'r'},
		{"cache-memory", required_argument, NULL, 'm'},
		{"engine-memory", required_argument, NULL, 'M'},
		{"keep-alive", required_argument, NULL, 'a'},
		{"prefix-cache", required_argument, NULL, 'p'},
		{"prefill-rows", required_argument, NULL, 'f'},
		{0},
	};
	long value;
	int letter;

	*o = (serve_options){.device = "auto", .control_fd = -1, .max_requests = DEFAULT_MAX_REQUESTS};
	while ((letter = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		switch (letter)
		{
			case 's':
				o->socket = optarg;
				break;
			case 'l':
				o->listen = optarg;
				break;
			case 'k':
				o->key_file = optarg;
				break;
			case 'd':
				o->device = optarg;
				break;
			case 'n':
				FT_TRY(ft_numerics_parse(optarg, &o->numerics));
				break;
			case 't':
				FT_TRY(integer_option("threads", optarg, 0, 4096, &value));
				o->threads = (int) value;
				break;
			case 'c':
				FT_TRY(integer_option("control-fd", optarg, 0, INT_MAX, &value));
				o->control_fd = (int) value;
				break;
			case 'r':
				FT_TRY(integer_option("max-requests", optarg, 1, 1 << 20, &value));
				o->max_requests = (int) value;
				break;
			case 'm':
				FT_TRY(integer_option("cache-memory", optarg, 1, LONG_MAX >> 20, &value));
				o->cache_bytes = (int64_t) value << 20;
				break;
			case 'M':
				FT_TRY(integer_option("engine-memory", optarg, 0, LONG_MAX >> 20, &value));
				o->memory_bytes = (int64_t) value << 20;
				break;
			case 'a':
				FT_TRY(integer_option("keep-alive", optarg, 0, INT_MAX, &value));
				o->keep_alive_ms = (int64_t) value * 1000;
				break;
			case 'p':
				FT_TRY(switch_option("prefix-cache", optarg, &value));
				o->no_prefix_cache = value == 0;
				break;
			case 'f':
				FT_TRY(integer_option("prefill-rows", optarg, 1, MAX_ROWS, &value));
				o->prefill_rows = (int) value;
				break;
			default:
				return ft_fail(FT_INVALID, "wrong usage");
		}
	}
	if (optind < argc)
		return ft_fail(FT_INVALID, "unexpected argument \"%s\"", argv[optind]);
	if (!o->socket)
		return ft_fail(FT_INVALID, "--socket is missing");
	if (o->listen && !o->key_file)
		return ft_fail(FT_INVALID, "--listen needs --api-key-file: TCP is open to everybody");
	return FT_OK;
}

/* Hold PATH.lock for as long as the process lives. */
static ft_status
lock_socket(const char *path)
{
	char lock[PATH_MAX];
	ft_status status;
	int fd;

	if (snprintf(lock, sizeof lock, "%s.lock", path) >= (int) sizeof lock)
		return ft_fail(FT_INVALID, "the socket's path of %zu bytes is too long", strlen(path));
	fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return ft_fail_errno("could not open \"%s\"", lock);
	if (flock(fd, LOCK_EX | LOCK_NB) == 0)
		return FT_OK; /* the descriptor stays open: it is the lock */
	status = errno == EWOULDBLOCK ? ft_fail(FT_BUSY, "another engine serves \"%s\"", path)
								  : ft_fail_errno("could not lock \"%s\"", lock);
	close(fd);
	return status;
}

/* A listening socket that only its owner can reach. */
static ft_status
listen_on(const char *path, int *listening)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	mode_t before;
	int fd, error;

	if (strlen(path) >= sizeof address.sun_path)
		return ft_fail(FT_INVALID, "the socket's path has %zu bytes, the limit is %zu",
					   strlen(path), sizeof address.sun_path - 1);
	memcpy(address.sun_path, path, strlen(path) + 1);
	if (unlink(path) != 0 && errno != ENOENT)
		return ft_fail_errno("could not remove \"%s\"", path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return ft_fail_errno("could not make a socket");
	before = umask(0177);
	error = bind(fd, (struct sockaddr *) &address, sizeof address) != 0 || listen(fd, BACKLOG) != 0
				? errno
				: 0;
	umask(before);
	if (error != 0)
	{
		close(fd);
		errno = error;
		return ft_fail_errno("could not listen on \"%s\"", path);
	}
	*listening = fd;
	return FT_OK;
}

/* HOST:PORT, or [HOST]:PORT, in its parts. */
static ft_status
split_address(const char *address, char host[256], const char **port)
{
	const char *colon = strrchr(address, ':');
	size_t n = colon ? (size_t) (colon - address) : 0;

	if (n > 2 && address[0] == '[' && address[n - 1] == ']')
	{
		address++;
		n -= 2;
	}
	if (n == 0 || n > 255 || colon[1] == '\0')
		return ft_fail(FT_INVALID, "--listen is \"%s\", expected HOST:PORT", address);
	memcpy(host, address, n);
	host[n] = '\0';
	*port = colon + 1;
	return FT_OK;
}

static ft_status
bind_tcp(const struct addrinfo *found, const char *address, int *listening)
{
	const int on = 1;
	int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return ft_fail_errno("could not make a socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0)
	{
		ft_status status = ft_fail_errno("could not listen on \"%s\"", address);

		close(fd);
		return status;
	}
	*listening = fd;
	return FT_OK;
}

/* Which port it is, where any would do. */
static int
port_of(int fd)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof address;

	if (getsockname(fd, (struct sockaddr *) &address, &length) != 0)
		return 0;
	return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *) &address)->sin6_port
											   : ((struct sockaddr_in *) &address)->sin_port);
}

static ft_status
listen_on_tcp(const char *address, ft_http *http)
{
	struct addrinfo wanted = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
	struct addrinfo *found = NULL;
	const char *port;
	char host[256];
	int error, fd = -1;
	ft_status status;

	FT_TRY(split_address(address, host, &port));
	error = getaddrinfo(host, port, &wanted, &found);
	if (error != 0)
		return ft_fail(FT_INVALID, "could not find address \"%s\": %s", address,
					   gai_strerror(error));
	status = bind_tcp(found, address, &fd);
	freeaddrinfo(found);
	FT_TRY(status);
	ft_log("log", "listening on \"%s\", port %d", host, port_of(fd));
	status = ft_http_listen_remote(http, fd);
	return status;
}

/* A descriptor a client: as many as we may have. */
static void
raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max)
	{
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

/* In the loop's thread, when the end has come: whoever still waits is told. */
static void
stop_requests(void *context)
{
	ft_api *api = context;

	ft_scheduler_stop(api->scheduler);
	ft_endpoints_stop(api->endpoints);
}

static ft_status
start_parts(const serve_options *o, const ft_registry_config *config, ft_api *api)
{
	int listening;
	ft_status status;

	if (o->key_file)
		FT_TRY(ft_api_key_read(o->key_file, &api->key));
	FT_TRY(ft_registry_create(config, &api->registry));
	FT_TRY(ft_scheduler_create(config, o->max_requests, &api->scheduler));
	FT_TRY(ft_worker_create(&api->loader));
	FT_TRY(ft_worker_create(&api->reader));
	FT_TRY(listen_on(o->socket, &listening));
	status = ft_http_create(listening, ft_api_handle, api, &api->http);
	if (status != FT_OK)
		return status;
	FT_TRY(ft_endpoints_create(api->http, o->max_requests, &api->endpoints));
	ft_http_on_stop(api->http, stop_requests, api);
	if (o->listen)
		FT_TRY(listen_on_tcp(o->listen, api->http));
	FT_TRY(ft_http_stop_on_signal(api->http, SIGTERM));
	return FT_OK;
}

/* Free everything; false when a thread is still busy with what cannot be interrupted. */
static bool
end_parts(ft_api *api)
{
	if (api->scheduler)
		ft_scheduler_stop(api->scheduler);
	if (api->loader && !ft_worker_free(api->loader, LEAVE_MS))
		return false;
	if (api->reader && !ft_worker_free(api->reader, LEAVE_MS))
		return false;
	ft_endpoints_free(api->endpoints);
	ft_http_free(api->http);
	ft_scheduler_free(api->scheduler);
	ft_registry_free(api->registry);
	return true;
}

static ft_status
serve(const serve_options *o)
{
	ft_registry_config config = {.cache_bytes = o->cache_bytes,
								 .memory_bytes = o->memory_bytes,
								 .keep_alive_ms = o->keep_alive_ms,
								 .max_rows = MAX_ROWS,
								 .max_sequences = MAX_SEQUENCES,
								 .prefill_rows = o->prefill_rows,
								 .no_prefix_cache = o->no_prefix_cache};
	ft_api api = {0};
	ft_device_info info;
	ft_status status;

	FT_TRY(ft_device_open_named(o->device, o->threads, o->numerics, &config.ops, &config.device));
	FT_TRY(config.ops->device_info(config.device, &info));
	if (config.memory_bytes == 0)
		config.memory_bytes = info.memory_free / 5 * 4;
	status = start_parts(o, &config, &api);
	if (status == FT_OK)
	{
		ft_log("log", "serving on \"%s\": device %s (%s), %d threads, %s numerics", o->socket,
			   info.name, info.features, info.threads,
			   o->numerics == FT_NUMERICS_REFERENCE ? "reference" : "fast");
		status = ft_http_run(api.http);
		unlink(o->socket);
	}
	if (end_parts(&api))
		config.ops->device_close(config.device);
	return status;
}

int
ft_serve_main(int argc, char **argv)
{
	serve_options options;
	ft_status status;

	if (parse_options(argc, argv, &options) != FT_OK)
	{
		fprintf(
			stderr,
			"%s\nusage: pg_finetune_engine serve --socket PATH [--threads N] [--device D] "
			"[--numerics fast|reference] [--control-fd N] [--max-requests N] "
			"[--cache-memory MIB] [--engine-memory MIB] [--keep-alive SECONDS] "
			"[--prefix-cache on|off] [--prefill-rows N] [--listen HOST:PORT --api-key-file FILE]\n",
			ft_error_message());
		return FT_EXIT_USAGE;
	}
	signal(SIGINT, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	raise_descriptor_limit();
	status = options.control_fd >= 0 ? ft_process_watch_control(options.control_fd) : FT_OK;
	if (status == FT_OK)
		status = lock_socket(options.socket);
	if (status == FT_OK)
		status = serve(&options);
	if (status != FT_OK)
	{
		ft_log("error", "%s", ft_error_message());
		return FT_EXIT_FAILED;
	}
	return FT_EXIT_DONE;
}
