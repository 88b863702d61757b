/*
 * health.c: does the serving engine still answer?
 *
 * The engine's event loop does nothing that takes long, so one that does not
 * answer hangs.  Questions without answer are counted, not seconds: a machine
 * that stood still is no hanging engine.
 */
#include "postgres.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "health.h"
#include "paths.h"
#include "pg_finetune.h"

#define ASK_EVERY_MS 5000
#define MAX_UNANSWERED 6

static const char question[] =
	"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

int
pgft_engine_connect(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char *path = pgft_socket_path();
	int fd;

	strlcpy(address.sun_path, path, sizeof(address.sun_path));
	pfree(path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	if (connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
	{
		int save_errno = errno;

		close(fd);
		errno = save_errno;
		return -1;
	}
	return fd;
}

void
pgft_health_start(PgftHealth *health)
{
	health->fd = -1;
	health->unanswered = 0;
	health->ask_at = pgft_monotonic_ms() + ASK_EVERY_MS;
}

void
pgft_health_stop(PgftHealth *health)
{
	if (health->fd >= 0)
		close(health->fd);
	health->fd = -1;
}

bool
pgft_health_check(PgftHealth *health)
{
	char answer[64];

	if (health->fd >= 0 && recv(health->fd, answer, sizeof(answer), 0) > 0)
		health->unanswered = 0;
	if (pgft_monotonic_ms() < health->ask_at)
		return true;

	pgft_health_stop(health);
	health->ask_at = pgft_monotonic_ms() + ASK_EVERY_MS;
	health->unanswered++;
	health->fd = pgft_engine_connect();
	if (health->fd >= 0 &&
		send(health->fd, question, sizeof(question) - 1, MSG_NOSIGNAL) != sizeof(question) - 1)
		pgft_health_stop(health);
	return health->unanswered <= MAX_UNANSWERED;
}
