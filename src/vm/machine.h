/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One assembled machine: VM, RAM, vCPUs, buses and devices, from building to
 * tearing down. A guest reboot builds a new machine (vm/session.h), so there is
 * one way to a clean state and it is the one every boot tests.
 *
 * Threads: all calls from the control thread. vCPU threads report through
 * machine_end_hooks.ended, which only posts.
 */
#ifndef QUIRE_VM_MACHINE_H
#define QUIRE_VM_MACHINE_H

#include "base/evloop.h"
#include "base/progress.h"
#include "bus/pci_host.h"
#include "device/milestone.h"
#include "vm/config.h"
#include "vm/memory.h"
#include "vm/platform.h"
#include "vm/vcpu.h"
#include "virtio/pci.h"

/* Why the machine stopped. */
enum machine_end {
	MACHINE_END_NONE,
	MACHINE_END_POWEROFF,
	MACHINE_END_REBOOT,
	MACHINE_END_CRASH, /* triple fault */
	MACHINE_END_DEBUG_EXIT,
	MACHINE_END_ERROR, /* host or KVM */
};

struct machine_end_hooks {
	/* From a vCPU thread; code belongs to DEBUG_EXIT, text may be "". */
	void (*ended)(void *ctx, enum machine_end end, unsigned int code,
		      const char *text);
	/* While building: true makes machine_new() give up (-ECANCELED). */
	bool (*interrupted)(void *ctx);
	void *ctx;
};

struct machine {
	const struct vm_config *cfg;
	struct machine_end_hooks hooks;
	struct kvm kvm;
	struct kvm_vm vm;
	struct vm_memory memory;
	struct irq_router *router;
	struct iobus *pio, *mmio;
	struct pci_host *pci;
	struct platform *platform;
	struct milestone milestone;
	struct virtio_pci *devices[VM_MAX_DEVICES];
	unsigned int num_devices;
	struct vcpu **vcpus;
	unsigned int num_vcpus;
	struct progress progress; /* of population */
};

/*
 * Build all of it and load the kernel; nothing runs yet. chardev is the serial
 * port's back end and loop its event loop: both stay the caller's.
 */
__must_check int machine_new(struct machine **ret, const struct vm_config *cfg,
			     struct chardev *chardev, struct evloop *loop,
			     const struct machine_end_hooks *hooks,
			     struct err *err);
/* Stopped, or never started, or half built. NULL is fine. */
void machine_free(struct machine *m);

__must_check int machine_start(struct machine *m, struct err *err);
/* Every vCPU out of the guest and its thread joined; devices keep running. */
void machine_stop(struct machine *m);

#endif
