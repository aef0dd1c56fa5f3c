/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VM is made of, as asked for on the command line, in a configuration
 * file, or by the API's vm.create. Owns every string in it.
 *
 * vm_options[] has a row for each thing that can be said, other than devices:
 * its name on the command line, its place in the JSON form, the setter that
 * both go through, and the getter for exporting it. Devices are the virtio
 * registry's. vm/config_json.h reads and writes the JSON form.
 */
#ifndef QUIRE_VM_CONFIG_H
#define QUIRE_VM_CONFIG_H

#include <jansson.h>

#include "base/err.h"
#include "device/chardev.h"
#include "kvm/irq.h"
#include "mem/dirty.h"
#include "mem/numa.h"
#include "mem/populate.h"
#include "mem/ram.h"
#include "stage2/stage2.h"
#include "virtio/virtio.h"

struct boot_files;

#define VM_MAX_DEVICES	  28 /* PCI slots, less the host bridge and spare */
#define VM_MAX_NAME	  64 /* bytes of a VM's name or a device's id */
#define VM_MIN_MEMORY	  (64 * MIB)
#define VM_DEFAULT_MEMORY (512 * MIB)
#define VM_DEFAULT_RATE	  GIB /* of background work on memory, per second */

/* What happens when the guest reboots, or crashes (triple fault). */
enum vm_action {
	VM_ACTION_RESTART,
	VM_ACTION_STOP,
};

extern const char *const vm_action_names[2]; /* "restart", "stop" */

/* What happens when the guest says that its kernel panicked (pvpanic). */
enum vm_panic_action {
	VM_PANIC_CONTINUE, /* the guest does what it does about a panic */
	VM_PANIC_RESTART,
	VM_PANIC_STOP,
};

extern const char *const vm_panic_action_names[3];

struct vm_device_config {
	const struct virtio_class *cls;
	void *config;	/* cls->config_bytes */
	char *id;	/* unique among the VM's devices: "_disk0" */
	json_t *fields; /* what was said, in JSON form, without the id */
	bool from_file; /* an option on the command line may replace it */
	bool leaving;	/* the guest was asked to let it go */
};

/* Words about memory that only have a meaning together; see memory_done(). */
struct vm_memory_words {
	bool page, shared_off, prefault;
	bool hugepages_on, hugepages_off;
	uint64_t hugepage_bytes;
};

/* Does it read this process's terminal, which only one may? */
static inline bool vm_device_wants_terminal(const struct vm_device_config *dev)
{
	return dev->cls->wants_terminal &&
	       dev->cls->wants_terminal(dev->config);
}

struct vm_config {
	char *name; /* NULL: none was given */
	char *kernel, *initramfs, *cmdline;
	struct boot_files *files; /* opened ahead, or NULL, and below: */
	struct chardev *chardev;  /* what serial names */

	unsigned int num_cpus;
	unsigned int max_cpus; /* 0: as many as num_cpus */
	unsigned int threads_per_core;
	bool dedicated_cpus; /* --cpus dedicated=on */
	enum irqchip_kind irqchip;

	uint64_t memory_bytes;
	enum ram_page page;
	bool shared; /* see vm_config_shared() */
	struct vm_memory_words words;
	struct numa_config numa;
	enum populate_mode populate;
	enum stage2_method stage2;     /* how the second stage is filled */
	unsigned int populate_threads; /* 0: one per CPU */
	bool repair;		       /* what is zapped of the second stage */
	bool coalesce;		       /* 4K pages into 2M in the background */
	uint64_t background_rate;      /* bytes/s of both; 0: no limit */
	enum dirty_method dirty_log;
	uint32_t dirty_ring; /* entries of each vCPU's; 0: default */

	struct chardev_config serial;
	bool debug_exit;
	bool watchdog; /* that bites like a reboot: on_reboot */
	enum vm_action on_reboot, on_crash;
	enum vm_panic_action on_panic;
	unsigned int shutdown_timeout_s;

	/* In the order of the registry, then of adding. */
	struct vm_device_config devices[VM_MAX_DEVICES];
	unsigned int num_devices;

	/* Not said but known: vm.populate may come later. */
	bool may_populate_later;
};

/* A key of an option that has several ("size" of --memory). */
struct vm_option_key {
	const char *name;  /* on the command line: "populate-threads" */
	const char *field; /* in JSON; NULL: the name with '_' for '-' */
	int (*set)(void *cfg, const char *value, struct err *err);
	/* NULL: not exported, because another key says the same. */
	json_t *(*get)(const struct vm_config *cfg);
};

struct vm_option {
	const char *name; /* on the command line, without "--" */
	const char *arg;  /* for --help; NULL: a flag, set(cfg, "on") */
	const char *help;

	/*
	 * JSON: the field (NULL: the name with '_' for '-'), within object, or
	 * at the top (NULL). With keys it is an object itself.
	 */
	const char *object, *field;

	/* Either one value... */
	int (*set)(struct vm_config *cfg, const char *value, struct err *err);
	json_t *(*get)(const struct vm_config *cfg); /* NULL: not set */
	/* ... where JSON differs from it, as an object or otherwise ... */
	int (*set_json)(struct vm_config *cfg, const json_t *value,
			struct err *err);
	/* ... or keys; done, which may be NULL, after all of them. */
	const struct vm_option_key *keys;
	size_t num_keys;
	const char *first_key;
	int (*done)(struct vm_config *cfg, struct err *err);
};

extern const struct vm_option vm_options[];
extern const size_t vm_num_options;

/* Defaults: 1 CPU, 512 MiB of THP, serial on the terminal, no devices. */
void vm_config_init(struct vm_config *cfg);
void vm_config_fini(struct vm_config *cfg);

/* The command line's way to set an option: its text, NULL for a flag. */
__must_check int vm_option_set(struct vm_config *cfg,
			       const struct vm_option *opt, const char *text,
			       struct err *err);

/* Is name, with '_' for '-', field? How JSON names a key. */
bool vm_field_is(const char *name, const char *field);

/*
 * 1 to VM_MAX_NAME - 1 of A-Z a-z 0-9 . _ - , the first a letter or digit. The
 * id of a device may have a '_' before such a name.
 */
__must_check int vm_config_check_name(const char *name, struct err *err);

/*
 * Parse one device option ("--disk path=...") and add it. text may be "" for a
 * device with no obligatory key. Every device takes id= beside its own keys.
 */
__must_check int vm_config_add_device(struct vm_config *cfg,
				      const struct virtio_class *cls,
				      const char *text, struct err *err);

/*
 * The same of a JSON object. path names it in messages ("disks[0]"). *ret_id,
 * which may be NULL, is valid as long as the device is there.
 */
__must_check int
vm_config_add_device_json(struct vm_config *cfg, const struct virtio_class *cls,
			  const json_t *fields, const char *path,
			  const char **ret_id, struct err *err);

/*
 * NULL: there is none. Pointers to devices hold until the next one is added or
 * removed.
 */
struct vm_device_config *vm_config_device(struct vm_config *cfg,
					  const char *id);
void vm_config_remove_device(struct vm_config *cfg, const char *id);

/* "boot=4,threads=2", "size=1G,page=thp,..." into cfg. */
__must_check int vm_config_set_cpus(struct vm_config *cfg, const char *text,
				    struct err *err);
__must_check int vm_config_set_memory(struct vm_config *cfg, const char *text,
				      struct err *err);

/*
 * Must guest memory be shared: it was asked for, or a device needs it, the name
 * of whose class *ret_why then is (NULL otherwise; may be NULL).
 */
bool vm_config_shared(const struct vm_config *cfg, const char **ret_why);

/* What can be said before anything is opened: missing, contradictory. */
__must_check int vm_config_check(const struct vm_config *cfg, struct err *err);

#endif
