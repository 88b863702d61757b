/*
 * child.h: an engine as the supervised child of a server process: a background
 * worker, or a session, which are both called its worker here.
 *
 * A worker has one child at a time.  The child is started by fork and exec,
 * attached to nothing of the database: no shared memory, no descriptor, no
 * secret of the environment.  It ends with its worker, however that ends
 * (PR_SET_PDEATHSIG, and end-of-file on its control pipe), and the worker
 * always waits for it.
 *
 * A loop around it:
 *
 *     PgftChild *child = pgft_child_start("trainer", argv, 10);
 *     while (!pgft_child_exited(child, &status))
 *     {
 *         pgft_child_wait(child, timeout_ms);    -- resets MyLatch
 *         CHECK_FOR_INTERRUPTS(); …
 *         while ((line = pgft_child_next_line(child)) != NULL)
 *             …
 *     }
 *     pgft_child_end(child);
 */
#ifndef PGFT_CHILD_H
#define PGFT_CHILD_H

/* The descriptor on which the engine finds its end of the control pipe */
#define PGFT_CHILD_CONTROL_FD 3

/* Of engines that give way to queries: all but the serving one */
#define PGFT_BACKGROUND_NICENESS 10

typedef struct PgftChild PgftChild;

/*
 * Start a program.  `name` stands before its lines in the server log.
 * argv[0] is the program's path, the list ends with NULL; "--control-fd 3" is
 * added to it.  `niceness` is its scheduling priority.
 *
 * Raises an error when it cannot be started.  A program that cannot be
 * executed exits with status 127 and says so on its standard error.
 */
extern PgftChild *pgft_child_start(const char *name, const char *const *argv, int niceness);

extern pid_t pgft_child_pid(const PgftChild *child);

/*
 * Sleep until the child has written something or has ended, MyLatch is set,
 * or the time is over (milliseconds, below 0: no limit).  Resets MyLatch.
 * Lines on the child's standard error go to the server log.  The process ends
 * when the postmaster does.  Interrupts and signals' flags are the caller's to
 * look at.  Returns true when anything but the timeout ended the sleep.
 */
extern bool pgft_child_wait(PgftChild *child, long timeout_ms);

/*
 * The next complete line of the child's standard output, without its end, or
 * NULL when there is none yet.  Valid until the next call.  A line longer than
 * a megabyte is an error of the child: it is killed, and NULL returned.
 */
extern char *pgft_child_next_line(PgftChild *child);

/*
 * Has it ended, and all its output been read?  Sets *status (may be NULL) to
 * what waitpid said.
 */
extern bool pgft_child_exited(PgftChild *child, int *status);

/* Ask it to end (SIGTERM). */
extern void pgft_child_terminate(PgftChild *child);

/* End it (SIGKILL). */
extern void pgft_child_kill(PgftChild *child);

/*
 * Kill it if it still runs, wait for it, free everything.  Also done when the
 * worker exits.  Returns its wait status.
 */
extern int pgft_child_end(PgftChild *child);

/* The same for the child that this process has, if it has one. */
extern void pgft_child_end_current(void);

/* The last line that it wrote to its standard error, "" if none. */
extern const char *pgft_child_last_words(const PgftChild *child);

/* "exited with exit code 1", "was terminated by signal 9: Killed" … (palloc'd) */
extern char *pgft_child_status_text(int status);

#endif
