/*
 * test_backend_cuda.c: the CUDA backend on a machine that need not have a GPU.
 *
 * That its shared object opens without a driver and fills the table, what is
 * said where something is missing, what "auto" does then; and the parts of it
 * that are plain C.
 */
#include "../../kernels/cuda/gemm_key.h"
#include "backend_cuda.h"
#include "device.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define BACKEND "build/pg_finetune_cuda.so"

/* The table of the object that was built, NULL with a printed reason where there is no CUDA
 * compiler. The process opens one object only, so tests of another run in a child. */
static const ft_ops *
built_backend(void)
{
	const ft_ops *ops;

	if (access(BACKEND, R_OK) != 0)
	{
		printf("skip: %s was not built, there is no nvcc\n", BACKEND);
		return NULL;
	}
	setenv("PG_FINETUNE_CUDA_BACKEND", BACKEND, 1);
	if (ft_cuda_backend(&ops) != FT_OK)
		fail_msg("%s", ft_error_message());
	return ops;
}

/* Run f in a child; true when it returns true. */
static bool
in_child(bool (*f)(void))
{
	pid_t child = fork();
	int status;

	if (child == 0)
		_exit(f() ? 0 : 1);
	return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* --- the shared object --- */

static void
test_table(void **state)
{
	const ft_ops *ops = built_backend();
	const ft_ops *again;

	(void) state;
	if (!ops)
		return;
	assert_int_equal(ft_ops_check(ops), FT_OK);
	assert_string_equal(ops->name, "cuda");
	assert_int_equal(ft_cuda_backend(&again), FT_OK);
	assert_ptr_equal(again, ops);
}

/* It must not depend on what only a machine with a GPU has, nor leak symbols. */
static void
test_object(void **state)
{
	static const char *const hidden[] = {"ft_fail", "ft_dtype_get", "cudaMalloc"};
	static const char *const absent[] = {"libcuda.so.1", "libcublasLt.so.13", "libcudart.so.13"};
	void *library;

	(void) state;
	if (!built_backend())
		return;
	library = dlopen(BACKEND, RTLD_NOW | RTLD_NOLOAD);
	assert_non_null(library);
	assert_non_null(dlsym(library, FT_CUDA_ENTRY));
	for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
	{
		void *symbol = dlsym(library, hidden[i]);
		Dl_info where;

		/* dlsym looks into the object's dependencies too; this program is none of them. */
		assert_true(!symbol || !dladdr(symbol, &where) || !strstr(where.dli_fname, BACKEND));
	}
	dlclose(library);
	for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
		assert_null(dlopen(absent[i], RTLD_NOW | RTLD_NOLOAD));
}

static void
test_bad_names(void **state)
{
	const ft_ops *ops = built_backend();
	static const char *const names[] = {"cuda:", "cuda:x", "cuda:1x", "cuda:-1", "cudas"};

	(void) state;
	if (!ops)
		return;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
	{
		ft_device_config config = {names[i], 1, FT_NUMERICS_FAST};
		ft_device *device;

		assert_int_equal(ops->device_open(&config, &device), FT_INVALID);
		assert_non_null(strstr(ft_error_message(), names[i]));
	}
}

/* With no device visible, whatever the machine has. */
static bool
names_what_is_missing(void)
{
	const ft_ops *ops;
	ft_device *device;
	ft_status status;

	setenv("CUDA_VISIBLE_DEVICES", "", 1);
	status = ft_device_open_named("cuda", 1, FT_NUMERICS_FAST, &ops, &device);
	return status == FT_DEVICE && strstr(ft_error_message(), "no CUDA") && *ft_error_hint();
}

static bool
auto_takes_the_cpu(void)
{
	const ft_ops *ops;
	ft_device *device;

	setenv("CUDA_VISIBLE_DEVICES", "", 1);
	if (ft_device_open_named("auto", 1, FT_NUMERICS_FAST, &ops, &device) != FT_OK ||
		ops != ft_cpu_ops())
		return false;
	ops->device_close(device);
	return true;
}

static void
test_no_device(void **state)
{
	(void) state;
	if (!built_backend())
		return;
	assert_true(in_child(names_what_is_missing));
	assert_true(in_child(auto_takes_the_cpu));
}

/* --- other objects --- */

static bool
missing_object(void)
{
	const ft_ops *ops;
	ft_device *device;

	return ft_device_open_named("cuda", 1, FT_NUMERICS_FAST, &ops, &device) == FT_DEVICE &&
		   strstr(ft_error_message(), "/nonexistent/backend.so") && *ft_error_hint() &&
		   auto_takes_the_cpu();
}

static bool
no_object(void)
{
	const ft_ops *ops;

	return ft_cuda_backend(&ops) == FT_DEVICE && strstr(ft_error_message(), "cannot open") && !ops;
}

static bool
object_of_something_else(void)
{
	const ft_ops *ops;

	return ft_cuda_backend(&ops) == FT_DEVICE && strstr(ft_error_message(), "version") && !ops;
}

/* In a child of a process that has opened nothing: this must be the first test. */
static void
test_wrong_objects(void **state)
{
	char path[] = "/tmp/test_backend_cuda.XXXXXX";
	int fd = mkstemp(path);

	(void) state;
	assert_true(fd >= 0 && write(fd, "no ELF", 6) == 6);
	close(fd);
	setenv("PG_FINETUNE_CUDA_BACKEND", "/nonexistent/backend.so", 1);
	assert_true(in_child(missing_object));
	setenv("PG_FINETUNE_CUDA_BACKEND", path, 1);
	assert_true(in_child(no_object));
	unlink(path);
	if (access("/lib/x86_64-linux-gnu/libm.so.6", R_OK) == 0)
	{
		setenv("PG_FINETUNE_CUDA_BACKEND", "/lib/x86_64-linux-gnu/libm.so.6", 1);
		assert_true(in_child(object_of_something_else));
	}
}

static void
test_unknown_device(void **state)
{
	const ft_ops *ops;
	ft_device *device;

	(void) state;
	assert_int_equal(ft_device_open_named("gpu", 1, FT_NUMERICS_FAST, &ops, &device), FT_INVALID);
	assert_non_null(strstr(ft_error_message(), "gpu"));
	assert_int_equal(ft_device_open_named("cpu", 1, FT_NUMERICS_FAST, &ops, &device), FT_OK);
	assert_ptr_equal(ops, ft_cpu_ops());
	ops->device_close(device);
}

/* --- keys of matrix products --- */

static void
test_alignment(void **state)
{
	(void) state;
	assert_int_equal(ft_gemm_alignment((void *) 0x10000), 256);
	assert_int_equal(ft_gemm_alignment((void *) 0x10100), 256);
	assert_int_equal(ft_gemm_alignment((void *) 0x10080), 128);
	assert_int_equal(ft_gemm_alignment((void *) 0x10002), 2);
	assert_int_equal(ft_gemm_alignment((void *) 0x10001), 1);
}

/* Any difference that the library's choice may depend on makes another key; which memory, otherwise
 * alike, does not. */
static void
test_keys(void **state)
{
	ft_mat c = ft_mat_make((void *) 0x10000, FT_F32, 8, 24);
	ft_mat a = ft_mat_make((void *) 0x20000, FT_BF16, 8, 16);
	ft_mat b = ft_mat_make((void *) 0x30000, FT_BF16, 16, 24);
	ft_mat square = ft_mat_make((void *) 0x30000, FT_BF16, 16, 16);
	ft_gemm_key key = ft_gemm_key_of(c, a, false, b, false, 0);
	ft_gemm_key others[8];
	ft_mat changed;
	int n = 0;

	(void) state;
	assert_int_equal(key.m, 8);
	assert_int_equal(key.n, 24);
	assert_int_equal(key.k, 16);
	changed = a;
	changed.data = (void *) 0x50000;
	others[0] = ft_gemm_key_of(c, changed, false, b, false, 0);
	assert_true(ft_gemm_key_equal(&key, &others[0]));
	assert_int_equal(ft_gemm_key_hash(&key), ft_gemm_key_hash(&others[0]));

	changed.data = (void *) 0x50002;
	others[n++] = ft_gemm_key_of(c, changed, false, b, false, 0);
	changed = a;
	changed.ld = 32;
	others[n++] = ft_gemm_key_of(c, changed, false, b, false, 0);
	changed = c;
	changed.dtype = FT_BF16;
	others[n++] = ft_gemm_key_of(changed, a, false, b, false, 0);
	others[n++] = ft_gemm_key_of(c, a, false, b, false, 1);
	others[n++] = ft_gemm_key_of(ft_mat_cols(c, 0, 16), a, false, square, false, 0);
	others[n++] = ft_gemm_key_of(ft_mat_cols(c, 0, 16), a, false, square, true, 0);
	for (int i = 0; i < n; i++)
	{
		assert_false(ft_gemm_key_equal(&key, &others[i]));
		for (int j = 0; j < i; j++)
			assert_false(ft_gemm_key_equal(&others[i], &others[j]));
	}
	key = ft_gemm_key_of(ft_mat_make(NULL, FT_F32, 16, 24), a, true,
						 ft_mat_make(NULL, FT_BF16, 24, 8), true, 0);
	assert_int_equal(key.k, 8);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_wrong_objects), cmocka_unit_test(test_table),
		cmocka_unit_test(test_object),        cmocka_unit_test(test_bad_names),
		cmocka_unit_test(test_no_device),     cmocka_unit_test(test_unknown_device),
		cmocka_unit_test(test_alignment),     cmocka_unit_test(test_keys),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
