/* SPDX-License-Identifier: Apache-2.0 */
/* The table of commands, in the order `quire --help` lists them. */
#include <stddef.h>

#include "cli/cli.h"
#include "cli/commands.h"

/* One line each. */
/* clang-format off */
const struct cli_command *const cli_commands[] = {
	&cmd_run,
	&cmd_snapshot,
	&cmd_restore,
	&cmd_fork,
	&cmd_migrate,
	&cmd_ps,
	&cmd_ctl,
	&cmd_doctor,
	&cmd_bench,
	&cmd_completion,
	NULL,
};
/* clang-format on */
