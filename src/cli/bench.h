/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the benches of `quire bench` share: the list of them, and option lists.
 * One thread.
 */
#ifndef QUIRE_CLI_BENCH_H
#define QUIRE_CLI_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "cli/cli.h"
#include "mem/ram.h"

extern const struct cli_command cmd_bench_touch;

/* A choice of several values out of a table of names, in the order given. */
#define BENCH_MAX_CHOICES 8
struct bench_choice {
	int values[BENCH_MAX_CHOICES];
	unsigned int num;
};

/*
 * Parse "a,b,c", each one of names and none twice. option ("--page") is for the
 * message. *ret is untouched on failure.
 */
__must_check int bench_parse_choice(const char *option, const char *text,
				    const char *const *names, size_t num_names,
				    struct bench_choice *ret, struct err *err);

#endif
