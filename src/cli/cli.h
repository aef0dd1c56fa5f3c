/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command table of the quire program: one file per command (cmd_*.c), one
 * entry in cli_commands[] (cli/commands.c). Dispatch, the command list of
 * `quire --help` and usage errors all come from the table.
 */
#ifndef QUIRE_CLI_CLI_H
#define QUIRE_CLI_CLI_H

#include "base/err.h"

/* Exit statuses, the same for every command (see quire(1)). */
enum cli_status {
	CLI_OK = 0,
	CLI_FAILURE = 1, /* asked correctly, could not be done */
	CLI_USAGE = 2,	 /* unknown command, option, key or value */
};

struct cli_command {
	const char *name;
	const char *summary; /* one line for `quire --help` */
	/* Print the full help text (for `quire NAME --help`) to stdout. */
	void (*help)(void);
	/* argv[0] is the command's name. Returns enum cli_status. */
	int (*run)(int argc, char **argv);
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
