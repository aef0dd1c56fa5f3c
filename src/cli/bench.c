/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"

static int find_name(const char *word, size_t len, const char *const *names,
		     size_t num_names)
{
	for (size_t i = 0; i < num_names; i++) {
		if (names[i] && strlen(names[i]) == len &&
		    !memcmp(names[i], word, len))
			return (int)i;
	}
	return -1;
}

static int unknown_choice(const char *option, const char *word, size_t len,
			  const char *const *names, size_t num_names,
			  struct err *err)
{
	char known[160] = "";

	for (size_t i = 0; i < num_names; i++) {
		size_t at = strlen(known);

		if (names[i])
			snprintf(known + at, sizeof(known) - at, "%s%s",
				 at ? ", " : "", names[i]);
	}
	return err_set(err, EINVAL, "%s: unknown value '%.*s'; known: %s",
		       option, (int)MIN(len, (size_t)64), word, known);
}

int bench_parse_choice(const char *option, const char *text,
		       const char *const *names, size_t num_names,
		       struct bench_choice *ret, struct err *err)
{
	struct bench_choice choice = { .num = 0 };
	const char *word = text;

	for (;;) {
		size_t len = strcspn(word, ",");
		int value = find_name(word, len, names, num_names);

		if (value < 0)
			return unknown_choice(option, word, len, names,
					      num_names, err);
		for (unsigned int i = 0; i < choice.num; i++) {
			if (choice.values[i] == value)
				return err_set(err, EINVAL,
					       "%s: '%s' is there twice",
					       option, names[value]);
		}
		BUG_ON(choice.num == BENCH_MAX_CHOICES);
		choice.values[choice.num++] = value;
		if (!word[len])
			break;
		word += len + 1;
	}
	*ret = choice;
	return 0;
}
