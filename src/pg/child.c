/*
 * child.c: an engine as the supervised child of a server process.
 *
 * Why so much care between fork and exec: PostgreSQL 15 opens data files
 * without close-on-exec, ignores or handles signals that a plain program wants
 * by default, and keeps secrets (PGPASSWORD and the like) in its environment.
 * And why two ways to end with the worker: the death signal is lost if the
 * worker dies before it is set, and end-of-file is seen only by an engine that
 * still looks.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child.h"
#include "lib/stringinfo.h"
#include "libpq/pqsignal.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#define MAX_LINE (1024 * 1024)
#define MAX_LOG_LINE 2000
#define FIRST_OTHER_FD (PGFT_CHILD_CONTROL_FD + 1)

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

/* One of the child's output pipes, as far as it has been read */
typedef struct Pipe
{
	int fd; /* -1 once at its end */
	StringInfoData data;
	int consumed; /* bytes of data that have been handed out */
} Pipe;

struct PgftChild
{
	const char *name;
	pid_t pid;
	bool reaped;
	int status;  /* of waitpid, once reaped */
	int control; /* our end of the control pipe */
	Pipe out;
	Pipe err;
	WaitEventSet *events; /* NULL: to be made anew */
	char last_words[MAX_LOG_LINE];
};

static PgftChild *current = NULL;

/* What SIGCHLD did before there was a child: a session has uses of its own for it */
static pqsigfunc previous_sigchld;

/* The environment that an engine is given; a trailing = stands for a whole name. */
static const char *const allowed_environment[] = {
	"PATH=",
	"LANG=",
	"LC_",
	"TZ=",
	"TMPDIR=",
	"HOME=",
	"LD_LIBRARY_PATH=",
	"CUDA_",
	"NVIDIA_",
	"PG_FINETUNE_",
	"ASAN_OPTIONS=",
	"UBSAN_OPTIONS=",
};

static void
handle_sigchld(SIGNAL_ARGS)
{
	int save_errno = errno;

	SetLatch(MyLatch);
	errno = save_errno;
}

void
pgft_child_end_current(void)
{
	if (current != NULL)
		pgft_child_end(current);
}

static void
end_at_exit(int code, Datum arg)
{
	pgft_child_end_current();
}

static char **
make_environment(void)
{
	int count = 0;
	int kept = 0;
	char **result;

	while (environ[count] != NULL)
		count++;
	result = palloc((count + 1) * sizeof(char *));
	for (int i = 0; i < count; i++)
		for (int j = 0; j < lengthof(allowed_environment); j++)
			if (strncmp(environ[i], allowed_environment[j], strlen(allowed_environment[j])) == 0)
			{
				result[kept++] = environ[i];
				break;
			}
	result[kept] = NULL;
	return result;
}

static char **
make_arguments(const char *const *argv)
{
	int count = 0;
	char **result;

	while (argv[count] != NULL)
		count++;
	result = palloc((count + 3) * sizeof(char *));
	for (int i = 0; i < count; i++)
		result[i] = (char *) argv[i];
	result[count] = "--control-fd";
	result[count + 1] = psprintf("%d", PGFT_CHILD_CONTROL_FD);
	result[count + 2] = NULL;
	return result;
}

/* Between fork and exec: say what went wrong on the standard error, and end. */
static void
exec_failed(const char *what)
{
	const char *reason = strerror(errno);
	ssize_t rc;

	rc = write(STDERR_FILENO, what, strlen(what));
	rc = write(STDERR_FILENO, reason, strlen(reason));
	rc = write(STDERR_FILENO, "\n", 1);
	(void) rc;
	_exit(127);
}

/* No descriptor of the server's reaches the engine. */
static void
close_other_descriptors(void)
{
	struct rlimit limit;

	if (syscall(SYS_close_range, FIRST_OTHER_FD, ~0U, CLOSE_RANGE_CLOEXEC) == 0)
		return;
	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		exec_failed("could not read the limit of open files: ");
	for (rlim_t fd = FIRST_OTHER_FD; fd < limit.rlim_cur; fd++)
		fcntl((int) fd, F_SETFD, FD_CLOEXEC);
}

static void
reset_signals(void)
{
	sigset_t none;

	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);

	/* A cancel request to the worker's process group is the worker's to answer */
	signal(SIGINT, SIG_IGN);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/*
 * The child's side of the fork: only async-signal-safe calls.  Descriptors 0
 * to 3 are put in place first; `fds` (input, output, error, control) are all
 * above them.
 */
static void
run_program(char *const *argv, char *const *envp, const int *fds, int niceness, pid_t parent)
{
	struct rlimit no_core = {0, 0};
	int fd;
	ssize_t rc;

	for (int i = 0; i < FIRST_OTHER_FD; i++)
		if (dup2(fds[i], i) < 0)
			_exit(127);

	if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
		exec_failed("could not tie the engine to its worker: ");
	if (getppid() != parent)
		_exit(1);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	setrlimit(RLIMIT_CORE, &no_core);

	/* Where memory is short the engine goes first, never the server */
	fd = open("/proc/self/oom_score_adj", O_WRONLY);
	if (fd >= 0)
	{
		rc = write(fd, "1000", 4);
		(void) rc;
		close(fd);
	}
	if (niceness != 0)
		setpriority(PRIO_PROCESS, 0, niceness);
	close_other_descriptors();
	reset_signals();
	execve(argv[0], argv, envp);
	exec_failed("could not execute the engine: ");
}

/* A pipe with both ends above the descriptors that the child's program gets. */
static bool
make_pipe(int *ends)
{
	int low[2];

	ends[0] = ends[1] = -1;
	if (pipe2(low, O_CLOEXEC) < 0)
		return false;
	ends[0] = fcntl(low[0], F_DUPFD_CLOEXEC, FIRST_OTHER_FD);
	if (ends[0] >= 0)
		ends[1] = fcntl(low[1], F_DUPFD_CLOEXEC, FIRST_OTHER_FD);
	close(low[0]);
	close(low[1]);
	return ends[1] >= 0;
}

/* All or none: a session goes on after an error. */
static void
open_descriptors(int *null_fd, int *control, int *out, int *err)
{
	int *pipes[] = {control, out, err};
	bool opened = true;
	int save_errno;

	*null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (*null_fd < 0)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not open \"/dev/null\": %m")));
	for (int i = 0; i < lengthof(pipes); i++)
		pipes[i][0] = pipes[i][1] = -1;
	for (int i = 0; opened && i < lengthof(pipes); i++)
		opened = make_pipe(pipes[i]);
	if (opened)
		return;
	save_errno = errno;
	close(*null_fd);
	for (int i = 0; i < lengthof(pipes); i++)
		for (int end = 0; end < 2; end++)
			if (pipes[i][end] >= 0)
				close(pipes[i][end]);
	errno = save_errno;
	ereport(ERROR, (errcode_for_file_access(), errmsg("could not create pipe: %m")));
}

static void
pipe_init(Pipe *pipe, int fd)
{
	fcntl(fd, F_SETFL, O_NONBLOCK);
	ReserveExternalFD();
	pipe->fd = fd;
	pipe->consumed = 0;
	initStringInfo(&pipe->data);
}

PgftChild *
pgft_child_start(const char *name, const char *const *argv, int niceness)
{
	static bool exit_registered = false;
	MemoryContext old_context = MemoryContextSwitchTo(TopMemoryContext);
	PgftChild *child = palloc0(sizeof(PgftChild));
	char **arguments = make_arguments(argv);
	char **environment = make_environment();
	pid_t parent = getpid();
	sigset_t all, before;
	int null_fd;
	int control[2], out[2], err[2];

	if (current != NULL)
		elog(ERROR, "this process has an engine already");
	if (!exit_registered)
	{
		before_shmem_exit(end_at_exit, (Datum) 0);
		exit_registered = true;
	}
	open_descriptors(&null_fd, control, out, err);
	previous_sigchld = pqsignal(SIGCHLD, handle_sigchld);

	/* No handler of ours may run in the child: its latch is the worker's */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	child->pid = fork();
	if (child->pid == 0)
	{
		int fds[] = {null_fd, out[1], err[1], control[0]};

		run_program(arguments, environment, fds, niceness, parent);
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	close(null_fd);
	close(control[0]);
	close(out[1]);
	close(err[1]);
	if (child->pid < 0)
	{
		int save_errno = errno;

		close(control[1]);
		close(out[0]);
		close(err[0]);
		pqsignal(SIGCHLD, previous_sigchld);
		errno = save_errno;
		ereport(ERROR, (errcode(ERRCODE_SYSTEM_ERROR), errmsg("could not fork the engine: %m")));
	}

	child->name = pstrdup(name);
	child->control = control[1];
	ReserveExternalFD();
	pipe_init(&child->out, out[0]);
	pipe_init(&child->err, err[0]);
	current = child;
	pfree(arguments);
	pfree(environment);
	MemoryContextSwitchTo(old_context);
	return child;
}

pid_t
pgft_child_pid(const PgftChild *child)
{
	return child->pid;
}

const char *
pgft_child_last_words(const PgftChild *child)
{
	return child->last_words;
}

char *
pgft_child_status_text(int status)
{
	return wait_result_to_str(status);
}

static void
close_pipe(PgftChild *child, Pipe *pipe)
{
	if (pipe->fd < 0)
		return;
	close(pipe->fd);
	ReleaseExternalFD();
	pipe->fd = -1;
	if (child->events != NULL)
		FreeWaitEventSet(child->events);
	child->events = NULL;
}

/* Drop what has been handed out, and read what there is, up to the limit of a line. */
static void
read_pipe(PgftChild *child, Pipe *pipe)
{
	StringInfo data = &pipe->data;

	if (pipe->consumed > 0)
	{
		memmove(data->data, data->data + pipe->consumed, data->len - pipe->consumed);
		data->len -= pipe->consumed;
		pipe->consumed = 0;
	}
	while (pipe->fd >= 0 && data->len < MAX_LINE)
	{
		ssize_t got;

		enlargeStringInfo(data, 8192);
		got = read(pipe->fd, data->data + data->len, 8192);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			break;
		if (got <= 0)
		{
			close_pipe(child, pipe);
			break;
		}
		data->len += got;
	}
	data->data[data->len] = '\0';
}

/* The next complete line in what has been read, NULL when there is none. */
static char *
take_line(Pipe *pipe)
{
	char *start = pipe->data.data + pipe->consumed;
	char *end = memchr(start, '\n', pipe->data.len - pipe->consumed);

	if (end == NULL)
		return NULL;
	*end = '\0';
	pipe->consumed += end - start + 1;
	return start;
}

static void
log_line(PgftChild *child, char *line)
{
	size_t length = strlen(line);

	if (length >= MAX_LOG_LINE)
		length = pg_mbcliplen(line, length, MAX_LOG_LINE - 1);
	line[length] = '\0';
	for (char *c = line; *c != '\0'; c++)
		if ((unsigned char) *c < ' ')
			*c = ' ';
	strlcpy(child->last_words, line, sizeof(child->last_words));
	/* it may name paths, which are no business of a session's client */
	ereport(LOG_SERVER_ONLY,
			(errmsg("%s: %s", child->name, line), errhidestmt(true), errhidecontext(true)));
}

static void
read_errors(PgftChild *child)
{
	char *line;

	read_pipe(child, &child->err);
	while ((line = take_line(&child->err)) != NULL)
		log_line(child, line);

	/* A "line" without end, or the last words of one that was cut off */
	if (child->err.data.len - child->err.consumed > 0 &&
		(child->err.fd < 0 || child->err.data.len >= MAX_LINE))
	{
		log_line(child, child->err.data.data + child->err.consumed);
		child->err.consumed = child->err.data.len;
	}
}

static void
make_events(PgftChild *child)
{
	child->events = CreateWaitEventSet(TopMemoryContext, 4);
	AddWaitEventToSet(child->events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(child->events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	if (child->out.fd >= 0)
		AddWaitEventToSet(child->events, WL_SOCKET_READABLE, child->out.fd, NULL, NULL);
	if (child->err.fd >= 0)
		AddWaitEventToSet(child->events, WL_SOCKET_READABLE, child->err.fd, NULL, NULL);
}

static void
try_reap(PgftChild *child)
{
	if (!child->reaped && waitpid(child->pid, &child->status, WNOHANG) == child->pid)
		child->reaped = true;
}

bool
pgft_child_wait(PgftChild *child, long timeout_ms)
{
	WaitEvent event;
	int count;

	if (child->events == NULL)
		make_events(child);
	count = WaitEventSetWait(child->events, timeout_ms, &event, 1, PG_WAIT_EXTENSION);
	if (count > 0 && event.events == WL_LATCH_SET)
		ResetLatch(MyLatch);

	/* Reap before reading, so that nothing it wrote is missed */
	try_reap(child);
	read_pipe(child, &child->out);
	read_errors(child);
	return count > 0;
}

char *
pgft_child_next_line(PgftChild *child)
{
	char *line = take_line(&child->out);

	if (line == NULL && child->out.consumed == 0 && child->out.data.len >= MAX_LINE)
	{
		ereport(LOG, (errmsg("%s: line of output longer than %d bytes", child->name, MAX_LINE)));
		pgft_child_kill(child);
		child->out.consumed = child->out.data.len;
	}
	return line;
}

bool
pgft_child_exited(PgftChild *child, int *status)
{
	if (!child->reaped || memchr(child->out.data.data + child->out.consumed, '\n',
								 child->out.data.len - child->out.consumed) != NULL)
		return false;
	if (status != NULL)
		*status = child->status;
	return true;
}

void
pgft_child_terminate(PgftChild *child)
{
	if (!child->reaped)
		kill(child->pid, SIGTERM);
}

void
pgft_child_kill(PgftChild *child)
{
	if (!child->reaped)
		kill(child->pid, SIGKILL);
}

int
pgft_child_end(PgftChild *child)
{
	int status;

	pgft_child_kill(child);
	while (!child->reaped)
	{
		if (waitpid(child->pid, &child->status, 0) == child->pid || errno != EINTR)
			child->reaped = true;
	}
	read_errors(child);
	status = child->status;

	close_pipe(child, &child->out);
	close_pipe(child, &child->err);
	if (child->events != NULL)
		FreeWaitEventSet(child->events);
	close(child->control);
	ReleaseExternalFD();
	pfree(child->out.data.data);
	pfree(child->err.data.data);
	pfree((char *) child->name);
	pfree(child);
	current = NULL;
	pqsignal(SIGCHLD, previous_sigchld);
	return status;
}
