/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vCPU's thread: KVM_RUN, dispatch of exits to the buses, and a clean way
 * out.
 *
 * Threads: create, start, pause, resume, request_stop, join and free belong to
 * the control thread. The vCPU's own thread calls the hooks; they only post. A
 * vCPU that ended posts once and leaves its loop; the machine then stops the
 * others.
 */
#ifndef QUIRE_VM_VCPU_H
#define QUIRE_VM_VCPU_H

#include "bus/iobus.h"
#include "kvm/vcpu.h"

struct dirty_tracker;
struct ioapic;
struct vcpu;

enum vcpu_end {
	VCPU_END_TRIPLE_FAULT, /* KVM_EXIT_SHUTDOWN */
	VCPU_END_SYSTEM_RESET, /* KVM_EXIT_SYSTEM_EVENT */
	VCPU_END_SYSTEM_SHUTDOWN,
	VCPU_END_ERROR, /* KVM or the host cannot go on; text says why */
};

/* What a vCPU thread uses; outlives it. */
struct vcpu_env {
	struct iobus *pio, *mmio;
	struct ioapic *ioapic;	     /* split irqchip only, else NULL */
	struct dirty_tracker *dirty; /* NULL: this KVM has no log */
	void (*ended)(void *ctx, unsigned int id, enum vcpu_end end,
		      const char *text);
	void *ctx;
};

/* Counted by the thread, read by anyone (relaxed). */
struct vcpu_counters {
	_Atomic uint64_t exits_pio, exits_mmio, exits_other, unclaimed;
};

extern const struct thread_class vcpu_thread_class;

__must_check int vcpu_new(struct vcpu **ret, const struct kvm_vm *vm,
			  unsigned int id, const struct vcpu_env *env,
			  struct err *err);
/* Stopped and joined, or never started. NULL is fine. */
void vcpu_free(struct vcpu *vcpu);

struct kvm_vcpu *vcpu_kvm(struct vcpu *vcpu);
const struct vcpu_counters *vcpu_counters(const struct vcpu *vcpu);
/*
 * Descriptor of KVM's statistics of it (kvm/stats.h), opened before it ran, so
 * that reading waits for nothing; -1 where the kernel has none.
 */
int vcpu_stats_fd(const struct vcpu *vcpu);

/* If a pause was requested before, it does not enter the guest. */
__must_check int vcpu_start(struct vcpu *vcpu);
/*
 * Leave the guest, finish what it asked for last, and park the thread until
 * vcpu_resume(). First request all, then wait for each: a vCPU that ended is
 * not waited for. A vCPU busy with an exit (console output whose reader is
 * slow) is to be waited for.
 */
void vcpu_request_pause(struct vcpu *vcpu);
/*
 * Not longer than until a clock_now_ns(). False: it is not there yet, because
 * of such an exit or of guest memory that it waits for in the kernel. It parks
 * later; resuming it before is fine.
 */
bool vcpu_wait_paused_until(struct vcpu *vcpu, uint64_t until_ns);
void vcpu_resume(struct vcpu *vcpu);
/*
 * Leave the guest as for a pause, and go on by itself at a clock_now_ns(); 0
 * ends a nap. A pause meanwhile finds it parked, and outlasts it. Any thread.
 */
void vcpu_nap_until(struct vcpu *vcpu, uint64_t until_ns);
/* Leave KVM_RUN and the loop as soon as possible. Any thread; idempotent. */
void vcpu_request_stop(struct vcpu *vcpu);
void vcpu_join(struct vcpu *vcpu);

#endif
