/* SPDX-License-Identifier: Apache-2.0 */
/* quire run: boot a kernel in a virtual machine in this process. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/size.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "vm/session.h"

/*
 * Options come from two places: the table below, and the virtio registry,
 * where a device class names its own ("--disk"). getopt_long() returns
 * OPT_FIXED + index for the first and OPT_DEVICE + index for the second.
 */
#define OPT_FIXED  1000
#define OPT_DEVICE 2000
#define OPT_MAX	   64

struct run_args {
	struct vm_config cfg;
	bool print_summary;
	bool has_serial;
	char *summary_json; /* path or NULL */
};

struct run_option {
	const char *name;
	const char *arg; /* NULL: a flag */
	const char *help;
	int (*set)(struct run_args *args, const char *value, struct err *err);
};

/* A string option may be given once: a second one is most often a mistake. */
static int set_string(char **dst, const char *value, struct err *err)
{
	if (*dst)
		return err_set(err, EINVAL, "given twice");
	*dst = strdup(value);
	return *dst ? 0 : err_set(err, ENOMEM, "out of memory");
}

static int set_kernel(struct run_args *a, const char *v, struct err *err)
{
	return set_string(&a->cfg.kernel, v, err);
}

static int set_initramfs(struct run_args *a, const char *v, struct err *err)
{
	return set_string(&a->cfg.initramfs, v, err);
}

static int set_cmdline(struct run_args *a, const char *v, struct err *err)
{
	return set_string(&a->cfg.cmdline, v, err);
}

static int set_cpus(struct run_args *a, const char *v, struct err *err)
{
	return vm_config_set_cpus(&a->cfg, v, err);
}

static int set_memory(struct run_args *a, const char *v, struct err *err)
{
	return vm_config_set_memory(&a->cfg, v, err);
}

static int set_serial(struct run_args *a, const char *v, struct err *err)
{
	if (a->has_serial)
		return err_set(err, EINVAL, "given twice");
	a->has_serial = true;
	return chardev_config_parse(&a->cfg.serial, "--serial", v, err);
}

static int set_irqchip(struct run_args *a, const char *v, struct err *err)
{
	static const char *const names[] = { "kernel", "split" };
	int i, r = kvlist_enum(v, names, ARRAY_SIZE(names), &i, err);

	if (!r)
		a->cfg.irqchip = i ? IRQCHIP_SPLIT : IRQCHIP_KERNEL;
	return r;
}

static int set_action(enum vm_action *dst, const char *v, struct err *err)
{
	int i, r = kvlist_enum(v, vm_action_names, ARRAY_SIZE(vm_action_names),
			       &i, err);

	if (!r)
		*dst = (enum vm_action)i;
	return r;
}

static int set_on_reboot(struct run_args *a, const char *v, struct err *err)
{
	return set_action(&a->cfg.on_reboot, v, err);
}

static int set_on_crash(struct run_args *a, const char *v, struct err *err)
{
	return set_action(&a->cfg.on_crash, v, err);
}

static int set_on_panic(struct run_args *a, const char *v, struct err *err)
{
	int i, r = kvlist_enum(v, vm_panic_action_names,
			       ARRAY_SIZE(vm_panic_action_names), &i, err);

	if (!r)
		a->cfg.on_panic = (enum vm_panic_action)i;
	return r;
}

static int set_watchdog(struct run_args *a, const char *v, struct err *err)
{
	a->cfg.watchdog = true;
	return 0;
}

static int set_shutdown_timeout(struct run_args *a, const char *v,
				struct err *err)
{
	return kvlist_u32(v, 0, 86400, &a->cfg.shutdown_timeout_s, err);
}

static int set_debug_exit(struct run_args *a, const char *v, struct err *err)
{
	a->cfg.debug_exit = true;
	return 0;
}

static int set_summary(struct run_args *a, const char *v, struct err *err)
{
	a->print_summary = true;
	return 0;
}

static int set_summary_json(struct run_args *a, const char *v, struct err *err)
{
	return set_string(&a->summary_json, v, err);
}

static int set_verbose(struct run_args *a, const char *v, struct err *err)
{
	log_set_level(LOG_LEVEL_INFO);
	return 0;
}

static const struct run_option run_options[] = {
	{ "kernel", "FILE", "bzImage, or ELF vmlinux with a PVH note",
	  set_kernel },
	{ "initramfs", "FILE", "initial RAM file system", set_initramfs },
	{ "cmdline", "TEXT", "kernel command line", set_cmdline },
	{ "cpus", "boot=N[,threads=1|2][,dedicated=on|off]",
	  "vCPUs (default 1); threads per core; dedicated=on tells the guest "
	  "that none waits for a host CPU",
	  set_cpus },
	{ "memory",
	  "size=SIZE[,page=4k|thp|2m|1g][,shared=on|off]"
	  "[,populate=none|host|full|background]"
	  "[,stage2=auto|ioctl|stub|none][,populate-threads=N]"
	  "[,repair=on|off][,coalesce=on|off][,background-rate=SIZE]"
	  "[,numa=none|bind|interleave|preferred|split[:NODES]]"
	  "[,dirty-log=auto|bitmap|ring][,dirty-ring=ENTRIES]",
	  "guest RAM (default size=512M,page=thp); populate=full fills host "
	  "pages and second stage before the start",
	  set_memory },
	{ "serial", "tty|null|file=PATH|socket=PATH",
	  "first serial port (default tty; Ctrl-A h lists its keys)",
	  set_serial },
	{ "irqchip", "kernel|split",
	  "who emulates the IOAPIC (default kernel where it can)",
	  set_irqchip },
	{ "on-reboot", "restart|stop",
	  "when the guest reboots (default restart)", set_on_reboot },
	{ "on-crash", "restart|stop",
	  "when the guest triple-faults (default stop)", set_on_crash },
	{ "on-panic", "continue|restart|stop",
	  "when the guest's kernel says it panicked (default continue)",
	  set_on_panic },
	{ "watchdog", NULL,
	  "a watchdog timer that resets a guest which stops feeding it",
	  set_watchdog },
	{ "shutdown-timeout", "SECONDS",
	  "from SIGTERM's power button to stopping (default 20; 0: at once)",
	  set_shutdown_timeout },
	{ "debug-exit", NULL,
	  "a guest write to port 0xf4 ends quire with that status",
	  set_debug_exit },
	{ "summary", NULL, "print times, memory and statistics at the end",
	  set_summary },
	{ "summary-json", "FILE", "write the same as JSON", set_summary_json },
	{ "verbose", NULL, "say what happens", set_verbose },
};

static void help_option(const char *name, const char *arg, const char *help)
{
	int width = printf("  --%s%s%s", name, arg ? " " : "", arg ? arg : "");

	/* Long options push their text to the next line. */
	if (width > 30)
		printf("\n%*s", 32, "");
	else
		printf("%*s", 32 - width, "");
	printf("%s\n", help);
}

static void run_help(void)
{
	printf("usage: quire run --kernel FILE [OPTION...]\n\n"
	       "Boot a Linux kernel in a virtual machine.\n\noptions:\n");
	for (size_t i = 0; i < ARRAY_SIZE(run_options); i++)
		help_option(run_options[i].name, run_options[i].arg,
			    run_options[i].help);
	printf("\ndevices (\"once\" or as often as you like):\n");
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

static size_t build_long_options(struct option *opts)
{
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(run_options); i++)
		opts[n++] = (struct option){
			.name = run_options[i].name,
			.has_arg = run_options[i].arg ? required_argument
						      : no_argument,
			.val = OPT_FIXED + (int)i,
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

static int apply_fixed(struct run_args *args, const struct run_option *opt,
		       const char *value, struct err *err)
{
	char prefix[32];
	int r = opt->set(args, value, err);

	/* Setters of key lists have named the option already. */
	snprintf(prefix, sizeof(prefix), "--%s", opt->name);
	if (r && strncmp(err->text, prefix, strlen(prefix)) != 0)
		err_prefix(err, "%s %s", prefix, value ? value : "");
	return r;
}

static int apply_option(struct run_args *args, unsigned int opt,
			const char *value, struct err *err)
{
	if (opt >= OPT_DEVICE)
		return vm_config_add_device(&args->cfg,
					    virtio_classes[opt - OPT_DEVICE],
					    value, err);
	BUG_ON(opt < OPT_FIXED);
	return apply_fixed(args, &run_options[opt - OPT_FIXED], value, err);
}

/* Returns CLI_OK or the status to exit with. */
static int parse_args(struct run_args *args, int argc, char **argv)
{
	struct option opts[OPT_MAX];
	struct err err = ERR_INIT;
	int c, r;

	build_long_options(opts);
	opterr = 0;
	optind = 1;
	while ((c = getopt_long(argc, argv, ":", opts, NULL)) != -1) {
		if (c == '?' || c == ':')
			return cli_bad_option(&cmd_run, argc, argv);
		r = apply_option(args, (unsigned int)c, optarg, &err);
		if (r)
			return cli_usage(&cmd_run, "%s", err.text);
	}
	if (optind < argc)
		return cli_usage(&cmd_run, "unexpected argument '%s'",
				 argv[optind]);
	if (vm_config_check(&args->cfg, &err))
		return cli_usage(&cmd_run, "%s", err.text);
	return CLI_OK;
}

static int report(const struct vm_result *res)
{
	if (res->signal)
		return 128 + res->signal;
	switch (res->end) {
	case MACHINE_END_DEBUG_EXIT:
		return (int)(res->code & 0xff);
	case MACHINE_END_CRASH:
	case MACHINE_END_PANIC:
	case MACHINE_END_WATCHDOG:
		fprintf(stderr, "quire run: guest crash: %s\n", res->text);
		return CLI_FAILURE;
	case MACHINE_END_ERROR:
		fprintf(stderr,
			"quire run: %s; `quire doctor` says whether this host "
			"runs Linux guests\n",
			res->text);
		return CLI_FAILURE;
	case MACHINE_END_NONE:
	case MACHINE_END_POWEROFF:
	case MACHINE_END_REBOOT:
		break;
	}
	return CLI_OK;
}

static int run_and_account(struct run_args *args, struct vm_summary *summary)
{
	struct vm_result result;
	struct err err = ERR_INIT;
	int status;

	/* Not after hours of running. */
	if (args->summary_json &&
	    vm_summary_check_path(args->summary_json, &err))
		return cli_fail(&cmd_run, &err);
	if (vm_session_run(&args->cfg, summary, &result, &err))
		return cli_fail(&cmd_run, &err);
	status = report(&result);
	if (args->print_summary)
		vm_summary_print(summary, stderr);
	if (args->summary_json &&
	    vm_summary_write_json(summary, args->summary_json, &err))
		return cli_fail(&cmd_run, &err);
	return status;
}

static int run_vm(struct run_args *args)
{
	struct vm_summary *summary = calloc(1, sizeof(*summary));
	struct err err = ERR_INIT;
	int status;

	if (!summary) {
		err_set(&err, ENOMEM, "out of memory");
		return cli_fail(&cmd_run, &err);
	}
	status = run_and_account(args, summary);
	free(summary);
	return status;
}

static int run_main(int argc, char **argv)
{
	struct run_args args = { .summary_json = NULL };
	int status;

	vm_config_init(&args.cfg);
	status = parse_args(&args, argc, argv);
	if (status == CLI_OK)
		status = run_vm(&args);
	vm_config_fini(&args.cfg);
	free(args.summary_json);
	return status;
}

const struct cli_command cmd_run = {
	.name = "run",
	.summary = "boot a kernel in a virtual machine",
	.help = run_help,
	.run = run_main,
};
