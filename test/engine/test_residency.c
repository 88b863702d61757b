/*
 * test_residency.c: bases that are in use while another one needs their memory.
 */
#include "device.h"
#include "registry.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MODEL "test/golden/tiny_llama/tied/base.gguf"
#define CACHE_BYTES (1 << 20)

static ft_registry_config config = {
	.cache_bytes = CACHE_BYTES, .max_rows = 16, .max_sequences = 4, .patience_ms = 20};

static ft_status
load(ft_registry *registry, const char *id, ft_model_ref *ref)
{
	return ft_registry_load_base(registry, id, MODEL, NULL, 0, NULL, ref);
}

/* What one base holds. */
static int64_t
bytes_of_one(void)
{
	ft_registry *registry;
	ft_model_ref ref;
	int64_t held;
	int64_t limit;

	config.memory_bytes = 0;
	assert_int_equal(ft_registry_create(&config, &registry), FT_OK);
	assert_int_equal(load(registry, "a", &ref), FT_OK);
	ft_registry_memory(registry, &held, &limit);
	ft_registry_put(registry, &ref);
	ft_registry_free(registry);
	return held;
}

typedef struct user
{
	ft_registry *registry;
	ft_model_ref ref;
} user;

/* Use a base until its name is gone. */
static void *
use_until_sent_away(void *argument)
{
	user *u = argument;
	ft_model_ref other;

	while (ft_registry_get(u->registry, "a", &other) == FT_OK)
		ft_registry_put(u->registry, &other);
	ft_registry_put(u->registry, &u->ref);
	return NULL;
}

static void
test_no_base_keeps_others_out(void **state)
{
	user u;
	ft_model_ref b;
	pthread_t thread;
	int64_t one = bytes_of_one();
	int64_t held;
	int64_t limit;

	(void) state;
	config.memory_bytes = one + one / 2;
	assert_int_equal(ft_registry_create(&config, &u.registry), FT_OK);
	assert_int_equal(load(u.registry, "a", &u.ref), FT_OK);
	assert_int_equal(pthread_create(&thread, NULL, use_until_sent_away, &u), 0);
	assert_int_equal(load(u.registry, "b", &b), FT_OK);
	pthread_join(thread, NULL);
	ft_registry_memory(u.registry, &held, &limit);
	assert_int_equal(held, one);
	assert_int_equal(limit, config.memory_bytes);
	ft_registry_put(u.registry, &b);
	ft_registry_free(u.registry);
}

static void
test_no_room_for_long(void **state)
{
	ft_registry *registry;
	ft_model_ref a;
	ft_model_ref b;
	int64_t one = bytes_of_one();
	int64_t held;
	int64_t limit;

	(void) state;
	config.memory_bytes = one + one / 2;
	assert_int_equal(ft_registry_create(&config, &registry), FT_OK);
	assert_int_equal(load(registry, "a", &a), FT_OK);
	assert_int_equal(load(registry, "b", &b), FT_BUSY);
	assert_non_null(strstr(ft_error_message(), "others in use hold"));
	ft_registry_memory(registry, &held, &limit);
	assert_int_equal(held, one);
	ft_registry_put(registry, &a);
	/* what it was sent away for has room now */
	assert_int_equal(load(registry, "b", &b), FT_OK);
	ft_registry_put(registry, &b);
	ft_registry_free(registry);
}

/* A file that cannot be loaded holds nothing. */
static void
test_failed_load(void **state)
{
	ft_registry *registry;
	ft_model_ref ref;
	int64_t held;
	int64_t limit;

	(void) state;
	config.memory_bytes = 0;
	assert_int_equal(ft_registry_create(&config, &registry), FT_OK);
	assert_int_equal(ft_registry_load_base(registry, "a", MODEL, NULL, 0, "00", &ref), FT_MISMATCH);
	assert_int_equal(ft_registry_load_base(registry, "a", MODEL, "none", 0, NULL, &ref),
					 FT_INVALID);
	ft_registry_memory(registry, &held, &limit);
	assert_int_equal(held, 0);
	ft_registry_free(registry);

	/* with its weights loaded already */
	config.cache_bytes = 1;
	assert_int_equal(ft_registry_create(&config, &registry), FT_OK);
	assert_int_equal(load(registry, "a", &ref), FT_NO_MEMORY);
	ft_registry_memory(registry, &held, &limit);
	assert_int_equal(held, 0);
	ft_registry_free(registry);
	config.cache_bytes = CACHE_BYTES;
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_base_keeps_others_out),
		cmocka_unit_test(test_no_room_for_long),
		cmocka_unit_test(test_failed_load),
	};
	int failed;

	if (ft_device_open_named("cpu", 1, FT_NUMERICS_FAST, &config.ops, &config.device) != FT_OK)
	{
		fprintf(stderr, "%s\n", ft_error_message());
		return 1;
	}
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	config.ops->device_close(config.device);
	return failed;
}
