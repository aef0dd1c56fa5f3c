/* SPDX-License-Identifier: Apache-2.0 */
/* quire doctor: what this host can do (doctor/doctor.h), as a table or JSON. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/size.h"
#include "cli/commands.h"
#include "doctor/doctor.h"

#define DEFAULT_WIDTH 100
#define MAX_WIDTH     200 /* longer lines are hard to follow */

static void help(void)
{
	printf("usage: quire doctor [--json]\n"
	       "\n"
	       "Probe what this host offers to quire: KVM, memory, tracking, "
	       "I/O, isolation.\n"
	       "One row per capability: its state (ok, degraded, missing), the "
	       "measured fact,\n"
	       "and what follows from it. Reflinks are tried in the current "
	       "directory. Nothing\n"
	       "is changed or left behind; no privilege is needed, though root "
	       "may see more.\n"
	       "\n"
	       "  --json      one JSON object instead of the table\n"
	       "  -h, --help  this text\n"
	       "\n"
	       "Exit status: 0 quire run works here, 1 it does not (the last "
	       "line of the table\n"
	       "says why; Linux guests need kernel mode in hardware), 2 wrong "
	       "usage.\n");
}

static unsigned int output_width(void)
{
	const char *columns = getenv("COLUMNS");
	struct winsize ws;
	uint64_t width;

	if (!ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) && ws.ws_col)
		width = ws.ws_col;
	else if (!columns || size_parse_u64(columns, &width) || !width)
		width = DEFAULT_WIDTH;
	return width < MAX_WIDTH ? (unsigned int)width : MAX_WIDTH;
}

/* https://no-color.org: set and not empty, whatever the value. */
static bool output_colour(void)
{
	const char *no_color = getenv("NO_COLOR");
	const char *term = getenv("TERM");

	return isatty(STDOUT_FILENO) && !(no_color && *no_color) &&
	       !(term && !strcmp(term, "dumb"));
}

static int print_report(const struct doctor_report *report, bool json)
{
	int r = 0;

	if (json)
		r = doctor_print_json(stdout, report);
	else
		doctor_print_table(stdout, report, output_width(),
				   output_colour());
	if (!r && (fflush(stdout) || ferror(stdout)))
		r = -EIO;
	return r;
}

static const struct option options[] = {
	{ "json", no_argument, NULL, 'j' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

static int run(int argc, char **argv)
{
	struct doctor_report *report;
	struct err err = ERR_INIT;
	bool json = false;
	int opt, r, status;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
		switch (opt) {
		case 'j':
			json = true;
			break;
		case 'h':
			help();
			return CLI_OK;
		default:
			return cli_bad_option(&cmd_doctor, argc, argv);
		}
	}
	if (optind < argc)
		return cli_usage(&cmd_doctor, "\"%s\": no argument is expected",
				 argv[optind]);
	r = doctor_run(&report, &doctor_env_host);
	if (r) {
		(void)err_errno(&err, -r, "probing this host");
		return cli_fail(&cmd_doctor, &err);
	}
	r = print_report(report, json);
	status = report->can_run_linux ? CLI_OK : CLI_FAILURE;
	doctor_report_free(report);
	if (r) {
		(void)err_errno(&err, -r, "writing the report");
		return cli_fail(&cmd_doctor, &err);
	}
	return status;
}

const struct cli_command cmd_doctor = {
	.name = "doctor",
	.summary = "show what this host offers to quire",
	.help = help,
	.run = run,
	.options = options,
};
