/* SPDX-License-Identifier: Apache-2.0 */
/* The commands that commands.c lists; each is defined in cmd_<name>.c. */
#ifndef QUIRE_CLI_COMMANDS_H
#define QUIRE_CLI_COMMANDS_H

#include "cli/cli.h"

extern const struct cli_command cmd_run;
extern const struct cli_command cmd_snapshot;
extern const struct cli_command cmd_restore;
extern const struct cli_command cmd_fork;
extern const struct cli_command cmd_migrate;
extern const struct cli_command cmd_doctor;
extern const struct cli_command cmd_bench;
extern const struct cli_command cmd_ps;
extern const struct cli_command cmd_ctl;
extern const struct cli_command cmd_completion;

#endif
