/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VM is made of, as asked for: the parsed command line (later also the
 * configuration file and the API's vm.create). Owns every string in it.
 */
#ifndef QUIRE_VM_CONFIG_H
#define QUIRE_VM_CONFIG_H

#include "base/err.h"
#include "device/chardev.h"
#include "kvm/irq.h"
#include "mem/dirty.h"
#include "mem/numa.h"
#include "mem/populate.h"
#include "mem/ram.h"
#include "stage2/stage2.h"
#include "virtio/virtio.h"

#define VM_MAX_DEVICES	  28 /* PCI slots, less the host bridge and spare */
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
	void *config; /* cls->config_bytes */
	char *id;     /* unique among the VM's devices; NULL: the machine's */
};

struct vm_config {
	char *kernel, *initramfs, *cmdline;

	unsigned int num_cpus;
	unsigned int threads_per_core;
	bool dedicated_cpus; /* --cpus dedicated=on */
	enum irqchip_kind irqchip;

	uint64_t memory_bytes;
	enum ram_page page;
	bool shared;
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

	struct vm_device_config devices[VM_MAX_DEVICES];
	unsigned int num_devices;
};

/* Defaults: 1 CPU, 512 MiB of THP, serial on the terminal, no devices. */
void vm_config_init(struct vm_config *cfg);
void vm_config_fini(struct vm_config *cfg);

/*
 * Parse one device option ("--disk path=...") and append it. text may be ""
 * for a device with no obligatory key.
 */
__must_check int vm_config_add_device(struct vm_config *cfg,
				      const struct virtio_class *cls,
				      const char *text, struct err *err);

/* "boot=4,threads=2", "size=1G,page=thp,..." into cfg. */
__must_check int vm_config_set_cpus(struct vm_config *cfg, const char *text,
				    struct err *err);
__must_check int vm_config_set_memory(struct vm_config *cfg, const char *text,
				      struct err *err);

/* What can be said before anything is opened: missing, contradictory. */
__must_check int vm_config_check(const struct vm_config *cfg, struct err *err);

#endif
