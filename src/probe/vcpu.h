/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One vCPU of a probe guest and the thread that runs it (private to probe/).
 *
 * The thread is parked until it is given work, enters the guest until the
 * payload's port write, and parks again. All fields below the lock belong to
 * it; kvm_run and registers belong to the thread while state is RUNNING and to
 * the owner of the probe otherwise.
 */
#ifndef QUIRE_PROBE_VCPU_H
#define QUIRE_PROBE_VCPU_H

#include <pthread.h>
#include <sys/types.h>

#include "probe/probe.h"

struct kvm_stats;

enum probe_vcpu_state {
	PROBE_VCPU_IDLE,
	PROBE_VCPU_RUNNING,
	PROBE_VCPU_FAILED, /* err says why */
	PROBE_VCPU_LEFT,   /* did PROBE_OP_EXIT */
};

struct probe_vcpu {
	struct kvm_vcpu kvm;
	const struct probe_config *cfg;
	struct kvm_stats *stats; /* the owner's; NULL until first used */
	pthread_t thread;
	bool thread_started;
	_Atomic bool abandoned; /* set by the owner: give up, whatever runs */

	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum probe_vcpu_state state;
	bool quit;
	bool leaving; /* the command is PROBE_OP_EXIT */
	uint64_t entered_ns, finished_ns;
	pid_t tid; /* of thread; 0 until it runs */
	struct err err;
};

/* Before anything else; makes probe_vcpu_fini() safe. */
void probe_vcpu_init(struct probe_vcpu *v, const struct probe_config *cfg);
/* kvm must be open. */
__must_check int probe_vcpu_start_thread(struct probe_vcpu *v, struct err *err);
/* Ends the thread, whatever it does, and closes the vCPU. */
void probe_vcpu_fini(struct probe_vcpu *v);

/* The kernel's number of the thread, which has been started. */
pid_t probe_vcpu_tid(struct probe_vcpu *v);

enum probe_vcpu_state probe_vcpu_state(struct probe_vcpu *v);

/* The slot holds a command: go. -EBUSY, or -EIO with the reason in err. */
__must_check int probe_vcpu_go(struct probe_vcpu *v, bool leaving,
			       struct err *err);

/*
 * Until it no longer runs; after timeout_ns it is thrown out of the guest and
 * failed. 0, or a negative errno with the vCPU's err.
 */
__must_check int probe_vcpu_join(struct probe_vcpu *v, uint64_t timeout_ns,
				 struct err *err);

#endif
