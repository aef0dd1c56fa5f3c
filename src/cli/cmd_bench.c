/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire bench: measurements with the probe guest. Each is a command of its own
 * (cmd_bench_<name>.c) and one line in the table below.
 */
#include <string.h>

#include "cli/bench.h"
#include "cli/commands.h"

static const struct cli_command *const benches[] = {
	&cmd_bench_touch,    &cmd_bench_populate, &cmd_bench_walk,
	&cmd_bench_dirty,    &cmd_bench_pager,	  &cmd_bench_restore,
	&cmd_bench_snapshot, &cmd_bench_migrate,  NULL,
};

/* "touch" of "bench touch" */
static const char *bench_name(const struct cli_command *bench)
{
	return bench->name + strlen("bench ");
}

static void bench_help(void)
{
	printf("usage: quire bench NAME [OPTION...]\n\n"
	       "Measure this host with the probe guest, a few KiB of code that "
	       "quire runs in a VM\nof its own: no guest image is needed.\n\n"
	       "benches:\n");
	for (size_t i = 0; benches[i]; i++)
		printf("  %-10s %s\n", bench_name(benches[i]),
		       benches[i]->summary);
	for (size_t i = 0; benches[i]; i++) {
		printf("\n");
		benches[i]->help();
	}
}

static int bench_run(int argc, char **argv)
{
	if (argc < 2)
		return cli_usage(&cmd_bench, "no bench named");
	for (size_t i = 0; benches[i]; i++) {
		if (!strcmp(argv[1], bench_name(benches[i])))
			return benches[i]->run(argc - 1, argv + 1);
	}
	return cli_usage(&cmd_bench, "unknown bench '%s'", argv[1]);
}

const struct cli_command cmd_bench = {
	.name = "bench",
	.summary = "measure guest memory on this host with the probe guest",
	.help = bench_help,
	.run = bench_run,
	.words = CLI_WORDS_SUB,
	.sub = benches,
};
