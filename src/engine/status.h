/*
 * status.h: errors as values.
 *
 * Every function of the engine that can fail returns an ft_status.  The words
 * that go with a failure (message, hint) stand in a record of the calling
 * thread, as with dlerror(): a failure sets it, FT_TRY passes the code on, and
 * whoever handles the failure reads it with ft_error_message().  So an error
 * costs nothing until it happens, nobody frees a message, and no function
 * exits, aborts or jumps.
 *
 * Messages follow PostgreSQL's habit: lower case, no full stop, the offending
 * values in them ("tensor \"%s\" has %lld rows, expected %lld").  They never
 * carry text of a prompt, a completion or a training row.
 */
#ifndef FT_STATUS_H
#define FT_STATUS_H

typedef enum ft_status
{
	FT_OK = 0,
	FT_INVALID,     /* bad argument, option or request */
	FT_NOT_FOUND,   /* no such file, model, tensor */
	FT_IO,          /* the operating system refused a read or write */
	FT_NO_SPACE,    /* disk full */
	FT_NO_MEMORY,   /* host or device memory exhausted, or over its limit */
	FT_CORRUPT,     /* a file contradicts itself or is truncated */
	FT_UNSUPPORTED, /* well-formed, but not something we can do */
	FT_MISMATCH,    /* two things that must agree do not (digest, shape) */
	FT_NON_FINITE,  /* loss or gradient norm is not finite */
	FT_DEVICE,      /* no such device, driver missing, device lost */
	FT_BUSY,        /* queue full, try again later */
	FT_CANCELLED,   /* asked to stop */
	FT_INTERNAL,    /* a bug of ours */
	FT_UNREACHABLE, /* no connection to another server */
	FT_DENIED,      /* another server does not accept our key */
	FT_PROTOCOL,    /* what another server answers is no answer */
	FT_TIMEOUT,     /* another server does not answer in time */
	FT_REMOTE,      /* another server has failed */
	FT_STATUS_COUNT
} ft_status;

/* Name of a code as it stands in events and replies: "invalid", "not_found", "io", "no_space",
 * "no_memory", "corrupt", "unsupported", "mismatch", "non_finite", "device", "busy", "cancelled",
 * "internal", "unreachable", "denied", "protocol", "timeout", "remote"; "ok" for FT_OK. */
const char *ft_status_name(ft_status code);

/* Record a failure for this thread and return its code, for `return ft_fail(…)`.  Clears the hint.
 */
ft_status ft_fail(ft_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* As ft_fail with ": <strerror(errno)>" added; ENOSPC and EDQUOT become FT_NO_SPACE, ENOENT
 * FT_NOT_FOUND, ENOMEM FT_NO_MEMORY, all else FT_IO. */
ft_status ft_fail_errno(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Add a hint (a full sentence, as PostgreSQL writes them) to the failure recorded last. */
ft_status ft_hint(ft_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Prefix the failure recorded last with context ("file.gguf: " …) and return its code. */
ft_status ft_context(ft_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* These four never return FT_OK.  Compilers are told, or they would warn of every variable that
 * only a success sets. */
static inline ft_status
ft_failure_(ft_status code)
{
	if (code == FT_OK)
		__builtin_unreachable();
	return code;
}

#define ft_fail(...) ft_failure_(ft_fail(__VA_ARGS__))
#define ft_fail_errno(...) ft_failure_(ft_fail_errno(__VA_ARGS__))
#define ft_hint(...) ft_failure_(ft_hint(__VA_ARGS__))
#define ft_context(...) ft_failure_(ft_context(__VA_ARGS__))

/* Words of this thread's last failure; "" when there is none.  Valid until its next failure. */
const char *ft_error_message(void);
const char *ft_error_hint(void);

#define FT_TRY(expr)                       \
	do                                     \
	{                                      \
		ft_status ft_try_status_ = (expr); \
		if (ft_try_status_ != FT_OK)       \
			return ft_try_status_;         \
	} while (0)

#endif
