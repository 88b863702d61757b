/*
 * test_fair_queue.c: whose requests are let in next, and how many a caller may have.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "fair_queue.h"

#define ROUND 7

static ft_base bases[2];
static ft_fair_queue queue;

/* A request of a caller over a base, accepted and waiting. */
static ft_request *
wait_for(const char *salt, int base)
{
	ft_request *request;

	assert_int_equal(ft_request_create(&request), FT_OK);
	request->model.base = &bases[base];
	request->cache_salt = salt ? strdup(salt) : NULL;
	assert_int_equal(ft_fair_enter(&queue, request, 1000), FT_OK);
	ft_fair_append(&queue, request);
	return request;
}

static void
leave(ft_request *request)
{
	ft_fair_leave(&queue, request);
	ft_request_free(request);
}

/* Let in what is next; it must be this one. */
static void
runs_next(ft_request *request)
{
	assert_ptr_equal(ft_fair_next(&queue, ROUND), request);
	ft_fair_run(&queue, request);
}

static void
ends(ft_request *request)
{
	ft_fair_stop(request);
	leave(request);
}

static int
set_up(void **state)
{
	(void) state;
	memset(bases, 0, sizeof bases);
	memset(&queue, 0, sizeof queue);
	return 0;
}

/* It holds nothing when all have left. */
static int
tear_down(void **state)
{
	(void) state;
	return queue.shares == NULL && queue.waiting == NULL ? 0 : -1;
}

static void
test_one_caller(void **state)
{
	ft_request *r[5];

	(void) state;
	assert_null(ft_fair_next(&queue, ROUND));
	for (int i = 0; i < 5; i++)
		r[i] = wait_for("a", 0);
	assert_int_equal(ft_fair_waiting(&queue), 5);
	for (int i = 0; i < 5; i++)
		runs_next(r[i]);
	assert_int_equal(ft_fair_waiting(&queue), 0);
	assert_null(ft_fair_next(&queue, ROUND));
	for (int i = 0; i < 5; i++)
		ends(r[i]);
}

/* A thousand of one do not keep another one's single request waiting. */
static void
test_single_request(void **state)
{
	ft_request *many[1000], *single, *later;

	(void) state;
	for (int i = 0; i < 1000; i++)
		many[i] = wait_for("a", 0);
	for (int i = 0; i < 64; i++)
		runs_next(many[i]);
	single = wait_for("b", 0);
	later = wait_for(NULL, 0);
	ends(many[0]);
	runs_next(single);
	runs_next(later);
	runs_next(many[64]);
	ends(single);
	ends(later);
	for (int i = 1; i < 65; i++)
		ends(many[i]);
	for (int i = 65; i < 1000; i++)
	{
		runs_next(many[i]);
		ends(many[i]);
	}
}

/* Callers with as many running ones take turns, who came first going first. */
static void
test_turns(void **state)
{
	ft_request *a[3], *b[3], *c[3];

	(void) state;
	for (int i = 0; i < 3; i++)
		a[i] = wait_for("a", 0);
	for (int i = 0; i < 3; i++)
		b[i] = wait_for("b", 0);
	for (int i = 0; i < 3; i++)
		c[i] = wait_for("", 0); /* as without a salt */
	for (int i = 0; i < 3; i++)
	{
		runs_next(a[i]);
		runs_next(b[i]);
		runs_next(c[i]);
	}
	for (int i = 0; i < 3; i++)
	{
		ends(a[i]);
		ends(b[i]);
		ends(c[i]);
	}
}

/* Over a base that is full nothing is next; over another one it may be. */
static void
test_full_base(void **state)
{
	ft_request *a0, *a1, *b0;

	(void) state;
	a0 = wait_for("a", 0);
	a1 = wait_for("a", 1);
	b0 = wait_for("b", 0);
	bases[0].full = ROUND;
	runs_next(a1);
	assert_null(ft_fair_next(&queue, ROUND));
	bases[0].full = ROUND - 1;
	runs_next(b0); /* its caller has none running */
	runs_next(a0);
	ends(a0);
	ends(a1);
	ends(b0);
}

/* What gave way is the first of its caller's again, also where it is the only one. */
static void
test_put_back(void **state)
{
	ft_request *a[3];

	(void) state;
	for (int i = 0; i < 3; i++)
		a[i] = wait_for("a", 0);
	runs_next(a[0]);
	runs_next(a[1]);
	ft_fair_stop(a[1]);
	ft_fair_put_back(&queue, a[1]);
	runs_next(a[1]);
	runs_next(a[2]);
	ft_fair_stop(a[2]);
	ft_fair_put_back(&queue, a[2]);
	assert_int_equal(ft_fair_waiting(&queue), 1);
	runs_next(a[2]);
	for (int i = 0; i < 3; i++)
		ends(a[i]);
}

static int
leave_all(ft_request *list)
{
	int n = 0;

	while (list)
	{
		ft_request *request = list;

		list = request->next;
		leave(request);
		n++;
	}
	return n;
}

static void
test_cancelled(void **state)
{
	ft_request *a[4], *b, *c;

	(void) state;
	for (int i = 0; i < 4; i++)
		a[i] = wait_for("a", 0);
	b = wait_for("b", 0);
	c = wait_for("c", 0);
	assert_null(ft_fair_take_cancelled(&queue, false));
	ft_request_cancel(a[0]);
	ft_request_cancel(a[3]);
	ft_request_cancel(b);
	assert_int_equal(leave_all(ft_fair_take_cancelled(&queue, false)), 3);
	assert_int_equal(ft_fair_waiting(&queue), 3);
	a[0] = wait_for("a", 0); /* behind those that are left */
	runs_next(a[1]);
	runs_next(c);
	runs_next(a[2]);
	runs_next(a[0]);
	ends(a[1]);
	ends(a[2]);
	ends(a[0]);
	ends(c);
	wait_for("a", 0);
	wait_for("b", 1);
	assert_int_equal(leave_all(ft_fair_take_cancelled(&queue, true)), 2);
	assert_int_equal(ft_fair_waiting(&queue), 0);
}

static void
test_limit(void **state)
{
	ft_request *accepted[2], *a, *b;

	(void) state;
	for (int i = 0; i < 2; i++)
		accepted[i] = wait_for("a", 0);
	assert_int_equal(ft_request_create(&a), FT_OK);
	a->cache_salt = strdup("a");
	assert_int_equal(ft_fair_enter(&queue, a, 2), FT_BUSY);
	assert_string_equal(ft_error_message(),
						"2 requests of this caller are waiting or running, the limit is 2");
	assert_string_not_equal(ft_error_hint(), "");
	assert_int_equal(ft_request_create(&b), FT_OK);
	b->cache_salt = strdup("b");
	assert_int_equal(ft_fair_enter(&queue, b, 2), FT_OK);

	/* running ones count, those that have left do not */
	runs_next(accepted[0]);
	assert_int_equal(ft_fair_enter(&queue, a, 2), FT_BUSY);
	ends(accepted[0]);
	assert_int_equal(ft_fair_enter(&queue, a, 2), FT_OK);
	runs_next(accepted[1]);
	ends(accepted[1]);
	leave(a);
	leave(b);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_one_caller, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_single_request, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_turns, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_full_base, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_put_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_cancelled, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_limit, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
