/* SPDX-License-Identifier: Apache-2.0 */
/* The table of options, with a setter and a getter for each. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/arith.h"
#include "base/json.h"
#include "vm/config.h"
#include "x86/cpu.h"

/* A memslot has at most 2^31 - 1 pages. */
#define VM_MAX_MEMORY	    (8 * TIB)
#define VM_MAX_TIMEOUT_S    86400
#define VM_MAX_FILL_THREADS 256

const char *const vm_panic_action_names[3] = {
	[VM_PANIC_CONTINUE] = "continue",
	[VM_PANIC_RESTART] = "restart",
	[VM_PANIC_STOP] = "stop",
};

const char *const vm_action_names[2] = {
	[VM_ACTION_RESTART] = "restart",
	[VM_ACTION_STOP] = "stop",
};

static const char *const irqchip_names[] = { "kernel", "split" };

static json_t *get_string(const char *value)
{
	return value ? json_text(value) : NULL;
}

/* ---- what is booted, and its name ---- */

int vm_config_check_name(const char *name, struct err *err)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyz"
				      "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "0123456789_.-";
	size_t len = strlen(name);

	if (!len || len >= VM_MAX_NAME || strspn(name, letters) != len ||
	    strchr("_.-", *name))
		return err_set(err, EINVAL,
			       "not a name: 1 to %d of A-Z a-z 0-9 . _ - , "
			       "the first a letter or digit",
			       VM_MAX_NAME - 1);
	return 0;
}

static int set_name(struct vm_config *cfg, const char *value, struct err *err)
{
	int r = vm_config_check_name(value, err);

	return r ? r : kvlist_string(value, &cfg->name, err);
}

static json_t *get_name(const struct vm_config *cfg)
{
	return get_string(cfg->name);
}

static int set_kernel(struct vm_config *cfg, const char *value, struct err *err)
{
	return kvlist_string(value, &cfg->kernel, err);
}

static json_t *get_kernel(const struct vm_config *cfg)
{
	return get_string(cfg->kernel);
}

static int set_initramfs(struct vm_config *cfg, const char *value,
			 struct err *err)
{
	return kvlist_string(value, &cfg->initramfs, err);
}

static json_t *get_initramfs(const struct vm_config *cfg)
{
	return get_string(cfg->initramfs);
}

static int set_cmdline(struct vm_config *cfg, const char *value,
		       struct err *err)
{
	return kvlist_string(value, &cfg->cmdline, err);
}

static json_t *get_cmdline(const struct vm_config *cfg)
{
	return get_string(cfg->cmdline);
}

/* ---- CPUs ---- */

static int cpus_boot(void *obj, const char *value, struct err *err)
{
	return kvlist_u32(value, 1, CPU_MAX_VCPUS,
			  &((struct vm_config *)obj)->num_cpus, err);
}

static json_t *get_cpus_boot(const struct vm_config *cfg)
{
	return json_integer(cfg->num_cpus);
}

static int cpus_max(void *obj, const char *value, struct err *err)
{
	return kvlist_u32(value, 1, CPU_MAX_VCPUS,
			  &((struct vm_config *)obj)->max_cpus, err);
}

static json_t *get_cpus_max(const struct vm_config *cfg)
{
	return json_integer(cfg->max_cpus ? cfg->max_cpus : cfg->num_cpus);
}

static int cpus_threads(void *obj, const char *value, struct err *err)
{
	return kvlist_u32(value, 1, 2,
			  &((struct vm_config *)obj)->threads_per_core, err);
}

static json_t *get_cpus_threads(const struct vm_config *cfg)
{
	return json_integer(cfg->threads_per_core);
}

static int cpus_dedicated(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct vm_config *)obj)->dedicated_cpus,
			   err);
}

static json_t *get_cpus_dedicated(const struct vm_config *cfg)
{
	return json_boolean(cfg->dedicated_cpus);
}

static const struct vm_option_key cpus_keys[] = {
	{ "boot", "boot_vcpus", cpus_boot, get_cpus_boot },
	{ "max", "max_vcpus", cpus_max, get_cpus_max },
	{ "threads", NULL, cpus_threads, get_cpus_threads },
	{ "dedicated", NULL, cpus_dedicated, get_cpus_dedicated },
};

/* ---- memory ---- */

static int memory_size(void *obj, const char *value, struct err *err)
{
	struct vm_config *cfg = obj;
	uint64_t bytes;
	int r = kvlist_size(value, &bytes, err);

	if (r)
		return r;
	if (bytes < VM_MIN_MEMORY || bytes > VM_MAX_MEMORY)
		return err_set(err, EINVAL, "not between 64M and 8T");
	if (!is_aligned(bytes, PAGE_2M))
		return err_set(err, EINVAL, "not a multiple of 2M");
	cfg->memory_bytes = bytes;
	return 0;
}

static json_t *get_memory_size(const struct vm_config *cfg)
{
	return json_integer(json_int_u64(cfg->memory_bytes));
}

static int memory_page(void *obj, const char *value, struct err *err)
{
	struct vm_config *cfg = obj;
	int v, r = kvlist_enum(value, ram_page_names,
			       ARRAY_SIZE(ram_page_names), &v, err);

	if (r)
		return r;
	cfg->page = (enum ram_page)v;
	cfg->words.page = true;
	return 0;
}

static json_t *get_memory_page(const struct vm_config *cfg)
{
	return json_string(ram_page_names[cfg->page]);
}

/* Cloud Hypervisor's words for page=2m and page=1g. */
static int memory_hugepages(void *obj, const char *value, struct err *err)
{
	struct vm_memory_words *words = &((struct vm_config *)obj)->words;
	bool on;
	int r = kvlist_bool(value, &on, err);

	if (r)
		return r;
	words->hugepages_on = on;
	words->hugepages_off = !on;
	return 0;
}

static json_t *get_memory_hugepages(const struct vm_config *cfg)
{
	return json_boolean(ram_page_is_hugetlb(cfg->page));
}

static int memory_hugepage_size(void *obj, const char *value, struct err *err)
{
	uint64_t bytes;
	int r = kvlist_size(value, &bytes, err);

	if (r)
		return r;
	if (bytes != PAGE_2M && bytes != PAGE_1G)
		return err_set(err, EINVAL, "neither 2M nor 1G");
	((struct vm_config *)obj)->words.hugepage_bytes = bytes;
	return 0;
}

static json_t *get_memory_hugepage_size(const struct vm_config *cfg)
{
	if (!ram_page_is_hugetlb(cfg->page))
		return NULL;
	return json_integer(
		json_int_u64(cfg->page == RAM_PAGE_1G ? PAGE_1G : PAGE_2M));
}

static int memory_shared(void *obj, const char *value, struct err *err)
{
	struct vm_config *cfg = obj;
	int r = kvlist_bool(value, &cfg->shared, err);

	cfg->words.shared_off = !r && !cfg->shared;
	return r;
}

static json_t *get_memory_shared(const struct vm_config *cfg)
{
	return json_boolean(vm_config_shared(cfg, NULL));
}

static int memory_numa(void *obj, const char *value, struct err *err)
{
	return numa_config_parse(&((struct vm_config *)obj)->numa, value, err);
}

static json_t *get_memory_numa(const struct vm_config *cfg)
{
	const char *policy = numa_policy_names[cfg->numa.policy];
	char nodes[4096];

	if (!cfg->numa.has_nodes)
		return json_string(policy);
	numa_nodes_format(&cfg->numa.nodes, nodes, sizeof(nodes));
	/* ',' ends the value of a key, so the option writes '+'. */
	for (char *c = nodes; *c; c++)
		if (*c == ',')
			*c = '+';
	return json_sprintf("%s:%s", policy, nodes);
}

static int memory_populate(void *obj, const char *value, struct err *err)
{
	int v, r = kvlist_enum(value, populate_mode_names,
			       ARRAY_SIZE(populate_mode_names), &v, err);

	if (!r)
		((struct vm_config *)obj)->populate = (enum populate_mode)v;
	return r;
}

static json_t *get_memory_populate(const struct vm_config *cfg)
{
	return json_string(populate_mode_names[cfg->populate]);
}

/* Cloud Hypervisor's word for populate=host. */
static int memory_prefault(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct vm_config *)obj)->words.prefault,
			   err);
}

static int memory_stage2(void *obj, const char *value, struct err *err)
{
	int v, r = kvlist_enum(value, stage2_method_names,
			       ARRAY_SIZE(stage2_method_names), &v, err);

	if (!r)
		((struct vm_config *)obj)->stage2 = (enum stage2_method)v;
	return r;
}

static json_t *get_memory_stage2(const struct vm_config *cfg)
{
	return json_string(stage2_method_names[cfg->stage2]);
}

static int memory_populate_threads(void *obj, const char *value,
				   struct err *err)
{
	return kvlist_u32(value, 1, VM_MAX_FILL_THREADS,
			  &((struct vm_config *)obj)->populate_threads, err);
}

static json_t *get_memory_populate_threads(const struct vm_config *cfg)
{
	return cfg->populate_threads ? json_integer(cfg->populate_threads)
				     : NULL;
}

static int memory_repair(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct vm_config *)obj)->repair, err);
}

static json_t *get_memory_repair(const struct vm_config *cfg)
{
	return json_boolean(cfg->repair);
}

static int memory_coalesce(void *obj, const char *value, struct err *err)
{
	return kvlist_bool(value, &((struct vm_config *)obj)->coalesce, err);
}

static json_t *get_memory_coalesce(const struct vm_config *cfg)
{
	return json_boolean(cfg->coalesce);
}

static int memory_background_rate(void *obj, const char *value, struct err *err)
{
	return kvlist_size(value, &((struct vm_config *)obj)->background_rate,
			   err);
}

/* A rate beyond what JSON's integers hold is no limit, as 0 is. */
static json_t *get_memory_background_rate(const struct vm_config *cfg)
{
	return json_integer(json_int_u64(cfg->background_rate));
}

static int memory_dirty_log(void *obj, const char *value, struct err *err)
{
	int v, r = kvlist_enum(value, dirty_method_names,
			       ARRAY_SIZE(dirty_method_names), &v, err);

	if (!r)
		((struct vm_config *)obj)->dirty_log = (enum dirty_method)v;
	return r;
}

static json_t *get_memory_dirty_log(const struct vm_config *cfg)
{
	return json_string(dirty_method_names[cfg->dirty_log]);
}

static int memory_dirty_ring(void *obj, const char *value, struct err *err)
{
	return kvlist_pow2(value, 1, DIRTY_RING_MAX_ENTRIES,
			   &((struct vm_config *)obj)->dirty_ring, err);
}

static json_t *get_memory_dirty_ring(const struct vm_config *cfg)
{
	return cfg->dirty_ring ? json_integer(cfg->dirty_ring) : NULL;
}

static const struct vm_option_key memory_keys[] = {
	{ "size", NULL, memory_size, get_memory_size },
	{ "page", NULL, memory_page, get_memory_page },
	{ "hugepages", NULL, memory_hugepages, get_memory_hugepages },
	{ "hugepage_size", NULL, memory_hugepage_size,
	  get_memory_hugepage_size },
	{ "shared", NULL, memory_shared, get_memory_shared },
	{ "populate", NULL, memory_populate, get_memory_populate },
	{ "prefault", NULL, memory_prefault, NULL },
	{ "stage2", NULL, memory_stage2, get_memory_stage2 },
	{ "populate-threads", NULL, memory_populate_threads,
	  get_memory_populate_threads },
	{ "repair", NULL, memory_repair, get_memory_repair },
	{ "coalesce", NULL, memory_coalesce, get_memory_coalesce },
	{ "background-rate", NULL, memory_background_rate,
	  get_memory_background_rate },
	{ "numa", NULL, memory_numa, get_memory_numa },
	{ "dirty-log", NULL, memory_dirty_log, get_memory_dirty_log },
	{ "dirty-ring", NULL, memory_dirty_ring, get_memory_dirty_ring },
};

/*
 * hugepages=, hugepage_size= and prefault= mean something for page= and
 * populate=. They are words of one option: a later one starts afresh.
 */
static int memory_done(struct vm_config *cfg, struct err *err)
{
	struct vm_memory_words words = cfg->words;
	enum ram_page want = words.hugepage_bytes == PAGE_1G ? RAM_PAGE_1G
							     : RAM_PAGE_2M;

	cfg->words = (struct vm_memory_words){
		.shared_off = words.shared_off,
	};
	if (words.hugepage_bytes && words.hugepages_off)
		return err_set(err, EINVAL, "hugepage_size wants hugepages on");
	if (words.hugepages_off && !words.page &&
	    ram_page_is_hugetlb(cfg->page))
		cfg->page = RAM_PAGE_THP;
	if (words.hugepages_on && !words.hugepage_bytes && words.page)
		want = cfg->page;
	if (words.hugepages_on || words.hugepage_bytes) {
		if (words.page && cfg->page != want)
			return err_set(err, EINVAL,
				       "page=%s and hugepage_size contradict "
				       "each other",
				       ram_page_names[cfg->page]);
		cfg->page = want;
	}
	if ((words.hugepages_on && !ram_page_is_hugetlb(cfg->page)) ||
	    (words.hugepages_off && ram_page_is_hugetlb(cfg->page)))
		return err_set(err, EINVAL,
			       "page=%s and hugepages contradict each other",
			       ram_page_names[cfg->page]);
	if (words.prefault && cfg->populate == POPULATE_NONE)
		cfg->populate = POPULATE_HOST;
	return 0;
}

/* ---- the serial port ---- */

static int set_serial(struct vm_config *cfg, const char *value, struct err *err)
{
	return chardev_config_parse(&cfg->serial, "--serial", value, err);
}

static const char *const serial_modes[] = {
	[CHARDEV_TTY] = "Tty",
	[CHARDEV_FILE] = "File",
	[CHARDEV_SOCKET] = "Socket",
	[CHARDEV_NULL] = "Null",
};

static json_t *get_serial(const struct vm_config *cfg)
{
	json_t *o = json_pack("{s:s}", "mode", serial_modes[cfg->serial.kind]);

	if (cfg->serial.path)
		json_object_set_new(
			o, cfg->serial.kind == CHARDEV_FILE ? "file" : "socket",
			json_text(cfg->serial.path));
	return o;
}

struct serial_fields {
	const char *mode, *file, *socket;
};

static int read_serial_field(struct serial_fields *f, const char *field,
			     const json_t *value, struct err *err)
{
	const char **place = !strcmp(field, "mode")	? &f->mode
			     : !strcmp(field, "file")	? &f->file
			     : !strcmp(field, "socket") ? &f->socket
							: NULL;

	if (!place)
		return err_set(err, EINVAL,
			       "unknown field (known: mode, file, socket)");
	if (!json_is_string(value) && !json_is_null(value))
		return err_set(err, EINVAL, "%s is not a string", field);
	*place = json_string_value(value);
	return 0;
}

/* Cloud Hypervisor's {"mode": "File", "file": PATH} as "file=PATH". */
static int serial_text(const struct serial_fields *f, char **ret,
		       struct err *err)
{
	const char *path = f->file ? f->file : f->socket;
	const char *implied = f->file ? "file" : f->socket ? "socket" : "tty";
	const char *mode = f->mode ? f->mode : implied;

	if (path && strcasecmp(mode, implied) != 0)
		return err_set(err, EINVAL, "%s wants that mode, and no other",
			       implied);
	if (f->file && f->socket)
		return err_set(err, EINVAL, "file and socket exclude another");
	if (asprintf(ret, "%s%s%s", mode, path ? "=" : "", path ? path : "") <
	    0)
		return err_set(err, ENOMEM, "out of memory");
	/* "Tty" is "tty" on the command line. */
	for (char *c = *ret; *c && *c != '='; c++)
		if (*c >= 'A' && *c <= 'Z')
			*c += 'a' - 'A';
	return 0;
}

static int set_serial_json(struct vm_config *cfg, const json_t *value,
			   struct err *err)
{
	struct serial_fields fields = { .mode = NULL };
	const char *field;
	json_t *member;
	char *text;
	int r = 0;

	if (!json_is_object(value))
		return err_set(err, EINVAL, "not an object");
	json_object_foreach((json_t *)value, field, member)
	{
		r = read_serial_field(&fields, field, member, err);
		if (r)
			return r;
	}
	r = serial_text(&fields, &text, err);
	if (r)
		return r;
	r = set_serial(cfg, text, err);
	free(text);
	return r;
}

/* ---- the rest ---- */

static int set_irqchip(struct vm_config *cfg, const char *value,
		       struct err *err)
{
	int i, r = kvlist_enum(value, irqchip_names, ARRAY_SIZE(irqchip_names),
			       &i, err);

	if (!r)
		cfg->irqchip = i ? IRQCHIP_SPLIT : IRQCHIP_KERNEL;
	return r;
}

static json_t *get_irqchip(const struct vm_config *cfg)
{
	return json_string(irqchip_names[cfg->irqchip == IRQCHIP_SPLIT]);
}

static int set_action(enum vm_action *dst, const char *value, struct err *err)
{
	int i, r = kvlist_enum(value, vm_action_names,
			       ARRAY_SIZE(vm_action_names), &i, err);

	if (!r)
		*dst = (enum vm_action)i;
	return r;
}

static int set_on_reboot(struct vm_config *cfg, const char *value,
			 struct err *err)
{
	return set_action(&cfg->on_reboot, value, err);
}

static json_t *get_on_reboot(const struct vm_config *cfg)
{
	return json_string(vm_action_names[cfg->on_reboot]);
}

static int set_on_crash(struct vm_config *cfg, const char *value,
			struct err *err)
{
	return set_action(&cfg->on_crash, value, err);
}

static json_t *get_on_crash(const struct vm_config *cfg)
{
	return json_string(vm_action_names[cfg->on_crash]);
}

static int set_on_panic(struct vm_config *cfg, const char *value,
			struct err *err)
{
	int i, r = kvlist_enum(value, vm_panic_action_names,
			       ARRAY_SIZE(vm_panic_action_names), &i, err);

	if (!r)
		cfg->on_panic = (enum vm_panic_action)i;
	return r;
}

static json_t *get_on_panic(const struct vm_config *cfg)
{
	return json_string(vm_panic_action_names[cfg->on_panic]);
}

static int set_watchdog(struct vm_config *cfg, const char *value,
			struct err *err)
{
	return kvlist_bool(value, &cfg->watchdog, err);
}

static json_t *get_watchdog(const struct vm_config *cfg)
{
	return json_boolean(cfg->watchdog);
}

static int set_shutdown_timeout(struct vm_config *cfg, const char *value,
				struct err *err)
{
	return kvlist_u32(value, 0, VM_MAX_TIMEOUT_S, &cfg->shutdown_timeout_s,
			  err);
}

static json_t *get_shutdown_timeout(const struct vm_config *cfg)
{
	return json_integer(cfg->shutdown_timeout_s);
}

static int set_debug_exit(struct vm_config *cfg, const char *value,
			  struct err *err)
{
	return kvlist_bool(value, &cfg->debug_exit, err);
}

static json_t *get_debug_exit(const struct vm_config *cfg)
{
	return json_boolean(cfg->debug_exit);
}

const struct vm_option vm_options[] = {
	{
		.name = "name",
		.arg = "NAME",
		.help = "what the VM is called",
		.set = set_name,
		.get = get_name,
	},
	{
		.name = "kernel",
		.arg = "FILE",
		.help = "bzImage, or ELF vmlinux with a PVH note",
		.object = "payload",
		.set = set_kernel,
		.get = get_kernel,
	},
	{
		.name = "initramfs",
		.arg = "FILE",
		.help = "initial RAM file system",
		.object = "payload",
		.set = set_initramfs,
		.get = get_initramfs,
	},
	{
		.name = "cmdline",
		.arg = "TEXT",
		.help = "kernel command line",
		.object = "payload",
		.set = set_cmdline,
		.get = get_cmdline,
	},
	{
		.name = "cpus",
		.arg = "boot=N[,max=N][,threads=1|2][,dedicated=on|off]",
		.help = "vCPUs (default 1; max= may only say the same); "
			"threads per core; dedicated=on tells the guest that "
			"none waits for a host CPU",
		.keys = cpus_keys,
		.num_keys = ARRAY_SIZE(cpus_keys),
		.first_key = "boot",
	},
	{
		.name = "memory",
		.arg = "size=SIZE[,page=4k|thp|2m|1g][,hugepages=on|off]"
		       "[,hugepage_size=SIZE][,shared=on|off]"
		       "[,populate=none|host|full|background]"
		       "[,prefault=on|off]"
		       "[,stage2=auto|ioctl|stub|none][,populate-threads=N]"
		       "[,repair=on|off][,coalesce=on|off]"
		       "[,background-rate=SIZE]"
		       "[,numa=none|bind|interleave|preferred|split[:NODES]]"
		       "[,dirty-log=auto|bitmap|ring][,dirty-ring=ENTRIES]",
		.help = "guest RAM (default size=512M,page=thp); populate=full "
			"fills host pages and second stage before the start",
		.keys = memory_keys,
		.num_keys = ARRAY_SIZE(memory_keys),
		.first_key = "size",
		.done = memory_done,
	},
	{
		.name = "serial",
		.arg = "tty|null|file=PATH|socket=PATH",
		.help = "first serial port (default tty; Ctrl-A h lists its "
			"keys)",
		.set = set_serial,
		.get = get_serial,
		.set_json = set_serial_json,
	},
	{
		.name = "irqchip",
		.arg = "kernel|split",
		.help = "who emulates the IOAPIC (default kernel where it can)",
		.set = set_irqchip,
		.get = get_irqchip,
	},
	{
		.name = "on-reboot",
		.arg = "restart|stop",
		.help = "when the guest reboots (default restart)",
		.set = set_on_reboot,
		.get = get_on_reboot,
	},
	{
		.name = "on-crash",
		.arg = "restart|stop",
		.help = "when the guest triple-faults (default stop)",
		.set = set_on_crash,
		.get = get_on_crash,
	},
	{
		.name = "on-panic",
		.arg = "continue|restart|stop",
		.help = "when the guest's kernel says it panicked (default "
			"continue)",
		.set = set_on_panic,
		.get = get_on_panic,
	},
	{
		.name = "watchdog",
		.help = "a watchdog timer that resets a guest which stops "
			"feeding it",
		.set = set_watchdog,
		.get = get_watchdog,
	},
	{
		.name = "shutdown-timeout",
		.arg = "SECONDS",
		.help = "from SIGTERM's power button to stopping (default 20; "
			"0: at once)",
		.set = set_shutdown_timeout,
		.get = get_shutdown_timeout,
	},
	{
		.name = "debug-exit",
		.help = "a guest write to port 0xf4 ends quire with that "
			"status",
		.set = set_debug_exit,
		.get = get_debug_exit,
	},
};

const size_t vm_num_options = ARRAY_SIZE(vm_options);

bool vm_field_is(const char *name, const char *field)
{
	while (*name && *field && *field == (*name == '-' ? '_' : *name)) {
		name++;
		field++;
	}
	return !*name && !*field;
}

static int set_keys(struct vm_config *cfg, const struct vm_option *opt,
		    const char *text, struct err *err)
{
	struct kvlist_key keys[32];
	char name[32];
	int r;

	BUG_ON(opt->num_keys > ARRAY_SIZE(keys));
	for (size_t i = 0; i < opt->num_keys; i++)
		keys[i] = (struct kvlist_key){ opt->keys[i].name,
					       opt->keys[i].set };
	snprintf(name, sizeof(name), "--%s", opt->name);
	r = kvlist_parse(name, text, opt->first_key, keys, opt->num_keys, cfg,
			 err);
	if (r || !opt->done)
		return r;
	r = opt->done(cfg, err);
	if (r)
		err_prefix(err, "%s %s", name, text);
	return r;
}

int vm_option_set(struct vm_config *cfg, const struct vm_option *opt,
		  const char *text, struct err *err)
{
	char prefix[32];
	int r;

	if (opt->keys)
		return set_keys(cfg, opt, text, err);
	r = opt->set(cfg, text ? text : "on", err);
	snprintf(prefix, sizeof(prefix), "--%s", opt->name);
	/* The serial port's setter has named the option already. */
	if (r && strncmp(err->text, prefix, strlen(prefix)) != 0)
		err_prefix(err, "%s %s", prefix, text ? text : "");
	return r;
}

static const struct vm_option *find_option(const char *name)
{
	for (size_t i = 0; i < vm_num_options; i++) {
		if (!strcmp(vm_options[i].name, name))
			return &vm_options[i];
	}
	BUG_ON(true);
}

int vm_config_set_cpus(struct vm_config *cfg, const char *text, struct err *err)
{
	return vm_option_set(cfg, find_option("cpus"), text, err);
}

int vm_config_set_memory(struct vm_config *cfg, const char *text,
			 struct err *err)
{
	return vm_option_set(cfg, find_option("memory"), text, err);
}
