/*
 * onednn.c: opening oneDNN.
 */
#include "onednn.h"

#ifdef FT_HAVE_ONEDNN

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static ft_onednn library;
static const ft_onednn *opened;

static const char *
find_functions(void *handle)
{
#define FIND(name)                                   \
	*(void **) &library.name = dlsym(handle, #name); \
	if (library.name == NULL)                        \
		return #name " is missing";
	FT_ONEDNN_FUNCTIONS(FIND)
	FIND(omp_set_num_threads)
#undef FIND
	if (library.dnnl_version()->major != DNNL_VERSION_MAJOR)
		return "its major version is another";
	if (library.dnnl_engine_create(&library.engine, dnnl_cpu, 0) != dnnl_success)
		return "it has no CPU engine";
	return NULL;
}

static void
open_library(void)
{
	const char *name = getenv("PG_FINETUNE_ONEDNN");
	const char *problem;
	void *handle;

	if (name == NULL || name[0] == '\0')
		name = "libdnnl.so.2";
	handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
	problem = handle == NULL ? dlerror() : find_functions(handle);
	if (problem == NULL)
		opened = &library;
	else
		fprintf(stderr, "oneDNN is not used, training will be slower: %s\n", problem);
}

const ft_onednn *
ft_onednn_get(void)
{
	pthread_once(&once, open_library);
	return opened;
}

#endif
