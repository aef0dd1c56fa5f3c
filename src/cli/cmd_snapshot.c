/* SPDX-License-Identifier: Apache-2.0 */
/* quire snapshot: have a running VM written into a directory. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/size.h"
#include "cli/ask.h"
#include "cli/commands.h"

struct snapshot_args {
	const char *vm, *dir;
	json_t *body;
	bool json;
};

static void help(void)
{
	printf("usage: quire snapshot NAME DIR [OPTION...]\n"
	       "\n"
	       "Write a running VM into the directory DIR, which is made: "
	       "memory, state, its\n"
	       "configuration, and disks. The guest is paused meanwhile and "
	       "goes on after. DIR\n"
	       "appears whole or not at all. NAME is what quire ps shows, or "
	       "the path of a socket.\n"
	       "\n"
	       "  --disks POLICY  of disks that the guest can write: clone "
	       "(share blocks; the\n"
	       "                  default), copy (clone, or copy), reference "
	       "(keep them as they\n"
	       "                  are yourself)\n"
	       "  --replace       the snapshot that is in DIR, once this one "
	       "is done\n"
	       "  --threads N     that write memory (default: one per CPU)\n"
	       "  --json          print what was done as JSON\n"
	       "  -h, --help      this text\n"
	       "\n"
	       "Exit status: 0 done, 1 refused or failed, 2 wrong usage.\n"
	       "\n"
	       "example:\n"
	       "  quire snapshot web /srv/snap/web --disks copy\n");
}

static const struct option options[] = {
	{ "disks", required_argument, NULL, 'd' },
	{ "replace", no_argument, NULL, 'r' },
	{ "threads", required_argument, NULL, 't' },
	{ "json", no_argument, NULL, 'j' },
	{ NULL, 0, NULL, 0 },
};

static int set_threads(struct snapshot_args *a, const char *text)
{
	uint64_t n;

	if (size_parse_u64(text, &n) || !n || n > 256)
		return cli_usage(&cmd_snapshot,
				 "--threads %s: not a number from 1 to 256",
				 text);
	json_object_set_new(a->body, "threads", json_integer((json_int_t)n));
	return CLI_OK;
}

static int set_option(struct snapshot_args *a, int opt, const char *value)
{
	switch (opt) {
	case 'd':
		json_object_set_new(a->body, "disks", json_string(value));
		break;
	case 'r':
		json_object_set_new(a->body, "replace", json_true());
		break;
	case 't':
		return set_threads(a, value);
	default:
		a->json = true;
		break;
	}
	return CLI_OK;
}

/* The VM has a directory of its own: what it gets is absolute. */
static int set_destination(struct snapshot_args *a)
{
	char cwd[PATH_MAX], path[2 * PATH_MAX];
	struct err err = ERR_INIT;

	if (a->dir[0] == '/') {
		snprintf(path, sizeof(path), "%s", a->dir);
	} else if (getcwd(cwd, sizeof(cwd))) {
		snprintf(path, sizeof(path), "%s/%s", cwd, a->dir);
	} else {
		(void)err_errno(&err, errno, "getcwd");
		return cli_fail(&cmd_snapshot, &err);
	}
	if (json_object_set_new(a->body, "destination_url", json_string(path)))
		return cli_usage(&cmd_snapshot, "%s: not UTF-8", a->dir);
	return CLI_OK;
}

static json_int_t number(const json_t *answer, const char *field)
{
	return json_integer_value(json_object_get(answer, field));
}

static void print_result(const struct snapshot_args *a,
			 const struct api_answer *answer)
{
	json_t *root = json_loads(answer->text ? answer->text : "", 0, NULL);

	if (a->json) {
		json_dumpf(root, stdout, JSON_INDENT(2));
		putchar('\n');
	} else {
		printf("%s: %.1f MiB of %.1f MiB written, guest paused for "
		       "%.3f s, done after %.3f s\n",
		       a->dir, (double)number(root, "data_bytes") / 0x1p20,
		       (double)number(root, "memory_bytes") / 0x1p20,
		       (double)number(root, "pause_us") / 1e6,
		       (double)number(root, "total_us") / 1e6);
	}
	json_decref(root);
}

static int ask(struct snapshot_args *a)
{
	struct api_route route;
	const struct cli_question q = {
		.command = &cmd_snapshot,
		.vm = a->vm,
		.route = &route,
		.body = a->body,
	};
	struct api_answer answer;
	int status = set_destination(a);

	if (status == CLI_OK)
		status = api_route_by_verb("vm.snapshot", &route)
				 ? CLI_FAILURE
				 : cli_ask(&q, &answer);
	if (status != CLI_OK)
		return status;
	print_result(a, &answer);
	free(answer.text);
	return fflush(stdout) ? CLI_FAILURE : CLI_OK;
}

static int parse(struct snapshot_args *a, int argc, char **argv)
{
	int opt, status;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (opt == '?' || opt == ':')
			return cli_bad_option(&cmd_snapshot, argc, argv);
		status = set_option(a, opt, optarg);
		if (status != CLI_OK)
			return status;
	}
	if (optind + 2 != argc)
		return cli_usage(&cmd_snapshot,
				 "a VM and a directory are needed");
	a->vm = argv[optind];
	a->dir = argv[optind + 1];
	return CLI_OK;
}

static int run(int argc, char **argv)
{
	struct snapshot_args a = { .body = json_object() };
	int status = parse(&a, argc, argv);

	if (status == CLI_OK)
		status = ask(&a);
	json_decref(a.body);
	return status;
}

const struct cli_command cmd_snapshot = {
	.name = "snapshot",
	.summary = "write a running VM into a directory",
	.help = help,
	.run = run,
	.options = options,
};
