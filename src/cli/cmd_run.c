/* SPDX-License-Identifier: Apache-2.0 */
/* quire run: boot a kernel in a virtual machine in this process. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "api/service.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/size.h"
#include "base/thread.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/serve.h"
#include "migrate/receive.h"
#include "migrate/tls.h"
#include "migrate/uri.h"
#include "vm/config_json.h"
#include "vm/confine.h"
#include "vm/summary.h"
#include "vm/vmm.h"

/*
 * Options come from three places: vm_options[], what the VM is; the virtio
 * registry, where a device class names its own ("--disk"); and the table below,
 * what else this command can be told. getopt_long() returns OPT_VM, OPT_DEVICE
 * or OPT_RUN + index. The file of --config has all of them as well.
 */
#define OPT_VM	   1000
#define OPT_DEVICE 2000
#define OPT_RUN	   3000
#define OPT_MAX	   96

struct run_args {
	struct vm_config cfg;
	char *config; /* path or NULL */
	bool print_summary;
	char *summary_json; /* path or NULL */
	char *api_socket;   /* path or NULL */
	enum log_format log_format;
	struct sandbox_config sandbox;
	struct migrate_uri incoming; /* where the VM comes from */
	bool has_incoming;
	char *tls_dir; /* NULL: plain */
	struct tls_credentials *tls;
	struct unix_listener listener; /* there */
	struct vmm *vmm;
	pthread_t receiver; /* that waits for it */
	bool has_receiver;
	/* Options with one value that the command line has given already. */
	uint64_t seen_vm, seen_run;
};

struct run_option {
	const char *name;
	/* NULL: a flag, whose value is "on"; "[=...": it may be left out. */
	const char *arg;
	const char *help;
	int (*set)(struct run_args *args, const char *value, struct err *err);
};

static int set_config(struct run_args *a, const char *v, struct err *err)
{
	return kvlist_string(v, &a->config, err);
}

static int set_api_socket(struct run_args *a, const char *v, struct err *err)
{
	return kvlist_string(v, &a->api_socket, err);
}

static int set_incoming(struct run_args *a, const char *v, struct err *err)
{
	a->has_incoming = true;
	return migrate_uri_parse(&a->incoming, v, err);
}

static int set_tls(struct run_args *a, const char *v, struct err *err)
{
	return kvlist_string(v, &a->tls_dir, err);
}

static int set_seccomp(struct run_args *a, const char *v, struct err *err)
{
	return sandbox_set_seccomp(&a->sandbox, v, err);
}

static int set_landlock(struct run_args *a, const char *v, struct err *err)
{
	return sandbox_set_landlock(&a->sandbox, v, err);
}

/* As often as one likes. */
static int add_landlock_rules(struct run_args *a, const char *v,
			      struct err *err)
{
	return sandbox_add_landlock_rules(&a->sandbox, v, err);
}

static int set_jail(struct run_args *a, const char *v, struct err *err)
{
	return sandbox_set_jail(&a->sandbox, v, err);
}

static int set_summary(struct run_args *a, const char *v, struct err *err)
{
	return kvlist_bool(v, &a->print_summary, err);
}

static int set_summary_json(struct run_args *a, const char *v, struct err *err)
{
	return kvlist_string(v, &a->summary_json, err);
}

static int set_log_level(struct run_args *a, const char *v, struct err *err)
{
	return log_parse_levels(v, err);
}

static int set_log_file(struct run_args *a, const char *v, struct err *err)
{
	return log_open_file(v, err);
}

static int set_log_format(struct run_args *a, const char *v, struct err *err)
{
	int i, r = kvlist_enum(v, log_format_names,
			       ARRAY_SIZE(log_format_names), &i, err);

	if (!r)
		a->log_format = (enum log_format)i;
	return r;
}

static int set_verbose(struct run_args *a, const char *v, struct err *err)
{
	bool on;
	int r = kvlist_bool(v, &on, err);

	if (!r && on)
		log_set_level(LOG_LEVEL_INFO);
	return r;
}

static const struct run_option run_options[] = {
	{ "config", "FILE",
	  "all that can be said here as JSON; options add to it and win",
	  set_config },
	{ "api-socket", "PATH",
	  "where the control API listens; without --kernel: wait there for a "
	  "VM",
	  set_api_socket },
	{ "incoming", "URI",
	  "do not boot: wait at tcp:HOST:PORT or unix:PATH for this VM, which "
	  "quire migrate sends",
	  set_incoming },
	{ "tls", "DIR",
	  "with --incoming: TLS only, with DIR's server-cert.pem, from who its "
	  "ca-cert.pem signed",
	  set_tls },
	{ "seccomp", "on|log|off",
	  "confine each thread to the system calls it needs (default on)",
	  set_seccomp },
	{ "landlock", "auto|on|off",
	  "open no files but the VM's own, where the kernel has Landlock "
	  "(default auto: off with --api-socket and no --landlock-rules)",
	  set_landlock },
	{ "landlock-rules", "path=PATH,access=r|w|rw",
	  "a file or directory that hot-plugged devices may use (repeatable)",
	  add_landlock_rules },
	{ "jail", "[=on|off][,uid=N][,gid=N][,chroot=DIR]",
	  "run as another user, in namespaces and a file system of its own",
	  set_jail },
	{ "summary", NULL, "print times, memory and statistics at the end",
	  set_summary },
	{ "summary-json", "FILE", "write the same as JSON", set_summary_json },
	{ "verbose", NULL, "say what happens: --log-level info", set_verbose },
	{ "log-level", "LEVEL[,MODULE=LEVEL...]",
	  "error, warning (the default), info or debug", set_log_level },
	{ "log-format", "auto|text|json",
	  "how log lines look (default: text on a terminal, else json)",
	  set_log_format },
	{ "log-file", "FILE", "append log lines to it", set_log_file },
};

static void help_option(const char *name, const char *arg, const char *help)
{
	bool spaced = arg && arg[0] != '[';
	int width = printf("  --%s%s%s", name, spaced ? " " : "",
			   arg ? arg : "");

	/* Long options push their text to the next line. */
	if (width > 30)
		printf("\n%*s", 32, "");
	else
		printf("%*s", 32 - width, "");
	printf("%s\n", help);
}

static void run_help(void)
{
	printf("usage: quire run --kernel FILE [OPTION...]\n"
	       "       quire run --config FILE [OPTION...]\n"
	       "       quire run --api-socket PATH [OPTION...]\n"
	       "       quire run --incoming URI --kernel FILE "
	       "[OPTION...]\n\n"
	       "Boot a Linux kernel in a virtual machine.\n\noptions:\n");
	for (size_t i = 0; i < vm_num_options; i++)
		help_option(vm_options[i].name, vm_options[i].arg,
			    vm_options[i].help);
	for (size_t i = 0; i < ARRAY_SIZE(run_options); i++)
		help_option(run_options[i].name, run_options[i].arg,
			    run_options[i].help);
	printf("\ndevices (\"once\" or as often as you like; each takes "
	       "id=NAME as well):\n");
	for (size_t i = 0; virtio_classes[i]; i++) {
		const struct virtio_class *cls = virtio_classes[i];

		char help[128];

		snprintf(help, sizeof(help), "%s%s", cls->option_help,
			 cls->single ? " (once)" : "");
		if (cls->option)
			help_option(cls->option + 2, cls->option_args, help);
	}
	printf("\nSizes take K, M, G, T (powers of 1024). Exit status: 0 the "
	       "guest powered off\n(or rebooted with --on-reboot stop, or "
	       "Ctrl-A x was typed), 1 it crashed or could\nnot be run, 2 "
	       "wrong usage, 128+N stopped by signal N, and with --debug-exit "
	       "what\nthe guest says.\n\nexample:\n"
	       "  quire run --kernel vmlinuz --initramfs initrd --cpus boot=2 "
	       "\\\n    --memory size=1G --disk path=root.img --cmdline "
	       "'console=ttyS0 root=/dev/vda'\n");
}

static int option_arg(const struct run_option *opt)
{
	if (!opt->arg)
		return no_argument;
	return opt->arg[0] == '[' ? optional_argument : required_argument;
}

static size_t build_long_options(struct option *opts)
{
	size_t n = 0;

	for (size_t i = 0; i < vm_num_options; i++)
		opts[n++] = (struct option){
			.name = vm_options[i].name,
			.has_arg = vm_options[i].arg ? required_argument
						     : no_argument,
			.val = OPT_VM + (int)i,
		};
	for (size_t i = 0; i < ARRAY_SIZE(run_options); i++)
		opts[n++] = (struct option){
			.name = run_options[i].name,
			.has_arg = option_arg(&run_options[i]),
			.val = OPT_RUN + (int)i,
		};
	for (size_t i = 0; virtio_classes[i]; i++) {
		BUG_ON(n == OPT_MAX - 1);
		if (!virtio_classes[i]->option)
			continue;
		opts[n++] = (struct option){
			.name = virtio_classes[i]->option + 2,
			.has_arg = required_argument,
			.val = OPT_DEVICE + (int)i,
		};
	}
	opts[n] = (struct option){ .name = NULL };
	return n;
}

static int apply_run_option(struct run_args *args, const struct run_option *opt,
			    const char *value, struct err *err)
{
	int r = opt->set(args, value ? value : "on", err);

	if (r && strncmp(err->text, "--", 2) != 0)
		err_prefix(err, "--%s %s", opt->name, value ? value : "");
	return r;
}

/* A second value is most often a mistake; lists of keys may be continued. */
static int check_once(uint64_t *seen, size_t index, const char *name,
		      struct err *err)
{
	BUG_ON(index >= 64);
	if (*seen & (1ull << index))
		return err_set(err, EINVAL, "--%s: given twice", name);
	*seen |= 1ull << index;
	return 0;
}

static int apply_option(struct run_args *args, unsigned int opt,
			const char *value, struct err *err)
{
	unsigned int i = opt % 1000;
	int r = 0;

	if (opt >= OPT_RUN) {
		if (run_options[i].arg &&
		    run_options[i].set != add_landlock_rules)
			r = check_once(&args->seen_run, i, run_options[i].name,
				       err);
		return r ? r
			 : apply_run_option(args, &run_options[i], value, err);
	}
	if (opt >= OPT_DEVICE)
		return vm_config_add_device(&args->cfg, virtio_classes[i],
					    value, err);
	BUG_ON(opt < OPT_VM);
	if (vm_options[i].arg && !vm_options[i].keys)
		r = check_once(&args->seen_vm, i, vm_options[i].name, err);
	return r ? r : vm_option_set(&args->cfg, &vm_options[i], value, err);
}

/* Fields of the file that are not the VM's: this command's own options. */
static int set_from_file(void *ctx, const char *field, const char *text,
			 struct err *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(run_options); i++) {
		if (vm_field_is(run_options[i].name, field) &&
		    run_options[i].set != set_config)
			return run_options[i].set(ctx, text, err);
	}
	return -ENOENT;
}

static int load_config(struct run_args *args, struct err *err)
{
	const struct vm_config_others others = {
		.set = set_from_file,
		.ctx = args,
	};
	int r = vm_config_load(&args->cfg, args->config, &others, err);

	if (r)
		err_prefix(err, "--config");
	return r;
}

enum pass {
	PASS_CONFIG, /* only --config, wherever it stands */
	PASS_OTHERS,
};

/* Returns CLI_OK or the status to exit with. */
static int parse_pass(struct run_args *args, enum pass pass, int argc,
		      char **argv)
{
	struct option opts[OPT_MAX];
	struct err err = ERR_INIT;
	int c, r;

	build_long_options(opts);
	opterr = 0;
	optind = 1;
	while ((c = getopt_long(argc, argv, ":", opts, NULL)) != -1) {
		bool is_config = c >= OPT_RUN &&
				 run_options[c - OPT_RUN].set == set_config;

		if (c == '?' || c == ':')
			return cli_bad_option(&cmd_run, argc, argv);
		if (is_config != (pass == PASS_CONFIG))
			continue;
		r = apply_option(args, (unsigned int)c, optarg, &err);
		if (r)
			return cli_usage(&cmd_run, "%s", err.text);
	}
	return CLI_OK;
}

/* The VM comes over the API. */
static bool starts_empty(const struct run_args *args)
{
	return args->api_socket && !args->config && !args->cfg.kernel &&
	       !args->cfg.num_devices && !args->has_incoming;
}

static int parse_args(struct run_args *args, int argc, char **argv)
{
	struct err err = ERR_INIT;
	int status = parse_pass(args, PASS_CONFIG, argc, argv);

	if (status == CLI_OK && optind < argc)
		return cli_usage(&cmd_run, "unexpected argument '%s'",
				 argv[optind]);
	if (status == CLI_OK && args->config && load_config(args, &err))
		return cli_usage(&cmd_run, "%s", err.text);
	if (status == CLI_OK)
		status = parse_pass(args, PASS_OTHERS, argc, argv);
	if (status != CLI_OK)
		return status;
	if (args->tls_dir && !args->has_incoming)
		return cli_usage(&cmd_run, "--tls goes with --incoming");
	if (!starts_empty(args) && vm_config_check(&args->cfg, &err))
		return cli_usage(&cmd_run, "%s", err.text);
	log_set_format(args->log_format);
	return CLI_OK;
}

/* Who has booted the VM instead, or deleted it, has other plans. */
static int fail(struct vmm *v, void *arg, struct err *err)
{
	const struct err *why = arg;

	if (vmm_state(v) == VMM_CREATED)
		return vmm_fail(v, why);
	log_warn("%s", why->text);
	return 0;
}

/* Without the VM it waited for this process has nothing to do. */
static void *receiver_main(void *arg)
{
	struct run_args *args = arg;
	struct err err = ERR_INIT;
	int r = migrate_receive(args->vmm, args->listener.fd, args->tls, &err);

	/* The path is removed at the end. */
	close_fd(&args->listener.fd);
	if (r) {
		err_prefix(&err, "--incoming");
		(void)vmm_call(args->vmm, fail, &err, NULL);
	}
	return NULL;
}

static int start_receiver(struct run_args *args, struct vmm *vmm,
			  struct err *err)
{
	int r;

	args->vmm = vmm;
	r = thread_start(&args->receiver, &migrate_receive_thread_class,
			 "migrate", receiver_main, args);
	args->has_receiver = !r;
	return r ? err_errno(err, -r, "starting a thread") : 0;
}

static void end(void *ctx)
{
	struct run_args *args = ctx;

	if (args->has_receiver)
		pthread_join(args->receiver, NULL);
	args->has_receiver = false;
}

/* Create and boot, unless the VM comes over the API, or from elsewhere. */
static int begin(void *ctx, struct vmm *vmm, struct err *err)
{
	struct run_args *args = ctx;
	int r;

	if (starts_empty(args))
		return 0;
	r = vmm_create_config(vmm, &args->cfg, err);
	if (r)
		return r;
	return args->has_incoming ? start_receiver(args, vmm, err)
				  : vmm_boot(vmm, err);
}

/* While the process may still; what it will find there is not its own yet. */
static int listen_there(struct run_args *args, struct sandbox_paths *paths,
			struct err *err)
{
	int r;

	if (!args->has_incoming)
		return 0;
	vmm_expect_disks(&args->cfg, true);
	if (args->tls_dir) {
		r = tls_credentials_load(&args->tls, TLS_DESTINATION,
					 args->tls_dir, err);
		if (r) {
			err_prefix(err, "--tls");
			return r;
		}
	}
	r = migrate_uri_listen(&args->incoming, &args->listener, err);
	if (!r && args->listener.path)
		r = sandbox_paths_add_parent(paths, args->listener.path,
					     SANDBOX_REMOVE, true, err);
	if (r)
		err_prefix(err, "--incoming");
	return r;
}

static int confine(const struct cli_serve *serve, const struct api_service *api,
		   struct err *err)
{
	struct run_args *args = serve->ctx;
	struct sandbox_paths paths = { .num = 0 };
	const struct vm_confinement c = {
		.sandbox = &args->sandbox,
		.cfg = starts_empty(args) ? NULL : &args->cfg,
		.expects_more = args->api_socket,
		.paths = &paths,
		.classes = api_thread_classes,
	};
	int r;

	r = cli_serve_paths(serve, api, &paths, err);
	if (!r)
		r = listen_there(args, &paths, err);
	if (!r)
		r = vm_confine(&c, err);
	sandbox_paths_fini(&paths);
	return r;
}

static int run_vm(struct run_args *args)
{
	const struct cli_serve serve = {
		.command = &cmd_run,
		.name = args->cfg.name,
		.api_socket = args->api_socket,
		.print_summary = args->print_summary,
		.summary_json = args->summary_json,
		.confine = confine,
		.begin = begin,
		.end = end,
		.ctx = args,
	};

	return cli_serve(&serve);
}

static int run_main(int argc, char **argv)
{
	struct run_args args = {
		.log_format = LOG_FORMAT_AUTO,
		.listener = UNIX_LISTENER_INIT,
	};
	int status;

	vm_config_init(&args.cfg);
	sandbox_config_init(&args.sandbox);
	status = parse_args(&args, argc, argv);
	if (status == CLI_OK)
		status = run_vm(&args);
	unix_listener_close(&args.listener);
	tls_credentials_free(args.tls);
	free(args.tls_dir);
	vm_config_fini(&args.cfg);
	sandbox_config_fini(&args.sandbox);
	free(args.config);
	free(args.summary_json);
	free(args.api_socket);
	return status;
}

/* For completion: all that build_long_options() knows, with what it takes. */
static bool run_option_at(size_t i, struct cli_option *ret)
{
	if (i < vm_num_options) {
		*ret = (struct cli_option){ vm_options[i].name,
					    vm_options[i].arg };
		return true;
	}
	i -= vm_num_options;
	if (i < ARRAY_SIZE(run_options)) {
		*ret = (struct cli_option){ run_options[i].name,
					    run_options[i].arg };
		return true;
	}
	i -= ARRAY_SIZE(run_options);
	for (size_t c = 0; virtio_classes[c]; c++) {
		const struct virtio_class *cls = virtio_classes[c];

		if (cls->option && !i--) {
			*ret = (struct cli_option){ cls->option + 2,
						    cls->option_args };
			return true;
		}
	}
	return false;
}

const struct cli_command cmd_run = {
	.name = "run",
	.summary = "boot a kernel in a virtual machine",
	.help = run_help,
	.run = run_main,
	.option_at = run_option_at,
};
