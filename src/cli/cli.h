/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command table of the quire program: one file per command (cmd_*.c), one
 * entry in cli_commands[] (cli/commands.c). Dispatch, the command list of
 * `quire --help` and usage errors all come from the table.
 */
#ifndef QUIRE_CLI_CLI_H
#define QUIRE_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

/* Exit statuses, the same for every command (see quire(1)). */
enum cli_status {
	CLI_OK = 0,
	CLI_FAILURE = 1, /* asked correctly, could not be done */
	CLI_USAGE = 2,	 /* unknown command, option, key or value */
};

/* A long option, for shell completion. */
struct cli_option {
	const char *name; /* without "--" */
	/* What it takes, as in the help text ("FILE", "on|off", "path=FILE
	 * [,readonly=on|off]"); "": something; NULL: nothing. */
	const char *arg;
};

/* What stands behind a command's name, for shell completion. */
enum cli_words {
	CLI_WORDS_NONE,
	CLI_WORDS_VM_VERB, /* a running VM, a verb of the API, its fields */
	CLI_WORDS_VM,	   /* a running VM */
	CLI_WORDS_VM_DIR,  /* a running VM, a directory */
	CLI_WORDS_DIR,	   /* a directory */
	CLI_WORDS_SHELL,   /* a shell */
	CLI_WORDS_SUB,	   /* a command of sub */
};

struct option;

struct cli_command {
	const char *name;
	const char *summary; /* one line for `quire --help` */
	/* Print the full help text (for `quire NAME --help`) to stdout. */
	void (*help)(void);
	/* argv[0] is the command's name. Returns enum cli_status. */
	int (*run)(int argc, char **argv);

	/* Shell completion: its options, as a table or one by one. */
	const struct option *options; /* ends with a zeroed one; or NULL */
	bool (*option_at)(size_t i, struct cli_option *ret); /* or NULL */
	enum cli_words words;
	const struct cli_command *const
		*sub; /* "bench touch"; ends with NULL */
};

extern const struct cli_command *const cli_commands[]; /* ends with NULL */

/* "quire COMMAND: <text>" on stderr; returns CLI_FAILURE. */
int cli_fail(const struct cli_command *cmd, const struct err *err);

/*
 * "quire COMMAND: <message>; see quire COMMAND --help" on stderr; returns
 * CLI_USAGE.
 */
int cli_usage(const struct cli_command *cmd, const char *fmt, ...)
	__printf_fmt(2, 3);

/*
 * Report what getopt_long() refused (its '?' or ':' with opterr = 0 and an
 * option string starting with ':'); returns CLI_USAGE.
 */
int cli_bad_option(const struct cli_command *cmd, int argc, char **argv);

#endif
