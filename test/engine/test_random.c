/*
 * test_random.c: Philox4x32-10 against its authors' known answers (Random123,
 * kat_vectors), and what is drawn from it.
 */
#include "random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void
test_known_answers(void **state)
{
	static const struct
	{
		uint64_t seed, stream, counter;
		uint32_t expected[4];
	} cases[] = {
		{0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{0x299f31d0a4093822,
		 0x0370734413198a2e,
		 0x85a308d3243f6a88,
		 {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		uint32_t words[4];

		ft_philox(cases[i].seed, cases[i].stream, cases[i].counter, words);
		assert_memory_equal(words, cases[i].expected, sizeof words);
	}
}

static void
test_uniform(void **state)
{
	double sum = 0;

	(void) state;
	for (uint64_t i = 0; i < 100000; i++)
	{
		float u = ft_random_uniform(42, FT_STREAM_SAMPLE, i);

		assert_true(u >= 0 && u < 1);
		sum += u;
	}
	assert_true(sum / 100000 > 0.495 && sum / 100000 < 0.505);
}

static void
test_below_and_shuffle(void **state)
{
	uint32_t items[1000];
	int counts[7] = {0};
	int moved = 0;

	(void) state;
	for (uint64_t i = 0; i < 70000; i++)
		counts[ft_random_below(1, 2, i, 7)]++;
	for (int i = 0; i < 7; i++)
		assert_true(counts[i] > 9500 && counts[i] < 10500);
	for (uint32_t i = 0; i < 1000; i++)
		items[i] = i;
	ft_random_shuffle(1, 2, items, 1000);
	for (uint32_t i = 0; i < 1000; i++)
	{
		moved += items[i] != i;
		for (uint32_t j = 0; j < i; j++)
			assert_true(items[i] != items[j]);
	}
	assert_true(moved > 900);
	ft_random_shuffle(1, 2, items, 0);
	ft_random_shuffle(1, 2, items, 1);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_answers),
		cmocka_unit_test(test_uniform),
		cmocka_unit_test(test_below_and_shuffle),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
