/* SPDX-License-Identifier: Apache-2.0 */
/* A bench's table of options: values land in their fields, wrong ones nowhere.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/arith.h"
#include "cli/bench_option.h"

struct args {
	bool flag;
	const char *text;
	uint64_t number;
	struct bench_numbers numbers;
	struct bench_choice choice;
};

static const char *const names[] = { "red", NULL, "blue" };

#define TO(field) .offset = offsetof(struct args, field)

static const struct bench_option options[] = {
	{ "number", "N", "one", BENCH_OPTION_NUMBER, TO(number), .max = 9 },
	{ "numbers", "LIST", "some", BENCH_OPTION_NUMBERS, TO(numbers),
	  .max = 5 },
	{ "choice", "LIST", "of names", BENCH_OPTION_CHOICE, TO(choice),
	  .names = names, .num_names = ARRAY_SIZE(names) },
	{ "text", "TEXT", "any", BENCH_OPTION_TEXT, TO(text) },
	{ "flag", NULL, "set", BENCH_OPTION_FLAG, TO(flag) },
};

static const struct cli_command command = { .name = "bench test" };

static int read_words(struct args *ret, const char *const *words)
{
	const char *argv[16] = { "test" };
	int argc = 1;

	for (; *words; words++)
		argv[argc++] = *words;
	return bench_option_read(&command, options, ARRAY_SIZE(options), argc,
				 (char **)(uintptr_t)argv, ret);
}

#define READ(ret, ...) \
	read_words(ret, (const char *const[]){ __VA_ARGS__, NULL })

static void test_values(void **state)
{
	struct args a = { .number = 7 };

	assert_int_equal(READ(&a, "--numbers", "5,1", "--flag", "--text=x y",
			      "--choice", "blue,red"),
			 CLI_OK);
	assert_true(a.flag);
	assert_string_equal(a.text, "x y");
	assert_int_equal(a.number, 7); /* was not given */
	assert_int_equal(a.numbers.num, 2);
	assert_int_equal(a.numbers.values[0], 5);
	assert_int_equal(a.choice.num, 2);
	assert_int_equal(a.choice.values[0], 2);
	assert_int_equal(READ(&a, "--number", "9"), CLI_OK);
	assert_int_equal(a.number, 9);
}

static void test_refused(void **state)
{
	struct args a = { .number = 7 };

	assert_int_equal(READ(&a, "--number", "10"), CLI_USAGE);
	assert_int_equal(READ(&a, "--number", "0"), CLI_USAGE);
	assert_int_equal(READ(&a, "--number"), CLI_USAGE);
	assert_int_equal(READ(&a, "--numbers", "1,6"), CLI_USAGE);
	assert_int_equal(READ(&a, "--choice", "green"), CLI_USAGE);
	assert_int_equal(READ(&a, "--flag=on"), CLI_USAGE);
	assert_int_equal(READ(&a, "--other", "1"), CLI_USAGE);
	assert_int_equal(READ(&a, "word"), CLI_USAGE);
	assert_int_equal(a.number, 7);
	assert_int_equal(a.numbers.num, 0);
	assert_int_equal(a.choice.num, 0);
}

static void test_completion(void **state)
{
	struct cli_option o;

	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		assert_true(
			bench_option_at(options, ARRAY_SIZE(options), i, &o));
		assert_string_equal(o.name, options[i].name);
	}
	assert_null(o.arg); /* the flag's */
	assert_false(bench_option_at(options, ARRAY_SIZE(options),
				     ARRAY_SIZE(options), &o));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_completion),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
