/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"

#include <getopt.h>
#include <stdarg.h>
#include <string.h>

int cli_fail(const struct cli_command *cmd, const struct err *err)
{
	fprintf(stderr, "quire %s: %s\n", cmd->name, err->text);
	return CLI_FAILURE;
}

int cli_usage(const struct cli_command *cmd, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "quire %s: ", cmd->name);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "; see quire %s --help\n", cmd->name);
	return CLI_USAGE;
}

int cli_bad_option(const struct cli_command *cmd, int argc, char **argv)
{
	const char *arg = optind > 0 && optind <= argc ? argv[optind - 1] : "";

	if (strncmp(arg, "--", 2) != 0)
		return cli_usage(cmd, "unknown option '-%c'", optopt);
	/* getopt_long leaves optopt 0 for a name it does not know. */
	if (!optopt)
		return cli_usage(cmd, "unknown option '%s'", arg);
	if (strchr(arg, '='))
		return cli_usage(cmd, "option '%s' takes no value", arg);
	return cli_usage(cmd, "option '%s' needs a value", arg);
}
