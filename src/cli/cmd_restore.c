/* SPDX-License-Identifier: Apache-2.0 */
/* quire restore: bring a VM back from a snapshot, in this process. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "api/service.h"
#include "base/cleanup.h"
#include "base/kvlist.h"
#include "base/size.h"
#include "cli/commands.h"
#include "cli/serve.h"
#include "snapshot/take.h"
#include "vm/confine.h"
#include "vm/vmm.h"

struct restore_args {
	struct cli_serve serve;
	struct snapshot_bring_request req;
	struct snapshot_bring *bring; /* opened, not yet begun */
	json_t *devices;
	struct sandbox_config sandbox;
	int ready_fd; /* or -1 */
};

static void help(void)
{
	printf("usage: quire restore DIR [OPTION...]\n"
	       "\n"
	       "Bring back the VM that quire snapshot wrote into DIR, as it "
	       "was "
	       "then, with the\n"
	       "devices and paths that it had. DIR stays as it is and can be "
	       "used again, by many\n"
	       "VMs at a time; it must not be changed while they are there.\n"
	       "\n"
	       "  --as NAME       name of the VM, for quire ps and quire ctl\n"
	       "  --memory MODE   private: map the file, and share with all "
	       "others what nobody\n"
	       "                  writes (the default); eager: read all of it "
	       "first, and check it;\n"
	       "                  lazy: bring, and check, what the guest "
	       "touches, and the rest\n"
	       "                  behind; working-set: likewise, but first "
	       "what it touched after\n"
	       "                  an earlier restore, or else record that\n"
	       "  --record S      with lazy or working-set: record what is "
	       "touched in the first S\n"
	       "                  seconds, and keep it in DIR\n"
	       "  --set ID.KEY=VALUE  a device has another value now: "
	       "_disk0.path=/srv/b.img,\n"
	       "                  _net0.tap=vm1; as often as needed. A disk in "
	       "the snapshot is\n"
	       "                  cloned or copied to its path, where nothing "
	       "may be\n"
	       "  --paused        do not let the guest go on yet\n"
	       "  --ready-fd N    write a line into this descriptor, and close "
	       "it, once the VM is\n"
	       "                  there\n"
	       "  --api-socket PATH  where the control API listens\n"
	       "  --seccomp on|log|off\n"
	       "  --landlock auto|on|off\n"
	       "  --landlock-rules path=PATH,access=r|w|rw\n"
	       "  --jail[=on|off][,uid=N][,gid=N][,chroot=DIR]\n"
	       "                  the sandbox, as with quire run\n"
	       "  --summary       print times, memory and statistics at the "
	       "end\n"
	       "  --summary-json FILE  write the same as JSON\n"
	       "  -h, --help      this text\n"
	       "\n"
	       "Exit status: as quire run.\n"
	       "\n"
	       "example:\n"
	       "  quire restore /srv/snap/web --as web2 --set "
	       "_disk0.path=/srv/web2.img\n");
}

static const struct option options[] = {
	{ "as", required_argument, NULL, 'a' },
	{ "memory", required_argument, NULL, 'm' },
	{ "record", required_argument, NULL, 'r' },
	{ "set", required_argument, NULL, 's' },
	{ "paused", no_argument, NULL, 'p' },
	{ "ready-fd", required_argument, NULL, 'f' },
	{ "api-socket", required_argument, NULL, 'A' },
	{ "seccomp", required_argument, NULL, 'c' },
	{ "landlock", required_argument, NULL, 'l' },
	{ "landlock-rules", required_argument, NULL, 'L' },
	{ "jail", optional_argument, NULL, 'j' },
	{ "summary", no_argument, NULL, 'S' },
	{ "summary-json", required_argument, NULL, 'J' },
	{ NULL, 0, NULL, 0 },
};

/* "_disk0.path=/srv/b.img" */
static int set_field(struct restore_args *a, const char *text, struct err *err)
{
	const char *equals = strchr(text, '=');
	const char *dot = equals ? memchr(text, '.', (size_t)(equals - text))
				 : NULL;
	char id[64], key[64];
	json_t *device;

	if (!dot || dot == text || dot + 1 == equals ||
	    (size_t)(dot - text) >= sizeof(id) ||
	    (size_t)(equals - dot) > sizeof(key))
		return err_set(err, EINVAL, "not ID.KEY=VALUE");
	snprintf(id, sizeof(id), "%.*s", (int)(dot - text), text);
	snprintf(key, sizeof(key), "%.*s", (int)(equals - dot - 1), dot + 1);
	device = json_object_get(a->devices, id);
	if (!device) {
		device = json_object();
		if (json_object_set_new(a->devices, id, device))
			return err_set(err, EINVAL, "'%s' is no id", id);
	}
	if (json_object_set_new(device, key, json_string(equals + 1)))
		return err_set(err, EINVAL, "the value is not UTF-8");
	return 0;
}

static int set_mode(struct restore_args *a, const char *text, struct err *err)
{
	int i, r = kvlist_enum(text, restore_mode_names,
			       ARRAY_SIZE(restore_mode_names), &i, err);

	if (!r)
		a->req.mode = (enum restore_mode)i;
	return r;
}

static int set_record(struct restore_args *a, const char *text, struct err *err)
{
	uint64_t n;

	if (size_parse_u64(text, &n) || !n || n > SNAPSHOT_MAX_RECORD_S)
		return err_set(err, EINVAL,
			       "not a number of seconds from 1 to %u",
			       SNAPSHOT_MAX_RECORD_S);
	a->req.record_s = (unsigned int)n;
	return 0;
}

static int set_ready_fd(struct restore_args *a, const char *text,
			struct err *err)
{
	uint64_t n;

	if (size_parse_u64(text, &n) || n < 3 || n > INT_MAX ||
	    fcntl((int)n, F_SETFD, FD_CLOEXEC))
		return err_set(err, EINVAL, "not an open descriptor from 3 on");
	a->ready_fd = (int)n;
	return 0;
}

static int begin(void *ctx, struct vmm *vmm, struct err *err)
{
	struct restore_args *a = ctx;
	int r = snapshot_bring_begin(vmm, take_ptr(a->bring), err);

	/* Whoever waits for it may be gone: no reason to end. */
	if (!r && a->ready_fd >= 0)
		(void)!write(a->ready_fd, "\n", 1);
	close_fd(&a->ready_fd);
	return r;
}

/* All of the snapshot is opened before; only memory and state are read later.
 */
static int confine(const struct cli_serve *serve, const struct api_service *api,
		   struct err *err)
{
	struct restore_args *a = serve->ctx;
	struct sandbox_paths paths = { .num = 0 };
	struct vm_confinement c = {
		.sandbox = &a->sandbox,
		.expects_more = serve->api_socket,
		.comes_back = true,
		.paths = &paths,
		.classes = api_thread_classes,
	};
	int r = snapshot_bring_open(&a->bring, &a->req, err);

	if (!r)
		r = cli_serve_paths(serve, api, &paths, err);
	if (!r)
		r = snapshot_bring_paths(a->bring, &paths, err);
	if (!r) {
		c.cfg = snapshot_bring_config(a->bring);
		r = vm_confine(&c, err);
	}
	sandbox_paths_fini(&paths);
	return r;
}

static int set_sandbox(struct restore_args *a, int opt, const char *value,
		       struct err *err)
{
	switch (opt) {
	case 'c':
		return sandbox_set_seccomp(&a->sandbox, value, err);
	case 'l':
		return sandbox_set_landlock(&a->sandbox, value, err);
	case 'L':
		return sandbox_add_landlock_rules(&a->sandbox, value, err);
	default:
		return sandbox_set_jail(&a->sandbox, value ? value : "on", err);
	}
}

static int set_checked(struct restore_args *a, int opt, const char *value,
		       struct err *err)
{
	switch (opt) {
	case 'm':
		return set_mode(a, value, err);
	case 'r':
		return set_record(a, value, err);
	case 's':
		return set_field(a, value, err);
	case 'f':
		return set_ready_fd(a, value, err);
	default:
		return set_sandbox(a, opt, value, err);
	}
}

static const char *option_name(int opt)
{
	size_t i = 0;

	while (options[i].val != opt)
		i++;
	return options[i].name;
}

static int set_option(struct restore_args *a, int opt, const char *value)
{
	struct err err = ERR_INIT;

	switch (opt) {
	case 'a':
		a->serve.name = a->req.name = value;
		break;
	case 'p':
		a->req.resume = false;
		break;
	case 'A':
		a->serve.api_socket = value;
		break;
	case 'S':
		a->serve.print_summary = true;
		break;
	case 'J':
		a->serve.summary_json = value;
		break;
	default:
		if (set_checked(a, opt, value, &err))
			return cli_usage(&cmd_restore, "--%s %s: %s",
					 option_name(opt), value ? value : "",
					 err.text);
		break;
	}
	return CLI_OK;
}

static int parse(struct restore_args *a, int argc, char **argv)
{
	int opt, status;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (opt == '?' || opt == ':')
			return cli_bad_option(&cmd_restore, argc, argv);
		status = set_option(a, opt, optarg);
		if (status != CLI_OK)
			return status;
	}
	if (optind + 1 != argc)
		return cli_usage(&cmd_restore, "one directory is needed");
	a->req.path = argv[optind];
	if (a->req.record_s && a->req.mode != RESTORE_LAZY &&
	    a->req.mode != RESTORE_WORKING_SET)
		return cli_usage(&cmd_restore,
				 "--record: only what is brought when it is "
				 "touched can be recorded: --memory lazy or "
				 "working-set");
	return CLI_OK;
}

static int run(int argc, char **argv)
{
	struct restore_args a = {
		.serve = { .command = &cmd_restore,
			   .confine = confine,
			   .begin = begin,
			   .ctx = &a },
		.req = { .mode = RESTORE_PRIVATE, .resume = true },
		.devices = json_object(),
		.ready_fd = -1,
	};
	int status;

	a.req.devices = a.devices;
	sandbox_config_init(&a.sandbox);
	status = parse(&a, argc, argv);
	if (status == CLI_OK)
		status = cli_serve(&a.serve);
	snapshot_bring_free(a.bring);
	sandbox_config_fini(&a.sandbox);
	json_decref(a.devices);
	return status;
}

/* For completion. */
static bool option_at(size_t i, struct cli_option *ret)
{
	static const struct cli_option known[] = {
		{ "memory", "private|eager|lazy|working-set" },
		{ "seccomp", "on|log|off" },
		{ "landlock", "auto|on|off" },
		{ "landlock-rules", "path=PATH,access=r|w|rw" },
		{ "jail", "[=on|off][,uid=N][,gid=N][,chroot=DIR]" },
	};

	if (!options[i].name)
		return false;
	*ret = (struct cli_option){ .name = options[i].name };
	if (options[i].has_arg != no_argument)
		ret->arg = "";
	for (size_t k = 0; k < ARRAY_SIZE(known); k++) {
		if (!strcmp(known[k].name, ret->name))
			*ret = known[k];
	}
	return true;
}

const struct cli_command cmd_restore = {
	.name = "restore",
	.summary = "bring a VM back from a snapshot",
	.help = help,
	.run = run,
	.option_at = option_at,
	.words = CLI_WORDS_DIR,
};
