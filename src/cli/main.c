/* SPDX-License-Identifier: Apache-2.0 */
/* The quire program: find the command in the table and run it. */
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "version.h"

static void print_help(void)
{
	printf("quire: a KVM virtual machine monitor whose subject is guest "
	       "memory\n\n"
	       "usage: quire COMMAND [OPTION...]\n\ncommands:\n");
	for (size_t i = 0; cli_commands[i]; i++)
		printf("  %-10s %s\n", cli_commands[i]->name,
		       cli_commands[i]->summary);
	printf("\n`quire COMMAND --help` describes one command; quire(1) all.\n"
	       "`quire --version` prints the version. Exit status: 0 success, "
	       "1 "
	       "failure, 2 wrong usage\n(quire run has more, see its help).\n");
}

static const struct cli_command *find_command(const char *name)
{
	for (size_t i = 0; cli_commands[i]; i++) {
		if (!strcmp(cli_commands[i]->name, name))
			return cli_commands[i];
	}
	return NULL;
}

/* `quire NAME --help` anywhere before a "--", handled once for all commands. */
static bool wants_help(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "-h"))
		return true;
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (!strcmp(argv[i], "--help"))
			return true;
	}
	return false;
}

/*
 * A caller may have closed a standard descriptor. The next open() would then
 * become it, and log lines would go into a disk image.
 */
static int fill_standard_fds(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		/* The lowest free number is fd: those below are open. */
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			return -1;
	}
	return 0;
}

/* Output that did not arrive (full disk, closed pipe) is a failure. */
static int finish(int status)
{
	if ((fflush(stdout) || ferror(stdout)) && status == CLI_OK) {
		fprintf(stderr, "quire: cannot write to standard output\n");
		return CLI_FAILURE;
	}
	return status;
}

int main(int argc, char **argv)
{
	const struct cli_command *cmd;

	if (fill_standard_fds())
		return CLI_FAILURE;
	if (argc < 2) {
		fprintf(stderr, "quire: no command given; see quire --help\n");
		return CLI_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") ||
	    !strcmp(argv[1], "help")) {
		print_help();
		return finish(CLI_OK);
	}
	if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V")) {
		printf("quire %s\n", QUIRE_VERSION);
		return finish(CLI_OK);
	}
	cmd = find_command(argv[1]);
	if (!cmd) {
		fprintf(stderr,
			"quire: unknown command '%s'; see quire --help\n",
			argv[1]);
		return CLI_USAGE;
	}
	if (wants_help(argc - 1, argv + 1)) {
		cmd->help();
		return finish(CLI_OK);
	}
	return finish(cmd->run(argc - 1, argv + 1));
}
