/* SPDX-License-Identifier: Apache-2.0 */
/* quire snapshot: have a running VM written into a directory. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "cli/attend.h"
#include "cli/commands.h"
#include "snapshot/dir.h"
#include "snapshot/handed.h"
#include "snapshot/reader.h"
#include "vm/config.h"

struct snapshot_args {
	const char *vm, *dir, *parent;
	json_t *body;
	bool json, direct, replace;
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
	       "  --parent DIR2   write only what the guest wrote since DIR2 "
	       "was taken, which must\n"
	       "                  stay as long as DIR does\n"
	       "  --track         note from now on what the guest writes: DIR "
	       "can be a parent\n"
	       "  --untrack       note it no more, once this snapshot is "
	       "done\n"
	       "  --live          let the guest go on while memory is "
	       "written\n"
	       "  --threads N     that write memory (default: one per CPU, for "
	       "two with --live)\n"
	       "  --direct        the VM's process makes DIR itself, which has "
	       "to be below a path\n"
	       "                  of its --landlock-rules: for VMs of other "
	       "users and in jails\n"
	       "  --json          print what was done as JSON\n"
	       "  -h, --help      this text\n"
	       "\n"
	       "Exit status: 0 done, 1 refused or failed, 2 wrong usage, 128+N "
	       "stopped by signal N.\n"
	       "\n"
	       "example:\n"
	       "  quire snapshot web /srv/snap/mon --track\n"
	       "  quire snapshot web /srv/snap/tue --parent /srv/snap/mon "
	       "--track\n");
}

static const struct option options[] = {
	{ "disks", required_argument, NULL, 'd' },
	{ "replace", no_argument, NULL, 'r' },
	{ "parent", required_argument, NULL, 'p' },
	{ "track", no_argument, NULL, 'T' },
	{ "untrack", no_argument, NULL, 'U' },
	{ "live", no_argument, NULL, 'l' },
	{ "threads", required_argument, NULL, 't' },
	{ "direct", no_argument, NULL, 'D' },
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
		a->replace = true;
		break;
	case 'D':
		a->direct = true;
		break;
	case 'p':
		a->parent = value;
		break;
	case 'T':
	case 'U':
		json_object_set_new(a->body, "track", json_boolean(opt == 'T'));
		break;
	case 'l':
		json_object_set_new(a->body, "live", json_true());
		break;
	case 't':
		return set_threads(a, value);
	default:
		a->json = true;
		break;
	}
	return CLI_OK;
}

static int set_path(struct snapshot_args *a, const char *field,
		    const char *path)
{
	if (json_object_set_new(a->body, field, json_string(path)))
		return cli_usage(&cmd_snapshot, "%s: not UTF-8", path);
	return CLI_OK;
}

/* The VM has a directory of its own: what it gets is absolute. */
static int set_destination(struct snapshot_args *a)
{
	char cwd[PATH_MAX], path[2 * PATH_MAX];
	struct err err = ERR_INIT;

	BUG_ON(!a->dir); /* main's to check */
	if (a->dir[0] == '/') {
		snprintf(path, sizeof(path), "%s", a->dir);
	} else if (getcwd(cwd, sizeof(cwd))) {
		snprintf(path, sizeof(path), "%s/%s", cwd, a->dir);
	} else {
		(void)err_errno(&err, errno, "getcwd");
		return cli_fail(&cmd_snapshot, &err);
	}
	return set_path(a, "destination_url", path);
}

/*
 * What the VM's process cannot tell, for it is handed the parent's files alone.
 * A parent that is whole can be replaced where blocks are shared, which is seen
 * when the file is made.
 */
static int check_replaced(const struct snapshot_args *a,
			  const struct snapshot_reader *parent, struct err *err)
{
	struct stat there;

	if (!a->replace || stat(a->dir, &there) ||
	    snapshot_reader_manifest(parent)->layout == SNAPSHOT_WHOLE ||
	    !snapshot_reader_rests_upon(parent, &there))
		return 0;
	return err_set(err, EINVAL,
		       "snapshot %s: cannot be an increment of what it "
		       "replaces: its parent rests upon that",
		       a->dir);
}

/* Checked with the rights of who asks; also that what it rests on is there. */
static int set_parent(struct snapshot_args *a)
{
	_cleanup_free_ char *real = realpath(a->parent, NULL);
	struct snapshot_reader *parent = NULL;
	struct err err = ERR_INIT;
	int r;

	if (real)
		r = snapshot_reader_open(&parent, real, &err);
	else
		r = err_errno(&err, errno, "--parent %s", a->parent);
	if (!r)
		r = snapshot_reader_check_depth(parent, &err);
	if (!r)
		r = check_replaced(a, parent, &err);
	snapshot_reader_free(parent);
	return r ? cli_fail(&cmd_snapshot, &err)
		 : set_path(a, "parent_url", real);
}

/*
 * So that the VM's process, which sees none of it, can tell by their paths
 * whether both are in one directory, which dir has just made its own in.
 */
static int set_real_destination(struct snapshot_args *a,
				const struct snapshot_dir *dir)
{
	char link[40], path[PATH_MAX + NAME_MAX + 2];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", dir->parent_fd);
	n = readlink(link, path, PATH_MAX);
	if (n <= 0 || n == PATH_MAX)
		return CLI_OK; /* then the path of the parent is absolute */
	snprintf(path + n, sizeof(path) - (size_t)n, "/%s", dir->name);
	return set_path(a, "destination_url", path);
}

static json_int_t number(const json_t *answer, const char *field)
{
	return json_integer_value(json_object_get(answer, field));
}

static bool is_delta(const json_t *answer)
{
	const char *layout = json_string_value(
		json_object_get(answer, "layout"));

	return layout && !strcmp(layout, "delta");
}

static void print_result(const struct snapshot_args *a,
			 const struct api_answer *answer)
{
	json_t *root = json_loads(answer->text ? answer->text : "", 0, NULL);

	if (a->json) {
		json_dumpf(root, stdout, JSON_INDENT(2));
		putchar('\n');
	} else {
		printf("%s: %.1f MiB of %.1f MiB written%s%s, guest paused for "
		       "%.3f s, done after %.3f s\n",
		       a->dir, (double)number(root, "data_bytes") / 0x1p20,
		       (double)number(root, "memory_bytes") / 0x1p20,
		       is_delta(root) ? " upon " : "",
		       is_delta(root) ? a->parent : "",
		       (double)number(root, "pause_us") / 1e6,
		       (double)number(root, "total_us") / 1e6);
	}
	json_decref(root);
}

/*
 * Theory of operation. A VM's process is confined, and makes no files. So this
 * command makes them, in a new directory, as that process asks for them over a
 * socket (snapshot/handed.h) while it is attended to (cli/attend.h). The
 * directory is then put in its place here.
 */
#define MAX_FILES (VM_MAX_DEVICES + 16)

struct making {
	struct snapshot_args *args;
	struct attend attend;
	struct snapshot_dir dir;
	int parent_fd;		/* directory of the parent; -1: there is none */
	unsigned int num_files; /* asked for */
};

static int ask(struct snapshot_args *a, struct api_answer *ret)
{
	struct api_route route;
	const struct cli_question q = {
		.command = &cmd_snapshot,
		.vm = a->vm,
		.route = &route,
		.body = a->body,
	};

	return api_route_by_verb("vm.snapshot", &route) ? CLI_FAILURE
							: cli_ask(&q, ret);
}

/* A process that wants more than a snapshot can have is not what it should be.
 */
static int make_file(void *ctx, int conn_fd)
{
	struct making *m = ctx;

	if (m->num_files++ == MAX_FILES)
		return -E2BIG;
	return handed_serve(conn_fd, m->dir.fd, m->parent_fd);
}

/* Ended by a signal, or as the VM's process says. */
static int finish(struct making *m)
{
	struct err err = ERR_INIT;

	if (m->attend.signal)
		return 128 + m->attend.signal;
	if (m->attend.status == CLI_OK &&
	    snapshot_dir_commit(&m->dir, m->args->replace, &err))
		return cli_fail(&cmd_snapshot, &err);
	return m->attend.status;
}

static int open_parent(struct making *m, struct err *err)
{
	const json_t *path = json_object_get(m->args->body, "parent_url");

	if (!path)
		return 0;
	m->parent_fd = snapshot_dir_open(json_string_value(path), err);
	return m->parent_fd < 0 ? m->parent_fd : 0;
}

static int make(struct making *m)
{
	struct err err = ERR_INIT;
	int r = snapshot_dir_create(&m->dir, m->args->dir, m->args->replace,
				    &err);

	if (!r && m->args->parent &&
	    set_real_destination(m->args, &m->dir) != CLI_OK)
		return CLI_USAGE;
	if (!r)
		r = open_parent(m, &err);
	if (!r)
		r = attend_open(&m->attend, &err);
	if (!r)
		r = attend_run(&m->attend, &err);
	return r ? cli_fail(&cmd_snapshot, &err) : finish(m);
}

static int ask_and_make(struct snapshot_args *a, struct api_answer *ret)
{
	struct making m = {
		.args = a,
		.attend = {
			.command = &cmd_snapshot,
			.vm = a->vm,
			.verb = "vm.snapshot",
			.body = a->body,
			.field = "files",
			.readable = make_file,
			.ctx = &m,
		},
		.dir = { .parent_fd = -1, .fd = -1, .asked_fd = -1 },
		.parent_fd = -1,
	};
	int status;

	attend_init(&m.attend);
	status = make(&m);
	if (status == CLI_OK) {
		*ret = m.attend.answer;
		m.attend.answer.text = NULL;
	}
	attend_end(&m.attend);
	close_fd(&m.parent_fd);
	snapshot_dir_fini(&m.dir);
	return status;
}

static int take(struct snapshot_args *a)
{
	struct api_answer answer;
	int status = set_destination(a);

	if (status == CLI_OK && a->parent)
		status = set_parent(a);
	if (status != CLI_OK)
		return status;
	if (a->replace)
		json_object_set_new(a->body, "replace", json_true());
	status = a->direct ? ask(a, &answer) : ask_and_make(a, &answer);
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
		status = take(&a);
	json_decref(a.body);
	return status;
}

static bool option_at(size_t i, struct cli_option *ret)
{
	if (!options[i].name)
		return false;
	*ret = (struct cli_option){ .name = options[i].name };
	if (options[i].val == 'd')
		ret->arg = "clone|copy|reference";
	else if (options[i].has_arg != no_argument)
		ret->arg = "";
	return true;
}

const struct cli_command cmd_snapshot = {
	.name = "snapshot",
	.summary = "write a running VM into a directory",
	.help = help,
	.run = run,
	.option_at = option_at,
	.words = CLI_WORDS_VM_DIR,
};
