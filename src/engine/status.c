/*
 * status.c: the error record of each thread.
 */
#include "status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#undef ft_fail
#undef ft_fail_errno
#undef ft_hint
#undef ft_context

#define MESSAGE_SIZE 1024

static _Thread_local struct
{
	char message[MESSAGE_SIZE];
	char hint[MESSAGE_SIZE];
} last_error;

static const char *const status_names[FT_STATUS_COUNT] = {
	[FT_OK] = "ok",
	[FT_INVALID] = "invalid",
	[FT_NOT_FOUND] = "not_found",
	[FT_IO] = "io",
	[FT_NO_SPACE] = "no_space",
	[FT_NO_MEMORY] = "no_memory",
	[FT_CORRUPT] = "corrupt",
	[FT_UNSUPPORTED] = "unsupported",
	[FT_MISMATCH] = "mismatch",
	[FT_NON_FINITE] = "non_finite",
	[FT_DEVICE] = "device",
	[FT_BUSY] = "busy",
	[FT_CANCELLED] = "cancelled",
	[FT_INTERNAL] = "internal",
	[FT_UNREACHABLE] = "unreachable",
	[FT_DENIED] = "denied",
	[FT_PROTOCOL] = "protocol",
	[FT_TIMEOUT] = "timeout",
	[FT_REMOTE] = "remote",
};

const char *
ft_status_name(ft_status code)
{
	if ((unsigned) code >= FT_STATUS_COUNT)
		return "internal";
	return status_names[code];
}

ft_status
ft_fail(ft_status code, const char *fmt, ...)
{
	char text[MESSAGE_SIZE];
	va_list args;

	/* the arguments may point into the record that is about to be replaced */
	va_start(args, fmt);
	vsnprintf(text, sizeof text, fmt, args);
	va_end(args);
	memcpy(last_error.message, text, sizeof text);
	last_error.hint[0] = '\0';
	return code;
}

ft_status
ft_fail_errno(const char *fmt, ...)
{
	int saved_errno = errno;
	char text[MESSAGE_SIZE];
	va_list args;
	ft_status code;

	va_start(args, fmt);
	vsnprintf(text, sizeof text, fmt, args);
	va_end(args);
	switch (saved_errno)
	{
		case ENOSPC:
		case EDQUOT:
			code = FT_NO_SPACE;
			break;
		case ENOENT:
			code = FT_NOT_FOUND;
			break;
		case ENOMEM:
			code = FT_NO_MEMORY;
			break;
		default:
			code = FT_IO;
			break;
	}
	return ft_fail(code, "%s: %s", text, strerror(saved_errno));
}

ft_status
ft_hint(ft_status code, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(last_error.hint, sizeof last_error.hint, fmt, args);
	va_end(args);
	return code;
}

ft_status
ft_context(ft_status code, const char *fmt, ...)
{
	char prefix[MESSAGE_SIZE / 2];
	char text[MESSAGE_SIZE];
	va_list args;

	va_start(args, fmt);
	vsnprintf(prefix, sizeof prefix, fmt, args);
	va_end(args);
	snprintf(text, sizeof text, "%s%.*s", prefix, (int) (sizeof text - sizeof prefix - 1),
			 last_error.message);
	memcpy(last_error.message, text, sizeof text);
	return code;
}

const char *
ft_error_message(void)
{
	return last_error.message;
}

const char *
ft_error_hint(void)
{
	return last_error.hint;
}
