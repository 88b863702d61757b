/*
 * backend_cuda.c: the CUDA backend, a shared object opened at run time.
 */
#include "backend_cuda.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_NAME "pg_finetune_cuda.so"

static const ft_backend_host host = {
	.version = FT_BACKEND_HOST_VERSION,
	.fail = (ft_fail),
	.hint = (ft_hint),
};

/* Beside the program that runs. */
static ft_status
find_file(char *path, size_t size)
{
	const char *named = getenv("PG_FINETUNE_CUDA_BACKEND");
	char program[PATH_MAX];
	ssize_t n;
	char *slash;

	if (named && *named)
		n = snprintf(path, size, "%s", named);
	else
	{
		n = readlink("/proc/self/exe", program, sizeof program - 1);
		if (n < 0)
			return ft_fail_errno("cannot read the link \"/proc/self/exe\"");
		program[n] = '\0';
		slash = strrchr(program, '/');
		n = snprintf(path, size, "%.*s/%s", slash ? (int) (slash - program) : 0, program,
					 FILE_NAME);
	}
	if ((size_t) n >= size)
		return ft_fail(FT_INVALID, "the path of the CUDA backend is longer than %zu bytes", size);
	return FT_OK;
}

static ft_status
open_backend(const ft_ops **ops)
{
	char path[PATH_MAX];
	ft_backend_entry entry;
	void *library;
	void *symbol;

	FT_TRY(find_file(path, sizeof path));
	if (access(path, F_OK) != 0)
		return ft_hint(ft_fail(FT_DEVICE, "there is no CUDA backend \"%s\"", path),
					   "Build and install where CUDA's compiler, nvcc, is on the path.");
	library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!library)
		return ft_fail(FT_DEVICE, "cannot open the CUDA backend: %s", dlerror());
	symbol = dlsym(library, FT_CUDA_ENTRY);
	memcpy(&entry, &symbol, sizeof entry);
	*ops = entry ? entry(&host) : NULL;
	if (!*ops || (*ops)->version != FT_OPS_VERSION)
	{
		dlclose(library);
		*ops = NULL;
		return ft_hint(ft_fail(FT_DEVICE, "the CUDA backend \"%s\" is of another version", path),
					   "Install the engine and its backend from one build.");
	}
	return ft_ops_check(*ops);
}

ft_status
ft_cuda_backend(const ft_ops **ops)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static const ft_ops *opened;
	ft_status status = FT_OK;

	pthread_mutex_lock(&lock);
	if (!opened)
		status = open_backend(&opened);
	*ops = opened;
	pthread_mutex_unlock(&lock);
	return status;
}
