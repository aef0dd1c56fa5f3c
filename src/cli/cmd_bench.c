/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire bench: measurements with the probe guest. Each is a command of its own
 * (cmd_bench_<name>.c) and one line in the table below.
 */
#include <string.h>

#include "cli/bench.h"
#include "cli/commands.h"

static const struct {
	const char *name; /* as typed after "quire bench" */
	const struct cli_command *cmd;
} benches[] = {
	{ "touch", &cmd_bench_touch },
	{ "populate", &cmd_bench_populate },
	{ "walk", &cmd_bench_walk },
	{ "dirty", &cmd_bench_dirty },
};

static void bench_help(void)
{
	printf("usage: quire bench NAME [OPTION...]\n\n"
	       "Measure this host with the probe guest, a few KiB of code that "
	       "quire runs in a VM\nof its own: no guest image is needed.\n\n"
	       "benches:\n");
	for (size_t i = 0; i < ARRAY_SIZE(benches); i++)
		printf("  %-10s %s\n", benches[i].name,
		       benches[i].cmd->summary);
	for (size_t i = 0; i < ARRAY_SIZE(benches); i++) {
		printf("\n");
		benches[i].cmd->help();
	}
}

static int bench_run(int argc, char **argv)
{
	if (argc < 2)
		return cli_usage(&cmd_bench, "no bench named");
	for (size_t i = 0; i < ARRAY_SIZE(benches); i++) {
		if (!strcmp(argv[1], benches[i].name))
			return benches[i].cmd->run(argc - 1, argv + 1);
	}
	return cli_usage(&cmd_bench, "unknown bench '%s'", argv[1]);
}

const struct cli_command cmd_bench = {
	.name = "bench",
	.summary = "measure guest memory on this host with the probe guest",
	.help = bench_help,
	.run = bench_run,
};
