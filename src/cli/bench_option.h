/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The options of a bench as one table: how they are read, what --help says of
 * them and what shell completion offers. One thread.
 *
 * A bench that has them in two tables and a switch (bench_read_options()) says
 * the same three times.
 */
#ifndef QUIRE_CLI_BENCH_OPTION_H
#define QUIRE_CLI_BENCH_OPTION_H

#include "cli/bench.h"

enum bench_option_kind {
	BENCH_OPTION_FLAG,    /* bool: set */
	BENCH_OPTION_TEXT,    /* const char *: of argv */
	BENCH_OPTION_NUMBER,  /* uint64_t: from 1 to max */
	BENCH_OPTION_NUMBERS, /* struct bench_numbers: each from 1 to max */
	BENCH_OPTION_CHOICE,  /* struct bench_choice: of names */
};

struct bench_option {
	const char *name; /* without "--" */
	const char *arg;  /* "LIST"; NULL: a flag */
	/* Lines of the help text after the first are after a '\n'. */
	const char *help;
	enum bench_option_kind kind;
	size_t offset; /* of the value in the bench's struct */
	uint64_t max;
	const char *const *names;
	size_t num_names;
};

/* Into args. Returns an enum cli_status; wrong usage has been said. */
int bench_option_read(const struct cli_command *cmd,
		      const struct bench_option *options, size_t num, int argc,
		      char **argv, void *args);

void bench_option_help(const struct bench_option *options, size_t num);

/* For option_at of struct cli_command. */
bool bench_option_at(const struct bench_option *options, size_t num, size_t i,
		     struct cli_option *ret);

#endif
