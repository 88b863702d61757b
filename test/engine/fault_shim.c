/*
 * fault_shim.c: a library to be preloaded that interrupts a program at the Nth
 * of its calls that change files.
 *
 * The file that FAULT_CONTROL names holds one line, which a test writes and may
 * change while programs run:
 *
 *     COUNT FIRST LAST ACTION PATTERN
 *
 * A call is counted when "NAME PATH" ("write /tmp/job/metrics.jsonl") matches
 * the pattern (fnmatch; * matches slashes, too).  Processes share the count.
 * From the FIRST counted call to the LAST one (0: the end) this happens:
 *
 *     KILL    SIGKILL, before anything is done
 *     TEAR    the call is done, a write by half of its bytes, then SIGKILL
 *     HOLD    the call waits until the line is another one
 *     number  the call fails with this errno
 *
 * LOG does nothing but append "N NAME PATH" to FAULT_CONTROL.log.
 *
 * What stdio writes does not come by here: neither the engine nor the server
 * writes files with it where that matters.
 *
 * The file that FAULT_CLOCK names holds seconds by which the clock on the wall
 * is wrong, in every program, from the moment they are written.  Monotonic
 * clocks and the times of files are as ever.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define LINE_SIZE (PATH_MAX + 128)

typedef struct control
{
	long count;
	long first;
	long last;
	char action[16];
	char pattern[PATH_MAX];
} control;

typedef enum verdict
{
	GO_ON,
	FAIL, /* errno is set */
	TEAR
} verdict;

/* --- the control file --- */

/* By system calls, or the shim would count its own. */
static int
open_control(const char *suffix, int flags)
{
	const char *path = getenv("FAULT_CONTROL");
	char name[PATH_MAX];

	if (path == NULL || snprintf(name, sizeof name, "%s%s", path, suffix) >= (int) sizeof name)
		return -1;
	return (int) syscall(SYS_openat, AT_FDCWD, name, flags | O_CLOEXEC, 0666);
}

static bool
read_control(int fd, control *c)
{
	char line[LINE_SIZE];
	ssize_t n = pread(fd, line, sizeof line - 1, 0);

	if (n <= 0)
		return false;
	line[n] = '\0';
	return sscanf(line, "%ld %ld %ld %15s %4095[^\n]", &c->count, &c->first, &c->last, c->action,
				  c->pattern) == 5;
}

static void
write_count(int fd, const control *c)
{
	char line[LINE_SIZE];
	int n = snprintf(line, sizeof line, "%ld %ld %ld %s %s\n", c->count, c->first, c->last,
					 c->action, c->pattern);

	/* a count only grows: nothing of the old line is left */
	if (syscall(SYS_pwrite64, fd, line, (size_t) n, (off_t) 0) != n)
		_exit(99);
}

static void
log_call(long n, const char *call)
{
	char line[LINE_SIZE];
	int length = snprintf(line, sizeof line, "%ld %s\n", n, call);
	int fd = open_control(".log", O_WRONLY | O_CREAT | O_APPEND);

	if (fd < 0 || syscall(SYS_write, fd, line, (size_t) length) != length)
		_exit(99);
	close(fd);
}

/* Wait until the test has written another line; a marker says that somebody waits. */
static void
hold(const control *held)
{
	const struct timespec moment = {.tv_nsec = 2000000};
	control c = *held;

	log_call(held->count, "held");
	while (strcmp(c.action, "HOLD") == 0 && c.first == held->first && c.last == held->last)
	{
		int fd = open_control("", O_RDONLY);

		if (fd < 0)
			return;
		/* a line that is half written is read again */
		read_control(fd, &c);
		close(fd);
		nanosleep(&moment, NULL);
	}
}

/* --- a call --- */

/* Count a call and say what is to become of it. */
static verdict
meet(const char *name, const char *path)
{
	char call[PATH_MAX + 32];
	control c;
	int before = errno;
	int fd = open_control("", O_RDWR);
	bool counted;

	if (fd < 0)
		return GO_ON;
	snprintf(call, sizeof call, "%s %s", name, path);
	flock(fd, LOCK_EX);
	counted = read_control(fd, &c) && fnmatch(c.pattern, call, 0) == 0;
	if (counted)
	{
		c.count++;
		write_count(fd, &c);
	}
	close(fd);
	errno = before;
	if (!counted || c.count < c.first || (c.last != 0 && c.count > c.last))
		return GO_ON;
	if (strcmp(c.action, "LOG") == 0)
		log_call(c.count, call);
	else if (strcmp(c.action, "KILL") == 0)
		raise(SIGKILL);
	else if (strcmp(c.action, "TEAR") == 0)
		return TEAR;
	else if (strcmp(c.action, "HOLD") == 0)
		hold(&c);
	else
	{
		errno = atoi(c.action);
		return FAIL;
	}
	errno = before;
	return GO_ON;
}

/* A path as the caller names it, made absolute. */
static verdict
meet_path(const char *name, const char *path)
{
	char directory[PATH_MAX];
	char absolute[PATH_MAX];

	if (path == NULL || path[0] == '/' || getcwd(directory, sizeof directory) == NULL ||
		snprintf(absolute, sizeof absolute, "%s/%s", directory, path) >= (int) sizeof absolute)
		return meet(name, path != NULL ? path : "");
	return meet(name, absolute);
}

static verdict
meet_fd(const char *name, int fd)
{
	char link[64];
	char path[PATH_MAX];
	int before = errno;
	ssize_t n;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof path - 1);
	errno = before;
	/* pipes and sockets are no files */
	if (n <= 0 || path[0] != '/')
		return GO_ON;
	path[n] = '\0';
	return meet(name, path);
}

/* The function behind the one of this library. */
static void *
next(const char *name)
{
	void *function = dlsym(RTLD_NEXT, name);

	if (function == NULL)
		_exit(99);
	return function;
}

static intptr_t
torn(intptr_t result)
{
	raise(SIGKILL);
	return result;
}

/* --- the functions that change files --- */

#define SHIM(type, name, parameters, meeting, call)                \
	type name parameters;                                          \
	type name parameters                                           \
	{                                                              \
		type(*real) parameters = (type(*) parameters) next(#name); \
		verdict v = meeting;                                       \
                                                                   \
		if (v == FAIL)                                             \
			return -1;                                             \
		return v == TEAR ? (type) torn(call) : call;               \
	}

SHIM(int, fsync, (int fd), meet_fd("fsync", fd), real(fd))
SHIM(int, fdatasync, (int fd), meet_fd("fdatasync", fd), real(fd))
SHIM(int, ftruncate, (int fd, off_t n), meet_fd("ftruncate", fd), real(fd, n))
SHIM(int, ftruncate64, (int fd, off_t n), meet_fd("ftruncate", fd), real(fd, n))
SHIM(int, rename, (const char *from, const char *to), meet_path("rename", to), real(from, to))
SHIM(int, mkdir, (const char *path, mode_t mode), meet_path("mkdir", path), real(path, mode))
SHIM(int, rmdir, (const char *path), meet_path("rmdir", path), real(path))
SHIM(int, unlink, (const char *path), meet_path("unlink", path), real(path))

/* A write that is torn writes half of its bytes. */
#define SHIM_WRITE(name, told, parameters, whole, half)                  \
	ssize_t name parameters;                                             \
	ssize_t name parameters                                              \
	{                                                                    \
		ssize_t(*real) parameters = (ssize_t(*) parameters) next(#name); \
		verdict v = meet_fd(told, fd);                                   \
                                                                         \
		if (v == FAIL)                                                   \
			return -1;                                                   \
		return v == TEAR ? (ssize_t) torn(half) : whole;                 \
	}

SHIM_WRITE(write, "write", (int fd, const void *bytes, size_t n), real(fd, bytes, n),
		   real(fd, bytes, n / 2))
SHIM_WRITE(pwrite, "write", (int fd, const void *bytes, size_t n, off_t at), real(fd, bytes, n, at),
		   real(fd, bytes, n / 2, at))
SHIM_WRITE(pwrite64, "write", (int fd, const void *bytes, size_t n, off_t at),
		   real(fd, bytes, n, at), real(fd, bytes, n / 2, at))
SHIM_WRITE(writev, "write", (int fd, const struct iovec *parts, int n), real(fd, parts, n),
		   real(fd, parts, n / 2))

/* An open is of interest when it may make or empty a file. */
#define SHIM_OPEN(name)                                                                      \
	int name(const char *path, int flags, ...);                                              \
	int name(const char *path, int flags, ...)                                               \
	{                                                                                        \
		int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...)) next(#name); \
		verdict v = GO_ON;                                                                   \
		va_list args;                                                                        \
		mode_t mode = 0;                                                                     \
		int fd;                                                                              \
                                                                                             \
		if (flags & (O_CREAT | O_TRUNC))                                                     \
		{                                                                                    \
			va_start(args, flags);                                                           \
			mode = va_arg(args, mode_t);                                                     \
			va_end(args);                                                                    \
			v = meet_path("open", path);                                                     \
		}                                                                                    \
		if (v == FAIL)                                                                       \
			return -1;                                                                       \
		fd = real(path, flags, mode);                                                        \
		return v == TEAR ? (int) torn(fd) : fd;                                              \
	}

SHIM_OPEN(open)
SHIM_OPEN(open64)

/* --- the clock on the wall --- */

static time_t
clock_error(void)
{
	const char *path = getenv("FAULT_CLOCK");
	char text[32] = "";
	int before = errno;
	int fd = path != NULL ? (int) syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;

	if (fd >= 0)
	{
		if (pread(fd, text, sizeof text - 1, 0) < 0)
			_exit(99);
		close(fd);
	}
	errno = before;
	return (time_t) atol(text);
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = (int) syscall(SYS_clock_gettime, clock, now);

	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += clock_error();
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec t;

	(void) zone;
	if (clock_gettime(CLOCK_REALTIME, &t) != 0)
		return -1;
	now->tv_sec = t.tv_sec;
	now->tv_usec = t.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *to)
{
	struct timespec t = {0};

	clock_gettime(CLOCK_REALTIME, &t);
	if (to != NULL)
		*to = t.tv_sec;
	return t.tv_sec;
}
