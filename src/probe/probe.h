/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe guest: a VM without devices whose vCPUs run an embedded payload in
 * user mode and do what the host commands (probe/protocol.h). It is the
 * instrument of `quire bench` and of the integrity tests.
 *
 *	probe_new -> [probe_start -> probe_wait]* -> probe_free
 *
 * Between commands every vCPU is out of the guest and its thread parked, so RAM
 * and vCPU state are still and the vCPU descriptors may be used freely.
 *
 * Threads: one caller thread at a time per probe; probe_stop() from any. Each
 * vCPU has a thread of its own inside.
 *
 * Errors: a payload that faults, exits in an unexpected way or outlasts its
 * timeout fails its vCPU for good, with an err that names the vCPU, the reason
 * and the RIP; the other vCPUs and probe_free() are unaffected.
 */
#ifndef QUIRE_PROBE_PROBE_H
#define QUIRE_PROBE_PROBE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/histogram.h"
#include "kvm/vcpu.h"
#include "mem/populate.h"
#include "mem/ram.h"
#include "probe/layout.h"
#include "probe/protocol.h"
#include "stage2/stage2.h"

struct cpu_model;
struct probe;

struct probe_config {
	unsigned int num_vcpus;
	uint64_t test_bytes; /* rounded up to 2 MiB */
	enum probe_guest_page guest_page;
	enum ram_page page;
	bool shared;	      /* memfd */
	uint32_t slot_flags;  /* KVM_MEM_* of every memslot */
	const char *kvm_path; /* NULL: KVM_DEVICE_PATH */

	/*
	 * Optional. vm_setup runs before the first vCPU and memslot are made
	 * (capabilities such as the dirty ring). on_exit sees each exit that
	 * is not the payload's own, on the vCPU's thread: 1 = handled, resume;
	 * 0 = not mine, the vCPU fails; or a negative errno, likewise.
	 */
	int (*vm_setup)(void *ctx, const struct kvm_vm *vm, struct err *err);
	int (*on_exit)(void *ctx, unsigned int vcpu, struct kvm_run *run);
	/*
	 * RAM, mapped and untouched, is to hold what that of a probe with the
	 * same configuration held between commands; ram_gone comes before it is
	 * unmapped, with the vCPUs out of the guest, if ram_restore succeeded.
	 */
	int (*ram_restore)(void *ctx, struct ram *ram, struct err *err);
	void (*ram_gone)(void *ctx);
	void *ctx;
};

__must_check int probe_new(struct probe **ret, const struct probe_config *cfg,
			   struct err *err);
/* Stops whatever runs. NULL is fine. */
void probe_free(struct probe *probe);

unsigned int probe_num_vcpus(const struct probe *probe);
const struct probe_layout *probe_layout(const struct probe *probe);
const struct ram *probe_ram(const struct probe *probe);
const struct kvm_vm *probe_vm(const struct probe *probe);
struct kvm_vcpu *probe_vcpu(struct probe *probe, unsigned int i);
/* What its vCPUs are, for more of them (stage2/helpers.h). */
const struct cpu_model *probe_cpu_model(const struct probe *probe);
/* The thread that runs vCPU i, for perf_open() and the like. */
pid_t probe_thread_id(struct probe *probe, unsigned int i);

/* What a finished command did. */
struct probe_outcome {
	struct probe_result guest;
	uint64_t guest_ns; /* between the payload's two TSC reads */
	uint64_t wall_ns;  /* from entry to exit, barrier included */
};

#define PROBE_NO_TIMEOUT UINT64_MAX

/*
 * Hand cmd to idle vCPU i and return at once. The range is checked: commands
 * stay in the test area; PROBE_F_ABSOLUTE is for READ and FAULT. -EBUSY: it
 * still has a command; -EIO: it has failed or left.
 */
__must_check int probe_start(struct probe *probe, unsigned int i,
			     const struct probe_command *cmd, struct err *err);

/*
 * Wait for vCPU i's command. A timeout fails the vCPU (-ETIMEDOUT). A verify
 * that found a difference is no error here: look at ret->guest.status.
 */
__must_check int probe_wait(struct probe *probe, unsigned int i,
			    uint64_t timeout_ns, struct probe_outcome *ret,
			    struct err *err);

/* Both. */
__must_check int probe_run(struct probe *probe, unsigned int i,
			   const struct probe_command *cmd, uint64_t timeout_ns,
			   struct probe_outcome *ret, struct err *err);

/*
 * The times of vCPU i's last PROBE_F_TIMED command, in ns of the guest's clock,
 * clock reads included. It is idle or has failed; what a payload that went
 * astray left there may be any numbers. Where KVM does not tell the clock's
 * rate, probe_start() refuses timed commands with -ENOTSUP.
 */
void probe_read_times(const struct probe *probe, unsigned int i,
		      struct histogram_snapshot *ret);

/*
 * Run cmd on all vCPUs at once, started at a barrier, each on its equal share
 * of the range (whole 4K pages; the last takes the rest). outcomes has one
 * entry per vCPU, or is NULL. On failure all commands have ended.
 */
__must_check int probe_run_all(struct probe *probe,
			       const struct probe_command *cmd,
			       uint64_t timeout_ns,
			       struct probe_outcome *outcomes, struct err *err);

/*
 * Ask all running commands to end early (status PROBE_STOPPED). The request
 * is withdrawn by the first probe_start() that finds every vCPU idle.
 */
void probe_stop(struct probe *probe);

struct probe_population {
	enum populate_mode mode; /* HOST or FULL */
	enum stage2_method stage2;
	unsigned int threads;		    /* 0: one per CPU */
	const struct populate_watch *watch; /* may be NULL */
	struct gpa from;		    /* what to fill; len 0: all RAM */
	uint64_t len;
};

/*
 * Fill RAM as `quire run` does, through the probe's vCPUs, which are idle.
 * *ret_method is the method that filled the second stage; with NONE, reason
 * (if not NULL, an err to fill) says why FULL came to HOST.
 */
__must_check int probe_populate(struct probe *probe,
				const struct probe_population *how,
				struct populate_result *ret,
				enum stage2_method *ret_method,
				struct err *reason, struct err *err);

/*
 * Take the control area's own faults (code, stacks, slots, page tables) out of
 * the way, so that a fault counted later belongs to the test area.
 */
__must_check int probe_warm_up(struct probe *probe, struct err *err);

/* Exact event counts since the VM began, from KVM's statistics. */
struct probe_counters {
	uint64_t faults; /* second-stage faults, all vCPUs ("pf_taken") */
	/* Second-stage leaves that exist now; false where KVM has no count. */
	bool has_pages;
	uint64_t pages_4k, pages_2m, pages_1g;
};

/* -ENOTTY, -ENOENT: this KVM counts no faults. */
__must_check int probe_read_counters(struct probe *probe,
				     struct probe_counters *ret);

#endif
