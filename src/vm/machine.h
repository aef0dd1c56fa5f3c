/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One assembled machine: VM, RAM, vCPUs, buses and devices, from building to
 * tearing down. A guest reboot builds a new machine (vm/session.h), so there is
 * one way to a clean state and it is the one every boot tests.
 *
 * Threads: all calls from the control thread. vCPU threads report through
 * machine_end_hooks.ended and .panicked, which only post.
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
	MACHINE_END_PANIC, /* said so by pvpanic, and --on-panic ends it */
	MACHINE_END_WATCHDOG,
	MACHINE_END_DEBUG_EXIT,
	MACHINE_END_ERROR, /* host or KVM */
};

struct machine_end_hooks {
	/* From a vCPU thread; code belongs to DEBUG_EXIT, text may be "". */
	void (*ended)(void *ctx, enum machine_end end, unsigned int code,
		      const char *text);
	/*
	 * The guest's kernel panicked, events of device/pvpanic.h; from a vCPU
	 * thread, as often as the guest likes. NULL is fine.
	 */
	void (*panicked)(void *ctx, unsigned int events);
	/* A device is gone after machine_request_removal(). NULL is fine. */
	void (*removed)(void *ctx, const char *id);
	/* While building: true makes machine_new() give up (-ECANCELED). */
	bool (*interrupted)(void *ctx);
	/* From the keeper's thread: it has done all that was asked for. */
	void (*keeper_idle)(void *ctx);
	/*
	 * From a pager's thread: all of memory has come, or its source failed
	 * (vm/paging.h). NULL is fine.
	 */
	void (*paging_event)(void *ctx);
	void *ctx;
};

/* What the guest can tell the time from, other than the RTC. */
struct machine_clocks {
	uint64_t host_ns; /* clock_now_ns() */
	uint64_t host_tsc;
	bool has_kvmclock; /* this KVM lets it be read */
	uint64_t kvmclock_ns;
};

/* What devices that are gone have done. */
struct machine_gone_devices {
	unsigned int num;
	uint64_t requests, kicks, interrupts, errors;
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
	/* In the order of adding, without holes; index among its class. */
	struct virtio_pci *devices[VM_MAX_DEVICES];
	unsigned int device_index[VM_MAX_DEVICES];
	unsigned int num_devices;
	struct machine_gone_devices gone;
	struct vcpu **vcpus;
	unsigned int num_vcpus;
	struct progress progress; /* of population */
	bool restore;		  /* built to be loaded (vm/machine_state.h) */
	bool paused;
	struct machine_clocks clocks; /* when it was paused */
};

/*
 * Build all of it and load the kernel; nothing runs yet. chardev is the serial
 * port's back end and loop its event loop: both stay the caller's. origin:
 * guest memory comes from there, and is neither populated nor written to here;
 * the state is to be loaded then (vm/machine_state.h). NULL: a fresh machine.
 */
__must_check int machine_new(struct machine **ret, const struct vm_config *cfg,
			     const struct vm_memory_origin *origin,
			     struct chardev *chardev, struct evloop *loop,
			     const struct machine_end_hooks *hooks,
			     struct err *err);
/* Stopped, or never started, or half built. NULL is fine. */
void machine_free(struct machine *m);

/* A machine that was loaded is paused, and stays so: machine_resume(). */
__must_check int machine_start(struct machine *m, struct err *err);
/*
 * Every vCPU out of the guest, the devices take no new requests (those they
 * have are completed), and the guest's clocks but the RTC stand still. The
 * keeper goes on: what it does is not visible to the guest. Started machines
 * only; twice is once.
 */
void machine_pause(struct machine *m);
/*
 * The guest goes on where it was, with its clocks where they were. False: a
 * vCPU waits for memory that cannot be brought (vm/paging.h); still paused.
 */
bool machine_resume(struct machine *m);

/*
 * Plug a device into a started machine, running or not, and tell the guest.
 * *ret_devfn is its place on bus 0; -ENOSPC: no slot. cfg is not kept.
 */
__must_check int machine_add_device(struct machine *m,
				    const struct vm_device_config *dev,
				    uint8_t *ret_devfn, struct err *err);

/*
 * Ask the guest to let the device go. hooks.removed follows when it has, which
 * a guest may never do; asking again is fine and asks again. -ENOENT: no such
 * id.
 */
__must_check int machine_request_removal(struct machine *m, const char *id,
					 struct err *err);

/* Has the guest been asked for devices[i], and not let it go yet? */
bool machine_removal_requested(const struct machine *m, unsigned int i);

/* Requests, kicks, interrupts and errors of one device. */
void machine_device_count(const struct virtio_dev *dev,
			  struct machine_gone_devices *sum);

/*
 * Its disks go to another process, or (take) come here; all or, after a
 * failure, none of them. Paused and saved, or just built.
 */
__must_check int machine_hand_over(struct machine *m, bool take,
				   struct err *err);

/* Its network devices tell the network that they are here now. */
void machine_announce(const struct machine *m);

/* Another VM generation id, and the guest is told. */
__must_check int machine_renew_generation_id(struct machine *m,
					     struct err *err);

/* Every vCPU out of the guest and its thread joined; devices keep running. */
void machine_stop(struct machine *m);

#endif
