/*
 * process.c: log lines, and the end of the parent.
 */
#include "process.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "programs.h"

#define LINE_SIZE 2048

void
ft_log(const char *level, const char *fmt, ...)
{
	char line[LINE_SIZE];
	va_list args;
	int length = snprintf(line, sizeof line, "%s: ", level);
	int more;
	ssize_t ignored;

	va_start(args, fmt);
	more = vsnprintf(line + length, sizeof line - (size_t) length - 1, fmt, args);
	va_end(args);
	if (more > 0)
		length += more;
	if (length > (int) sizeof line - 2)
		length = (int) sizeof line - 2;
	/* a file's name may hold a line feed, but the reader takes a line for an entry */
	for (int i = 0; i < length; i++)
		if ((unsigned char) line[i] < ' ')
			line[i] = ' ';
	line[length++] = '\n';
	ignored = write(STDERR_FILENO, line, (size_t) length);
	(void) ignored;
}

static void *
watch_control(void *arg)
{
	int fd = (int) (intptr_t) arg;
	char bytes[64];

	for (;;)
	{
		ssize_t n = read(fd, bytes, sizeof bytes);

		if (n > 0 || (n < 0 && errno == EINTR))
			continue;
		_exit(FT_EXIT_FAILED);
	}
	return NULL;
}

ft_status
ft_process_watch_control(int fd)
{
	pthread_t thread;
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	error = pthread_create(&thread, NULL, watch_control, (void *) (intptr_t) fd);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error != 0)
	{
		errno = error;
		return ft_fail_errno("could not start a thread");
	}
	pthread_detach(thread);
	return FT_OK;
}
